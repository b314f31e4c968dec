//! Scripts, artifacts, results, expressions, hooks and suspend inputs of Workflows that people write by hand.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

mod common;

use chrono::Duration;
use common::{End, World, node_name, workflow};
use kfp_core::argo::{NodePhase, NodeType, Workflow, WorkflowPhase, names};
use kfp_local_engine::Settings;
use kfp_local_engine::execution::{Effect, Event, Execution};
use serde_json::{Value, json};

fn contract(world: &World, node: &str) -> Value {
    let pod = world.pods.values().find(|pod| node_name(pod) == node).unwrap_or_else(|| panic!("no pod of {node}"));
    serde_json::from_str(pod["metadata"]["annotations"][names::ANNOTATION_TEMPLATE].as_str().unwrap()).unwrap()
}

fn main_container<'w>(world: &'w World, node: &str) -> &'w Value {
    &world.pods.values().find(|pod| node_name(pod) == node).unwrap()["spec"]["containers"][0]
}

fn wanted(world: &World, node: &str) -> Value {
    let env = main_container(world, node)["env"].as_array().unwrap();
    env.iter().find(|var| var["name"] == "ARGO_INCLUDE_SCRIPT_OUTPUT").unwrap()["value"].clone()
}

/// Ends pods with the outputs of the first node name that is part of theirs.
fn drive(world: &mut World, ends: &[(&str, Value)]) -> WorkflowPhase {
    world.drive(
        &mut |pod| {
            let end = ends.iter().find(|(part, _)| node_name(pod).contains(part)).map(|(_, end)| end.clone());
            match end {
                Some(code) if code.is_number() => End::Bad(code.as_i64().unwrap()),
                end => End::Outputs(end.unwrap_or_else(|| json!({"exitCode": "0"}))),
            }
        },
        false,
    )
}

#[test]
fn scripts_hand_on_their_output() {
    let mut world = World::new(workflow(
        r#"
metadata: {name: wf}
spec:
  entrypoint: main
  templates:
  - name: main
    steps:
    - - {name: flip-coin, template: flip}
    - - {name: heads, template: say, when: "{{steps.flip-coin.outputs.result}} == heads", arguments: {parameters: [{name: x, value: "{{steps.flip-coin.outputs.result}}"}]}}
      - {name: tails, template: say, when: "{{steps.flip-coin.outputs.result}} == tails"}
  - name: flip
    inputs: {parameters: [{name: n, default: "2"}]}
    script: {image: python, command: [python, -u], source: "print('{{inputs.parameters.n}}', '{{$.x}}')"}
  - name: say
    inputs: {parameters: [{name: x, default: none}]}
    container: {image: i, command: [echo, "{{inputs.parameters.x}}"]}
"#,
    ));
    let phase = drive(&mut world, &[("flip-coin", json!({"result": "heads", "exitCode": "0"}))]);
    assert_eq!(phase, WorkflowPhase::Succeeded, "{}", world.written().status.message);
    assert_eq!(world.phase("[1].tails"), NodePhase::Skipped);
    let flip = "wf[0].flip-coin";
    assert_eq!(main_container(&world, flip)["command"], json!(["python", "-u", "/argo/staging/script"]));
    assert!(main_container(&world, flip)["source"].is_null());
    assert_eq!(contract(&world, flip)["script"], json!({"source": "print('2', '{{$.x}}')"}));
    assert_eq!((wanted(&world, flip), wanted(&world, "wf[1].heads")), (json!("true"), json!("false")));
    assert_eq!(main_container(&world, "wf[1].heads")["command"], json!(["echo", "heads"]));
    assert_eq!(world.node("[0].flip-coin").outputs.as_ref().unwrap().result.as_deref(), Some("heads"));
}

