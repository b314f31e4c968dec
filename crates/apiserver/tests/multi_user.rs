//! Multi-user mode: who may do what, over gRPC, REST and the plain HTTP endpoints.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes};
use http::HeaderName;
use http::uri::PathAndQuery;
use kfp_apiserver::access::rules;
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, MethodDescriptor, Value as Dyn};
use serde_json::{Value, json};
use support::{ADD, Kube, Server, launch, quote};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

const USER: &str = "kubeflow-userid";
const PACKAGES: [&str; 2] = ["kubeflow.pipelines.backend.api.v2beta1", "api"];
/// What a program in a pod does that has nothing to say who it is.
const OPEN: [&str; 1] = ["/api.TaskService/CreateTaskV1"];

/// Messages as bytes.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

async fn call(server: &Server, path: &str, message: Vec<u8>) -> Code {
    let channel = tonic::transport::Endpoint::from_shared(server.grpc.clone()).unwrap().connect_lazy();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let mut request = tonic::Request::new(message);
    for (name, value) in &server.headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    let answer = grpc.unary(request, PathAndQuery::try_from(path).unwrap(), Raw).await;
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn start(change: impl FnOnce(&mut kfp_apiserver::access::Settings)) -> (tempfile::TempDir, Server) {
    let directory = tempfile::tempdir().unwrap();
    let server = launch(directory.path(), Kube::default(), |options| {
        let access = &mut options.access;
        access.multi_user = true;
        access.user_header = HeaderName::from_static(USER);
        access.user_prefix = String::new();
        change(access);
    })
    .await;
    for (user, namespace) in [("alice", "team-a"), ("bob", "team-b")] {
        server.kube.rights.lock().unwrap().push((user.to_owned(), namespace.to_owned()));
    }
    (directory, server)
}

fn become_user(server: &mut Server, user: &str) {
    server.headers = if user.is_empty() { vec![] } else { vec![(USER, user.to_owned())] };
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("{key} of {value}")).to_owned()
}

