//! JSON text exactly as Go's `encoding/json` prints generic values.
//!
//! Upstream compares, hashes and stores such text, so it has to agree byte for byte: object keys sorted
//! bytewise, no white space, `<`, `>`, `&` and the two Unicode line separators escaped, and doubles in Go's form.

use serde_json::{Number, Value};

use crate::hex;

/// `value` as Go's `json.Marshal` prints it.
pub fn to_string(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value);
    out
}

/// Appends `value` to `out`, see [`to_string`].
pub fn write(out: &mut String, value: &Value) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(out, number),
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write(out, item);
            }
            out.push(']');
        }
        Value::Object(fields) => {
            // Sorted already unless some crate switched serde_json to insertion order.
            if fields.keys().is_sorted() {
                write_object(out, fields.iter());
            } else {
                let mut entries: Vec<_> = fields.iter().collect();
                entries.sort_by(|a, b| a.0.cmp(b.0));
                write_object(out, entries.into_iter());
            }
        }
    }
}

fn write_object<'v>(out: &mut String, fields: impl Iterator<Item = (&'v String, &'v Value)>) {
    out.push('{');
    for (i, (key, item)) in fields.enumerate() {
        if i > 0 {
            out.push(',');
        }
        write_string(out, key);
        out.push(':');
        write(out, item);
    }
    out.push('}');
}

/// Appends a number: integers with all their digits, doubles as [`write_f64`] has them.
pub fn write_number(out: &mut String, number: &Number) {
    if let Some(integer) = number.as_i64() {
        out.push_str(&integer.to_string());
    } else if let Some(integer) = number.as_u64() {
        out.push_str(&integer.to_string());
    } else {
        write_f64(out, number.as_f64().unwrap_or(f64::NAN));
    }
}

/// Appends a double in Go's form: shortest digits, plain between 1e-6 and 1e21, else with an exponent that has
/// a sign and no leading zero. Go refuses NaN and infinities; here they become `null`, as `serde_json` has it.
pub fn write_f64(out: &mut String, number: f64) {
    if !number.is_finite() {
        out.push_str("null");
        return;
    }
    let size = number.abs();
    if size != 0.0 && !(1e-6..1e21).contains(&size) {
        let text = format!("{number:e}");
        match text.split_once('e') {
            Some((digits, exponent)) if !exponent.starts_with('-') => {
                out.push_str(digits);
                out.push_str("e+");
                out.push_str(exponent);
            }
            _ => out.push_str(&text),
        }
    } else {
        out.push_str(&number.to_string());
    }
}

/// Bytes that end a run of text which is copied as it is: what Go escapes, and the first byte of U+2028 and U+2029.
const STOPS: [bool; 256] = {
    let mut stops = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        stops[byte] = true;
        byte += 1;
    }
    let others = [b'"', b'\\', b'<', b'>', b'&', SEPARATOR[0]];
    let mut at = 0;
    while at < others.len() {
        stops[others[at] as usize] = true;
        at += 1;
    }
    stops
};

/// What the two Unicode line separators begin with; the third byte is 0xa8 or 0xa9.
const SEPARATOR: [u8; 2] = [0xe2, 0x80];

/// Appends `text` as a JSON string with Go's escapes.
pub fn write_string(out: &mut String, text: &str) {
    out.reserve(text.len() + 2);
    out.push('"');
    let bytes = text.as_bytes();
    let (mut plain, mut at) = (0, 0);
    while let Some(ahead) = bytes[at..].iter().position(|byte| STOPS[usize::from(*byte)]) {
        at += ahead;
        let (escape, length): (&str, usize) = match bytes[at] {
            b'"' => ("\\\"", 1),
            b'\\' => ("\\\\", 1),
            b'\n' => ("\\n", 1),
            b'\r' => ("\\r", 1),
            b'\t' => ("\\t", 1),
            0x08 => ("\\b", 1),
            0x0c => ("\\f", 1),
            b'<' => ("\\u003c", 1),
            b'>' => ("\\u003e", 1),
            b'&' => ("\\u0026", 1),
            byte if byte != SEPARATOR[0] => ("", 1),
            _ => match bytes[at..] {
                [_, second, 0xa8, ..] if second == SEPARATOR[1] => ("\\u2028", 3),
                [_, second, 0xa9, ..] if second == SEPARATOR[1] => ("\\u2029", 3),
                _ => {
                    at += 1;
                    continue;
                }
            },
        };
        out.push_str(&text[plain..at]);
        if escape.is_empty() {
            out.push_str("\\u00");
            hex::push(out, bytes[at]);
        } else {
            out.push_str(escape);
        }
        at += length;
        plain = at;
    }
    out.push_str(&text[plain..]);
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn escapes_like_go() {
        let text = "a<b && c>d \"q\"\n\r\t\u{8}\u{c}\u{1}\u{1f}\u{7f}\u{2028}\u{2029}\u{2027}\u{2603}é\\";
        let want = "\"a\\u003cb \\u0026\\u0026 c\\u003ed \\\"q\\\"\\n\\r\\t\\b\\f\\u0001\\u001f\u{7f}\\u2028\\u2029\u{2027}\u{2603}é\\\\\"";
        assert_eq!(to_string(&json!(text)), want);
    }

    #[test]
    fn sorts_keys_and_leaves_no_space() {
        assert_eq!(
            to_string(&json!({"b": [1, true, null], "B": {}, "a": "x"})),
            r#"{"B":{},"a":"x","b":[1,true,null]}"#
        );
    }

    #[test]
    fn prints_doubles_like_go() {
        for (number, want) in [
            (3.0, "3"),
            (-0.0, "-0"),
            (0.0, "0"),
            (1.5, "1.5"),
            (1e20, "100000000000000000000"),
            (1e21, "1e+21"),
            (-1.5e300, "-1.5e+300"),
            (1e-6, "0.000001"),
            (1e-7, "1e-7"),
            (1.25e-10, "1.25e-10"),
            (0.1, "0.1"),
            (f64::MAX, "1.7976931348623157e+308"),
            (5e-324, "5e-324"),
        ] {
            let mut out = String::new();
            write_f64(&mut out, number);
            assert_eq!(out, want);
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(Value::from),
            any::<String>().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(any::<String>(), inner, 0..6).prop_map(|m| m.into_iter().collect()),
            ]
        })
    }

    fn same(a: &Value, b: &Value) -> bool {
        match (a, b) {
            (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
            (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
            (Value::Object(a), Value::Object(b)) => {
                a.len() == b.len() && a.iter().zip(b).all(|((k, a), (l, b))| k == l && same(a, b))
            }
            _ => a == b,
        }
    }

    proptest! {
        #[test]
        fn parses_back_to_the_same_value(value in any_value()) {
            let parsed: Value = serde_json::from_str(&to_string(&value)).unwrap();
            prop_assert!(same(&value, &parsed), "{value} became {parsed}");
        }
    }
}
