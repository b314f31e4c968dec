//! Logs of a run's pods, live from Kubernetes or, when the pod is gone, from the archive.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{Path, Query, State as Extract};
use axum::response::{IntoResponse, Response};
use futures::AsyncReadExt as _;
use http::{HeaderMap, header};
use serde_json::Value;

use super::{State, artifacts, failure};
use crate::access::{self, Target, rules};
use crate::domain::nodes::{self, text};
use crate::domain::{logs, names};
use crate::error::{Error, Result};
use crate::services::Handle;
use crate::store::runs;
use crate::workflows::cluster::Failure;

const MAIN: &str = "main";
const CHUNK: usize = 16 << 10;

/// Streams the log of container `main` of a pod; `?follow=true` keeps the stream open.
pub async fn log(
    Extract(state): Extract<State>,
    Path((run_id, node_id)): Path<(String, String)>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    let target = Target::Run(run_id.clone());
    if let Err(error) = access::check(&state.app, &headers, rules::READ_LOG, target).await {
        return failure(&error, &format!("Failed to read logs for run {run_id}"));
    }
    let follow = query.get("follow").is_some_and(|value| value == "true");
    match open(&state, &run_id, &node_id, follow).await {
        Ok(body) => ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response(),
        Err(error) => failure(&error, &format!("Failed to read logs for run {run_id}")),
    }
}

async fn row(app: &Handle, run_id: &str) -> Result<(runs::Run, Value)> {
    let mut tx = app.db.read().await?;
    let run = runs::get(&mut tx, run_id).await?;
    let manifests = runs::manifests(&mut tx, run_id).await?;
    let workflow = serde_json::from_str(&manifests.workflow_runtime).unwrap_or_default();
    Ok((run, workflow))
}

async fn open(state: &State, run_id: &str, node_id: &str, follow: bool) -> Result<Body> {
    let (run, workflow) = row(&state.app, run_id).await?;
    if state.app.access.multi_user && run.namespace.is_empty() {
        // Its pods are not known to be in a namespace that the caller may look into.
        return Err(Error::not_found("namespace of run", run_id));
    }
    let namespace = if run.namespace.is_empty() { &state.app.namespace } else { &run.namespace };
    // Clients pass the pod name; node ids are accepted too.
    let mut pods = vec![node_id.to_owned()];
    pods.extend(workflow["status"]["nodes"].get(node_id).map(|node| nodes::pod_name(&workflow, node)));
    pods.dedup();
    // What is no name of a pod would change the meaning of the addresses that it becomes part of.
    pods.retain(|pod| names::is_subdomain(pod));
    let mut last = Failure::NotFound(format!("pod {node_id} not found"));
    for pod in &pods {
        match state.app.cluster.log(namespace, pod, MAIN, follow).await {
            Ok(reader) => {
                let stream = futures::stream::try_unfold(reader, |mut reader| async move {
                    let mut chunk = vec![0; CHUNK];
                    let size = reader.read(&mut chunk).await?;
                    chunk.truncate(size);
                    Ok::<_, std::io::Error>((size > 0).then_some((chunk, reader)))
                });
                return Ok(Body::from_stream(stream));
            }
            Err(failure) => last = failure,
        }
    }
    for key in archive_keys(state, &run, &workflow, &pods) {
        match archived(state, &key).await {
            Ok(body) => return Ok(body),
            Err(error) => tracing::debug!(%error, key, "no archived log"),
        }
    }
    Err(match last {
        Failure::NotFound(_) => Error::not_found_because(format!("no log of {node_id}"), last),
        Failure::Unavailable(_) => Error::unavailable(format!("no log of {node_id}"), last),
        _ => Error::internal(format!("no log of {node_id}"), last),
    })
}

/// Where the log of a pod may have been archived: where its Workflow says, or else where the settings say.
fn archive_keys(state: &State, run: &runs::Run, workflow: &Value, pods: &[String]) -> Vec<String> {
    let recorded: Vec<String> = pods.iter().filter_map(|pod| artifacts::key(workflow, pod, "main-logs")).collect();
    let archive = &state.settings.archive;
    if !recorded.is_empty() || archive.prefix.is_empty() || archive.file.is_empty() {
        return recorded;
    }
    let name = text(workflow, "/metadata/name");
    let name = if name.is_empty() { &run.workflow } else { name };
    pods.iter().map(|pod| format!("{}/{name}/{pod}/{}", archive.prefix, archive.file)).collect()
}

async fn archived(state: &State, key: &str) -> Result<Body> {
    let object = artifacts::bytes(&state.settings.objects, key).await?;
    let failed = |error: String| Error::internal(format!("cannot read the archived log {key}"), error);
    let shown = tokio::task::spawn_blocking(move || logs::plain(&object)).await;
    Ok(Body::from(shown.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))?))
}
