//! Databases and transactions. Everything above sees only [`Db`], [`Tx`] and [`Row`].

use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sqlx::{MySql, Pool, Postgres, Sqlite};

use super::engine::{Done, Fault, Raw, fault};
pub use super::row::{Cursor, Row};
use super::sql::{Change, Dialect, Sql};
use super::totals::{Counted, Known, Totals, key, slow};
use crate::error::{Error, Result};

/// How often a transaction is started anew after deadlocks and lost connections.
const ATTEMPTS: u32 = 5;
/// Pause before the first new start; it doubles each time.
const PAUSE: Duration = Duration::from_millis(10);

/// How long a total is believed where other servers may share the database.
const BELIEVED: Duration = Duration::from_secs(1);
/// How often a snapshot without a commit under way is looked for, to count on it.
const SNAPSHOTS: u32 = 8;

/// Connections that read on snapshots, and connections that write.
#[derive(Debug)]
pub(super) struct Pools<D: sqlx::Database> {
    pub reader: Pool<D>,
    pub writer: Pool<D>,
}

/// The connections of one engine.
#[derive(Debug)]
pub(super) enum Connections {
    Sqlite(Pools<Sqlite>),
    MySql(Pools<MySql>),
    Postgres(Pools<Postgres>),
}

#[derive(Debug)]
struct Inner {
    connections: Connections,
    totals: Totals,
    /// Held while a total is counted beside requests: one at a time.
    renewal: tokio::sync::Mutex<()>,
    statements: AtomicU64,
}

/// A database, cheap to clone.
#[derive(Clone, Debug)]
pub struct Db(Arc<Inner>);

impl Db {
    pub(super) fn new(connections: Connections) -> Self {
        // A file has one server.
        let believed = if matches!(connections, Connections::Sqlite(_)) { Duration::MAX } else { BELIEVED };
        Db(Arc::new(Inner {
            connections,
            totals: Totals::new(believed),
            renewal: tokio::sync::Mutex::default(),
            statements: AtomicU64::new(0),
        }))
    }

