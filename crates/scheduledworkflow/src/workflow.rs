//! The Workflow that a schedule holds, made ready for one run.

use kube::core::DynamicObject;
use serde_json::{Value, json};

use crate::macros::{Facts, expand};
use crate::model::{LABEL_RUN, LABELS};
use crate::names;

/// Marks of Workflows that were compiled from v2 pipelines.
const V2_PIPELINE: &str = "pipelines.kubeflow.org/v2_pipeline";
const V2_COMPONENT: &str = "pipelines.kubeflow.org/v2_component";

/// Why no Workflow can be made of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is no JSON object.
    #[error("spec.workflow.spec cannot be read: {0}")]
    Unreadable(String),
    /// Workflows of v1 pipelines are switched off.
    #[error("namespace {0} is not allowed to run v1 pipelines; please migrate to KFP v2 pipelines")]
    Blocked(String),
}

/// Which namespaces may run v1 pipelines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct V1Policy {
    /// Whether they are blocked at all.
    pub block: bool,
    /// Where they are allowed nevertheless.
    pub allowed: Vec<String>,
}

/// What one run adds to the Workflow.
#[derive(Clone, Copy, Debug)]
pub struct Instance<'a> {
    /// Id of the run.
    pub run_id: &'a str,
    /// The slot.
    pub slot: i64,
    /// The present.
    pub now: i64,
    /// Number of the run.
    pub index: i64,
}

impl V1Policy {
    /// Reads the two environment variables `BLOCK_V1_PIPELINES` and `V1_ALLOWED_NAMESPACES`.
    ///
    /// # Errors
    /// When the first one is not a boolean.
    pub fn from_env(block: &str, allowed: &str) -> Result<Self, String> {
        let block = match block {
            "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => false,
            "1" | "t" | "T" | "true" | "TRUE" | "True" => true,
            other => return Err(format!("BLOCK_V1_PIPELINES {other:?} is not a boolean")),
        };
        let allowed = allowed.split(',').map(|ns| ns.trim().to_lowercase()).filter(|ns| !ns.is_empty()).collect();
        Ok(Self { block, allowed })
    }

    fn check(&self, workflow: &Value, namespace: &str) -> Result<(), Error> {
        if self.block && !self.allowed.contains(&namespace.to_lowercase()) && !is_v2(workflow) {
            return Err(Error::Blocked(namespace.to_owned()));
        }
        Ok(())
    }
}

fn is_v2(workflow: &Value) -> bool {
    let marked = |place: &str, mark: &str| {
        ["labels", "annotations"].iter().any(|kind| workflow.pointer(place).is_some_and(|p| p[kind][mark] == "true"))
    };
    marked("/metadata", V2_PIPELINE) || marked("/spec/podMetadata", V2_COMPONENT)
}

/// The Workflow in the shape in which schedules hold it: a whole Workflow or a WorkflowSpec as text, or a WorkflowSpec.
fn embedded(spec: &Value) -> Result<Value, Error> {
    let bare = |spec: Value| json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "spec": spec});
    let Some(text) = spec.as_str() else { return Ok(bare(spec.clone())) };
    let parsed: Value = serde_json::from_str(text).map_err(|error| Error::Unreadable(error.to_string()))?;
    if !parsed.is_object() {
        return Err(Error::Unreadable("it is no object".to_owned()));
    }
    let whole = parsed.pointer("/spec/entrypoint").and_then(Value::as_str).is_some_and(|name| !name.is_empty());
    Ok(if whole { parsed } else { bare(parsed) })
}

/// The object at `key` of an object, made when there is none.
fn child<'a>(parent: &'a mut Value, key: &str) -> &'a mut Value {
    if !parent[key].is_object() {
        parent[key] = json!({});
    }
    &mut parent[key]
}

fn drop_keys(object: &mut Value, keys: &[&str]) {
    if let Some(map) = object.as_object_mut() {
        map.retain(|key, _| !keys.contains(&key.as_str()));
    }
}

/// The Workflow for one run of `schedule`.
///
/// # Errors
/// When the embedded Workflow cannot be read or the namespace may not run it.
pub fn build(schedule: &DynamicObject, run: &Instance<'_>, policy: &V1Policy) -> Result<Value, Error> {
    let meta = &schedule.metadata;
    let (name, namespace) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default());
    let workflow = embedded(schedule.data.pointer("/spec/workflow/spec").unwrap_or(&Value::Null))?;
    policy.check(&workflow, namespace)?;
    let text = workflow.to_string().replace("{{workflow.uid}}", run.run_id);
    let mut workflow: Value = serde_json::from_str(&text).map_err(|error| Error::Unreadable(error.to_string()))?;
    drop_keys(&mut workflow, &["status"]);

    let metadata = child(&mut workflow, "metadata");
    drop_keys(metadata, &["generateName", "uid", "resourceVersion", "creationTimestamp", "managedFields", "selfLink"]);
    metadata["name"] = json!(names::run_name(name, run.index));
    metadata["namespace"] = json!(namespace);
    metadata["ownerReferences"] = json!([{
        "apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "name": name,
        "uid": meta.uid, "controller": true, "blockOwnerDeletion": true,
    }]);
    let labels = child(metadata, "labels");
    for (key, value) in [
        ("scheduledWorkflowName", name.to_owned()),
        ("workflowEpoch", run.slot.to_string()),
        ("workflowIndex", run.index.to_string()),
        ("isOwnedByScheduledWorkflow", "true".to_owned()),
    ] {
        labels[format!("{LABELS}{key}")] = json!(value);
    }
    labels[LABEL_RUN] = json!(run.run_id);

    let spec = child(&mut workflow, "spec");
    child(child(spec, "podMetadata"), "labels")[LABEL_RUN] = json!(run.run_id);
    if let Some(Value::Array(parameters)) = spec.pointer_mut("/arguments/parameters") {
        let given = schedule.data.pointer("/spec/workflow/parameters").and_then(Value::as_array);
        override_parameters(parameters, given.map_or(&[], Vec::as_slice), run);
    }
    Ok(workflow)
}

