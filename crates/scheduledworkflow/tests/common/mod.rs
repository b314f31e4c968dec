//! A Kubernetes API, a RunService that behaves as the API server's, and the controller between them.
#![allow(dead_code, unused_imports, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::StreamExt as _;
use kfp_core::shutdown::CancellationToken;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use kfp_scheduledworkflow::{Options, run};
pub use kfp_test_cluster::proxy::Phase;
pub use kfp_test_cluster::{Change, Kube, PATIENCE, events, leases, schedules, workflows};
use kube::api::PostParams;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use v2::run_service_server::{RunService, RunServiceServer};

pub const LABEL: &str = "scheduledworkflows.kubeflow.org/";

/// Tells whether a call is to hang, that is, whether the test has killed the caller.
pub type Hook = Box<dyn Fn(Phase) -> bool + Send + Sync>;

/// Creates runs once for each recurring run and name, with a Workflow each.
pub struct Server {
    kube: kube::Api<kube::core::DynamicObject>,
    runs: tokio::sync::Mutex<HashMap<(String, String), v2::Run>>,
    pub requests: Mutex<Vec<(tonic::metadata::MetadataMap, v2::Run)>>,
    /// Calls to refuse before the first success.
    pub refuse: AtomicUsize,
    /// The only token that is accepted, if it matters.
    pub token: Mutex<Option<String>>,
    /// A pipeline that does not exist any more.
    pub deleted: Mutex<Option<String>>,
    pub hook: Mutex<Option<Hook>>,
}

impl Server {
    async fn create(&self, mut run: v2::Run) -> Result<v2::Run, tonic::Status> {
        let key = (run.recurring_run_id.clone(), run.display_name.clone());
        let mut runs = self.runs.lock().await;
        if let Some(known) = runs.get(&key) {
            return Ok(known.clone());
        }
        run.run_id = format!("run-{}", runs.len());
        let (schedule, rest) = run.display_name.split_once('-').unwrap();
        let index = rest.split_once('-').unwrap().0;
        let workflow = json!({
            "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
            "metadata": {
                "generateName": "made-by-server-",
                "labels": {
                    format!("{LABEL}scheduledWorkflowName"): schedule,
                    format!("{LABEL}workflowEpoch"): now().to_string(),
                    format!("{LABEL}workflowIndex"): index,
                    "pipeline/runid": run.run_id,
                    "slot": run.scheduled_at.unwrap().seconds.to_string(),
                },
                "ownerReferences": [{"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
                    "name": schedule, "uid": run.recurring_run_id, "controller": true}],
            },
            "spec": {"entrypoint": "main"},
        });
        let workflow = serde_json::from_value(workflow).unwrap();
        self.kube
            .create(&PostParams::default(), &workflow)
            .await
            .map_err(|e| tonic::Status::internal(e.to_string()))?;
        runs.insert(key, run.clone());
        Ok(run)
    }

    fn hooked(&self, phase: Phase) -> bool {
        self.hook.lock().unwrap().as_ref().is_some_and(|hook| hook(phase))
    }
}

struct Shared(Arc<Server>);

#[tonic::async_trait]
impl RunService for Shared {
    async fn create_run(
        &self,
        request: tonic::Request<v2::CreateRunRequest>,
    ) -> Result<tonic::Response<v2::Run>, tonic::Status> {
        let server = self.0.clone();
        let metadata = request.metadata().clone();
        let given = metadata.get("authorization").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let run = request.into_inner().run.unwrap();
        server.requests.lock().unwrap().push((metadata, run.clone()));
        if server.refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(tonic::Status::unavailable("not now"));
        }
        if let Some(token) = server.token.lock().unwrap().as_ref()
            && given.as_ref() != Some(token)
        {
            return Err(tonic::Status::unauthenticated("the service account token has expired"));
        }
        if let (Some(v2::run::PipelineSource::PipelineVersionReference(source)), Some(deleted)) =
            (&run.pipeline_source, server.deleted.lock().unwrap().as_ref())
            && source.pipeline_id == *deleted
        {
            return Err(tonic::Status::not_found(format!("Pipeline {deleted} not found")));
        }
        if server.hooked(Phase::Before) {
            std::future::pending::<()>().await;
        }
        // A caller that goes away does not stop the work half-way.
        let created = tokio::spawn({
            let server = server.clone();
            async move { server.create(run).await }
        });
        let run = created.await.unwrap()?;
        if server.hooked(Phase::After) {
            std::future::pending::<()>().await;
        }
        Ok(tonic::Response::new(run))
    }
}

pub struct World {
    pub kube: Kube,
    pub server: Arc<Server>,
    pub options: Options,
    pub grpc_port: u16,
    pub stop: CancellationToken,
    pub dir: tempfile::TempDir,
}

