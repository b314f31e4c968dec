//! `api.JobService`: recurring runs by their old name.

use api::job_service_server::JobService;
use api::{Relationship, ResourceType};
use kfp_proto::api;

use super::{origin, paging, referenced, references, scope, shown_pipeline, stored_config, stored_parameters};
use crate::domain::state::{is_given, timestamp};
use crate::error::{Error, Result, Wrap as _};
use crate::services::recurring_runs::Service;
use crate::services::schedules::{Draft, cron_trigger, periodic_trigger};
use crate::services::{Answer, answer, required};
use crate::store::specs::Specs;
use crate::store::{jobs, list};
use crate::workflows::cluster::Propagation;

fn trigger(given: Option<api::Trigger>) -> Result<jobs::Trigger> {
    use api::trigger::Trigger as T;
    match given.and_then(|trigger| trigger.trigger) {
        None => Ok(jobs::Trigger::default()),
        Some(T::CronSchedule(by)) => cron_trigger((by.start_time, by.end_time), by.cron),
        Some(T::PeriodicSchedule(by)) => periodic_trigger((by.start_time, by.end_time), by.interval_second),
    }
}

fn trigger_shown(trigger: &jobs::Trigger) -> Option<api::Trigger> {
    use api::trigger::Trigger as T;
    let inner = if !trigger.cron.is_empty() {
        T::CronSchedule(api::CronSchedule {
            start_time: trigger.cron_start.filter(|at| is_given(*at)).map(timestamp),
            end_time: trigger.cron_end.filter(|at| is_given(*at)).map(timestamp),
            cron: trigger.cron.clone(),
        })
    } else if trigger.interval > 0 {
        T::PeriodicSchedule(api::PeriodicSchedule {
            start_time: trigger.periodic_start.filter(|at| is_given(*at)).map(timestamp),
            end_time: trigger.periodic_end.filter(|at| is_given(*at)).map(timestamp),
            interval_second: trigger.interval,
        })
    } else {
        return None;
    };
    Some(api::Trigger { trigger: Some(inner) })
}

/// The status words of v2beta1, which this API shows too.
fn status(conditions: &str) -> &'static str {
    match conditions.to_uppercase().as_str() {
        "ENABLED" | "READY" | "DONE" | "RUNNING" | "SUCCEEDED" => "ENABLED",
        "DISABLED" => "DISABLED",
        _ => "STATUS_UNSPECIFIED",
    }
}

fn shown(job: jobs::Job, specs: &Specs) -> api::Job {
    let resource_references = references(&[
        (ResourceType::Namespace, &job.namespace, Relationship::Owner),
        (ResourceType::Experiment, &job.experiment_id, Relationship::Owner),
        (ResourceType::Pipeline, &job.pipeline_id, Relationship::Creator),
        (ResourceType::PipelineVersion, &job.version_id, Relationship::Creator),
    ]);
    let pipeline = (job.pipeline_id.as_str(), job.pipeline_name.as_str());
    let parameters = (job.parameters.as_str(), job.runtime_parameters.as_str(), job.pipeline_root.as_str());
    let pipeline_spec = match shown_pipeline(pipeline, specs, parameters) {
        Ok(spec) => spec,
        Err(error) => return api::Job { id: job.id, error: error.to_string(), ..api::Job::default() },
    };
    api::Job {
        trigger: trigger_shown(&job.trigger),
        status: status(&job.conditions).to_owned(),
        id: job.id,
        name: job.display_name,
        description: job.description,
        pipeline_spec: Some(pipeline_spec),
        resource_references,
        service_account: job.service_account,
        max_concurrency: job.max_concurrency,
        // Upstream never shows the mode; clients read `enabled`.
        mode: 0,
        created_at: Some(timestamp(job.created_at)),
        updated_at: Some(timestamp(job.updated_at)),
        error: String::new(),
        enabled: job.enabled,
        no_catchup: job.no_catchup,
    }
}

