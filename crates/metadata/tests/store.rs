//! The server as its clients see it: over gRPC and gRPC-Web on a port of its own.
#![allow(clippy::unwrap_used)] // In helpers of tests a failure is the test's.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use kfp_core::shutdown::CancellationToken;
use kfp_metadata::{Options, Storage};
use kfp_proto::ml_metadata as pb;
use pb::metadata_store_service_client::MetadataStoreServiceClient;
use tokio::task::{JoinHandle, JoinSet};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

type Client = MetadataStoreServiceClient<Channel>;

struct Server {
    address: SocketAddr,
    client: Client,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), kfp_metadata::Error>>,
}

impl Server {
    async fn start(file: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let mut options = Options::new("127.0.0.1", 0, Storage::Sqlite(file.to_owned()));
        options.listener = Some(listener);
        options.ready = Some(ready);
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(kfp_metadata::run(options, shutdown.clone()));
        assert_eq!(is_ready.await.unwrap(), address);
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let client = Client::new(endpoint.connect().await.unwrap());
        Self { address, client, shutdown, running }
    }

    async fn stop(self) {
        drop(self.client);
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

async fn context_type(client: &mut Client, name: &str) -> i64 {
    let context_type = Some(pb::ContextType { name: Some(name.into()), ..Default::default() });
    let request = pb::PutContextTypeRequest { context_type, ..Default::default() };
    client.put_context_type(request).await.unwrap().into_inner().type_id()
}

async fn execution_type(client: &mut Client, name: &str) -> i64 {
    let execution_type = Some(pb::ExecutionType { name: Some(name.into()), ..Default::default() });
    let request = pb::PutExecutionTypeRequest { execution_type, ..Default::default() };
    client.put_execution_type(request).await.unwrap().into_inner().type_id()
}

async fn artifact_type(client: &mut Client, name: &str) -> i64 {
    let artifact_type = Some(pb::ArtifactType { name: Some(name.into()), ..Default::default() });
    let request = pb::PutArtifactTypeRequest { artifact_type, ..Default::default() };
    client.put_artifact_type(request).await.unwrap().into_inner().type_id()
}

fn context(type_id: i64, name: &str) -> pb::Context {
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

#[tokio::test(flavor = "multi_thread")]
async fn parallel_writers_create_a_context_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder.path().join("mlmd.db")).await;
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

#[tokio::test]
async fn unique_keys_answer_already_exists_and_write_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder.path().join("mlmd.db")).await;
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

#[tokio::test]
async fn pages_hold_every_child_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder.path().join("mlmd.db")).await;
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

#[tokio::test]
async fn presence_and_restart() {
    let folder = tempfile::tempdir().unwrap();
    // The directory is created too.
    let file = folder.path().join("deep/mlmd.db");
    let mut server = Server::start(&file).await;
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

    let mut server = Server::start(&file).await;
    let after = server.client.get_executions(all).await.unwrap().into_inner().executions;
    assert_eq!(after, before);
    assert_eq!(execution_type(&mut server.client, "e").await, of_execution);
    let graph = server.client.get_lineage_graph(pb::GetLineageGraphRequest::default()).await.unwrap_err();
    assert_eq!(graph.code(), Code::Unimplemented);
    server.stop().await;
}

#[tokio::test]
async fn foreign_databases_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text.db");
    std::fs::write(&text, "this is no database, just a file that is long enough to have a header").unwrap();
    let run = |file: &Path| {
        let options = Options::new("127.0.0.1", 0, Storage::Sqlite(file.to_owned()));
        kfp_metadata::run(options, CancellationToken::new())
    };
    let error = run(&text).await.unwrap_err().to_string();
    assert!(error.contains("text.db"), "{error}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let options = Options::new("127.0.0.1", port, Storage::Sqlite(folder.path().join("new.db")));
    let error = kfp_metadata::run(options, CancellationToken::new()).await.unwrap_err().to_string();
    assert!(error.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{error}");
}

/// Sends an HTTP/1.1 request and reads until the server closes.
fn http(address: SocketAddr, head: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let length = body.len();
    let head =
        format!("{head}Host: localhost\r\nOrigin: http://ui\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn browsers_speak_grpc_web_on_the_same_port() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(&folder.path().join("mlmd.db")).await;
    artifact_type(&mut server.client, "system.Model").await;
    let address = server.address;
    let path = "/ml_metadata.MetadataStoreService/GetArtifactTypes";
    let answers = tokio::task::spawn_blocking(move || {
        let call = format!("POST {path} HTTP/1.1\r\nContent-Type: application/grpc-web+proto\r\nX-Grpc-Web: 1\r\n");
        let preflight = format!(
            "OPTIONS {path} HTTP/1.1\r\nAccess-Control-Request-Method: POST\r\n\
             Access-Control-Request-Headers: content-type,x-grpc-web,x-user-agent\r\n"
        );
        (http(address, &call, &[0, 0, 0, 0, 0]), http(address, &preflight, &[]))
    });
    let (call, preflight) = answers.await.unwrap();
    let lower = call.to_ascii_lowercase();
    assert!(lower.starts_with("http/1.1 200"), "{call}");
    assert!(lower.contains("content-type: application/grpc-web+proto"), "{call}");
    assert!(lower.contains("access-control-allow-origin: *"), "{call}");
    assert!(call.contains("system.Model") && lower.contains("grpc-status:0"), "{call}");
    let lower = preflight.to_ascii_lowercase();
    assert!(lower.starts_with("http/1.1 200"), "{preflight}");
    assert!(lower.contains("access-control-allow-headers: content-type,x-grpc-web,x-user-agent"), "{preflight}");
    server.stop().await;
}
