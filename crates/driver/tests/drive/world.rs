//! A driver's surroundings: the real metadata server, a cache and a Kubernetes API in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::extract::{Path, State as AxumState};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use kfp_core::mlmd::{self, Execution, Output, Run, RunProperties, State};
use kfp_core::shutdown::CancellationToken;
use kfp_core::{grpc, ir, kubeapi};
use kfp_driver::{Cache, DEFAULT_PIPELINE_ROOT, DriverPod, Environment, Error, Services};
use kfp_proto::api;
use kfp_proto::api::task_service_server::{TaskService, TaskServiceServer};
use serde_json::{Value, json};
use tonic::{Request, Response, Status};

type Objects = Arc<Mutex<BTreeMap<String, Value>>>;
type Tasks = Arc<Mutex<Vec<api::Task>>>;

struct FakeCache(Tasks);

#[tonic::async_trait]
impl TaskService for FakeCache {
    async fn create_task_v1(&self, request: Request<api::CreateTaskRequest>) -> Result<Response<api::Task>, Status> {
        let task = request.into_inner().task.unwrap();
        self.0.lock().unwrap().push(task.clone());
        Ok(Response::new(task))
    }

    async fn list_tasks_v1(
        &self,
        request: Request<api::ListTasksRequest>,
    ) -> Result<Response<api::ListTasksResponse>, Status> {
        let request = request.into_inner();
        let filter: Value = serde_json::from_str(&request.filter).unwrap();
        let wanted = |key: &str| {
            let predicates = filter["predicates"].as_array().unwrap();
            let one = predicates.iter().find(|p| p["key"] == key && p["op"] == "EQUALS").unwrap();
            one["stringValue"].as_str().unwrap().to_owned()
        };
        assert_eq!((request.page_size, request.sort_by.as_str()), (1, "created_at desc"));
        let fits = |task: &&api::Task| {
            task.fingerprint == wanted("fingerprint")
                && task.pipeline_name == wanted("pipelineName")
                && task.namespace == wanted("namespace")
        };
        let tasks = self.0.lock().unwrap().iter().rev().find(fits).cloned().into_iter().collect();
        Ok(Response::new(api::ListTasksResponse { tasks, ..Default::default() }))
    }
}

