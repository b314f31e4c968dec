//! A cluster in a directory of its own, in process and over HTTP.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::time::Duration;

use futures::StreamExt as _;
use kfp_local_api::{Cluster, EventKind, Watch, kubeconfig, serve};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Longest wait for something that should happen at once; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Local {
    pub cluster: Cluster,
    pub dir: tempfile::TempDir,
}

pub async fn local() -> Local {
    let dir = tempfile::tempdir().unwrap();
    Local { cluster: Cluster::open(dir.path()).await.unwrap(), dir }
}

pub struct Served {
    pub local: Local,
    pub url: String,
    pub client: kube::Client,
    pub shutdown: CancellationToken,
    pub server: tokio::task::JoinHandle<std::io::Result<()>>,
}

pub async fn served() -> Served {
    let local = local().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(serve(local.cluster.clone(), listener, shutdown.clone()));
    let config = kube::config::Kubeconfig::from_yaml(&kubeconfig(&url, "kubeflow")).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
    assert_eq!(config.default_namespace, "kubeflow");
    let client = kube::Client::try_from(config).unwrap();
    Served { local, url, client, shutdown, server }
}

impl Served {
    /// Status code and JSON body (or text) of a plain request.
    pub async fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let mut request = http::Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(kube::client::Body::from(body.as_bytes().to_vec())).unwrap();
        let response = self.client.send(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect_bytes().await.unwrap();
        let value = serde_json::from_slice(&bytes)
            .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
        (status, value)
    }
}

/// The next event: its kind and the object's name.
pub async fn next(watch: &mut Watch) -> (EventKind, String) {
    let event = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
    (event.kind, event.object["metadata"]["name"].as_str().unwrap_or_default().to_string())
}

pub fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

pub fn config_map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"key": "value"}})
}

pub fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "main", "image": "busybox"}]}})
}

pub fn owner(object: &Value) -> Value {
    json!({"apiVersion": object["apiVersion"], "kind": object["kind"], "name": object["metadata"]["name"],
        "uid": object["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true})
}
