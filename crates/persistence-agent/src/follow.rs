//! The loop for one kind of object: watches, queue and reports.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::BoxStream;
use kfp_core::shutdown::CancellationToken;
use kube::api::{Api, ApiResource, GroupVersionKind, ListParams, ObjectMeta, PartialObjectMeta};
use kube::runtime::watcher::{self, Config, Event};
use kube::runtime::{WatchStreamExt as _, watcher as watch};
use tokio::task::JoinSet;

use crate::metrics::Metrics;
use crate::object::{FINAL_STATE, Key, Object, RUN_ID, State, key, obituary, schedule};
use crate::queue::{Job, Outcome, Queue};
use crate::report::{Kind, Reporter};
use crate::timers::Timers;

/// From how many failures in a row on a report is worth a warning.
const LOUD_FAILURES: u32 = 4;
/// Bytes of unreported states from which on the agent takes no more from its watch.
const ROOM: usize = 16 << 20;
/// Objects in one page of a list: bounds the memory that a start takes.
const PAGE: u32 = 50;
/// Pause before an object is looked at again that could not be read.
const RETRY: i64 = 30;
/// Deadline of a call to Kubernetes.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Objects of one kind in one namespace or, when that is empty, in all.
#[derive(Clone)]
pub struct Objects {
    client: kube::Client,
    namespace: String,
    resource: ApiResource,
}

impl Objects {
    /// Objects of `kind` that `client` sees in `namespace`.
    pub fn new(client: &kube::Client, namespace: &str, kind: Kind) -> Self {
        let (gvk, plural) = match kind {
            Kind::Workflow => (GroupVersionKind::gvk("argoproj.io", "v1alpha1", "Workflow"), "workflows"),
            Kind::ScheduledWorkflow => {
                (GroupVersionKind::gvk("kubeflow.org", "v1beta1", "ScheduledWorkflow"), "scheduledworkflows")
            }
        };
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        Self { client: client.clone(), namespace: namespace.to_owned(), resource }
    }

    fn watched<K>(&self) -> Api<K>
    where
        K: kube::Resource<DynamicType = ApiResource, Scope = kube::core::DynamicResourceScope>,
    {
        if self.namespace.is_empty() {
            Api::all_with(self.client.clone(), &self.resource)
        } else {
            Api::namespaced_with(self.client.clone(), &self.namespace, &self.resource)
        }
    }

    fn of(&self, namespace: &str) -> Api<Object> {
        Api::namespaced_with(self.client.clone(), namespace, &self.resource)
    }

    async fn get(&self, (namespace, name): &Key) -> Result<Option<Object>, String> {
        within(self.of(namespace).get_opt(name)).await
    }

    /// A Workflow of the run, if there is one.
    async fn of_run(&self, namespace: &str, run_id: &str) -> Result<Option<Object>, String> {
        let params = ListParams::default().labels(&format!("{RUN_ID}={run_id}")).limit(1);
        Ok(within(self.of(namespace).list(&params)).await?.items.into_iter().next())
    }
}

async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("Kubernetes does not answer".to_owned()),
    }
}

/// What to do with a Workflow whose final state is stored.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    /// Report it again, so that the API server deletes it.
    Report,
    /// Look at it at this time, Unix seconds.
    Wait(i64),
}

/// Decides about a Workflow with a stored final state at `now` (Unix seconds); a missing end counts as long ago.
fn plan(finished_at: &str, ttl: i64, now: i64) -> Plan {
    let finished = chrono::DateTime::parse_from_rfc3339(finished_at).map_or(0, |t| t.timestamp());
    match finished.saturating_add(ttl) {
        at if at > now => Plan::Wait(at),
        _ => Plan::Report,
    }
}

fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

fn has(meta: &ObjectMeta, label: &str) -> bool {
    meta.labels.as_ref().is_some_and(|labels| labels.contains_key(label))
}

/// Work on one object.
#[derive(Clone)]
struct Worker {
    kind: Kind,
    objects: Objects,
    reporter: Reporter,
}

impl Worker {
    /// Makes one report; the answer is what is to be reported again if it failed.
    async fn work(self, key: Key, state: Option<State>, run_id: Option<String>) -> (Key, Option<State>, Outcome) {
        match self.settle(&key, state, run_id).await {
            Ok((state, json)) => {
                let outcome = match json {
                    Some(json) => self.reporter.report(self.kind, &key.1, json).await,
                    None => Outcome::Stored,
                };
                (key, state, outcome)
            }
            Err((state, error)) => {
                tracing::debug!(kind = ?self.kind, name = key.1, "will be read again: {error}");
                (key, state, Outcome::Retry)
            }
        }
    }

