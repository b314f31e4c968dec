//! `healthz` of both API versions; needs no authentication and looks at no dependency.

use axum::extract::State as Extract;
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use super::Settings;

/// Without the pipeline store, which v1beta1 does not know.
pub async fn v1(Extract(settings): Extract<Settings>) -> Response {
    let body = json!({"commit_sha": settings.commit, "tag_name": settings.tag, "multi_user": settings.multi_user});
    super::json(StatusCode::OK, &body)
}

/// With the pipeline store.
pub async fn v2(Extract(settings): Extract<Settings>) -> Response {
    let body = json!({
        "commit_sha": settings.commit, "tag_name": settings.tag, "multi_user": settings.multi_user,
        "pipeline_store": "database",
    });
    super::json(StatusCode::OK, &body)
}
