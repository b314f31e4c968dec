//! The v1beta1 API: pipelines that are Argo Workflows, runs and jobs made from them, and v2 pipelines seen through it.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use serde_json::{Value, json};
use support::{ADD, Server, quote, start};

const HELLO: &str = r#"
apiVersion: argoproj.io/v1alpha1
kind: Workflow
metadata: {generateName: hello-}
spec:
  entrypoint: main
  serviceAccountName: pipeline-runner
  arguments: {parameters: [{name: a, value: hi}, {name: b}]}
  templates:
  - name: main
    container: {image: alpine, command: [echo], args: ["{{workflow.parameters.a}}", "{{workflow.uid}}"]}
"#;

fn id(value: &Value) -> String {
    value["id"].as_str().unwrap().to_owned()
}

fn reference(kind: &str, id: &str, relationship: &str) -> Value {
    json!({"key": {"type": kind, "id": id}, "relationship": relationship})
}

async fn hello(server: &Server) -> Value {
    server.upload("/apis/v1beta1/pipelines/upload?name=hello", "hello.yaml", HELLO.as_bytes()).await.ok()
}

#[tokio::test]
async fn workflows_are_pipelines_with_parameters_and_templates() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let pipeline = hello(&server).await;
    let parameters = json!([{"name": "a", "value": "hi"}, {"name": "b"}]);
    assert_eq!(pipeline["parameters"], parameters);
    assert_eq!(pipeline["default_version"]["parameters"], parameters);
    let refused = server.upload("/apis/v1beta1/pipelines/upload?name=hello", "hello.yaml", HELLO.as_bytes()).await;
    refused.fails(409, "Failed to create a pipeline and a pipeline version");
    let bad = HELLO.replace("v1alpha1", "v9");
    let refused = server.upload("/apis/v1beta1/pipelines/upload?name=bad", "bad.yaml", bad.as_bytes()).await;
    refused.fails(400, "Unsupported argo version");

    let path = format!("/apis/v1beta1/pipelines/{}", id(&pipeline));
    let template = server.get(&format!("{path}/templates")).await.ok();
    let stored: Value = serde_json::from_str(template["template"].as_str().unwrap()).unwrap();
    assert_eq!(stored, serde_norway::from_str::<Value>(HELLO).unwrap());

    // A newer version becomes the default one.
    let upload = format!("/apis/v1beta1/pipelines/upload_version?name=v2&pipelineid={}", id(&pipeline));
    let version = server.upload(&upload, "v2.yaml", ADD.as_bytes()).await.ok();
    assert_eq!(version["resource_references"], json!([reference("PIPELINE", &id(&pipeline), "OWNER")]));
    let list = format!(
        "/apis/v1beta1/pipeline_versions?resource_key.type=PIPELINE&resource_key.id={}&sort_by=name",
        id(&pipeline)
    );
    let versions = server.get(&list).await.ok();
    assert_eq!(versions["total_size"], 2);
    assert_eq!(versions["versions"][0]["parameters"], parameters);
    let seen = server.get(&format!("/apis/v1beta1/pipeline_versions/{}", id(&version))).await.ok();
    assert_eq!(seen, version);
    let default = format!("{path}/default_version/{}", id(&version));
    assert_eq!(server.post(&default, json!({})).await.ok(), json!({}));

    // v2beta1 shows the Workflow as the spec.
    let v2 = format!("/apis/v2beta1/pipelines/{}/versions?sort_by=name", id(&pipeline));
    let specs = server.get(&v2).await.ok();
    assert_eq!(specs["pipeline_versions"][0]["pipeline_spec"], stored);
    assert_eq!(specs["pipeline_versions"][1]["pipeline_spec"]["pipelineInfo"]["name"], "add-numbers");

    let by_name = server.get("/apis/v1beta1/namespaces/-/pipelines/hello").await.ok();
    assert_eq!(id(&by_name), id(&pipeline));
    server.delete(&path).await.fails(400, "as it has existing pipeline versions");
    server
        .get("/apis/v1beta1/pipelines?resource_reference_key.type=JOB")
        .await
        .fails(400, "invalid resource references");
    server.get("/apis/v1beta1/pipeline_versions").await.fails(400, "missing pipeline id");
    server.stop().await;
}

