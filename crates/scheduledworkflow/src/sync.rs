//! Work on one schedule: decide on its present state, start a run, write the status.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant};

use chrono_tz::Tz;
use kfp_core::gojson;
use kube::Client;
use kube::api::{Api, ApiResource, GroupVersionKind, PostParams};
use kube::core::DynamicObject;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::events::{self, Kind};
use crate::metrics::{Metrics, Operation};
use crate::model::{Run, Schedule};
use crate::reconcile::{Action, Decision, reconcile};
use crate::runs::{self, Runs};
use crate::workflow::{self, Instance, V1Policy};

/// Deadline of a call to Kubernetes.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a status that others change meanwhile is tried at once.
const ATTEMPTS: u32 = 5;

/// Why a schedule was not dealt with. All of these are tried again.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Kubernetes refused or did not answer.
    #[error("{0}")]
    Kubernetes(String),
    /// The schedule does not describe a Workflow.
    #[error(transparent)]
    Workflow(#[from] workflow::Error),
    /// No run could be created.
    #[error("failed to create a run from the scheduled workflow ({namespace}/{name}): {why}")]
    Run {
        /// Namespace of the schedule.
        namespace: String,
        /// Its name.
        name: String,
        /// What the API server says, or what is wrong with the request.
        why: String,
    },
    /// A Workflow of this name belongs to somebody else.
    #[error("workflow {0} exists already and does not belong to this schedule")]
    Taken(String),
    /// The object changed under every attempt.
    #[error("the status changed while it was written; trying again")]
    Conflict,
}

/// A ScheduledWorkflow as the controller keeps it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// What decides.
    pub schedule: Schedule,
    /// Version of the object.
    pub version: String,
    /// Fingerprint of the spec: tells a change by users from one of the status.
    pub spec: u64,
    /// Fingerprint of status and labels as they are.
    pub observed: u64,
    /// Fingerprint of what this controller wrote into that version, in case that the server stores it differently.
    pub written: Option<u64>,
}

impl Seen {
    /// Reads an object.
    pub fn read(object: &DynamicObject) -> Self {
        let schedule = Schedule::read(object);
        let null = Value::Null;
        let status = object.data.get("status").unwrap_or(&null);
        let own =
            |key: &str| object.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map_or("", String::as_str);
        let observed = fingerprint(
            status,
            ["enabled", "status"].map(|key| own(&format!("{}{key}", crate::model::LABELS)).to_owned()),
        );
        let spec = hash(object.data.get("spec").unwrap_or(&null), &[]);
        let version = object.metadata.resource_version.clone().unwrap_or_default();
        Self { schedule, version, spec, observed, written: None }
    }
}

fn hash(value: &Value, more: &[String]) -> u64 {
    let mut hasher = DefaultHasher::new();
    gojson::to_string(&without_nulls(value)).hash(&mut hasher);
    more.hash(&mut hasher);
    hasher.finish()
}

/// API servers may drop nulls.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect()
        }
        Value::Array(list) => list.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

fn fingerprint(status: &Value, labels: [String; 2]) -> u64 {
    hash(status, &labels)
}

/// Fingerprint of the state that a decision wants.
pub fn wanted(decision: &Decision) -> u64 {
    let [enabled, status] = &decision.labels;
    fingerprint(&decision.status, [enabled.1.clone(), status.1.clone()])
}

/// A run that was started or found again.
#[derive(Clone, Debug)]
pub struct Started {
    /// The slot that it stands for.
    slot: i64,
    /// Its id.
    pub run_id: String,
    /// Its Workflow, when the controller made it itself.
    pub workflow: Option<Run>,
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// The run that was started, also when a later step failed.
    pub started: Option<Started>,
    /// The schedule afterwards; `None` when it does not exist any more.
    pub result: Result<Option<Seen>, Error>,
}

/// Does the work.
#[derive(Clone)]
pub struct Syncer {
    client: Client,
    runs: Runs,
    policy: V1Policy,
    zone: Tz,
    metrics: Metrics,
    clock: Clock,
}

