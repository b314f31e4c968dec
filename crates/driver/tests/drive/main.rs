//! The driver against the real metadata server, flags in and output files out.
#![allow(clippy::unwrap_used, clippy::panic)]

mod claims;
mod loops;
mod restarts;
mod world;

use kfp_core::mlmd::{self, NewExecution, State, names};
use loops::run_loop;
use serde_json::{Value, json};
use world::World;

fn task_output(producer: &str, key: &str) -> Value {
    json!({"taskOutputParameter": {"producerTask": producer, "outputParameterKey": key}})
}

fn task_artifact(producer: &str, key: &str) -> Value {
    json!({"taskOutputArtifact": {"producerTask": producer, "outputArtifactKey": key}})
}

fn from_component(name: &str) -> Value {
    json!({"componentInputParameter": name})
}

fn constant(value: Value) -> Value {
    json!({"runtimeValue": {"constant": value}})
}

fn definitions(parameters: Value) -> Value {
    json!({"inputDefinitions": {"parameters": parameters}})
}

fn kind(name: &str) -> Value {
    json!({"parameterType": name})
}

#[tokio::test]
async fn root_is_driven_once_however_often_it_is_started() {
    let world = World::new().await;
    let first = world.root(json!({"n": 5, "s": "x", "none": null})).await;
    assert_eq!(world.root(json!({"n": 5})).await, first);
    let run = world.run().await;
    assert_eq!(run.pipeline_root(), "minio://mlpipeline/v2/artifacts/p/run-1");
    assert_eq!(run.namespace(), "ns");
    let session: Value = serde_json::from_str(run.store_session_info()).unwrap();
    assert_eq!((&session["Provider"], &session["Params"]["region"]), (&json!("minio"), &json!("minio")));
    let execution = world.execution(first).await;
    assert_eq!(execution.message.name(), "run/run-1");
    assert_eq!((execution.task_name(), execution.parent_dag_id(), execution.state()), ("", None, State::Running));
    assert_eq!(execution.inputs().len(), 3);
}