/// Everything a driver talks to, and a directory for its output files.
pub struct World {
    pub services: Services,
    pub objects: Objects,
    pub tasks: Tasks,
    files: std::sync::Mutex<Vec<(String, String)>>,
    directory: tempfile::TempDir,
    run_id: String,
    stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

const OUTPUTS: [&str; 5] = ["execution-id", "iteration-count", "condition", "cached-decision", "pod-spec-patch"];

/// The output files of one driver.
#[derive(Debug, Default)]
pub struct Files(BTreeMap<&'static str, String>);

impl Files {
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The execution that a DAG driver made.
    pub fn id(&self) -> i64 {
        self.0["execution-id"].parse().unwrap()
    }

    pub fn patch(&self) -> Value {
        serde_json::from_str(&self.0["pod-spec-patch"]).unwrap()
    }

    /// The value of a flag in the launcher's command line.
    pub fn launcher(&self, flag: &str) -> String {
        let patch = self.patch();
        let words = patch["containers"][0]["command"].as_array().unwrap();
        let at = words.iter().position(|word| word == flag).unwrap();
        words[at + 1].as_str().unwrap().to_owned()
    }

    /// The execution that a container driver made.
    pub fn container(&self) -> i64 {
        self.launcher("--execution_id").parse().unwrap()
    }

    pub fn executor_input(&self) -> Value {
        serde_json::from_str(&self.launcher("--executor_input")).unwrap()
    }

    pub fn parameters(&self) -> Value {
        self.executor_input()["inputs"]["parameterValues"].clone()
    }
}

impl World {
    pub async fn new() -> Self {
        let stop = CancellationToken::new();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut options = kfp_metadata::Options::new("127.0.0.1", 0, kfp_metadata::Storage::Memory);
        options.listener = Some(listener);
        tokio::spawn(kfp_metadata::run(options, stop.clone()));
        let metadata = mlmd::Client::connect_lazy("127.0.0.1", port, None).unwrap();

        let tasks = Tasks::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tonic::transport::Server::builder().add_service(TaskServiceServer::new(FakeCache(tasks.clone())));
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
        let cache = Cache::new(grpc::channel("127.0.0.1", port, None).unwrap());

        let objects = Objects::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/api/v1/namespaces/{namespace}/{plural}", post(create))
            .route("/api/v1/namespaces/{namespace}/{plural}/{name}", get(read).delete(remove))
            .route("/apis/argoproj.io/v1alpha1/namespaces/{namespace}/{plural}/{name}", get(read))
            .with_state(objects.clone());
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(stopped).into_future());
        let kubernetes = kubeapi::Client::new(kubeapi::Config::plain(&address, "ns")).unwrap();

        let services = Services { metadata, cache, kubernetes: Some(kubernetes) };
        let directory = tempfile::tempdir().unwrap();
        Self { services, objects, tasks, files: Default::default(), directory, run_id: "run-1".to_owned(), stop }
    }

    /// The same world in another run of the same pipeline.
    pub fn next_run(&mut self, id: &str) {
        self.run_id = id.to_owned();
    }

    pub async fn drive(&self, args: &[(&str, Value)]) -> Result<Files, Error> {
        let mut words = vec![
            "--pipeline_name=p".to_owned(),
            format!("--run_id={}", self.run_id),
            "--run_name=wf".to_owned(),
            "--run_display_name=My run".to_owned(),
            "--mlmd_server_address=localhost".to_owned(),
            "--mlmd_server_port=8080".to_owned(),
        ];
        for (name, value) in args {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            words.push(format!("--{name}={text}"));
        }
        for name in OUTPUTS {
            words.push(format!("--{}_path=/tmp/outputs/{name}", name.replace('-', "_")));
        }
        let environment = Environment {
            namespace: "ns".into(),
            pod: DriverPod { name: "driver-pod".into(), uid: "uid-1".into() },
            default_pipeline_root: DEFAULT_PIPELINE_ROOT.into(),
        };
        let driven = kfp_driver::run_with(words, &self.services, &environment, &|path| self.place(path)).await;
        *self.files.lock().unwrap() = driven.files;
        driven.result?;
        Ok(self.take_files())
    }

    fn place(&self, path: &str) -> PathBuf {
        self.directory.path().join("root").join(path.trim_start_matches('/'))
    }

    /// What the last driver wrote.
    pub fn take_files(&self) -> Files {
        let files = std::mem::take(&mut *self.files.lock().unwrap());
        let find = |name: &'static str| {
            let path = format!("/tmp/outputs/{name}");
            Some((name, files.iter().find(|(other, _)| *other == path)?.1.clone()))
        };
        Files(OUTPUTS.into_iter().filter_map(find).collect())
    }

    /// Drives the root and gives its execution id.
    pub async fn root(&self, parameters: Value) -> i64 {
        let config = json!({"parameterValues": parameters});
        let args = [("type", json!("ROOT_DAG")), ("runtime_config", config), ("component", json!({"dag": {}}))];
        self.drive(&args).await.unwrap().id()
    }

    fn task_args(kind: &str, parent: i64, name: &str, task: Value, component: Value) -> Vec<(&'static str, Value)> {
        let mut task = task;
        task["taskInfo"] = json!({"name": name});
        vec![
            ("type", json!(kind)),
            ("dag_execution_id", json!(parent)),
            ("task_name", json!(name)),
            ("task", task),
            ("component", component),
        ]
    }

    pub async fn dag(&self, parent: i64, name: &str, task: Value, component: Value) -> Result<Files, Error> {
        self.drive(&Self::task_args("DAG", parent, name, task, component)).await
    }

