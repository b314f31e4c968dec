//! Pods that ended long ago are removed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;

use common::{Bench, NS, options, pod};
use futures::StreamExt as _;
use kfp_core::argo::names::{LABEL_COMPLETED, LABEL_WORKFLOW};
use kfp_local_api::resources::{PODS, WORKFLOWS};
use kfp_local_api::{EventKind, Selectors};
use kfp_local_pods::Isolation;
use serde_json::json;

async fn names(bench: &Bench) -> BTreeSet<String> {
    let list = bench.cluster.list(&PODS, Some(NS), &Selectors::default()).await.unwrap();
    list.items.iter().map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_pods_go_unless_their_workflow_goes_on() {
    let temp = tempfile::tempdir().unwrap();
    let options = kfp_local_pods::Options { ended_pods: 3, ..options(temp.path(), Isolation::Mapped) };
    let bench = Bench::start_in(temp.path(), options).await;
    for (name, completed) in [("on", "false"), ("over", "true")] {
        let workflow = json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "spec": {},
            "metadata": {"name": name, "labels": {LABEL_COMPLETED: completed}}});
        bench.cluster.create(&WORKFLOWS, NS, workflow).await.unwrap();
    }
    let mut gone = bench.cluster.watch(&PODS, Some(NS), None, Selectors::default());
    let workflows = ["on", "over", "unknown", "on", "over", "over"];
    for (index, workflow) in workflows.into_iter().enumerate() {
        let name = format!("p{index}");
        let mut pod = pod(&name, json!({"command": ["sh", "-c", "echo said"]}));
        pod["metadata"]["labels"] = json!({LABEL_WORKFLOW: workflow});
        bench.create(pod).await;
        bench.ended(&name).await;
    }
    let mut removed = Vec::new();
    let three = async {
        while removed.len() < 3 {
            let event = gone.next().await.unwrap().unwrap();
            if event.kind == EventKind::Deleted {
                removed.push(event.object["metadata"]["name"].as_str().unwrap().to_owned());
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), three).await.unwrap();
    removed.sort();
    assert_eq!(removed, ["p1", "p2", "p4"]);
    assert_eq!(names(&bench).await, ["p0", "p3", "p5"].map(str::to_owned).into());
    assert_eq!(bench.log("p0"), "said\n");
    bench.stop().await;
}
