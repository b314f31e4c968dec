//! `RecurringRunService`: rows beside ScheduledWorkflow objects, which a controller turns into runs.

use kfp_compiler::RunRequest;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use serde_json::{Map, Value, json};
use v2::recurring_run_service_server::RecurringRunService;

use super::runs::{Source, experiment_of, inline, referenced};
use super::{
    Answer, Handle, answer, paging, parameters_json, plugins_json, plugins_shown, required, runtime_config,
    spec_struct, stored_parameters, to_the_end,
};
use crate::domain::nodes::text;
use crate::domain::state::timestamp;
use crate::domain::{cron, names};
use crate::error::{Error, Result, Wrap as _};
use crate::store::specs::Specs;
use crate::store::{experiments, jobs, list, now};
use crate::workflows::cluster::{Failure, Kind, Propagation};
use crate::workflows::submit::compiler_error;

/// Serves recurring runs.
#[derive(Clone, Debug)]
pub struct Service(pub Handle);

/// Length of the generated part's prefix; Kubernetes adds to it, and controllers add to that.
const NAME_LENGTH: usize = 25;

fn seconds(time: Option<prost_types::Timestamp>) -> Option<i64> {
    time.map(|time| time.seconds).filter(|seconds| *seconds != 0)
}

fn trigger(given: Option<v2::Trigger>) -> Result<jobs::Trigger> {
    use v2::trigger::Trigger as T;
    match given.and_then(|trigger| trigger.trigger) {
        None => Ok(jobs::Trigger::default()),
        Some(T::CronSchedule(schedule)) => {
            cron::check(&schedule.cron).map_err(|error| {
                Error::invalid(format!(
                    "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron). Error: {error}"
                ))
            })?;
            Ok(jobs::Trigger {
                cron_start: seconds(schedule.start_time),
                cron_end: seconds(schedule.end_time),
                cron: schedule.cron,
                ..jobs::Trigger::default()
            })
        }
        Some(T::PeriodicSchedule(schedule)) => {
            if schedule.interval_second < 1 {
                return Err(Error::invalid(format!(
                    "Found invalid period schedule interval {}. Set at interval to least 1 second",
                    schedule.interval_second
                )));
            }
            Ok(jobs::Trigger {
                periodic_start: seconds(schedule.start_time),
                periodic_end: seconds(schedule.end_time),
                interval: schedule.interval_second,
                ..jobs::Trigger::default()
            })
        }
    }
}

fn trigger_shown(trigger: jobs::Trigger) -> v2::Trigger {
    use v2::trigger::Trigger as T;
    let inner = if !trigger.cron.is_empty() {
        Some(T::CronSchedule(v2::CronSchedule {
            start_time: trigger.cron_start.map(timestamp),
            end_time: trigger.cron_end.map(timestamp),
            cron: trigger.cron,
        }))
    } else if trigger.interval > 0 {
        Some(T::PeriodicSchedule(v2::PeriodicSchedule {
            start_time: trigger.periodic_start.map(timestamp),
            end_time: trigger.periodic_end.map(timestamp),
            interval_second: trigger.interval,
        }))
    } else {
        None
    };
    v2::Trigger { trigger: inner }
}

fn trigger_json(trigger: &jobs::Trigger) -> Value {
    let time = |seconds: Option<i64>| {
        let time = chrono::DateTime::from_timestamp(seconds?, 0)?;
        Some(time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
    };
    let mut schedule = Map::new();
    let (kind, start, end) = if !trigger.cron.is_empty() {
        schedule.insert("cron".to_owned(), json!(trigger.cron));
        ("cronSchedule", trigger.cron_start, trigger.cron_end)
    } else if trigger.interval > 0 {
        schedule.insert("intervalSecond".to_owned(), json!(trigger.interval));
        ("periodicSchedule", trigger.periodic_start, trigger.periodic_end)
    } else {
        return json!({});
    };
    for (key, value) in [("startTime", time(start)), ("endTime", time(end))] {
        if let Some(value) = value {
            schedule.insert(key.to_owned(), json!(value));
        }
    }
    json!({kind: schedule})
}

/// Prefix of the ScheduledWorkflow's name.
fn generate_name(display_name: &str) -> String {
    let clean: String = display_name
        .to_lowercase()
        .chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || *c == '-')
        .collect();
    // Kubernetes refuses names that begin with a dash.
    let clean: String = clean.trim_start_matches('-').chars().take(NAME_LENGTH).collect();
    if clean.is_empty() { "job-".to_owned() } else { clean }
}

