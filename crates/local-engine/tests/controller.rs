//! The controller on the embedded Kubernetes API, with a fake pod runner.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

mod common;

use futures::StreamExt;
use kfp_core::argo::names;
use kfp_core::shutdown::CancellationToken;
use kfp_local_api::{Cluster, DeleteOptions, EventKind, Selectors, resources};
use kfp_local_engine::Options;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

const NS: &str = "kubeflow";
/// Longest wait for something that has to happen.
const LIMIT: Duration = Duration::from_secs(60);

struct Engine {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Engine {
    fn start(cluster: &Cluster) -> Engine {
        let stop = CancellationToken::new();
        let task = tokio::spawn(kfp_local_engine::run(cluster.clone(), Options::default(), stop.clone()));
        Engine { stop, task }
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(LIMIT, self.task).await.unwrap().unwrap();
    }
}

/// Ends every pod at once, except those whose node name contains `hold`.
fn runner(cluster: &Cluster, hold: &'static str) -> JoinHandle<()> {
    let cluster = cluster.clone();
    tokio::spawn(async move {
        let mut pods = cluster.watch(&resources::PODS, None, None, Selectors::default());
        while let Some(Ok(event)) = pods.next().await {
            let pod = event.object;
            let open = matches!(pod["status"]["phase"].as_str(), None | Some("" | "Pending"));
            if event.kind == EventKind::Deleted || !open {
                continue;
            }
            let held = !hold.is_empty() && common::node_name(&pod).contains(hold);
            let stopped = pod["spec"]["activeDeadlineSeconds"] == 0;
            if held && !stopped {
                continue;
            }
            let parameters: Vec<Value> = common::plausible(&pod, "0")
                .into_iter()
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect();
            let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
            let cluster = cluster.clone();
            tokio::spawn(async move {
                let end = move |pod: &mut Value| {
                    let outputs = json!({"parameters": parameters}).to_string();
                    pod["metadata"]["annotations"][names::ANNOTATION_OUTPUTS] = json!(outputs);
                    let phase = if stopped { "Failed" } else { "Succeeded" };
                    pod["status"] = json!({"phase": phase, "containerStatuses": [
                        {"name": "main", "state": {"terminated": {"exitCode": i32::from(stopped)}}}]});
                    Ok(())
                };
                // The pod may have been deleted meanwhile.
                let _ = cluster.modify(&resources::PODS, NS, &name, end).await;
            });
        }
    })
}

async fn open(dir: &std::path::Path) -> Cluster {
    Cluster::open(dir).await.unwrap()
}

async fn create(cluster: &Cluster, name: &str, tasks: Value) -> Arc<Value> {
    let workflow = json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": name, "namespace": NS},
        "spec": {"entrypoint": "main", "templates": [
            {"name": "main", "dag": {"tasks": tasks}},
            {"name": "pod", "outputs": {"parameters": [{"name": "o", "valueFrom": {"path": "/tmp/o"}}]},
                "container": {"image": "i", "command": ["true"]}},
        ]},
    });
    cluster.create(&resources::WORKFLOWS, NS, workflow).await.unwrap()
}

/// Waits until a Workflow is as wanted.
async fn until(cluster: &Cluster, name: &str, wanted: impl Fn(&Value) -> bool) -> Arc<Value> {
    let mut watch = cluster.watch(&resources::WORKFLOWS, Some(NS), None, Selectors::name(name));
    let found = async {
        while let Some(Ok(event)) = watch.next().await {
            if event.kind != EventKind::Bookmark && wanted(&event.object) {
                return event.object;
            }
        }
        panic!("watch ended");
    };
    match tokio::time::timeout(LIMIT, found).await {
        Ok(object) => object,
        Err(_) => {
            let object = cluster.get(&resources::WORKFLOWS, NS, name).await;
            panic!("{name} did not get there: {:?}", object.map(|object| object["status"].clone()))
        }
    }
}

fn completed(workflow: &Value) -> bool {
    workflow["metadata"]["labels"][names::LABEL_COMPLETED] == "true"
}

