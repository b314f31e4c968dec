//! What survives, and who may open a directory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{config_map, local, pod, version};
use kfp_local_api::resources::{CONFIG_MAPS, CUSTOM_RESOURCE_DEFINITIONS, PODS};
use kfp_local_api::{Cluster, DeleteOptions, Error, Selectors};
use serde_json::json;

const NS: &str = "kubeflow";
const DIR: &str = "KFP_LOCAL_API_TEST_DIR";

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let local = local().await;
    let kept = local.cluster.create(&PODS, NS, pod("kept")).await.unwrap();
    local.cluster.create(&CONFIG_MAPS, NS, config_map("gone")).await.unwrap();
    let gone = local.cluster.delete(&CONFIG_MAPS, NS, "gone", DeleteOptions::default()).await.unwrap();
    local.cluster.close().await;
    assert_eq!(local.cluster.create(&PODS, NS, pod("late")).await.unwrap_err().code, 503);

    let again = Cluster::open(local.dir.path()).await.unwrap();
    assert_eq!(again.get(&PODS, NS, "kept").await.unwrap(), kept);
    assert!(again.get(&CONFIG_MAPS, NS, "gone").await.is_err());
    // Versions go on after the last change, also after a deletion, so that old ones are never reused.
    let list = again.list(&CONFIG_MAPS, None, &Selectors::default()).await.unwrap();
    assert_eq!(list.resource_version, version(&gone));
    assert!(version(&again.create(&PODS, NS, pod("new")).await.unwrap()) > version(&gone));
    // History is not kept over a restart.
    use futures::StreamExt as _;
    let mut watch = again.watch(&PODS, None, Some(version(&kept)), Selectors::default());
    assert!(watch.next().await.unwrap().unwrap_err().is_gone());
}

#[tokio::test]
async fn owner_references_work_after_a_restart() {
    let local = local().await;
    let owner = local.cluster.create(&CONFIG_MAPS, NS, config_map("owner")).await.unwrap();
    let mut child = pod("child");
    child["metadata"]["ownerReferences"] = json!([common::owner(&owner)]);
    local.cluster.create(&PODS, NS, child).await.unwrap();
    local.cluster.close().await;
    let again = Cluster::open(local.dir.path()).await.unwrap();
    again.delete(&CONFIG_MAPS, NS, "owner", DeleteOptions::default()).await.unwrap();
    assert!(again.get(&PODS, NS, "child").await.is_err());
}

