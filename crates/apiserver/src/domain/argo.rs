//! Argo Workflows as pipelines (KFP v1): what is checked when one is stored, and how it becomes the Workflow of a run.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::macros::{self, Facts};
use super::nodes::text;
use crate::error::{Error, Result};

/// The only version of Argo's API.
const VERSION: &str = "argoproj.io/v1alpha1";
/// Outputs that old SDKs declared on every task, whether it writes them or not.
const OPTIONAL: [&str; 2] = ["mlpipeline-ui-metadata", "mlpipeline-metrics"];

/// An Argo Workflow of the right shape; whether Argo runs it is Argo's to say.
#[derive(Clone, Debug, PartialEq)]
pub struct Workflow(Value);

/// A parameter as stored in `Parameters` columns.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Parameter {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its default, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "any_text")]
    pub default: Option<String>,
    /// Its value, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "any_text")]
    pub value: Option<String>,
}

/// Argo reads numbers and truth values where it wants text.
fn any_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    use serde::Deserialize as _;
    Ok(words(&Value::deserialize(deserializer)?))
}

fn words(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// Parameters as stored; `None` when the text is damaged.
#[must_use]
pub fn stored_parameters(json: &str) -> Option<Vec<Parameter>> {
    if json.is_empty() {
        return Some(Vec::new());
    }
    serde_json::from_str::<Option<Vec<Parameter>>>(json).ok().map(Option::unwrap_or_default)
}

/// What a run or schedule puts into the Workflow.
#[derive(Clone, Debug, Default)]
pub struct Values<'a> {
    /// Kubernetes namespace.
    pub namespace: &'a str,
    /// Service account; empty keeps the Workflow's own unless that is the default one.
    pub service_account: &'a str,
    /// The installation's service account.
    pub default_account: &'a str,
    /// Values of parameters.
    pub parameters: BTreeMap<String, String>,
    /// What stands for `{{kfp-default-bucket}}` and `{{kfp-project-id}}`, if that is turned on.
    pub substitutes: Option<(&'a str, &'a str)>,
}

/// What only a run has.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// Id.
    pub id: &'a str,
    /// Display name.
    pub name: &'a str,
    /// Creation, Unix seconds.
    pub created_at: i64,
    /// Whether steps may be taken from the cache.
    pub cache: bool,
}

fn refuse<T>(reason: impl std::fmt::Display) -> Result<T> {
    Err(Error::invalid_because("Failed to parse the workflow template", reason))
}

/// Sets the member at the end of `path`, making objects on the way; what is there stays unless `overwrite`.
fn set(target: &mut Value, path: &[&str], value: &str, overwrite: bool) {
    if !target.is_object() {
        *target = json!({});
    }
    let (Value::Object(fields), Some((first, rest))) = (target, path.split_first()) else { return };
    if !rest.is_empty() {
        set(fields.entry(*first).or_insert(Value::Null), rest, value, overwrite);
    } else if overwrite || !fields.contains_key(*first) {
        fields.insert((*first).to_owned(), json!(value));
    }
}

impl Workflow {
    /// Whether a document says that it is an Argo Workflow of any version.
    #[must_use]
    pub fn is_one(document: &Value) -> bool {
        text(document, "/apiVersion").starts_with("argoproj.io/") && text(document, "/kind") == "Workflow"
    }

    /// Checks the shape of a Workflow.
    ///
    /// # Errors
    /// Code 3 for other versions and for what Argo would not take either.
    pub fn parse(document: Value) -> Result<Self> {
        let version = text(&document, "/apiVersion");
        if version != VERSION {
            return Err(Error::invalid(format!("Unsupported argo version. Expected: {VERSION}. Received: {version}")));
        }
        if !document["metadata"].is_object() {
            return refuse("metadata is missing");
        }
        let Some(spec) = document["spec"].as_object() else { return refuse("spec is missing") };
        let mut names = BTreeSet::new();
        match spec.get("templates").map(Value::as_array) {
            Some(Some(templates)) if !templates.is_empty() => {
                for template in templates {
                    let name = text(template, "/name");
                    if name.is_empty() {
                        return refuse("a template has no name");
                    }
                    if !names.insert(name) {
                        return refuse(format!("template name '{name}' is not unique"));
                    }
                }
            }
            _ if spec.contains_key("workflowTemplateRef") => {}
            _ => return refuse("spec.templates is missing or empty"),
        }
        let mut seen = BTreeSet::new();
        match spec.get("arguments").and_then(|arguments| arguments.get("parameters")) {
            None | Some(Value::Null) => {}
            Some(Value::Array(parameters)) => {
                for parameter in parameters {
                    let name = text(parameter, "/name");
                    if name.is_empty() {
                        return refuse("a parameter in spec.arguments has no name");
                    }
                    if !seen.insert(name) {
                        return refuse(format!("parameter name '{name}' in spec.arguments is not unique"));
                    }
                }
            }
            Some(_) => return refuse("spec.arguments.parameters is not a list"),
        }
        Ok(Workflow(document))
    }

