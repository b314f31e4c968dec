//! Reads the few members of raw objects that the shell needs, without parsing them whole.

use kfp_core::argo::{Workflow, names};
use serde_json::{Value, json};
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
    /// Place of a Workflow.
    pub fn of(workflow: &Value) -> Option<Key> {
        Key::new(text(workflow, "/metadata/namespace"), text(workflow, "/metadata/name"))
    }

    /// Place of the Workflow that a pod belongs to.
    pub fn of_pod(pod: &Value) -> Option<Key> {
        Key::new(text(pod, "/metadata/namespace"), pod["metadata"]["labels"][names::LABEL_WORKFLOW].as_str()?)
    }

    fn new(namespace: &str, name: &str) -> Option<Key> {
        (!name.is_empty()).then(|| Key { namespace: namespace.to_owned(), name: name.to_owned() })
    }
}

/// True when the pod was made for the Workflow of this identity.
pub(super) fn owned_by(pod: &Value, uid: &str) -> bool {
    let owners = pod["metadata"]["ownerReferences"].as_array();
    owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == uid))
}

/// Version of an object, for comparison.
pub(super) fn version(object: &Value) -> u64 {
    text(object, "/metadata/resourceVersion").parse().unwrap_or(0)
}

/// What others may change in a Workflow under execution.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Steering {
    spec: Value,
    suspended: Vec<(String, Value)>,
}

impl Steering {
    /// Reads it off a Workflow.
    pub fn of(workflow: &Value) -> Steering {
        let spec = &workflow["spec"];
        let nodes = workflow["status"]["nodes"].as_object();
        // Looking through all nodes at every change of a large Workflow is only worth it when one can be resumed.
        let can_suspend = || {
            let templates = spec["templates"].as_array();
            templates.is_some_and(|templates| templates.iter().any(|template| !template["suspend"].is_null()))
        };
        let suspended = nodes.filter(|_| can_suspend()).into_iter().flatten();
        Steering {
            spec: json!({
                "activeDeadlineSeconds": spec["activeDeadlineSeconds"],
                "shutdown": spec["shutdown"],
                "suspend": spec["suspend"],
            }),
            suspended: suspended
                .filter(|(_, node)| node["type"] == "Suspend")
                .map(|(id, node)| {
                    (id.clone(), json!({"type": "Suspend", "phase": node["phase"], "message": node["message"]}))
                })
                .collect(),
        }
    }

    /// A Workflow with only these members.
    pub fn workflow(&self) -> Workflow {
        let nodes: serde_json::Map<String, Value> = self.suspended.iter().cloned().collect();
        serde_json::from_value(json!({"spec": self.spec, "status": {"nodes": nodes}})).unwrap_or_default()
    }
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
        let before = Steering::of(&workflow);
        workflow["status"]["nodes"]["b"]["phase"] = json!("Failed");
        assert_eq!(before, Steering::of(&workflow));
        workflow["spec"]["activeDeadlineSeconds"] = json!(0);
        let after = Steering::of(&workflow);
        assert_ne!(before, after);
        assert_eq!(after.workflow().spec.active_deadline_seconds, Some(0));
        assert_eq!(after.workflow().status.nodes.len(), 1);
    }
}
