//! The reference Workflows of the KFP compiler parse, validate and run to their end with fake pods.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // test code

mod common;

use common::{End, World, complete, node_name, plausible};
use kfp_core::argo::{NodePhase, NodeType, Workflow, WorkflowPhase};
use std::path::{Path, PathBuf};

/// The reference Workflows, or `None` (said loudly) where they are not checked out.
fn reference() -> Option<Vec<(String, Workflow)>> {
    let folder = std::env::var_os("KFP_CONFORMANCE_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"))
        .join("workflows");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        eprintln!("SKIPPED: no reference workflows in {}; set KFP_CONFORMANCE_DIR", folder.display());
        return None;
    };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut workflows = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut value: serde_json::Value =
            serde_norway::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        complete(&mut value);
        workflows.push((name.clone(), serde_json::from_value(value).unwrap_or_else(|error| panic!("{name}: {error}"))));
    }
    assert!(workflows.len() > 100, "only {} reference workflows", workflows.len());
    Some(workflows)
}

fn check_end(name: &str, world: &World) {
    let written = world.written();
    assert!(written.status.finished_at.is_some(), "{name}");
    assert_eq!(written.label("workflows.argoproj.io/completed"), Some("true"), "{name}");
    for node in written.status.nodes.values() {
        assert!(node.phase.is_fulfilled(), "{name}: {} is {:?}", node.name, node.phase);
        for child in node.children.iter().chain(&node.outbound_nodes) {
            assert!(written.status.nodes.contains_key(child), "{name}: {} names an unknown node", node.name);
        }
    }
}

#[test]
fn all_reference_workflows_succeed() {
    for (name, workflow) in reference().unwrap_or_default() {
        for (iterations, newest_first) in [("0", false), ("3", true)] {
            let mut world = World::new(workflow.clone());
            let phase = world.drive(&mut |pod| End::Good(plausible(pod, iterations)), newest_first);
            let status = world.written().status;
            assert_eq!(phase, WorkflowPhase::Succeeded, "{name}: {}", status.message);
            check_end(&name, &world);
            let loops = status.nodes.values().filter(|node| node.kind == NodeType::TaskGroup).count();
            assert!(iterations != "0" || loops == 0, "{name}");
        }
    }
}

#[test]
fn false_conditions_and_cached_tasks_still_succeed() {
    for (name, workflow) in reference().unwrap_or_default() {
        let mut world = World::new(workflow);
        let phase = world.drive(
            &mut |pod| {
                let change = |(key, value): (String, String)| match key.as_str() {
                    "condition" => (key, "false".to_owned()),
                    "cached-decision" => (key, "true".to_owned()),
                    _ => (key, value),
                };
                End::Good(plausible(pod, "2").into_iter().map(change).collect())
            },
            false,
        );
        assert_eq!(phase, WorkflowPhase::Succeeded, "{name}");
        check_end(&name, &world);
    }
}

#[test]
fn failing_user_containers_fail_the_workflow() {
    for (name, workflow) in reference().unwrap_or_default() {
        let mut world = World::new(workflow);
        let mut failed = false;
        let phase = world.drive(
            &mut |pod| {
                if node_name(pod).contains(".executor") && !node_name(pod).contains(".onExit") {
                    failed = true;
                    return End::Bad(1);
                }
                End::Good(plausible(pod, "2"))
            },
            false,
        );
        let expected = if failed { WorkflowPhase::Failed } else { WorkflowPhase::Succeeded };
        assert_eq!(phase, expected, "{name}");
        check_end(&name, &world);
    }
}

#[test]
fn terminated_workflows_fail_and_start_nothing_new() {
    for (name, workflow) in reference().unwrap_or_default() {
        let mut world = World::new(workflow.clone());
        world.settle();
        let mut edited = workflow;
        edited.spec.active_deadline_seconds = Some(0);
        let event = kfp_local_engine::execution::Event::Edited(Box::new(edited));
        world.now += chrono::Duration::seconds(2);
        world.execution.apply(event, world.now);
        let before = world.created.len();
        let phase = world.drive(&mut common::good, false);
        assert_eq!(phase, WorkflowPhase::Failed, "{name}");
        assert_eq!(world.created.len(), before, "{name}");
        assert!(!world.stopped.is_empty(), "{name}");
        let stopped = world.execution.node_statuses().filter(|node| node.message == "Step exceeded its deadline");
        assert!(stopped.count() > 0, "{name}");
        check_end(&name, &world);
    }
}

