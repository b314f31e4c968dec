//! Runs and experiments through REST and gRPC: creation, reports, termination, archive, restart.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use kfp_proto::api;
use serde_json::{Value, json};
use support::{ADD, Hold, Kube, quote, start, start_with};

fn id(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_run_becomes_a_workflow_and_reports_become_its_state() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let run = server.run("first", json!({"a": 1.5, "name": "run-[[RunUUID]]"})).await.ok();
    let run_id = id(&run, "run_id");
    assert_eq!((&run["state"], &run["service_account"]), (&json!("PENDING"), &json!("pipeline-runner")));
    assert_eq!(run["finished_at"], "1970-01-01T00:00:00Z");
    assert_eq!(run["runtime_config"]["parameters"], json!({"a": 1.5, "name": "run-[[RunUUID]]"}));
    assert_eq!(run["pipeline_spec"]["pipelineInfo"]["name"], "add-numbers");
    assert_eq!(run["state_history"].as_array().unwrap().len(), 1);

    let name = server.kube.names("workflows").pop().unwrap();
    assert!(name.starts_with("add-numbers-"), "{name}");
    let key = format!("workflows/{name}");
    // The agent may see it before Argo does: nothing has happened yet.
    server.report(&server.kube.get(&key).unwrap()).await.ok();
    assert_eq!(server.get(&format!("/apis/v2beta1/runs/{run_id}")).await.ok()["state"], "PENDING");
    let workflow = server.kube.get(&key).unwrap();
    assert_eq!(workflow["metadata"]["labels"]["pipeline/runid"], run_id);
    assert_eq!(workflow["metadata"]["annotations"]["pipelines.kubeflow.org/run_name"], "first");
    let text = workflow.to_string();
    assert!(!text.contains("{{workflow.uid}}"));
    assert!(text.contains(&format!("run-{run_id}")), "the macro is not replaced");

    let running = server.kube.edit(&key, |workflow| {
        workflow["status"] = json!({"phase": "Running", "nodes": {
            name.as_str(): {"id": name, "name": name, "displayName": name, "type": "DAG", "phase": "Running",
                   "children": [format!("{name}-1")], "startedAt": "2026-01-01T00:00:00Z"},
            format!("{name}-1"): {"id": format!("{name}-1"), "name": format!("{name}.add"), "displayName": "add",
                     "type": "Pod", "templateName": "impl", "phase": "Running", "startedAt": "2026-01-01T00:00:01Z",
                     "boundaryID": name, "children": [format!("{name}-2")]},
            format!("{name}-2"): {"id": format!("{name}-2"), "name": format!("{name}.then"), "displayName": "then",
                     "type": "Pod", "templateName": "impl", "phase": "Pending", "message": "Unschedulable: no room",
                     "boundaryID": name, "startedAt": null},
        }});
    });
    assert_eq!(server.report(&running).await.ok(), json!({}));
    let path = format!("/apis/v2beta1/runs/{run_id}");
    let seen = server.get(&path).await.ok();
    assert_eq!(seen["state"], "RUNNING");
    let tasks = seen["run_details"]["task_details"].as_array().unwrap().clone();
    assert_eq!(tasks.len(), 3);
    let whole = tasks.iter().find(|task| task["display_name"] == json!(name)).unwrap();
    let then = tasks.iter().find(|task| task["display_name"] == "then").unwrap();
    assert_eq!((&then["parent_task_id"], &then["pod_name"]), (&whole["task_id"], &json!(format!("{name}-impl-2"))));
    assert!(whole.get("pod_name").is_none() && then.get("error").is_none());
    let said = json!({"message": "waited for add; Unschedulable: no room"});
    assert_eq!((&then["state_history"][0]["state"], &then["state_history"][0]["error"]), (&json!("PENDING"), &said));
    let add = tasks.iter().find(|task| task["display_name"] == "add").unwrap();
    assert_eq!((&add["state"], &add["run_id"]), (&json!("RUNNING"), &json!(run_id)));
    assert_eq!(add["start_time"], "2026-01-01T00:00:01Z");
    assert!(add.get("end_time").is_none());

    let done = server.kube.edit(&key, |workflow| {
        workflow["status"]["phase"] = json!("Succeeded");
        workflow["status"]["finishedAt"] = json!("2026-01-01T00:01:00Z");
        for node in workflow["status"]["nodes"].as_object_mut().unwrap().values_mut() {
            node["phase"] = json!("Succeeded");
            node["finishedAt"] = json!("2026-01-01T00:01:00Z");
        }
    });
    assert_eq!(server.report(&done).await.ok(), json!({}));
    let seen = server.get(&path).await.ok();
    assert_eq!((&seen["state"], &seen["finished_at"]), (&json!("SUCCEEDED"), &json!("2026-01-01T00:01:00Z")));
    let states: Vec<&str> =
        seen["state_history"].as_array().unwrap().iter().map(|s| s["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["PENDING", "RUNNING", "SUCCEEDED"]);
    let again: Vec<&Value> = seen["run_details"]["task_details"].as_array().unwrap().iter().collect();
    let add_again = again.iter().find(|task| task["display_name"] == "add").unwrap();
    assert_eq!((&add_again["task_id"], &add_again["state"]), (&add["task_id"], &json!("SUCCEEDED")));
    assert_eq!(add_again["state_history"].as_array().unwrap().len(), 2);
    let marked = server.kube.get(&key).unwrap();
    assert_eq!(marked["metadata"]["labels"]["pipeline/persistedFinalState"], "true");

    // The report of the marked workflow is its garbage collection.
    server.report(&marked).await.fails(404, "not found");
    assert!(server.kube.names("workflows").is_empty());
    assert_eq!(server.get(&path).await.ok()["state"], "SUCCEEDED");
    server.stop().await;
}

#[tokio::test]
async fn wrong_parameters_and_sources_are_refused_before_anything_is_created() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    for (parameters, text) in [
        (json!({}), "parameter a is not optional, yet has neither default value nor user provided value"),
        (json!({"a": 1, "x": 1}), "parameter(s) provided are not required by pipeline: x"),
        (json!({"a": "one"}), "input parameter a requires type double or integer"),
    ] {
        let refused = server.run("r", parameters).await.fails(400, text);
        assert_eq!(refused["code"], 3);
    }
    server.run("", json!({"a": 1})).await.fails(400, "Run name cannot be empty");
    let create = |body| server.post("/apis/v2beta1/runs", body);
    create(json!({"display_name": "r"})).await.fails(400, "empty pipeline spec manifest");
    create(json!({"display_name": "r", "pipeline_version_reference": {"pipeline_version_id": "nope"}}))
        .await
        .fails(404, "PipelineVersion nope not found");
    create(json!({"display_name": "r", "experiment_id": "nope", "pipeline_spec": {}}))
        .await
        .fails(404, "Experiment nope not found");
    *server.kube.refuse.lock().unwrap() = Some(403);
    server.run("r", json!({"a": 1})).await.fails(500, "refused by the test");
    *server.kube.refuse.lock().unwrap() = Some(503);
    server.run("r", json!({"a": 1})).await.fails(503, "try again later");
    assert_eq!(server.get("/apis/v2beta1/runs").await.ok(), json!({}));
    assert!(server.kube.names("workflows").is_empty());
    server.stop().await;
}

#[tokio::test]
async fn a_workflow_does_not_outlive_a_failed_creation() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let spec: Value = serde_norway::from_str(ADD).unwrap();
    let body = json!({"run_id": "mine", "display_name": "r", "pipeline_spec": spec,
                      "runtime_config": {"parameters": {"a": 1}}});
    assert_eq!(server.post("/apis/v2beta1/runs", body.clone()).await.ok()["run_id"], "mine");
    server.post("/apis/v2beta1/runs", body).await.fails(409, "The id mine already exists");
    assert_eq!(server.kube.names("workflows").len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn runs_of_a_version_follow_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let pipeline = server.upload("/apis/v2beta1/pipelines/upload?name=p", "a.yaml", ADD.as_bytes()).await.ok();
    let pipeline_id = id(&pipeline, "pipeline_id");
    let body = json!({"display_name": "r", "pipeline_version_reference": {"pipeline_id": pipeline_id},
                      "runtime_config": {"parameters": {"a": 1}}});
    let run = server.post("/apis/v2beta1/runs", body).await.ok();
    let version = id(&run["pipeline_version_reference"], "pipeline_version_id");
    assert!(run.get("pipeline_spec").is_none());
    let other = json!({"display_name": "r", "runtime_config": {"parameters": {"a": 1}},
                       "pipeline_version_reference": {"pipeline_id": "other", "pipeline_version_id": version}});
    server.post("/apis/v2beta1/runs", other).await.fails(400, "belongs to pipeline");
    server.delete(&format!("/apis/v2beta1/pipelines/{pipeline_id}?cascade=true")).await.ok();
    server.get(&format!("/apis/v2beta1/runs/{}", id(&run, "run_id"))).await.ok();
    server.stop().await;
}

#[tokio::test]
async fn termination_and_retry_follow_the_states() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let run_id = id(&server.run("r", json!({"a": 1})).await.ok(), "run_id");
    let path = format!("/apis/v2beta1/runs/{run_id}");
    server.post(&format!("{path}:retry"), json!({})).await.fails(409, "error fetching workflow manifest");
    assert_eq!(server.post(&format!("{path}:terminate"), json!({})).await.ok(), json!({}));
    assert_eq!(server.get(&path).await.ok()["state"], "CANCELING");
    let key = format!("workflows/{}", server.kube.names("workflows")[0]);
    assert_eq!(server.kube.get(&key).unwrap()["spec"]["activeDeadlineSeconds"], 0);
    server.post(&format!("{path}:terminate"), json!({})).await.fails(400, "Row not found");
    // A report from before the order arrives after it.
    let mut early = server.kube.edit(&key, |workflow| workflow["status"] = json!({"phase": "Running"}));
    early["spec"].as_object_mut().unwrap().remove("activeDeadlineSeconds");
    server.report(&early).await.ok();
    assert_eq!(server.get(&path).await.ok()["state"], "CANCELING");
    let failed = server.kube.edit(&key, |workflow| {
        workflow["status"] = json!({"phase": "Failed", "finishedAt": "2026-01-01T00:00:00Z", "nodes": {
            "n-1": {"id": "n-1", "name": "n.add", "displayName": "add", "type": "Pod", "phase": "Failed", "templateName": "t",
                    "message": "main: exit code 3"},
        }});
    });
    server.report(&failed).await.ok();
    let ended = server.get(&path).await.ok();
    assert_eq!(ended["state"], "FAILED");
    assert_eq!(ended["run_details"]["task_details"][0]["error"]["message"], "main: exit code 3");
    server.post(&format!("{path}:retry"), json!({})).await.ok();
    assert_eq!(server.get(&path).await.ok()["state"], "RUNNING");
    let live = server.kube.get(&key).unwrap();
    assert_eq!(live["status"]["phase"], "Running");
    assert!(live["spec"].get("activeDeadlineSeconds").is_none());
    assert_eq!(live["metadata"]["annotations"]["pipelines.kubeflow.org/retry-generation"], "1");
    // A late final report of the first attempt changes nothing.
    let mut late = failed.clone();
    late["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
    server.report(&late).await.ok();
    assert_eq!(server.get(&path).await.ok()["state"], "RUNNING");
    server.delete(&path).await.ok();
    assert!(server.kube.names("workflows").is_empty());
    server.get(&path).await.fails(404, "not found");

    // Without its workflow nothing would ever report the end of a run.
    let lost = id(&server.run("lost", json!({"a": 1})).await.ok(), "run_id");
    server.kube.objects.lock().unwrap().clear();
    server.post(&format!("/apis/v2beta1/runs/{lost}:terminate"), json!({})).await.ok();
    assert_eq!(server.get(&format!("/apis/v2beta1/runs/{lost}")).await.ok()["state"], "FAILED");
    server.stop().await;
}

#[tokio::test]
async fn reports_that_cannot_be_used_get_the_codes_the_agent_knows() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let report = |workflow: Value| {
        let server = &server;
        async move { server.report(&workflow).await }
    };
    server
        .send("POST", "/apis/v2beta1/workflows", "application/json", b"\"{\"".to_vec())
        .await
        .fails(400, "Could not unmarshal");
    report(json!({"metadata": {"namespace": "n", "uid": "u"}})).await.fails(400, "must have a name");
    report(json!({"metadata": {"name": "w", "namespace": "n", "uid": "u"}}))
        .await
        .fails(400, "missing the Run ID label");
    let now = chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let unknown = |at: &str| {
        json!({"metadata": {"name": "w", "namespace": "kubeflow", "uid": "u", "creationTimestamp": at,
                            "labels": {"pipeline/runid": "unknown"}}, "status": {"phase": "Running"}})
    };
    report(unknown(&now)).await.fails(503, "will retry");
    server.kube.objects.lock().unwrap().insert("workflows/w".into(), unknown("2020-01-01T00:00:00Z"));
    report(unknown("2020-01-01T00:00:00Z")).await.fails(404, "not found");
    assert!(server.kube.names("workflows").is_empty());
    // A final report of an outdated version is to be sent again.
    server.run("r", json!({"a": 1})).await.ok();
    let key = format!("workflows/{}", server.kube.names("workflows")[0]);
    let stale = server.kube.edit(&key, |workflow| workflow["status"] = json!({"phase": "Failed"}));
    server.kube.edit(&key, |workflow| workflow["status"] = json!({"phase": "Running"}));
    report(stale).await.fails(503, "Skipping terminal workflow report");
    server.stop().await;
}

