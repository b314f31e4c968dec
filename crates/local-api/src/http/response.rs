//! Bodies of responses.

use axum::body::Body;
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::Value;

use crate::ApiError;

pub(super) type Response = http::Response<Body>;

pub(super) fn with(status: StatusCode, media_type: &'static str, body: Body) -> Response {
    let mut response = http::Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

pub(super) fn status_json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => with(status, "application/json", Body::from(bytes)),
        Err(error) => failure(&ApiError::internal(format!("cannot encode the answer: {error}"))),
    }
}

pub(super) fn json(value: &Value) -> Response {
    status_json(StatusCode::OK, value)
}

pub(super) fn text(status: StatusCode, body: &'static str) -> Response {
    with(status, "text/plain; charset=utf-8", Body::from(body))
}

pub(super) fn failure(error: &ApiError) -> Response {
    let status = StatusCode::from_u16(error.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    with(status, "application/json", Body::from(error.to_status().to_string()))
}
