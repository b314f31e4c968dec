//! Recurring runs that are changed in place, through REST: the row and the ScheduledWorkflow, both or neither.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{ADD, Server, start};

const RUNS: &str = "/apis/v2beta1/recurringruns";
const CHANGED: &str = "scheduledworkflows.kubeflow.org/triggerChangedAt";

/// A recurring run, its path and the key of its object.
async fn made(server: &Server, source: Value) -> (Value, String, String) {
    let mut body = json!({"display_name": "job", "max_concurrency": "1", "mode": "ENABLE",
        "trigger": {"cron_schedule": {"cron": "0 0 1 1 *", "end_time": "2099-01-01T00:00:00Z"}},
        "runtime_config": {"parameters": {"a": 1, "name": "x"}}});
    body.as_object_mut().unwrap().extend(source.as_object().unwrap().clone());
    let made = server.post(RUNS, body).await.ok();
    let path = format!("{RUNS}/{}", made["recurring_run_id"].as_str().unwrap());
    let uid = &made["recurring_run_id"];
    let names = server.kube.names("scheduledworkflows").into_iter().map(|name| format!("scheduledworkflows/{name}"));
    let key = names.into_iter().find(|key| server.kube.get(key).unwrap()["metadata"]["uid"] == *uid).unwrap();
    (made, path, key)
}

fn inline() -> Value {
    let spec: Value = serde_norway::from_str(ADD).unwrap();
    json!({"pipeline_spec": spec})
}

/// A pipeline with two versions, of which the second has another image: its id and theirs.
async fn pipeline(server: &Server) -> (String, [String; 2]) {
    let up = server.upload("/apis/v2beta1/pipelines/upload?name=adder", "add.yaml", ADD.as_bytes()).await.ok();
    let id = up["pipeline_id"].as_str().unwrap().to_owned();
    let versions = format!("/apis/v2beta1/pipelines/{id}/versions");
    let first = server.get(&versions).await.ok()["pipeline_versions"][0]["pipeline_version_id"].clone();
    let add = format!("/apis/v2beta1/pipelines/upload_version?name=v2&pipelineid={id}");
    let second = server.upload(&add, "add.yaml", ADD.replace("alpine", "busybox").as_bytes()).await.ok();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (id, [text(&first), text(&second["pipeline_version_id"])])
}

fn workflow(object: &Value) -> &str {
    object["spec"]["workflow"]["spec"].as_str().unwrap_or_default()
}

fn without(mut value: Value, keys: &[&str]) -> Value {
    for key in keys {
        value.as_object_mut().unwrap().remove(*key);
    }
    value
}

