//! What the controller keeps of ScheduledWorkflows and Workflows: the few fields that decide, not the objects.

use chrono::DateTime;
use kube::core::{DynamicObject, ObjectMeta};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use kfp_core::cluster::part::{Fields, Part};
use kfp_core::cron::Cron;
use kfp_core::schedule::{self, Timing, Trigger};

/// Prefix of the labels that tie Workflows to their schedule.
pub const LABELS: &str = "scheduledworkflows.kubeflow.org/";
/// Label with the name of the schedule.
pub const LABEL_SCHEDULE: &str = "scheduledworkflows.kubeflow.org/scheduledWorkflowName";
/// Label with the run that a Workflow executes.
pub const LABEL_RUN: &str = "pipeline/runid";

/// The longest message of a Workflow that its schedule's history repeats.
const MESSAGE: usize = 4096;

/// A ScheduledWorkflow without the pipeline that it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID, which is also the id of the recurring run.
    pub uid: String,
    /// When it fires.
    pub timing: Timing,
    /// Whether it fires at all.
    pub enabled: bool,
    /// Runs at the same time, 1 to 10.
    pub max_concurrency: usize,
    /// Completed runs that the status lists, 0 to 100.
    pub max_history: i64,
    /// Number of the last run.
    pub index: i64,
    /// Whether it holds a Workflow, which the controller creates itself.
    pub embedded: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    enabled: Option<bool>,
    max_concurrency: Option<i64>,
    no_catchup: Option<bool>,
    max_history: Option<i64>,
    trigger: Option<TriggerSpec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TriggerSpec {
    cron_schedule: Option<Times>,
    periodic_schedule: Option<Times>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Times {
    start_time: Option<String>,
    end_time: Option<String>,
    cron: Option<String>,
    interval_second: Option<i64>,
}

/// Unix seconds of an RFC 3339 time.
#[must_use]
pub fn seconds(text: &str) -> Option<i64> {
    DateTime::parse_from_rfc3339(text).ok().map(|time| time.timestamp())
}

/// The time as Kubernetes writes it.
#[must_use]
pub fn rfc3339(seconds: i64) -> Option<String> {
    Some(DateTime::from_timestamp(seconds, 0)?.to_rfc3339_opts(chrono::SecondsFormat::Secs, true))
}

/// Text at a JSON pointer; empty when there is none.
#[must_use]
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn created(metadata: &ObjectMeta) -> Option<i64> {
    metadata.creation_timestamp.as_ref().map(|time| time.0.as_second())
}

impl Schedule {
    /// Reads an object. A spec that cannot be read makes a schedule that never fires and says why.
    #[must_use]
    pub fn read(object: &DynamicObject) -> Self {
        let DynamicObject { metadata, data: object, .. } = object;
        let spec = object.get("spec").filter(|spec| !spec.is_null());
        let (spec, problem) = match spec.map_or(Ok(Spec::default()), Spec::deserialize) {
            Ok(spec) => (spec, None),
            Err(error) => (Spec::default(), Some(format!("the spec cannot be read: {error}"))),
        };
        let trigger = match problem {
            Some(problem) => Trigger::Broken(problem),
            None => trigger(spec.trigger.unwrap_or_default()).unwrap_or_else(Trigger::Broken),
        };
        Self {
            namespace: metadata.namespace.clone().unwrap_or_default(),
            name: metadata.name.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            timing: Timing {
                trigger,
                created: created(metadata).unwrap_or(0),
                last: seconds(text(object, "/status/trigger/lastTriggeredTime")),
                changed: metadata.annotations.as_ref().and_then(|all| seconds(all.get(schedule::CHANGED)?)),
                catchup: !spec.no_catchup.unwrap_or(false),
            },
            enabled: spec.enabled.unwrap_or(false),
            max_concurrency: usize::try_from(spec.max_concurrency.unwrap_or(1)).unwrap_or(1).clamp(1, 10),
            max_history: spec.max_history.unwrap_or(10).clamp(0, 100),
            index: object
                .pointer("/status/trigger/lastWorkflowIndex")
                .and_then(Value::as_i64)
                .unwrap_or(0)
                .clamp(0, i64::MAX / 2),
            embedded: object.pointer("/spec/workflow/spec").is_some_and(|spec| !spec.is_null()),
        }
    }

    /// The schedule after the run for `slot` was started.
    #[must_use]
    pub fn after(mut self, slot: i64) -> Self {
        self.timing.last = Some(slot);
        self.index += 1;
        self
    }
}

fn trigger(spec: TriggerSpec) -> Result<Trigger, String> {
    let time = |field: &str, text: Option<String>| match text {
        None => Ok(None),
        Some(text) => match seconds(&text) {
            Some(seconds) => Ok(Some(seconds)),
            None => Err(format!("{field} {text:?} is not an RFC 3339 time")),
        },
    };
    let span = |kind: &str, start: Option<String>, end: Option<String>| {
        let start = time(&format!("{kind}.startTime"), start)?;
        let end = time(&format!("{kind}.endTime"), end)?;
        match (start, end) {
            (Some(start), Some(end)) if end < start => Err(format!("{kind}: the end time is before the start time")),
            span => Ok(span),
        }
    };
    if let Some(given) = spec.periodic_schedule {
        let (start, end) = span("periodicSchedule", given.start_time, given.end_time)?;
        let interval = given.interval_second.unwrap_or(0);
        if interval < 0 {
            return Err(format!("periodicSchedule.intervalSecond is negative: {interval}"));
        }
        return Ok(Trigger::Periodic { interval: interval.max(1), start, end });
    }
    if let Some(given) = spec.cron_schedule {
        let (start, end) = span("cronSchedule", given.start_time, given.end_time)?;
        let text = given.cron.unwrap_or_default();
        let cron = Cron::parse(&text).map_err(|error| format!("cronSchedule.cron {text:?}: {error}"))?;
        return Ok(Trigger::Cron { cron, start, end });
    }
    Ok(Trigger::Once)
}

/// A Workflow of a schedule, as far as concurrency and history need it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// Name of the Workflow.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
    /// UID of the schedule that owns it.
    pub owner: String,
    /// The run that it executes.
    pub run_id: String,
    /// `Running`, `Succeeded` and so on; empty at first.
    pub phase: String,
    /// Message of the status.
    pub message: String,
    /// Creation.
    pub created: Option<i64>,
    /// Start.
    pub started: Option<i64>,
    /// End.
    pub finished: Option<i64>,
    /// The slot (embedded Workflows) or the creation of the run (runs made by the API server).
    pub scheduled: Option<i64>,
    /// Number in the schedule; 0 when the label is missing or no number.
    pub index: i64,
    /// Whether Argo has labelled it as completed.
    pub completed: bool,
}

