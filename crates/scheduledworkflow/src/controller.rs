//! The loop: watches, agenda and workers.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::pin::pin;
use std::time::{Duration, Instant};

use chrono_tz::Tz;
use futures::{Stream, StreamExt as _};
use kfp_core::shutdown::CancellationToken;
use kube::api::{Api, ApiResource};
use kube::core::{DynamicObject, DynamicResourceScope, ObjectMeta};
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::agenda::Agenda;
use crate::clock;
use crate::model::{LABEL_SCHEDULE, Run, Workflow};
use crate::reconcile::{Action, reconcile};
use crate::sync::{Outcome, Seen, Started, Syncer, schedules, wanted, workflows};
use kfp_core::schedule::Trigger;

/// How long a run counts as active without its Workflow being seen.
const UNSEEN: Duration = Duration::from_secs(30);
/// How long a new schedule is left alone: the API server stores its row after the object, and a run that comes before the
/// row is refused. Upstream takes ten seconds to notice a schedule.
const SETTLE: Duration = Duration::from_secs(1);
/// Completed runs of a schedule that are kept; its history shows at most 100.
const COMPLETED: usize = 110;
/// Longest sleep before the wall clock is looked at again.
const LOOK: Duration = Duration::from_secs(1);
/// Objects in one page of a list: bounds the memory that a start takes.
const PAGE: u32 = 100;

/// Namespace and name of a schedule.
type Key = (String, String);

type Watched<K> = watcher::Result<Event<K>>;

/// The names seen in a list, while it lasts.
#[derive(Default)]
struct Listing {
    seen: Option<HashSet<Key>>,
    complete: bool,
}

/// A run that was started and whose Workflow the watch has not shown yet.
struct Unseen {
    run_id: String,
    /// Its Workflow, when the controller made it itself.
    workflow: Option<Run>,
    /// When to stop waiting: the Workflow may be gone already.
    until: Instant,
}

/// See the module.
pub struct Controller {
    syncer: Syncer,
    zone: Tz,
    workers: usize,
    resync: Duration,
    schedules: HashMap<Key, Seen>,
    /// Workflows by schedule, each list sorted by name.
    runs: HashMap<Key, Vec<Run>>,
    unseen: HashMap<Key, Vec<Unseen>>,
    agenda: Agenda<Key>,
    schedule_listing: Listing,
    run_listing: Listing,
}

impl Controller {
    /// A controller that knows nothing yet.
    pub fn new(syncer: Syncer, zone: Tz, workers: usize, resync: Duration) -> Self {
        Self {
            syncer,
            zone,
            workers: workers.max(1),
            resync,
            schedules: HashMap::new(),
            runs: HashMap::new(),
            unseen: HashMap::new(),
            agenda: Agenda::default(),
            schedule_listing: Listing::default(),
            run_listing: Listing::default(),
        }
    }

    fn watch<K>(
        &self,
        namespace: &str,
        resource: &ApiResource,
        config: Config,
    ) -> impl Stream<Item = Watched<K>> + use<K>
    where
        K: kube::Resource<DynamicType = ApiResource, Scope = DynamicResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + 'static,
    {
        let client = self.syncer.client().clone();
        let api = if namespace.is_empty() {
            Api::all_with(client, resource)
        } else {
            Api::namespaced_with(client, namespace, resource)
        };
        watcher(api, config.page_size(PAGE)).default_backoff()
    }

