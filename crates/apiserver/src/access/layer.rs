//! The one place that every gRPC call passes, those made for REST included.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;

use super::{review, rules};
use crate::error::{Error, Result};
use crate::services::Handle;

/// Services that say nothing about users' data.
const INFRASTRUCTURE: [&str; 3] =
    ["/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/"];
/// Length of what precedes each message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Largest request; the services behind have the same limit.
const LIMIT: usize = i32::MAX as usize;

/// The first message of a unary call.
fn message(body: &[u8]) -> Result<&[u8]> {
    let broken = || Error::invalid("the request is no complete gRPC message");
    let (prefix, rest) = body.split_first_chunk::<PREFIX>().ok_or_else(broken)?;
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(Error::unimplemented("compressed requests are not supported"));
    }
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| broken())?;
    rest.get(..length).ok_or_else(broken)
}

async fn admit(app: &Handle, request: Request) -> Result<Request> {
    let path = request.uri().path();
    if INFRASTRUCTURE.iter().any(|service| path.starts_with(service)) {
        return Ok(request);
    }
    let Some(rule) = rules::of(path) else {
        let message = format!("{} is not allowed to anybody", path.trim_start_matches('/'));
        return Err(Error::permission_denied(message, "no rule names it"));
    };
    let (parts, body) = request.into_parts();
    let mut user = review::Caller::new(app, &parts.headers);
    // Strangers are turned away before their request is read.
    if !rule.is_open_to_strangers(&app.access) {
        user.known().await?;
    }
    let unread = |error: axum::Error| Error::invalid_because("cannot read the request", error);
    let body: Bytes = to_bytes(body, LIMIT).await.map_err(unread)?;
    let target = rule.target(message(&body)?)?;
    user.may(rule.right, target).await?;
    Ok(Request::from_parts(parts, Body::from(body)))
}

/// Lets through what the caller may do.
pub async fn guard(State(app): State<Handle>, request: Request, next: Next) -> Response {
    if !app.access.multi_user {
        return next.run(request).await;
    }
    match admit(&app, request).await {
        Ok(request) => next.run(request).await,
        Err(error) => tonic::Status::from(error).into_http(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_plain_messages_are_read() {
        assert_eq!(message(&[0, 0, 0, 0, 2, 7, 8]).unwrap(), [7, 8]);
        assert!(message(&[0, 0, 0, 0, 0]).unwrap().is_empty());
        // The services take the first message, too.
        assert_eq!(message(&[0, 0, 0, 0, 1, 7, 0, 0, 0, 0, 1, 8]).unwrap(), [7]);
        for broken in [&[][..], &[0, 0, 0, 0], &[0, 0, 0, 0, 2, 7], &[0, 255, 255, 255, 255]] {
            assert_eq!(message(broken).unwrap_err().code(), tonic::Code::InvalidArgument, "{broken:?}");
        }
        assert_eq!(message(&[1, 0, 0, 0, 1, 7]).unwrap_err().code(), tonic::Code::Unimplemented);
    }
}
