//! `healthz` of both API versions; needs no authentication and looks at no dependency.

use axum::extract::State as Extract;
use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use super::State;

/// Without the pipeline store, which v1beta1 does not know.
pub async fn v1(Extract(state): Extract<State>) -> Response {
    let body = json!({"commit_sha": state.settings.commit, "tag_name": state.settings.tag, "multi_user": false});
    super::json(StatusCode::OK, &body)
}

/// With the pipeline store.
pub async fn v2(Extract(state): Extract<State>) -> Response {
    let body = json!({
        "commit_sha": state.settings.commit, "tag_name": state.settings.tag, "multi_user": false,
        "pipeline_store": "database",
    });
    super::json(StatusCode::OK, &body)
}
