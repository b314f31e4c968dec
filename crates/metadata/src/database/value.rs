//! Parameters of statements and rows of answers, the same for every database.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sqlx::mysql::MySqlRow;
use sqlx::postgres::PgRow;
use sqlx::{Decode, MySql, Postgres, Row as _, TypeInfo as _, ValueRef as _};

use crate::failure::{Failure, Outcome};

/// Padded on writing, indifferent on reading.
pub const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// A value bound to a statement or found in a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// NULL.
    Null,
    /// A truth value; SQLite and MySQL know only 0 and 1.
    Bool(bool),
    /// Any integer.
    Int(i64),
    /// A double.
    Real(f64),
    /// A string.
    Text(String),
    /// Bytes; stored as base64 text everywhere but in PostgreSQL, as upstream does.
    Bytes(Vec<u8>),
}

impl From<i64> for Param {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}
impl From<i32> for Param {
    fn from(value: i32) -> Self {
        Self::Int(value.into())
    }
}
impl From<bool> for Param {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}
impl From<f64> for Param {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}
impl From<&str> for Param {
    fn from(value: &str) -> Self {
        Self::Text(value.to_owned())
    }
}
impl From<String> for Param {
    fn from(value: String) -> Self {
        Self::Text(value)
    }
}
impl From<Vec<u8>> for Param {
    fn from(value: Vec<u8>) -> Self {
        Self::Bytes(value)
    }
}
impl<T: Into<Param>> From<Option<T>> for Param {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

impl Param {
    /// How many bytes of a packet the value takes, about.
    pub fn size(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Bytes(bytes) => bytes.len() / 3 * 4,
            _ => 8,
        }
    }
}

/// One row of an answer.
#[derive(Clone, Debug)]
pub struct Row(pub(super) Vec<Param>);

impl Row {
    fn cell(&self, column: usize) -> Outcome<&Param> {
        self.0.get(column).ok_or_else(|| Failure::internal(format!("the database returned no column {column}")))
    }

    fn unlike<T>(column: usize, wanted: &str, found: &Param) -> Outcome<T> {
        Err(Failure::internal(format!("column {column} should hold {wanted}, holds {found:?}")))
    }

    /// An integer that may be NULL; truth values are 0 and 1.
    ///
    /// # Errors
    /// INTERNAL when the column holds something else.
    pub fn int_or_null(&self, column: usize) -> Outcome<Option<i64>> {
        match self.cell(column)? {
            Param::Null => Ok(None),
            Param::Int(value) => Ok(Some(*value)),
            Param::Bool(value) => Ok(Some((*value).into())),
            other => Self::unlike(column, "an integer", other),
        }
    }

    /// An integer.
    ///
    /// # Errors
    /// INTERNAL when the column holds something else or NULL.
    pub fn int(&self, column: usize) -> Outcome<i64> {
        self.int_or_null(column)?.ok_or_else(|| Failure::internal(format!("column {column} should not be NULL")))
    }

    /// A double that may be NULL; integers are converted.
    ///
    /// # Errors
    /// INTERNAL when the column holds something else.
    pub fn real_or_null(&self, column: usize) -> Outcome<Option<f64>> {
        match self.cell(column)? {
            Param::Null => Ok(None),
            Param::Real(value) => Ok(Some(*value)),
            #[allow(clippy::cast_precision_loss)] // SQLite may store a whole double as an integer.
            Param::Int(value) => Ok(Some(*value as f64)),
            other => Self::unlike(column, "a double", other),
        }
    }

    /// A string that may be NULL; SQLite's numbers in text columns are printed.
    ///
    /// # Errors
    /// INTERNAL when there is no such column or it holds bytes.
    pub fn text_or_null(&self, column: usize) -> Outcome<Option<String>> {
        Ok(match self.cell(column)? {
            Param::Null => None,
            Param::Text(value) => Some(value.clone()),
            Param::Int(value) => Some(value.to_string()),
            Param::Real(value) => Some(value.to_string()),
            other => return Self::unlike(column, "text", other),
        })
    }

    /// A string.
    ///
    /// # Errors
    /// INTERNAL when the column is NULL.
    pub fn text(&self, column: usize) -> Outcome<String> {
        self.text_or_null(column)?.ok_or_else(|| Failure::internal(format!("column {column} should not be NULL")))
    }

