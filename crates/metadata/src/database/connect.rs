//! Opening databases: what the options of a connection and of every session are.

use std::path::Path;
use std::time::Duration;

use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlSslMode};
use sqlx::pool::PoolOptions;
use sqlx::postgres::{PgConnectOptions, PgPool, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection as _, Executor as _};

use super::sqlite::Worker;
use super::{Database, Pools, TURN};
use crate::failure::Failure;
use crate::options::{Remote, Storage};

/// Readers that work beside SQLite's writer.
const SQLITE_READERS: usize = 4;
/// Connections to a server that write; more callers wait for their turn.
const WRITERS: u32 = 12;
/// Connections to a server that read.
const READERS: u32 = 8;
/// How long the first connection may take.
const CONNECT: Duration = Duration::from_secs(10);
/// Statements that a connection keeps prepared.
const STATEMENTS: usize = 256;
/// A connection that was idle for longer is tested before it is used.
const IDLE: Duration = Duration::from_secs(1);

impl Database {
    /// Opens the database, which is created when it does not exist.
    ///
    /// # Errors
    /// When it cannot be opened or created, with the database's reason.
    pub async fn open(storage: &Storage) -> Result<Self, Failure> {
        let pools = match storage {
            Storage::Sqlite(path) => sqlite(path)?,
            Storage::Memory => Pools::Sqlite { writer: Worker::writer(sqlite_connection(None)?)?, readers: None },
            Storage::MySql(remote) => mysql(remote).await?,
            Storage::Postgres(remote) => postgres(remote).await?,
        };
        Ok(Self { pools })
    }
}

/// One connection writes, for all callers in order of arrival, so that nobody ever meets SQLITE_BUSY; the write-ahead
/// log lets readers work on a snapshot meanwhile.
fn sqlite(path: &Path) -> Result<Pools, Failure> {
    if let Some(parent) = path.parent().filter(|parent| *parent != Path::new("")) {
        std::fs::create_dir_all(parent).map_err(|error| Failure::internal(error.to_string()))?;
    }
    let writer = sqlite_connection(Some(path))?;
    writer.pragma_update(None, "journal_mode", "wal")?;
    // One publication touches dozens of pages; the default folds the log, with two syncs, every 1000.
    writer.pragma_update(None, "wal_autocheckpoint", 16_000)?;
    writer.pragma_update(None, "cache_size", -4_096)?;
    let readers = (0..SQLITE_READERS).map(|_| {
        let reader = sqlite_connection(Some(path))?;
        reader.pragma_update(None, "query_only", true)?;
        Ok(reader)
    });
    let readers = readers.collect::<Result<_, Failure>>()?;
    Ok(Pools::Sqlite { writer: Worker::writer(writer)?, readers: Some(Worker::readers(readers)?) })
}

/// A connection to a file, or to a store of its own in memory.
fn sqlite_connection(path: Option<&Path>) -> Result<rusqlite::Connection, Failure> {
    let connection = match path {
        Some(path) => rusqlite::Connection::open(path)?,
        None => rusqlite::Connection::open_in_memory()?,
    };
    connection.busy_timeout(TURN)?;
    connection.set_prepared_statement_cache_capacity(2 * STATEMENTS);
    connection.pragma_update(None, "synchronous", "normal")?;
    // What a savepoint has to remember would go through a file otherwise.
    connection.pragma_update(None, "temp_store", "memory")?;
    Ok(connection)
}

