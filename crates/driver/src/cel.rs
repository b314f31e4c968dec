//! Conditions and selectors: the Common Expression Language as pipelines use it.
//!
//! As in upstream, a condition sees the fields of `ml_pipelines.ExecutorInput` under their proto names, a selector the
//! field of `google.protobuf.Value` that is set, plus the value's text as `string_value`; both may call `parseJson`.

use std::collections::HashMap;
use std::sync::Arc;

use cel::objects::{Key, Map};
use cel::{Context, Env, ExecutionError, Program, Value as Cel};
use kfp_core::ir;
use kfp_proto::ml_pipelines::{ArtifactList, ExecutorInput, artifact_type_schema, value as legacy};
use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::text;

/// Longer expressions are refused: nobody writes them, and parsing must stay cheap.
const MAX_LENGTH: usize = 64 * 1024;
/// More brackets within brackets, or operators in a row, are refused: parser and interpreter recurse on them.
const MAX_NESTING: usize = 50;
/// More operators and selections in all are refused, for the same reason.
const MAX_OPERATORS: usize = 500;
/// Stack of the thread that parses and evaluates: ample for the limits above in an unoptimised build.
const STACK_BYTES: usize = 64 * 1024 * 1024;

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not an expression.
    #[error("expression {expression:?} is invalid: {reason}")]
    Syntax {
        /// The expression.
        expression: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The expression failed on the given values.
    #[error("evaluation error: {reason} (in {expression:?})")]
    Evaluation {
        /// The expression.
        expression: String,
        /// What went wrong.
        reason: String,
    },
}

/// Whether the condition holds for the input.
///
/// # Errors
/// When the condition does not parse, refers to something that is not there, or is not a boolean.
pub fn condition(expression: &str, input: &ExecutorInput) -> Result<bool, Error> {
    match evaluate(expression, input_variables(input))? {
        Cel::Bool(value) => Ok(value),
        other => Err(Error::Evaluation {
            expression: expression.to_owned(),
            reason: format!("return type is not bool, got {other:?}"),
        }),
    }
}

/// The part of a value that the selector names.
///
/// # Errors
/// When the selector does not parse, refers to something that is not there, or gives something without a JSON form.
pub fn select(expression: &str, value: &Value) -> Result<Value, Error> {
    let result = evaluate(expression, value_variables(value))?;
    to_value(&result).ok_or_else(|| Error::Evaluation {
        expression: expression.to_owned(),
        reason: format!("failed to convert result to protobuf.Value: {result:?}"),
    })
}

/// Refuses what would make a recursive parser run out of stack. Text within quotes does not count.
fn check_size(expression: &str) -> Result<(), &'static str> {
    if expression.len() > MAX_LENGTH {
        return Err("it is too long");
    }
    let (mut quote, mut escaped, mut depth, mut operators, mut row) = (None, false, 0_usize, 0_usize, 0_usize);
    for c in expression.chars() {
        if let Some(end) = quote {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                _ if c == end => quote = None,
                _ => {}
            }
            continue;
        }
        row = if matches!(c, '!' | '-') { row + 1 } else { 0 };
        match c {
            '\'' | '"' => quote = Some(c),
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '?' | '+' | '-' | '*' | '/' | '%' | '&' | '|' | '<' | '>' | '=' | '!' | '.' | ',' | ':' => operators += 1,
            _ => {}
        }
        if depth > MAX_NESTING || row > MAX_NESTING || operators > MAX_OPERATORS {
            return Err("it is nested too deeply");
        }
    }
    Ok(())
}

fn evaluate(expression: &str, variables: Vec<(&'static str, Cel)>) -> Result<Cel, Error> {
    let syntax = |reason: &str| {
        let expression = if expression.chars().count() > 300 {
            expression.chars().take(300).chain("...".chars()).collect()
        } else {
            expression.to_owned()
        };
        Error::Syntax { expression, reason: reason.trim().to_owned() }
    };
    check_size(expression).map_err(syntax)?;
    let work = || {
        let env = Arc::new(Env::stdlib());
        let program: Program = env.compile(expression).map_err(|errors| syntax(&errors.to_string()))?;
        let mut context = Context::with_env(env);
        context.add_function("parseJson", parse_json).map_err(|error| syntax(&error.to_string()))?;
        for (name, value) in variables {
            context.add_variable_from_value(name, value);
        }
        program
            .execute(&context)
            .map_err(|error| Error::Evaluation { expression: expression.to_owned(), reason: reason(&error) })
    };
    // Expressions come from users: neither deep nesting nor a defect of the parser may take the process down. A thread
    // of its own has room for the former and contains the latter.
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("cel".to_owned()).stack_size(STACK_BYTES);
        match thread.spawn_scoped(scope, work) {
            Ok(handle) => handle.join().unwrap_or_else(|_| Err(syntax("the parser gave up"))),
            Err(error) => Err(syntax(&format!("no thread to evaluate it: {error}"))),
        }
    })
}

