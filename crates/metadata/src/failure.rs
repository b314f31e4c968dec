//! What a call answers when it cannot do what was asked.

use tonic::{Code, Status};

/// A gRPC code with a message for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// The gRPC code.
    pub code: Code,
    /// The sentence that names what is wrong.
    pub message: String,
}

/// Result of everything that runs inside a transaction.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
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

    /// The store holds something that this program cannot read.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// Replaces the database's own words when a unique key was taken; other failures pass unchanged.
    #[must_use]
    pub fn naming(self, message: impl FnOnce() -> String) -> Self {
        if self.code == Code::AlreadyExists { Self::exists(message()) } else { self }
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Status::new(failure.code, failure.message)
    }
}

/// MySQL's deadlock and lock-wait errors and PostgreSQL's serialization and deadlock errors, by SQLSTATE.
fn is_deadlock(state: &str) -> bool {
    matches!(state, "40001" | "40P01")
}

/// SQLite's BUSY and LOCKED, with their extended forms.
fn is_sqlite_busy(code: &str) -> bool {
    code.parse::<u32>().is_ok_and(|code| matches!(code & 0xff, 5 | 6))
}

impl From<sqlx::Error> for Failure {
    /// Unique keys become ALREADY_EXISTS, deadlocks ABORTED (clients retry it), a busy or unreachable database
    /// UNAVAILABLE, everything else INTERNAL.
    fn from(error: sqlx::Error) -> Self {
        let code = match &error {
            sqlx::Error::Database(database) if database.is_unique_violation() => Code::AlreadyExists,
            sqlx::Error::Database(database) => match database.code() {
                Some(state) if is_deadlock(&state) => Code::Aborted,
                Some(state) if is_sqlite_busy(&state) => Code::Unavailable,
                _ => Code::Internal,
            },
            sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::Io(_) => Code::Unavailable,
            _ => Code::Internal,
        };
        Self::new(code, format!("database: {error}"))
    }
}