/// The resource type of ScheduledWorkflows.
pub fn schedules() -> ApiResource {
    let gvk = GroupVersionKind::gvk("kubeflow.org", "v1beta1", "ScheduledWorkflow");
    ApiResource::from_gvk_with_plural(&gvk, "scheduledworkflows")
}

/// The resource type of Workflows.
pub fn workflows() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("argoproj.io", "v1alpha1", "Workflow"), "workflows")
}

async fn call<T>(work: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(TIMEOUT, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(Failure::NotFound),
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Failure::Conflict),
        Ok(Err(kube::Error::Api(status))) => Err(Failure::Other(format!("{} ({})", status.message, status.code))),
        Ok(Err(error)) => Err(Failure::Other(error.to_string())),
        Err(_) => Err(Failure::Other(format!("Kubernetes did not answer within {} s", TIMEOUT.as_secs()))),
    }
}

enum Failure {
    NotFound,
    Conflict,
    Other(String),
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound => Self::Kubernetes("the object does not exist any more".to_owned()),
            Failure::Conflict => Self::Conflict,
            Failure::Other(text) => Self::Kubernetes(text),
        }
    }
}

impl Syncer {
    /// A syncer.
    pub fn new(client: Client, runs: Runs, policy: V1Policy, zone: Tz, metrics: Metrics, clock: Clock) -> Self {
        Self { client, runs, policy, zone, metrics, clock }
    }

    /// The present in Unix seconds.
    pub fn now(&self) -> i64 {
        self.clock.now()
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The client that it uses.
    pub fn client(&self) -> &Client {
        &self.client
    }

    fn api(&self, namespace: &str, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource)
    }

    /// Brings one schedule up to date. `runs` are its Workflows and `starting` the number of runs without one yet.
    pub async fn sync(&self, namespace: &str, name: &str, runs: Vec<Run>, starting: usize) -> Outcome {
        let (mut started, since) = (None, Instant::now());
        let result = self.attempt(namespace, name, runs, starting, &mut started).await;
        self.metrics.processed(since, &result);
        if let Err(error) = &result {
            tracing::warn!(namespace, name, "will try again: {error}");
        }
        Outcome { started, result }
    }

    async fn attempt(
        &self,
        namespace: &str,
        name: &str,
        mut runs: Vec<Run>,
        mut starting: usize,
        started: &mut Option<Started>,
    ) -> Result<Option<Seen>, Error> {
        let api = self.api(namespace, &schedules());
        // The run of this call, with the schedule's UID and index that it was started for.
        let mut of: Option<(String, i64)> = None;
        for _ in 0..ATTEMPTS {
            let object = match self.metrics.measured(Operation::Get, call(api.get(name))).await {
                Ok(object) if object.metadata.deletion_timestamp.is_none() => object,
                Ok(_) | Err(Failure::NotFound) => return Ok(None),
                Err(failure) => return Err(failure.into()),
            };
            let mut seen = Seen::read(&object);
            let time = self.now();
            let mut schedule = seen.schedule.clone();
            if let (Some((uid, index)), Some(run)) = (&of, started.as_ref()) {
                // An earlier attempt started the run but could not note it.
                if schedule.uid == *uid && schedule.index + 1 == *index {
                    schedule = schedule.after(run.slot);
                }
            } else {
                match reconcile(&schedule, &runs, starting, time, self.zone).action {
                    Action::Rest => {}
                    Action::Note(slot) => schedule = schedule.after(slot),
                    Action::Submit(slot) => {
                        let submit = self.submit(&object, &schedule, slot, time);
                        let run = match self.metrics.measured(Operation::Submit, submit).await {
                            Ok(run) => run,
                            Err(error) => {
                                let text = format!("Schedulde workflow synced failed: Transient failure: {error}");
                                events::publish(&self.client, &object, Kind::Failed, text).await;
                                return Err(error);
                            }
                        };
                        match &run.workflow {
                            Some(workflow) => {
                                runs.retain(|known| known.name != workflow.name);
                                runs.push(workflow.clone());
                            }
                            None if !runs.iter().any(|known| known.run_id == run.run_id) => starting += 1,
                            None => {}
                        }
                        of = Some((schedule.uid.clone(), schedule.index + 1));
                        schedule = schedule.after(run.slot);
                        *started = Some(run);
                    }
                }
            }
            let decision = reconcile(&schedule, &runs, starting, time, self.zone);
            let print = wanted(&decision);
            if print == seen.observed {
                return Ok(Some(seen));
            }
            match self.metrics.measured(Operation::Update, self.write(&api, object, decision)).await {
                Ok(stored) => {
                    seen = Seen::read(&stored);
                    seen.written = Some(print);
                    if of.is_some() {
                        let text = "Scheduled workflow synced successful: All done".to_owned();
                        events::publish(&self.client, &stored, Kind::Synced, text).await;
                    }
                    return Ok(Some(seen));
                }
                Err(Failure::Conflict) => {}
                Err(Failure::NotFound) => return Ok(None),
                Err(failure) => return Err(failure.into()),
            }
        }
        Err(Error::Conflict)
    }

