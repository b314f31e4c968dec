//! The HTTP face, as clients see it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use common::{PATIENCE, Served, config_map, pod, served, version};
use futures::{AsyncBufReadExt as _, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authorization::v1::{SelfSubjectAccessReview, SubjectAccessReview};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kfp_local_api::resources::{ALL, CONFIG_MAPS, PODS};
use kfp_local_api::{ApiError, LogOptions, LogSource, LogStream, async_trait};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, LogParams, Patch, PatchParams,
    PostParams,
};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};

const NS: &str = "kubeflow";

fn workflows(served: &Served) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("argoproj.io", "v1alpha1", "Workflow"));
    Api::namespaced_with(served.client.clone(), NS, &resource)
}

fn workflow(name: &str) -> DynamicObject {
    serde_json::from_value(json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
        "metadata": {"name": name}, "spec": {"entrypoint": "main"}}))
    .unwrap()
}

#[tokio::test]
async fn kube_rs_creates_reads_patches_and_deletes() {
    let served = served().await;
    let pods: Api<Pod> = Api::default_namespaced(served.client.clone());
    let made: Pod = serde_json::from_value(pod("a")).unwrap();
    pods.create(&PostParams::default(), &made).await.unwrap();
    let again = pods.create(&PostParams::default(), &made).await.unwrap_err();
    assert!(matches!(again, kube::Error::Api(status) if status.code == 409 && status.reason == "AlreadyExists"));
    assert!(pods.get_opt("missing").await.unwrap().is_none());

    let strategic = Patch::Strategic(json!({"spec": {"containers": [{"name": "main", "image": "new"}]}}));
    let patched = pods.patch("a", &PatchParams::default(), &strategic).await.unwrap();
    assert_eq!(patched.spec.unwrap().containers[0].image.as_deref(), Some("new"));
    let status = Patch::Merge(json!({"status": {"phase": "Running"}, "spec": {"nodeName": "ignored"}}));
    let patched = pods.patch_status("a", &PatchParams::default(), &status).await.unwrap();
    assert_eq!(patched.status.unwrap().phase.as_deref(), Some("Running"));
    assert_eq!(patched.spec.unwrap().node_name, None);
    let ignored = pods.patch("a", &PatchParams::default(), &Patch::Merge(json!({"status": {"phase": "Failed"}}))).await;
    assert_eq!(ignored.unwrap().status.unwrap().phase.as_deref(), Some("Running"));

    let selected =
        pods.list(&ListParams::default().labels("app in (a),!x").fields("status.phase=Running")).await.unwrap();
    assert_eq!(selected.items.len(), 1);
    assert!(pods.delete("a", &DeleteParams::default()).await.unwrap().is_right());
    assert_eq!(pods.list_metadata(&ListParams::default()).await.unwrap().items.len(), 0);
}

#[tokio::test]
async fn kube_rs_applies_replaces_and_conflicts_on_custom_resources() {
    let served = served().await;
    let workflows = workflows(&served);
    let params = PatchParams::apply("test").force();
    workflows.patch("w", &params, &Patch::Apply(workflow("w"))).await.unwrap();
    let first = workflows.get("w").await.unwrap();
    let mut running = first.clone();
    running.data["status"] = json!({"phase": "Running"});
    // There is no status subresource: the whole object is replaced.
    let second = workflows.replace("w", &PostParams::default(), &running).await.unwrap();
    assert_eq!(second.data["status"]["phase"], "Running");
    let mut stale = first.clone();
    stale.data["status"] = json!({"phase": "Failed"});
    let refused = workflows.replace("w", &PostParams::default(), &stale).await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.reason == "Conflict"));
    let unversioned = workflows.replace("w", &PostParams::default(), &workflow("w")).await.unwrap_err();
    assert!(matches!(unversioned, kube::Error::Api(status) if status.code == 422));
    let missing = workflows.patch_status("w", &PatchParams::default(), &Patch::Merge(json!({}))).await.unwrap_err();
    assert!(matches!(missing, kube::Error::Api(status) if status.code == 404));
    let strategic = workflows.patch("w", &PatchParams::default(), &Patch::Strategic(json!({}))).await.unwrap_err();
    assert!(matches!(strategic, kube::Error::Api(status) if status.code == 415));
}

#[tokio::test]
async fn kube_rs_watcher_follows() {
    for strategy in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let served = served().await;
        served.local.cluster.create(&PODS, NS, pod("before")).await.unwrap();
        let api: Api<Pod> = Api::all(served.client.clone());
        let mut stream = watcher(api, strategy).applied_objects().boxed();
        let mut next = async || {
            let pod = tokio::time::timeout(PATIENCE, stream.try_next()).await.unwrap().unwrap().unwrap();
            pod.metadata.name.unwrap()
        };
        assert_eq!(next().await, "before");
        served.local.cluster.create(&PODS, NS, pod("after")).await.unwrap();
        assert_eq!(next().await, "after");
    }
}

