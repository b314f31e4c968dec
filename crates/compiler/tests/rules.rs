//! The rules of the mapping on small pipelines of our own: arguments, hashes, templates, errors, settings, edits.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use kfp_compiler::hash::{container_hash, hash_json};
use kfp_compiler::{
    Error, Job, Options, Package, RunRequest, compile, compile_job, compile_recurring_run, compile_run, inputs,
};
use kfp_core::ir::{self, Unknown};
use serde_json::{Map, Value, json};

fn package(text: &str) -> Package {
    Package::from_text(text.as_bytes()).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn compiled(text: &str) -> Value {
    compile(&package(text), &Options::default()).unwrap_or_else(|e| panic!("{e}: {text}"))
}

fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|item| item["name"] == name).unwrap_or_else(|| panic!("no {name} in {list}"))
}

fn template<'a>(workflow: &'a Value, name: &str) -> &'a Value {
    named(&workflow["spec"]["templates"], name)
}

fn task<'a>(workflow: &'a Value, template_name: &str, name: &str) -> &'a Value {
    named(&template(workflow, template_name)["dag"]["tasks"], name)
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap()).collect()
}

fn argument<'a>(user: &'a Value, name: &str) -> &'a str {
    named(&user["arguments"]["parameters"], name)["value"].as_str().unwrap()
}

const TWO_STEPS: &str = r#"
schemaVersion: 2.1.0
pipelineInfo: {name: two-steps}
deploymentSpec:
  executors:
    exec-a: {container: {image: alpine, command: [echo], args: ["x<y"]}}
    exec-b: {container: {image: alpine, command: [cat], args: ["{{$.inputs.parameters['v']}}"]}}
components:
  comp-a: {executorLabel: exec-a, outputDefinitions: {parameters: {out: {parameterType: STRING}}}}
  comp-b: {executorLabel: exec-b, inputDefinitions: {parameters: {v: {parameterType: STRING}}}}
root:
  inputDefinitions: {parameters: {n: {parameterType: NUMBER_INTEGER, defaultValue: 3.0}, o: {parameterType: STRING, isOptional: true}}}
  dag:
    tasks:
      a: {componentRef: {name: comp-a}, taskInfo: {name: a}, cachingOptions: {enableCache: true}}
      b: {componentRef: {name: comp-b}, taskInfo: {name: b}, inputs: {parameters: {v: {taskOutputParameter: {producerTask: a, outputParameterKey: out}}}}}
"#;

const LOOP: &str = r#"
schemaVersion: 2.1.0
pipelineInfo: {name: loop}
deploymentSpec: {executors: {exec-p: {container: {image: alpine, command: [echo]}}}}
components:
  comp-p: {executorLabel: exec-p, inputDefinitions: {parameters: {i: {parameterType: STRING}}}}
  comp-for-loop-1:
    inputDefinitions: {parameters: {i: {parameterType: STRING}}}
    dag: {tasks: {p: {componentRef: {name: comp-p}, taskInfo: {name: p}, inputs: {parameters: {i: {componentInputParameter: i}}}}}}
root:
  dag:
    tasks:
      for-loop-1:
        componentRef: {name: comp-for-loop-1}
        taskInfo: {name: for-loop-1}
        iteratorPolicy: {parallelismLimit: 2}
        parameterIterator: {itemInput: i, items: {raw: '["a","b"]'}}
"#;

const GUARD: &str = r#"
schemaVersion: 2.1.0
pipelineInfo: {name: guard}
deploymentSpec: {executors: {exec-w: {container: {image: alpine, command: [work]}}, exec-c: {container: {image: alpine, command: [clean]}}}}
components:
  comp-w: {executorLabel: exec-w}
  comp-c: {executorLabel: exec-c}
  comp-exit-handler-1:
    inputDefinitions: {parameters: {flag: {parameterType: STRING}}}
    dag:
      tasks:
        w:
          componentRef: {name: comp-w}
          taskInfo: {name: w}
          retryPolicy: {maxRetryCount: 2, backoffDuration: 30s, backoffFactor: 1.5}
          triggerPolicy: {condition: "inputs.parameter_values['flag'] == 'y'"}
