//! The small layer between the store and a database: connections, parameters, rows, dialect.
//!
//! SQL is written once with `?` and back-quotes; what databases disagree on is asked of [`Tx`].

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{
    Arguments as _, AssertSqlSafe, Connection as _, Decode, Row as _, Sqlite, Transaction, TypeInfo as _, ValueRef as _,
};

use crate::failure::{Failure, Outcome};

/// How long a call waits for its turn before it answers UNAVAILABLE.
const TURN: Duration = Duration::from_secs(30);
/// Readers that work beside the writer.
const READERS: u32 = 4;
/// Most rows that one INSERT carries and most ids that one IN list carries.
pub const CHUNK: usize = 256;

/// A value bound to a statement.
#[derive(Clone, Debug, PartialEq)]
pub enum Param {
    /// NULL.
    Null,
    /// Any integer.
    Int(i64),
    /// A double.
    Real(f64),
    /// A string.
    Text(String),
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
        Self::Int(value.into())
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
impl<T: Into<Param>> From<Option<T>> for Param {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// One row of an answer.
#[derive(Clone, Debug)]
pub struct Row(Vec<Param>);

impl Row {
    fn cell(&self, column: usize) -> Outcome<&Param> {
        self.0.get(column).ok_or_else(|| Failure::internal(format!("the database returned no column {column}")))
    }

    /// An integer that may be NULL.
    ///
    /// # Errors
    /// INTERNAL when the column holds something else.
    pub fn int_or_null(&self, column: usize) -> Outcome<Option<i64>> {
        match self.cell(column)? {
            Param::Null => Ok(None),
            Param::Int(value) => Ok(Some(*value)),
            other => Err(Failure::internal(format!("column {column} should hold an integer, holds {other:?}"))),
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
            other @ Param::Text(_) => {
                Err(Failure::internal(format!("column {column} should hold a double, holds {other:?}")))
            }
        }
    }

    /// A string that may be NULL; SQLite's numbers in text columns are printed.
    ///
    /// # Errors
    /// INTERNAL when there is no such column.
    pub fn text_or_null(&self, column: usize) -> Outcome<Option<String>> {
        Ok(match self.cell(column)? {
            Param::Null => None,
            Param::Text(value) => Some(value.clone()),
            Param::Int(value) => Some(value.to_string()),
            Param::Real(value) => Some(value.to_string()),
        })
    }

    /// A string.
    ///
    /// # Errors
    /// INTERNAL when the column is NULL.
    pub fn text(&self, column: usize) -> Outcome<String> {
        self.text_or_null(column)?.ok_or_else(|| Failure::internal(format!("column {column} should not be NULL")))
    }

    fn from_sqlite(row: &SqliteRow) -> Outcome<Self> {
        let broken = |error: sqlx::error::BoxDynError| Failure::internal(format!("cannot read a column: {error}"));
        let mut cells = Vec::with_capacity(row.len());
        for column in 0..row.len() {
            let value = row.try_get_raw(column)?;
            if value.is_null() {
                cells.push(Param::Null);
                continue;
            }
            let kind = value.type_info().name().to_owned();
            cells.push(match kind.as_str() {
                "INTEGER" | "BOOLEAN" => Param::Int(<i64 as Decode<Sqlite>>::decode(value).map_err(broken)?),
                "REAL" => Param::Real(<f64 as Decode<Sqlite>>::decode(value).map_err(broken)?),
                _ => {
                    let bytes = <Vec<u8> as Decode<Sqlite>>::decode(value).map_err(broken)?;
                    Param::Text(String::from_utf8(bytes).map_err(|error| broken(error.into()))?)
                }
            });
        }
        Ok(Self(cells))
    }
}

/// A database with a queue of writers and parallel readers.
#[derive(Clone, Debug)]
pub struct Database {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// One transaction; dropped without [`Tx::commit`] it is rolled back, also when the caller went away.
#[derive(Debug)]
pub enum Tx {
    /// SQLite.
    Sqlite(Transaction<'static, Sqlite>),
}

impl Database {
    /// Opens (and creates) an SQLite file.
    ///
    /// One connection writes: transactions queue for it in order of arrival, so that nobody ever meets SQLITE_BUSY;
    /// the write-ahead log lets readers work on a snapshot meanwhile.
    ///
    /// # Errors
    /// When the file cannot be opened or created.
    pub async fn sqlite(path: &Path) -> Result<Self, sqlx::Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .statement_cache_capacity(512)
            .busy_timeout(TURN)
            .synchronous(SqliteSynchronous::Normal)
            .optimize_on_close(false, None);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(TURN)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            // A full disk ends a transaction inside SQLite while sqlx still counts it as open: such a connection is of no
            // further use.
            .before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(usable) })
            })
            .connect_with(
                options
                    .clone()
                    .create_if_missing(true)
                    .journal_mode(SqliteJournalMode::Wal)
                    // One publication touches dozens of pages; the default folds the log, with two syncs, every 1000.
                    .pragma("wal_autocheckpoint", "16000")
                    .pragma("cache_size", "-16384"),
            )
            .await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(READERS)
            .acquire_timeout(TURN)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_lazy_with(options.pragma("query_only", "on"));
        Ok(Self { writer, readers })
    }

    /// A store that lives in memory and ends with the process.
    ///
    /// # Errors
    /// When SQLite refuses.
    pub async fn memory() -> Result<Self, sqlx::Error> {
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(TURN)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(SqliteConnectOptions::new().in_memory(true).statement_cache_capacity(512))
            .await?;
        Ok(Self { readers: writer.clone(), writer })
    }

    /// Waits for the turn to write.
    ///
    /// # Errors
    /// UNAVAILABLE when the turn does not come.
    pub async fn write(&self) -> Outcome<Tx> {
        Ok(Tx::Sqlite(self.writer.begin_with("BEGIN IMMEDIATE").await?))
    }

    /// A consistent view for reading.
    ///
    /// # Errors
    /// UNAVAILABLE when no reader is free in time.
    pub async fn read(&self) -> Outcome<Tx> {
        Ok(Tx::Sqlite(self.readers.begin().await?))
    }

    /// Closes all connections; SQLite folds its write-ahead log into the file.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

