//! The embedded Kubernetes API answers as a real one does, call by call: codes, bodies, reasons, messages, events.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use http::Request;
use kfp_test_cluster::{Kube, PATIENCE, real};
use kube::client::Body;
use kube::config::Kubeconfig;
use serde_json::{Map, Value, json};

/// One API, and what earlier answers said.
struct Side {
    kube: Kube,
    /// Texts to put into later calls.
    kept: Map<String, Value>,
}

/// A call. In path and body `{ns}` stands for the namespace and `{x}` for what was kept as `x`.
#[derive(Clone, Default)]
struct Call {
    method: &'static str,
    path: String,
    body: Value,
    kind: &'static str,
    accept: &'static str,
    /// Of a refusal only code and reason count: the words are those of Go's parsers or name what only a real server has.
    loose: bool,
    /// Of the events of a watch only type and name count: an object that leaves a selection is shown as it was before by
    /// a real server and as it is now by the embedded one.
    events: bool,
    /// Name and JSON pointer of a part of the answer to keep.
    keep: Option<(&'static str, &'static str)>,
}

const WF: &str = "/apis/argoproj.io/v1alpha1/namespaces/{ns}/workflows";
const SWF: &str = "/apis/kubeflow.org/v1beta1/namespaces/{ns}/scheduledworkflows";
const CM: &str = "/api/v1/namespaces/{ns}/configmaps";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/{ns}/leases";
const MERGE: &str = "application/merge-patch+json";
const JSON_PATCH: &str = "application/json-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

fn call(method: &'static str, path: impl Into<String>, body: Value) -> Call {
    let kind = if method == "PATCH" { MERGE } else { "application/json" };
    Call { method, path: path.into(), body, kind, ..Call::default() }
}

fn get(path: impl Into<String>) -> Call {
    call("GET", path, Value::Null)
}

impl Call {
    fn of(self, kind: &'static str) -> Self {
        Self { kind, ..self }
    }

    fn events(self) -> Self {
        Self { events: true, ..self }
    }

    fn loose(self) -> Self {
        Self { loose: true, ..self }
    }

    fn accept(self, accept: &'static str) -> Self {
        Self { accept, ..self }
    }

    fn keep(self, name: &'static str, pointer: &'static str) -> Self {
        Self { keep: Some((name, pointer)), ..self }
    }
}

fn workflow(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {"name": name, "labels": labels},
        "spec": {"entrypoint": "main", "strange": [1, 2.5, null, {"a": null}]}})
}

fn schedule(name: &str) -> Value {
    json!({"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "metadata": {"name": name},
        "spec": {"enabled": true, "trigger": {}}, "status": {}})
}

