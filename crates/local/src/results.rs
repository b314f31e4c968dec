//! What a run made, read from the metadata store: tasks with their durations, metrics and artifacts.

use std::collections::BTreeMap;

use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_metadata::metadata_store_service_client::MetadataStoreServiceClient;
use tonic::transport::Channel;

/// One executed task.
#[derive(Clone, Debug)]
pub struct Task {
    /// Name, with the iteration of its loop where it has one.
    pub name: String,
    /// Final state as the metadata store has it (`COMPLETE`, `CACHED`, ...).
    pub state: String,
    /// Time from its driver's start to its last update, in milliseconds.
    pub milliseconds: i64,
}

/// One artifact that a task made.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// The task's name.
    pub task: String,
    /// Output name.
    pub name: String,
    /// Type, such as `system.Model`.
    pub kind: String,
    /// Where it lies.
    pub uri: String,
    /// Metadata, metrics among it.
    pub properties: BTreeMap<String, String>,
}

/// Everything about a run.
#[derive(Clone, Debug, Default)]
pub struct Results {
    /// Tasks in the order in which they started.
    pub tasks: Vec<Task>,
    /// Artifacts in the order of their tasks.
    pub artifacts: Vec<Artifact>,
}

/// Executions and artifacts read with one call.
const PAGE: i32 = 100;

/// Reads a run's tasks and, if wanted, its artifacts.
///
/// # Errors
/// When the metadata store does not answer.
pub async fn of_run(channel: Channel, run: &str, artifacts: bool) -> Result<Results, tonic::Status> {
    let mut client = MetadataStoreServiceClient::new(channel).max_decoding_message_size(256 << 20);
    let request = pb::GetContextByTypeAndNameRequest {
        type_name: Some("system.PipelineRun".to_owned()),
        context_name: Some(run.to_owned()),
        ..Default::default()
    };
    let context = client.get_context_by_type_and_name(request).await?.into_inner().context;
    let Some(id) = context.and_then(|c| c.id) else { return Ok(Results::default()) };
    let mut executions = Vec::new();
    let mut page = None;
    loop {
        let options =
            pb::ListOperationOptions { max_result_size: Some(PAGE), next_page_token: page, ..Default::default() };
        let request =
            pb::GetExecutionsByContextRequest { context_id: Some(id), options: Some(options), ..Default::default() };
        let answer = client.get_executions_by_context(request).await?.into_inner();
        executions.extend(answer.executions);
        page = answer.next_page_token.filter(|token| !token.is_empty());
        if page.is_none() {
            break;
        }
    }
    executions.sort_by_key(|e| (e.create_time_since_epoch(), e.id()));
    let names = names(&executions);
    let tasks: Vec<&pb::Execution> = executions
        .iter()
        .filter(|e| e.r#type() == "system.ContainerExecution" || e.r#type() == "system.ImporterExecution")
        .collect();
    let mut results = Results::default();
    for execution in &tasks {
        results.tasks.push(Task {
            name: names.get(&execution.id()).cloned().unwrap_or_default(),
            state: execution.last_known_state().as_str_name().to_owned(),
            milliseconds: execution.last_update_time_since_epoch() - execution.create_time_since_epoch(),
        });
    }
    if !artifacts {
        return Ok(results);
    }
    for part in tasks.chunks(usize::try_from(PAGE).unwrap_or(100)) {
        let ids = part.iter().map(|e| e.id()).collect();
        let request = pb::GetEventsByExecutionIDsRequest { execution_ids: ids, ..Default::default() };
        let events = client.get_events_by_execution_i_ds(request).await?.into_inner().events;
        let made: Vec<_> = events.into_iter().filter(|e| e.r#type() == pb::event::Type::Output).collect();
        let ids = made.iter().map(pb::Event::artifact_id).collect();
        let request = pb::GetArtifactsByIdRequest { artifact_ids: ids, ..Default::default() };
        let artifacts = client.get_artifacts_by_id(request).await?.into_inner().artifacts;
        let artifacts: BTreeMap<i64, pb::Artifact> = artifacts.into_iter().map(|a| (a.id(), a)).collect();
        for execution in part {
            for event in made.iter().filter(|e| e.execution_id() == execution.id()) {
                if let Some(artifact) = artifacts.get(&event.artifact_id()) {
                    let task = names.get(&execution.id()).cloned().unwrap_or_default();
                    results.artifacts.push(describe(task, event, artifact));
                }
            }
        }
    }
    Ok(results)
}

fn describe(task: String, event: &pb::Event, artifact: &pb::Artifact) -> Artifact {
    let name = event.path.as_ref().and_then(|p| {
        p.steps.iter().find_map(|s| match &s.value {
            Some(pb::event::path::step::Value::Key(key)) => Some(key.clone()),
            _ => None,
        })
    });
    let properties = artifact
        .custom_properties
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), "display_name" | "store_session_info"))
        .filter_map(|(key, value)| Some((key.clone(), text(value)?)))
        .collect();
    Artifact {
        task,
        name: name.unwrap_or_else(|| artifact.name().to_owned()),
        kind: artifact.r#type().to_owned(),
        uri: artifact.uri().to_owned(),
        properties,
    }
}

/// A property in a few characters; `None` for structures, which no table can hold.
fn text(value: &pb::Value) -> Option<String> {
    match value.value.as_ref()? {
        pb::value::Value::IntValue(n) => Some(n.to_string()),
        pb::value::Value::DoubleValue(n) if n.fract() == 0.0 && n.abs() < 1e15 => Some(format!("{n:.0}")),
        pb::value::Value::DoubleValue(n) => Some(format!("{n:.4}")),
        pb::value::Value::StringValue(text) => Some(text.clone()),
        pb::value::Value::BoolValue(on) => Some(on.to_string()),
        _ => None,
    }
}

/// Readable names: the task's name followed by the iterations of the loops around it, outermost first.
fn names(executions: &[pb::Execution]) -> BTreeMap<i64, String> {
    let by_id: BTreeMap<i64, &pb::Execution> = executions.iter().map(|e| (e.id(), e)).collect();
    let property = |e: &pb::Execution, name: &str| {
        e.custom_properties.get(name).and_then(|v| match v.value {
            Some(pb::value::Value::IntValue(n)) => Some(n),
            _ => None,
        })
    };
    let mut names = BTreeMap::new();
    for execution in executions {
        let label = ["display_name", "task_name"]
            .iter()
            .find_map(|key| execution.custom_properties.get(*key).and_then(text).filter(|name| !name.is_empty()));
        let mut iterations = Vec::new();
        let mut at = Some(execution);
        // A tree by construction; the bound only guards against a damaged database.
        for _ in 0..64 {
            let Some(here) = at else { break };
            iterations.extend(property(here, "iteration_index"));
            at = property(here, "parent_dag_id").and_then(|id| by_id.get(&id).copied());
        }
        iterations.reverse();
        let mut name = label.unwrap_or_else(|| format!("execution {}", execution.id()));
        for index in iterations {
            name.push_str(&format!("[{index}]"));
        }
        names.insert(execution.id(), name);
    }
    names
}
