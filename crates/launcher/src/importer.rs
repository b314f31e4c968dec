//! The importer: registers an artifact that exists already, without running anything.

use std::collections::BTreeMap;

use kfp_core::mlmd::{self, Execution, NewExecution, Output, Run, State, names, text};
use kfp_core::objects::{CONFIG_MAP, LauncherConfig, Session, workspace_path};
use kfp_core::{ir, kubeapi};
use serde::Deserialize as _;
use serde_json::{Map, Value};

use crate::error::Error;
use crate::options::Options;
use crate::paths::Paths;
use crate::placeholders::{Placeholders, parameter_text};
use crate::spec::{ArtifactType, Component, ExecutorInput};
use crate::{metadata_client, opener};

/// Creates the execution, imports, records the end. Returns the execution's id.
pub(crate) async fn run(options: &Options) -> Result<i64, Error> {
    let json = |flag, text: &str| serde_json::from_str(text).map_err(|source| Error::Flag { flag, source });
    let task: Value = json("task_spec", &options.task_spec)?;
    let spec: Value = json("importer_spec", &options.importer_spec)?;
    let component =
        Component::parse(&options.component_spec).map_err(|source| Error::Flag { flag: "component_spec", source })?;
    let metadata = metadata_client(options)?;
    let run = metadata.ensure_run(&options.pipeline_name, &options.run_id, &mlmd::RunProperties::default()).await?;
    let to_workspace = spec["downloadToWorkspace"].as_bool().unwrap_or(false);
    let mut execution = create(options, &metadata, &run, &task, to_workspace).await?;
    let importer = Importer { options, metadata: &metadata, run: &run, task: &task, spec: &spec };
    let imported = importer.import(&component, to_workspace).await;
    let (state, artifacts, failure) = match imported {
        Ok(output) => (State::Complete, vec![output], None),
        Err(failure) => {
            execution.set(names::ERROR_MESSAGE, text(failure.to_string()));
            (State::Failed, Vec::new(), Some(failure))
        }
    };
    if let Err(publish) = metadata.publish(&run, &execution, state, None, artifacts).await {
        return Err(match failure {
            Some(failure) => Error::PublishFailure { publish, failure: Box::new(failure) },
            None => Error::Metadata(publish),
        });
    }
    if options.parent_dag_id != 0
        && let Err(error) = metadata.propagate_dag_state(&run, options.parent_dag_id).await
    {
        tracing::warn!(%error, "the state of the parent DAG could not be brought up to date");
    }
    failure.map_or_else(|| Ok(execution.id()), Err)
}

async fn create(
    options: &Options,
    metadata: &mlmd::Client,
    run: &Run,
    task: &Value,
    to_workspace: bool,
) -> Result<Execution, Error> {
    let name = task["taskInfo"]["name"].as_str().unwrap_or_default();
    let mut properties: BTreeMap<_, _> =
        [(names::TASK_NAME.to_owned(), text(name)), (names::DISPLAY_NAME.to_owned(), text(""))].into();
    if options.parent_dag_id != 0 {
        properties.insert(names::PARENT_DAG_ID.to_owned(), mlmd::int(options.parent_dag_id));
    }
    let type_name = if to_workspace { names::IMPORTER_WORKSPACE_EXECUTION } else { names::IMPORTER_EXECUTION };
    let new = NewExecution { type_name, state: State::Running, properties, ..NewExecution::default() };
    Ok(metadata.create_execution(run, new).await?)
}

struct Importer<'a> {
    options: &'a Options,
    metadata: &'a mlmd::Client,
    run: &'a Run,
    task: &'a Value,
    spec: &'a Value,
}

