//! Compiles a pipeline spec (IR) and its Kubernetes platform spec into an Argo Workflow, as upstream's API server does.
//!
//! # How a pipeline becomes a Workflow
//!
//! | Pipeline | Workflow |
//! |---|---|
//! | component | argument `components-KEY` with its canonical JSON, once; tasks refer to it by placeholder |
//! | container, importer | argument `implementations-KEY` as well; KEY is the hash of a container, else the name |
//! | Kubernetes config of an executor | argument `kubernetes-COMPONENT`, read by the driver |
//! | DAG component `C` | template `C`, a `dag` with input `parent-dag-id` |
//! | container task `t` | tasks `t-driver` (decides: cached? skipped? which pod?) and `t` (runs the pod it described) |
//! | DAG task `t` | tasks `t-driver` (opens the execution) and `t` (the component's template) |
//! | creating or deleting a claim | the driver alone does it: one task `t` |
//! | importer task `t` | one task `t`, the launcher in importer mode |
//! | loop over component `C` | task `t` with template `C-t-iterator`: a driver counts, `withSequence` runs `C-iteration` |
//! | condition | `when` on what follows the driver; the driver evaluates the CEL |
//! | exit handler | template `exit-hook-DAG-t`, an exit hook of the task it guards |
//! | retry policy | executor template `retry-system-container-executor` with a `retryStrategy` |
//! | pod labels, annotations | executor template `metadata-A-L-..`, keys and values as arguments |
//! | root | template `root`, started by `entrypoint` after the `root-driver` |
//!
//! Executors are shared templates; everything particular to a task arrives as an argument or through the pod spec
//! patch that the driver computes.
//!
//! # Where this differs from upstream on purpose
//!
//! Output for pipelines that upstream runs properly is the same. Beyond that:
//! - An unknown field in a platform document is an error; upstream drops the document silently. `resourceTtl`, the
//!   old name of `resourceTtlOnCompletion`, is accepted.
//! - Rejected with a message: components that use themselves, a root that is an executor, a component named `root`,
//!   tasks that wait for unknown tasks, for exit tasks or for each other, two exit tasks for one task, generated names
//!   that collide with a task's, and whatever else [`check`] finds.
//! - Exit hooks also work on importers, loops and claim tasks, where upstream loses them; a loop as exit task does
//!   not wait for tasks outside its DAG.
//! - A component may be the body of several loops; from the second on, template names carry the task's name.
//! - Importers can wait for the tasks they take inputs from ([`Options::importers_wait`], off by default).
//! - Sizes, nesting and alias expansion are bounded: [`package::MAX_BYTES`], [`MAX_DEPTH`],
//!   [`package::yaml::MAX_NODES`].

pub mod check;
pub mod cli;
mod dag;
mod error;
pub mod hash;
pub mod inputs;
mod labels;
pub mod options;
pub mod package;
mod patch;
mod pipeline_config;
mod quantity;
mod run;
mod templates;
mod workflow;

pub use error::Error;
pub use options::Options;
pub use package::Package;
pub use run::{Job, RunRequest, compile_recurring_run, compile_run};
pub use workflow::MAX_DEPTH;

use serde_json::Value;

/// Compiles `package` without any run: no display name, default parameters only. This is what upstream's golden
/// files hold.
///
/// # Errors
/// See [`compile_job`].
pub fn compile(package: &Package, options: &Options) -> Result<Value, Error> {
    compile_job(package, &Job::default(), options)
}

/// Compiles `package` for a run with the given parameters. Parameters are not checked; see [`inputs::validate`].
///
/// # Errors
/// [`Error::Spec`] in the context of component and task, or [`Error::Setting`] for a wrong spec patch.
pub fn compile_job(package: &Package, job: &Job, options: &Options) -> Result<Value, Error> {
    workflow::compile(package, job, options)
}