#[tokio::test]
async fn config_map_names_the_pipeline_root() {
    let world = World::new().await;
    let data = json!({"data": {"defaultPipelineRoot": "gs://bucket/root"}});
    world.objects.lock().unwrap().insert("configmaps/kfp-launcher".to_owned(), data);
    world.root(json!({})).await;
    let run = world.run().await;
    assert_eq!(run.pipeline_root(), "gs://bucket/root/p/run-1");
    assert_eq!(run.store_session_info(), r#"{"Provider":"gs","Params":{"fromEnv":"true"}}"#);
}

#[tokio::test]
async fn parameters_arrive_typed() {
    let world = World::new().await;
    let root = world.root(json!({"n": 5, "x": 0.5, "list": [1, {"a": null}], "b": true})).await;
    let inputs = json!({"parameters": {
        "n": from_component("n"), "x": from_component("x"), "list": from_component("list"), "b": from_component("b"),
        "as_text": from_component("n"), "run": constant(json!("{{$.pipeline_job_uuid}}")), "c": constant(json!(7))}});
    let component = definitions(json!({
        "n": kind("NUMBER_INTEGER"), "x": kind("NUMBER_DOUBLE"), "list": kind("LIST"), "b": kind("BOOLEAN"),
        "as_text": kind("STRING"), "run": kind("STRING"), "c": kind("NUMBER_INTEGER"),
        "d": {"parameterType": "LIST", "defaultValue": [1], "isOptional": true}}));
    let files = world.container(root, "t", json!({"inputs": inputs}), component).await.unwrap();
    let wanted = json!({"n": 5, "x": 0.5, "list": [1, {"a": null}], "b": true, "as_text": "5", "run": "run-1", "c": 7});
    assert_eq!(files.parameters(), wanted);
    assert!(files.launcher("--executor_input").contains("\"n\":5,"));
    assert_eq!((files.get("condition"), files.get("cached-decision")), (Some("nil"), Some("false")));
    assert_eq!(files.get("execution-id"), None);
    let execution = world.execution(files.container()).await;
    assert_eq!((execution.task_name(), execution.parent_dag_id()), ("t", Some(root)));
    assert_eq!(execution.text(names::POD_NAME), "");
    assert!(execution.message.custom_properties.contains_key(names::IMAGE));
}

#[tokio::test]
async fn outputs_of_tasks_become_inputs() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let made = world.produce(root, "make", json!({"count": 3}), &[("model", "minio://b/model")]).await;
    let task = json!({
        "inputs": {
            "parameters": {"n": task_output("make", "count")},
            "artifacts": {"a": task_artifact("make", "model"), "b": task_artifact("make", "model")}},
        "dependentTasks": ["make"]});
    let files = world.container(root, "use", task, definitions(json!({"n": kind("NUMBER_INTEGER")}))).await.unwrap();
    let input = files.executor_input();
    assert_eq!(input["inputs"]["parameterValues"]["n"], 3);
    let artifact = &input["inputs"]["artifacts"]["a"]["artifacts"][0];
    assert_eq!(artifact["name"], made[0].to_string());
    assert_eq!(artifact["uri"], "minio://b/model");
    assert_eq!(artifact["type"], json!({"instanceSchema": ""}));
    assert_eq!(artifact["metadata"]["display_name"], "model");
    // One artifact in two inputs: the store has room for one event only.
    assert_eq!(input["inputs"]["artifacts"]["b"], input["inputs"]["artifacts"]["a"]);
    let execution = world.execution(files.container()).await;
    let read = world.services.metadata.input_artifacts(&execution).await.unwrap();
    assert_eq!((read["a"][0].id(), read["b"][0].id()), (made[0], made[0]));
    let logs = &input["outputs"]["artifacts"]["executor-logs"]["artifacts"][0]["uri"];
    assert!(logs.as_str().unwrap().starts_with("minio://mlpipeline/v2/artifacts/p/run-1/use/"), "{logs}");
}

#[tokio::test]
async fn missing_producers_and_outputs_are_named() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    world.produce(root, "make", json!({}), &[]).await;
    for (inputs, wanted) in [
        (json!({"parameters": {"n": task_output("absent", "k")}}), "producer task, absent, not in tasks"),
        (json!({"artifacts": {"a": task_artifact("make", "k")}}), "task \"make\" (execution"),
        (json!({"parameters": {"n": from_component("absent")}}), "parent DAG does not have input parameter absent"),
        (json!({"artifacts": {"a": {"componentInputArtifact": "x"}}}), "failed to resolve input artifact a"),
    ] {
        let error = world.container(root, "t", json!({"inputs": inputs}), json!({})).await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        assert!(error.starts_with("KFP driver: driver.Container(pipelineName=p, runID=run-1"), "{error}");
    }
}

#[tokio::test]
async fn untriggered_tasks_are_cancelled_and_tell_their_dag() {
    let world = World::new().await;
    let root = world.root(json!({"coin": "heads"})).await;
    let inputs = json!({"parameters": {"coin": from_component("coin")}});
    let component =
        json!({"inputDefinitions": {"parameters": {"coin": kind("STRING")}}, "dag": {"tasks": {"only": {}}}});
    let condition = |side: &str| {
        let text = format!("inputs.parameter_values['coin'] == '{side}'");
        json!({"inputs": inputs, "triggerPolicy": {"condition": text}})
    };
    let taken = world.dag(root, "condition-1", condition("heads"), component.clone()).await.unwrap();
    let skipped = world.dag(root, "condition-2", condition("tails"), component.clone()).await.unwrap();
    assert_eq!((taken.get("condition"), skipped.get("condition")), (Some("true"), Some("false")));
    assert_eq!((world.state(taken.id()).await, world.state(skipped.id()).await), (State::Running, State::Canceled));
    let files = world.container(taken.id(), "only", condition("tails"), component.clone()).await.unwrap();
    assert_eq!(
        (files.get("condition"), files.get("cached-decision"), files.get("pod-spec-patch")),
        (Some("false"), None, None)
    );
    // The only task of the branch is done, in a way.
    assert_eq!(world.state(taken.id()).await, State::Complete);
    let broken = json!({"triggerPolicy": {"condition": "inputs.parameter_values['coin'] == 'heads'"}});
    let error = world.container(root, "t", broken, json!({})).await.unwrap_err().to_string();
    assert!(error.contains("no such key: coin"), "{error}");
}

