//! The `filter` field of list requests: a JSON document of predicates that must all hold.

use serde::Deserialize;

use super::list::{Field, Kind, Listable};
use super::sql::{Dialect, Sql, Value};
use crate::error::{Error, Result};

/// Which API generation a request belongs to; they spell the operation differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// `op`.
    V1,
    /// `operation`.
    V2,
}

/// Comparison of a column with one value or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Operation {
    /// Equal.
    Eq,
    /// Different.
    Ne,
    /// Greater.
    Gt,
    /// Greater or equal.
    Ge,
    /// Less.
    Lt,
    /// Less or equal.
    Le,
    /// One of a list.
    In,
    /// Contains the text.
    Substring,
}

/// Most values of all predicates together; SQLite binds at most 32766.
const MOST_VALUES: usize = 10_000;
/// Columns with few different words. SQLite, which keeps no statistics, would rather look rows up by them than read an
/// index in the order of the list.
const WORDS: [&str; 4] = ["StorageState", "State", "Conditions", "Status"];

const OPERATIONS: [(u64, &str, Operation); 8] = [
    (1, "EQUALS", Operation::Eq),
    (2, "NOT_EQUALS", Operation::Ne),
    (3, "GREATER_THAN", Operation::Gt),
    (5, "GREATER_THAN_EQUALS", Operation::Ge),
    (6, "LESS_THAN", Operation::Lt),
    (7, "LESS_THAN_EQUALS", Operation::Le),
    (8, "IN", Operation::In),
    (9, "IS_SUBSTRING", Operation::Substring),
];

impl Operation {
    fn name(self) -> &'static str {
        OPERATIONS.iter().find(|entry| entry.2 == self).map_or("?", |entry| entry.1)
    }
}

/// One resolved comparison; the column is a constant of the listed table.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Predicate {
    /// Column name.
    pub column: String,
    /// Comparison.
    pub operation: Operation,
    /// One value, or all of them for [`Operation::In`].
    pub values: Vec<Value>,
}

/// A parsed filter: predicates on columns, and tags that an entity must carry.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Comparisons of columns.
    pub predicates: Vec<Predicate>,
    /// Required tags; not part of page tokens.
    pub tags: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    predicates: Vec<Raw>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    op: Option<serde_json::Value>,
    #[serde(default)]
    operation: Option<serde_json::Value>,
    #[serde(default)]
    key: String,
    #[serde(default, alias = "intValue")]
    int_value: Option<Number>,
    #[serde(default, alias = "longValue")]
    long_value: Option<Number>,
    #[serde(default, alias = "stringValue")]
    string_value: Option<String>,
    #[serde(default, alias = "timestampValue")]
    timestamp_value: Option<String>,
    #[serde(default, alias = "intValues")]
    int_values: Option<List<Number>>,
    #[serde(default, alias = "longValues")]
    long_values: Option<List<Number>>,
    #[serde(default, alias = "stringValues")]
    string_values: Option<List<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List<T> {
    #[serde(default = "Vec::new")]
    values: Vec<T>,
}

/// Integers are numbers or strings in protobuf JSON.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Int(i64),
    Text(String),
}

impl Number {
    fn get(&self) -> Result<i64, String> {
        match self {
            Number::Int(number) => Ok(*number),
            Number::Text(text) => text.parse().map_err(|_| format!("{text:?} is not an integer")),
        }
    }
}

fn unescape(raw: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(raw.len());
    let mut rest = raw.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let hex: Vec<u8> = rest.by_ref().take(2).collect();
                let code = std::str::from_utf8(&hex).ok().filter(|hex| hex.len() == 2);
                let code = code.and_then(|hex| u8::from_str_radix(hex, 16).ok());
                bytes.push(code.ok_or_else(|| format!("invalid URL escape \"%{}\"", String::from_utf8_lossy(&hex)))?);
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).map_err(|error| error.to_string())
}

/// Seconds since the epoch of an RFC 3339 text.
fn seconds(text: &str) -> Option<i64> {
    chrono::DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp())
}

fn coerce(field: &Field, value: Value) -> Value {
    match (field.kind, value) {
        // MySQL coerces texts compared with numbers; upstream's clients send times as strings.
        (Kind::Int | Kind::Time, Value::Text(text)) => {
            Value::Int(seconds(&text).or_else(|| text.trim().parse().ok()).unwrap_or(0))
        }
        (Kind::Text, Value::Int(number)) => Value::Text(number.to_string()),
        (_, value) => value,
    }
}

impl Raw {
    fn operation(&self, generation: Generation) -> Result<Operation, String> {
        let (given, other, field) = match generation {
            Generation::V1 => (&self.op, &self.operation, "operation"),
            Generation::V2 => (&self.operation, &self.op, "op"),
        };
        if other.is_some() {
            return Err(format!("unknown field \"{field}\""));
        }
        let found = match given {
            Some(serde_json::Value::String(name)) => OPERATIONS.iter().find(|entry| entry.1 == name),
            Some(serde_json::Value::Number(number)) => OPERATIONS.iter().find(|entry| number.as_u64() == Some(entry.0)),
            _ => None,
        };
        found
            .map(|entry| entry.2)
            .ok_or_else(|| format!("invalid or missing operation in the predicate on key {:?}", self.key))
    }

