//! Creating recurring runs: from what a request of either API version says to a ScheduledWorkflow and a row.

use kfp_core::cron::Cron;
use serde_json::{Map, Value, json};

use super::recurring_runs::Service;
use super::sources::{self, Origin, Source};
use super::to_the_end;
use crate::domain::names;
use crate::domain::nodes::text;
use crate::domain::state::is_given;
use crate::error::{Error, Result, Wrap as _};
use crate::store::specs::Specs;
use crate::store::{experiments, jobs, now};
use crate::workflows::cluster::{Failure, Kind, Propagation};

/// Length of the generated part's prefix; Kubernetes adds to it, and controllers add to that.
const NAME_LENGTH: usize = 25;

/// What a caller wants of a new recurring run.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Required.
    pub display_name: String,
    /// Free text.
    pub description: String,
    /// Namespace of the request, or empty.
    pub namespace: String,
    /// Empty for the default experiment.
    pub experiment_id: String,
    /// Service account of the runs, or empty.
    pub service_account: String,
    /// Runs at the same time.
    pub max_concurrency: i64,
    /// Do not make up for missed times.
    pub no_catchup: bool,
    /// Whether it fires.
    pub enabled: bool,
    /// When it fires.
    pub trigger: jobs::Trigger,
    /// Which pipeline.
    pub origin: Origin,
    /// Whether `origin` is looked up now, for good. Otherwise only a pipeline without a version is looked up each time.
    pub pin: bool,
    /// v2 parameters as stored.
    pub runtime_parameters: String,
    /// v1 parameters as stored.
    pub parameters: String,
    /// Where artifacts go, or empty.
    pub pipeline_root: String,
    /// As stored.
    pub plugins_input: String,
}

/// Start and end of a schedule; a zero time is none.
type Limits = (Option<prost_types::Timestamp>, Option<prost_types::Timestamp>);

fn seconds(time: Option<prost_types::Timestamp>) -> Option<i64> {
    time.map(|time| time.seconds).filter(|seconds| is_given(*seconds))
}

/// A trigger that fires by a cron text.
///
/// # Errors
/// Code 3 when the text is none.
pub fn cron_trigger((start, end): Limits, text: String) -> Result<jobs::Trigger> {
    Cron::parse(&text).map_err(|error| {
        Error::invalid(format!(
            "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron). Error: {error}"
        ))
    })?;
    Ok(jobs::Trigger { cron_start: seconds(start), cron_end: seconds(end), cron: text, ..jobs::Trigger::default() })
}

/// A trigger that fires every `interval` seconds.
///
/// # Errors
/// Code 3 when the interval is not positive.
pub fn periodic_trigger((start, end): Limits, interval: i64) -> Result<jobs::Trigger> {
    if interval < 1 {
        return Err(Error::invalid(format!(
            "Found invalid period schedule interval {interval}. Set at interval to least 1 second"
        )));
    }
    Ok(jobs::Trigger {
        periodic_start: seconds(start),
        periodic_end: seconds(end),
        interval,
        ..jobs::Trigger::default()
    })
}

/// Checks that the texts of a recurring run fit into their columns.
///
/// # Errors
/// Code 3.
pub(super) fn check_lengths(display_name: &str, description: &str, service_account: &str) -> Result<()> {
    names::length("RecurringRun.DisplayName", display_name, names::SHORT)?;
    names::length("RecurringRun.Description", description, names::SHORT)?;
    names::length("RecurringRun.ServiceAccount", service_account, names::SHORT)
}

/// Checks how many runs may be under way at the same time.
///
/// # Errors
/// Code 3.
pub(super) fn check_concurrency(most: i64) -> Result<()> {
    if (1..=10).contains(&most) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "Max concurrency of a recurring run must be at least 1 and at most 10. Received {most}"
    )))
}

