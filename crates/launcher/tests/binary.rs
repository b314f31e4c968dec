//! The binary itself: output passed through, exit codes, signals, `--copy`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::process::Stdio;

use kfp_core::mlmd::State;
use support::{World, component, input};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

const LAUNCHER: &str = env!("CARGO_BIN_EXE_launcher-v2");

async fn launcher(world: &World, script: &str) -> (i64, Command) {
    let task = world.task("t").await;
    let mut command = Command::new(LAUNCHER);
    command
        .args(world.flags(task, &input(), &component()))
        .args(["sh", "-c", script])
        .env("KFP_POD_ROOT", world.pod(""))
        .env("KFP_OBJECT_STORE_DIR", world.dir.path().join("store"))
        .env_remove("KUBERNETES_SERVICE_HOST")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    (task, command)
}

#[tokio::test]
async fn output_is_passed_through_and_success_is_silent() {
    let world = World::new(1).await;
    let script = "echo out; echo 7 > {{$.outputs.parameters['number'].output_file}}; mkdir {{$.outputs.artifacts['model'].path}}; touch {{$.outputs.artifacts['model'].path}}/f; mkdir -p {{$.inputs.artifacts['data'].path}}";
    std::fs::create_dir_all(world.store("bucket/in")).unwrap();
    std::fs::write(world.store("bucket/in/data"), "x").unwrap();
    let script = script.replace("; mkdir -p {{$.inputs.artifacts['data'].path}}", "");
    let (task, mut command) = launcher(&world, &script).await;
    let output = command.output().await.unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "out\n");
    assert!(output.status.success());
    assert_eq!(world.state(task).await, State::Complete);
}

#[tokio::test]
async fn failure_is_exit_code_1_with_a_sentence() {
    let world = World::new(1).await;
    let (task, mut command) = launcher(&world, "kill -9 $$").await;
    let output = command.output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("launcher: the command \"sh\" was killed by signal 9 (SIGKILL)"), "{text}");
    assert_eq!(world.state(task).await, State::Failed);
}

#[tokio::test]
async fn sigterm_reaches_the_program_and_the_task_is_recorded() {
    let world = World::new(1).await;
    let script = "trap 'echo tidied; kill $!; exit 1' TERM; sleep 1000 & echo ready; wait";
    let (task, mut command) = launcher(&world, script).await;
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("ready"));
    let id = nix::unistd::Pid::from_raw(child.id().unwrap().cast_signed());
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("tidied"));
    assert_eq!(child.wait().await.unwrap().code(), Some(1));
    assert_eq!(world.state(task).await, State::Failed);
}

#[tokio::test]
async fn copies_itself() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("launch");
    let status = Command::new(LAUNCHER).arg("--copy").arg(&target).status().await.unwrap();
    assert!(status.success());
    let help = Command::new(&target).arg("--version").output().await.unwrap();
    assert!(String::from_utf8_lossy(&help.stdout).starts_with("launcher-v2 "));
}

#[tokio::test]
async fn wrong_flags_exit_with_2() {
    let output = Command::new(LAUNCHER).args(["--nope"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("flag provided but not defined: -nope"));
}
