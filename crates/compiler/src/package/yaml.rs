//! YAML and JSON documents as JSON values, with bounds on size and on what aliases may expand to; and the way back.
//!
//! Scalars are read as upstream's decoder (Go's yaml.v3) reads them, see [`super::scalar`]. The parser delivers
//! events one by one, so nesting is cut off while reading.

use std::{cell::Cell, collections::HashMap, fmt};

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput, Tag};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::archive::MAX_BYTES;
use super::scalar;

/// Most values (scalars, lists, maps and keys) in one file, aliases expanded.
pub const MAX_NODES: usize = 1_000_000;
/// Most bytes of text in one file, aliases expanded.
pub const MAX_TEXT: usize = 2 * MAX_BYTES;
/// Deepest nesting of lists and maps in a document.
pub const MAX_NESTING: usize = 100;
/// Most line ends, colons, commas and opening brackets in YAML that is not JSON. Each may begin a token, and the parser
/// may have to look far ahead, so this bounds memory. Those inside text count as well.
pub const MAX_MARKS: usize = 4_000_000;

/// The documents of `bytes`, empty ones as null.
///
/// # Errors
/// A syntax error with its place, or the name of the bound that was passed.
pub fn documents(bytes: &[u8]) -> Result<Vec<Value>, String> {
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
        // JSON is YAML but for some escapes, and this is faster.
        let budget = Budget::new();
        let mut json = serde_json::Deserializer::from_slice(bytes);
        match Json(&budget).deserialize(&mut json).and_then(|value| json.end().map(|()| value)) {
            Ok(value) => return Ok(vec![value]),
            Err(error) if error.is_data() => return Err(error.to_string()),
            Err(_) => {}
        }
    }
    let mark = |b: &&u8| matches!(b, b'\n' | b',' | b'[' | b'{' | b':');
    if bytes.len() > MAX_MARKS && bytes.iter().filter(mark).count() > MAX_MARKS {
        return Err(format!("more than {MAX_MARKS} line ends, colons, commas and brackets"));
    }
    let text = std::str::from_utf8(bytes).map_err(|e| format!("not UTF-8: {e}"))?;
    let mut reader = Reader { parser: Parser::new_from_str(text), budget: Budget::new(), anchors: HashMap::new() };
    reader.documents()
}

/// What may still be read.
struct Budget {
    nodes: Cell<usize>,
    text: Cell<usize>,
}

impl Budget {
    fn new() -> Self {
        Self { nodes: Cell::new(MAX_NODES), text: Cell::new(MAX_TEXT) }
    }

    fn take(&self, nodes: usize, text: usize) -> Result<(), String> {
        let left = self.nodes.get().checked_sub(nodes).ok_or_else(|| format!("more than {MAX_NODES} values"))?;
        self.nodes.set(left);
        let left = self.text.get().checked_sub(text).ok_or_else(|| format!("more than {MAX_TEXT} bytes of text"))?;
        self.text.set(left);
        Ok(())
    }

    fn used(&self) -> (usize, usize) {
        (MAX_NODES - self.nodes.get(), MAX_TEXT - self.text.get())
    }
}

/// An anchored value and what it costs to repeat it.
struct Anchored {
    value: Value,
    nodes: usize,
    text: usize,
}

struct Reader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    budget: Budget,
    anchors: HashMap<usize, Anchored>,
}

