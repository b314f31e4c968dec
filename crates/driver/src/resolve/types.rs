//! Checks of parameter values against the component's definitions.

use std::collections::{BTreeMap, BTreeSet};

use kfp_core::ir;
use kfp_proto::ml_pipelines::ComponentInputsSpec;
use kfp_proto::ml_pipelines::parameter_iterator_spec::items_spec;
use kfp_proto::ml_pipelines::parameter_type::ParameterTypeEnum as Type;
use kfp_proto::ml_pipelines::pipeline_task_spec::Iterator as TaskIterator;
use prost_types::Value;
use prost_types::value::Kind;

use crate::request::Task;
use crate::{Error, text};

/// What a value is, in the words of error messages.
pub(super) fn name_of(value: &Value) -> &'static str {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => "null",
        Some(Kind::NumberValue(_)) => "number",
        Some(Kind::StringValue(_)) => "string",
        Some(Kind::BoolValue(_)) => "bool",
        Some(Kind::StructValue(_)) => "struct",
        Some(Kind::ListValue(_)) => "list",
    }
}

/// The input that a loop's head (its item) or an iteration (its items) does not have.
fn absent_by_design(task: &Task) -> Option<&str> {
    let Some(TaskIterator::ParameterIterator(iterator)) = &task.spec.iterator else { return None };
    if task.iteration_index.is_none() {
        return Some(&iterator.item_input);
    }
    match iterator.items.as_ref()?.kind.as_ref()? {
        items_spec::Kind::InputParameter(name) => Some(name),
        items_spec::Kind::Raw(_) => None,
    }
}

/// Checks the values and converts to text what has to be text. `null` names parameters that are null on purpose.
pub(super) fn check(
    definitions: &ComponentInputsSpec,
    task: &Task,
    parameters: &mut BTreeMap<String, Value>,
    null: &BTreeSet<String>,
) -> Result<(), Error> {
    let absent = absent_by_design(task);
    for (name, definition) in &definitions.parameters {
        let expected = definition.parameter_type();
        if absent == Some(name.as_str()) || expected == Type::TaskConfig {
            continue;
        }
        let Some(value) = parameters.get(name) else {
            match &definition.default_value {
                // The launcher fills in defaults of optional inputs, or the DAG driver has done so.
                _ if definition.is_optional => {}
                Some(default) => drop(parameters.insert(name.clone(), default.clone())),
                None => {
                    return Err(Error::Inputs(format!(
                        "neither value nor default value provided for non-optional parameter {name:?}"
                    )));
                }
            }
            continue;
        };
        let is_null = matches!(value.kind, None | Some(Kind::NullValue(_)));
        if is_null && null.contains(name) {
            continue;
        }
        let actual = name_of(value);
        let fits = match expected {
            Type::String => {
                if actual != "string" {
                    let text = Value { kind: Some(Kind::StringValue(text::decimal(value))) };
                    parameters.insert(name.clone(), text);
                }
                true
            }
            _ if is_null => return Err(Error::Inputs(format!("got null for input parameter {name:?}"))),
            Type::NumberDouble | Type::NumberInteger => actual == "number",
            Type::Boolean => actual == "bool",
            Type::List => actual == "list",
            Type::Struct | Type::TaskFinalStatus | Type::TaskConfig => actual == "struct",
            Type::Unspecified => false,
        };
        if !fits {
            let expected = expected.as_str_name();
            return Err(Error::Inputs(format!(
                "input parameter {name:?} type mismatch: expect {expected}, got {actual}"
            )));
        }
    }
    Ok(())
}

/// Checks a value against the literals that the component allows, if it lists any.
pub(super) fn check_literals(name: &str, value: &Value, literals: &[Value]) -> Result<(), Error> {
    if literals.is_empty() || literals.contains(value) {
        return Ok(());
    }
    let allowed: Vec<_> = literals.iter().map(|literal| ir::to_json(literal).to_string()).collect();
    Err(Error::Inputs(format!(
        "validating parameter {name:?}: input parameter {name:?} value {} does not match any of the allowed literal values: {}",
        ir::to_json(value),
        allowed.join(", ")
    )))
}

