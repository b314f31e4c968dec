//! What a store does over every database.

use kfp_proto::ml_metadata as pb;
use tokio::task::JoinSet;
use tonic::Code;

use crate::place::{Client, Place};

pub async fn context_type(client: &mut Client, name: &str) -> i64 {
    let context_type = Some(pb::ContextType { name: Some(name.into()), ..Default::default() });
    let request = pb::PutContextTypeRequest { context_type, ..Default::default() };
    client.put_context_type(request).await.unwrap().into_inner().type_id()
}

pub async fn execution_type(client: &mut Client, name: &str) -> i64 {
    let execution_type = Some(pb::ExecutionType { name: Some(name.into()), ..Default::default() });
    let request = pb::PutExecutionTypeRequest { execution_type, ..Default::default() };
    client.put_execution_type(request).await.unwrap().into_inner().type_id()
}

pub async fn artifact_type(client: &mut Client, name: &str) -> i64 {
    let artifact_type = Some(pb::ArtifactType { name: Some(name.into()), ..Default::default() });
    let request = pb::PutArtifactTypeRequest { artifact_type, ..Default::default() };
    client.put_artifact_type(request).await.unwrap().into_inner().type_id()
}

pub fn context(type_id: i64, name: &str) -> pb::Context {
    pb::Context { type_id: Some(type_id), name: Some(name.into()), ..Default::default() }
}

fn int(value: i64) -> pb::Value {
    pb::Value { value: Some(pb::value::Value::IntValue(value)) }
}

/// What the driver does: look, create if absent, tolerate ALREADY_EXISTS, look again.
async fn get_or_create(mut client: Client, type_id: i64, name: String) -> i64 {
    let wanted = pb::GetContextByTypeAndNameRequest {
        type_name: Some("system.PipelineRun".into()),
        context_name: Some(name.clone()),
        ..Default::default()
    };
    let found = client.get_context_by_type_and_name(wanted.clone()).await.unwrap().into_inner();
    if let Some(found) = found.context {
        return found.id();
    }
    let request = pb::PutContextsRequest { contexts: vec![context(type_id, &name)], ..Default::default() };
    if let Err(status) = client.put_contexts(request).await {
        assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    }
    client.get_context_by_type_and_name(wanted).await.unwrap().into_inner().context.unwrap().id()
}

pub async fn parallel_writers_create_a_context_once(place: &Place) {
    let mut server = place.serve().await;
    let run_type = context_type(&mut server.client, "system.PipelineRun").await;
    let task_type = execution_type(&mut server.client, "system.ContainerExecution").await;
    let mut creators = JoinSet::new();
    for _ in 0..64 {
        creators.spawn(get_or_create(server.client.clone(), run_type, "run-1".into()));
    }
    let ids = creators.join_all().await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");

    let mut publishers = JoinSet::new();
    for _ in 0..64 {
        let mut client = server.client.clone();
        publishers.spawn(async move {
            let request = pb::PutExecutionRequest {
                execution: Some(pb::Execution { type_id: Some(task_type), ..Default::default() }),
                contexts: vec![context(run_type, "run-2")],
                options: Some(pb::put_execution_request::Options {
                    reuse_context_if_already_exist: Some(true),
                    ..Default::default()
                }),
                ..Default::default()
            };
            client.put_execution(request).await.unwrap().into_inner()
        });
    }
    let published = publishers.join_all().await;
    let mut executions: Vec<i64> = published.iter().map(|answer| answer.execution_id()).collect();
    executions.sort_unstable();
    executions.dedup();
    assert_eq!(executions.len(), 64);
    assert!(published.iter().all(|answer| answer.context_ids == published[0].context_ids));
    let all = server.client.get_contexts(pb::GetContextsRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.contexts.len(), 2);
    let of_run = pb::GetExecutionsByContextRequest {
        context_id: published[0].context_ids.first().copied(),
        ..Default::default()
    };
    let found = server.client.get_executions_by_context(of_run).await.unwrap().into_inner();
    assert_eq!(found.executions.iter().map(pb::Execution::id).collect::<Vec<_>>(), executions);
    server.stop().await;
}

