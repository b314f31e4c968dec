//! One transaction, over any database.

use std::borrow::Cow;

use sqlx::mysql::MySqlArguments;
use sqlx::postgres::PgArguments;
use sqlx::{Arguments as _, AssertSqlSafe, MySql, Postgres, Transaction};

use super::value::{CHUNK, IntoRow, Param, Row, id_lists};
use super::{Dialect, sqlite};
use crate::failure::{Failure, Outcome};
use base64::Engine as _;

/// The name of MySQL's and the number of PostgreSQL's lock that servers take while they create the tables.
const SCHEMA_LOCK: (&str, i64) = ("kfp-metadata schema", 0x6b66_705f_6d64);

enum Inner {
    Sqlite(rusqlite::Connection),
    MySql { tx: Transaction<'static, MySql>, packet: usize },
    Postgres(Transaction<'static, Postgres>),
}

/// One transaction; dropped without [`Tx::commit`] it is rolled back, also when the caller went away.
pub struct Tx {
    inner: Inner,
    inserted: Option<Inserted>,
}

/// A row that a transaction made: where it is, the transaction was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inserted {
    /// The table.
    pub table: &'static str,
    /// The row's id.
    pub id: i64,
}

fn unbindable(error: sqlx::error::BoxDynError) -> Failure {
    Failure::internal(format!("cannot bind a parameter: {error}"))
}

fn mysql_arguments(params: Vec<Param>) -> Outcome<MySqlArguments> {
    let mut arguments = MySqlArguments::default();
    for param in params {
        match param {
            Param::Null => arguments.add(None::<i64>),
            Param::Bool(value) => arguments.add(value),
            Param::Int(value) => arguments.add(value),
            Param::Real(value) => arguments.add(value),
            Param::Text(value) => arguments.add(value),
            Param::Bytes(value) => arguments.add(super::value::BASE64.encode(value)),
        }
        .map_err(unbindable)?;
    }
    Ok(arguments)
}

fn postgres_arguments(params: Vec<Param>) -> Outcome<PgArguments> {
    let mut arguments = PgArguments::default();
    for param in params {
        match param {
            Param::Null => arguments.add(None::<i64>),
            Param::Bool(value) => arguments.add(value),
            Param::Int(value) => arguments.add(value),
            Param::Real(value) => arguments.add(value),
            Param::Text(value) => arguments.add(value),
            Param::Bytes(value) => arguments.add(value),
        }
        .map_err(unbindable)?;
    }
    Ok(arguments)
}

fn into_rows(rows: Vec<impl IntoRow>) -> Outcome<Vec<Row>> {
    rows.into_iter().map(IntoRow::into_row).collect()
}

impl Tx {
    pub(super) fn sqlite(connection: rusqlite::Connection) -> Self {
        Self { inner: Inner::Sqlite(connection), inserted: None }
    }

    pub(super) fn mysql(tx: Transaction<'static, MySql>, packet: usize) -> Self {
        Self { inner: Inner::MySql { tx, packet }, inserted: None }
    }

    pub(super) fn postgres(tx: Transaction<'static, Postgres>) -> Self {
        Self { inner: Inner::Postgres(tx), inserted: None }
    }

    /// The database's language.
    pub fn dialect(&self) -> Dialect {
        match self.inner {
            Inner::Sqlite(_) => Dialect::Sqlite,
            Inner::MySql { .. } => Dialect::MySql,
            Inner::Postgres(_) => Dialect::Postgres,
        }
    }

    /// The row with an id of its own that was inserted last.
    pub(super) fn inserted(&self) -> Option<Inserted> {
        self.inserted
    }

    /// Begins, ends or marks SQLite's transaction.
    pub(super) fn control(&self, sql: &'static str) -> Outcome<()> {
        match &self.inner {
            Inner::Sqlite(connection) => sqlite::run(connection, sql, &[]).map(drop),
            _ => Err(Failure::internal("this transaction is not SQLite's")),
        }
    }