fn chain(length: usize) -> Value {
    let task = |at: usize| match at {
        0 => json!({"name": "t0", "template": "pod"}),
        _ => json!({"name": format!("t{at}"), "template": "pod", "depends": format!("t{}.Succeeded", at - 1)}),
    };
    (0..length).map(task).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workflows_run_to_their_end() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = open(dir.path()).await;
    let engine = Engine::start(&cluster);
    let pods = runner(&cluster, "");
    let begun = Instant::now();
    create(&cluster, "chain", chain(30)).await;
    let chain = until(&cluster, "chain", completed).await;
    eprintln!("chain of 30: {:?} per task", begun.elapsed() / 30);
    assert_eq!(chain["status"]["phase"], "Succeeded");
    assert_eq!(chain["status"]["progress"], "30/30");

    let begun = Instant::now();
    create(&cluster, "wide", json!([{"name": "l", "template": "pod", "withSequence": {"count": "200"}}])).await;
    let wide = until(&cluster, "wide", completed).await;
    eprintln!("loop of 200: {:?} per task", begun.elapsed() / 200);
    assert_eq!(wide["status"]["phase"], "Succeeded");
    assert_eq!(wide["status"]["nodes"].as_object().unwrap().len(), 202);
    engine.stop().await;
    pods.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_engine_continues() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = open(dir.path()).await;
    let engine = Engine::start(&cluster);
    create(&cluster, "w", chain(3)).await;
    until(&cluster, "w", |workflow| !workflow["status"]["nodes"].is_null()).await;
    engine.stop().await;
    let pods = runner(&cluster, "");
    let engine = Engine::start(&cluster);
    let done = until(&cluster, "w", completed).await;
    assert_eq!(done["status"]["phase"], "Succeeded");
    assert_eq!(cluster.list(&resources::PODS, Some(NS), &Selectors::default()).await.unwrap().items.len(), 3);
    engine.stop().await;
    pods.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn terminating_stops_the_pod_and_keeps_it() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = open(dir.path()).await;
    let engine = Engine::start(&cluster);
    let pods = runner(&cluster, "w.t1");
    create(&cluster, "w", chain(3)).await;
    until(&cluster, "w", |workflow| workflow["status"]["progress"] == "1/2").await;
    let terminate = kfp_local_api::Patch::Merge(json!({"spec": {"activeDeadlineSeconds": 0}}));
    cluster.patch(&resources::WORKFLOWS, NS, "w", terminate, None).await.unwrap();
    let done = until(&cluster, "w", completed).await;
    assert_eq!(done["status"]["phase"], "Failed");
    let nodes = done["status"]["nodes"].as_object().unwrap();
    assert!(nodes.values().any(|node| node["message"] == "Step exceeded its deadline"));
    let pod = nodes.values().find(|node| node["displayName"] == "t1").unwrap();
    let name = kfp_local_engine::names::pod_name("w", pod["name"].as_str().unwrap(), "pod", false);
    let mut watch = cluster.watch(&resources::PODS, Some(NS), None, Selectors::name(name));
    let failed = async { while watch.next().await.unwrap().unwrap().object["status"]["phase"] != "Failed" {} };
    tokio::time::timeout(LIMIT, failed).await.unwrap();
    engine.stop().await;
    pods.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_pod_and_a_deleted_workflow_are_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = open(dir.path()).await;
    let engine = Engine::start(&cluster);
    create(&cluster, "w", chain(1)).await;
    create(&cluster, "gone", chain(1)).await;
    until(&cluster, "gone", |workflow| !workflow["status"]["nodes"].is_null()).await;
    cluster.delete(&resources::WORKFLOWS, NS, "gone", DeleteOptions::default()).await.unwrap();
    let selector = Selectors::labels([(names::LABEL_WORKFLOW, "w")]);
    let mut watch = cluster.watch(&resources::PODS, Some(NS), None, selector);
    let pod = tokio::time::timeout(LIMIT, watch.next()).await.unwrap().unwrap().unwrap().object;
    let name = pod["metadata"]["name"].as_str().unwrap();
    cluster.delete(&resources::PODS, NS, name, DeleteOptions::default()).await.unwrap();
    let done = until(&cluster, "w", completed).await;
    assert_eq!(done["status"]["phase"], "Error");
    // A Workflow of the same name is a new one.
    let pods = runner(&cluster, "");
    create(&cluster, "gone", chain(2)).await;
    assert_eq!(until(&cluster, "gone", completed).await["status"]["phase"], "Succeeded");
    engine.stop().await;
    pods.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_cannot_be_read_keep_no_other_workflow_from_running() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = open(dir.path()).await;
    for name in ["broken-before", "broken-after", "good"] {
        create(&cluster, name, chain(2)).await;
    }
    cluster.close().await;
    let break_row = |name: &str| {
        let database = rusqlite::Connection::open(dir.path().join("kubernetes.db")).unwrap();
        assert_eq!(database.execute("UPDATE objects SET body = '{' WHERE name = ?", [name]).unwrap(), 1);
    };
    // One that is broken when the store is opened, and one that breaks before the engine reads it.
    break_row("broken-before");
    let cluster = open(dir.path()).await;
    break_row("broken-after");
    let engine = Engine::start(&cluster);
    let pods = runner(&cluster, "");
    assert_eq!(until(&cluster, "good", completed).await["status"]["phase"], "Succeeded");
    create(&cluster, "new", chain(1)).await;
    assert_eq!(until(&cluster, "new", completed).await["status"]["phase"], "Succeeded");
    for name in ["broken-before", "broken-after"] {
        let error = cluster.get(&resources::WORKFLOWS, NS, name).await.unwrap_err();
        assert!(error.code == 500 && error.message.contains(name), "{error}");
    }
    engine.stop().await;
    pods.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_and_unreadable_workflows_are_dealt_with() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = open(dir.path()).await;
    let engine = Engine::start(&cluster);
    let mut unreadable = json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": "bad", "namespace": NS},
        "spec": {"templates": "none", "ttlStrategy": {"secondsAfterCompletion": 1}},
    });
    cluster.create(&resources::WORKFLOWS, NS, unreadable.take()).await.unwrap();
    let mut watch = cluster.watch(&resources::WORKFLOWS, Some(NS), None, Selectors::name("bad"));
    let mut failed = false;
    let gone = async {
        loop {
            let event = watch.next().await.unwrap().unwrap();
            failed |= event.object["status"]["phase"] == "Failed";
            if event.kind == EventKind::Deleted {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, gone).await.unwrap();
    assert!(failed);
    engine.stop().await;
}
