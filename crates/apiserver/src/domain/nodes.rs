//! From the nodes of a reported Workflow to the tasks of its run.

use std::collections::HashMap;

use serde_json::Value;

use super::reuse;
use super::state::State;
use crate::store::tasks::Task;

/// Unix seconds of a Kubernetes time; 0 when it is absent.
#[must_use]
pub fn seconds(value: &Value) -> i64 {
    let parsed = value.as_str().and_then(|text| chrono::DateTime::parse_from_rfc3339(text).ok());
    parsed.map_or(0, |time| time.timestamp())
}

/// Text at a JSON pointer; empty when absent.
#[must_use]
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A label or annotation of an object; empty when absent. `map` is `labels` or `annotations`.
#[must_use]
pub fn meta<'a>(object: &'a Value, map: &str, key: &str) -> &'a str {
    object["metadata"][map][key].as_str().unwrap_or_default()
}

/// Name of the pod of a node, as upstream derives it (Argo's second naming, without its truncation).
#[must_use]
pub fn pod_name(workflow: &Value, node: &Value) -> String {
    let (name, id) = (text(workflow, "/metadata/name"), text(node, "/id"));
    if text(workflow, "/apiVersion") == "v1"
        || meta(workflow, "annotations", "workflows.argoproj.io/pod-name-format") == "v1"
    {
        return id.to_owned();
    }
    let node_name = text(node, "/name");
    if node_name == name {
        return name.to_owned();
    }
    let suffix = id.rsplit('-').next().unwrap_or_default();
    let mut template = text(node, "/templateName");
    if template.is_empty() {
        template = text(node, "/templateRef/template");
    }
    if node_name.contains(".inline") || template.is_empty() {
        format!("{name}-{suffix}")
    } else {
        format!("{name}-{template}-{suffix}")
    }
}

/// The nodes of a Workflow in the order of their ids.
#[must_use]
pub fn nodes(workflow: &Value) -> Vec<&Value> {
    // serde_json maps are sorted unless a crate asks for insertion order; sort to be independent of that.
    let mut nodes: Vec<(&String, &Value)> = workflow["status"]["nodes"].as_object().into_iter().flatten().collect();
    nodes.sort_by_key(|(id, _)| id.as_str());
    nodes.into_iter().map(|(_, node)| node).collect()
}

/// A node, as the task that it becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct Reported {
    /// The task, without its ids and history.
    pub task: Task,
    /// What is to be said about its state.
    pub note: String,
    /// Where in the list the node around it stands.
    pub parent: Option<usize>,
}

/// One task for each node.
#[must_use]
pub fn tasks(workflow: &Value, run_id: &str) -> Vec<Reported> {
    let created = seconds(&workflow["metadata"]["creationTimestamp"]);
    let reuse = reuse::notes(workflow);
    let mut found: Vec<Reported> = Vec::new();
    let mut by_pod: HashMap<String, usize> = HashMap::new();
    let mut by_id: HashMap<&str, usize> = HashMap::new();
    let nodes = nodes(workflow);
    for node in &nodes {
        let children = node["children"].as_array().into_iter().flatten();
        let state = State::parse(text(node, "/phase"));
        let message = text(node, "/message");
        let said = [message, reuse.get(text(node, "/id")).copied().unwrap_or_default()];
        let note: Vec<&str> = said.into_iter().filter(|text| !text.is_empty()).collect();
        let task = Task {
            message: if state == State::Failed { message.to_owned() } else { String::new() },
            is_pod: text(node, "/type") == "Pod",
            namespace: text(workflow, "/metadata/namespace").to_owned(),
            run_id: run_id.to_owned(),
            pod_name: pod_name(workflow, node),
            created_at: created,
            started_at: seconds(&node["startedAt"]),
            finished_at: seconds(&node["finishedAt"]),
            name: text(node, "/displayName").to_owned(),
            state,
            children: children.filter_map(Value::as_str).map(str::to_owned).collect(),
            ..Task::default()
        };
        // Nodes with the same derived pod name are one task: the last one wins.
        let at = *by_pod.entry(task.pod_name.clone()).or_insert(found.len());
        by_id.insert(text(node, "/id"), at);
        let reported = Reported { task, note: note.join("; "), parent: None };
        match found.get_mut(at) {
            Some(earlier) => *earlier = reported,
            None => found.push(reported),
        }
    }
    for node in &nodes {
        let place = |id: &str| by_id.get(id).copied();
        let parent = place(text(node, "/boundaryID"));
        if let Some(reported) = place(text(node, "/id")).and_then(|at| found.get_mut(at)) {
            reported.parent = parent;
        }
    }
    found
}

/// What has to be written after a report.
#[derive(Debug, Default, PartialEq)]
pub struct Changes {
    /// Tasks that are new.
    pub insert: Vec<Task>,
    /// Tasks that differ from what is stored.
    pub update: Vec<Task>,
}

