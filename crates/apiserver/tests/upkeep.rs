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
async fn a_changed_configuration_counts_from_then_on() {
    let dir = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        // As Kubernetes does: all at once.
        std::fs::write(dir.path().join("new"), text).unwrap();
        std::fs::rename(dir.path().join("new"), dir.path().join("config.json")).unwrap();
    };
    let account = |name: &str| json!({"DEFAULTPIPELINERUNNERSERVICEACCOUNT": name}).to_string();
    write("{}");
    let server =
        launch(dir.path(), Kube::default(), |options| options.config_directory = Some(dir.path().to_owned())).await;
    let runs_as = async |wanted: &str| {
        let reached = async {
            loop {
                let run = server.run("r", json!({"a": 1})).await.ok();
                if run["service_account"] == wanted {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reached).await.unwrap();
    };
    runs_as("pipeline-runner").await;
    write(&account("first"));
    runs_as("first").await;
    // What cannot be used changes nothing, and does not keep the next change out.
    write("{");
    runs_as("first").await;
    write(&account("second"));
    runs_as("second").await;
    server.stop().await;
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

/// A Workflow that is deleted while nobody watches ends its run, but only when that is certain.
#[tokio::test]
async fn run_whose_workflow_vanished_ends() {
    let dir = tempfile::tempdir().unwrap();
    let kube = Kube::default();
    let boot =
        |interval: Duration| launch(dir.path(), kube.clone(), move |options| options.lost_runs_interval = interval);
    let server = boot(Duration::ZERO).await;
    let mut ids = Vec::new();
    for name in ["new", "reported", "there", "ended"] {
        let run = server.run(name, json!({"a": 1})).await.ok();
        ids.push(format!("/apis/v2beta1/runs/{}", run["run_id"].as_str().unwrap()));
    }
    let key = |path: &str| {
        let id = path.rsplit_once('/').unwrap().1;
        let names = kube.names("workflows").into_iter().map(|name| format!("workflows/{name}"));
        let mut keys = names.filter(|key| kube.get(key).unwrap()["metadata"]["labels"]["pipeline/runid"] == *id);
        keys.next().unwrap()
    };
    let node = json!({"n": {"id": "n", "name": "n", "displayName": "step", "type": "Pod", "phase": "Running"}});
    for (path, status) in [
        (&ids[1], json!({"phase": "Running", "nodes": node})),
        (&ids[3], json!({"phase": "Succeeded", "finishedAt": "2026-01-01T00:00:00Z"})),
    ] {
        let object = kube.edit(&key(path), |object| object["status"] = status);
        server.report(&object).await.ok();
    }
    for path in [&ids[0], &ids[1], &ids[3]] {
        let key = key(path);
        kube.objects.lock().unwrap().remove(&key);
    }
    server.stop().await;

    // Runs of the second in which the server starts are not old enough.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    // While Kubernetes does not say what there is, nothing ends.
    *kube.refuse.lock().unwrap() = Some(404);
    let server = boot(Duration::from_millis(20)).await;
    let server_is_ready = server.get(&ids[0]).await.ok();
    assert_eq!(server_is_ready["state"], "PENDING");
    *kube.refuse.lock().unwrap() = None;
    for path in &ids[..2] {
        let ended = until(&server, path, |seen| seen["state"] == "FAILED").await;
        assert!(ended["finished_at"].as_str().unwrap() > "2026", "{ended}");
        assert_eq!(ended["state_history"].as_array().unwrap().last().unwrap()["state"], "FAILED");
    }
    let details = server.get(&ids[1]).await.ok()["run_details"].to_string();
    assert!(details.contains("the Workflow was deleted before the run ended"), "{details}");
    assert_eq!(server.get(&ids[2]).await.ok()["state"], "PENDING");
    assert_eq!(server.get(&ids[3]).await.ok()["state"], "SUCCEEDED");
    server.stop().await;
}
