//! A metadata server, an API server that takes cache entries, and a run with a DAG, for the launcher's tests.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use kfp_core::mlmd::{self, NewExecution, Run, RunProperties, State, names, text};
use kfp_core::shutdown::CancellationToken;
use kfp_launcher::{Error, Options, Outcome};
use kfp_proto::api::task_service_server::{TaskService, TaskServiceServer};
use kfp_proto::api::{CreateTaskRequest, Task};
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

pub const RUN: &str = "11111111-2222-3333-4444-555555555555";

#[derive(Clone, Default)]
struct Cache(Arc<Mutex<Vec<Task>>>);

#[tonic::async_trait]
impl TaskService for Cache {
    async fn create_task_v1(&self, request: Request<CreateTaskRequest>) -> Result<Response<Task>, Status> {
        let task = request.into_inner().task.unwrap_or_default();
        self.0.lock().unwrap().push(task.clone());
        Ok(Response::new(task))
    }
}

pub struct World {
    pub dir: tempfile::TempDir,
    pub metadata: mlmd::Client,
    pub metadata_port: u16,
    pub api_port: u16,
    pub run: Run,
    pub dag: i64,
    cache: Cache,
    stop: CancellationToken,
    server: Option<Server>,
}

/// A metadata server that can be stopped.
struct Server {
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), kfp_metadata::Error>>,
}

impl Server {
    fn start(listener: std::net::TcpListener, folder: &std::path::Path, stop: CancellationToken) -> Self {
        let storage = kfp_metadata::Storage::Sqlite(folder.join("metadata.db"));
        let mut options = kfp_metadata::Options::new("127.0.0.1", 0, storage);
        options.listener = Some(listener);
        Self { task: tokio::spawn(kfp_metadata::run(options, stop.clone())), stop }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    /// Servers on free ports, and a run whose root DAG has a child DAG with `tasks` tasks.
    pub async fn new(tasks: i64) -> Self {
        Self::with_root(tasks, "minio://bucket/root").await
    }

    /// The same with another pipeline root.
    pub async fn with_root(tasks: i64, root: &str) -> Self {
        let stop = CancellationToken::new();
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let metadata_port = listener.local_addr().unwrap().port();
        let server = Some(Server::start(listener, dir.path(), stop.child_token()));

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let api_port = listener.local_addr().unwrap().port();
        let cache = Cache::default();
        let service = TaskServiceServer::new(cache.clone());
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let ended = stop.clone().cancelled_owned();
        tokio::spawn(
            tonic::transport::Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, ended),
        );

        let metadata = mlmd::Client::connect_lazy("127.0.0.1", metadata_port, None).unwrap();
        let properties = RunProperties {
            namespace: "team".into(),
            pipeline_root: root.into(),
            store_session_info: r#"{"Provider":"minio","Params":{"fromEnv":"true"}}"#.into(),
        };
        let run = metadata.ensure_run("pipe", RUN, &properties).await.unwrap();
        let root = NewExecution { type_name: names::DAG_EXECUTION, state: State::Running, ..Default::default() };
        let root = metadata.create_execution(&run, root).await.unwrap().id();
        let mut dag = NewExecution { type_name: names::DAG_EXECUTION, state: State::Running, ..Default::default() };
        dag.properties.insert(names::PARENT_DAG_ID.into(), mlmd::int(root));
        dag.properties.insert(names::TASK_NAME.into(), text("sub"));
        dag.properties.insert(names::TOTAL_DAG_TASKS.into(), mlmd::int(tasks));
        dag.inputs = Some([("where".to_owned(), kfp_core::ir::from_json(&json!("gs://other/data.csv")))].into());
        let dag = metadata.create_execution(&run, dag).await.unwrap().id();
        Self { dir, metadata, metadata_port, api_port, run, dag, cache, stop, server }
    }

    /// Stops the metadata server and frees its port.
    pub async fn stop_metadata(&mut self) {
        let server = self.server.take().unwrap();
        server.stop.cancel();
        server.task.await.unwrap().unwrap();
    }

    /// Starts it again, on the same port and data.
    pub fn start_metadata(&mut self) {
        let listener = std::net::TcpListener::bind(("127.0.0.1", self.metadata_port)).unwrap();
        self.server = Some(Server::start(listener, self.dir.path(), self.stop.child_token()));
    }

