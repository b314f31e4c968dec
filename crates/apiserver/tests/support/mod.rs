//! A running API server on free ports, in front of a small Kubernetes API that keeps objects in memory.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path as UrlPath, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{Method, StatusCode};
use kfp_apiserver::config::Config;
use kfp_apiserver::options::{Database, Options};
use kfp_core::shutdown::CancellationToken;
use kfp_testdb::Engine;
use serde_json::{Value, json};

/// Objects by `plural/name`.
#[derive(Clone, Default)]
pub struct Kube {
    pub objects: Arc<Mutex<BTreeMap<String, Value>>>,
    /// Answers every creation and list with this status instead.
    pub refuse: Arc<Mutex<Option<u16>>>,
    /// Answers the next replacements with these statuses, the last one first, after or without carrying them out.
    pub replacing: Arc<Mutex<Vec<(u16, bool)>>>,
    /// Tells when a creation has arrived and holds its answer back until told to go on.
    pub hold: Arc<Mutex<Option<Hold>>>,
    counter: Arc<Mutex<u64>>,
    /// Users and the namespaces in which they may do everything; the empty one is the cluster.
    pub rights: Arc<Mutex<Vec<(String, String)>>>,
    /// Tokens, their users and the audience that they are for.
    pub tokens: Arc<Mutex<BTreeMap<String, (String, String)>>>,
    /// What was asked about rights, oldest first.
    pub asked: Arc<Mutex<Vec<Value>>>,
}

/// See [`Kube::hold`].
#[derive(Clone, Default)]
pub struct Hold {
    pub arrived: Arc<tokio::sync::Notify>,
    pub proceed: Arc<tokio::sync::Notify>,
}

fn status(code: u16, reason: &str, message: &str) -> Response {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message});
    (StatusCode::from_u16(code).unwrap(), axum::Json(body)).into_response()
}

impl Kube {
    fn next(&self) -> u64 {
        let mut counter = self.counter.lock().unwrap();
        *counter += 1;
        *counter
    }

    pub fn get(&self, key: &str) -> Option<Value> {
        self.objects.lock().unwrap().get(key).cloned()
    }

    pub fn names(&self, plural: &str) -> Vec<String> {
        let prefix = format!("{plural}/");
        let objects = self.objects.lock().unwrap();
        objects.keys().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect()
    }

    /// Changes an object as a controller would.
    pub fn edit(&self, key: &str, change: impl FnOnce(&mut Value)) -> Value {
        let version = self.next();
        let mut objects = self.objects.lock().unwrap();
        let object = objects.get_mut(key).unwrap();
        change(object);
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        object.clone()
    }

    fn merge(target: &mut Value, patch: &Value) {
        match patch {
            Value::Object(fields) => {
                if !target.is_object() {
                    *target = json!({});
                }
                for (key, value) in fields {
                    if value.is_null() {
                        target.as_object_mut().unwrap().remove(key);
                    } else {
                        Self::merge(&mut target[key], value);
                    }
                }
            }
            other => *target = other.clone(),
        }
    }

    fn review(&self, kind: &str, mut review: Value) -> Response {
        let spec = &review["spec"];
        review["status"] = if kind == "tokenreviews" {
            let tokens = self.tokens.lock().unwrap();
            match tokens.get(spec["token"].as_str().unwrap()) {
                Some((user, audience)) if spec["audiences"].as_array().unwrap().contains(&json!(audience)) => {
                    json!({"authenticated": true, "user": {"username": user}, "audiences": [audience]})
                }
                // As a cluster does that knows nothing of audiences.
                Some((user, audience)) if audience.is_empty() => {
                    json!({"authenticated": true, "user": {"username": user}})
                }
                _ => json!({"error": "the token is not for us"}),
            }
        } else {
            self.asked.lock().unwrap().push(spec.clone());
            let wanted = &spec["resourceAttributes"];
            let namespace = wanted["namespace"].as_str().unwrap_or_default();
            let right = (spec["user"].as_str().unwrap().to_owned(), namespace.to_owned());
            let allowed = self.rights.lock().unwrap().contains(&right);
            json!({"allowed": allowed, "reason": if allowed { "" } else { "no role" }})
        };
        (StatusCode::CREATED, axum::Json(review)).into_response()
    }

