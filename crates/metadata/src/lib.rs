//! The metadata store: the protocol, behaviour and tables of ML Metadata, served over gRPC and gRPC-Web on one port.

mod calls;
mod config_file;
mod database;
mod edges;
mod failure;
mod filter;
mod lineage;
mod list;
mod model;
mod nodes;
pub mod options;
mod publish;
mod schema;
mod service;
mod types;
mod values;

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderName, Method};
use kfp_core::grpc::Transport;
use kfp_core::shutdown::CancellationToken;
use kfp_proto::ml_metadata::metadata_store_service_server::MetadataStoreServiceServer;
use tonic::Code;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic_web::GrpcWebLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

pub use crate::config_file::ServerTls;
use crate::database::Database;
use crate::failure::Failure;
pub use crate::options::{Options, Ready, Remote, Storage, Tls};
use crate::service::Service;

/// Largest message in either direction, as upstream's clients and manifests set it.
const LARGEST_MESSAGE: usize = 100 * 1024 * 1024;
/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause before the database is opened again after a failure at the start; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long calls in flight may go on after the shutdown began.
const GRACE: Duration = Duration::from_secs(10);

/// Why the server did not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag is wrong.
    #[error("{0}")]
    Options(String),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// Host and port.
        address: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The database cannot be opened.
    #[error("cannot open the metadata database {database}: {reason}")]
    Open {
        /// The file, or user, host and name.
        database: String,
        /// Why.
        reason: String,
    },
    /// The server failed while it served.
    #[error("the metadata server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

fn bind(host: &str, port: u16) -> Result<TcpListener, Error> {
    TcpListener::bind((host, port)).map_err(|source| Error::Listen { address: format!("{host}:{port}"), source })
}

/// Opens the database and makes its tables ready, trying again as often as the options say.
async fn open(storage: &Storage, retries: u32) -> Result<Database, Error> {
    let mut pause = FIRST_PAUSE;
    let mut left = retries;
    loop {
        let reason = match prepared(storage).await {
            Ok(database) => return Ok(database),
            // What is in the database does not change by waiting.
            Err(failure) if left == 0 || failure.code == Code::FailedPrecondition => failure.message,
            Err(failure) => {
                tracing::warn!("cannot open the metadata database yet: {failure}");
                tokio::time::sleep(pause).await;
                (pause, left) = (pause * 2, left - 1);
                continue;
            }
        };
        return Err(Error::Open { database: name(storage), reason });
    }
}

async fn prepared(storage: &Storage) -> Result<Database, Failure> {
    let database = Database::open(storage).await?;
    while !database.write(Box::new(|tx| Box::pin(schema::prepare(tx)))).await? {}
    if let Err(failure) = database.write(Box::new(|tx| Box::pin(schema::shorten_indexes(tx)))).await {
        tracing::warn!("parameters of more than 2 KB may be refused, as an index cannot be replaced: {failure}");
    }
    Ok(database)
}

fn name(storage: &Storage) -> String {
    match storage {
        Storage::Sqlite(path) => path.display().to_string(),
        Storage::Memory => ":memory:".to_owned(),
        Storage::MySql(remote) | Storage::Postgres(remote) => format!("{remote:?}"),
    }
}

/// Browsers call from the UI's origin, whatever it is; there are no cookies to protect.
fn cors() -> CorsLayer {
    let exposed = ["grpc-status", "grpc-message", "grpc-status-details-bin"].map(HeaderName::from_static);
    CorsLayer::new()
        .allow_origin(AllowOrigin::any())
        .allow_methods([Method::POST, Method::GET])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed)
        .max_age(Duration::from_secs(24 * 60 * 60))
}

fn server_tls(tls: &ServerTls) -> ServerTlsConfig {
    let own = ServerTlsConfig::new().identity(Identity::from_pem(&tls.certificate, &tls.key));
    if tls.client_authorities.is_empty() {
        return own;
    }
    own.client_ca_root(Certificate::from_pem(&tls.client_authorities)).client_auth_optional(!tls.verify_clients)
}

/// Serves until `shutdown` is cancelled, then finishes the calls in flight and closes the database.
///
/// # Errors
/// When the address cannot be bound, the database cannot be opened, or serving fails.
pub fn run(options: Options, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that all of it is compiled in this crate, once, and not in each that awaits it.
    Box::pin(run_unboxed(options, shutdown))
}

async fn run_unboxed(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let listener = match options.listener {
        Some(listener) => listener,
        None => bind(&options.host, options.port)?,
    };
    let unusable = |source| Error::Listen { address: format!("{}:{}", options.host, options.port), source };
    listener.set_nonblocking(true).map_err(unusable)?;
    let address: SocketAddr = listener.local_addr().map_err(unusable)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(unusable)?;
    if options.storage == Storage::Memory {
        tracing::warn!("no database is configured: metadata lives in memory and ends with this process");
    }
    let database = open(&options.storage, options.retries).await?;
    let (health, health_service) = tonic_health::server::health_reporter();
    let service = MetadataStoreServiceServer::new(Service::new(database.clone()))
        .max_decoding_message_size(LARGEST_MESSAGE)
        .max_encoding_message_size(LARGEST_MESSAGE);
    health.set_serving::<MetadataStoreServiceServer<Service>>().await;
    tracing::info!(%address, storage = ?options.storage, "metadata store is serving");
    if let Some(ready) = options.ready {
        // Nobody may be waiting any more; the server runs all the same.
        let _ = ready.send(Ready { address, transport: Transport::in_process(service.clone()) });
    }
    let stopping = shutdown.clone();
    let mut builder = Server::builder();
    if let Some(tls) = &options.tls {
        builder =
            builder.tls_config(server_tls(tls)).map_err(|error| Error::Options(format!("ssl_config: {error}")))?;
    }
    let serving = builder
        .accept_http1(true)
        .timeout(CALL_TIMEOUT)
        .layer(cors())
        .layer(GrpcWebLayer::new())
        .add_service(service)
        .add_service(health_service)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), async move {
            stopping.cancelled().await
        });
    // Clients keep connections open; calls get a while to end, idle connections do not hold the process.
    let late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(GRACE).await;
    };
    let served = tokio::select! {
        served = serving => served,
        () = late => Ok(()),
    };
    database.close().await;
    served?;
    Ok(())
}
