//! Functions that expressions may call besides those of the language.

use expr::{Environment, Value};
use jsonpath_rust::JsonPath;
use kfp_core::gojson;

type Result = std::result::Result<Value, expr::Error>;

/// Longest text that a function makes, in bytes.
const MAX_TEXT: usize = 1 << 20;

/// Functions of sprig there are; all others depend on time, chance or the machine, or nobody has asked for them.
pub(super) const SPRIG: [&str; 38] = [
    "trim",
    "trimAll",
    "trimPrefix",
    "trimSuffix",
    "upper",
    "lower",
    "title",
    "nospace",
    "replace",
    "repeat",
    "substr",
    "contains",
    "hasPrefix",
    "hasSuffix",
    "quote",
    "squote",
    "cat",
    "splitList",
    "join",
    "toString",
    "int",
    "int64",
    "float64",
    "atoi",
    "add",
    "sub",
    "mul",
    "div",
    "mod",
    "max",
    "min",
    "default",
    "empty",
    "coalesce",
    "ternary",
    "list",
    "first",
    "last",
];

/// The language with all functions.
pub(super) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.add_function("asInt", |call| integer(argument(&call.args, 0)).map(Value::Integer));
    environment.add_function("asFloat", |call| float(argument(&call.args, 0)).map(Value::Float));
    for name in ["toJson", "toJSON"] {
        environment.add_function(name, |call| Ok(Value::String(gojson::to_string(&json(argument(&call.args, 0))?))));
    }
    environment.add_function("fromJSON", |call| {
        let parsed = serde_json::from_str(&text(argument(&call.args, 0)));
        parsed.map(super::term).map_err(|error| failed(format!("fromJSON: {error}")))
    });
    environment
        .add_function("jsonpath", |call| jsonpath(&text(argument(&call.args, 0)), &text(argument(&call.args, 1))));
    environment.add_function("repeat", |call| repeat(&text(argument(&call.args, 0)), argument(&call.args, 1)));
    for name in SPRIG {
        environment.add_function(&format!("sprig_{name}"), move |call| sprig(name, &call.args));
    }
    environment
}

fn failed(why: impl Into<String>) -> expr::Error {
    expr::Error::ExprError(why.into())
}

fn argument(arguments: &[Value], at: usize) -> &Value {
    const NONE: &Value = &Value::Nil;
    arguments.get(at).unwrap_or(NONE)
}

fn json(value: &Value) -> std::result::Result<serde_json::Value, expr::Error> {
    expr::from_value(value.clone()).map_err(|error| failed(error.to_string()))
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Nil => String::new(),
        other => json(other).map(|json| super::print(&json)).unwrap_or_default(),
    }
}

fn integer(value: &Value) -> std::result::Result<i64, expr::Error> {
    match value {
        Value::Integer(number) => Ok(*number),
        Value::Float(number) => Ok(*number as i64),
        Value::Bool(truth) => Ok(i64::from(*truth)),
        other => text(other).trim().parse().map_err(|_| failed(format!("\"{}\" is not an integer", text(other)))),
    }
}

fn float(value: &Value) -> std::result::Result<f64, expr::Error> {
    match value {
        Value::Integer(number) => Ok(*number as f64),
        Value::Float(number) => Ok(*number),
        other => text(other).trim().parse().map_err(|_| failed(format!("\"{}\" is not a number", text(other)))),
    }
}

/// The one value a path leads to, or the list of all when it can lead to several.
fn jsonpath(document: &str, path: &str) -> Result {
    let document: serde_json::Value =
        serde_json::from_str(document).map_err(|error| failed(format!("jsonpath: no JSON: {error}")))?;
    let found = document.query(path).map_err(|error| failed(format!("jsonpath \"{path}\": {error}")))?;
    let many =
        path.contains('*') || path.contains("..") || path.contains('?') || path.contains(':') || path.contains(',');
    let mut found: Vec<Value> = found.into_iter().cloned().map(super::term).collect();
    match (many, found.pop()) {
        (true, last) => {
            found.extend(last);
            Ok(Value::Array(found))
        }
        (false, Some(only)) => Ok(only),
        (false, None) => Err(failed(format!("jsonpath \"{path}\" leads to nothing"))),
    }
}

fn repeat(text: &str, count: &Value) -> Result {
    let count = usize::try_from(integer(count)?).unwrap_or(0);
    if count.saturating_mul(text.len()) > MAX_TEXT {
        return Err(failed(format!("repeat: the text would be longer than {MAX_TEXT} bytes")));
    }
    Ok(Value::String(text.repeat(count)))
}

/// A number as Go prints a float64 with `%v`.
pub(super) fn go_float(number: f64) -> String {
    let plain = format!("{number}");
    let scientific = format!("{number:e}");
    let exponent =
        scientific.split_once('e').and_then(|(digits, exponent)| Some((digits, exponent.parse::<i32>().ok()?)));
    match exponent {
        Some((digits, exponent)) if !(-4..21).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => plain,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Nil | Value::Bool(false) | Value::Integer(0) => true,
        Value::Float(number) => *number == 0.0,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Map(map) => map.is_empty(),
        _ => false,
    }
}

