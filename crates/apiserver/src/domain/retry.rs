//! What a retry does to a failed Workflow: keep what succeeded, run the rest again.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::nodes::{pod_name, text};
use crate::error::{Error, Result};

/// Annotation that carries the retry generation of a run.
pub const GENERATION: &str = "pipelines.kubeflow.org/retry-generation";
/// Label of Workflows whose final state is stored.
pub const PERSISTED: &str = "pipeline/persistedFinalState";

/// A Workflow ready to run again, and the pods that must go first.
#[derive(Debug)]
pub struct Retry {
    /// The changed Workflow.
    pub workflow: Value,
    /// Pods of the nodes that run again.
    pub pods: Vec<String>,
}

fn phase(node: &Value) -> &str {
    text(node, "/phase")
}

/// Computes the Workflow of the next attempt.
///
/// # Errors
/// Code 10 when the Workflow has not failed, 13 when a node is still active.
pub fn plan(mut workflow: Value, generation: i64) -> Result<Retry> {
    if !matches!(text(&workflow, "/status/phase"), "Failed" | "Error") {
        return Err(Error::bad_request("Workflow must be Failed/Error to retry", "it is not"));
    }
    if !text(&workflow, "/status/offloadNodeStatusVersion").is_empty() {
        return Err(Error::bad_request("Cannot retry workflow with offloaded node status", "node status is offloaded"));
    }
    let on_exit = format!("{}.onExit", text(&workflow, "/metadata/name"));
    let mut pods = Vec::new();
    let mut kept = serde_json::Map::new();
    for (id, node) in workflow["status"]["nodes"].as_object().into_iter().flatten() {
        let exits = text(node, "/name").starts_with(&on_exit);
        match phase(node) {
            "Succeeded" | "Skipped" if !exits => {
                kept.insert(id.clone(), node.clone());
                continue;
            }
            "Error" | "Failed" | "Omitted" if !exits && text(node, "/type") == "DAG" => {
                let mut node = node.clone();
                node["phase"] = json!("Running");
                if let Some(fields) = node.as_object_mut() {
                    fields.remove("message");
                    fields.insert("finishedAt".to_owned(), Value::Null);
                }
                kept.insert(id.clone(), node);
                continue;
            }
            "Running" | "Pending" => {
                return Err(Error::internal(
                    "Workflow cannot be retried",
                    format!("node {} is {}", text(node, "/name"), phase(node)),
                ));
            }
            _ => {}
        }
        if text(node, "/type") == "Pod" {
            pods.push(pod_name(&workflow, node));
        }
    }
    let ids: BTreeSet<String> = kept.keys().cloned().collect();
    for node in kept.values_mut() {
        for key in ["children", "outboundNodes"] {
            if let Some(list) = node[key].as_array_mut() {
                list.retain(|id| id.as_str().is_some_and(|id| ids.contains(id)));
            }
        }
    }
    workflow["status"]["nodes"] = Value::Object(kept);
    workflow["status"]["phase"] = json!("Running");
    if let Some(status) = workflow["status"].as_object_mut() {
        status.remove("message");
        status.insert("finishedAt".to_owned(), Value::Null);
        if let Some(conditions) = status.get_mut("conditions").and_then(Value::as_array_mut) {
            for condition in conditions {
                if condition["type"] == "Completed" {
                    condition["status"] = json!("False");
                }
            }
        }
    }
    if workflow["spec"]["activeDeadlineSeconds"] == json!(0)
        && let Some(spec) = workflow["spec"].as_object_mut()
    {
        spec.remove("activeDeadlineSeconds");
    }
    if !workflow["metadata"]["labels"].is_object() {
        workflow["metadata"]["labels"] = json!({});
    }
    if let Some(labels) = workflow["metadata"]["labels"].as_object_mut() {
        labels.remove("workflows.argoproj.io/completed");
        labels.remove(PERSISTED);
        labels.insert("workflows.argoproj.io/phase".to_owned(), json!("Running"));
    }
    if !workflow["metadata"]["annotations"].is_object() {
        workflow["metadata"]["annotations"] = json!({});
    }
    workflow["metadata"]["annotations"][GENERATION] = json!(generation.to_string());
    Ok(Retry { workflow, pods })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn succeeded_nodes_stay_and_failed_pods_go() {
        let workflow = json!({
            "metadata": {"name": "wf", "labels": {"workflows.argoproj.io/completed": "true", PERSISTED: "true"}},
            "spec": {"activeDeadlineSeconds": 0},
            "status": {"phase": "Failed", "finishedAt": "x", "message": "m", "nodes": {
                "wf": {"id": "wf", "name": "wf", "type": "DAG", "phase": "Failed", "children": ["wf-1", "wf-2"]},
                "wf-1": {"id": "wf-1", "name": "wf.a", "type": "Pod", "phase": "Succeeded", "templateName": "a"},
                "wf-2": {"id": "wf-2", "name": "wf.b", "type": "Pod", "phase": "Failed", "templateName": "b"},
                "wf-3": {"id": "wf-3", "name": "wf.onExit", "type": "Pod", "phase": "Succeeded", "templateName": "c"},
            }}
        });
        let retry = plan(workflow, 2).unwrap();
        assert_eq!(retry.pods, ["wf-b-2", "wf-c-3"]);
        let nodes = retry.workflow["status"]["nodes"].as_object().unwrap();
        assert_eq!(nodes.keys().collect::<Vec<_>>(), ["wf", "wf-1"]);
        assert_eq!(nodes["wf"]["children"], json!(["wf-1"]));
        assert_eq!(nodes["wf"]["phase"], "Running");
        assert!(retry.workflow["spec"].get("activeDeadlineSeconds").is_none());
        assert_eq!(retry.workflow["metadata"]["annotations"][GENERATION], "2");
        assert!(retry.workflow["metadata"]["labels"].get(PERSISTED).is_none());
    }

    #[test]
    fn a_workflow_that_did_not_fail_is_refused() {
        let error = plan(json!({"status": {"phase": "Succeeded"}}), 1).unwrap_err();
        assert_eq!(error.code(), tonic::Code::Aborted);
    }
}
