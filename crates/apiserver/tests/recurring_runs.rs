//! Recurring runs through REST, with the ScheduledWorkflow objects and reports behind them.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{ADD, start};

fn body(trigger: Value) -> Value {
    let spec: Value = serde_norway::from_str(ADD).unwrap();
    json!({"display_name": "My Job", "max_concurrency": "1", "mode": "ENABLE", "trigger": trigger,
           "pipeline_spec": spec, "runtime_config": {"parameters": {"a": 1, "name": "x"}}})
}

#[tokio::test]
async fn a_schedule_is_created_changed_reported_and_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let made =
        server.post("/apis/v2beta1/recurringruns", body(json!({"cron_schedule": {"cron": "0 0 1 1 *"}}))).await.ok();
    assert_eq!(
        (&made["mode"], &made["status"], &made["namespace"], &made["max_concurrency"]),
        (&json!("ENABLE"), &json!("ENABLED"), &json!("kubeflow"), &json!("1"))
    );
    let name = server.kube.names("scheduledworkflows").pop().unwrap();
    assert!(name.starts_with("myjob"), "{name}");
    let key = format!("scheduledworkflows/{name}");
    let object = server.kube.get(&key).unwrap();
    assert_eq!(object["metadata"]["uid"], made["recurring_run_id"]);
    assert_eq!(object["spec"]["trigger"], json!({"cronSchedule": {"cron": "0 0 1 1 *"}}));
    let parameters = object["spec"]["workflow"]["parameters"].as_array().unwrap();
    assert!(parameters.contains(&json!({"name": "name", "value": "\"x\""})));
    let workflow: Value = serde_json::from_str(object["spec"]["workflow"]["spec"].as_str().unwrap()).unwrap();
    assert_eq!(workflow["kind"], "Workflow");

    let path = format!("/apis/v2beta1/recurringruns/{}", made["recurring_run_id"].as_str().unwrap());
    let mut seen = server.get(&path).await.ok();
    assert!(seen.as_object_mut().unwrap().remove("next_fire_times").is_some());
    assert_eq!(seen, made);
    let list = server.get("/apis/v2beta1/recurringruns").await.ok();
    assert_eq!((&list["total_size"], &list["recurringRuns"][0]), (&json!(1), &made));
    let enabled = server.kube.get(&key).unwrap();
    server.post(&format!("{path}:disable"), json!({})).await.ok();
    assert_eq!(server.kube.get(&key).unwrap()["spec"]["enabled"], false);
    assert_eq!(server.get(&path).await.ok()["mode"], "DISABLE");
    // The agent's report of the version before was still on its way.
    let late = Value::String(enabled.to_string()).to_string().into_bytes();
    server.send("POST", "/apis/v2beta1/scheduledworkflows", "application/json", late).await.ok();
    assert_eq!(server.get(&path).await.ok()["mode"], "DISABLE");
    server.post(&format!("{path}:enable"), json!({})).await.ok();

    // The controller made a Workflow of its own: its first report makes the run.
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let child = json!({
        "apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "spec": {}, "status": {"phase": "Running"},
        "metadata": {"name": "myjob-1", "namespace": "kubeflow", "uid": "u1", "creationTimestamp": now,
                     "labels": {"pipeline/runid": "child-run", "scheduledworkflows.kubeflow.org/workflowEpoch": "1700000000"},
                     "ownerReferences": [{"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "name": name,
                                          "uid": made["recurring_run_id"]}]}});
    server.report(&child).await.ok();
    let run = server.get("/apis/v2beta1/runs/child-run").await.ok();
    assert_eq!((&run["state"], &run["recurring_run_id"]), (&json!("RUNNING"), &made["recurring_run_id"]));
    assert_eq!(run["scheduled_at"], "2023-11-14T22:13:20Z");

    let mut report = server.kube.get(&key).unwrap();
    report["apiVersion"] = json!("kubeflow.org/v2beta1");
    report["spec"]["trigger"] = json!({"periodicSchedule": {"intervalSecond": 60}});
    report["spec"]["workflow"]["parameters"] = json!([{"name": "a", "value": "7"}]);
    let text = Value::String(report.to_string()).to_string().into_bytes();
    server.send("POST", "/apis/v2beta1/scheduledworkflows", "application/json", text).await.ok();
    let seen = server.get(&path).await.ok();
    assert_eq!(seen["trigger"], json!({"periodic_schedule": {"interval_second": "60"}}));
    assert_eq!(seen["runtime_config"]["parameters"], json!({"a": 7}));

    // A tick through CreateRun is idempotent and takes the stored spec.
    let tick = json!({"display_name": "tick", "recurring_run_id": made["recurring_run_id"],
                      "runtime_config": {"parameters": {"a": 1}}});
    let first = server.post("/apis/v2beta1/runs", tick.clone()).await.ok();
    let second = server.post("/apis/v2beta1/runs", tick).await.ok();
    assert_eq!(first["run_id"], second["run_id"]);
    let workflow = server.kube.get(&format!("workflows/{}", server.kube.names("workflows")[0])).unwrap();
    assert_eq!(workflow["metadata"]["ownerReferences"][0]["uid"], made["recurring_run_id"]);

    server.kube.objects.lock().unwrap().remove(&key);
    server.delete(&path).await.ok();
    server.get(&path).await.fails(404, "Job");
    server.stop().await;
}

#[tokio::test]
async fn wrong_schedules_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let create = |body| server.post("/apis/v2beta1/recurringruns", body);
    create(body(json!({"cron_schedule": {"cron": "1 * * "}})))
        .await
        .fails(400, "Expected 5 to 6 fields, found 3: 1 * * ");
    create(body(json!({"periodic_schedule": {"interval_second": "0"}})))
        .await
        .fails(400, "invalid period schedule interval 0");
    let mut wrong = body(json!({}));
    wrong["max_concurrency"] = json!("11");
    create(wrong).await.fails(400, "at most 10. Received 11");
    let mut wrong = body(json!({}));
    wrong["runtime_config"] = json!({"parameters": {}});
    create(wrong).await.fails(400, "parameter a is not optional");
    let mut wrong = body(json!({}));
    wrong.as_object_mut().unwrap().remove("pipeline_spec");
    create(wrong).await.fails(400, "empty pipeline ID");
    assert!(server.kube.names("scheduledworkflows").is_empty());
    let quiet = create(body(json!({}))).await.ok();
    assert_eq!(quiet["trigger"], json!({}));
    server.stop().await;
}

#[tokio::test]
async fn times_that_go_clients_leave_out_are_no_limits() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let zero = "0001-01-01T00:00:00.000Z";
    let trigger = json!({"periodic_schedule": {"interval_second": "60", "start_time": zero, "end_time": zero}});
    let made = server.post("/apis/v2beta1/recurringruns", body(trigger)).await.ok();
    assert_eq!(made["trigger"], json!({"periodic_schedule": {"interval_second": "60"}}));
    let key = format!("scheduledworkflows/{}", server.kube.names("scheduledworkflows")[0]);
    let object = server.kube.get(&key).unwrap();
    assert_eq!(object["spec"]["trigger"], json!({"periodicSchedule": {"intervalSecond": 60}}));
    server.stop().await;
}
