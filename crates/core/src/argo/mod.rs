//! Typed subset of Argo's `Workflow` resource: what the compiler writes, the engine executes, the API server
//! stores and the persistence agent reports.
//!
//! Fields without a name here are kept in `extra` and written back unchanged, so a value that is read, changed
//! and written loses nothing.

pub mod gone;
mod meta;
pub mod names;
mod params;
mod spec;
mod status;
mod time;

pub use meta::{ObjectMeta, OwnerReference};
pub use params::{Artifact, Inputs, Outputs, Parameter, ValueFrom};
pub use spec::{
    Arguments, Backoff, ContinueOn, DagTask, DagTemplate, Hook, Metadata, RetryStrategy, Sequence, Spec, Template,
    TtlStrategy, WorkflowStep,
};
pub use status::{Condition, NodeFlag, NodePhase, NodeStatus, NodeType, Status, WorkflowPhase};
pub use time::Timestamp;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// JSON members without a field of their own.
pub type Extra = Map<String, Value>;

/// Group and version of the Workflow resource.
pub const API_VERSION: &str = "argoproj.io/v1alpha1";
/// Kind of the Workflow resource.
pub const KIND: &str = "Workflow";

/// An Argo Workflow object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Workflow {
    /// `argoproj.io/v1alpha1`.
    pub api_version: String,
    /// `Workflow`.
    pub kind: String,
    /// Object metadata.
    pub metadata: ObjectMeta,
    /// What to run.
    pub spec: Spec,
    /// What has happened so far.
    #[serde(deserialize_with = "null_default")]
    pub status: Status,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Workflow {
    /// Value of a label, if it is set.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.metadata.labels.get(key).map(String::as_str)
    }

    /// Value of an annotation, if it is set.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.get(key).map(String::as_str)
    }
}

/// Reads a missing or null member as the default value (Go writes nil slices and maps as null).
pub(crate) fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// True for `false`, to leave a Go bool out as `omitempty` does.
pub(crate) fn is_false(value: &bool) -> bool {
    !*value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_members_survive_a_round_trip() {
        let text = serde_json::json!({
            "apiVersion": API_VERSION, "kind": KIND, "future": 1,
            "metadata": {"name": "w", "labels": {"a": "b"}, "managedFields": []},
            "spec": {
                "entrypoint": "main", "priority": 3,
                "arguments": {"parameters": [{"name": "p", "value": "x"}]},
                "templates": [{
                    "name": "main", "inputs": {}, "outputs": {}, "metadata": {}, "daemon": true,
                    "dag": {"tasks": [{"name": "a", "template": "t", "arguments": {}, "inline": {"x": 1}}]},
                }],
            },
            "status": {
                "phase": "Running", "startedAt": "2026-01-02T03:04:05Z", "finishedAt": null, "synchronization": {"x": 1},
                "nodes": {"w": {
                    "id": "w", "name": "w", "displayName": "w", "type": "DAG", "phase": "Running",
                    "startedAt": "2026-01-02T03:04:05Z", "finishedAt": null, "memoizationStatus": {"hit": false},
                }},
            },
        });
        let workflow: Workflow = serde_json::from_value(text.clone()).unwrap();
        assert_eq!(workflow.status.nodes["w"].phase, NodePhase::Running);
        assert_eq!(serde_json::to_value(&workflow).unwrap(), text);
    }

    #[test]
    fn numbers_and_booleans_are_accepted_as_parameter_values() {
        let parameter: Parameter =
            serde_json::from_value(serde_json::json!({"name": "p", "value": 3, "default": true})).unwrap();
        assert_eq!(parameter.value.as_deref(), Some("3"));
        assert_eq!(parameter.default.as_deref(), Some("true"));
    }

    #[test]
    fn null_lists_and_status_read_as_empty() {
        let workflow: Workflow = serde_json::from_value(serde_json::json!({
            "metadata": {"labels": null},
            "spec": {"templates": null, "arguments": {"parameters": null}},
            "status": null,
        }))
        .unwrap();
        assert!(workflow.spec.templates.is_empty() && workflow.status.nodes.is_empty());
    }
}