fn artifacts() -> Workflow {
    workflow(
        r#"
metadata: {name: wf}
spec:
  entrypoint: main
  templates:
  - name: main
    dag:
      tasks:
      - {name: make, template: make}
      - {name: use, template: use, dependencies: [make], arguments: {artifacts: [{name: in, from: "{{tasks.make.outputs.artifacts.out}}"}]}}
      - {name: pick, template: use, dependencies: [use], arguments: {artifacts: [{name: in, fromExpression: "tasks.make.outputs.result == 'x' ? tasks.make.outputs.artifacts.out : tasks.make.outputs.artifacts.other"}]}}
      - {name: global, template: use, dependencies: [use], arguments: {artifacts: [{name: in, from: "{{workflow.outputs.artifacts.shared}}"}]}}
    outputs: {artifacts: [{name: all, from: "{{tasks.make.outputs.artifacts.out}}"}]}
  - name: make
    outputs: {artifacts: [{name: out, path: /tmp/out}, {name: other, path: /tmp/other, archive: {none: {}}, globalName: shared}]}
    container: {image: i, command: [make]}
  - name: use
    inputs: {artifacts: [{name: in, path: /tmp/in, mode: 420}, {name: text, path: /tmp/text, raw: {data: "of {{workflow.name}}"}}, {name: none, path: /n, optional: true}]}
    container: {image: i, command: [cat, "{{inputs.artifacts.in.path}}"]}
"#,
    )
}

const MADE: &str = r#"{"exitCode": "0", "result": "x", "artifacts": [
    {"name": "out", "path": "/tmp/out", "s3": {"key": "k/out.tgz"}},
    {"name": "other", "path": "/tmp/other", "archive": {"none": {}}, "s3": {"key": "k/other"}, "globalName": "shared"}]}"#;

#[test]
fn artifacts_go_from_task_to_task() {
    let mut world = World::new(artifacts());
    let phase = drive(&mut world, &[(".make", serde_json::from_str(MADE).unwrap())]);
    assert_eq!(phase, WorkflowPhase::Succeeded, "{}", world.written().status.message);
    let make = contract(&world, "wf.make");
    let pod = world.pods.values().find(|pod| node_name(pod) == "wf.make").unwrap();
    let key = format!("private-artifacts/kubeflow/wf/2026/01/02/{}", pod["metadata"]["name"].as_str().unwrap());
    assert_eq!(make["archiveLocation"], json!({"archiveLogs": false, "s3": {"bucket": "mlpipeline", "key": key}}));
    let text = json!({"name": "text", "path": "/tmp/text", "raw": {"data": "of wf"}});
    assert_eq!(
        contract(&world, "wf.use")["inputs"]["artifacts"],
        json!([{"name": "in", "path": "/tmp/in", "mode": 420, "s3": {"key": "k/out.tgz"}}, text]),
    );
    assert_eq!(contract(&world, "wf.pick")["inputs"]["artifacts"][0]["s3"]["key"], "k/out.tgz");
    let global = &contract(&world, "wf.global")["inputs"]["artifacts"][0];
    assert_eq!((&global["s3"]["key"], &global["archive"]), (&json!("k/other"), &json!({"none": {}})));
    assert_eq!(main_container(&world, "wf.use")["command"], json!(["cat", "/tmp/in"]));
    let written = world.written();
    assert_eq!(written.status.nodes["wf"].outputs.as_ref().unwrap().artifacts[0].name, "all");
    assert_eq!(written.status.outputs.as_ref().unwrap().artifacts[0].name, "shared");
    assert_eq!(written.status.artifact_repository_ref.unwrap()["artifactRepository"]["s3"]["bucket"], "mlpipeline");
}

#[test]
fn trouble_of_the_platform_is_an_error() {
    let mut world = World::new(artifacts());
    world.settle();
    let pod = world.open.pop_front().unwrap();
    let told = json!({"exitCode": "0", "message": "wait: Error (exit code 64): artifact out failed to save: no room"});
    let ended = json!([{"name": "main", "state": {"terminated": {"exitCode": 0}}}]);
    world.pod(
        &pod,
        json!({"phase": "Failed", "message": told["message"], "containerStatuses": ended}),
        Some(told.clone()),
    );
    world.settle();
    assert_eq!(world.phase(".make"), NodePhase::Error);
    assert_eq!(world.node(".make").message, told["message"]);
}

