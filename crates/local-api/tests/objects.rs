//! Rules of single objects: creation, conflicts, status, deletion.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{config_map, local, owner, pod, version};
use kfp_local_api::resources::{CONFIG_MAPS, NAMESPACES, NODES, PODS, SCHEDULED_WORKFLOWS, SECRETS, WORKFLOWS};
use kfp_local_api::{ApiError, Cluster, DeleteOptions, Patch, Propagation, Selectors};
use serde_json::{Value, json};

const NS: &str = "kubeflow";

async fn names(cluster: &Cluster, r: &kfp_local_api::Resource) -> Vec<String> {
    let list = cluster.list(r, Some(NS), &Selectors::default()).await.unwrap();
    list.items.iter().map(|o| o["metadata"]["name"].as_str().unwrap().to_string()).collect()
}

#[tokio::test]
async fn creation_fills_in_metadata() {
    let local = local().await;
    let made = local.cluster.create(&PODS, NS, pod("a")).await.unwrap();
    let metadata = &made["metadata"];
    assert_eq!((&made["apiVersion"], &made["kind"]), (&json!("v1"), &json!("Pod")));
    assert_eq!((&metadata["namespace"], &metadata["generation"]), (&json!(NS), &json!(1)));
    assert!(uuid::Uuid::parse_str(metadata["uid"].as_str().unwrap()).is_ok());
    assert!(chrono::DateTime::parse_from_rfc3339(metadata["creationTimestamp"].as_str().unwrap()).is_ok());
    assert_eq!(made["status"]["phase"], "Pending");
    assert_eq!(local.cluster.get(&PODS, NS, "a").await.unwrap(), made);
}

#[tokio::test]
async fn generated_names_are_drawn_until_free() {
    let local = local().await;
    for _ in 0..50 {
        let made = local.cluster.create(&CONFIG_MAPS, NS, json!({"metadata": {"generateName": "run-"}})).await.unwrap();
        assert!(made["metadata"]["name"].as_str().unwrap().starts_with("run-"));
    }
    assert_eq!(names(&local.cluster, &CONFIG_MAPS).await.len(), 50);
}

#[tokio::test]
async fn refused_creations_say_why() {
    let local = local().await;
    let cluster = &local.cluster;
    cluster.create(&CONFIG_MAPS, NS, config_map("a")).await.unwrap();
    let scheduled = json!({"metadata": {"name": "a"}, "spec": {}});
    for (r, ns, object, code, part) in [
        (&CONFIG_MAPS, NS, config_map("a"), 409, "configmaps \"a\" already exists"),
        (&CONFIG_MAPS, "missing", config_map("a"), 404, "namespaces \"missing\" not found"),
        (&CONFIG_MAPS, NS, config_map("A"), 422, "metadata.name"),
        (&CONFIG_MAPS, NS, json!({}), 422, "name or generateName is required"),
        (&CONFIG_MAPS, NS, json!([]), 400, "JSON object"),
        (&CONFIG_MAPS, NS, json!({"metadata": {"name": "b", "namespace": "default"}}), 400, "does not match"),
        (&PODS, NS, json!({"metadata": {"name": "b"}}), 422, "spec.containers"),
        (&WORKFLOWS, NS, json!({"metadata": {"name": "b"}}), 422, "spec: Required value"),
        (&SCHEDULED_WORKFLOWS, NS, scheduled, 422, "status: Required value"),
    ] {
        let error = cluster.create(r, ns, object.clone()).await.unwrap_err();
        assert!(error.code == code && error.message.contains(part), "{object}: {} {error}", error.code);
    }
    assert_eq!(names(cluster, &CONFIG_MAPS).await, ["a"]);
}

#[tokio::test]
async fn every_cluster_has_namespaces_and_one_node() {
    let local = local().await;
    let list = local.cluster.list(&NAMESPACES, None, &Selectors::default()).await.unwrap();
    assert_eq!(list.items.len(), 3);
    assert_eq!(local.cluster.list(&NODES, None, &Selectors::default()).await.unwrap().items.len(), 1);
    let error = local.cluster.delete(&NAMESPACES, "", NS, DeleteOptions::default()).await.unwrap_err();
    assert_eq!(error.code, 403);
}

