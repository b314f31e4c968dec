//! Pod status in the shape of Kubernetes; pure.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use crate::env::ADDRESS;
use crate::spec::{Container, Pod};

const COMPLETED: &str = "workflows.argoproj.io/completed";

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Not started; the reason as Kubernetes words it.
    Waiting(&'static str),
    /// Started at.
    Running(DateTime<Utc>),
    /// Over.
    Ended(Ended),
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) started: DateTime<Utc>,
    pub(crate) finished: DateTime<Utc>,
}

/// Phase of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
}

/// What the pod's status is made of.
#[derive(Debug, Clone)]
pub(crate) struct Report {
    pub(crate) phase: Phase,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) started: DateTime<Utc>,
    /// In the order of the pod's init containers.
    pub(crate) init: Vec<State>,
    /// In the order of the pod's containers.
    pub(crate) containers: Vec<State>,
}

impl Phase {
    fn name(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }
}

/// Kubernetes writes whole seconds.
fn time(at: DateTime<Utc>) -> Value {
    at.to_rfc3339_opts(SecondsFormat::Secs, true).into()
}

/// The `status` object.
pub(crate) fn render(pod: &Pod, report: &Report) -> Value {
    let ready = report.phase == Phase::Running;
    let mut status = json!({
        "phase": report.phase.name(),
        "hostIP": ADDRESS,
        "podIP": ADDRESS,
        "podIPs": [{"ip": ADDRESS}],
        "qosClass": "BestEffort",
        "startTime": time(report.started),
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": time(report.started)},
            {"type": "Ready", "status": if ready { "True" } else { "False" }, "lastTransitionTime": time(report.started)},
        ],
        "containerStatuses": containers(pod, &pod.spec.containers, &report.containers),
    });
    if let Some(map) = status.as_object_mut() {
        if !pod.spec.init_containers.is_empty() {
            let init = containers(pod, &pod.spec.init_containers, &report.init);
            map.insert("initContainerStatuses".into(), init);
        }
        if !report.reason.is_empty() {
            map.insert("reason".into(), report.reason.into());
        }
        if !report.message.is_empty() {
            map.insert("message".into(), report.message.clone().into());
        }
    }
    status
}

/// The `status` object of a pod that waits for others to end.
pub(crate) fn queued() -> Value {
    json!({"phase": Phase::Pending.name(), "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "lastTransitionTime": time(Utc::now()),
        "message": "0/1 nodes are available: as many pods as may run at the same time are running",
    }]})
}

fn containers(pod: &Pod, all: &[Container], states: &[State]) -> Value {
    let one = |(container, state): (&Container, &State)| {
        let mut out = Map::new();
        out.insert("name".into(), container.name.clone().into());
        out.insert("image".into(), container.image.clone().into());
        out.insert("imageID".into(), "".into());
        out.insert("containerID".into(), format!("process://{}/{}", pod.metadata.uid, container.name).into());
        out.insert("restartCount".into(), 0.into());
        out.insert("ready".into(), matches!(state, State::Running(_)).into());
        out.insert("started".into(), matches!(state, State::Running(_)).into());
        out.insert("lastState".into(), json!({}));
        out.insert("state".into(), self::state(state));
        Value::Object(out)
    };
    all.iter().zip(states).map(one).collect()
}

fn state(state: &State) -> Value {
    match state {
        State::Waiting(reason) => json!({"waiting": {"reason": reason}}),
        State::Running(at) => json!({"running": {"startedAt": time(*at)}}),
        State::Ended(end) => {
            let mut out = json!({
                "exitCode": end.code,
                "reason": end.reason,
                "startedAt": time(end.started),
                "finishedAt": time(end.finished),
            });
            if let (Some(map), false) = (out.as_object_mut(), end.message.is_empty()) {
                map.insert("message".into(), end.message.clone().into());
            }
            json!({"terminated": out})
        }
    }
}

/// Marks a pod that nothing more happens to, as Argo's controller does.
pub(crate) fn complete(object: &mut Value) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let labels = metadata.entry("labels").or_insert_with(|| json!({}));
    if let Some(labels) = labels.as_object_mut() {
        labels.insert(COMPLETED.into(), "true".into());
    }
}

/// Turns a pod's status into a failure, whatever it was; containers that ran are over.
pub(crate) fn fail(object: &mut Value, message: &str) {
    complete(object);
    let now = time(Utc::now());
    let Some(map) = object.as_object_mut() else { return };
    let status = map.entry("status").or_insert_with(|| json!({}));
    let Some(status) = status.as_object_mut() else { return };
    status.insert("phase".into(), Phase::Failed.name().into());
    status.insert("message".into(), message.into());
    for list in ["initContainerStatuses", "containerStatuses"] {
        for container in status.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(started) = container.pointer("/state/running/startedAt").cloned() else { continue };
            let ended = json!({"terminated": {
                "exitCode": 137, "reason": "Error", "message": message, "startedAt": started, "finishedAt": now}});
            if let Some(container) = container.as_object_mut() {
                container.insert("ready".into(), false.into());
                container.insert("started".into(), false.into());
                container.insert("state".into(), ended);
            }
        }
    }
}
