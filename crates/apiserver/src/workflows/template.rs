//! What versions, runs and schedules are made from: a pipeline spec (v2) or an Argo Workflow (v1).

use std::collections::BTreeMap;

use kfp_compiler::package::{extract, yaml};
use kfp_compiler::{Package, RunRequest};
use serde_json::{Map, Value, json};

use crate::config::{self, Config};
use crate::domain::argo::{self, Parameter, Workflow};
use crate::domain::macros::{self, Facts};
use crate::error::{Error, Result};
use crate::store::runs::Run;
use crate::store::specs::Specs;

/// A parsed package of either kind.
#[derive(Debug)]
pub enum Template {
    /// Pipeline spec with its platform spec.
    Pipeline(Box<Package>),
    /// Argo Workflow.
    Workflow(Workflow),
}

/// How the installation treats Argo Workflows as pipelines.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Whether they are refused (`BLOCK_V1_PIPELINES`).
    pub blocked: bool,
    /// Namespaces in which they are not, lower case (`V1_ALLOWED_NAMESPACES`).
    pub allowed: Vec<String>,
    /// Most bytes of their parameters as JSON (`MAX_PARAMETER_BYTES`).
    pub max_parameters: usize,
    /// Bucket and project for their parameters (`HAS_DEFAULT_BUCKET`, `BUCKET_NAME`, `PROJECT_ID`).
    pub substitutes: Option<(String, String)>,
}

impl Rules {
    /// Reads the settings.
    ///
    /// # Errors
    /// When a value has the wrong form.
    pub fn from_config(config: &Config) -> std::result::Result<Self, config::Error> {
        let allowed = config.text("V1_ALLOWED_NAMESPACES", "");
        let allowed = allowed.split(',').map(str::trim).filter(|namespace| !namespace.is_empty());
        let substitutes = config
            .bool("HAS_DEFAULT_BUCKET", false)?
            .then(|| (config.text("BUCKET_NAME", ""), config.text("PROJECT_ID", "")));
        Ok(Rules {
            blocked: config.bool("BLOCK_V1_PIPELINES", false)?,
            allowed: allowed.map(str::to_lowercase).collect(),
            max_parameters: usize::try_from(config.int("MAX_PARAMETER_BYTES", 10_000)?).unwrap_or_default(),
            substitutes,
        })
    }

    fn permits(&self, namespace: &str) -> bool {
        !self.blocked || self.allowed.iter().any(|allowed| *allowed == namespace.to_lowercase())
    }

    /// Checks the size of stored v1 parameters.
    ///
    /// # Errors
    /// Code 3.
    pub fn check_size(&self, parameters: &str) -> Result<()> {
        if parameters.len() > self.max_parameters {
            let most = self.max_parameters;
            return Err(Error::invalid(format!("The input parameter length exceed maximum size of {most}.")));
        }
        Ok(())
    }
}

/// Error of the compiler as the API shows it.
#[must_use]
pub fn compiler_error(error: &kfp_compiler::Error) -> Error {
    if error.is_user_error() {
        Error::invalid(error.to_string())
    } else {
        Error::internal("cannot compile the pipeline", error)
    }
}

/// Says that the spec of a stored version, run or schedule cannot be read any more.
fn unreadable(reason: impl std::fmt::Display) -> Error {
    Error::invalid_because("failed to parse the stored pipeline spec", reason)
}

/// A stored spec as the API shows it: what the document says, both documents wrapped when there is a platform spec.
///
/// # Errors
/// Code 3 when the text is damaged.
pub fn shown(text: &str) -> Result<Map<String, Value>> {
    let mut documents = yaml::documents(text.as_bytes()).map_err(unreadable)?;
    documents.retain(|document| !document.is_null());
    let platform = documents.iter().position(|document| document.get("platforms").is_some());
    let platform = platform.map(|at| documents.remove(at));
    let value = match (documents.pop(), platform) {
        (Some(spec), Some(platform)) => json!({"pipeline_spec": spec, "platform_spec": platform}),
        (Some(spec), None) => spec,
        (None, _) => return Err(unreadable("it is empty")),
    };
    match value {
        Value::Object(fields) => Ok(fields),
        _ => Err(unreadable("it is not an object")),
    }
}

impl Template {
    /// Reads an uploaded or downloaded file.
    ///
    /// # Errors
    /// Code 3 with the reason.
    pub fn from_file(bytes: &[u8], name: &str) -> Result<Self> {
        Self::from_text(&extract(bytes, name).map_err(|error| compiler_error(&error))?)
    }

    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// Code 3 with the reason.
    pub fn from_text(text: &[u8]) -> Result<Self> {
        // Only text with Argo's group in it is worth a second look.
        let group = b"argoproj.io/";
        if text.windows(group.len()).any(|window| window == group)
            && let Ok(documents) = yaml::documents(text)
            && let Some(workflow) = documents.into_iter().find(|document| !document.is_null()).filter(Workflow::is_one)
        {
            return Workflow::parse(workflow).map(Template::Workflow);
        }
        let package = Package::from_text(text).map_err(|error| compiler_error(&error))?;
        Ok(Template::Pipeline(Box::new(package)))
    }