    /// Writes status and labels under the version of `object`.
    async fn write(
        &self,
        api: &Api<DynamicObject>,
        mut object: DynamicObject,
        decision: Decision,
    ) -> Result<DynamicObject, Failure> {
        if !object.data.is_object() {
            object.data = json!({});
        }
        object.data["status"] = decision.status;
        object.metadata.labels.get_or_insert_default().extend(decision.labels);
        let name = object.metadata.name.clone().unwrap_or_default();
        call(api.replace(&name, &PostParams::default(), &object)).await
    }

    async fn submit(&self, object: &DynamicObject, schedule: &Schedule, slot: i64, now: i64) -> Result<Started, Error> {
        let index = schedule.index + 1;
        if schedule.embedded {
            return self.create(object, schedule, Instance { run_id: "", slot, now, index }).await;
        }
        let wrap = |why: String| Error::Run { namespace: schedule.namespace.clone(), name: schedule.name.clone(), why };
        let request = runs::request(object, &Instance { run_id: "", slot, now, index }).map_err(wrap)?;
        let run = self.runs.create(request).await.map_err(|status| wrap(status.message().to_owned()))?;
        // A repeated request finds the run of the first one, whose slot counts. Servers that do not keep the slot answer
        // with a later time.
        let first = run.scheduled_at.map(|time| time.seconds).filter(|first| *first > 0 && *first <= slot);
        let slot = first.filter(|first| schedule.timing.last.is_none_or(|last| *first > last)).unwrap_or(slot);
        tracing::info!(
            namespace = schedule.namespace,
            schedule = schedule.name,
            index,
            slot,
            run = run.run_id,
            "run started"
        );
        Ok(Started { slot, run_id: run.run_id, workflow: None })
    }

    /// Creates the embedded Workflow, or finds the one that an earlier attempt created.
    async fn create(&self, object: &DynamicObject, schedule: &Schedule, run: Instance<'_>) -> Result<Started, Error> {
        let run_id = uuid::Uuid::new_v4().to_string();
        let built = workflow::build(object, &Instance { run_id: &run_id, ..run }, &self.policy)?;
        let wanted: DynamicObject =
            serde_json::from_value(built).map_err(|error| workflow::Error::Unreadable(error.to_string()))?;
        let api = self.api(&schedule.namespace, &workflows());
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let created = match call(api.create(&PostParams::default(), &wanted)).await {
            Ok(created) => Run::from(&created),
            Err(Failure::Conflict) => {
                let found = Run::from(&call(api.get(&name)).await?);
                if found.owner != schedule.uid || found.index != run.index {
                    return Err(Error::Taken(name));
                }
                found
            }
            Err(failure) => return Err(failure.into()),
        };
        let slot = created.scheduled.unwrap_or(run.slot);
        tracing::info!(
            namespace = schedule.namespace,
            schedule = schedule.name,
            index = run.index,
            slot,
            workflow = name,
            "workflow created"
        );
        Ok(Started { slot, run_id: created.run_id.clone(), workflow: Some(created) })
    }
}
