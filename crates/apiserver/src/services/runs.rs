//! `RunService` of v2beta1, and what both API versions do with runs that exist.

use std::collections::BTreeMap;

use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use serde_json::json;
use v2::run_service_server::RunService;

use super::launch::Draft;
use super::sources::{Inline, Origin};
use super::{
    Answer, Handle, Scope, answer, paging, parameters_json, plugins_shown, required, runtime_config, shown_spec,
    to_the_end,
};
use crate::domain::details::{self, Detail};
use crate::domain::state::{State, Storage, status, timestamp};
use crate::error::{Error, Result, Wrap as _};
use crate::store::list::Page;
use crate::store::specs::Specs;
use crate::store::{Tx, experiments, list, now, runs, tasks};
use crate::workflows::cluster::{Failure, Kind, Propagation};

/// Serves runs.
#[derive(Clone, Debug)]
pub struct Service(pub Handle);

/// A time that may not have come yet; upstream shows the year 1 then, which helps nobody.
fn happened(seconds: i64) -> Option<prost_types::Timestamp> {
    (seconds > 0).then(|| timestamp(seconds))
}

/// Upstream shows neither pods, parents nor messages, though its API has a place for each.
fn task_shown(task: tasks::Task, detail: Detail, run_id: &str) -> v2::PipelineTaskDetail {
    let child = |id: String| v2::pipeline_task_detail::ChildTask {
        child_task: Some(v2::pipeline_task_detail::child_task::ChildTask::PodName(id)),
    };
    let mut state_history = task.history.to_v2();
    if let Some(first) = state_history.first_mut() {
        let waited = match detail.waited_for.as_slice() {
            [] => "waited for no other task".to_owned(),
            names => format!("waited for {}", names.join(", ")),
        };
        let error = first.error.get_or_insert_default();
        error.message = if error.message.is_empty() { waited } else { format!("{waited}; {}", error.message) };
    }
    v2::PipelineTaskDetail {
        run_id: run_id.to_owned(),
        task_id: task.id,
        display_name: task.name,
        create_time: Some(timestamp(task.created_at)),
        start_time: happened(task.started_at),
        end_time: happened(task.finished_at),
        state: task.state.to_v2() as i32,
        execution_id: task.execution_id.parse().unwrap_or_default(),
        error: (!task.message.is_empty()).then(|| status(State::Failed, task.message)),
        parent_task_id: task.parent_id,
        state_history,
        pod_name: detail.pod,
        child_tasks: task.children.into_iter().map(child).collect(),
        ..v2::PipelineTaskDetail::default()
    }
}

/// A run for the API; `specs` are looked at only when it was not made from a version.
fn shown(run: runs::Run, specs: Option<&Specs>, details: Vec<tasks::Task>) -> v2::Run {
    use v2::run::PipelineSource;
    let source = if run.version_id.is_empty() {
        shown_spec(specs).map(|spec| spec.map(PipelineSource::PipelineSpec))
    } else {
        Ok(Some(PipelineSource::PipelineVersionReference(v2::PipelineVersionReference {
            pipeline_id: run.pipeline_id,
            pipeline_version_id: run.version_id,
        })))
    };
    let (pipeline_source, error) = match source {
        Ok(source) => (source, None),
        Err(error) => (None, Some(error.to_rpc())),
    };
    let facts = details::of(&details);
    let task_details: Vec<_> =
        details.into_iter().zip(facts).map(|(task, detail)| task_shown(task, detail, &run.id)).collect();
    v2::Run {
        runtime_config: runtime_config(&run.runtime_parameters, &run.parameters, &run.pipeline_root),
        state_history: run.history.to_v2(),
        plugins_input: plugins_shown(&run.plugins_input),
        run_details: (!task_details.is_empty()).then_some(v2::RunDetails { task_details, ..v2::RunDetails::default() }),
        experiment_id: run.experiment_id,
        run_id: run.id,
        display_name: run.display_name,
        storage_state: run.storage.number(),
        description: run.description,
        pipeline_source,
        service_account: run.service_account,
        created_at: Some(timestamp(run.created_at)),
        scheduled_at: Some(timestamp(run.scheduled_at)),
        finished_at: Some(timestamp(run.finished_at)),
        state: run.state.to_v2() as i32,
        error,
        recurring_run_id: run.job_id,
        plugins_output: BTreeMap::new(),
    }
}