#[test]
fn a_restart_at_any_point_changes_nothing_but_time() {
    for (name, workflow) in reference().unwrap_or_default().into_iter().step_by(7) {
        let mut world = World::new(workflow);
        for _ in 0..10_000 {
            world.settle();
            if world.execution.is_done() {
                break;
            }
            let Some(pod) = world.open.pop_front() else { panic!("{name} hangs") };
            let end = End::Good(plausible(&world.pods[&pod], "2"));
            world.end_pod(&pod, end);
            // The engine dies here: only what was written, and the pods, are left.
            let written = world.written();
            world.execution = kfp_local_engine::execution::Execution::new(written, world.now);
            for pod in world.pods.values() {
                let event = kfp_local_engine::execution::Event::Pod(std::sync::Arc::new(pod.clone()));
                world.execution.apply(event, world.now);
            }
        }
        assert_eq!(world.execution.phase(), WorkflowPhase::Succeeded, "{name}");
        check_end(&name, &world);
    }
}

#[test]
fn vanished_pods_end_in_error() {
    for (name, workflow) in reference().unwrap_or_default().into_iter().step_by(20) {
        let mut world = World::new(workflow);
        world.settle();
        let pod = world.open.pop_front().unwrap();
        world.end_pod(&pod, End::Hangs);
        world.settle();
        let written = world.written();
        world.execution = kfp_local_engine::execution::Execution::new(written, world.now);
        world.settle();
        assert!(world.execution.is_done(), "{name}");
        let errors: Vec<_> = world.execution.node_statuses().filter(|node| node.message == "pod deleted").collect();
        assert_eq!(errors.len(), 1, "{name}");
        assert_eq!(errors[0].phase, NodePhase::Error, "{name}");
    }
}

/// Workflows of version 1, as its SDK compiled them: a folder of YAML files named by `KFP_V1_WORKFLOWS`.
#[test]
fn workflows_of_version_1_succeed() {
    let Some(folder) = std::env::var_os("KFP_V1_WORKFLOWS") else {
        eprintln!("SKIPPED: no folder of workflows of version 1; set KFP_V1_WORKFLOWS");
        return;
    };
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut value: serde_json::Value = serde_norway::from_str(&text).unwrap();
        if value["kind"] != "Workflow" {
            continue;
        }
        complete(&mut value);
        let looped = text.contains("withParam");
        let items = r#"[{"a": 1, "b": 2, "aaa": 3, "A_a": 4, "B_b": 5}]"#;
        let filler = if looped { items } else { "heads" };
        for parameter in value["spec"]["arguments"]["parameters"].as_array_mut().into_iter().flatten() {
            if parameter["value"].is_null() {
                parameter["value"] = filler.into();
            }
        }
        // One of the files has none, on purpose.
        let entrypoint = value["spec"]["entrypoint"].is_string();
        let mut world = World::new(serde_json::from_value(value).unwrap());
        let mut pods = 0;
        let phase = world.drive(
            &mut |pod| {
                // Recursions go on while a coin shows heads.
                pods += 1;
                let filler = if looped || pods < 9 { filler } else { "tails" };
                let contract = pod["metadata"]["annotations"]["workflows.argoproj.io/template"].as_str().unwrap();
                let contract: serde_json::Value = serde_json::from_str(contract).unwrap();
                let list = |kind: &str| contract["outputs"][kind].as_array().cloned().unwrap_or_default();
                let parameters = list("parameters").into_iter().map(|mut parameter| {
                    parameter["value"] = filler.into();
                    parameter
                });
                let artifacts = list("artifacts").into_iter().map(|mut artifact| {
                    if artifact["s3"].is_null() {
                        artifact["s3"] = serde_json::json!({"key": format!("{}/x", node_name(pod))});
                    }
                    artifact
                });
                let (parameters, artifacts): (Vec<_>, Vec<_>) = (parameters.collect(), artifacts.collect());
                End::Outputs(serde_json::json!({"parameters": parameters, "artifacts": artifacts, "result": filler}))
            },
            false,
        );
        if !entrypoint {
            let message = world.written().status.message;
            assert_eq!((phase, message.as_str()), (WorkflowPhase::Failed, "invalid spec: spec.entrypoint is required"));
            continue;
        }
        if phase != WorkflowPhase::Succeeded {
            let status = world.written().status;
            let messages: Vec<String> = status
                .nodes
                .values()
                .filter(|node| node.phase.is_failure() && !node.message.is_empty())
                .map(|node| format!("{}: {}", node.name, node.message))
                .collect();
            wrong.push(format!("{name}: {} {}", status.message, messages.join("; ")));
            continue;
        }
        check_end(&name, &world);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
