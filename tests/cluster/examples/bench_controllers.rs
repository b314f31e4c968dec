//! How the two controllers do with many objects: `bench_controllers CONTROLLER AGENT [OBJECTS]`.
//!
//! Both run as processes of their own against the embedded Kubernetes API and an API server that takes everything at once.
//! Of the schedules a tenth is due in the same second, half of them with an embedded Workflow and half through the API
//! server; each Workflow is updated five times at 200 updates a second.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt as _;
use kfp_proto::api::report_service_server::{ReportService, ReportServiceServer};
use kfp_proto::api::{ReportScheduledWorkflowRequest, ReportWorkflowRequest};
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use kfp_test_cluster::{Change, Kube, schedules, workflows};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tonic::{Request, Response, Status};
use v2::run_service_server::{RunService, RunServiceServer};

const UPDATES: usize = 5;
const RATE: u64 = 200;
/// Objects that are created at the same time.
const WIDE: usize = 32;

#[derive(Default)]
struct Server {
    /// When runs were asked for.
    runs: Mutex<Vec<f64>>,
    /// Workflows whose first state was reported.
    first: AtomicUsize,
    /// Seconds from an update to its report.
    lags: Mutex<Vec<f64>>,
    /// Workflows whose last update was reported.
    last: AtomicUsize,
}

struct Shared(Arc<Server>);

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[tonic::async_trait]
impl RunService for Shared {
    async fn create_run(&self, request: Request<v2::CreateRunRequest>) -> Result<Response<v2::Run>, Status> {
        self.0.runs.lock().unwrap().push(now());
        let mut run = request.into_inner().run.unwrap_or_default();
        run.run_id.clone_from(&run.display_name);
        Ok(Response::new(run))
    }
}

