//! The shell: feeds the watches of Workflows and pods into executions, and carries out what they ask for.
//!
//! One task owns all state. Whatever is ready is taken in as one batch, then every touched execution works once.
//! API calls run beside it and report back through a channel. The status is written behind the execution: at most
//! one write per Workflow is under way, and what changes meanwhile goes into the next one. Nothing waits for a
//! write, because names of pods follow from names of nodes: after a crash the same pods are found again.

mod calls;
mod objects;

use crate::changes::expiry;
use crate::execution::{Effect, Event, Execution};
use crate::{Options, Settings};
use calls::{Calls, Report};
use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use kfp_core::argo::{Workflow, names};
use kfp_core::shutdown::{CancellationToken, TaskTracker};
use kfp_local_api::{ApiError, Cluster, EventKind, RawEvent, RawObject, Selectors, Watch, WatchEvent, resources};
use objects::{Head, Key, Steering, text};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Most events taken in as one batch, so that a flood does not keep the executions from working.
const BATCH: usize = 512;
/// A status write that took a time t is followed by a pause of this many times t.
const WRITE_PAUSE: u32 = 4;
/// Shortest such pause. A status tells people and the persistence agent of progress, nothing waits for it, and each
/// means that several parties read the whole object again.
const SHORTEST_WRITE_PAUSE: Duration = Duration::from_millis(100);
/// Longest such pause, and longest pause after a failed write.
const MAX_PAUSE: Duration = Duration::from_secs(2);
/// Shortest pause after a failed write.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Shortest pause before watches are opened again.
const WATCH_PAUSE: Duration = Duration::from_millis(100);
/// Longest that the last writes may take when the engine is told to stop.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Runs the engine until it is told to stop. Executions continue where their written status stands.
pub fn run(cluster: Cluster, options: Options, shutdown: CancellationToken) -> BoxFuture<'static, ()> {
    // Boxed, so that all of it is compiled in this crate, once, and not in each that awaits it.
    Box::pin(run_unboxed(cluster, options, shutdown))
}

async fn run_unboxed(cluster: Cluster, options: Options, shutdown: CancellationToken) {
    let (reports, inbox) = mpsc::unbounded_channel();
    let tracker = TaskTracker::new();
    let calls = Calls { cluster: cluster.clone(), reports, tracker: tracker.clone(), shutdown: shutdown.clone() };
    let mut controller =
        Controller { settings: options.settings.clone(), calls, active: HashMap::new(), expiring: HashMap::new() };
    let mut inbox = UnboundedReceiverStream::new(inbox);
    let namespace = options.namespace.as_deref();
    loop {
        let opened = Instant::now();
        let (pods, workflows) = controller.open(&cluster, namespace).await;
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = controller.serve(pods, workflows, &mut inbox) => {}
        }
        // A watch ended: too far behind, or the cluster is closing. List again, but never in a tight loop.
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = tokio::time::sleep(WATCH_PAUSE.saturating_sub(opened.elapsed())) => {}
        }
    }
    controller.flush();
    tracker.close();
    if tokio::time::timeout(STOP_GRACE, tracker.wait()).await.is_err() {
        tracing::warn!("engine stopped before its last writes were done; they are redone at the next start");
    }
}

/// What comes in.
enum Input {
    Pod(Result<WatchEvent, ApiError>),
    Workflow(Result<RawEvent, ApiError>),
    Report(Report),
    Ended,
}

/// A Workflow under execution.
struct Active {
    execution: Execution,
    uid: String,
    steering: Steering,
    /// A write is under way; it ends the Workflow if true.
    writing: Option<bool>,
    /// No write before.
    not_before: Instant,
    /// Writes that failed in a row.
    failures: u32,
    /// The version that our last write made.
    written: u64,
    /// The object, and its version, as somebody changed it after the execution ended.
    edited: Option<(u64, RawObject)>,
}

struct Controller {
    settings: Settings,
    calls: Calls,
    active: HashMap<Key, Active>,
    expiring: HashMap<Key, (DateTime<Utc>, String)>,
}

