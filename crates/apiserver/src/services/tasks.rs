//! `api.TaskService`, which the v2 driver and launcher use as their cache.

use api::task_service_server::TaskService;
use kfp_proto::api;

use super::{Answer, Handle, answer, new_id, required};
use crate::domain::state::timestamp;
use crate::error::{Error, Result, Wrap as _};
use crate::store::filter::{Filter, Generation, Operation};
use crate::store::sql::Value;
use crate::store::{experiments, list, now, runs, tasks};

/// Serves cache entries.
#[derive(Clone, Debug)]
pub struct Service(pub Handle);

fn shown(task: tasks::Task) -> api::Task {
    api::Task {
        id: task.id,
        namespace: task.namespace,
        pipeline_name: task.pipeline_name,
        run_id: task.run_id,
        mlmd_execution_id: task.execution_id,
        created_at: Some(timestamp(task.created_at)),
        finished_at: Some(timestamp(task.finished_at)),
        fingerprint: task.fingerprint,
    }
}

fn seconds(time: Option<prost_types::Timestamp>) -> i64 {
    time.map_or(0, |time| time.seconds)
}

/// Whether a filter lets through only tasks with a certain fingerprint.
///
/// # Errors
/// Code 3 when it is no filter.
pub(crate) fn is_by_fingerprint(filter: &str) -> Result<bool> {
    let filter = Filter::parse(filter, Generation::V1, &tasks::LISTABLE)?;
    // Tasks that are not in the cache have an empty one.
    let known = |value: &Value| matches!(value, Value::Text(text) if !text.is_empty());
    Ok(filter.predicates.iter().any(|predicate| {
        predicate.column == "Fingerprint" && predicate.operation == Operation::Eq && predicate.values.iter().all(known)
    }))
}

/// A name of the form `namespace/NS/pipeline/NAME` must agree with the task's namespace.
fn check_name(name: &str, namespace: &str) -> Result<()> {
    let Some(rest) = name.strip_prefix("namespace/") else { return Ok(()) };
    let bad = || {
        Error::invalid(format!(
            "Invalid task: pipelineName {name:?} must have the form namespace/<namespace>/pipeline/<name> and agree \
             with namespace {namespace:?}"
        ))
    };
    let mut parts = rest.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(given), Some("pipeline"), Some(name), None)
            if !name.is_empty() && (namespace.is_empty() || namespace == given) =>
        {
            Ok(())
        }
        _ => Err(bad()),
    }
}

impl Service {
    async fn create(&self, request: api::CreateTaskRequest) -> Result<api::Task> {
        let given = required(request.task, "task")?;
        if !given.id.is_empty() {
            return Err(Error::invalid("Invalid task: Id should not be set"));
        }
        for (missing, field) in [
            (given.pipeline_name.is_empty(), "PipelineName"),
            (given.run_id.is_empty(), "RunID"),
            (given.mlmd_execution_id.is_empty(), "MlmdExecutionID"),
            (given.fingerprint.is_empty(), "FingerPrint"),
            (given.created_at.is_none(), "CreatedAt"),
        ] {
            if missing {
                return Err(Error::invalid(format!("Invalid task: must specify {field}")));
            }
        }
        check_name(&given.pipeline_name, &given.namespace)?;
        let mut tx = self.0.db.write().await?;
        let run = runs::get(&mut tx, &given.run_id).await?;
        let mut namespace = given.namespace;
        // The experiment may be gone; its runs live on.
        if let Ok(experiment) = experiments::get(&mut tx, &run.experiment_id).await
            && !experiment.namespace.is_empty()
        {
            if namespace.is_empty() {
                namespace = experiment.namespace;
            } else if namespace != experiment.namespace {
                return Err(Error::invalid(format!(
                    "Invalid task: namespace {namespace:?} is not the run's namespace {:?}",
                    experiment.namespace
                )));
            }
        }
        let started = seconds(given.created_at);
        let task = tasks::Task {
            id: new_id(),
            namespace,
            pipeline_name: given.pipeline_name,
            run_id: given.run_id,
            execution_id: given.mlmd_execution_id,
            created_at: if started > 0 { started } else { now() },
            started_at: if started > 0 { started } else { now() },
            finished_at: seconds(given.finished_at),
            fingerprint: given.fingerprint,
            ..tasks::Task::default()
        };
        tasks::insert(&mut tx, &task).await?;
        tx.commit().await?;
        Ok(shown(task))
    }

    async fn list(&self, request: api::ListTasksRequest) -> Result<api::ListTasksResponse> {
        let paging = list::Request {
            token: &request.page_token,
            size: request.page_size,
            sort_by: &request.sort_by,
            filter: &request.filter,
            generation: Generation::V1,
        };
        let options = list::Options::parse(paging, &tasks::LISTABLE)?;
        let scope = match &request.resource_reference_key {
            None => vec![],
            Some(key) if key.r#type == api::ResourceType::Pipeline as i32 => {
                vec![("PipelineName", (&key.id).into())]
            }
            Some(_) => return Err(Error::invalid("tasks can be listed by pipeline only")),
        };
        let mut tx = self.0.db.read().await?;
        let page = tasks::list(&mut tx, &scope, &options).await?;
        Ok(api::ListTasksResponse {
            tasks: page.items.into_iter().map(shown).collect(),
            next_page_token: page.next,
            total_size: page.total,
        })
    }
}

#[tonic::async_trait]
impl TaskService for Service {
    async fn create_task_v1(&self, request: tonic::Request<api::CreateTaskRequest>) -> Answer<api::Task> {
        answer(self.create(request.into_inner()).await.wrap(|| "Failed to create a new task".to_owned()))
    }

    async fn list_tasks_v1(&self, request: tonic::Request<api::ListTasksRequest>) -> Answer<api::ListTasksResponse> {
        answer(self.list(request.into_inner()).await.wrap(|| "Failed to list tasks".to_owned()))
    }
}