    async fn handle(State(kube): State<Kube>, UrlPath(path): UrlPath<String>, request: Request) -> Response {
        let parts: Vec<&str> = path.split('/').collect();
        if let Some(kind @ ("subjectaccessreviews" | "tokenreviews")) = parts.last().copied() {
            if let Some(code) = *kube.refuse.lock().unwrap() {
                return status(code, "Refused", "refused by the test");
            }
            let kind = kind.to_owned();
            let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
            return kube.review(&kind, serde_json::from_slice(&body).unwrap());
        }
        let at = parts.iter().position(|part| *part == "namespaces").unwrap();
        let (namespace, plural) = (parts[at + 1].to_owned(), parts[at + 2].to_owned());
        let name = parts.get(at + 3).map(|name| (*name).to_owned());
        let method = request.method().clone();
        let content = request.headers().get("content-type").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        if let (Some(pod), Some(&"log")) = (&name, parts.get(at + 4)) {
            return match kube.get(&format!("pods/{pod}")) {
                Some(object) => object["log"].as_str().unwrap().to_owned().into_response(),
                None => status(404, "NotFound", &format!("pods \"{pod}\" not found")),
            };
        }
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        if method == Method::POST {
            if let Some(code) = *kube.refuse.lock().unwrap() {
                return status(code, "Refused", "refused by the test");
            }
            let hold = kube.hold.lock().unwrap().clone();
            if let Some(hold) = hold {
                hold.arrived.notify_one();
                hold.proceed.notified().await;
            }
            let number = kube.next();
            let mut object = body;
            let name = match object["metadata"]["name"].as_str() {
                Some(name) => name.to_owned(),
                None => format!("{}{number:05}", object["metadata"]["generateName"].as_str().unwrap()),
            };
            object["metadata"]["name"] = json!(name);
            object["metadata"]["namespace"] = json!(namespace);
            object["metadata"]["uid"] = json!(format!("00000000-0000-0000-0000-{number:012}"));
            object["metadata"]["resourceVersion"] = json!(number.to_string());
            let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
            object["metadata"]["creationTimestamp"] = json!(now);
            kube.objects.lock().unwrap().insert(format!("{plural}/{name}"), object.clone());
            return (StatusCode::CREATED, axum::Json(object)).into_response();
        }
        let Some(name) = name else {
            let objects = kube.objects.lock().unwrap();
            let items: Vec<&Value> = objects
                .iter()
                .filter(|(key, _)| key.starts_with(&format!("{plural}/")))
                .map(|(_, object)| object)
                .collect();
            return match *kube.refuse.lock().unwrap() {
                Some(code) => status(code, "Refused", "refused by the test"),
                None => axum::Json(json!({"kind": "List", "metadata": {}, "items": items})).into_response(),
            };
        };
        let key = format!("{plural}/{name}");
        let Some(mut object) = kube.get(&key) else {
            return status(404, "NotFound", &format!("{key} not found"));
        };
        match method {
            Method::GET => {}
            Method::DELETE => {
                kube.objects.lock().unwrap().remove(&key);
            }
            Method::PUT => {
                if body["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
                    return status(409, "Conflict", "stale");
                }
                let refused = kube.replacing.lock().unwrap().pop();
                if refused.is_none_or(|(_, carried_out)| carried_out) {
                    object = kube.edit(&key, |object| *object = body);
                }
                if let Some((code, _)) = refused {
                    return status(code, "Refused", "refused by the test");
                }
            }
            Method::PATCH if content.contains("json-patch") => {
                let mut changed = object.clone();
                for step in body.as_array().unwrap() {
                    let path = step["path"].as_str().unwrap();
                    match step["op"].as_str().unwrap() {
                        "test" if changed.pointer(path) != Some(&step["value"]) => {
                            return status(422, "Invalid", "test failed");
                        }
                        "test" => {}
                        _ => {
                            let (parent, key) = path.rsplit_once('/').unwrap();
                            changed.pointer_mut(parent).unwrap()[key.replace("~1", "/")] = step["value"].clone();
                        }
                    }
                }
                object = kube.edit(&key, |object| *object = changed);
            }
            _ => object = kube.edit(&key, |object| Self::merge(object, &body)),
        }
        axum::Json(object).into_response()
    }

    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new().route("/{*path}", any(Self::handle)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        url
    }
}