root:
  inputDefinitions: {parameters: {flag: {parameterType: STRING}}}
  dag:
    tasks:
      exit-handler-1: {componentRef: {name: comp-exit-handler-1}, taskInfo: {name: exit-handler-1}, inputs: {parameters: {flag: {componentInputParameter: flag}}}}
      c: {componentRef: {name: comp-c}, taskInfo: {name: c}, dependentTasks: [exit-handler-1], triggerPolicy: {strategy: ALL_UPSTREAM_TASKS_COMPLETED}}
"#;

#[test]
fn containers_hash_as_upstream() {
    for (container, text, hash) in [
        (json!({}), "{}", "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"),
        (
            json!({"args": ["hello world"], "command": ["echo"], "image": "registry.access.redhat.com/ubi9/python-311:latest"}),
            r#"{"image":"registry.access.redhat.com/ubi9/python-311:latest","command":["echo"],"args":["hello world"]}"#,
            "fd2b3a3d7effc63b08efb8931fd4ce26f2a7f37c1c384e37958e43cfe244499a",
        ),
        (
            json!({"image": "alpine", "command": ["sh", "-c"], "args": ["a<b && c>d \"q\"\n"]}),
            r#"{"image":"alpine","command":["sh","-c"],"args":["a\u003cb \u0026\u0026 c\u003ed \"q\"\n"]}"#,
            "ab99adb0fdb2b820fb7fe3d68e3063b5e4a138bdb3e907823a049a59e89b919d",
        ),
        (
            json!({"image": "alpine", "env": [{"name": "K", "value": "V"}, {"name": "E"}], "resources": {"cpuLimit": 1, "memoryLimit": 0.5, "resourceCpuLimit": "1", "accelerator": {"type": "nvidia.com/gpu", "count": "1"}}}),
            r#"{"image":"alpine","resources":{"cpu_limit":1,"memory_limit":0.5,"resource_cpu_limit":"1","accelerator":{"type":"nvidia.com/gpu","count":1}},"env":[{"name":"K","value":"V"},{"name":"E"}]}"#,
            "6f22ba83f71e248116c701005a59813a249d65d3720364a3a2695da4a3a12bb7",
        ),
    ] {
        let container = ir::decode(&container, Unknown::Reject).unwrap();
        assert_eq!(hash_json(&container), text);
        assert_eq!(container_hash(&container), hash);
    }
}

