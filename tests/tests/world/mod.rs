//! The API server, the controller and the agent on one Kubernetes API.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kfp_apiserver::config::Config;
use kfp_core::shutdown::CancellationToken;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use kfp_test_cluster::{Kube, PATIENCE, workflows};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::transport::Channel;
use v2::recurring_run_service_client::RecurringRunServiceClient;
use v2::run_service_client::RunServiceClient;

/// See the module.
pub struct World {
    pub kube: Kube,
    pub schedules: RecurringRunServiceClient<Channel>,
    pub runs: RunServiceClient<Channel>,
    http: std::net::SocketAddr,
    stop: CancellationToken,
    _dir: tempfile::TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn parsed<T>(options: Result<T, kfp_core::flags::Stop>) -> T {
    let Ok(options) = options else { panic!("options") };
    options
}

pub async fn world() -> World {
    let kube = Kube::start().await;
    let (stop, dir) = (CancellationToken::new(), tempfile::tempdir().unwrap());
    let env = BTreeMap::from([
        ("KFP_OBJECT_STORE_DIR".to_owned(), dir.path().join("objects").display().to_string()),
        ("POD_NAMESPACE".to_owned(), kube.namespace.clone()),
        ("CRON_SCHEDULE_TIMEZONE".to_owned(), "UTC".to_owned()),
    ]);
    let mut options = kfp_apiserver::Options::from_config(&Config::new(Value::Null, env)).unwrap();
    let bind = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (http_listener, grpc_listener) = (bind(), bind());
    let (http, grpc) = (http_listener.local_addr().unwrap(), grpc_listener.local_addr().unwrap());
    options.http_listener = Some(http_listener);
    options.grpc_listener = Some(grpc_listener);
    options.database = kfp_apiserver::options::Database::Sqlite(dir.path().join("database"));
    options.kube = Some(kube.client.clone());
    tokio::spawn(kfp_apiserver::run(options, stop.clone()));

    let words = ["--namespace", &kube.namespace, "--mlPipelineAPIServerName=127.0.0.1", "--metricsPort="];
    let words = || words.iter().map(|word| (*word).to_owned());
    let mut controller = parsed(kfp_scheduledworkflow::Options::parse(words()));
    controller.api_grpc_port = grpc.port();
    controller.client = Some(kube.client.clone());
    controller.time_zone = "UTC".to_owned();
    tokio::spawn(kfp_scheduledworkflow::run(controller, stop.clone()));
    let mut agent = parsed(kfp_persistence_agent::Options::parse(words()));
    agent.api_grpc_port = grpc.port();
    agent.client = Some(kube.client.clone());
    tokio::spawn(kfp_persistence_agent::run(agent, stop.clone()));

    let channel = Channel::from_shared(format!("http://{grpc}")).unwrap().connect_lazy();
    let schedules = RecurringRunServiceClient::new(channel.clone());
    let world = World { kube, schedules, runs: RunServiceClient::new(channel), http, stop, _dir: dir };
    let ready = world.eventually("the API server", async |world| {
        let request = v2::ListRecurringRunsRequest::default();
        world.schedules.clone().list_recurring_runs(request).await.ok()
    });
    ready.await;
    world
}

impl World {
    /// Asks again until there is an answer.
    pub async fn eventually<T>(&self, what: &str, mut ask: impl AsyncFnMut(&Self) -> Option<T>) -> T {
        let since = Instant::now();
        loop {
            if let Some(answer) = ask(self).await {
                return answer;
            }
            assert!(since.elapsed() < PATIENCE, "{what}: not in time");
            // A pause between questions, not something to rely on.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Uploads a pipeline and returns its id.
    pub async fn upload(&self, name: &str, spec: &Value) -> String {
        let body = format!(
            "--XX\r\nContent-Disposition: form-data; name=\"uploadfile\"; filename=\"p.yaml\"\r\n\r\n{spec}\r\n--XX--\r\n"
        );
        let head = format!(
            "POST /apis/v2beta1/pipelines/upload?name={name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
             Content-Type: multipart/form-data; boundary=XX\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = tokio::net::TcpStream::connect(self.http).await.unwrap();
        stream.write_all((head + &body).as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let json = answer.split_once("\r\n\r\n").unwrap().1;
        let found: Value = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {answer}"));
        found["pipeline_id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }

    /// Starts a run of [`pipeline`]; the run, and the first Workflow that there is.
    pub async fn start_run(&self) -> (v2::Run, Value) {
        let run = v2::Run {
            display_name: "one".into(),
            pipeline_source: Some(v2::run::PipelineSource::PipelineSpec(spec())),
            runtime_config: say("hello"),
            ..v2::Run::default()
        };
        let request = v2::CreateRunRequest { run: Some(run), ..v2::CreateRunRequest::default() };
        let run = self.runs.clone().create_run(request).await.unwrap().into_inner();
        (run, self.kube.list(&workflows()).await.remove(0))
    }

    pub async fn runs_of(&self, recurring_run_id: &str) -> Vec<v2::Run> {
        let request = v2::ListRunsRequest { page_size: 100, ..v2::ListRunsRequest::default() };
        let runs = self.runs.clone().list_runs(request).await.unwrap().into_inner().runs;
        runs.into_iter().filter(|run| run.recurring_run_id == recurring_run_id).collect()
    }
}

/// A pipeline of one step.
pub fn pipeline() -> Value {
    json!({
        "components": {"comp-say": {"executorLabel": "exec-say",
            "inputDefinitions": {"parameters": {"word": {"parameterType": "STRING"}}}}},
        "deploymentSpec": {"executors": {"exec-say": {"container": {"image": "busybox",
            "command": ["echo", "{{$.inputs.parameters['word']}}"]}}}},
        "pipelineInfo": {"name": "say"},
        "root": {
            "dag": {"tasks": {"say": {"componentRef": {"name": "comp-say"}, "taskInfo": {"name": "say"},
                "inputs": {"parameters": {"word": {"componentInputParameter": "word"}}}}}},
            "inputDefinitions": {"parameters": {"word": {"parameterType": "STRING"}}}},
        "schemaVersion": "2.1.0", "sdkVersion": "kfp-2.17.0"
    })
}

/// Parameters of [`pipeline`].
pub fn say(word: &str) -> Option<v2::RuntimeConfig> {
    let parameters = [("word".to_owned(), kfp_core::ir::from_json(&json!(word)))].into();
    Some(v2::RuntimeConfig { parameters, ..v2::RuntimeConfig::default() })
}

/// Every `seconds`.
pub fn every(seconds: i64) -> Option<v2::Trigger> {
    let by = v2::PeriodicSchedule { interval_second: seconds, ..v2::PeriodicSchedule::default() };
    Some(v2::Trigger { trigger: Some(v2::trigger::Trigger::PeriodicSchedule(by)) })
}

/// [`pipeline`] in a request.
pub fn spec() -> prost_types::Struct {
    kfp_core::ir::struct_from_json(pipeline().as_object().unwrap())
}
