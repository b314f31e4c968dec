//! Pods with real processes, with and without namespaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod ends;
mod exchange;
mod files;

use std::time::Instant;

use common::{Bench, eventually, pod};
use kfp_local_pods::Isolation;
use serde_json::json;

/// Each behaviour is tested in both modes. Where the kernel has no namespaces for this user, the
/// first mode says so and is left out.
macro_rules! both {
    ($($name:ident => $($body:ident)::+;)*) => {
        mod namespaces {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)] async fn $name() {
                if super::namespaces_permitted().await { super::$($body)::+(super::Isolation::Namespaces).await; }
            })*
        }
        mod mapped {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)] async fn $name() {
                super::$($body)::+(super::Isolation::Mapped).await;
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
    outputs_become_an_annotation => exchange::outputs;
    pods_do_not_see_each_others_files => files::private_files;
    nothing_is_written_outside => files::outside;
    launcher_is_copied_and_runs => files::launcher;
    environment_and_volumes_arrive => files::environment;
    exit_codes_and_signals_are_reported => ends::exit_codes;
    missing_command_is_named => ends::missing_command;
    deadline_ends_everything => ends::deadline;
    deletion_ends_everything => ends::deletion;
    init_containers_and_sidecars => ends::sidecars;
    shutdown_and_restart => ends::restart;
    bad_pods_fail_with_a_reason => ends::bad_pods;
    many_pods_at_once => many;
    termination_messages_are_reported => ends::messages;
    sh_understands_what_shells_of_images_do => shell;
    attempts_share_their_scratch => files::attempts;
    ended_pods_are_marked_completed => completed;
    forks_end_with_their_task => ends::forks;
    scripts_and_artifacts_are_moved_in_and_out => exchange::artifacts;
    results_are_the_standard_output_alone => exchange::results;
    missing_artifacts_are_errors_of_the_platform => exchange::missing_artifacts;
    resource_templates_act_on_the_api => exchange::resource_templates;
    containers_of_a_pod_start_together => ends::together;
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

async fn shell(mode: Isolation) {
    if !std::path::Path::new("/bin/bash").exists() {
        return;
    }
    let bench = Bench::start(mode).await;
    let (ended, log) = bench.sh("p", "[[ one == o* ]] && echo yes").await;
    assert_eq!((ended["status"]["phase"].as_str(), log.as_str()), (Some("Succeeded"), "yes\n"));
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