#[tokio::test]
async fn experiments_group_archive_and_protect() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let list = server.get("/apis/v2beta1/experiments").await.ok();
    assert_eq!((&list["total_size"], &list["experiments"][0]["display_name"]), (&json!(1), &json!("Default")));
    let default = id(&list["experiments"][0], "experiment_id");
    server
        .delete(&format!("/apis/v2beta1/experiments/{default}"))
        .await
        .fails(409, "default experiment cannot be deleted");
    let made =
        server.post("/apis/v2beta1/experiments", json!({"display_name": "e", "namespace": "kubeflow"})).await.ok();
    assert_eq!(
        (&made["storage_state"], &made["last_run_created_at"]),
        (&json!("AVAILABLE"), &json!("1970-01-01T00:00:00Z"))
    );
    server
        .post("/apis/v2beta1/experiments", json!({"display_name": "e"}))
        .await
        .fails(409, "Please specify a new name");
    server.post("/apis/v2beta1/experiments", json!({})).await.fails(400, "non-empty name");
    let experiment = id(&made, "experiment_id");
    let spec: Value = serde_norway::from_str(ADD).unwrap();
    let body = json!({"display_name": "r", "experiment_id": experiment, "pipeline_spec": spec,
                      "runtime_config": {"parameters": {"a": 1}}});
    let run = id(&server.post("/apis/v2beta1/runs", body).await.ok(), "run_id");
    server.run("other", json!({"a": 1})).await.ok();
    let of = server.get(&format!("/apis/v2beta1/runs?experiment_id={experiment}")).await.ok();
    assert_eq!((&of["total_size"], &of["runs"][0]["run_id"]), (&json!(1), &json!(run)));
    server.get("/apis/v2beta1/runs?experiment_id=nope").await.fails(404, "Experiment nope not found");
    let path = format!("/apis/v2beta1/experiments/{experiment}");
    assert_ne!(server.get(&path).await.ok()["last_run_created_at"], "1970-01-01T00:00:00Z");

    server.post(&format!("{path}:archive"), json!({})).await.ok();
    assert_eq!(server.get(&path).await.ok()["storage_state"], "ARCHIVED");
    let archived = quote(r#"{"predicates":[{"operation":"EQUALS","key":"storage_state","string_value":"ARCHIVED"}]}"#);
    assert_eq!(server.get(&format!("/apis/v2beta1/runs?filter={archived}")).await.ok()["total_size"], 1);
    server
        .post(&format!("/apis/v2beta1/runs/{run}:unarchive"), json!({}))
        .await
        .fails(400, "must be un-archived first");
    server.post(&format!("{path}:unarchive"), json!({})).await.ok();
    assert_eq!(server.get(&format!("/apis/v2beta1/runs/{run}")).await.ok()["storage_state"], "ARCHIVED");
    server.post(&format!("/apis/v2beta1/runs/{run}:unarchive"), json!({})).await.ok();
    server.post("/apis/v2beta1/experiments/nope:archive", json!({})).await.fails(404, "Experiment nope not found");
    server.delete(&path).await.ok();
    server.get(&format!("/apis/v2beta1/runs/{run}")).await.ok();
    server.stop().await;
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    server.upload("/apis/v2beta1/pipelines/upload?name=p", "a.yaml", ADD.as_bytes()).await.ok();
    let run = server.run("r", json!({"a": 1})).await.ok();
    let default = server.get("/apis/v2beta1/experiments").await.ok();
    let kube: Kube = server.kube.clone();
    server.stop().await;
    let server = start_with(dir.path(), kube).await;
    assert_eq!(server.get(&format!("/apis/v2beta1/runs/{}", id(&run, "run_id"))).await.ok(), run);
    assert_eq!(server.get("/apis/v2beta1/pipelines").await.ok()["total_size"], 1);
    let again = server.get("/apis/v2beta1/experiments").await.ok();
    assert_eq!(again["experiments"][0]["experiment_id"], default["experiments"][0]["experiment_id"]);
    server.stop().await;
}