    /// The object.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.0
    }

    /// The parameters as the `Parameters` column of versions holds them.
    #[must_use]
    pub fn parameters(&self) -> Vec<Parameter> {
        let parameters = self.0.pointer("/spec/arguments/parameters").and_then(Value::as_array);
        let one = |parameter: &Value| Parameter {
            name: text(parameter, "/name").to_owned(),
            default: words(&parameter["default"]),
            value: words(&parameter["value"]),
        };
        parameters.into_iter().flatten().map(one).collect()
    }

    /// The Workflow of a run, complete but for owner references.
    ///
    /// # Errors
    /// Code 3 when parameters do not fit or the entry point is missing.
    pub fn for_run(&self, values: &Values<'_>, run: Run<'_>) -> Result<Value> {
        let mut workflow = self.prepare(values)?;
        workflow.runnable()?;
        let facts = Facts { run_id: run.id, current: run.created_at, scheduled: 0 };
        workflow.each_value(|value| macros::expand(value, facts));
        if let Some((bucket, project)) = values.substitutes {
            workflow.each_value(|value| {
                value.replace("{{kfp-default-bucket}}", bucket).replace("{{kfp-project-id}}", project)
            });
        }
        let Workflow(mut workflow) = workflow;
        replace(&mut workflow, "{{workflow.uid}}", run.id);
        for template in workflow["spec"]["templates"].as_array_mut().into_iter().flatten() {
            let cache = run.cache.to_string();
            set(template, &["metadata", "labels", "pipelines.kubeflow.org/cache_enabled"], &cache, true);
        }
        set(&mut workflow, &["metadata", "labels", "pipeline/runid"], run.id, true);
        set(&mut workflow, &["metadata", "annotations", "pipelines.kubeflow.org/run_name"], run.name, true);
        set(&mut workflow, &["spec", "podMetadata", "labels", "pipeline/runid"], run.id, true);
        Ok(workflow)
    }

    /// The Workflow that a schedule repeats.
    ///
    /// # Errors
    /// Code 3 when parameters do not fit.
    pub fn for_schedule(&self, values: &Values<'_>) -> Result<Value> {
        Ok(self.prepare(values)?.0)
    }

    fn prepare(&self, values: &Values<'_>) -> Result<Self> {
        let known: BTreeSet<String> = self.parameters().into_iter().map(|parameter| parameter.name).collect();
        if let Some(extra) = values.parameters.keys().find(|name| !known.contains(*name)) {
            return Err(Error::invalid(format!("Unrecognized input parameter: {extra}")));
        }
        let mut workflow = self.0.clone();
        if !values.namespace.is_empty() {
            workflow["metadata"]["namespace"] = json!(values.namespace);
        }
        for parameter in
            workflow.pointer_mut("/spec/arguments/parameters").and_then(Value::as_array_mut).into_iter().flatten()
        {
            let given = values.parameters.get(text(parameter, "/name")).cloned();
            if let Some(value) = given.or_else(|| words(&parameter["value"])) {
                *parameter = json!({"name": parameter["name"], "value": value});
            }
        }
        let own = text(&workflow, "/spec/serviceAccountName");
        if !values.service_account.is_empty() {
            workflow["spec"]["serviceAccountName"] = json!(values.service_account);
        } else if matches!(own, "" | "pipeline-runner") {
            workflow["spec"]["serviceAccountName"] = json!(values.default_account);
        }
        for template in workflow["spec"]["templates"].as_array_mut().into_iter().flatten() {
            set(template, &["metadata", "annotations", "sidecar.istio.io/inject"], "false", false);
            let outputs = template.pointer_mut("/outputs/artifacts").and_then(Value::as_array_mut);
            for artifact in outputs.into_iter().flatten() {
                if OPTIONAL.contains(&text(artifact, "/name")) {
                    artifact["optional"] = json!(true);
                }
            }
        }
        Ok(Workflow(workflow))
    }

    /// Whether it can start: Argo would only say so in the Workflow's status.
    fn runnable(&self) -> Result<()> {
        if self.0["spec"]["workflowTemplateRef"].is_object() {
            return Ok(());
        }
        let entrypoint = text(&self.0, "/spec/entrypoint");
        let templates = self.0["spec"]["templates"].as_array().into_iter().flatten();
        if !templates.into_iter().any(|template| text(template, "/name") == entrypoint) {
            return Err(Error::invalid(format!("spec.entrypoint '{entrypoint}' names no template")));
        }
        for parameter in self.0.pointer("/spec/arguments/parameters").and_then(Value::as_array).into_iter().flatten() {
            let set = |key| parameter.get(key).is_some_and(|value| !value.is_null());
            if !set("value") && !set("valueFrom") && !set("default") {
                let name = text(parameter, "/name");
                return Err(Error::invalid(format!(
                    "spec.arguments.{name}.value or spec.arguments.{name}.valueFrom is required"
                )));
            }
        }
        Ok(())
    }

    fn each_value(&mut self, change: impl Fn(&str) -> String) {
        let parameters = self.0.pointer_mut("/spec/arguments/parameters").and_then(Value::as_array_mut);
        for parameter in parameters.into_iter().flatten() {
            for key in ["value", "default"] {
                if let Some(text) = parameter.get(key).and_then(Value::as_str) {
                    parameter[key] = json!(change(text));
                }
            }
        }
    }
}