/// The status of a Workflow as far as the history shows it; what cannot be read counts as absent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Progress {
    phase: Option<String>,
    message: Option<String>,
    started_at: Option<String>,
    finished_at: Option<String>,
}

/// A Workflow as the watch shows it: the pipeline in it, which may be large, is skipped.
pub type Workflow = Part<Progress>;

impl Fields for Progress {
    fn read(json: Box<RawValue>) -> Self {
        #[derive(Deserialize)]
        struct Head {
            status: Option<Progress>,
        }
        serde_json::from_str::<Head>(json.get()).ok().and_then(|head| head.status).unwrap_or_default()
    }
}

impl From<&DynamicObject> for Run {
    fn from(workflow: &DynamicObject) -> Self {
        let progress = workflow.data.get("status").and_then(|status| Progress::deserialize(status).ok());
        Self::read(&workflow.metadata, &progress.unwrap_or_default())
    }
}

impl From<&Workflow> for Run {
    fn from(workflow: &Workflow) -> Self {
        Self::read(&workflow.metadata, &workflow.fields)
    }
}

impl Run {
    fn read(metadata: &ObjectMeta, progress: &Progress) -> Self {
        let label = |key: &str| metadata.labels.as_ref().and_then(|labels| labels.get(key)).map_or("", String::as_str);
        let own = |key: &str| label(&format!("{LABELS}{key}"));
        let owner = metadata
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.kind == "ScheduledWorkflow" && owner.api_version == "kubeflow.org/v1beta1");
        let mut message = progress.message.clone().unwrap_or_default();
        message.truncate(message.floor_char_boundary(MESSAGE));
        let created = created(metadata);
        Self {
            name: metadata.name.clone().unwrap_or_default(),
            namespace: metadata.namespace.clone().unwrap_or_default(),
            uid: metadata.uid.clone().unwrap_or_default(),
            owner: owner.map(|owner| owner.uid.clone()).unwrap_or_default(),
            run_id: label(LABEL_RUN).to_owned(),
            phase: progress.phase.clone().unwrap_or_default(),
            message,
            created,
            started: progress.started_at.as_deref().and_then(seconds),
            finished: progress.finished_at.as_deref().and_then(seconds),
            scheduled: own("workflowEpoch").parse().ok().or(created),
            index: own("workflowIndex").parse().unwrap_or(0),
            completed: label("workflows.argoproj.io/completed") == "true",
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(json: Value) -> DynamicObject {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn defaults_and_clamps() {
        for (spec, concurrency, history) in [
            (json!({}), 1, 10),
            (json!({"maxConcurrency": 0, "maxHistory": -1}), 1, 0),
            (json!({"maxConcurrency": 99, "maxHistory": 1000}), 10, 100),
            (json!({"maxConcurrency": -5, "maxHistory": null}), 1, 10),
        ] {
            let read = Schedule::read(&object(json!({"spec": spec})));
            assert_eq!((read.max_concurrency, read.max_history), (concurrency, history), "{spec}");
            assert!(!read.enabled && read.timing.catchup && !read.embedded);
        }
    }

    #[test]
    fn trigger_is_read() {
        let read = |trigger: Value| Schedule::read(&object(json!({"spec": {"trigger": trigger}}))).timing.trigger;
        assert_eq!(read(json!({})), Trigger::Once);
        let periodic = Trigger::Periodic { interval: 1, start: Some(0), end: Some(5) };
        let times = json!({"startTime": "1970-01-01T00:00:00Z", "endTime": "1970-01-01T00:00:05Z"});
        assert_eq!(read(json!({"periodicSchedule": times, "cronSchedule": {"cron": "x"}})), periodic);
        for (trigger, why) in [
            (json!({"cronSchedule": {"cron": "* *"}}), "Expected 5 to 6 fields, found 2: * *"),
            (json!({"cronSchedule": {"cron": 5}}), "the spec cannot be read"),
            (json!({"periodicSchedule": {"intervalSecond": -5}}), "negative: -5"),
            (json!({"periodicSchedule": {"startTime": "today"}}), "startTime \"today\" is not an RFC 3339 time"),
            (
                json!({"cronSchedule": {"startTime": "2020-01-01T00:00:00Z", "endTime": "2019-01-01T00:00:00Z"}}),
                "the end time is before the start time",
            ),
        ] {
            match read(trigger) {
                Trigger::Broken(text) => assert!(text.contains(why), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn strange_workflow_is_read_as_far_as_possible() {
        let run = Run::from(&object(json!({
            "metadata": {"name": "w", "creationTimestamp": "1970-01-01T00:00:07Z",
                "labels": {format!("{LABELS}workflowEpoch"): "soon", format!("{LABELS}workflowIndex"): "x"}},
            "status": "broken",
        })));
        assert_eq!((run.scheduled, run.index, run.phase.as_str(), run.completed), (Some(7), 0, "", false));
    }
}
