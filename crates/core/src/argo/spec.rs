//! What a Workflow is to do.

use super::params::any_string;
use super::{Artifact, Extra, Inputs, Outputs, Parameter, null_default};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Spec of a Workflow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    /// Name of the template to start with.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub entrypoint: String,
    /// Arguments of the entrypoint, visible everywhere as `workflow.parameters.*`.
    #[serde(deserialize_with = "null_default")]
    pub arguments: Arguments,
    /// Templates.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<Template>,
    /// Account the pods run under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_account_name: Option<String>,
    /// Template of the exit handler.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_exit: Option<String>,
    /// Workflow-level lifecycle hooks.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub hooks: BTreeMap<String, Hook>,
    /// Seconds after the start at which everything that is not an exit handler ends; 0 is KFP's terminate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<i64>,
    /// `Stop` or `Terminate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<String>,
    /// While true nothing new starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
    /// Most pods at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<i64>,
    /// When the finished Workflow is deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_strategy: Option<TtlStrategy>,
    /// Labels and annotations of every pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_metadata: Option<Metadata>,
    /// Volumes of every pod.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Value>,
    /// Claims made for this Workflow.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub volume_claim_templates: Vec<Value>,
    /// When those claims are deleted.
    #[serde(rename = "volumeClaimGC", skip_serializing_if = "Option::is_none")]
    pub volume_claim_gc: Option<Value>,
    /// Security context of every pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_context: Option<Value>,
    /// Pod patch of every pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_spec_patch: Option<String>,
    /// Retry strategy of templates without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_strategy: Option<RetryStrategy>,
    /// Defaults merged under every template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_defaults: Option<Value>,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Arguments of a workflow, task or hook.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Arguments {
    /// Parameters.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<Parameter>,
    /// Artifacts.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
}

/// Labels and annotations of pods.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Labels.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// Lifetime of a finished Workflow, in seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TtlStrategy {
    /// After any end without a more specific value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_after_completion: Option<i64>,
    /// After success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_after_success: Option<i64>,
    /// After failure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds_after_failure: Option<i64>,
}

/// A template: exactly one of `container`, `dag`, `steps`, `script`, `resource`, `suspend` (or a kind kept in
/// `extra` that the reader must reject by name).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Template {
    /// Name.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Inputs.
    #[serde(deserialize_with = "null_default")]
    pub inputs: Inputs,
    /// Outputs.
    #[serde(deserialize_with = "null_default")]
    pub outputs: Outputs,
    /// Labels and annotations of the pod.
    #[serde(deserialize_with = "null_default")]
    pub metadata: Metadata,
    /// Main container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Value>,
    /// Graph of tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dag: Option<DagTemplate>,
    /// Groups of steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<Vec<WorkflowStep>>>,
    /// Script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<Value>,
    /// Kubernetes object to create.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<Value>,
    /// Pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspend: Option<Value>,
    /// Containers that run before the main one.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub init_containers: Vec<Value>,
    /// Containers beside the main one.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub sidecars: Vec<Value>,
    /// Volumes.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Value>,
    /// Strategic merge patch for the pod's spec, as JSON or YAML text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod_spec_patch: Option<String>,
    /// How often and when to try again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_strategy: Option<RetryStrategy>,
    /// Most children at a time; none or 0 is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<i64>,
    /// Deadline of the pod; a number or text with tags.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub active_deadline_seconds: Option<String>,
    /// Pod security context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub security_context: Option<Value>,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Tasks that depend on each other.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DagTemplate {
    /// Tasks to reach, separated by blanks; all without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Tasks.
    #[serde(deserialize_with = "null_default")]
    pub tasks: Vec<DagTask>,
    /// Whether the first failed target decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_fast: Option<bool>,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One task of a DAG.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DagTask {
    /// Name.
    pub name: String,
    /// Template to run.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// Arguments.
    #[serde(deserialize_with = "null_default")]
    pub arguments: Arguments,
    /// Tasks that must have succeeded or been skipped.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<String>,
    /// Boolean expression over results of tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depends: Option<String>,
    /// Condition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// Literal loop items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_items: Option<Vec<Value>>,
    /// JSON list of loop items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_param: Option<String>,
    /// Numeric loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_sequence: Option<Sequence>,
    /// Which failures do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continue_on: Option<ContinueOn>,
    /// Lifecycle hooks; `exit` runs when the task is completed.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub hooks: BTreeMap<String, Hook>,
    /// Template to run when the task is completed (older form of `hooks.exit`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_exit: Option<String>,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

/// One step of a steps template; the same shape as a task without dependencies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WorkflowStep {
    /// Name.
    pub name: String,
    /// Template to run.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// Arguments.
    #[serde(deserialize_with = "null_default")]
    pub arguments: Arguments,
    /// Condition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// Literal loop items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_items: Option<Vec<Value>>,
    /// JSON list of loop items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_param: Option<String>,
    /// Numeric loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_sequence: Option<Sequence>,
    /// Which failures do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub continue_on: Option<ContinueOn>,
    /// Lifecycle hooks.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub hooks: BTreeMap<String, Hook>,
    /// Older form of `hooks.exit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_exit: Option<String>,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Numeric loop.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sequence {
    /// How many; excludes `end`.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub count: Option<String>,
    /// First number, 0 by default.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub start: Option<String>,
    /// Last number.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// printf format of the items.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

/// Which results of a task count as good enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContinueOn {
    /// Go on after phase Error.
    #[serde(skip_serializing_if = "super::is_false")]
    pub error: bool,
    /// Go on after phase Failed.
    #[serde(skip_serializing_if = "super::is_false")]
    pub failed: bool,
}

/// Lifecycle hook.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hook {
    /// Template to run.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub template: String,
    /// Arguments.
    #[serde(deserialize_with = "null_default")]
    pub arguments: Arguments,
    /// When to run it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Retry strategy of a template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RetryStrategy {
    /// Most retries; unlimited without one.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub limit: Option<String>,
    /// `Always`, `OnFailure`, `OnError` or `OnTransientError`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_policy: Option<String>,
    /// Waiting between attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
    /// Further condition for a retry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Exponential backoff.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Backoff {
    /// First wait; bare numbers are seconds.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub duration: Option<String>,
    /// Factor between waits.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub factor: Option<String>,
    /// Longest time from the first start.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<String>,
    /// Longest single wait.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub cap: Option<String>,
}