/// One object of each kind in a namespace.
struct Objects(BTreeMap<&'static str, String>);

impl Objects {
    /// Made by whoever the server's headers say.
    async fn create(server: &Server, namespace: &str) -> Self {
        let experiment = json!({"display_name": "e", "namespace": namespace});
        let experiment = text(&server.post("/apis/v2beta1/experiments", experiment).await.ok(), "experiment_id");
        let upload = format!("/apis/v2beta1/pipelines/upload?name=p&namespace={namespace}");
        let pipeline = text(&server.upload(&upload, "p.yaml", ADD.as_bytes()).await.ok(), "pipeline_id");
        let versions = server.get(&format!("/apis/v2beta1/pipelines/{pipeline}/versions")).await.ok();
        let version = text(&versions["pipeline_versions"][0], "pipeline_version_id");
        let source = json!({"pipeline_id": pipeline, "pipeline_version_id": version});
        let run = json!({
            "display_name": "r", "experiment_id": experiment, "pipeline_version_reference": source,
            "runtime_config": {"parameters": {"a": 1}},
        });
        let run = text(&server.post("/apis/v2beta1/runs", run).await.ok(), "run_id");
        let job = json!({
            "display_name": "j", "experiment_id": experiment, "pipeline_version_reference": source, "max_concurrency": "1",
            "runtime_config": {"parameters": {"a": 1}}, "trigger": {"periodic_schedule": {"interval_second": "60"}},
        });
        let job = text(&server.post("/apis/v2beta1/recurringruns", job).await.ok(), "recurring_run_id");
        Objects(BTreeMap::from([
            ("namespace", namespace.to_owned()),
            ("experiment", experiment),
            ("pipeline", pipeline),
            ("version", version),
            ("run", run),
            ("job", job),
        ]))
    }

    fn get(&self, kind: &str) -> String {
        self.0[kind].clone()
    }

    fn text_of(&self, field: &FieldDescriptor, service: &str) -> Option<String> {
        Some(match field.name() {
            "namespace" => self.get("namespace"),
            "experiment_id" => self.get("experiment"),
            "pipeline_id" => self.get("pipeline"),
            "pipeline_version_id" | "version_id" => self.get("version"),
            "run_id" => self.get("run"),
            "recurring_run_id" => self.get("job"),
            "id" => self.get(match service {
                "ExperimentService" => "experiment",
                "PipelineService" => "pipeline",
                "RunService" => "run",
                "JobService" => "job",
                _ => return None,
            }),
            "name" | "display_name" => "new".to_owned(),
            _ => return None,
        })
    }

    /// A key or reference of v1beta1.
    fn key(&self, descriptor: &MessageDescriptor, kind: i32) -> DynamicMessage {
        let mut key = DynamicMessage::new(descriptor.clone());
        let id = match kind {
            1 => self.get("experiment"),
            3 => self.get("pipeline"),
            _ => self.get("namespace"),
        };
        key.set_field_by_name("type", Dyn::EnumNumber(kind));
        key.set_field_by_name("id", Dyn::String(id));
        key
    }

    /// A request about these objects.
    fn request(&self, descriptor: &MessageDescriptor, service: &str) -> DynamicMessage {
        let mut message = DynamicMessage::new(descriptor.clone());
        for field in descriptor.fields() {
            let inner = match field.kind() {
                Kind::Message(inner) => inner,
                Kind::Enum(_) if !field.is_list() => {
                    message.set_field(&field, Dyn::EnumNumber(1));
                    continue;
                }
                Kind::String if !field.is_list() && field.containing_oneof().is_none() => {
                    if let Some(text) = self.text_of(&field, service) {
                        message.set_field(&field, Dyn::String(text));
                    }
                    continue;
                }
                _ => continue,
            };
            match inner.full_name() {
                "api.ResourceKey" => {
                    let kind = if field.name() == "resource_key" { 3 } else { 5 };
                    message.set_field(&field, Dyn::Message(self.key(&inner, kind)));
                }
                "api.ResourceReference" => {
                    let reference = |kind| {
                        let mut reference = DynamicMessage::new(inner.clone());
                        let Kind::Message(key) = inner.get_field_by_name("key").unwrap().kind() else { panic!() };
                        reference.set_field_by_name("key", Dyn::Message(self.key(&key, kind)));
                        reference.set_field_by_name("relationship", Dyn::EnumNumber(1));
                        Dyn::Message(reference)
                    };
                    message.set_field(&field, Dyn::List([1, 3, 5].into_iter().map(reference).collect()));
                }
                name if PACKAGES.contains(&inner.package_name())
                    && !field.is_list()
                    && !field.is_map()
                    && field.containing_oneof().is_none()
                    // The new object itself, not what is in it.
                    && descriptor.name().ends_with("Request") =>
                {
                    assert_ne!(name, descriptor.full_name());
                    message.set_field(&field, Dyn::Message(self.request(&inner, service)));
                }
                _ => {}
            }
        }
        message
    }
}

fn methods() -> Vec<(String, MethodDescriptor)> {
    let services = kfp_proto::POOL.services().filter(|service| PACKAGES.contains(&service.package_name()));
    let mut all: Vec<_> = services
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|method| (format!("/{}/{}", method.parent_service().full_name(), method.name()), method))
        .collect();
    // What deletes comes last.
    all.sort_by_key(|(path, _)| (path.contains("/Delete"), path.clone()));
    all
}

/// What each RPC asks of Kubernetes, as the specification lists it.
const EXPECTED: &str = include_str!("access.txt");

