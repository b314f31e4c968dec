//! Answers: gRPC responses as JSON, gRPC statuses as HTTP errors.

use axum::body::Body;
use axum::response::Response;
use base64::Engine as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use percent_encoding::percent_decode;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use tonic::Code;

use crate::json;
use crate::route::Route;

/// The HTTP status that stands for a gRPC code, as grpc-gateway maps them.
#[must_use]
pub fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn respond(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An error without details, as JSON with its HTTP status.
#[must_use]
pub fn plain_error(code: Code, message: &str) -> Response {
    let body = serde_json::json!({ "code": code as i32, "message": message });
    respond(http_status(code), body.to_string().into_bytes())
}

/// Turns a gRPC response of `route` into its REST form.
pub(crate) async fn from_grpc(answer: http::Response<Body>, route: &Route, status: &MessageDescriptor) -> Response {
    let (parts, body) = answer.into_parts();
    let collected = match body.collect().await {
        Ok(collected) => collected,
        Err(error) => return plain_error(Code::Internal, &format!("cannot read the answer: {error}")),
    };
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let headers = if trailers.contains_key("grpc-status") { &trailers } else { &parts.headers };
    let code = headers.get("grpc-status").and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<i32>().ok());
    match code.map(Code::from_i32) {
        Some(Code::Ok) => {}
        Some(code) => return failure(code, headers, status),
        None => return plain_error(Code::Internal, "the answer has no grpc-status"),
    }
    let bytes = collected.to_bytes();
    let Some(payload) = bytes.get(5..) else {
        return plain_error(Code::Internal, "the answer has no message");
    };
    let text = DynamicMessage::decode(route.output.clone(), payload)
        .map_err(|e| e.to_string())
        .and_then(|message| json::to_vec(&message).map_err(|e| e.to_string()));
    match text {
        Ok(text) => respond(StatusCode::OK, text),
        Err(error) => plain_error(Code::Internal, &format!("cannot print the answer as JSON: {error}")),
    }
}

fn failure(code: Code, headers: &HeaderMap, status: &MessageDescriptor) -> Response {
    let message = headers.get("grpc-message").map(HeaderValue::as_bytes).unwrap_or_default();
    let message = percent_decode(message).decode_utf8_lossy();
    let details = headers.get("grpc-status-details-bin").and_then(|value| {
        let engine = base64::engine::GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            base64::engine::GeneralPurposeConfig::new()
                .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent),
        );
        let bytes = engine.decode(value.as_bytes()).ok()?;
        let message = DynamicMessage::decode(status.clone(), bytes.as_slice()).ok()?;
        json::to_vec(&message).ok()
    });
    let mut response = match details {
        Some(body) => respond(http_status(code), body),
        None => plain_error(code, &message),
    };
    if code == Code::Unauthenticated
        && let Ok(value) = HeaderValue::from_str(&message)
    {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, value);
    }
    response
}
