//! REST for gRPC services, derived from their `google.api.http` annotations.
//!
//! One [`Transcoder`] turns JSON over HTTP into calls on a gRPC service in the same process and follows the conventions of
//! grpc-gateway v2 as upstream configures it: proto field names out, both spellings in, 64-bit integers as strings, unset
//! fields omitted, unknown body fields rejected, unknown query parameters ignored, errors as `google.rpc.Status` JSON.
//! Adding an RPC with its annotation to `proto/` is all that it takes to serve it.

mod json;
mod openapi;
mod request;
mod response;
mod route;

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Method, Request, header};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use tower::ServiceExt;

pub use json::to_vec;
pub use response::{http_status, plain_error};
pub use route::Route;

/// The largest request body that is read into memory, in bytes. Upstream has none; this one only bounds memory.
pub const DEFAULT_BODY_LIMIT: usize = 128 << 20;

/// Why a transcoder cannot be built: an annotation is wrong. Never depends on a request.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The annotation uses something that this transcoder does not support.
    #[error("http rule of {method}: {reason}")]
    Rule {
        /// Full name of the RPC.
        method: String,
        /// What is wrong with its rule.
        reason: String,
    },
    /// The descriptor pool lacks `google.api.http`.
    #[error("the descriptors have no google.api.http extension")]
    NoAnnotations,
}

/// Serves the annotated RPCs of some packages as REST.
#[derive(Clone)]
pub struct Transcoder {
    inner: Arc<Inner>,
}

struct Inner {
    routes: Vec<Route>,
    status: prost_reflect::MessageDescriptor,
    grpc: axum::Router,
    body_limit: usize,
}

impl Transcoder {
    /// Reads the annotations of every service in `packages` and sends calls to `grpc`, the router of the gRPC services.
    ///
    /// # Errors
    /// When an annotation cannot be served; see [`Error`].
    pub fn new(pool: &DescriptorPool, packages: &[&str], grpc: axum::Router) -> Result<Self, Error> {
        let routes = route::routes(pool, packages)?;
        let status = pool.get_message_by_name("google.rpc.Status").ok_or(Error::NoAnnotations)?;
        Ok(Self { inner: Arc::new(Inner { routes, status, grpc, body_limit: DEFAULT_BODY_LIMIT }) })
    }

    /// Every route that is served, most specific first.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.inner.routes
    }

    /// Answers one HTTP request. Never fails: what goes wrong becomes an error response.
    pub async fn handle(&self, request: Request<Body>) -> Response {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path();
        let (route, variables) = match route::find(&self.inner.routes, &parts.method, path) {
            route::Found::Match(route, variables) => (route, variables),
            route::Found::OtherMethod => {
                return response::plain_error(tonic::Code::Unimplemented, "Method Not Allowed");
            }
            route::Found::Nothing => return response::plain_error(tonic::Code::NotFound, "Not Found"),
        };
        let body = match axum::body::to_bytes(body, self.inner.body_limit).await {
            Ok(body) => body,
            Err(error) => {
                return response::plain_error(
                    tonic::Code::InvalidArgument,
                    &format!("cannot read the request body: {error}"),
                );
            }
        };
        let message = match request::bind(route, &variables, parts.uri.query().unwrap_or(""), &body) {
            Ok(message) => message,
            Err(reason) => return response::plain_error(tonic::Code::InvalidArgument, &reason),
        };
        self.call(route, &parts.headers, &message).await
    }

    async fn call(&self, route: &Route, headers: &HeaderMap, message: &DynamicMessage) -> Response {
        let size = message.encoded_len();
        let mut frame = Vec::with_capacity(size + 5);
        frame.push(0);
        let Ok(length) = u32::try_from(size) else {
            return response::plain_error(tonic::Code::ResourceExhausted, "the request is larger than 4 GiB");
        };
        frame.extend_from_slice(&length.to_be_bytes());
        if let Err(error) = message.encode(&mut frame) {
            return response::plain_error(tonic::Code::Internal, &format!("cannot encode the request: {error}"));
        }
        let mut request = Request::new(Body::from(frame));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = route.grpc_path.clone();
        forward(headers, request.headers_mut());
        match self.inner.grpc.clone().oneshot(request).await {
            Ok(answer) => response::from_grpc(answer, route, &self.inner.status).await,
            Err(never) => match never {},
        }
    }

    /// A router with this transcoder as its fallback, to be nested or merged by the server.
    pub fn into_router(self) -> axum::Router {
        axum::Router::new().fallback(move |request: Request<Body>| {
            let transcoder = self.clone();
            async move { transcoder.handle(request).await }
        })
    }
}

/// Copies request headers into gRPC metadata: identity and tracing headers reach the handlers under their own names; what
/// belongs to this hop or to the body stays behind. `Grpc-Metadata-X` stays behind, too: proxies in front guard the
/// identity header by its own name, and as `x` it would be the caller's own word.
fn forward(from: &HeaderMap, to: &mut HeaderMap) {
    for (name, value) in from {
        let lower = name.as_str();
        let hop = matches!(
            lower,
            "host"
                | "connection"
                | "keep-alive"
                | "transfer-encoding"
                | "upgrade"
                | "te"
                | "trailer"
                | "expect"
                | "content-type"
                | "content-length"
                | "content-encoding"
                | "accept"
                | "accept-encoding"
        ) || lower.starts_with("proxy-")
            || lower.starts_with("grpc-");
        if !hop {
            to.append(name.clone(), value.clone());
        }
    }
    to.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    to.insert(header::TE, HeaderValue::from_static("trailers"));
}