impl Importer<'_> {
    async fn import(&self, component: &Component, to_workspace: bool) -> Result<Output, Error> {
        let mut outputs = component.output_artifacts.iter();
        let (Some((name, declared)), None) = (outputs.next(), outputs.next()) else {
            return Err(Error::Importer("failed to extract output artifact name from componentOutputSpec".into()));
        };
        let inputs = self.inputs().await?;
        let uri = self.uri(&inputs)?;
        let kind = match &self.spec["typeSchema"] {
            Value::Null => declared.clone(),
            schema => {
                ArtifactType::deserialize(schema).map_err(|source| Error::Flag { flag: "importer_spec", source })?
            }
        };
        let title = kind.title().map_err(|reason| Error::ArtifactType { name: name.clone(), reason })?;
        let session = session(&uri, &title)?.map(|session| session.to_json());
        let metadata = ir::struct_from_json(&self.artifact_metadata(&inputs));
        let mut artifact = mlmd::artifact_from_metadata(&uri, Some(&metadata), None, session.as_deref());
        artifact.type_id = Some(self.metadata.artifact_type(&title).await?);
        if !self.spec["reimport"].as_bool().unwrap_or(false)
            && let Some(found) = self.metadata.find_equal_artifact(&self.run.pipeline, &artifact).await?
        {
            artifact = found;
        }
        if to_workspace {
            self.fetch(name, &uri).await?;
        }
        Ok(Output { name: name.clone(), artifact })
    }

    /// Values of the task's input parameters.
    async fn inputs(&self) -> Result<Map<String, Value>, Error> {
        let Some(given) = self.task["inputs"]["parameters"].as_object().filter(|given| !given.is_empty()) else {
            return Ok(Map::new());
        };
        let parent = match self.options.parent_dag_id {
            0 => None,
            id => Some(self.metadata.execution(id).await?),
        };
        let inputs = parent.as_ref().map(Execution::inputs).unwrap_or_default();
        let mut siblings = mlmd::Tree::new(self.metadata, self.run);
        let mut values = Map::new();
        for (name, source) in given {
            let value = if let Some(input) = source["componentInputParameter"].as_str() {
                let found = match (inputs.get(input), &parent) {
                    (Some(value), _) => Some(value.clone()),
                    (None, Some(dag)) => self.metadata.loop_input(dag, input).await?,
                    (None, None) => None,
                };
                match found {
                    Some(value) => ir::to_json(&value),
                    None => continue,
                }
            } else if let Some(constant) = source["runtimeValue"].get("constant") {
                constant.clone()
            } else if let Some(producer) = source["taskOutputParameter"]["producerTask"].as_str() {
                let key = source["taskOutputParameter"]["outputParameterKey"].as_str().unwrap_or_default();
                let task = siblings.child(self.options.parent_dag_id, producer).await?;
                let missing =
                    || Error::Importer(format!("input parameter {name:?}: task {producer:?} has no output {key:?}"));
                match ir::to_json(&siblings.output_parameter(task.ok_or_else(missing)?, key).await?) {
                    Value::Null => return Err(missing()),
                    value => value,
                }
            } else {
                return Err(Error::Importer(format!("input parameter {name:?} has an unsupported source: {source}")));
            };
            values.insert(name.clone(), value);
        }
        Ok(values)
    }

    fn uri(&self, inputs: &Map<String, Value>) -> Result<String, Error> {
        let given = &self.spec["artifactUri"];
        let constant = given["constant"].as_str().or(given["constantValue"]["stringValue"].as_str());
        if let Some(uri) = constant.filter(|uri| !uri.is_empty()) {
            return Ok(uri.to_owned());
        }
        let Some(name) = given["runtimeParameter"].as_str().filter(|name| !name.is_empty()) else {
            return Err(Error::Importer("the artifact URI is neither a constant nor a parameter".into()));
        };
        match inputs.get(name).map(parameter_text).filter(|uri| !uri.is_empty()) {
            Some(uri) => Ok(uri),
            None => Err(Error::Importer(format!("input parameter {name:?} with the artifact's URI has no value"))),
        }
    }

    /// The importer's metadata, with parameters filled in.
    fn artifact_metadata(&self, inputs: &Map<String, Value>) -> Map<String, Value> {
        let json = serde_json::json!({"inputs": {"parameterValues": inputs}});
        let input = ExecutorInput { json, ..ExecutorInput::default() };
        let paths = Paths::default();
        let placeholders = Placeholders::new(&input, &paths);
        let metadata = self.spec["metadata"].as_object().cloned().unwrap_or_default();
        metadata.into_iter().map(|(key, value)| (key, fill(value, &placeholders, inputs))).collect()
    }

    async fn fetch(&self, name: &str, uri: &str) -> Result<(), Error> {
        let Some(path) = workspace_path(uri).map(|path| Paths::new(self.options.root.clone()).place(path)) else {
            return Err(Error::Importer(format!("{uri} cannot be downloaded to the workspace")));
        };
        let failed = |source| Error::Download { name: name.to_owned(), uri: uri.to_owned(), source: Box::new(source) };
        let session = self.provider_session(uri).await;
        let opener = opener(self.options).map_err(failed)?;
        let store = opener.open(uri, session.as_ref()).await.map_err(failed)?;
        let fetched = store.download(uri, &path).await.map_err(failed)?;
        if fetched.files == 0 {
            return Err(Error::Importer(format!("nothing is stored at {uri}")));
        }
        Ok(())
    }

    /// How the namespace's settings say to reach a bucket; the environment's credentials if they say nothing.
    async fn provider_session(&self, uri: &str) -> Option<Session> {
        let found: Result<Session, String> = async {
            let client = kubeapi::Client::from_env().map_err(|e| e.to_string())?;
            let map = client.find(kubeapi::CONFIG_MAPS, client.namespace(), CONFIG_MAP).await;
            let map = map.map_err(|e| e.to_string())?;
            LauncherConfig::from_config_map(map.as_ref()).session(uri).map_err(|e| e.to_string())
        }
        .await;
        found.inspect_err(|error| tracing::warn!(error, "cannot read the kfp-launcher settings")).ok()
    }
}

