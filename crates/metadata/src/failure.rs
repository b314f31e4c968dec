//! What a call answers when it cannot do what was asked.

use sqlx::mysql::MySqlDatabaseError;
use sqlx::postgres::PgDatabaseError;
use sqlx::sqlite::SqliteError;
use tonic::{Code, Status};

/// Whether the same transaction may succeed when it runs anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Again {
    /// No.
    #[default]
    Never,
    /// It lost against another transaction and is undone.
    Conflict,
    /// The connection broke; unless it was committing, it is undone.
    Lost,
}

/// A gRPC code with a message for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The gRPC code.
    pub code: Code,
    /// The sentence that names what is wrong.
    pub message: String,
    /// Whether the transaction is to be tried again before the caller hears of it.
    pub again: Again,
}

/// Result of everything that runs inside a transaction.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), again: Again::Never }
    }

    /// The request is wrong whatever the store holds.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// The named thing does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// A unique key is taken.
    pub fn exists(message: impl Into<String>) -> Self {
        Self::new(Code::AlreadyExists, message)
    }

    /// The stored state forbids the call.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    /// An index lies outside its list.
    pub fn out_of_range(message: impl Into<String>) -> Self {
        Self::new(Code::OutOfRange, message)
    }

    /// Upstream knows the call, this server (or upstream itself) does not carry it out.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    /// The store cannot work at the moment.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// The store holds something that this program cannot read.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Replaces the database's own words when a unique key was taken; other failures pass unchanged.
    #[must_use]
    pub fn naming(self, message: impl FnOnce() -> String) -> Self {
        if self.code == Code::AlreadyExists { Self { message: message(), ..self } } else { self }
    }

    /// A key that was free a moment ago and is taken now: somebody else was faster, and a second look finds the row.
    #[must_use]
    pub fn looking_again(self) -> Self {
        if self.code == Code::AlreadyExists { Self { again: Again::Conflict, ..self } } else { self }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Status::new(failure.code, failure.message)
    }
}

/// By MySQL's and MariaDB's error numbers.
fn in_mysql(number: u16) -> (Code, Again) {
    match number {
        // Record changed, lock wait timeout, deadlock.
        1020 | 1205 | 1213 => (Code::Aborted, Again::Conflict),
        // Too many connections, shutting down, connection errors and kills.
        1040 | 1053 | 1152 | 1158..=1161 | 1184 | 1203 | 1927 | 3169 | 4031 => (Code::Unavailable, Again::Lost),
        // Out of range, too long, not storable in the column's character set, packet too large.
        1153 | 1264 | 1265 | 1366 | 1406 => (Code::InvalidArgument, Again::Never),
        // Out of memory, read-only.
        1037 | 1038 | 1041 | 1290 | 1836 => (Code::Unavailable, Again::Never),
        _ => (Code::Internal, Again::Never),
    }
}

/// By PostgreSQL's SQLSTATE.
fn in_postgres(state: &str) -> (Code, Again) {
    match state {
        // Serialization failure, deadlock, lock timeout.
        "40001" | "40P01" | "55P03" => (Code::Aborted, Again::Conflict),
        // Shutdown, crash of another backend, starting up, too many connections.
        "57P01" | "57P02" | "57P03" | "53300" => (Code::Unavailable, Again::Lost),
        // Cancelled because it took too long, read-only.
        "57014" | "25006" => (Code::Unavailable, Again::Never),
        // An index row or a value is larger than PostgreSQL allows.
        "54000" => (Code::InvalidArgument, Again::Never),
        _ if state.starts_with("08") => (Code::Unavailable, Again::Lost),
        _ if state.starts_with("22") => (Code::InvalidArgument, Again::Never),
        // Out of memory or another limit; a full disk does not empty itself.
        _ if state.starts_with("53") && state != "53100" => (Code::Unavailable, Again::Never),
        _ => (Code::Internal, Again::Never),
    }
}

/// By SQLite's result code with its extension: BUSY and LOCKED, the rest.
fn in_sqlite(code: &str) -> (Code, Again) {
    match code.parse::<u32>().map(|code| code & 0xff) {
        Ok(5 | 6) => (Code::Unavailable, Again::Never),
        _ => (Code::Internal, Again::Never),
    }
}

impl From<sqlx::Error> for Failure {
    /// Unique keys become ALREADY_EXISTS, deadlocks ABORTED (clients retry it), a busy or unreachable database
    /// UNAVAILABLE, values that do not fit their column INVALID_ARGUMENT, everything else INTERNAL.
    fn from(error: sqlx::Error) -> Self {
        let (code, again) = match &error {
            sqlx::Error::Database(database) if database.is_unique_violation() => (Code::AlreadyExists, Again::Never),
            sqlx::Error::Database(database) => {
                if let Some(error) = database.try_downcast_ref::<MySqlDatabaseError>() {
                    in_mysql(error.number())
                } else if let Some(error) = database.try_downcast_ref::<PgDatabaseError>() {
                    in_postgres(error.code())
                } else if database.try_downcast_ref::<SqliteError>().is_some() {
                    in_sqlite(&database.code().unwrap_or_default())
                } else {
                    (Code::Internal, Again::Never)
                }
            }
            // A connection that breaks in the middle of an answer leaves something unreadable.
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) => (Code::Unavailable, Again::Lost),
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Tls(_) => {
                (Code::Unavailable, Again::Never)
            }
            _ => (Code::Internal, Again::Never),
        };
        // Without sqlx's own introduction.
        let message = match &error {
            sqlx::Error::Database(error) => error.to_string(),
            sqlx::Error::Io(error) => error.to_string(),
            error => error.to_string(),
        };
        Self { code, message: format!("database: {message}"), again }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_conflicts_and_lost_connections_are_worth_another_try() {
        assert_eq!(in_mysql(1213), (Code::Aborted, Again::Conflict));
        assert_eq!(in_mysql(1927), (Code::Unavailable, Again::Lost));
        assert_eq!(in_mysql(1406), (Code::InvalidArgument, Again::Never));
        assert_eq!(in_postgres("40P01"), (Code::Aborted, Again::Conflict));
        assert_eq!(in_postgres("08006"), (Code::Unavailable, Again::Lost));
        assert_eq!(in_postgres("22001"), (Code::InvalidArgument, Again::Never));
        assert_eq!(in_postgres("42P01"), (Code::Internal, Again::Never));
        // SQLITE_BUSY_SNAPSHOT.
        assert_eq!(in_sqlite("517"), (Code::Unavailable, Again::Never));
        let lost = Failure::from(sqlx::Error::Io(std::io::ErrorKind::UnexpectedEof.into()));
        assert_eq!((lost.code, lost.again), (Code::Unavailable, Again::Lost));
        let taken = Failure::exists("a").looking_again().naming(|| "b".to_owned());
        assert_eq!((taken.message.as_str(), taken.again), ("b", Again::Conflict));
        assert_eq!(Failure::invalid("a").looking_again().again, Again::Never);
    }
}