/// A pool of connections that begin with the statements of `session`.
fn pooled<DB: sqlx::Database>(most: u32, session: &'static [&'static str]) -> PoolOptions<DB>
where
    for<'c> &'c mut DB::Connection: sqlx::Executor<'c, Database = DB>,
{
    PoolOptions::new()
        .max_connections(most)
        .acquire_timeout(TURN)
        .test_before_acquire(false)
        .before_acquire(|connection: &mut DB::Connection, about| {
            Box::pin(async move {
                if about.idle_for > IDLE {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .after_connect(move |connection: &mut DB::Connection, _| {
            Box::pin(async move {
                for statement in session {
                    connection.execute(AssertSqlSafe(*statement)).await?;
                }
                Ok(())
            })
        })
}

/// Strict: what does not fit is refused, not cut. Backslashes mean themselves, as elsewhere.
const MYSQL_MODE: &str = "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION,NO_BACKSLASH_ESCAPES'";
const MYSQL_WRITER: [&str; 3] = [
    MYSQL_MODE,
    // Without locks on the gaps between keys, which make writers of different rows wait for each other.
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "SET SESSION innodb_lock_wait_timeout = 20",
];
const MYSQL_READER: [&str; 2] = [MYSQL_MODE, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"];

async fn mysql(remote: &Remote) -> Result<Pools, sqlx::Error> {
    let mode = match remote.tls.mode.as_str() {
        "disable" => MySqlSslMode::Disabled,
        "require" => MySqlSslMode::Required,
        "verify-ca" => MySqlSslMode::VerifyCa,
        "verify-full" => MySqlSslMode::VerifyIdentity,
        _ => MySqlSslMode::Preferred,
    };
    let mut options = MySqlConnectOptions::new()
        .host(&remote.host)
        .port(remote.port)
        .username(&remote.user)
        .ssl_mode(mode)
        // Upstream's client says that it speaks Latin-1 and sends UTF-8, which the server takes apart on the way in and
        // puts together on the way out. What is in the tables means the same to both only if we do so too.
        .charset("latin1")
        .statement_cache_capacity(STATEMENTS);
    if !remote.password.is_empty() {
        options = options.password(&remote.password);
    }
    if !remote.tls.authorities.is_empty() {
        options = options.ssl_ca(&remote.tls.authorities);
    }
    if !remote.tls.certificate.is_empty() {
        options = options.ssl_client_cert(&remote.tls.certificate).ssl_client_key(&remote.tls.key);
    }
    let target = options.clone().database(&remote.database);
    let pool = |most, session| -> MySqlPool { pooled::<sqlx::MySql>(most, session).connect_lazy_with(target.clone()) };
    let writers = pool(WRITERS, &MYSQL_WRITER);
    // 1049: there is no such database.
    if is_missing(&target, "42000", Some(1049), remote).await? {
        let mut connection = options.connect().await?;
        let name = remote.database.replace('`', "``");
        connection.execute(AssertSqlSafe(format!("CREATE DATABASE IF NOT EXISTS `{name}`"))).await?;
        connection.close().await?;
    }
    let (packet,): (i64,) = sqlx::query_as("SELECT CAST(@@max_allowed_packet AS SIGNED)").fetch_one(&writers).await?;
    let packet = usize::try_from(packet).unwrap_or(usize::MAX);
    Ok(Pools::MySql { writers, readers: pool(READERS, &MYSQL_READER), packet })
}

const POSTGRES_WRITER: [&str; 3] =
    ["SET statement_timeout = '60s'", "SET lock_timeout = '20s'", "SET idle_in_transaction_session_timeout = '60s'"];

async fn postgres(remote: &Remote) -> Result<Pools, sqlx::Error> {
    let mut options = PgConnectOptions::new()
        .host(&remote.host)
        .port(remote.port)
        .username(&remote.user)
        .application_name("kfp-metadata")
        .statement_cache_capacity(STATEMENTS);
    if let Ok(mode) = remote.tls.mode.parse::<PgSslMode>() {
        options = options.ssl_mode(mode);
    }
    let password = match remote.password.as_str() {
        "" if !remote.password_file.is_empty() => {
            password_from(&std::fs::read_to_string(&remote.password_file)?, remote)
        }
        "" => None,
        password => Some(password.to_owned()),
    };
    if let Some(password) = password {
        options = options.password(&password);
    }
    if !remote.tls.authorities.is_empty() {
        options = options.ssl_root_cert(&remote.tls.authorities);
    }
    if !remote.tls.certificate.is_empty() {
        options = options.ssl_client_cert(&remote.tls.certificate).ssl_client_key(&remote.tls.key);
    }
    let target = options.clone().database(&remote.database);
    let pool = |most| -> PgPool { pooled::<sqlx::Postgres>(most, &POSTGRES_WRITER).connect_lazy_with(target.clone()) };
    let writers = pool(WRITERS);
    if is_missing(&target, "3D000", None, remote).await? {
        let mut connection = options.database("postgres").connect().await?;
        let name = remote.database.replace('"', "\"\"");
        let created = connection.execute(AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).await;
        // Another server of ours may have been faster: 42P04, or a clash in the catalogue itself.
        if let Err(error) = created
            && !error
                .as_database_error()
                .is_some_and(|error| error.code().as_deref() == Some("42P04") || error.is_unique_violation())
        {
            return Err(error);
        }
        connection.close().await?;
    }
    Ok(Pools::Postgres { writers, readers: pool(READERS) })
}

/// Whether the server has no such database and it is to be created; other failures to connect are passed on.
async fn is_missing(
    target: &impl ConnectOptions<Connection: Sized>,
    state: &str,
    number: Option<u16>,
    remote: &Remote,
) -> Result<bool, sqlx::Error> {
    let error = match tokio::time::timeout(CONNECT, target.connect()).await {
        Ok(Ok(connection)) => return connection.close().await.map(|()| false),
        Ok(Err(error)) => error,
        Err(_) => return Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()),
    };
    let missing = error.as_database_error().is_some_and(|error| {
        let own = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>().map(|error| error.number());
        error.code().as_deref() == Some(state) && own == number
    });
    if missing && !remote.skip_creation { Ok(true) } else { Err(error) }
}

/// The password of the first line `host:port:database:user:password` that fits; `*` fits all, a backslash takes the
/// next character as it is.
fn password_from(file: &str, remote: &Remote) -> Option<String> {
    let wanted = [&remote.host, &remote.port.to_string(), &remote.database, &remote.user].map(String::clone);
    file.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = vec![String::new()];
        let mut chars = line.chars();
        while let Some(c) = chars.next() {
            match c {
                ':' if fields.len() <= wanted.len() => fields.push(String::new()),
                '\\' => fields.last_mut()?.extend(chars.next()),
                c => fields.last_mut()?.push(c),
            }
        }
        let fits = fields.len() == 5 && fields.iter().zip(&wanted).all(|(field, own)| field == "*" || field == own);
        if fits { fields.pop() } else { None }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fitting_line_of_a_password_file_counts() {
        let remote = Remote {
            host: "db".to_owned(),
            port: 5432,
            database: "m".to_owned(),
            user: "u".to_owned(),
            ..Remote::default()
        };
        let file = "# db:5432:m:u:no\nother:*:*:*:no\n*:5432:m\nd\\b:*:m:u:a\\:b:c\n*:*:*:*:last\n";
        assert_eq!(password_from(file, &remote).as_deref(), Some("a:b:c"));
        let other = Remote { user: "v".to_owned(), ..remote };
        assert_eq!(password_from(file, &other).as_deref(), Some("last"));
        assert_eq!(password_from("", &other), None);
    }
}