fn shown(job: jobs::Job, spec: Option<prost_types::Struct>) -> v2::RecurringRun {
    use v2::recurring_run::{Mode, PipelineSource, Status};
    let source = if job.pipeline_id.is_empty() && job.version_id.is_empty() {
        spec.map(PipelineSource::PipelineSpec)
    } else {
        Some(PipelineSource::PipelineVersionReference(v2::PipelineVersionReference {
            pipeline_id: job.pipeline_id,
            pipeline_version_id: job.version_id,
        }))
    };
    let (mode, status) = if job.enabled { (Mode::Enable, Status::Enabled) } else { (Mode::Disable, Status::Disabled) };
    v2::RecurringRun {
        runtime_config: runtime_config(&job.runtime_parameters, &job.parameters, &job.pipeline_root),
        plugins_input: plugins_shown(&job.plugins_input),
        trigger: Some(trigger_shown(job.trigger)),
        recurring_run_id: job.id,
        display_name: job.display_name,
        description: job.description,
        pipeline_source: source,
        service_account: job.service_account,
        max_concurrency: job.max_concurrency,
        mode: mode as i32,
        status: status as i32,
        created_at: Some(timestamp(job.created_at)),
        updated_at: Some(timestamp(job.updated_at)),
        error: None,
        no_catchup: job.no_catchup,
        namespace: job.namespace,
        experiment_id: job.experiment_id,
    }
}

fn kube_error(message: String, failure: Failure) -> Error {
    match failure {
        Failure::NotFound(_) => Error::not_found_because(message, failure),
        Failure::Unavailable(_) => Error::unavailable(message, failure),
        _ => Error::internal(message, failure),
    }
}

impl Service {
    #[allow(deprecated)] // Older clients name only the version.
    async fn create(&self, request: v2::CreateRecurringRunRequest) -> Result<v2::RecurringRun> {
        use v2::recurring_run::PipelineSource;
        let given = required(request.recurring_run, "recurring_run")?;
        if given.display_name.is_empty() {
            return Err(Error::invalid("Recurring run's name cannot be empty"));
        }
        names::length("RecurringRun.DisplayName", &given.display_name, 255)?;
        if !(1..=10).contains(&given.max_concurrency) {
            return Err(Error::invalid(format!(
                "Max concurrency of a recurring run must be at least 1 and at most 10. Received {}",
                given.max_concurrency
            )));
        }
        let enabled = given.mode() == v2::recurring_run::Mode::Enable;
        let trigger = trigger(given.trigger)?;
        if !given.experiment_id.is_empty() && !given.namespace.is_empty() && given.namespace != self.0.namespace {
            return Err(Error::invalid(format!(
                "Experiment {} belongs to namespace '{}' instead of '{}'",
                given.experiment_id, self.0.namespace, given.namespace
            )));
        }
        let namespace = if given.namespace.is_empty() { self.0.namespace.clone() } else { given.namespace };
        let experiment_id = experiment_of(&self.0, &given.experiment_id).await?;

        let mut tx = self.0.db.read().await?;
        let reference =
            |id: &str| v2::PipelineVersionReference { pipeline_id: String::new(), pipeline_version_id: id.to_owned() };
        let (source, pinned) = match &given.pipeline_source {
            Some(PipelineSource::PipelineSpec(spec)) => (inline(spec), true),
            Some(PipelineSource::PipelineVersionId(id)) => (referenced(&mut tx, &reference(id)).await, true),
            Some(PipelineSource::PipelineVersionReference(by))
                if by.pipeline_id.is_empty() && by.pipeline_version_id.is_empty() =>
            {
                return Err(Error::invalid("Cannot create a job with an empty pipeline ID"));
            }
            Some(PipelineSource::PipelineVersionReference(by)) => {
                (referenced(&mut tx, by).await, !by.pipeline_version_id.is_empty())
            }
            None => return Err(Error::invalid("Cannot create a job with an empty pipeline ID")),
        };
        drop(tx);
        let source = source.wrap(|| "Failed to create a recurring run due to error fetching manifest".to_owned())?;
        let mut job = jobs::Job {
            display_name: given.display_name,
            namespace,
            service_account: given.service_account,
            description: given.description,
            max_concurrency: given.max_concurrency,
            no_catchup: given.no_catchup,
            enabled,
            experiment_id,
            trigger,
            pipeline_id: source.pipeline_id.clone(),
            // Without a version, every tick takes the newest one.
            version_id: if pinned { source.version_id.clone() } else { String::new() },
            pipeline_name: source.name.clone(),
            runtime_parameters: parameters_json(given.runtime_config.as_ref()),
            pipeline_root: given.runtime_config.map(|config| config.pipeline_root).unwrap_or_default(),
            conditions: "STATUS_UNSPECIFIED".to_owned(),
            plugins_input: plugins_json(&given.plugins_input),
            ..jobs::Job::default()
        };
        let object = self.object(&mut job, &source, pinned)?;
        let created = self.0.cluster.create(Kind::ScheduledWorkflow, &job.namespace, &object).await;
        let created = created.map_err(|failure| {
            kube_error(format!("Failed to create a scheduled workflow for ({})", job.display_name), failure)
        })?;
        text(&created, "/metadata/uid").clone_into(&mut job.id);
        text(&created, "/metadata/name").clone_into(&mut job.name);
        job.created_at = now();
        job.updated_at = job.created_at;
        let spec = if pinned { source.text.as_str() } else { "" };
        if let Err(error) = self.store(&job, spec).await {
            let gone =
                self.0.cluster.delete(Kind::ScheduledWorkflow, &job.namespace, &job.name, Propagation::Default).await;
            if let Err(failure) = gone {
                tracing::warn!(schedule = %job.name, %failure, "cannot delete the schedule of a failed creation");
            }
            return Err(error);
        }
        tracing::info!(recurring_run = %job.id, schedule = %job.name, "recurring run created");
        let shown_spec = if source.version_id.is_empty() { Some(spec_struct(&source.text)?) } else { None };
        Ok(shown(job, shown_spec))
    }

