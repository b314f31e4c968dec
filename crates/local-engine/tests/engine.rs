//! Behaviour of the pure core on hand-written Workflows.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

mod common;

use chrono::Duration;
use common::{End, World, good, node_name, workflow};
use kfp_core::argo::{NodePhase, NodeType, Workflow, WorkflowPhase, names};
use kfp_local_engine::execution::{Effect, Event, Execution};
use serde_json::{Value, json};

/// A Workflow whose `main` DAG has these tasks, with a template `pod` that has an input `x` and an output `o`.
fn dag(tasks: &str) -> Workflow {
    workflow(&format!(
        r#"
metadata: {{name: wf}}
spec:
  entrypoint: main
  arguments: {{parameters: [{{name: p, value: "v-{{{{workflow.name}}}}"}}]}}
  templates:
  - name: main
    dag:
      tasks:
{}
  - name: pod
    inputs: {{parameters: [{{name: x, default: none}}]}}
    outputs: {{parameters: [{{name: o, valueFrom: {{path: /tmp/o}}}}]}}
    container: {{image: i, command: [run, "{{{{inputs.parameters.x}}}}", "{{{{outputs.parameters.o.path}}}}"]}}
  - name: inner
    inputs: {{parameters: [{{name: x, default: none}}]}}
    dag:
      tasks:
      - {{name: first, template: pod}}
      - {{name: second, template: pod, depends: first.Succeeded}}
"#,
        tasks.trim_end().lines().map(|line| format!("      {line}\n")).collect::<String>()
    ))
}

fn run(workflow: Workflow, fail: &[&str]) -> World {
    let mut world = World::new(workflow);
    world.drive(
        &mut |pod| match fail.contains(&node_name(pod)) {
            true => End::Bad(1),
            false => good(pod),
        },
        false,
    );
    assert!(world.execution.is_done());
    world
}

fn args(pod: &Value) -> Vec<&str> {
    let command = &pod["spec"]["containers"][0]["command"];
    command.as_array().unwrap().iter().map(|word| word.as_str().unwrap()).collect()
}

fn children(world: &World, of: &str) -> Vec<String> {
    let by_id = |id: &String| world.execution.node_statuses().find(|node| node.id == *id).unwrap().name.clone();
    world.node(of).children.iter().map(by_id).collect()
}

