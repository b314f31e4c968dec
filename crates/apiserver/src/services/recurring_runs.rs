//! `RecurringRunService` of v2beta1, and what both API versions do with recurring runs that exist.

use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use serde_json::json;
use v2::recurring_run_service_server::RecurringRunService;

use super::schedules::{Draft, cron_trigger, kube_error, periodic_trigger};
use super::sources::{Inline, Origin};
use super::{
    Answer, Handle, Scope, answer, paging, parameters_json, plugins_shown, required, runtime_config, shown_spec,
};
use crate::domain::nodes::text;
use crate::domain::state::{is_given, timestamp};
use crate::error::{Error, Result, Wrap as _};
use crate::store::list::Page;
use crate::store::specs::Specs;
use crate::store::{Tx, experiments, jobs, list, now};
use crate::workflows::cluster::{Failure, Kind, Propagation};

/// Serves recurring runs.
#[derive(Clone, Debug)]
pub struct Service(pub Handle);

pub(super) fn trigger(given: Option<v2::Trigger>) -> Result<jobs::Trigger> {
    use v2::trigger::Trigger as T;
    match given.and_then(|trigger| trigger.trigger) {
        None => Ok(jobs::Trigger::default()),
        Some(T::CronSchedule(by)) => cron_trigger((by.start_time, by.end_time), by.cron),
        Some(T::PeriodicSchedule(by)) => periodic_trigger((by.start_time, by.end_time), by.interval_second),
    }
}