#[test]
fn expressions_compute_values() {
    let mut world = World::new(workflow(
        r#"
metadata: {name: wf}
spec:
  entrypoint: main
  arguments: {parameters: [{name: n, value: "3"}]}
  templates:
  - name: main
    inputs: {parameters: [{name: n}]}
    dag:
      tasks:
      - {name: a, template: pod, arguments: {parameters: [{name: x, value: "{{=asInt(inputs.parameters.n) * 2}} {{=sprig.upper('y')}}"}]}}
      - {name: b, template: pod, dependencies: [a], when: "{{=tasks.a.outputs.result == '6'}}", arguments: {parameters: [{name: x, valueFrom: {expression: "tasks['a'].outputs.result + '!'"}}]}}
      - {name: c, template: pod, dependencies: [b], when: "{{=tasks.a.outputs.result != '6'}}"}
    outputs: {parameters: [{name: o, valueFrom: {expression: "tasks.c.outputs.result ?? 'nothing of c'"}}]}
  - name: pod
    inputs: {parameters: [{name: x, default: none}]}
    container: {image: i, command: [echo, "{{inputs.parameters.x}}", "{{=unknown.thing}}", "{{= not an expression"]}
"#,
    ));
    let phase = drive(&mut world, &[(".a", json!({"result": "6"})), (".b", json!({"result": "7"}))]);
    assert_eq!(phase, WorkflowPhase::Succeeded, "{}", world.written().status.message);
    let command = |node: &str| main_container(&world, node)["command"].clone();
    assert_eq!(command("wf.a"), json!(["echo", "6 Y", "{{=unknown.thing}}", "{{= not an expression"]));
    assert_eq!(command("wf.b")[1], "6!");
    assert_eq!(world.phase(".c"), NodePhase::Skipped);
    assert_eq!(world.node("").outputs.as_ref().unwrap().parameter("o"), Some("nothing of c"));
}

fn retrying(expression: &str) -> World {
    World::new(workflow(&format!(
        r#"
metadata: {{name: wf}}
spec:
  entrypoint: main
  templates:
  - name: main
    retryStrategy: {{limit: 5, expression: "{expression}"}}
    container: {{image: i, command: [run]}}
"#
    )))
}

#[test]
fn retry_expressions_decide_after_each_attempt() {
    let mut world = retrying("asInt(lastRetry.exitCode) == 2 && asInt(retries) < 2");
    assert_eq!(drive(&mut world, &[("(", json!(2))]), WorkflowPhase::Failed);
    assert_eq!((world.has("(2)"), world.has("(3)")), (true, false));
    assert_eq!(world.node("").message, "retryStrategy.expression evaluated to false");
    let mut world = retrying("lastRetry.status == 'Error'");
    assert_eq!(drive(&mut world, &[("(0)", json!(1))]), WorkflowPhase::Failed);
    assert!(!world.has("(1)"));
}

fn hooked() -> Workflow {
    workflow(
        r#"
metadata: {name: wf}
spec:
  entrypoint: main
  hooks:
    begun: {template: note, expression: 'workflow.status == "Running"'}
    failed: {template: note, expression: 'workflow.status == "Failed"'}
    exit: {template: note, expression: 'workflow.status != "Failed"'}
  templates:
  - name: main
    dag:
      tasks:
      - name: a
        template: pod
        hooks:
          running: {template: note, expression: 'tasks.a.status == "Running"'}
          good: {template: note, expression: 'tasks["a"].status == "Succeeded"', arguments: {parameters: [{name: x, value: "{{tasks.a.outputs.result}}"}]}}
          never: {template: note, expression: 'tasks.a.status == "Failed"'}
          exit: {template: note, expression: 'tasks.a.outputs.result == "no"'}
      - {name: b, template: pod, depends: a}
  - name: pod
    container: {image: i, command: [run]}
  - name: note
    inputs: {parameters: [{name: x, default: none}]}
    container: {image: i, command: [note, "{{inputs.parameters.x}}"]}
"#,
    )
}

