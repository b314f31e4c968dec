//! An Argo-compatible workflow engine for one machine: executes the Workflows that the KFP compiler emits, on any
//! Kubernetes-like API that stores Workflows and runs pods.
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
mod frames;
mod inputs;
mod lifecycle;
mod loops;
pub mod model;
pub mod names;
mod nodes;
mod options;
mod pod;
mod retry;
mod steps;
mod strategic;
mod substitute;
mod tasks;
mod validate;
mod variables;
mod when;

pub use controller::{Error, run};
pub use options::Options;
