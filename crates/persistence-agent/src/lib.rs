//! The persistence agent: watches Workflows and ScheduledWorkflows and reports their state to the API server.
//!
//! Upstream's agent polls its informer caches with rate-limited queues; this one reports each change at once, one report
//! at a time for each object, always its latest state.

mod object;
mod options;
pub mod queue;
mod report;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kfp_core::grpc::{Tls, channel};
use kfp_core::shutdown::CancellationToken;
use kube::api::{Api, ApiResource, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use tokio::task::JoinSet;

pub use object::Object;
pub use options::Options;
pub use report::{Kind, Reporter, Token};

use queue::{Outcome, Queue};

/// From how many failures in a row on a report is worth a warning.
const LOUD_FAILURES: u32 = 4;
/// Label that the API server puts on a workflow whose final state it has stored.
const FINAL_STATE: &str = "pipeline/persistedFinalState";
/// Label with the run that a workflow executes; workflows without it are none of ours.
const RUN_ID: &str = "pipeline/runid";

/// Why the agent stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable Kubernetes configuration.
    #[error("cannot configure the Kubernetes client: {0}")]
    Kubernetes(String),
    /// The API server's address or certificate is unusable.
    #[error("cannot use the API server's address: {0}")]
    Address(#[from] kfp_core::grpc::Error),
    /// The API server did not answer in time.
    #[error("the API server at {address} did not answer within {seconds} s; is it running and is the address right?")]
    NotReady {
        /// Host and port.
        address: String,
        /// How long the agent waited.
        seconds: u64,
    },
}

/// Runs until `shutdown` is cancelled; then finishes the reports under way.
///
/// # Errors
/// When the configuration is unusable or the API server does not answer within the initial timeout.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let Options {
        kubeconfig,
        client,
        namespace,
        log_level: _,
        initialize_timeout,
        api_host,
        api_grpc_port,
        tls,
        ca_cert_path,
        ttl_after_finish,
        workers,
        token_refresh,
        token_path,
    } = options;
    let client = match client {
        Some(client) => client,
        None => kube_client(&kubeconfig).await?,
    };
    let tls = if tls { Some(Tls::load(&ca_cert_path)?) } else { None };
    let channel = channel(&api_host, api_grpc_port, tls.as_ref())?;
    wait_until_open(&api_host, api_grpc_port, initialize_timeout, &shutdown).await?;
    let reporter = Reporter::new(channel, Token::new(token_path));
    let workflows = Subject {
        kind: Kind::Workflow,
        objects: Objects::new(&client, &namespace, ("argoproj.io", "v1alpha1", "Workflow", "workflows")),
        selector: Some(RUN_ID),
        ttl: ttl_after_finish,
    };
    let schedules = Subject {
        kind: Kind::ScheduledWorkflow,
        objects: Objects::new(
            &client,
            &namespace,
            ("kubeflow.org", "v1beta1", "ScheduledWorkflow", "scheduledworkflows"),
        ),
        selector: None,
        ttl: ttl_after_finish,
    };
    tracing::info!(namespace, api_host, api_grpc_port, "reporting Workflows and ScheduledWorkflows");
    tokio::join!(
        follow(workflows, reporter.clone(), workers, shutdown.clone()),
        follow(schedules, reporter.clone(), workers, shutdown.clone()),
        refresh(&reporter, token_refresh, &shutdown),
    );
    Ok(())
}

async fn kube_client(kubeconfig: &str) -> Result<kube::Client, Error> {
    let wrong = |error: &dyn std::fmt::Display| Error::Kubernetes(error.to_string());
    let config = if kubeconfig.is_empty() {
        kube::Config::infer().await.map_err(|e| wrong(&e))?
    } else {
        let file = kube::config::Kubeconfig::read_from(kubeconfig).map_err(|e| wrong(&e))?;
        let options = kube::config::KubeConfigOptions::default();
        kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|e| wrong(&e))?
    };
    kube::Client::try_from(config).map_err(|e| wrong(&e))
}

/// Objects of one kind in one namespace or, when that is empty, in all.
struct Objects {
    client: kube::Client,
    namespace: String,
    resource: ApiResource,
}

impl Objects {
    fn new(client: &kube::Client, namespace: &str, (group, version, kind, plural): (&str, &str, &str, &str)) -> Self {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        Self { client: client.clone(), namespace: namespace.to_owned(), resource }
    }

    fn watched(&self) -> Api<Object> {
        if self.namespace.is_empty() {
            Api::all_with(self.client.clone(), &self.resource)
        } else {
            Api::namespaced_with(self.client.clone(), &self.namespace, &self.resource)
        }
    }

    async fn get(&self, (namespace, name): &Key) -> Result<Option<Object>, kube::Error> {
        Api::<Object>::namespaced_with(self.client.clone(), namespace, &self.resource).get_opt(name).await
    }
}

/// Waits until the API server takes connections, as upstream waits for its health endpoint.
async fn wait_until_open(host: &str, port: u16, timeout: Duration, shutdown: &CancellationToken) -> Result<(), Error> {
    let opened = async {
        let mut pause = Duration::from_millis(50);
        while tokio::net::TcpStream::connect((host, port)).await.is_err() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        opened = tokio::time::timeout(timeout, opened) => opened
            .map_err(|_| Error::NotReady { address: format!("{host}:{port}"), seconds: timeout.as_secs() }),
    }
}