/// Everything that the components ask of a cluster, and what they could do wrong.
fn script() -> Vec<Call> {
    let wf = |rest: &str| format!("{WF}{rest}");
    let swf = |rest: &str| format!("{SWF}{rest}");
    let cm = |rest: &str| format!("{CM}{rest}");
    let mut calls = vec![
        get(WF).keep("start", "/metadata/resourceVersion"),
        // Creation.
        call("POST", WF, workflow("a", json!({"pipeline/runid": "1", "team": "x"})))
            .keep("a", "/metadata/resourceVersion"),
        call("POST", WF, workflow("a", json!({}))),
        call("POST", WF, workflow("b", json!({"pipeline/runid": "2"}))),
        call("POST", WF, workflow("c", json!({"workflows.argoproj.io/completed": "true", "team": "y"}))),
        call("POST", WF, workflow("Not_A_Name", json!({}))).loose(),
        call("POST", WF, workflow("bad-label", json!({"x": "not a label!"}))).loose(),
        call("POST", WF, workflow("bad-key", json!({"a b": "x"}))).loose(),
        call("POST", WF, json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "metadata": {}, "spec": {}})),
        call(
            "POST",
            WF,
            json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Pod", "metadata": {"name": "x"}, "spec": {}}),
        )
        .loose(),
        call(
            "POST",
            WF,
            json!({"apiVersion": "argoproj.io/v1", "kind": "Workflow", "metadata": {"name": "x"}, "spec": {}}),
        ),
        call(
            "POST",
            WF,
            json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
            "metadata": {"name": "x", "namespace": "elsewhere"}, "spec": {}}),
        ),
        call(
            "POST",
            WF,
            json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow",
            "metadata": {"name": "x", "resourceVersion": "5"}, "spec": {}}),
        ),
        call("POST", WF, json!({"metadata": {"name": "no-kind"}, "spec": {}})).loose(),
        call("POST", WF, json!("a text")).loose(),
        call("POST", "/apis/argoproj.io/v1alpha1/namespaces/no-such-namespace/workflows", workflow("x", json!({}))),
        call("POST", SWF, schedule("s")).keep("s", "/metadata/resourceVersion"),
        call("POST", CM, json!({"metadata": {"name": "m", "labels": {"l": "1"}}, "data": {"k": "v"}})),
        call(
            "POST",
            LEASE,
            json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "me", "leaseDurationSeconds": 15,
            "renewTime": "2026-01-01T00:00:00.000000Z"}}),
        ),
        // Reading.
        get(wf("/a")),
        get(wf("/none")),
        get(swf("/none")),
        get("/api/v1/namespaces/{ns}/configmaps/none"),
        get(wf("/a")).accept("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
        get(WF).accept("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"),
        // Lists and selectors.
        get(WF),
        get(wf("?limit=1")).keep("next", "/metadata/continue"),
        get(wf("?limit=1&continue={next}")).keep("next", "/metadata/continue"),
        get(wf("?limit=1&continue={next}")),
        get(wf("?continue=nonsense")).loose(),
        get(wf("?limit=-1")),
        get(wf("?resourceVersion=0")),
        get(wf("?resourceVersion={a}&resourceVersionMatch=NotOlderThan")),
        get(wf("?resourceVersion=nonsense")).loose(),
        get(wf("?resourceVersionMatch=NotOlderThan")).loose(),
        get("/apis/argoproj.io/v1alpha1/namespaces/no-such-namespace/workflows"),
    ];
    for selector in [
        "pipeline/runid",
        "!pipeline/runid",
        "pipeline/runid,!pipeline/persistedFinalState",
        "pipeline/runid=1",
        "pipeline/runid==1",
        "pipeline/runid!=1",
        "workflows.argoproj.io/completed!=true",
        "team in (x,y)",
        "team notin (x)",
        "team in ()",
        "pipeline/runid>1",
        "pipeline/runid<2",
        "pipeline/runid>x",
        "a b",
        "=x",
        "team=",
        "team=not a label",
        ",",
        "team=x,,team=x",
        "team in (x",
    ] {
        calls.push(get(wf(&format!("?labelSelector={}", encoded(selector)))).loose());
    }
    for selector in [
        "metadata.name=a",
        "metadata.name!=a",
        "metadata.namespace={ns}",
        "status.phase=Running",
        "metadata.name",
        "x=y=z",
    ] {
        calls.push(get(wf(&format!("?fieldSelector={}", encoded(selector)))).loose());
    }
    calls.extend([
        // Patches.
        call(
            "PATCH",
            wf("/a"),
            json!({"metadata": {"labels": {"team": null, "new": "1"}}, "status": {"phase": "Running"}}),
        ),
        call("PATCH", wf("/none"), json!({"metadata": {"labels": {"a": "b"}}})),
        call("PATCH", wf("/a"), json!({})),
        call("PATCH", wf("/a"), json!([])).loose(),
        call("PATCH", wf("/a"), json!({"metadata": {"resourceVersion": "{a}"}, "status": {"phase": "Stale"}})),
        call("PATCH", wf("/a"), json!({"metadata": {"name": "other"}})),
        call("PATCH", wf("/a"), json!({"spec": null})),
        call("PATCH", wf("/a"), json!({"metadata": {"labels": {"x": "not a label!"}}})).loose(),
        call(
            "PATCH",
            wf("/a"),
            json!([{"op": "add", "path": "/metadata/labels/pipeline~1persistedFinalState", "value": "true"}]),
        )
        .of(JSON_PATCH)
        .loose(),
        call("PATCH", wf("/a"), json!([{"op": "test", "path": "/metadata/resourceVersion", "value": "1"}]))
            .of(JSON_PATCH)
            .loose(),
        call("PATCH", wf("/a"), json!([{"op": "remove", "path": "/spec/nothing"}])).of(JSON_PATCH).loose(),
        call("PATCH", wf("/a"), json!([{"op": "jump", "path": "/spec"}])).of(JSON_PATCH).loose(),
        call("PATCH", wf("/a"), json!([{"op": "replace", "path": "/spec/strange/1", "value": 7}]))
            .of(JSON_PATCH)
            .loose(),
        call("PATCH", wf("/a"), json!({"metadata": {"labels": {"a": "b"}}})).of(STRATEGIC).loose(),
        call("PATCH", wf("/a"), json!({"a": 1})).of("application/json").loose(),
        call("PATCH", cm("/m"), json!({"data": {"k": null, "n": "1"}})).of(STRATEGIC).loose(),
        call("PATCH", swf("/s"), json!({"spec": {"enabled": false}})),
        call("PATCH", swf("/s"), json!({"status": null})),
        // Writes under a version.
        call(
            "PUT",
            swf("/s"),
            json!({"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
            "metadata": {"name": "s", "resourceVersion": "{s}"}, "spec": {}, "status": {"x": 1}}),
        ),
        get(swf("/s")).keep("s", "/metadata/resourceVersion"),
        call(
            "PUT",
            swf("/s"),
            json!({"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
            "metadata": {"name": "s", "resourceVersion": "{s}"}, "spec": {}, "status": {"x": 1}}),
        ),
        call(
            "PUT",
            swf("/s"),
            json!({"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
            "metadata": {"name": "s"}, "spec": {}, "status": {"x": 2}}),
        ),
        call(
            "PUT",
            swf("/s"),
            json!({"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
            "metadata": {"name": "other", "resourceVersion": "{s}"}, "spec": {}, "status": {}}),
        ),
        call(
            "PUT",
            swf("/none"),
            json!({"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
            "metadata": {"name": "none", "resourceVersion": "{s}"}, "spec": {}, "status": {}}),
        ),
        get(format!("{LEASE}/l")).keep("l", "/metadata/resourceVersion"),
        call(
            "PUT",
            format!("{LEASE}/l"),
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "l", "resourceVersion": "{l}"}, "spec": {"holderIdentity": "you"}}),
        ),
        call(
            "PUT",
            format!("{LEASE}/l"),
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "l", "resourceVersion": "{l}"}, "spec": {"holderIdentity": "they"}}),
        ),
        call(
            "PUT",
            format!("{LEASE}/l"),
            json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "l"}, "spec": {"holderIdentity": "they"}}),
        ),
        // Finalizers and deletion.
        call("PATCH", wf("/b"), json!({"metadata": {"finalizers": ["test/keep"]}})),
        call("DELETE", wf("/b"), Value::Null),
        call("DELETE", wf("/b"), Value::Null),
        call("PATCH", wf("/b"), json!({"metadata": {"labels": {"late": "1"}}})),
        call("PATCH", wf("/b"), json!({"metadata": {"finalizers": null}})),
        get(wf("/b")),
        call("DELETE", wf("/c"), json!({"preconditions": {"uid": "00000000-0000-4000-8000-000000000000"}})).loose(),
        call("DELETE", wf("/c"), json!({"preconditions": {"resourceVersion": "1"}})).loose(),
        call("DELETE", wf("/c"), json!({"propagationPolicy": "Nonsense"})).loose(),
        call("DELETE", wf("/c"), json!({"propagationPolicy": "Background"})),
        call("DELETE", wf("/c"), Value::Null),
        call("DELETE", cm("/m"), Value::Null),
        // Everything that happened, as watches tell it.
        get(wf("?watch=true&timeoutSeconds=2&resourceVersion={start}")),
        get(wf(&format!(
            "?watch=true&timeoutSeconds=2&resourceVersion={{start}}&labelSelector={}",
            encoded("pipeline/runid,!pipeline/persistedFinalState")
        )))
        .events(),
        get(wf(&format!(
            "?watch=true&timeoutSeconds=2&resourceVersion={{start}}&labelSelector={}",
            encoded("pipeline/runid,pipeline/persistedFinalState")
        )))
        .accept("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"),
        get(wf("?watch=true&timeoutSeconds=2&resourceVersion={start}&fieldSelector=metadata.name%3Dc")),
        get(wf("?watch=true&timeoutSeconds=2&resourceVersion=0")),
        get(wf("?watch=true&timeoutSeconds=2&sendInitialEvents=true")).loose(),
        get(wf("/a?watch=true&timeoutSeconds=2&resourceVersion={start}")),
        call("DELETE", WF, Value::Null),
        get(WF),
    ]);
    calls
}

