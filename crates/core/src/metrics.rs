//! Metrics over HTTP, in the text format that Prometheus reads.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::serve::{self, Incoming as Connections, PATIENCE};

pub use prometheus_client::encoding;
pub use prometheus_client::metrics::{counter, family, gauge, histogram};
pub use prometheus_client::registry::Registry;

/// Listens on a port of all addresses.
///
/// # Errors
/// When the text is no port or the port is taken.
pub async fn listen(port: &str) -> Result<TcpListener, String> {
    let number: u16 = port.parse().map_err(|_| format!("--metricsPort {port:?} is not a port"))?;
    TcpListener::bind(("0.0.0.0", number)).await.map_err(|e| format!("cannot serve metrics on port {number}: {e}"))
}

/// Answers `GET /metrics` until `shutdown` is cancelled.
pub async fn serve(listener: TcpListener, registry: Arc<Registry>, shutdown: CancellationToken) {
    let answer = move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, &registry)));
    serve::http1(Connections::new(listener, None), tower::service_fn(answer), PATIENCE, shutdown).await;
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
    let plain = |status: StatusCode| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND);
    }
    if request.method() != Method::GET {
        return plain(StatusCode::METHOD_NOT_ALLOWED);
    }
    let mut text = String::new();
    if encoding::text::encode(&mut text, registry).is_err() {
        return plain(StatusCode::INTERNAL_SERVER_ERROR);
    }
    let kind = header::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    let mut response = Response::new(Full::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