/// Replaces placeholders in texts, at any depth. A text that is one placeholder takes the parameter's own type.
fn fill(value: Value, placeholders: &Placeholders<'_>, inputs: &Map<String, Value>) -> Value {
    match value {
        Value::String(text) => {
            let inner = text.strip_prefix("{{$.inputs.parameters['").and_then(|t| t.strip_suffix("']}}"));
            match inner.and_then(|name| inputs.get(name)) {
                Some(value) => value.clone(),
                None => Value::String(placeholders.text(&text)),
            }
        }
        Value::Array(list) => list.into_iter().map(|v| fill(v, placeholders, inputs)).collect(),
        Value::Object(map) => map.into_iter().map(|(k, v)| (k, fill(v, placeholders, inputs))).collect(),
        other => other,
    }
}

/// What is recorded about reaching the artifact: credentials come from the environment. Images and web addresses need
/// no session.
fn session(uri: &str, title: &str) -> Result<Option<Session>, Error> {
    match uri.split_once("://").map(|(scheme, _)| scheme) {
        Some(scheme @ ("gs" | "s3" | "minio" | "mem" | "azblob")) => Ok(Some(Session::from_env(scheme))),
        Some("oci") if title != "system.Model" => {
            Err(Error::Importer(format!("the {title} artifact type does not support OCI registries")))
        }
        Some(_) => Ok(None),
        None => Err(Error::Importer(format!("no provider scheme found in artifact URI: {uri}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sessions_follow_the_scheme() {
        let text = session("gs://b/k", "system.Dataset").unwrap().unwrap().to_json();
        assert_eq!(text, r#"{"Provider":"gs","Params":{"fromEnv":"true"}}"#);
        assert_eq!(session("https://x/y", "system.Dataset").unwrap(), None);
        assert_eq!(session("oci://r/m", "system.Model").unwrap(), None);
        assert!(session("oci://r/m", "system.Dataset").unwrap_err().to_string().contains("does not support OCI"));
        assert!(session("/plain", "system.Dataset").unwrap_err().to_string().contains("no provider scheme"));
    }

    #[test]
    fn metadata_is_filled_with_types() {
        let inputs: Map<String, Value> = serde_json::from_value(json!({"n": 3, "s": "x"})).unwrap();
        let json = json!({"inputs": {"parameterValues": inputs}});
        let input = ExecutorInput { json, ..ExecutorInput::default() };
        let paths = Paths::default();
        let placeholders = Placeholders::new(&input, &paths);
        let metadata = json!({
            "whole": "{{$.inputs.parameters['n']}}",
            "part": ["a-{{$.inputs.parameters['s']}}-{{$.inputs.parameters['n']}}"],
            "plain": 1
        });
        let want = json!({"whole": 3, "part": ["a-x-3"], "plain": 1});
        assert_eq!(fill(metadata, &placeholders, &inputs), want);
    }
}