    /// What to send, if anything.
    async fn settle(
        &self,
        key: &Key,
        state: Option<State>,
        run_id: Option<String>,
    ) -> Result<(Option<State>, Option<String>), (Option<State>, String)> {
        let state = match state {
            Some(state) => state,
            None => match self.objects.get(key).await {
                Ok(Some(object)) => State::Is(object),
                Ok(None) => match run_id {
                    Some(run_id) => State::Gone { last: None, run_id },
                    None => return Ok((None, None)),
                },
                Err(error) => return Err((None, error)),
            },
        };
        let json = match &state {
            State::Is(object) if self.kind == Kind::ScheduledWorkflow => schedule(&object.fields.json),
            State::Is(object) => object.fields.json.get().to_owned(),
            State::Gone { last, run_id } => match self.objects.of_run(&key.0, run_id).await {
                // It has left the watch because its final state is stored, or a retry made it anew.
                Ok(Some(_)) => return Ok((None, None)),
                Ok(None) => {
                    let end = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                    tracing::warn!(
                        workflow = key.1,
                        run = run_id,
                        "the Workflow is gone before its final state was stored"
                    );
                    obituary(key, last.as_ref(), run_id, &end)
                }
                Err(error) => return Err((Some(state), error)),
            },
        };
        Ok((Some(state), Some(json)))
    }
}

/// Watches one kind and reports it.
pub struct Follower {
    worker: Worker,
    workers: usize,
    ttl: i64,
    metrics: Metrics,
    queue: Queue<Key, State>,
    /// Workflows whose final state is not stored, with their runs.
    live: HashMap<Key, String>,
    /// Workflows that are gone and whose end is not reported yet, with their runs.
    ending: HashMap<Key, String>,
    /// The live ones that a list which is under way has not shown yet.
    unlisted: HashMap<Key, String>,
    /// When to look at the ones whose final state is stored, Unix seconds.
    expiring: Timers<Key, i64>,
}

type Live = BoxStream<'static, watcher::Result<Event<Object>>>;
type Ended = BoxStream<'static, watcher::Result<Event<PartialObjectMeta<Object>>>>;