impl Controller {
    /// Lists everything, brings the executions up to date and opens watches from there. An object that cannot be read is
    /// left out, so that the others go on.
    async fn open(
        &mut self,
        cluster: &Cluster,
        namespace: Option<&str>,
    ) -> (Watch, BoxStream<'static, Result<RawEvent, ApiError>>) {
        let all = Selectors::default();
        let (pods, seen) = cluster.list_raw(&resources::PODS, namespace, &all);
        let (workflows, version) = cluster.list_raw(&resources::WORKFLOWS, namespace, &all);
        let from = seen.min(version);
        let place = |workflow: &RawObject| Key::new(workflow.namespace(), workflow.name());
        let present: HashSet<Key> = workflows.iter().filter_map(place).collect();
        self.active.retain(|key, _| present.contains(key));
        self.expiring.retain(|key, _| present.contains(key));
        let mut touched = HashSet::new();
        let owner = |pod: &RawObject| Key::new(pod.namespace(), pod.label(names::LABEL_WORKFLOW)?);
        let mut live: HashMap<Key, Vec<RawObject>> = HashMap::new();
        for pod in pods {
            if let Some(key) = owner(&pod).filter(|key| self.active.contains_key(key)) {
                live.entry(key).or_default().push(pod);
            }
        }
        for (key, active) in &mut self.active {
            let pods = live.remove(key).unwrap_or_default();
            let names = pods.iter().map(|pod| pod.name().to_owned()).collect();
            active.execution.apply(Event::Pods(names), Utc::now());
            for pod in pods.into_iter().filter(|pod| pod.is_owned_by(&active.uid)) {
                match pod.parse() {
                    Ok(pod) => active.execution.apply(Event::Pod(pod), Utc::now()),
                    Err(error) => tracing::error!(workflow = %key, pod = pod.name(), %error, "a pod is left out"),
                }
            }
            touched.insert(key.clone());
        }
        for workflow in workflows {
            let place = place(&workflow);
            if let (Err(error), Some(key)) = (self.workflow(EventKind::Modified, workflow, &mut touched).await, place) {
                tracing::error!(workflow = %key, %error, "a workflow cannot be read and is left out");
            }
        }
        self.step(touched);
        (
            cluster.watch(&resources::PODS, namespace, Some(from), Selectors::default()),
            cluster.watch_raw(&resources::WORKFLOWS, namespace, Some(from), Selectors::default()).boxed(),
        )
    }