#[test]
fn hooks_run_when_their_expression_is_true() {
    let mut world = World::new(hooked());
    world.settle();
    assert!(world.has(".hooks.begun") && !world.has(".a.hooks.running"));
    let pod = world.pods.keys().find(|name| node_name(&world.pods[*name]) == "wf.a").unwrap().clone();
    world.pod(&pod, json!({"phase": "Running"}), None);
    world.settle();
    assert!(world.has(".a.hooks.running"), "the hook does not wait for the end of its task");
    assert_eq!(world.node(".a.hooks.running").boundary_id, "wf");
    assert!(world.node(".a.hooks.running").node_flag.unwrap().hooked);
    let phase = drive(&mut world, &[(".a", json!({"result": "out"}))]);
    assert_eq!(phase, WorkflowPhase::Succeeded, "{}", world.written().status.message);
    assert!(world.has(".a.hooks.good") && world.has(".onExit"));
    assert!(!world.has(".a.hooks.never") && !world.has(".a.onExit") && !world.has(".hooks.failed"));
    assert_eq!(main_container(&world, "wf.a.hooks.good")["command"], json!(["note", "out"]));
    let children = &world.node(".a").children;
    assert!(children.contains(&world.node(".a.hooks.good").id), "{children:?}");

    // What a task waits for includes the hooks of those it needs.
    let mut world = World::new(hooked());
    let mut order = Vec::new();
    world.drive(
        &mut |pod| {
            order.push(node_name(pod).to_owned());
            End::Outputs(json!({"result": "out"}))
        },
        true,
    );
    let place = |name: &str| order.iter().position(|node| node == name).unwrap();
    assert!(place("wf.a.hooks.good") < place("wf.b"), "{order:?}");
}

#[test]
fn suspended_nodes_take_what_somebody_supplies() {
    let text = |duration: &str| {
        workflow(&format!(
            r#"
metadata: {{name: wf}}
spec:
  entrypoint: main
  templates:
  - name: main
    steps:
    - - {{name: ask, template: ask}}
    - - {{name: use, template: use, arguments: {{parameters: [{{name: x, value: "{{{{steps.ask.outputs.parameters.answer}}}}"}}]}}}}
  - name: ask
    suspend: {{ {duration} }}
    outputs: {{parameters: [{{name: answer, valueFrom: {{supplied: {{}}, default: maybe}}}}]}}
  - name: use
    inputs: {{parameters: [{{name: x}}]}}
    container: {{image: i, command: [echo, "{{{{inputs.parameters.x}}}}"]}}
"#
        ))
    };
    let mut world = World::new(text(""));
    world.settle();
    let mut edited = world.written();
    let id = world.node("[0].ask").id.clone();
    assert_eq!(world.node("[0].ask").kind, NodeType::Suspend);
    let node = edited.status.nodes.get_mut(&id).unwrap();
    node.outputs.as_mut().unwrap().parameters[0].value = Some("yes".to_owned());
    node.phase = NodePhase::Succeeded;
    world.execution.apply(Event::Edited(Box::new(edited)), world.now);
    assert_eq!(drive(&mut world, &[]), WorkflowPhase::Succeeded);
    assert_eq!(main_container(&world, "wf[1].use")["command"], json!(["echo", "yes"]));

    let mut world = World::new(text("duration: 30s"));
    assert_eq!(drive(&mut world, &[]), WorkflowPhase::Succeeded);
    assert_eq!(main_container(&world, "wf[1].use")["command"], json!(["echo", "maybe"]));
    assert!(world.now >= common::start() + Duration::seconds(30));
}

