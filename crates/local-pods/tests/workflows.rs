//! Workflows written by hand (`tests/workflows`), run by the engine and this pod runner together.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::time::Duration;

use common::{Bench, NS};
use futures::StreamExt as _;
use kfp_core::argo::{NodePhase, NodeStatus, Workflow, WorkflowPhase, names};
use kfp_local_api::resources::{PERSISTENT_VOLUME_CLAIMS, WORKFLOWS};
use kfp_local_api::{EventKind, Selectors};
use kfp_local_pods::Isolation;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);

struct Platform {
    bench: Bench,
    engine: tokio::task::JoinHandle<()>,
}

struct Ended {
    workflow: Workflow,
    pods: Vec<(String, String)>,
}

impl Platform {
    async fn start() -> Self {
        let bench = Bench::start(Isolation::Auto).await;
        let options = kfp_local_engine::Options::default();
        let engine = tokio::spawn(kfp_local_engine::run(bench.cluster.clone(), options, bench.shutdown.clone()));
        Self { bench, engine }
    }

    async fn create(&self, file: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/workflows").join(file);
        let text = std::fs::read_to_string(path).unwrap();
        let object: Value = serde_norway::from_str(&text).unwrap();
        let made = self.bench.cluster.create(&WORKFLOWS, NS, object).await.unwrap();
        made["metadata"]["name"].as_str().unwrap().to_owned()
    }

    async fn until(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut watch = self.bench.cluster.watch(&WORKFLOWS, Some(NS), None, Selectors::name(name));
        let found = async {
            while let Some(Ok(event)) = watch.next().await {
                if event.kind != EventKind::Deleted && wanted(&event.object) {
                    return (*event.object).clone();
                }
            }
            panic!("the watch ended");
        };
        match tokio::time::timeout(LIMIT, found).await {
            Ok(object) => object,
            Err(_) => panic!("{:#}", self.bench.cluster.get(&WORKFLOWS, NS, name).await.unwrap()["status"]),
        }
    }

    async fn ended(&self, name: &str) -> Ended {
        let object = self.until(name, |object| object["metadata"]["labels"][names::LABEL_COMPLETED] == "true").await;
        let pods = self.bench.cluster.list(&kfp_local_api::resources::PODS, Some(NS), &Selectors::default()).await;
        let text = |pod: &Value, path: &str| pod.pointer(path).unwrap().as_str().unwrap().to_owned();
        let node = "/metadata/annotations/workflows.argoproj.io~1node-name";
        let pods = pods.unwrap().items;
        let pods = pods.iter().map(|pod| (text(pod, node), text(pod, "/metadata/name"))).collect();
        Ended { workflow: serde_json::from_value(object).unwrap(), pods }
    }

    async fn run(&self, file: &str, phase: WorkflowPhase) -> Ended {
        let name = self.create(file).await;
        let ended = self.ended(&name).await;
        assert_eq!(ended.workflow.status.phase, phase, "{file}: {:#}", json!(ended.workflow.status));
        ended
    }

    fn log(&self, ended: &Ended, node: &str) -> String {
        let full = format!("{}{node}", ended.workflow.metadata.name);
        let pod = ended.pods.iter().find(|(name, _)| *name == full).unwrap_or_else(|| panic!("{:?}", ended.pods));
        self.bench.log(&pod.1)
    }

    async fn stop(self) {
        self.bench.stop().await;
        tokio::time::timeout(LIMIT, self.engine).await.unwrap().unwrap();
    }
}

impl Ended {
    fn node(&self, name: &str) -> &NodeStatus {
        let full = format!("{}{name}", self.workflow.metadata.name);
        let found = self.workflow.status.nodes.values().find(|node| node.name == full);
        found.unwrap_or_else(|| panic!("no node {full} in {:?}", self.workflow.status.nodes.keys()))
    }

