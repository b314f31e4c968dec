//! What of an execution has to be written into the Workflow object.

use crate::execution::Execution;
use kfp_core::argo::{NodeStatus, Timestamp, names};
use kfp_local_api::Edits;
use serde_json::{Map, Value, json};

/// A set of changes to a Workflow. Touches only what the engine owns, so that nothing written by others is lost.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Members of the status besides the nodes; null removes.
    pub status: Map<String, Value>,
    /// Nodes, whole.
    pub nodes: Vec<(String, Value)>,
    /// Labels.
    pub labels: Vec<(&'static str, String)>,
    /// The Workflow has ended with this.
    pub last: bool,
}

impl Changes {
    pub(crate) fn take(execution: &mut Execution) -> Option<Changes> {
        let running = if execution.nodes.active_pods > 0 { "True" } else { "False" };
        if !execution.is_done() && execution.status.started_at.is_some() {
            execution.set_condition("PodRunning", running);
        }
        if !execution.has_changes() {
            return None;
        }
        execution.status_changed = false;
        let mut changes = Changes { last: execution.is_done(), ..Changes::default() };
        for index in execution.nodes.take_dirty() {
            let progress = execution.nodes.progress(index);
            let mut node: NodeStatus = execution.nodes[index].status.clone();
            node.progress = progress;
            changes.nodes.push((node.id.clone(), json!(node)));
        }
        let (done, all) = execution.nodes.pods;
        execution.status.progress = if all == 0 { String::new() } else { format!("{done}/{all}") };
        if let Value::Object(mut status) = json!(execution.status) {
            for optional in ["message", "persistentVolumeClaims"] {
                status.entry(optional).or_insert(Value::Null);
            }
            status.remove("nodes");
            changes.status = status;
        }
        if std::mem::take(&mut execution.labels_changed) {
            changes.labels = vec![
                (names::LABEL_PHASE, execution.phase().as_str().to_owned()),
                (names::LABEL_COMPLETED, execution.is_done().to_string()),
            ];
        }
        Some(changes)
    }

    /// What to do to the Workflow object.
    pub fn into_edits(self) -> Edits {
        let mut edits = Edits::default();
        for (key, value) in self.status {
            match value {
                // Argo writes these as null while unset; other members are left out.
                Value::Null if key != "startedAt" && key != "finishedAt" => edits.remove(&["status", &key]),
                value => edits.set(&["status", &key], value),
            }
        }
        for (id, node) in self.nodes {
            edits.set(&["status", "nodes", &id], node);
        }
        if !self.labels.is_empty() {
            for (key, value) in self.labels {
                edits.set(&["metadata", "labels", key], value.into());
            }
            edits.set_if_absent(&["metadata", "annotations", names::ANNOTATION_POD_NAME_FORMAT], "v2".into());
        }
        edits
    }
}

/// When a finished Workflow is to be deleted; `None` when never.
pub fn expiry(workflow: &kfp_core::argo::Workflow) -> Option<Timestamp> {
    use kfp_core::argo::WorkflowPhase;
    let ttl = workflow.spec.ttl_strategy.as_ref()?;
    let specific = match workflow.status.phase {
        WorkflowPhase::Succeeded => ttl.seconds_after_success,
        WorkflowPhase::Failed => ttl.seconds_after_failure,
        _ => None,
    };
    let seconds = specific.or(ttl.seconds_after_completion).filter(|_| workflow.status.phase.is_completed())?;
    let finished = workflow.status.finished_at?.0;
    Some(Timestamp(finished.checked_add_signed(chrono::Duration::try_seconds(seconds)?)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfp_core::argo::Workflow;

    #[test]
    fn changes_touch_only_what_the_engine_owns() {
        let object = json!({
            "metadata": {"name": "w", "labels": {"pipeline/runid": "r"}},
            "status": {"message": "old", "nodes": {"a": {"id": "a"}}, "other": 1},
        });
        let mut changes = Changes::default();
        changes.status.insert("message".into(), Value::Null);
        changes.status.insert("finishedAt".into(), Value::Null);
        changes.nodes = vec![("b".into(), json!({"id": "b"}))];
        changes.labels = vec![(names::LABEL_PHASE, "Running".into())];
        let edited = changes.into_edits().apply(&object.to_string()).unwrap();
        assert_eq!(
            serde_json::from_str::<Value>(&edited).unwrap(),
            json!({
                "metadata": {"name": "w",
                    "labels": {"pipeline/runid": "r", names::LABEL_PHASE: "Running"},
                    "annotations": {names::ANNOTATION_POD_NAME_FORMAT: "v2"}},
                "status": {"finishedAt": null, "nodes": {"a": {"id": "a"}, "b": {"id": "b"}}, "other": 1},
            })
        );
    }

    #[test]
    fn expiry_follows_the_phase() {
        let workflow = |phase: &str, ttl: Value| -> Workflow {
            serde_json::from_value(json!({
                "spec": {"ttlStrategy": ttl},
                "status": {"phase": phase, "finishedAt": "2026-01-01T00:00:00Z"},
            }))
            .unwrap()
        };
        let ttl = json!({"secondsAfterCompletion": 1, "secondsAfterFailure": 2});
        for (phase, expected) in [
            ("Succeeded", Some("2026-01-01T00:00:01Z")),
            ("Failed", Some("2026-01-01T00:00:02Z")),
            ("Error", Some("2026-01-01T00:00:01Z")),
            ("Running", None),
        ] {
            let got = expiry(&workflow(phase, ttl.clone())).map(|time| time.to_string());
            assert_eq!(got.as_deref(), expected, "{phase}");
        }
        assert_eq!(expiry(&workflow("Succeeded", json!({"secondsAfterFailure": 5}))), None);
    }
}