/// Merges reported tasks into the stored ones of the same run: what a report leaves empty keeps its value, and histories
/// grow when the state changes. `id` makes ids for new tasks.
#[must_use]
pub fn merge(stored: &[Task], reported: Vec<Reported>, now: i64, mut id: impl FnMut() -> String) -> Changes {
    let by_pod: HashMap<&str, &Task> = stored.iter().map(|task| (task.pod_name.as_str(), task)).collect();
    let known = |task: &Task| by_pod.get(task.pod_name.as_str()).copied();
    let ids: Vec<String> =
        reported.iter().map(|new| known(&new.task).map_or_else(&mut id, |old| old.id.clone())).collect();
    let mut changes = Changes::default();
    for (at, Reported { mut task, note, parent }) in reported.into_iter().enumerate() {
        let [own, parent] = [Some(at), parent].map(|at| at.and_then(|at| ids.get(at)).cloned().unwrap_or_default());
        (task.id, task.parent_id) = (own, parent);
        let Some(old) = known(&task) else {
            task.history.note_because(task.state, now, &note);
            changes.insert.push(task);
            continue;
        };
        let keep = |new: &mut String, old: &String| {
            if new.is_empty() {
                new.clone_from(old);
            }
        };
        task.history.clone_from(&old.history);
        keep(&mut task.execution_id, &old.execution_id);
        keep(&mut task.pipeline_name, &old.pipeline_name);
        keep(&mut task.fingerprint, &old.fingerprint);
        keep(&mut task.name, &old.name);
        keep(&mut task.parent_id, &old.parent_id);
        keep(&mut task.inputs, &old.inputs);
        keep(&mut task.outputs, &old.outputs);
        keep(&mut task.namespace, &old.namespace);
        for (new, old) in [
            (&mut task.created_at, old.created_at),
            (&mut task.started_at, old.started_at),
            (&mut task.finished_at, old.finished_at),
        ] {
            if *new == 0 {
                *new = old;
            }
        }
        if task.state == State::Unspecified {
            task.state = old.state;
        }
        if task.children.is_empty() {
            task.children.clone_from(&old.children);
        }
        task.history.note_because(task.state, now, &note);
        // Not read with the stored tasks, and settled by their names.
        let is_pod = std::mem::replace(&mut task.is_pod, old.is_pod);
        if task != *old {
            changes.update.push(Task { is_pod, ..task });
        }
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workflow(phase: &str) -> Value {
        json!({
            "apiVersion": "argoproj.io/v1alpha1",
            "metadata": {"name": "wf-x", "namespace": "ns", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {"phase": "Running", "nodes": {
                "wf-x": {"id": "wf-x", "name": "wf-x", "displayName": "wf-x", "type": "DAG", "phase": "Running",
                         "children": ["wf-x-111"], "startedAt": "2026-01-01T00:00:01Z"},
                "wf-x-111": {"id": "wf-x-111", "name": "wf-x.train", "displayName": "train", "type": "Pod",
                             "templateName": "impl", "phase": phase, "startedAt": null, "boundaryID": "wf-x",
                             "message": "when false"},
            }}
        })
    }

    #[test]
    fn nodes_become_tasks_with_derived_pod_names() {
        let tasks = tasks(&workflow("Skipped"), "r");
        assert_eq!(tasks.len(), 2);
        let (whole, inner) = (&tasks[0].task, &tasks[1].task);
        assert_eq!((whole.pod_name.as_str(), whole.children.as_slice()), ("wf-x", &["wf-x-111".to_owned()][..]));
        assert_eq!((inner.pod_name.as_str(), inner.state), ("wf-x-impl-111", State::Skipped));
        assert_eq!((inner.created_at, inner.started_at), (1_767_225_600, 0));
        assert_eq!((whole.is_pod, inner.is_pod, tasks[0].parent, tasks[1].parent), (false, true, None, Some(0)));
        assert_eq!(tasks[1].note, "when false");
    }

    #[test]
    fn a_repeated_report_changes_nothing_and_a_new_state_is_noted() {
        let mut next = 0;
        let mut id = || {
            next += 1;
            format!("id{next}")
        };
        let first = merge(&[], tasks(&workflow("Running"), "r"), 10, &mut id);
        assert_eq!((first.insert.len(), first.update.len()), (2, 0));
        assert_eq!(first.insert[1].parent_id, first.insert[0].id);
        let again = merge(&first.insert, tasks(&workflow("Running"), "r"), 20, &mut id);
        assert_eq!(again, Changes::default());
        let done = merge(&first.insert, tasks(&workflow("Succeeded"), "r"), 30, &mut id);
        assert_eq!(done.update.len(), 1);
        assert_eq!(done.update[0].id, "id2");
        assert_eq!(done.update[0].history.0.len(), 2);
    }
}
