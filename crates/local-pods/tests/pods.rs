//! Pods with real processes, with and without namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Instant;

use common::{Bench, NS, eventually, exit_code, pod, processes_with};
use kfp_local_api::{Cluster, resources};
use kfp_local_pods::Isolation;
use serde_json::{Value, json};

/// Each behaviour is tested in both modes. Where the kernel has no namespaces for this user, the
/// first mode says so and is left out.
macro_rules! both {
    ($($(#[$doc:meta])* $name:ident => $body:ident;)*) => {
        mod namespaces {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)] async fn $name() {
                if super::namespaces_permitted().await { super::$body(super::Isolation::Namespaces).await; }
            })*
        }
        mod mapped {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)] async fn $name() {
                super::$body(super::Isolation::Mapped).await;
            })*
        }
    };
}

async fn namespaces_permitted() -> bool {
    let bench = Bench::start(Isolation::Namespaces).await;
    if bench.task.is_finished() {
        return false;
    }
    let probe = async { bench.sh("probe", "true").await };
    let works = tokio::select! {
        _ = probe => true,
        () = eventually("start", || bench.task.is_finished()) => false,
    };
    if works {
        bench.stop().await;
    } else {
        eprintln!("no namespaces here: not tested");
    }
    works
}

both! {
    succeeds_with_kubernetes_shaped_status => status;
    outputs_become_an_annotation => outputs;
    pods_do_not_see_each_others_files => private_files;
    nothing_is_written_outside => outside;
    launcher_is_copied_and_runs => launcher;
    environment_and_volumes_arrive => environment;
    exit_codes_and_signals_are_reported => exit_codes;
    missing_command_is_named => missing_command;
    deadline_ends_everything => deadline;
    deletion_ends_everything => deletion;
    init_containers_and_sidecars => sidecars;
    shutdown_and_restart => restart;
    bad_pods_fail_with_a_reason => bad_pods;
    many_pods_at_once => many;
    termination_messages_are_reported => messages;
    sh_understands_what_shells_of_images_do => shell;
    attempts_share_their_scratch => attempts;
    ended_pods_are_marked_completed => completed;
    forks_end_with_their_task => forks;
    scripts_and_artifacts_are_moved_in_and_out => artifacts;
    results_are_the_standard_output_alone => results;
    missing_artifacts_are_errors_of_the_platform => missing_artifacts;
    resource_templates_act_on_the_api => resource_templates;
    containers_of_a_pod_start_together => together;
}

async fn status(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let ended = bench.run("one", json!({"command": ["true"]})).await;
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}");
    assert_eq!(ended["status"]["podIP"], "127.0.0.1");
    let end = &ended["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((end["exitCode"].as_i64(), end["reason"].as_str()), (Some(0), Some("Completed")));
    assert!(end["startedAt"].is_string() && end["finishedAt"].is_string());
    bench.create(pod("long", json!({"command": ["sleep", "60.5"]}))).await;
    let running = bench.until("long", |p| p["status"]["phase"] == "Running").await;
    assert!(running["status"]["containerStatuses"][0]["state"]["running"]["startedAt"].is_string());
    bench.stop().await;
}

fn with_template(mut pod: Value, template: &Value) -> Value {
    pod["metadata"]["annotations"]["workflows.argoproj.io/template"] = json!(template.to_string());
    pod
}

