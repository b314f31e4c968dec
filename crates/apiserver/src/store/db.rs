//! Connections and transactions. Everything above sees only [`Db`], [`Tx`] and [`Row`].

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection as _, Row as _, Sqlite, SqlitePool};

use super::sql::{Dialect, Sql, Value};
use crate::error::{Error, Result};

/// Readers of one SQLite file; WAL lets them work beside the writer.
const READERS: u32 = 4;
/// How long a request waits for a connection before it answers UNAVAILABLE.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// A database, cheap to clone.
#[derive(Clone, Debug)]
pub struct Db {
    writer: SqlitePool,
    reader: SqlitePool,
}

impl Db {
    /// Opens the SQLite file at `path`, creating it and its schema if needed.
    ///
    /// # Errors
    /// When the file cannot be opened or the schema cannot be created.
    pub async fn open_sqlite(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // WAL with NORMAL survives a killed process; only power loss can lose the last commits.
            .synchronous(SqliteSynchronous::Normal)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let failed = |error: sqlx::Error| Error::internal(format!("cannot open database {}", path.display()), error);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            // A full disk ends a transaction inside SQLite while sqlx still counts it as open: such a connection is of no
            // further use.
            .before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(usable) })
            })
            .connect_with(options.clone())
            .await
            .map_err(failed)?;
        let db = Db {
            writer,
            reader: SqlitePoolOptions::new()
                .max_connections(READERS)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .connect_lazy_with(options),
        };
        super::schema::create(&db).await?;
        Ok(db)
    }

    /// The dialect its statements are written in.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        Dialect::Sqlite
    }

    /// A transaction that only reads, on a consistent snapshot.
    ///
    /// # Errors
    /// When no connection is free in time.
    pub async fn read(&self) -> Result<Tx> {
        Ok(Tx { inner: self.reader.begin().await?, dialect: Dialect::Sqlite })
    }

    /// A transaction that writes; it takes the write lock at once, so it never fails half way for a lock.
    ///
    /// # Errors
    /// When no connection is free in time.
    pub async fn write(&self) -> Result<Tx> {
        Ok(Tx { inner: self.writer.begin_with("BEGIN IMMEDIATE").await?, dialect: Dialect::Sqlite })
    }

    /// Closes all connections and checkpoints the write-ahead log.
    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

/// A transaction; dropped without [`Tx::commit`] it rolls back.
#[derive(Debug)]
pub struct Tx {
    inner: sqlx::Transaction<'static, Sqlite>,
    dialect: Dialect,
}

/// Why a statement failed, as far as callers distinguish.
#[derive(Debug)]
pub enum Failure {
    /// A unique key is taken.
    Duplicate,
    /// A foreign key has no target.
    MissingParent,
    /// Anything else.
    Other(Error),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Duplicate => Error::internal("the database failed", "duplicate key"),
            Failure::MissingParent => Error::internal("the database failed", "foreign key has no target"),
            Failure::Other(error) => error,
        }
    }
}

impl Tx {
    /// The dialect to write statements in.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Runs a statement and returns the number of rows that it matched.
    ///
    /// # Errors
    /// [`Failure`] tells duplicates apart.
    pub async fn execute(&mut self, sql: Sql) -> std::result::Result<u64, Failure> {
        let (text, values) = sql.finish();
        match bind(&text, values).execute(&mut *self.inner).await {
            Ok(done) => Ok(done.rows_affected()),
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(Failure::Duplicate),
            Err(sqlx::Error::Database(error)) if error.is_foreign_key_violation() => Err(Failure::MissingParent),
            Err(error) => Err(Failure::Other(error.into())),
        }
    }

    /// All rows of a query.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rows(&mut self, sql: Sql) -> Result<Vec<Row>> {
        let (text, values) = sql.finish();
        Ok(bind(&text, values).fetch_all(&mut *self.inner).await?.into_iter().map(Row).collect())
    }

    /// The first row of a query.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn row(&mut self, sql: Sql) -> Result<Option<Row>> {
        let (text, values) = sql.finish();
        Ok(bind(&text, values).fetch_optional(&mut *self.inner).await?.map(Row))
    }

    /// A count or another single integer; 0 when there is no row.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn number(&mut self, sql: Sql) -> Result<i64> {
        self.row(sql).await?.map_or(Ok(0), |row| row.int(0))
    }

    /// Makes the changes permanent.
    ///
    /// # Errors
    /// When the database fails; nothing is changed then.
    pub async fn commit(self) -> Result<()> {
        Ok(self.inner.commit().await?)
    }
}

fn bind(text: &str, values: Vec<Value>) -> sqlx::query::Query<'static, Sqlite, sqlx::sqlite::SqliteArguments> {
    // Safe: `Sql` puts only constants and placeholders into the text.
    let mut query = sqlx::query::<Sqlite>(AssertSqlSafe(text.to_owned()));
    for value in values {
        query = match value {
            Value::Null => query.bind(None::<String>),
            Value::Int(number) => query.bind(number),
            Value::Bool(truth) => query.bind(truth),
            Value::Text(text) => query.bind(text),
        };
    }
    query
}

/// One row, read by position.
#[derive(Debug)]
pub struct Row(SqliteRow);

impl Row {
    /// Text; NULL reads as empty.
    ///
    /// # Errors
    /// When the column does not exist or is not text.
    pub fn text(&self, index: usize) -> Result<String> {
        Ok(self.0.try_get_unchecked::<Option<String>, _>(index)?.unwrap_or_default())
    }

    /// Integer; NULL reads as 0.
    ///
    /// # Errors
    /// When the column does not exist or is not a number.
    pub fn int(&self, index: usize) -> Result<i64> {
        Ok(self.0.try_get_unchecked::<Option<i64>, _>(index)?.unwrap_or_default())
    }

    /// Truth value; NULL reads as false.
    ///
    /// # Errors
    /// When the column does not exist or is not a truth value.
    pub fn bool(&self, index: usize) -> Result<bool> {
        Ok(self.int(index)? != 0)
    }

    /// Reads the columns one after the other.
    #[must_use]
    pub fn cursor(&self) -> Cursor<'_> {
        Cursor { row: self, next: 0 }
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
