//! Names that every reader and writer of pipeline metadata must agree on: types, properties, event paths.
//!
//! They are upstream's (the UI and existing databases rely on them), except [`INPUT_ARTIFACTS`].

/// Context type of a pipeline; the context's name is the pipeline's name.
pub const PIPELINE: &str = "system.Pipeline";
/// Context type of a run; the context's name is the run's UUID.
pub const PIPELINE_RUN: &str = "system.PipelineRun";
/// Execution type of a container task (and of PVC operations).
pub const CONTAINER_EXECUTION: &str = "system.ContainerExecution";
/// Execution type of a DAG: root, sub-pipeline, condition branch, loop head, loop iteration, exit handler.
pub const DAG_EXECUTION: &str = "system.DAGExecution";
/// Execution type of an importer.
pub const IMPORTER_EXECUTION: &str = "system.ImporterExecution";
/// Execution type of an importer that downloads into the run's workspace.
pub const IMPORTER_WORKSPACE_EXECUTION: &str = "system.ImporterWorkspaceExecution";

/// Execution: the name to show.
pub const DISPLAY_NAME: &str = "display_name";
/// Execution: the task's key in its parent DAG; empty for the root.
pub const TASK_NAME: &str = "task_name";
/// Execution: id of the parent DAG's execution; absent on the root.
pub const PARENT_DAG_ID: &str = "parent_dag_id";
/// Execution: which iteration of a loop this is.
pub const ITERATION_INDEX: &str = "iteration_index";
/// Loop head: how many iterations it has.
pub const ITERATION_COUNT: &str = "iteration_count";
/// DAG except the root: number of tasks in its definition.
pub const TOTAL_DAG_TASKS: &str = "total_dag_tasks";
/// Container execution: name of its pod.
pub const POD_NAME: &str = "pod_name";
/// Container execution: UID of its pod.
pub const POD_UID: &str = "pod_uid";
/// Container execution and run context: Kubernetes namespace.
pub const NAMESPACE: &str = "namespace";
/// Container execution: always written, always empty.
pub const IMAGE: &str = "image";
/// Container execution: the execution whose outputs were reused.
pub const CACHED_EXECUTION_ID: &str = "cached_execution_id";
/// Container execution: key under which its outputs may be reused.
pub const CACHE_FINGERPRINT: &str = "cache_fingerprint";
/// Container execution: whether its outputs were reused and why, in words. Not upstream's; the UI lists it with the
/// other properties.
pub const CACHE_DECISION: &str = "cache_decision";
/// Execution: struct of input parameter values.
pub const INPUTS: &str = "inputs";
/// Execution: struct of output parameter values.
pub const OUTPUTS: &str = "outputs";
/// DAG with output parameters: struct of name to the JSON text of a `DagOutputParameterSpec`.
pub const PARAMETER_PRODUCER_TASK: &str = "parameter_producer_task";
/// DAG with output artifacts: JSON text, name to snake_case artifact selectors.
pub const ARTIFACT_PRODUCER_TASK: &str = "artifact_producer_task";
/// Execution: JSON text, input name to artifact ids in order. Written only where events cannot say it: lists, and one
/// artifact bound to several inputs (the store allows one event per artifact, execution and direction). Not upstream's.
pub const INPUT_ARTIFACTS: &str = "input_artifacts";
/// Prefix of properties that belong to task plugins.
pub const PLUGINS_PREFIX: &str = "plugins.";

/// Run context: always [`RUN_RESOURCE`].
pub const RESOURCE_NAME: &str = "resource_name";
/// Value of [`RESOURCE_NAME`].
pub const RUN_RESOURCE: &str = "run-resource";
/// Run context: where the run's artifacts go.
pub const PIPELINE_ROOT: &str = "pipeline_root";
/// Run context and artifacts: JSON text that says how to open the bucket.
pub const STORE_SESSION_INFO: &str = "store_session_info";
/// Artifact metadata: the artifact lies in the run's workspace, not in a bucket. Never stored.
pub const WORKSPACE_METADATA: &str = "_kfp_workspace";
/// Output artifact that holds a task's log.
pub const EXECUTOR_LOGS: &str = "executor-logs";

/// Why an execution failed, in words. Not upstream's; the UI lists it with the other properties.
pub const ERROR_MESSAGE: &str = "error_message";

/// Name of the root execution of a run; makes its creation idempotent.
#[must_use]
pub fn root_execution(run_id: &str) -> String {
    format!("run/{run_id}")
}