#[tokio::test]
async fn every_field_changes_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (made, path, key) = made(&server, inline()).await;
    let status = json!({"trigger": {"lastTriggeredTime": "2026-01-01T00:00:00Z", "lastWorkflowIndex": 7}});
    server.kube.edit(&key, |object| object["status"] = status.clone());
    let before = server.kube.get(&key).unwrap();
    let tick = json!({"display_name": "tick", "recurring_run_id": made["recurring_run_id"],
        "runtime_config": {"parameters": {"a": 1}}});
    let run = server.post("/apis/v2beta1/runs", tick).await.ok();

    // The mask names what counts, whatever else the body says.
    let changed = server
        .patch(
            &format!("{path}?update_mask=trigger,mode,maxConcurrency,no_catchup"),
            json!({"trigger": {"periodic_schedule": {"interval_second": 60}}, "mode": "DISABLE",
                "max_concurrency": 4, "no_catchup": true, "display_name": "ignored"}),
        )
        .await
        .ok();
    assert_eq!(changed["trigger"], json!({"periodic_schedule": {"interval_second": "60"}}));
    assert_eq!(
        (&changed["mode"], &changed["status"], &changed["max_concurrency"], &changed["no_catchup"]),
        (&json!("DISABLE"), &json!("DISABLED"), &json!("4"), &json!(true))
    );
    assert_eq!((&changed["display_name"], &changed["created_at"]), (&json!("job"), &made["created_at"]));
    let object = server.kube.get(&key).unwrap();
    let spec = &object["spec"];
    assert_eq!(spec["trigger"], json!({"periodicSchedule": {"intervalSecond": 60}}));
    assert_eq!(
        (&spec["enabled"], &spec["maxConcurrency"], &spec["noCatchup"]),
        (&json!(false), &json!(4), &json!(true))
    );
    assert_eq!((&object["status"], &object["metadata"]["uid"]), (&status, &before["metadata"]["uid"]));
    assert!(object["metadata"]["annotations"][CHANGED].is_string());
    assert_eq!(spec["workflow"], before["spec"]["workflow"]);

    // Without a mask, what the body says; with the parameters the embedded Workflow changes.
    let changed = server
        .patch(&path, json!({"runtime_config": {"parameters": {"a": 23}}, "description": "d", "display_name": "new"}))
        .await
        .ok();
    assert_eq!((&changed["description"], &changed["display_name"]), (&json!("d"), &json!("new")));
    assert_eq!(changed["runtime_config"], json!({"parameters": {"a": 23}}));
    let object = server.kube.get(&key).unwrap();
    assert_eq!(object["spec"]["workflow"]["parameters"], json!([{"name": "a", "value": "23"}]));
    assert!(workflow(&object).contains("23") && workflow(&object) != workflow(&before));
    assert_eq!(object["spec"]["trigger"], json!({"periodicSchedule": {"intervalSecond": 60}}));

    let changed = server
        .patch(
            &path,
            json!({"runtime_config": {"pipeline_root": "s3://b/r"}, "service_account": "sa", "mode": "ENABLE",
                "plugins_input": {"mlflow": {"experiment": "e"}}, "no_catchup": false}),
        )
        .await
        .ok();
    assert_eq!(changed["runtime_config"], json!({"parameters": {"a": 23}, "pipeline_root": "s3://b/r"}));
    assert_eq!((&changed["service_account"], changed.get("no_catchup")), (&json!("sa"), None));
    let object = server.kube.get(&key).unwrap();
    assert_eq!(object["spec"]["pluginsInput"], json!({"mlflow": {"experiment": "e"}}));
    assert_eq!(object["spec"]["serviceAccount"], "sa");
    assert!(workflow(&object).contains("s3://b/r"));
    // What is not set is cleared.
    let changed = server.patch(&format!("{path}?update_mask=plugins_input,description"), json!({})).await.ok();
    assert_eq!((changed.get("plugins_input"), changed.get("description")), (None, None));
    assert_eq!(server.kube.get(&key).unwrap()["spec"].get("pluginsInput"), None);

    assert_eq!(server.get(&path).await.ok(), changed);
    let still = server.get(&format!("/apis/v2beta1/runs/{}", run["run_id"].as_str().unwrap())).await.ok();
    assert_eq!(without(still, &["state_history"]), without(run, &["state_history"]));
    assert_eq!(server.kube.names("workflows").len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn another_pipeline_version_is_run_from_now_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (id, [one, two]) = pipeline(&server).await;
    let version =
        |version: &str| json!({"pipeline_version_reference": {"pipeline_id": id, "pipeline_version_id": version}});
    let (_, path, key) = made(&server, version(&one)).await;
    assert!(workflow(&server.kube.get(&key).unwrap()).contains("alpine"));
    let changed = server.patch(&path, version(&two)).await.ok();
    assert_eq!(changed["pipeline_version_reference"], version(&two)["pipeline_version_reference"]);
    let object = server.kube.get(&key).unwrap();
    assert_eq!((&object["spec"]["pipelineVersionId"], &object["spec"]["pipelineName"]), (&json!(two), &json!("v2")));
    assert!(workflow(&object).contains("busybox") && !workflow(&object).contains("alpine"));
    let job = server.get(&format!("/apis/v1beta1/jobs/{}", path.rsplit_once('/').unwrap().1)).await.ok();
    let keys: Vec<&Value> =
        job["resource_references"].as_array().unwrap().iter().map(|one| &one["key"]["id"]).collect();
    assert!(keys.contains(&&json!(two)) && !keys.contains(&&json!(one)), "{keys:?}");

    // Whatever is newest from now on, and back to a spec of its own.
    let latest = json!({"pipeline_version_reference": {"pipeline_id": id}});
    let changed = server.patch(&format!("{path}?update_mask=pipeline_version_reference"), latest.clone()).await.ok();
    assert_eq!(changed["pipeline_version_reference"], latest["pipeline_version_reference"]);
    let spec = server.kube.get(&key).unwrap()["spec"].clone();
    assert_eq!((spec.get("pipelineVersionId"), spec["workflow"].get("spec")), (None, None));
    assert_eq!(spec["workflow"]["parameters"].as_array().unwrap().len(), 2);
    let changed = server.patch(&format!("{path}?update_mask=pipeline_spec"), inline()).await.ok();
    assert_eq!(changed["pipeline_spec"]["pipelineInfo"], json!({"name": "add-numbers"}));
    let spec = server.kube.get(&key).unwrap()["spec"].clone();
    assert_eq!((spec.get("pipelineId"), spec.get("pipelineName")), (None, None));

    server.patch(&path, version("nowhere")).await.fails(404, "nowhere");
    // A pipeline that is gone is in nobody's way.
    server.patch(&path, latest).await.ok();
    server.delete(&format!("/apis/v2beta1/pipelines/{id}?cascade=true")).await.ok();
    server.patch(&path, json!({"runtime_config": {"parameters": {"a": 2}}})).await.fails(404, "Failed to fetch");
    server.patch(&path, json!({"mode": "DISABLE", "description": "pipeline deleted"})).await.ok();
    server.stop().await;
}

