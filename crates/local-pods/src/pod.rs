//! The life of one pod.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use kfp_core::argo::Template;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::api::resources::PODS;
use crate::container;
use crate::env::Sources;
use crate::init::SETUP_FAILED;
use crate::job::Job;
use crate::kubelet::Kubelet;
use crate::outputs;
use crate::paths::Paths;
use crate::process::{Exit, Order};
use crate::python::Store;
use crate::spec::{Container, Pod};
use crate::status::{self, Ended, Phase, Report, State};
use crate::volumes::{self, Mounted, Volumes};
use crate::{recovery, retry};

/// Pods that end sooner are never reported as running: one write less for each short task.
const QUIET: Duration = Duration::from_millis(25);
/// The same for init containers, which matter less to a reader.
const QUIET_INIT: Duration = Duration::from_secs(1);
/// A pod that waits longer than this for its turn says so.
const QUEUED: Duration = Duration::from_secs(10);
/// Sidecars get this long to end after the last main container.
const SIDECAR_GRACE: Duration = Duration::from_secs(2);
/// Waits between attempts to write a status.
const RETRIES: [u64; 5] = [20, 100, 500, 2000, 5000];

/// What the outside wants of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Wish {
    /// The pod is gone or the server stops: end everything, write nothing.
    pub(crate) stop: Option<Stop>,
    /// `spec.activeDeadlineSeconds` as it is now.
    pub(crate) deadline: Option<i64>,
}

/// Why a pod ends early without a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The object was deleted.
    Deleted,
    /// The server stops.
    Shutdown,
}

pub(crate) enum Early {
    Stop(Stop),
    Deadline,
}

struct Active {
    orders: mpsc::Sender<Order>,
    task: JoinHandle<Exit>,
    started: DateTime<Utc>,
    since: Instant,
}

pub(crate) struct Life {
    pub(crate) kubelet: Arc<Kubelet>,
    pub(crate) pod: Arc<Pod>,
    pub(crate) wish: watch::Receiver<Wish>,
    pub(crate) report: Report,
    begun: Instant,
    /// What the API was last told.
    announced: Option<Phase>,
    /// How the main container's paths map to this machine; for a driver there is nothing to look for.
    pub(crate) paths: Option<Paths>,
    /// The template the pod was made from.
    pub(crate) contract: Option<Arc<Template>>,
    /// What of it the main containers get to see.
    pub(crate) artifacts: Vec<Mounted>,
    /// Where the end of the main container's output is.
    pub(crate) result: Option<PathBuf>,
    /// Output parameters that are in no files.
    pub(crate) parameters: Vec<Value>,
    /// The pod has a directory.
    placed: bool,
    /// Artifacts could not be brought in or parameters not be read.
    pub(crate) trouble: Option<String>,
}

/// Runs a pod from its first container to its final status.
pub(crate) async fn live(kubelet: Arc<Kubelet>, pod: Arc<Pod>, wish: watch::Receiver<Wish>) {
    let slots = kubelet.slots_for(&pod);
    let mut life = Life {
        report: Report {
            phase: Phase::Pending,
            reason: "",
            message: String::new(),
            started: Utc::now(),
            init: vec![State::Waiting("PodInitializing"); pod.spec.init_containers.len()],
            containers: vec![State::Waiting("PodInitializing"); pod.spec.containers.len()],
        },
        begun: Instant::now(),
        announced: None,
        paths: None,
        contract: None,
        artifacts: Vec::new(),
        result: None,
        parameters: Vec::new(),
        placed: false,
        trouble: None,
        kubelet,
        pod,
        wish,
    };
    let slot = {
        let mut stopped = life.wish.clone();
        let mut free = pin!(slots.acquire_owned());
        let waited = tokio::select! {
            slot = &mut free => Some(slot.ok()),
            _ = stopped.wait_for(|w| w.stop.is_some()) => Some(None),
            () = sleep(QUEUED) => None,
        };
        match waited {
            Some(slot) => slot,
            None => {
                life.write(status::queued(), None, false).await;
                tokio::select! {
                    slot = free => slot.ok(),
                    _ = stopped.wait_for(|w| w.stop.is_some()) => None,
                }
            }
        }
    };
    if slot.is_some() {
        life.report.started = Utc::now();
        life.begun = Instant::now();
        life.run().await;
    }
}

