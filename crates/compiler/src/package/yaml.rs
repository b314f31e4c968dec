//! YAML and JSON documents as JSON values, with bounds on what aliases may expand to; and the way back.

use std::{cell::Cell, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::archive::MAX_BYTES;

/// Most values (scalars, lists, maps and keys) in one file, aliases expanded.
pub const MAX_NODES: usize = 2_000_000;
/// Most bytes of text in one file, aliases expanded.
pub const MAX_TEXT: usize = 2 * MAX_BYTES;
/// Most characters that may begin a YAML token. The parser holds a whole document's tokens, so this bounds memory.
const MAX_MARKS: usize = 8_000_000;

/// The documents of `bytes`, empty ones as null.
///
/// # Errors
/// A syntax error with its place, or the name of the bound that was passed.
pub fn documents(bytes: &[u8]) -> Result<Vec<Value>, String> {
    let marks = bytes.iter().filter(|b| matches!(b, b'\n' | b',' | b'[' | b'{' | b':' | b'-')).count();
    if marks > MAX_MARKS {
        return Err(format!("more than {MAX_MARKS} tokens"));
    }
    let budget = Budget { nodes: Cell::new(MAX_NODES), text: Cell::new(MAX_TEXT) };
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
        // JSON is YAML, but not to every YAML parser (tabs), and this one is faster.
        let mut json = serde_json::Deserializer::from_slice(bytes);
        match Tree(&budget).deserialize(&mut json).and_then(|value| json.end().map(|()| value)) {
            Ok(value) => return Ok(vec![value]),
            Err(error) if error.is_data() => return Err(error.to_string()),
            Err(_) => {}
        }
    }
    let budget = Budget { nodes: Cell::new(MAX_NODES), text: Cell::new(MAX_TEXT) };
    serde_norway::Deserializer::from_slice(bytes)
        .map(|document| Tree(&budget).deserialize(document).map_err(|e| e.to_string()))
        .collect()
}

struct Budget {
    nodes: Cell<usize>,
    text: Cell<usize>,
}

impl Budget {
    fn node<E: serde::de::Error>(&self) -> Result<(), E> {
        let left = self.nodes.get().checked_sub(1).ok_or_else(|| E::custom(format!("more than {MAX_NODES} values")))?;
        self.nodes.set(left);
        Ok(())
    }

    fn text<E: serde::de::Error>(&self, text: &str) -> Result<(), E> {
        self.node()?;
        let left = self
            .text
            .get()
            .checked_sub(text.len())
            .ok_or_else(|| E::custom(format!("more than {MAX_TEXT} bytes of text")))?;
        self.text.set(left);
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Tree<'a>(&'a Budget);

impl<'de> DeserializeSeed<'de> for Tree<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Tree<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON-compatible value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.0.node().map(|()| Value::Null)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E: serde::de::Error>(self, v: bool) -> Result<Value, E> {
        self.0.node().map(|()| Value::Bool(v))
    }

    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Value, E> {
        self.0.node().map(|()| Value::from(v))
    }

    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Value, E> {
        self.0.node().map(|()| Value::from(v))
    }

    fn visit_i128<E: serde::de::Error>(self, v: i128) -> Result<Value, E> {
        self.visit_f64(v as f64)
    }

    fn visit_u128<E: serde::de::Error>(self, v: u128) -> Result<Value, E> {
        self.visit_f64(v as f64)
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        self.0.node()?;
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("infinity and NaN have no JSON form"))
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Value, E> {
        self.0.text(v).map(|()| Value::from(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.0.node()?;
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.0.node()?;
        let mut out = Map::new();
        let mut merge = None;
        while let Some(key) = entries.next_key_seed(self)? {
            let Value::String(key) = key else {
                return Err(A::Error::custom(format!("mapping key {key} is not a string")));
            };
            let value = entries.next_value_seed(self)?;
            if key == "<<" && matches!(value, Value::Object(_) | Value::Array(_)) {
                merge = Some(value);
            } else if out.contains_key(&key) {
                return Err(A::Error::custom(format!("mapping key {key:?} already defined")));
            } else {
                out.insert(key, value);
            }
        }
        match merge {
            None => {}
            Some(Value::Array(sources)) => sources.into_iter().for_each(|source| merge_into(&mut out, source)),
            Some(source) => merge_into(&mut out, source),
        }
        Ok(Value::Object(out))
    }

    fn visit_enum<A: serde::de::EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        // A custom tag; upstream's decoder drops it as well.
        let (_, value) = tagged.variant::<serde::de::IgnoredAny>()?;
        serde::de::VariantAccess::newtype_variant_seed(value, self)
    }
}

fn merge_into(out: &mut Map<String, Value>, source: Value) {
    if let Value::Object(source) = source {
        for (key, value) in source {
            out.entry(key).or_insert(value);
        }
    }
}

/// `value` as YAML in block style. Strings that any YAML version could read as something else are quoted.
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => block(&mut out, value, 0, false),
        Value::Array(items) if !items.is_empty() => block(&mut out, value, 0, false),
        _ => {
            scalar(&mut out, value);
            out.push('\n');
        }
    }
    out
}