    /// Works until `shutdown` is cancelled; then finishes what is under way.
    pub async fn run(mut self, namespace: &str, shutdown: CancellationToken) {
        let mut schedule_events = pin!(self.watch(namespace, &schedules(), Config::default()));
        let mut run_events = pin!(self.watch(namespace, &workflows(), Config::default().labels(LABEL_SCHEDULE)));
        let mut resync = tokio::time::interval(self.resync);
        resync.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut jobs: JoinSet<(Key, Outcome)> = JoinSet::new();
        loop {
            self.start_jobs(&mut jobs);
            self.syncer.metrics().waiting(self.agenda.ready());
            let (pause, timer) =
                if self.listed() && jobs.len() < self.workers { self.agenda.wake() } else { (None, None) };
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(done) = jobs.join_next() => match done {
                    Ok((key, outcome)) => self.finish(&key, outcome),
                    Err(error) => tracing::error!("a worker stopped: {error}"),
                },
                Some(event) = schedule_events.next() => self.schedule_event(event),
                Some(event) = run_events.next() => self.run_event(event),
                _ = resync.tick() => {
                    let keys: Vec<Key> = self.schedules.keys().cloned().collect();
                    keys.iter().for_each(|key| self.agenda.put(key));
                }
                () = sleep_until(pause) => {}
                () = sleep_until(timer.map(instant_of)) => {}
            }
        }
        while jobs.join_next().await.is_some() {}
    }

    /// Whether both kinds of objects are known.
    fn listed(&self) -> bool {
        self.schedule_listing.complete && self.run_listing.complete
    }

    /// Hands out keys while workers are free.
    fn start_jobs(&mut self, jobs: &mut JoinSet<(Key, Outcome)>) {
        if !self.listed() {
            return;
        }
        while jobs.len() < self.workers {
            let Some(key) = self.agenda.next(Instant::now(), self.syncer.now()) else { break };
            match self.look(&key) {
                None => self.agenda.done(&key),
                Some((runs, starting)) => {
                    let syncer = self.syncer.clone();
                    jobs.spawn(async move {
                        let outcome = syncer.sync(&key.0, &key.1, runs, starting).await;
                        (key, outcome)
                    });
                }
            }
        }
    }

    /// Decides on what is known whether a schedule needs work; then its Workflows, and the number of runs without one.
    fn look(&mut self, key: &Key) -> Option<(Vec<Run>, usize)> {
        let Some(seen) = self.schedules.get(key) else {
            self.unseen.remove(key);
            self.agenda.forget(key);
            return None;
        };
        let mut runs = Cow::Borrowed(self.runs.get(key).map_or(&[][..], Vec::as_slice));
        let mut starting = 0;
        if let Some(list) = self.unseen.get_mut(key) {
            list.retain(|unseen| unseen.until > Instant::now());
            for unseen in list {
                match &unseen.workflow {
                    Some(workflow) => runs.to_mut().push(workflow.clone()),
                    None => starting += 1,
                }
            }
        }
        let decision = reconcile(&seen.schedule, &runs, starting, self.syncer.now(), self.zone);
        let print = wanted(&decision);
        self.agenda.wake_at(key, decision.wake);
        let settled = decision.action == Action::Rest && (print == seen.observed || Some(print) == seen.written);
        (!settled).then(|| (runs.into_owned(), starting))
    }

    /// Takes in what a worker did. Events may have overtaken it, so nothing newer is replaced.
    fn finish(&mut self, key: &Key, outcome: Outcome) {
        if let Some(Started { run_id, workflow, .. }) = outcome.started {
            let known = |run: &Run| {
                (!run_id.is_empty() && run.run_id == run_id) || workflow.as_ref().is_some_and(|w| w.name == run.name)
            };
            if !self.runs.get(key).is_some_and(|runs| runs.iter().any(known)) {
                let unseen = Unseen { run_id, workflow, until: Instant::now() + UNSEEN };
                self.unseen.entry(key.clone()).or_default().push(unseen);
            }
        }
        match outcome.result {
            Ok(Some(seen)) => {
                if let Some(known) = self.schedules.get_mut(key) {
                    if known.version == seen.version {
                        known.written = seen.written;
                    } else if is_newer(&seen.version, &known.version) {
                        *known = seen;
                    }
                }
                self.agenda.done(key);
                // There may be more to catch up with.
                self.agenda.put(key);
            }
            // Deleted: the watch will say so.
            Ok(None) => {
                self.agenda.failed(key, Instant::now());
            }
            Err(_) => {
                let pause = self.agenda.failed(key, Instant::now());
                tracing::debug!(schedule = key.1, ?pause, "waiting before the next attempt");
            }
        }
    }

    fn schedule_event(&mut self, event: Watched<DynamicObject>) {
        let object = match event {
            Ok(Event::Init) => {
                self.schedule_listing.seen = Some(HashSet::new());
                return;
            }
            Ok(Event::InitApply(object)) => {
                if let Some(seen) = &mut self.schedule_listing.seen {
                    seen.insert(key_of(&object.metadata));
                }
                object
            }
            Ok(Event::InitDone) => {
                let seen = self.schedule_listing.seen.take().unwrap_or_default();
                self.schedule_listing.complete = true;
                let gone: Vec<Key> = self.schedules.keys().filter(|key| !seen.contains(*key)).cloned().collect();
                for key in gone {
                    self.drop_schedule(&key);
                }
                return;
            }
            Ok(Event::Apply(object)) if object.metadata.deletion_timestamp.is_none() => object,
            Ok(Event::Apply(object) | Event::Delete(object)) => {
                self.drop_schedule(&key_of(&object.metadata));
                return;
            }
            Err(error) => {
                tracing::warn!("watch of ScheduledWorkflows interrupted: {error}");
                return;
            }
        };
        let key = key_of(&object.metadata);
        let mut seen = Seen::read(&object);
        let known = self.schedules.get(&key);
        if let Some(known) = known
            && known.version == seen.version
        {
            seen.written = known.written;
        }
        let changed = known.is_none_or(|known| known.spec != seen.spec || known.schedule.uid != seen.schedule.uid);
        if changed && let Trigger::Broken(why) = &seen.schedule.timing.trigger {
            tracing::warn!(namespace = key.0, schedule = key.1, "never fires: {why}");
            let client = self.syncer.client().clone();
            let text = format!("Schedulde workflow synced failed: Permanent failure: {why}");
            tokio::spawn(async move {
                crate::events::publish(&client, &object, crate::events::Kind::Failed, text).await;
            });
        }
        let is_new = self.schedules.insert(key.clone(), seen).is_none();
        if is_new && self.schedule_listing.complete {
            self.agenda.put_later(&key, Instant::now() + SETTLE);
        } else if changed {
            self.agenda.put_fresh(&key);
        } else {
            self.agenda.put(&key);
        }
    }

    fn drop_schedule(&mut self, key: &Key) {
        self.schedules.remove(key);
        self.agenda.put(key);
    }

    fn run_event(&mut self, event: Watched<Workflow>) {
        match event {
            Ok(Event::Init) => self.run_listing.seen = Some(HashSet::new()),
            Ok(Event::InitApply(object)) => {
                if let Some(seen) = &mut self.run_listing.seen {
                    seen.insert(key_of(&object.metadata));
                }
                self.apply_run(&object);
            }
            Ok(Event::InitDone) => {
                let seen = self.run_listing.seen.take().unwrap_or_default();
                self.run_listing.complete = true;
                for (key, runs) in &mut self.runs {
                    let before = runs.len();
                    runs.retain(|run| seen.contains(&(run.namespace.clone(), run.name.clone())));
                    if runs.len() < before {
                        self.agenda.put(key);
                    }
                }
                self.runs.retain(|_, runs| !runs.is_empty());
            }
            Ok(Event::Apply(object)) => self.apply_run(&object),
            Ok(Event::Delete(object)) => {
                let Some(key) = schedule_of(&object.metadata) else { return };
                let run = Run::from(&object);
                self.is_seen(&key, &run);
                if let Some(runs) = self.runs.get_mut(&key) {
                    runs.retain(|known| known.name != run.name);
                    if runs.is_empty() {
                        self.runs.remove(&key);
                    }
                }
                self.agenda.put(&key);
            }
            Err(error) => tracing::warn!("watch of Workflows interrupted: {error}"),
        }
    }

    fn apply_run(&mut self, workflow: &Workflow) {
        if let Some(key) = schedule_of(&workflow.metadata) {
            self.put_run(&key, Run::from(workflow));
        }
    }

    fn is_seen(&mut self, key: &Key, run: &Run) {
        if let Some(list) = self.unseen.get_mut(key) {
            list.retain(|unseen| {
                unseen.run_id != run.run_id && unseen.workflow.as_ref().is_none_or(|w| w.name != run.name)
            });
            if list.is_empty() {
                self.unseen.remove(key);
            }
        }
    }

    /// Takes in a Workflow and lets its schedule be looked at when it changed.
    fn put_run(&mut self, key: &Key, run: Run) {
        self.is_seen(key, &run);
        let runs = self.runs.entry(key.clone()).or_default();
        match runs.binary_search_by(|known| known.name.cmp(&run.name)) {
            Ok(at) if runs[at] == run => return,
            Ok(at) => runs[at] = run,
            Err(at) => runs.insert(at, run),
        }
        if runs.iter().filter(|run| run.completed).count() > COMPLETED {
            let oldest = runs.iter().filter(|run| run.completed).map(|run| run.index).min();
            runs.retain(|run| !run.completed || Some(run.index) != oldest);
        }
        self.agenda.put(key);
    }
}

/// Whether a version of an object is newer; versions that are no numbers cannot be compared.
fn is_newer(version: &str, than: &str) -> bool {
    matches!((version.parse::<u64>(), than.parse::<u64>()), (Ok(version), Ok(than)) if version > than)
}

fn key_of(meta: &ObjectMeta) -> Key {
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The schedule that a Workflow belongs to: the one of its label in its own namespace.
fn schedule_of(meta: &ObjectMeta) -> Option<Key> {
    let name = meta.labels.as_ref()?.get(LABEL_SCHEDULE)?;
    Some((meta.namespace.clone().unwrap_or_default(), name.clone()))
}

/// The moment of a wall-clock second or, when that is far, one at which to compute it again: the clock may be changed.
fn instant_of(at: i64) -> Instant {
    let left = Duration::from_secs(u64::try_from(at).unwrap_or(0)).saturating_sub(clock::system());
    Instant::now() + left.min(LOOK)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