fn sprig(name: &str, given: &[Value]) -> Result {
    let at = |at: usize| argument(given, at);
    let string = |at: usize| text(argument(given, at));
    let fold = |first: i64, with: fn(i64, i64) -> Option<i64>| -> Result {
        let mut total = first;
        for value in given.get(1..).unwrap_or_default() {
            total = with(total, integer(value)?).ok_or_else(|| failed(format!("sprig.{name}: out of range")))?;
        }
        Ok(Value::Integer(total))
    };
    let item = |last: bool| match at(0) {
        Value::Array(items) if last => items.last().cloned().unwrap_or(Value::Nil),
        Value::Array(items) => items.first().cloned().unwrap_or(Value::Nil),
        _ => Value::Nil,
    };
    Ok(match name {
        "trim" => Value::String(string(0).trim().to_owned()),
        "trimAll" => {
            let set = string(0);
            Value::String(string(1).trim_matches(|c| set.contains(c)).to_owned())
        }
        "trimPrefix" => Value::String(string(1).strip_prefix(&string(0)).map_or_else(|| string(1), str::to_owned)),
        "trimSuffix" => Value::String(string(1).strip_suffix(&string(0)).map_or_else(|| string(1), str::to_owned)),
        "upper" => Value::String(string(0).to_uppercase()),
        "lower" => Value::String(string(0).to_lowercase()),
        "title" => {
            let mut start = true;
            let up = |c: char| {
                let out: String = if start { c.to_uppercase().collect() } else { c.to_string() };
                start = !c.is_alphanumeric();
                out
            };
            Value::String(string(0).chars().map(up).collect())
        }
        "nospace" => Value::String(string(0).split_whitespace().collect()),
        "replace" => Value::String(string(2).replace(&string(0), &string(1))),
        "repeat" => repeat(&string(1), at(0))?,
        "substr" => {
            let characters: Vec<char> = string(2).chars().collect();
            let place =
                |number: i64, otherwise: usize| usize::try_from(number).unwrap_or(otherwise).min(characters.len());
            let (from, to) = (place(integer(at(0))?, 0), place(integer(at(1))?, characters.len()));
            Value::String(characters.get(from..to.max(from)).unwrap_or_default().iter().collect())
        }
        "contains" => Value::Bool(string(1).contains(&string(0))),
        "hasPrefix" => Value::Bool(string(1).starts_with(&string(0))),
        "hasSuffix" => Value::Bool(string(1).ends_with(&string(0))),
        "quote" => Value::String(given.iter().map(|value| format!("{:?}", text(value))).collect::<Vec<_>>().join(" ")),
        "squote" => Value::String(given.iter().map(|value| format!("'{}'", text(value))).collect::<Vec<_>>().join(" ")),
        "cat" => Value::String(given.iter().map(text).collect::<Vec<_>>().join(" ")),
        "splitList" => Value::Array(string(1).split(&string(0)).map(|part| Value::String(part.to_owned())).collect()),
        "join" => match at(1) {
            Value::Array(items) => Value::String(items.iter().map(text).collect::<Vec<_>>().join(&string(0))),
            other => Value::String(text(other)),
        },
        "toString" => Value::String(string(0)),
        // sprig gives 0 for what is no number.
        "int" | "int64" | "atoi" => Value::Integer(integer(at(0)).unwrap_or(0)),
        "float64" => Value::Float(float(at(0)).unwrap_or(0.0)),
        "add" => fold(integer(at(0))?, i64::checked_add)?,
        "sub" => fold(integer(at(0))?, i64::checked_sub)?,
        "mul" => fold(integer(at(0))?, i64::checked_mul)?,
        "div" => fold(integer(at(0))?, i64::checked_div)?,
        "mod" => fold(integer(at(0))?, i64::checked_rem)?,
        "max" => fold(integer(at(0))?, |a, b| Some(a.max(b)))?,
        "min" => fold(integer(at(0))?, |a, b| Some(a.min(b)))?,
        "default" => {
            if is_empty(at(1)) {
                at(0).clone()
            } else {
                at(1).clone()
            }
        }
        "empty" => Value::Bool(is_empty(at(0))),
        "coalesce" => given.iter().find(|value| !is_empty(value)).cloned().unwrap_or(Value::Nil),
        "ternary" => {
            if at(2) == &Value::Bool(true) {
                at(0).clone()
            } else {
                at(1).clone()
            }
        }
        "list" => Value::Array(given.to_vec()),
        "first" => item(false),
        "last" => item(true),
        other => return Err(failed(format!("the function sprig.{other} is not supported by this engine"))),
    })
}