#[test]
fn resource_templates_become_pods_that_say_what_to_do() {
    let mut world = World::new(workflow(
        r#"
metadata: {name: wf}
spec:
  entrypoint: main
  templates:
  - name: main
    outputs: {parameters: [{name: size, valueFrom: {jsonPath: "{.status.capacity.storage}"}}]}
    resource: {action: create, successCondition: "status.phase = {{workflow.name}}", manifest: "kind: X\nname: {{workflow.name}}-x"}
"#,
    ));
    assert_eq!(
        drive(&mut world, &[("wf", json!({"parameters": [{"name": "size", "value": "1Gi"}]}))]),
        WorkflowPhase::Succeeded
    );
    assert_eq!(
        contract(&world, "wf")["resource"],
        json!({"action": "create", "successCondition": "status.phase = wf", "manifest": "kind: X\nname: wf-x"})
    );
    assert_eq!(main_container(&world, "wf")["command"], json!(["argoexec", "resource", "create"]));
    assert_eq!(world.node("").outputs.as_ref().unwrap().parameter("size"), Some("1Gi"));
}

#[test]
fn settings_hold_for_all_workflows() {
    let settings = Settings {
        artifact_repository: json!({"archiveLogs": true, "s3": {"bucket": "own", "keyPrefix": "logs"}}),
        workflow_defaults: json!({"spec": {"templateDefaults": {"retryStrategy": {"limit": "1"}}}}),
    };
    let mut execution = Execution::with(artifacts(), &settings, common::start());
    let effects = execution.run(common::start());
    let Some(Effect::CreatePod { pod, .. }) = effects.first() else { panic!("{effects:?}") };
    assert_eq!(node_name(pod), "wf(0).make(0)");
    let contract = pod["metadata"]["annotations"][names::ANNOTATION_TEMPLATE].as_str().unwrap();
    let contract: Value = serde_json::from_str(contract).unwrap();
    assert_eq!(contract["archiveLocation"], json!({"archiveLogs": true, "s3": {"bucket": "own", "key": "logs"}}));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let refused = |members: Value| {
        let mut template = json!({"name": "main", "container": {"image": "i", "command": ["x"]}});
        template.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
        let object = json!({"metadata": {"name": "wf"}, "spec": {"entrypoint": "main", "templates": [template]}});
        let mut execution = Execution::new(serde_json::from_value(object).unwrap(), common::start());
        execution.run(common::start());
        assert_eq!(execution.phase(), WorkflowPhase::Failed);
        execution.take_changes().unwrap().status["message"].as_str().unwrap().to_owned()
    };
    for (members, part) in [
        (json!({"daemon": true}), "'daemon'"),
        (json!({"synchronization": {"mutex": {"name": "m"}}}), "'synchronization'"),
        (json!({"timeout": "5s"}), "'timeout'"),
        (
            json!({"inputs": {"artifacts": [{"name": "a", "path": "/a", "git": {"repo": "r"}}]}}),
            "inputs.artifacts.a.git",
        ),
        (
            json!({"outputs": {"parameters": [{"name": "a", "valueFrom": {"jqFilter": "."}}]}}),
            "outputs.parameters.a.valueFrom.jqFilter",
        ),
        (json!({"retryStrategy": {"expression": "sprig.env('X')"}}), "sprig.env is not supported"),
        (json!({"retryStrategy": {"expression": "1 +"}}), "cannot be read"),
        (json!({"container": null, "resource": {"action": "explode"}}), "not 'explode'"),
        (
            json!({"container": null, "steps": [[{"name": "s", "template": "main", "hooks": {"h": {"template": "main"}}}]]}),
            "hook 'h': Expression required",
        ),
        (
            json!({"container": null, "steps": [[{"name": "s", "template": "main", "when": "{{=(}}"}]]}),
            "cannot be read",
        ),
    ] {
        let message = refused(members);
        assert!(message.starts_with("invalid spec: ") && message.contains(part), "{message} / {part}");
    }
}

#[test]
fn what_has_no_effect_is_said() {
    let mut workflow = artifacts();
    workflow.spec.templates[1].extra.insert("memoize".into(), json!({"key": "k"}));
    workflow.spec.extra.insert("metrics".into(), json!({}));
    let mut world = World::new(workflow);
    world.settle();
    let conditions = world.written().status.conditions;
    let warning = conditions.iter().find(|condition| condition.kind == "SpecWarning").unwrap();
    assert_eq!(warning.message, "without effect in this engine: spec.metrics, templates.make.memoize");
}
