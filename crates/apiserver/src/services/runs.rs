//! `RunService`.

use std::collections::BTreeMap;

use kfp_compiler::Package;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use serde_json::{Value, json};
use v2::run_service_server::RunService;

use super::experiments::ensure_default;
use super::{
    Answer, Handle, answer, new_id, paging, parameters_json, plugins_json, plugins_shown, required, runtime_config,
    spec_struct, stored_parameters, to_the_end,
};
use crate::domain::names;
use crate::domain::nodes::text;
use crate::domain::state::{History, State, Storage, timestamp};
use crate::error::{Error, Result, Wrap as _};
use crate::store::{Tx, experiments, jobs, list, now, runs, tasks, versions};
use crate::workflows::cluster::{Failure, Kind, Propagation};
use crate::workflows::submit::{self, compiler_error};

/// Serves runs.
#[derive(Clone, Debug)]
pub struct Service(pub Handle);

/// Namespace of the ids of runs that recurring runs create; upstream's constant.
const RUN_IDS: uuid::Uuid = uuid::Uuid::from_u128(0xc2f3_a9d4_1e6b_4c8a_9f7d_0b5e_3a1c_2d4f);

/// A time that may not have come yet; upstream shows the year 1 then, which helps nobody.
fn happened(seconds: i64) -> Option<prost_types::Timestamp> {
    (seconds > 0).then(|| timestamp(seconds))
}

fn task_shown(task: tasks::Task, run_id: &str) -> v2::PipelineTaskDetail {
    let child = |id: String| v2::pipeline_task_detail::ChildTask {
        child_task: Some(v2::pipeline_task_detail::child_task::ChildTask::PodName(id)),
    };
    v2::PipelineTaskDetail {
        run_id: run_id.to_owned(),
        task_id: task.id,
        display_name: task.name,
        create_time: Some(timestamp(task.created_at)),
        start_time: happened(task.started_at),
        end_time: happened(task.finished_at),
        state: task.state.to_v2() as i32,
        execution_id: task.execution_id.parse().unwrap_or_default(),
        // Upstream never says why a task failed; the code tells nothing more than that it did.
        error: (!task.message.is_empty()).then(|| kfp_proto::google::rpc::Status {
            code: tonic::Code::Unknown as i32,
            message: task.message,
            details: Vec::new(),
        }),
        parent_task_id: task.parent_id,
        state_history: task.history.to_v2(),
        child_tasks: task.children.into_iter().map(child).collect(),
        ..v2::PipelineTaskDetail::default()
    }
}

/// A run for the API; `spec` is its inline spec, which lists leave out.
fn shown(run: runs::Run, spec: Option<prost_types::Struct>, details: Vec<tasks::Task>) -> v2::Run {
    use v2::run::PipelineSource;
    let source = if run.version_id.is_empty() {
        spec.map(PipelineSource::PipelineSpec)
    } else {
        Some(PipelineSource::PipelineVersionReference(v2::PipelineVersionReference {
            pipeline_id: run.pipeline_id,
            pipeline_version_id: run.version_id,
        }))
    };
    let task_details: Vec<_> = details.into_iter().map(|task| task_shown(task, &run.id)).collect();
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
        pipeline_source: source,
        service_account: run.service_account,
        created_at: Some(timestamp(run.created_at)),
        scheduled_at: Some(timestamp(run.scheduled_at)),
        finished_at: Some(timestamp(run.finished_at)),
        state: run.state.to_v2() as i32,
        error: None,
        recurring_run_id: run.job_id,
        plugins_output: BTreeMap::new(),
    }
}

/// Which pipeline a run or recurring run is made from.
pub(super) struct Source {
    /// The package.
    pub package: Package,
    /// Its text as stored.
    pub text: String,
    /// Pipeline, version and version name; empty for inline specs.
    pub pipeline_id: String,
    /// See `pipeline_id`.
    pub version_id: String,
    /// See `pipeline_id`.
    pub name: String,
}

