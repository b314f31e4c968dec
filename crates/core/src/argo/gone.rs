//! The end of a Workflow that was deleted before anybody had stored its end.

use serde_json::{Map, Value, json};

use super::{API_VERSION, KIND};

/// Label with the run that a Workflow executes.
pub const RUN_ID: &str = "pipeline/runid";
/// The phase of a Workflow that is gone, and why.
const PHASE: &str = "Error";
const MESSAGE: &str = "the Workflow was deleted before the run ended, and not by Kubeflow Pipelines";

/// The last state of a Workflow that does not exist any more: one that had ended stays as it was, any other has failed, as
/// has each of its nodes that was under way. `last` is the newest state that is known, `now` an RFC 3339 time.
///
/// Owners are left out, or the API server would take the Workflow of a run that a user deleted for a new one of its
/// schedule.
#[must_use]
pub fn last_state(last: Option<Value>, namespace: &str, name: &str, run_id: &str, now: &str) -> Value {
    let mut object = last.filter(Value::is_object).unwrap_or_else(|| {
        json!({
            "apiVersion": API_VERSION, "kind": KIND,
            "metadata": {"namespace": namespace, "name": name, "uid": run_id, "labels": {RUN_ID: run_id}},
        })
    });
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("ownerReferences");
    }
    let phase = object.pointer("/status/phase").and_then(Value::as_str);
    if matches!(phase, Some("Succeeded" | "Failed" | "Error")) {
        return object;
    }
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    let end = |status: &mut Map<String, Value>| {
        for (key, text) in [("phase", PHASE), ("message", MESSAGE), ("finishedAt", now)] {
            status.insert(key.to_owned(), json!(text));
        }
    };
    for node in object["status"]["nodes"].as_object_mut().into_iter().flat_map(Map::values_mut) {
        if let Some(node) = node.as_object_mut()
            && matches!(node.get("phase").and_then(Value::as_str), None | Some("" | "Pending" | "Running"))
        {
            end(node);
        }
    }
    if let Some(status) = object["status"].as_object_mut() {
        end(status);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    #[test]
    fn deleted_workflow_ends_with_all_that_was_running() {
        let last = json!({
            "metadata": {"name": "w", "namespace": "n", "uid": "u", "labels": {RUN_ID: "r"}, "ownerReferences": [{}]},
            "status": {"phase": "Running", "nodes": {"a": {"phase": "Succeeded"}, "b": {"phase": "Running"}, "c": {}}},
        });
        let end = last_state(Some(last.clone()), "n", "w", "r", NOW);
        assert_eq!(end["metadata"].get("ownerReferences"), None);
        let phases = ["/status", "/status/nodes/a", "/status/nodes/b", "/status/nodes/c"]
            .map(|at| end.pointer(at).unwrap()["phase"].as_str().unwrap());
        assert_eq!(phases, ["Error", "Succeeded", "Error", "Error"]);
        assert_eq!((&end["status"]["finishedAt"], &end["status"]["message"]), (&json!(NOW), &json!(MESSAGE)));

        let mut ended = last;
        ended["status"]["phase"] = json!("Succeeded");
        assert_eq!(last_state(Some(ended.clone()), "n", "w", "r", NOW)["status"], ended["status"]);
    }

    #[test]
    fn unknown_workflow_ends_as_the_one_of_its_run() {
        for last in [None, Some(json!("damaged"))] {
            let end = last_state(last, "n", "w", "r", NOW);
            assert_eq!((&end["metadata"]["labels"][RUN_ID], &end["metadata"]["name"]), (&json!("r"), &json!("w")));
            assert_eq!(end["status"]["phase"], "Error");
        }
        let strange = last_state(Some(json!({"metadata": {}, "status": 5})), "n", "w", "r", NOW);
        assert_eq!(strange["status"]["phase"], "Error");
    }
}
