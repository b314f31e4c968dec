//! Where artifacts go: the repository of the installation, and artifacts known in the whole workflow.

use crate::execution::Execution;
use crate::model::Model;
use crate::nodes::Index;
use crate::substitute::{self, Scope};
use kfp_core::argo::{Artifact, Parameter, Spec, Template};
use serde_json::{Value, json};

/// Key of artifacts in a repository without `keyFormat`.
const KEY_FORMAT: &str = "{{workflow.name}}/{{pod.name}}";

/// Default location of a pod's artifacts, as Argo hands it to the pod: the repository with the pod's own key.
/// `None` when the template neither has artifacts nor keeps its logs.
///
/// # Errors
/// When a tag in the key does not resolve.
pub(crate) fn location(
    repository: &Value,
    spec: &Spec,
    template: &Template,
    scope: &dyn Scope,
) -> Result<Option<Value>, substitute::Error> {
    let own = template.extra.get("archiveLocation").cloned().unwrap_or_default();
    let logs = own["archiveLogs"]
        .as_bool()
        .or_else(|| spec.extra.get("archiveLogs").and_then(Value::as_bool))
        .or_else(|| repository["archiveLogs"].as_bool())
        .unwrap_or(false);
    if !logs && template.inputs.artifacts.is_empty() && template.outputs.artifacts.is_empty() {
        return Ok(None);
    }
    let mut s3 = repository["s3"].as_object().cloned().unwrap_or_default();
    let format = s3.remove("keyFormat").or_else(|| s3.remove("keyPrefix"));
    s3.entry("key").or_insert_with(|| format.unwrap_or_else(|| json!(KEY_FORMAT)));
    if let Value::Object(own) = &own["s3"] {
        s3.extend(own.clone());
    }
    substitute::json(&json!({"archiveLogs": logs, "s3": s3}), scope).map(Some)
}

/// What the status says of the repository; `None` when nothing of the Workflow goes there.
pub(crate) fn reference(repository: &Value, model: &Model) -> Option<Value> {
    let used = repository["archiveLogs"] == true
        || model
            .templates
            .values()
            .map(|template| &template.template)
            .any(|template| !template.inputs.artifacts.is_empty() || !template.outputs.artifacts.is_empty());
    used.then(|| json!({"default": true, "artifactRepository": repository}))
}

/// Name of the variable that holds a global artifact.
fn variable(name: &str) -> String {
    format!("{}workflow.outputs.artifacts.{name}", crate::tasks::ARTIFACT)
}

impl Execution {
    /// Makes the outputs that a status names known in the whole workflow.
    pub(crate) fn load_globals(&mut self) {
        let outputs = self.status.outputs.clone().unwrap_or_default();
        for parameter in outputs.parameters {
            let value = parameter.value.unwrap_or_default();
            self.globals.set(format!("workflow.outputs.parameters.{}", parameter.name), value);
        }
        for artifact in outputs.artifacts {
            self.globals.set(variable(&artifact.name), json!(artifact).to_string());
        }
    }

    /// Outputs with a `globalName` become variables of the whole workflow.
    pub(crate) fn export_globals(&mut self, index: Index) {
        let Some(outputs) = &self.nodes[index].status.outputs else { return };
        let parameters: Vec<Parameter> = outputs
            .parameters
            .iter()
            .filter_map(|parameter| Some(Parameter::new(parameter.global_name.clone()?, parameter.value.clone()?)))
            .collect();
        let artifacts: Vec<Artifact> = outputs
            .artifacts
            .iter()
            .filter_map(|artifact| {
                let name = artifact.extra.get("globalName")?.as_str()?.to_owned();
                let mut global = Artifact { name, ..artifact.clone() };
                global.extra.remove("globalName");
                Some(global)
            })
            .collect();
        if parameters.is_empty() && artifacts.is_empty() {
            return;
        }
        let known = self.status.outputs.get_or_insert_default();
        for parameter in parameters {
            known.parameters.retain(|old| old.name != parameter.name);
            known.parameters.push(parameter);
        }
        for artifact in artifacts {
            known.artifacts.retain(|old| old.name != artifact.name);
            known.artifacts.push(artifact);
        }
        self.status_changed = true;
        self.load_globals();
    }
}