pub async fn world() -> World {
    let kube = Kube::start().await;
    let stop = CancellationToken::new();
    let server = Arc::new(Server {
        kube: kube.api(&workflows()),
        runs: tokio::sync::Mutex::default(),
        requests: Mutex::default(),
        refuse: AtomicUsize::new(0),
        token: Mutex::default(),
        deleted: Mutex::default(),
        hook: Mutex::default(),
    });
    let grpc = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let grpc_port = grpc.local_addr().unwrap().port();
    let service = RunServiceServer::new(Shared(server.clone()));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(grpc);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()),
    );
    let words = ["--namespace", &kube.namespace, "--mlPipelineAPIServerName=127.0.0.1", "--metricsPort="];
    let Ok(mut options) = Options::parse(words.map(str::to_owned)) else { panic!("options") };
    options.api_grpc_port = grpc_port;
    options.client = Some(kube.client.clone());
    options.time_zone = "UTC".to_owned();
    World { kube, server, options, grpc_port, stop, dir: tempfile::tempdir().unwrap() }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

pub fn rfc3339(seconds: i64) -> String {
    chrono::DateTime::from_timestamp(seconds, 0).unwrap().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

impl World {
    pub fn controller(&self) -> JoinHandle<()> {
        let (options, stop) = (self.options.clone(), self.stop.clone());
        tokio::spawn(async move { run(options, stop).await.unwrap() })
    }

    pub async fn schedule(&self, name: &str, spec: Value) {
        self.kube.create(&schedules(), json!({"metadata": {"name": name}, "spec": spec, "status": {}})).await;
    }

    pub async fn get(&self, name: &str) -> Value {
        self.kube.get(&schedules(), name).await
    }

    pub async fn workflows(&self) -> Vec<Value> {
        self.kube.list(&workflows()).await
    }

    /// Waits until the schedule is as `check` wants.
    pub async fn until(&self, name: &str, check: impl Fn(&Value) -> bool) -> Value {
        self.kube.until(&schedules(), name, check).await
    }

    pub async fn complete(&self, name: &str) {
        self.kube.merge(&workflows(), name, completion()).await;
    }

    /// Completes every Workflow as soon as it is there.
    pub fn completing(&self) -> JoinHandle<()> {
        let (api, mut changes) = (self.kube.api(&workflows()), self.kube.changes(&workflows()));
        tokio::spawn(async move {
            while let Some(change) = changes.next().await {
                if let Change::Added(workflow) = change {
                    let patch = kube::api::Patch::Merge(completion());
                    api.patch(name(&workflow), &kube::api::PatchParams::default(), &patch).await.unwrap();
                }
            }
        })
    }

    /// Slots of the schedule's Workflows, sorted, however they were created.
    pub async fn slots(&self) -> Vec<i64> {
        let slot = |workflow: &Value| -> i64 {
            let made_by_server = label(workflow, "slot");
            let own = label(workflow, &format!("{LABEL}workflowEpoch"));
            if made_by_server.is_empty() { own } else { made_by_server }.parse().unwrap()
        };
        let mut slots: Vec<i64> = self.workflows().await.iter().map(slot).collect();
        slots.sort_unstable();
        slots
    }
}

fn completion() -> Value {
    json!({"metadata": {"labels": {"workflows.argoproj.io/completed": "true"}},
        "status": {"phase": "Succeeded", "startedAt": rfc3339(1), "finishedAt": rfc3339(2)}})
}

pub fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap()
}

pub fn index(object: &Value) -> i64 {
    object.pointer("/status/trigger/lastWorkflowIndex").and_then(Value::as_i64).unwrap_or(0)
}

pub fn condition(object: &Value) -> &str {
    object.pointer("/status/conditions/0/type").and_then(Value::as_str).unwrap_or_default()
}

pub fn label<'a>(workflow: &'a Value, key: &str) -> &'a str {
    workflow["metadata"]["labels"][key].as_str().unwrap_or_default()
}

/// A schedule with `slots` missed slots and none to come; returns the slots as well.
pub fn missed(slots: i64, more: Value) -> (Value, Vec<i64>) {
    let start = now() - slots * 100 - 100_000;
    let times = json!({"startTime": rfc3339(start), "endTime": rfc3339(start + slots * 100), "intervalSecond": 100});
    let mut spec = json!({"enabled": true, "trigger": {"periodicSchedule": times}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    (spec, (1..=slots).map(|n| start + n * 100).collect())
}

pub fn embedded() -> Value {
    json!({"spec": {"entrypoint": "main", "arguments": {"parameters": [{"name": "at", "value": "x"}]}},
        "parameters": [{"name": "at", "value": "[[Index]]"}]})
}