pub async fn unique_keys_answer_already_exists_and_write_nothing(place: &Place) {
    let mut server = place.serve().await;
    let client = &mut server.client;
    let of_context = context_type(client, "c").await;
    let of_execution = execution_type(client, "e").await;
    let of_artifact = artifact_type(client, "a").await;
    let contexts = vec![context(of_context, "one"), context(of_context, "two")];
    let put = pb::PutContextsRequest { contexts, ..Default::default() };
    client.put_contexts(put.clone()).await.unwrap();
    assert_eq!(client.put_contexts(put).await.unwrap_err().code(), Code::AlreadyExists);
    let parent = pb::PutParentContextsRequest {
        parent_contexts: vec![pb::ParentContext { child_id: Some(1), parent_id: Some(2), system_metadata: None }],
        ..Default::default()
    };
    client.put_parent_contexts(parent.clone()).await.unwrap();
    assert_eq!(client.put_parent_contexts(parent).await.unwrap_err().code(), Code::AlreadyExists);

    let event = pb::Event { r#type: Some(pb::event::Type::Input as i32), ..Default::default() };
    let pair = pb::put_execution_request::ArtifactAndEvent {
        artifact: Some(pb::Artifact { type_id: Some(of_artifact), ..Default::default() }),
        event: Some(event.clone()),
    };
    let publish = pb::PutExecutionRequest {
        execution: Some(pb::Execution { type_id: Some(of_execution), name: Some("task".into()), ..Default::default() }),
        artifact_event_pairs: vec![pair],
        ..Default::default()
    };
    let answer = client.put_execution(publish.clone()).await.unwrap().into_inner();
    // The artifact precedes the execution in the transaction; the clash on the name must take it away again.
    assert_eq!(client.put_execution(publish).await.unwrap_err().code(), Code::AlreadyExists);
    let artifacts = client.get_artifacts(pb::GetArtifactsRequest::default()).await.unwrap().into_inner();
    assert_eq!(artifacts.artifacts.len(), 1);
    let again = pb::PutEventsRequest {
        events: vec![pb::Event {
            artifact_id: Some(answer.artifact_ids[0]),
            execution_id: answer.execution_id,
            ..event
        }],
        ..Default::default()
    };
    assert_eq!(client.put_events(again).await.unwrap_err().code(), Code::AlreadyExists);
    server.stop().await;
}

async fn children(client: &mut Client, context: i64, size: i32) -> Vec<Vec<i64>> {
    let (mut pages, mut token) = (Vec::new(), String::new());
    loop {
        let options = pb::ListOperationOptions {
            max_result_size: Some(size),
            filter_query: Some("custom_properties.parent_dag_id.int_value = 7".into()),
            next_page_token: Some(token),
            ..Default::default()
        };
        let request = pb::GetExecutionsByContextRequest {
            context_id: Some(context),
            options: Some(options),
            ..Default::default()
        };
        let answer = client.get_executions_by_context(request).await.unwrap().into_inner();
        pages.push(answer.executions.iter().map(pb::Execution::id).collect());
        token = answer.next_page_token.unwrap_or_default();
        if token.is_empty() {
            return pages;
        }
    }
}

pub async fn pages_hold_every_child_once(place: &Place) {
    let mut server = place.serve().await;
    let client = &mut server.client;
    let of_context = context_type(client, "c").await;
    let of_execution = execution_type(client, "e").await;
    let contexts = vec![context(of_context, "one"), context(of_context, "two")];
    client.put_contexts(pb::PutContextsRequest { contexts, ..Default::default() }).await.unwrap();
    let executions = (0..250).map(|number| pb::Execution {
        type_id: Some(of_execution),
        custom_properties: [("parent_dag_id".to_owned(), int(7 + number % 2))].into(),
        ..Default::default()
    });
    let put = pb::PutExecutionsRequest { executions: executions.collect(), ..Default::default() };
    let ids = client.put_executions(put).await.unwrap().into_inner().execution_ids;
    let link = |id: &i64| pb::Association { execution_id: Some(*id), context_id: Some(1), system_metadata: None };
    let associations = ids.iter().map(link).collect();
    let put = pb::PutAttributionsAndAssociationsRequest { associations, ..Default::default() };
    client.put_attributions_and_associations(put).await.unwrap();

    let wanted: Vec<i64> = ids.iter().copied().step_by(2).collect();
    let pages = children(client, 1, 40).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [40, 40, 40, 5]);
    assert_eq!(pages.concat(), wanted);
    // More than a hundred are capped, and the rest follows.
    let pages = children(client, 1, 5000).await;
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [100, 25]);
    assert_eq!(children(client, 2, 40).await, [Vec::<i64>::new()]);
    // No options: everything.
    let request = pb::GetExecutionsByContextRequest { context_id: Some(1), ..Default::default() };
    let all = client.get_executions_by_context(request).await.unwrap().into_inner();
    assert_eq!(all.executions.len(), 250);
    assert_eq!(all.next_page_token, None);
    server.stop().await;
}