    /// Takes in what comes until a watch ends.
    async fn serve(
        &mut self,
        pods: Watch,
        workflows: impl Stream<Item = Result<RawEvent, ApiError>>,
        inbox: &mut UnboundedReceiverStream<Report>,
    ) {
        let end = || futures::stream::once(async { Input::Ended });
        let watches =
            futures::stream::select(pods.map(Input::Pod).chain(end()), workflows.map(Input::Workflow).chain(end()));
        let mut inputs = std::pin::pin!(futures::stream::select(inbox.map(Input::Report), watches).ready_chunks(BATCH));
        loop {
            let wakeup = self.wakeup();
            let sleep = async {
                match wakeup {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            let batch = tokio::select! {
                batch = inputs.next() => batch.unwrap_or_default(),
                () = sleep => Vec::new(),
            };
            let mut touched = HashSet::new();
            let mut ended = false;
            for input in batch {
                match input {
                    Input::Pod(Ok(event)) => self.pod(event.kind, &event.object, &mut touched),
                    Input::Workflow(Ok(event)) => {
                        if let Err(error) = self.workflow(event.kind, event.object, &mut touched).await {
                            tracing::warn!(%error, "a workflow cannot be read, listing again");
                            ended = true;
                        }
                    }
                    Input::Report(report) => self.report(report, &mut touched).await,
                    Input::Pod(Err(error)) | Input::Workflow(Err(error)) => {
                        tracing::info!(%error, "watch ended, listing again");
                        ended = true;
                    }
                    Input::Ended => ended = true,
                }
            }
            self.due(&mut touched);
            self.step(touched);
            if ended {
                return;
            }
        }
    }

    /// When something has to be done although nothing comes in.
    fn wakeup(&self) -> Option<Instant> {
        let now = Utc::now();
        let instant = |time: DateTime<Utc>| Instant::now() + (time - now).to_std().unwrap_or_default();
        let timers = self.active.values().filter_map(|active| active.execution.next_wakeup()).map(instant);
        let writes = self.active.values().filter_map(Active::next_write);
        let expiring = self.expiring.values().map(|(time, _)| instant(*time));
        timers.chain(writes).chain(expiring).min()
    }

    /// Touches executions whose time has come and deletes Workflows that have expired.
    fn due(&mut self, touched: &mut HashSet<Key>) {
        let (now, instant) = (Utc::now(), Instant::now());
        for (key, active) in &self.active {
            let timer = active.execution.next_wakeup().is_some_and(|time| time <= now);
            if timer || active.next_write().is_some_and(|time| time <= instant) {
                touched.insert(key.clone());
            }
        }
        let expired: Vec<Key> =
            self.expiring.iter().filter(|(_, (time, _))| *time <= now).map(|(key, _)| key.clone()).collect();
        for key in expired {
            if let Some((_, uid)) = self.expiring.remove(&key) {
                self.calls.delete_workflow(key, uid);
            }
        }
    }

    fn pod(&mut self, kind: EventKind, pod: &Arc<Value>, touched: &mut HashSet<Key>) {
        if kind == EventKind::Bookmark {
            return;
        }
        let Some(key) = Key::of_pod(pod) else { return };
        let Some(active) = self.active.get_mut(&key).filter(|active| objects::owned_by(pod, &active.uid)) else {
            return;
        };
        let event = match kind {
            EventKind::Deleted => {
                Event::PodDeleted(text(pod, objects::NODE_ID).to_owned(), text(pod, "/metadata/name").to_owned())
            }
            _ => Event::Pod(pod.clone()),
        };
        active.execution.apply(event, Utc::now());
        touched.insert(key);
    }

    /// Takes in a Workflow as it is now.
    ///
    /// # Errors
    /// When it cannot be read.
    async fn workflow(
        &mut self,
        kind: EventKind,
        object: RawObject,
        touched: &mut HashSet<Key>,
    ) -> Result<(), ApiError> {
        let json = object.json()?;
        let Some(Head { key, uid, version, deleting, completed }) = Head::of(&json) else { return Ok(()) };
        if kind == EventKind::Bookmark {
            return Ok(());
        }
        if kind == EventKind::Deleted || deleting {
            if self.active.get(&key).is_some_and(|active| active.uid == uid) {
                self.active.remove(&key);
            }
            self.expiring.remove(&key);
            return Ok(());
        }
        if let Some(active) = self.active.get_mut(&key).filter(|active| active.uid == uid) {
            if active.execution.is_done() {
                if completed {
                    self.expire(key, uid, &json);
                } else {
                    // Perhaps a retry of the run. Whether it is newer than our last write shows when that is done.
                    active.edited = Some((version, object));
                }
            } else if version > active.written {
                let steering = Steering::of(&json);
                if steering != active.steering {
                    active.execution.apply(Event::Edited(Box::new(steering.workflow())), Utc::now());
                    active.steering = steering;
                    touched.insert(key);
                }
            }
            return Ok(());
        }
        if completed {
            self.expire(key, uid, &json);
            return Ok(());
        }
        self.take_up(key, uid, &json, touched).await
    }

    /// Remembers when a finished Workflow is to be deleted.
    fn expire(&mut self, key: Key, uid: String, object: &str) {
        if let Some(time) = objects::ending(object).and_then(|workflow| expiry(&workflow)) {
            self.expiring.insert(key, (time.0, uid));
        }
    }

    /// Begins or continues the execution of a Workflow.
    ///
    /// # Errors
    /// When its pods cannot be read.
    async fn take_up(
        &mut self,
        key: Key,
        uid: String,
        object: &str,
        touched: &mut HashSet<Key>,
    ) -> Result<(), ApiError> {
        self.expiring.remove(&key);
        let workflow: Workflow = match serde_json::from_str(object) {
            Ok(workflow) => workflow,
            Err(error) => {
                tracing::warn!(workflow = %key, %error, "workflow cannot be read");
                self.calls.reject(key, uid, format!("invalid spec: {error}"));
                return Ok(());
            }
        };
        let mut execution = Execution::with(workflow, &self.settings, Utc::now());
        let selector = Selectors::labels([(names::LABEL_WORKFLOW, key.name.as_str())]);
        let (pods, _) = self.calls.cluster.list_raw(&resources::PODS, Some(&key.namespace), &selector);
        for pod in pods.into_iter().filter(|pod| pod.is_owned_by(&uid)) {
            execution.apply(Event::Pod(pod.parse()?), Utc::now());
        }
        tracing::debug!(workflow = %key, "taking up workflow");
        let active = Active {
            execution,
            uid,
            steering: Steering::of(object),
            writing: None,
            not_before: Instant::now(),
            failures: 0,
            written: 0,
            edited: None,
        };
        self.active.insert(key.clone(), active);
        touched.insert(key);
        Ok(())
    }

    async fn report(&mut self, report: Report, touched: &mut HashSet<Key>) {
        let Some(active) = self.active.get_mut(&report.key).filter(|active| active.uid == report.uid) else { return };
        let (result, took) = match report.what {
            calls::What::Event(event) => {
                active.execution.apply(event, Utc::now());
                touched.insert(report.key);
                return;
            }
            calls::What::Written(result, took) => (result, took),
        };
        let last = active.writing.take().unwrap_or(false);
        match result {
            Ok(version) => {
                active.failures = 0;
                active.written = version;
                active.not_before = Instant::now() + (took * WRITE_PAUSE).clamp(SHORTEST_WRITE_PAUSE, MAX_PAUSE);
                if last {
                    // The watch brings what we wrote, and then it shows when the Workflow expires.
                    let edited = active.edited.take().filter(|(edited, _)| *edited > version);
                    self.active.remove(&report.key);
                    if let Some((_, object)) = edited
                        && let Err(error) = self.workflow(EventKind::Modified, object, touched).await
                    {
                        tracing::warn!(workflow = %report.key, %error, "a changed workflow cannot be read");
                    }
                    return;
                }
            }
            Err(error) if error.is_not_found() || error.is_conflict() => {
                self.active.remove(&report.key);
                return;
            }
            Err(error) => {
                let pause = (RETRY_PAUSE * 2u32.saturating_pow(active.failures.min(10))).min(MAX_PAUSE);
                tracing::warn!(workflow = %report.key, %error, ?pause, "cannot write workflow status, trying again");
                active.failures += 1;
                active.not_before = Instant::now() + pause;
                active.execution.mark_all_changed();
            }
        }
        touched.insert(report.key);
    }

    /// Lets the touched executions work and sends their effects and changes on their way.
    fn step(&mut self, touched: HashSet<Key>) {
        for key in touched {
            let Some(active) = self.active.get_mut(&key) else { continue };
            for effect in active.execution.run(Utc::now()) {
                let (key, uid) = (key.clone(), active.uid.clone());
                match effect {
                    Effect::CreatePod { node, pod } => self.calls.create_pod(key, uid, node, pod),
                    Effect::StopPod { name } => self.calls.stop_pod(key, name),
                    Effect::CreateClaim(claim) => self.calls.create_claim(key, uid, claim),
                    Effect::DeleteClaim { name } => self.calls.delete_claim(key, name),
                }
            }
            if active.next_write().is_some_and(|time| time <= Instant::now()) {
                active.write(&self.calls, &key);
            }
        }
    }

    /// Sends out everything that is not written yet, without pauses.
    fn flush(&mut self) {
        for (key, active) in &mut self.active {
            // One under way writes an older state; writes of one object are carried out in order.
            active.write(&self.calls, key);
        }
    }
}

impl Active {
    /// When the next status write may begin, if there is something to write and none is under way.
    fn next_write(&self) -> Option<Instant> {
        let unwritten = self.writing.is_none() && self.execution.has_changes();
        let at_once = self.failures == 0 && self.execution.is_done();
        unwritten.then(|| if at_once { Instant::now() } else { self.not_before })
    }

    fn write(&mut self, calls: &Calls, key: &Key) {
        if let Some(changes) = self.execution.take_changes() {
            self.writing = Some(changes.last);
            calls.write(key.clone(), self.uid.clone(), changes);
        }
    }
}