    /// The values and whether they were given as a list, with the type's name in upstream's messages.
    fn values(&self) -> Result<(Vec<Value>, bool, &'static str), String> {
        let mut found = Vec::new();
        for number in [&self.int_value, &self.long_value].into_iter().flatten() {
            found.push((vec![Value::Int(number.get()?)], false, "int64"));
        }
        if let Some(text) = &self.string_value {
            found.push((vec![Value::from(text)], false, "string"));
        }
        if let Some(text) = &self.timestamp_value {
            let time = seconds(text).ok_or_else(|| format!("{text:?} is not an RFC 3339 timestamp"))?;
            found.push((vec![Value::Int(time)], false, "int64"));
        }
        for list in [&self.int_values, &self.long_values].into_iter().flatten() {
            let numbers = list.values.iter().map(|number| number.get().map(Value::Int)).collect::<Result<_, _>>()?;
            found.push((numbers, true, "[]int64"));
        }
        if let Some(list) = &self.string_values {
            found.push((list.values.iter().map(Value::from).collect(), true, "[]string"));
        }
        match found.len() {
            1 => Ok(found.remove(0)),
            0 => Err(format!("no value in the predicate on key {:?}", self.key)),
            _ => Err(format!("more than one value in the predicate on key {:?}", self.key)),
        }
    }
}

impl Filter {
    /// Parses the `filter` field of a list request; an empty one matches everything.
    ///
    /// # Errors
    /// Code 3 with upstream's texts for malformed documents, unknown keys and operations that do not fit the value.
    pub fn parse(raw: &str, generation: Generation, listable: &Listable) -> Result<Self> {
        if raw.is_empty() {
            return Ok(Filter::default());
        }
        let bad = |cause: String| Error::invalid_because(format!("failed to parse valid filter from \"{raw}\""), cause);
        // The UI encodes twice, the SDK once: what already is JSON stays as it is.
        let document: Document = if serde_json::from_str::<serde_json::Value>(raw).is_ok() {
            serde_json::from_str(raw).map_err(|error| bad(error.to_string()))?
        } else {
            let text = unescape(raw).map_err(bad)?;
            serde_json::from_str(&text).map_err(|error| bad(error.to_string()))?
        };
        let mut filter = Filter::default();
        for raw in document.predicates {
            let operation = raw.operation(generation).map_err(Error::invalid)?;
            if raw.key.is_empty() {
                return Err(Error::invalid(format!(
                    "Predicate key cannot be empty for operation {}",
                    operation.name()
                )));
            }
            let (values, is_list, kind) = raw.values().map_err(Error::invalid)?;
            if !values.iter().all(storable) {
                return Err(Error::invalid(format!("the value of key \"{}\" has a NUL character", raw.key)));
            }
            if let (Some(key), Some(_)) = (raw.key.strip_prefix("tags."), listable.tags) {
                filter.tags.push(tag(key, &raw.key, operation, values)?);
                continue;
            }
            let field = listable.field(&raw.key).ok_or_else(|| {
                Error::invalid(format!("no support for filtering on unrecognized field \"{}\"", raw.key))
            })?;
            match operation {
                Operation::In if !is_list => {
                    return Err(Error::invalid(format!("cannot use IN operator with scalar type {kind}")));
                }
                Operation::In => {}
                Operation::Substring if kind != "string" => {
                    return Err(Error::invalid(format!("cannot use non string value type {kind} with IS_SUBSTRING")));
                }
                operation if is_list => {
                    return Err(Error::invalid(format!(
                        "cannot use scalar operator {} on array type {kind}",
                        operation.name()
                    )));
                }
                _ => {}
            }
            let values = match operation {
                Operation::Substring => values,
                _ => values.into_iter().map(|value| coerce(field, value)).collect(),
            };
            if filter.predicates.iter().map(|predicate| predicate.values.len()).sum::<usize>() + values.len()
                > MOST_VALUES
            {
                return Err(Error::invalid(format!("a filter may have at most {MOST_VALUES} values")));
            }
            filter.predicates.push(Predicate { column: field.column.to_owned(), operation, values });
        }
        Ok(filter)
    }
}

/// PostgreSQL has no NUL in texts, and SQLite's LIKE ends at it.
pub(super) fn storable(value: &Value) -> bool {
    !matches!(value, Value::Text(text) if text.contains('\0'))
}

fn tag(key: &str, full: &str, operation: Operation, mut values: Vec<Value>) -> Result<(String, String)> {
    if operation != Operation::Eq {
        return Err(Error::invalid(format!(
            "only EQUALS operation is supported for tag filtering, got {} for key \"{full}\"",
            operation.name()
        )));
    }
    match values.pop() {
        Some(Value::Text(value)) if values.is_empty() => Ok((key.to_owned(), value)),
        _ => Err(Error::invalid(format!("tag filter value must be a string for key \"{full}\""))),
    }
}