#[tokio::test]
async fn a_dag_is_complete_whatever_its_last_task_was() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let group = json!({"dag": {"tasks": {"first": {}, "last": {}}}});
    let never = json!({"triggerPolicy": {"condition": "1 == 2"}});
    for last in ["container", "skipped container", "skipped DAG", "empty loop", "claim"] {
        let outer = world.dag(root, last, json!({}), json!({"dag": {"tasks": {"inner": {}}}})).await.unwrap().id();
        let inner = world.dag(outer, "inner", json!({}), group.clone()).await.unwrap().id();
        world.produce(inner, "first", json!({}), &[]).await;
        assert_eq!(world.state(inner).await, State::Running, "{last}");
        match last {
            "container" => drop(world.produce(inner, "last", json!({}), &[]).await),
            "skipped container" => drop(world.container(inner, "last", never.clone(), json!({})).await.unwrap()),
            "skipped DAG" => drop(world.dag(inner, "last", never.clone(), group.clone()).await.unwrap()),
            "empty loop" => drop(run_loop(&world, inner, "last", json!([])).await),
            _ => {
                let inputs = json!({"parameters": {
                    "access_modes": constant(json!(["ReadWriteOnce"])), "size": constant(json!("1Gi")),
                    "pvc_name_suffix": constant(json!("-x"))}});
                let image = json!({"image": "argostub/createpvc"});
                let component = definitions(json!({
                    "access_modes": kind("LIST"), "size": kind("STRING"), "pvc_name_suffix": kind("STRING")}));
                let task = json!({"inputs": inputs});
                world.container_with(inner, "last", task, component, image, json!({})).await.unwrap();
            }
        }
        assert_eq!((world.state(inner).await, world.state(outer).await), (State::Complete, State::Complete), "{last}");
    }
}

#[tokio::test]
async fn a_task_that_cannot_be_driven_fails_its_dag_and_is_seen_by_the_exit_task() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let group = json!({"dag": {"tasks": {"a": {}, "b": {}, "c": {}}}});
    let handler = world.dag(root, "exit-handler-1", json!({}), group.clone()).await.unwrap().id();
    world.produce(handler, "a", json!({}), &[]).await;
    let broken = json!({"inputs": {"parameters": {"n": task_output("a", "absent")}}});
    let component = definitions(json!({"n": kind("NUMBER_INTEGER")}));
    let error = world.container(handler, "b", broken.clone(), component.clone()).await.unwrap_err().to_string();
    assert!(error.contains("got null for input parameter \"n\""), "{error}");
    assert_eq!(world.state(handler).await, State::Failed);
    let run = world.run().await;
    let children = world.services.metadata.executions_of_dag(&run, handler).await.unwrap();
    let failed = children.iter().find(|child| child.task_name() == "b").unwrap();
    assert_eq!(failed.state(), State::Failed);
    assert!(failed.text(names::ERROR_MESSAGE).contains("got null for input parameter"));
    world.dag(root, "exit-handler-2", broken, group.clone()).await.unwrap_err();

    // `b` depends on a task that was skipped, so it is never driven and nobody completes the DAG.
    let other = world.dag(root, "exit-handler-3", json!({}), group).await.unwrap().id();
    world.produce(other, "a", json!({}), &[]).await;
    let never = json!({"triggerPolicy": {"condition": "1 == 2"}});
    world.container(other, "c", never, json!({})).await.unwrap();
    assert_eq!(world.state(other).await, State::Running);
    for (dependency, state) in
        [("exit-handler-1", "FAILED"), ("exit-handler-2", "FAILED"), ("exit-handler-3", "COMPLETE")]
    {
        let task = json!({
            "inputs": {"parameters": {"status": {"taskFinalStatus": {"producerTask": dependency}}}},
            "dependentTasks": [dependency]});
        let component = definitions(json!({"status": kind("TASK_FINAL_STATUS")}));
        let files = world.container(root, "exit", task, component).await.unwrap();
        assert_eq!(files.parameters()["status"]["state"], state, "{dependency}");
    }
}

