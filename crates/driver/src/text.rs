//! Parameter values as text.

use kfp_core::{gojson, ir};
use prost_types::Value;
use prost_types::value::Kind;

/// Doubles from here on are not printed as integers: they no longer fit.
const INTEGRAL: f64 = 9_223_372_036_854_775_808.0;

/// Text of a value where a string is expected: numbers in full without exponent, null empty, lists and structs as JSON.
#[must_use]
pub fn decimal(value: &Value) -> String {
    match &value.kind {
        Some(Kind::NumberValue(number)) => format!("{number}"),
        _ => other(value),
    }
}

/// Text of a value within a command line: as [`decimal`], but fractions in Go's `%g`.
#[must_use]
pub fn placeholder(value: &Value) -> String {
    match &value.kind {
        Some(Kind::NumberValue(number)) if number.fract() == 0.0 && number.abs() < INTEGRAL => format!("{number:.0}"),
        Some(Kind::NumberValue(number)) => general(*number),
        _ => other(value),
    }
}

fn other(value: &Value) -> String {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => String::new(),
        Some(Kind::StringValue(text)) => text.clone(),
        Some(Kind::BoolValue(value)) => value.to_string(),
        Some(_) => gojson::to_string(&ir::to_json(value)),
    }
}

/// Go's `%g`: shortest digits that read back the same, an exponent of at least two digits when it is below -4 or
/// from 21 on.
fn general(number: f64) -> String {
    if !number.is_finite() || number == 0.0 {
        return if number.is_infinite() {
            format!("{}Inf", if number > 0.0 { "+" } else { "-" })
        } else {
            format!("{number}")
        };
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..21).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_are_those_of_go() {
        for (value, in_full, in_argument) in [
            (json!(5), "5", "5"),
            (json!(-3.0), "-3", "-3"),
            (json!(0.1), "0.1", "0.1"),
            (json!(0.00001), "0.00001", "1e-05"),
            (json!(1.5e300), &format!("{}", 1.5e300_f64), "1.5e+300"),
            (json!(1e20), "100000000000000000000", "100000000000000000000"),
            (json!(true), "true", "true"),
            (json!(null), "", ""),
            (json!("a<b"), "a<b", "a<b"),
            (json!([1, "<"]), r#"[1,"\u003c"]"#, r#"[1,"\u003c"]"#),
            (json!({"b": 1, "a": null}), r#"{"a":null,"b":1}"#, r#"{"a":null,"b":1}"#),
        ] {
            let value = ir::from_json(&value);
            assert_eq!((decimal(&value).as_str(), placeholder(&value).as_str()), (in_full, in_argument));
        }
    }
}
