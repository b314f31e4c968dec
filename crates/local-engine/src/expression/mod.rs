//! Expressions in the language of `{{=…}}` tags, hooks, retry strategies and `valueFrom.expression`: expr-lang with
//! Argo's own functions and the deterministic ones of sprig that are in use.
//!
//! Variables are looked up in a [`Scope`], only those that the expression names.

mod functions;
mod names;

use crate::substitute::{Lookup, Scope};
use expr::{Context, Environment, Value as Term};
use serde_json::{Map, Value};
use std::sync::LazyLock;

/// Longest expression; longer ones are surely no expressions, and evaluation is recursive.
const MAX_LENGTH: usize = 16 << 10;
/// Deepest nesting of brackets.
const MAX_DEPTH: usize = 64;
/// Longest range such as `1..9`, because all of it is held in memory.
const MAX_RANGE: u64 = 10_000;

static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(functions::environment);

/// Why an expression has no value.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// It cannot be read.
    #[error("expression \"{0}\" cannot be read: {1}")]
    Syntax(String, String),
    /// It names something that is not there.
    #[error("expression \"{0}\": {1} is missing")]
    Missing(String, String),
    /// It cannot be computed.
    #[error("expression \"{0}\" cannot be evaluated: {1}")]
    Failed(String, String),
    /// It gives another type than is needed.
    #[error("expression \"{0}\" gives {1} where a boolean is needed")]
    NotBoolean(String, String),
}

/// Checks that an expression can be read and calls only functions there are.
///
/// # Errors
/// [`Error::Syntax`].
pub fn check(expression: &str) -> Result<(), Error> {
    let syntax = |why: String| Error::Syntax(expression.trim().to_owned(), why);
    if expression.len() > MAX_LENGTH {
        return Err(syntax(format!("it is longer than {MAX_LENGTH} bytes")));
    }
    let read = names::read(expression);
    if read.depth > MAX_DEPTH {
        return Err(syntax(format!("brackets are nested more than {MAX_DEPTH} deep")));
    }
    if read.range > MAX_RANGE {
        return Err(syntax(format!("a range needs two numbers at most {MAX_RANGE} apart")));
    }
    if let Some(name) = read.sprig.iter().find(|name| !functions::SPRIG.contains(&name.as_str())) {
        return Err(syntax(format!("the function sprig.{name} is not supported by this engine")));
    }
    expr::compile(&read.text).map(drop).map_err(|error| syntax(one_line(&error.to_string())))
}

/// Value of an expression.
///
/// # Errors
/// See [`Error`].
pub fn evaluate(expression: &str, scope: &dyn Scope) -> Result<Value, Error> {
    check(expression)?;
    let read = names::read(expression);
    let mut variables = Map::new();
    let mut missing = None;
    for path in &read.paths {
        match find(path, scope) {
            Found::Value(length, value) => insert(&mut variables, path.get(..length).unwrap_or_default(), value),
            Found::Nothing(name) => missing = missing.or(Some(name)),
        }
    }
    let mut context = Context::default();
    for (name, value) in variables {
        context.insert(name, term(value));
    }
    let text = || expression.trim().to_owned();
    match (ENVIRONMENT.eval(&read.text, &context), missing) {
        (Ok(result), _) => {
            expr::from_value(result).map_err(|error| Error::Failed(text(), one_line(&error.to_string())))
        }
        // What is missing may be guarded by `??` or a condition, so it counts only now.
        (Err(_), Some(name)) => Err(Error::Missing(text(), name)),
        (Err(error), None) => Err(Error::Failed(text(), one_line(&error.to_string()))),
    }
}

/// Truth of a condition.
///
/// # Errors
/// See [`Error`].
pub fn truth(expression: &str, scope: &dyn Scope) -> Result<bool, Error> {
    match evaluate(expression, scope)? {
        Value::Bool(truth) => Ok(truth),
        other => Err(Error::NotBoolean(expression.trim().to_owned(), other.to_string())),
    }
}