#[tonic::async_trait]
impl ReportService for Shared {
    async fn report_workflow_v1(&self, request: Request<ReportWorkflowRequest>) -> Result<Response<()>, Status> {
        let object: Value = serde_json::from_str(&request.get_ref().workflow).unwrap();
        let update = &object["status"]["update"];
        match update["number"].as_u64() {
            None => drop(self.0.first.fetch_add(1, Ordering::SeqCst)),
            Some(number) => {
                self.0.lags.lock().unwrap().push(now() - update["at"].as_f64().unwrap());
                if number == UPDATES as u64 {
                    self.0.last.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
        Ok(Response::new(()))
    }

    async fn report_scheduled_workflow_v1(
        &self,
        _: Request<ReportScheduledWorkflowRequest>,
    ) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

/// A controller, ended with this value.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Program {
    fn start(path: &str, kubeconfig: &std::path::Path, namespace: &str, port: u16) -> Self {
        let child = Command::new(path)
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args([
                "--namespace",
                namespace,
                "--mlPipelineAPIServerName=127.0.0.1",
                "--metricsPort=",
                "--logLevel=warn",
            ])
            // As our manifests set them.
            .args(["--clientQPS=300", "--clientBurst=600", &format!("--mlPipelineServiceGRPCPort={port}")])
            .env("CRON_SCHEDULE_TIMEZONE", "UTC")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// The most memory that it had, MiB.
    fn peak(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    }
}

async fn poll(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..6000 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: not within ten minutes");
}

fn pipeline() -> Value {
    let templates: Vec<Value> = (0..8)
        .map(|n| json!({"name": format!("step-{n}"), "container": {"image": "busybox", "args": ["x".repeat(200)]}}))
        .collect();
    json!({"entrypoint": "step-0", "templates": templates})
}

async fn many(objects: impl Iterator<Item = (kube::api::ApiResource, Value)>, kube: &Kube) {
    let created = futures::stream::iter(objects).for_each_concurrent(WIDE, |(resource, object)| async move {
        kube.create(&resource, object).await;
    });
    created.await;
}

fn row(what: &str, value: String, aim: &str) {
    println!("{what:<58}{value:>12}{aim:>14}");
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [controller, agent, rest @ ..] = words.as_slice() else { panic!("usage: CONTROLLER AGENT [OBJECTS]") };
    let count: usize = rest.first().map_or(10_000, |text| text.parse().unwrap());
    let server = Arc::new(Server::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let services = tonic::transport::Server::builder()
        .add_service(RunServiceServer::new(Shared(server.clone())))
        .add_service(ReportServiceServer::new(Shared(server.clone())));
    tokio::spawn(services.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    row("", "measured".into(), "aim");
    bench_schedules(controller, count, &server, port).await;
    bench_reports(agent, count, &server, port).await;
}

async fn home(dir: &tempfile::TempDir) -> (Kube, std::path::PathBuf) {
    let kube = Kube::embedded().await;
    let path = dir.path().join("kubeconfig");
    std::fs::write(&path, serde_norway::to_string(&kube.config).unwrap()).unwrap();
    (kube, path)
}

async fn bench_schedules(program: &str, count: usize, server: &Server, port: u16) {
    let dir = tempfile::tempdir().unwrap();
    let (kube, kubeconfig) = home(&dir).await;
    let due = count / 10;
    let object = |n: usize, cron: &str, embedded: bool| {
        let workflow = if embedded { json!({"spec": pipeline()}) } else { json!({"parameters": []}) };
        let spec = json!({"enabled": true, "trigger": {"cronSchedule": {"cron": cron}}, "workflow": workflow});
        (schedules(), json!({"metadata": {"name": format!("s{n}")}, "spec": spec, "status": {}}))
    };
    many((due..count).map(|n| object(n, "0 0 0 1 1 *", n % 2 == 0)), &kube).await;
    let began = now();
    let program = Program::start(program, &kubeconfig, &kube.namespace, port);
    let known = async |wanted: usize| {
        let listed = kube.list(&schedules()).await;
        listed.iter().filter(|s| !s["status"]["conditions"].is_null()).count() == wanted
    };
    poll("the status of all schedules", || known(count - due)).await;
    row(
        &format!("start with {} schedules, status written for each", count - due),
        format!("{:.1} s", now() - began),
        "",
    );
    // Created late, so that the due second is known: it comes when all of them are there.
    let at = (now() + 20.0 + count as f64 / 400.0).floor();
    let time = chrono::DateTime::from_timestamp(at as i64, 0).unwrap();
    let cron = time.format("%-S %-M %-H %-d %-m *").to_string();
    let mut changes = kube.changes(&workflows());
    many((0..due).map(|n| object(n, &cron, n % 2 == 0)), &kube).await;
    poll("the status of all schedules", || known(count)).await;
    assert!(now() < at, "creating the schedules took too long");
    let mut created = Vec::new();
    let waiting = async {
        while created.len() < due / 2 {
            if let Some(Change::Added(_)) = changes.next().await {
                created.push(now() - at);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(300), waiting).await.expect("all Workflows are created in time");
    poll("all runs", async || server.runs.lock().unwrap().len() == due - due / 2).await;
    let last = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
    let asked: Vec<f64> = server.runs.lock().unwrap().iter().map(|time| time - at).collect();
    assert!(created.iter().chain(&asked).all(|time| *time >= 0.0), "a run was started early");
    row(
        &format!("{} embedded Workflows due in one second: last one after", created.len()),
        format!("{:.2} s", last(&created)),
        "10 s",
    );
    row(
        &format!("{} runs of the API server due in the same: last after", asked.len()),
        format!("{:.2} s", last(&asked)),
        "10 s",
    );
    row(&format!("memory of the controller, {count} schedules"), format!("{:.0} MiB", program.peak()), "64 MiB");
}

async fn bench_reports(program: &str, count: usize, server: &Server, port: u16) {
    let dir = tempfile::tempdir().unwrap();
    let (kube, kubeconfig) = home(&dir).await;
    let object = |n: usize| {
        let labels = json!({"pipeline/runid": format!("run-{n}")});
        let status = json!({"phase": "Running", "nodes": {"n": {"message": "x".repeat(2000)}}});
        (
            workflows(),
            json!({"metadata": {"name": format!("w{n}"), "labels": labels}, "spec": pipeline(), "status": status}),
        )
    };
    many((0..count).map(object), &kube).await;
    let began = now();
    let program = Program::start(program, &kubeconfig, &kube.namespace, port);
    poll("the first reports", async || server.first.load(Ordering::SeqCst) >= count).await;
    row(&format!("start with {count} Workflows, each reported once"), format!("{:.1} s", now() - began), "");
    let mut ticks = tokio::time::interval(Duration::from_micros(1_000_000 / RATE));
    let mut updates = tokio::task::JoinSet::new();
    let began = now();
    for number in 1..=UPDATES {
        for n in 0..count {
            ticks.tick().await;
            let api = kube.api(&workflows());
            updates.spawn(async move {
                let update = Patch::Merge(json!({"status": {"update": {"number": number, "at": now()}}}));
                api.patch(&format!("w{n}"), &PatchParams::default(), &update).await.unwrap();
            });
            while updates.try_join_next().is_some() {}
        }
    }
    let rate = (count * UPDATES) as f64 / (now() - began);
    poll("the last reports", async || server.last.load(Ordering::SeqCst) == count).await;
    let mut lags = std::mem::take(&mut *server.lags.lock().unwrap());
    lags.sort_by(f64::total_cmp);
    let at = |share: f64| format!("{:.3} s", lags[((lags.len() - 1) as f64 * share) as usize]);
    row(&format!("{} updates, made at {rate:.0}/s; lag p50", count * UPDATES), at(0.5), "");
    row("lag p99", at(0.99), "1 s");
    row("lag, longest", at(1.0), "");
    row(&format!("memory of the agent, {count} live Workflows"), format!("{:.0} MiB", program.peak()), "64 MiB");
}