#[tokio::test]
async fn one_of_takes_the_branch_that_ran() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let selector = |branch: &str| json!({"producerSubtask": branch, "outputParameterKey": "o"});
    let artifacts = |branch: &str| json!({"producerSubtask": branch, "outputArtifactKey": "m"});
    let group = json!({"dag": {"tasks": {"condition-1": {}, "condition-2": {}}, "outputs": {
        "parameters": {"any": {"valueFromOneof": {"parameterSelectors": [selector("condition-1"), selector("condition-2")]}}},
        "artifacts": {"model": {"artifactSelectors": [artifacts("condition-1"), artifacts("condition-2")]}}}}});
    let group = world.dag(root, "branches", json!({}), group).await.unwrap().id();
    let branch = json!({"dag": {"tasks": {"make": {}}, "outputs": {
        "parameters": {"o": {"valueFromParameter": {"producerSubtask": "make", "outputParameterKey": "x"}}},
        "artifacts": {"m": {"artifactSelectors": [{"producerSubtask": "make", "outputArtifactKey": "a"}]}}}}});
    let consumer = || {
        json!({"inputs": {
        "parameters": {"v": task_output("branches", "any")}, "artifacts": {"a": task_artifact("branches", "model")}}})
    };
    let never = json!({"triggerPolicy": {"condition": "1 == 2"}});
    world.dag(group, "condition-1", never, branch.clone()).await.unwrap();
    let taken = world.dag(group, "condition-2", json!({}), branch).await.unwrap().id();
    let error = world.container(root, "use", consumer(), json!({})).await.unwrap_err().to_string();
    assert!(error.contains("processing OneOf: No successful task found for output key"), "{error}");
    world.produce(taken, "make", json!({"x": "chosen"}), &[("a", "gs://chosen")]).await;
    assert_eq!((world.state(taken).await, world.state(group).await), (State::Complete, State::Complete));
    let files = world.container(root, "use", consumer(), definitions(json!({"v": kind("STRING")}))).await.unwrap();
    assert_eq!(files.parameters()["v"], "chosen");
    assert_eq!(files.executor_input()["inputs"]["artifacts"]["a"]["artifacts"][0]["uri"], "gs://chosen");
}

#[tokio::test]
async fn null_optionals_reach_nested_dags() {
    let world = World::new().await;
    let root = world.root(json!({"none": null})).await;
    let component = definitions(json!({
        "passed": {"parameterType": "STRING", "isOptional": true},
        "defaulted": {"parameterType": "LIST", "isOptional": true, "defaultValue": [1]},
        "omitted": {"parameterType": "NUMBER_INTEGER", "isOptional": true}}));
    let inputs =
        json!({"inputs": {"parameters": {"passed": from_component("none"), "defaulted": from_component("none")}}});
    let dag = world.dag(root, "sub", inputs, component).await.unwrap().id();
    let stored: serde_json::Map<_, _> =
        world.execution(dag).await.inputs().iter().map(|(k, v)| (k.clone(), kfp_core::ir::to_json(v))).collect();
    assert_eq!(Value::Object(stored), json!({"passed": null, "defaulted": [1], "omitted": null}));
    let component = definitions(json!({"x": {"parameterType": "STRING", "isOptional": true, "defaultValue": "d"}}));
    let inner = json!({"inputs": {"parameters": {"x": from_component("passed")}}});
    let files = world.container(dag, "inner", inner.clone(), component).await.unwrap();
    assert_eq!(files.parameters(), Value::Null);
    let error = world.container(dag, "inner", inner, definitions(json!({"x": kind("STRING")}))).await.unwrap_err();
    assert!(error.to_string().contains("the resolved input parameter is null: passed"), "{error}");
}