    async fn store(&self, job: &jobs::Job, spec: &str) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        experiments::get(&mut tx, &job.experiment_id).await?;
        let specs = Specs { pipeline: spec.to_owned(), ..Specs::default() };
        jobs::insert(&mut tx, job, &specs).await?;
        tx.commit().await
    }

    /// The ScheduledWorkflow; fills in the effective service account of a pinned job.
    fn object(&self, job: &mut jobs::Job, source: &Source, pinned: bool) -> Result<Value> {
        let values: Map<String, Value> = stored_parameters(&job.runtime_parameters, "")?.into_iter().collect();
        let parameters: Vec<Value> =
            values.iter().map(|(name, value)| json!({"name": name, "value": value.to_string()})).collect();
        let mut workflow = json!({"parameters": parameters});
        if pinned {
            let request = RunRequest {
                namespace: Some(job.namespace.clone()),
                service_account: job.service_account.clone(),
                parameters: Some(values),
                pipeline_root: job.pipeline_root.clone(),
                ..RunRequest::default()
            };
            let compiled = kfp_compiler::compile_recurring_run(&source.package, &request, &self.0.compiler)
                .map_err(|error| compiler_error(&error).wrap("Failed to generate the scheduled workflow"))?;
            text(&compiled, "/spec/serviceAccountName").clone_into(&mut job.service_account);
            workflow["spec"] = json!(compiled.to_string());
        } else {
            kfp_compiler::inputs::validate(&source.package, Some(&values)).map_err(|error| compiler_error(&error))?;
            workflow["pipelineRoot"] = json!(job.pipeline_root);
        }
        let mut spec = json!({
            "enabled": job.enabled, "maxConcurrency": job.max_concurrency, "noCatchup": job.no_catchup,
            "trigger": trigger_json(&job.trigger), "experimentId": job.experiment_id, "workflow": workflow,
        });
        for (key, value) in [
            ("pipelineId", &job.pipeline_id),
            ("pipelineName", &job.pipeline_name),
            ("pipelineVersionId", &job.version_id),
            ("serviceAccount", &job.service_account),
        ] {
            if !value.is_empty() {
                spec[key] = json!(value);
            }
        }
        if !job.plugins_input.is_empty() {
            spec["pluginsInput"] = serde_json::from_str(&job.plugins_input).unwrap_or_default();
        }
        Ok(json!({
            "apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
            "metadata": {"generateName": generate_name(&job.display_name), "namespace": job.namespace}, "spec": spec,
            // The CRD requires it.
            "status": {},
        }))
    }

    async fn get(&self, id: &str) -> Result<v2::RecurringRun> {
        let mut tx = self.0.db.read().await?;
        let job = jobs::get(&mut tx, id).await?;
        if !job.pipeline_id.is_empty() || !job.version_id.is_empty() {
            return Ok(shown(job, None));
        }
        let spec = jobs::specs(&mut tx, id).await?.pipeline;
        match spec_struct(&spec) {
            Ok(spec) => Ok(shown(job, Some(spec))),
            Err(error) => Ok(v2::RecurringRun { error: Some(error.to_rpc()), ..shown(job, None) }),
        }
    }

    async fn list(&self, request: v2::ListRecurringRunsRequest) -> Result<v2::ListRecurringRunsResponse> {
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let options = list::Options::parse(paging, &jobs::LISTABLE)?;
        let mut tx = self.0.db.read().await?;
        let scope = if request.experiment_id.is_empty() {
            vec![]
        } else {
            vec![("ExperimentUUID", (&request.experiment_id).into())]
        };
        let page = jobs::list(&mut tx, &scope, &options).await?;
        if page.items.is_empty() && !request.experiment_id.is_empty() {
            experiments::get(&mut tx, &request.experiment_id).await?;
        }
        Ok(v2::ListRecurringRunsResponse {
            recurring_runs: page.items.into_iter().map(|job| shown(job, None)).collect(),
            total_size: page.total,
            next_page_token: page.next,
        })
    }

    async fn set_enabled(&self, id: &str, enabled: bool) -> Result<()> {
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

    async fn delete(&self, id: &str, how: Propagation) -> Result<()> {
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
        let (service, given) = (self.clone(), request.into_inner());
        let created = to_the_end(async move { service.create(given).await }).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_names_are_what_kubernetes_accepts() {
        for (given, expected) in [
            ("My Job #1", "myjob1"),
            ("--x", "x"),
            ("!!!", "job-"),
            ("abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnopqrstuvwxy"),
        ] {
            assert_eq!(generate_name(given), expected);
        }
    }
}
