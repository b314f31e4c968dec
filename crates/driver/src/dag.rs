//! DAG drivers: the pipeline itself, and everything in it that has tasks of its own.

use std::collections::BTreeMap;

use kfp_core::mlmd::{Execution, NewExecution, Run, RunProperties, State, names};
use kfp_core::objects::{self, LauncherConfig};
use kfp_core::{gojson, ir, kubeapi, mlmd};
use kfp_proto::ml_metadata::Value as Property;
use kfp_proto::ml_pipelines::component_spec::Implementation;
use kfp_proto::ml_pipelines::pipeline_job::RuntimeConfig;
use kfp_proto::ml_pipelines::pipeline_task_spec::Iterator as TaskIterator;
use kfp_proto::ml_pipelines::{DagSpec, ParameterIteratorSpec, parameter_iterator_spec::items_spec};
use prost_types::{Struct, Value};
use serde_json::json;

use crate::request::{Request, Response, Task};
use crate::resolve::{Inputs, Resolver, items};
use crate::{Error, Services, cel, outputs, times};

/// Drives the pipeline itself: records the run and its parameters. Doing it twice gives the same execution.
pub(crate) async fn root(
    request: &Request,
    config: &RuntimeConfig,
    default_root: &str,
    services: &Services,
) -> Result<Response, Error> {
    let run = &request.run;
    let (root, session) = store(&config.gcs_output_directory, default_root, &run.namespace, services).await?;
    let properties = RunProperties {
        namespace: run.namespace.clone(),
        pipeline_root: outputs::join_keeping_query(&root, &[&run.pipeline_name, &run.id]),
        store_session_info: session,
    };
    let contexts = services.metadata.ensure_run(&run.pipeline_name, &run.id, &properties).await?;
    let new = NewExecution {
        type_name: names::DAG_EXECUTION,
        name: Some(names::root_execution(&run.id)),
        state: State::Running,
        properties: named("", ""),
        inputs: Some(config.parameter_values.clone()),
        input_artifacts: BTreeMap::new(),
    };
    let execution = services.metadata.create_execution(&contexts, new).await?;
    Ok(Response { execution_id: execution.id(), ..Default::default() })
}

/// Pipeline root of a run and the JSON of how to open it.
async fn store(
    of_run: &str,
    default_root: &str,
    namespace: &str,
    services: &Services,
) -> Result<(String, String), Error> {
    let object = match &services.kubernetes {
        Some(client) => client.find(kubeapi::CONFIG_MAPS, namespace, objects::CONFIG_MAP).await?,
        None => None,
    };
    let config = LauncherConfig::from_config_map(object.as_ref());
    let root = match (of_run, config.default_pipeline_root()) {
        ("", objects::DEFAULT_PIPELINE_ROOT) if !default_root.is_empty() => default_root,
        ("", configured) => configured,
        (given, _) => given,
    };
    tracing::info!(root, "pipeline root");
    let session = config.session(root).map_err(|error| Error::Store(error.to_string()))?;
    Ok((root.to_owned(), session.to_json()))
}

/// The two properties that every execution has.
pub(crate) fn named(task: &str, display: &str) -> BTreeMap<String, Property> {
    [(names::TASK_NAME, task), (names::DISPLAY_NAME, display)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), mlmd::text(value)))
        .collect()
}

/// Properties of a task's execution within its parent DAG.
pub(crate) fn placed(task: &Task) -> BTreeMap<String, Property> {
    let mut properties = named(&task.name, task.display_name());
    properties.insert(names::PARENT_DAG_ID.to_owned(), mlmd::int(task.dag_execution_id));
    if let Some(index) = task.iteration_index {
        properties.insert(names::ITERATION_INDEX.to_owned(), mlmd::int(index));
    }
    properties
}

/// Records a task. Returns also the state in which an earlier driver of the same task left it, as far as that is known.
pub(crate) async fn record(
    request: &Request,
    task: &Task,
    run: &Run,
    new: NewExecution,
    services: &Services,
) -> Result<(Execution, Option<State>), mlmd::Error> {
    if task.ambiguous {
        return Ok((services.metadata.create_execution(run, new).await?, None));
    }
    // The store limits names to 255 characters.
    let key = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, task.identity(&request.run.id).as_bytes());
    services.metadata.create_task_execution(run, &format!("task/{key}"), new).await
}