#[tokio::test]
async fn final_status_tells_of_the_first_dependency() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let group =
        world.dag(root, "exit-handler-1", json!({}), json!({"dag": {"tasks": {"bad": {}}}})).await.unwrap().id();
    let bad = world.container(group, "bad", json!({}), json!({})).await.unwrap().container();
    world.finish(bad, State::Failed, json!({}), &[]).await;
    let task = json!({
        "inputs": {"parameters": {"status": {"taskFinalStatus": {"producerTask": "exit-handler-1"}}}},
        "dependentTasks": ["exit-handler-1"]});
    let component = definitions(json!({"status": {"parameterType": "TASK_FINAL_STATUS", "isOptional": true}}));
    let files = world.container(root, "exit", task, component).await.unwrap();
    assert_eq!(
        files.parameters()["status"],
        json!({"state": "FAILED", "error": {}, "pipelineJobResourceName": "wf", "pipelineTaskName": "exit-handler-1"})
    );
}

#[tokio::test]
async fn cached_results_are_published_again() {
    let mut world = World::new().await;
    let task = json!({
        "cachingOptions": {"enableCache": true}, "inputs": {"parameters": {"n": constant(json!(1))}}});
    let component = json!({
        "inputDefinitions": {"parameters": {"n": kind("NUMBER_INTEGER")}},
        "outputDefinitions": {"parameters": {"o": kind("STRING")}, "artifacts": {"m": {"artifactType": {"schemaTitle": "system.Model"}}}}});
    let root = world.root(json!({})).await;
    let first = world.container(root, "t", task.clone(), component.clone()).await.unwrap();
    let made = world.finish(first.container(), State::Complete, json!({"o": "value"}), &[("m", "gs://m")]).await;
    let fingerprint = world.execution(first.container()).await.text(names::CACHE_FINGERPRINT).to_owned();
    assert_eq!(fingerprint.len(), 64);
    world.tasks.lock().unwrap().push(kfp_proto::api::Task {
        pipeline_name: "pipeline/p".into(),
        namespace: "ns".into(),
        mlmd_execution_id: first.container().to_string(),
        fingerprint,
        ..Default::default()
    });

    world.next_run("run-2");
    let root = world.root(json!({})).await;
    let dag = world.dag(root, "group", json!({}), json!({"dag": {"tasks": {"t": {}}}})).await.unwrap().id();
    let second = world.container(dag, "t", task.clone(), component.clone()).await.unwrap();
    assert_eq!((second.get("cached-decision"), second.get("pod-spec-patch")), (Some("true"), None));
    // Nobody but the driver could have told the DAG.
    assert_eq!(world.state(dag).await, State::Complete);
    let run = world.run().await;
    let cached = world.services.metadata.executions_of_dag(&run, dag).await.unwrap().pop().unwrap();
    assert_eq!(cached.state(), State::Cached);
    assert_eq!(cached.text(names::CACHED_EXECUTION_ID), first.container().to_string());
    let reused = format!("reused the outputs of execution {}", first.container());
    assert_eq!(cached.text(names::CACHE_DECISION), reused);
    assert_eq!(kfp_core::ir::to_json(&cached.outputs()["o"]), json!("value"));
    let artifacts = world.services.metadata.output_artifacts(cached.id()).await.unwrap();
    assert_eq!(artifacts["m"].id(), made[0]);
    assert_eq!(artifacts["m"].uri(), "gs://m");

    let mut other = task.clone();
    other["inputs"]["parameters"]["n"] = constant(json!(2));
    let missed = world.container(root, "u", other, component.clone()).await.unwrap();
    assert_eq!(missed.get("cached-decision"), Some("false"));
    let nothing = "not reused: no earlier execution has the same key";
    assert_eq!(world.execution(missed.container()).await.text(names::CACHE_DECISION), nothing);
    let mut off = task.clone();
    off["cachingOptions"] = json!({});
    let off = world.container(root, "w", off, component.clone()).await.unwrap();
    let off = world.execution(off.container()).await;
    assert_eq!(off.text(names::CACHE_DECISION), "not reused: caching is off for this task");
    // An artifact that somebody gave up is no more use than one that is gone.
    let mut given_up = artifacts["m"].clone();
    given_up.set_state(kfp_proto::ml_metadata::artifact::State::Deleted);
    world.services.metadata.put_artifacts(vec![given_up]).await.unwrap();
    let again = world.container(root, "x", task.clone(), component.clone()).await.unwrap();
    let again = world.execution(again.container()).await;
    let deleted = "has the same key, but its artifact \"m\" is marked as deleted";
    assert!(again.text(names::CACHE_DECISION).ends_with(deleted), "{}", again.text(names::CACHE_DECISION));
    // A record of an execution that is gone is no hit.
    world.tasks.lock().unwrap().last_mut().unwrap().mlmd_execution_id = "999999".into();
    let gone = world.container(root, "v", task, component).await.unwrap();
    assert_eq!(gone.get("cached-decision"), Some("false"));
    let gone = world.execution(gone.container()).await;
    assert_eq!(gone.text(names::CACHED_EXECUTION_ID), "");
    let lost = "not reused: execution 999999 has the same key, but is gone from the metadata store";
    assert_eq!(gone.text(names::CACHE_DECISION), lost);
}