#[tokio::test]
async fn runs_of_workflows_are_created_listed_and_measured() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let pipeline = hello(&server).await;
    let version = pipeline["default_version"]["id"].as_str().unwrap();
    let experiment = server.post("/apis/v1beta1/experiments", json!({"name": "e"})).await.ok();
    assert_eq!(experiment["storage_state"], "STORAGESTATE_AVAILABLE");
    assert_eq!(experiment["resource_references"], json!([{"key": {"type": "NAMESPACE"}, "relationship": "OWNER"}]));
    let owner = reference("EXPERIMENT", &id(&experiment), "OWNER");
    let body = |parameters: Value| {
        json!({"name": "first", "pipeline_spec": {"parameters": parameters},
               "resource_references": [owner.clone(), reference("PIPELINE_VERSION", version, "CREATOR")]})
    };
    let create = |body| server.post("/apis/v1beta1/runs", body);
    create(body(json!([{"name": "x", "value": "1"}]))).await.fails(400, "Unrecognized input parameter: x");
    create(body(json!([]))).await.fails(400, "spec.arguments.b.value");
    create(body(json!([{"name": "b", "value": "x".repeat(10_000)}]))).await.fails(400, "exceed maximum size of 10000");
    let detail = create(body(json!([{"name": "b", "value": "[[RunUUID]]"}]))).await.ok();
    let run = &detail["run"];
    assert_eq!((&run["name"], &run["status"]), (&json!("first"), &json!("Pending")));
    assert_eq!(run["service_account"], "pipeline-runner");
    assert_eq!(run["resource_references"], json!([owner, reference("PIPELINE_VERSION", version, "CREATOR")]));
    assert_eq!(run["pipeline_spec"]["parameters"], json!([{"name": "b", "value": "[[RunUUID]]"}]));
    assert!(run["pipeline_spec"]["workflow_manifest"].as_str().unwrap().contains("alpine"));
    assert!(run.get("storage_state").is_none());
    let workflow: Value =
        serde_json::from_str(detail["pipeline_runtime"]["workflow_manifest"].as_str().unwrap()).unwrap();
    assert_eq!(workflow["spec"]["arguments"]["parameters"][1]["value"], id(run));
    assert_eq!(workflow["spec"]["templates"][0]["container"]["args"][1], id(run));
    let path = format!("/apis/v1beta1/runs/{}", id(run));
    assert_eq!(server.get(&path).await.ok(), detail);

    let listed = |query: &str| format!("/apis/v1beta1/runs?{query}");
    let key = format!("resource_reference_key.type=EXPERIMENT&resource_reference_key.id={}", id(&experiment));
    let runs = server.get(&listed(&key)).await.ok();
    assert_eq!((&runs["total_size"], &runs["runs"][0]), (&json!(1), run));
    let filter = quote(r#"{"predicates":[{"op":"EQUALS","key":"name","string_value":"second"}]}"#);
    assert_eq!(server.get(&listed(&format!("filter={filter}"))).await.ok(), json!({}));
    server.get(&listed("resource_reference_key.id=x")).await.fails(400, "Unrecognized resource reference type");
    // v2beta1 shows the same run, its parameters as texts.
    let v2 = server.get(&format!("/apis/v2beta1/runs/{}", id(run))).await.ok();
    assert_eq!(v2["pipeline_version_reference"]["pipeline_version_id"], version);
    assert_eq!(v2["runtime_config"]["parameters"], json!({"b": "[[RunUUID]]"}));

    let report = json!({"metrics": [
        {"name": "accuracy", "node_id": "n", "number_value": 0.5, "format": "PERCENTAGE"},
        {"name": "accuracy", "node_id": "n", "number_value": 0.6},
        {"name": "1st", "node_id": "n", "number_value": 1},
        {"name": "loss", "number_value": 1},
    ]});
    let done = server.post(&format!("{path}:reportMetrics"), report.clone()).await.ok();
    let statuses: Vec<&Value> = done["results"].as_array().unwrap().iter().map(|result| &result["status"]).collect();
    assert_eq!(statuses, ["OK", "DUPLICATE_REPORTING", "INVALID_ARGUMENT", "INVALID_ARGUMENT"]);
    server.post("/apis/v1beta1/runs/nope:reportMetrics", report).await.fails(404, "Run nope not found");
    let metrics = &server.get(&path).await.ok()["run"]["metrics"];
    assert_eq!(*metrics, json!([{"name": "accuracy", "node_id": "n", "number_value": 0.5, "format": "PERCENTAGE"}]));

    server.post(&format!("{path}:archive"), json!({})).await.ok();
    assert_eq!(server.get(&path).await.ok()["run"]["storage_state"], "STORAGESTATE_ARCHIVED");
    server.post(&format!("{path}:unarchive"), json!({})).await.ok();
    server.post(&format!("{path}/terminate"), json!({})).await.ok();
    assert_eq!(server.get(&path).await.ok()["run"]["status"], "Terminating");
    server.post(&format!("{path}/retry"), json!({})).await.fails(409, "not in a terminal state");
    server.delete(&path).await.ok();
    server.get(&path).await.fails(404, "not found");
    server.stop().await;
}

