//! Changing recurring runs in place: the row and the ScheduledWorkflow, both or neither.
//!
//! The row stays locked while the ScheduledWorkflow is replaced, so that two changes come one after the other. What the
//! controller has noted in the status stays; runs that are under way go on as they began.

use std::time::Duration;

use kfp_core::schedule::CHANGED;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use serde_json::{Map, Value, json};
use v2::recurring_run::Mode;

use super::recurring_runs::{Service, origin, shown, trigger};
use super::schedules::{self, kube_error};
use super::sources::{self, Origin};
use super::{parameters_json, to_the_end};
use crate::domain::nodes::text;
use crate::domain::{fires, mask};
use crate::error::{Error, Result, Wrap as _};
use crate::store::specs::Specs;
use crate::store::{jobs, now};
use crate::workflows::cluster::{Failure, Kind};

/// Fields of a recurring run that an update may name.
const CHANGEABLE: [&str; 12] = [
    "display_name",
    "description",
    "trigger",
    "mode",
    "max_concurrency",
    "no_catchup",
    "runtime_config",
    "pipeline_version_reference",
    "pipeline_version_id",
    "pipeline_spec",
    "service_account",
    "plugins_input",
];
/// Those that name its pipeline.
const PIPELINE: [&str; 3] = ["pipeline_version_reference", "pipeline_version_id", "pipeline_spec"];
/// Those that the compiled Workflow depends on.
const COMPILED: [&str; 5] =
    ["runtime_config", "service_account", "pipeline_version_reference", "pipeline_version_id", "pipeline_spec"];
/// Keys of a ScheduledWorkflow's `spec` with the fields that they depend on.
const KEYS: [(&str, &[&str]); 10] = [
    ("enabled", &["mode"]),
    ("maxConcurrency", &["max_concurrency"]),
    ("noCatchup", &["no_catchup"]),
    ("trigger", &["trigger"]),
    ("pluginsInput", &["plugins_input"]),
    ("workflow", &COMPILED),
    ("serviceAccount", &COMPILED),
    ("pipelineId", &PIPELINE),
    ("pipelineName", &PIPELINE),
    ("pipelineVersionId", &PIPELINE),
];
/// Attempts to replace a ScheduledWorkflow that its controller changes meanwhile, and the first pause between them.
const ATTEMPTS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// How long a read waits for the ScheduledWorkflow that tells when the next run is due.
const LOOK: Duration = Duration::from_secs(2);

/// What is to be in a ScheduledWorkflow; null removes.
#[derive(Clone, Default)]
struct Wanted {
    spec: Map<String, Value>,
    changed: Option<Value>,
}

impl Wanted {
    /// Puts it into `object`; returns what was there before.
    fn put(&self, object: &mut Value) -> Self {
        let mut before = Self::default();
        let put = |map: &mut Value, key: &str, value: &Value| {
            if !map.is_object() {
                *map = json!({});
            }
            let fields = map.as_object_mut()?;
            let old = if value.is_null() { fields.remove(key) } else { fields.insert(key.to_owned(), value.clone()) };
            Some(old.unwrap_or_default())
        };
        for (key, value) in &self.spec {
            before.spec.insert(key.clone(), put(&mut object["spec"], key, value).unwrap_or_default());
        }
        if let Some(value) = &self.changed {
            before.changed = put(&mut object["metadata"]["annotations"], CHANGED, value);
        }
        before
    }
}

/// A recurring run as it is and as it is to be.
struct Change {
    job: jobs::Job,
    /// New specs, when it runs another pipeline.
    specs: Option<Specs>,
    /// What changes in the ScheduledWorkflow.
    wanted: Wanted,
}

impl Service {
    /// Changes the fields that the mask names. It goes on to its end although the caller goes away.
    ///
    /// # Errors
    /// Code 3 for what does not fit, 5 for what does not exist, 13 and 14 when Kubernetes fails; nothing is changed then.
    pub(super) async fn update(&self, request: v2::UpdateRecurringRunRequest) -> Result<v2::RecurringRun> {
        let given = super::required(request.recurring_run, "recurring_run")?;
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        if paths.is_empty() {
            return Err(Error::invalid("update_mask is empty: it has to name the fields to change"));
        }
        let service = self.clone();
        to_the_end(async move { service.revise(given, &paths).await }).await
    }