#[tokio::test]
async fn a_driver_that_fails_late_leaves_a_failed_execution() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let dag = world.dag(root, "group", json!({}), json!({"dag": {"tasks": {"t": {}}}})).await.unwrap().id();
    let container = json!({"image": "i", "resources": {"resourceCpuLimit": "many"}});
    let error = world.container_with(dag, "t", json!({}), json!({}), container, json!({})).await.unwrap_err();
    // Argo gets what was decided before the failure.
    let files = world.take_files();
    let written = (files.get("condition"), files.get("cached-decision"), files.get("pod-spec-patch"));
    assert_eq!(written, (Some("nil"), Some("false"), None));
    assert!(error.to_string().contains("failed to init podSpecPatch: \"many\" is not a quantity"), "{error}");
    let run = world.run().await;
    let execution = world.services.metadata.executions_of_dag(&run, dag).await.unwrap().pop().unwrap();
    assert_eq!((execution.state(), world.state(dag).await), (State::Failed, State::Failed));
}

#[tokio::test]
async fn inputs_that_fit_no_command_line_are_named() {
    let world = World::new().await;
    let root = world.root(json!({"small": "x", "big": "y".repeat(200_000)})).await;
    let inputs = json!({"parameters": {"s": from_component("small"), "b": from_component("big")}});
    let component = definitions(json!({"s": kind("STRING"), "b": kind("STRING")}));
    let error = world.container(root, "t", json!({"inputs": inputs}), component).await.unwrap_err().to_string();
    assert!(error.contains("the input parameters are too long: 200"), "{error}");
    assert!(
        error.contains(", of which \"b\" has about 200004; Linux allows 131071. Pass large values as artifacts"),
        "{error}"
    );
}

