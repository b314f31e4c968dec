//! The database: upstream's tables, one query builder, list queries with keyset pages.

mod connect;
pub mod db;
mod engine;
pub mod experiments;
pub mod expired;
pub mod filter;
pub mod jobs;
pub mod list;
pub mod memory;
pub mod metrics;
pub mod pipelines;
mod row;
pub mod runs;
pub mod samples;
mod schema;
pub mod settings;
pub mod specs;
pub mod sql;
pub mod tagged;
pub mod tasks;
mod totals;
pub mod versions;

pub use db::{Db, Tx};

/// Words of `ResourceType` of everything that refers to something.
const RESOURCES: [&str; 5] = ["Run", "Job", "Experiment", "PipelineVersion", "pipeline"];

/// Seconds since the epoch, the resolution of all stored times.
#[must_use]
pub fn now() -> i64 {
    chrono::Utc::now().timestamp()
}
