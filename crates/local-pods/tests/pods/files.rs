//! What containers see of the disk: volumes, environment, scratch, and nothing of others.

use kfp_local_api::resources;
use kfp_local_pods::Isolation;
use serde_json::json;

use crate::common::{Bench, NS, eventually, pod};
use crate::namespaces_permitted;

pub async fn attempts(mode: Isolation) {
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

pub async fn private_files(mode: Isolation) {
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

pub async fn outside(mode: Isolation) {
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

pub async fn launcher(mode: Isolation) {
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

pub async fn environment(mode: Isolation) {
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