#[test]
fn a_dag_makes_the_tree_that_argo_makes() {
    let world = run(
        dag("
- {name: a, template: pod}
- {name: b, template: inner, depends: a.Succeeded}
- {name: c, template: pod, depends: b.Succeeded, arguments: {parameters: [{name: x, value: '{{tasks.a.outputs.parameters.o}}'}]}}"),
        &[],
    );
    assert_eq!(world.execution.phase(), WorkflowPhase::Succeeded);
    let root = world.node("");
    assert_eq!((root.id.as_str(), root.kind, root.template_scope.as_str()), ("wf", NodeType::Dag, "local/wf"));
    assert_eq!(children(&world, ""), ["wf.a"]);
    assert_eq!(children(&world, ".a"), ["wf.b"]);
    assert_eq!(children(&world, ".b"), ["wf.b.first"]);
    assert_eq!(children(&world, ".b.second"), ["wf.c"]);
    assert_eq!(root.outbound_nodes, [world.node(".c").id.clone()]);
    let inner = world.node(".b.first");
    assert_eq!(inner.boundary_id, world.node(".b").id);
    assert_eq!((inner.display_name.as_str(), inner.kind), ("first", NodeType::Pod));
    let written = world.written();
    assert_eq!(written.status.progress, "4/4");
    assert_eq!(written.status.nodes[&world.node(".b").id].progress, "2/2");
    assert_eq!(written.label(names::LABEL_PHASE), Some("Succeeded"));
    assert_eq!(written.label(names::LABEL_COMPLETED), Some("true"));
    assert_eq!(written.annotation(names::ANNOTATION_POD_NAME_FORMAT), Some("v2"));
    let pod = world.pods.values().find(|pod| node_name(pod) == "wf.c").unwrap();
    assert_eq!(args(pod), ["run", "value", "/tmp/o"]);
    assert_eq!(pod["metadata"]["ownerReferences"][0]["uid"], json!(written.metadata.uid));
    assert_eq!(world.node(".c").inputs.as_ref().unwrap().parameters[0].default.as_deref(), Some("none"));
}

#[test]
fn failures_omit_dependents_and_let_others_finish() {
    let world = run(
        dag("
- {name: a, template: pod}
- {name: b, template: pod, depends: a.Succeeded}
- {name: c, template: pod, depends: b.Succeeded}
- {name: other, template: inner}"),
        &["wf.a"],
    );
    assert_eq!(world.execution.phase(), WorkflowPhase::Failed);
    assert_eq!(world.phase(".a"), NodePhase::Failed);
    assert_eq!(world.node(".a").message, "main: Error (exit code 1)");
    for task in [".b", ".c"] {
        assert_eq!(world.phase(task), NodePhase::Omitted);
        assert_eq!(world.node(task).message, "omitted: depends condition not met");
        assert_eq!(world.node(task).kind, NodeType::Skipped);
    }
    assert_eq!(world.phase(".other"), NodePhase::Succeeded);
    assert_eq!((world.node("").message.as_str(), world.written().status.message.as_str()), ("", ""));
}

#[test]
fn a_handled_failure_does_not_fail_the_dag() {
    for tasks in [
        "
- {name: a, template: pod}
- {name: b, template: pod, depends: a.Failed}",
        "
- {name: a, template: pod, continueOn: {failed: true}}
- {name: b, template: pod, dependencies: [a]}",
        "
- {name: a, template: pod, continueOn: {failed: true}}",
    ] {
        assert_eq!(run(dag(tasks), &["wf.a"]).execution.phase(), WorkflowPhase::Succeeded, "{tasks}");
    }
}

#[test]
fn conditions_skip_tasks() {
    let world = run(
        dag("
- {name: a, template: pod}
- {name: no, template: pod, depends: a.Succeeded, when: '{{tasks.a.outputs.parameters.o}} != value', arguments: {parameters: [{name: x, value: '{{tasks.a.outputs.parameters.none}}'}]}}
- {name: after, template: pod, depends: no.Succeeded}
- {name: always, template: pod, depends: no}
- {name: bad, template: pod, when: 'a-b == c'}"),
        &[],
    );
    assert_eq!(world.phase(".no"), NodePhase::Skipped);
    assert_eq!(world.node(".no").message, "when 'value != value' evaluated false");
    assert_eq!(world.phase(".after"), NodePhase::Omitted);
    assert_eq!(world.phase(".always"), NodePhase::Succeeded);
    assert_eq!(world.phase(".bad"), NodePhase::Error);
    assert!(world.node(".bad").message.starts_with("Invalid 'when' expression 'a-b == c'"));
    assert_eq!(world.execution.phase(), WorkflowPhase::Error);
}

#[test]
fn values_of_skipped_tasks_fall_back_to_defaults() {
    let world = run(
        dag("
- {name: no, template: pod, when: '1 == 2'}
- {name: user, template: pod, depends: no, arguments: {parameters: [{name: x, value: '{{tasks.no.outputs.parameters.o}}'}]}}
- {name: mixed, template: pod, depends: no, arguments: {parameters: [{name: x, value: 'a {{tasks.no.outputs.parameters.o}}'}]}}"),
        &[],
    );
    let pod = world.pods.values().find(|pod| node_name(pod) == "wf.user").unwrap();
    assert_eq!(args(pod)[1], "none");
    assert_eq!(world.phase(".mixed"), NodePhase::Error);
}

#[test]
fn loops_make_groups_and_aggregate() {
    let mut world = World::new(dag("
- {name: l, template: pod, withItems: [a, 2, {k: v}], arguments: {parameters: [{name: x, value: '{{item}}'}]}}
- {name: none, template: pod, withParam: '[]'}
- {name: c, template: pod, depends: l.Succeeded, arguments: {parameters: [{name: x, value: '{{tasks.l.outputs.parameters.o}}'}]}}
- {name: d, template: pod, depends: none.Succeeded}
- {name: e, template: pod, withParam: 'nonsense'}"));
    let mut count = 0;
    world.drive(
        &mut |_| {
            count += 1;
            End::Good(vec![("o".into(), format!("v{count}"))])
        },
        true,
    );
    assert_eq!(children(&world, ".l"), ["wf.l(0:a)", "wf.l(1:2)", "wf.l(2:k:v)"]);
    assert_eq!(world.node(".l").kind, NodeType::TaskGroup);
    assert_eq!(world.node(".l(2:k:v)").inputs.as_ref().unwrap().parameters[0].value.as_deref(), Some("{\"k\":\"v\"}"));
    // Ended in reverse order, aggregated in order of the items.
    assert_eq!(world.node(".c").inputs.as_ref().unwrap().parameters[0].value.as_deref(), Some(r#"["v3","v2","v1"]"#));
    assert_eq!(world.node(".none").message, "Skipped, empty params");
    assert_eq!(world.phase(".d"), NodePhase::Omitted);
    assert_eq!(world.phase(".e"), NodePhase::Error);
    assert!(world.node(".e").message.starts_with("withParam value could not be parsed as a JSON list: nonsense: "));
}

#[test]
fn a_failed_item_fails_the_group_after_all_have_run() {
    let world = run(dag("- {name: l, template: inner, withSequence: {count: '4'}}"), &["wf.l(1:1).first"]);
    assert_eq!(world.phase(".l"), NodePhase::Failed);
    assert_eq!(world.phase(".l(3:3)"), NodePhase::Succeeded);
    assert_eq!(world.execution.phase(), WorkflowPhase::Failed);
}

#[test]
fn parallelism_limits_children_and_pods() {
    let mut limited = dag("- {name: l, template: inner, withSequence: {count: '6'}}");
    limited.spec.templates[0].parallelism = Some(2);
    let mut begun = World::new(limited.clone());
    begun.settle();
    assert!(begun.node("").message.starts_with("waiting for others to end"), "{}", begun.node("").message);
    let world = run(limited, &[]);
    assert_eq!(world.node("").message, "");
    assert_eq!((world.most_at_once, world.execution.phase()), (2, WorkflowPhase::Succeeded));
    assert_eq!(children(&world, ".l").len(), 6);

    let mut unlimited = dag("- {name: l, template: inner, withSequence: {count: '6'}}");
    unlimited.spec.templates[0].parallelism = Some(0);
    assert_eq!(run(unlimited, &[]).most_at_once, 6);

    let mut pods = dag("- {name: l, template: inner, withSequence: {count: '6'}}\n- {name: o, template: pod}");
    pods.spec.parallelism = Some(3);
    let world = run(pods, &[]);
    assert_eq!((world.most_at_once, world.execution.phase()), (3, WorkflowPhase::Succeeded));
}

#[test]
fn exit_hooks_run_after_completion_only() {
    let tasks = "
- {name: a, template: inner, hooks: {exit: {template: pod, arguments: {parameters: [{name: x, value: '{{tasks.a.status}}'}]}}}}
- {name: b, template: pod, depends: a.Succeeded}
- {name: no, template: pod, when: '1 == 2', hooks: {exit: {template: pod}}}";
    let world = run(dag(tasks), &["wf.a.first"]);
    assert_eq!(world.execution.phase(), WorkflowPhase::Failed);
    let hook = world.node(".a.onExit");
    assert!(hook.node_flag.unwrap().hooked);
    assert_eq!((hook.phase, hook.boundary_id.as_str()), (NodePhase::Succeeded, "wf"));
    assert_eq!(hook.inputs.as_ref().unwrap().parameters[0].value.as_deref(), Some("Failed"));
    assert!(world.node(".a").children.contains(&hook.id));
    assert!(!world.has(".no.onExit"));

    let world = run(dag(tasks), &["wf.a.onExit"]);
    assert_eq!(world.phase(".a.onExit"), NodePhase::Failed);
    assert_eq!(world.execution.phase(), WorkflowPhase::Succeeded, "a failed exit hook does not fail the DAG");
    let pod = world.pods.values().find(|pod| node_name(pod) == "wf.a.onExit").unwrap();
    assert_eq!(pod["metadata"]["labels"][names::LABEL_ON_EXIT], "true");
    let order = |name: &str| world.created.iter().position(|pod| node_name(&world.pods[pod]) == name).unwrap();
    assert!(order("wf.a.onExit") < order("wf.b"), "dependents wait for the hook");
}

#[test]
fn the_workflow_exit_handler_sees_the_result() {
    let mut with_exit = dag("- {name: a, template: pod}");
    with_exit.spec.on_exit = Some("bye".into());
    let bye = json!({"name": "bye", "container": {"image": "i", "command": ["bye", "{{workflow.status}}", "{{workflow.failures}}"]}});
    with_exit.spec.templates.push(serde_json::from_value(bye).unwrap());
    let world = run(with_exit.clone(), &["wf.a"]);
    assert_eq!(world.execution.phase(), WorkflowPhase::Failed);
    let pod = world.pods.values().find(|pod| node_name(pod) == "wf.onExit").unwrap();
    assert_eq!(args(pod)[1], "Failed");
    assert!(args(pod)[2].contains("\\\"displayName\\\":\\\"a\\\""), "{}", args(pod)[2]);
    assert_eq!(world.node(".onExit").boundary_id, "");

    let world = run(with_exit, &["wf.onExit"]);
    assert_eq!(world.execution.phase(), WorkflowPhase::Failed);
    assert_eq!(world.written().status.message, "main: Error (exit code 1)");
}

fn retrying(strategy: Value) -> Workflow {
    let mut workflow = dag("- {name: a, template: pod}");
    workflow.spec.templates[1].retry_strategy = serde_json::from_value(strategy).unwrap();
    workflow.spec.templates[1].container =
        Some(json!({"image": "i", "command": ["run", "{{retries}}", "{{lastRetry.exitCode}}"]}));
    workflow
}

#[test]
fn retries_make_attempts_until_one_succeeds() {
    let mut world = World::new(retrying(json!({"limit": "2", "backoff": {"duration": "10", "factor": "2"}})));
    let mut left = 2;
    let phase = world.drive(
        &mut |pod| {
            left -= 1;
            if left >= 0 { End::Bad(3) } else { good(pod) }
        },
        false,
    );
    assert_eq!(phase, WorkflowPhase::Succeeded);
    let retry = world.node(".a");
    assert_eq!((retry.kind, retry.phase), (NodeType::Retry, NodePhase::Succeeded));
    assert_eq!(children(&world, ".a"), ["wf.a(0)", "wf.a(1)", "wf.a(2)"]);
    assert_eq!(retry.outputs.as_ref().unwrap().parameter("o"), Some("value"));
    assert!(world.node(".a(1)").node_flag.unwrap().retried);
    assert_eq!(world.node(".a(1)").display_name, "a(1)");
    let last = world.pods.values().find(|pod| node_name(pod) == "wf.a(2)").unwrap();
    assert_eq!(args(last), ["run", "2", "3"]);
    let waited = world.node(".a(2)").started_at.unwrap().0 - world.node(".a(1)").finished_at.unwrap().0;
    assert_eq!(waited, Duration::seconds(20));

    let world = run(retrying(json!({"limit": 1})), &["wf.a(0)", "wf.a(1)"]);
    assert_eq!(world.node(".a").message, "No more retries left");
    assert_eq!(world.execution.phase(), WorkflowPhase::Failed);
    assert!(!world.has(".a(2)"));
}

#[test]
fn steps_run_group_after_group() {
    let steps = r#"
metadata: {name: wf}
spec:
  entrypoint: main
  templates:
  - name: main
    outputs: {parameters: [{name: r, valueFrom: {parameter: "{{steps.b.outputs.parameters.o}}"}}]}
    steps:
    - [{name: a, template: pod, withItems: [1, 2]}]
    - - {name: b, template: pod, arguments: {parameters: [{name: x, value: "{{steps.a.outputs.parameters.o}}"}]}}
      - {name: c, template: pod, when: "1 == 2"}
  - name: pod
    inputs: {parameters: [{name: x, default: none}]}
    outputs: {parameters: [{name: o, valueFrom: {path: /tmp/o}}]}
    container: {image: i, command: [run, "{{inputs.parameters.x}}"]}
"#;
    let world = run(workflow(steps), &[]);
    assert_eq!(world.execution.phase(), WorkflowPhase::Succeeded, "{:?}", world.written().status.message);
    assert_eq!(children(&world, ""), ["wf[0]"]);
    assert_eq!(children(&world, "[0]"), ["wf[0].a(0:1)", "wf[0].a(1:2)"]);
    assert_eq!(children(&world, "[0].a(0:1)"), ["wf[1]"]);
    assert_eq!(world.node("[1].b").display_name, "b");
    assert_eq!(world.node("").outputs.as_ref().unwrap().parameter("r"), Some("value"));
    assert_eq!(
        world.node("[1].b").inputs.as_ref().unwrap().parameters[0].value.as_deref(),
        Some(r#"["value","value"]"#)
    );

    let world = run(workflow(steps), &["wf[0].a(1:2)"]);
    assert_eq!(world.execution.phase(), WorkflowPhase::Failed);
    let message = format!("child '{}' failed", world.node("[0].a(1:2)").id);
    assert_eq!((world.node("").message.clone(), world.node("[0]").message.clone()), (message.clone(), message));
    assert!(!world.has("[1]"));
}

#[test]
fn terminating_ends_pods_but_not_exit_hooks() {
    let tasks = "
- {name: a, template: pod, hooks: {exit: {template: pod}}}
- {name: b, template: pod, depends: a.Succeeded}";
    let mut world = World::new(dag(tasks));
    world.settle();
    let mut edited = dag(tasks);
    edited.spec.active_deadline_seconds = Some(0);
    world.execution.apply(Event::Edited(Box::new(edited)), world.now);
    world.settle();
    assert_eq!(world.node(".a").message, "Step exceeded its deadline");
    assert_eq!(world.stopped.len(), 1);
    assert_eq!(world.phase(".a.onExit"), NodePhase::Pending);
    assert_eq!(world.drive(&mut good, false), WorkflowPhase::Failed);
    assert_eq!(world.phase(".a.onExit"), NodePhase::Succeeded);
    assert_eq!(world.phase(".b"), NodePhase::Omitted);
}

#[test]
fn shutdown_strategies_differ_in_exit_hooks() {
    let tasks = "- {name: a, template: pod, hooks: {exit: {template: pod}}}";
    for (strategy, hook) in [("Stop", true), ("Terminate", false)] {
        let mut world = World::new(dag(tasks));
        world.settle();
        let mut edited = dag(tasks);
        edited.spec.shutdown = Some(strategy.into());
        world.execution.apply(Event::Edited(Box::new(edited)), world.now);
        assert_eq!(world.drive(&mut good, false), WorkflowPhase::Failed);
        assert_eq!(world.node(".a").message, format!("workflow shutdown with strategy:  {strategy}"));
        assert_eq!(world.has(".a.onExit"), hook, "{strategy}");
        assert_eq!(world.written().status.message, format!("Stopped with strategy '{strategy}'"));
    }
}

#[test]
fn a_deadline_comes_by_itself() {
    let mut workflow = dag("- {name: a, template: pod}");
    workflow.spec.active_deadline_seconds = Some(60);
    let mut world = World::new(workflow);
    assert_eq!(world.drive(&mut |_| End::Hangs, false), WorkflowPhase::Failed);
    assert_eq!(world.now, common::start() + Duration::seconds(60));
    assert_eq!(world.node(".a").message, "Step exceeded its deadline");
}

#[test]
fn a_suspended_workflow_starts_nothing_new() {
    let tasks = "
- {name: a, template: pod}
- {name: b, template: pod, depends: a.Succeeded}";
    let mut suspended = dag(tasks);
    suspended.spec.suspend = Some(true);
    let mut world = World::new(dag(tasks));
    world.settle();
    world.execution.apply(Event::Edited(Box::new(suspended)), world.now);
    world.drive(&mut good, false);
    assert_eq!(world.phase(".a"), NodePhase::Succeeded);
    assert!(!world.has(".b"));
    world.execution.apply(Event::Edited(Box::new(dag(tasks))), world.now);
    assert_eq!(world.drive(&mut good, false), WorkflowPhase::Succeeded);
}

#[test]
fn suspend_templates_wait() {
    let text = |suspend: &str| {
        workflow(&format!(
            "{{metadata: {{name: wf}}, spec: {{entrypoint: main, templates: [{{name: main, suspend: {suspend}}}]}}}}"
        ))
    };
    let mut world = World::new(text("{duration: 1m}"));
    assert_eq!(world.drive(&mut good, false), WorkflowPhase::Succeeded);
    assert_eq!(world.now, common::start() + Duration::seconds(60));
    let mut world = World::new(text("{}"));
    world.settle();
    let mut resumed = world.written();
    resumed.status.nodes.get_mut("wf").unwrap().phase = NodePhase::Succeeded;
    world.execution.apply(Event::Edited(Box::new(resumed)), world.now);
    assert_eq!(world.drive(&mut good, false), WorkflowPhase::Succeeded);
}

#[test]
fn claims_come_before_pods() {
    let mut workflow = dag("- {name: a, template: pod}");
    workflow.spec.volume_claim_templates =
        vec![json!({"metadata": {"name": "ws"}, "spec": {"accessModes": ["ReadWriteOnce"]}})];
    let mut execution = Execution::new(workflow.clone(), common::start());
    let effects = execution.run(common::start());
    assert!(matches!(effects.as_slice(), [Effect::CreateClaim(claim)] if claim["metadata"]["name"] == "wf-ws"));
    assert!(execution.run(common::start()).is_empty(), "pods wait for the claim");
    execution.apply(Event::ClaimRefused("no room".into()), common::start());
    assert_eq!(execution.phase(), WorkflowPhase::Error);

    let world = run(workflow, &[]);
    assert!(world.claims.is_empty(), "claims of a successful workflow are deleted");
    let volumes = &world.pods.values().next().unwrap()["spec"]["volumes"];
    assert_eq!(*volumes, json!([{"name": "ws", "persistentVolumeClaim": {"claimName": "wf-ws"}}]));
}

#[test]
fn bad_workflows_fail_with_the_place() {
    let bad = |change: &dyn Fn(&mut Workflow)| {
        let mut workflow = dag("- {name: a, template: pod}");
        change(&mut workflow);
        let mut execution = Execution::new(workflow, common::start());
        assert!(execution.run(common::start()).is_empty());
        assert_eq!(execution.phase(), WorkflowPhase::Failed);
        let changes = execution.take_changes().unwrap();
        changes.status["message"].as_str().unwrap().to_owned()
    };
    let kind = |kind: &str| {
        let value = json!({"name": "odd", kind: {}});
        bad(&move |workflow| workflow.spec.templates.push(serde_json::from_value(value.clone()).unwrap()))
    };
    assert_eq!(kind("http"), "invalid spec: templates.odd uses 'http', which is not supported by this engine");
    assert!(kind("nothing").contains("templates.odd template type unspecified"));
    for (expected, change) in [
        (
            "template name 'x' undefined",
            Box::new(|workflow: &mut Workflow| workflow.spec.entrypoint = "x".into()) as Box<dyn Fn(&mut Workflow)>,
        ),
        ("spec.entrypoint is required", Box::new(|workflow| workflow.spec.entrypoint.clear())),
        ("spec.arguments.p.value", Box::new(|workflow| workflow.spec.arguments.parameters[0].value = None)),
        ("templates.main tasks.a dependency 'b' not defined", Box::new(|w| task(w).depends = Some("b".into()))),
        ("cycle detected: a->a", Box::new(|w| task(w).depends = Some("a".into()))),
        ("templates.main.tasks.a template name 'x' undefined", Box::new(|w| task(w).template = "x".into())),
        (
            "failed to resolve {{inputs.parameters.x}}",
            Box::new(|w| task(w).when = Some("{{inputs.parameters.x}} == 1".into())),
        ),
        ("failed to resolve {{tasks.b.status}}", Box::new(|w| task(w).when = Some("{{tasks.b.status}} == 1".into()))),
        ("name 'a_b' is invalid", Box::new(|w| task(w).name = "a_b".into())),
        (
            "is not unique",
            Box::new(|w| {
                let copy = w.spec.templates[1].clone();
                w.spec.templates.push(copy);
            }),
        ),
    ] {
        let message = bad(&*change);
        assert!(message.starts_with("invalid spec: ") && message.contains(expected), "{message} / {expected}");
    }
}

fn task(workflow: &mut Workflow) -> &mut kfp_core::argo::DagTask {
    &mut workflow.spec.templates[0].dag.as_mut().unwrap().tasks[0]
}

#[test]
fn a_bad_pod_patch_is_an_error_of_the_node() {
    let mut workflow = dag("- {name: a, template: pod}");
    workflow.spec.templates[1].pod_spec_patch = Some("{{inputs.parameters.x}}: [".into());
    let world = run(workflow, &[]);
    assert_eq!(world.phase(".a"), NodePhase::Error);
    assert!(
        world.node(".a").message.starts_with("invalid podSpecPatch of template 'pod'"),
        "{}",
        world.node(".a").message
    );
}

#[test]
fn endless_retries_of_what_cannot_start_do_not_spin() {
    let mut workflow = dag("- {name: a, template: pod}");
    workflow.spec.templates[1].pod_spec_patch = Some("[".into());
    workflow.spec.templates[1].retry_strategy = serde_json::from_value(json!({"retryPolicy": "Always"})).unwrap();
    let mut world = World::new(workflow);
    world.settle();
    assert!(world.execution.node_statuses().count() < 5);
    assert!(world.execution.next_wakeup().unwrap() > world.now);
}

#[test]
fn refused_and_deleted_pods_end_in_error() {
    for deleted in [false, true] {
        let mut world = World::new(dag("- {name: a, template: pod}"));
        world.settle();
        let id = world.node(".a").id.clone();
        let event = match deleted {
            true => Event::PodDeleted(id, world.created[0].clone()),
            false => Event::PodRefused(id, "no".into()),
        };
        world.execution.apply(event, world.now);
        world.settle();
        assert_eq!(world.execution.phase(), WorkflowPhase::Error);
        assert_eq!(world.node(".a").message, if deleted { "pod deleted" } else { "no" });
    }
}

/// What KFP's API server makes of a failed Workflow when a run is retried.
fn prune(workflow: &mut Workflow) {
    workflow.metadata.labels.remove(names::LABEL_COMPLETED);
    let status = &mut workflow.status;
    status.phase = WorkflowPhase::Running;
    status.message.clear();
    status.finished_at = None;
    status.nodes.retain(|_, node| {
        let dropped = matches!(node.phase, NodePhase::Failed | NodePhase::Error | NodePhase::Omitted);
        if dropped && node.kind == NodeType::Dag {
            node.phase = NodePhase::Running;
            node.message.clear();
            node.finished_at = None;
            return true;
        }
        !dropped
    });
    let ids: Vec<String> = status.nodes.keys().cloned().collect();
    for node in status.nodes.values_mut() {
        node.children.retain(|id| ids.contains(id));
        node.outbound_nodes.retain(|id| ids.contains(id));
    }
}

#[test]
fn a_retried_run_continues_and_repeats_nothing_that_succeeded() {
    let tasks = "
- {name: a, template: pod}
- {name: l, template: inner, depends: a.Succeeded, withItems: [x, y]}
- {name: e, template: inner, depends: a.Succeeded, hooks: {exit: {template: pod}}}
- {name: z, template: pod, depends: l.Succeeded && e.Succeeded, arguments: {parameters: [{name: x, value: '{{tasks.a.outputs.parameters.o}}'}]}}";
    let first = run(dag(tasks), &["wf.l(1:y).second", "wf.e.first"]);
    assert_eq!(first.execution.phase(), WorkflowPhase::Failed);
    let mut written = first.written();
    prune(&mut written);
    let kept: Vec<String> = written.status.nodes.values().map(|node| node.name.clone()).collect();
    let mut world = World::new(written);
    for pod in first.pods.values().filter(|pod| kept.iter().any(|name| name == node_name(pod))) {
        world.execution.apply(Event::Pod(std::sync::Arc::new(pod.clone())), world.now);
    }
    assert_eq!(world.drive(&mut good, false), WorkflowPhase::Succeeded);
    let mut again: Vec<&str> = world.pods.values().map(node_name).collect();
    again.sort_unstable();
    assert_eq!(again, ["wf.e.first", "wf.e.second", "wf.l(1:y).second", "wf.z"]);
    assert_eq!(children(&world, ".l").len(), 2);
    let written = world.written();
    assert!(written.status.nodes.values().all(|node| node.phase.is_fulfilled()));
}

#[test]
fn text_in_values_is_never_taken_for_tags() {
    let mut workflow = dag("- {name: a, template: pod, arguments: {parameters: [{name: x, value: '{{workflow.parameters.components-1}}'}]}}
- {name: b, template: pod, arguments: {parameters: [{name: x, value: '{{workflow.parameters.p}}'}]}}");
    let text = "{{workflow.name}} {{$.inputs.parameters['x']}} {{tasks.none}} \"\n";
    workflow.spec.arguments.parameters.push(kfp_core::argo::Parameter::new("components-1", text));
    let world = run(workflow, &[]);
    let value = |task: &str| args(world.pods.values().find(|pod| node_name(pod) == task).unwrap())[1].to_owned();
    assert_eq!(value("wf.a"), text);
    assert_eq!(value("wf.b"), "v-wf");
}

#[test]
fn pods_carry_what_the_template_and_workflow_say() {
    let mut workflow = dag("- {name: a, template: pod, arguments: {parameters: [{name: x, value: key}]}}");
    workflow.spec.pod_metadata = serde_json::from_value(json!({"labels": {"l": "workflow", "m": "1"}})).unwrap();
    workflow.spec.security_context = Some(json!({"runAsNonRoot": true}));
    workflow.spec.service_account_name = Some("runner".into());
    let template = &mut workflow.spec.templates[1];
    template.metadata =
        serde_json::from_value(json!({"labels": {"l": "template", "{{inputs.parameters.x}}": "v"}})).unwrap();
    template.init_containers = vec![json!({"name": "init", "image": "i", "mirrorVolumeMounts": true})];
    template.container.as_mut().unwrap()["volumeMounts"] = json!([{"name": "d", "mountPath": "/d"}]);
    template.volumes = vec![json!({"name": "d"})];
    template.pod_spec_patch = Some(r#"{"containers":[{"name":"main","image":"patched"}]}"#.into());
    let world = run(workflow, &[]);
    let pod = world.pods.values().next().unwrap();
    let labels = &pod["metadata"]["labels"];
    assert_eq!((&labels["l"], &labels["m"], &labels["key"]), (&json!("template"), &json!("1"), &json!("v")));
    assert_eq!(labels[names::LABEL_WORKFLOW], "wf");
    let spec = &pod["spec"];
    assert_eq!(spec["volumes"], json!([{"name": "d", "emptyDir": {}}]));
    assert_eq!(spec["initContainers"][0]["volumeMounts"], json!([{"name": "d", "mountPath": "/d"}]));
    assert_eq!((&spec["containers"][0]["name"], &spec["containers"][0]["image"]), (&json!("main"), &json!("patched")));
    assert_eq!((&spec["serviceAccountName"], &spec["restartPolicy"]), (&json!("runner"), &json!("Never")));
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
}

#[test]
fn work_per_event_does_not_grow_with_the_square() {
    // Counted in nodes written, not in time: each pod event may touch its own branch only.
    let mut world = World::new(dag("- {name: l, template: inner, withSequence: {count: '500'}}"));
    world.settle();
    let mut most = 0;
    while let Some(pod) = world.open.pop_front() {
        let end = good(&world.pods[&pod]);
        world.end_pod(&pod, end);
        for effect in world.execution.run(world.now) {
            if let Effect::CreatePod { pod, .. } = effect {
                let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
                world.open.push_back(name.clone());
                world.pods.insert(name, pod);
            }
        }
        most = most.max(world.execution.take_changes().map_or(0, |changes| changes.nodes.len()));
    }
    assert_eq!(world.execution.phase(), WorkflowPhase::Succeeded);
    assert!(most <= 5, "{most} nodes written for one event");
}
