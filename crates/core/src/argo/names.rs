//! Labels, annotations and finalizers of Argo and KFP that several components read or write.

/// Label on a Workflow: its current phase.
pub const LABEL_PHASE: &str = "workflows.argoproj.io/phase";
/// Label on Workflows and their pods: `"true"` once finished.
pub const LABEL_COMPLETED: &str = "workflows.argoproj.io/completed";
/// Label on a pod: name of its Workflow.
pub const LABEL_WORKFLOW: &str = "workflows.argoproj.io/workflow";
/// Label on a pod that belongs to an exit handler.
pub const LABEL_ON_EXIT: &str = "workflows.argoproj.io/on-exit";
/// Label with the state of Argo's own archive; KFP only reads it.
pub const LABEL_ARCHIVING_STATUS: &str = "workflows.argoproj.io/workflow-archiving-status";

/// Annotation on a pod: full name of its node.
pub const ANNOTATION_NODE_NAME: &str = "workflows.argoproj.io/node-name";
/// Annotation on a pod: identifier of its node.
pub const ANNOTATION_NODE_ID: &str = "workflows.argoproj.io/node-id";
/// Annotation on a pod: JSON of the substituted template.
pub const ANNOTATION_TEMPLATE: &str = "workflows.argoproj.io/template";
/// Annotation on a finished pod: JSON of its outputs.
pub const ANNOTATION_OUTPUTS: &str = "workflows.argoproj.io/outputs";
/// Annotation on a Workflow: `v1` or `v2` scheme of pod names.
pub const ANNOTATION_POD_NAME_FORMAT: &str = "workflows.argoproj.io/pod-name-format";
/// Annotation that tells kubectl which container is meant by default.
pub const ANNOTATION_DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// KFP label on a Workflow: the run it executes.
pub const LABEL_RUN_ID: &str = "pipeline/runid";
/// KFP label on a Workflow: the final state is stored.
pub const LABEL_PERSISTED_FINAL_STATE: &str = "pipeline/persistedFinalState";
/// KFP label and annotation that mark pods of v2 pipelines.
pub const V2_COMPONENT: &str = "pipelines.kubeflow.org/v2_component";

/// Name of the container that runs the template's own command.
pub const MAIN_CONTAINER: &str = "main";
