//! The server as its clients see it: over gRPC and gRPC-Web on a port of its own, over each database.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // In helpers of tests a failure is the test's.

mod faults;
mod place;
mod proxy;
mod suite;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use kfp_core::shutdown::CancellationToken;
use kfp_metadata::{Options, Storage};
use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_metadata::metadata_store_service_client::MetadataStoreServiceClient;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::place::Place;

/// Every test of the suite over every database; those that are not installed are skipped, loudly.
macro_rules! over_every_database {
    ($($test:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                crate::suite::$test(&crate::place::Place::sqlite()).await;
            })*
        }
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let Some(place) = crate::place::Place::fresh(kfp_testdb::Engine::MariaDb) else { return };
                crate::suite::$test(&place).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let Some(place) = crate::place::Place::fresh(kfp_testdb::Engine::Postgres) else { return };
                crate::suite::$test(&place).await;
            })*
        }
    };
}

over_every_database! {
    parallel_writers_create_a_context_once
    parallel_tasks_publish_without_clashes
    two_servers_share_a_database
    unique_keys_answer_already_exists_and_write_nothing
    pages_hold_every_child_once
    presence_and_restart
    values_come_back_as_they_were
    filters_mean_the_same_everywhere
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

#[tokio::test]
async fn the_configuration_file_of_upstreams_server_brings_database_and_tls() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let database = folder.path().join("from-file.db");
    let text = format!(
        "connection_config {{ sqlite {{ filename_uri: {:?} }} }} ssl_config {{ server_cert: {:?} server_key: {:?} }}",
        database.display().to_string(),
        made.cert.pem(),
        made.signing_key.serialize_pem()
    );
    let file = folder.path().join("config.proto");
    std::fs::write(&file, text).unwrap();
    let flag = format!("--metadata_store_server_config_file={}", file.display());
    let mut options = Options::from_values(&Options::flags().parse([flag]).unwrap()).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    options.listener = Some(listener);
    let stop = CancellationToken::new();
    let serving = tokio::spawn(kfp_metadata::run(options, stop.clone()));

    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(made.cert.pem()));
    let endpoint = Endpoint::from_shared(format!("https://localhost:{port}")).unwrap().tls_config(tls).unwrap();
    let mut client = MetadataStoreServiceClient::new(endpoint.connect().await.unwrap());
    suite::artifact_type(&mut client, "system.Model").await;
    assert!(database.exists());
    let plain = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap().connect_lazy();
    let refused =
        MetadataStoreServiceClient::new(plain).get_artifact_types(pb::GetArtifactTypesRequest::default()).await;
    assert!(refused.is_err(), "not without TLS");
    stop.cancel();
    serving.await.unwrap().unwrap();
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
    let place = Place::sqlite();
    let mut server = place.serve().await;
    suite::artifact_type(&mut server.client, "system.Model").await;
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

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_stop_before_a_request_are_cut_off() {
    let place = Place::sqlite();
    let mut server = place.serve_with(|options| options.patience = Duration::from_millis(500)).await;
    let address = server.address;
    let slow = ["", "PRI * HT"].map(|said| {
        tokio::task::spawn_blocking(move || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            stream.write_all(said.as_bytes()).unwrap();
            stream.read_to_end(&mut Vec::new())
        })
    });
    suite::artifact_type(&mut server.client, "system.Model").await;
    for slow in slow {
        // An end or a reset, but not the end of the reader's patience.
        let end = slow.await.unwrap();
        assert!(end.is_ok() || end.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
    }
    server.stop().await;
}