    /// Bytes that may be NULL.
    ///
    /// # Errors
    /// INTERNAL when the column holds something else, or text that is not base64.
    pub fn bytes_or_null(&self, column: usize) -> Outcome<Option<Vec<u8>>> {
        match self.cell(column)? {
            Param::Null => Ok(None),
            Param::Bytes(bytes) => Ok(Some(bytes.clone())),
            Param::Text(text) => BASE64
                .decode(text)
                .map(Some)
                .map_err(|_| Failure::internal(format!("column {column} should hold base64"))),
            other => Self::unlike(column, "bytes", other),
        }
    }
}

fn broken(error: impl std::fmt::Display) -> Failure {
    Failure::internal(format!("cannot read a column: {error}"))
}

fn utf8(bytes: Vec<u8>) -> Outcome<Param> {
    String::from_utf8(bytes).map(Param::Text).map_err(broken)
}

/// Rows of one database's driver.
pub trait IntoRow {
    /// The row in the common form.
    fn into_row(self) -> Outcome<Row>;
}

macro_rules! into_row {
    ($row:ty, $db:ty, $read:ident) => {
        impl IntoRow for $row {
            fn into_row(self) -> Outcome<Row> {
                let cells = (0..self.len()).map(|column| {
                    let value = self.try_get_raw(column)?;
                    if value.is_null() {
                        return Ok(Param::Null);
                    }
                    let kind = value.type_info().name().to_owned();
                    match $read(&kind) {
                        Shape::Int => <i64 as Decode<$db>>::decode(value).map(Param::Int).map_err(broken),
                        Shape::Real => <f64 as Decode<$db>>::decode(value).map(Param::Real).map_err(broken),
                        Shape::Bool => <bool as Decode<$db>>::decode(value).map(Param::Bool).map_err(broken),
                        Shape::Text => <Vec<u8> as Decode<$db>>::decode(value).map_err(broken).and_then(utf8),
                        Shape::Bytes => <Vec<u8> as Decode<$db>>::decode(value).map(Param::Bytes).map_err(broken),
                    }
                });
                cells.collect::<Outcome<_>>().map(Row)
            }
        }
    };
}

enum Shape {
    Int,
    Real,
    Bool,
    Text,
    Bytes,
}

/// Binary columns hold base64 too.
fn in_mysql(kind: &str) -> Shape {
    match kind {
        "BOOLEAN" => Shape::Int,
        "FLOAT" | "DOUBLE" => Shape::Real,
        _ if kind.contains("INT") => Shape::Int,
        _ => Shape::Text,
    }
}

fn in_postgres(kind: &str) -> Shape {
    match kind {
        "INT2" | "INT4" | "INT8" => Shape::Int,
        "FLOAT8" => Shape::Real,
        "BOOL" => Shape::Bool,
        "BYTEA" => Shape::Bytes,
        _ => Shape::Text,
    }
}

into_row!(MySqlRow, MySql, in_mysql);
into_row!(PgRow, Postgres, in_postgres);

/// Most rows that one INSERT carries and most ids that one IN list carries.
pub const CHUNK: usize = 256;

/// Sorted, distinct ids in groups, each with its `(?,?,...)`. Groups are padded to powers of two by repeating the last
/// id, so that a handful of statement texts serves lists of every length.
pub fn id_lists(ids: &[i64]) -> Vec<(String, Vec<Param>)> {
    let mut ids = ids.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let pad = |chunk: &[i64]| {
        let width = chunk.len().next_power_of_two();
        let last = chunk.last().copied().unwrap_or_default();
        let mut params: Vec<Param> = chunk.iter().copied().map(Param::Int).collect();
        params.resize(width, Param::Int(last));
        (format!("({})", vec!["?"; width].join(",")), params)
    };
    ids.chunks(CHUNK).map(pad).collect()
}

/// As [`id_lists`], for strings.
pub fn text_lists(texts: &[String]) -> Vec<(String, Vec<Param>)> {
    let mut texts = texts.to_vec();
    texts.sort_unstable();
    texts.dedup();
    let list = |chunk: &[String]| {
        let params = chunk.iter().map(|text| Param::Text(text.clone())).collect();
        (format!("({})", vec!["?"; chunk.len()].join(",")), params)
    };
    texts.chunks(CHUNK).map(list).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_lists_are_sorted_distinct_and_padded() {
        let lists = id_lists(&[5, 3, 5, 9]);
        assert_eq!(lists, [("(?,?,?,?)".to_owned(), [3, 5, 9, 9].map(Param::Int).to_vec())]);
        assert!(id_lists(&[]).is_empty());
        let many: Vec<i64> = (0..300).collect();
        assert_eq!(id_lists(&many).iter().map(|(_, params)| params.len()).collect::<Vec<_>>(), [256, 64]);
    }
}
