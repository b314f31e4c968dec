//! Pipelines and versions as Kubernetes objects, in the embedded Kubernetes API or a real one, and their admission.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::path::Path;

use axum::body::Body;
use base64::Engine as _;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kfp_apiserver::{Options, tls, webhook};
use kfp_core::https;
use kfp_test_cluster::Kube as Cluster;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, PostParams};
use serde_json::{Value, json};
use support::{ADD, Kube, Server, launch, quote};

struct Setup {
    server: Server,
    cluster: Cluster,
    webhook: String,
    _directory: tempfile::TempDir,
}

async fn setup(change: impl FnOnce(&Path, &mut Options)) -> Setup {
    setup_in(Cluster::start().await, change).await
}

async fn setup_in(cluster: Cluster, change: impl FnOnce(&Path, &mut Options)) -> Setup {
    let directory = tempfile::tempdir().unwrap();
    let hook = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hook.local_addr().unwrap();
    let server = launch(directory.path(), Kube::default(), |options| {
        options.kube = Some(cluster.client.clone());
        options.namespace = cluster.namespace.clone();
        options.pipelines_in_cluster = true;
        options.webhook = Some(webhook::Settings { address, listener: Some(hook), tls: None, alone: false });
        change(directory.path(), options);
    })
    .await;
    Setup { server, cluster, webhook: format!("http://{address}"), _directory: directory }
}

impl Setup {
    fn objects(&self, kind: &str) -> Api<DynamicObject> {
        self.cluster.api(&kfp_test_cluster::pipelines(kind))
    }

    async fn try_create(&self, kind: &str, object: Value) -> kube::Result<DynamicObject> {
        let mut whole = json!({"apiVersion": "pipelines.kubeflow.org/v2beta1", "kind": kind});
        whole.as_object_mut().unwrap().extend(object.as_object().unwrap().clone());
        let object = serde_json::from_value(whole).unwrap();
        self.objects(kind).create(&PostParams::default(), &object).await
    }

    async fn create(&self, kind: &str, object: Value) -> DynamicObject {
        self.try_create(kind, object).await.unwrap()
    }

    async fn upload(&self, query: &str) -> Value {
        self.server.upload(&format!("/apis/v2beta1/pipelines/upload?{query}"), "p.yaml", ADD.as_bytes()).await.ok()
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("{key} of {value}")).to_owned()
}

fn spec() -> Value {
    serde_norway::from_str(ADD).unwrap()
}