    pub async fn iteration(&self, head: i64, index: i64, name: &str, task: Value, component: Value) -> i64 {
        let mut args = Self::task_args("DAG", head, name, task, component);
        args.push(("iteration_index", json!(index)));
        self.drive(&args).await.unwrap().id()
    }

    pub async fn container(&self, parent: i64, name: &str, task: Value, component: Value) -> Result<Files, Error> {
        self.container_with(parent, name, task, component, json!({"image": "i", "command": ["c"]}), json!({})).await
    }

    pub async fn container_with(
        &self,
        parent: i64,
        name: &str,
        task: Value,
        component: Value,
        container: Value,
        kubernetes: Value,
    ) -> Result<Files, Error> {
        let mut args = Self::task_args("CONTAINER", parent, name, task, component);
        args.extend([("container", container), ("kubernetes_config", kubernetes)]);
        self.drive(&args).await
    }

    pub async fn run(&self) -> Run {
        self.services.metadata.ensure_run("p", &self.run_id, &RunProperties::default()).await.unwrap()
    }

    pub async fn execution(&self, id: i64) -> Execution {
        self.services.metadata.execution(id).await.unwrap()
    }

    pub async fn state(&self, id: i64) -> State {
        self.execution(id).await.state()
    }

    /// What a launcher does at the end: publishes outputs, then tells the parent DAG. Returns the artifacts' ids.
    pub async fn finish(&self, id: i64, state: State, parameters: Value, artifacts: &[(&str, &str)]) -> Vec<i64> {
        let (metadata, run, execution) = (&self.services.metadata, self.run().await, self.execution(id).await);
        let mut outputs = Vec::new();
        for (name, uri) in artifacts {
            let mut artifact = mlmd::artifact_from_metadata(uri, None, Some(name), Some("{}"));
            artifact.type_id = Some(metadata.artifact_type("system.Artifact").await.unwrap());
            outputs.push(Output { name: (*name).to_owned(), artifact });
        }
        let parameters = ir::struct_from_json(parameters.as_object().unwrap()).fields;
        metadata.publish(&run, &execution, state, Some(parameters), outputs).await.unwrap();
        metadata.propagate_dag_state(&run, execution.parent_dag_id().unwrap()).await.unwrap();
        let made = metadata.output_artifacts(id).await.unwrap();
        artifacts.iter().map(|(name, _)| made[*name].id()).collect()
    }

    /// Drives a container without inputs and ends it well.
    pub async fn produce(&self, parent: i64, name: &str, outputs: Value, artifacts: &[(&str, &str)]) -> Vec<i64> {
        let id = self.container(parent, name, json!({}), json!({})).await.unwrap().container();
        self.finish(id, State::Complete, outputs, artifacts).await
    }
}

type Named = Path<(String, String, String)>;

async fn create(
    AxumState(objects): AxumState<Objects>,
    Path((_, plural)): Path<(String, String)>,
    Json(object): Json<Value>,
) -> (StatusCode, Json<Value>) {
    let key = format!("{plural}/{}", object["metadata"]["name"].as_str().unwrap());
    let mut objects = objects.lock().unwrap();
    if objects.contains_key(&key) {
        return (StatusCode::CONFLICT, Json(json!({"reason": "AlreadyExists", "message": "exists"})));
    }
    objects.insert(key, object.clone());
    (StatusCode::CREATED, Json(object))
}

async fn read(AxumState(objects): AxumState<Objects>, Path((_, plural, name)): Named) -> (StatusCode, Json<Value>) {
    match objects.lock().unwrap().get(&format!("{plural}/{name}")) {
        Some(object) => (StatusCode::OK, Json(object.clone())),
        None => (StatusCode::NOT_FOUND, Json(json!({"reason": "NotFound", "message": format!("{name} not found")}))),
    }
}

async fn remove(AxumState(objects): AxumState<Objects>, Path((_, plural, name)): Named) -> Json<Value> {
    objects.lock().unwrap().remove(&format!("{plural}/{name}"));
    Json(json!({}))
}
