//! What pods bring in and leave: scripts, artifacts, parameters, results, resources.

use kfp_local_pods::Isolation;
use serde_json::{Value, json};

use crate::common::{Bench, NS, exit_code, pod};
use crate::ends::message;

fn with_template(mut pod: Value, template: &Value) -> Value {
    pod["metadata"]["annotations"]["workflows.argoproj.io/template"] = json!(template.to_string());
    pod
}

pub async fn outputs(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let template = json!({"outputs": {"parameters": [
        {"name": "a", "valueFrom": {"path": "/tmp/outputs/a"}}, {"name": "none", "valueFrom": {"path": "/tmp/none"}}]}});
    let container = json!({"command": ["sh", "-c", "mkdir -p /tmp/outputs; echo one >/tmp/outputs/a; exit 4"]});
    bench.create(with_template(pod("shell", container), &template)).await;
    let driver = json!({"command": ["driver"], "args": ["--x", "/tmp/outputs/a=from driver"]});
    bench.create(with_template(pod("driver", driver), &template)).await;
    for (name, value, code, phase) in [("shell", "one", "4", "Failed"), ("driver", "from driver", "0", "Succeeded")] {
        let ended = bench.ended(name).await;
        let text = ended["metadata"]["annotations"]["workflows.argoproj.io/outputs"].as_str().unwrap();
        let got: Value = serde_json::from_str(text).unwrap();
        assert_eq!(got, json!({"parameters": [{"name": "a", "value": value}], "exitCode": code}));
        assert_eq!(ended["status"]["phase"], phase);
    }
    assert_eq!(bench.log("driver"), "driver of driver in kubeflow\n");
    let failed = bench.run("driver-fails", json!({"command": ["driver"], "args": ["fail"]})).await;
    assert_eq!((failed["status"]["phase"].as_str(), exit_code(&failed)), (Some("Failed"), Some(1)));
    bench.stop().await;
}

/// What the pod runner tells the engine.
fn told(pod: &Value) -> Value {
    let text = pod["metadata"]["annotations"]["workflows.argoproj.io/outputs"].as_str();
    serde_json::from_str(text.unwrap_or("null")).unwrap()
}

fn location(prefix: &str) -> Value {
    json!({"archiveLogs": true, "s3": {"bucket": "b", "key": prefix}})
}

pub async fn artifacts(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let write = json!({
        "script": {"source": "set -e; echo from script; mkdir /tmp/dir; echo 1 >/tmp/dir/one; echo 2 >/tmp/dir/two; \
            echo hello >/written.json; cp /in/raw /tmp/copy"},
        "inputs": {"artifacts": [{"name": "raw", "path": "/in/raw", "raw": {"data": "raw text"}, "mode": 0o640}]},
        "outputs": {"artifacts": [
            {"name": "dir", "path": "/tmp/dir"},
            {"name": "plain", "path": "/written.json", "archive": {"none": {}}},
            {"name": "copy", "path": "/tmp/copy", "s3": {"key": "fixed/copy.tgz"}},
            {"name": "tree", "path": "/tmp/dir", "archive": {"none": {}}, "s3": {"bucket": "other", "key": "tree"}},
            {"name": "none", "path": "/tmp/nothing", "optional": true}]},
        "archiveLocation": location("a/writer"),
    });
    bench.create(with_template(pod("writer", json!({"command": ["sh", "/argo/staging/script"]})), &write)).await;
    let ended = bench.ended("writer").await;
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}\n{}", bench.log("writer"));
    let recorded = json!([
        {"name": "dir", "path": "/tmp/dir", "s3": {"key": "a/writer/dir.tgz"}},
        {"name": "plain", "path": "/written.json", "archive": {"none": {}}, "s3": {"key": "a/writer/written.json"}},
        {"name": "copy", "path": "/tmp/copy", "s3": {"key": "fixed/copy.tgz"}},
        {"name": "tree", "path": "/tmp/dir", "archive": {"none": {}}, "s3": {"bucket": "other", "key": "tree"}},
        {"name": "main-logs", "s3": {"key": "a/writer/main.log"}}]);
    assert_eq!(told(&ended)["artifacts"], recorded);
    let object = |path: &str| std::fs::read_to_string(bench.dir.join("data/objects").join(path)).unwrap();
    assert_eq!(object("b/a/writer/written.json"), "hello\n");
    assert_eq!(object("other/tree/two"), "2\n");
    assert_eq!(object("b/a/writer/main.log"), "from script\n");

    let read = json!({
        "inputs": {"artifacts": [
            {"name": "dir", "path": "/tmp/inputs/dir", "s3": {"key": "a/writer/dir.tgz"}},
            {"name": "tree", "path": "/somewhere/tree", "s3": {"bucket": "other", "key": "tree"}},
            {"name": "packed", "path": "/tmp/packed.tgz", "archive": {"none": {}}, "s3": {"key": "fixed/copy.tgz"}},
            {"name": "copy", "path": "/tmp/copy", "s3": {"key": "fixed/copy.tgz"}},
            {"name": "none", "path": "/tmp/none", "optional": true, "s3": {"key": "nothing"}}]},
        "archiveLocation": location("a/reader"),
    });
    let text = "cat /tmp/inputs/dir/one /somewhere/tree/two /tmp/copy; test ! -e /tmp/none; gzip -t /tmp/packed.tgz";
    bench.create(with_template(pod("reader", json!({"command": ["sh", "-c", text]})), &read)).await;
    let ended = bench.ended("reader").await;
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}\n{}", bench.log("reader"));
    assert_eq!(bench.log("reader"), "1\n2\nraw text\n");
    bench.stop().await;
}