/// Texts of cel-go where users may know them.
fn reason(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        ExecutionError::UndeclaredReference(name) => format!("no such attribute: {name}"),
        other => other.to_string(),
    }
}

fn parse_json(text: Arc<String>) -> Result<Cel, ExecutionError> {
    serde_json::from_str(&text)
        .map(|json| from_value(&ir::from_json(&json)))
        .map_err(|error| ExecutionError::function_error("parseJson", format!("failed to unmarshal JSON: {error}")))
}

fn map(entries: impl IntoIterator<Item = (String, Cel)>) -> Cel {
    let entries: HashMap<Key, Cel> = entries.into_iter().map(|(key, value)| (Key::from(key), value)).collect();
    Cel::Map(Map { map: Arc::new(entries) })
}

fn list(items: impl IntoIterator<Item = Cel>) -> Cel {
    Cel::List(Arc::new(items.into_iter().collect()))
}

fn string(text: &str) -> Cel {
    Cel::from(text)
}

fn from_value(value: &Value) -> Cel {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Cel::Null,
        Some(Kind::BoolValue(value)) => Cel::Bool(*value),
        Some(Kind::NumberValue(value)) => Cel::Float(*value),
        Some(Kind::StringValue(value)) => string(value),
        Some(Kind::ListValue(values)) => list(values.values.iter().map(from_value)),
        Some(Kind::StructValue(fields)) => from_struct(fields),
    }
}

fn from_struct(fields: &Struct) -> Cel {
    map(fields.fields.iter().map(|(key, value)| (key.clone(), from_value(value))))
}

#[allow(clippy::cast_precision_loss)]
fn to_value(value: &Cel) -> Option<Value> {
    let kind = match value {
        Cel::Null => Kind::NullValue(0),
        Cel::Bool(value) => Kind::BoolValue(*value),
        Cel::Int(value) => Kind::NumberValue(*value as f64),
        Cel::UInt(value) => Kind::NumberValue(*value as f64),
        Cel::Float(value) => Kind::NumberValue(*value),
        Cel::String(value) => Kind::StringValue(value.to_string()),
        Cel::List(values) => {
            Kind::ListValue(prost_types::ListValue { values: values.iter().map(to_value).collect::<Option<_>>()? })
        }
        Cel::Map(entries) => {
            let entry = |(key, value): (&Key, &Cel)| match key {
                Key::String(key) => Some((key.to_string(), to_value(value)?)),
                _ => None,
            };
            Kind::StructValue(Struct { fields: entries.map.iter().map(entry).collect::<Option<_>>()? })
        }
        _ => return None,
    };
    Some(Value { kind: Some(kind) })
}

fn value_variables(value: &Value) -> Vec<(&'static str, Cel)> {
    let field = match &value.kind {
        None | Some(Kind::StringValue(_)) => None,
        Some(Kind::NullValue(_)) => Some("null_value"),
        Some(Kind::NumberValue(_)) => Some("number_value"),
        Some(Kind::BoolValue(_)) => Some("bool_value"),
        Some(Kind::ListValue(_)) => Some("list_value"),
        Some(Kind::StructValue(_)) => Some("struct_value"),
    };
    field
        .map(|name| (name, from_value(value)))
        .into_iter()
        .chain([("string_value", string(&text::decimal(value)))])
        .collect()
}

fn input_variables(input: &ExecutorInput) -> Vec<(&'static str, Cel)> {
    let (inputs, outputs) = (input.inputs.clone().unwrap_or_default(), input.outputs.clone().unwrap_or_default());
    let inputs = map([
        ("parameter_values".to_owned(), map(inputs.parameter_values.iter().map(|(k, v)| (k.clone(), from_value(v))))),
        ("parameters".to_owned(), map(inputs.parameters.iter().map(|(k, v)| (k.clone(), from_legacy(v))))),
        ("artifacts".to_owned(), map(inputs.artifacts.iter().map(|(k, v)| (k.clone(), from_artifacts(v))))),
    ]);
    let file = |path: &str| map([("output_file".to_owned(), string(path))]);
    let outputs = map([
        ("parameters".to_owned(), map(outputs.parameters.iter().map(|(k, v)| (k.clone(), file(&v.output_file))))),
        ("artifacts".to_owned(), map(outputs.artifacts.iter().map(|(k, v)| (k.clone(), from_artifacts(v))))),
        ("output_file".to_owned(), string(&outputs.output_file)),
    ]);
    vec![("inputs", inputs), ("outputs", outputs)]
}

