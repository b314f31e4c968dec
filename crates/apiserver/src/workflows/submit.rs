//! From a stored package and the values of a run to the Workflow object that is sent to Kubernetes.

use std::collections::BTreeMap;

use kfp_compiler::{Package, RunRequest};
use serde_json::{Map, Value};

use crate::domain::macros::{self, Facts};
use crate::error::{Error, Result};
use crate::store::runs::Run;

/// Error of the compiler as the API shows it.
#[must_use]
pub fn compiler_error(error: &kfp_compiler::Error) -> Error {
    if error.is_user_error() {
        Error::invalid(error.to_string())
    } else {
        Error::internal("cannot compile the pipeline", error)
    }
}

fn expand(parameters: BTreeMap<String, Value>, facts: Facts<'_>) -> Map<String, Value> {
    let replace = |value: Value| match value {
        Value::String(text) => Value::String(macros::expand(&text, facts)),
        other => other,
    };
    parameters.into_iter().map(|(name, value)| (name, replace(value))).collect()
}

/// The Workflow of a run, complete but for owner references. `namespace` is where it will run.
///
/// # Errors
/// Code 3 when parameters or spec do not fit, 13 when the settings of the installation do not.
pub fn workflow(
    package: &Package,
    run: &Run,
    parameters: BTreeMap<String, Value>,
    namespace: &str,
    options: &kfp_compiler::Options,
) -> Result<Value> {
    let facts = Facts { run_id: &run.id, current: run.created_at, scheduled: run.scheduled_at.max(0) };
    let request = RunRequest {
        run_id: run.id.clone(),
        display_name: run.display_name.clone(),
        namespace: Some(namespace.to_owned()),
        service_account: run.service_account.clone(),
        parameters: Some(expand(parameters, facts)),
        pipeline_root: run.pipeline_root.clone(),
    };
    kfp_compiler::compile_run(package, &request, options)
        .map_err(|error| compiler_error(&error).wrap("Failed to generate the ExecutionSpec"))
}