impl Life {
    async fn run(&mut self) {
        match self.containers().await {
            Ok(()) => {}
            Err(Early::Stop(Stop::Deleted | Stop::Shutdown)) => return,
            Err(Early::Deadline) => {
                self.report.phase = Phase::Failed;
                self.report.reason = "DeadlineExceeded";
                self.report.message = "Pod was active on the node longer than the specified deadline".into();
            }
        }
        self.finish().await;
    }

    pub(crate) fn fail(&mut self, message: impl Into<String>) {
        self.report.phase = Phase::Failed;
        self.report.message = message.into();
    }

    async fn containers(&mut self) -> Result<(), Early> {
        self.check()?;
        let sources = match volumes::lookup(&*self.kubelet.api, &self.pod).await {
            Ok(sources) => Arc::new(sources),
            Err(message) => {
                self.fail(message);
                return Ok(());
            }
        };
        self.placed = self.pod.needs_place();
        let mut volumes = Arc::default();
        if self.placed {
            let earlier = retry::earlier_attempts(&*self.kubelet.api, &self.pod);
            let (kubelet, pod, shared) = (self.kubelet.clone(), self.pod.clone(), sources.clone());
            let prepare = move || container::prepare_pod(&kubelet, &pod, &shared, &earlier);
            let prepared = tokio::task::spawn_blocking(prepare).await;
            match prepared.unwrap_or_else(|e| Err(e.to_string())) {
                Ok(made) => volumes = Arc::new(made),
                Err(message) => {
                    self.fail(message);
                    return Ok(());
                }
            }
        }
        if let Err(message) = self.bring().await? {
            self.trouble(format!("init: Error (exit code 64): {message}"));
            return Ok(());
        }
        let mut active = Vec::new();
        let result = self.sequence(&sources, &volumes, &mut active).await;
        let grace = match &result {
            Ok(()) => SIDECAR_GRACE,
            Err(Early::Stop(Stop::Shutdown)) => self.kubelet.shutdown_grace,
            Err(_) => self.grace(),
        };
        self.end_all(active, grace).await;
        result
    }

    fn grace(&self) -> Duration {
        Duration::from_secs(
            self.pod.spec.termination_grace_period_seconds.unwrap_or(self.kubelet.options.grace_seconds),
        )
    }

    fn check(&self) -> Result<(), Early> {
        self.wish.borrow().stop.map_or(Ok(()), |stop| Err(Early::Stop(stop)))
    }

    /// Init containers one after the other, then the rest; `active` holds what still runs.
    async fn sequence(
        &mut self,
        sources: &Arc<Sources>,
        volumes: &Arc<Volumes>,
        active: &mut Vec<(Place, Active)>,
    ) -> Result<(), Early> {
        let pod = self.pod.clone();
        for (index, container) in pod.spec.init_containers.iter().enumerate() {
            let place = Place { init: true, index };
            let started = self.start(place, container, sources, volumes).await;
            let Some(running) = started else {
                self.report.phase = Phase::Failed;
                return Ok(());
            };
            active.push((place, running));
            if container.restart_policy == "Always" {
                continue;
            }
            let end = self.wait(place, container, active).await?;
            if end.code != 0 {
                self.report.phase = Phase::Failed;
                return Ok(());
            }
        }
        for (index, container) in pod.spec.containers.iter().enumerate() {
            let place = Place { init: false, index };
            match self.start(place, container, sources, volumes).await {
                Some(running) => active.push((place, running)),
                None if pod.is_main(container) => {
                    self.report.phase = Phase::Failed;
                    return Ok(());
                }
                None => {}
            }
        }
        let mut ok = true;
        for (index, container) in pod.spec.containers.iter().enumerate() {
            if pod.is_main(container) {
                let end = self.wait(Place { init: false, index }, container, active).await?;
                ok &= end.code == 0;
            }
        }
        self.report.phase = if ok { Phase::Succeeded } else { Phase::Failed };
        Ok(())
    }

    fn set(&mut self, place: Place, state: State) {
        let states = if place.init { &mut self.report.init } else { &mut self.report.containers };
        if let Some(slot) = states.get_mut(place.index) {
            *slot = state;
        }
    }

