//! Retry of failed runs: claim the row, then change the Workflow, then record it.

use std::time::Duration;

use serde_json::Value;

use super::runs::Service;
use crate::domain::retry;
use crate::domain::state::State;
use crate::error::{Error, Result};
use crate::store::{now, runs};
use crate::workflows::cluster::{Failure, Kind, Propagation};

/// How long a retry claim blocks others.
const CLAIM_SECONDS: i64 = 600;
/// Attempts to put a retried Workflow in place while it changes.
const REPLACE_ATTEMPTS: u32 = 5;

impl Service {
    /// Runs the failed tasks of a finished run again.
    ///
    /// # Errors
    /// Code 10 when the run has not failed, 14 when the outcome is not known yet.
    pub(super) async fn retry(&self, id: &str) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        let before = runs::get(&mut tx, id).await?;
        let manifest = runs::manifests(&mut tx, id).await?.workflow_runtime;
        let stored: Value = serde_json::from_str(&manifest).unwrap_or_default();
        if !stored.is_object() {
            return Err(Error::bad_request(
                format!("Failed to retry run {id} due to error fetching workflow manifest"),
                "the run has not been reported yet",
            ));
        }
        let expired = before.state == State::Pending
            && before.retry_generation > 0
            && now() - before.retry_claimed_at > CLAIM_SECONDS;
        if !before.state.is_final() && !expired {
            return Err(Error::bad_request(
                format!("Cannot claim run {id} for retry: not in a terminal state"),
                format!("its state is {}", before.state.word()),
            ));
        }
        let plan = retry::plan(stored, before.retry_generation + 1)?;
        let claimed = runs::Run {
            state: State::Pending,
            finished_at: 0,
            retry_generation: before.retry_generation + 1,
            retry_claimed_at: now(),
            ..before.clone()
        };
        runs::claim(&mut tx, &claimed, before.retry_generation).await?;
        tx.commit().await?;
        if let Err(failure) = self.relaunch(&claimed, &plan).await {
            if matches!(failure, Failure::Unavailable(_)) {
                // The Workflow may have been changed: the claim stays until a report or the next attempt tells.
                return Err(Error::unavailable(format!("Failed to retry run {id}"), failure));
            }
            let mut tx = self.0.db.write().await?;
            let restored =
                runs::Run { retry_generation: claimed.retry_generation, retry_claimed_at: 0, ..before.clone() };
            runs::claim(&mut tx, &restored, claimed.retry_generation).await?;
            tx.commit().await?;
            return Err(Error::internal(format!("Failed to retry run {id}"), failure));
        }
        let mut tx = self.0.db.write().await?;
        let mut run = runs::get(&mut tx, id).await?;
        if run.retry_generation == claimed.retry_generation && run.state == State::Pending {
            run.state = State::Running;
            run.history.note(State::Running, now());
            runs::update(&mut tx, &run, &plan.workflow.to_string()).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// Deletes the pods of the failed nodes and puts the changed Workflow in place.
    async fn relaunch(&self, run: &runs::Run, plan: &retry::Retry) -> Result<(), Failure> {
        let (namespace, cluster) = (self.namespace(run), &self.0.cluster);
        for pod in &plan.pods {
            match cluster.delete(Kind::Pod, namespace, pod, Propagation::Default).await {
                Ok(()) | Err(Failure::NotFound(_)) => {}
                Err(failure) => return Err(failure),
            }
        }
        let mut workflow = plan.workflow.clone();
        let mut attempt = 1;
        loop {
            let done = match cluster.get(Kind::Workflow, namespace, &run.workflow).await {
                Ok(live) => {
                    workflow["metadata"]["resourceVersion"] = live["metadata"]["resourceVersion"].clone();
                    workflow["metadata"]["uid"] = live["metadata"]["uid"].clone();
                    cluster.replace(Kind::Workflow, namespace, &run.workflow, &workflow).await
                }
                Err(Failure::NotFound(_)) => {
                    if let Some(metadata) = workflow["metadata"].as_object_mut() {
                        metadata.remove("resourceVersion");
                        metadata.remove("uid");
                    }
                    cluster.create(Kind::Workflow, namespace, &workflow).await
                }
                Err(failure) => Err(failure),
            };
            match done {
                Ok(_) => return Ok(()),
                Err(Failure::Conflict(_) | Failure::Unavailable(_)) if attempt < REPLACE_ATTEMPTS => {
                    tokio::time::sleep(Duration::from_millis(10 << attempt)).await;
                    attempt += 1;
                }
                Err(failure) => return Err(failure),
            }
        }
    }
}