#[tokio::test]
async fn kubernetes_settings_reach_the_pod() {
    let world = World::new().await;
    let root =
        world.root(json!({"secret": "s1", "none": null, "tolerate": [{"key": "k"}], "nodes": {"disk": "ssd"}})).await;
    let config = json!({
        "secretAsVolume": [{"mountPath": "/s", "secretNameParameter": from_component("secret")}],
        "secretAsEnv": [{"secretName": "fixed", "keyToEnv": [{"secretKey": "k", "envVar": "E"}], "optional": true},
            {"secretNameParameter": from_component("none"), "keyToEnv": [{"secretKey": "k", "envVar": "F"}]}],
        "configMapAsVolume": [{"configMapName": "cm", "mountPath": "/c"}],
        "pvcMount": [{"constant": "claim", "mountPath": "/p", "subPath": "x"}],
        "nodeSelector": {"nodeSelectorJson": from_component("nodes")},
        "tolerations": [{"tolerationJson": from_component("tolerate")}, {"key": "a", "operator": "Exists"}],
        "nodeAffinity": [{"matchExpressions": [{"key": "z", "operator": "In", "values": ["1"]}], "weight": 3}],
        "podAffinity": [{"topologyKey": "host", "matchPodLabels": {"app": "x"}, "anti": true}],
        "fieldPathAsEnv": [{"name": "NODE", "fieldPath": "spec.nodeName"}],
        "imagePullSecret": [{"secretName": "pull"}], "imagePullPolicy": "Always", "activeDeadlineSeconds": "60",
        "emptyDirMounts": [{"volumeName": "e", "mountPath": "/e", "sizeLimit": "1Gi"}],
        "enabledSharedMemory": {"volumeName": "shm", "size": "2Gi"},
        "genericEphemeralVolume": [{"volumeName": "g", "mountPath": "/g", "accessModes": ["ReadWriteOnce"], "size": "1Gi",
            "defaultStorageClass": true}],
        "initContainers": [{"name": "prepare", "image": "busybox"}]});
    let container = json!({"image": "i", "command": ["c"]});
    let files = world.container_with(root, "t", json!({}), json!({}), container.clone(), config).await.unwrap();
    let patch = files.patch();
    let main = &patch["containers"][0];
    assert_eq!(
        main["env"],
        json!([
        {"name": "E", "valueFrom": {"secretKeyRef": {"name": "fixed", "key": "k", "optional": true}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}])
    );
    let mounts: Vec<_> =
        main["volumeMounts"].as_array().unwrap().iter().map(|m| m["mountPath"].as_str().unwrap()).collect();
    assert_eq!(mounts, ["/p", "/s", "/c", "/g", "/e", "/dev/shm"]);
    assert_eq!(patch["volumes"][0], json!({"name": "claim", "persistentVolumeClaim": {"claimName": "claim"}}));
    assert_eq!(patch["volumes"][1], json!({"name": "s1", "secret": {"secretName": "s1", "optional": false}}));
    assert_eq!(patch["nodeSelector"], json!({"disk": "ssd"}));
    assert_eq!(patch["tolerations"], json!([{"key": "k"}, {"key": "a", "operator": "Exists"}]));
    assert_eq!(patch["affinity"]["nodeAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"][0]["weight"], 3);
    assert_eq!(
        patch["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"],
        json!([{"topologyKey": "host", "labelSelector": {"matchLabels": {"app": "x"}}}])
    );
    assert_eq!((&patch["imagePullSecrets"], &main["imagePullPolicy"]), (&json!([{"name": "pull"}]), &json!("Always")));
    assert_eq!(patch["activeDeadlineSeconds"], 60);
    assert_eq!(patch["initContainers"][0]["name"], "prepare");
    let wrong = json!({"imagePullPolicy": "Sometimes"});
    let error = world.container_with(root, "t", json!({}), json!({}), container, wrong).await.unwrap_err();
    assert!(error.to_string().contains("unsupported value: Sometimes"), "{error}");
}

#[tokio::test]
async fn schedule_time_is_read_from_the_workflow() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let inputs = json!({"inputs": {"parameters": {"t": constant(json!("at {{$.pipeline_job_schedule_time_utc}}"))}}});
    let component = definitions(json!({"t": kind("STRING")}));
    let error = world.container(root, "t", inputs.clone(), component.clone()).await.unwrap_err();
    assert!(error.to_string().contains("not found"), "{error}");
    let workflow = json!({"metadata": {"creationTimestamp": "2026-01-02T00:00:00Z",
        "labels": {"scheduledworkflows.kubeflow.org/workflowEpoch": "1767225600"}}});
    world.objects.lock().unwrap().insert("workflows/wf".to_owned(), workflow);
    let files = world.container(root, "t", inputs, component).await.unwrap();
    assert_eq!(files.parameters()["t"], "at 2026-01-01T00:00:00Z");
}