#[tokio::test]
async fn inline_manifests_of_both_kinds_run() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let manifest = serde_norway::from_str::<Value>(HELLO).unwrap().to_string();
    let body = json!({"pipeline_spec": {"pipeline_name": "named", "workflow_manifest": manifest,
                      "parameters": [{"name": "b", "value": "x"}]}});
    let v1 = server.post("/apis/v1beta1/runs", body).await.ok();
    // What was sent comes back as it was, and the name of the pipeline names the run.
    assert_eq!(v1["run"]["pipeline_spec"]["workflow_manifest"], manifest);
    assert_eq!(v1["run"]["name"], "named");
    let body = json!({"name": "r", "pipeline_spec": {"pipeline_manifest": ADD,
                      "runtime_config": {"parameters": {"a": 1.5}, "pipeline_root": "minio://x/y"}}});
    let v2 = server.post("/apis/v1beta1/runs", body).await.ok();
    assert_eq!(v2["run"]["pipeline_spec"]["pipeline_manifest"], ADD);
    assert_eq!(v2["run"]["pipeline_spec"]["runtime_config"]["parameters"], json!({"a": 1.5}));
    let listed = server.get("/apis/v2beta1/runs?sort_by=name").await.ok();
    assert_eq!(listed["runs"][0]["pipeline_spec"]["kind"], "Workflow");
    assert_eq!(listed["runs"][1]["pipeline_spec"]["pipelineInfo"]["name"], "add-numbers");
    server.post("/apis/v1beta1/runs", json!({"name": "r"})).await.fails(400, "empty pipeline spec manifest");
    server.post("/apis/v1beta1/runs", json!({})).await.fails(400, "Run name cannot be empty");
    server.stop().await;
}