fn replace(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::String(text) if text.contains(from) => *text = text.replace(from, to),
        Value::Array(items) => items.iter_mut().for_each(|item| replace(item, from, to)),
        Value::Object(fields) => fields.values_mut().for_each(|item| replace(item, from, to)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workflow() -> Value {
        json!({
            "apiVersion": VERSION, "kind": "Workflow", "metadata": {"generateName": "hello-"},
            "spec": {
                "entrypoint": "main", "serviceAccountName": "pipeline-runner",
                "arguments": {"parameters": [{"name": "a", "value": 5}, {"name": "b"}]},
                "templates": [{"name": "main", "container": {"image": "i", "args": ["{{workflow.uid}}"]},
                    "outputs": {"artifacts": [{"name": "mlpipeline-metrics"}, {"name": "x"}]}}],
            },
        })
    }

    fn values(parameters: &[(&str, &str)]) -> Values<'static> {
        let parameters = parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Values { namespace: "ns", default_account: "runner", parameters, ..Values::default() }
    }

    const RUN: Run<'static> = Run { id: "id", name: "shown", created_at: 0, cache: true };

    #[test]
    fn a_run_gets_its_parameters_and_labels() {
        let parsed = Workflow::parse(workflow()).unwrap();
        assert_eq!(
            serde_json::to_value(parsed.parameters()).unwrap(),
            json!([{"name": "a", "value": "5"}, {"name": "b"}])
        );
        let run = parsed.for_run(&values(&[("b", "[[RunUUID]]")]), RUN).unwrap();
        assert_eq!(
            run["spec"]["arguments"]["parameters"],
            json!([{"name": "a", "value": "5"}, {"name": "b", "value": "id"}])
        );
        assert_eq!(run["metadata"]["labels"]["pipeline/runid"], "id");
        assert_eq!(run["metadata"]["annotations"]["pipelines.kubeflow.org/run_name"], "shown");
        assert_eq!(run["spec"]["podMetadata"]["labels"]["pipeline/runid"], "id");
        assert_eq!(run["spec"]["serviceAccountName"], "runner");
        let template = &run["spec"]["templates"][0];
        assert_eq!(template["container"]["args"], json!(["id"]));
        assert_eq!(template["metadata"]["labels"]["pipelines.kubeflow.org/cache_enabled"], "true");
        assert_eq!(template["metadata"]["annotations"]["sidecar.istio.io/inject"], "false");
        assert_eq!(
            template["outputs"]["artifacts"],
            json!([{"name": "mlpipeline-metrics", "optional": true}, {"name": "x"}])
        );
    }

    #[test]
    fn a_schedule_keeps_what_only_its_runs_know() {
        let parsed = Workflow::parse(workflow()).unwrap();
        let schedule = parsed.for_schedule(&values(&[("b", "[[ScheduledTime]]")])).unwrap();
        assert_eq!(schedule["spec"]["arguments"]["parameters"][1]["value"], "[[ScheduledTime]]");
        assert_eq!(schedule["spec"]["templates"][0]["container"]["args"], json!(["{{workflow.uid}}"]));
        assert!(schedule["metadata"].get("labels").is_none());
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let parsed = Workflow::parse(workflow()).unwrap();
        for (parameters, text) in
            [(&[("c", "x")][..], "Unrecognized input parameter: c"), (&[][..], "spec.arguments.b.value")]
        {
            let error = parsed.for_run(&values(parameters), RUN).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        for (change, text) in [
            (
                json!({"apiVersion": "argoproj.io/v2"}),
                "Unsupported argo version. Expected: argoproj.io/v1alpha1. Received: argoproj.io/v2",
            ),
            (json!({"spec": null}), "spec is missing"),
            (json!({"spec": {}}), "spec.templates is missing"),
            (json!({"spec": {"templates": [{}]}}), "no name"),
            (json!({"spec": {"templates": [{"name": "a"}, {"name": "a"}]}}), "template name 'a' is not unique"),
            (json!({"spec": {"templates": [{"name": "a"}], "arguments": {"parameters": {}}}}), "not a list"),
        ] {
            let mut document = workflow();
            for (key, value) in change.as_object().unwrap() {
                document[key] = value.clone();
            }
            let error = Workflow::parse(document).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
