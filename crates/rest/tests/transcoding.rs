//! REST conventions, seen from outside: a small v1beta1 service behind the transcoder.
#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use axum::body::Body;
use http::{Method, Request, StatusCode};
use kfp_proto::api::{self, experiment_service_server, job_service_server, run_service_server};
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use kfp_rest::Transcoder;
use serde_json::{Value, json};
use tonic::{Response, Status};

#[derive(Default, Clone)]
struct Service {
    seen: Arc<Mutex<Vec<String>>>,
}

impl Service {
    fn saw(&self, what: impl std::fmt::Debug) {
        self.seen.lock().unwrap().push(format!("{what:?}"));
    }
}

#[tonic::async_trait]
impl experiment_service_server::ExperimentService for Service {
    async fn create_experiment_v1(
        &self,
        request: tonic::Request<api::CreateExperimentRequest>,
    ) -> Result<Response<api::Experiment>, Status> {
        let user = request.metadata().get("kubeflow-userid").and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let mut experiment = request.into_inner().experiment.unwrap_or_default();
        experiment.id = user;
        experiment.created_at = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
        Ok(Response::new(experiment))
    }

    async fn list_experiments_v1(
        &self,
        request: tonic::Request<api::ListExperimentsRequest>,
    ) -> Result<Response<api::ListExperimentsResponse>, Status> {
        self.saw(request.into_inner());
        Ok(Response::new(api::ListExperimentsResponse { total_size: 7, ..Default::default() }))
    }

    async fn archive_experiment_v1(
        &self,
        request: tonic::Request<api::ArchiveExperimentRequest>,
    ) -> Result<Response<()>, Status> {
        self.saw(request.into_inner().id);
        Ok(Response::new(()))
    }

    async fn get_experiment_v1(
        &self,
        request: tonic::Request<api::GetExperimentRequest>,
    ) -> Result<Response<api::Experiment>, Status> {
        let id = request.into_inner().id;
        Err(tonic::Status::not_found(format!("Experiment {id} not found: é")))
    }
}

#[tonic::async_trait]
impl job_service_server::JobService for Service {
    async fn get_job(&self, request: tonic::Request<api::GetJobRequest>) -> Result<Response<api::Job>, Status> {
        let mut job = api::Job { id: request.into_inner().id, max_concurrency: 5, ..Default::default() };
        let number = |n| prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(n)) };
        let parameters = [("a".to_owned(), number(3.0)), ("b".to_owned(), number(0.5)), ("c".to_owned(), number(1e21))];
        job.pipeline_spec = Some(api::PipelineSpec {
            runtime_config: Some(api::pipeline_spec::RuntimeConfig {
                parameters: parameters.into_iter().collect(),
                ..Default::default()
            }),
            ..Default::default()
        });
        job.trigger = Some(api::Trigger::default());
        Ok(Response::new(job))
    }
}

#[tonic::async_trait]
impl run_service_server::RunService for Service {}

fn server() -> (Transcoder, Service) {
    let service = Service::default();
    let grpc = tonic::service::Routes::new(experiment_service_server::ExperimentServiceServer::new(service.clone()))
        .add_service(job_service_server::JobServiceServer::new(service.clone()))
        .add_service(run_service_server::RunServiceServer::new(service.clone()))
        .into_axum_router();
    (Transcoder::new(&kfp_proto::POOL, &["api"], grpc).unwrap(), service)
}

async fn ask(method: Method, path: &str, body: &str) -> (StatusCode, Value, Vec<String>) {
    let (transcoder, service) = server();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("kubeflow-userid", "ann")
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap();
    let response = transcoder.handle(request).await;
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    let seen = service.seen.lock().unwrap().clone();
    (status, serde_json::from_slice(&bytes).unwrap(), seen)
}

#[tokio::test]
async fn body_field_is_the_message_and_identity_reaches_the_handler() {
    for body in [r#"{"name":"e","storage_state":"STORAGESTATE_ARCHIVED"}"#, r#"{"name":"e","storageState":2}"#] {
        let (status, json, _) = ask(Method::POST, "/apis/v1beta1/experiments", body).await;
        assert_eq!(status, StatusCode::OK, "{json}");
        let want =
            json!({"id":"ann","name":"e","created_at":"1970-01-01T00:00:01Z","storage_state":"STORAGESTATE_ARCHIVED"});
        assert_eq!(json, want);
    }
}