async fn refresh(reporter: &Reporter, every: Duration, shutdown: &CancellationToken) {
    let mut ticks = tokio::time::interval(every);
    while shutdown.run_until_cancelled(ticks.tick()).await.is_some() {
        reporter.refresh_token();
    }
}

struct Subject {
    kind: Kind,
    objects: Objects,
    selector: Option<&'static str>,
    ttl: Duration,
}

/// Namespace and name.
type Key = (String, String);

fn key(object: &Object) -> Key {
    let meta = &object.metadata;
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// What to do with an object that was seen.
#[derive(Debug, PartialEq, Eq)]
enum Plan {
    Report,
    /// Its final state is stored: report again after this time, so that the API server deletes it.
    ReportAfter(Duration),
    Ignore,
}

/// Decides about a Workflow at `now` (Unix seconds).
fn plan(object: &Object, ttl: Duration, now: i64) -> Plan {
    let labels = object.metadata.labels.as_ref();
    if labels.is_none_or(|l| !l.contains_key(RUN_ID)) {
        return Plan::Ignore;
    }
    if labels.is_none_or(|l| !l.contains_key(FINAL_STATE)) {
        return Plan::Report;
    }
    let finished = chrono::DateTime::parse_from_rfc3339(&object.finished_at).map_or(0, |t| t.timestamp());
    let ttl = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
    match u64::try_from(finished.saturating_add(ttl).saturating_sub(now)) {
        Ok(left) if left > 0 => Plan::ReportAfter(Duration::from_secs(left)),
        _ => Plan::Report,
    }
}

/// Watches one kind and reports it. Owns the queue; reports run beside it.
async fn follow(subject: Subject, reporter: Reporter, workers: usize, shutdown: CancellationToken) {
    let mut config = watcher::Config::default();
    if let Some(selector) = subject.selector {
        config = config.labels(selector);
    }
    let mut events = pin!(watcher(subject.objects.watched(), config).default_backoff());
    let mut queue: Queue<Key, Object> = Queue::default();
    let mut expiring: BinaryHeap<Reverse<(Instant, Key)>> = BinaryHeap::new();
    let mut reports: JoinSet<(Key, Object, Outcome)> = JoinSet::new();
    loop {
        let now = Instant::now();
        while reports.len() < workers {
            let Some((key, object)) = queue.next(now) else { break };
            let (reporter, kind) = (reporter.clone(), subject.kind);
            reports.spawn(async move {
                let outcome = reporter.report(kind, &object).await;
                (key, object, outcome)
            });
        }
        let wake = [queue.wake(), expiring.peek().map(|Reverse((at, _))| *at)].into_iter().flatten().min();
        let seen = tokio::select! {
            () = shutdown.cancelled() => break,
            Some(done) = reports.join_next() => {
                if let Ok((key, object, outcome)) = done {
                    let failures = queue.done(&key, object, outcome, Instant::now());
                    // The first few are ordinary: a report may overtake the creation of its run.
                    if failures >= LOUD_FAILURES {
                        tracing::warn!(kind = ?subject.kind, name = key.1, failures, "reports keep failing");
                    }
                }
                None
            }
            event = events.next() => match event {
                Some(Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object))) => Some(object),
                Some(Ok(_)) => None,
                Some(Err(error)) => {
                    tracing::warn!(kind = ?subject.kind, "watch interrupted: {error}");
                    None
                }
                None => break,
            },
            () = sleep_until(wake) => None,
        };
        if let Some(object) = seen {
            let plan = match subject.kind {
                Kind::Workflow => plan(&object, subject.ttl, chrono::Utc::now().timestamp()),
                Kind::ScheduledWorkflow => Plan::Report,
            };
            match plan {
                Plan::Report => queue.put(key(&object), object),
                Plan::ReportAfter(left) => expiring.push(Reverse((Instant::now() + left, key(&object)))),
                Plan::Ignore => {}
            }
        }
        while expiring.peek().is_some_and(|Reverse((at, _))| *at <= Instant::now()) {
            let Some(Reverse((_, key))) = expiring.pop() else { break };
            match subject.objects.get(&key).await {
                Ok(Some(object)) => queue.put(key, object),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(name = key.1, "cannot read an expired workflow: {error}");
                    expiring.push(Reverse((Instant::now() + Duration::from_secs(30), key)));
                }
            }
        }
    }
    while reports.join_next().await.is_some() {}
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workflow(labels: &[&str], finished: &str) -> Object {
        let labels: serde_json::Map<_, _> = labels.iter().map(|l| ((*l).to_owned(), "x".into())).collect();
        let json = serde_json::json!({
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
            "metadata": {"name": "w", "namespace": "n", "labels": labels},
            "status": {"finishedAt": finished},
        });
        serde_json::from_str(&json.to_string()).unwrap()
    }

    #[test]
    fn finished_workflow_is_reported_again_only_after_its_ttl() {
        let ttl = Duration::from_secs(100);
        let stored = workflow(&[RUN_ID, FINAL_STATE], "1970-01-01T00:01:00Z");
        assert_eq!(plan(&stored, ttl, 70), Plan::ReportAfter(Duration::from_secs(90)));
        assert_eq!(plan(&stored, ttl, 160), Plan::Report);
        assert_eq!(plan(&workflow(&[RUN_ID, FINAL_STATE], "nonsense"), ttl, 1_000), Plan::Report);
        assert_eq!(plan(&workflow(&[RUN_ID], ""), ttl, 70), Plan::Report);
        assert_eq!(plan(&workflow(&[FINAL_STATE], ""), ttl, 70), Plan::Ignore);
    }
}