#[allow(deprecated)] // Older clients name only the version.
pub(crate) fn origin(source: Option<v2::recurring_run::PipelineSource>) -> Origin {
    use v2::recurring_run::PipelineSource as S;
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

fn trigger_shown(trigger: jobs::Trigger) -> v2::Trigger {
    use v2::trigger::Trigger as T;
    let inner = if !trigger.cron.is_empty() {
        Some(T::CronSchedule(v2::CronSchedule {
            start_time: trigger.cron_start.filter(|at| is_given(*at)).map(timestamp),
            end_time: trigger.cron_end.filter(|at| is_given(*at)).map(timestamp),
            cron: trigger.cron,
        }))
    } else if trigger.interval > 0 {
        Some(T::PeriodicSchedule(v2::PeriodicSchedule {
            start_time: trigger.periodic_start.filter(|at| is_given(*at)).map(timestamp),
            end_time: trigger.periodic_end.filter(|at| is_given(*at)).map(timestamp),
            interval_second: trigger.interval,
        }))
    } else {
        None
    };
    v2::Trigger { trigger: inner }
}

/// A recurring run for the API; `specs` are looked at only when it was not made from a pipeline.
pub(super) fn shown(job: jobs::Job, specs: Option<&Specs>) -> v2::RecurringRun {
    use v2::recurring_run::{Mode, PipelineSource, Status};
    let source = if job.pipeline_id.is_empty() && job.version_id.is_empty() {
        shown_spec(specs).map(|spec| spec.map(PipelineSource::PipelineSpec))
    } else {
        Ok(Some(PipelineSource::PipelineVersionReference(v2::PipelineVersionReference {
            pipeline_id: job.pipeline_id,
            pipeline_version_id: job.version_id,
        })))
    };
    let (pipeline_source, error) = match source {
        Ok(source) => (source, None),
        Err(error) => (None, Some(error.to_rpc())),
    };
    let (mode, status) = if job.enabled { (Mode::Enable, Status::Enabled) } else { (Mode::Disable, Status::Disabled) };
    v2::RecurringRun {
        runtime_config: runtime_config(&job.runtime_parameters, &job.parameters, &job.pipeline_root),
        plugins_input: plugins_shown(&job.plugins_input),
        trigger: Some(trigger_shown(job.trigger)),
        recurring_run_id: job.id,
        display_name: job.display_name,
        description: job.description,
        pipeline_source,
        service_account: job.service_account,
        max_concurrency: job.max_concurrency,
        mode: mode as i32,
        status: status as i32,
        created_at: Some(timestamp(job.created_at)),
        updated_at: Some(timestamp(job.updated_at)),
        error,
        no_catchup: job.no_catchup,
        namespace: job.namespace,
        experiment_id: job.experiment_id,
        next_fire_times: Vec::new(),
    }
}

/// Ids of those that were not made from a pipeline, whose spec is shown.
fn inline(jobs: &[jobs::Job]) -> Vec<String> {
    let unnamed = jobs.iter().filter(|job| job.pipeline_id.is_empty() && job.version_id.is_empty());
    unnamed.map(|job| job.id.clone()).collect()
}

impl Service {
    async fn create_v2(&self, request: v2::CreateRecurringRunRequest) -> Result<v2::RecurringRun> {
        let given = required(request.recurring_run, "recurring_run")?;
        if given.display_name.is_empty() {
            return Err(Error::invalid("Recurring run's name cannot be empty"));
        }
        let draft = Draft {
            enabled: given.mode() == v2::recurring_run::Mode::Enable,
            display_name: given.display_name,
            description: given.description,
            namespace: given.namespace,
            experiment_id: given.experiment_id,
            service_account: given.service_account,
            max_concurrency: given.max_concurrency,
            no_catchup: given.no_catchup,
            trigger: trigger(given.trigger)?,
            origin: origin(given.pipeline_source),
            runtime_parameters: parameters_json(given.runtime_config.as_ref()),
            pipeline_root: given.runtime_config.map(|config| config.pipeline_root).unwrap_or_default(),
            plugins_input: self.0.live.get().plugins.stored(&given.plugins_input)?,
            ..Draft::default()
        };
        let (job, specs) = self.schedule(draft).await?;
        Ok(shown(job, Some(&specs)))
    }

    async fn get(&self, id: &str) -> Result<v2::RecurringRun> {
        let mut tx = self.0.db.read().await?;
        let job = jobs::get(&mut tx, id).await?;
        let specs = jobs::specs_of(&mut tx, &inline(std::slice::from_ref(&job))).await?;
        drop(tx);
        let next_fire_times = self.next_fire_times(&job).await;
        Ok(v2::RecurringRun { next_fire_times, ..shown(job, specs.get(id)) })
    }

    /// One page of recurring runs.
    ///
    /// # Errors
    /// Code 5 when there is no such experiment.
    pub(super) async fn page(tx: &mut Tx, scope: Scope<'_>, options: &list::Options) -> Result<Page<jobs::Job>> {
        let page = jobs::list(tx, &scope.columns(), options).await?;
        // Only an empty page needs to know whether the experiment exists at all.
        if let Scope::Experiment(id) = scope
            && page.items.is_empty()
        {
            experiments::get(tx, id).await?;
        }
        Ok(page)
    }

    async fn list(&self, request: v2::ListRecurringRunsRequest) -> Result<v2::ListRecurringRunsResponse> {
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let options = list::Options::parse(paging, &jobs::LISTABLE)?;
        let mut tx = self.0.db.read().await?;
        let scope = self.0.scope(&request.experiment_id, &request.namespace);
        let page = Self::page(&mut tx, scope, &options).await?;
        let specs = jobs::specs_of(&mut tx, &inline(&page.items)).await?;
        let recurring_runs = page.items.into_iter().map(|job| {
            let specs = specs.get(&job.id);
            shown(job, specs)
        });
        Ok(v2::ListRecurringRunsResponse {
            recurring_runs: recurring_runs.collect(),
            total_size: page.total,
            next_page_token: page.next,
        })
    }

    pub(super) async fn set_enabled(&self, id: &str, enabled: bool) -> Result<()> {
        let mut tx = self.0.db.read().await?;
        let job = jobs::get(&mut tx, id).await?;
        drop(tx);
        let failed = |failure| kube_error(format!("Failed to change scheduled workflow {}", job.name), failure);
        if enabled {
            let live = self.0.cluster.get(Kind::ScheduledWorkflow, &job.namespace, &job.name).await.map_err(failed)?;
            if text(&live, "/metadata/uid") != id {
                return Err(Error::not_found("ScheduledWorkflow of recurring run", id));
            }
        }
        let patch = json!({"spec": {"enabled": enabled}});
        match self.0.cluster.merge(Kind::ScheduledWorkflow, &job.namespace, &job.name, &patch).await {
            // What does not exist does not fire.
            Err(Failure::NotFound(_)) if !enabled => {}
            other => drop(other.map_err(failed)?),
        }
        let mut tx = self.0.db.write().await?;
        jobs::set_enabled(&mut tx, id, enabled, now()).await?;
        tx.commit().await
    }

    pub(super) async fn delete(&self, id: &str, how: Propagation) -> Result<()> {
        let mut tx = self.0.db.read().await?;
        let job = jobs::get(&mut tx, id).await?;
        drop(tx);
        match self.0.cluster.delete(Kind::ScheduledWorkflow, &job.namespace, &job.name, how).await {
            Ok(()) | Err(Failure::NotFound(_)) => {}
            Err(failure) => {
                return Err(kube_error(format!("Failed to delete scheduled workflow {}", job.name), failure));
            }
        }
        let mut tx = self.0.db.write().await?;
        jobs::delete(&mut tx, id).await?;
        tx.commit().await
    }
}

#[tonic::async_trait]
impl RecurringRunService for Service {
    async fn create_recurring_run(
        &self,
        request: tonic::Request<v2::CreateRecurringRunRequest>,
    ) -> Answer<v2::RecurringRun> {
        let created = self.create_v2(request.into_inner()).await;
        answer(created.wrap(|| "Failed to create a recurring run".to_owned()))
    }

    async fn get_recurring_run(&self, request: tonic::Request<v2::GetRecurringRunRequest>) -> Answer<v2::RecurringRun> {
        let done = self.get(&request.get_ref().recurring_run_id).await;
        answer(done.wrap(|| "Failed to get a recurring run".to_owned()))
    }

    async fn list_recurring_runs(
        &self,
        request: tonic::Request<v2::ListRecurringRunsRequest>,
    ) -> Answer<v2::ListRecurringRunsResponse> {
        answer(self.list(request.into_inner()).await.wrap(|| "Failed to list recurring runs".to_owned()))
    }

    async fn update_recurring_run(
        &self,
        request: tonic::Request<v2::UpdateRecurringRunRequest>,
    ) -> Answer<v2::RecurringRun> {
        answer(self.update(request.into_inner()).await.wrap(|| "Failed to update a recurring run".to_owned()))
    }

    async fn enable_recurring_run(&self, request: tonic::Request<v2::EnableRecurringRunRequest>) -> Answer<()> {
        let done = self.set_enabled(&request.get_ref().recurring_run_id, true).await;
        answer(done.wrap(|| "Failed to enable a recurring run".to_owned()))
    }

    async fn disable_recurring_run(&self, request: tonic::Request<v2::DisableRecurringRunRequest>) -> Answer<()> {
        let done = self.set_enabled(&request.get_ref().recurring_run_id, false).await;
        answer(done.wrap(|| "Failed to disable a recurring run".to_owned()))
    }

    async fn delete_recurring_run(&self, request: tonic::Request<v2::DeleteRecurringRunRequest>) -> Answer<()> {
        use v2::DeletePropagationPolicy as P;
        let request = request.into_inner();
        let how = match request.propagation_policy() {
            P::Unspecified => Propagation::Default,
            P::Foreground => Propagation::Foreground,
            P::Background => Propagation::Background,
            P::Orphan => Propagation::Orphan,
        };
        answer(self.delete(&request.recurring_run_id, how).await.wrap(|| "Failed to delete a recurring run".to_owned()))
    }
}
