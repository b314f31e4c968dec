//! How containers and pods end.

use kfp_local_api::{Cluster, resources};
use kfp_local_pods::Isolation;
use serde_json::{Value, json};

use crate::common::{self, Bench, NS, eventually, exit_code, pod, processes_with};

pub fn message(pod: &Value) -> &str {
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"].as_str().unwrap_or_default()
}

pub async fn messages(mode: Isolation) {
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

pub async fn forks(mode: Isolation) {
    let bench = Bench::start(mode).await;
    let marker = marker(mode, 5);
    let text = format!("for i in 1 2 3 4 5 6 7 8; do (sleep {marker} &) ; setsid sleep {marker} & done; exit 0");
    let (ended, _) = bench.sh("p", &text).await;
    assert_eq!(ended["status"]["phase"], "Succeeded", "{ended:#}");
    assert_eq!(processes_with(&marker), 0);
    bench.stop().await;
}

pub async fn exit_codes(mode: Isolation) {
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

pub async fn missing_command(mode: Isolation) {
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

pub async fn deadline(mode: Isolation) {
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

pub async fn deletion(mode: Isolation) {
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

pub async fn sidecars(mode: Isolation) {
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

pub async fn together(mode: Isolation) {
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

pub async fn restart(mode: Isolation) {
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

pub async fn bad_pods(mode: Isolation) {
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
