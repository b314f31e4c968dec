//! The agent between a Kubernetes API and a ReportService.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kfp_core::shutdown::CancellationToken;
use kfp_persistence_agent::{Options, run};
use kfp_proto::api::report_service_server::{ReportService, ReportServiceServer};
use kfp_proto::api::{ReportScheduledWorkflowRequest, ReportWorkflowRequest};
use kfp_test_cluster::proxy::{self, Phase, Rule, Step};
use kfp_test_cluster::{Kube, PATIENCE, schedules, workflows};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::transport::{Identity, Server as Grpc, ServerTlsConfig};
use tonic::{Code, Request, Response, Status};

/// Bytes of a large Workflow: etcd takes 1.5 MiB.
const LARGE: usize = 1_500_000;
const FINAL: &str = "pipeline/persistedFinalState";

/// How the server answers the next reports of an object.
type Answers = Mutex<HashMap<String, Vec<Code>>>;

#[derive(Default)]
struct Server {
    /// Reports that were taken in, by name.
    stored: Mutex<HashMap<String, Vec<Value>>>,
    tokens: Mutex<Vec<String>>,
    /// The one that is accepted, if it matters.
    token: Mutex<Option<String>>,
    answers: Answers,
    calls: AtomicUsize,
    running: Mutex<HashMap<String, usize>>,
    changed: Notify,
}

impl Server {
    async fn take(&self, token: Option<String>, json: &str) -> Result<Response<()>, Status> {
        let object: Value = serde_json::from_str(json).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.tokens.lock().unwrap().push(token.clone().unwrap_or_default());
        if self.token.lock().unwrap().as_ref().is_some_and(|want| token.as_ref() != Some(want)) {
            return Err(Status::unauthenticated("no"));
        }
        {
            let mut running = self.running.lock().unwrap();
            let running = running.entry(name.clone()).or_default();
            *running += 1;
            assert_eq!(*running, 1, "reports of one object do not overlap");
        }
        tokio::task::yield_now().await;
        let answer = self.answers.lock().unwrap().get_mut(&name).and_then(Vec::pop);
        *self.running.lock().unwrap().get_mut(&name).unwrap() -= 1;
        if let Some(code) = answer {
            self.changed.notify_one();
            return Err(Status::new(code, "as the test wants it"));
        }
        self.stored.lock().unwrap().entry(name).or_default().push(object);
        self.changed.notify_one();
        Ok(Response::new(()))
    }

    /// The last report of an object, once it is as `check` wants.
    async fn until(&self, name: &str, check: impl Fn(&Value) -> bool) -> Value {
        let waiting = async {
            loop {
                let last = self.stored.lock().unwrap().get(name).and_then(|all| all.last().cloned());
                if let Some(last) = last.filter(|last| check(last)) {
                    return last;
                }
                self.changed.notified().await;
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(report) => report,
            Err(_) => panic!("{name}: {:?}", self.stored.lock().unwrap().get(name)),
        }
    }
}

struct Shared(Arc<Server>);

fn token<T>(request: &Request<T>) -> Option<String> {
    Some(request.metadata().get("authorization")?.to_str().unwrap().to_owned())
}

#[tonic::async_trait]
impl ReportService for Shared {
    async fn report_workflow_v1(&self, request: Request<ReportWorkflowRequest>) -> Result<Response<()>, Status> {
        self.0.take(token(&request), &request.get_ref().workflow).await
    }

    async fn report_scheduled_workflow_v1(
        &self,
        request: Request<ReportScheduledWorkflowRequest>,
    ) -> Result<Response<()>, Status> {
        self.0.take(token(&request), &request.get_ref().scheduled_workflow).await
    }
}

struct World {
    kube: Kube,
    server: Arc<Server>,
    options: Options,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Serves reports until `stop`.
fn serve(
    server: &Arc<Server>,
    listener: tokio::net::TcpListener,
    tls: Option<ServerTlsConfig>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    let mut grpc = Grpc::builder();
    if let Some(tls) = tls {
        grpc = grpc.tls_config(tls).unwrap();
    }
    let service = ReportServiceServer::new(Shared(server.clone())).max_decoding_message_size(usize::MAX);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let serving = grpc.add_service(service).serve_with_incoming_shutdown(incoming, stop.cancelled_owned());
    tokio::spawn(async move { serving.await.unwrap() })
}

async fn world() -> World {
    world_with(None).await
}

async fn world_with(tls: Option<ServerTlsConfig>) -> World {
    let kube = Kube::start().await;
    let (server, stop) = (Arc::new(Server::default()), CancellationToken::new());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    serve(&server, listener, tls, stop.clone());
    let words = ["--namespace", &kube.namespace, "--mlPipelineAPIServerName", "localhost"];
    let Ok(mut options) = Options::parse(words.map(str::to_owned)) else { panic!("options") };
    options.api_grpc_port = port;
    options.client = Some(kube.client.clone());
    let dir = tempfile::tempdir().unwrap();
    options.token_path = dir.path().join("token");
    World { kube, server, options, stop, dir }
}

impl World {
    fn agent(&self) -> JoinHandle<()> {
        let (options, stop) = (self.options.clone(), self.stop.clone());
        tokio::spawn(async move { run(options, stop).await.unwrap() })
    }