#[tokio::test]
async fn every_rpc_is_denied_to_strangers_and_to_users_of_other_namespaces() {
    let (_directory, mut server) = start(|_| {}).await;
    become_user(&mut server, "alice");
    let objects = Objects::create(&server, "team-a").await;
    let requests: Vec<_> = methods()
        .into_iter()
        .map(|(path, method)| {
            let message = objects.request(&method.input(), method.parent_service().name()).encode_to_vec();
            (path, message)
        })
        .collect();
    assert!(requests.len() > 70, "{}", requests.len());

    become_user(&mut server, "");
    for (path, message) in &requests {
        let code = call(&server, path, message.clone()).await;
        match rules::of(path) {
            _ if OPEN.contains(&path.as_str()) => assert_eq!(code, Code::InvalidArgument, "{path}"),
            // Nobody may, whoever it is.
            None => assert_eq!(code, Code::PermissionDenied, "{path}"),
            Some(_) if path == "/api.TaskService/ListTasksV1" => assert_eq!(code, Code::PermissionDenied, "{path}"),
            Some(_) => assert_eq!(code, Code::Unauthenticated, "{path}"),
        }
    }

    become_user(&mut server, "bob");
    let mut asked = String::new();
    for (path, message) in &requests {
        server.kube.asked.lock().unwrap().clear();
        let code = call(&server, path, message.clone()).await;
        if OPEN.contains(&path.as_str()) {
            continue;
        }
        assert_eq!(code, Code::PermissionDenied, "{path}");
        for question in server.kube.asked.lock().unwrap().iter() {
            assert_eq!(question["user"], "bob");
            let wanted = &question["resourceAttributes"];
            assert_eq!(wanted["version"], "v1beta1");
            let part = |key: &str| wanted[key].as_str().unwrap_or("-").to_owned();
            let line = ["verb", "resource", "group", "namespace"].map(part).join(" ");
            asked.push_str(&format!("{path} {line}\n"));
        }
    }
    assert_eq!(asked.trim_end(), EXPECTED.trim_end(), "\n{asked}");

    // The same requests are let through for those who may: the refusals above had no other reason.
    server.kube.rights.lock().unwrap().push(("alice".to_owned(), String::new()));
    become_user(&mut server, "alice");
    for (path, message) in requests.iter().filter(|(path, _)| rules::of(path).is_some()) {
        let code = call(&server, path, message.clone()).await;
        assert!(
            !matches!(code, Code::Unauthenticated | Code::PermissionDenied) || path == "/api.TaskService/ListTasksV1",
            "{path} {code:?}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn uploads_artifacts_and_logs_are_guarded_too() {
    let (_directory, mut server) = start(|_| {}).await;
    become_user(&mut server, "alice");
    let objects = Objects::create(&server, "team-a").await;
    let (run, pipeline) = (objects.get("run"), objects.get("pipeline"));
    let artifacts =
        ["v1beta1", "v2beta1"].map(|version| format!("/apis/{version}/runs/{run}/nodes/n/artifacts/main-logs:read"));
    let logs = ["v1alpha1", "v2beta1"].map(|version| format!("/apis/{version}/runs/{run}/nodes/n/log"));
    let uploads = ["v1beta1", "v2beta1"].map(|version| {
        let base = format!("/apis/{version}/pipelines");
        [
            (format!("{base}/upload?name=x-{version}&namespace=team-a"), "Failed to create a pipeline"),
            // Everybody would see it.
            (format!("{base}/upload?name=y-{version}"), "Failed to create a pipeline"),
            (
                format!("{base}/upload_version?name=z-{version}&pipelineid={pipeline}"),
                "Failed to create a pipeline version",
            ),
        ]
    });
    for (user, status) in [("", 401), ("bob", 403)] {
        become_user(&mut server, user);
        for path in &artifacts {
            server.get(path).await.fails(403, "Failed to authorize the request");
        }
        for path in &logs {
            server.get(path).await.fails(status, "Failed to read logs");
        }
        for (path, text) in uploads.iter().flatten() {
            server.upload(path, "p.yaml", ADD.as_bytes()).await.fails(400, text);
        }
    }
    become_user(&mut server, "alice");
    for path in &artifacts {
        assert_ne!(server.get(path).await.status, 403);
    }
    for path in &logs {
        server.get(path).await.fails(404, "no log of n");
    }
    for [own, shared, version] in &uploads {
        server.upload(&own.0, "p.yaml", ADD.as_bytes()).await.ok();
        server.upload(&shared.0, "p.yaml", ADD.as_bytes()).await.fails(400, "kubeflow");
        server.upload(&version.0, "p.yaml", ADD.as_bytes()).await.ok();
    }
    let asked = server.kube.asked.lock().unwrap().clone();
    let verbs: Vec<_> = asked.iter().map(|question| &question["resourceAttributes"]["verb"]).collect();
    assert!(verbs.contains(&&json!("readArtifact")), "{verbs:?}");
    assert_eq!(server.get("/apis/v2beta1/healthz").await.ok()["multi_user"], true);
    server.stop().await;
}

#[tokio::test]
async fn lists_show_one_namespace() {
    let (_directory, mut server) = start(|_| {}).await;
    let mut of = BTreeMap::new();
    for (user, namespace) in [("alice", "team-a"), ("bob", "team-b")] {
        become_user(&mut server, user);
        of.insert(namespace, Objects::create(&server, namespace).await);
    }
    become_user(&mut server, "alice");
    let key = |kind: &str, id: &str| format!("resource_reference_key.type={kind}&resource_reference_key.id={id}");
    for (path, items, id) in [
        ("/apis/v2beta1/experiments?namespace=team-a", "experiments", "experiment"),
        ("/apis/v2beta1/pipelines?namespace=team-a", "pipelines", "pipeline"),
        ("/apis/v2beta1/runs?namespace=team-a", "runs", "run"),
        ("/apis/v2beta1/recurringruns?namespace=team-a", "recurringRuns", "job"),
        (&format!("/apis/v1beta1/experiments?{}", key("NAMESPACE", "team-a")), "experiments", "experiment"),
        (&format!("/apis/v1beta1/pipelines?{}", key("NAMESPACE", "team-a")), "pipelines", "pipeline"),
        (&format!("/apis/v1beta1/runs?{}", key("NAMESPACE", "team-a")), "runs", "run"),
        (&format!("/apis/v1beta1/jobs?{}", key("NAMESPACE", "team-a")), "jobs", "job"),
        (&format!("/apis/v2beta1/runs?experiment_id={}", of["team-a"].get("experiment")), "runs", "run"),
        (&format!("/apis/v1beta1/jobs?{}", key("EXPERIMENT", &of["team-a"].get("experiment"))), "jobs", "job"),
    ] {
        let seen = server.get(path).await.ok();
        assert_eq!(seen["total_size"], 1, "{path} {seen}");
        assert!(seen[items][0].to_string().contains(&of["team-a"].get(id)), "{path} {seen}");
    }
    // An experiment decides about the namespace, whatever the request says.
    let foreign = of["team-b"].get("experiment");
    server.get(&format!("/apis/v2beta1/runs?namespace=team-a&experiment_id={foreign}")).await.fails(403, "team-b");
    // A token holds no namespace that would let anybody in.
    for number in 0..3 {
        let body = json!({"display_name": format!("e{number}"), "namespace": "team-a"});
        server.post("/apis/v2beta1/experiments", body).await.ok();
    }
    let page = server.get("/apis/v2beta1/experiments?namespace=team-a&page_size=1").await.ok();
    become_user(&mut server, "bob");
    let token = quote(page["next_page_token"].as_str().unwrap());
    server.get(&format!("/apis/v2beta1/experiments?namespace=team-a&page_token={token}")).await.fails(403, "team-a");
    let own = server.get(&format!("/apis/v2beta1/experiments?namespace=team-b&page_token={token}")).await.ok();
    assert!(!own.to_string().contains("team-a"), "{own}");
    for (path, text) in [
        ("/apis/v2beta1/experiments", "An experiment cannot have an empty namespace in multi-user mode"),
        ("/apis/v2beta1/experiments?namespace=-", "An experiment cannot have an empty namespace in multi-user mode"),
        ("/apis/v2beta1/runs", "A run cannot have an empty namespace in multi-user mode"),
        ("/apis/v2beta1/recurringruns", "a recurring run cannot have an empty namespace in multi-user mode"),
    ] {
        server.get(path).await.fails(400, text);
    }
    server.stop().await;
}

#[tokio::test]
async fn runs_belong_to_the_namespace_of_their_experiment() {
    let (_directory, mut server) = start(|_| {}).await;
    become_user(&mut server, "bob");
    let foreign = Objects::create(&server, "team-b").await;
    become_user(&mut server, "alice");
    let own = Objects::create(&server, "team-a").await;
    let run = server.get(&format!("/apis/v1beta1/runs/{}", own.get("run"))).await.ok();
    assert!(run["run"]["resource_references"].to_string().contains("team-a"), "{run}");
    let workflows = server.kube.names("workflows");
    let namespaces: Vec<_> = workflows
        .iter()
        .map(|name| server.kube.get(&format!("workflows/{name}")).unwrap()["metadata"]["namespace"].clone())
        .collect();
    assert_eq!(namespaces.len(), 2);
    assert!(namespaces.contains(&json!("team-a")) && namespaces.contains(&json!("team-b")));

    let body = |change: Value| {
        let mut body = json!({
            "display_name": "x", "experiment_id": own.get("experiment"), "max_concurrency": "1",
            "pipeline_version_reference": {"pipeline_id": own.get("pipeline")},
            "runtime_config": {"parameters": {"a": 1}},
        });
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        body
    };
    let without_jobs_fields = |mut body: Value| {
        body.as_object_mut().unwrap().remove("max_concurrency");
        body
    };
    for path in ["/apis/v2beta1/runs", "/apis/v2beta1/recurringruns"] {
        let send = |change: Value| {
            let body = body(change);
            let body = if path.ends_with("/runs") { without_jobs_fields(body) } else { body };
            server.post(path, body)
        };
        let none = "Experiment id can not be empty in multi-user mode";
        send(json!({"experiment_id": ""})).await.fails(400, none);
        send(json!({"experiment_id": foreign.get("experiment")})).await.fails(403, "team-b");
        // Another namespace's pipeline is not read by running it.
        let version = json!({"pipeline_id": foreign.get("pipeline"), "pipeline_version_id": foreign.get("version")});
        send(json!({"pipeline_version_reference": version})).await.fails(403, "pipelines");
        let version = json!({"pipeline_version_id": foreign.get("version")});
        send(json!({"pipeline_version_reference": version})).await.fails(403, "pipelines");
        send(json!({})).await.ok();
    }
    // Nor by changing what a schedule runs.
    let change = async |id: String| {
        let version = json!({"pipeline_id": foreign.get("pipeline"), "pipeline_version_id": foreign.get("version")});
        let path = format!("/apis/v2beta1/recurringruns/{id}?update_mask=pipeline_version_reference");
        server.patch(&path, json!({"pipeline_version_reference": version})).await
    };
    change(own.get("job")).await.fails(403, "pipelines");
    change(foreign.get("job")).await.fails(403, "team-b");
    let other = body(json!({"namespace": "team-b"}));
    server
        .post("/apis/v2beta1/recurringruns", other)
        .await
        .fails(400, "belongs to namespace 'team-a' instead of 'team-b'");
    // Nor is a run hung on another namespace's schedule, or that schedule's run handed out.
    let tick =
        |job: String| server.post("/apis/v2beta1/runs", without_jobs_fields(body(json!({"recurring_run_id": job}))));
    tick(foreign.get("job")).await.fails(403, "another namespace");
    tick(own.get("job")).await.ok();

    // Also when the schedule is gone, and nobody knows any more whose it was.
    let theirs = json!({
        "display_name": "x", "experiment_id": foreign.get("experiment"), "recurring_run_id": foreign.get("job"),
        "pipeline_version_reference": {"pipeline_id": foreign.get("pipeline")},
        "runtime_config": {"parameters": {"a": 1}},
    });
    let late = without_jobs_fields(body(json!({"recurring_run_id": foreign.get("job")})));
    become_user(&mut server, "bob");
    server.post("/apis/v2beta1/runs", theirs).await.ok();
    server.delete(&format!("/apis/v2beta1/recurringruns/{}", foreign.get("job"))).await.ok();
    become_user(&mut server, "alice");
    server.post("/apis/v2beta1/runs", late).await.fails(404, "RecurringRunId doesn't exist");

    // Pipelines that everybody sees may be run by everybody, and changed only by those who run the installation.
    server.kube.rights.lock().unwrap().push(("carol".to_owned(), "kubeflow".to_owned()));
    let create = || server.upload("/apis/v2beta1/pipelines/upload?name=p", "p.yaml", ADD.as_bytes());
    create().await.fails(400, "Failed to create a pipeline");
    become_user(&mut server, "carol");
    let shared = text(
        &server.upload("/apis/v2beta1/pipelines/upload?name=p", "p.yaml", ADD.as_bytes()).await.ok(),
        "pipeline_id",
    );
    become_user(&mut server, "alice");
    let run = without_jobs_fields(body(json!({"pipeline_version_reference": {"pipeline_id": shared}})));
    server.post("/apis/v2beta1/runs", run).await.ok();
    server.delete(&format!("/apis/v2beta1/pipelines/{shared}?cascade=true")).await.fails(403, "kubeflow");
    become_user(&mut server, "");
    server.get(&format!("/apis/v2beta1/pipelines/{shared}")).await.ok();
    assert_eq!(server.get("/apis/v2beta1/pipelines").await.ok()["total_size"], 1);
    // Names of shared pipelines lead to nobody else's, although those are called the same.
    for path in ["/apis/v2beta1/pipelines/names/p", "/apis/v1beta1/namespaces/-/pipelines/p"] {
        assert!(server.get(path).await.ok().to_string().contains(&shared), "{path}");
    }
    server.stop().await;
}

#[tokio::test]
async fn users_are_known_by_one_header_or_by_a_token() {
    let (_directory, mut server) = start(|_| {}).await;
    let audience = "pipelines.kubeflow.org";
    for (token, user, audience) in [
        ("good", "system:serviceaccount:team-a:editor", audience),
        ("theirs", "system:serviceaccount:team-a:editor", "elsewhere"),
        ("blind", "system:serviceaccount:team-a:editor", ""),
    ] {
        let mut tokens = server.kube.tokens.lock().unwrap();
        tokens.insert(token.to_owned(), (user.to_owned(), audience.to_owned()));
    }
    let right = ("system:serviceaccount:team-a:editor".to_owned(), "team-a".to_owned());
    server.kube.rights.lock().unwrap().push(right);
    let list = "/apis/v2beta1/experiments?namespace=team-a";
    let bearer = |token: &str| ("authorization", format!("Bearer {token}"));
    let user = |name: &'static str, user: &str| (name, user.to_owned());
    for (headers, status, text) in [
        (vec![], 401, "there is no user identity header"),
        (vec![user(USER, "")], 401, "names no user"),
        (vec![user(USER, "alice")], 200, ""),
        (vec![user(USER, "alice"), user(USER, "alice")], 401, "Expect 1 got 2"),
        (vec![user("grpc-metadata-kubeflow-userid", "alice")], 401, "there is no user identity header"),
        (vec![bearer("good")], 200, ""),
        (vec![user("authorization", "bearer good")], 401, "Expected prefix 'Bearer '"),
        (vec![bearer("unknown")], 401, "the token is not for us"),
        (vec![bearer("theirs")], 401, "the token is not for us"),
        (vec![bearer("blind")], 401, "in audience"),
        // The header counts first.
        (vec![user(USER, "bob"), bearer("good")], 403, "User 'bob' is not authorized with reason: no role"),
    ] {
        server.headers = headers;
        let reply = server.get(list).await;
        if status == 200 {
            reply.ok();
        } else {
            let body = reply.fails(status, text);
            assert_eq!(body["code"], if status == 401 { 16 } else { 7 });
        }
    }
    // Not knowing is not allowing.
    become_user(&mut server, "alice");
    for (refused, status) in [(500, 503), (403, 500)] {
        *server.kube.refuse.lock().unwrap() = Some(refused);
        server.get(list).await.fails(status, "Failed to create SubjectAccessReview for user 'alice'");
    }
    server.stop().await;
}

#[tokio::test]
async fn reading_can_be_shared_and_pipelines_can_be_bound_to_namespaces() {
    let (_directory, mut server) = start(|access| {
        access.shared_read = true;
        access.namespace_required = true;
    })
    .await;
    become_user(&mut server, "alice");
    let objects = Objects::create(&server, "team-a").await;
    become_user(&mut server, "");
    for path in [
        format!("/apis/v2beta1/runs/{}", objects.get("run")),
        "/apis/v2beta1/runs?namespace=team-a".to_owned(),
        format!("/apis/v2beta1/pipelines/{}", objects.get("pipeline")),
    ] {
        server.get(&path).await.ok();
    }
    server.post(&format!("/apis/v2beta1/runs/{}:archive", objects.get("run")), json!({})).await.fails(401, "identity");
    let required = "Namespace is required for pipeline operations";
    server.get("/apis/v2beta1/pipelines").await.fails(400, required);
    server.get("/apis/v2beta1/pipelines/names/p").await.fails(400, required);
    become_user(&mut server, "alice");
    server.post("/apis/v2beta1/pipelines", json!({"name": "q"})).await.fails(400, required);
    server.upload("/apis/v2beta1/pipelines/upload?name=q", "p.yaml", ADD.as_bytes()).await.fails(400, required);
    server.stop().await;
}

#[tokio::test]
async fn the_user_interface_asks_about_viewers_and_drivers_look_up_the_cache() {
    let (_directory, mut server) = start(|_| {}).await;
    become_user(&mut server, "alice");
    let auth = "/apis/v1beta1/auth?resources=VIEWERS&verb=GET&namespace=";
    server.get(&format!("{auth}team-a")).await.ok();
    server.get(&format!("{auth}team-b")).await.fails(403, "kubeflow.org");
    server.get(auth).await.fails(400, "Namespace is empty. Please specify a valid namespace");
    server.get("/apis/v1beta1/auth?namespace=team-a&verb=GET").await.fails(400, "Resources not specified");
    server.get("/apis/v1beta1/auth?namespace=team-a&resources=VIEWERS").await.fails(400, "Verb not specified");

    let objects = Objects::create(&server, "team-a").await;
    become_user(&mut server, "");
    let task = json!({
        "pipelineName": "pipeline/p", "runId": objects.get("run"), "mlmdExecutionID": "5", "fingerprint": "f",
        "created_at": "2026-01-01T00:00:00Z",
    });
    assert_eq!(server.post("/apis/v1alpha1/tasks", task).await.ok()["namespace"], "team-a");
    let find = |key: &str, op: &str, value: &str| {
        let filter = json!({"predicates": [{"op": op, "key": key, "stringValue": value}]});
        let path = format!("/apis/v1alpha1/tasks?filter={}", quote(&filter.to_string()));
        let server = &server;
        async move { server.get(&path).await }
    };
    assert_eq!(find("fingerprint", "EQUALS", "f").await.ok()["tasks"][0]["mlmdExecutionID"], "5");
    for (key, op, value) in
        [("namespace", "EQUALS", "team-a"), ("fingerprint", "IS_SUBSTRING", ""), ("fingerprint", "EQUALS", "")]
    {
        find(key, op, value).await.fails(403, "only by fingerprint");
    }
    server.stop().await;
}
