//! Reads the few members of raw objects that the shell needs, without parsing them whole.

use kfp_core::argo::{Workflow, names};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;

/// JSON pointer to the node identifier of a pod.
pub(super) const NODE_ID: &str = "/metadata/annotations/workflows.argoproj.io~1node-id";

/// A Workflow's place.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub namespace: String,
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

/// Text at a JSON pointer, empty when there is none.
pub(super) fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

impl Key {
    /// Place of the Workflow that a pod belongs to.
    pub fn of_pod(pod: &Value) -> Option<Key> {
        Key::new(text(pod, "/metadata/namespace"), pod["metadata"]["labels"][names::LABEL_WORKFLOW].as_str()?)
    }

    pub fn new(namespace: &str, name: &str) -> Option<Key> {
        (!name.is_empty()).then(|| Key { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// True when the pod was made for the Workflow of this identity.
pub(super) fn owned_by(pod: &Value, uid: &str) -> bool {
    let owners = pod["metadata"]["ownerReferences"].as_array();
    owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid))
}

/// What the shell has to know of a Workflow, read without parsing the rest.
pub(super) struct Head {
    pub key: Key,
    pub uid: String,
    pub version: u64,
    pub deleting: bool,
    /// The label says that it has ended.
    pub completed: bool,
}

impl Head {
    /// Reads it; `None` when the object has no name.
    pub fn of(json: &str) -> Option<Head> {
        #[derive(Deserialize)]
        struct Object {
            metadata: Metadata,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Metadata {
            #[serde(default)]
            namespace: String,
            name: String,
            #[serde(default)]
            uid: String,
            #[serde(default)]
            resource_version: String,
            deletion_timestamp: Option<IgnoredAny>,
            #[serde(default)]
            labels: Value,
        }
        let Object { metadata } = serde_json::from_str(json).ok()?;
        Some(Head {
            key: Key::new(&metadata.namespace, &metadata.name)?,
            uid: metadata.uid,
            version: metadata.resource_version.parse().unwrap_or(0),
            deleting: metadata.deletion_timestamp.is_some(),
            completed: metadata.labels[names::LABEL_COMPLETED] == "true",
        })
    }
}

/// A Workflow with only what decides when it is to be deleted.
pub(super) fn ending(json: &str) -> Option<Workflow> {
    #[derive(Deserialize)]
    struct Object {
        spec: Spec,
        status: Status,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Spec {
        ttl_strategy: Value,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Status {
        #[serde(default)]
        phase: Value,
        #[serde(default)]
        finished_at: Value,
    }
    let Object { spec, status } = serde_json::from_str(json).ok()?;
    let small = json!({
        "spec": {"ttlStrategy": spec.ttl_strategy},
        "status": {"phase": status.phase, "finishedAt": status.finished_at},
    });
    serde_json::from_value(small).ok()
}

/// What others may change in a Workflow under execution.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Steering {
    spec: Value,
    suspended: Vec<(String, Value)>,
}

impl Steering {
    /// Reads it off a Workflow; nothing where that is not shaped like one.
    pub fn of(workflow: &str) -> Steering {
        #[derive(Deserialize)]
        struct Object {
            spec: Spec,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Spec {
            #[serde(default)]
            active_deadline_seconds: Value,
            #[serde(default)]
            shutdown: Value,
            #[serde(default)]
            suspend: Value,
            #[serde(default)]
            templates: Vec<Template>,
        }
        #[derive(Deserialize)]
        struct Template {
            suspend: Option<IgnoredAny>,
        }
        let Ok(Object { spec }) = serde_json::from_str::<Object>(workflow) else { return Steering::default() };
        // Looking through all nodes at every change of a large Workflow is only worth it when one can be resumed.
        let can_suspend = spec.templates.iter().any(|template| template.suspend.is_some());
        Steering {
            spec: json!({
                "activeDeadlineSeconds": spec.active_deadline_seconds,
                "shutdown": spec.shutdown,
                "suspend": spec.suspend,
            }),
            suspended: if can_suspend { suspended(workflow) } else { Vec::new() },
        }
    }

    /// A Workflow with only these members.
    pub fn workflow(&self) -> Workflow {
        let nodes: serde_json::Map<String, Value> = self.suspended.iter().cloned().collect();
        serde_json::from_value(json!({"spec": self.spec, "status": {"nodes": nodes}})).unwrap_or_default()
    }
}

/// Suspend nodes with what others change in them.
fn suspended(workflow: &str) -> Vec<(String, Value)> {
    #[derive(Deserialize)]
    struct Object {
        status: Status,
    }
    #[derive(Deserialize)]
    struct Status {
        nodes: BTreeMap<String, Node>,
    }
    #[derive(Deserialize)]
    struct Node {
        #[serde(default)]
        r#type: Value,
        #[serde(default)]
        phase: Value,
        #[serde(default)]
        message: Value,
        #[serde(default)]
        outputs: Value,
    }
    let Ok(Object { status }) = serde_json::from_str::<Object>(workflow) else { return Vec::new() };
    let nodes = status.nodes.into_iter().filter(|(_, node)| node.r#type == "Suspend");
    nodes
        .map(|(id, node)| {
            (id, json!({"type": "Suspend", "phase": node.phase, "message": node.message, "outputs": node.outputs}))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steering_is_what_others_change() {
        let mut workflow = json!({
            "spec": {"templates": [{"name": "s", "suspend": {}}]},
            "status": {"nodes": {"a": {"type": "Suspend", "phase": "Running"}, "b": {"type": "Pod", "phase": "Running"}}},
        });
        let before = Steering::of(&workflow.to_string());
        workflow["status"]["nodes"]["b"]["phase"] = json!("Failed");
        assert_eq!(before, Steering::of(&workflow.to_string()));
        workflow["spec"]["activeDeadlineSeconds"] = json!(0);
        let after = Steering::of(&workflow.to_string());
        assert_ne!(before, after);
        assert_eq!(after.workflow().spec.active_deadline_seconds, Some(0));
        assert_eq!(after.workflow().status.nodes.len(), 1);
    }
}
