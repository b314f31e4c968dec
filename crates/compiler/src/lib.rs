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
//! What runs in what order, for one container task: `t-driver` gets the component, the task and the container as JSON
//! and the id of the DAG it is in. It writes three outputs: `pod-spec-patch` (image, command, environment, volumes of the
//! pod), `cached-decision` and `condition`. Task `t` is a small DAG that starts its only pod unless the decision is
//! `true`; that pod takes the patch as `podSpecPatch`, and its init container copies the launcher, which wraps the user's
//! command. A DAG driver writes `execution-id`, the `parent-dag-id` of everything inside, `iteration-count` and
//! `condition`. Outputs of tasks never pass through Argo: launchers record them in the metadata store, drivers look
//! them up there by `parent-dag-id`.
//!
//! `depends` lists, as `A.Succeeded && B.Succeeded`, every task whose output is used and every explicit dependency;
//! drivers wait, and what they prepare waits for them. An exit handler is an exit *hook*, so Argo runs it whether the
//! guarded task failed or not. A loop body is compiled once; `withSequence` counts indices and the driver picks the
//! item. `parallelism` of the iterator template bounds how many run at a time.
//!
//! Settings of the installation ([`Options`]) reach the Workflow in five places: images and commands of drivers and
//! launcher, arguments of drivers and importers (addresses, proxies, TLS, log level, cache, defaults for security
//! contexts), metadata of driver templates, the volume `custom-ca`, and the patch of `spec` at the very end.
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
//! - Importers can wait for the tasks they take inputs from ([`Options::importers_wait`]). Off by default, because
//!   upstream's do not wait and the output is to be the same.
//! - `COMPILED_PIPELINE_SPEC_PATCH` is merged by Kubernetes' rules and that is the result. Upstream decodes the merged
//!   spec over the old one: what a patch deletes comes back, and lists whose order changed get mixed items. Here
//!   deletions hold and items stay whole. Types and unknown fields of the patch are not checked, quantities not
//!   rewritten (`1000m` stays).
//! - Booleans that are set but empty count as not set, where upstream stops.
//! - Any JSON is read. Upstream reads it as YAML, which refuses surrogate pairs and some characters in text.
//! - The messages for several names at once list them in order.
//!
//! # Bounds
//!
//! Every input ends in a Workflow or an [`Error`] in time and memory linear in these:
//!
//! | What | At most | Where |
//! |---|---|---|
//! | bytes of a file, packed and unpacked | 32 MiB | [`package::MAX_BYTES`] |
//! | bytes unpacked of a tarball on the way to its pipeline | 256 MiB, none kept | |
//! | values, aliases expanded | 1,000,000 | [`package::yaml::MAX_NODES`] |
//! | bytes of text, aliases expanded | 64 MiB | [`package::yaml::MAX_TEXT`] |
//! | nesting of lists and maps | 100 | [`package::yaml::MAX_NESTING`] |
//! | line ends, `:`, `,`, `[`, `{` in YAML, those inside text included | 4,000,000 | [`package::yaml::MAX_MARKS`] |
//! | nesting of a parameter's default or constant | about 30 | Protobuf's 100 messages, three for each level |
//! | nesting of DAG components | 200 | [`MAX_DEPTH`] |
//! | tasks of all DAG components together | 20,000 | [`MAX_TASKS`] |
//! | bytes of the name of a task or DAG component | 128 | [`check::MAX_NAME`], Argo's limit |
//! | problems an error lists | 20 | |
//!
//! Compiling takes about 20 KB of memory for each task; the most demanding file found within these bounds takes just
//! under 1 GB. The bound on line ends and punctuation refuses YAML from about 20 MB on when it is full of code; the same
//! pipeline as JSON passes.

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
pub use workflow::{MAX_DEPTH, MAX_TASKS};

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