    async fn workflow(&self, name: &str) {
        let object = json!({"metadata": {"name": name, "labels": {"pipeline/runid": format!("run-{name}")}},
            "spec": {"entrypoint": "main"}, "status": {"phase": "Running"}});
        self.kube.create(&workflows(), object).await;
    }

    async fn phase(&self, name: &str, phase: &str) {
        self.kube
            .merge(&workflows(), name, json!({"status": {"phase": phase, "finishedAt": "2020-01-01T00:00:00Z"}}))
            .await;
    }

    async fn mark(&self, name: &str) {
        self.kube.merge(&workflows(), name, json!({"metadata": {"labels": {FINAL: "true"}}})).await;
    }

    fn reports(&self, name: &str) -> Vec<Value> {
        self.server.stored.lock().unwrap().get(name).cloned().unwrap_or_default()
    }
}

fn phase(object: &Value) -> &str {
    object.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default()
}

fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

/// Reports of an object follow its history: the last state always arrives, an older one never comes after a newer one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_reported_in_order() {
    let world = world().await;
    world.workflow("w").await;
    world.kube.create(&workflows(), json!({"metadata": {"name": "other"}, "spec": {}})).await;
    world.agent();
    world.server.until("w", |w| phase(w) == "Running").await;
    for n in 0..50 {
        world.kube.merge(&workflows(), "w", json!({"status": {"progress": format!("{n}/50")}})).await;
    }
    world.phase("w", "Succeeded").await;
    let last = world.server.until("w", |w| phase(w) == "Succeeded").await;
    let object = world.kube.get(&workflows(), "w").await;
    assert_eq!(last["status"], object["status"]);
    let versions: Vec<u64> = world.reports("w").iter().map(version).collect();
    assert!(versions.is_sorted(), "{versions:?}");
    assert!(world.reports("other").is_empty(), "Workflows without a run are none of ours");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schedules_are_reported_in_the_version_that_tells_their_parameters() {
    let world = world().await;
    for (name, value) in [("v2", "\"x\""), ("v1", "x y")] {
        let spec = json!({"workflow": {"parameters": [{"name": "p", "value": value}]}});
        world.kube.create(&schedules(), json!({"metadata": {"name": name}, "spec": spec, "status": {}})).await;
    }
    world.agent();
    for name in ["v1", "v2"] {
        let report = world.server.until(name, |_| true).await;
        assert_eq!(report["apiVersion"], format!("kubeflow.org/{name}beta1"));
    }
}

/// Transient answers are repeated until the report is stored; permanent ones are not, until the object changes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codes_decide_about_repetition() {
    let world = world().await;
    let transient = vec![Code::Internal, Code::Unavailable, Code::Unknown, Code::DeadlineExceeded, Code::Aborted];
    for (name, codes) in
        [("transient", transient), ("invalid", vec![Code::InvalidArgument]), ("missing", vec![Code::NotFound])]
    {
        world.server.answers.lock().unwrap().insert(name.to_owned(), codes);
        world.workflow(name).await;
    }
    world.agent();
    world.server.until("transient", |_| true).await;
    assert_eq!(world.reports("transient").len(), 1);
    for name in ["invalid", "missing"] {
        world.phase(name, "Failed").await;
        world.server.until(name, |w| phase(w) == "Failed").await;
        // Nothing was stored in between: the refused state was not sent again.
        assert_eq!(world.reports(name).len(), 1, "{name}");
    }
}

/// A stored final state is not reported again before the TTL has passed; then it is, so that the API server deletes it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_workflows_are_reported_for_deletion() {
    let mut world = world().await;
    world.options.ttl_after_finish = Duration::from_secs(3600);
    let recent = (chrono::Utc::now() - chrono::TimeDelta::seconds(60)).to_rfc3339();
    for (name, end) in [("old", "2020-01-01T00:00:00Z"), ("young", recent.as_str())] {
        world.workflow(name).await;
        let done =
            json!({"metadata": {"labels": {FINAL: "true"}}, "status": {"phase": "Succeeded", "finishedAt": end}});
        world.kube.merge(&workflows(), name, done).await;
    }
    // Times count from the end, but nothing can have ended before it was created: the agent looks an hour later.
    world.workflow("live").await;
    let agent = world.agent();
    world.server.until("live", |_| true).await;
    assert!(world.reports("old").is_empty() && world.reports("young").is_empty());
    agent.abort();
    drop(agent.await);
    world.options.ttl_after_finish = Duration::ZERO;
    world.agent();
    for name in ["old", "young"] {
        world.server.until(name, |w| w["metadata"]["labels"][FINAL] == "true").await;
    }
}

