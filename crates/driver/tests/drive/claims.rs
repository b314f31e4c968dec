//! Tasks that create and delete persistent volume claims.

use kfp_core::mlmd::{State, names};
use serde_json::{Value, json};

use crate::world::World;
use crate::{constant, definitions, kind, task_output};

#[tokio::test]
async fn claims_are_created_and_deleted_by_the_driver_itself() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let dag = world
        .dag(root, "group", json!({}), json!({"dag": {"tasks": {"create": {}, "delete": {}}}}))
        .await
        .unwrap()
        .id();
    let inputs = |list: Value| json!({"inputs": {"parameters": list}, "cachingOptions": {"enableCache": true}});
    let create = inputs(json!({
        "access_modes": constant(json!(["ReadWriteOnce"])), "size": constant(json!("1Gi")),
        "pvc_name_suffix": constant(json!("-data"))}));
    let component = definitions(json!({
        "access_modes": kind("LIST"), "size": kind("STRING"), "pvc_name_suffix": kind("STRING")}));
    let image = |name: &str| json!({"image": name});
    let files =
        world.container_with(dag, "create", create, component, image("argostub/createpvc"), json!({})).await.unwrap();
    assert_eq!((files.get("pod-spec-patch"), files.get("cached-decision")), (None, None));
    let claims: Vec<String> = world.objects.lock().unwrap().keys().cloned().collect();
    let name = claims[0].strip_prefix("persistentvolumeclaims/").unwrap().to_owned();
    assert!(name.ends_with("-data") && name.len() == 41, "{name}");
    let run = world.run().await;
    let children = world.services.metadata.executions_of_dag(&run, dag).await.unwrap();
    assert_eq!((children[0].state(), children[0].text(names::POD_NAME)), (State::Complete, "driver-pod"));
    assert_eq!(kfp_core::ir::to_json(&children[0].outputs()["name"]), json!(name));
    assert!(!children[0].inputs().contains_key(&name));
    assert_eq!(world.tasks.lock().unwrap().len(), 1);

    let component = definitions(json!({"pvc_name": kind("STRING")}));
    let delete = inputs(json!({"pvc_name": task_output("create", "name")}));
    let delete_image = image("argostub/deletepvc");
    // The second time the claim is gone, by this very task.
    for _ in 0..2 {
        world
            .container_with(dag, "delete", delete.clone(), component.clone(), delete_image.clone(), json!({}))
            .await
            .unwrap();
        assert!(world.objects.lock().unwrap().is_empty());
    }
    assert_eq!(world.state(dag).await, State::Complete);
    assert_eq!(world.tasks.lock().unwrap().len(), 1);
    // Another task has a claim to find; trying once more does not change that.
    for _ in 0..2 {
        let error = world
            .container_with(dag, "again", delete.clone(), component.clone(), delete_image.clone(), json!({}))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("failed to delete PVC and publish execution again"), "{error}");
    }
    let children = world.services.metadata.executions_of_dag(&run, dag).await.unwrap();
    let again = children.iter().find(|child| child.task_name() == "again").unwrap();
    assert_eq!(again.state(), State::Failed);
}

#[tokio::test]
async fn a_driver_that_runs_again_takes_its_own_claim_and_no_other() {
    let world = World::new().await;
    let root = world.root(json!({})).await;
    let inputs = |name: &str| {
        json!({"inputs": {"parameters": {"access_modes": constant(json!(["ReadWriteOnce"])),
            "size": constant(json!("1Gi")), (name): constant(json!("data"))}}})
    };
    let component =
        |name: &str| definitions(json!({"access_modes": kind("LIST"), "size": kind("STRING"), (name): kind("STRING")}));
    let image = || json!({"image": "argostub/createpvc"});
    for name in ["pvc_name", "pvc_name_suffix"] {
        world.objects.lock().unwrap().clear();
        for _ in 0..2 {
            // The first may have been killed after it made the claim and before it recorded that.
            world.container_with(root, "make", inputs(name), component(name), image(), json!({})).await.unwrap();
        }
        assert_eq!(world.objects.lock().unwrap().len(), 1, "{name}");
    }
    world.container_with(root, "make", inputs("pvc_name"), component("pvc_name"), image(), json!({})).await.unwrap();
    let error = world
        .container_with(root, "other", inputs("pvc_name"), component("pvc_name"), image(), json!({}))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("exists"), "{error}");
}
