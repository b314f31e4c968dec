//! Loops and what is collected from them.

use kfp_core::mlmd::State;
use serde_json::{Value, json};

use crate::world::World;
use crate::{constant, definitions, from_component, kind, task_artifact, task_output};

/// The addresses of the input artifacts `as` of an executor.
fn uris(input: &Value) -> Vec<Value> {
    let artifacts = input["inputs"]["artifacts"]["as"]["artifacts"].as_array();
    artifacts.into_iter().flatten().map(|artifact| artifact["uri"].clone()).collect()
}

/// A loop over `items` whose body is one container `work` with output `out` and artifact `a`.
pub async fn run_loop(world: &World, parent: i64, name: &str, items: Value) -> i64 {
    let task = json!({
        "inputs": {"parameters": {"items": constant(items.clone())}},
        "parameterIterator": {"items": {"inputParameter": "items"}, "itemInput": "item"}});
    let component = json!({
        "inputDefinitions": {"parameters": {"items": kind("LIST"), "item": kind("NUMBER_INTEGER")}},
        "dag": {"tasks": {"work": {}}, "outputs": {
            "parameters": {"all": {"valueFromParameter": {"producerSubtask": "work", "outputParameterKey": "out"}}},
            "artifacts": {"alls": {"artifactSelectors": [{"producerSubtask": "work", "outputArtifactKey": "a"}]}}}}});
    let head = world.dag(parent, name, task.clone(), component.clone()).await.unwrap();
    let count = items.as_array().unwrap().len();
    assert_eq!(head.get("iteration-count"), Some(count.to_string().as_str()));
    for index in (0..count).rev() {
        let index = i64::try_from(index).unwrap();
        let iteration = world.iteration(head.id(), index, name, task.clone(), component.clone()).await;
        let inputs = json!({"inputs": {"parameters": {"x": from_component("item")}}});
        let files = world
            .container(iteration, "work", inputs, definitions(json!({"x": kind("NUMBER_INTEGER")})))
            .await
            .unwrap();
        let item = files.parameters()["x"].clone();
        let uri = format!("minio://b/{item}");
        world.finish(files.container(), State::Complete, json!({"out": item}), &[("a", &uri)]).await;
    }
    head.id()
}

#[tokio::test]
async fn loops_are_collected_in_order() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let head = run_loop(&world, root, "for-loop-1", json!([10, 20, 30])).await;
    assert_eq!(world.state(head).await, State::Complete);
    let many: Vec<i64> = (0..12).collect();
    run_loop(&world, root, "for-loop-2", json!(many)).await;
    let empty = run_loop(&world, root, "for-loop-3", json!([])).await;
    assert_eq!(world.state(empty).await, State::Complete);
    for (name, wanted) in [("for-loop-1", json!([10, 20, 30])), ("for-loop-2", json!(many)), ("for-loop-3", json!([]))]
    {
        let inputs = json!({
            "parameters": {"l": task_output(name, "all")}, "artifacts": {"as": task_artifact(name, "alls")}});
        let files = world
            .container(root, "use", json!({"inputs": inputs}), definitions(json!({"l": kind("LIST")})))
            .await
            .unwrap();
        assert_eq!(files.parameters()["l"], wanted);
        let uris = uris(&files.executor_input());
        let expected: Vec<_> = wanted.as_array().unwrap().iter().map(|n| json!(format!("minio://b/{n}"))).collect();
        assert_eq!(uris, expected);
        // A nested DAG gets the whole list, too.
        let dag = world
            .dag(root, "sub", json!({"inputs": {"artifacts": {"in": task_artifact(name, "alls")}}}), json!({"dag": {}}))
            .await
            .unwrap();
        let inner = json!({"inputs": {"artifacts": {"x": {"componentInputArtifact": "in"}}}});
        let files = world.container(dag.id(), "inner", inner, json!({})).await.unwrap();
        let list = files.executor_input()["inputs"]["artifacts"]["x"]["artifacts"].as_array().map_or(0, Vec::len);
        assert_eq!(list, expected.len());
    }
}