impl Follower {
    /// A follower with so many reports in flight; Workflows are reported for deletion after `ttl`.
    pub fn new(
        objects: Objects,
        kind: Kind,
        reporter: Reporter,
        workers: usize,
        ttl: Duration,
        metrics: Metrics,
    ) -> Self {
        Self {
            worker: Worker { kind, objects, reporter },
            workers,
            ttl: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX),
            metrics,
            queue: Queue::new(ROOM),
            live: HashMap::new(),
            ending: HashMap::new(),
            unlisted: HashMap::new(),
            expiring: Timers::default(),
        }
    }

    fn watches(&self) -> (Live, Ended) {
        let config = Config::default().page_size(PAGE);
        let objects = &self.worker.objects;
        match self.worker.kind {
            Kind::ScheduledWorkflow => {
                (watch(objects.watched(), config).default_backoff().boxed(), futures::stream::pending().boxed())
            }
            Kind::Workflow => {
                let live = config.clone().labels(&format!("{RUN_ID},!{FINAL_STATE}"));
                // Only their metadata: nothing is reported of these until they have expired.
                let ended = config.labels(&format!("{RUN_ID},{FINAL_STATE}"));
                (
                    watch(objects.watched(), live).default_backoff().boxed(),
                    watch(objects.watched(), ended).default_backoff().boxed(),
                )
            }
        }
    }

    /// Works until `shutdown` is cancelled; then finishes the reports under way.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let (mut live, mut ended) = self.watches();
        let mut reports: JoinSet<(Key, Option<State>, Outcome)> = JoinSet::new();
        // One at a time, beside the reports: thousands may expire at once.
        let mut reads: JoinSet<(Key, Result<Option<Object>, String>)> = JoinSet::new();
        loop {
            while reports.len() < self.workers {
                let Some(Job { key, state }) = self.queue.next(Instant::now()) else { break };
                let run_id = self.live.get(&key).or_else(|| self.ending.get(&key)).cloned();
                reports.spawn(self.worker.clone().work(key, state, run_id));
            }
            if reads.is_empty()
                && !self.queue.is_full()
                && let Some(key) = self.expiring.due(now())
            {
                let objects = self.worker.objects.clone();
                reads.spawn(async move {
                    let read = objects.get(&key).await;
                    (key, read)
                });
            }
            self.metrics.waiting(self.worker.kind, self.queue.len());
            let (retry, expiry) = (self.queue.wake(), self.expiring.first());
            tokio::select! {
                () = shutdown.cancelled() => break,
                Some(done) = reports.join_next() => match done {
                    Ok((key, state, outcome)) => self.reported(&key, state, outcome),
                    Err(error) => tracing::error!("a report stopped: {error}"),
                },
                Some(event) = live.next(), if !self.queue.is_full() => self.live_event(event),
                Some(event) = ended.next() => self.ended_event(event),
                () = sleep_until(retry), if reports.len() < self.workers => {}
                Some(read) = reads.join_next() => match read {
                    Ok((key, read)) => self.expired(key, read),
                    Err(error) => tracing::error!("a look-up stopped: {error}"),
                },
                () = sleep_until_time(expiry), if reads.is_empty() && !self.queue.is_full() => {}
            }
        }
        while reports.join_next().await.is_some() {}
    }

    fn reported(&mut self, key: &Key, state: Option<State>, outcome: Outcome) {
        let done = self.queue.done(key, state, outcome, Instant::now());
        if !self.queue.has(key) {
            self.ending.remove(key);
        }
        self.metrics.reported(self.worker.kind, outcome, &done);
        // The first few are ordinary: a report may overtake the creation of its run.
        if done.failures >= LOUD_FAILURES {
            tracing::warn!(kind = ?self.worker.kind, name = key.1, failures = done.failures, "reports keep failing");
        }
    }

    fn live_event(&mut self, event: watcher::Result<Event<Object>>) {
        match event {
            Ok(Event::Init) => self.unlisted = self.live.clone(),
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                let key = key(&object.metadata);
                if self.worker.kind == Kind::Workflow {
                    let Some(run_id) = object.metadata.labels.as_ref().and_then(|labels| labels.get(RUN_ID)) else {
                        return;
                    };
                    self.unlisted.remove(&key);
                    self.live.insert(key.clone(), run_id.clone());
                }
                self.queue.put(key, State::Is(object), Instant::now());
            }
            Ok(Event::InitDone) => {
                for (key, run_id) in std::mem::take(&mut self.unlisted) {
                    self.gone(key, None, run_id);
                }
            }
            Ok(Event::Delete(object)) => {
                let key = key(&object.metadata);
                if let Some(run_id) = self.live.get(&key).cloned() {
                    self.gone(key, Some(object), run_id);
                }
            }
            Err(error) => tracing::warn!(kind = ?self.worker.kind, "watch interrupted: {error}"),
        }
    }

    /// A Workflow left the watch of the live ones: it was deleted, or its final state is stored.
    fn gone(&mut self, key: Key, last: Option<Object>, run_id: String) {
        self.live.remove(&key);
        if !self.expiring.has(&key) {
            self.ending.insert(key.clone(), run_id.clone());
            self.queue.put(key, State::Gone { last, run_id }, Instant::now());
        }
    }

    fn ended_event(&mut self, event: watcher::Result<Event<PartialObjectMeta<Object>>>) {
        match event {
            Ok(Event::InitApply(object) | Event::Apply(object)) => {
                let key = key(&object.metadata);
                // The earliest time: it ended some time after its creation.
                let created = object.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
                if !self.expiring.has(&key) {
                    self.expiring.set(key, created.saturating_add(self.ttl));
                }
            }
            Ok(Event::Delete(object)) => self.expiring.drop(&key(&object.metadata)),
            Ok(Event::Init | Event::InitDone) => {}
            Err(error) => tracing::warn!(kind = ?self.worker.kind, "watch interrupted: {error}"),
        }
    }

    /// Decides about a Workflow that may have expired.
    fn expired(&mut self, key: Key, read: Result<Option<Object>, String>) {
        match read {
            Ok(Some(object)) if has(&object.metadata, FINAL_STATE) => {
                match plan(&object.fields.finished_at, self.ttl, now()) {
                    Plan::Report => self.queue.put(key, State::Is(object), Instant::now()),
                    Plan::Wait(at) => self.expiring.set(key, at),
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(name = key.1, "cannot read an expired workflow: {error}");
                self.expiring.set(key, now() + RETRY);
            }
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// Sleeps until a time of the wall clock, but not for long: the clock may be changed.
async fn sleep_until_time(at: Option<i64>) {
    match at {
        Some(at) => {
            let left = u64::try_from(at.saturating_sub(now())).unwrap_or(0);
            tokio::time::sleep(Duration::from_secs(left).min(Duration::from_secs(10))).await;
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_workflow_is_reported_again_only_after_its_ttl() {
        let end = "1970-01-01T00:01:00Z";
        assert_eq!(plan(end, 100, 70), Plan::Wait(160));
        assert_eq!(plan(end, 100, 160), Plan::Report);
        assert_eq!(plan("nonsense", 100, 1_000), Plan::Report);
        assert_eq!(plan(end, i64::MAX, 1_000), Plan::Wait(i64::MAX));
    }
}
