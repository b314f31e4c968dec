//! Listening, and finding who answers.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use http::{HeaderMap, Method, StatusCode, header};
use kfp_core::serve::{self, Incoming};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::query::Query;
use super::request::{Path, Target};
use super::response::{Response, failure, json as json_response, text};
use super::{discovery, logs, objects, openapi, review};
use crate::{ApiError, Cluster};

/// How long requests in progress may still take after shutdown began. Watches and followed logs end
/// at once.
const DRAIN: Duration = Duration::from_secs(5);

/// What every handler has.
#[derive(Clone)]
pub(super) struct Context {
    pub cluster: Cluster,
    /// Ends long-lived responses.
    pub shutdown: CancellationToken,
    /// Whether the listener is reachable from this machine only.
    loopback: bool,
    pub address: SocketAddr,
}

/// Serves the Kubernetes API on plain HTTP until `shutdown`; requests then in progress get five
/// seconds. There is no authentication: bind to loopback. To keep web pages in a browser of the same
/// machine out, requests with an `Origin` header, and on a loopback listener those for another host
/// name, are refused.
///
/// # Errors
/// When the listener's address cannot be read.
pub async fn serve(cluster: Cluster, listener: TcpListener, shutdown: CancellationToken) -> std::io::Result<()> {
    let address = listener.local_addr()?;
    let context = Context { cluster, shutdown: shutdown.clone(), loopback: address.ip().is_loopback(), address };
    let router = Router::new().fallback(handle).with_state(context);
    let server = serve::http1(Incoming::new(listener, None), router, serve::PATIENCE, shutdown.clone());
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        () = server => {}
        () = deadline => {}
    }
    Ok(())
}

async fn handle(State(context): State<Context>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_string());
    let response = match route(&context, request).await {
        Ok(response) => response,
        Err(error) => {
            if error.code >= 500 {
                tracing::warn!(%method, path, code = error.code, error = %error, "kubernetes request failed");
            }
            failure(&error)
        }
    };
    tracing::debug!(%method, path, status = response.status().as_u16(), "kubernetes request");
    response
}

async fn route(context: &Context, request: Request) -> Result<Response, ApiError> {
    check_origin(context, request.headers())?;
    let (parts, body) = request.into_parts();
    let path = Path::parse(parts.uri.path())?;
    let segments: Vec<&str> = path.segments.iter().map(String::as_str).collect();
    let get = matches!(parts.method, Method::GET | Method::HEAD);
    if get && let Some(response) = fixed(context, &segments, &parts.headers) {
        return Ok(response);
    }
    let query = Query::parse(parts.uri.query().unwrap_or_default())?;
    if parts.method == Method::POST && review::is_review(&segments) {
        return review::answer(&segments, objects::read_body(&parts.headers, body).await?);
    }
    let target = Target::find(context, &segments)?;
    dispatch(context, target, &parts.method, &parts.headers, query, body).await
}

async fn dispatch(
    context: &Context,
    target: Target,
    method: &Method,
    headers: &HeaderMap,
    query: Query,
    body: Body,
) -> Result<Response, ApiError> {
    if target.resource == crate::resources::PODS && target.subresource.as_deref() == Some("log") {
        return logs::read(context, &target, method, &query).await;
    }
    objects::handle(context, target, method, headers, query, body).await
}

/// Answers that do not depend on objects.
fn fixed(context: &Context, segments: &[&str], headers: &HeaderMap) -> Option<Response> {
    match segments {
        [] => Some(json_response(&discovery::paths(context))),
        ["healthz" | "readyz" | "livez"] | ["healthz" | "readyz" | "livez", _] => Some(text(StatusCode::OK, "ok")),
        ["version"] => Some(json_response(&json!({
            "major": "1", "minor": "33", "gitVersion": crate::VERSION, "gitCommit": "", "gitTreeState": "clean",
            "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "",
            "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
        }))),
        ["openapi", "v2"] => Some(openapi::v2(headers)),
        ["openapi", "v3"] => Some(json_response(&openapi::v3_root(context))),
        ["openapi", "v3", rest @ ..] => openapi::v3(context, rest).map(|document| json_response(&document)),
        _ => discovery::answer(context, segments).map(|document| json_response(&document)),
    }
}

/// Keeps pages in a browser from reaching an unauthenticated API on loopback.
fn check_origin(context: &Context, headers: &HeaderMap) -> Result<(), ApiError> {
    let refuse = |why: String| Err(ApiError::new(403, "Forbidden", why));
    if headers.contains_key(header::ORIGIN) {
        return refuse("requests from web pages (with an Origin header) are not served".into());
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let known = name.is_empty() || name == "localhost" || name.parse::<IpAddr>().is_ok();
    if context.loopback && !known {
        return refuse(format!("the host name {name} is not served; use localhost or {}", context.address));
    }
    Ok(())
}
