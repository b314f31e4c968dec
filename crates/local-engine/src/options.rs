//! Options of the engine.

use kfp_core::argo::Workflow;
use serde_json::{Value, json};

/// How the engine runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only Workflows of this namespace; of all without one.
    pub namespace: Option<String>,
    /// What an installation sets for all its Workflows.
    pub settings: Settings,
}

/// What an installation sets for all its Workflows, in the shapes of Argo's controller configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// `artifactRepository`: where artifacts without a location of their own go.
    pub artifact_repository: Value,
    /// `workflowDefaults`: merged under every Workflow; what the Workflow says wins. Null for none.
    pub workflow_defaults: Value,
}

impl Default for Settings {
    /// The repository of a stock installation, except that logs are not copied into it: here they stay readable as
    /// long as their Workflow. No defaults for Workflows.
    fn default() -> Settings {
        let key = "private-artifacts/{{workflow.namespace}}/{{workflow.name}}/{{workflow.creationTimestamp.Y}}/\
                   {{workflow.creationTimestamp.m}}/{{workflow.creationTimestamp.d}}/{{pod.name}}";
        Settings {
            artifact_repository: json!({"archiveLogs": false, "s3": {"bucket": "mlpipeline", "keyFormat": key}}),
            workflow_defaults: Value::Null,
        }
    }
}

impl Settings {
    /// Merges the defaults under a Workflow.
    pub(crate) fn apply(&self, workflow: Workflow) -> Workflow {
        if !self.workflow_defaults["spec"].is_object() {
            return workflow;
        }
        let merged = serde_json::to_value(&workflow.spec).map(|spec| self.complete(spec));
        match merged.and_then(serde_json::from_value) {
            Ok(spec) => Workflow { spec, ..workflow },
            Err(error) => {
                tracing::warn!(workflow = workflow.metadata.name, %error, "workflowDefaults do not fit and are left out");
                workflow
            }
        }
    }

    fn complete(&self, spec: Value) -> Value {
        let mut spec = spec;
        under(&mut spec, &self.workflow_defaults["spec"]);
        spec
    }
}

/// Adds what is absent; maps are merged, everything else is taken whole from where it is set.
fn under(value: &mut Value, defaults: &Value) {
    match (value, defaults) {
        (Value::Object(value), Value::Object(defaults)) => {
            for (key, default) in defaults {
                under(value.entry(key.clone()).or_insert(Value::Null), default);
            }
        }
        (value @ Value::Null, defaults) => *value = defaults.clone(),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_give_way_to_the_workflow() {
        let defaults = json!({"spec": {"ttlStrategy": {"secondsAfterSuccess": 1, "secondsAfterFailure": 2}, "parallelism": 5,
            "templateDefaults": {"retryStrategy": {"limit": "2"}}}});
        let settings = Settings { workflow_defaults: defaults, ..Settings::default() };
        let spec = json!({"entrypoint": "m", "parallelism": 1, "ttlStrategy": {"secondsAfterFailure": 9}});
        assert_eq!(
            settings.complete(spec),
            json!({"entrypoint": "m", "parallelism": 1, "ttlStrategy": {"secondsAfterSuccess": 1, "secondsAfterFailure": 9},
                "templateDefaults": {"retryStrategy": {"limit": "2"}}})
        );
        assert_eq!(Settings::default().complete(json!({"a": 1})), json!({"a": 1}));
    }
}
