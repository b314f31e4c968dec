//! Pods from images. Needs podman, or docker where `KFP_LOCAL_TEST_ENGINE=docker`, and an image with a shell and the
//! usual small programs: `KFP_LOCAL_TEST_IMAGE=localhost/tiny cargo test -p kfp-local-pods --test images`. Left out
//! when the variable is not set.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Bench, eventually, exit_code, options, pod};
use kfp_local_pods::{Isolation, Runner};
use serde_json::{Value, json};

fn image() -> Option<String> {
    let image = std::env::var("KFP_LOCAL_TEST_IMAGE").ok();
    if image.is_none() {
        eprintln!("KFP_LOCAL_TEST_IMAGE is not set: not tested");
    }
    image
}

fn engine() -> (Runner, &'static str) {
    match std::env::var("KFP_LOCAL_TEST_ENGINE").as_deref() {
        Ok("docker") => (Runner::Docker, "docker"),
        _ => (Runner::Podman, "podman"),
    }
}

async fn bench(dir: &std::path::Path) -> Bench {
    let mut options = options(dir, Isolation::Auto);
    options.runner = engine().0;
    Bench::start_in(dir, options).await
}

fn of(image: &str, name: &str, container: Value) -> Value {
    let mut object = pod(name, container);
    object["spec"]["containers"][0]["image"] = json!(image);
    object
}

fn message(pod: &Value) -> &str {
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"].as_str().unwrap_or_default()
}

fn containers(dir: &std::path::Path) -> String {
    let filter = format!("label=kfp-local={}", dir.join("data").canonicalize().unwrap().display());
    let output = std::process::Command::new(engine().1).args(["ps", "-a", "-q", "--filter", &filter]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_from_their_images() {
    let Some(image) = image() else { return };
    let temp = tempfile::tempdir().unwrap();
    let bench = bench(temp.path()).await;
    let mount = json!([{"name": "share", "mountPath": "/share"}]);
    let text = "cat /share/file; echo out; echo err >&2; echo $NAME; mkdir -p /tmp/outputs; echo v > /tmp/outputs/a; \
                test -n \"$KUBECONFIG\" && cat $KUBECONFIG; echo x > $KFP_OBJECT_STORE_DIR/o";
    let main = json!({"command": ["sh", "-c", text], "volumeMounts": mount, "env": [{"name": "NAME", "value": "n"}]});
    let mut object = of(&image, "task", main);
    object["metadata"]["annotations"]["workflows.argoproj.io/template"] =
        json!(json!({"outputs": {"parameters": [{"name": "a", "valueFrom": {"path": "/tmp/outputs/a"}}]}}).to_string());
    object["spec"]["initContainers"] = json!([
        {"name": "kfp-launcher", "image": "absent", "command": ["launcher-v2"], "args": ["--copy", "/share/launch"], "volumeMounts": mount},
        {"name": "own", "image": image, "command": ["sh", "-c", "echo shared > /share/file; test -x /share/launch"], "volumeMounts": mount}]);
    object["spec"]["volumes"] = json!([{"name": "share", "emptyDir": {}}]);
    bench.create(object).await;
    let ended = bench.ended("task").await;
    let log = bench.log("task");
    // Engines keep no order between the two streams.
    let without_error = log.replacen("err\n", "", 1);
    assert_eq!(without_error, "shared\nout\nn\n{}\n", "{log}\n{ended:#}");
    assert_ne!(without_error, log);
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}");
    let outputs = ended["metadata"]["annotations"]["workflows.argoproj.io/outputs"].as_str().unwrap();
    assert!(outputs.contains("\"value\":\"v\""), "{outputs}");
    assert_eq!(std::fs::read_to_string(temp.path().join("data/objects/o")).unwrap(), "x\n");

    bench
        .create(of(&image, "fails", json!({"command": ["sh", "-c", "echo why > /dev/termination-log; exit 3"]})))
        .await;
    let ended = bench.ended("fails").await;
    assert_eq!((exit_code(&ended), message(&ended)), (Some(3), "why\n"), "{ended:#}");
    bench.create(of(&image, "typo", json!({"command": ["no-such-program"]}))).await;
    let ended = bench.ended("typo").await;
    assert_eq!(exit_code(&ended), Some(127), "{ended:#}");
    assert!(message(&ended).contains("no-such-program"), "{ended:#}");
    bench
        .create(of("localhost/kfp-no-such-image", "image", json!({"command": ["true"], "imagePullPolicy": "Never"})))
        .await;
    let ended = bench.ended("image").await;
    assert!(message(&ended).contains("kfp-no-such-image"), "{ended:#}");
    let noisy = json!({"command": ["sh", "-c", "i=0; while [ $i -lt 3000 ]; do echo line $i of many on the error stream >&2; i=$((i+1)); done"]});
    bench.create(of(&image, "noisy", noisy)).await;
    assert_eq!(bench.ended("noisy").await["status"]["phase"], "Succeeded");
    assert!(bench.log("noisy").ends_with("line 2999 of many on the error stream\n"));
    let importer = bench.run("importer", json!({"command": ["launcher-v2"], "args": ["--", "echo", "imported"]})).await;
    assert_eq!(importer["status"]["phase"], "Succeeded", "{importer:#}");
    eventually("removed", || containers(temp.path()).is_empty()).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_end_with_their_pods() {
    let Some(image) = image() else { return };
    let temp = tempfile::tempdir().unwrap();
    let bench = bench(temp.path()).await;
    let stubborn = json!({"command": ["sh", "-c", "trap '' TERM; while true; do sleep 1; done"]});
    let mut object = of(&image, "deadline", stubborn.clone());
    object["spec"]["activeDeadlineSeconds"] = json!(2);
    object["spec"]["terminationGracePeriodSeconds"] = json!(1);
    bench.create(object).await;
    let ended = bench.ended("deadline").await;
    // An engine that was slow to make the container is stopped before the program that ignores it has started.
    assert_eq!(ended["status"]["reason"], "DeadlineExceeded");
    assert!(matches!(exit_code(&ended), Some(137 | 143)), "{ended:#}");
    eventually("removed", || containers(temp.path()).is_empty()).await;
    let mut object = of(&image, "deleted", stubborn);
    object["spec"]["terminationGracePeriodSeconds"] = json!(1);
    bench.create(object).await;
    eventually("running", || !containers(temp.path()).is_empty()).await;
    bench.delete("deleted").await;
    eventually("removed", || containers(temp.path()).is_empty()).await;
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn left_containers_are_removed() {
    let Some(image) = image() else { return };
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().join("data");
    std::fs::create_dir(&data).unwrap();
    let label = format!("kfp-local={}", data.canonicalize().unwrap().display());
    let run = ["run", "-d", "--rm", "--network=host", "--label", &label, &image, "sleep", "300"];
    let output = std::process::Command::new(engine().1).args(run).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!containers(temp.path()).is_empty());
    let bench = bench(temp.path()).await;
    eventually("removed", || containers(temp.path()).is_empty()).await;
    bench.stop().await;
}