    async fn revise(&self, given: v2::RecurringRun, paths: &[String]) -> Result<v2::RecurringRun> {
        let mut tx = self.0.db.write().await?;
        // Locks the row.
        let before = jobs::get(&mut tx, &given.recurring_run_id).await?;
        let specs = jobs::specs(&mut tx, &before.id).await?;
        let current = shown(before.clone(), Some(&specs));
        let merged = mask::merge(&current, &given, paths, &CHANGEABLE)?;
        let named = |field: &str| paths.iter().any(|path| path.split('.').next() == Some(field));
        let mut change = self.decide(&mut tx, before.clone(), merged, &named).await?;
        change.job.updated_at = now();
        jobs::update(&mut tx, &change.job, change.specs.as_ref()).await?;

        let undo = match self.replace(&before, &change.wanted).await {
            Ok(undo) => undo,
            // Nobody knows whether it was carried out.
            Err((failure, undo)) => {
                self.take_back(&before, undo.as_ref()).await;
                return Err(kube_error(format!("Failed to change scheduled workflow {}", before.name), failure));
            }
        };
        if let Err(error) = tx.commit().await {
            self.take_back(&before, undo.as_ref()).await;
            return Err(error);
        }
        tracing::info!(recurring_run = %before.id, fields = paths.join(","), "recurring run changed");
        let next_fire_times = self.next_fire_times(&change.job).await;
        let specs = change.specs.unwrap_or(specs);
        Ok(v2::RecurringRun { next_fire_times, ..shown(change.job, Some(&specs)) })
    }

