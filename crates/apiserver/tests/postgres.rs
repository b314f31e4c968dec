//! All tests of the API over PostgreSQL instead of SQLite; see `support::database`.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::duplicate_mod)]

#[path = "bad_input.rs"]
mod bad_input;
#[path = "lists.rs"]
mod lists;
#[path = "pipelines.rs"]
mod pipelines;
#[path = "recurring_runs.rs"]
mod recurring_runs;
#[path = "revisions.rs"]
mod revisions;
#[path = "runs.rs"]
mod runs;
#[path = "upkeep.rs"]
mod upkeep;
#[path = "v1beta1.rs"]
mod v1beta1;
