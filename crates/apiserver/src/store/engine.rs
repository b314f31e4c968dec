//! What the three drivers do differently: sending statements, and naming what went wrong.

use std::io;
use std::time::Duration;

use sqlx::error::ErrorKind;
use sqlx::mysql::MySqlDatabaseError;
use sqlx::query::Query;
use sqlx::{
    AssertSqlSafe, Connection as _, Encode, Executor as _, IntoArguments, MySql, MySqlConnection, PgConnection,
    Postgres, Sqlite, SqliteConnection, Transaction, Type,
};

use super::row::Row;
use super::sql::{Dialect, Sql, Value};
use crate::error::Error;

/// How long one statement may take: a list over millions of rows on a slow disk, but not a server that is gone.
const STATEMENT: Duration = Duration::from_secs(60);

/// A transaction of one of the drivers.
#[derive(Debug)]
pub(super) enum Raw {
    Sqlite(Transaction<'static, Sqlite>),
    MySql(Transaction<'static, MySql>),
    Postgres(Transaction<'static, Postgres>),
}

/// What a statement did.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Rows that a change matched.
    pub matched: u64,
    /// Rows that a query found.
    pub rows: Vec<Row>,
}

fn bound<D>(sql: &Sql) -> Query<'static, D, D::Arguments>
where
    D: sqlx::Database,
    D::Arguments: IntoArguments<D>,
    i64: Encode<'static, D> + Type<D>,
    f64: Encode<'static, D> + Type<D>,
    bool: Encode<'static, D> + Type<D>,
    String: Encode<'static, D> + Type<D>,
{
    // Safe: `Sql` puts only constants and placeholders into the text.
    let mut query = sqlx::query::<D>(AssertSqlSafe(sql.text().to_owned()));
    for value in sql.values() {
        query = match value {
            // `Sql` writes NULL out.
            Value::Null => query,
            Value::Int(number) => query.bind(*number),
            Value::Float(number) => query.bind(*number),
            Value::Bool(truth) => query.bind(*truth),
            Value::Text(text) => query.bind(text.clone()),
        };
    }
    query
}

/// Sends a statement to a connection of a driver.
macro_rules! send {
    ($connection:expr, $driver:ty, $row:path, $sql:expr) => {{
        let query = bound::<$driver>($sql);
        if $sql.text().starts_with("SELECT ") {
            let rows = query.fetch_all($connection).await?;
            Ok(Done { matched: 0, rows: rows.into_iter().map($row).collect() })
        } else {
            let done = query.execute($connection).await?;
            Ok(Done { matched: done.rows_affected(), rows: Vec::new() })
        }
    }};
}

impl Raw {
    pub fn dialect(&self) -> Dialect {
        match self {
            Raw::Sqlite(_) => Dialect::Sqlite,
            Raw::MySql(_) => Dialect::MySql,
            Raw::Postgres(_) => Dialect::Postgres,
        }
    }

    pub async fn run(&mut self, sql: &Sql) -> Result<Done, sqlx::Error> {
        let work = async {
            match self {
                Raw::Sqlite(transaction) => send!(&mut **transaction, Sqlite, Row::Sqlite, sql),
                Raw::MySql(transaction) => send!(&mut **transaction, MySql, Row::MySql, sql),
                Raw::Postgres(transaction) => send!(&mut **transaction, Postgres, Row::Postgres, sql),
            }
        };
        tokio::time::timeout(STATEMENT, work).await.unwrap_or_else(|_| {
            Err(sqlx::Error::Io(io::Error::new(io::ErrorKind::TimedOut, "a statement took longer than a minute")))
        })
    }

    pub async fn commit(self) -> Result<(), sqlx::Error> {
        match self {
            Raw::Sqlite(transaction) => transaction.commit().await,
            Raw::MySql(transaction) => transaction.commit().await,
            Raw::Postgres(transaction) => transaction.commit().await,
        }
    }
}

/// A single connection, for work on the schema, which takes as long as it takes.
#[derive(Debug)]
pub(super) enum Link {
    Sqlite(SqliteConnection),
    MySql(MySqlConnection),
    Postgres(PgConnection),
}

impl Link {
    pub fn dialect(&self) -> Dialect {
        match self {
            Link::Sqlite(_) => Dialect::Sqlite,
            Link::MySql(_) => Dialect::MySql,
            Link::Postgres(_) => Dialect::Postgres,
        }
    }

    pub async fn run(&mut self, sql: &Sql) -> Result<Done, sqlx::Error> {
        match self {
            Link::Sqlite(connection) => send!(connection, Sqlite, Row::Sqlite, sql),
            Link::MySql(connection) => send!(connection, MySql, Row::MySql, sql),
            Link::Postgres(connection) => send!(connection, Postgres, Row::Postgres, sql),
        }
    }

    /// Runs a statement without values.
    pub async fn text(&mut self, text: &str) -> Result<(), sqlx::Error> {
        let text = AssertSqlSafe(text.to_owned());
        match self {
            Link::Sqlite(connection) => connection.execute(text).await.map(|_| ()),
            Link::MySql(connection) => connection.execute(text).await.map(|_| ()),
            Link::Postgres(connection) => connection.execute(text).await.map(|_| ()),
        }
    }

    pub async fn close(self) -> Result<(), sqlx::Error> {
        match self {
            Link::Sqlite(connection) => connection.close().await,
            Link::MySql(connection) => connection.close().await,
            Link::Postgres(connection) => connection.close().await,
        }
    }
}

/// What went wrong, as far as it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A unique key is taken.
    Duplicate,
    /// A foreign key has no target.
    MissingParent,
    /// The same again may succeed: deadlock, serialization failure, lost connection, server that starts or stops.
    Transient,
    /// No connection or no lock in time.
    Busy,
    /// The database does not take such a value: too long, or not encodable.
    Value,
    /// The database to connect to does not exist.
    NoDatabase,
    /// It exists already.
    Exists,
    /// Anything else.
    Other,
}

/// 1040 and 1203: too many connections. 1053: server shuts down. 1205 and 1213: lock wait and deadlock. 1927: connection
/// killed. 1047, 1158 to 1161: network.
const MYSQL_TRANSIENT: [u16; 11] = [1040, 1047, 1053, 1158, 1159, 1160, 1161, 1203, 1205, 1213, 1927];

fn mysql(error: &MySqlDatabaseError) -> Fault {
    match error.number() {
        number if MYSQL_TRANSIENT.contains(&number) => Fault::Transient,
        1007 => Fault::Exists,
        1049 => Fault::NoDatabase,
        // Out of range, wrong for the character set, too long.
        1264 | 1366 | 1406 => Fault::Value,
        _ => Fault::Other,
    }
}

/// `code` is the SQLSTATE.
fn postgres(code: &str) -> Fault {
    match code {
        // Serialization failure, deadlock, too many connections, server that stops or starts, lock not available.
        "40001" | "40P01" | "53300" | "57P01" | "57P02" | "57P03" | "55P03" => Fault::Transient,
        "3D000" => Fault::NoDatabase,
        // Duplicate database, and two that create it at the same time.
        "42P04" | "23505" => Fault::Exists,
        _ if code.starts_with("08") => Fault::Transient,
        _ if code.starts_with("22") => Fault::Value,
        _ => Fault::Other,
    }
}

/// Classifies an error of any driver.
pub(super) fn fault(error: &sqlx::Error) -> Fault {
    match error {
        sqlx::Error::Database(error) => match error.kind() {
            ErrorKind::UniqueViolation => Fault::Duplicate,
            ErrorKind::ForeignKeyViolation => Fault::MissingParent,
            _ => {
                if let Some(error) = error.try_downcast_ref::<MySqlDatabaseError>() {
                    return mysql(error);
                }
                let code = error.code().unwrap_or_default();
                if error.try_downcast_ref::<sqlx::sqlite::SqliteError>().is_some() {
                    // SQLITE_BUSY and SQLITE_LOCKED with all their extensions.
                    return match code.parse::<u32>().map(|code| code & 0xff) {
                        Ok(5 | 6) => Fault::Busy,
                        _ => Fault::Other,
                    };
                }
                postgres(&code)
            }
        },
        sqlx::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => Fault::Busy,
        sqlx::Error::Io(_) => Fault::Transient,
        sqlx::Error::PoolTimedOut => Fault::Busy,
        _ => Fault::Other,
    }
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        match fault(&error) {
            Fault::Busy => Error::unavailable("the database is busy", error),
            Fault::Transient => Error::unavailable("the database cannot be reached", error),
            Fault::Value => Error::invalid_because("the database does not take a value", error),
            _ => Error::internal("the database failed", error),
        }
    }
}