pub struct Server {
    pub kube: Kube,
    pub rest: String,
    pub grpc: String,
    pub client: Http,
    /// Sent with every request.
    pub headers: Vec<(&'static str, String)>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<(), kfp_apiserver::Error>>,
}

/// A minimal HTTP client.
#[derive(Clone)]
pub struct Http(
    pub hyper_util::client::legacy::Client<hyper_util::client::legacy::connect::HttpConnector, axum::body::Body>,
);

/// Status and body of an answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The body of a request that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    #[track_caller]
    pub fn fails(self, status: u16, text: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        assert!(self.body.contains(text), "{text:?} is not in {}", self.body);
        self.json()
    }
}

/// The database of a test: the programs `mariadb` and `postgres` are the same tests over a server, in a database that
/// lives as long as the directory; all others use a file in it.
pub fn database(directory: &Path) -> Database {
    let (driver, section, engine) = match env!("CARGO_CRATE_NAME") {
        "mariadb" => ("mysql", "MySQLConfig", Engine::MariaDb),
        "postgres" => ("pgx", "PostgreSQLConfig", Engine::Postgres),
        _ => return Database::Sqlite(directory.join("test.sqlite")),
    };
    // Not installed: it has been said.
    let Some(server) = engine.shared() else { return Database::Sqlite(directory.join("test.sqlite")) };
    let name = std::fs::read_to_string(directory.join("database")).unwrap_or_else(|_| {
        // Not created, so that the server has to.
        let name = format!("Test_{}", uuid::Uuid::new_v4().simple());
        std::fs::write(directory.join("database"), &name).unwrap();
        name
    });
    let file = json!({"DBDriverName": driver, "InitConnectionTimeout": "20s", "DBConfig": {section: {
        "Host": "127.0.0.1", "Port": server.port(), "User": "root", "Password": "", "DBName": name,
    }}});
    Database::from_config(&Config::new(file, BTreeMap::new())).unwrap()
}

pub async fn start(directory: &Path) -> Server {
    start_with(directory, Kube::default()).await
}

pub async fn start_with(directory: &Path, kube: Kube) -> Server {
    launch(directory, kube, |_| {}).await
}

/// A server without artifacts in a given database.
pub async fn start_on(database: Database, kube: Kube) -> Server {
    launch(Path::new(""), kube, |options| options.database = database).await
}

