//! Rows as the three drivers hand them over, read by position.

use std::hash::{Hash as _, Hasher};

use sqlx::mysql::MySqlRow;
use sqlx::postgres::PgRow;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, ValueRef as _};

use crate::error::Result;

/// One row of any engine.
#[derive(Debug)]
pub enum Row {
    /// Of a SQLite file.
    Sqlite(SqliteRow),
    /// Of MySQL or MariaDB.
    MySql(MySqlRow),
    /// Of PostgreSQL.
    Postgres(PgRow),
}

macro_rules! get {
    ($row:expr, $index:expr, $kind:ty) => {
        match $row {
            Row::Sqlite(row) => row.try_get_unchecked::<Option<$kind>, _>($index),
            Row::MySql(row) => row.try_get_unchecked::<Option<$kind>, _>($index),
            Row::Postgres(row) => row.try_get_unchecked::<Option<$kind>, _>($index),
        }
    };
}

impl Row {
    /// Text; NULL reads as empty.
    ///
    /// # Errors
    /// When the column does not exist or is not text.
    pub fn text(&self, index: usize) -> Result<String> {
        Ok(get!(self, index, String)?.unwrap_or_default())
    }

    /// Integer; NULL reads as 0.
    ///
    /// # Errors
    /// When the column does not exist or is not a number.
    pub fn int(&self, index: usize) -> Result<i64> {
        Ok(get!(self, index, i64)?.unwrap_or_default())
    }

    /// Number; NULL reads as `None`. PostgreSQL's `decimal` has to be cast to `double precision` by the query.
    ///
    /// # Errors
    /// When the column does not exist or is not a number.
    pub fn float(&self, index: usize) -> Result<Option<f64>> {
        Ok(get!(self, index, f64)?)
    }

    /// Truth value; NULL reads as false.
    ///
    /// # Errors
    /// When the column does not exist or is not a truth value.
    pub fn bool(&self, index: usize) -> Result<bool> {
        Ok(get!(self, index, bool)?.unwrap_or_default())
    }

    /// Reads the columns one after the other.
    #[must_use]
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { row: self, next: 0 }
    }

    /// Feeds what the server sent into `hasher`. Rows of SQLite, which never has to compare them, feed nothing.
    pub(super) fn digest(&self, hasher: &mut impl Hasher) {
        match self {
            Row::Sqlite(_) => {}
            Row::MySql(row) => {
                for index in 0..row.len() {
                    row.try_get_unchecked::<Option<&[u8]>, _>(index).ok().flatten().hash(hasher);
                }
            }
            Row::Postgres(row) => {
                for index in 0..row.len() {
                    let raw = row.try_get_raw(index).ok().filter(|raw| !raw.is_null());
                    raw.and_then(|raw| raw.as_bytes().ok()).hash(hasher);
                }
            }
        }
    }
}

/// Reads a row's columns in order, so that structs are filled in the order of their column list.
#[derive(Debug)]
pub struct Cursor<'a> {
    row: &'a Row,
    next: usize,
}

impl Cursor<'_> {
    fn step(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    /// The next column as text.
    ///
    /// # Errors
    /// As [`Row::text`].
    pub fn text(&mut self) -> Result<String> {
        let index = self.step();
        self.row.text(index)
    }

    /// The next column as an integer.
    ///
    /// # Errors
    /// As [`Row::int`].
    pub fn int(&mut self) -> Result<i64> {
        let index = self.step();
        self.row.int(index)
    }

    /// The next column as a truth value.
    ///
    /// # Errors
    /// As [`Row::bool`].
    pub fn bool(&mut self) -> Result<bool> {
        let index = self.step();
        self.row.bool(index)
    }
}