/// Brings the state of a DAG up to date. Errors are only logged: what became of the task itself is recorded by now, and
/// the next task to end tries again.
pub(crate) async fn tell(run: &Run, dag: i64, services: &Services) {
    if let Err(error) = services.metadata.propagate_dag_state(run, dag).await {
        tracing::error!(dag, "cannot update the state of the DAG: {error}");
    }
}

/// Records a task that failed before it had an execution: without one, nobody could tell that its DAG failed. Upstream
/// records nothing.
pub(crate) async fn record_failure(
    type_name: &'static str,
    request: &Request,
    task: &Task,
    run: &Run,
    reason: &Error,
    services: &Services,
) {
    if matches!(reason, Error::Metadata(_)) {
        return;
    }
    let mut properties = placed(task);
    properties.insert(names::ERROR_MESSAGE.to_owned(), mlmd::text(reason.to_string()));
    let new = NewExecution { type_name, state: State::Failed, properties, ..NewExecution::default() };
    match record(request, task, run, new, services).await {
        Ok(_) => tell(run, task.dag_execution_id, services).await,
        Err(error) => tracing::error!(task = task.name, "cannot record the failure: {error}"),
    }
}

/// Value of the task's trigger condition, if it has one.
pub(crate) fn condition(task: &Task, inputs: &Inputs) -> Result<Option<bool>, Error> {
    let Some(expression) = task.condition() else { return Ok(None) };
    Ok(Some(cel::condition(expression, &inputs.executor_input())?))
}

/// Drives a DAG within the pipeline.
pub(crate) async fn nested(request: &Request, task: &Task, services: &Services) -> Result<Response, Error> {
    let metadata = &services.metadata;
    let (run, parent) = tokio::try_join!(
        metadata.run(&request.run.pipeline_name, &request.run.id),
        metadata.execution(task.dag_execution_id)
    )?;
    let times = times::of(request, task, services).await?;
    let mut resolver = Resolver::new(request, task, metadata, &run, parent, times);
    let Plan { inputs, condition, count } = match plan(task, &mut resolver).await {
        Ok(plan) => plan,
        Err(error) => {
            record_failure(names::DAG_EXECUTION, request, task, &run, &error, services).await;
            return Err(error);
        }
    };
    let triggered = condition != Some(false);
    let mut properties = placed(task);
    let spec = match &request.component.implementation {
        Some(Implementation::Dag(dag)) => dag.clone(),
        _ => DagSpec::default(),
    };
    let total = i64::try_from(spec.tasks.len()).unwrap_or(i64::MAX);
    properties.insert(names::TOTAL_DAG_TASKS.to_owned(), mlmd::int(total));
    properties.extend(producers(&spec));
    if let Some(count) = count {
        properties.insert(names::ITERATION_COUNT.to_owned(), mlmd::int(count));
    }
    let new = NewExecution {
        type_name: names::DAG_EXECUTION,
        name: None,
        state: if triggered { State::Running } else { State::Canceled },
        properties,
        input_artifacts: inputs.artifact_ids(),
        inputs: Some(inputs.parameters),
    };
    let (execution, _) = record(request, task, &run, new, services).await?;
    // Nothing will run below, so nobody else would tell the parent.
    if !triggered {
        tell(&run, task.dag_execution_id, services).await;
    } else if count == Some(0) {
        tell(&run, execution.id(), services).await;
    }
    Ok(Response { execution_id: execution.id(), iteration_count: count, condition, ..Default::default() })
}

/// What is known of a DAG before anything is recorded.
struct Plan {
    inputs: Inputs,
    condition: Option<bool>,
    /// Number of iterations of a loop's head.
    count: Option<i64>,
}

async fn plan(task: &Task, resolver: &mut Resolver<'_>) -> Result<Plan, Error> {
    let mut inputs = resolver.inputs().await?;
    let condition = condition(task, &inputs)?;
    let count = match (&task.spec.iterator, task.iteration_index) {
        (Some(TaskIterator::ArtifactIterator(_)), None) => {
            return Err(Error::Inputs("ArtifactIterator is not implemented".to_owned()));
        }
        (Some(TaskIterator::ParameterIterator(iterator)), None) if condition != Some(false) => {
            Some(i64::try_from(head_items(iterator, &mut inputs)?).unwrap_or(i64::MAX))
        }
        _ => None,
    };
    Ok(Plan { inputs, condition, count })
}

