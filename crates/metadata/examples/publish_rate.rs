//! Measures execution publications per second through gRPC, as drivers and launchers send them.
//!
//! `cargo run --release -p kfp-metadata --example publish_rate [PUBLICATIONS] [CLIENTS] [sqlite | mariadb | postgres]`

use std::time::Instant;

use kfp_core::shutdown::CancellationToken;
use kfp_metadata::{Options, Remote, Storage};
use kfp_proto::ml_metadata as pb;
use kfp_testdb::Engine;
use pb::metadata_store_service_client::MetadataStoreServiceClient as Client;
use tokio::task::JoinSet;
use tonic::transport::Endpoint;

fn text(value: &str) -> pb::Value {
    pb::Value { value: Some(pb::value::Value::StringValue(value.to_owned())) }
}

fn publication(of: (i64, i64), contexts: &[pb::Context]) -> pb::PutExecutionRequest {
    let properties = ["display_name", "task_name", "pod_name", "pod_uid", "namespace", "image"];
    let artifact = pb::Artifact {
        type_id: Some(of.1),
        uri: Some("minio://mlpipeline/v2/artifacts/p/r/t/model".into()),
        custom_properties: [("display_name".to_owned(), text("model"))].into(),
        ..Default::default()
    };
    let event = pb::Event { r#type: Some(pb::event::Type::Output as i32), ..Default::default() };
    pb::PutExecutionRequest {
        execution: Some(pb::Execution {
            type_id: Some(of.0),
            last_known_state: Some(pb::execution::State::Complete as i32),
            custom_properties: properties.map(|name| (name.to_owned(), text("some value"))).into(),
            ..Default::default()
        }),
        artifact_event_pairs: vec![pb::put_execution_request::ArtifactAndEvent {
            artifact: Some(artifact),
            event: Some(event),
        }],
        contexts: contexts.to_vec(),
        ..Default::default()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut words = std::env::args().skip(1);
    let total: usize = words.next().unwrap_or_else(|| "10000".to_owned()).parse()?;
    let clients: usize = words.next().unwrap_or_else(|| "16".to_owned()).parse()?;
    let folder = tempfile::tempdir()?;
    let engine = words.next();
    let engine = match engine.as_deref() {
        Some("mariadb") => Some(Engine::MariaDb),
        Some("postgres") => Some(Engine::Postgres),
        _ => None,
    };
    let database = engine.and_then(Engine::start);
    let remote = database.as_ref().map(|database| Remote {
        host: "127.0.0.1".to_owned(),
        port: database.port(),
        database: database.fresh_name(),
        user: "root".to_owned(),
        ..Remote::default()
    });
    let storage = match (engine, remote) {
        (Some(Engine::MariaDb), Some(remote)) => Storage::MySql(remote),
        (Some(Engine::Postgres), Some(remote)) => Storage::Postgres(remote),
        (Some(engine), None) => anyhow::bail!("{engine:?} is not installed"),
        _ => Storage::Sqlite(folder.path().join("mlmd.db")),
    };
    let mut options = Options::new("127.0.0.1", 0, storage);
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    options.listener = Some(listener);
    let shutdown = CancellationToken::new();
    let server = tokio::spawn(kfp_metadata::run(options, shutdown.clone()));
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let mut client = Client::new(endpoint.connect().await?);
    let types = pb::PutTypesRequest {
        execution_types: vec![pb::ExecutionType { name: Some("e".into()), ..Default::default() }],
        artifact_types: vec![pb::ArtifactType { name: Some("a".into()), ..Default::default() }],
        context_types: vec![pb::ContextType { name: Some("c".into()), ..Default::default() }],
        ..Default::default()
    };
    let types = client.put_types(types).await?.into_inner();
    let new = |name: &str| pb::Context {
        type_id: types.context_type_ids.first().copied(),
        name: Some(name.to_owned()),
        ..Default::default()
    };
    let put = pb::PutContextsRequest { contexts: vec![new("pipeline"), new("run")], ..Default::default() };
    client.put_contexts(put).await?;
    let contexts = client.get_contexts(pb::GetContextsRequest::default()).await?.into_inner().contexts;
    let of = (types.execution_type_ids[0], types.artifact_type_ids[0]);
    let begin = Instant::now();
    let mut workers = JoinSet::new();
    for _ in 0..clients {
        let (mut client, contexts) = (Client::new(endpoint.connect().await?), contexts.clone());
        workers.spawn(async move {
            for _ in 0..total / clients {
                client.put_execution(publication(of, &contexts)).await?;
            }
            Ok::<_, tonic::Status>(())
        });
    }
    for done in workers.join_all().await {
        done?;
    }
    let seconds = begin.elapsed().as_secs_f64();
    println!("{total} publications by {clients} clients: {:.0} per second", total as f64 / seconds);
    drop(client);
    shutdown.cancel();
    server.await??;
    Ok(())
}