#[test]
fn two_steps_compile_as_worked_out() {
    let workflow = compiled(TWO_STEPS);
    let (a, b) = (
        "c6acf437c840877832a95cc2ea58c20ae1e2fcbf5145c72e57da8f6db4b3cc37",
        "a41fb7415682b5907e96143a35b272967a1deead131b938e8b17c3591175adef",
    );
    let parameters = &workflow["spec"]["arguments"]["parameters"];
    let want = [
        format!("components-{a}"),
        format!("implementations-{a}"),
        format!("components-{b}"),
        format!("implementations-{b}"),
        "components-root".into(),
    ];
    assert_eq!(names(parameters), want);
    assert_eq!(
        parameters[0]["value"],
        r#"{"executorLabel":"exec-a","outputDefinitions":{"parameters":{"out":{"parameterType":"STRING"}}}}"#
    );
    assert_eq!(parameters[1]["value"], r#"{"args":["x\u003cy"],"command":["echo"],"image":"alpine"}"#);
    let root = parameters[4]["value"].as_str().unwrap();
    assert!(root.contains(r#""b":{"componentRef":{"name":"comp-b"},"dependentTasks":["a"],"#), "{root}");
    assert!(root.ends_with(r#""inputDefinitions":{"parameters":{"n":{"defaultValue":3,"parameterType":"NUMBER_INTEGER"},"o":{"isOptional":true,"parameterType":"STRING"}}}}"#), "{root}");
    assert_eq!(
        names(&workflow["spec"]["templates"]),
        [
            "system-container-driver",
            "system-container-executor",
            "system-container-impl",
            "root",
            "system-dag-driver",
            "entrypoint"
        ]
    );
    assert_eq!(names(&template(&workflow, "root")["dag"]["tasks"]), ["a-driver", "a", "b-driver", "b"]);
    let driver = task(&workflow, "root", "a-driver");
    assert_eq!(
        names(&driver["arguments"]["parameters"]),
        ["component", "task", "container", "task-name", "parent-dag-id"]
    );
    assert_eq!(
        argument(driver, "task"),
        r#"{"cachingOptions":{"enableCache":true},"componentRef":{"name":"comp-a"},"taskInfo":{"name":"a"}}"#
    );
    assert_eq!(driver.get("depends"), None);
    assert_eq!(task(&workflow, "root", "b-driver")["depends"], "a.Succeeded");
    let cached = named(&task(&workflow, "root", "a")["arguments"]["parameters"], "cached-decision");
    assert_eq!(cached["default"], "false");
    assert_eq!(
        argument(task(&workflow, "entrypoint", "root-driver"), "runtime-config"),
        r#"{"parameterValues":{"n":3,"o":null}}"#
    );
}

#[test]
fn loops_compile_as_worked_out() {
    let workflow = compiled(LOOP);
    assert_eq!(
        names(&workflow["spec"]["templates"]),
        [
            "system-container-driver",
            "system-container-executor",
            "system-container-impl",
            "comp-for-loop-1",
            "system-dag-driver",
            "comp-for-loop-1-iteration",
            "comp-for-loop-1-for-loop-1-iterator",
            "root",
            "entrypoint"
        ]
    );
    assert_eq!(template(&workflow, "comp-for-loop-1-for-loop-1-iterator")["parallelism"], 2);
    let item = task(&workflow, "comp-for-loop-1-iteration", "iteration-item-driver");
    assert_eq!(
        names(&item["arguments"]["parameters"]),
        ["component", "iteration-index", "parent-dag-id", "task", "task-name"]
    );
    assert_eq!(argument(item, "task-name"), "for-loop-1");
    let iterations = task(&workflow, "comp-for-loop-1-for-loop-1-iterator", "iteration-iterations");
    assert_eq!(iterations["withSequence"]["count"], "{{tasks.iteration-driver.outputs.parameters.iteration-count}}");
    assert_eq!(argument(task(&workflow, "entrypoint", "root-driver"), "runtime-config"), "{}");
}

#[test]
fn exit_handlers_conditions_and_retries_compile_as_worked_out() {
    let workflow = compiled(GUARD);
    assert_eq!(
        names(&workflow["spec"]["templates"]),
        [
            "system-container-driver",
            "retry-system-container-executor",
            "retry-system-container-impl",
            "comp-exit-handler-1",
            "system-container-executor",
            "system-container-impl",
            "exit-hook-root-c",
            "system-dag-driver",
            "root",
            "entrypoint"
        ]
    );
    let w = task(&workflow, "comp-exit-handler-1", "w");
    assert_eq!(w["when"], "{{tasks.w-driver.outputs.parameters.condition}} != false");
    assert_eq!(
        names(&w["arguments"]["parameters"]),
        ["pod-spec-patch", "cached-decision", "retry-max-count", "retry-backoff-duration", "retry-backoff-factor"]
    );
    assert_eq!((argument(w, "retry-backoff-duration"), argument(w, "retry-backoff-factor")), ("30", "1.5"));
    assert_eq!(task(&workflow, "exit-hook-root-c", "c-driver").get("depends"), None);
    assert_eq!(names(&template(&workflow, "root")["dag"]["tasks"]), ["exit-handler-1-driver", "exit-handler-1"]);
    let hook = &task(&workflow, "root", "exit-handler-1")["hooks"]["exit"];
    assert_eq!(hook["template"], "exit-hook-root-c");
    assert_eq!(argument(hook, "parent-dag-id"), "{{inputs.parameters.parent-dag-id}}");
}

#[test]
fn backoff_factors_print_as_in_go() {
    for (factor, want) in [
        (0.0, "0"),
        (2.0, "2"),
        (1e6, "1e+06"),
        (1234567.0, "1.234567e+06"),
        (999_999.0, "999999"),
        (1e-5, "1e-05"),
        (1e-4, "0.0001"),
    ] {
        let workflow = compiled(&GUARD.replace("backoffFactor: 1.5", &format!("backoffFactor: {factor}")));
        assert_eq!(argument(task(&workflow, "comp-exit-handler-1", "w"), "retry-backoff-factor"), want);
    }
}

/// A pipeline with the given components and root tasks beside one container and one importer.
fn small(components: &str, tasks: &str) -> String {
    format!(
        "schemaVersion: 2.1.0\npipelineInfo: {{name: p}}\ndeploymentSpec:\n  executors:\n    e: {{container: {{image: i}}}}\n    im: {{importer: {{artifactUri: {{constant: u}}}}}}\n    r: {{resolver: {{}}}}\n    none: {{}}\n    pvc: {{container: {{image: argostub/createpvc}}}}\n\
         components:\n  c: {{executorLabel: e}}\n  imp: {{executorLabel: im}}\n  claim: {{executorLabel: pvc}}\n{components}root:\n  dag:\n    tasks:\n{tasks}"
    )
}

#[test]
fn mistakes_are_named() {
    let t = |text: &str| format!("      t: {text}\n");
    for (components, tasks, want) in [
        ("", t("{taskInfo: {name: shown}}"), r#"error processing component name="root": component ref name is empty for task name="shown""#),
        ("", t("{componentRef: {name: gone}}"), r#"error processing component name="root": task "t": cannot find component ref name="gone""#),
        ("", t("{componentRef: {name: root}}"), "the component name \"root\" is reserved"),
        ("  x: {executorLabel: gone}\n", t("{componentRef: {name: x}}"), r#"error processing component name="x": executor(label="gone") not found in deployment config"#),
        ("  x: {executorLabel: r}\n", t("{componentRef: {name: x}}"), r#"executor(label="r"): non-container and non-importer executor not implemented"#),
        ("  x: {executorLabel: none}\n", t("{componentRef: {name: x}}"), r#"executor(label="none"): non-container and non-importer executor not implemented"#),
        ("  x: {}\n", t("{componentRef: {name: x}}"), r#"error processing component name="x": unknown component implementation: {}"#),
        (
            "",
            t("{componentRef: {name: c}, inputs: {parameters: {a: {taskOutputParameter: {producerTask: gone}}}}}"),
            r#"compiling DAG "root": task "t": failed to add implicit deps: unknown producer task "gone" in DAG"#,
        ),
        ("", t("{componentRef: {name: c}, artifactIterator: {itemInput: a}}"), r#"compiling DAG "root": task "t": artifact iterator not implemented yet"#),
        ("", t("{componentRef: {name: c}, triggerPolicy: {strategy: ALL_UPSTREAM_TASKS_COMPLETED}}"), "DAG root must contain one or more non-exit tasks"),
        ("", t("{componentRef: {name: imp}, triggerPolicy: {condition: 'true'}}"), r#"compiling DAG "root": compiling task "t": triggerPolicy.condition on importer task is not supported"#),
        ("", t("{componentRef: {name: c}, dependentTasks: [gone]}"), r#"task "t" depends on unknown task "gone""#),
        ("", t("{componentRef: {name: c}, dependentTasks: [t]}"), "in a cycle: t -> t"),
        (
            "",
            "      a: {componentRef: {name: c}, dependentTasks: [b]}\n      b: {componentRef: {name: c}, dependentTasks: [a]}\n".into(),
            "tasks depend on each other in a cycle: a -> b -> a",
        ),
        ("  x: {dag: {tasks: {s: {componentRef: {name: x}}}}}\n", t("{componentRef: {name: x}}"), "component uses itself: root -> x -> x"),
        (
            "  x: {dag: {tasks: {s: {componentRef: {name: y}}}}}\n  y: {dag: {tasks: {s: {componentRef: {name: x}}}}}\n",
            t("{componentRef: {name: x}}"),
            "component uses itself: root -> x -> y -> x",
        ),
        (
            "",
            "      a: {componentRef: {name: c}}\n      a-driver: {componentRef: {name: c}}\n".into(),
            r#"two tasks named "a-driver""#,
        ),
        (
            "",
            "      a: {componentRef: {name: c}}\n      x: {componentRef: {name: c}, dependentTasks: [a], triggerPolicy: {strategy: 2}}\n      y: {componentRef: {name: c}, dependentTasks: [a], triggerPolicy: {strategy: 2}}\n".into(),
            r#"task "a" has two exit tasks, "x" and "y""#,
        ),
        (
            "",
            "      a: {componentRef: {name: c}}\n      x: {componentRef: {name: c}, dependentTasks: [a], triggerPolicy: {strategy: 2}}\n      y: {componentRef: {name: c}, dependentTasks: [x]}\n".into(),
            r#"task "y" depends on exit task "x""#,
        ),
        ("  entrypoint: {dag: {tasks: {s: {componentRef: {name: c}}}}}\n", t("{componentRef: {name: entrypoint}}"), r#"template name="entrypoint": template already exists"#),
        ("  a.b: {dag: {tasks: {s: {componentRef: {name: c}}}}}\n", t("{componentRef: {name: a.b}}"), r#"template name "a.b" is not made of"#),
    ] {
        let text = small(components, &tasks);
        let error = compile(&package(&text), &Options::default()).expect_err(&text);
        assert!(error.to_string().contains(want), "{error}\nwanted {want}");
        assert!(error.is_user_error());
    }
}

#[test]
fn a_root_that_is_an_executor_is_refused() {
    let text = "{schemaVersion: 2.1.0, pipelineInfo: {name: p}, root: {executorLabel: e}, deploymentSpec: {executors: {e: {container: {image: i}}}}}";
    assert!(compile(&package(text), &Options::default()).unwrap_err().to_string().contains("only a DAG can be run"));
}

#[test]
fn nesting_is_bounded() {
    let deep = |levels: usize| {
        let mut components = String::new();
        for level in 0..levels {
            let next = if level + 1 == levels { "c".into() } else { format!("d{}", level + 1) };
            components
                .push_str(&format!("  d{level}: {{dag: {{tasks: {{s: {{componentRef: {{name: {next}}}}}}}}}}}\n"));
        }
        compile(&package(&small(&components, "      t: {componentRef: {name: d0}}\n")), &Options::default())
    };
    assert!(deep(kfp_compiler::MAX_DEPTH - 1).is_ok());
    assert!(deep(kfp_compiler::MAX_DEPTH).unwrap_err().to_string().contains("nested more than"));
}

#[test]
fn hooks_reach_every_kind_of_task() {
    for (component, more) in
        [("c", ""), ("imp", ""), ("claim", ""), ("c", ", parameterIterator: {items: {raw: '[1]'}, itemInput: i}")]
    {
        let tasks = format!(
            "      a: {{componentRef: {{name: {component}}}{more}}}\n      x: {{componentRef: {{name: c}}, dependentTasks: [a], triggerPolicy: {{strategy: 2}}}}\n"
        );
        let workflow = compiled(&small("", &tasks));
        assert_eq!(task(&workflow, "root", "a")["hooks"]["exit"]["template"], "exit-hook-root-x");
    }
}

#[test]
fn loops_may_share_a_body() {
    let body = "{componentRef: {name: c}, parameterIterator: {items: {raw: '[1]'}, itemInput: i}}";
    let workflow = compiled(&small("", &format!("      a: {body}\n      b: {body}\n")));
    assert_eq!(task(&workflow, "c-a-iterator", "iteration-iterations")["template"], "c-iteration");
    assert_eq!(task(&workflow, "c-b-iterator", "iteration-iterations")["template"], "c-b-iteration");
}

#[test]
fn importers_wait_when_asked() {
    let tasks = "      a: {componentRef: {name: c}}\n      b: {componentRef: {name: imp}, dependentTasks: [a]}\n";
    let package = package(&small("", tasks));
    let waiting = compile(&package, &Options { importers_wait: true, ..Options::default() }).unwrap();
    assert_eq!(task(&waiting, "root", "b")["depends"], "a.Succeeded");
    assert_eq!(task(&compile(&package, &Options::default()).unwrap(), "root", "b").get("depends"), None);
}

fn with_platform(platform: Value) -> Result<Value, Error> {
    let text = format!("{TWO_STEPS}\n---\n{}", json!({"platforms": {"kubernetes": platform}}));
    compile(&Package::from_text(text.as_bytes())?, &Options::default())
}

#[test]
fn time_to_live_and_deadline() {
    let spec = |config: Value| with_platform(json!({"pipelineConfig": config})).unwrap()["spec"].clone();
    let all = spec(
        json!({"resourceTtlOnCompletion": 1, "resourceTtlOnSuccess": 2, "resourceTtlOnFailure": 3, "activeDeadlineSeconds": 4}),
    );
    assert_eq!(
        all["ttlStrategy"],
        json!({"secondsAfterCompletion": 1, "secondsAfterSuccess": 2, "secondsAfterFailure": 3})
    );
    assert_eq!(all["activeDeadlineSeconds"], 4);
    let none = spec(json!({"resourceTtlOnCompletion": 0, "resourceTtlOnSuccess": -1, "activeDeadlineSeconds": -4}));
    assert_eq!((none.get("ttlStrategy"), none.get("activeDeadlineSeconds")), (None, None));
    assert_eq!(spec(json!({"resourceTtl": 9}))["ttlStrategy"], json!({"secondsAfterCompletion": 9}));
}

#[test]
fn workspaces_become_claims() {
    let claim = |workspace: Value| {
        with_platform(json!({"pipelineConfig": {"workspace": workspace}}))
            .map(|w| w["spec"]["volumeClaimTemplates"].clone())
    };
    let patch = json!({"pvcSpecPatch": {"accessModes": ["ReadWriteMany"], "storageClassName": "s"}});
    assert_eq!(
        claim(json!({"size": "1.5Gi", "kubernetes": patch})).unwrap(),
        json!([{"metadata": {"name": "kfp-workspace"}, "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": "s", "resources": {"requests": {"storage": "1536Mi"}}}}])
    );
    assert_eq!(claim(json!({"size": "nonsense"})).unwrap(), Value::Null);
    for (workspace, want) in [
        (json!({"kubernetes": {}}), "workspace size is required but not specified"),
        (json!({"size": "1Gi", "kubernetes": {}}), "workspace PVC spec must specify accessModes"),
        (
            json!({"size": "1Gi", "kubernetes": {"pvcSpecPatch": {"accessModes": ["A"], "storageClassName": ""}}}),
            "must be omitted or set to a non-empty value",
        ),
        (json!({"size": "1Gi", "kubernetes": {"pvcSpecPatch": {"x": 1}}}), "unknown fields in PVC spec patch: [x]"),
        (json!({"size": "x", "kubernetes": patch}), "invalid size value for workspace PVC: quantities must match"),
        (json!({"size": "-1Gi", "kubernetes": patch}), "negative size value for workspace PVC: -1Gi"),
    ] {
        let error = claim(workspace).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn platform_settings_of_executors() {
    let workflow = with_platform(json!({"deploymentSpec": {"executors": {"exec-a": {"podMetadata": {"annotations": {"k": "v"}, "labels": {"b": "2", "a": "1"}}}}}})).unwrap();
    let a = task(&workflow, "root", "a");
    assert_eq!(a["template"], "metadata-1-2-system-container-executor");
    assert_eq!(argument(a, "pod-metadata-annotation-key"), "k");
    assert_eq!((argument(a, "pod-metadata-label-key-1"), argument(a, "pod-metadata-label-val-2")), ("a", "2"));
    let labels = &template(&workflow, "metadata-1-2-system-container-impl")["metadata"]["labels"];
    assert_eq!(
        labels["{{inputs.parameters.pod-metadata-label-key-1}}"],
        "{{inputs.parameters.pod-metadata-label-val-1}}"
    );
    assert_eq!(
        argument(task(&workflow, "root", "a-driver"), "kubernetes-config"),
        "{{workflow.parameters.kubernetes-comp-a}}"
    );
    let root_user = json!({"deploymentSpec": {"executors": {"exec-a": {"securityContext": {"runAsUser": "0", "runAsNonRoot": true}}}}});
    assert!(
        with_platform(root_user)
            .unwrap_err()
            .to_string()
            .contains(r#"runAsUser=0 (root) is not allowed for component "comp-a""#)
    );
    let unknown = json!({"deploymentSpec": {"executors": {"exec-a": {"novelty": 1}}}});
    let error = with_platform(unknown).unwrap_err().to_string();
    assert!(error.contains(r#"error processing component name="comp-a": failed to add Kubernetes spec for comp-a: failed to unmarshal kubernetes spec for component "comp-a": "#), "{error}");
    let error = with_platform(json!({"novelty": 1})).unwrap_err().to_string();
    assert!(error.contains("platform spec is invalid") && error.contains("novelty"), "{error}");
}

#[test]
fn settings_show_where_they_should() {
    let mut options = Options {
        ml_pipeline_address: Some("127.0.0.1".into()),
        mlmd_port: 9,
        ml_pipeline_tls: true,
        metadata_tls: true,
        ..Options::default()
    };
    options.proxy.http = "h".into();
    options.security.run_as_user = Some(7);
    options.security.run_as_non_root = Some(true);
    options.security.host_users = Some(false);
    options.driver_labels.insert("l".into(), "v".into());
    options.driver_annotations.insert("pipelines.kubeflow.org/runtime-role".into(), "mine".into());
    options.spec_patch = r#"{"parallelism": 3, "podMetadata": {"labels": {"x": "y"}}}"#.into();
    let workflow = compile(&package(TWO_STEPS), &options).unwrap();
    let container = template(&workflow, "system-container-driver");
    let args: Vec<&str> =
        container["container"]["args"].as_array().unwrap().iter().map(|a| a.as_str().unwrap()).collect();
    let after = |flag: &str| args[args.iter().position(|a| *a == flag).unwrap() + 1];
    assert_eq!(
        (after("--ml_pipeline_server_address"), after("--mlmd_server_port"), after("--http_proxy")),
        ("127.0.0.1", "9", "h")
    );
    assert!(args.contains(&"--ml_pipeline_tls_enabled=true") && args.contains(&"--metadata_tls_enabled=true"));
    assert_eq!(
        args[args.len() - 6..],
        ["--default_run_as_user", "7", "--default_run_as_non_root", "true", "--default_host_users", "false"]
    );
    assert_eq!(names(&container["container"]["env"]), ["http_proxy", "HTTP_PROXY", "KFP_POD_NAME", "KFP_POD_UID"]);
    assert_eq!(
        container["metadata"],
        json!({"labels": {"l": "v"}, "annotations": {"pipelines.kubeflow.org/runtime-role": "driver"}})
    );
    let dag = template(&workflow, "system-dag-driver");
    assert!(!dag["container"]["args"].as_array().unwrap().contains(&json!("--default_run_as_user")));
    assert_eq!(names(&dag["container"]["env"]), ["http_proxy", "HTTP_PROXY"]);
    let implementation = template(&workflow, "system-container-impl");
    assert_eq!(implementation["container"]["securityContext"]["runAsUser"], 7);
    assert_eq!(implementation["initContainers"][0]["securityContext"].get("runAsUser"), None);
    assert_eq!(workflow["spec"]["parallelism"], 3);
    assert_eq!(
        workflow["spec"]["podMetadata"]["labels"],
        json!({"pipelines.kubeflow.org/v2_component": "true", "x": "y"})
    );
}

#[test]
fn patches_that_break_the_workflow_are_refused() {
    let options = Options { spec_patch: r#"{"entrypoint": "nowhere"}"#.into(), ..Options::default() };
    assert!(
        compile(&package(TWO_STEPS), &options)
            .unwrap_err()
            .to_string()
            .contains("entrypoint template \"nowhere\" does not exist")
    );
    let options = Options { spec_patch: "[]".into(), ..Options::default() };
    assert!(!compile(&package(TWO_STEPS), &options).unwrap_err().is_user_error());
}

#[test]
fn runs_are_edited_after_compiling() {
    let request = RunRequest {
        run_id: "run-1".into(),
        display_name: "my run".into(),
        namespace: Some("ns".into()),
        service_account: String::new(),
        parameters: Some(Map::from_iter([("n".to_string(), json!(5))])),
        pipeline_root: "s3://b/p".into(),
    };
    let options = Options { service_account: "sa".into(), ..Options::default() };
    let run = compile_run(&package(TWO_STEPS), &request, &options).unwrap();
    assert_eq!(run["metadata"]["namespace"], "ns");
    assert_eq!(run["metadata"]["labels"]["pipeline/runid"], "run-1");
    assert_eq!(run["metadata"]["annotations"]["pipelines.kubeflow.org/run_name"], "my run");
    assert_eq!(run["spec"]["podMetadata"]["labels"]["pipeline/runid"], "run-1");
    assert_eq!(run["spec"]["serviceAccountName"], "sa");
    assert_eq!(
        argument(task(&run, "entrypoint", "root-driver"), "runtime-config"),
        r#"{"gcsOutputDirectory":"s3://b/p","parameterValues":{"n":5,"o":null}}"#
    );
    for template in run["spec"]["templates"].as_array().unwrap() {
        assert_eq!(template["metadata"]["annotations"]["sidecar.istio.io/inject"], "false");
    }
    let text = run.to_string();
    assert!(!text.contains("{{workflow.uid}}") && text.contains("my run"));
    let recurring = compile_recurring_run(&package(TWO_STEPS), &request, &options).unwrap();
    assert!(recurring.to_string().contains("{{workflow.uid}}") && !recurring.to_string().contains("my run"));
    assert_eq!(recurring["metadata"].get("labels"), None);
}

#[test]
fn inputs_are_checked() {
    let text = |parameters: &str| {
        format!(
            "{{schemaVersion: 2.1.0, pipelineInfo: {{name: p}}, components: {{c: {{executorLabel: e}}}}, root: {{inputDefinitions: {{parameters: {parameters}}}, dag: {{tasks: {{t: {{componentRef: {{name: c}}}}}}}}}}}}"
        )
    };
    for (parameters, given, want) in [
        (
            "{a: {parameterType: STRING}}",
            None,
            "pipeline requiring input has no parameter(s) provided. Need parameter(s): a",
        ),
        (
            "{a: {parameterType: STRING}}",
            Some(json!({})),
            "parameter a is not optional, yet has neither default value nor user provided value",
        ),
        ("{a: {}}", Some(json!({"a": 1})), "input parameter a has unspecified type"),
        (
            "{a: {parameterType: NUMBER_INTEGER}}",
            Some(json!({"a": "1"})),
            "requires type double or integer, but the parameter value is not of number value type",
        ),
        (
            "{a: {parameterType: STRING}}",
            Some(json!({"a": null})),
            "requires type string, but the input parameter is not of string value type",
        ),
        ("{a: {parameterType: BOOLEAN}}", Some(json!({"a": 1})), "requires type bool"),
        ("{a: {parameterType: LIST}}", Some(json!({"a": {}})), "requires type list"),
        ("{a: {parameterType: STRUCT}}", Some(json!({"a": []})), "requires type struct"),
        (
            "{a: {parameterType: TASK_FINAL_STATUS}}",
            Some(json!({"a": {}})),
            "requires type TASK_FINAL_STATUS, which is invalid for root component",
        ),
        ("{a: {parameterType: TASK_CONFIG}}", Some(json!({"a": {}})), "requires type unknown"),
        (
            "{a: {parameterType: NUMBER_INTEGER, literals: [1, 2]}}",
            Some(json!({"a": 3})),
            "does not match any of the allowed literal values",
        ),
        ("{}", Some(json!({"z": 1, "b": 1})), "parameter(s) provided are not required by pipeline: b, z"),
    ] {
        let package = package(&text(parameters));
        let error = inputs::validate(&package, given.as_ref().and_then(Value::as_object)).expect_err(want).to_string();
        assert!(error.starts_with("invalid pipeline job inputs: ") && error.contains(want), "{error}");
    }
    for (parameters, given) in [
        (
            "{a: {parameterType: STRING, isOptional: true}, b: {parameterType: STRING, defaultValue: x}}",
            Some(json!({})),
        ),
        ("{a: {parameterType: NUMBER_INTEGER, literals: [1, 2]}}", Some(json!({"a": 2.0}))),
        ("{}", None),
    ] {
        inputs::validate(&package(&text(parameters)), given.as_ref().and_then(Value::as_object)).unwrap();
    }
}

#[test]
fn compile_job_lets_the_option_override_the_root() {
    let job = Job { pipeline_root: "a".into(), ..Job::default() };
    let options = Options { pipeline_root: "b".into(), ..Options::default() };
    let workflow = compile_job(&package(LOOP), &job, &options).unwrap();
    assert_eq!(
        argument(task(&workflow, "entrypoint", "root-driver"), "runtime-config"),
        r#"{"gcsOutputDirectory":"b"}"#
    );
}