#[tokio::test]
async fn iterations_that_a_condition_skipped_are_left_out_of_the_collection() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let task = json!({
        "inputs": {"parameters": {"items": constant(json!([1, 2, 3]))}},
        "parameterIterator": {"items": {"inputParameter": "items"}, "itemInput": "item"}});
    let outputs = |task: &str, parameter: &str, artifact: &str| {
        json!({
            "parameters": {"o": {"valueFromParameter": {"producerSubtask": task, "outputParameterKey": parameter}}},
            "artifacts": {"a": {"artifactSelectors": [{"producerSubtask": task, "outputArtifactKey": artifact}]}}})
    };
    let body = json!({
        "inputDefinitions": {"parameters": {"items": kind("LIST"), "item": kind("NUMBER_INTEGER")}},
        "dag": {"tasks": {"condition-1": {}}, "outputs": outputs("condition-1", "o", "a")}});
    let branch = json!({
        "inputDefinitions": {"parameters": {"n": kind("NUMBER_INTEGER")}},
        "dag": {"tasks": {"work": {}}, "outputs": outputs("work", "x", "m")}});
    let head = world.dag(root, "loop", task.clone(), body.clone()).await.unwrap().id();
    for index in 0..3 {
        let iteration = world.iteration(head, index, "loop", task.clone(), body.clone()).await;
        let odd = json!({
            "inputs": {"parameters": {"n": from_component("item")}},
            "triggerPolicy": {"condition": "int(inputs.parameter_values['n']) != 2"}});
        let taken = world.dag(iteration, "condition-1", odd, branch.clone()).await.unwrap();
        if taken.get("condition") == Some("true") {
            let uri = format!("gs://b/{index}");
            world.produce(taken.id(), "work", json!({"x": index}), &[("m", &uri)]).await;
        }
    }
    assert_eq!(world.state(head).await, State::Complete);
    let inputs =
        json!({"parameters": {"l": task_output("loop", "o")}, "artifacts": {"as": task_artifact("loop", "a")}});
    let files =
        world.container(root, "use", json!({"inputs": inputs}), definitions(json!({"l": kind("LIST")}))).await.unwrap();
    assert_eq!(files.parameters()["l"], json!([0, 2]));
    let artifacts = &files.executor_input()["inputs"]["artifacts"]["as"]["artifacts"];
    assert_eq!((artifacts[0]["uri"].as_str(), artifacts[1]["uri"].as_str()), (Some("gs://b/0"), Some("gs://b/2")));
    assert_eq!(artifacts.as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn nested_loops_collect_nested_parameters_and_flat_artifacts() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let task = json!({"parameterIterator": {"items": {"raw": "[1, 2]"}, "itemInput": "outer"}});
    let component = json!({
        "inputDefinitions": {"parameters": {"outer": kind("NUMBER_INTEGER")}},
        "dag": {"tasks": {"inner": {}, "use": {}}, "outputs": {
            "parameters": {"all": {"valueFromParameter": {"producerSubtask": "inner", "outputParameterKey": "all"}}},
            "artifacts": {"alls": {"artifactSelectors": [{"producerSubtask": "inner", "outputArtifactKey": "alls"}]}}}}});
    let head = world.dag(root, "outer", task.clone(), component.clone()).await.unwrap();
    assert_eq!(head.get("iteration-count"), Some("2"));
    for index in 0..2 {
        let iteration = world.iteration(head.id(), index, "outer", task.clone(), component.clone()).await;
        assert_eq!(world.execution(iteration).await.inputs().len(), 1);
        // Loops of unequal length, the second one empty.
        let items = if index == 0 { json!([1, 2, 3]) } else { json!([]) };
        run_loop(&world, iteration, "inner", items.clone()).await;
        // Within the iteration only the inner loop is crossed.
        let inputs = json!({"inputs": {"parameters": {"l": task_output("inner", "all")}}});
        let files = world.container(iteration, "use", inputs, definitions(json!({"l": kind("LIST")}))).await.unwrap();
        assert_eq!(files.parameters()["l"], items);
        world.finish(files.container(), State::Complete, json!({}), &[]).await;
    }
    assert_eq!(world.state(head.id()).await, State::Complete);
    let inputs = json!({"inputs": {
        "parameters": {"l": task_output("outer", "all")}, "artifacts": {"as": task_artifact("outer", "alls")}}});
    let files = world.container(root, "use", inputs, definitions(json!({"l": kind("LIST")}))).await.unwrap();
    assert_eq!(files.parameters()["l"], json!([[1, 2, 3], []]));
    let uris = uris(&files.executor_input());
    assert_eq!(uris, ["minio://b/1", "minio://b/2", "minio://b/3"]);
}

