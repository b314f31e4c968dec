//! An Argo-compatible workflow engine for one machine: executes the Workflows that the KFP compiler emits, on any
//! Kubernetes-like API that stores Workflows and runs pods.
//!
//! Templates may be containers, scripts, resources, DAGs, steps and pauses, with loops, conditions, expressions, retries,
//! hooks, artifacts and global outputs. `http`, `plugin`, `data` and `containerSet` templates, references to other
//! Workflows' templates, daemons, `synchronization` and time limits of templates are refused by name; what only tells
//! or saves something (`memoize`, `metrics`) is left out, and a condition of the Workflow says so.
//!
//! [`execution::Execution`] is the pure core: events in, effects and status changes out. [`run`] is the shell
//! around it: watches, writes, timers.

mod assess;
pub mod changes;
mod controller;
mod dag;
mod depends;
mod evaluate;
pub mod execution;
pub mod expression;
mod frames;
mod hooks;
mod inputs;
mod lifecycle;
mod loops;
pub mod model;
pub mod names;
mod nodes;
mod options;
mod pod;
mod repository;
mod retry;
mod steps;
mod strategic;
mod substitute;
mod suspend;
mod tasks;
mod validate;
mod variables;
mod when;

pub use controller::run;
pub use options::{Options, Settings};