    fn output(&self, node: &str, name: &str) -> &str {
        self.node(node).outputs.as_ref().unwrap().parameter(name).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn containers_parameters_and_loops() {
    use WorkflowPhase::Succeeded;
    let platform = Platform::start().await;
    let ended = platform.run("hello-world.yaml", Succeeded).await;
    assert_eq!(platform.log(&ended, ""), "hello world\n");

    let ended = platform.run("arguments-parameters.yaml", Succeeded).await;
    assert_eq!(platform.log(&ended, ".one"), "hello\n");
    assert_eq!(platform.log(&ended, ".two"), format!("$(x) {}\n", ended.workflow.metadata.name));

    let ended = platform.run("loops.yaml", Succeeded).await;
    assert_eq!(platform.log(&ended, "[0].maps(0:os:linux,version:6.1)"), "linux-6.1\n");
    assert_eq!(platform.log(&ended, "[0].literal(2:true)"), "true\n");
    assert_eq!(platform.log(&ended, "[3].sum"), "[\"2\",\"4\",\"6\"]\n");
    assert_eq!(ended.workflow.status.progress, "10/10");

    let ended = platform.run("parameters-and-defaults.yaml", Succeeded).await;
    assert_eq!(platform.log(&ended, ".use"), "two words+by default\n");
    assert_eq!(ended.output("", "all"), "two words+by default/skipped");
    assert_eq!(platform.log(&ended, ".sidecar"), "from the sidecar\n");
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn scripts_recursion_and_retries() {
    let platform = Platform::start().await;
    let ended = platform.run("coin-flip.yaml", WorkflowPhase::Succeeded).await;
    assert_eq!(platform.log(&ended, "[1].tails[1].tails[1].heads"), "it was heads\n");
    assert_eq!(ended.node("[0].flip").outputs.as_ref().unwrap().result.as_deref(), Some("tails"));

    let ended = platform.run("retry.yaml", WorkflowPhase::Succeeded).await;
    assert_eq!(ended.output("", "attempt"), "2");
    assert_eq!(ended.node("(1)").message, "main: Error (exit code 7)");

    let ended = platform.run("exit-handler.yaml", WorkflowPhase::Failed).await;
    let name = &ended.workflow.metadata.name;
    assert_eq!(platform.log(&ended, ".onExit[0].notify"), format!("{name} Failed\n"));
    assert!(platform.log(&ended, ".onExit[0].cry").contains("main: Error (exit code 3)"));
    assert_eq!(ended.node(".onExit[0].celebrate").phase, NodePhase::Skipped);
    assert_eq!(ended.workflow.status.message, "main: Error (exit code 3)");
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn artifacts_resources_and_what_goes_wrong() {
    let platform = Platform::start().await;
    let ended = platform.run("artifacts.yaml", WorkflowPhase::Succeeded).await;
    let name = &ended.workflow.metadata.name;
    let text = format!("file\na\nc\nfixed\nraw in {name}");
    assert_eq!(platform.log(&ended, ".use"), format!("{text}\n"));
    let result = &ended.node("").outputs.as_ref().unwrap().artifacts[0];
    let key = result.extra["s3"]["key"].as_str().unwrap();
    assert!(key.starts_with(&format!("private-artifacts/{NS}/{name}/")) && key.ends_with("/result"), "{key}");
    let stored = platform.bench.dir.join("data/objects/mlpipeline").join(key);
    assert_eq!(std::fs::read_to_string(stored).unwrap(), text);
    let made = &ended.node(".make").outputs.as_ref().unwrap().artifacts;
    assert_eq!(made.iter().map(|artifact| artifact.name.as_str()).collect::<Vec<_>>(), ["file", "tree", "fixed"]);

    let ended = platform.run("resources.yaml", WorkflowPhase::Succeeded).await;
    assert_eq!(ended.output(".create", "size"), "1Gi");
    assert_eq!(ended.output(".read", "text"), "kept");
    let claim = ended.output(".create", "name");
    assert!(platform.bench.cluster.get(&PERSISTENT_VOLUME_CLAIMS, NS, claim).await.is_err(), "{claim} is deleted");

    let ended = platform.run("missing-output.yaml", WorkflowPhase::Error).await;
    assert_eq!(
        ended.workflow.status.message,
        "wait: Error (exit code 64): artifact data failed to save: /tmp/data no such file or directory"
    );
    platform.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn termination_runs_exit_hooks() {
    let platform = Platform::start().await;
    let name = platform.create("long-running.yaml").await;
    let running = |object: &Value| {
        let nodes = object["status"]["nodes"].as_object();
        nodes.is_some_and(|nodes| nodes.values().any(|node| node["type"] == "Pod" && node["phase"] == "Running"))
    };
    platform.until(&name, running).await;
    let change = |object: &mut Value| {
        object["spec"]["activeDeadlineSeconds"] = json!(0);
        Ok(())
    };
    platform.bench.cluster.modify(&WORKFLOWS, NS, &name, change).await.unwrap();
    let ended = platform.ended(&name).await;
    assert_eq!(ended.workflow.status.phase, WorkflowPhase::Failed);
    assert_eq!(ended.node(".wait").message, "Step exceeded its deadline");
    assert_eq!(platform.log(&ended, ".wait.onExit"), "cleaned\n");
    assert_eq!(ended.node(".after").phase, NodePhase::Omitted);
    platform.stop().await;
}