    /// The new row and what it means for the ScheduledWorkflow.
    async fn decide(
        &self,
        tx: &mut crate::store::Tx,
        before: jobs::Job,
        given: v2::RecurringRun,
        named: &impl Fn(&str) -> bool,
    ) -> Result<Change> {
        if given.display_name.is_empty() {
            return Err(Error::invalid("Recurring run's name cannot be empty"));
        }
        schedules::check_lengths(&given.display_name, &given.description, &given.service_account)?;
        if named("mode") && given.mode() == Mode::Unspecified {
            return Err(Error::invalid("the mode of a recurring run is ENABLE or DISABLE"));
        }
        schedules::check_concurrency(given.max_concurrency)?;
        let mut job = jobs::Job {
            enabled: given.mode() == Mode::Enable,
            display_name: given.display_name,
            description: given.description,
            service_account: given.service_account,
            max_concurrency: given.max_concurrency,
            no_catchup: given.no_catchup,
            ..before.clone()
        };
        if named("trigger") {
            job.trigger = trigger(given.trigger)?;
        }
        if named("runtime_config") {
            job.runtime_parameters = parameters_json(given.runtime_config.as_ref());
            job.parameters = String::new();
            job.pipeline_root = given.runtime_config.map(|config| config.pipeline_root).unwrap_or_default();
        }
        if named("plugins_input") {
            job.plugins_input = self.0.live.get().plugins.stored(&given.plugins_input)?;
        }
        let mut specs = None;
        let spec = if PIPELINE.iter().any(|field| named(field)) {
            let origin = origin(given.pipeline_source);
            if origin.is_empty() {
                return Err(Error::invalid("a recurring run needs a pipeline, a pipeline version or a pipeline spec"));
            }
            let source = origin.resolve(&self.0.catalog).await;
            let source = source.wrap(|| "Failed to fetch the pipeline of the recurring run".to_owned())?;
            source.template.check_runnable(&job.namespace, &self.0.live.get().rules)?;
            job.pipeline_id.clone_from(&source.pipeline_id);
            job.pipeline_name.clone_from(&source.name);
            job.version_id = if origin.is_pinned() { source.version_id.clone() } else { String::new() };
            let spec = self.object_spec(&mut job, &source, origin.is_pinned())?;
            specs = Some(if origin.is_pinned() { source.specs } else { Specs::default() });
            spec
        } else if named("runtime_config") || named("service_account") {
            let pinned = jobs::specs(tx, &job.id).await? != Specs::default();
            let source = if pinned {
                sources::pinned(tx, &job).await
            } else {
                Origin { pipeline_id: job.pipeline_id.clone(), ..Origin::default() }.resolve(&self.0.catalog).await
            };
            let source = source.wrap(|| "Failed to fetch the pipeline of the recurring run".to_owned())?;
            self.object_spec(&mut job, &source, pinned)?
        } else {
            // The pipeline may be gone; what is not about it can be changed nevertheless.
            schedules::timing_spec(&job)
        };
        let mut wanted = Wanted::default();
        for (key, fields) in KEYS {
            if fields.iter().any(|field| named(field)) {
                wanted.spec.insert(key.to_owned(), spec[key].clone());
            }
        }
        if job.trigger != before.trigger {
            let time = chrono::DateTime::from_timestamp(now(), 0).unwrap_or_default();
            wanted.changed = Some(json!(time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true)));
        }
        Ok(Change { job, specs, wanted })
    }

    /// Puts `wanted` into the ScheduledWorkflow under its version. Returns what takes the change back; nothing when there
    /// was nothing to change.
    ///
    /// # Errors
    /// With what takes the change back in case that it was made after all.
    async fn replace(&self, job: &jobs::Job, wanted: &Wanted) -> Result<Option<Wanted>, (Failure, Option<Wanted>)> {
        if wanted.spec.is_empty() {
            return Ok(None);
        }
        let (cluster, mut pause, mut attempt) = (&self.0.cluster, FIRST_PAUSE, 1);
        loop {
            let live = cluster.get(Kind::ScheduledWorkflow, &job.namespace, &job.name).await;
            let mut object = live.map_err(|failure| (failure, None))?;
            if text(&object, "/metadata/uid") != job.id {
                return Err((Failure::NotFound(format!("scheduled workflow {} was replaced", job.name)), None));
            }
            let live = object.clone();
            let before = wanted.put(&mut object);
            if object == live {
                return Ok(None);
            }
            match cluster.replace(Kind::ScheduledWorkflow, &job.namespace, &job.name, &object).await {
                Ok(_) => return Ok(Some(before)),
                Err(Failure::Conflict(_)) if attempt < ATTEMPTS => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    attempt += 1;
                }
                Err(failure @ Failure::Unavailable(_)) => return Err((failure, Some(before))),
                Err(failure) => return Err((failure, None)),
            }
        }
    }

    /// Takes a change of the ScheduledWorkflow back. A failure is only told: the next report brings the row in line.
    async fn take_back(&self, job: &jobs::Job, undo: Option<&Wanted>) {
        let Some(undo) = undo else { return };
        if let Err((failure, _)) = self.replace(job, undo).await {
            tracing::warn!(schedule = %job.name, %failure, "cannot take back the change of a schedule that was not stored");
        }
    }

    /// The ScheduledWorkflow if the next times depend on it; null when it cannot be read soon.
    async fn live(&self, job: &jobs::Job) -> Value {
        if !fires::depend_on_the_past(job) {
            return Value::Null;
        }
        let live = self.0.cluster.get(Kind::ScheduledWorkflow, &job.namespace, &job.name);
        match tokio::time::timeout(LOOK, live).await {
            Ok(Ok(object)) => object,
            Ok(Err(failure)) => {
                tracing::debug!(schedule = %job.name, %failure, "cannot tell when the recurring run fires next");
                Value::Null
            }
            Err(_) => Value::Null,
        }
    }

    /// When a recurring run fires next; nothing when that cannot be known now.
    pub(super) async fn next_fire_times(&self, job: &jobs::Job) -> Vec<prost_types::Timestamp> {
        let live = self.live(job).await;
        if live.is_null() && fires::depend_on_the_past(job) {
            return Vec::new();
        }
        fires::next(job, &live, now(), self.0.zone).into_iter().map(crate::domain::state::timestamp).collect()
    }
}
