//! Importers against a real metadata server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use kfp_core::mlmd::{self, NewExecution, State, names};
use kfp_core::shutdown::CancellationToken;
use kfp_launcher::{Error, Options, Outcome};
use serde_json::{Value, json};
use support::{RUN, World};

async fn import(world: &World, spec: &Value) -> Result<i64, Error> {
    import_from(world, spec, &json!({"componentInputParameter": "where"})).await
}

/// Imports with task input `uri` from `source`.
async fn import_from(world: &World, spec: &Value, source: &Value) -> Result<i64, Error> {
    let component = json!({"outputDefinitions": {"artifacts": {"artifact": {
        "artifactType": {"schemaTitle": "system.Dataset"}}}}});
    let task = json!({"taskInfo": {"name": "importer"},
        "inputs": {"parameters": {"uri": source, "n": {"runtimeValue": {"constant": 3}}}}});
    let (port, dag) = (world.metadata_port.to_string(), world.dag.to_string());
    let (task, spec, component) = (task.to_string(), spec.to_string(), component.to_string());
    let words = [
        "--executor_type",
        "importer",
        "--task_spec",
        &task,
        "--component_spec",
        &component,
        "--importer_spec",
        &spec,
        "--pipeline_name",
        "pipe",
        "--run_id",
        RUN,
        "--parent_dag_id",
        &dag,
        "--pod_name",
        "p",
        "--pod_uid",
        "u",
        "--mlmd_server_address",
        "127.0.0.1",
        "--mlmd_server_port",
        &port,
    ];
    let mut options = Options::from_args(words).unwrap_or_else(|stop| panic!("{stop:?}"));
    options.root = Some(world.pod(""));
    options.object_store_dir = Some(world.dir.path().join("store"));
    match kfp_launcher::run(options, CancellationToken::new()).await? {
        Outcome::Completed { execution } => Ok(execution),
        other => panic!("{other:?}"),
    }
}

async fn imported(world: &World, execution: i64) -> kfp_proto::ml_metadata::Artifact {
    world.metadata.output_artifacts(execution).await.unwrap().remove("artifact").unwrap()
}

#[tokio::test]
async fn artifacts_are_registered_once_unless_told_otherwise() {
    let world = World::new(1).await;
    let constant = json!({"artifactUri": {"constant": "s3://b/k"}, "typeSchema": {"schemaTitle": "system.Dataset"},
        "metadata": {"rows": "{{$.inputs.parameters['n']}}"}});
    let first = import(&world, &constant).await.unwrap();
    let execution = world.metadata.execution(first).await.unwrap();
    assert_eq!((execution.state(), execution.task_name()), (State::Complete, "importer"));
    assert_eq!(execution.type_name(), names::IMPORTER_EXECUTION);
    let artifact = imported(&world, first).await;
    assert_eq!((artifact.uri(), artifact.r#type()), ("s3://b/k", "system.Dataset"));
    assert!(artifact.custom_properties.contains_key("rows"));
    // The importer was the only task of its DAG.
    assert_eq!(world.state(world.dag).await, State::Complete);

    let again = import(&world, &constant).await.unwrap();
    assert_eq!(imported(&world, again).await.id, artifact.id);
    let mut forced = constant.clone();
    forced["reimport"] = json!(true);
    let third = import(&world, &forced).await.unwrap();
    assert_ne!(imported(&world, third).await.id, artifact.id);
}

#[tokio::test]
async fn the_address_may_be_a_parameter() {
    let world = World::new(1).await;
    let spec = json!({"artifactUri": {"runtimeParameter": "uri"}, "typeSchema": {"schemaTitle": "system.Dataset"}});
    let execution = import(&world, &spec).await.unwrap();
    assert_eq!(imported(&world, execution).await.uri(), "gs://other/data.csv");
}

#[tokio::test]
async fn the_address_may_be_an_output_of_a_nested_dag() {
    let world = World::new(2).await;
    let spec = json!({"artifactUri": {"runtimeParameter": "uri"}, "typeSchema": {"schemaTitle": "system.Dataset"}});
    let source = json!({"taskOutputParameter": {"producerTask": "group", "outputParameterKey": "address"}});
    let missing = import_from(&world, &spec, &source).await.unwrap_err().to_string();
    assert!(missing.contains("task \"group\" has no output \"address\""), "{missing}");

    let (metadata, run) = (&world.metadata, &world.run);
    let in_dag = |parent: i64, name: &str| -> BTreeMap<_, _> {
        [(names::PARENT_DAG_ID.to_owned(), mlmd::int(parent)), (names::TASK_NAME.to_owned(), mlmd::text(name))].into()
    };
    let from = r#"{"valueFromParameter":{"producerSubtask":"make","outputParameterKey":"u"}}"#;
    let producers = kfp_core::ir::struct_from_json(json!({"address": from}).as_object().unwrap());
    let mut group = in_dag(world.dag, "group");
    group.insert(names::PARAMETER_PRODUCER_TASK.to_owned(), mlmd::struct_value(producers));
    let dag = NewExecution {
        type_name: names::DAG_EXECUTION,
        state: State::Running,
        properties: group,
        ..NewExecution::default()
    };
    let dag = metadata.create_execution(run, dag).await.unwrap().id();
    let task = NewExecution {
        type_name: names::CONTAINER_EXECUTION,
        state: State::Running,
        properties: in_dag(dag, "make"),
        ..NewExecution::default()
    };
    let task = metadata.create_execution(run, task).await.unwrap();
    let outputs = [("u".to_owned(), kfp_core::ir::from_json(&json!("s3://b/made")))].into();
    metadata.publish(run, &task, State::Complete, Some(outputs), Vec::new()).await.unwrap();
    let execution = import_from(&world, &spec, &source).await.unwrap();
    assert_eq!(imported(&world, execution).await.uri(), "s3://b/made");
}

#[tokio::test]
async fn downloads_go_to_the_workspace() {
    let world = World::new(1).await;
    std::fs::create_dir_all(world.store("b")).unwrap();
    std::fs::write(world.store("b/k"), "x").unwrap();
    let spec = json!({"artifactUri": {"constant": "s3://b/k"}, "downloadToWorkspace": true});
    let execution = import(&world, &spec).await.unwrap();
    let kind = world.metadata.execution(execution).await.unwrap().type_name().to_owned();
    assert_eq!(kind, names::IMPORTER_WORKSPACE_EXECUTION);
    assert_eq!(std::fs::read_to_string(world.pod("/kfp-workspace/.artifacts/s3/b/k")).unwrap(), "x");
}

#[tokio::test]
async fn failures_are_recorded() {
    let world = World::new(1).await;
    let spec = json!({"artifactUri": {"constant": "/no/scheme"}});
    let error = import(&world, &spec).await.unwrap_err().to_string();
    assert!(error.contains("no provider scheme found in artifact URI: /no/scheme"), "{error}");
    let children = world.metadata.executions_of_dag(&world.run, world.dag).await.unwrap();
    assert_eq!(children.iter().map(kfp_core::mlmd::Execution::state).collect::<Vec<_>>(), [State::Failed]);
    assert_eq!(world.state(world.dag).await, State::Failed);
}