    /// The dialect its statements are written in.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        match &self.0.connections {
            Connections::Sqlite(_) => Dialect::Sqlite,
            Connections::MySql(_) => Dialect::MySql,
            Connections::Postgres(_) => Dialect::Postgres,
        }
    }

    /// A transaction that only reads, on a consistent snapshot.
    ///
    /// # Errors
    /// When no connection is free in time.
    pub async fn read(&self) -> Result<Tx> {
        Tx::begin(self, false).await
    }

    /// A transaction that writes. On SQLite it takes the write lock at once, so it never fails half way for a lock;
    /// elsewhere [`Tx::row`] locks what it finds.
    ///
    /// # Errors
    /// When no connection is free in time.
    pub async fn write(&self) -> Result<Tx> {
        Tx::begin(self, true).await
    }

    /// Number of statements sent for requests so far, for tests and benchmarks.
    #[must_use]
    pub fn statements(&self) -> u64 {
        self.0.statements.load(Ordering::Relaxed)
    }

    /// Closes all connections; SQLite's write-ahead log is checkpointed.
    pub async fn close(&self) {
        macro_rules! close {
            ($pools:expr) => {{
                $pools.reader.close().await;
                $pools.writer.close().await;
            }};
        }
        match &self.0.connections {
            Connections::Sqlite(pools) => close!(pools),
            Connections::MySql(pools) => close!(pools),
            Connections::Postgres(pools) => close!(pools),
        }
    }

    /// Counts a total anew beside the requests, unless that is under way.
    fn recount(&self, key: String, counted: Counted, sql: Sql) {
        let db = self.clone();
        tokio::spawn(async move {
            let Some(_renewal) = db.0.totals.renew(key.clone()) else { return };
            let _one = db.0.renewal.lock().await;
            if let Err(error) = db.counted(key, counted, sql).await {
                tracing::debug!(%error, "a total could not be counted");
            }
        });
    }

    async fn counted(&self, key: String, counted: Counted, sql: Sql) -> Result<()> {
        for attempt in 1..=SNAPSHOTS {
            let mut tx = self.read().await?;
            tx.beside = true;
            // Whatever is read first makes the snapshot; this takes no time in which others could commit.
            let mut first = Sql::new(tx.dialect());
            first.push("SELECT 1 FROM ").ident(counted.table).push(" LIMIT 1");
            tx.number(first).await?;
            let restarts = tx.restarts;
            if let Some(count) = self.0.totals.count(counted.clone(), tx.version) {
                let begin = Instant::now();
                let found = tx.number(sql).await?;
                if tx.restarts == restarts {
                    count.finish(key, found, begin.elapsed());
                }
                return Ok(());
            }
            drop(tx);
            tokio::time::sleep(random(PAUSE * attempt)).await;
        }
        Ok(())
    }

    async fn begin(&self, writes: bool) -> Result<Raw, sqlx::Error> {
        Ok(match &self.0.connections {
            // The write lock at once, instead of a failure when the first statement writes.
            Connections::Sqlite(pools) if writes => Raw::Sqlite(pools.writer.begin_with("BEGIN IMMEDIATE").await?),
            Connections::Sqlite(pools) => Raw::Sqlite(pools.reader.begin().await?),
            Connections::MySql(pools) if writes => Raw::MySql(pools.writer.begin().await?),
            Connections::MySql(pools) => {
                Raw::MySql(pools.reader.begin_with("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?)
            }
            Connections::Postgres(pools) if writes => Raw::Postgres(pools.writer.begin().await?),
            Connections::Postgres(pools) => {
                Raw::Postgres(pools.reader.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
            }
        })
    }
}

/// A transaction; dropped without [`Tx::commit`] it rolls back.
///
/// Deadlocks, serialization failures and lost connections end a transaction on the server. It is then started anew here:
/// the statements so far are run again, and as long as each has the outcome that the caller has already seen, the
/// caller goes on without noticing. This is the only place that retries.
#[derive(Debug)]
pub struct Tx {
    db: Db,
    raw: Raw,
    writes: bool,
    /// What was done so far, with a digest of its outcome. Empty on SQLite, whose transactions are never ended.
    done: Vec<(Sql, u64)>,
    changes: Vec<Change>,
    version: u64,
    restarts: u32,
    /// Whether something was read or written: the snapshot is taken then.
    begun: bool,
    /// Not for a request.
    beside: bool,
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

fn digest(done: &Done) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(done.matched);
    hasher.write_usize(done.rows.len());
    for row in &done.rows {
        row.digest(&mut hasher);
    }
    hasher.finish()
}

impl Tx {
    async fn begin(db: &Db, writes: bool) -> Result<Self> {
        let version = db.0.totals.version();
        let mut restarts = 0;
        let raw = loop {
            match db.begin(writes).await {
                Ok(raw) => break raw,
                Err(error) if fault(&error) == Fault::Transient && restarts < ATTEMPTS => {
                    restarts += 1;
                    pause(restarts, &error).await;
                }
                Err(error) => return Err(error.into()),
            }
        };
        let db = db.clone();
        Ok(Tx {
            db,
            raw,
            writes,
            done: Vec::new(),
            changes: Vec::new(),
            version,
            restarts,
            begun: false,
            beside: false,
        })
    }

    /// The dialect to write statements in.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.raw.dialect()
    }

    async fn run(&mut self, sql: Sql) -> Result<Done, Failure> {
        if let Some(misfit) = sql.misfit() {
            return Err(Failure::Other(Error::invalid(misfit)));
        }
        loop {
            if !self.beside {
                self.db.0.statements.fetch_add(1, Ordering::Relaxed);
            }
            let error = match self.raw.run(&sql).await {
                Ok(done) => {
                    self.begun = true;
                    if matches!(sql.change(), Change::Insert(..)) && done.matched == 0 {
                        return Err(Failure::Duplicate);
                    }
                    if *sql.change() != Change::None {
                        self.changes.push(sql.change().clone());
                    }
                    if self.dialect() != Dialect::Sqlite {
                        let digest = digest(&done);
                        self.done.push((sql, digest));
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            match fault(&error) {
                Fault::Duplicate => return Err(Failure::Duplicate),
                Fault::MissingParent => return Err(Failure::MissingParent),
                Fault::Transient if self.dialect() != Dialect::Sqlite => {
                    self.restart(error).await.map_err(Failure::Other)?;
                }
                _ => return Err(Failure::Other(error.into())),
            }
        }
    }

    /// Starts anew and repeats what was done.
    async fn restart(&mut self, mut error: sqlx::Error) -> Result<()> {
        'again: loop {
            if self.restarts == ATTEMPTS || fault(&error) != Fault::Transient {
                return Err(error.into());
            }
            self.restarts += 1;
            pause(self.restarts, &error).await;
            match self.db.begin(self.writes).await {
                Ok(raw) => self.raw = raw,
                Err(next) => {
                    error = next;
                    continue;
                }
            }
            for (sql, outcome) in &self.done {
                match self.raw.run(sql).await {
                    Ok(done) if digest(&done) == *outcome => {}
                    Ok(_) => {
                        return Err(Error::unavailable("another request changed the same data; try again", error));
                    }
                    Err(next) => {
                        error = next;
                        continue 'again;
                    }
                }
            }
            return Ok(());
        }
    }

    /// Runs a statement and returns the number of rows that it matched.
    ///
    /// # Errors
    /// [`Failure`] tells duplicates apart; the transaction can go on after them.
    pub async fn execute(&mut self, sql: Sql) -> Result<u64, Failure> {
        Ok(self.run(sql).await?.matched)
    }

    /// All rows of a query.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn rows(&mut self, sql: Sql) -> Result<Vec<Row>> {
        Ok(self.run(sql).await?.rows)
    }

    /// The first row of a query, which is locked until the end of a transaction that writes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn row(&mut self, mut sql: Sql) -> Result<Option<Row>> {
        if self.writes {
            sql.lock();
        }
        Ok(self.rows(sql).await?.into_iter().next())
    }

    /// A count or another single integer; 0 when there is no row.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn number(&mut self, sql: Sql) -> Result<i64> {
        self.rows(sql).await?.first().map_or(Ok(0), |row| row.int(0))
    }

    /// The number of rows that a list has in all; `sql` counts them. One that takes long to count may be up to ten
    /// minutes old as far as other programs changed the database; what this server changes is in it at once.
    ///
    /// # Errors
    /// When the database fails.
    pub(super) async fn total(&mut self, counted: Counted, sql: Sql) -> Result<i64> {
        if self.writes {
            return self.number(sql).await;
        }
        let db = self.db.clone();
        let (totals, key) = (&db.0.totals, key(&sql));
        match totals.get(&key) {
            Known::Fresh(total) => return Ok(total),
            Known::Old(total) => {
                db.recount(key, counted, sql);
                return Ok(total);
            }
            Known::Nothing => {}
        }
        let (begin, restarts) = (Instant::now(), self.restarts);
        let count = if self.begun { totals.count(counted.clone(), self.version) } else { None };
        let total = self.number(sql.clone()).await?;
        let took = begin.elapsed();
        // After a new start the snapshot is another one.
        let count = count.filter(|_| self.restarts == restarts);
        match count.or_else(|| totals.count(counted.clone(), self.version)) {
            Some(count) => count.finish(key, total, took),
            None if slow(took) => db.recount(key, counted, sql),
            None => {}
        }
        Ok(total)
    }

    /// Makes the changes permanent.
    ///
    /// # Errors
    /// When the database fails. Nothing is changed then, except that nobody knows when the connection is lost just here.
    pub async fn commit(self) -> Result<()> {
        let commit = self.db.0.totals.committing(self.changes);
        self.raw.commit().await?;
        commit.finish();
        Ok(())
    }
}

async fn pause(restarts: u32, error: &sqlx::Error) {
    tracing::debug!(restarts, %error, "a transaction starts anew");
    tokio::time::sleep(random(PAUSE * (1 << restarts.min(10)))).await;
}

/// Between one and two times the pause, so that two that met do not meet again.
fn random(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0)
}
