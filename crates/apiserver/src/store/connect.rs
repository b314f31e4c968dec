//! Opening a database: waiting for its server, creating it, bringing its schema up to date.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions, MySqlSslMode};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgSslMode};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, MySqlPool, PgPool, Sqlite};

use super::Db;
use super::db::{Connections, Pools};
use super::engine::{Fault, Link, fault};
use super::schema;
use super::settings::{Database, Server, Tls};
use super::sql::Dialect;
use crate::error::{Error, Result};

/// Readers of one SQLite file; WAL lets them work beside the writer.
const SQLITE_READERS: u32 = 4;
/// Connections to a server for each of reading and writing. More only wait for each other inside the server, and three
/// replicas stay below the 100 that PostgreSQL allows by default.
const SERVER_CONNECTIONS: u32 = 12;
/// How long a request waits for a connection before it answers UNAVAILABLE.
const ACQUIRE: Duration = Duration::from_secs(30);
/// How long one attempt to connect may take.
const ATTEMPT: Duration = Duration::from_secs(10);
/// Pause after the first failed attempt; each one is half as long again.
const PAUSE: Duration = Duration::from_millis(500);
/// Longest pause, so that a server that is back is noticed soon.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

impl Db {
    /// Opens the database, creating it and its schema if needed. Servers are waited for.
    ///
    /// # Errors
    /// When it cannot be reached in the time that the settings allow, or its schema cannot be used.
    pub async fn open(database: &Database) -> Result<Self> {
        let mut link = patiently(database).await?;
        schema::bring_up_to_date(&mut link).await?;
        let closed = link.close().await;
        closed.map_err(|error| Error::internal(format!("cannot use database {database}"), error))?;
        Ok(Db::new(match database {
            Database::Sqlite(path) => Connections::Sqlite(sqlite_pools(path)),
            Database::MySql(server) => Connections::MySql(Pools {
                reader: mysql_pool(server, "REPEATABLE READ"),
                writer: mysql_pool(server, "READ COMMITTED"),
            }),
            Database::Postgres(server) => {
                Connections::Postgres(Pools { reader: postgres_pool(server), writer: postgres_pool(server) })
            }
        }))
    }
}

/// Connects, again and again as long as the settings allow.
async fn patiently(database: &Database) -> Result<Link> {
    let patience = match database {
        Database::Sqlite(_) => Duration::ZERO,
        Database::MySql(server) | Database::Postgres(server) => server.patience,
    };
    let start = Instant::now();
    let mut pause = PAUSE;
    loop {
        let attempt = tokio::time::timeout(ATTEMPT, connect(database)).await;
        let error = match attempt.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        let waited = start.elapsed();
        if waited + pause > patience {
            let error = match error {
                sqlx::Error::PoolTimedOut => format!("no answer within {} s", ATTEMPT.as_secs()),
                other => other.to_string(),
            };
            return Err(match database {
                Database::Sqlite(_) => Error::internal(format!("cannot open database {database}"), error),
                _ => Error::unavailable(
                    format!("database {database} could not be reached for {} s", waited.as_secs()),
                    error,
                ),
            });
        }
        tracing::warn!(%database, %error, "the database cannot be used yet; trying again");
        tokio::time::sleep(pause).await;
        pause = pause.mul_f64(1.5).min(LONGEST_PAUSE);
    }
}

/// Connects, and creates a database that does not exist. Existing ones need no rights beyond their own tables.
async fn connect(database: &Database) -> Result<Link, sqlx::Error> {
    match database {
        Database::Sqlite(path) => Ok(Link::Sqlite(sqlite_options(path).connect().await?)),
        Database::MySql(server) => {
            let options = mysql_options(server);
            let named = options.clone().database(&server.name);
            let error = match named.connect().await {
                Ok(connection) => return Ok(Link::MySql(connection)),
                Err(error) => error,
            };
            if fault(&error) != Fault::NoDatabase {
                return Err(error);
            }
            let name = Dialect::MySql.quote(&server.name);
            let mut connection = options.connect().await?;
            let charset: String =
                sqlx::query_scalar("SELECT @@character_set_server").fetch_one(&mut connection).await?;
            // Only a server of another character set, which cannot hold every text, is overruled: naming this one would replace
            // the server's collation by the default one, and lists by name would be in another order than upstream's.
            let charset = if charset == "utf8mb4" { "" } else { "CHARACTER SET utf8mb4" };
            let mut link = Link::MySql(connection);
            existing(link.text(&format!("CREATE DATABASE {name} {charset}")).await)?;
            link.close().await?;
            Ok(Link::MySql(named.connect().await?))
        }
        Database::Postgres(server) => {
            let options = postgres_options(server);
            let named = options.clone().database(&server.name);
            let error = match named.connect().await {
                Ok(connection) => return Ok(Link::Postgres(connection)),
                Err(error) => error,
            };
            if fault(&error) != Fault::NoDatabase {
                return Err(error);
            }
            let name = Dialect::Postgres.quote(&server.name);
            let mut link = Link::Postgres(options.database("postgres").connect().await?);
            existing(link.text(&format!("CREATE DATABASE {name}")).await)?;
            link.close().await?;
            Ok(Link::Postgres(named.connect().await?))
        }
    }
}