#[tokio::test]
async fn kube_rs_reads_discovery_and_reviews() {
    let served = served().await;
    let discovery = kube::Discovery::new(served.client.clone()).run().await.unwrap();
    let found: BTreeSet<(String, String)> = discovery
        .groups()
        .flat_map(|group| group.recommended_resources())
        .map(|(resource, _)| (resource.group, resource.plural))
        .collect();
    for r in ALL {
        assert!(found.contains(&(r.group.into(), r.plural.into())), "{}", r.plural);
    }
    assert_eq!(served.client.apiserver_version().await.unwrap().major, "1");
    let review: SubjectAccessReview = serde_json::from_value(json!({"spec": {"user": "x"}})).unwrap();
    let answer = Api::all(served.client.clone()).create(&PostParams::default(), &review).await.unwrap();
    assert!(answer.status.unwrap().allowed);
    let review: SelfSubjectAccessReview = serde_json::from_value(json!({"spec": {}})).unwrap();
    let answer = Api::all(served.client.clone()).create(&PostParams::default(), &review).await.unwrap();
    assert!(answer.status.unwrap().allowed);
    let body = json!({"spec": {"token": "t", "audiences": ["pipelines.kubeflow.org"]}}).to_string();
    let (status, answer) = served.http("POST", "/apis/authentication.k8s.io/v1/tokenreviews", &[], &body).await;
    assert_eq!((status, &answer["status"]["authenticated"]), (201, &json!(true)));
    assert_eq!(answer["status"]["audiences"], json!(["pipelines.kubeflow.org"]));
}

struct Recorder(Mutex<Vec<(String, LogOptions)>>);

#[async_trait]
impl LogSource for Recorder {
    async fn logs(&self, ns: &str, pod: &str, container: &str, options: LogOptions) -> Result<LogStream, ApiError> {
        let follow = options.follow;
        self.0.lock().unwrap().push((format!("{ns}/{pod}/{container}"), options));
        let lines = futures::stream::iter(["one\n", "two\n"]).map(|line| Ok(Bytes::from(line)));
        Ok(if follow { lines.chain(futures::stream::pending()).boxed() } else { lines.boxed() })
    }
}

