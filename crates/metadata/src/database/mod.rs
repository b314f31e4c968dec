//! The small layer between the store and a database: connections, transactions, parameters, rows, dialect.
//!
//! A call is a function of a transaction. It may run more than once: what others or a broken connection spoiled is
//! tried again here and nowhere else.

mod connect;
mod dialect;
mod sqlite;
mod tx;
mod value;

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use sqlx::{MySqlPool, PgPool};

pub use self::dialect::Dialect;
use self::sqlite::Worker;
use self::tx::Inserted;
pub use self::tx::Tx;
pub use self::value::{BASE64, Param, Row, id_lists, text_lists};
use crate::failure::{Again, Failure, Outcome};

/// How long a call waits for its turn before it answers UNAVAILABLE, and how long it is tried again.
const TURN: Duration = Duration::from_secs(30);
/// How often a call may lose against others.
const CONFLICTS: u32 = 12;
/// First and longest pause before a call is tried again.
const PAUSES: (Duration, Duration) = (Duration::from_millis(4), Duration::from_secs(1));

/// What a caller wants done in a transaction; it may be done several times, and counts once.
pub type Call<T> = Box<dyn for<'t> Fn(&'t mut Tx) -> BoxFuture<'t, Outcome<T>> + Send + Sync>;

/// A database that is open.
#[derive(Clone, Debug)]
pub struct Database {
    pools: Pools,
}

#[derive(Clone, Debug)]
enum Pools {
    /// Without readers when it lives in memory, which only one connection sees.
    Sqlite {
        writer: Worker,
        readers: Option<Worker>,
    },
    MySql {
        writers: MySqlPool,
        readers: MySqlPool,
        packet: usize,
    },
    Postgres {
        writers: PgPool,
        readers: PgPool,
    },
}

/// What a transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Write,
    Read,
}

impl Database {
    /// Runs a call in a transaction of its own: all of it happens or nothing, also when the caller goes away.
    ///
    /// # Errors
    /// The call's own; ABORTED or UNAVAILABLE when other transactions or the database's absence keep spoiling it,
    /// UNKNOWN when it cannot be found out whether it was committed.
    pub async fn write<T: Send + 'static>(&self, call: Call<T>) -> Outcome<T> {
        match &self.pools {
            Pools::Sqlite { writer, .. } => writer.run(call).await,
            _ => self.tried(Purpose::Write, &call).await,
        }
    }

    /// Runs a call on one consistent view.
    ///
    /// # Errors
    /// As [`Database::write`].
    pub async fn read<T: Send + 'static>(&self, call: Call<T>) -> Outcome<T> {
        match &self.pools {
            Pools::Sqlite { writer, readers } => readers.as_ref().unwrap_or(writer).run(call).await,
            _ => self.tried(Purpose::Read, &call).await,
        }
    }

    /// Closes all connections; SQLite folds its write-ahead log into the file.
    pub async fn close(&self) {
        match &self.pools {
            Pools::Sqlite { writer, readers } => {
                if let Some(readers) = readers {
                    readers.close().await;
                }
                writer.close().await;
            }
            Pools::MySql { writers, readers, .. } => {
                readers.close().await;
                writers.close().await;
            }
            Pools::Postgres { writers, readers } => {
                readers.close().await;
                writers.close().await;
            }
        }
    }

    async fn begin(&self, purpose: Purpose) -> Outcome<Tx> {
        Ok(match (&self.pools, purpose) {
            (Pools::Sqlite { .. }, _) => return Err(Failure::internal("SQLite's transactions belong to its threads")),
            (Pools::MySql { writers, packet, .. }, Purpose::Write) => Tx::mysql(writers.begin().await?, *packet),
            (Pools::MySql { readers, packet, .. }, Purpose::Read) => Tx::mysql(readers.begin().await?, *packet),
            (Pools::Postgres { writers, .. }, Purpose::Write) => Tx::postgres(writers.begin().await?),
            (Pools::Postgres { readers, .. }, Purpose::Read) => {
                Tx::postgres(readers.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?)
            }
        })
    }

    /// Tries until it works, fails for good, or there is no time left.
    async fn tried<T>(&self, purpose: Purpose, call: &Call<T>) -> Outcome<T> {
        let start = Instant::now();
        let mut pause = PAUSES.0;
        let mut conflicts = 0;
        loop {
            let failure = match self.once(purpose, call).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            conflicts += u32::from(failure.again == Again::Conflict);
            if failure.again == Again::Never || conflicts == CONFLICTS || start.elapsed() >= TURN {
                return Err(failure);
            }
            tracing::debug!(code = ?failure.code, "trying again: {failure}");
            tokio::time::sleep(jittered(pause)).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn once<T>(&self, purpose: Purpose, call: &Call<T>) -> Outcome<T> {
        let mut tx = self.begin(purpose).await?;
        let answer = call(&mut tx).await?;
        let inserted = tx.inserted();
        let Err(failure) = tx.commit().await else { return Ok(answer) };
        // Without the answer to COMMIT only the database knows. What inserted nothing can be done twice.
        match inserted {
            Some(inserted) if failure.again == Again::Lost => {
                if self.holds(inserted).await? {
                    Ok(answer)
                } else {
                    Err(failure)
                }
            }
            _ => Err(failure),
        }
    }

    /// Whether a row exists.
    async fn holds(&self, row: Inserted) -> Outcome<bool> {
        let Inserted { table, id } = row;
        let call: Call<bool> = Box::new(move |tx| {
            Box::pin(async move {
                let sql = format!("SELECT `id` FROM `{table}` WHERE `id` = ?");
                Ok(!tx.query(sql, vec![id.into()]).await?.is_empty())
            })
        });
        let held = Box::pin(self.tried(Purpose::Read, &call)).await;
        held.map_err(|failure| Failure {
            code: tonic::Code::Unknown,
            message: format!("the connection broke while the changes were committed, and then: {failure}"),
            again: Again::Never,
        })
    }
}

/// Between half and one and a half times the pause, so that those who clashed do not clash again.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(0_u8) % 1024;
    pause / 2 + pause * u32::try_from(random).unwrap_or_default() / 1024
}
