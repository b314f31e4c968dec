//! The database: upstream's tables, one query builder, list queries with keyset pages.

pub mod db;
pub mod experiments;
pub mod expired;
pub mod filter;
pub mod jobs;
pub mod list;
pub mod metrics;
pub mod pipelines;
pub mod runs;
pub mod samples;
mod schema;
pub mod specs;
pub mod sql;
pub mod tasks;
pub mod versions;

pub use db::{Db, Tx};

/// Seconds since the epoch, the resolution of all stored times.
#[must_use]
pub fn now() -> i64 {
    chrono::Utc::now().timestamp()
}