#[tokio::test]
async fn kube_rs_reads_and_follows_logs() {
    let served = served().await;
    let pods: Api<Pod> = Api::namespaced(served.client.clone(), NS);
    served.local.cluster.create(&PODS, NS, pod("a")).await.unwrap();
    let unattached = pods.logs("a", &LogParams::default()).await.unwrap_err();
    assert!(matches!(unattached, kube::Error::Api(status) if status.code == 501));
    let recorder = Arc::new(Recorder(Mutex::default()));
    served.local.cluster.set_log_source(recorder.clone());
    assert_eq!(pods.logs("a", &LogParams::default()).await.unwrap(), "one\ntwo\n");
    let params = LogParams { follow: true, tail_lines: Some(2), container: Some("main".into()), ..Default::default() };
    let mut lines = pods.log_stream("a", &params).await.unwrap().lines();
    assert_eq!(tokio::time::timeout(PATIENCE, lines.try_next()).await.unwrap().unwrap().unwrap(), "one");
    {
        let seen = recorder.0.lock().unwrap();
        assert_eq!(seen[1].0, "kubeflow/a/main");
        assert!(seen[1].1.follow && seen[1].1.tail_lines == Some(2));
    }
    assert_eq!(served.http("GET", "/api/v1/namespaces/kubeflow/pods/none/log", &[], "").await.0, 404);
    let (status, error) = served.http("GET", "/api/v1/namespaces/kubeflow/pods/a/log?container=x", &[], "").await;
    assert!(status == 400 && error["message"].as_str().unwrap().contains("container x is not valid"));
    // A followed log does not hold up shutdown.
    served.shutdown.cancel();
    tokio::time::timeout(PATIENCE, served.server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn lists_come_in_pages() {
    let served = served().await;
    for number in 0..7 {
        served.local.cluster.create(&CONFIG_MAPS, NS, config_map(&format!("c{number}"))).await.unwrap();
    }
    let api: Api<ConfigMap> = Api::all(served.client.clone());
    let (mut params, mut names, mut pages) = (ListParams::default().limit(3), Vec::new(), Vec::new());
    loop {
        let page = api.list(&params).await.unwrap();
        names.extend(page.items.iter().map(|c| c.metadata.name.clone().unwrap()));
        pages.push((page.items.len(), page.metadata.remaining_item_count, page.metadata.resource_version.clone()));
        match page.metadata.continue_ {
            Some(token) if !token.is_empty() => params.continue_token = Some(token),
            _ => break,
        }
        // A change between pages is not lost: the version of the first page stays.
        served.local.cluster.create(&PODS, NS, pod(&format!("p{}", pages.len()))).await.unwrap();
    }
    assert_eq!(names, (0..7).map(|n| format!("c{n}")).collect::<Vec<_>>());
    assert_eq!(pages.iter().map(|p| (p.0, p.1)).collect::<Vec<_>>(), [(3, Some(4)), (3, Some(1)), (1, None)]);
    assert!(pages.iter().all(|p| p.2 == pages[0].2));
    let (status, _) = served.http("GET", "/api/v1/configmaps?continue=nonsense", &[], "").await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn tables_have_the_columns_people_expect() {
    let served = served().await;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    served.local.cluster.create(&PODS, NS, pod("p")).await.unwrap();
    workflows(&served).create(&PostParams::default(), &workflow("w")).await.unwrap();
    let columns = |table: &Value| -> Vec<String> {
        let list = table["columnDefinitions"].as_array().unwrap();
        list.iter().filter(|c| c["priority"] == 0).map(|c| c["name"].as_str().unwrap().to_string()).collect()
    };
    let (_, pods) = served.http("GET", "/api/v1/namespaces/kubeflow/pods", &table, "").await;
    assert_eq!(columns(&pods), ["Name", "Ready", "Status", "Restarts", "Age"]);
    assert_eq!(
        pods["rows"][0]["cells"].as_array().unwrap()[..4],
        [json!("p"), json!("0/1"), json!("Pending"), json!(0)]
    );
    assert_eq!(pods["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let path = "/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows";
    let (_, workflows) = served.http("GET", path, &table, "").await;
    assert_eq!(columns(&workflows), ["Name", "Status", "Age", "Message"]);
    assert_eq!(workflows["kind"], "Table");
}

#[tokio::test]
async fn kubectl_learns_that_the_server_validates() {
    let served = served().await;
    let (_, root) = served.http("GET", "/openapi/v3", &[], "").await;
    for r in ALL {
        let place =
            if r.group.is_empty() { format!("api/{}", r.version) } else { format!("apis/{}/{}", r.group, r.version) };
        let url = root["paths"][&place]["serverRelativeURL"].as_str().unwrap();
        let (_, document) = served.http("GET", url, &[], "").await;
        let supported = document["paths"].as_object().unwrap().values().any(|path| {
            let gvk = &path["patch"]["x-kubernetes-group-version-kind"];
            gvk["kind"] == r.kind
                && path["patch"]["parameters"].as_array().unwrap().iter().any(|p| p["name"] == "fieldValidation")
        });
        assert!(supported, "{}", r.kind);
    }
}

#[tokio::test]
async fn refusals_are_statuses() {
    let served = served().await;
    let large = format!("{{\"metadata\": {{\"name\": \"{}\"}}}}", "a".repeat(4 << 20));
    let maps = "/api/v1/namespaces/kubeflow/configmaps";
    for (method, path, headers, body, code, reason) in [
        ("GET", "/api/v1/namespaces/kubeflow/pods/none", vec![], "", 404, "NotFound"),
        ("GET", "/apis/none/v1/things", vec![], "", 404, "NotFound"),
        ("GET", "/api/v1/pods?labelSelector=a%20b", vec![], "", 400, "BadRequest"),
        ("GET", "/api/v1/pods?limit=x", vec![], "", 400, "BadRequest"),
        ("GET", "/api/v1/pods?resourceVersion=999999", vec![], "", 410, "Expired"),
        ("GET", "/api/v1/pods?watch=1&sendInitialEvents=true", vec![], "", 422, "Invalid"),
        ("GET", "/api/v1/pods", vec![("accept", "application/cbor")], "", 406, "NotAcceptable"),
        ("GET", "/api/v1/pods", vec![("origin", "http://page.example")], "", 403, "Forbidden"),
        ("GET", "/api/v1/pods", vec![("host", "page.example")], "", 403, "Forbidden"),
        ("POST", maps, vec![], "{", 400, "BadRequest"),
        ("POST", maps, vec![], large.as_str(), 413, "RequestEntityTooLarge"),
        ("POST", "/api/v1/configmaps", vec![], "{}", 405, "MethodNotAllowed"),
        ("PUT", maps, vec![], "{}", 405, "MethodNotAllowed"),
        (
            "PATCH",
            "/api/v1/namespaces/kubeflow/configmaps/a",
            vec![("content-type", "text/plain")],
            "{}",
            415,
            "UnsupportedMediaType",
        ),
        ("DELETE", "/api/v1/namespaces/kubeflow/configmaps/a?propagationPolicy=No", vec![], "", 422, "Invalid"),
        ("GET", "/api/v1/namespaces/kubeflow/pods/a/exec", vec![], "", 404, "NotFound"),
    ] {
        let answer = tokio::time::timeout(PATIENCE, served.http(method, path, &headers, body)).await;
        let (status, answer) = answer.unwrap_or_else(|_| panic!("no answer to {method} {path}"));
        assert_eq!(
            (status, answer["reason"].as_str(), answer["kind"].as_str()),
            (code, Some(reason), Some("Status")),
            "{method} {path}: {answer}"
        );
    }
    assert_eq!(served.http("GET", "/readyz", &[], "").await, (200, json!("ok")));
}

#[tokio::test]
async fn dry_runs_and_collection_deletes() {
    let served = served().await;
    let maps = "/api/v1/namespaces/kubeflow/configmaps";
    let (status, made) = served.http("POST", &format!("{maps}?dryRun=All"), &[], &config_map("dry").to_string()).await;
    assert_eq!((status, made["metadata"]["name"].as_str()), (201, Some("dry")));
    assert_eq!(served.http("GET", &format!("{maps}/dry"), &[], "").await.0, 404);
    for name in ["a", "b", "c"] {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({"keep": if name == "c" { "yes" } else { "no" }});
        served.local.cluster.create(&CONFIG_MAPS, NS, object).await.unwrap();
    }
    let (status, gone) = served.http("DELETE", &format!("{maps}?labelSelector=keep%21%3Dyes"), &[], "").await;
    assert_eq!((status, gone["items"].as_array().unwrap().len()), (200, 2));
    let left = served.local.cluster.list(&CONFIG_MAPS, Some(NS), &Default::default()).await.unwrap();
    assert_eq!(left.items.len(), 1);
}

#[tokio::test]
async fn watch_streams_lines_and_reports_forgotten_versions() {
    let served = served().await;
    let made = served.local.cluster.create(&CONFIG_MAPS, NS, config_map("a")).await.unwrap();
    let watch = |query: String| {
        let request = http::Request::get(format!("/api/v1/configmaps?watch=true&{query}"));
        let client = served.client.clone();
        async move {
            let body = client.send(request.body(kube::client::Body::empty()).unwrap()).await.unwrap().into_body();
            let text = body.collect_bytes().await.unwrap();
            let lines: Vec<Value> =
                String::from_utf8(text.to_vec()).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
            lines
        }
    };
    // The server ends the watch by itself after the asked-for second.
    let lines = watch("timeoutSeconds=1".into()).await;
    assert_eq!(
        (lines.len(), &lines[0]["type"], &lines[0]["object"]["kind"]),
        (1, &json!("ADDED"), &json!("ConfigMap"))
    );
    let initial = "timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let lines = watch(initial.into()).await;
    assert_eq!(lines[1]["type"], "BOOKMARK");
    assert_eq!(lines[1]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    let lines = watch(format!("timeoutSeconds=1&resourceVersion={}", version(&made))).await;
    assert!(lines.is_empty());
    let lines = watch("resourceVersion=999999".into()).await;
    assert_eq!((&lines[0]["type"], &lines[0]["object"]["code"]), (&json!("ERROR"), &json!(410)));
}

#[tokio::test]
async fn long_lists_come_in_pieces_and_are_whole_in_every_form() {
    let served = common::served().await;
    let name = |number: usize| format!("m{number:03}");
    for number in 0..60 {
        let object = json!({"metadata": {"name": name(number)}, "data": {"text": "é".repeat(10_000)}});
        served.local.cluster.create(&CONFIG_MAPS, NS, object).await.unwrap();
    }
    let path = "/api/v1/namespaces/kubeflow/configmaps";
    for (accept, kind, items) in [
        ("application/json", "ConfigMapList", "items"),
        ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", "PartialObjectMetadataList", "items"),
        ("application/json;as=Table;g=meta.k8s.io;v=v1", "Table", "rows"),
    ] {
        let (status, list) = served.http("GET", path, &[("accept", accept)], "").await;
        assert_eq!((status, &list["kind"]), (200, &json!(kind)));
        let found: Vec<&str> = list[items]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| if items == "rows" { &item["cells"][0] } else { &item["metadata"]["name"] })
            .map(|name| name.as_str().unwrap())
            .collect();
        assert_eq!(found, (0..60).map(name).collect::<Vec<_>>(), "{kind}");
        if kind == "ConfigMapList" {
            assert_eq!(list["items"][59]["data"]["text"].as_str().unwrap().chars().count(), 10_000);
        }
    }
    let (_, empty) = served.http("GET", "/api/v1/namespaces/default/configmaps", &[], "").await;
    assert_eq!(empty["items"], json!([]));
}
