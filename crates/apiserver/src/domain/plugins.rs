//! Limits of what runs and recurring runs may hand to plugins.

use std::collections::BTreeMap;

use prost_types::value::Kind;
use prost_types::{Struct, Value};

use crate::config::{self, Config};
use crate::error::{Error, Result};

/// How much `plugins_input` may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries (`PLUGIN_MAX_KEYS`).
    pub keys: usize,
    /// Bytes of an entry as JSON (`PLUGIN_MAX_PAYLOAD_BYTES`).
    pub entry: usize,
    /// Bytes of all entries as JSON (`PLUGIN_MAX_TOTAL_PAYLOAD_BYTES`).
    pub total: usize,
    /// Objects and lists inside of each other (`PLUGIN_MAX_NESTING_DEPTH`).
    pub depth: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { keys: 16, entry: 64 << 10, total: 256 << 10, depth: 10 }
    }
}

impl Limits {
    /// Reads the settings.
    ///
    /// # Errors
    /// When one is not positive, or the total less than an entry.
    pub fn from_config(config: &Config) -> std::result::Result<Self, config::Error> {
        let wrong = |key: &str, value: i64, expected| config::Error::Value {
            key: key.to_owned(),
            value: value.to_string(),
            expected,
        };
        let read = |key: &str, default: usize| {
            let value = config.int(key, i64::try_from(default).unwrap_or(i64::MAX))?;
            let positive = usize::try_from(value).ok().filter(|value| *value > 0);
            positive.ok_or_else(|| wrong(key, value, "a positive integer"))
        };
        let default = Limits::default();
        let limits = Limits {
            keys: read("PLUGIN_MAX_KEYS", default.keys)?,
            entry: read("PLUGIN_MAX_PAYLOAD_BYTES", default.entry)?,
            total: read("PLUGIN_MAX_TOTAL_PAYLOAD_BYTES", default.total)?,
            depth: read("PLUGIN_MAX_NESTING_DEPTH", default.depth)?,
        };
        if limits.total < limits.entry {
            let total = i64::try_from(limits.total).unwrap_or(i64::MAX);
            return Err(wrong("PLUGIN_MAX_TOTAL_PAYLOAD_BYTES", total, "at least PLUGIN_MAX_PAYLOAD_BYTES"));
        }
        Ok(limits)
    }

    /// Checks an input and returns it as it is stored: JSON, empty when there is none.
    ///
    /// # Errors
    /// Code 3 with the limit that is exceeded.
    pub fn stored(&self, input: &BTreeMap<String, Struct>) -> Result<String> {
        let refuse = |reason: String| Err(Error::invalid(format!("Invalid plugins_input: {reason}")));
        if input.is_empty() {
            return Ok(String::new());
        }
        if input.len() > self.keys {
            return refuse(format!("number of plugins_input entries ({}) exceeds maximum {}", input.len(), self.keys));
        }
        let mut fields = serde_json::Map::new();
        for (name, value) in input {
            if depth_of(value) > self.depth {
                return refuse(format!("plugins_input[{name:?}] nesting depth exceeds maximum {}", self.depth));
            }
            let json = kfp_core::ir::struct_to_json(value);
            let size = json.to_string().len();
            if size > self.entry {
                let most = self.entry;
                return refuse(format!("plugins_input[{name:?}] size ({size} bytes) exceeds maximum {most} bytes"));
            }
            fields.insert(name.clone(), json);
        }
        let all = serde_json::Value::Object(fields).to_string();
        if all.len() > self.total {
            let (size, most) = (all.len(), self.total);
            return refuse(format!("plugins_input total size ({size} bytes) exceeds maximum {most} bytes"));
        }
        Ok(all)
    }
}

fn depth_of(value: &Struct) -> usize {
    1 + value.fields.values().map(depth).max().unwrap_or(0)
}

fn depth(value: &Value) -> usize {
    match &value.kind {
        Some(Kind::StructValue(fields)) => depth_of(fields),
        Some(Kind::ListValue(list)) => 1 + list.values.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn input(value: &serde_json::Value) -> BTreeMap<String, Struct> {
        let fields = value.as_object().unwrap().iter();
        fields.map(|(name, value)| (name.clone(), kfp_core::ir::struct_from_json(value.as_object().unwrap()))).collect()
    }

    #[test]
    fn what_is_too_much_is_named() {
        let limits = Limits { keys: 2, entry: 20, total: 30, depth: 2 };
        assert_eq!(limits.stored(&BTreeMap::new()).unwrap(), "");
        assert_eq!(limits.stored(&input(&json!({"a": {"b": [1]}}))).unwrap(), r#"{"a":{"b":[1]}}"#);
        for (value, text) in [
            (json!({"a": {}, "b": {}, "c": {}}), "number of plugins_input entries (3) exceeds maximum 2"),
            (
                json!({"a": {"b": "xxxxxxxxxxxxxxxxxxxx"}}),
                "plugins_input[\"a\"] size (28 bytes) exceeds maximum 20 bytes",
            ),
            (json!({"a": {"b": {"c": {}}}}), "plugins_input[\"a\"] nesting depth exceeds maximum 2"),
            (json!({"a": {"b": "xxxxxxx"}, "c": {"d": "xxxxxxx"}}), "plugins_input total size"),
        ] {
            let error = limits.stored(&input(&value)).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.to_string().contains(text), "{error}");
        }
    }

    #[test]
    fn settings_must_make_sense() {
        let read = |key: &str, value: &str| {
            let env = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            Limits::from_config(&Config::new(serde_json::Value::Null, env))
        };
        assert_eq!(read("X", "1").unwrap(), Limits::default());
        assert_eq!(read("PLUGIN_MAX_KEYS", "3").unwrap().keys, 3);
        for (key, value) in
            [("PLUGIN_MAX_KEYS", "0"), ("PLUGIN_MAX_KEYS", "x"), ("PLUGIN_MAX_TOTAL_PAYLOAD_BYTES", "5")]
        {
            assert!(read(key, value).is_err(), "{key}={value}");
        }
    }
}