pub async fn results(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let run = async |name: &str, text: &str, wanted: &str| {
        let container = json!({"command": ["sh", "-c", text],
            "env": [{"name": "ARGO_INCLUDE_SCRIPT_OUTPUT", "value": wanted}]});
        bench.create(with_template(pod(name, container), &json!({}))).await;
        told(&*bench.ended(name).await)
    };
    assert_eq!(run("both", "echo out; echo err >&2; echo more", "true").await["result"], "out\nmore");
    let mut lines: Vec<String> = bench.log("both").lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!(lines, ["err", "more", "out"]);
    assert_eq!(run("failed", "echo out; exit 3", "true").await, json!({"result": "out", "exitCode": "3"}));
    // A background process holds the pipe.
    assert_eq!(run("forked", "sleep 300.5 & echo out", "true").await["result"], "out");
    assert_eq!(run("unwanted", "echo out", "false").await, json!({"exitCode": "0"}));
    let long = run("long", "yes 123456789 | head -c 1000000", "true").await;
    assert_eq!(long["result"].as_str().map(str::len), Some(256 << 10));
    bench.stop().await;
}

pub async fn resource_templates(mode: Isolation) {
    use kfp_local_api::resources::{CONFIG_MAPS, PERSISTENT_VOLUME_CLAIMS};
    let bench = Bench::start(mode).await;
    let run = async |name: &str, resource: Value, outputs: Value| {
        let command = json!({"command": ["argoexec", "resource", resource["action"]]});
        let template = json!({"resource": resource, "outputs": {"parameters": outputs}});
        bench.create(with_template(pod(name, command), &template)).await;
    };
    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {generateName: made-}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}";
    run(
        "create",
        json!({"action": "create", "manifest": claim, "successCondition": "status.phase == Bound"}),
        json!([
        {"name": "name", "valueFrom": {"jsonPath": "{.metadata.name}"}},
        {"name": "size", "valueFrom": {"jsonPath": "{.status.capacity.storage}"}},
        {"name": "all", "valueFrom": {"jsonPath": "{}"}}]),
    )
    .await;
    let ended = bench.ended("create").await;
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}");
    let parameters = &told(&ended)["parameters"];
    let name = parameters[0]["value"].as_str().unwrap();
    assert!(name.starts_with("made-") && parameters[1]["value"] == "1Gi", "{parameters:#}");
    assert!(parameters[2]["value"].as_str().unwrap().contains("\"kind\":\"PersistentVolumeClaim\""));
    bench.cluster.get(&PERSISTENT_VOLUME_CLAIMS, NS, name).await.unwrap();

    let map = |data: &str| format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: m}}, data: {data}}}");
    run("apply", json!({"action": "apply", "manifest": map("{state: begun}")}), json!([])).await;
    assert_eq!(bench.ended("apply").await["status"]["phase"], "Succeeded");
    let conditions = |action: &str| {
        json!({"action": action, "manifest": map("{}"),
        "successCondition": "data.state == done, data.n > 1", "failureCondition": "data.state in (broken, lost)"})
    };
    let set = async |state: &'static str| {
        let change = move |object: &mut Value| {
            object["data"] = json!({"state": state, "n": "2"});
            Ok(())
        };
        bench.cluster.modify(&CONFIG_MAPS, NS, "m", change).await.unwrap();
    };
    for (state, phase) in [("done", "Succeeded"), ("lost", "Failed")] {
        set("begun").await;
        run(state, conditions("get"), json!([])).await;
        bench.until(state, |pod| pod["status"]["phase"] == "Running").await;
        set(state).await;
        let ended = bench.ended(state).await;
        assert_eq!(ended["status"]["phase"], phase, "{ended:#}");
        if phase == "Failed" {
            assert_eq!(message(&ended), "failure condition 'data.state in (broken, lost)' evaluated true");
            assert_eq!(exit_code(&ended), Some(64));
        }
    }
    run(
        "patch",
        json!({"action": "patch", "mergeStrategy": "merge", "manifest": map("{state: null, more: x}")}),
        json!([]),
    )
    .await;
    assert_eq!(bench.ended("patch").await["status"]["phase"], "Succeeded");
    assert_eq!(bench.cluster.get(&CONFIG_MAPS, NS, "m").await.unwrap()["data"], json!({"n": "2", "more": "x"}));
    for name in ["delete", "delete-again"] {
        run(name, json!({"action": "delete", "manifest": map("{}")}), json!([])).await;
        assert_eq!(bench.ended(name).await["status"]["phase"], "Succeeded");
    }
    assert!(bench.cluster.get(&CONFIG_MAPS, NS, "m").await.is_err());
    run(
        "unknown",
        json!({"action": "create", "manifest": "{apiVersion: x/v1, kind: Y, metadata: {name: n}}"}),
        json!([]),
    )
    .await;
    assert_eq!(message(&*bench.ended("unknown").await), "no matches for kind \"Y\" in version \"x/v1\"");
    bench.stop().await;
}