#[allow(deprecated)] // Older clients name only the version.
pub(crate) fn origin(source: Option<v2::run::PipelineSource>) -> Origin {
    use v2::run::PipelineSource as S;
    match source {
        Some(S::PipelineVersionReference(by)) => {
            Origin { version_id: by.pipeline_version_id, pipeline_id: by.pipeline_id, inline: None }
        }
        Some(S::PipelineVersionId(id)) => Origin::version(&id),
        Some(S::PipelineSpec(spec)) => {
            Origin { inline: Some(Inline::Json(kfp_core::ir::struct_to_json(&spec))), ..Origin::default() }
        }
        None => Origin::default(),
    }
}

impl Service {
    /// Namespace in which a run's Workflow lives.
    pub(super) fn namespace<'a>(&'a self, run: &'a runs::Run) -> &'a str {
        if run.namespace.is_empty() { &self.0.namespace } else { &run.namespace }
    }

    async fn create_v2(&self, request: v2::CreateRunRequest) -> Result<v2::Run> {
        let given = required(request.run, "run")?;
        if !given.plugins_output.is_empty() {
            return Err(Error::bad_request(
                "plugins_output is server-owned and populated exclusively via plugin lifecycle hooks",
                "it is set in the request",
            ));
        }
        let draft = Draft {
            storage: match given.storage_state() {
                v2::run::StorageState::Archived => Storage::Archived,
                _ => Storage::Available,
            },
            id: given.run_id,
            display_name: given.display_name,
            description: given.description,
            experiment_id: given.experiment_id,
            job_id: given.recurring_run_id,
            service_account: given.service_account,
            origin: origin(given.pipeline_source),
            runtime_parameters: parameters_json(given.runtime_config.as_ref()),
            pipeline_root: given.runtime_config.map(|config| config.pipeline_root).unwrap_or_default(),
            scheduled_at: given.scheduled_at.map_or(0, |time| time.seconds),
            plugins_input: self.0.live.get().plugins.stored(&given.plugins_input)?,
            ..Draft::default()
        };
        let run = self.launch(draft).await?;
        let mut tx = self.0.db.read().await?;
        self.full(&mut tx, run).await
    }

    async fn full(&self, tx: &mut Tx, run: runs::Run) -> Result<v2::Run> {
        let ids = std::slice::from_ref(&run.id);
        let mut specs = if run.version_id.is_empty() { runs::specs_of(tx, ids).await? } else { BTreeMap::new() };
        let mut details = tasks::of_runs(tx, ids).await?.remove(&run.id).unwrap_or_default();
        tasks::fill_details(tx, &run.id, &mut details).await?;
        let specs = specs.remove(&run.id);
        Ok(shown(run, specs.as_ref(), details))
    }

    async fn get(&self, id: &str) -> Result<v2::Run> {
        let mut tx = self.0.db.read().await?;
        let run = runs::get(&mut tx, id).await?;
        self.full(&mut tx, run).await
    }

    /// One page of runs.
    ///
    /// # Errors
    /// Code 5 when there is no such experiment.
    pub(super) async fn page(tx: &mut Tx, scope: Scope<'_>, options: &list::Options) -> Result<Page<runs::Run>> {
        let page = runs::list(tx, &scope.columns(), options).await?;
        // Only an empty page needs to know whether the experiment exists at all.
        if let Scope::Experiment(id) = scope
            && page.items.is_empty()
        {
            experiments::get(tx, id).await?;
        }
        Ok(page)
    }

    async fn list(&self, request: v2::ListRunsRequest) -> Result<v2::ListRunsResponse> {
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let options = list::Options::parse(paging, &runs::LISTABLE)?;
        let mut tx = self.0.db.read().await?;
        let scope = self.0.scope(&request.experiment_id, &request.namespace);
        let page = Self::page(&mut tx, scope, &options).await?;
        let ids: Vec<String> = page.items.iter().map(|run| run.id.clone()).collect();
        let mut details = tasks::of_runs(&mut tx, &ids).await?;
        let inline = page.items.iter().filter(|run| run.version_id.is_empty()).map(|run| run.id.clone());
        let specs = runs::specs_of(&mut tx, &inline.collect::<Vec<_>>()).await?;
        let runs = page.items.into_iter().map(|run| {
            let details = details.remove(&run.id).unwrap_or_default();
            let specs = specs.get(&run.id);
            shown(run, specs, details)
        });
        Ok(v2::ListRunsResponse { runs: runs.collect(), total_size: page.total, next_page_token: page.next })
    }

