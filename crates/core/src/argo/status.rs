//! What has happened to a Workflow.

use super::{Extra, Inputs, Outputs, Timestamp, is_false, null_default};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Phase of a Workflow. The empty phase means that no controller has seen it yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are Argo's own
pub enum WorkflowPhase {
    #[default]
    #[serde(rename = "")]
    Unknown,
    Pending,
    Running,
    Succeeded,
    Failed,
    Error,
}

impl WorkflowPhase {
    /// Text as in `status.phase`.
    pub fn as_str(self) -> &'static str {
        match self {
            WorkflowPhase::Unknown => "",
            WorkflowPhase::Pending => "Pending",
            WorkflowPhase::Running => "Running",
            WorkflowPhase::Succeeded => "Succeeded",
            WorkflowPhase::Failed => "Failed",
            WorkflowPhase::Error => "Error",
        }
    }

    /// True when the Workflow has ended.
    pub fn is_completed(self) -> bool {
        matches!(self, WorkflowPhase::Succeeded | WorkflowPhase::Failed | WorkflowPhase::Error)
    }
}

/// Phase of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are Argo's own
pub enum NodePhase {
    #[default]
    #[serde(rename = "")]
    Unknown,
    Pending,
    Running,
    Succeeded,
    Skipped,
    Failed,
    Error,
    Omitted,
}

impl NodePhase {
    /// Text as in `nodes.*.phase`.
    pub fn as_str(self) -> &'static str {
        match self {
            NodePhase::Unknown => "",
            NodePhase::Pending => "Pending",
            NodePhase::Running => "Running",
            NodePhase::Succeeded => "Succeeded",
            NodePhase::Skipped => "Skipped",
            NodePhase::Failed => "Failed",
            NodePhase::Error => "Error",
            NodePhase::Omitted => "Omitted",
        }
    }

    /// True when the node ran to an end, good or bad.
    pub fn is_completed(self) -> bool {
        matches!(self, NodePhase::Succeeded | NodePhase::Failed | NodePhase::Error)
    }

    /// True when nothing more will happen to the node.
    pub fn is_fulfilled(self) -> bool {
        self.is_completed() || matches!(self, NodePhase::Skipped | NodePhase::Omitted)
    }

    /// True for Failed and Error.
    pub fn is_failure(self) -> bool {
        matches!(self, NodePhase::Failed | NodePhase::Error)
    }
}

/// Kind of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[allow(missing_docs)] // the names are Argo's own
pub enum NodeType {
    #[default]
    #[serde(rename = "")]
    Unknown,
    Pod,
    Container,
    Steps,
    StepGroup,
    #[serde(rename = "DAG")]
    Dag,
    TaskGroup,
    Retry,
    Skipped,
    Suspend,
    #[serde(rename = "HTTP")]
    Http,
    Plugin,
}

impl NodeType {
    /// Text as in `nodes.*.type`.
    pub fn as_str(self) -> &'static str {
        match self {
            NodeType::Unknown => "",
            NodeType::Pod => "Pod",
            NodeType::Container => "Container",
            NodeType::Steps => "Steps",
            NodeType::StepGroup => "StepGroup",
            NodeType::Dag => "DAG",
            NodeType::TaskGroup => "TaskGroup",
            NodeType::Retry => "Retry",
            NodeType::Skipped => "Skipped",
            NodeType::Suspend => "Suspend",
            NodeType::Http => "HTTP",
            NodeType::Plugin => "Plugin",
        }
    }
}

/// Status of a Workflow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// Phase.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_unknown_phase")]
    pub phase: WorkflowPhase,
    /// Start; null until then.
    pub started_at: Option<Timestamp>,
    /// End; null until then.
    pub finished_at: Option<Timestamp>,
    /// Why it is in this phase.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// `done/all` over the pods.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub progress: String,
    /// Nodes by identifier.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub nodes: BTreeMap<String, NodeStatus>,
    /// Base64 of gzipped nodes, written by Argo when the object would become too large.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub compressed_nodes: String,
    /// Set when Argo keeps the nodes in its own database.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub offload_node_status_version: String,
    /// Conditions by type.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Seconds per resource.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub resources_duration: BTreeMap<String, i64>,
    /// Claims made for this Workflow.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub persistent_volume_claims: Vec<Value>,
    /// Global outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Outputs>,
    /// Where artifacts and logs are kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_repository_ref: Option<Value>,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A condition of the status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    /// `PodRunning`, `Completed`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Explanation.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// Marks of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeFlag {
    /// Made by a lifecycle hook.
    #[serde(skip_serializing_if = "is_false")]
    pub hooked: bool,
    /// An attempt of a Retry node.
    #[serde(skip_serializing_if = "is_false")]
    pub retried: bool,
}

/// Status of one node of the execution graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Identifier, also the key in `nodes`.
    pub id: String,
    /// Full name.
    pub name: String,
    /// Name without that of the boundary.
    pub display_name: String,
    /// Kind.
    #[serde(rename = "type", deserialize_with = "null_default")]
    pub kind: NodeType,
    /// Template that is run.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub template_name: String,
    /// `local/<workflow>` for templates of the Workflow itself.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub template_scope: String,
    /// Phase.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_unknown_node_phase")]
    pub phase: NodePhase,
    /// Enclosing DAG or Steps node.
    #[serde(rename = "boundaryID", deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub boundary_id: String,
    /// Why it is in this phase.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Start.
    pub started_at: Option<Timestamp>,
    /// End; null until then.
    pub finished_at: Option<Timestamp>,
    /// Guess in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub estimated_duration: Option<i64>,
    /// `done/all`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub progress: String,
    /// Seconds per resource.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub resources_duration: BTreeMap<String, i64>,
    /// Address of the pod.
    #[serde(rename = "podIP", deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub pod_ip: String,
    /// True for a daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daemoned: Option<bool>,
    /// Marks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_flag: Option<NodeFlag>,
    /// Inputs as processed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Inputs>,
    /// Outputs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outputs: Option<Outputs>,
    /// Nodes that come next.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<String>,
    /// Last nodes inside a DAG or Steps node.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub outbound_nodes: Vec<String>,
    /// Machine the pod ran on.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub host_node_name: String,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

fn is_unknown_phase(phase: &WorkflowPhase) -> bool {
    *phase == WorkflowPhase::Unknown
}

fn is_unknown_node_phase(phase: &NodePhase) -> bool {
    *phase == NodePhase::Unknown
}