    async fn start(
        &mut self,
        place: Place,
        container: &Container,
        sources: &Arc<Sources>,
        volumes: &Arc<Volumes>,
    ) -> Option<Active> {
        let started = Utc::now();
        let (kubelet, pod, c) = (self.kubelet.clone(), self.pod.clone(), container.clone());
        let (sources, volumes) = (sources.clone(), volumes.clone());
        let main = !place.init && self.pod.is_main(container);
        let artifacts = if main { self.artifacts.clone() } else { Vec::new() };
        let outputs = self.contract.as_deref().filter(|_| main).map(container::declared).unwrap_or_default();
        let silent = self.pod.is_driver();
        let plan = move || {
            let workflow = pod.metadata.labels.get(retry::WORKFLOW).map(String::as_str);
            let (namespace, name) = (&pod.metadata.namespace, &pod.metadata.name);
            let log = kubelet.logs.begin(namespace, name, &c.name, workflow, silent);
            let log = log.map_err(|e| format!("begin the log of container \"{}\": {e}", c.name))?;
            container::plan(&kubelet, &pod, &c, &volumes, &sources, &artifacts, &outputs).map(|plan| (plan, log))
        };
        let planned = match silent {
            true => Ok(plan()),
            false => tokio::task::spawn_blocking(plan).await,
        };
        match planned.unwrap_or_else(|e| Err(e.to_string())) {
            Ok((plan, log)) => {
                if main && !silent {
                    self.paths = Some(plan.paths.clone());
                    self.result.clone_from(&plan.result);
                }
                let (orders, queue) = mpsc::channel(4);
                let job = Job {
                    kubelet: self.kubelet.clone(),
                    pod: self.pod.clone(),
                    container: container.clone(),
                    contract: self.contract.clone(),
                    log,
                };
                let task = tokio::spawn(job.run(plan, queue));
                self.set(place, State::Running(started));
                Some(Active { orders, task, started, since: Instant::now() })
            }
            Err(message) => {
                let ended = Ended {
                    code: SETUP_FAILED,
                    reason: "CreateContainerConfigError",
                    message: message.clone(),
                    started,
                    finished: Utc::now(),
                };
                self.set(place, State::Ended(ended));
                self.report.message = message;
                None
            }
        }
    }

    /// Waits for one container, minding the deadline and the outside.
    async fn wait(
        &mut self,
        place: Place,
        container: &Container,
        active: &mut Vec<(Place, Active)>,
    ) -> Result<Ended, Early> {
        let Some(at) = active.iter().position(|(p, _)| *p == place) else {
            let state =
                if place.init { self.report.init.get(place.index) } else { self.report.containers.get(place.index) };
            if let Some(State::Ended(ended)) = state {
                return Ok(ended.clone());
            }
            return Err(Early::Stop(Stop::Deleted));
        };
        let mut wish = self.wish.clone();
        loop {
            let now = *wish.borrow_and_update();
            if let Some(stop) = now.stop {
                return Err(Early::Stop(stop));
            }
            let deadline = now.deadline.or(self.pod.spec.active_deadline_seconds).and_then(|s| u64::try_from(s).ok());
            let over = deadline.map(|s| self.begun + Duration::from_secs(s));
            let until_over = pin!(async {
                match over {
                    Some(over) => sleep_until(over).await,
                    None => std::future::pending().await,
                }
            });
            let Some((_, running)) = active.get_mut(at) else { return Err(Early::Stop(Stop::Deleted)) };
            let phase = if place.init { Phase::Pending } else { Phase::Running };
            let announce_at = running.since + if place.init { QUIET_INIT } else { QUIET };
            tokio::select! {
                exit = &mut running.task => {
                    let exit = exit.unwrap_or_else(|e| Exit::failed(SETUP_FAILED, e.to_string()));
                    let (_, done) = active.remove(at);
                    return Ok(self.ended(place, container, &done, exit));
                }
                changed = wish.changed() => if changed.is_err() { return Err(Early::Stop(Stop::Shutdown)) },
                () = until_over => return Err(Early::Deadline),
                () = sleep_until(announce_at), if self.announced != Some(phase) => self.announce(phase).await,
            }
        }
    }

    fn ended(&mut self, place: Place, container: &Container, done: &Active, exit: Exit) -> Ended {
        self.parameters.extend(exit.parameters);
        let reason = match (exit.code, exit.report.is_empty()) {
            (0, _) => "Completed",
            (_, true) => "Error",
            (_, false) => "StartError",
        };
        if !exit.report.is_empty() {
            self.report.message = format!("container \"{}\" could not start: {}", container.name, exit.report);
        }
        let ended =
            Ended { code: exit.code, reason, message: exit.message, started: done.started, finished: Utc::now() };
        self.set(place, State::Ended(ended.clone()));
        ended
    }

