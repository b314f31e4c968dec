//! TLS on both ports, and certificates that are renewed while the server runs.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use kfp_apiserver::tls::Settings;
use kfp_core::https;
use kfp_proto::api;
use support::{Kube, launch};

/// Writes a new certificate and returns it.
fn certificate(dir: &Path) -> Vec<u8> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    // The key first: a certificate without its key is not taken, and both are looked at.
    std::fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    made.cert.pem().into_bytes()
}

async fn get(url: &str, authority: &[u8]) -> Result<u16, String> {
    let tls = https::Tls { extra_authorities: authority.to_vec(), only_extra: true, ..https::Tls::default() };
    let client = https::Client::<Body>::new(&tls, Duration::from_secs(10)).unwrap();
    let request = http::Request::get(url).body(Body::empty()).unwrap();
    client.send(request).await.map(|answer| answer.status().as_u16()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn both_ports_speak_tls_and_take_renewed_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let first = certificate(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let settings = Settings::from_flags(&path("cert.pem"), &path("key.pem"), "VersionTLS12", "").unwrap().unwrap();
    let server = launch(dir.path(), Kube::default(), |options| options.tls = Some(settings)).await;
    let url = format!("{}/apis/v2beta1/healthz", server.rest.replace("http:", "https:"));
    assert_eq!(get(&url, &first).await, Ok(200));
    assert!(get(&url.replace("https:", "http:"), &first).await.is_err());

    let tls = tonic::transport::ClientTlsConfig::new()
        .ca_certificate(tonic::transport::Certificate::from_pem(&first))
        .domain_name("localhost");
    let endpoint = tonic::transport::Endpoint::from_shared(server.grpc.replace("http:", "https:")).unwrap();
    let channel = endpoint.tls_config(tls).unwrap().connect().await.unwrap();
    let mut client = api::run_service_client::RunServiceClient::new(channel);
    assert_eq!(client.list_runs_v1(api::ListRunsRequest::default()).await.unwrap().into_inner().total_size, 0);

    let second = certificate(dir.path());
    let renewed = async {
        while get(&url, &second).await != Ok(200) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), renewed).await.unwrap();
    assert!(get(&url, &first).await.is_err());
    server.stop().await;
}
