//! The metadata store: the protocol, behaviour and tables of ML Metadata, served over gRPC and gRPC-Web on one port.

mod calls;
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
use std::path::Path;
use std::time::Duration;

use http::{HeaderName, Method};
use kfp_core::shutdown::CancellationToken;
use kfp_proto::ml_metadata::metadata_store_service_server::MetadataStoreServiceServer;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_web::GrpcWebLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::database::Database;
pub use crate::options::{Options, Storage};
use crate::service::Service;

/// Largest message in either direction, as upstream's clients and manifests set it.
const LARGEST_MESSAGE: usize = 100 * 1024 * 1024;
/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
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
    #[error("cannot open the metadata database {path}: {reason}")]
    Open {
        /// The file.
        path: String,
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

async fn open(storage: &Storage) -> Result<Database, Error> {
    let name = match storage {
        Storage::Sqlite(path) => path.display().to_string(),
        Storage::Memory => ":memory:".to_owned(),
    };
    let failed = |reason: String| Error::Open { path: name.clone(), reason };
    if let Storage::Sqlite(path) = storage
        && let Some(parent) = path.parent().filter(|parent| *parent != Path::new(""))
    {
        std::fs::create_dir_all(parent).map_err(|error| failed(error.to_string()))?;
    }
    let database = match storage {
        Storage::Sqlite(path) => Database::sqlite(path).await,
        Storage::Memory => Database::memory().await,
    };
    let database = database.map_err(|error| failed(error.to_string()))?;
    let mut tx = database.write().await.map_err(|failure| failed(failure.message))?;
    schema::prepare(&mut tx).await.map_err(|failure| failed(failure.message))?;
    tx.commit().await.map_err(|failure| failed(failure.message))?;
    Ok(database)
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

/// Serves until `shutdown` is cancelled, then finishes the calls in flight and closes the database.
///
/// # Errors
/// When the address cannot be bound, the database cannot be opened, or serving fails.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
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
    let database = open(&options.storage).await?;
    let (health, health_service) = tonic_health::server::health_reporter();
    let service = MetadataStoreServiceServer::new(Service::new(database.clone()))
        .max_decoding_message_size(LARGEST_MESSAGE)
        .max_encoding_message_size(LARGEST_MESSAGE);
    health.set_serving::<MetadataStoreServiceServer<Service>>().await;
    tracing::info!(%address, storage = ?options.storage, "metadata store is serving");
    if let Some(ready) = options.ready {
        // Nobody may be waiting any more; the server runs all the same.
        let _ = ready.send(address);
    }
    let stopping = shutdown.clone();
    let serving = Server::builder()
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