    async fn end_all(&mut self, active: Vec<(Place, Active)>, grace: Duration) {
        for (_, running) in &active {
            // A full queue holds the same order already; a closed one belongs to an ended container.
            let _ = running.orders.try_send(Order::Terminate);
        }
        let end = Instant::now() + grace;
        for (place, mut running) in active {
            let left = end.saturating_duration_since(Instant::now());
            let exit = match timeout(left, &mut running.task).await {
                Ok(exit) => exit,
                Err(_) => {
                    let _ = running.orders.send(Order::Kill).await;
                    (&mut running.task).await
                }
            };
            let containers = if place.init { &self.pod.spec.init_containers } else { &self.pod.spec.containers };
            if let (Some(container), Ok(exit)) = (containers.get(place.index).cloned(), exit) {
                self.ended(place, &container, &running, exit);
            }
        }
    }

    async fn announce(&mut self, phase: Phase) {
        self.announced = Some(phase);
        let report = Report { phase, ..self.report.clone() };
        self.write(status::render(&self.pod, &report), None, false).await;
    }

    async fn finish(&mut self) {
        let code = self.pod.spec.containers.iter().zip(&self.report.containers).find_map(|(c, state)| match state {
            State::Ended(end) if self.pod.is_main(c) => Some(end.code),
            _ => None,
        });
        let mut wish = self.wish.clone();
        let annotation = tokio::select! {
            annotation = self.outputs(code) => annotation,
            _ = wish.wait_for(|wish| wish.stop.is_some()) => return,
        };
        let status = status::render(&self.pod, &self.report);
        // Beside each other: the end shall not wait for the removal, but on a full disk it needs the room.
        tokio::join!(self.write(status, annotation, true), self.clear());
        self.kubelet.ended.send_modify(|ended| *ended += 1);
    }

    /// Removes what the pod left on the disk: nothing reads it, except a next attempt, and on a full disk the end of the
    /// pod needs the room.
    async fn clear(&self) {
        if !self.placed {
            return;
        }
        let uid = &self.pod.metadata.uid;
        let private = Store::new(self.kubelet.dirs.python()).private(uid);
        let over = self.report.phase == Phase::Succeeded || !self.pod.metadata.annotations.contains_key(retry::PARENT);
        let (kubelet, place) = (self.kubelet.clone(), self.kubelet.dirs.pod(uid));
        let removed = tokio::task::spawn_blocking(move || {
            recovery::remove(&private);
            if over {
                kubelet.spares.give(&place);
            }
        })
        .await;
        if let Err(error) = removed {
            tracing::warn!(pod = %self.pod.metadata.name, %error, "cannot remove the directory of a pod");
        }
    }

    async fn write(&self, status: Value, annotation: Option<String>, last: bool) {
        let meta = &self.pod.metadata;
        // The end of a pod must be written whatever it takes: a full disk is emptied some day.
        let for_ever = RETRIES.last().filter(|_| last).into_iter().flat_map(std::iter::repeat);
        for wait in RETRIES.iter().chain(for_ever) {
            let (uid, status, annotation) = (meta.uid.clone(), status.clone(), annotation.clone());
            let change = Box::new(move |object: &mut Value| {
                // A pod of the same name may have taken the place.
                if object.pointer("/metadata/uid").and_then(Value::as_str) != Some(uid.as_str()) {
                    return Ok(());
                }
                if let Some(map) = object.as_object_mut() {
                    map.insert("status".into(), status);
                }
                if last {
                    status::complete(object);
                }
                if let Some(text) = annotation
                    && let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut)
                {
                    let all = metadata.entry("annotations").or_insert_with(|| Value::Object(Default::default()));
                    if let Some(all) = all.as_object_mut() {
                        all.insert(outputs::OUTPUTS.into(), text.into());
                    }
                }
                Ok(())
            });
            match self.kubelet.api.modify(&PODS, &meta.namespace, &meta.name, change).await {
                Ok(()) => return,
                Err(e) if e.code == 404 => return,
                Err(error) => tracing::warn!(pod = %meta.name, %error, "cannot write the status of a pod"),
            }
            let mut wish = self.wish.clone();
            tokio::select! {
                () = sleep(Duration::from_millis(*wait)) => {}
                _ = wish.wait_for(|wish| wish.stop.is_some()) => return,
            }
        }
    }
}

/// A container of the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    init: bool,
    index: usize,
}
