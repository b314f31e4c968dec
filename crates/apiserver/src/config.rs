//! `config.json` and the environment behind one lookup: the environment wins, keys ignore case.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file is missing or cannot be read.
    #[error("config file error: cannot read {path}: {source}")]
    Read {
        /// Where it should be.
        path: String,
        /// Why it cannot be read.
        source: std::io::Error,
    },
    /// The file is not JSON.
    #[error("config file error: {path} is not valid JSON: {source}")]
    Parse {
        /// Where it is.
        path: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A value is needed.
    #[error("setting {0} is not set")]
    Missing(String),
    /// A value has the wrong form.
    #[error("setting {key} is {value:?}, which is not {expected}")]
    Value {
        /// The setting.
        key: String,
        /// What it says.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// Settings by upstream's names. An environment variable that is set to the empty text counts as set.
#[derive(Clone, Debug, Default)]
pub struct Config {
    file: Value,
    flat: BTreeMap<String, String>,
    env: BTreeMap<String, String>,
}

fn flatten(prefix: &str, value: &Value, into: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&key.to_lowercase(), value, into);
            }
        }
        Value::Null => {}
        Value::String(text) => drop(into.insert(prefix.to_owned(), text.clone())),
        other => drop(into.insert(prefix.to_owned(), other.to_string())),
    }
}

impl Config {
    /// Reads `config.json` in `directory` (empty: no file) and takes over the process environment.
    ///
    /// # Errors
    /// When the directory is given but its file cannot be used.
    pub fn load(directory: &str) -> Result<Self, Error> {
        let file = if directory.is_empty() {
            Value::Null
        } else {
            let path = Path::new(directory).join("config.json");
            let shown = path.display().to_string();
            let text = std::fs::read_to_string(&path).map_err(|source| Error::Read { path: shown.clone(), source })?;
            serde_json::from_str(&text).map_err(|source| Error::Parse { path: shown, source })?
        };
        Ok(Self::new(file, std::env::vars().collect()))
    }

    /// From values, for tests and for programs that host the server.
    #[must_use]
    pub fn new(file: Value, env: BTreeMap<String, String>) -> Self {
        let mut flat = BTreeMap::new();
        flatten("", &file, &mut flat);
        Config { file, flat, env }
    }

    /// The file as it is.
    #[must_use]
    pub fn file(&self) -> &Value {
        &self.file
    }

    /// An environment variable.
    #[must_use]
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.get(name).map(String::as_str)
    }

    /// A setting from the environment (upper case, dots as underscores), else from the file.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let variable = key.to_uppercase().replace('.', "_");
        self.env(&variable).or_else(|| self.flat.get(&key.to_lowercase()).map(String::as_str))
    }

    /// A setting with a default.
    #[must_use]
    pub fn text(&self, key: &str, default: &str) -> String {
        self.get(key).unwrap_or(default).to_owned()
    }

    /// Named values: a JSON object in the environment, else the fields of the object in the file (in lower case).
    ///
    /// # Errors
    /// When the environment holds something else.
    pub fn map(&self, key: &str) -> Result<BTreeMap<String, String>, Error> {
        let Some(text) = self.env(&key.to_uppercase().replace('.', "_")) else {
            let prefix = format!("{}.", key.to_lowercase());
            let fields = self.flat.iter().filter_map(|(key, value)| Some((key.strip_prefix(&prefix)?, value)));
            return Ok(fields.map(|(key, value)| (key.to_owned(), value.clone())).collect());
        };
        if text.is_empty() {
            return Ok(BTreeMap::new());
        }
        let bad = || Error::Value { key: key.to_owned(), value: text.to_owned(), expected: "a JSON object" };
        let object: serde_json::Map<String, Value> = serde_json::from_str(text).map_err(|_| bad())?;
        let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Ok(object.into_iter().map(|(key, value)| (key, text(value))).collect())
    }

    /// A truth value in Go's spelling; empty counts as not set.
    ///
    /// # Errors
    /// When it is something else.
    pub fn bool(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.get(key).unwrap_or_default() {
            "" => Ok(default),
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
            other => Err(Error::Value { key: key.to_owned(), value: other.to_owned(), expected: "true or false" }),
        }
    }

    /// An integer; empty counts as not set.
    ///
    /// # Errors
    /// When it is something else.
    pub fn int(&self, key: &str, default: i64) -> Result<i64, Error> {
        match self.get(key).unwrap_or_default() {
            "" => Ok(default),
            text => text.parse().map_err(|_| Error::Value {
                key: key.to_owned(),
                value: text.to_owned(),
                expected: "an integer",
            }),
        }
    }

    /// A length of time in Go's spelling; empty counts as not set, `0` needs no unit.
    ///
    /// # Errors
    /// When it is something else or negative.
    pub fn duration(&self, key: &str, default: Duration) -> Result<Duration, Error> {
        let text = match self.get(key).unwrap_or_default() {
            "" => return Ok(default),
            "0" => return Ok(Duration::ZERO),
            text => text,
        };
        let length = kfp_core::duration::parse(text).ok().and_then(|length| u64::try_from(length).ok());
        length.map(Duration::from_nanos).ok_or_else(|| Error::Value {
            key: key.to_owned(),
            value: text.to_owned(),
            expected: "a duration such as 1h30m, at least 0",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn environment_wins_and_keys_ignore_case() {
        let file = serde_json::json!({"DBConfig": {"MySQLConfig": {"Host": "h"}}, "CacheEnabled": "true"});
        let env = BTreeMap::from([("CACHEENABLED".to_owned(), "false".to_owned()), ("X".to_owned(), String::new())]);
        let config = Config::new(file, env);
        assert_eq!(config.get("dbconfig.mysqlconfig.host"), Some("h"));
        assert!(!config.bool("CacheEnabled", true).unwrap());
        assert_eq!(config.get("X"), Some(""));
        assert!(config.bool("DBConfig.MySQLConfig.Host", true).is_err());
    }
}