#[tokio::test]
async fn wrong_changes_are_refused_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (_, path, key) = made(&server, inline()).await;
    let (row, object) = (server.get(&path).await.ok(), server.kube.get(&key).unwrap());
    let cron = |text: &str| json!({"trigger": {"cron_schedule": {"cron": text}}});
    for (mask, body, text) in [
        ("", json!({}), "update_mask is empty"),
        ("", cron("1 2"), "Expected 5 to 6 fields, found 2: 1 2"),
        ("", json!({"trigger": {"periodic_schedule": {"interval_second": -5}}}), "schedule interval -5"),
        ("", json!({"max_concurrency": 11}), "at most 10. Received 11"),
        ("max_concurrency", json!({}), "Received 0"),
        ("mode", json!({}), "ENABLE or DISABLE"),
        ("display_name", json!({}), "name cannot be empty"),
        ("", json!({"display_name": "x".repeat(256)}), "DisplayName"),
        ("", json!({"runtime_config": {"parameters": {"name": "only"}}}), "parameter a is not optional"),
        ("pipeline_spec", json!({}), "needs a pipeline"),
        ("", json!({"experiment_id": "e"}), "experiment_id\\\", which cannot be changed"),
        ("", json!({"created_at": "2026-01-01T00:00:00Z"}), "cannot be changed"),
        ("next_fire_times", json!({}), "cannot be changed"),
        ("nonsense", json!({}), "cannot be changed"),
        ("trigger.nonsense", json!({}), "is no field of RecurringRun"),
        ("", json!({"nonsense": 1}), "unknown field"),
    ] {
        let path = if mask.is_empty() { path.clone() } else { format!("{path}?update_mask={mask}") };
        let refused = server.patch(&path, body.clone()).await;
        assert_eq!(refused.status, 400, "{mask} {body}: {}", refused.body);
        refused.fails(400, text);
    }
    server.patch(&format!("{RUNS}/nowhere"), json!({"description": "x"})).await.fails(404, "Job nowhere not found");
    assert_eq!((server.get(&path).await.ok(), server.kube.get(&key).unwrap()), (row, object));
    server.stop().await;
}