    pub async fn task(&self, name: &str) -> i64 {
        let properties: BTreeMap<_, _> = [
            (names::PARENT_DAG_ID.to_owned(), mlmd::int(self.dag)),
            (names::TASK_NAME.to_owned(), text(name)),
            (names::CACHE_FINGERPRINT.to_owned(), text(format!("print-{name}"))),
        ]
        .into();
        let new = NewExecution {
            type_name: names::CONTAINER_EXECUTION,
            state: State::Running,
            properties,
            ..Default::default()
        };
        self.metadata.create_execution(&self.run, new).await.unwrap().id()
    }

    pub fn store(&self, key: &str) -> PathBuf {
        self.dir.path().join("store").join(key)
    }

    pub fn pod(&self, path: &str) -> PathBuf {
        self.dir.path().join("pod").join(path.trim_start_matches('/'))
    }

    pub fn flags(&self, execution: i64, input: &Value, component: &Value) -> Vec<String> {
        let port = self.metadata_port.to_string();
        let api = self.api_port.to_string();
        let (execution, input, component) = (execution.to_string(), input.to_string(), component.to_string());
        [
            "--executor_type",
            "container",
            "--pipeline_name",
            "pipe",
            "--run_id",
            RUN,
            "--execution_id",
            &execution,
            "--executor_input",
            &input,
            "--component_spec",
            &component,
            "--pod_name",
            "pod-1",
            "--pod_uid",
            "uid-1",
            "--ml_pipeline_server_address",
            "127.0.0.1",
            "--ml_pipeline_server_port",
            &api,
            "--mlmd_server_address",
            "127.0.0.1",
            "--mlmd_server_port",
            &port,
            "--publish_logs",
            "true",
            "--ml_pipeline_tls_enabled=false",
            "--metadata_tls_enabled=false",
            "--ca_cert_path",
            "",
            "--cache_disabled=false",
            "--log_level",
            "1",
            "--",
        ]
        .map(str::to_owned)
        .to_vec()
    }

    pub fn options(&self, mut words: Vec<String>, command: &[&str]) -> Options {
        words.extend(command.iter().map(|word| (*word).to_owned()));
        let mut options = Options::from_args(words).unwrap_or_else(|stop| panic!("{stop:?}"));
        options.root = Some(self.pod(""));
        options.object_store_dir = Some(self.dir.path().join("store"));
        options
    }

    /// Runs a shell script as a container task.
    pub async fn sh(&self, execution: i64, input: &Value, component: &Value, script: &str) -> Result<Outcome, Error> {
        let options = self.options(self.flags(execution, input, component), &["sh", "-ec", script, "sh"]);
        kfp_launcher::run(options, CancellationToken::new()).await
    }

    pub async fn state(&self, execution: i64) -> State {
        self.metadata.execution(execution).await.unwrap().state()
    }

    pub fn cached(&self) -> Vec<Task> {
        self.cache.0.lock().unwrap().clone()
    }
}

/// An ExecutorInput with outputs: parameter `number`, artifact `model`, and the log.
pub fn input() -> Value {
    json!({
        "inputs": {
            "parameterValues": {"greeting": "hello"},
            "artifacts": {"data": {"artifacts": [
                {"name": "3", "uri": "minio://bucket/in/data", "type": {"schemaTitle": "system.Dataset"}}]}}
        },
        "outputs": {
            "outputFile": "/minio/bucket/root/t/u/output_metadata.json",
            "parameters": {"number": {"outputFile": "/tmp/kfp/outputs/number"}},
            "artifacts": {
                "model": {"artifacts": [{"name": "model", "uri": "minio://bucket/root/t/u/model",
                    "type": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"}}]},
                "executor-logs": {"artifacts": [{"name": "executor-logs",
                    "uri": "minio://bucket/root/t/u/executor-logs", "type": {"schemaTitle": "system.Artifact"}}]}
            }
        }
    })
}

pub fn component() -> Value {
    json!({
        "executorLabel": "exec-t",
        "inputDefinitions": {"parameters": {
            "greeting": {"parameterType": "STRING"},
            "times": {"parameterType": "NUMBER_INTEGER", "defaultValue": 2, "isOptional": true}}},
        "outputDefinitions": {
            "parameters": {"number": {"parameterType": "NUMBER_INTEGER"}},
            "artifacts": {"model": {"artifactType": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"}}}}
    })
}