    /// Reads the inline spec of a request.
    ///
    /// # Errors
    /// Code 3 with the reason.
    pub fn from_json(spec: Value) -> Result<Self> {
        if Workflow::is_one(&spec) {
            return Workflow::parse(spec).map(Template::Workflow);
        }
        let package = Package::from_json(spec).map_err(|error| compiler_error(&error))?;
        Ok(Template::Pipeline(Box::new(package)))
    }

    /// The text that is stored.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Template::Pipeline(package) => package.to_yaml(),
            Template::Workflow(workflow) => workflow.value().to_string(),
        }
    }

    /// `text` in the column for its kind.
    #[must_use]
    pub fn specs(&self, text: String) -> Specs {
        match self {
            Template::Pipeline(_) => Specs { pipeline: text, ..Specs::default() },
            Template::Workflow(_) => Specs { workflow: text, ..Specs::default() },
        }
    }

    /// Checks that packages of this kind may be stored in `namespace`, and what names and parameters they have.
    ///
    /// # Errors
    /// Code 3.
    pub fn check_storable(&self, namespace: &str, rules: &Rules) -> Result<()> {
        match self {
            Template::Pipeline(package) => crate::domain::names::spec_name(package.name()),
            Template::Workflow(_) if !rules.permits(namespace) => {
                Err(Error::invalid("V1 pipeline specs are not allowed. Please migrate to using KFP V2 pipelines."))
            }
            Template::Workflow(_) => rules.check_size(&self.parameters()),
        }
    }

    /// Checks that packages of this kind may run in `namespace`.
    ///
    /// # Errors
    /// Code 3.
    pub fn check_runnable(&self, namespace: &str, rules: &Rules) -> Result<()> {
        match self {
            Template::Workflow(_) if !rules.permits(namespace) => Err(Error::invalid(format!(
                "Namespace {namespace} is not allowed to run v1 pipelines. Please migrate to using KFP V2 pipelines."
            ))),
            _ => Ok(()),
        }
    }

    /// The `Parameters` column of a version.
    #[must_use]
    pub fn parameters(&self) -> String {
        match self {
            Template::Pipeline(_) => "[]".to_owned(),
            Template::Workflow(workflow) => json!(workflow.parameters()).to_string(),
        }
    }

    /// The Workflow of a run, complete but for owner references. `namespace` is where it will run.
    ///
    /// # Errors
    /// Code 3 when parameters or spec do not fit, 13 when the settings of the installation do not.
    pub fn run(&self, run: &Run, namespace: &str, settings: Settings<'_>) -> Result<Value> {
        let failed = |error: Error| error.wrap("Failed to generate the ExecutionSpec");
        match self {
            Template::Pipeline(package) => {
                let facts = Facts { run_id: &run.id, current: run.created_at, scheduled: run.scheduled_at.max(0) };
                let parameters = values(&run.runtime_parameters, &run.parameters)?;
                let request = RunRequest {
                    run_id: run.id.clone(),
                    display_name: run.display_name.clone(),
                    namespace: Some(namespace.to_owned()),
                    service_account: run.service_account.clone(),
                    parameters: Some(expand(parameters, facts)),
                    pipeline_root: run.pipeline_root.clone(),
                };
                kfp_compiler::compile_run(package, &request, settings.compiler)
                    .map_err(|error| failed(compiler_error(&error)))
            }
            Template::Workflow(workflow) => {
                let parameters = texts(&run.parameters, &run.runtime_parameters)?;
                let values = settings.values(namespace, &run.service_account, parameters);
                let cache = !settings.compiler.cache_disabled;
                let facts = argo::Run { id: &run.id, name: &run.display_name, created_at: run.created_at, cache };
                workflow.for_run(&values, facts).map_err(failed)
            }
        }
    }

    /// The Workflow that a schedule repeats.
    ///
    /// # Errors
    /// As [`Template::run`].
    pub fn schedule(&self, job: &crate::store::jobs::Job, settings: Settings<'_>) -> Result<Value> {
        let failed = |error: Error| error.wrap("Failed to generate the scheduled workflow");
        match self {
            Template::Pipeline(package) => {
                let parameters = values(&job.runtime_parameters, &job.parameters)?;
                let request = RunRequest {
                    namespace: Some(job.namespace.clone()),
                    service_account: job.service_account.clone(),
                    parameters: Some(parameters.into_iter().collect()),
                    pipeline_root: job.pipeline_root.clone(),
                    ..RunRequest::default()
                };
                kfp_compiler::compile_recurring_run(package, &request, settings.compiler)
                    .map_err(|error| failed(compiler_error(&error)))
            }
            Template::Workflow(workflow) => {
                let parameters = texts(&job.parameters, &job.runtime_parameters)?;
                let values = settings.values(&job.namespace, &job.service_account, parameters);
                workflow.for_schedule(&values).map_err(failed)
            }
        }
    }

    /// The parameters of a schedule as its object holds them: JSON texts for pipeline specs, plain texts for Workflows.
    ///
    /// # Errors
    /// Code 13 when the stored parameters are damaged.
    pub fn schedule_parameters(&self, job: &crate::store::jobs::Job) -> Result<Vec<Value>> {
        Ok(match self {
            Template::Pipeline(_) => values(&job.runtime_parameters, &job.parameters)?
                .into_iter()
                .map(|(name, value)| json!({"name": name, "value": value.to_string()}))
                .collect(),
            Template::Workflow(_) => texts(&job.parameters, &job.runtime_parameters)?
                .into_iter()
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect(),
        })
    }

    /// Checks parameters that later runs of a schedule will be given.
    ///
    /// # Errors
    /// Code 3 when they do not fit.
    pub fn check_inputs(&self, job: &crate::store::jobs::Job, settings: Settings<'_>) -> Result<()> {
        match self {
            Template::Pipeline(package) => {
                let values = values(&job.runtime_parameters, &job.parameters)?.into_iter().collect();
                kfp_compiler::inputs::validate(package, Some(&values)).map_err(|error| compiler_error(&error))
            }
            Template::Workflow(_) => self.schedule(job, settings).map(drop),
        }
    }
}