    /// Whether SQLite has ended the transaction, as it does when it cannot write.
    pub(super) fn is_over(&self) -> bool {
        matches!(&self.inner, Inner::Sqlite(connection) if connection.is_autocommit())
    }

    /// Runs a query.
    ///
    /// # Errors
    /// The database's, as [`Failure`] maps them.
    pub async fn query(&mut self, sql: impl Into<Cow<'static, str>>, params: Vec<Param>) -> Outcome<Vec<Row>> {
        let (sql, params) = self.dialect().statement(sql.into(), params);
        match &mut self.inner {
            Inner::Sqlite(connection) => sqlite::run(connection, &sql, &params),
            Inner::MySql { tx, .. } => {
                let query = sqlx::query_with(AssertSqlSafe(sql), mysql_arguments(params)?);
                into_rows(query.fetch_all(&mut **tx).await?)
            }
            Inner::Postgres(tx) => {
                let query = sqlx::query_with(AssertSqlSafe(sql), postgres_arguments(params)?);
                into_rows(query.fetch_all(&mut **tx).await?)
            }
        }
    }

    /// Runs a statement that answers nothing.
    ///
    /// # Errors
    /// The database's, as [`Failure`] maps them: ALREADY_EXISTS for a unique key.
    pub async fn execute(&mut self, sql: impl Into<Cow<'static, str>>, params: Vec<Param>) -> Outcome<()> {
        self.fits(&params)?;
        self.query(sql, params).await.map(drop)
    }

    /// MySQL closes the connection when a packet is larger than it allows, which would look like a broken network.
    fn fits(&self, params: &[Param]) -> Outcome<()> {
        let Inner::MySql { packet, .. } = self.inner else { return Ok(()) };
        let size: usize = params.iter().map(Param::size).sum();
        if size < packet.saturating_sub(64 * 1024) {
            return Ok(());
        }
        Err(Failure::invalid(format!(
            "{size} bytes are too much for the database's max_allowed_packet of {packet} bytes"
        )))
    }

    /// Inserts a row into a table whose rows have ids and returns the new one's.
    ///
    /// # Errors
    /// As [`Tx::execute`].
    pub async fn insert(&mut self, table: &'static str, columns: &[&str], params: Vec<Param>) -> Outcome<i64> {
        self.fits(&params)?;
        let returning = self.dialect().returning_id();
        let places = vec!["?"; columns.len()].join(",");
        let sql = format!("INSERT INTO `{table}`(`{}`) VALUES ({places}){returning}", columns.join("`, `"));
        let id = match &mut self.inner {
            Inner::Sqlite(connection) => {
                sqlite::run(connection, &sql, &params)?;
                connection.last_insert_rowid()
            }
            Inner::MySql { tx, .. } => {
                let query = sqlx::query_with(AssertSqlSafe(sql), mysql_arguments(params)?);
                let id = query.execute(&mut **tx).await?.last_insert_id();
                i64::try_from(id).map_err(|_| Failure::internal("the new row's id has more than 63 bits"))?
            }
            Inner::Postgres(_) => {
                let rows = self.query(sql, params).await?;
                rows.first().ok_or_else(|| Failure::internal("the database returned no id"))?.int(0)?
            }
        };
        self.inserted = Some(Inserted { table, id });
        Ok(id)
    }

    /// Inserts many rows; `head` is `INTO table(columns)`.
    ///
    /// # Errors
    /// As [`Tx::execute`].
    pub async fn insert_rows(&mut self, head: &str, rows: Vec<Vec<Param>>) -> Outcome<()> {
        self.insert_chunks(("INSERT", ""), head, rows).await
    }

    /// Inserts the rows whose keys are free and leaves the others alone.
    ///
    /// # Errors
    /// As [`Tx::execute`].
    pub async fn insert_missing(&mut self, head: &str, rows: Vec<Vec<Param>>) -> Outcome<()> {
        self.insert_chunks(self.dialect().insert_missing(), head, rows).await
    }