fn trigger_json(trigger: &jobs::Trigger) -> Value {
    let time = |seconds: Option<i64>| {
        let time = chrono::DateTime::from_timestamp(seconds.filter(|seconds| is_given(*seconds))?, 0)?;
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

/// The part of a ScheduledWorkflow's `spec` that does not depend on the pipeline.
pub(super) fn timing_spec(job: &jobs::Job) -> Value {
    let mut spec = json!({
        "enabled": job.enabled, "maxConcurrency": job.max_concurrency, "noCatchup": job.no_catchup,
        "trigger": trigger_json(&job.trigger),
    });
    if !job.plugins_input.is_empty() {
        spec["pluginsInput"] = serde_json::from_str(&job.plugins_input).unwrap_or_default();
    }
    spec
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

/// The error for a failed call to Kubernetes.
pub(super) fn kube_error(message: String, failure: Failure) -> Error {
    match failure {
        Failure::NotFound(_) => Error::not_found_because(message, failure),
        Failure::Unavailable(_) => Error::unavailable(message, failure),
        _ => Error::internal(message, failure),
    }
}

impl Service {
    /// Creates a recurring run. It goes on to its end although the caller goes away.
    ///
    /// # Errors
    /// Code 3 for what does not fit, 5 for what does not exist, 13 and 14 when Kubernetes fails.
    pub async fn schedule(&self, draft: Draft) -> Result<(jobs::Job, Specs)> {
        let service = self.clone();
        to_the_end(async move { service.create(draft).await }).await
    }

    async fn create(&self, draft: Draft) -> Result<(jobs::Job, Specs)> {
        check_lengths(&draft.display_name, &draft.description, &draft.service_account)?;
        self.0.live.get().rules.check_size(&draft.parameters)?;
        check_concurrency(draft.max_concurrency)?;
        let (experiment_id, namespace) = sources::experiment(&self.0, &draft.experiment_id, &draft.namespace).await?;
        let namespace = if namespace.is_empty() { self.0.namespace.clone() } else { namespace };
        if draft.origin.is_empty() {
            return Err(Error::invalid("Cannot create a job with an empty pipeline ID"));
        }
        let pinned = draft.pin || draft.origin.is_pinned();
        let source = draft.origin.resolve(&self.0.catalog).await;
        let source = source.wrap(|| "Failed to create a recurring run due to error fetching manifest".to_owned())?;
        source.template.check_runnable(&namespace, &self.0.live.get().rules)?;
        let mut job = jobs::Job {
            display_name: draft.display_name,
            namespace,
            service_account: draft.service_account,
            description: draft.description,
            max_concurrency: draft.max_concurrency,
            no_catchup: draft.no_catchup,
            enabled: draft.enabled,
            experiment_id,
            trigger: draft.trigger,
            pipeline_id: source.pipeline_id.clone(),
            // Without a version, every tick takes the newest one.
            version_id: if pinned { source.version_id.clone() } else { String::new() },
            pipeline_name: source.name.clone(),
            runtime_parameters: draft.runtime_parameters,
            parameters: draft.parameters,
            pipeline_root: draft.pipeline_root,
            conditions: "STATUS_UNSPECIFIED".to_owned(),
            plugins_input: draft.plugins_input,
            ..jobs::Job::default()
        };
        let spec = self.object_spec(&mut job, &source, pinned)?;
        let object = json!({
            "apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
            "metadata": {"generateName": generate_name(&job.display_name), "namespace": job.namespace}, "spec": spec,
            // The CRD requires it.
            "status": {},
        });
        let created = self.0.cluster.create(Kind::ScheduledWorkflow, &job.namespace, &object).await;
        let created = created.map_err(|failure| {
            kube_error(format!("Failed to create a scheduled workflow for ({})", job.display_name), failure)
        })?;
        text(&created, "/metadata/uid").clone_into(&mut job.id);
        text(&created, "/metadata/name").clone_into(&mut job.name);
        job.created_at = now();
        job.updated_at = job.created_at;
        let specs = if pinned { source.specs } else { Specs::default() };
        if let Err(error) = self.store(&job, &specs).await {
            let gone =
                self.0.cluster.delete(Kind::ScheduledWorkflow, &job.namespace, &job.name, Propagation::Default).await;
            if let Err(failure) = gone {
                tracing::warn!(schedule = %job.name, %failure, "cannot delete the schedule of a failed creation");
            }
            return Err(error);
        }
        tracing::info!(recurring_run = %job.id, schedule = %job.name, "recurring run created");
        Ok((job, specs))
    }

    async fn store(&self, job: &jobs::Job, specs: &Specs) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        experiments::get(&mut tx, &job.experiment_id).await?;
        jobs::insert(&mut tx, job, specs).await?;
        tx.commit().await
    }

    /// The `spec` of the ScheduledWorkflow; fills in the effective service account of a pinned job.
    pub(crate) fn object_spec(&self, job: &mut jobs::Job, source: &Source, pinned: bool) -> Result<Value> {
        let mut workflow = json!({"parameters": source.template.schedule_parameters(job)?});
        if pinned {
            let compiled = source.template.schedule(job, self.0.live.get().template())?;
            text(&compiled, "/spec/serviceAccountName").clone_into(&mut job.service_account);
            workflow["spec"] = json!(compiled.to_string());
        } else {
            source.template.check_inputs(job, self.0.live.get().template())?;
            workflow["pipelineRoot"] = json!(job.pipeline_root);
        }
        let mut spec = timing_spec(job);
        spec["experimentId"] = json!(job.experiment_id);
        spec["workflow"] = workflow;
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
        Ok(spec)
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