/// Gives parameters that the Workflow has the values of the schedule; other fields than the value stay.
fn override_parameters(parameters: &mut [Value], given: &[Value], run: &Instance<'_>) {
    let facts =
        Facts { run_id: Some(run.run_id), scheduled: Some(run.slot), now: Some(run.now), index: Some(run.index) };
    for parameter in parameters {
        if !parameter.is_object() {
            continue;
        }
        // Upstream collects them in a map, so the last one of a name counts.
        let value = given.iter().rev().find(|given| given["name"] == parameter["name"]).map(|given| &given["value"]);
        if let Some(Value::String(value)) = value {
            parameter["value"] = json!(expand(value, &facts));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: Instance<'_> = Instance { run_id: "r-1", slot: 60, now: 65, index: 3 };

    fn schedule(workflow: Value) -> DynamicObject {
        let object = json!({
            "apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
            "metadata": {"name": "s", "namespace": "n", "uid": "u"}, "spec": {"workflow": workflow},
        });
        serde_json::from_value(object).unwrap()
    }

    fn built(workflow: Value) -> Value {
        build(&schedule(workflow), &RUN, &V1Policy::default()).unwrap()
    }

    #[test]
    fn whole_workflow_keeps_its_metadata() {
        let whole = json!({
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
            "metadata": {"generateName": "x-", "annotations": {"a": "b"}, "labels": {"l": "m"}},
            "spec": {"entrypoint": "main", "podMetadata": {"labels": {"p": "q"}},
                "arguments": {"parameters": [
                    {"name": "a", "value": "old", "enum": ["old", "new"]}, {"name": "b", "value": "kept"}]},
                "templates": [{"name": "main", "args": ["{{workflow.uid}}"]}]},
            "status": {"phase": "Failed"},
        });
        let parameters = json!([{"name": "a", "value": "[[Index]] [[ScheduledTime]]"}, {"name": "z", "value": "1"}]);
        let workflow = built(json!({"spec": whole.to_string(), "parameters": parameters}));
        let want = json!({
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
            "metadata": {
                "name": names::run_name("s", 3), "namespace": "n", "annotations": {"a": "b"},
                "labels": {"l": "m", "pipeline/runid": "r-1",
                    "scheduledworkflows.kubeflow.org/scheduledWorkflowName": "s",
                    "scheduledworkflows.kubeflow.org/workflowEpoch": "60",
                    "scheduledworkflows.kubeflow.org/workflowIndex": "3",
                    "scheduledworkflows.kubeflow.org/isOwnedByScheduledWorkflow": "true"},
                "ownerReferences": [{"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "name": "s",
                    "uid": "u", "controller": true, "blockOwnerDeletion": true}]},
            "spec": {"entrypoint": "main", "podMetadata": {"labels": {"p": "q", "pipeline/runid": "r-1"}},
                "arguments": {"parameters": [
                    {"name": "a", "value": "3 19700101000100", "enum": ["old", "new"]},
                    {"name": "b", "value": "kept"}]},
                "templates": [{"name": "main", "args": ["r-1"]}]},
        });
        assert_eq!(workflow, want);
    }

    #[test]
    fn bare_specs_become_workflows() {
        let spec = json!({"entrypoint": "main", "templates": []});
        for given in [json!(spec.to_string()), spec] {
            let workflow = built(json!({"spec": given}));
            assert_eq!(workflow["kind"], "Workflow");
            assert_eq!(workflow["spec"]["entrypoint"], "main");
        }
    }

    #[test]
    fn unreadable_text_is_refused() {
        for text in ["", "{", "[]", "5"] {
            let result = build(&schedule(json!({"spec": text})), &RUN, &V1Policy::default());
            assert!(matches!(result, Err(Error::Unreadable(_))), "{text}");
        }
    }

    #[test]
    fn v1_pipelines_run_only_where_they_may() {
        let policy = V1Policy::from_env("true", "a, N2 ,").unwrap();
        let v1 = json!({"spec": {"entrypoint": "main"}});
        let refused = build(&schedule(v1.clone()), &RUN, &policy).unwrap_err();
        assert_eq!(refused, Error::Blocked("n".to_owned()));
        let mut allowed = schedule(v1);
        allowed.metadata.namespace = Some("n2".to_owned());
        assert!(build(&allowed, &RUN, &policy).is_ok());
        for kind in ["labels", "annotations"] {
            let spec = json!({"entrypoint": "m", "podMetadata": {kind: {V2_COMPONENT: "true"}}});
            assert!(build(&schedule(json!({"spec": spec})), &RUN, &policy).is_ok(), "{kind}");
            let whole = json!({"metadata": {kind: {V2_PIPELINE: "true"}}, "spec": {"entrypoint": "m"}});
            assert!(build(&schedule(json!({"spec": whole.to_string()})), &RUN, &policy).is_ok(), "{kind}");
        }
        assert!(V1Policy::from_env("maybe", "").is_err());
    }
}
