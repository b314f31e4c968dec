//! What the agent reads of the objects that it reports, and the JSON that it sends.

pub use kfp_core::argo::gone::RUN_ID;
use kfp_core::argo::gone::last_state;
use kfp_core::cluster::part::{Fields, Part};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::queue::Weight;

/// Label that the API server puts on a workflow whose final state it has stored.
pub const FINAL_STATE: &str = "pipeline/persistedFinalState";

/// An object as it is reported.
pub type Object = Part<Reported>;

/// Namespace and name.
pub type Key = (String, String);

/// The JSON as it was received, and the little of it that decides what to do.
#[derive(Clone, Debug)]
pub struct Reported {
    /// `status.finishedAt`, empty if there is none.
    pub finished_at: String,
    /// The object.
    pub json: Box<RawValue>,
}

impl Fields for Reported {
    fn read(json: Box<RawValue>) -> Self {
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Status {
            finished_at: Option<String>,
        }
        #[derive(Default, Deserialize)]
        struct Head {
            status: Option<Status>,
        }
        // An unreadable status counts as none: such a Workflow is reported as it is.
        let head: Head = serde_json::from_str(json.get()).unwrap_or_default();
        let status = head.status.unwrap_or_default();
        Self { finished_at: status.finished_at.unwrap_or_default(), json }
    }
}

/// What there is to say about an object.
#[derive(Debug)]
pub enum State {
    /// It is like this.
    Is(Object),
    /// It is not there any more, and was like this; a Workflow that vanished while nobody looked is known by its run only.
    Gone {
        /// The last state.
        last: Option<Object>,
        /// The run that it executed.
        run_id: String,
    },
}

impl Weight for State {
    fn weight(&self) -> usize {
        match self {
            Self::Is(object) | Self::Gone { last: Some(object), .. } => object.fields.json.get().len(),
            Self::Gone { last: None, .. } => 0,
        }
    }

    fn is_urgent(&self) -> bool {
        match self {
            Self::Is(object) => !object.fields.finished_at.is_empty(),
            Self::Gone { .. } => true,
        }
    }
}

/// Namespace and name of an object.
pub fn key(meta: &kube::api::ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The last report of a Workflow that was deleted.
pub fn obituary((namespace, name): &Key, last: Option<&Object>, run_id: &str, now: &str) -> String {
    let last = last.and_then(|last| serde_json::from_str(last.fields.json.get()).ok());
    last_state(last, namespace, name, run_id, now).to_string()
}

/// The report of a ScheduledWorkflow. Its parameters are JSON texts, except in those of v1 pipelines, where they are plain
/// texts; the version says which, as the API server expects.
pub fn schedule(json: &RawValue) -> String {
    #[derive(Deserialize)]
    struct Parameter {
        value: Option<String>,
    }
    #[derive(Default, Deserialize)]
    struct Workflow {
        #[serde(default)]
        parameters: Option<Vec<Parameter>>,
        spec: Option<Box<RawValue>>,
    }
    #[derive(Default, Deserialize)]
    struct Spec {
        workflow: Option<Workflow>,
    }
    #[derive(Default, Deserialize)]
    struct Head {
        spec: Option<Spec>,
    }
    let head: Head = serde_json::from_str(json.get()).unwrap_or_default();
    let workflow = head.spec.and_then(|spec| spec.workflow).unwrap_or_default();
    let v1 = workflow.spec.is_some_and(|spec| {
        let text = spec.get();
        text != "null"
            && !text.contains("pipelines.kubeflow.org/v2_pipeline")
            && !text.contains("pipelines.kubeflow.org/v2_component")
    });
    let json_texts = workflow.parameters.iter().flatten().all(|parameter| {
        serde_json::from_str::<serde::de::IgnoredAny>(parameter.value.as_deref().unwrap_or_default()).is_ok()
    });
    let version = if v1 || !json_texts { "kubeflow.org/v1beta1" } else { "kubeflow.org/v2beta1" };
    let Ok(mut fields) = serde_json::from_str::<std::collections::BTreeMap<&str, &RawValue>>(json.get()) else {
        return json.get().to_owned();
    };
    let texts = [("apiVersion", version), ("kind", "ScheduledWorkflow")]
        .map(|(key, text)| (key, RawValue::from_string(format!("\"{text}\""))));
    for (key, text) in &texts {
        if let Ok(text) = text {
            fields.insert(key, text);
        }
    }
    serde_json::to_string(&fields).unwrap_or_else(|_| json.get().to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object(json: &Value) -> Object {
        serde_json::from_str(&json.to_string()).unwrap()
    }

    #[test]
    fn the_end_is_read_and_a_strange_status_is_none() {
        let read = |status: Value| object(&json!({"metadata": {}, "status": status})).fields.finished_at;
        let end = "2026-01-01T00:00:00Z";
        assert_eq!(read(json!({"finishedAt": end, "phase": "Failed"})), end);
        for strange in [json!({"finishedAt": 5}), json!("broken"), json!({"finishedAt": null}), json!(null)] {
            assert_eq!(read(strange), "");
        }
    }

    #[test]
    fn version_of_a_schedule_tells_how_its_parameters_are_written() {
        let v2_spec = r#"{"metadata":{"annotations":{"pipelines.kubeflow.org/v2_pipeline":"true"}}}"#;
        for (workflow, want) in [
            (json!({"parameters": [{"name": "a", "value": "\"x\""}, {"name": "b", "value": "5"}]}), "v2beta1"),
            (json!({"parameters": [{"name": "a", "value": "x y"}]}), "v1beta1"),
            (json!({"parameters": [{"name": "a", "value": "5"}], "spec": "{}"}), "v1beta1"),
            (json!({"parameters": [{"name": "a", "value": "5"}], "spec": v2_spec}), "v2beta1"),
            (json!({"parameters": null, "spec": null}), "v2beta1"),
            (json!(null), "v2beta1"),
        ] {
            let original = json!({"apiVersion": "kubeflow.org/v1beta1", "metadata": {"name": "s"},
                "spec": {"workflow": workflow, "x": 1.50}, "status": {}});
            let raw = RawValue::from_string(original.to_string()).unwrap();
            let mut report: Value = serde_json::from_str(&schedule(&raw)).unwrap();
            assert_eq!(report["apiVersion"], format!("kubeflow.org/{want}"), "{original}");
            assert_eq!(report["kind"], "ScheduledWorkflow");
            report["apiVersion"] = original["apiVersion"].clone();
            report.as_object_mut().unwrap().remove("kind");
            assert_eq!(report, original);
        }
    }
}
