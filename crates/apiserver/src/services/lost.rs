//! Runs whose Workflow vanished while nobody was watching: they end, instead of running for ever.
//!
//! The persistence agent reports the end of Workflows that are deleted while it runs. This looks for the others: a run that
//! has no Workflow in two passes in a row, which leaves the agent the time between them.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use kfp_core::argo::gone::{RUN_ID, last_state};
use kfp_core::shutdown::CancellationToken;
use tonic::Code;

use super::{Handle, reports};
use crate::domain::nodes::meta;
use crate::error::Result;
use crate::store::expired::{self, Unfinished};
use crate::store::{now, runs};
use crate::workflows::cluster::{Failure, Kind};

/// Runs that are read together.
const PAGE: u32 = 500;

/// Looks for lost runs every `interval` until `stop`. Several servers may do so at once.
pub async fn watch(app: Handle, interval: Duration, stop: CancellationToken) {
    let mut missing = HashSet::new();
    while stop.run_until_cancelled(tokio::time::sleep(interval)).await.is_some() {
        match pass(&app, interval, &mut missing, &stop).await {
            Ok(0) => {}
            Ok(ended) => tracing::warn!(ended, "runs ended whose Workflows were deleted"),
            Err(error) => tracing::warn!(%error, "cannot look for runs whose Workflows are gone"),
        }
    }
}

/// One pass over all unfinished runs that are older than `interval`. `missing` are the runs without a Workflow in the pass
/// before, and then in this one. Returns how many were ended.
async fn pass(
    app: &Handle,
    interval: Duration,
    missing: &mut HashSet<String>,
    stop: &CancellationToken,
) -> Result<u64> {
    let before = std::mem::take(missing);
    let cutoff = now().saturating_sub(i64::try_from(interval.as_secs()).unwrap_or(i64::MAX));
    let mut by_namespace: BTreeMap<String, Vec<Unfinished>> = BTreeMap::new();
    let mut last = None;
    loop {
        let mut tx = app.db.read().await?;
        let page = expired::unfinished(&mut tx, cutoff, last.as_ref(), PAGE).await?;
        drop(tx);
        last = page.last().cloned();
        let full = page.len() == PAGE as usize;
        // Rows without the name of a Workflow belong to releases that did not store it.
        for run in page.into_iter().filter(|run| !run.workflow.is_empty()) {
            let namespace = if run.namespace.is_empty() { &app.namespace } else { &run.namespace };
            by_namespace.entry(namespace.clone()).or_default().push(run);
        }
        if !full {
            break;
        }
    }
    let mut ended = 0;
    for (namespace, unfinished) in by_namespace {
        // Read after the rows: what is not in it has been there and is gone. No list, no conclusion.
        let live = match app.cluster.labelled(Kind::Workflow, &namespace, RUN_ID).await {
            Ok(live) => live,
            Err(failure) => {
                tracing::warn!(namespace, %failure, "cannot list the Workflows of unfinished runs");
                continue;
            }
        };
        for run in unfinished.into_iter().filter(|run| !live.contains(&run.id)) {
            if stop.is_cancelled() {
                return Ok(ended);
            }
            match app.cluster.metadata(Kind::Workflow, &namespace, &run.workflow).await {
                Err(Failure::NotFound(_)) => {}
                // Another run's Workflow of this name is none of this one.
                Ok(object) if meta(&object, "labels", RUN_ID) != run.id => {}
                Ok(_) | Err(_) => continue,
            }
            if !before.contains(&run.id) {
                missing.insert(run.id);
            } else if end(app, &namespace, &run).await? {
                ended += 1;
            }
        }
    }
    Ok(ended)
}

/// Reports the end of a run without a Workflow. False when it is not there any more, or not to be ended now.
async fn end(app: &Handle, namespace: &str, run: &Unfinished) -> Result<bool> {
    let mut tx = app.db.read().await?;
    let manifests = match runs::manifests(&mut tx, &run.id).await {
        Ok(manifests) => manifests,
        Err(error) if error.code() == Code::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    drop(tx);
    let known = [manifests.workflow_runtime, manifests.pipeline_runtime];
    let last = known.iter().find_map(|text| serde_json::from_str(text).ok());
    let time = chrono::DateTime::from_timestamp(now(), 0).unwrap_or_default();
    let time = time.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
    let report = last_state(last, namespace, &run.workflow, &run.id, &time);
    match reports::Service(app.clone()).workflow(&report.to_string()).await {
        // The Workflow cannot be labelled, of course.
        Ok(()) => Ok(true),
        Err(error) if error.code() == Code::NotFound => Ok(true),
        Err(error) if error.code() == Code::Unavailable => Ok(false),
        Err(error) => Err(error),
    }
}
