//! What the API server does around the compilation: input checks before, labels and names after.

use serde_json::{Map, Value, json};

use crate::{Error, Options, Package, inputs, workflow};

/// The part of a run that the compiler itself sees.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Job {
    /// Display name of the run; recurring runs have none.
    pub display_name: String,
    /// Values of the root component's parameters; defaults are added.
    pub parameters: Map<String, Value>,
    /// Where artifacts go; empty for the installation's default.
    pub pipeline_root: String,
}

/// A run or recurring run to be created.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RunRequest {
    /// Id of the run; unused for recurring runs.
    pub run_id: String,
    /// Display name of the run; unused for recurring runs.
    pub display_name: String,
    /// Namespace of the Workflow, if known.
    pub namespace: Option<String>,
    /// Service account; empty for the installation's default.
    pub service_account: String,
    /// Parameter values; `None` if the request had no runtime config at all.
    pub parameters: Option<Map<String, Value>>,
    /// Where artifacts go; empty for the installation's default.
    pub pipeline_root: String,
}

/// The Workflow of a run, ready to be created: inputs checked, compiled, labelled, `{{workflow.uid}}` replaced by the
/// run's id. What depends on the cluster (owner references, the final name) is left to the caller.
///
/// # Errors
/// [`Error::Inputs`] if the parameters do not fit, else see [`crate::compile_job`].
pub fn compile_run(package: &Package, request: &RunRequest, options: &Options) -> Result<Value, Error> {
    let mut workflow = prepare(package, request, &request.display_name, options)?;
    let metadata = &mut workflow["metadata"];
    metadata["labels"]["pipeline/runid"] = request.run_id.as_str().into();
    metadata["annotations"]["pipelines.kubeflow.org/run_name"] = request.display_name.as_str().into();
    workflow["spec"]["podMetadata"]["labels"]["pipeline/runid"] = request.run_id.as_str().into();
    replace(&mut workflow, "{{workflow.uid}}", &request.run_id);
    Ok(workflow)
}

/// The Workflow that a recurring run stores in its ScheduledWorkflow; `{{workflow.uid}}` stays for later.
///
/// # Errors
/// As [`compile_run`].
pub fn compile_recurring_run(package: &Package, request: &RunRequest, options: &Options) -> Result<Value, Error> {
    prepare(package, request, "", options)
}

fn prepare(package: &Package, request: &RunRequest, display_name: &str, options: &Options) -> Result<Value, Error> {
    inputs::validate(package, request.parameters.as_ref())?;
    let job = Job {
        display_name: display_name.to_owned(),
        parameters: request.parameters.clone().unwrap_or_default(),
        pipeline_root: request.pipeline_root.clone(),
    };
    let mut workflow = workflow::compile(package, &job, options)?;
    if let Some(namespace) = request.namespace.as_ref().filter(|namespace| !namespace.is_empty()) {
        workflow["metadata"]["namespace"] = namespace.as_str().into();
    }
    if !request.service_account.is_empty() {
        workflow["spec"]["serviceAccountName"] = request.service_account.as_str().into();
    } else if matches!(workflow["spec"]["serviceAccountName"].as_str(), None | Some("" | "pipeline-runner")) {
        workflow["spec"]["serviceAccountName"] = options.service_account.as_str().into();
    }
    for template in workflow["spec"]["templates"].as_array_mut().into_iter().flatten() {
        let annotations = &mut template["metadata"]["annotations"];
        if annotations.is_null() {
            *annotations = json!({});
        }
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.entry("sidecar.istio.io/inject").or_insert_with(|| "false".into());
        }
    }
    Ok(workflow)
}

fn replace(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::String(text) if text.contains(from) => *text = text.replace(from, to),
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, from, to)),
        Value::Object(fields) => fields.values_mut().for_each(|item| replace(item, from, to)),
        _ => {}
    }
}
