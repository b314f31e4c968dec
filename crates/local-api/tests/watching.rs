//! Watches: order, selection, resuming, forgetting.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;

use common::{PATIENCE, config_map, local, next, pod, version};
use futures::StreamExt as _;
use kfp_local_api::resources::{CONFIG_MAPS, NAMESPACES, PODS};
use kfp_local_api::{DeleteOptions, EventKind, Patch, Selectors};
use serde_json::{Value, json};

const NS: &str = "kubeflow";

#[tokio::test]
async fn a_watch_shows_what_exists_and_then_every_change() {
    let local = local().await;
    let cluster = &local.cluster;
    cluster.create(&PODS, NS, pod("a")).await.unwrap();
    cluster.create(&PODS, "default", pod("elsewhere")).await.unwrap();
    let mut watch = cluster.watch(&PODS, Some(NS), None, Selectors::default());
    assert_eq!(next(&mut watch).await, (EventKind::Added, "a".into()));
    cluster.create(&PODS, NS, pod("b")).await.unwrap();
    cluster.patch(&PODS, NS, "a", Patch::Merge(json!({"status": {"phase": "Running"}})), None).await.unwrap();
    cluster.create(&CONFIG_MAPS, NS, config_map("c")).await.unwrap();
    cluster.delete(&PODS, NS, "a", DeleteOptions::default()).await.unwrap();
    assert_eq!(next(&mut watch).await, (EventKind::Added, "b".into()));
    assert_eq!(next(&mut watch).await, (EventKind::Modified, "a".into()));
    assert_eq!(next(&mut watch).await, (EventKind::Deleted, "a".into()));
}

#[tokio::test]
async fn a_watch_resumes_from_a_list_without_gap_or_repeat() {
    let local = local().await;
    let cluster = &local.cluster;
    cluster.create(&CONFIG_MAPS, NS, config_map("before")).await.unwrap();
    let list = cluster.list(&CONFIG_MAPS, None, &Selectors::default()).await.unwrap();
    let first = cluster.create(&CONFIG_MAPS, NS, config_map("one")).await.unwrap();
    cluster.create(&CONFIG_MAPS, NS, config_map("two")).await.unwrap();
    let mut watch = cluster.watch(&CONFIG_MAPS, None, Some(list.resource_version), Selectors::default());
    assert_eq!(next(&mut watch).await.1, "one");
    assert_eq!(next(&mut watch).await.1, "two");
    let mut resumed = cluster.watch(&CONFIG_MAPS, None, Some(version(&first)), Selectors::default());
    assert_eq!(next(&mut resumed).await.1, "two");
}

#[tokio::test]
async fn forgotten_history_is_410() {
    let local = local().await;
    let cluster = &local.cluster;
    let made = cluster.create(&CONFIG_MAPS, NS, config_map("a")).await.unwrap();
    // Bodies large enough to push the first change out of the bounded history.
    let big = "x".repeat(1 << 20);
    for round in 0..40 {
        let patch = Patch::Merge(json!({"data": {"key": format!("{round}{big}")}}));
        cluster.patch(&CONFIG_MAPS, NS, "a", patch, None).await.unwrap();
    }
    let mut watch = cluster.watch(&CONFIG_MAPS, None, Some(version(&made)), Selectors::default());
    let error = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap_err();
    assert!(error.is_gone() && error.reason == "Expired", "{error}");
    assert!(tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn versions_of_the_future_are_410_too() {
    let local = local().await;
    let mut watch = local.cluster.watch(&PODS, None, Some(1_000_000), Selectors::default());
    let error = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap_err();
    assert!(error.is_gone());
}

#[tokio::test]
async fn entering_and_leaving_a_selection_are_additions_and_deletions() {
    let local = local().await;
    let cluster = &local.cluster;
    let mut watch = cluster.watch(&PODS, None, None, Selectors::parse("team=a", "status.phase!=Failed").unwrap());
    let patch = |document: Value| cluster.patch(&PODS, NS, "p", Patch::Merge(document), None);
    cluster.create(&PODS, NS, pod("p")).await.unwrap();
    patch(json!({"metadata": {"labels": {"team": "a"}}})).await.unwrap();
    patch(json!({"metadata": {"labels": {"x": "y"}}})).await.unwrap();
    patch(json!({"status": {"phase": "Failed"}})).await.unwrap();
    patch(json!({"metadata": {"labels": {"x": "z"}}})).await.unwrap();
    patch(json!({"status": {"phase": "Running"}})).await.unwrap();
    cluster.delete(&PODS, NS, "p", DeleteOptions::default()).await.unwrap();
    use EventKind::{Added, Deleted, Modified};
    for kind in [Added, Modified, Deleted, Added, Deleted] {
        assert_eq!(next(&mut watch).await.0, kind);
    }
}

#[tokio::test]
async fn cluster_scoped_types_are_watched_too() {
    let local = local().await;
    let mut watch = local.cluster.watch(&NAMESPACES, None, None, Selectors::name("team"));
    local.cluster.create(&NAMESPACES, "", json!({"metadata": {"name": "other"}})).await.unwrap();
    local.cluster.create(&NAMESPACES, "", json!({"metadata": {"name": "team"}})).await.unwrap();
    assert_eq!(next(&mut watch).await, (EventKind::Added, "team".into()));
}

/// Applies the events of a watch to a map and compares with a list: under concurrent writes the
/// result must be the same, however the watch and the writes interleave.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn list_plus_watch_is_the_state() {
    let local = local().await;
    let writers = (0..8).map(|writer| {
        let cluster = local.cluster.clone();
        tokio::spawn(async move {
            for round in 0..60 {
                let name = format!("c{}", (writer * 7 + round) % 20);
                match round % 3 {
                    0 => drop(cluster.create(&CONFIG_MAPS, NS, config_map(&name)).await),
                    1 => drop(
                        cluster
                            .patch(
                                &CONFIG_MAPS,
                                NS,
                                &name,
                                Patch::Merge(json!({"data": {"k": format!("{writer}-{round}")}})),
                                None,
                            )
                            .await,
                    ),
                    _ => drop(cluster.delete(&CONFIG_MAPS, NS, &name, DeleteOptions::default()).await),
                }
            }
        })
    });
    let writing = tokio::spawn(futures::future::join_all(writers.collect::<Vec<_>>()));
    let list = local.cluster.list(&CONFIG_MAPS, None, &Selectors::default()).await.unwrap();
    let mut watch = local.cluster.watch(&CONFIG_MAPS, None, Some(list.resource_version), Selectors::default());
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_string();
    let mut seen: BTreeMap<String, Value> = list.items.iter().map(|o| (name(o), o.as_ref().clone())).collect();
    writing.await.unwrap();
    // The last change is known: when it arrives everything before it has.
    let last = local.cluster.create(&CONFIG_MAPS, NS, config_map("last")).await.unwrap();
    loop {
        let event = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        match event.kind {
            EventKind::Deleted => assert!(seen.remove(&name(&event.object)).is_some()),
            _ => drop(seen.insert(name(&event.object), event.object.as_ref().clone())),
        }
        if version(&event.object) == version(&last) {
            break;
        }
    }
    let list = local.cluster.list(&CONFIG_MAPS, None, &Selectors::default()).await.unwrap();
    let state: BTreeMap<String, Value> = list.items.iter().map(|o| (name(o), o.as_ref().clone())).collect();
    assert_eq!(seen, state);
}