    async fn insert_chunks(&mut self, words: (&str, &str), head: &str, rows: Vec<Vec<Param>>) -> Outcome<()> {
        let (verb, end) = words;
        for chunk in rows.chunks(CHUNK) {
            let Some(width) = chunk.first().map(Vec::len) else { break };
            let row = format!("({})", vec!["?"; width].join(","));
            let sql = format!("{verb} {head} VALUES {}{end}", vec![row.as_str(); chunk.len()].join(","));
            self.execute(sql, chunk.iter().flatten().cloned().collect()).await?;
        }
        Ok(())
    }

    /// Waits until nobody else changes the rows with these ids and keeps it so until the end of the transaction. What
    /// was read before may have changed.
    ///
    /// # Errors
    /// ABORTED when the wait is too long or circular.
    pub async fn lock(&mut self, table: &str, ids: &[i64]) -> Outcome<()> {
        if self.dialect().writes_alone() {
            return Ok(());
        }
        for (list, params) in id_lists(ids) {
            // In one order for all, so that nobody waits for each other.
            let sql = format!("SELECT `id` FROM `{table}` WHERE `id` IN {list} ORDER BY `id` FOR UPDATE");
            self.query(sql, params).await?;
        }
        Ok(())
    }

    /// As [`Tx::lock`], for what no unique key protects: the types, and the absence of cycles among contexts.
    ///
    /// # Errors
    /// As [`Tx::lock`].
    pub async fn lock_rules(&mut self) -> Outcome<()> {
        if self.dialect().writes_alone() {
            return Ok(());
        }
        self.query("SELECT `schema_version` FROM `MLMDEnv` FOR UPDATE", vec![]).await.map(drop)
    }

    /// Waits until no other server of ours creates tables in this database.
    ///
    /// # Errors
    /// UNAVAILABLE when the wait is too long.
    pub async fn lock_schema(&mut self) -> Outcome<()> {
        let (name, number) = SCHEMA_LOCK;
        match self.dialect() {
            Dialect::Sqlite => Ok(()),
            // Outlives the commits that come with created tables.
            Dialect::MySql => {
                // MySQL allows 64 characters.
                let sql = "SELECT GET_LOCK(CONCAT(?, MD5(DATABASE())), 30)";
                let rows = self.query(sql, vec![name.into()]).await?;
                let got = rows.first().map(|row| row.int_or_null(0)).transpose()?.flatten();
                if got == Some(1) { Ok(()) } else { Err(Failure::unavailable("another server creates the tables")) }
            }
            Dialect::Postgres => {
                // An index over millions of rows takes its time.
                self.execute("SET LOCAL statement_timeout = 0", vec![]).await?;
                self.query("SELECT pg_advisory_xact_lock(?)::text", vec![number.into()]).await.map(drop)
            }
        }
    }

    /// Gives back what [`Tx::lock_schema`] took and the end of the transaction does not.
    ///
    /// # Errors
    /// The database's.
    pub async fn unlock_schema(&mut self) -> Outcome<()> {
        if self.dialect() == Dialect::MySql {
            self.query("SELECT RELEASE_LOCK(CONCAT(?, MD5(DATABASE())))", vec![SCHEMA_LOCK.0.into()]).await?;
        }
        Ok(())
    }

    /// Makes the transaction's effects lasting and visible. SQLite's is committed by its thread.
    ///
    /// # Errors
    /// The database's; the transaction is then rolled back, unless the connection broke.
    pub(super) async fn commit(self) -> Outcome<()> {
        match self.inner {
            Inner::Sqlite(_) => Ok(()),
            Inner::MySql { tx, .. } => Ok(tx.commit().await?),
            Inner::Postgres(tx) => Ok(tx.commit().await?),
        }
    }
}