fn block(out: &mut String, value: &Value, indent: usize, mut inline: bool) {
    let pad = |out: &mut String, inline: &mut bool| {
        if !std::mem::take(inline) {
            out.extend(std::iter::repeat_n(' ', indent));
        }
    };
    match value {
        Value::Object(fields) => {
            for (key, item) in fields {
                pad(out, &mut inline);
                text(out, key);
                out.push(':');
                match item {
                    Value::Object(inner) if !inner.is_empty() => {
                        out.push('\n');
                        block(out, item, indent + 2, false);
                    }
                    Value::Array(inner) if !inner.is_empty() => {
                        out.push('\n');
                        block(out, item, indent, false);
                    }
                    _ => {
                        out.push(' ');
                        scalar(out, item);
                        out.push('\n');
                    }
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                pad(out, &mut inline);
                out.push_str("- ");
                match item {
                    Value::Object(inner) if !inner.is_empty() => block(out, item, indent + 2, true),
                    Value::Array(inner) if !inner.is_empty() => block(out, item, indent + 2, true),
                    _ => {
                        scalar(out, item);
                        out.push('\n');
                    }
                }
            }
        }
        _ => scalar(out, value),
    }
}

fn scalar(out: &mut String, value: &Value) {
    match value {
        Value::String(content) => text(out, content),
        Value::Number(number) if number.is_f64() => {
            let mut digits = String::new();
            kfp_core::gojson::write_f64(&mut digits, number.as_f64().unwrap_or_default());
            // `1e+21` is a string to YAML 1.1 without the dot.
            match digits.split_once('e') {
                Some((mantissa, exponent)) if !mantissa.contains('.') => {
                    out.push_str(&format!("{mantissa}.0e{exponent}"))
                }
                _ => out.push_str(&digits),
            }
        }
        other => out.push_str(&other.to_string()),
    }
}

fn text(out: &mut String, content: &str) {
    let word = content.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/' | b'-'));
    let begins = content.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'/');
    let reserved =
        ["y", "n", "yes", "no", "on", "off", "true", "false", "null"].iter().any(|r| content.eq_ignore_ascii_case(r));
    if word && begins && !reserved {
        out.push_str(content);
    } else if content.chars().any(char::is_control) || content.contains(['\u{2028}', '\u{2029}', '\u{feff}', '\u{85}'])
    {
        // Double quotes for what needs escapes; YAML understands JSON's.
        for character in serde_json::Value::from(content).to_string().chars() {
            match character {
                '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                    out.push_str(&format!("\\u{:04x}", u32::from(character)))
                }
                other => out.push(other),
            }
        }
    } else {
        out.push('\'');
        out.push_str(&content.replace('\'', "''"));
        out.push('\'');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn one(text: &str) -> Value {
        let mut all = documents(text.as_bytes()).unwrap();
        assert_eq!(all.len(), 1, "{text}");
        all.remove(0)
    }

    #[test]
    fn scalars_keep_the_types_of_upstreams_decoder() {
        assert_eq!(
            one("a: yes\nb: true\nc: 1\nd: 1.5\ne: ~\nf: '1'\ng: on\nh: 0x10\n"),
            json!({"a": "yes", "b": true, "c": 1, "d": 1.5, "e": null, "f": "1", "g": "on", "h": 16})
        );
    }

    #[test]
    fn anchors_and_merge_keys_work() {
        assert_eq!(
            one("base: &b {x: 1, y: 2}\nc:\n  <<: *b\n  y: 3\nd: *b\n"),
            json!({"base": {"x": 1, "y": 2}, "c": {"x": 1, "y": 3}, "d": {"x": 1, "y": 2}})
        );
    }

    #[test]
    fn bombs_end_early() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for i in 1..12 {
            let list = vec![format!("*a{}", i - 1); 10].join(", ");
            bomb.push_str(&format!("a{i}: &a{i} [{list}]\n"));
        }
        assert!(documents(bomb.as_bytes()).is_err());
        let wide = format!("a: &a {}\nb: [{}]\n", "x".repeat(1 << 20), vec!["*a"; 100].join(","));
        assert!(documents(wide.as_bytes()).unwrap_err().contains("bytes of text"));
        assert!(documents("[".repeat(1_000_00).as_bytes()).is_err());
        assert!(documents(format!("a: {}", "{a: ".repeat(10_000)).as_bytes()).is_err());
        assert!(documents(format!("{{\"a\": {}", "[".repeat(100_000)).as_bytes()).is_err());
    }

    #[test]
    fn duplicate_and_odd_keys_are_errors() {
        assert!(documents(b"a: 1\na: 2\n").unwrap_err().contains("already defined"));
        assert!(documents(b"{\"a\": 1, \"a\": 2}").unwrap_err().contains("already defined"));
        assert!(documents(b"1: x\n").unwrap_err().contains("not a string"));
    }

    #[test]
    fn json_with_tabs_is_read() {
        assert_eq!(one("\t{\n\t\"a\":\t[1]\n}"), json!({"a": [1]}));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            any::<String>().prop_map(Value::from),
            "[ -~\n]{0,12}".prop_map(Value::from),
            prop::sample::select(vec![
                "no",
                "1e3",
                "2020-01-01",
                "0x1",
                "~",
                "- a",
                "a: b",
                "#",
                "",
                " x ",
                "a\nb",
                "null",
                "1_0",
                "12:30"
            ])
            .prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::btree_map("[ -~]{0,8}", inner, 0..5)
                    .prop_map(|m| m.into_iter().filter(|(k, _)| k != "<<").collect()),
            ]
        })
    }

    proptest! {
        #[test]
        fn emitted_yaml_reads_back(value in any_value()) {
            let yaml = to_yaml(&value);
            let read = documents(yaml.as_bytes()).map_err(|e| TestCaseError::fail(format!("{e}: {yaml}")))?;
            prop_assert_eq!(&read, &vec![value], "{}", yaml);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = documents(&bytes);
        }
    }
}