#[tokio::test]
async fn logs_come_from_the_pod() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let run = id(&server.run("r", json!({"a": 1})).await.ok(), "run_id");
    server.kube.objects.lock().unwrap().insert("pods/p-1".into(), json!({"log": "line 1\nline 2\n"}));
    let path = format!("/apis/v1alpha1/runs/{run}/nodes");
    let log = server.get(&format!("{path}/p-1/log")).await;
    assert_eq!((log.status, log.body.as_str()), (200, "line 1\nline 2\n"));
    // The latter are no names of pods and must not become part of an address.
    for other in ["p-2", "p-1%3Fa", "p-1%23a", "%25", "p%201", "P_1", "%00", "..%2Fp-1"] {
        server.get(&format!("{path}/{other}/log")).await.fails(404, "Failed to read logs");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_cache_finds_the_newest_entry_over_grpc() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let run = id(&server.run("r", json!({"a": 1})).await.ok(), "run_id");
    let channel = tonic::transport::Endpoint::from_shared(server.grpc.clone()).unwrap().connect().await.unwrap();
    let mut client = api::task_service_client::TaskServiceClient::new(channel);
    let task = |seconds, execution: &str| api::CreateTaskRequest {
        task: Some(api::Task {
            pipeline_name: "pipeline/add".into(),
            run_id: run.clone(),
            mlmd_execution_id: execution.into(),
            fingerprint: "abc".into(),
            created_at: Some(prost_types::Timestamp { seconds, nanos: 0 }),
            ..api::Task::default()
        }),
    };
    client.create_task_v1(task(100, "1")).await.unwrap();
    client.create_task_v1(task(200, "2")).await.unwrap();
    let filter = json!({"predicates": [
        {"op": "EQUALS", "key": "fingerprint", "stringValue": "abc"},
        {"op": "EQUALS", "key": "pipelineName", "stringValue": "pipeline/add"},
    ]});
    let request = api::ListTasksRequest {
        page_size: 1,
        sort_by: "created_at desc".into(),
        filter: filter.to_string(),
        ..api::ListTasksRequest::default()
    };
    let found = client.list_tasks_v1(request).await.unwrap().into_inner();
    assert_eq!(found.tasks[0].mlmd_execution_id, "2");
    assert_eq!(found.total_size, 2);
    let mut wrong = task(1, "3");
    wrong.task.as_mut().unwrap().fingerprint.clear();
    let error = client.create_task_v1(wrong).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::InvalidArgument);
    assert!(error.message().contains("must specify FingerPrint"));
    server.stop().await;
}