/// A Workflow that somebody deletes ends its run; one that leaves because its final state is stored does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_workflow_ends_its_run() {
    let world = world().await;
    for name in ["deleted", "ended", "marked", "again"] {
        world.workflow(name).await;
    }
    let agent = world.agent();
    for name in ["deleted", "ended", "marked", "again"] {
        world.server.until(name, |w| phase(w) == "Running").await;
    }
    world.mark("marked").await;
    world.kube.delete(&workflows(), "deleted").await;
    let last = world.server.until("deleted", |w| phase(w) != "Running").await;
    assert_eq!(phase(&last), "Error");
    assert!(last["status"]["message"].as_str().unwrap().contains("deleted"), "{last}");
    assert_eq!(last["metadata"]["labels"]["pipeline/runid"], "run-deleted");
    // One that had ended when it was deleted ends as it did.
    world.server.answers.lock().unwrap().insert("ended".to_owned(), vec![Code::Unavailable; 3]);
    world.phase("ended", "Succeeded").await;
    world.kube.delete(&workflows(), "ended").await;
    let last = world.server.until("ended", |w| phase(w) != "Running").await;
    assert_eq!(phase(&last), "Succeeded");
    // A retry that makes the Workflow anew is followed and not ended.
    world.kube.delete(&workflows(), "again").await;
    world.workflow("again").await;
    world.phase("again", "Succeeded").await;
    world.server.until("again", |w| phase(w) == "Succeeded").await;
    assert_eq!(phase(world.reports("marked").last().unwrap()), "Running", "nothing was made up");
    agent.abort();
}

/// A renewed token is used at once, and a rejected one is read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_follows_its_file() {
    let world = world().await;
    std::fs::write(&world.options.token_path, "one\n").unwrap();
    *world.server.token.lock().unwrap() = Some("Bearer one".to_owned());
    world.workflow("a").await;
    world.agent();
    world.server.until("a", |_| true).await;
    *world.server.token.lock().unwrap() = Some("Bearer two".to_owned());
    std::fs::write(world.dir.path().join("new"), "two\n").unwrap();
    std::fs::rename(world.dir.path().join("new"), &world.options.token_path).unwrap();
    world.workflow("b").await;
    world.server.until("b", |_| true).await;
    assert_eq!(*world.server.tokens.lock().unwrap(), ["Bearer one", "Bearer two"], "no attempt with the old one");
    // The file is late: the report waits for it.
    *world.server.token.lock().unwrap() = Some("Bearer three".to_owned());
    world.workflow("c").await;
    let rejected = async {
        while world.server.tokens.lock().unwrap().len() < 4 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, rejected).await.unwrap();
    std::fs::write(&world.options.token_path, "three").unwrap();
    world.server.until("c", |_| true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reports_travel_over_tls() {
    let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (certified.cert.pem(), certified.signing_key.serialize_pem());
    let mut world = world_with(Some(ServerTlsConfig::new().identity(Identity::from_pem(&cert, &key)))).await;
    world.options.tls = true;
    world.options.ca_cert_path = world.dir.path().join("ca.pem").to_string_lossy().into_owned();
    std::fs::write(&world.options.ca_cert_path, &cert).unwrap();
    world.workflow("w").await;
    world.agent();
    world.server.until("w", |_| true).await;
}

/// The APIs fail for a while in several ways; afterwards everything is reported, and nobody knocks without pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_apis_are_waited_for() {
    for code in [500, 429, 503] {
        let mut world = world().await;
        let calls = Arc::new(AtomicUsize::new(0));
        let rule: Rule = {
            let calls = calls.clone();
            Arc::new(move |phase, _| match phase {
                Phase::Before if calls.fetch_add(1, Ordering::SeqCst) < 6 => Step::Refuse(code),
                _ => Step::Pass,
            })
        };
        let proxy = proxy::start(&world.kube, rule).await;
        let config = kube::config::Kubeconfig::from_yaml(&proxy.kubeconfig).unwrap();
        world.options.client = Some(kfp_test_cluster::client(config).await);
        for n in 0..20 {
            world.server.answers.lock().unwrap().insert(format!("w{n}"), vec![Code::Unavailable; n % 5]);
            world.workflow(&format!("w{n}")).await;
        }
        world.agent();
        for n in 0..20 {
            world.server.until(&format!("w{n}"), |_| true).await;
        }
        let (kube, reports) = (calls.load(Ordering::SeqCst), world.server.calls.load(Ordering::SeqCst));
        assert!(kube < 60 && reports <= 20 + 40, "{kube} calls, {reports} reports");
    }
}