/// What a loop iterates over: a list, or a text that holds a JSON list.
pub(crate) fn items(input: &str, value: Option<&Value>) -> Result<Vec<Value>, Error> {
    let failed = |reason: String| Error::Inputs(format!("iterating on item input {input:?} failed: {reason}"));
    match value.map(|value| (&value.kind, name_of(value))) {
        Some((Some(Kind::ListValue(list)), _)) => Ok(list.values.clone()),
        Some((Some(Kind::StringValue(text)), _)) => {
            let json: serde_json::Value = serde_json::from_str(text).map_err(|error| failed(error.to_string()))?;
            match json {
                serde_json::Value::Array(items) => Ok(items.iter().map(ir::from_json).collect()),
                other => Err(failed(format!("the text {other} is not a JSON list"))),
            }
        }
        Some((_, name)) => Err(failed(format!("value of type {name} cannot be iterated"))),
        None => Err(failed("there is no such input".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value as Json, json};

    fn run(kind: &str, more: Json, value: Option<Json>, null: bool) -> Result<Option<Json>, String> {
        let mut definition = json!({"parameterType": kind});
        for (key, value) in more.as_object().unwrap() {
            definition[key] = value.clone();
        }
        let definitions = ir::decode(&json!({"parameters": {"x": definition}}), ir::Unknown::Reject).unwrap();
        let mut parameters: BTreeMap<_, _> = value.iter().map(|v| ("x".to_owned(), ir::from_json(v))).collect();
        let null = null.then(|| "x".to_owned()).into_iter().collect();
        check(&definitions, &Task::default(), &mut parameters, &null).map_err(|error| error.to_string())?;
        Ok(parameters.get("x").map(ir::to_json))
    }

    #[test]
    fn values_that_fit() {
        for (kind, value, wanted) in [
            ("NUMBER_INTEGER", json!(5), json!(5)),
            ("NUMBER_DOUBLE", json!(0.5), json!(0.5)),
            ("STRING", json!("s"), json!("s")),
            ("STRING", json!(1.5), json!("1.5")),
            ("STRING", json!(5), json!("5")),
            ("STRING", json!(true), json!("true")),
            ("STRING", json!(null), json!("")),
            ("STRING", json!({"b": [1, "<"], "a": null}), json!(r#"{"a":null,"b":[1,"\u003c"]}"#)),
            ("BOOLEAN", json!(false), json!(false)),
            ("LIST", json!([1]), json!([1])),
            ("STRUCT", json!({}), json!({})),
            ("TASK_FINAL_STATUS", json!({}), json!({})),
        ] {
            assert_eq!(run(kind, json!({}), Some(value), false), Ok(Some(wanted)), "{kind}");
        }
        assert_eq!(run("STRING", json!({}), Some(json!(null)), true), Ok(Some(json!(null))));
        assert_eq!(run("LIST", json!({}), Some(json!(null)), true), Ok(Some(json!(null))));
        assert_eq!(run("LIST", json!({"isOptional": true}), None, false), Ok(None));
        assert_eq!(run("LIST", json!({"defaultValue": [1]}), None, false), Ok(Some(json!([1]))));
    }

    #[test]
    fn values_that_do_not_fit() {
        for (kind, value, wanted) in [
            (
                "NUMBER_INTEGER",
                Some(json!("5")),
                "input parameter \"x\" type mismatch: expect NUMBER_INTEGER, got string",
            ),
            ("BOOLEAN", Some(json!(1)), "input parameter \"x\" type mismatch: expect BOOLEAN, got number"),
            ("LIST", Some(json!({})), "input parameter \"x\" type mismatch: expect LIST, got struct"),
            ("STRUCT", Some(json!([])), "input parameter \"x\" type mismatch: expect STRUCT, got list"),
            ("NUMBER_DOUBLE", Some(json!(true)), "input parameter \"x\" type mismatch: expect NUMBER_DOUBLE, got bool"),
            ("LIST", Some(json!(null)), "got null for input parameter \"x\""),
            ("LIST", None, "neither value nor default value provided for non-optional parameter \"x\""),
        ] {
            let error = run(kind, json!({}), value, false).unwrap_err();
            assert_eq!(error, format!("failed to resolve inputs: {wanted}"));
        }
    }

    #[test]
    fn loops_lack_one_input_by_design() {
        let task = |index| Task {
            spec: ir::decode(
                &json!({"parameterIterator": {"items": {"inputParameter": "items"}, "itemInput": "item"}}),
                ir::Unknown::Reject,
            )
            .unwrap(),
            iteration_index: index,
            ..Default::default()
        };
        assert_eq!(absent_by_design(&task(None)), Some("item"));
        assert_eq!(absent_by_design(&task(Some(0))), Some("items"));
    }

    #[test]
    fn iterable_items() {
        let of = |json: Json| items("x", Some(&ir::from_json(&json)));
        assert_eq!(of(json!([1, "a"])).unwrap().len(), 2);
        assert_eq!(of(json!("[1, {\"a\": 2}]")).unwrap().len(), 2);
        assert_eq!(of(json!([])).unwrap().len(), 0);
        for (json, wanted) in [
            (json!("{}"), "is not a JSON list"),
            (json!("[1"), "iterating on item input \"x\" failed"),
            (json!(3), "value of type number cannot be iterated"),
            (json!(null), "value of type null cannot be iterated"),
        ] {
            let error = of(json).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        assert!(items("x", None).is_err());
    }

    #[test]
    fn literals_restrict_values() {
        let literals = [ir::from_json(&json!("a")), ir::from_json(&json!(1))];
        assert!(check_literals("x", &ir::from_json(&json!("a")), &literals).is_ok());
        assert!(check_literals("x", &ir::from_json(&json!("c")), &[]).is_ok());
        let error = check_literals("x", &ir::from_json(&json!("c")), &literals).unwrap_err().to_string();
        assert!(error.ends_with("does not match any of the allowed literal values: \"a\", 1"), "{error}");
    }
}