/// Loads the package that a reference names; an empty version means the newest.
pub(super) async fn referenced(tx: &mut Tx, reference: &v2::PipelineVersionReference) -> Result<Source> {
    let version = if reference.pipeline_version_id.is_empty() {
        if reference.pipeline_id.is_empty() {
            return Err(no_source());
        }
        versions::latest(tx, &reference.pipeline_id).await?
    } else {
        versions::get(tx, &reference.pipeline_version_id).await?
    };
    if !reference.pipeline_id.is_empty() && version.pipeline_id != reference.pipeline_id {
        return Err(Error::invalid(format!(
            "Pipeline version {} belongs to pipeline {} (not {})",
            version.id, version.pipeline_id, reference.pipeline_id
        )));
    }
    let package = Package::from_text(version.spec.as_bytes()).map_err(|error| compiler_error(&error))?;
    Ok(Source {
        package,
        text: version.spec,
        pipeline_id: version.pipeline_id,
        version_id: version.id,
        name: version.name,
    })
}

/// Reads an inline spec.
pub(super) fn inline(spec: &prost_types::Struct) -> Result<Source> {
    let package = Package::from_json(kfp_core::ir::struct_to_json(spec)).map_err(|error| compiler_error(&error))?;
    let text = package.to_yaml();
    Ok(Source { package, text, pipeline_id: String::new(), version_id: String::new(), name: String::new() })
}

fn no_source() -> Error {
    Error::invalid("Failed to fetch a template with an empty pipeline spec manifest")
}

/// The experiment that a run belongs to: the given one, which must exist, else the default one.
pub(super) async fn experiment_of(app: &Handle, given: &str) -> Result<String> {
    let mut tx = app.db.read().await?;
    if !given.is_empty() {
        return Ok(experiments::get(&mut tx, given).await?.id);
    }
    let known = experiments::default_id(&mut tx).await?;
    drop(tx);
    if !known.is_empty() {
        return Ok(known);
    }
    let mut tx = app.db.write().await?;
    let id = ensure_default(&mut tx).await?;
    tx.commit().await?;
    Ok(id)
}

fn kube_error(message: String, failure: Failure) -> Error {
    match failure {
        Failure::Unavailable(_) => Error::unavailable(format!("{message} - try again later"), failure),
        _ => Error::internal(message, failure),
    }
}

impl Service {
    /// Namespace in which a run's Workflow lives.
    pub(super) fn namespace<'a>(&'a self, run: &'a runs::Run) -> &'a str {
        if run.namespace.is_empty() { &self.0.namespace } else { &run.namespace }
    }

    async fn create(&self, request: v2::CreateRunRequest) -> Result<v2::Run> {
        let given = required(request.run, "run")?;
        if !given.plugins_output.is_empty() {
            return Err(Error::bad_request(
                "plugins_output is server-owned and populated exclusively via plugin lifecycle hooks",
                "it is set in the request",
            ));
        }
        if given.display_name.is_empty() {
            return Err(Error::invalid("Run name cannot be empty"));
        }
        names::length("Run.DisplayName", &given.display_name, 255)?;
        names::length("Run.UUID", &given.run_id, 191)?;
        let experiment_id = experiment_of(&self.0, &given.experiment_id).await?;
        let mut tx = self.0.db.read().await?;
        if !given.recurring_run_id.is_empty()
            && let Some(existing) = runs::by_job(&mut tx, &given.recurring_run_id, &given.display_name).await?
        {
            return self.full(&mut tx, existing).await;
        }
        let job = match given.recurring_run_id.as_str() {
            "" => None,
            id => Some(jobs::get(&mut tx, id).await.wrap(|| format!("RecurringRunId doesn't exist: {id}"))?),
        };
        let source = self.source(&mut tx, &given, job.as_ref()).await;
        let source = source.wrap(|| "Failed to create a run due to error fetching manifest".to_owned())?;
        drop(tx);

        let created_at = now();
        let scheduled_at = given.scheduled_at.map_or(0, |time| time.seconds);
        let mut history = History::default();
        history.note(State::Pending, created_at);
        let mut run = runs::Run {
            id: run_id(&given),
            description: given.description.clone(),
            namespace: String::new(),
            experiment_id,
            job_id: given.recurring_run_id.clone(),
            storage: match given.storage_state() {
                v2::run::StorageState::Archived => Storage::Archived,
                _ => Storage::Available,
            },
            service_account: given.service_account.clone(),
            pipeline_id: source.pipeline_id,
            version_id: source.version_id,
            pipeline_name: source.name,
            runtime_parameters: parameters_json(given.runtime_config.as_ref()),
            pipeline_root: given.runtime_config.map(|config| config.pipeline_root).unwrap_or_default(),
            created_at,
            scheduled_at,
            state: State::Pending,
            history,
            plugins_input: plugins_json(&given.plugins_input),
            display_name: given.display_name,
            ..runs::Run::default()
        };
        let parameters = stored_parameters(&run.runtime_parameters, "")?;
        let namespace = self.namespace(&run).to_owned();
        let mut workflow = submit::workflow(&source.package, &run, parameters, &namespace, &self.0.compiler)?;
        if let Some(job) = &job {
            self.adopt(&mut workflow, job, &run).await?;
        }
        let created = self.0.cluster.create(Kind::Workflow, &namespace, &workflow).await.map_err(|failure| {
            let name = text(&workflow, "/metadata/generateName");
            kube_error(format!("Failed to create a workflow for ({name})"), failure)
        })?;
        run.workflow = text(&created, "/metadata/name").to_owned();
        run.service_account = text(&created, "/spec/serviceAccountName").to_owned();
        if run.scheduled_at <= 0 {
            run.scheduled_at = created_at;
        }
        let manifests = runs::Manifests {
            pipeline_spec: source.text,
            pipeline_runtime: created.to_string(),
            ..runs::Manifests::default()
        };
        match self.store(&run, &manifests).await {
            Ok(()) => {}
            Err(error) => {
                // The Workflow must not run without a row; a report would delete it only after the grace period.
                let gone = self.0.cluster.delete(Kind::Workflow, &namespace, &run.workflow, Propagation::Default).await;
                if let Err(failure) = gone {
                    tracing::warn!(workflow = %run.workflow, %failure, "cannot delete the workflow of a failed run creation");
                }
                return Err(error);
            }
        }
        tracing::info!(run = %run.id, workflow = %run.workflow, "run created");
        let spec = if run.version_id.is_empty() { Some(spec_struct(&manifests.pipeline_spec)?) } else { None };
        Ok(shown(run, spec, Vec::new()))
    }