#[tokio::test]
async fn a_stale_update_conflicts_and_changes_nothing() {
    let local = local().await;
    let cluster = &local.cluster;
    let first = cluster.create(&CONFIG_MAPS, NS, config_map("a")).await.unwrap();
    let mut newer = first.as_ref().clone();
    newer["data"]["key"] = json!("second");
    let second = cluster.update(&CONFIG_MAPS, NS, newer).await.unwrap();
    assert!(version(&second) > version(&first));
    let mut stale = first.as_ref().clone();
    stale["data"]["key"] = json!("third");
    let error = cluster.update(&CONFIG_MAPS, NS, stale.clone()).await.unwrap_err();
    assert!(error.is_conflict() && error.code == 409, "{error}");
    assert_eq!(cluster.get(&CONFIG_MAPS, NS, "a").await.unwrap(), second);
    // Without a version the update is unconditional.
    stale["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    assert_eq!(cluster.update(&CONFIG_MAPS, NS, stale.clone()).await.unwrap()["data"]["key"], "third");
    // Another object's uid conflicts even then.
    stale["metadata"]["uid"] = json!("other");
    assert!(cluster.update(&CONFIG_MAPS, NS, stale).await.unwrap_err().is_conflict());
}

#[tokio::test]
async fn concurrent_modifications_are_all_kept() {
    let local = local().await;
    local.cluster.create(&CONFIG_MAPS, NS, json!({"metadata": {"name": "n"}, "count": 0})).await.unwrap();
    let changes = (0..200).map(|_| {
        let cluster = local.cluster.clone();
        tokio::spawn(async move {
            cluster
                .modify(&CONFIG_MAPS, NS, "n", |object| {
                    object["count"] = json!(object["count"].as_i64().unwrap() + 1);
                    Ok(())
                })
                .await
                .unwrap()
        })
    });
    futures::future::join_all(changes).await;
    assert_eq!(local.cluster.get(&CONFIG_MAPS, NS, "n").await.unwrap()["count"], 200);
}

#[tokio::test]
async fn a_change_that_changes_nothing_is_not_a_write() {
    let local = local().await;
    let made = local.cluster.create(&PODS, NS, pod("a")).await.unwrap();
    let same = local.cluster.modify(&PODS, NS, "a", |_| Ok(())).await.unwrap();
    assert_eq!(same, made);
    let refused = local.cluster.modify(&PODS, NS, "a", |object| {
        object["spec"] = json!(null);
        Err(ApiError::bad_request("no"))
    });
    assert_eq!(refused.await.unwrap_err().message, "no");
    assert_eq!(local.cluster.get(&PODS, NS, "a").await.unwrap(), made);
}

#[tokio::test]
async fn a_panicking_change_is_an_error_and_the_store_goes_on() {
    let local = local().await;
    local.cluster.create(&CONFIG_MAPS, NS, config_map("a")).await.unwrap();
    let error = local.cluster.modify(&CONFIG_MAPS, NS, "a", |_| panic!("on purpose")).await.unwrap_err();
    assert_eq!(error.code, 500);
    local.cluster.create(&CONFIG_MAPS, NS, config_map("b")).await.unwrap();
}

#[tokio::test]
async fn immutable_metadata_stays_and_generation_follows_the_spec() {
    let local = local().await;
    let made =
        local.cluster.create(&WORKFLOWS, NS, json!({"metadata": {"name": "w"}, "spec": {"a": 1}})).await.unwrap();
    let changed = local.cluster.modify(&WORKFLOWS, NS, "w", |object| {
        object["metadata"] = json!({"labels": {"x": "y"}});
        Ok(())
    });
    let changed = changed.await.unwrap();
    for field in ["name", "namespace", "uid", "creationTimestamp", "generation"] {
        assert_eq!(changed["metadata"][field], made["metadata"][field], "{field}");
    }
    let patched =
        local.cluster.patch(&WORKFLOWS, NS, "w", Patch::Merge(json!({"spec": {"a": 2}})), None).await.unwrap();
    assert_eq!(patched["metadata"]["generation"], 2);
}

#[tokio::test]
async fn status_patches_touch_status_only() {
    let local = local().await;
    local.cluster.create(&PODS, NS, pod("a")).await.unwrap();
    let patch = Patch::Merge(json!({"status": {"phase": "Running"}, "spec": {"nodeName": "x"}}));
    let patched = local.cluster.patch(&PODS, NS, "a", patch, Some("status")).await.unwrap();
    assert_eq!((&patched["status"]["phase"], &patched["spec"]["nodeName"]), (&json!("Running"), &Value::Null));
    assert_eq!(patched["metadata"]["generation"], 1);
    local.cluster.create(&WORKFLOWS, NS, json!({"metadata": {"name": "w"}, "spec": {}})).await.unwrap();
    let error = local.cluster.patch(&WORKFLOWS, NS, "w", Patch::Merge(json!({})), Some("status")).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[tokio::test]
async fn patches_with_a_stale_version_conflict() {
    let local = local().await;
    let made = local.cluster.create(&CONFIG_MAPS, NS, config_map("a")).await.unwrap();
    let at = |version: &Value| Patch::Merge(json!({"metadata": {"resourceVersion": version}, "data": {"x": "1"}}));
    let first = at(&made["metadata"]["resourceVersion"]);
    local.cluster.patch(&CONFIG_MAPS, NS, "a", first.clone(), None).await.unwrap();
    assert!(local.cluster.patch(&CONFIG_MAPS, NS, "a", first, None).await.unwrap_err().is_conflict());
}

#[tokio::test]
async fn apply_creates_and_then_merges() {
    let local = local().await;
    let apply = |data: Value| Patch::Apply(json!({"metadata": {"name": "a"}, "data": data}));
    local.cluster.patch(&CONFIG_MAPS, NS, "a", apply(json!({"a": "1"})), None).await.unwrap();
    let merged = local.cluster.patch(&CONFIG_MAPS, NS, "a", apply(json!({"b": "2"})), None).await.unwrap();
    assert_eq!(merged["data"], json!({"a": "1", "b": "2"}));
    let error = local.cluster.patch(&CONFIG_MAPS, NS, "z", Patch::Merge(json!({})), None).await.unwrap_err();
    assert!(error.is_not_found());
}

#[tokio::test]
async fn secrets_keep_string_data_encoded() {
    let local = local().await;
    let made =
        local.cluster.create(&SECRETS, NS, json!({"metadata": {"name": "s"}, "stringData": {"a": "x"}})).await.unwrap();
    assert_eq!(
        (&made["data"]["a"], &made["stringData"], &made["type"]),
        (&json!("eA=="), &Value::Null, &json!("Opaque"))
    );
}

#[tokio::test]
async fn finalizers_hold_a_deletion() {
    let local = local().await;
    let cluster = &local.cluster;
    let mut object = config_map("a");
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create(&CONFIG_MAPS, NS, object).await.unwrap();
    let held = cluster.delete(&CONFIG_MAPS, NS, "a", DeleteOptions::default()).await.unwrap();
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let again = cluster.delete(&CONFIG_MAPS, NS, "a", DeleteOptions::default()).await.unwrap();
    assert_eq!(again["metadata"]["deletionTimestamp"], held["metadata"]["deletionTimestamp"]);
    cluster.patch(&CONFIG_MAPS, NS, "a", Patch::Merge(json!({"metadata": {"finalizers": null}})), None).await.unwrap();
    assert!(cluster.get(&CONFIG_MAPS, NS, "a").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn preconditions_guard_deletion() {
    let local = local().await;
    let cluster = &local.cluster;
    let made = cluster.create(&CONFIG_MAPS, NS, config_map("a")).await.unwrap();
    let wrong = DeleteOptions { uid: Some("other".into()), ..DeleteOptions::default() };
    assert!(cluster.delete(&CONFIG_MAPS, NS, "a", wrong).await.unwrap_err().is_conflict());
    let dry = DeleteOptions { dry_run: true, ..DeleteOptions::default() };
    cluster.delete(&CONFIG_MAPS, NS, "a", dry).await.unwrap();
    let uid = made["metadata"]["uid"].as_str().map(str::to_string);
    cluster.delete(&CONFIG_MAPS, NS, "a", DeleteOptions { uid, ..DeleteOptions::default() }).await.unwrap();
    assert!(cluster.get(&CONFIG_MAPS, NS, "a").await.is_err());
}

/// A workflow that owns a pod that owns a config map, and a pod with two owners.
async fn family(cluster: &Cluster) {
    let workflow = cluster.create(&WORKFLOWS, NS, json!({"metadata": {"name": "w"}, "spec": {}})).await.unwrap();
    let other = cluster.create(&WORKFLOWS, NS, json!({"metadata": {"name": "other"}, "spec": {}})).await.unwrap();
    let mut child = pod("child");
    child["metadata"]["ownerReferences"] = json!([owner(&workflow)]);
    let child = cluster.create(&PODS, NS, child).await.unwrap();
    let mut grandchild = config_map("grandchild");
    grandchild["metadata"]["ownerReferences"] = json!([owner(&child)]);
    cluster.create(&CONFIG_MAPS, NS, grandchild).await.unwrap();
    let mut shared = pod("shared");
    shared["metadata"]["ownerReferences"] = json!([owner(&workflow), owner(&other)]);
    cluster.create(&PODS, NS, shared).await.unwrap();
}

#[tokio::test]
async fn dependents_go_with_their_last_owner() {
    for propagation in [Propagation::Background, Propagation::Foreground] {
        let local = local().await;
        let cluster = &local.cluster;
        family(cluster).await;
        cluster.delete(&WORKFLOWS, NS, "w", DeleteOptions { propagation, ..Default::default() }).await.unwrap();
        assert_eq!(names(cluster, &WORKFLOWS).await, ["other"], "{propagation:?}");
        let shared = cluster.get(&PODS, NS, "shared").await.unwrap();
        assert_eq!(shared["metadata"]["ownerReferences"].as_array().unwrap().len(), 1);
        assert_eq!(names(cluster, &PODS).await, ["shared"], "{propagation:?}");
        assert!(names(cluster, &CONFIG_MAPS).await.is_empty(), "{propagation:?}");
        cluster.delete(&WORKFLOWS, NS, "other", DeleteOptions { propagation, ..Default::default() }).await.unwrap();
        assert!(names(cluster, &WORKFLOWS).await.is_empty(), "{propagation:?}");
        assert!(names(cluster, &PODS).await.is_empty(), "{propagation:?}");
    }
}

#[tokio::test]
async fn foreground_deletion_waits_for_finalizers_of_dependents() {
    let local = local().await;
    let cluster = &local.cluster;
    let workflow = cluster.create(&WORKFLOWS, NS, json!({"metadata": {"name": "w"}, "spec": {}})).await.unwrap();
    let mut child = pod("child");
    child["metadata"]["ownerReferences"] = json!([owner(&workflow)]);
    child["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create(&PODS, NS, child).await.unwrap();
    let options = DeleteOptions { propagation: Propagation::Foreground, ..Default::default() };
    let held = cluster.delete(&WORKFLOWS, NS, "w", options).await.unwrap();
    assert_eq!(held["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    assert!(cluster.get(&PODS, NS, "child").await.unwrap()["metadata"]["deletionTimestamp"].is_string());
    cluster.patch(&PODS, NS, "child", Patch::Merge(json!({"metadata": {"finalizers": []}})), None).await.unwrap();
    assert!(names(cluster, &PODS).await.is_empty() && names(cluster, &WORKFLOWS).await.is_empty());
}

#[tokio::test]
async fn orphans_stay_without_owner() {
    let local = local().await;
    family(&local.cluster).await;
    let options = DeleteOptions { propagation: Propagation::Orphan, ..Default::default() };
    local.cluster.delete(&WORKFLOWS, NS, "w", options).await.unwrap();
    assert_eq!(names(&local.cluster, &PODS).await, ["child", "shared"]);
    let child = local.cluster.get(&PODS, NS, "child").await.unwrap();
    assert_eq!(child["metadata"]["ownerReferences"], Value::Null);
}

#[tokio::test]
async fn a_dependent_created_after_its_owner_went_is_collected() {
    let local = local().await;
    let cluster = &local.cluster;
    let workflow = cluster.create(&WORKFLOWS, NS, json!({"metadata": {"name": "w"}, "spec": {}})).await.unwrap();
    cluster.delete(&WORKFLOWS, NS, "w", DeleteOptions::default()).await.unwrap();
    let mut late = pod("late");
    late["metadata"]["ownerReferences"] = json!([owner(&workflow)]);
    cluster.create(&PODS, NS, late).await.unwrap();
    assert!(names(cluster, &PODS).await.is_empty());
}

#[tokio::test]
async fn a_namespace_goes_with_its_contents() {
    let local = local().await;
    let cluster = &local.cluster;
    cluster.create(&NAMESPACES, "", json!({"metadata": {"name": "team"}})).await.unwrap();
    cluster.create(&CONFIG_MAPS, "team", config_map("a")).await.unwrap();
    let mut held = pod("held");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    cluster.create(&PODS, "team", held).await.unwrap();
    let namespace = cluster.delete(&NAMESPACES, "", "team", DeleteOptions::default()).await.unwrap();
    assert_eq!(namespace["status"]["phase"], "Terminating");
    assert!(cluster.get(&CONFIG_MAPS, "team", "a").await.is_err());
    assert_eq!(cluster.create(&CONFIG_MAPS, "team", config_map("b")).await.unwrap_err().code, 403);
    cluster.patch(&PODS, "team", "held", Patch::Merge(json!({"metadata": {"finalizers": null}})), None).await.unwrap();
    assert!(cluster.get(&NAMESPACES, "", "team").await.unwrap_err().is_not_found());
}