#[tokio::test]
async fn a_loop_within_a_loop_may_iterate_over_the_same_items() {
    let world = World::new().await;
    let root = world.root(json!({"letters": ["a", "b"]})).await;
    let task = json!({
        "inputs": {"parameters": {"letters": from_component("letters")}},
        "parameterIterator": {"items": {"inputParameter": "letters"}, "itemInput": "letters-item"}});
    let component = json!({
        "inputDefinitions": {"parameters": {"letters": kind("LIST"), "letters-item": kind("STRING")}}, "dag": {}});
    let outer = world.dag(root, "outer", task.clone(), component.clone()).await.unwrap();
    let iteration = world.iteration(outer.id(), 1, "outer", task.clone(), component.clone()).await;
    // What is recorded stays what upstream records.
    assert_eq!(world.execution(iteration).await.inputs().keys().collect::<Vec<_>>(), ["letters-item"]);
    let inner = world.dag(iteration, "inner", task.clone(), component.clone()).await.unwrap();
    assert_eq!(inner.get("iteration-count"), Some("2"));
    let iteration = world.iteration(inner.id(), 0, "inner", task, component).await;
    let inputs = json!({"inputs": {"parameters": {
        "item": from_component("letters-item"), "all": from_component("letters")}}});
    let component = definitions(json!({"item": kind("STRING"), "all": kind("LIST")}));
    let files = world.container(iteration, "t", inputs, component).await.unwrap();
    assert_eq!(files.parameters(), json!({"item": "a", "all": ["a", "b"]}));
    let absent = json!({"inputs": {"parameters": {"x": from_component("absent")}}});
    let error = world.container(iteration, "t", absent, json!({})).await.unwrap_err().to_string();
    assert!(error.contains("parent DAG does not have input parameter absent"), "{error}");
}

#[tokio::test]
async fn selectors_pick_fields_of_items_and_iterations_leave_them_alone() {
    let world = World::new().await;
    let root = world.root(json!({"item": {"list": [1, 2]}})).await;
    let mut selected = from_component("item");
    selected["parameterExpressionSelector"] = json!("parseJson(string_value)[\"list\"]");
    let task = json!({
        "inputs": {"parameters": {"items": selected}},
        "parameterIterator": {"items": {"inputParameter": "items"}, "itemInput": "one"}});
    let component = json!({
        "inputDefinitions": {"parameters": {"items": kind("LIST"), "one": kind("NUMBER_INTEGER")}}, "dag": {}});
    let head = world.dag(root, "loop", task.clone(), component.clone()).await.unwrap();
    assert_eq!(head.get("iteration-count"), Some("2"));
    let iteration = world.iteration(head.id(), 1, "loop", task, component).await;
    let inputs = world.execution(iteration).await.inputs();
    assert_eq!(inputs.keys().collect::<Vec<_>>(), ["one"]);
    assert_eq!(kfp_core::ir::to_json(&inputs["one"]), json!(2));
}
