//! Artifacts that Argo recorded for a node.

use axum::extract::{Path, State as Extract};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use http::{HeaderMap, StatusCode, header};
use kfp_core::objects::Opener;
use serde_json::{Value, json};

use super::{State, failure, failure_with};
use crate::access::{self, Target, rules};
use crate::domain::nodes::{pod_name, text};
use crate::error::{Error, Result};
use crate::metrics::READ_ARTIFACT;
use crate::options::Objects;
use crate::store::runs;

/// How far below a node its artifact may be recorded (step group, retry, pod).
const DEPTH: u32 = 3;

/// `GET .../artifacts/NAME:read`: the object, in base64 inside JSON.
pub async fn read(
    Extract(state): Extract<State>,
    Path((run_id, node_id, artifact)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    state.app.metrics.count(READ_ARTIFACT);
    let target = Target::Run(run_id.clone());
    if let Err(error) = access::check(&state.app, &headers, rules::READ_ARTIFACT, target).await {
        // Whatever the reason is, as clients expect.
        let error = error.wrap("Failed to authorize the request");
        return failure_with(StatusCode::FORBIDDEN, &error, error.external());
    }
    match open(&state, &run_id, &node_id, &artifact).await {
        Ok(bytes) => {
            let data = base64::engine::general_purpose::STANDARD.encode(bytes);
            let headers = [(header::CONTENT_TYPE, "application/json"), (header::CACHE_CONTROL, "no-cache, private")];
            (headers, json!({"data": data}).to_string()).into_response()
        }
        Err(error) => {
            let message = if error.is_not_found() {
                format!("artifact not found: {}", error.external())
            } else {
                error.external().to_owned()
            };
            failure(&error, &message)
        }
    }
}

async fn open(state: &State, run_id: &str, node_id: &str, artifact: &str) -> Result<bytes::Bytes> {
    let Some(name) = artifact.strip_suffix(":read") else {
        return Err(Error::not_found("path ending in", artifact));
    };
    let mut tx = state.app.db.read().await?;
    let manifest = runs::manifests(&mut tx, run_id).await?.workflow_runtime;
    drop(tx);
    if manifest.is_empty() {
        return Err(Error::internal(
            "cannot read the artifact",
            "read artifact from run with v2 IR spec is not supported",
        ));
    }
    let workflow: Value = serde_json::from_str(&manifest)
        .map_err(|error| Error::internal("the stored workflow of the run cannot be read", error))?;
    let missing = || Error::not_found("artifact", &format!("runs/{run_id}/nodes/{node_id}/artifacts/{name}"));
    let key = key(&workflow, node_id, name).ok_or_else(missing)?;
    bytes(&state.settings.objects, &key).await
}

/// Key of a node's output artifact, or of its children's.
pub fn key(workflow: &Value, node_id: &str, name: &str) -> Option<String> {
    let nodes = workflow["status"]["nodes"].as_object()?;
    let node = nodes.get(node_id).or_else(|| nodes.values().find(|node| pod_name(workflow, node) == node_id))?;
    below(workflow, node, name, DEPTH)
}

fn below(workflow: &Value, node: &Value, name: &str, depth: u32) -> Option<String> {
    let artifacts = node["outputs"]["artifacts"].as_array().into_iter().flatten();
    for artifact in artifacts.filter(|artifact| artifact["name"] == name) {
        let key = text(artifact, "/s3/key");
        if !key.is_empty() {
            return Some(key.to_owned());
        }
    }
    if depth == 0 {
        return None;
    }
    let children = node["children"].as_array().into_iter().flatten().filter_map(Value::as_str);
    children
        .filter_map(|id| workflow["status"]["nodes"].get(id))
        .find_map(|child| below(workflow, child, name, depth - 1))
}

/// An object of the installation's bucket.
pub async fn bytes(objects: &Objects, key: &str) -> Result<bytes::Bytes> {
    let failed = |error: kfp_core::objects::Error| {
        if error.is_missing() {
            Error::not_found("object", key)
        } else {
            Error::internal(format!("cannot read object {key}"), error)
        }
    };
    if key.split('/').any(|part| matches!(part, "." | "..")) {
        return Err(Error::invalid(format!("object key {key:?} is not a plain path")));
    }
    let uri = format!("{}://{}/{}", objects.session.provider, objects.bucket, key.trim_start_matches('/'));
    let opener = Opener { dir: objects.directory.clone(), ..Opener::default() };
    let store = opener.open(&uri, Some(&objects.session).filter(|_| objects.directory.is_none())).await;
    store.map_err(failed)?.get_bytes(&uri).await.map_err(failed)
}