impl Service {
    async fn create_v1(&self, request: api::CreateJobRequest) -> Result<api::Job> {
        let given = required(request.job, "job")?;
        let references = &given.resource_references;
        let spec = given.pipeline_spec.as_ref();
        let display_name = match given.name.as_str() {
            "" => spec.map(|spec| spec.pipeline_name.clone()).unwrap_or_default(),
            name => name.to_owned(),
        };
        if display_name.is_empty() {
            return Err(Error::invalid("Job name cannot be empty"));
        }
        let (runtime_parameters, pipeline_root) = stored_config(spec);
        let draft = Draft {
            display_name,
            description: given.description.clone(),
            namespace: referenced(references, ResourceType::Namespace, None),
            experiment_id: referenced(references, ResourceType::Experiment, None),
            service_account: given.service_account.clone(),
            max_concurrency: given.max_concurrency,
            no_catchup: given.no_catchup,
            enabled: given.enabled || given.mode() == api::job::Mode::Enabled,
            trigger: trigger(given.trigger.clone())?,
            origin: origin(spec, references),
            // This API always runs what was there when the job was created.
            pin: true,
            runtime_parameters,
            parameters: stored_parameters(spec.map(|spec| spec.parameters.as_slice()).unwrap_or_default()),
            pipeline_root,
            plugins_input: String::new(),
        };
        let (job, specs) = self.schedule(draft).await?;
        Ok(shown(job, &specs))
    }

    async fn get_v1(&self, id: &str) -> Result<api::Job> {
        let mut tx = self.0.db.read().await?;
        let job = jobs::get(&mut tx, id).await?;
        let specs = jobs::specs(&mut tx, id).await?;
        Ok(shown(job, &specs))
    }

    async fn list_v1(&self, request: api::ListJobsRequest) -> Result<api::ListJobsResponse> {
        let (experiment, namespace) = match scope(request.resource_reference_key.as_ref())? {
            Some((ResourceType::Experiment, id)) => (id, ""),
            Some((ResourceType::Namespace, id)) => ("", id),
            _ => ("", ""),
        };
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let options = list::Options::parse(paging, &jobs::LISTABLE)?;
        let mut tx = self.0.db.read().await?;
        let page = Self::page(&mut tx, self.0.scope(experiment, namespace), &options).await?;
        let ids: Vec<String> = page.items.iter().map(|job| job.id.clone()).collect();
        let mut specs = jobs::specs_of(&mut tx, &ids).await?;
        let shown = page.items.into_iter().map(|job| {
            let specs = specs.remove(&job.id).unwrap_or_default();
            shown(job, &specs)
        });
        Ok(api::ListJobsResponse { jobs: shown.collect(), total_size: page.total, next_page_token: page.next })
    }
}

#[tonic::async_trait]
impl JobService for Service {
    async fn create_job(&self, request: tonic::Request<api::CreateJobRequest>) -> Answer<api::Job> {
        answer(
            self.create_v1(request.into_inner()).await.wrap(|| "Failed to create a v1beta1 recurring run".to_owned()),
        )
    }

    async fn get_job(&self, request: tonic::Request<api::GetJobRequest>) -> Answer<api::Job> {
        answer(self.get_v1(&request.get_ref().id).await.wrap(|| "Failed to fetch a v1beta1 recurring run".to_owned()))
    }

    async fn list_jobs(&self, request: tonic::Request<api::ListJobsRequest>) -> Answer<api::ListJobsResponse> {
        answer(self.list_v1(request.into_inner()).await.wrap(|| "Failed to list v1beta1 recurring runs".to_owned()))
    }

    async fn enable_job(&self, request: tonic::Request<api::EnableJobRequest>) -> Answer<()> {
        let done = self.set_enabled(&request.get_ref().id, true).await;
        answer(done.wrap(|| "Failed to enable a v1beta1 recurring run".to_owned()))
    }

    async fn disable_job(&self, request: tonic::Request<api::DisableJobRequest>) -> Answer<()> {
        let done = self.set_enabled(&request.get_ref().id, false).await;
        answer(done.wrap(|| "Failed to disable a v1beta1 recurring run".to_owned()))
    }

    async fn delete_job(&self, request: tonic::Request<api::DeleteJobRequest>) -> Answer<()> {
        let done = self.delete(&request.get_ref().id, Propagation::Default).await;
        answer(done.wrap(|| "Failed to delete a v1beta1 recurring run".to_owned()))
    }
}