#[tokio::test]
async fn pipelines_are_objects() {
    let setup = setup(|_, _| {}).await;
    let server = &setup.server;
    let tags = quote(r#"{"team":"a"}"#);
    let made = setup.upload(&format!("name=add&display_name=Add%20numbers&description=d&tags={tags}")).await;
    let id = text(&made, "pipeline_id");
    let object = setup.objects("Pipeline").get("add").await.unwrap();
    assert_eq!(object.metadata.uid.as_deref(), Some(id.as_str()));
    assert_eq!(object.data["spec"], json!({"displayName": "Add numbers", "description": "d", "tags": {"team": "a"}}));
    assert_eq!((&made["namespace"], &made["display_name"]), (&json!(setup.cluster.namespace), &json!("Add numbers")));
    for path in [format!("/apis/v2beta1/pipelines/{id}"), "/apis/v2beta1/pipelines/names/add".to_owned()] {
        assert_eq!(server.get(&path).await.ok(), made, "{path}");
    }
    // The first version is called as its pipeline, the next ones begin with its name.
    let another = format!("/apis/v2beta1/pipelines/upload_version?name=v2&pipelineid={id}");
    let second = server.upload(&another, "p.yaml", ADD.as_bytes()).await.ok();
    server.upload(&another, "p.yaml", ADD.as_bytes()).await.fails(409, "Failed to create a pipeline version");
    let versions = setup.objects("PipelineVersion");
    let first = versions.get("add").await.unwrap();
    let object = versions.get("add-v2").await.unwrap();
    assert_eq!(object.metadata.owner_references.as_ref().unwrap()[0].uid, id);
    assert_eq!(object.metadata.labels.as_ref().unwrap()["pipelines.kubeflow.org/pipeline-id"], id);
    assert_eq!(object.data["status"]["conditions"][0]["reason"], "READY");
    assert_eq!(object.data["spec"]["pipelineSpec"]["pipelineInfo"]["name"], "add-numbers");
    assert_eq!(
        (&object.data["spec"]["pipelineName"], &object.data["spec"]["versionName"]),
        (&json!("add"), &json!("v2"))
    );
    let path = format!("/apis/v2beta1/pipelines/{id}/versions/{}", text(&second, "pipeline_version_id"));
    assert_eq!(server.get(&path).await.ok(), second);
    assert_eq!(second["pipeline_spec"]["pipelineInfo"]["name"], "add-numbers");

    // Both can be run, by version and as the newest one.
    for source in [json!({"pipeline_id": id}), json!({"pipeline_id": id, "pipeline_version_id": first.metadata.uid})] {
        let run = json!({
            "display_name": "r", "pipeline_version_reference": source, "runtime_config": {"parameters": {"a": 1}},
        });
        assert_eq!(server.post("/apis/v2beta1/runs", run).await.ok()["pipeline_version_reference"]["pipeline_id"], id);
    }

    // Names and tags change; what is in a version does not.
    let change = json!({"display_name": "Sum", "tags": {"team": "b", "env": "x"}});
    let changed = server.patch(&format!("/apis/v2beta1/pipelines/{id}"), change.clone()).await.ok();
    assert_eq!((&changed["display_name"], &changed["tags"]), (&change["display_name"], &change["tags"]));
    let changed = server.patch(&path, json!({"pipeline_id": id, "tags": {"stage": "test"}})).await.ok();
    assert_eq!(changed["tags"], json!({"stage": "test"}));
    let cleared = server.patch(&format!("/apis/v2beta1/pipelines/{id}"), json!({"tags": {}})).await.ok();
    assert_eq!((cleared.get("tags"), &cleared["display_name"]), (None, &json!("Sum")));
    assert_eq!(setup.objects("Pipeline").get("add").await.unwrap().data["spec"].get("tags"), None);

    let pipeline = format!("/apis/v2beta1/pipelines/{id}");
    server.delete(&pipeline).await.fails(400, "Set cascade=true to delete all versions");
    server.delete(&path).await.ok();
    server.get(&path).await.fails(404, "PipelineVersion");
    server.delete(&format!("{pipeline}?cascade=true")).await.ok();
    server.get(&pipeline).await.fails(404, "Pipeline");
    assert!(versions.list(&Default::default()).await.unwrap().items.is_empty());
    assert_eq!(server.get("/apis/v2beta1/healthz").await.ok()["pipeline_store"], "kubernetes");
    setup.server.stop().await;
}

#[tokio::test]
async fn objects_made_by_others_are_pipelines_too() {
    let setup = setup(|_, _| {}).await;
    let server = &setup.server;
    server.patiently(|| server.get("/apis/v2beta1/pipelines")).await.ok();
    let pipeline = setup.create("Pipeline", json!({"metadata": {"name": "git"}, "spec": {}})).await;
    let id = pipeline.metadata.uid.clone().unwrap();
    let tied = |name: &str, spec: Value| {
        json!({
            "metadata": {
                "name": name, "labels": {"pipelines.kubeflow.org/pipeline-id": id},
                "ownerReferences": [
                    {"apiVersion": "pipelines.kubeflow.org/v2beta1", "kind": "Pipeline", "name": "git", "uid": id},
                ],
            },
            "spec": {"pipelineName": "git", "pipelineSpec": spec, "platformSpec": {"platforms": {"other": {}}}},
        })
    };
    setup.create("PipelineVersion", tied("by-hand", spec())).await;
    setup.create("PipelineVersion", tied("broken", json!({"no": "spec"}))).await;
    let mut stray = tied("stray", spec());
    stray["metadata"]["ownerReferences"][0]["uid"] = json!("somebody-else");
    setup.create("PipelineVersion", stray).await;
    let versions = format!("/apis/v2beta1/pipelines/{id}/versions");
    let seen = server.get(&format!("{versions}?sort_by=name")).await.ok();
    assert_eq!(seen["total_size"], 2, "{seen}");
    let [broken, good] = [&seen["pipeline_versions"][0], &seen["pipeline_versions"][1]];
    assert_eq!((&good["name"], &good["display_name"]), (&json!("by-hand"), &json!("by-hand")));
    assert_eq!(good["pipeline_spec"]["pipelineInfo"]["name"], "add-numbers");
    assert!(broken["pipeline_version_id"].is_string(), "one bad object spoils no list: {broken}");
    // A name that is taken by an object with another form of name.
    let again = format!("/apis/v2beta1/pipelines/upload_version?name=by-hand&pipelineid={id}");
    server.upload(&again, "p.yaml", ADD.as_bytes()).await.fails(409, "Failed to create a pipeline version");

    // Made anew under the same name, it is another pipeline.
    assert_eq!(server.get(&format!("/apis/v2beta1/pipelines/{id}")).await.ok()["name"], "git");
    setup.objects("Pipeline").delete("git", &DeleteParams::default()).await.unwrap();
    let renewed = setup.create("Pipeline", json!({"metadata": {"name": "git"}, "spec": {}})).await;
    server.get(&format!("/apis/v2beta1/pipelines/{id}")).await.fails(404, "Pipeline");
    server.get(&format!("/apis/v2beta1/pipelines/{}", renewed.metadata.uid.unwrap())).await.ok();
    setup.server.stop().await;
}

#[tokio::test]
async fn names_are_those_of_objects() {
    let setup = setup(|_, _| {}).await;
    let server = &setup.server;
    for name in ["Add Numbers", "-a", "a_b", "a/b", "../x"] {
        let upload = format!("/apis/v2beta1/pipelines/upload?name={}", quote(name));
        let refused = server.upload(&upload, "p.yaml", ADD.as_bytes()).await.fails(400, "Invalid pipeline");
        assert!(refused.to_string().contains("Use 'display_name' for human-readable labels"), "{refused}");
        assert_eq!(server.get(&format!("/apis/v2beta1/pipelines/names/{}", quote(name))).await.status, 404);
    }
    setup.upload("name=add").await;
    let twice = server.upload("/apis/v2beta1/pipelines/upload?name=add", "p.yaml", ADD.as_bytes()).await;
    twice.fails(409, "Failed to create a pipeline and a pipeline version");
    // An Argo Workflow cannot be kept so; nothing is left of the attempt.
    let argo = "apiVersion: argoproj.io/v1alpha1\nkind: Workflow\nmetadata: {generateName: x-}\nspec:\n  entrypoint: a\n  templates: [{name: a, container: {image: b}}]\n";
    server.upload("/apis/v2beta1/pipelines/upload?name=argo", "p.yaml", argo.as_bytes()).await.fails(400, "Argo");
    assert_eq!(server.get("/apis/v2beta1/pipelines").await.ok()["total_size"], 1);
    for id in ["nobody", "../pipelines", "a%2Cb", "a=b"] {
        assert_eq!(server.get(&format!("/apis/v2beta1/pipelines/{}", quote(id))).await.status, 404, "{id}");
    }
    setup.server.stop().await;
}

#[tokio::test]
async fn lists_are_filtered_and_sorted_without_case() {
    let setup = setup(|_, _| {}).await;
    let server = &setup.server;
    for (name, shown, tag) in [("a", "Zeta", "x"), ("b", "alpha", "y"), ("c", "Beta", "x")] {
        let tags = quote(&json!({"kind": tag}).to_string());
        setup.upload(&format!("name={name}&display_name={shown}&tags={tags}")).await;
    }
    let names = |seen: &Value| {
        let all = seen["pipelines"].as_array().cloned().unwrap_or_default();
        all.iter().map(|pipeline| text(pipeline, "name")).collect::<String>()
    };
    let filter = |key: &str, operation: &str, value: Value| {
        let mut predicate = json!({"key": key, "operation": operation});
        predicate.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        format!("/apis/v2beta1/pipelines?filter={}", quote(&json!({"predicates": [predicate]}).to_string()))
    };
    let one = |value: &str| json!({"string_value": value});
    for (path, expected) in [
        ("/apis/v2beta1/pipelines?sort_by=display_name".to_owned(), "bca"),
        ("/apis/v2beta1/pipelines?sort_by=display_name%20desc".to_owned(), "acb"),
        (filter("display_name", "EQUALS", one("ALPHA")), "b"),
        (filter("name", "NOT_EQUALS", one("B")) + "&sort_by=name", "ac"),
        (filter("display_name", "IS_SUBSTRING", one("ETA")) + "&sort_by=name", "ac"),
        (filter("name", "IN", json!({"string_values": {"values": ["a", "C"]}})) + "&sort_by=name%20desc", "ca"),
        (filter("tags.kind", "EQUALS", one("x")) + "&sort_by=name", "ac"),
    ] {
        assert_eq!(names(&server.get(&path).await.ok()), expected, "{path}");
    }
    let greater = filter("created_at", "GREATER_THAN", json!({"timestamp_value": "2000-01-01T00:00:00Z"}));
    let text_of = "Filter gt is not implemented for Kubernetes pipeline store";
    server.get(&greater).await.fails(400, text_of);
    let (mut seen, mut token) = (String::new(), String::new());
    for _ in 0..3 {
        let path = format!("/apis/v2beta1/pipelines?page_size=1&sort_by=display_name&page_token={}", quote(&token));
        let page = server.get(&path).await.ok();
        assert_eq!(page["total_size"], 3);
        seen.push_str(&names(&page));
        token = page["next_page_token"].as_str().unwrap_or_default().to_owned();
    }
    assert_eq!((seen.as_str(), token.as_str()), ("bca", ""));
    setup.server.stop().await;
}

#[tokio::test]
async fn calls_of_v1beta1_that_need_tables_say_so() {
    let setup = setup(|_, _| {}).await;
    let server = &setup.server;
    let id = text(&setup.upload("name=add").await, "pipeline_id");
    let none = "the v1 API is not available for the Kubernetes pipeline store";
    server.get("/apis/v1beta1/pipelines").await.fails(501, none);
    server.get("/apis/v1beta1/namespaces/-/pipelines/add").await.fails(501, none);
    let seen = server.get(&format!("/apis/v1beta1/pipelines/{id}")).await.ok();
    let version = text(&seen["default_version"], "id");
    assert!(
        server.get(&format!("/apis/v1beta1/pipelines/{id}/templates")).await.ok().to_string().contains("add-numbers")
    );
    let default = format!("/apis/v1beta1/pipelines/{id}/default_version/{version}");
    server.post(&default, json!({})).await.fails(409, "default version is unsupported");
    setup.server.stop().await;
}

#[tokio::test]
async fn namespaces_keep_their_pipelines_apart() {
    // A real API allows nothing to strangers, the embedded one everything.
    let setup = setup_in(Cluster::embedded().await, |_, options| {
        options.access.multi_user = true;
        options.access.user_prefix = String::new();
    })
    .await;
    let namespaces = Api::<Namespace>::all(setup.cluster.client.clone());
    for name in ["team-a", "team-b"] {
        let namespace =
            Namespace { metadata: ObjectMeta { name: Some(name.into()), ..Default::default() }, ..Default::default() };
        namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    }
    let mut server = setup.server;
    server.headers = vec![("x-goog-authenticated-user-email", "alice".to_owned())];
    let upload = |query: &str| {
        let path = format!("/apis/v2beta1/pipelines/upload?name=p{query}");
        let server = &server;
        async move { server.upload(&path, "p.yaml", ADD.as_bytes()).await }
    };
    upload("").await.fails(409, "Failed to create a pipeline");
    upload("&namespace=A/b").await.fails(400, "is not the name of a namespace");
    upload("&namespace=team-c").await.fails(404, "Namespace team-c not found");
    let first = upload("&namespace=team-a").await.ok();
    let second = upload("&namespace=team-b").await.ok();
    for (namespace, made) in [("team-a", &first), ("team-b", &second)] {
        let seen = server.get(&format!("/apis/v2beta1/pipelines?namespace={namespace}")).await.ok();
        assert_eq!((&seen["total_size"], &seen["pipelines"][0]), (&json!(1), made));
        let id = text(made, "pipeline_id");
        assert_eq!(server.get(&format!("/apis/v2beta1/pipelines/{id}")).await.ok(), *made);
        assert_eq!(server.get(&format!("/apis/v2beta1/pipelines/{id}/versions")).await.ok()["total_size"], 1);
    }
    // Without a namespace there is nothing: neither everybody's, nor the installation's.
    assert_eq!(server.get("/apis/v2beta1/pipelines").await.ok(), json!({}));
    server.get("/apis/v2beta1/pipelines/names/p").await.fails(404, "not found");
    server.stop().await;
}

#[tokio::test]
async fn versions_are_admitted_and_tied_to_their_pipeline() {
    let setup = setup(|_, _| {}).await;
    let server = &setup.server;
    let id = text(&setup.upload("name=add").await, "pipeline_id");
    let ask = |path: &str, request: Value| {
        let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        let request = http::Request::post(format!("{}/webhooks/{path}", setup.webhook))
            .header("content-type", "application/json")
            .body(axum::body::Body::from(review.to_string()))
            .unwrap();
        async move {
            let answer = server.client.0.request(request).await.unwrap();
            assert_eq!(answer.status(), 200);
            let body = axum::body::to_bytes(axum::body::Body::new(answer.into_body()), usize::MAX).await.unwrap();
            let review: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!((&review["kind"], &review["response"]["uid"]), (&json!("AdmissionReview"), &json!("u-1")));
            review["response"].clone()
        }
    };
    let new = |pipeline: &str| {
        let object = json!({"metadata": {"name": "v"}, "spec": {"pipelineName": pipeline, "pipelineSpec": spec()}});
        json!({"uid": "u-1", "operation": "CREATE", "namespace": setup.cluster.namespace, "object": object})
    };
    assert_eq!(ask("validate-pipelineversion", new("add")).await["allowed"], true);
    let mut bad = new("add");
    bad["object"]["spec"]["pipelineSpec"]["pipelineInfo"]["name"] = json!("No Name");
    let refused = ask("validate-pipelineversion", bad).await;
    assert_eq!((&refused["allowed"], &refused["status"]["code"]), (&json!(false), &json!(400)));
    let mut change = new("add");
    change["operation"] = json!("UPDATE");
    change["oldObject"] = change["object"].clone();
    change["object"]["metadata"]["generation"] = json!(2);
    change["object"]["spec"]["displayName"] = json!("Shown");
    assert_eq!(ask("validate-pipelineversion", change.clone()).await["allowed"], true);
    change["object"]["spec"]["description"] = json!("other");
    let refused = ask("validate-pipelineversion", change.clone()).await;
    assert!(refused["status"]["message"].as_str().unwrap().contains("immutable"), "{refused}");
    change["operation"] = json!("DELETE");
    for path in ["validate-pipelineversion", "mutate-pipelineversion"] {
        assert_eq!(ask(path, change.clone()).await["allowed"], true);
    }
    for missing in ["nobody", "", "a/b"] {
        let refused = ask("mutate-pipelineversion", new(missing)).await;
        let message = refused["status"]["message"].as_str().unwrap();
        assert_eq!(message, "The spec.pipelineName doesn't map to an existing Pipeline object");
    }
    let admitted = ask("mutate-pipelineversion", new("add")).await;
    assert_eq!((&admitted["allowed"], &admitted["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = base64::engine::general_purpose::STANDARD.decode(admitted["patch"].as_str().unwrap()).unwrap();
    let patch: Value = serde_json::from_slice(&patch).unwrap();
    assert_eq!(patch[0]["value"]["pipelines.kubeflow.org/pipeline-id"], id);
    assert_eq!((&patch[1]["value"][0]["uid"], &patch[1]["value"][0]["blockOwnerDeletion"]), (&json!(id), &json!(true)));
    for body in
        ["", "{}", r#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u"}}"#]
    {
        let request = http::Request::post(format!("{}/webhooks/validate-pipelineversion", setup.webhook));
        let request = request.body(axum::body::Body::from(body)).unwrap();
        assert_eq!(server.client.0.request(request).await.unwrap().status(), 400, "{body}");
    }
    setup.server.stop().await;
}

#[tokio::test]
async fn a_server_can_be_there_for_admission_only() {
    let directory = tempfile::tempdir().unwrap();
    let hook = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = hook.local_addr().unwrap();
    // It opens no database: the one given here cannot be reached.
    let server = launch(directory.path(), Kube::default(), |options| {
        options.webhook = Some(webhook::Settings { address, listener: Some(hook), tls: None, alone: true });
        options.database = kfp_apiserver::options::Database::Sqlite("/nonexistent/x".into());
    })
    .await;
    let request = http::Request::post(format!("http://{address}/webhooks/validate-pipelineversion"));
    let request = request.body(axum::body::Body::from("{}")).unwrap();
    assert_eq!(server.client.0.request(request).await.unwrap().status(), 400);
    server.stop().await;
}

fn webhooks(kind: &str, name: &str, path: &str, setup: &Setup, authority: &str) -> Value {
    let url = format!("{}/webhooks/{path}", setup.webhook.replace("http:", "https:"));
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name},
        "webhooks": [{
            "name": "pipelineversions.pipelines.kubeflow.org",
            "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail", "timeoutSeconds": 30,
            "clientConfig": {"url": url, "caBundle": base64::engine::general_purpose::STANDARD.encode(authority)},
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": setup.cluster.namespace}},
            "rules": [{
                "apiGroups": ["pipelines.kubeflow.org"], "apiVersions": ["v2beta1"],
                "operations": ["CREATE", "UPDATE"], "resources": ["pipelineversions"],
            }],
        }],
    })
}

/// The embedded API calls no webhooks; there the webhook is asked as Kubernetes would.
#[tokio::test]
async fn kubernetes_asks_the_webhook_over_tls() {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (authority, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let setup = setup(|directory, options| {
        let path = |name: &str| directory.join(name).display().to_string();
        std::fs::write(path("cert"), &authority).unwrap();
        std::fs::write(path("key"), &key).unwrap();
        let settings = tls::Settings::from_flags(&path("cert"), &path("key"), "VersionTLS12", "").unwrap();
        options.webhook.as_mut().unwrap().tls = settings;
    })
    .await;
    let server = &setup.server;
    server.patiently(|| server.get("/apis/v2beta1/pipelines")).await.ok();
    let pipeline = setup.create("Pipeline", json!({"metadata": {"name": "git"}, "spec": {}})).await;
    let version = |name: &str, pipeline: &str, spec: Value| json!({"metadata": {"name": name}, "spec": {"pipelineName": pipeline, "pipelineSpec": spec}});
    let trust = |pem: &str| https::Tls {
        extra_authorities: pem.as_bytes().to_vec(),
        only_extra: true,
        ..https::Tls::default()
    };
    let ask = async |pem: &str| {
        let client = https::Client::<Body>::new(&trust(pem), std::time::Duration::from_secs(30)).unwrap();
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u", "operation": "CREATE", "namespace": setup.cluster.namespace,
                "object": version("v", "git", spec()),
            },
        });
        let url = format!("{}/webhooks/mutate-pipelineversion", setup.webhook.replace("http:", "https:"));
        let answer = client.send(http::Request::post(url).body(Body::from(review.to_string())).unwrap()).await;
        answer.map(|answer| answer.status().as_u16()).map_err(|error| error.to_string())
    };
    assert_eq!(ask(&authority).await, Ok(200));
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap().cert.pem();
    assert!(ask(&stranger).await.is_err(), "the certificate is the one of the settings");

    if kfp_test_cluster::real().is_some() {
        let mut configurations = vec![];
        for (kind, path) in [
            ("MutatingWebhookConfiguration", "mutate-pipelineversion"),
            ("ValidatingWebhookConfiguration", "validate-pipelineversion"),
        ] {
            let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind);
            let api: Api<DynamicObject> = Api::all_with(setup.cluster.client.clone(), &ApiResource::from_gvk(&gvk));
            let object = webhooks(kind, &setup.cluster.namespace, path, &setup, &authority);
            api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
            configurations.push(api);
        }
        admission(&setup, &pipeline, version).await;
        for api in configurations {
            api.delete(&setup.cluster.namespace, &DeleteParams::default()).await.unwrap();
        }
    }
    setup.server.stop().await;
}