async fn outputs(mode: Isolation) {
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

async fn artifacts(mode: Isolation) {
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

async fn results(mode: Isolation) {
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

async fn resource_templates(mode: Isolation) {
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

async fn missing_artifacts(mode: Isolation) {
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

fn message(pod: &Value) -> &str {
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"].as_str().unwrap_or_default()
}

async fn messages(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let host_had_one = std::path::Path::new("/dev/termination-log").exists();
    let text = "echo noise; printf 'no rows in table' > /dev/termination-log; exit 3";
    let (ended, _) = bench.sh("says", text).await;
    assert_eq!((message(&ended), exit_code(&ended)), ("no rows in table", Some(3)), "{ended:#}");
    assert!(ended["status"]["message"].is_null(), "{ended:#}");
    let (ended, _) = bench.sh("silent", "echo noise; exit 3").await;
    assert_eq!(message(&ended), "");
    assert_eq!(std::path::Path::new("/dev/termination-log").exists(), host_had_one);
    let ended = bench
        .run(
            "log",
            json!({"command": ["sh", "-c", "seq 1 5000; echo why >&2; exit 1"],
                "terminationMessagePolicy": "FallbackToLogsOnError"}),
        )
        .await;
    assert!(message(&ended).ends_with("4999\n5000\nwhy\n") && message(&ended).starts_with("492"), "{ended:#}");
    let elsewhere = json!({"command": ["sh", "-c", "echo there > /tmp/words; exit 1"],
        "terminationMessagePath": "/tmp/words", "terminationMessagePolicy": "FallbackToLogsOnError"});
    assert_eq!(message(&*bench.run("elsewhere", elsewhere).await), "there\n");
    let driver = bench.run("driver", json!({"command": ["driver"], "args": ["fail"]})).await;
    assert_eq!(message(&driver), "no such input");
    let (ended, log) = bench.sh("devices", "head -c 4 /dev/urandom | wc -c; echo gone > /dev/null; echo fine").await;
    assert_eq!((ended["status"]["phase"].as_str(), log.as_str()), (Some("Succeeded"), "4\nfine\n"));
    bench.stop().await;
}

async fn shell(mode: Isolation) {
    if !std::path::Path::new("/bin/bash").exists() {
        return;
    }
    let bench = Bench::start(mode).await;
    let (ended, log) = bench.sh("p", "[[ one == o* ]] && echo yes").await;
    assert_eq!((ended["status"]["phase"].as_str(), log.as_str()), (Some("Succeeded"), "yes\n"));
    bench.stop().await;
}

async fn attempts(mode: Isolation) {
    let bench = Bench::start(mode).await;
    // Relative: without namespaces a shell's /tmp is rewritten as well, the working directory needs no rewriting.
    let text = "echo x >> /tmp/count; echo x >> here; cat /tmp/count here | wc -l; ls /tmp/outputs 2>/dev/null; mkdir -p /tmp/outputs; touch /tmp/outputs/stale; exit 1";
    for (name, parent, lines) in
        [("one", "r1", "2\n"), ("two", "r1", "4\n"), ("other", "r2", "2\n"), ("three", "r1", "6\n")]
    {
        let mut object = pod(name, json!({"command": ["sh", "-c", text]}));
        object["metadata"]["annotations"] = json!({"workflows.argoproj.io/retry-parent": parent});
        bench.create(object).await;
        bench.ended(name).await;
        assert_eq!(bench.log(name), lines, "{name}");
    }
    bench.stop().await;
}

async fn completed(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let mut object = pod("p", json!({"command": ["sleep", "0.1"]}));
    object["metadata"]["labels"] = json!({"workflows.argoproj.io/completed": "false"});
    bench.create(object).await;
    let running = bench.until("p", |p| p["status"]["phase"] == "Running").await;
    assert_eq!(running["metadata"]["labels"]["workflows.argoproj.io/completed"], "false");
    let ended = bench.ended("p").await;
    assert_eq!(ended["metadata"]["labels"]["workflows.argoproj.io/completed"], "true");
    bench.stop().await;
}

async fn forks(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let marker = marker(mode, 5);
    let text = format!("for i in 1 2 3 4 5 6 7 8; do (sleep {marker} &) ; setsid sleep {marker} & done; exit 0");
    let (ended, _) = bench.sh("p", &text).await;
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}");
    assert_eq!(processes_with(&marker), 0);
    bench.stop().await;
}

async fn private_files(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let text = |own: &str| {
        format!(
            "echo {own} >/tmp/same; mkdir -p /minio/b; echo {own} >/minio/b/k; touch $HOME/h w; cat /tmp/same /minio/b/k; ls /tmp | wc -l"
        )
    };
    let (one, two) = (text("one"), text("two"));
    let (a, b) = tokio::join!(bench.sh("a", &one), bench.sh("b", &two));
    if mode == Isolation::Mapped {
        // Only paths that exist in the pod's root before are certain without a mount tree.
        assert!(a.1.starts_with("one\none\n") && b.1.starts_with("two\ntwo\n"), "{a:?} {b:?}");
    } else {
        assert_eq!((a.1.as_str(), b.1.as_str()), ("one\none\n1\n", "two\ntwo\n1\n"));
    }
    assert!(!std::path::Path::new("/tmp/same").exists() && !std::path::Path::new("/minio/b/k").exists());
    let pods = bench.dir.join("data/pods");
    eventually("scratch ends with its pod", || std::fs::read_dir(&pods).is_ok_and(|left| left.count() == 0)).await;
    bench.stop().await;
}

async fn outside(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let version = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))";
    let landlock = std::process::Command::new("python3").args(["-c", version]).output().unwrap();
    let landlock: i32 = String::from_utf8(landlock.stdout).unwrap().trim().parse().unwrap();
    if mode == Isolation::Mapped && landlock < 2 {
        eprintln!("the kernel has no Landlock for this user: not tested");
        return bench.stop().await;
    }
    // Put together by the program, so that no mapping of paths finds it.
    let name = format!("kfp-outside-{}-{}", std::process::id(), u8::from(mode == Isolation::Mapped));
    let text = format!(
        "d=/t; echo mine >/tmp/ours; mkdir a b; echo x >a/f && mv a/f b/ && cat b/f; cat /tmp/ours; echo x >${{d}}mp/{name}; echo x >/dev/null && echo end"
    );
    let (_, log) = bench.sh("task", &text).await;
    assert!(log.starts_with("x\nmine\n") && log.ends_with("end\n"), "{log}");
    assert_eq!(log.to_lowercase().contains("permission denied"), mode == Isolation::Mapped, "{log}");
    assert!(!std::path::Path::new("/tmp").join(&name).exists());
    bench.stop().await;
}

async fn launcher(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let mount = json!([{"name": "kfp-launcher", "mountPath": "/kfp-launcher"}]);
    let main = json!({"command": ["/kfp-launcher/launch", "--pod_name", "$(NAME)", "--"], "args": ["sh", "-c", "echo $0-$NAME", "$(NAME)"],
        "volumeMounts": mount, "env": [{"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]});
    let mut object = pod("task", main);
    object["spec"]["initContainers"] = json!([{"name": "kfp-launcher", "image": "i", "command": ["launcher-v2"],
        "args": ["--copy", "/kfp-launcher/launch"], "volumeMounts": mount}]);
    object["spec"]["volumes"] = json!([{"name": "kfp-launcher", "emptyDir": {}}]);
    bench.create(object).await;
    let ended = bench.ended("task").await;
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}");
    assert_eq!(ended["status"]["initContainerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    assert_eq!(bench.log("task"), "task-task\n");
    let importer = bench.run("importer", json!({"command": ["launcher-v2"], "args": ["--", "echo", "imported"]})).await;
    assert_eq!(importer["status"]["phase"], "Succeeded", "{importer:#}");
    bench.stop().await;
}

async fn environment(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let config = json!({"metadata": {"name": "cm"}, "data": {"k": "from config"}});
    bench.cluster.create(&resources::CONFIG_MAPS, NS, config).await.unwrap();
    let secret = json!({"metadata": {"name": "s"}, "data": {"user": "YW5u"}});
    bench.cluster.create(&resources::SECRETS, NS, secret).await.unwrap();
    let claim = json!({"metadata": {"name": "c"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
    bench.cluster.create(&resources::PERSISTENT_VOLUME_CLAIMS, NS, claim).await.unwrap();
    let mut object = pod(
        "p",
        json!({"command": ["sh", "-c",
        "cat /mnt/deep/cfg/k /data/sec/user; echo; echo $USER_NAME $k; echo kept >/claim/f; cat $KUBECONFIG; \
         test -n \"$KFP_OBJECT_STORE_DIR\" && echo x >$KFP_OBJECT_STORE_DIR/o; hostname; echo \"${SECRET_OF_SERVER:-clean}\""],
        "env": [{"name": "USER_NAME", "valueFrom": {"secretKeyRef": {"name": "s", "key": "user"}}}],
        "envFrom": [{"configMapRef": {"name": "absent", "optional": true}}, {"prefix": "", "configMapRef": {"name": "cm"}}],
        "volumeMounts": [{"name": "cfg", "mountPath": "/mnt/deep/cfg"}, {"name": "sec", "mountPath": "/data/sec"},
            {"name": "claim", "mountPath": "/claim"}]}),
    );
    object["spec"]["volumes"] = json!([{"name": "cfg", "configMap": {"name": "cm"}},
        {"name": "sec", "secret": {"secretName": "s"}}, {"name": "claim", "persistentVolumeClaim": {"claimName": "c"}}]);
    bench.create(object).await;
    let ended = bench.ended("p").await;
    let log = bench.log("p");
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}\n{log}");
    assert!(log.starts_with("from configann\nann from config\n{}"), "{log}");
    assert!(log.ends_with("clean\n"), "{log}");
    assert_eq!(std::fs::read_to_string(bench.dir.join("data/volumes/kubeflow/c/f")).unwrap(), "kept\n");
    assert_eq!(std::fs::read_to_string(bench.dir.join("data/objects/o")).unwrap(), "x\n");
    bench.stop().await;
}

async fn exit_codes(mode: Isolation) {
    let bench = Bench::start(mode).await;
    for (name, text, code) in
        [("three", "exit 3", 3), ("killed", "kill -9 $$$$", 137), ("term", "kill -TERM $$$$", 143)]
    {
        let (ended, _) = bench.sh(name, text).await;
        assert_eq!((exit_code(&ended), ended["status"]["phase"].as_str()), (Some(code), Some("Failed")), "{ended:#}");
        assert_eq!(ended["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "Error");
    }
    bench.stop().await;
}

async fn missing_command(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let ended = bench.run("p", json!({"command": ["no-such-program", "x"]})).await;
    assert_eq!((exit_code(&ended), ended["status"]["phase"].as_str()), (Some(127), Some("Failed")), "{ended:#}");
    let message = ended["status"]["message"].as_str().unwrap();
    assert!(message.contains("exec: \"no-such-program\": executable file not found in $PATH"), "{message}");
    assert_eq!(ended["status"]["containerStatuses"][0]["state"]["terminated"]["reason"], "StartError");
    let ended = bench.run("empty", json!({})).await;
    let message = ended["status"]["message"].as_str().unwrap();
    assert!(message.contains("container \"main\" has no command"), "{message}");
    bench.stop().await;
}

fn marker(mode: Isolation, test: u32) -> String {
    // A duration that nothing else on the machine sleeps.
    format!("{}.{}{}{test}", 7_000_000, std::process::id(), u8::from(mode == Isolation::Mapped))
}

/// A foreground sleep, one in the background and one that left the process group and the session.
fn stubborn(marker: &str) -> String {
    format!("sleep {marker} & setsid sleep {marker} & trap '' TERM; sleep {marker}; sleep {marker}")
}

async fn deadline(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let marker = marker(mode, 1);
    let mut object = pod("p", json!({"command": ["sh", "-c", stubborn(&marker)]}));
    object["spec"]["activeDeadlineSeconds"] = json!(1);
    object["spec"]["terminationGracePeriodSeconds"] = json!(1);
    bench.create(object).await;
    eventually("running", || processes_with(&marker) > 2).await;
    let ended = bench.ended("p").await;
    assert_eq!(ended["status"]["reason"], "DeadlineExceeded");
    assert_eq!(ended["status"]["message"], "Pod was active on the node longer than the specified deadline");
    assert_eq!(processes_with(&marker), 0);
    // A deadline set later counts as well.
    bench.create(pod("later", json!({"command": ["sleep", &marker]}))).await;
    bench.until("later", |p| p["status"]["phase"] == "Running").await;
    bench
        .cluster
        .modify(&resources::PODS, NS, "later", |p| {
            p["spec"]["activeDeadlineSeconds"] = json!(0);
            Ok(())
        })
        .await
        .unwrap();
    let ended = bench.ended("later").await;
    assert_eq!((ended["status"]["phase"].as_str(), exit_code(&ended)), (Some("Failed"), Some(143)), "{ended:#}");
    bench.stop().await;
}

async fn deletion(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let marker = marker(mode, 2);
    let mut object = pod("p", json!({"command": ["sh", "-c", stubborn(&marker)]}));
    object["spec"]["terminationGracePeriodSeconds"] = json!(1);
    let created = bench.create(object).await;
    eventually("running", || processes_with(&marker) > 2).await;
    let dir = bench.dir.join("data/pods").join(created["metadata"]["uid"].as_str().unwrap());
    assert!(dir.exists());
    bench.delete("p").await;
    eventually("ended", || processes_with(&marker) == 0).await;
    eventually("removed", || !dir.exists()).await;
    assert_eq!(bench.log("p"), "");
    bench.stop().await;
}

async fn sidecars(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let marker = marker(mode, 3);
    let share = json!([{"name": "share", "mountPath": "/share"}]);
    let mut object = pod(
        "p",
        json!({"command": ["sh", "-c", "cat /share/order; until [ -e /share/side ]; do sleep 0.01; done"], "volumeMounts": share}),
    );
    object["spec"]["initContainers"] = json!([
        {"name": "i1", "image": "i", "command": ["sh", "-c", "echo 1 >>/share/order"], "volumeMounts": share},
        {"name": "i2", "image": "i", "command": ["sh", "-c", "echo 2 >>/share/order"], "volumeMounts": share}]);
    let side = json!({"name": "side", "image": "i", "command": ["sh", "-c", format!("touch /share/side; sleep {marker}")], "volumeMounts": share});
    object["spec"]["containers"].as_array_mut().unwrap().push(side);
    object["spec"]["volumes"] = json!([{"name": "share", "emptyDir": {}}]);
    bench.create(object).await;
    let ended = bench.ended("p").await;
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}");
    assert_eq!(bench.log("p"), "1\n2\n");
    // Without namespaces the last of them is reaped after its pod has ended.
    eventually("ended", || processes_with(&marker) == 0).await;
    let mut object = pod("q", json!({"command": ["true"]}));
    object["spec"]["initContainers"] = json!([{"name": "i", "image": "i", "command": ["false"]}]);
    bench.create(object).await;
    let ended = bench.ended("q").await;
    assert_eq!(ended["status"]["phase"], "Failed");
    assert_eq!(ended["status"]["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    bench.stop().await;
}

async fn together(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let names: Vec<String> = (0..6).map(|at| format!("p{at}")).collect();
    for name in &names {
        let mut object = pod(name, json!({"command": ["true"]}));
        let more = (1..5).map(|at| json!({"name": format!("c{at}"), "image": "i", "command": ["sleep", "0.1"]}));
        object["spec"]["containers"].as_array_mut().unwrap().extend(more);
        bench.create(object).await;
    }
    for name in &names {
        let ended = bench.ended(name).await;
        assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}");
        let all = ended["status"]["containerStatuses"].as_array().unwrap();
        let torn = all.iter().find(|container| container["state"]["terminated"]["reason"] == "StartError");
        assert_eq!(torn, None);
    }
    bench.stop().await;
}

async fn restart(mode: Isolation) {
    let temp = tempfile::tempdir().unwrap();
    let (dir, marker) = (temp.path(), marker(mode, 4));
    let bench = Bench::start_in(dir, common::options(dir, mode)).await;
    let created = bench.create(pod("p", json!({"command": ["sh", "-c", stubborn(&marker)]}))).await;
    bench.until("p", |p| p["status"]["phase"] == "Running").await;
    eventually("running", || processes_with(&marker) > 2).await;
    let unknown = dir.join("data/pods/unknown");
    std::fs::create_dir_all(&unknown).unwrap();
    bench.stop().await;
    assert_eq!(processes_with(&marker), 0);
    // What a killed server may leave behind when there are no namespaces.
    let own = std::fs::canonicalize(dir).unwrap().join("data/pods").join(created["metadata"]["uid"].as_str().unwrap());
    let mut left = std::process::Command::new("sleep").arg(&marker).env("KFP_POD_DIR", own).spawn().unwrap();
    let cluster = Cluster::open(&dir.join("cluster")).await.unwrap();
    cluster.create(&resources::PODS, NS, pod("new", json!({"command": ["true"]}))).await.unwrap();
    // Begun, but never reported as running.
    let begun = cluster.create(&resources::PODS, NS, pod("begun", json!({"command": ["true"]}))).await.unwrap();
    // A driver may be run twice.
    let driver = cluster.create(&resources::PODS, NS, pod("driver", json!({"command": ["driver"]}))).await.unwrap();
    for begun in [begun, driver] {
        let own = dir.join("data/pods").join(begun["metadata"]["uid"].as_str().unwrap());
        std::fs::create_dir_all(own.join("root/tmp/left")).unwrap();
    }
    let bench = Bench::start_on(cluster, dir, common::options(dir, mode));
    assert_eq!(bench.ended("begun").await["status"]["phase"], "Failed");
    assert_eq!(bench.ended("driver").await["status"]["phase"], "Succeeded");
    let ended = bench.ended("p").await;
    assert_eq!(ended["status"]["message"], "kfp-local was restarted while the pod was running");
    assert_eq!(ended["status"]["phase"], "Failed");
    assert!(ended["status"]["containerStatuses"][0]["state"]["terminated"].is_object());
    assert!(!left.wait().unwrap().success());
    assert_eq!(bench.ended("new").await["status"]["phase"], "Succeeded");
    assert!(!unknown.exists());
    bench.stop().await;
}

async fn bad_pods(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let volume = |name: &str, volume: Value| {
        let mut object = pod(name, json!({"command": ["true"]}));
        object["spec"]["volumes"] = json!([volume]);
        object
    };
    let cases = [
        (
            volume("pvc", json!({"name": "v", "persistentVolumeClaim": {"claimName": "gone"}})),
            "persistentvolumeclaim \"gone\" not found",
        ),
        (volume("nfs", json!({"name": "v", "nfs": {"server": "s", "path": "/"}})), "volumes of kind nfs"),
        (
            pod("secret", json!({"command": ["true"], "envFrom": [{"secretRef": {"name": "gone"}}]})),
            "secret \"gone\" not found",
        ),
        (
            pod("mount", json!({"command": ["true"], "volumeMounts": [{"name": "no", "mountPath": "/x"}]})),
            "mounts volume \"no\"",
        ),
        (pod("dir", json!({"command": ["true"], "workingDir": "/proc/nothing"})), "working directory /proc/nothing"),
        (pod("huge", json!({"command": ["true"], "args": ["x".repeat(200_000)]})), "exec: \"true\""),
    ];
    for (object, want) in cases {
        let name = object["metadata"]["name"].as_str().unwrap().to_string();
        bench.create(object).await;
        let ended = bench.ended(&name).await;
        let message = ended["status"]["message"].as_str().unwrap_or_default();
        assert!(
            message.contains(want) || (name == "huge" && message.contains("rgument list too long")),
            "{name}: {ended:#}"
        );
        assert_eq!(ended["status"]["phase"], "Failed");
    }
    bench.stop().await;
}

async fn many(mode: Isolation) {
    let bench = Bench::start(mode).await;
    bench.run("warm", json!({"command": ["true"]})).await;
    let begin = Instant::now();
    for i in 0..20 {
        bench.run(&format!("chain-{i}"), json!({"command": ["true"]})).await;
    }
    let chain = begin.elapsed();
    let begin = Instant::now();
    futures::future::join_all((0..100).map(|i| async move { i }).map(|i| async {
        let name = format!("wide-{}", i.await);
        assert_eq!(bench.run(&name, json!({"command": ["true"]})).await["status"]["phase"], "Succeeded");
    }))
    .await;
    println!("{mode:?}: {:?} per pod in a chain of 20, {:?} per pod of 100 at once", chain / 20, begin.elapsed() / 100);
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outside_can_be_written() {
    if !namespaces_permitted().await {
        return;
    }
    let bench = Bench::start(Isolation::Namespaces).await;
    let text = "for d in /usr /etc /var /home /root /opt; do touch $d/kfp-was-here 2>/dev/null && echo wrote $d; done; touch /new && echo own; ls -A $(dirname $KFP_OBJECT_STORE_DIR)";
    let (_, log) = bench.sh("p", text).await;
    assert_eq!(log, "own\nobjects\npod-shared\npython\n");
    let (_, log) =
        bench.sh("ps", "echo $$$$; readlink /proc/self/ns/pid >/dev/null && ls -d /proc/[0-9]* | wc -l").await;
    let mut lines = log.lines();
    assert_eq!(lines.next(), Some("2"));
    assert!(lines.next().unwrap().parse::<u32>().unwrap() < 10, "{log}");
    bench.stop().await;
}