fn encoded(text: &str) -> String {
    let keep = |b: u8| b.is_ascii_alphanumeric() || b"-._~{}".contains(&b);
    text.bytes().map(|b| if keep(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

impl Side {
    fn filled(&self, text: &str) -> String {
        let mut text = text.replace("{ns}", &self.kube.namespace);
        for (name, value) in &self.kept {
            text = text.replace(&format!("{{{name}}}"), value.as_str().unwrap_or_default());
        }
        text
    }

    /// Status code, and what the body says without what differs from one cluster to the next.
    async fn ask(&mut self, call: &Call) -> (u16, Vec<Value>) {
        let mut request = Request::builder().method(call.method).uri(self.filled(&call.path));
        if !call.accept.is_empty() {
            request = request.header("accept", call.accept);
        }
        let body = if call.body.is_null() {
            Vec::new()
        } else {
            request = request.header("content-type", call.kind);
            self.filled(&call.body.to_string()).into_bytes()
        };
        let sent = self.kube.client.send(request.body(Body::from(body)).unwrap());
        let response = tokio::time::timeout(PATIENCE, sent).await.unwrap().unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect_bytes().await.unwrap();
        let mut values: Vec<Value> = match serde_json::Deserializer::from_slice(&bytes).into_iter().collect() {
            Ok(values) => values,
            Err(_) => vec![Value::String(String::from_utf8_lossy(&bytes).into_owned())],
        };
        if let Some((name, pointer)) = call.keep {
            let value = values.first().and_then(|value| value.pointer(pointer)).cloned().unwrap_or_default();
            self.kept.insert(name.to_owned(), value);
        }
        for value in &mut values {
            self.plain(value);
        }
        (status, values)
    }

    fn plain(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.remove("managedFields");
                // Kubernetes writes an empty token into lists of custom objects only.
                if map.get("continue").is_some_and(|token| token == "") {
                    map.remove("continue");
                }
                for (key, value) in map.iter_mut() {
                    match (key.as_str(), &*value) {
                        ("resourceVersion", Value::String(text)) if text.parse::<u64>().is_ok() => {
                            *value = json!("<version>");
                        }
                        ("continue", Value::String(text)) if !text.is_empty() => *value = json!("<token>"),
                        ("retryAfterSeconds", _) => *value = json!("<seconds>"),
                        _ => self.plain(value),
                    }
                }
            }
            Value::Array(list) => list.iter_mut().for_each(|value| self.plain(value)),
            Value::String(text) => {
                let mut plain = text.replace(&self.kube.namespace, "<ns>");
                for word in plain.clone().split(|c: char| !c.is_ascii_hexdigit() && c != '-') {
                    if word.len() == 36 && word.matches('-').count() == 4 {
                        plain = plain.replace(word, "<uid>");
                    }
                }
                let time = plain.len() >= 20
                    && plain.as_bytes()[4] == b'-'
                    && plain.as_bytes()[10] == b'T'
                    && plain.ends_with('Z');
                *text = if time && !plain.starts_with("2026-01-01T00:00:00") { "<time>".to_owned() } else { plain };
            }
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_api_answers_as_a_real_one() {
    let Some(path) = real() else {
        eprintln!("SKIPPED: there is no real Kubernetes API to compare with; run `make test-cluster`");
        return;
    };
    let mut embedded = Side { kube: Kube::embedded().await, kept: Map::new() };
    let mut real = Side { kube: Kube::real(Kubeconfig::read_from(path).unwrap()).await, kept: Map::new() };
    let mut differences = Vec::new();
    let calls = script();
    for (n, call) in calls.iter().enumerate() {
        let (ours, theirs) = tokio::join!(embedded.ask(call), real.ask(call));
        let short = |(status, values): &(u16, Vec<Value>)| -> (u16, Vec<Value>) {
            let short = |value: &Value| match status {
                200..300 if call.events => json!([value["type"], value["object"]["metadata"]["name"]]),
                400..500 if call.loose => value["reason"].clone(),
                500.. => Value::Null,
                _ => value.clone(),
            };
            (*status, values.iter().map(short).collect())
        };
        let same = short(&ours) == short(&theirs);
        if !same {
            let show = |(status, values): &(u16, Vec<Value>)| {
                let lines: Vec<String> = values.iter().map(Value::to_string).collect();
                format!("{status} {}", lines.join("\n            "))
            };
            differences.push(format!(
                "{n}: {} {} {}\n  embedded: {}\n  real:     {}",
                call.method,
                call.path,
                call.body,
                show(&ours),
                show(&theirs)
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{} of {} calls differ\n{}",
        differences.len(),
        calls.len(),
        differences.join("\n")
    );
}
