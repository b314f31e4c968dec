//! Argo's own workflow-controller takes the Workflows that the API server compiles and creates their pods.
//!
//! `KFP_TEST_ARGO` names a folder with the program and its custom resource definitions; there is no kubelet, so the pods
//! stay as they were created.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod world;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use kfp_test_cluster::{define, real, workflows};
use kube::api::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use world::world;

struct Controller {
    child: Child,
    log: PathBuf,
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

fn core(kind: &str, plural: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", kind), plural)
}

fn program() -> Option<(PathBuf, PathBuf)> {
    let Some(folder) = std::env::var_os("KFP_TEST_ARGO").map(PathBuf::from) else {
        eprintln!("SKIPPED: KFP_TEST_ARGO names no folder with Argo's workflow-controller");
        return None;
    };
    let (Some(kubeconfig), true) = (real(), std::env::var_os("KFP_TEST_CLUSTER_IS_PRIVATE").is_some()) else {
        eprintln!("SKIPPED: Argo's definitions are put into a private Kubernetes API only");
        return None;
    };
    Some((folder, kubeconfig))
}

async fn start(folder: &Path, kubeconfig: &Path, kube: &kfp_test_cluster::Kube, log: PathBuf) -> Controller {
    for entry in std::fs::read_dir(folder.join("crds")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let definition: Value = serde_norway::from_str(&text).unwrap();
        if definition["kind"] == "CustomResourceDefinition" {
            define(&kube.client, definition).await;
        }
    }
    let settings = json!({"metricsConfig": "enabled: false\n", "executor": "image: argoexec\n"});
    kube.create(&core("ConfigMap", "configmaps"), json!({"metadata": {"name": "argo"}, "data": settings})).await;
    let output = std::fs::File::create(&log).unwrap();
    let child = Command::new(folder.join("workflow-controller"))
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["--namespaced", "--namespace", &kube.namespace, "--configmap=argo", "--executor-image=argoexec"])
        .env("LEADER_ELECTION_DISABLE", "true")
        .stdout(Stdio::from(output.try_clone().unwrap()))
        .stderr(Stdio::from(output))
        .spawn()
        .unwrap();
    Controller { child, log }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workflow_controller_runs_what_the_api_server_compiles() {
    let Some((folder, kubeconfig)) = program() else { return };
    let world = world().await;
    let dir = tempfile::tempdir().unwrap();
    let _controller = start(&folder, &kubeconfig, &world.kube, dir.path().join("log")).await;
    let (run, workflow) = world.start_run().await;
    let name = workflow["metadata"]["name"].as_str().unwrap().to_owned();
    let pod = world
        .eventually("the first pod", async |world| {
            let phase = world.kube.get(&workflows(), &name).await["status"]["phase"].clone();
            assert!(phase != "Error" && phase != "Failed", "{:#}", world.kube.get(&workflows(), &name).await["status"]);
            world.kube.list(&core("Pod", "pods")).await.into_iter().next()
        })
        .await;
    assert_eq!(pod["metadata"]["labels"]["workflows.argoproj.io/workflow"], name);
    assert_eq!(pod["metadata"]["labels"]["pipeline/runid"], run.run_id);
    // The first of a v2 pipeline is the driver of its root.
    let containers = pod["spec"]["containers"].as_array().unwrap();
    let main = containers.iter().find(|container| container["name"] == "main").unwrap();
    assert!(main["args"].to_string().contains("ROOT_DAG"), "{main:#}");
    // The agent tells the run what Argo has begun.
    world
        .eventually("the run's start", async |world| {
            let request = v2::GetRunRequest { run_id: run.run_id.clone(), ..v2::GetRunRequest::default() };
            let seen = world.runs.clone().get_run(request).await.unwrap().into_inner();
            (seen.state() == v2::RuntimeState::Running).then_some(())
        })
        .await;
}