#[tokio::test]
async fn task_config_inputs_hold_what_the_pod_got() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let component = json!({
        "inputDefinitions": {"parameters": {"config": {"parameterType": "TASK_CONFIG", "isOptional": true}}},
        "taskConfigPassthroughs": [{"field": "KUBERNETES_VOLUMES", "applyToTask": true}, {"field": "RESOURCES"}]});
    let container = json!({"image": "i", "resources": {"resourceCpuLimit": "1"}});
    let kubernetes = json!({"pvcMount": [{"constant": "claim", "mountPath": "/p"}]});
    let files = world.container_with(root, "t", json!({}), component, container, kubernetes).await.unwrap();
    let config = &files.parameters()["config"];
    assert_eq!(config["resources"], json!({"limits": {"cpu": "1"}}));
    assert_eq!(config["volumeMounts"], json!([{"name": "claim", "mountPath": "/p"}]));
    assert_eq!(config["env"], Value::Null);
    assert_eq!(files.patch()["containers"][0]["resources"], json!({}));
    // The recorded inputs do not have it.
    assert!(world.execution(files.container()).await.inputs().is_empty());
}

/// Of a large DAG not all children are read whenever one ends; what comes of it must be the same.
#[tokio::test]
async fn the_state_of_a_dag_with_many_tasks_follows_from_all_of_them() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let names: Vec<String> = (0..25).map(|number| format!("t{number}")).collect();
    let tasks: serde_json::Map<_, _> = names.iter().map(|name| (name.clone(), json!({}))).collect();
    let component = json!({"dag": {"tasks": tasks}});
    for failing in [false, true] {
        let dag = world.dag(root, &format!("many-{failing}"), json!({}), component.clone()).await.unwrap().id();
        // A driver of upstream was started again: nobody ends the first execution.
        let properties =
            [(names::PARENT_DAG_ID.to_owned(), mlmd::int(dag)), (names::TASK_NAME.to_owned(), mlmd::text("t0"))];
        let left = NewExecution {
            type_name: names::CONTAINER_EXECUTION,
            state: State::Running,
            properties: properties.into(),
            ..NewExecution::default()
        };
        world.services.metadata.create_execution(&world.run().await, left).await.unwrap();
        let mut started = Vec::new();
        for name in &names {
            started.push(world.container(dag, name, json!({}), json!({})).await.unwrap().container());
        }
        let (last, others) = started.split_last().unwrap();
        for (number, id) in others.iter().enumerate() {
            let fails = failing && number == 7;
            world.finish(*id, if fails { State::Failed } else { State::Complete }, json!({}), &[]).await;
            let expected = if failing && number >= 7 { State::Failed } else { State::Running };
            assert_eq!(world.state(dag).await, expected, "after {number}");
        }
        world.finish(*last, State::Complete, json!({}), &[]).await;
        assert_eq!(world.state(dag).await, if failing { State::Failed } else { State::Complete });
    }
}