pub async fn presence_and_restart(place: &Place) {
    let mut server = place.serve().await;
    let client = &mut server.client;
    let of_execution = execution_type(client, "e").await;
    let null = prost_types::Value { kind: Some(prost_types::value::Kind::NullValue(0)) };
    let inputs = prost_types::Struct { fields: [("absent".to_owned(), null)].into() };
    let inputs = pb::Value { value: Some(pb::value::Value::StructValue(inputs)) };
    let bare = pb::Execution { type_id: Some(of_execution), ..Default::default() };
    let full = pb::Execution {
        name: Some(String::new()),
        last_known_state: Some(pb::execution::State::Unknown as i32),
        custom_properties: [
            ("inputs".to_owned(), inputs),
            ("task_name".to_owned(), pb::Value { value: Some(pb::value::Value::StringValue(String::new())) }),
        ]
        .into(),
        ..bare.clone()
    };
    let put = pb::PutExecutionsRequest { executions: vec![bare, full.clone()], ..Default::default() };
    client.put_executions(put).await.unwrap();
    let all = pb::GetExecutionsRequest::default();
    let before = client.get_executions(all.clone()).await.unwrap().into_inner().executions;
    assert_eq!((before[0].name.as_ref(), before[0].last_known_state), (None, None));
    assert_eq!((before[1].name.as_deref(), before[1].last_known_state), (Some(""), Some(0)));
    assert_eq!(before[1].custom_properties, full.custom_properties);
    assert_eq!(before[1].r#type.as_deref(), Some("e"));

    let mut unset = full;
    unset.custom_properties.insert("nothing".to_owned(), pb::Value { value: None });
    unset.name = Some("other".into());
    let refused = client.put_executions(pb::PutExecutionsRequest { executions: vec![unset], ..Default::default() });
    assert_eq!(refused.await.unwrap_err().code(), Code::InvalidArgument);
    server.stop().await;

    let mut server = place.serve().await;
    let after = server.client.get_executions(all).await.unwrap().into_inner().executions;
    assert_eq!(after, before);
    assert_eq!(execution_type(&mut server.client, "e").await, of_execution);
    let graph = server.client.get_lineage_graph(pb::GetLineageGraphRequest::default()).await.unwrap_err();
    assert_eq!(graph.code(), Code::Unimplemented);
    server.stop().await;
}

pub fn text(value: &str) -> pb::Value {
    pb::Value { value: Some(pb::value::Value::StringValue(value.into())) }
}

/// What driver and launcher of one task do: types, contexts, a new execution, its end with an output.
async fn run_task(mut client: Client, number: usize) -> (i64, Vec<i64>) {
    let execution_type = execution_type(&mut client, "system.ContainerExecution").await;
    let artifact_type = artifact_type(&mut client, "system.Model").await;
    let pipeline_type = context_type(&mut client, "system.Pipeline").await;
    let run_type = context_type(&mut client, "system.PipelineRun").await;
    let begin = pb::PutExecutionRequest {
        execution: Some(pb::Execution {
            type_id: Some(execution_type),
            name: Some(format!("task-{number}")),
            last_known_state: Some(pb::execution::State::Running as i32),
            custom_properties: [("number".to_owned(), int(number as i64))].into(),
            ..Default::default()
        }),
        contexts: vec![context(pipeline_type, "pipeline"), context(run_type, "run")],
        options: Some(pb::put_execution_request::Options {
            reuse_context_if_already_exist: Some(true),
            ..Default::default()
        }),
        ..Default::default()
    };
    let begun = client.put_execution(begin.clone()).await.unwrap().into_inner();
    let contexts = pb::GetContextsByIdRequest { context_ids: begun.context_ids.clone(), ..Default::default() };
    let contexts = client.get_contexts_by_id(contexts).await.unwrap().into_inner().contexts;
    let end = pb::PutExecutionRequest {
        execution: Some(pb::Execution {
            id: begun.execution_id,
            last_known_state: Some(pb::execution::State::Complete as i32),
            custom_properties: [("number".to_owned(), int(number as i64)), ("state".to_owned(), text("done"))].into(),
            ..begin.execution.unwrap()
        }),
        artifact_event_pairs: vec![pb::put_execution_request::ArtifactAndEvent {
            artifact: Some(pb::Artifact {
                type_id: Some(artifact_type),
                uri: Some(format!("minio://bucket/{number}")),
                ..Default::default()
            }),
            event: Some(pb::Event { r#type: Some(pb::event::Type::Output as i32), ..Default::default() }),
        }],
        contexts,
        ..Default::default()
    };
    client.put_execution(end).await.unwrap();
    (begun.execution_id(), begun.context_ids)
}

pub async fn parallel_tasks_publish_without_clashes(place: &Place) {
    let server = place.serve().await;
    let mut tasks = JoinSet::new();
    for number in 0..64 {
        tasks.spawn(run_task(server.client.clone(), number));
    }
    let done = tasks.join_all().await;
    assert!(done.iter().all(|(_, contexts)| *contexts == done[0].1), "{done:?}");
    let mut client = server.client.clone();
    let types = client.get_context_types(pb::GetContextTypesRequest::default()).await.unwrap().into_inner();
    assert_eq!(types.context_types.len(), 2);
    let types = client.get_execution_types(pb::GetExecutionTypesRequest::default()).await.unwrap().into_inner();
    assert_eq!(types.execution_types.len(), 1);
    let types = client.get_artifact_types(pb::GetArtifactTypesRequest::default()).await.unwrap().into_inner();
    assert_eq!(types.artifact_types.len(), 1);
    for context_id in &done[0].1 {
        let of = pb::GetExecutionsByContextRequest { context_id: Some(*context_id), ..Default::default() };
        let executions = client.get_executions_by_context(of).await.unwrap().into_inner().executions;
        assert_eq!(executions.len(), 64);
        let complete = pb::execution::State::Complete;
        assert!(executions.iter().all(|execution| execution.last_known_state() == complete));
        assert!(executions.iter().all(|execution| execution.custom_properties.len() == 2));
        let of = pb::GetArtifactsByContextRequest { context_id: Some(*context_id), ..Default::default() };
        assert_eq!(client.get_artifacts_by_context(of).await.unwrap().into_inner().artifacts.len(), 64);
    }
    // All write to one execution: the last one wins, and nobody meets the others' rows.
    let mut writers = JoinSet::new();
    for number in 0..32 {
        let (mut client, id) = (server.client.clone(), done[0].0);
        writers.spawn(async move {
            let name = format!("property-{}", number % 5);
            let execution = pb::Execution {
                id: Some(id),
                custom_properties: [(name, int(number)), ("same".to_owned(), int(number))].into(),
                ..Default::default()
            };
            let put = pb::PutExecutionsRequest { executions: vec![execution], ..Default::default() };
            client.put_executions(put).await.unwrap();
        });
    }
    writers.join_all().await;
    let by_id = pb::GetExecutionsByIdRequest { execution_ids: vec![done[0].0], ..Default::default() };
    let found = client.get_executions_by_id(by_id).await.unwrap().into_inner().executions;
    assert_eq!(found[0].custom_properties.len(), 2, "{found:?}");
    drop(client);
    server.stop().await;
}

pub async fn two_servers_share_a_database(place: &Place) {
    // Both find an empty database.
    let (mut first, second) = tokio::join!(place.serve(), place.serve());
    let mut tasks = JoinSet::new();
    for number in 0..16 {
        let server = if number % 2 == 0 { &first } else { &second };
        tasks.spawn(run_task(server.client.clone(), number));
    }
    let done = tasks.join_all().await;
    assert!(done.iter().all(|(_, contexts)| *contexts == done[0].1), "{done:?}");
    // After the nine simple types.
    let first_type = execution_type(&mut first.client, "system.ContainerExecution").await;
    assert!((10..=13).contains(&first_type), "{first_type}");
    second.stop().await;
    first.stop().await;
}

pub async fn values_come_back_as_they_were(place: &Place) {
    let mut server = place.serve().await;
    let client = &mut server.client;
    let of_artifact = artifact_type(client, "a").await;
    let any = prost_types::Any { type_url: "type.googleapis.com/x".into(), value: vec![0, 255, 1, 2] };
    let number = |value| prost_types::Value { kind: Some(prost_types::value::Kind::NumberValue(value)) };
    let list = prost_types::Struct { fields: (0..500).map(|at| (at.to_string(), number(f64::from(at)))).collect() };
    let value = |value| pb::Value { value: Some(value) };
    let values = [
        ("least", int(i64::MIN)),
        ("most", int(i64::MAX)),
        ("real", value(pb::value::Value::DoubleValue(0.1))),
        ("whole", value(pb::value::Value::DoubleValue(2.0))),
        ("yes", value(pb::value::Value::BoolValue(true))),
        ("no", value(pb::value::Value::BoolValue(false))),
        ("empty", text("")),
        ("quotes", text("'\"`\\ ?%_ $1 {{x}}\n")),
        ("letters", text("größe 日本 🦀")),
        ("spaces", text(" a ")),
        ("digits", text("007")),
        // More than an index page of PostgreSQL takes and more than MySQL's TEXT.
        ("long", text(&"0123456789abcdef".repeat(1 << 14))),
        ("struct", value(pb::value::Value::StructValue(list))),
        ("proto", value(pb::value::Value::ProtoValue(any))),
        // Names differ by case and by the letters that some collations take for the same.
        ("Struct", text("a")),
        ("STRUCT", text("A")),
        ("große", text("ss")),
        ("grosse", text("ss")),
    ];
    let artifact = pb::Artifact {
        type_id: Some(of_artifact),
        uri: Some("s3://bucket/Ä?x='1'".into()),
        name: Some("Name".into()),
        custom_properties: values.map(|(name, value)| (name.to_owned(), value)).into(),
        ..Default::default()
    };
    let other = pb::Artifact { name: Some("name".into()), ..artifact.clone() };
    let put = pb::PutArtifactsRequest { artifacts: vec![artifact.clone(), other], ..Default::default() };
    let ids = client.put_artifacts(put).await.unwrap().into_inner().artifact_ids;
    let by_id = pb::GetArtifactsByIdRequest { artifact_ids: ids.clone(), ..Default::default() };
    let found = client.get_artifacts_by_id(by_id).await.unwrap().into_inner().artifacts;
    for found in &found {
        assert_eq!(found.custom_properties, artifact.custom_properties);
        assert_eq!(found.uri, artifact.uri);
    }
    let by_uri = pb::GetArtifactsByUriRequest { uris: vec![artifact.uri.clone().unwrap()], ..Default::default() };
    assert_eq!(client.get_artifacts_by_uri(by_uri).await.unwrap().into_inner().artifacts.len(), 2);

    // An event's path keeps its steps in order.
    let of_execution = execution_type(client, "e").await;
    let step = |value| pb::event::path::Step { value: Some(value) };
    let path = pb::event::Path {
        steps: vec![
            step(pb::event::path::step::Value::Key("out".into())),
            step(pb::event::path::step::Value::Index(i64::MAX)),
        ],
    };
    let event = pb::Event {
        artifact_id: ids.first().copied(),
        r#type: Some(pb::event::Type::Output as i32),
        path: Some(path),
        milliseconds_since_epoch: Some(1 << 41),
        ..Default::default()
    };
    let publish = pb::PutExecutionRequest {
        execution: Some(pb::Execution { type_id: Some(of_execution), ..Default::default() }),
        artifact_event_pairs: vec![pb::put_execution_request::ArtifactAndEvent {
            artifact: None,
            event: Some(event.clone()),
        }],
        ..Default::default()
    };
    let execution_id = client.put_execution(publish).await.unwrap().into_inner().execution_id;
    let events = pb::GetEventsByArtifactIDsRequest { artifact_ids: ids, ..Default::default() };
    let events = client.get_events_by_artifact_i_ds(events).await.unwrap().into_inner().events;
    assert_eq!(events, [pb::Event { execution_id, ..event }]);

    // A name longer than the column, where columns have lengths, is the caller's fault.
    if !matches!(place.storage, kfp_metadata::Storage::Sqlite(_)) {
        let long = pb::Artifact {
            name: Some("n".repeat(256)),
            ..pb::Artifact { type_id: Some(of_artifact), ..Default::default() }
        };
        let put = pb::PutArtifactsRequest { artifacts: vec![long], ..Default::default() };
        assert_eq!(client.put_artifacts(put).await.unwrap_err().code(), Code::InvalidArgument);
    }
    server.stop().await;
}

pub async fn filters_mean_the_same_everywhere(place: &Place) {
    let mut server = place.serve().await;
    let client = &mut server.client;
    let of_artifact = artifact_type(client, "a").await;
    let value = |value| pb::Value { value: Some(value) };
    let artifacts = (1..=6).map(|number| pb::Artifact {
        type_id: Some(of_artifact),
        uri: Some(format!("s3://b/{number}_%")),
        state: (number > 3).then_some(pb::artifact::State::Live as i32),
        name: (number % 2 == 0).then(|| format!("Even{number}")),
        custom_properties: [
            ("i".to_owned(), int(number)),
            ("d".to_owned(), value(pb::value::Value::DoubleValue(number as f64 / 2.0))),
            ("s".to_owned(), text(if number == 5 { "five" } else { "x" })),
            ("b".to_owned(), value(pb::value::Value::BoolValue(number > 4))),
        ]
        .into(),
        ..Default::default()
    });
    let put = pb::PutArtifactsRequest { artifacts: artifacts.collect(), ..Default::default() };
    client.put_artifacts(put).await.unwrap();
    let contexts = context_type(client, "c").await;
    let put = pb::PutContextsRequest { contexts: vec![context(contexts, "one")], ..Default::default() };
    client.put_contexts(put).await.unwrap();
    let attributions =
        [2, 3].map(|id| pb::Attribution { artifact_id: Some(id), context_id: Some(1), system_metadata: None });
    let put = pb::PutAttributionsAndAssociationsRequest { attributions: attributions.into(), ..Default::default() };
    client.put_attributions_and_associations(put).await.unwrap();
    for (query, wanted) in [
        ("custom_properties.i.int_value = 3", vec![3]),
        ("custom_properties.i.int_value > 4.5", vec![5, 6]),
        ("custom_properties.d.double_value <= 1", vec![1, 2]),
        ("custom_properties.d.double_value = 1.5", vec![3]),
        ("custom_properties.s.string_value = 'five'", vec![5]),
        ("custom_properties.b.bool_value = true", vec![5, 6]),
        ("custom_properties.b.bool_value", vec![5, 6]),
        ("custom_properties.b.bool_value IS FALSE", vec![1, 2, 3, 4]),
        ("custom_properties.b.bool_value = NULL", vec![]),
        ("NOT custom_properties.b.bool_value", vec![1, 2, 3, 4]),
        ("custom_properties.i.int_value = 1 OR custom_properties.d.double_value = 3", vec![1, 6]),
        ("id IN (1, 3, 99) AND TRUE", vec![1, 3]),
        ("id NOT IN (1, 3) AND id < 5", vec![2, 4]),
        ("id + 1 = 3 OR -id = -6", vec![2, 6]),
        ("id BETWEEN 2 AND 4.5", vec![2, 3, 4]),
        ("1 = 2", vec![]),
        ("name IS NULL", vec![1, 3, 5]),
        ("name LIKE 'Even%' AND id > 2", vec![4, 6]),
        (r"uri LIKE '%/4\_\%'", vec![4]),
        ("uri LIKE '%_3'", vec![]),
        ("state = LIVE", vec![4, 5, 6]),
        ("state != LIVE", vec![1, 2, 3]),
        ("type = 'a' AND id = 1", vec![1]),
        ("contexts_a.name = 'one'", vec![2, 3]),
        ("contexts_a.type = 'c' AND contexts_b.id = 1", vec![2, 3]),
        ("create_time_since_epoch > 0 AND last_update_time_since_epoch > 1.5 AND id = 6", vec![6]),
    ] {
        let options = pb::ListOperationOptions {
            max_result_size: Some(10),
            filter_query: Some(query.into()),
            order_by_field: Some(pb::list_operation_options::OrderByField {
                field: Some(pb::list_operation_options::order_by_field::Field::Id as i32),
                is_asc: Some(true),
            }),
            ..Default::default()
        };
        let list = pb::GetArtifactsRequest { options: Some(options), ..Default::default() };
        let found = client.get_artifacts(list).await.unwrap_or_else(|status| panic!("{query}: {status}"));
        let found: Vec<i64> = found.into_inner().artifacts.iter().map(pb::Artifact::id).collect();
        assert_eq!(found, wanted, "{query}");
    }
    server.stop().await;
}