/// Watches that have expired begin anew, without missing a deletion, and not again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_watches_begin_anew() {
    let mut world = world().await;
    let (watches, lists) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let rule: Rule = {
        let (watches, lists) = (watches.clone(), lists.clone());
        Arc::new(move |phase, parts| match phase {
            Phase::Before if proxy::is_watch(parts) && watches.fetch_add(1, Ordering::SeqCst) < 6 => Step::Expire,
            Phase::Before if !proxy::is_watch(parts) => {
                lists.fetch_add(1, Ordering::SeqCst);
                Step::Pass
            }
            _ => Step::Pass,
        })
    };
    let proxy = proxy::start(&world.kube, rule).await;
    let config = kube::config::Kubeconfig::from_yaml(&proxy.kubeconfig).unwrap();
    world.options.client = Some(kfp_test_cluster::client(config).await);
    for name in ["stays", "goes"] {
        world.workflow(name).await;
    }
    world.agent();
    world.server.until("goes", |w| phase(w) == "Running").await;
    world.kube.delete(&workflows(), "goes").await;
    world.phase("stays", "Succeeded").await;
    world.server.until("goes", |w| phase(w) == "Error").await;
    world.server.until("stays", |w| phase(w) == "Succeeded").await;
    let lists = lists.load(Ordering::SeqCst);
    assert!(lists < 30, "{lists} lists and reads");
}

/// The server goes away and comes back: what changed meanwhile is reported then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_that_was_away_hears_everything() {
    let mut world = world().await;
    let away = CancellationToken::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    world.options.api_grpc_port = address.port();
    let first = serve(&world.server, listener, None, away.clone());
    world.workflow("before").await;
    world.agent();
    world.server.until("before", |_| true).await;
    away.cancel();
    first.await.unwrap();
    for n in 0..20 {
        world.workflow(&format!("w{n}")).await;
    }
    world.phase("before", "Succeeded").await;
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    serve(&world.server, listener, None, world.stop.clone());
    for n in 0..20 {
        world.server.until(&format!("w{n}"), |_| true).await;
    }
    world.server.until("before", |w| phase(w) == "Succeeded").await;
}

/// Large and strange objects pass like any other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_strange_workflows_are_reported() {
    let world = world().await;
    let labels = json!({"pipeline/runid": "r"});
    let nodes = json!({"n": {"message": "x".repeat(LARGE)}});
    for (name, status) in [("large", json!({"phase": "Running", "nodes": nodes})), ("strange", json!({"phase": 5}))] {
        let object = json!({"metadata": {"name": name, "labels": labels}, "spec": {}, "status": status});
        world.kube.create(&workflows(), object).await;
    }
    world.agent();
    for name in ["large", "strange"] {
        let report = world.server.until(name, |_| true).await;
        assert_eq!(report["status"], world.kube.get(&workflows(), name).await["status"]);
    }
}

/// The lag from change to stored state can be scraped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lag_is_a_metric() {
    let mut world = world().await;
    // A port that is free now.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    world.options.metrics_port = port.to_string();
    world.workflow("w").await;
    world.agent();
    world.server.until("w", |_| true).await;
    let scrape = || async {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    };
    let counted = "persistence_agent_report_lag_seconds_count{kind=\"workflow\"} 1";
    let waiting = async {
        // The report is counted when its answer has come back.
        while !scrape().await.contains(counted) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    let text = scrape().await;
    assert!(text.contains("persistence_agent_reports_total{kind=\"workflow\",outcome=\"stored\"} 1"), "{text}");
}