/// Another replica may have created the database at the same time.
fn existing(created: Result<(), sqlx::Error>) -> Result<(), sqlx::Error> {
    match created {
        Err(error) if matches!(fault(&error), Fault::Exists | Fault::Duplicate) => Ok(()),
        other => other,
    }
}

fn sqlite_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        // WAL with NORMAL survives a killed process; only power loss can lose the last commits.
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(10))
}

fn sqlite_pools(path: &Path) -> Pools<Sqlite> {
    let pool = |connections| SqlitePoolOptions::new().max_connections(connections).acquire_timeout(ACQUIRE);
    Pools {
        // A full disk ends a transaction inside SQLite while sqlx still counts it as open: such a connection is of no
        // further use.
        writer: pool(1)
            .before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(usable) })
            })
            .connect_lazy_with(sqlite_options(path)),
        reader: pool(SQLITE_READERS).connect_lazy_with(sqlite_options(path)),
    }
}

fn mysql_options(server: &Server) -> MySqlConnectOptions {
    let options = MySqlConnectOptions::new().host(&server.host).port(server.port).username(&server.user);
    // The hash of an empty password is not the same as no password.
    let options = if server.password.is_empty() { options } else { options.password(&server.password) };
    let options = match &server.authorities {
        Some(file) => options.ssl_ca(file),
        None => options,
    };
    options
        .ssl_mode(match server.tls {
            Tls::Off => MySqlSslMode::Disabled,
            Tls::Preferred => MySqlSslMode::Preferred,
            Tls::Unverified => MySqlSslMode::Required,
            Tls::Authority => MySqlSslMode::VerifyCa,
            Tls::Verified => MySqlSslMode::VerifyIdentity,
        })
        // The server's own modes apply, as upstream has it.
        .pipes_as_concat(false)
        .no_engine_substitution(false)
        .timezone(None)
}

fn mysql_pool(server: &Server, isolation: &'static str) -> MySqlPool {
    let mut settings = format!("SET SESSION TRANSACTION ISOLATION LEVEL {isolation}");
    for (name, value) in &server.session {
        settings.push_str(&format!("; SET SESSION {name} = {value}"));
    }
    let settings: Arc<str> = settings.into();
    MySqlPoolOptions::new()
        .max_connections(SERVER_CONNECTIONS)
        .acquire_timeout(ACQUIRE)
        .max_lifetime(server.lifetime)
        .after_connect(move |connection, _| {
            let settings = settings.clone();
            Box::pin(async move {
                connection.execute(AssertSqlSafe(settings.to_string())).await?;
                Ok(())
            })
        })
        .connect_lazy_with(mysql_options(server).database(&server.name))
}

fn postgres_options(server: &Server) -> PgConnectOptions {
    let options = match &server.authorities {
        Some(file) => PgConnectOptions::new_without_pgpass().ssl_root_cert(file),
        None => PgConnectOptions::new_without_pgpass(),
    };
    options
        .host(&server.host)
        .port(server.port)
        .username(&server.user)
        .password(&server.password)
        .application_name("ml-pipeline")
        .ssl_mode(match server.tls {
            Tls::Off => PgSslMode::Disable,
            Tls::Preferred => PgSslMode::Prefer,
            Tls::Unverified => PgSslMode::Require,
            Tls::Authority => PgSslMode::VerifyCa,
            Tls::Verified => PgSslMode::VerifyFull,
        })
}

fn postgres_pool(server: &Server) -> PgPool {
    PgPoolOptions::new()
        .max_connections(SERVER_CONNECTIONS)
        .acquire_timeout(ACQUIRE)
        .max_lifetime(server.lifetime)
        .connect_lazy_with(postgres_options(server).database(&server.name))
}