/// A value as text, as Go's `%v` prints it.
pub fn print(value: &Value) -> String {
    match value {
        Value::Number(number) if number.is_f64() => functions::go_float(number.as_f64().unwrap_or_default()),
        other => crate::names::go_text(other),
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

enum Found {
    /// So many names of the path stand for this.
    Value(usize, Value),
    Nothing(String),
}

/// Looks a path up: `tasks.a.outputs.parameters.x.y` may be the key `y` of a parameter `x`, so the longest name that
/// is known counts.
fn find(path: &[String], scope: &dyn Scope) -> Found {
    let mut why = None;
    for length in (1..=path.len()).rev() {
        let name = path.get(..length).unwrap_or_default().join(".");
        if name.contains("artifacts.")
            && let Lookup::Value(json) = scope.lookup(&format!("{}{name}", crate::tasks::ARTIFACT))
        {
            return Found::Value(length, serde_json::from_str(&json).unwrap_or_default());
        }
        match scope.lookup(&name) {
            Lookup::Value(value) => return Found::Value(length, Value::String(value)),
            Lookup::Absent => return Found::Value(length, Value::Null),
            Lookup::Unresolvable(_) => why = Some(name),
            Lookup::Unknown => {}
        }
    }
    Found::Nothing(why.unwrap_or_else(|| path.join(".")))
}

fn insert(map: &mut Map<String, Value>, path: &[String], value: Value) {
    let Some((first, rest)) = path.split_first() else { return };
    if rest.is_empty() {
        map.entry(first.clone()).or_insert(value);
        return;
    }
    let inner = map.entry(first.clone()).or_insert_with(|| Value::Object(Map::new()));
    // A value of its own gives way to the values below it.
    if !inner.is_object() {
        *inner = Value::Object(Map::new());
    }
    if let Value::Object(inner) = inner {
        insert(inner, rest, value);
    }
}

fn term(value: Value) -> Term {
    match value {
        Value::Null => Term::Nil,
        Value::Bool(truth) => Term::Bool(truth),
        Value::Number(number) => match number.as_i64() {
            Some(integer) => Term::Integer(integer),
            None => Term::Float(number.as_f64().unwrap_or_default()),
        },
        Value::String(text) => Term::String(text),
        Value::Array(items) => Term::Array(items.into_iter().map(term).collect()),
        Value::Object(map) => Term::Map(map.into_iter().map(|(key, value)| (key, term(value))).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;
    use std::collections::BTreeMap;

    fn scope() -> BTreeMap<String, String> {
        [
            ("inputs.parameters.n", "3"),
            ("inputs.parameters.with-dash", "d"),
            ("inputs.parameters.json", r#"{"a": [{"b": 1}, {"b": 2}]}"#),
            ("tasks.flip.status", "Succeeded"),
            ("tasks.flip.outputs.result", "heads"),
            ("item", r#"{"k":"v"}"#),
            ("item.k", "v"),
            ("lastRetry.exitCode", "2"),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
    }

    #[test]
    fn expressions_have_their_value() {
        for (text, expected) in [
            ("asInt(inputs.parameters.n) + 1", json!(4)),
            ("asFloat(inputs.parameters.n) / 2", json!(1.5)),
            ("inputs.parameters['with-dash'] + '!'", json!("d!")),
            ("tasks.flip.outputs.result == 'heads' ? 'a' : 'b'", json!("a")),
            ("tasks[\"flip\"].status == \"Succeeded\"", json!(true)),
            ("jsonpath(inputs.parameters.json, '$.a[1].b')", json!(2)),
            ("jsonpath(inputs.parameters.json, '$.a[*].b')", json!([1, 2])),
            ("toJson([1, 'x'])", json!("[1,\"x\"]")),
            ("fromJSON('{\"b\": [1]}').b[0]", json!(1)),
            ("sprig.upper(sprig.trim(' x '))", json!("X")),
            ("sprig.default('d', '')", json!("d")),
            ("sprig.add(1, '2', 3)", json!(6)),
            ("item.k + 'w'", json!("vw")),
            ("lastRetry.exitCode in ['1', '2']", json!(true)),
            ("asInt(lastRetry.exitCode) > 1 && true", json!(true)),
            ("map([1, 2], {# * 2})", json!([2, 4])),
            ("\"sprig.nope(inputs.parameters.nothing)\"", json!("sprig.nope(inputs.parameters.nothing)")),
            ("inputs.parameters.n matches '^[0-9]+$'", json!(true)),
            ("true || nothing.at.all", json!(true)),
        ] {
            assert_eq!(evaluate(text, &scope()), Ok(expected), "{text}");
        }
    }

    #[test]
    fn errors_name_what_is_wrong() {
        let error = |text: &str| evaluate(text, &scope()).unwrap_err().to_string();
        assert!(error("1 +").contains("cannot be read"));
        assert!(error("sprig.env('HOME')").contains("sprig.env is not supported"));
        assert_eq!(
            error("asInt(tasks.x.outputs.result)"),
            "expression \"asInt(tasks.x.outputs.result)\": tasks.x.outputs.result is missing"
        );
        assert!(error("asInt('x')").contains("cannot be evaluated"));
        assert!(error(&"(".repeat(100_000)).contains("longer than"));
        assert!(error(&"(".repeat(1000)).contains("nested"));
        assert!(error("len(1..1000000000)").contains("at most 10000 apart"));
        assert!(error("repeat('0123456789', 1000000)").contains("longer than"));
        assert!(matches!(truth("1", &scope()), Err(Error::NotBoolean(..))));
    }

    #[test]
    fn values_are_printed_as_go_does() {
        for (value, text) in [
            (json!("x"), "x"),
            (json!(1.5), "1.5"),
            (json!(3.0), "3"),
            (json!(1e21), "1e+21"),
            (json!(1e-7), "1e-07"),
            (json!([1, "a"]), "[1 a]"),
            (json!(true), "true"),
        ] {
            assert_eq!(print(&value), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_evaluated_or_refused(text in "[ab1.!&|()\\[\\]{}\"'=<>?:é,+*#-]{0,30}") {
            let _ = evaluate(&text, &scope());
        }
    }
}