#[tokio::test]
async fn definitions_are_served_after_a_restart() {
    let mut served = common::served().await;
    let definition = json!({"metadata": {"name": "widgets.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "singular": "widget", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true}]}});
    served.local.cluster.create(&CUSTOM_RESOURCE_DEFINITIONS, "", definition).await.unwrap();
    let path = "/apis/example.com/v1/namespaces/kubeflow/widgets";
    let widget = r#"{"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w"}, "size": 3}"#;
    let (status, made) = served.http("POST", path, &[], widget).await;
    assert_eq!((status, &made["kind"]), (201, &json!("Widget")));
    served.shutdown.cancel();
    (&mut served.server).await.unwrap().unwrap();
    served.local.cluster.close().await;

    let again = Cluster::open(served.local.dir.path()).await.unwrap();
    let listener = tokio::net::TcpListener::bind(served.url.trim_start_matches("http://")).await.unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    tokio::spawn(kfp_local_api::serve(again.clone(), listener, shutdown.clone()));
    let (status, found) = served.http("GET", &format!("{path}/w"), &[], "").await;
    assert_eq!((status, &found["size"]), (200, &json!(3)));
    again.delete(&CUSTOM_RESOURCE_DEFINITIONS, "", "widgets.example.com", DeleteOptions::default()).await.unwrap();
    assert_eq!(served.http("GET", path, &[], "").await.0, 404);
    shutdown.cancel();
}

#[tokio::test]
async fn a_second_open_names_the_directory_and_the_holder() {
    let local = local().await;
    match Cluster::open(local.dir.path()).await.err() {
        Some(Error::Locked { dir, pid }) => {
            assert_eq!((dir.as_path(), pid), (local.dir.path(), std::process::id().to_string()));
        }
        other => panic!("expected a refusal, got {other:?}"),
    }
    local.cluster.close().await;
    Cluster::open(local.dir.path()).await.unwrap();
}

#[tokio::test]
async fn an_unusable_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = Cluster::open(&file).await.err().unwrap();
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    std::fs::write(dir.path().join("kubernetes.db"), "this is no database, but long enough to be looked at").unwrap();
    let error = Cluster::open(dir.path()).await.err().unwrap();
    assert!(matches!(error, Error::Database { .. }) && error.to_string().contains(dir.path().to_str().unwrap()));
}

#[tokio::test]
async fn an_object_that_cannot_be_read_is_left_out_until_it_is_deleted_or_made_anew() {
    let local = local().await;
    for name in ["good", "cut", "no-text", "deep"] {
        local.cluster.create(&CONFIG_MAPS, NS, config_map(name)).await.unwrap();
    }
    local.cluster.close().await;
    let database = rusqlite::Connection::open(local.dir.path().join("kubernetes.db")).unwrap();
    for (name, body) in [("cut", "'{\"metadata\": {\"na'"), ("no-text", "x'7bff7d'"), ("deep", "'[1]'")] {
        let sql = format!("UPDATE objects SET body = {body} WHERE plural = 'configmaps' AND name = ?");
        assert_eq!(database.execute(&sql, [name]).unwrap(), 1);
    }
    drop(database);

    let again = Cluster::open(local.dir.path()).await.unwrap();
    let names = async |cluster: &Cluster| {
        let list = cluster.list(&CONFIG_MAPS, Some(NS), &Selectors::default()).await.unwrap();
        list.items.iter().map(|map| map["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&again).await, ["good"]);
    for name in ["cut", "no-text", "deep"] {
        let error = again.get(&CONFIG_MAPS, NS, name).await.unwrap_err();
        let text = format!("the stored configmaps \"{name}\" cannot be read: ");
        assert!(error.code == 500 && error.message.starts_with(&text), "{error}");
        let error = again.update(&CONFIG_MAPS, NS, config_map(name)).await.unwrap_err();
        assert_eq!(error.code, 500, "{error}");
    }
    let only_this = DeleteOptions { uid: Some("u".into()), ..DeleteOptions::default() };
    assert_eq!(again.delete(&CONFIG_MAPS, NS, "cut", only_this).await.unwrap_err().code, 409);
    let rehearsal = DeleteOptions { dry_run: true, ..DeleteOptions::default() };
    again.delete(&CONFIG_MAPS, NS, "cut", rehearsal).await.unwrap();
    assert_eq!(again.get(&CONFIG_MAPS, NS, "cut").await.unwrap_err().code, 500);
    again.delete(&CONFIG_MAPS, NS, "cut", DeleteOptions::default()).await.unwrap();
    assert_eq!(again.get(&CONFIG_MAPS, NS, "cut").await.unwrap_err().code, 404);
    again.create(&CONFIG_MAPS, NS, config_map("no-text")).await.unwrap();
    again.get(&CONFIG_MAPS, NS, "no-text").await.unwrap();
    again.close().await;

    let last = Cluster::open(local.dir.path()).await.unwrap();
    assert_eq!(names(&last).await, ["good", "no-text"]);
    assert_eq!(last.get(&CONFIG_MAPS, NS, "cut").await.unwrap_err().code, 404);
    assert_eq!(last.get(&CONFIG_MAPS, NS, "deep").await.unwrap_err().code, 500);
}

/// Runs one of the ignored tests below in a process of its own.
fn child(test: &str, dir: &std::path::Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[tokio::test]
async fn acknowledged_writes_survive_a_kill_and_the_lock_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = child("writes_until_killed", dir.path());
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let mut acknowledged = Vec::new();
    for line in lines {
        let line = line.unwrap();
        if let Some((_, name)) = line.split_once("wrote ") {
            acknowledged.push(name.to_string());
        }
        if acknowledged.len() == 1 {
            let error = Cluster::open(dir.path()).await.err().unwrap();
            assert!(error.to_string().contains(&format!("process {}", writer.id())), "{error}");
        }
        if acknowledged.len() == 300 {
            break;
        }
    }
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert_eq!(acknowledged.len(), 300);
    let cluster = Cluster::open(dir.path()).await.unwrap();
    for name in acknowledged {
        cluster.get(&CONFIG_MAPS, NS, &name).await.unwrap();
    }
}

/// Not a test of its own: the process that the test above kills.
#[tokio::test]
#[ignore = "run by acknowledged_writes_survive_a_kill_and_the_lock_does_not"]
async fn writes_until_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let cluster = Cluster::open(&dir).await.unwrap();
    for number in 0..100_000 {
        let name = format!("c{number}");
        cluster.create(&CONFIG_MAPS, NS, config_map(&name)).await.unwrap();
        println!("wrote {name}");
    }
}
