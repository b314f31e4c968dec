//! Drivers that are started again because nobody knows what became of the first one.

use kfp_core::mlmd::State;
use serde_json::{Value, json};

use crate::world::World;

/// The executions of the run, whatever became of them.
async fn states(world: &World, up_to: i64) -> Vec<State> {
    let mut states = Vec::new();
    for id in 1..=up_to {
        states.push(world.state(id).await);
    }
    states
}

#[tokio::test]
async fn the_second_driver_goes_on_with_the_execution_of_the_first() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let group = json!({"dag": {"tasks": {"t": {}}}});
    let dag = world.dag(root, "group", json!({}), group.clone()).await.unwrap().id();
    assert_eq!(world.dag(root, "group", json!({}), group.clone()).await.unwrap().id(), dag);
    let task = json!({"inputs": {"parameters": {"n": {"runtimeValue": {"constant": 3}}}}});
    let component = json!({"inputDefinitions": {"parameters": {"n": {"parameterType": "NUMBER_INTEGER"}}}});
    let first = world.container(dag, "t", task.clone(), component.clone()).await.unwrap().container();
    let second = world.container(dag, "t", task.clone(), component.clone()).await.unwrap();
    assert_eq!((second.container(), second.parameters()), (first, json!({"n": 3})));
    // As a task is tried again by hand: the failure stays to be seen.
    world.finish(first, State::Failed, json!({}), &[]).await;
    let again = world.container(dag, "t", task.clone(), component.clone()).await.unwrap().container();
    assert_ne!(again, first);
    assert_eq!(world.container(dag, "t", task, component).await.unwrap().container(), again);
    assert_eq!((world.state(first).await, world.state(again).await), (State::Failed, State::Running));
    world.finish(again, State::Complete, json!({}), &[]).await;
    assert_eq!(states(&world, again).await, [State::Running, State::Complete, State::Failed, State::Complete]);
}

#[tokio::test]
async fn other_tasks_iterations_and_runs_have_executions_of_their_own() {
    let mut world = World::new().await;
    let root = world.root(json!({})).await;
    let other = world.dag(root, "other", json!({}), json!({"dag": {}})).await.unwrap().id();
    let mut seen = vec![root, other];
    for (dag, name) in [(root, "a"), (root, "b"), (other, "a")] {
        seen.push(world.container(dag, name, json!({}), json!({})).await.unwrap().container());
    }
    let items = json!({"parameterIterator": {"items": {"raw": "[1, 2]"}, "itemInput": "item"}});
    let body = json!({"inputDefinitions": {"parameters": {"item": {"parameterType": "NUMBER_INTEGER"}}}, "dag": {}});
    let head = world.dag(root, "loop", items.clone(), body.clone()).await.unwrap().id();
    seen.push(head);
    for index in 0..2 {
        seen.push(world.iteration(head, index, "loop", items.clone(), body.clone()).await);
    }
    world.next_run("run-2");
    let root = world.root(json!({})).await;
    seen.extend([root, world.container(root, "a", json!({}), json!({})).await.unwrap().container()]);
    let mut distinct = seen.clone();
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), seen.len(), "{seen:?}");
}

#[tokio::test]
async fn tasks_that_may_share_their_name_are_not_taken_for_one_another() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let drive = async |kind: &str| {
        let args: [(&str, Value); 6] = [
            ("type", json!(kind)),
            ("dag_execution_id", json!(root)),
            // No `--task_name`, as from an older compiler.
            ("task", json!({"taskInfo": {"name": "shown"}})),
            ("component", json!({})),
            ("container", json!({"image": "i", "command": ["c"]})),
            ("kubernetes_config", json!({})),
        ];
        world.drive(&args).await.unwrap().container()
    };
    assert_ne!(drive("CONTAINER").await, drive("CONTAINER").await);
}