#[tokio::test]
async fn jobs_pin_the_version_that_is_newest_at_their_creation() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let pipeline = hello(&server).await;
    let version = pipeline["default_version"]["id"].as_str().unwrap();
    let body = json!({
        "name": "My Job", "enabled": true, "max_concurrency": "2", "no_catchup": true,
        "trigger": {"cron_schedule": {"cron": "0 0 1 1 *", "start_time": "2026-01-01T00:00:00Z"}},
        "pipeline_spec": {"pipeline_id": id(&pipeline), "parameters": [{"name": "b", "value": "x"}]},
    });
    let mut wrong = body.clone();
    wrong["trigger"]["cron_schedule"]["cron"] = json!("1 * *");
    server.post("/apis/v1beta1/jobs", wrong).await.fails(400, "Expected 5 to 6 fields, found 3");
    let job = server.post("/apis/v1beta1/jobs", body.clone()).await.ok();
    assert_eq!(
        job["resource_references"].as_array().unwrap()[2..],
        [reference("PIPELINE", &id(&pipeline), "CREATOR"), reference("PIPELINE_VERSION", version, "CREATOR")]
    );
    assert_eq!((&job["enabled"], &job["max_concurrency"]), (&json!(true), &json!("2")));
    assert_eq!((&job["trigger"], job.get("mode")), (&body["trigger"], None));
    let schedule = server.kube.get("scheduledworkflows/myjob00001").unwrap();
    assert_eq!(schedule["spec"]["workflow"]["parameters"], json!([{"name": "b", "value": "x"}]));
    let workflow: Value = serde_json::from_str(schedule["spec"]["workflow"]["spec"].as_str().unwrap()).unwrap();
    assert_eq!(workflow["spec"]["arguments"]["parameters"][1], json!({"name": "b", "value": "x"}));
    let path = format!("/apis/v1beta1/jobs/{}", id(&job));
    assert_eq!(server.get(&path).await.ok(), job);
    assert_eq!(server.get("/apis/v1beta1/jobs").await.ok()["jobs"], json!([job]));
    server.post(&format!("{path}/disable"), json!({})).await.ok();
    let disabled = server.get(&path).await.ok();
    assert!(disabled.get("enabled").is_none());
    server.post(&format!("{path}/enable"), json!({})).await.ok();
    // The schedule without a trigger has none; names are required.
    let bare = json!({"name": "bare", "max_concurrency": 1, "mode": "DISABLED",
                      "pipeline_spec": {"pipeline_manifest": ADD, "runtime_config": {"parameters": {"a": 1}}}});
    let bare = server.post("/apis/v1beta1/jobs", bare).await.ok();
    assert!(bare.get("trigger").is_none() && bare.get("enabled").is_none());
    server.post("/apis/v1beta1/jobs", json!({"max_concurrency": 1})).await.fails(400, "Job name cannot be empty");
    server.delete(&path).await.ok();
    server.get(&path).await.fails(404, "not found");
    server.stop().await;
}

#[tokio::test]
async fn visualizations_need_a_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let post = |body| server.post("/apis/v1beta1/visualizations/ns", body);
    post(json!({"type": "TABLE"})).await.fails(400, "requires a Source");
    post(json!({"type": "TABLE", "source": "s", "arguments": "{"})).await.fails(400, "requires valid JSON");
    post(json!({"type": "TABLE", "source": "s"})).await.fails(503, "visualization unavailable");
    // How Go clients spell the empty namespace of single-user mode.
    server.post("/apis/v1beta1/visualizations/", json!({"type": "TABLE"})).await.fails(400, "requires a Source");
    server.stop().await;
}

#[tokio::test]
async fn what_is_served_is_described_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let document = server.get("/apis/openapi.json").await.ok();
    let archive = &document["paths"]["/apis/v2beta1/runs/{run_id}:archive"]["post"];
    assert_eq!(archive["operationId"], "RunService_ArchiveRun");
    assert_eq!(archive["parameters"][0]["name"], "run_id");
    let list = &document["paths"]["/apis/v1beta1/runs"]["get"]["parameters"];
    let names: Vec<&str> = list.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert!(names.contains(&"resource_reference_key.type") && names.contains(&"page_size"), "{names:?}");
    assert!(document["paths"]["/apis/v1beta1/pipelines/upload"]["post"]["requestBody"].is_object());
    // Every schema that is referred to is there.
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for part in text.split("#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "{name}");
    }

    server.get("/apis/v1beta1/runs/nope").await.fails(404, "not found");
    server.get("/apis/v2beta1/runs/nope").await.fails(404, "not found");
    let counts = server.get("/metrics").await.body;
    for line in [
        "run_server_get_requests 2",
        r#"grpc_server_handled_total{grpc_type="unary",grpc_service="api.RunService",grpc_method="GetRunV1",grpc_code="NotFound"} 1"#,
    ] {
        assert!(counts.lines().any(|found| found == line), "{line}\n{counts}");
    }
    server.stop().await;
}