impl<'a> Reader<'a> {
    fn documents(&mut self) -> Result<Vec<Value>, String> {
        let mut out = Vec::new();
        loop {
            match self.next()? {
                Event::StreamEnd => return Ok(out),
                Event::DocumentStart(_) => {
                    self.anchors.clear();
                    let first = self.next()?;
                    out.push(match first {
                        Event::DocumentEnd => Value::Null,
                        event => self.value(event, 0)?.0,
                    });
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<Event<'a>, String> {
        match self.parser.next_event() {
            Some(Ok((event, _))) => Ok(event),
            Some(Err(error)) => Err(error.to_string()),
            None => Ok(Event::StreamEnd),
        }
    }

    /// The value that begins with `event`, and whether it is a plain scalar.
    fn value(&mut self, event: Event<'a>, depth: usize) -> Result<(Value, bool), String> {
        if depth > MAX_NESTING {
            return Err(format!("lists and maps are nested more than {MAX_NESTING} deep"));
        }
        let before = self.budget.used();
        let (value, anchor, plain) = match event {
            Event::Alias(id) => {
                let found = self.anchors.get(&id).ok_or("an alias refers to the value it is part of")?;
                self.budget.take(found.nodes, found.text)?;
                return Ok((found.value.clone(), false));
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.budget.take(1, text.len())?;
                let plain = style == ScalarStyle::Plain;
                (scalar_value(&text, plain, tag.as_deref())?, anchor, plain)
            }
            Event::SequenceStart(anchor, _) => {
                self.budget.take(1, 0)?;
                (self.list(depth)?, anchor, false)
            }
            Event::MappingStart(anchor, _) => {
                self.budget.take(1, 0)?;
                (self.map(depth)?, anchor, false)
            }
            other => return Err(format!("unexpected {other:?}")),
        };
        if anchor != 0 {
            let after = self.budget.used();
            let (nodes, text) = (after.0 - before.0, after.1 - before.1);
            self.budget.take(nodes, text)?;
            self.anchors.insert(anchor, Anchored { value: value.clone(), nodes, text });
        }
        Ok((value, plain))
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        let mut out = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(Value::Array(out)),
                event => out.push(self.value(event, depth + 1)?.0),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, String> {
        let mut out = Map::new();
        let mut merged = None;
        loop {
            let event = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let (key, plain) = self.value(event, depth + 1)?;
            let Value::String(key) = key else {
                return Err(format!("mapping key {key} is not a string"));
            };
            let event = self.next()?;
            let (value, _) = self.value(event, depth + 1)?;
            if key == "<<" && plain {
                merged = Some(value);
            } else if out.contains_key(&key) {
                return Err(format!("mapping key {key:?} already defined"));
            } else {
                out.insert(key, value);
            }
        }
        match merged {
            None => {}
            Some(Value::Array(sources)) => sources.into_iter().try_for_each(|source| merge_into(&mut out, source))?,
            Some(source) => merge_into(&mut out, source)?,
        }
        Ok(Value::Object(out))
    }
}

fn merge_into(out: &mut Map<String, Value>, source: Value) -> Result<(), String> {
    let Value::Object(source) = source else {
        return Err("map merge requires map or sequence of maps as the value".into());
    };
    for (key, value) in source {
        out.entry(key).or_insert(value);
    }
    Ok(())
}

fn scalar_value(text: &str, plain: bool, tag: Option<&Tag>) -> Result<Value, String> {
    let wanted = match tag {
        Some(tag) if tag.is_yaml_core_schema() => tag.suffix.as_str(),
        Some(tag) if tag.handle == "!" && tag.suffix.is_empty() => "str",
        _ => "",
    };
    let value = match wanted {
        "str" => Value::from(text),
        "null" | "bool" | "int" | "float" | "timestamp" => scalar::resolve(text)?,
        "binary" => return Err("binary values are not supported".into()),
        _ if plain => scalar::resolve(text)?,
        _ => Value::from(text),
    };
    let fits = match wanted {
        "null" => value.is_null(),
        "bool" => value.is_boolean(),
        "int" | "float" => value.is_number(),
        _ => true,
    };
    if fits { Ok(value) } else { Err(format!("cannot decode {text:?} as a !!{wanted}")) }
}

/// JSON within the budget, without repeated keys.
#[derive(Clone, Copy)]
struct Json<'a>(&'a Budget);

impl Json<'_> {
    fn take<E: serde::de::Error>(self, text: usize) -> Result<(), E> {
        self.0.take(1, text).map_err(E::custom)
    }
}

impl<'de> DeserializeSeed<'de> for Json<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Json<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Value, E> {
        self.take(0).map(|()| Value::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, v: bool) -> Result<Value, E> {
        self.take(0).map(|()| Value::Bool(v))
    }

    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Value, E> {
        self.take(0).map(|()| Value::from(v))
    }

    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Value, E> {
        self.take(0).map(|()| Value::from(v))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        self.take(0)?;
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Value, E> {
        self.take(v.len()).map(|()| Value::from(v))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let mut out = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            out.push(item);
        }
        Ok(Value::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        self.take(0)?;
        let mut out = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            self.take(key.len())?;
            let value = entries.next_value_seed(self)?;
            if out.contains_key(&key) {
                return Err(A::Error::custom(format!("mapping key {key:?} already defined")));
            }
            out.insert(key, value);
        }
        Ok(Value::Object(out))
    }
}

pub use super::emit::to_yaml;

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
        assert!(documents("[".repeat(100_000).as_bytes()).is_err());
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