fn from_legacy(value: &kfp_proto::ml_pipelines::Value) -> Cel {
    let (int, double, text) = match &value.value {
        Some(legacy::Value::IntValue(value)) => (*value, 0.0, ""),
        Some(legacy::Value::DoubleValue(value)) => (0, *value, ""),
        Some(legacy::Value::StringValue(value)) => (0, 0.0, value.as_str()),
        None => (0, 0.0, ""),
    };
    map([
        ("int_value".to_owned(), Cel::Int(int)),
        ("double_value".to_owned(), Cel::Float(double)),
        ("string_value".to_owned(), string(text)),
    ])
}

fn from_artifacts(artifacts: &ArtifactList) -> Cel {
    let one = |artifact: &kfp_proto::ml_pipelines::RuntimeArtifact| {
        let schema = artifact.r#type.clone().unwrap_or_default();
        let (title, uri, instance) = match &schema.kind {
            Some(artifact_type_schema::Kind::SchemaTitle(text)) => (text.as_str(), "", ""),
            Some(artifact_type_schema::Kind::SchemaUri(text)) => ("", text.as_str(), ""),
            Some(artifact_type_schema::Kind::InstanceSchema(text)) => ("", "", text.as_str()),
            None => ("", "", ""),
        };
        let schema = map([
            ("schema_title".to_owned(), string(title)),
            ("schema_uri".to_owned(), string(uri)),
            ("instance_schema".to_owned(), string(instance)),
            ("schema_version".to_owned(), string(&schema.schema_version)),
        ]);
        map([
            ("name".to_owned(), string(&artifact.name)),
            ("type".to_owned(), schema),
            ("uri".to_owned(), string(&artifact.uri)),
            ("properties".to_owned(), map(artifact.properties.iter().map(|(k, v)| (k.clone(), from_legacy(v))))),
            (
                "custom_properties".to_owned(),
                map(artifact.custom_properties.iter().map(|(k, v)| (k.clone(), from_legacy(v)))),
            ),
            ("metadata".to_owned(), artifact.metadata.as_ref().map_or_else(|| map([]), from_struct)),
            ("custom_path".to_owned(), string(artifact.custom_path.as_deref().unwrap_or_default())),
        ])
    };
    map([("artifacts".to_owned(), list(artifacts.artifacts.iter().map(one)))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfp_proto::ml_pipelines::ExecutorInput;
    use serde_json::json;

    fn input() -> ExecutorInput {
        let json = json!({"inputs": {
            "parameterValues": {
                "type": "foo", "num": 1, "half": 0.5, "yes": true, "none": null, "text_num": "7",
                "pipelinechannel--flip-coin-Output": "heads", "list": [1, 2], "map": {"a": "b"}},
            "artifacts": {"model": {"artifacts": [
                {"name": "model", "type": {"schemaTitle": "system.Model"}, "uri": "gs://root/x",
                 "metadata": {"accuracy": 0.95}}]}}}});
        ir::decode(&json, ir::Unknown::Reject).unwrap()
    }

    #[test]
    fn conditions() {
        for (expression, wanted) in [
            ("inputs.parameter_values['type']=='foo'", true),
            ("inputs.parameter_values['type']=='foo2'", false),
            ("inputs.parameter_values['num'] == 1", true),
            ("inputs.parameter_values['num'] != 1", false),
            ("inputs.parameter_values['type']=='foo' && inputs.parameter_values['num'] == 1.0", true),
            ("inputs.artifacts['model'].artifacts[0].metadata['accuracy']*100.0 > 90.0", true),
            ("inputs.artifacts['model'].artifacts[0].metadata['accuracy']*100.0 <= 90.0", false),
            ("inputs.artifacts['model'].artifacts[0].type.schema_title == 'system.Model'", true),
            ("inputs.parameter_values['pipelinechannel--flip-coin-Output'] == 'heads'", true),
            ("!(inputs.parameter_values['pipelinechannel--flip-coin-Output'] == 'heads')", false),
            ("int(inputs.parameter_values['num']) >= 1", true),
            ("int(inputs.parameter_values['text_num']) > 6", true),
            ("double(inputs.parameter_values['half']) < 0.75", true),
            ("double(inputs.parameter_values['num']) < 0.5", false),
            ("inputs.parameter_values['yes'] == true", true),
            ("!inputs.parameter_values['yes']", false),
            ("inputs.parameter_values['type'] == 1", false),
            ("inputs.parameter_values['num'] < 2", true),
            ("'foo' == inputs.parameter_values['type'] || false", true),
            ("outputs.output_file == ''", true),
            ("parseJson('{\"a\": [1]}').a[0] == 1", true),
        ] {
            assert_eq!(condition(expression, &input()), Ok(wanted), "{expression}");
        }
    }

    #[test]
    fn conditions_that_cannot_be_evaluated_say_why() {
        for (expression, wanted) in [
            ("inputs.parameter_values['absent']=='foo'", "no such key: absent"),
            ("inputs.parameter_values['type']", "return type is not bool"),
            ("nothing == 1", "no such attribute: nothing"),
            ("inputs.parameter_values['type'] == ", "is invalid"),
            ("inputs.parameter_values['type'] == 'it's'", "is invalid"),
            ("((((", "is invalid"),
            ("", "is invalid"),
        ] {
            let error = condition(expression, &input()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{expression}: {error}");
        }
        let error = condition("inputs.parameter_values['type']=='foo'", &ExecutorInput::default()).unwrap_err();
        assert!(error.to_string().contains("no such key"), "{error}");
    }

    #[test]
    fn huge_expressions_are_refused_or_survived() {
        for piece in ["(", "[", "{", "!", "-", "a.", "1+", "true&&", "a?b:", "f(", "a[0].", "\\", "'", "{1:"] {
            for count in [10, MAX_NESTING, MAX_OPERATORS / 2, 10_000] {
                let expression = format!("{}1", piece.repeat(count));
                let _ = condition(&expression, &ExecutorInput::default());
            }
        }
        let deep = format!("{}true{}", "(".repeat(MAX_NESTING), ")".repeat(MAX_NESTING));
        assert_eq!(condition(&deep, &input()), Ok(true));
        let wide = vec!["inputs.parameter_values['num'] == 1"; 60].join(" && ");
        assert_eq!(condition(&wide, &input()), Ok(true));
        assert!(condition(&"x".repeat(MAX_LENGTH + 1), &input()).is_err());
    }

    #[test]
    fn selectors() {
        let nested = json!({"nested": {"a": "A", "b": "B"}, "bool": true, "double": 1.3, "int": 10,
                            "list": [1.1, 1.2, 1.3]});
        for (value, expression, wanted) in [
            (json!("Hello,World!"), "string_value", json!("Hello,World!")),
            (json!("[1.1,1.2,1.3]"), "parseJson(string_value)[0]", json!(1.1)),
            (json!(null), "string_value", json!("")),
            (json!(2.5), "string_value", json!("2.5")),
            (json!(3), "number_value", json!(3)),
            (json!({"a": "A"}), "struct_value.a", json!("A")),
            (json!({"a": 3}), "parseJson(string_value)[\"a\"]", json!(3)),
            (json!({"a-b": [null]}), "parseJson(string_value)[\"a-b\"]", json!([null])),
            (nested.clone(), "struct_value.list", json!([1.1, 1.2, 1.3])),
            (nested.clone(), "struct_value.nested", json!({"a": "A", "b": "B"})),
            (nested.clone(), "struct_value.nested.b", json!("B")),
            (json!([1, 2]), "list_value[1]", json!(2)),
        ] {
            let selected = select(expression, &ir::from_json(&value)).unwrap();
            assert_eq!(ir::to_json(&selected), wanted, "{expression}");
        }
        for (value, expression, wanted) in [
            (json!("invalidjson"), "parseJson(string_value)", "failed to unmarshal JSON"),
            (json!("Hello"), "struct_value", "no such attribute"),
            (json!({"a": "A"}), "struct_value.c", "no such key: c"),
        ] {
            let error = select(expression, &ir::from_json(&value)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{expression}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(expression in "\\PC{0,60}", pieces in proptest::collection::vec("[a-z0-9'\"().\\[\\]{}!&|<>=+*/%,:? -]{0,8}", 0..8)) {
            let _ = condition(&expression, &ExecutorInput::default());
            let _ = select(&pieces.concat(), &Value::default());
        }
    }
}
