//! Servers over a database for a test.

use std::net::{SocketAddr, TcpListener};

use kfp_core::shutdown::CancellationToken;
use kfp_metadata::{Options, Remote, Storage};
use kfp_proto::ml_metadata::metadata_store_service_client::MetadataStoreServiceClient;
use kfp_testdb::Engine;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

pub type Client = MetadataStoreServiceClient<Channel>;

/// A database for one test.
pub struct Place {
    pub storage: Storage,
    _folder: Option<TempDir>,
}

pub struct Server {
    pub address: SocketAddr,
    pub client: Client,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), kfp_metadata::Error>>,
}

/// The storage that is a database of a server.
pub fn storage(server: &kfp_testdb::Server, database: &str) -> Storage {
    let remote = Remote {
        host: "127.0.0.1".to_owned(),
        port: server.port(),
        database: database.to_owned(),
        user: "root".to_owned(),
        ..Remote::default()
    };
    match server.engine() {
        Engine::MariaDb => Storage::MySql(remote),
        Engine::Postgres => Storage::Postgres(remote),
    }
}

impl Place {
    /// A file that does not exist, nor does its folder.
    pub fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { storage: Storage::Sqlite(folder.path().join("deep/mlmd.db")), _folder: Some(folder) }
    }

    /// A database that is there or is not.
    pub fn at(storage: Storage) -> Self {
        Self { storage, _folder: None }
    }

    /// An empty database, if the engine is installed.
    pub fn fresh(engine: Engine) -> Option<Self> {
        let server = engine.shared()?;
        Some(Self::at(storage(server, &server.fresh_name())))
    }

    /// A server that accepts calls.
    pub async fn serve(&self) -> Server {
        self.serve_with(|_| {}).await
    }

    /// A server whose options are changed first.
    pub async fn serve_with(&self, change: impl FnOnce(&mut Options)) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (ready, is_ready) = tokio::sync::oneshot::channel();
        let mut options = Options::new("127.0.0.1", 0, self.storage.clone());
        options.listener = Some(listener);
        options.ready = Some(ready);
        change(&mut options);
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(kfp_metadata::run(options, shutdown.clone()));
        if is_ready.await.is_err() {
            panic!("the server did not start: {:?}", running.await);
        }
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let client = Client::new(endpoint.connect().await.unwrap());
        Server { address, client, shutdown, running }
    }
}

impl Server {
    pub async fn stop(self) {
        drop(self.client);
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}
