//! What the server does by itself: samples, runs whose time is up, schedules that follow an upgrade.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::{ADD, Kube, Server, launch, start};

async fn until(server: &Server, path: &str, reached: impl Fn(&Value) -> bool) -> Value {
    let reached = async {
        loop {
            let reply = server.get(path).await;
            let seen = if reply.status == 200 { reply.json() } else { Value::Null };
            if reached(&seen) {
                return seen;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reached).await.unwrap()
}

#[tokio::test]
async fn samples_are_loaded_once_unless_they_are_to_be_loaded_again() {
    let dir = tempfile::tempdir().unwrap();
    let (file, list) = (dir.path().join("add.yaml"), dir.path().join("samples.json"));
    std::fs::write(&file, ADD).unwrap();
    let write = |name: &str, reload: bool| {
        let sample = json!({"name": name, "displayName": "Shown", "file": file, "versionName": "v1"});
        let samples = json!({"loadSamplesOnRestart": reload, "pipelines": [sample]});
        std::fs::write(&list, samples.to_string()).unwrap();
    };
    let boot = || {
        launch(dir.path(), Kube::default(), |options| {
            options.samples = Some(list.clone());
            options.sample_tags = [("managed".to_owned(), "true".to_owned())].into();
        })
    };
    write("first", false);
    let server = boot().await;
    let seen = server.get("/apis/v2beta1/pipelines").await.ok();
    let pipeline = &seen["pipelines"][0];
    assert_eq!((&pipeline["display_name"], &pipeline["tags"]), (&json!("Shown"), &json!({"managed": "true"})));
    let versions = format!("/apis/v2beta1/pipelines/{}/versions", pipeline["pipeline_id"].as_str().unwrap());
    assert_eq!(server.get(&versions).await.ok()["pipeline_versions"][0]["name"], "v1");
    server.stop().await;

    write("second", false);
    let server = boot().await;
    assert_eq!(server.get("/apis/v2beta1/pipelines").await.ok()["total_size"], 1);
    server.stop().await;

    write("second", true);
    let server = boot().await;
    assert_eq!(server.get("/apis/v2beta1/pipelines").await.ok()["total_size"], 2);
    server.stop().await;
}

#[tokio::test]
async fn old_runs_are_archived_and_then_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let run = server.run("old", json!({"a": 1})).await.ok();
    let fresh = server.run("fresh", json!({"a": 1})).await.ok();
    let path = |run: &Value| format!("/apis/v2beta1/runs/{}", run["run_id"].as_str().unwrap());
    let name = server
        .kube
        .names("workflows")
        .into_iter()
        .find(|name| {
            let workflow = server.kube.get(&format!("workflows/{name}")).unwrap();
            workflow["metadata"]["labels"]["pipeline/runid"] == run["run_id"]
        })
        .unwrap();
    let done = server.kube.edit(&format!("workflows/{name}"), |workflow| {
        workflow["status"] = json!({"phase": "Succeeded", "finishedAt": "2020-01-01T00:00:00Z"});
    });
    server.report(&done).await.ok();
    server.stop().await;

    let hour = Duration::from_secs(3600);
    let server = launch(dir.path(), Kube::default(), |options| options.retention.runs = hour).await;
    let archived = until(&server, &path(&run), |seen| seen["storage_state"] == "ARCHIVED").await;
    assert_eq!(archived["state"], "SUCCEEDED");
    assert_eq!(server.get(&path(&fresh)).await.ok()["storage_state"], "AVAILABLE");
    server.stop().await;

    // Just archived: it stays for as long as archived runs are kept.
    let server = launch(dir.path(), Kube::default(), |options| options.retention.archived = hour).await;
    assert_eq!(server.get(&path(&run)).await.ok()["storage_state"], "ARCHIVED");
    server.stop().await;
}

#[tokio::test]
async fn schedules_follow_an_upgrade() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let spec: Value = serde_norway::from_str(ADD).unwrap();
    let body = json!({"display_name": "s", "max_concurrency": 1, "mode": "ENABLE", "pipeline_spec": spec,
                      "runtime_config": {"parameters": {"a": 1}}});
    server.post("/apis/v2beta1/recurringruns", body).await.ok();
    let key = format!("scheduledworkflows/{}", server.kube.names("scheduledworkflows")[0]);
    let before = server.kube.get(&key).unwrap();
    let kube = server.kube.clone();
    server.stop().await;

    // The same settings change nothing.
    let server = launch(dir.path(), kube.clone(), |_| {}).await;
    server.get("/apis/v2beta1/recurringruns").await.ok();
    server.stop().await;
    assert_eq!(kube.get(&key).unwrap()["spec"], before["spec"]);

    let server = launch(dir.path(), kube.clone(), |options| options.compiler.driver_image = "driver:next".into()).await;
    let updated = async {
        while !kube.get(&key).unwrap()["spec"]["workflow"]["spec"].as_str().unwrap().contains("driver:next") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), updated).await.unwrap();
    server.stop().await;
}
