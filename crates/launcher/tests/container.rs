//! Container tasks against a real metadata server, with directories as object stores.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use kfp_core::mlmd::{State, names};
use kfp_core::shutdown::CancellationToken;
use kfp_launcher::Outcome;
use kfp_proto::ml_metadata::value::Value as Kind;
use serde_json::json;
use support::{World, component, input};

#[tokio::test]
async fn a_task_runs_from_inputs_to_recorded_outputs() {
    let world = World::new(1).await;
    std::fs::create_dir_all(world.store("bucket/in/data/sub")).unwrap();
    std::fs::write(world.store("bucket/in/data/sub/part"), "content").unwrap();
    let task = world.task("t").await;
    let script = "cat {{$.inputs.artifacts['data'].path}}/sub/part
        test '{{$.inputs.parameters['greeting']}}-{{$.inputs.parameters['times']}}' = hello-2
        test '{{$.outputs.artifacts['model'].uri}}' = minio://bucket/root/t/u/model
        printf '42\\n' > {{$.outputs.parameters['number'].output_file}}
        mkdir -p {{$.outputs.artifacts['model'].path}}/weights
        echo w > {{$.outputs.artifacts['model'].path}}/weights/1
        echo '{\"artifacts\": {\"model\": {\"artifacts\": [{\"metadata\": {\"accuracy\": 0.5, \"framework\": \"x\", \"none\": null}}]}}}' > {{$.outputs.output_file}}
        echo warned >&2";
    let outcome = world.sh(task, &input(), &component(), script).await.unwrap();
    assert_eq!(outcome, Outcome::Completed { execution: task });

    assert_eq!(std::fs::read_to_string(world.store("bucket/root/t/u/model/weights/1")).unwrap(), "w\n");
    let log = std::fs::read_to_string(world.store("bucket/root/t/u/executor-logs-0")).unwrap();
    assert_eq!(log, "contentwarned\n");

    let execution = world.metadata.execution(task).await.unwrap();
    assert_eq!(execution.state(), State::Complete);
    assert_eq!((execution.text(names::POD_NAME), execution.text(names::POD_UID)), ("pod-1", "uid-1"));
    assert_eq!(execution.text(names::NAMESPACE), "team");
    assert_eq!(kfp_core::ir::to_json(execution.output("number").unwrap()), json!(42));

    let artifacts = world.metadata.output_artifacts(task).await.unwrap();
    let model = &artifacts["model"];
    assert_eq!((model.uri(), model.r#type()), ("minio://bucket/root/t/u/model", "system.Model"));
    let property = |name: &str| model.custom_properties.get(name).and_then(|v| v.value.clone());
    assert_eq!(property("accuracy"), Some(Kind::DoubleValue(0.5)));
    assert_eq!(property("display_name"), Some(Kind::StringValue("model".into())));
    assert_eq!(property("none"), None);
    let session = r#"{"Provider":"minio","Params":{"fromEnv":"true"}}"#;
    assert_eq!(property("store_session_info"), Some(Kind::StringValue(session.into())));
    assert_eq!(artifacts["executor-logs"].uri(), "minio://bucket/root/t/u/executor-logs-0");

    // The only task of its DAG: the DAG is done too.
    assert_eq!(world.state(world.dag).await, State::Complete);
    let cached = world.cached();
    assert_eq!(cached.len(), 1);
    assert_eq!(cached[0].fingerprint, "print-t");
    assert_eq!(cached[0].pipeline_name, "pipeline/pipe");
    assert_eq!(cached[0].mlmd_execution_id, task.to_string());
    assert_eq!((cached[0].namespace.as_str(), cached[0].run_id.as_str()), ("team", support::RUN));
    assert!(cached[0].created_at.is_some());
}

#[tokio::test]
async fn workspace_artifacts_are_seen_by_every_sdk_and_not_downloaded() {
    let world = World::new(1).await;
    std::fs::create_dir_all(world.store("bucket/in")).unwrap();
    std::fs::write(world.store("bucket/in/data"), "from the bucket").unwrap();
    let workspace = world.pod("/kfp-workspace/.artifacts/minio/bucket/in");
    std::fs::create_dir_all(&workspace).unwrap();
    std::fs::write(workspace.join("data"), "from the workspace").unwrap();
    let mut input = input();
    input["inputs"]["artifacts"]["data"]["artifacts"][0]["metadata"] = json!({"_kfp_workspace": true});
    let usual = world.pod("/minio/bucket/in/data");
    let script = format!(
        "test \"$(cat {{{{$.inputs.artifacts['data'].path}}}})\" = 'from the workspace'
        test \"$(cat {})\" = 'from the workspace'
        echo 1 > {{{{$.outputs.parameters['number'].output_file}}}}",
        usual.display()
    );
    // Twice, as when the task is tried again in the same pod.
    for _ in 0..2 {
        let task = world.task("t").await;
        world.sh(task, &input, &component(), &script).await.unwrap();
    }
    assert!(usual.is_symlink());
}

#[tokio::test]
async fn a_failing_command_keeps_its_log_and_fails_the_dag() {
    let world = World::new(2).await;
    let task = world.task("t").await;
    let message = world.pod("/dev/termination-log");
    std::fs::create_dir_all(message.parent().unwrap()).unwrap();
    std::fs::write(&message, "").unwrap();
    let error = world.sh(task, &input(), &component(), "echo before; exit 3").await.unwrap_err().to_string();
    assert_eq!(error, "the command \"sh\" failed: exit status 3: before");
    assert_eq!(std::fs::read_to_string(message).unwrap(), error);
    let execution = world.metadata.execution(task).await.unwrap();
    assert_eq!(execution.state(), State::Failed);
    assert_eq!(execution.text("error_message"), error);
    assert!(execution.outputs().is_empty());
    let artifacts = world.metadata.output_artifacts(task).await.unwrap();
    assert_eq!(artifacts.keys().collect::<Vec<_>>(), ["executor-logs"]);
    assert_eq!(std::fs::read_to_string(world.store("bucket/root/t/u/executor-logs-0")).unwrap(), "before\n");
    assert_eq!(world.state(world.dag).await, State::Failed);
    assert!(world.cached().is_empty());
}

#[tokio::test]
async fn the_message_ends_with_what_the_program_said_last() {
    let world = World::new(1).await;
    // As Python does it when its output is no terminal: what was printed before the exception comes after it.
    let raise = "printf 'Traceback (most recent call last):\\n  File \"m.py\", line 1\\nValueError: bad input\\n' >&2; echo loaded";
    for (script, wanted) in [
        (format!("{raise}; exit 1"), "exit status 1: ValueError: bad input"),
        (format!("{raise}; exit 2"), "exit status 2: loaded"),
        ("printf '\\033[31mno rows\\033[0m\\n\\n' >&2; exit 1".to_owned(), "exit status 1: no rows"),
        ("exit 1".to_owned(), "exit status 1; it printed nothing"),
    ] {
        let task = world.task("t").await;
        let error = world.sh(task, &input(), &component(), &script).await.unwrap_err().to_string();
        assert_eq!(error, format!("the command \"sh\" failed: {wanted}"));
    }
    let task = world.task("t").await;
    let mut options = world.options(world.flags(task, &input(), &component()), &["sh", "-c", "exit 1"]);
    options.publish_logs = false;
    let error = kfp_launcher::run(options, CancellationToken::new()).await.unwrap_err().to_string();
    assert_eq!(error, "the command \"sh\" failed: exit status 1; its output above says why");
}

#[tokio::test]
async fn a_missing_output_fails_the_task_and_names_it() {
    let world = World::new(1).await;
    for (script, text) in [
        ("true", "failed to read output parameter name=\"number\" type=\"NUMBER_INTEGER\""),
        ("echo x > {{$.outputs.parameters['number'].output_file}}", "\"x\" is not an integer"),
        ("echo '{' > {{$.outputs.output_file}}", "failed to read the executor output file"),
    ] {
        let task = world.task("t").await;
        let error = world.sh(task, &input(), &component(), script).await.unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
        assert_eq!(world.state(task).await, State::Failed);
        let artifacts = world.metadata.output_artifacts(task).await.unwrap();
        assert_eq!(artifacts.keys().collect::<Vec<_>>(), ["executor-logs"], "{script}");
        let log = std::fs::read_to_string(world.store("bucket/root/t/u/executor-logs-0")).unwrap();
        assert!(log.contains(text), "{log}");
        std::fs::remove_dir_all(world.pod("")).unwrap();
    }
}

#[tokio::test]
async fn an_unwritten_artifact_is_registered_and_a_missing_input_is_the_programs_problem() {
    let world = World::new(1).await;
    let task = world.task("t").await;
    let script =
        "test ! -e {{$.inputs.artifacts['data'].path}}; echo 1 > {{$.outputs.parameters['number'].output_file}}";
    world.sh(task, &input(), &component(), script).await.unwrap();
    assert!(world.metadata.output_artifacts(task).await.unwrap().contains_key("model"));
    assert!(!world.store("bucket/root/t/u/model").exists());
}

#[tokio::test]
async fn an_output_without_a_local_path_fails_before_the_command_runs() {
    let world = World::new(1).await;
    let task = world.task("t").await;
    let mut input = input();
    input["outputs"]["artifacts"]["model"]["artifacts"][0]["uri"] = json!("hf://org/model");
    let mark = world.dir.path().join("ran");
    let script = format!("touch {}", mark.display());
    let error = world.sh(task, &input, &component(), &script).await.unwrap_err().to_string();
    assert_eq!(error, "failed to generate local path for URI hf://org/model: unsupported storage scheme");
    assert!(!mark.exists());
    assert_eq!(world.state(task).await, State::Failed);
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_named() {
    let world = World::new(1).await;
    let task = world.task("t").await;
    let options = world.options(world.flags(task, &input(), &component()), &["no-such-program", "x"]);
    let error = kfp_launcher::run(options, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains("\"no-such-program\": no such program in the task's image"), "{error}");
    assert_eq!(world.state(task).await, State::Failed);
}

#[tokio::test]
async fn an_unknown_execution_is_an_error_and_nothing_runs() {
    let world = World::new(1).await;
    let mark = world.dir.path().join("ran");
    let script = format!("touch {}", mark.display());
    let error = world.sh(4711, &input(), &component(), &script).await.unwrap_err().to_string();
    assert!(error.starts_with("failed to pre-publish Pod info to ML Metadata: "), "{error}");
    assert!(!mark.exists());
}

#[tokio::test]
async fn a_task_whose_launcher_is_stopped_ends_failed_with_its_log() {
    let world = World::new(1).await;
    let task = world.task("t").await;
    let ready = world.dir.path().join("ready");
    let script =
        format!("trap 'echo tidied; kill $!; exit 1' TERM; echo started; sleep 1000 & touch {}; wait", ready.display());
    let options = world.options(world.flags(task, &input(), &component()), &["sh", "-c", &script]);
    let stop = CancellationToken::new();
    let canceller = async {
        while !ready.exists() {
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    let (result, ()) = tokio::join!(kfp_launcher::run(options, stop.clone()), canceller);
    let error = result.unwrap_err().to_string();
    assert!(error.contains("the pod was asked to terminate"), "{error}");
    assert_eq!(world.state(task).await, State::Failed);
    let log = std::fs::read_to_string(world.store("bucket/root/t/u/executor-logs-0")).unwrap();
    assert!(log.starts_with("started\ntidied\n"), "{log}");
}

#[tokio::test]
async fn each_try_has_its_own_log() {
    let world = World::new(1).await;
    for index in ["0", "2"] {
        let task = world.task("t").await;
        let mut options = world.options(world.flags(task, &input(), &component()), &["sh", "-c", "exit 1"]);
        options.retry_index = Some(index.into());
        kfp_launcher::run(options, CancellationToken::new()).await.unwrap_err();
        assert!(world.store(&format!("bucket/root/t/u/executor-logs-{index}")).exists());
    }
}
