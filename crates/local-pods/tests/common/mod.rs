//! A cluster with a running kubelet in a temporary directory.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use kfp_core::shutdown::CancellationToken;
use kfp_local_api::{Cluster, DeleteOptions, EventKind, Selectors, resources::PODS};
use kfp_local_pods::{DriverExit, Invocation, Isolation, Options};
use serde_json::{Value, json};

pub const NS: &str = "kubeflow";
const LIMIT: Duration = Duration::from_secs(120);

pub struct Bench {
    pub dir: PathBuf,
    pub cluster: Cluster,
    pub shutdown: CancellationToken,
    pub task: tokio::task::JoinHandle<Result<(), kfp_local_pods::Error>>,
    _temp: Option<tempfile::TempDir>,
}

/// Writes each `PATH=TEXT` argument; the first argument `fail` makes it fail.
async fn driver(call: Invocation) -> DriverExit {
    call.log.line(&format!("driver of {} in {}", call.pod, call.namespace));
    let file = |arg: &String| arg.split_once('=').map(|(path, text)| (path.to_owned(), text.to_owned()));
    let files = call.args.iter().filter_map(file).collect();
    match call.args.first().is_some_and(|a| a == "fail") {
        true => DriverExit { code: 1, message: "no such input".into(), files },
        false => DriverExit { files, ..DriverExit::default() },
    }
}

pub fn options(dir: &Path, isolation: Isolation) -> Options {
    use std::os::unix::fs::PermissionsExt as _;
    let launcher = dir.join("launcher-for-tests");
    std::fs::write(&launcher, "#!/bin/sh\nwhile [ \"$1\" != -- ]; do shift; done\nshift\nexec \"$@\"\n").unwrap();
    std::fs::set_permissions(&launcher, std::fs::Permissions::from_mode(0o755)).unwrap();
    let kubeconfig = dir.join("kubeconfig");
    std::fs::write(&kubeconfig, "{}").unwrap();
    let mut options = Options::new(
        dir.join("data"),
        kubeconfig,
        launcher,
        env!("CARGO_BIN_EXE_kfp-pod-init").into(),
        Arc::new(|call| driver(call).boxed()),
    );
    options.isolation = isolation;
    options.prepare_python = false;
    options.grace_seconds = 2;
    options.extra_env.insert("KFP_OBJECT_STORE_DIR".into(), dir.join("data/objects").display().to_string());
    options
}

impl Bench {
    pub async fn start(isolation: Isolation) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut bench = Self::start_in(temp.path(), options(temp.path(), isolation)).await;
        bench._temp = Some(temp);
        bench
    }

    pub async fn start_in(dir: &Path, options: Options) -> Self {
        let cluster = Cluster::open(&dir.join("cluster")).await.unwrap();
        Self::start_on(cluster, dir, options)
    }

    pub fn start_on(cluster: Cluster, dir: &Path, options: Options) -> Self {
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(kfp_local_pods::run(cluster.clone(), options, shutdown.clone()));
        Self { dir: dir.into(), cluster, shutdown, task, _temp: None }
    }

    pub async fn create(&self, pod: Value) -> Arc<Value> {
        self.cluster.create(&PODS, NS, pod).await.unwrap()
    }

    /// Waits until the pod of that name satisfies `done`.
    pub async fn until(&self, name: &str, done: impl Fn(&Value) -> bool) -> Arc<Value> {
        let find = async {
            let list = self.cluster.list(&PODS, Some(NS), &Selectors::name(name)).await.unwrap();
            if let Some(pod) = list.items.iter().find(|p| done(p)) {
                return pod.clone();
            }
            let mut watch = self.cluster.watch(&PODS, Some(NS), Some(list.resource_version), Selectors::name(name));
            while let Some(event) = watch.next().await {
                let event = event.unwrap();
                if event.kind != EventKind::Deleted && done(&event.object) {
                    return event.object;
                }
            }
            panic!("the watch ended");
        };
        match tokio::time::timeout(LIMIT, find).await {
            Ok(pod) => pod,
            Err(_) => panic!("{name}: {:#}", self.cluster.get(&PODS, NS, name).await.unwrap()),
        }
    }

    pub async fn ended(&self, name: &str) -> Arc<Value> {
        self.until(name, |p| matches!(p["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))).await
    }

    /// Runs a pod with one container to its end.
    pub async fn run(&self, name: &str, container: Value) -> Arc<Value> {
        self.create(pod(name, container)).await;
        self.ended(name).await
    }

    /// Runs shell text to its end and gives its output.
    pub async fn sh(&self, name: &str, text: &str) -> (Arc<Value>, String) {
        let ended = self.run(name, json!({"command": ["sh", "-c", text]})).await;
        (ended, self.log(name))
    }

    pub fn log(&self, name: &str) -> String {
        let bytes = kfp_local_pods::plain_text(&self.dir.join("data"), NS, name, "main").unwrap();
        String::from_utf8(bytes).unwrap()
    }

    pub async fn delete(&self, name: &str) {
        self.cluster.delete(&PODS, NS, name, DeleteOptions::default()).await.unwrap();
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.task).await.unwrap().unwrap().unwrap();
        self.cluster.close().await;
    }
}

pub fn pod(name: &str, mut container: Value) -> Value {
    container["name"] = json!("main");
    container["image"] = json!("any");
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
        "restartPolicy": "Never", "containers": [container]}})
}

pub fn exit_code(pod: &Value) -> Option<i64> {
    pod.pointer("/status/containerStatuses/0/state/terminated/exitCode")?.as_i64()
}

/// Processes whose command line contains the text.
pub fn processes_with(text: &str) -> usize {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|e| e.file_name().to_str().is_some_and(|n| n.chars().all(|c| c.is_ascii_digit())))
        .filter(|e| std::fs::read(e.path().join("cmdline")).is_ok_and(|c| String::from_utf8_lossy(&c).contains(text)))
        .count()
}

/// Waits until a condition about the machine holds. There is no event for it, so it looks again.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(std::time::Instant::now() < end, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