/// What happens to versions that are created and changed while Kubernetes asks the webhook.
async fn admission(setup: &Setup, pipeline: &DynamicObject, version: impl Fn(&str, &str, Value) -> Value) {
    let id = pipeline.metadata.uid.clone().unwrap();
    // Kubernetes takes up a configuration after a moment: until then versions are admitted as they are.
    let mut number = 0;
    let made = loop {
        let made = setup.create("PipelineVersion", version(&format!("v{number}"), "git", spec())).await;
        if made.metadata.labels.is_some() {
            break made;
        }
        number += 1;
        assert!(number < 1000, "the webhook is not asked");
    };
    assert_eq!(made.metadata.labels.as_ref().unwrap()["pipelines.kubeflow.org/pipeline-id"], id);
    assert_eq!(made.metadata.owner_references.as_ref().unwrap()[0].uid, id);
    let refused = setup.try_create("PipelineVersion", version("lost", "nobody", spec())).await.unwrap_err();
    assert!(refused.to_string().contains("doesn't map to an existing Pipeline object"), "{refused}");
    // The validating webhook may be taken up later than the other.
    let mut number = 0;
    let refused = loop {
        match setup.try_create("PipelineVersion", version(&format!("bad{number}"), "git", json!({"no": "spec"}))).await
        {
            Err(refused) => break refused,
            Ok(_) => number += 1,
        }
        assert!(number < 1000, "the validating webhook is not asked");
    };
    assert!(refused.to_string().contains("The pipeline spec is invalid"), "{refused}");
    let name = made.metadata.name.clone().unwrap();
    let versions = setup.objects("PipelineVersion");
    let mut shown = made;
    shown.data["spec"]["displayName"] = json!("Shown");
    let mut changed = versions.replace(&name, &PostParams::default(), &shown).await.unwrap();
    changed.data["spec"]["description"] = json!("other");
    let refused = versions.replace(&name, &PostParams::default(), &changed).await.unwrap_err();
    assert!(refused.to_string().contains("immutable"), "{refused}");
    // What the server itself makes is admitted, too.
    let server = &setup.server;
    let path = format!("/apis/v2beta1/pipelines/upload_version?name=mine&pipelineid={id}");
    let mine = server.upload(&path, "p.yaml", ADD.as_bytes()).await.ok();
    assert_eq!(mine["pipeline_id"], id);
    let whole = server.upload("/apis/v2beta1/pipelines/upload?name=whole", "p.yaml", ADD.as_bytes()).await.ok();
    let id = text(&whole, "pipeline_id");
    let update = server.patch(&format!("/apis/v2beta1/pipelines/{id}"), json!({"display_name": "Whole"})).await.ok();
    assert_eq!(update["display_name"], "Whole");
    server.delete(&format!("/apis/v2beta1/pipelines/{id}?cascade=true")).await.ok();
}