fn sqlite_arguments(params: Vec<Param>) -> Outcome<SqliteArguments> {
    let mut arguments = SqliteArguments::default();
    for param in params {
        match param {
            Param::Null => arguments.add(None::<i64>),
            Param::Int(value) => arguments.add(value),
            Param::Real(value) => arguments.add(value),
            Param::Text(value) => arguments.add(value),
        }
        .map_err(|error| Failure::internal(format!("cannot bind a parameter: {error}")))?;
    }
    Ok(arguments)
}

impl Tx {
    /// Runs a query.
    ///
    /// # Errors
    /// The database's, as [`Failure`] maps them.
    pub async fn query(&mut self, sql: impl Into<Cow<'static, str>>, params: Vec<Param>) -> Outcome<Vec<Row>> {
        match self {
            Self::Sqlite(tx) => {
                let query = sqlx::query_with(AssertSqlSafe(sql.into()), sqlite_arguments(params)?);
                let rows = query.fetch_all(&mut **tx).await?;
                rows.iter().map(Row::from_sqlite).collect()
            }
        }
    }

    /// Runs a statement and returns the id of the row that it inserted, if it inserted one.
    ///
    /// # Errors
    /// The database's, as [`Failure`] maps them: ALREADY_EXISTS for a unique key.
    pub async fn execute(&mut self, sql: impl Into<Cow<'static, str>>, params: Vec<Param>) -> Outcome<i64> {
        match self {
            Self::Sqlite(tx) => {
                let query = sqlx::query_with(AssertSqlSafe(sql.into()), sqlite_arguments(params)?);
                Ok(query.execute(&mut **tx).await?.last_insert_rowid())
            }
        }
    }

    /// Inserts many rows; `head` is `INTO table(columns)`.
    ///
    /// # Errors
    /// As [`Tx::execute`].
    pub async fn insert_rows(&mut self, head: &str, rows: Vec<Vec<Param>>) -> Outcome<()> {
        self.insert_chunks("INSERT", head, rows).await
    }

    /// Inserts the rows whose keys are free and leaves the others alone.
    ///
    /// # Errors
    /// As [`Tx::execute`].
    pub async fn insert_missing(&mut self, head: &str, rows: Vec<Vec<Param>>) -> Outcome<()> {
        let verb = match self {
            Self::Sqlite(_) => "INSERT OR IGNORE",
        };
        self.insert_chunks(verb, head, rows).await
    }

    async fn insert_chunks(&mut self, verb: &str, head: &str, rows: Vec<Vec<Param>>) -> Outcome<()> {
        for chunk in rows.chunks(CHUNK) {
            let Some(width) = chunk.first().map(Vec::len) else { break };
            let row = format!("({})", vec!["?"; width].join(","));
            let sql = format!("{verb} {head} VALUES {}", vec![row.as_str(); chunk.len()].join(","));
            self.execute(sql, chunk.iter().flatten().cloned().collect()).await?;
        }
        Ok(())
    }

    /// Makes the transaction's effects lasting and visible.
    ///
    /// # Errors
    /// The database's; the transaction is then rolled back.
    pub async fn commit(self) -> Outcome<()> {
        match self {
            Self::Sqlite(tx) => Ok(tx.commit().await?),
        }
    }
}

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