#[tokio::test]
async fn unknown_field_and_broken_json_are_code_3() {
    for (body, text) in [
        (r#"{"nmae":"e"}"#, "unknown field \"nmae\""),
        (r#"{"name":"#, "EOF"),
        (r#"{"name":5}"#, "wrong type"),
        ("[1]", "wrong type"),
        (r#"{"name":"e"} trailing"#, "trailing"),
    ] {
        let (status, json, _) = ask(Method::POST, "/apis/v1beta1/experiments", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert_eq!(json["code"], 3);
        assert!(json["message"].as_str().unwrap().contains(text), "{json}");
    }
}

#[tokio::test]
async fn query_reaches_nested_fields_in_both_spellings_and_unknown_ones_are_ignored() {
    for path in [
        "/apis/v1beta1/experiments?page_size=5&resource_reference_key.type=NAMESPACE&resource_reference_key.id=n%20s+1&x=y",
        "/apis/v1beta1/experiments?pageSize=5&resourceReferenceKey.type=5&resourceReferenceKey.id=n+s%201",
    ] {
        let (status, json, seen) = ask(Method::GET, path, "").await;
        assert_eq!((status, json), (StatusCode::OK, json!({"total_size":7})));
        assert!(seen[0].contains("page_size: 5") && seen[0].contains("n s 1"), "{seen:?}");
    }
    for path in ["/apis/v1beta1/experiments?page_size=x", "/apis/v1beta1/experiments?resource_reference_key=1"] {
        let (status, json, _) = ask(Method::GET, path, "").await;
        assert_eq!((status, &json["code"]), (StatusCode::BAD_REQUEST, &json!(3)));
    }
}

#[tokio::test]
async fn verbs_are_suffixes_and_path_values_are_decoded() {
    let (status, json, seen) = ask(Method::POST, "/apis/v1beta1/experiments/a%2Fb:archive", "").await;
    assert_eq!((status, json), (StatusCode::OK, json!({})));
    assert_eq!(seen, ["\"a/b\""]);
}

#[tokio::test]
async fn the_last_path_value_may_be_empty() {
    let (status, json, _) = ask(Method::GET, "/apis/v1beta1/experiments/", "").await;
    assert_eq!((status, &json["message"]), (StatusCode::NOT_FOUND, &json!("Experiment  not found: é")));
    let (_, json, _) = ask(Method::GET, "/apis/v1beta1/runs//nodes/", "").await;
    assert_eq!(json["message"], "Not Found");
}

#[tokio::test]
async fn errors_have_grpc_gateways_shape() {
    let (status, json, _) = ask(Method::GET, "/apis/v1beta1/experiments/7", "").await;
    assert_eq!((status, json), (StatusCode::NOT_FOUND, json!({"code":5,"message":"Experiment 7 not found: é"})));
    let (status, json, _) = ask(Method::GET, "/apis/v1beta1/nothing", "").await;
    assert_eq!((status, json), (StatusCode::NOT_FOUND, json!({"code":5,"message":"Not Found"})));
    let (status, json, _) = ask(Method::PUT, "/apis/v1beta1/experiments", "").await;
    assert_eq!((status, json), (StatusCode::NOT_IMPLEMENTED, json!({"code":12,"message":"Method Not Allowed"})));
    let (status, json, _) = ask(Method::GET, "/apis/v1beta1/runs/1", "").await;
    assert_eq!((status, &json["code"]), (StatusCode::NOT_IMPLEMENTED, &json!(12)));
}

#[tokio::test]
async fn numbers_print_as_go_prints_them() {
    let (_, json, _) = ask(Method::GET, "/apis/v1beta1/jobs/j", "").await;
    assert_eq!(json["max_concurrency"], "5");
    assert_eq!(json["trigger"], json!({}));
    let text = json["pipeline_spec"]["runtime_config"]["parameters"].to_string();
    assert_eq!(text, r#"{"a":3,"b":0.5,"c":1e+21}"#);
}

proptest::proptest! {
    #[test]
    fn no_request_panics(path in "/apis/v1beta1/[a-z0-9/:%?=&.{}]{0,60}", body in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (transcoder, _) = server();
        if let Ok(request) = Request::builder().method(Method::POST).uri(&path).body(Body::from(body)) {
            let status = runtime.block_on(transcoder.handle(request)).status();
            proptest::prop_assert!(status.as_u16() != 500);
        }
    }
}

#[tonic::async_trait]
impl v2::recurring_run_service_server::RecurringRunService for Service {
    async fn update_recurring_run(
        &self,
        request: tonic::Request<v2::UpdateRecurringRunRequest>,
    ) -> Result<Response<v2::RecurringRun>, Status> {
        let request = request.into_inner();
        self.saw(request.update_mask.unwrap_or_default().paths);
        Ok(Response::new(request.recurring_run.unwrap_or_default()))
    }
}

/// The id comes from the path, and a mask that is left out names the fields of the body, as grpc-gateway has it.
#[tokio::test]
async fn field_masks_are_read_or_made() {
    let service = Service::default();
    let grpc = v2::recurring_run_service_server::RecurringRunServiceServer::new(service.clone());
    let grpc = tonic::service::Routes::new(grpc).into_axum_router();
    let transcoder = Transcoder::new(&kfp_proto::POOL, &["kubeflow.pipelines.backend.api.v2beta1"], grpc).unwrap();
    for (query, body, paths) in [
        (
            "?update_mask=display_name,maxConcurrency,trigger.cronSchedule.cron",
            "{}",
            r#"["display_name", "max_concurrency", "trigger.cron_schedule.cron"]"#,
        ),
        ("?updateMask=description", r#"{"mode": "ENABLE"}"#, r#"["description"]"#),
        ("", r#"{"noCatchup": false, "max_concurrency": 3}"#, r#"["no_catchup", "max_concurrency"]"#),
        (
            "",
            r#"{"trigger": {"cron_schedule": {"cron": "x", "end_time": "2026-01-01T00:00:00Z"}},
                "runtime_config": {"parameters": {"a": {"b": 1}}}, "pipeline_spec": {"c": 1}}"#,
            r#"["pipeline_spec", "runtime_config.parameters", "trigger.cron_schedule.cron", "trigger.cron_schedule.end_time"]"#,
        ),
        ("", r#"{"trigger": {}, "plugins_input": {"m": {"x": 1}}}"#, r#"["plugins_input", "trigger"]"#),
        ("", "", "[]"),
    ] {
        let request = Request::builder()
            .method(Method::PATCH)
            .uri(format!("/apis/v2beta1/recurringruns/the-id{query}"))
            .body(Body::from(body))
            .unwrap();
        let response = transcoder.handle(request).await;
        assert_eq!(response.status(), StatusCode::OK, "{query} {body}");
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let run: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(run["recurring_run_id"], "the-id");
        let sorted = |text: &str| {
            let mut names: Vec<String> = serde_json::from_str(text).unwrap();
            names.sort();
            names
        };
        let seen = service.seen.lock().unwrap().pop().unwrap();
        assert_eq!(sorted(&seen), sorted(paths), "{query} {body}");
    }
}