/// Number of items that a loop head iterates over. Items written in the pipeline become an input, where iterations
/// find them.
fn head_items(iterator: &ParameterIteratorSpec, inputs: &mut Inputs) -> Result<usize, Error> {
    match iterator.items.as_ref().and_then(|items| items.kind.as_ref()) {
        Some(items_spec::Kind::InputParameter(name)) => Ok(items(name, inputs.parameters.get(name))?.len()),
        Some(items_spec::Kind::Raw(text)) => {
            let name = &iterator.item_input;
            let json: serde_json::Value = serde_json::from_str(text).map_err(|error| {
                Error::Inputs(format!("iterating on item input {name:?} failed: {error} in the items {text:?}"))
            })?;
            let value = ir::from_json(&json);
            let count = items(name, Some(&value))?.len();
            inputs.parameters.insert(name.clone(), value);
            Ok(count)
        }
        None => Err(Error::Inputs("cannot retrieve parameter iterator".to_owned())),
    }
}

/// Properties that say which tasks make the DAG's outputs.
fn producers(spec: &DagSpec) -> BTreeMap<String, Property> {
    let mut properties = BTreeMap::new();
    let Some(outputs) = &spec.outputs else { return properties };
    if !outputs.parameters.is_empty() {
        let text = |spec| Value { kind: Some(prost_types::value::Kind::StringValue(ir::encode_text(spec))) };
        let fields = outputs.parameters.iter().map(|(name, spec)| (name.clone(), text(spec))).collect();
        properties.insert(names::PARAMETER_PRODUCER_TASK.to_owned(), mlmd::struct_value(Struct { fields }));
    }
    if !outputs.artifacts.is_empty() {
        let all: BTreeMap<_, _> = outputs
            .artifacts
            .iter()
            .map(|(name, spec)| {
                let selectors: Vec<_> = spec
                    .artifact_selectors
                    .iter()
                    .map(|s| json!({"producer_subtask": s.producer_subtask, "output_artifact_key": s.output_artifact_key}))
                    .collect();
                (name, json!({"artifact_selectors": selectors}))
            })
            .collect();
        properties.insert(names::ARTIFACT_PRODUCER_TASK.to_owned(), mlmd::text(gojson::to_string(&json!(all))));
    }
    properties
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfp_core::ir::Unknown;
    use kfp_proto::ml_metadata::value::Value as Stored;

    #[test]
    fn producers_are_stored_in_upstreams_two_spellings() {
        let spec: DagSpec = ir::decode(
            &json!({"outputs": {
                "parameters": {"p": {"valueFromParameter": {"producerSubtask": "t", "outputParameterKey": "k"}}},
                "artifacts": {"a": {"artifactSelectors": [{"producerSubtask": "t", "outputArtifactKey": "k"}]}}}}),
            Unknown::Reject,
        )
        .unwrap();
        let properties = producers(&spec);
        let Some(Stored::StructValue(parameters)) = &properties["parameter_producer_task"].value else { panic!() };
        assert_eq!(
            ir::struct_to_json(parameters),
            json!({"p": "{\"valueFromParameter\":{\"outputParameterKey\":\"k\",\"producerSubtask\":\"t\"}}"})
        );
        let text = r#"{"a":{"artifact_selectors":[{"output_artifact_key":"k","producer_subtask":"t"}]}}"#;
        assert_eq!(properties["artifact_producer_task"], mlmd::text(text));
        assert!(producers(&DagSpec::default()).is_empty());
    }

    #[test]
    fn raw_items_become_an_input() {
        let iterator = |items: serde_json::Value| {
            ir::decode(&json!({"items": items, "itemInput": "item"}), Unknown::Reject).unwrap()
        };
        let mut inputs = Inputs::default();
        assert_eq!(head_items(&iterator(json!({"raw": "[1, {\"a\": 2}]"})), &mut inputs).unwrap(), 2);
        assert_eq!(ir::to_json(&inputs.parameters["item"]), json!([1, {"a": 2}]));
        assert_eq!(head_items(&iterator(json!({"inputParameter": "item"})), &mut inputs).unwrap(), 2);
        for bad in [json!({"raw": "[1"}), json!({"raw": "3"}), json!({"inputParameter": "none"}), json!({})] {
            assert!(head_items(&iterator(bad), &mut inputs).is_err());
        }
    }
}