/// The installation's part in a Workflow.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// What compiled Workflows carry.
    pub compiler: &'a kfp_compiler::Options,
    /// What Argo Workflows as pipelines may do.
    pub rules: &'a Rules,
}

impl<'a> Settings<'a> {
    fn values(self, namespace: &'a str, account: &'a str, parameters: BTreeMap<String, String>) -> argo::Values<'a> {
        argo::Values {
            namespace,
            service_account: account,
            default_account: &self.compiler.service_account,
            parameters,
            substitutes: self.rules.substitutes.as_ref().map(|(bucket, project)| (bucket.as_str(), project.as_str())),
        }
    }
}

fn expand(parameters: BTreeMap<String, Value>, facts: Facts<'_>) -> Map<String, Value> {
    let replace = |value: Value| match value {
        Value::String(text) => Value::String(macros::expand(&text, facts)),
        other => other,
    };
    parameters.into_iter().map(|(name, value)| (name, replace(value))).collect()
}

fn damaged(error: impl std::fmt::Display) -> Error {
    Error::internal("error unmarshalling model runtime config parameters", error)
}

fn v1_parameters(json: &str) -> Result<Vec<Parameter>> {
    argo::stored_parameters(json).ok_or_else(|| damaged("v1 parameters are not a list of names and values"))
}

/// Stored parameters as JSON values; v1 parameters are texts.
///
/// # Errors
/// Code 13 when the text is damaged.
pub fn values(runtime: &str, v1: &str) -> Result<BTreeMap<String, Value>> {
    if !runtime.is_empty() && runtime != "null" {
        return serde_json::from_str(runtime).map_err(damaged);
    }
    let value = |parameter: Parameter| (parameter.name, parameter.value.map_or(Value::Null, Value::String));
    Ok(v1_parameters(v1)?.into_iter().map(value).collect())
}

/// Stored parameters as texts, for Argo: v1 parameters, else v2 parameters in words.
fn texts(v1: &str, runtime: &str) -> Result<BTreeMap<String, String>> {
    let parameters = v1_parameters(v1)?;
    if !parameters.is_empty() {
        return Ok(parameters.into_iter().map(|one| (one.name, one.value.unwrap_or_default())).collect());
    }
    let word = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    Ok(values(runtime, "")?.into_iter().map(|(name, value)| (name, word(value))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARGO: &str = "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {generateName: x-}\nspec:\n  templates: [{name: a}]\n";

    #[test]
    fn both_kinds_are_told_apart() {
        assert!(matches!(Template::from_text(ARGO.as_bytes()).unwrap(), Template::Workflow(_)));
        let error = Template::from_text(b"a: argoproj.io/v1alpha1").unwrap_err();
        assert!(error.to_string().contains("unknown template format"), "{error}");
    }

    #[test]
    fn v1_pipelines_are_refused_outside_of_allowed_namespaces() {
        let template = Template::from_text(ARGO.as_bytes()).unwrap();
        let rules = Rules { blocked: true, allowed: vec!["team".into()], max_parameters: 10_000, substitutes: None };
        assert!(template.check_storable("Team", &rules).is_ok());
        let error = template.check_storable("other", &rules).unwrap_err();
        assert!(error.to_string().contains("V1 pipeline specs are not allowed"));
        let error = template.check_runnable("other", &rules).unwrap_err();
        assert!(error.to_string().contains("Namespace other is not allowed to run v1 pipelines"));
        assert!(rules.check_size(&"x".repeat(10_001)).is_err());
    }

    #[test]
    fn a_platform_spec_is_shown_beside_the_spec() {
        let text = "a: 1\n---\nplatforms: {kubernetes: {}}\n";
        assert_eq!(
            Value::Object(shown(text).unwrap()),
            json!({"pipeline_spec": {"a": 1}, "platform_spec": {"platforms": {"kubernetes": {}}}})
        );
        assert_eq!(Value::Object(shown("a: 1").unwrap()), json!({"a": 1}));
        for bad in ["", "[1]", "{"] {
            assert!(shown(bad).is_err(), "{bad}");
        }
    }
}