impl Predicate {
    /// Whether a filter of this field can be such.
    #[must_use]
    pub fn fits(&self, field: &Field) -> bool {
        let typed = |value: &Value| match (field.kind, value) {
            (_, Value::Text(_)) if self.operation == Operation::Substring => true,
            (Kind::Text, value) => matches!(value, Value::Text(_)),
            (Kind::Int | Kind::Time, value) => matches!(value, Value::Int(_)),
            (Kind::Float, _) => false,
        };
        let count = match self.operation {
            Operation::In => self.values.len() <= MOST_VALUES,
            _ => self.values.len() == 1,
        };
        count && self.values.iter().all(|value| typed(value) && storable(value))
    }

    /// Appends the comparison as a condition.
    pub fn apply(&self, sql: &mut Sql, kind: Kind) {
        sql.glue();
        let column = self.column.as_str();
        if sql.dialect() == Dialect::Sqlite && WORDS.contains(&column) {
            sql.push("+");
        }
        let first = self.values.first().cloned().unwrap_or(Value::Null);
        let op = match self.operation {
            Operation::In if self.values.is_empty() => {
                sql.push("1 = 0");
                return;
            }
            Operation::In => {
                sql.ident(column).push(" IN (").binds(self.values.clone()).push(")");
                return;
            }
            Operation::Substring => {
                let text = if let Value::Text(text) = first { text } else { String::new() };
                let escaped = text.replace('!', "!!").replace('%', "!%").replace('_', "!_");
                // The UI's search box relies on MySQL's case-insensitive LIKE.
                let like = if sql.dialect() == Dialect::Postgres { " ILIKE " } else { " LIKE " };
                if kind != Kind::Text && sql.dialect() == Dialect::Postgres {
                    sql.push("CAST(").ident(column).push(" AS text)");
                } else {
                    sql.ident(column);
                }
                sql.push(like).bind(format!("%{escaped}%")).push(" ESCAPE '!'");
                return;
            }
            Operation::Eq => " = ",
            Operation::Ne => " <> ",
            Operation::Gt => " > ",
            Operation::Ge => " >= ",
            Operation::Lt => " < ",
            Operation::Le => " <= ",
        };
        sql.ident(column).push(op).bind(first);
    }
}

#[cfg(test)]
mod tests {
    use super::super::runs::LISTABLE;
    use super::*;

    fn parse(raw: &str) -> Result<Filter> {
        Filter::parse(raw, Generation::V2, &LISTABLE)
    }

    #[test]
    fn both_spellings_numbers_and_double_encoding_are_understood() {
        let plain = parse(r#"{"predicates":[{"operation":1,"key":"display_name","stringValue":"x"}]}"#).unwrap();
        let named = parse(r#"{"predicates":[{"operation":"EQUALS","key":"name","string_value":"x"}]}"#).unwrap();
        let encoded = parse(
            "%7B%22predicates%22%3A%5B%7B%22operation%22%3A%22EQUALS%22%2C%22key%22%3A%22name%22%2C%22string_value%22%3A%22x%22%7D%5D%7D",
        )
        .unwrap();
        assert_eq!(plain, named);
        assert_eq!(plain, encoded);
        assert_eq!(plain.predicates[0].column, "DisplayName");
    }

    #[test]
    fn time_columns_accept_texts() {
        let filter = parse(
            r#"{"predicates":[{"operation":"GREATER_THAN","key":"created_at","string_value":"2000-01-01T00:00:00Z"}]}"#,
        )
        .unwrap();
        assert_eq!(filter.predicates[0].values, vec![Value::Int(946_684_800)]);
    }

    #[test]
    fn misuse_is_named() {
        for (raw, text) in [
            (
                r#"{"predicates":[{"operation":"IN","key":"name","string_value":"x"}]}"#,
                "cannot use IN operator with scalar type string",
            ),
            (
                r#"{"predicates":[{"operation":"EQUALS","key":"name","string_values":{"values":["x"]}}]}"#,
                "cannot use scalar operator EQUALS on array type []string",
            ),
            (
                r#"{"predicates":[{"operation":"EQUALS","key":"nope","string_value":"x"}]}"#,
                "unrecognized field \"nope\"",
            ),
            (r#"{"predicates":[{"op":"EQUALS","key":"name","string_value":"x"}]}"#, "unknown field \"op\""),
            (r#"{"predicates":[{"operation":"EQUALS","key":"name"}]}"#, "no value"),
            (
                r#"{"predicates":[{"operation":"IS_SUBSTRING","key":"name","int_value":3}]}"#,
                "cannot use non string value type",
            ),
            ("%zz", "failed to parse valid filter"),
            (r#"{"predicate":[]}"#, "unknown field"),
        ] {
            let error = parse(raw).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{raw}");
            assert!(error.to_string().contains(text), "{raw}: {error}");
        }
    }
}