pub async fn missing_artifacts(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let artifact = |artifact: Value| json!({"artifacts": [artifact]});
    for (name, command, template, phase, message) in [
        (
            "output",
            "true",
            json!({"outputs": artifact(json!({"name": "x", "path": "/tmp/x"})), "archiveLocation": location("k")}),
            "Failed",
            "wait: Error (exit code 64): artifact x failed to save: /tmp/x no such file or directory",
        ),
        (
            "input",
            "true",
            json!({"inputs": artifact(json!({"name": "x", "path": "/tmp/x", "s3": {"bucket": "b", "key": "no"}}))}),
            "Failed",
            "init: Error (exit code 64): artifact x failed to load: nothing is stored at its location",
        ),
        (
            "foreign",
            "true",
            json!({"inputs": artifact(json!({"name": "x", "path": "/tmp/x", "git": {"repo": "r"}}))}),
            "Failed",
            "init: Error (exit code 64): artifact x failed to load: locations of kind 'git' are not supported",
        ),
        (
            "bucket",
            "touch /tmp/x",
            json!({"outputs": artifact(json!({"name": "x", "path": "/tmp/x"}))}),
            "Failed",
            "wait: Error (exit code 64): artifact x failed to save: no location is set and there is no default one",
        ),
    ] {
        bench.create(with_template(pod(name, json!({"command": ["sh", "-c", command]})), &template)).await;
        let ended = bench.ended(name).await;
        assert_eq!(ended["status"]["phase"], phase, "{name}");
        assert_eq!(told(&ended)["message"], message);
        assert_eq!(ended["status"]["message"], message);
    }
    // The container's own failure is what counts.
    let template =
        json!({"outputs": artifact(json!({"name": "x", "path": "/tmp/x"})), "archiveLocation": location("k")});
    bench.create(with_template(pod("own", json!({"command": ["false"]})), &template)).await;
    let ended = bench.ended("own").await;
    assert_eq!((told(&ended)["message"].is_null(), exit_code(&ended)), (true, Some(1)));
    bench.stop().await;
}