    pub(super) async fn archive(&self, id: &str) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        runs::set_storage(&mut tx, id, Storage::Archived, now()).await?;
        tx.commit().await
    }

    pub(super) async fn unarchive(&self, id: &str) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        let run = runs::get(&mut tx, id).await?;
        match experiments::get(&mut tx, &run.experiment_id).await {
            Ok(experiment) if experiment.storage == Storage::Archived => {
                return Err(Error::failed_precondition(
                    format!(
                        "Failed to unarchive run {id} as experiment {} must be un-archived first",
                        run.experiment_id
                    ),
                    "the experiment is archived",
                ));
            }
            Err(error) if !error.is_not_found() => return Err(error),
            _ => {}
        }
        runs::set_storage(&mut tx, id, Storage::Available, now()).await?;
        tx.commit().await
    }

    pub(super) async fn delete(&self, id: &str) -> Result<()> {
        let mut tx = self.0.db.read().await?;
        let run = runs::get(&mut tx, id).await?;
        drop(tx);
        if !run.workflow.is_empty() {
            let namespace = self.namespace(&run);
            match self.0.cluster.delete(Kind::Workflow, namespace, &run.workflow, Propagation::Default).await {
                Ok(()) | Err(Failure::NotFound(_)) => {}
                Err(failure) => {
                    tracing::warn!(run = %id, workflow = %run.workflow, %failure, "cannot delete the workflow of a deleted run");
                }
            }
        }
        let mut tx = self.0.db.write().await?;
        runs::delete(&mut tx, id).await?;
        tx.commit().await
    }

    pub(super) async fn terminate(&self, id: &str) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        let run = runs::get(&mut tx, id).await?;
        if !runs::terminate(&mut tx, id).await? {
            return Err(Error::invalid(format!("Failed to terminate a run {id}. Row not found")));
        }
        tx.commit().await?;
        let patch = json!({"spec": {"activeDeadlineSeconds": 0}});
        let namespace = self.namespace(&run);
        match self.0.cluster.merge_surely(Kind::Workflow, namespace, &run.workflow, &patch).await {
            Ok(()) => Ok(()),
            Err(Failure::NotFound(_)) => self.give_up(id).await,
            Err(failure) => Err(Error::internal(format!("Failed to terminate run {id}"), failure)),
        }
    }

    /// Retries a run, to its end although the caller goes away.
    pub(super) async fn retry_fully(&self, id: String) -> Result<()> {
        let service = self.clone();
        to_the_end(async move { service.retry(&id).await }).await
    }

    /// Ends a run whose Workflow is gone: no report would ever do it.
    async fn give_up(&self, id: &str) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        let mut run = runs::get(&mut tx, id).await?;
        if run.state.is_final() {
            return Ok(());
        }
        let manifest = runs::manifests(&mut tx, id).await?.workflow_runtime;
        run.state = State::Failed;
        run.finished_at = now();
        run.history.note(State::Failed, run.finished_at);
        runs::update(&mut tx, &run, &manifest).await?;
        tracing::warn!(run = %id, workflow = %run.workflow, "the workflow of a terminated run is gone; the run has failed");
        tx.commit().await
    }
}

#[tonic::async_trait]
impl RunService for Service {
    async fn create_run(&self, request: tonic::Request<v2::CreateRunRequest>) -> Answer<v2::Run> {
        answer(self.create_v2(request.into_inner()).await.wrap(|| "Failed to create a run".to_owned()))
    }

    async fn get_run(&self, request: tonic::Request<v2::GetRunRequest>) -> Answer<v2::Run> {
        answer(self.get(&request.get_ref().run_id).await.wrap(|| "Failed to get a run".to_owned()))
    }

    async fn list_runs(&self, request: tonic::Request<v2::ListRunsRequest>) -> Answer<v2::ListRunsResponse> {
        answer(self.list(request.into_inner()).await.wrap(|| "Failed to list runs".to_owned()))
    }

    async fn archive_run(&self, request: tonic::Request<v2::ArchiveRunRequest>) -> Answer<()> {
        answer(self.archive(&request.get_ref().run_id).await.wrap(|| "Failed to archive a run".to_owned()))
    }

    async fn unarchive_run(&self, request: tonic::Request<v2::UnarchiveRunRequest>) -> Answer<()> {
        answer(self.unarchive(&request.get_ref().run_id).await.wrap(|| "Failed to unarchive a run".to_owned()))
    }

    async fn delete_run(&self, request: tonic::Request<v2::DeleteRunRequest>) -> Answer<()> {
        answer(self.delete(&request.get_ref().run_id).await.wrap(|| "Failed to delete a run".to_owned()))
    }

    async fn terminate_run(&self, request: tonic::Request<v2::TerminateRunRequest>) -> Answer<()> {
        answer(self.terminate(&request.get_ref().run_id).await.wrap(|| "Failed to terminate a run".to_owned()))
    }

    async fn retry_run(&self, request: tonic::Request<v2::RetryRunRequest>) -> Answer<()> {
        answer(self.retry_fully(request.into_inner().run_id).await.wrap(|| "Failed to retry a run".to_owned()))
    }
}