    #[allow(deprecated)] // Older clients name only the version.
    async fn source(&self, tx: &mut Tx, given: &v2::Run, job: Option<&jobs::Job>) -> Result<Source> {
        use v2::run::PipelineSource;
        match &given.pipeline_source {
            Some(PipelineSource::PipelineVersionReference(reference)) => referenced(tx, reference).await,
            Some(PipelineSource::PipelineVersionId(id)) => {
                let reference =
                    v2::PipelineVersionReference { pipeline_id: String::new(), pipeline_version_id: id.clone() };
                referenced(tx, &reference).await
            }
            Some(PipelineSource::PipelineSpec(spec)) => inline(spec),
            // A tick of a recurring run with a pinned spec.
            None => match job {
                Some(job) => {
                    let text = jobs::specs(tx, &job.id).await?.pipeline;
                    if text.is_empty() {
                        return Err(no_source());
                    }
                    let package = Package::from_text(text.as_bytes()).map_err(|error| compiler_error(&error))?;
                    Ok(Source {
                        package,
                        text,
                        pipeline_id: job.pipeline_id.clone(),
                        version_id: job.version_id.clone(),
                        name: job.pipeline_name.clone(),
                    })
                }
                None => Err(no_source()),
            },
        }
    }

    /// Makes the Workflow a child of its ScheduledWorkflow.
    async fn adopt(&self, workflow: &mut Value, job: &jobs::Job, run: &runs::Run) -> Result<()> {
        let schedule = self.0.cluster.get(Kind::ScheduledWorkflow, &job.namespace, &job.name).await;
        let schedule = schedule.map_err(|failure| match failure {
            Failure::NotFound(_) => {
                Error::not_found_because(format!("ScheduledWorkflow doesn't exist: {}", job.name), failure)
            }
            _ => kube_error(format!("Failed to read ScheduledWorkflow {}", job.name), failure),
        })?;
        let name = text(&schedule, "/metadata/name");
        workflow["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "name": name,
            "uid": text(&schedule, "/metadata/uid"), "controller": true, "blockOwnerDeletion": true,
        }]);
        let index = schedule.pointer("/status/trigger/lastWorkflowIndex").and_then(Value::as_i64).unwrap_or(0) + 1;
        for (key, value) in [
            ("scheduledWorkflowName", name.to_owned()),
            ("workflowEpoch", run.created_at.to_string()),
            ("workflowIndex", index.to_string()),
            ("isOwnedByScheduledWorkflow", "true".to_owned()),
        ] {
            workflow["metadata"]["labels"][format!("scheduledworkflows.kubeflow.org/{key}")] = json!(value);
        }
        Ok(())
    }

    async fn store(&self, run: &runs::Run, manifests: &runs::Manifests) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        if !runs::insert(&mut tx, run, manifests).await? {
            return Err(Error::already_exists(format!("Failed to store a run. The id {} already exists", run.id)));
        }
        experiments::touch(&mut tx, &run.experiment_id, run.created_at).await?;
        tx.commit().await
    }

    async fn full(&self, tx: &mut Tx, run: runs::Run) -> Result<v2::Run> {
        let spec = if run.version_id.is_empty() {
            let specs = runs::specs_of(tx, std::slice::from_ref(&run.id)).await?.remove(&run.id).unwrap_or_default();
            if specs.pipeline.is_empty() {
                let object: serde_json::Map<String, Value> = serde_json::from_str(&specs.workflow).unwrap_or_default();
                Ok((!object.is_empty()).then(|| kfp_core::ir::struct_from_json(&object)))
            } else {
                spec_struct(&specs.pipeline).map(Some)
            }
        } else {
            Ok(None)
        };
        let ids = vec![run.id.clone()];
        let mut details = tasks::of_runs(tx, &ids).await?.remove(&run.id).unwrap_or_default();
        tasks::fill_messages(tx, &run.id, &mut details).await?;
        match spec {
            Ok(spec) => Ok(shown(run, spec, details)),
            Err(error) => {
                let mut run = shown(run, None, details);
                run.error = Some(error.to_rpc());
                Ok(run)
            }
        }
    }

    async fn get(&self, id: &str) -> Result<v2::Run> {
        let mut tx = self.0.db.read().await?;
        let run = runs::get(&mut tx, id).await?;
        self.full(&mut tx, run).await
    }

    async fn list(&self, request: v2::ListRunsRequest) -> Result<v2::ListRunsResponse> {
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let options = list::Options::parse(paging, &runs::LISTABLE)?;
        let mut tx = self.0.db.read().await?;
        let scope = if request.experiment_id.is_empty() {
            vec![]
        } else {
            vec![("ExperimentUUID", (&request.experiment_id).into())]
        };
        let page = runs::list(&mut tx, &scope, &options).await?;
        if page.items.is_empty() {
            // Only an empty page needs to know whether the experiment exists at all.
            if !request.experiment_id.is_empty() {
                experiments::get(&mut tx, &request.experiment_id).await?;
            }
            return Ok(v2::ListRunsResponse { total_size: page.total, ..v2::ListRunsResponse::default() });
        }
        let ids: Vec<String> = page.items.iter().map(|run| run.id.clone()).collect();
        let mut details = tasks::of_runs(&mut tx, &ids).await?;
        let runs = page.items.into_iter().map(|run| {
            let details = details.remove(&run.id).unwrap_or_default();
            shown(run, None, details)
        });
        Ok(v2::ListRunsResponse { runs: runs.collect(), total_size: page.total, next_page_token: page.next })
    }

    async fn archive(&self, id: &str) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        runs::set_storage(&mut tx, id, Storage::Archived, now()).await?;
        tx.commit().await
    }

    async fn unarchive(&self, id: &str) -> Result<()> {
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

    async fn delete(&self, id: &str) -> Result<()> {
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

    async fn terminate(&self, id: &str) -> Result<()> {
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

/// The client's id, else one that a repeated tick of a recurring run gets again, else a random one.
fn run_id(given: &v2::Run) -> String {
    if !given.run_id.is_empty() {
        return given.run_id.clone();
    }
    if given.recurring_run_id.is_empty() {
        return new_id();
    }
    let name = format!("{}/{}", given.recurring_run_id, given.display_name);
    uuid::Uuid::new_v5(&RUN_IDS, name.as_bytes()).to_string()
}

#[tonic::async_trait]
impl RunService for Service {
    async fn create_run(&self, request: tonic::Request<v2::CreateRunRequest>) -> Answer<v2::Run> {
        let (service, given) = (self.clone(), request.into_inner());
        let created = to_the_end(async move { service.create(given).await }).await;
        answer(created.wrap(|| "Failed to create a run".to_owned()))
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
        let (service, id) = (self.clone(), request.into_inner().run_id);
        let retried = to_the_end(async move { service.retry(&id).await }).await;
        answer(retried.wrap(|| "Failed to retry a run".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_scheduled_runs_are_upstreams() {
        let given = v2::Run { recurring_run_id: "job-1".into(), display_name: "run-1".into(), ..v2::Run::default() };
        assert_eq!(run_id(&given), "832960ed-ee24-5da1-8e56-29cc54df1d8d");
    }
}