#[tokio::test]
async fn a_change_that_kubernetes_does_not_take_is_no_change() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (_, path, key) = made(&server, inline()).await;
    let (row, object) = (server.get(&path).await.ok(), server.kube.get(&key).unwrap());
    let change = json!({"trigger": {"periodic_schedule": {"interval_second": 7}}, "description": "d"});
    // Refused, not reached, and carried out although the answer got lost.
    for (refusals, status) in [(vec![(422, false)], 500), (vec![(503, false)], 503), (vec![(503, true)], 503)] {
        *server.kube.replacing.lock().unwrap() = refusals.clone();
        server.patch(&path, change.clone()).await.fails(status, "Failed to change scheduled workflow");
        assert_eq!(server.get(&path).await.ok(), row, "{refusals:?}");
        let seen = server.kube.get(&key).unwrap();
        assert_eq!(seen["spec"], object["spec"], "{refusals:?}");
        assert_eq!(seen["metadata"]["annotations"].get(CHANGED), None, "{refusals:?}");
    }
    // The controller writes its status all the time.
    *server.kube.replacing.lock().unwrap() = vec![(409, false); 3];
    server.patch(&path, change.clone()).await.ok();
    assert_eq!(server.kube.get(&key).unwrap()["spec"]["trigger"], json!({"periodicSchedule": {"intervalSecond": 7}}));

    // Only what is in the object needs the object.
    server.kube.objects.lock().unwrap().remove(&key);
    server.patch(&path, json!({"max_concurrency": 3})).await.fails(404, "scheduled workflow");
    server.patch(&path, json!({"description": "orphan"})).await.ok();
    let seen = server.get(&path).await.ok();
    assert_eq!((&seen["description"], &seen["max_concurrency"]), (&json!("orphan"), &json!("1")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_at_the_same_time_all_count() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (_, path, key) = made(&server, inline()).await;
    for round in 2..6 {
        let all = futures::future::join_all([
            server.patch(&path, json!({"max_concurrency": round})),
            server.patch(&path, json!({"trigger": {"periodic_schedule": {"interval_second": round}}})),
            server.patch(&path, json!({"runtime_config": {"parameters": {"a": round}}})),
            server.patch(&path, json!({"description": format!("{round}")})),
        ])
        .await;
        all.into_iter().for_each(|reply| drop(reply.ok()));
        let (row, object) = (server.get(&path).await.ok(), server.kube.get(&key).unwrap());
        let number = round.to_string();
        assert_eq!((&row["max_concurrency"], &row["description"]), (&json!(number), &json!(number)));
        assert_eq!(row["trigger"]["periodic_schedule"]["interval_second"], number);
        assert_eq!(row["runtime_config"]["parameters"]["a"], round);
        assert_eq!(object["spec"]["maxConcurrency"], round);
        assert_eq!(object["spec"]["trigger"]["periodicSchedule"]["intervalSecond"], round);
        assert_eq!(object["spec"]["workflow"]["parameters"][0]["value"], number);
    }
    server.stop().await;
}

#[tokio::test]
async fn reads_tell_when_it_fires_next() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let (made, path, key) = made(&server, inline()).await;
    assert_eq!(made.get("next_fire_times"), None, "only reads of one recurring run tell");
    let times = |seen: &Value| -> Vec<i64> {
        let times = seen["next_fire_times"].as_array().cloned().unwrap_or_default();
        let seconds = |time: &Value| chrono::DateTime::parse_from_rfc3339(time.as_str().unwrap()).unwrap().timestamp();
        times.iter().map(seconds).collect()
    };
    let now = chrono::Utc::now().timestamp();
    let cron = server.patch(&path, json!({"trigger": {"cron_schedule": {"cron": "0 0 12 * * *"}}})).await.ok();
    let found = times(&cron);
    assert_eq!(found.len(), 5);
    assert!(found[0] > now && found.iter().all(|at| at % 86_400 == 43_200), "{found:?}");
    assert_eq!(times(&server.get(&path).await.ok()), found);

    // Intervals count from the last run, which only the object knows.
    let hourly = json!({"trigger": {"periodic_schedule": {"interval_second": 3600}}});
    let fresh = times(&server.patch(&path, hourly).await.ok());
    assert!((now + 3600..now + 3700).contains(&fresh[0]), "{fresh:?} after {now}");
    assert!(fresh.windows(2).all(|pair| pair[1] == pair[0] + 3600));
    let last = chrono::DateTime::from_timestamp(now + 100, 0).unwrap().to_rfc3339();
    server.kube.edit(&key, |object| object["status"]["trigger"]["lastTriggeredTime"] = json!(last));
    assert_eq!(times(&server.get(&path).await.ok())[0], now + 3700);
    server.kube.objects.lock().unwrap().remove(&key);
    assert_eq!(times(&server.get(&path).await.ok()), [0i64; 0], "rather nothing than something wrong");

    server.stop().await;
}