#[tokio::test]
async fn artifacts_of_a_node_are_read_from_the_bucket() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let run = id(&server.run("r", json!({"a": 1})).await.ok(), "run_id");
    let path = format!("/apis/v2beta1/runs/{run}/nodes/n-1/artifacts");
    server.get(&format!("{path}/main-logs:read")).await.fails(500, "not supported");
    let key = format!("workflows/{}", server.kube.names("workflows")[0]);
    let reported = server.kube.edit(&key, |workflow| {
        let artifacts = json!([{"name": "main-logs", "s3": {"key": "a/b.log"}}, {"name": "bad", "s3": {"key": "../../x"}}]);
        workflow["status"] = json!({"phase": "Running", "nodes": {
            "n-1": {"id": "n-1", "name": "n", "type": "Pod", "phase": "Running", "outputs": {"artifacts": artifacts}}}});
    });
    server.report(&reported).await.ok();
    server.get(&format!("{path}/main-logs:read")).await.fails(404, "artifact not found");
    server.get(&format!("{path}/bad:read")).await.fails(400, "not a plain path");
    server.get(&format!("{path}/other:read")).await.fails(404, "artifact not found");
    let file = dir.path().join("objects/mlpipeline/a/b.log");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, "hello").unwrap();
    assert_eq!(server.get(&format!("{path}/main-logs:read")).await.ok(), json!({"data": "aGVsbG8="}));
    // The pod is gone, but Argo recorded its log; it is sent line by line.
    let log = server.get(&format!("/apis/v1alpha1/runs/{run}/nodes/n-1/log")).await;
    assert_eq!((log.status, log.body.as_str()), (200, "hello\n"));
    server.stop().await;
}

#[tokio::test]
async fn a_caller_that_leaves_does_not_leave_a_workflow_without_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let hold = Hold::default();
    *server.kube.hold.lock().unwrap() = Some(hold.clone());
    tokio::select! {
        _ = server.run("left", json!({"a": 1, "name": "n"})) => unreachable!("its Workflow is held back"),
        () = hold.arrived.notified() => {}
    }
    hold.proceed.notify_one();
    let stored = async {
        while server.get("/apis/v2beta1/runs").await.ok()["runs"].as_array().is_none_or(Vec::is_empty) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(20), stored).await.unwrap();
    assert_eq!(server.kube.names("workflows").len(), 1);
    server.stop().await;
}