/// Starts a server whose options are changed first.
pub async fn launch(directory: &Path, kube: Kube, change: impl FnOnce(&mut Options)) -> Server {
    let kube_url = kube.serve().await;
    let env = BTreeMap::from([
        ("KFP_OBJECT_STORE_DIR".to_owned(), directory.join("objects").display().to_string()),
        // Packages are served from this machine here; the rules have unit tests.
        ("PIPELINE_URL_VALIDATION_ENABLED".to_owned(), "false".to_owned()),
    ]);
    let mut options = Options::from_config(&Config::new(Value::Null, env)).unwrap();
    let (http_listener, grpc_listener) =
        (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let rest = format!("http://{}", http_listener.local_addr().unwrap());
    let grpc = format!("http://{}", grpc_listener.local_addr().unwrap());
    options.http_listener = Some(http_listener);
    options.grpc_listener = Some(grpc_listener);
    options.database = database(directory);
    let mut config = kube::Config::new(kube_url.parse().unwrap());
    config.default_retry = false;
    options.kube = Some(kube::Client::try_from(config).unwrap());
    change(&mut options);
    let stop = CancellationToken::new();
    let task = tokio::spawn(kfp_apiserver::run(options, stop.clone()));
    let client = Http(hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http());
    Server { kube, rest, grpc, client, headers: vec![], stop, task }
}

impl Server {
    pub async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.task).await.unwrap().unwrap().unwrap();
    }

    pub async fn send(&self, method: &str, path: &str, content: &str, body: Vec<u8>) -> Reply {
        let mut request = http::Request::builder().method(method).uri(format!("{}{path}", self.rest));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.header("content-type", content).body(axum::body::Body::from(body)).unwrap();
        // The listener is bound before the server runs, so requests wait instead of failing.
        let answer = tokio::time::timeout(Duration::from_secs(30), self.client.0.request(request)).await;
        let answer = answer.unwrap().unwrap();
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(axum::body::Body::new(answer.into_body()), usize::MAX).await.unwrap();
        Reply { status, body: String::from_utf8(body.to_vec()).unwrap() }
    }

    /// Asks until the server is ready.
    pub async fn patiently<F: Future<Output = Reply>>(&self, ask: impl Fn() -> F) -> Reply {
        for _ in 0..20 {
            let reply = ask().await;
            if reply.status != 503 {
                return reply;
            }
        }
        ask().await
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, "application/json", vec![]).await
    }

    pub async fn post(&self, path: &str, body: Value) -> Reply {
        self.send("POST", path, "application/json", body.to_string().into_bytes()).await
    }

    pub async fn patch(&self, path: &str, body: Value) -> Reply {
        self.send("PATCH", path, "application/json", body.to_string().into_bytes()).await
    }

    pub async fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path, "application/json", vec![]).await
    }

    pub async fn upload(&self, path: &str, file: &str, content: &[u8]) -> Reply {
        let mut body = format!(
            "--XX\r\nContent-Disposition: form-data; name=\"uploadfile\"; filename=\"{file}\"\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        .into_bytes();
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n--XX--\r\n");
        self.send("POST", path, "multipart/form-data; boundary=XX", body).await
    }

    pub async fn report(&self, workflow: &Value) -> Reply {
        let body = Value::String(workflow.to_string()).to_string().into_bytes();
        self.send("POST", "/apis/v2beta1/workflows", "application/json", body).await
    }

    /// A run of [`ADD`] with the given parameters.
    pub async fn run(&self, name: &str, parameters: Value) -> Reply {
        let spec: Value = serde_norway::from_str(ADD).unwrap();
        let body = json!({"display_name": name, "pipeline_spec": spec, "runtime_config": {"parameters": parameters}});
        self.post("/apis/v2beta1/runs", body).await
    }
}

/// Percent-encodes a query value.
pub fn quote(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

pub const ADD: &str = r#"
components:
  comp-add:
    executorLabel: exec-add
    inputDefinitions:
      parameters:
        a: {parameterType: NUMBER_DOUBLE}
        b: {parameterType: NUMBER_DOUBLE, defaultValue: 2.0, isOptional: true}
deploymentSpec:
  executors:
    exec-add:
      container:
        image: alpine
        command: [sh, -c, 'echo hello']
pipelineInfo:
  name: add-numbers
root:
  dag:
    tasks:
      add:
        componentRef: {name: comp-add}
        inputs:
          parameters:
            a: {componentInputParameter: a}
            b: {componentInputParameter: b}
        taskInfo: {name: add}
  inputDefinitions:
    parameters:
      a: {parameterType: NUMBER_DOUBLE}
      b: {parameterType: NUMBER_DOUBLE, defaultValue: 2.0, isOptional: true}
      name: {parameterType: STRING, isOptional: true}
schemaVersion: 2.1.0
sdkVersion: kfp-2.17.0
"#;
