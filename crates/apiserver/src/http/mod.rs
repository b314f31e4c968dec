//! Everything on the HTTP port: uploads, health, logs, artifacts, and REST for every RPC.

mod artifacts;
mod health;
mod logs;
pub mod openapi;
pub(crate) mod pace;
mod tidy;
mod upload;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State as Extract};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use http::{HeaderValue, Method, StatusCode, header};
use tokio::sync::watch;

use crate::error::{Error, http_status};
use crate::options::{Archive, Objects};
use crate::services::Handle;

/// Largest body of an update that is looked into for empty tags.
const UPDATE_LIMIT: usize = 1 << 20;

/// How long requests wait for the API to become ready.
const NOT_READY: Duration = Duration::from_secs(10);

/// What the plain HTTP endpoints need beside the services.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Shown by healthz.
    pub commit: String,
    /// Shown by healthz.
    pub tag: String,
    /// Archived logs.
    pub archive: Archive,
    /// Object store.
    pub objects: Objects,
    /// Shown by healthz.
    pub multi_user: bool,
    /// Whether pipelines are kept in the cluster, shown by healthz.
    pub in_cluster: bool,
}

#[derive(Clone, Debug)]
struct State {
    app: Handle,
    settings: Settings,
}

/// The outermost router of the HTTP port: health, and everything else once `ready` holds its router.
pub fn gate(settings: Settings, ready: watch::Receiver<Option<Router>>) -> Router {
    Router::new()
        .route("/apis/v1beta1/healthz", any(health::v1))
        .route("/apis/v2beta1/healthz", any(health::v2))
        .with_state(settings)
        .fallback(move |request: Request| {
            let mut ready = ready.clone();
            async move {
                let waited = tokio::time::timeout(NOT_READY, ready.wait_for(Option::is_some)).await;
                let router = waited.ok().and_then(Result::ok).and_then(|router| router.clone());
                match router {
                    Some(router) => forward(router, request).await,
                    None => {
                        let error = Error::unavailable("the API server is not ready", "it waits for its database");
                        failure(&error, error.external())
                    }
                }
            }
        })
        .layer(from_fn(tidy::redirect))
        .layer(from_fn(pace::bound))
}

async fn forward(router: Router, request: Request) -> Response {
    use tower::ServiceExt as _;
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// The router of the API behind [`gate`]. `document` describes it; `rest` serves what has an `google.api.http` annotation.
pub fn router(app: Handle, settings: Settings, document: &serde_json::Value, rest: Router) -> Router {
    let document: std::sync::Arc<str> = document.to_string().into();
    let document = move || async move { ([(header::CONTENT_TYPE, "application/json")], document.to_string()) };
    let state = State { app, settings };
    let plain = Router::new()
        .route("/apis/v1beta1/pipelines/upload", any(upload::pipeline_v1))
        .route("/apis/v1beta1/pipelines/upload_version", any(upload::version_v1))
        .route("/apis/v2beta1/pipelines/upload", any(upload::pipeline))
        .route("/apis/v2beta1/pipelines/upload_version", any(upload::version))
        .route("/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log", get(logs::log))
        .route("/apis/v2beta1/runs/{run_id}/nodes/{node_id}/log", get(logs::log))
        .route("/apis/v1beta1/runs/{run_id}/nodes/{node_id}/artifacts/{artifact}", get(artifacts::read))
        .route("/apis/v2beta1/runs/{run_id}/nodes/{node_id}/artifacts/{artifact}", get(artifacts::read))
        .route("/metrics", get(counts))
        .route(openapi::PATH, get(document))
        .with_state(state);
    plain
        .fallback(move |request: Request| {
            let rest = rest.clone();
            async move {
                if request.uri().path().starts_with("/apis/") {
                    forward(rest, request).await
                } else {
                    (StatusCode::NOT_FOUND, "404 page not found\n").into_response()
                }
            }
        })
        .layer(from_fn(mark_empty_tags))
}

/// Tells the gRPC side that an update carries a literal `"tags": {}`, which protobuf cannot tell from no tags.
async fn mark_empty_tags(request: Request, next: Next) -> Response {
    let update = matches!(*request.method(), Method::PATCH | Method::PUT);
    if !update || !request.uri().path().starts_with("/apis/v2beta1/pipelines/") {
        return next.run(request).await;
    }
    let (mut parts, body) = request.into_parts();
    let bytes = match axum::body::to_bytes(body, UPDATE_LIMIT).await {
        Ok(bytes) => bytes,
        Err(error) => {
            return failure(
                &Error::invalid_because("cannot read the request body", error),
                "Failed to update a pipeline",
            );
        }
    };
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    if json["tags"].as_object().is_some_and(serde_json::Map::is_empty) {
        parts.headers.insert("x-clear-tags", HeaderValue::from_static("true"));
    }
    next.run(Request::from_parts(parts, Body::from(bytes))).await
}

/// What is counted, as Prometheus reads it.
async fn counts(Extract(state): Extract<State>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match state.app.metrics.text() {
        Ok(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        Err(error) => failure(&Error::internal("cannot write the metrics", error), "Failed to write the metrics"),
    }
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// The error body of the plain endpoints; `message` is upstream's terse text, the chain goes to the details.
fn failure(error: &Error, message: &str) -> Response {
    failure_with(http_status(error.code()), error, message)
}

fn failure_with(status: StatusCode, error: &Error, message: &str) -> Response {
    tracing::debug!(%error, %status, "request failed");
    json(status, &serde_json::json!({"error_message": message, "error_details": error.to_string()}))
}
