//! API calls beside the controller's own task. Each reports back, none outlives the engine.

use super::objects::{Key, owned_by, text};
use crate::changes::Changes;
use crate::execution::Event;
use kfp_core::argo::names;
use kfp_core::shutdown::{CancellationToken, TaskTracker};
use kfp_local_api::{ApiError, Cluster, DeleteOptions, resources};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::UnboundedSender;

/// Waits between attempts of a call that failed for a reason that may pass, and between looks at a pod of the
/// same name that is still being deleted.
const PAUSES: [u64; 8] = [20, 50, 100, 250, 500, 1000, 2000, 5000];
/// Longest that one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// What a call found out.
pub(super) enum What {
    /// Something for the execution.
    Event(Event),
    /// A status write has ended with this version, and how long it took.
    Written(Result<u64, ApiError>, Duration),
}

/// A report of a call.
pub(super) struct Report {
    pub key: Key,
    pub uid: String,
    pub what: What,
}

/// Makes calls.
#[derive(Clone)]
pub(super) struct Calls {
    pub cluster: Cluster,
    pub reports: UnboundedSender<Report>,
    pub tracker: TaskTracker,
    pub shutdown: CancellationToken,
}

async fn timed<T>(call: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    tokio::time::timeout(CALL_TIMEOUT, call)
        .await
        .unwrap_or_else(|_| Err(ApiError::internal(format!("no answer within {} s", CALL_TIMEOUT.as_secs()))))
}

impl Calls {
    fn tell(&self, key: Key, uid: String, what: What) {
        // The receiver is gone only when the engine is stopping.
        let _ = self.reports.send(Report { key, uid, what });
    }

    /// Waits between attempts; false when the engine stops.
    async fn pause(&self, millis: u64) -> bool {
        tokio::select! {
            () = self.shutdown.cancelled() => false,
            () = tokio::time::sleep(Duration::from_millis(millis)) => true,
        }
    }

    pub fn create_pod(&self, key: Key, uid: String, node: String, pod: Value) {
        let calls = self.clone();
        self.tracker.spawn(async move {
            if let Some(event) = calls.make_pod(&key, &uid, node, pod).await {
                calls.tell(key, uid, What::Event(event));
            }
        });
    }

    /// Creates a pod, or finds the one an earlier life of the engine made. The watch tells of new ones.
    async fn make_pod(&self, key: &Key, uid: &str, node: String, pod: Value) -> Option<Event> {
        let name = text(&pod, "/metadata/name").to_owned();
        let mut why = String::new();
        for pause in PAUSES {
            match timed(self.cluster.create(&resources::PODS, &key.namespace, pod.clone())).await {
                Ok(_) => return None,
                Err(error) if error.is_already_exists() => {
                    match timed(self.cluster.get(&resources::PODS, &key.namespace, &name)).await {
                        Ok(found) if !owned_by(&found, uid) => {
                            why = format!("pod \"{name}\" exists and belongs to something else");
                        }
                        Ok(found) if found["metadata"]["deletionTimestamp"].is_null() => {
                            return Some(Event::Pod(found));
                        }
                        Ok(_) => why = format!("pod \"{name}\" of an earlier attempt is still being deleted"),
                        Err(_) => why = format!("pod \"{name}\" exists but cannot be read"),
                    }
                }
                Err(error) if error.code < 500 && error.code != 429 => {
                    return Some(Event::PodRefused(node, format!("pod \"{name}\" was refused: {error}")));
                }
                Err(error) => why = format!("pod \"{name}\" could not be created: {error}"),
            }
            if !self.pause(pause).await {
                return None;
            }
        }
        Some(Event::PodRefused(node, why))
    }

    /// Ends a pod in the way a passed deadline does, so that it and its logs stay.
    pub fn stop_pod(&self, key: Key, name: String) {
        let calls = self.clone();
        self.tracker.spawn(async move {
            for pause in PAUSES {
                let stop = calls.cluster.modify(&resources::PODS, &key.namespace, &name, |pod| {
                    if !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
                        pod["spec"]["activeDeadlineSeconds"] = json!(0);
                    }
                    Ok(())
                });
                match timed(stop).await {
                    Ok(_) => return,
                    // Its creation may still be on the way.
                    Err(error) => tracing::debug!(pod = name, %error, "cannot stop pod yet"),
                }
                if !calls.pause(pause).await {
                    return;
                }
            }
            tracing::warn!(pod = name, namespace = key.namespace, "pod could not be stopped");
        });
    }

    pub fn create_claim(&self, key: Key, uid: String, claim: Value) {
        let calls = self.clone();
        self.tracker.spawn(async move {
            let name = text(&claim, "/metadata/name").to_owned();
            let mut event = Event::ClaimReady;
            for pause in PAUSES {
                let made =
                    timed(calls.cluster.create(&resources::PERSISTENT_VOLUME_CLAIMS, &key.namespace, claim.clone()));
                match made.await {
                    Ok(_) => event = Event::ClaimReady,
                    Err(error) if error.is_already_exists() => event = Event::ClaimReady,
                    Err(error) => {
                        let passing = error.code >= 500 || error.code == 429;
                        event = Event::ClaimRefused(format!("claim \"{name}\" could not be created: {error}"));
                        if passing && calls.pause(pause).await {
                            continue;
                        }
                    }
                }
                break;
            }
            calls.tell(key, uid, What::Event(event));
        });
    }

    pub fn delete_claim(&self, key: Key, name: String) {
        let calls = self.clone();
        self.tracker.spawn(async move {
            let delete = calls.cluster.delete(
                &resources::PERSISTENT_VOLUME_CLAIMS,
                &key.namespace,
                &name,
                DeleteOptions::default(),
            );
            if let Err(error) = timed(delete).await.map(drop)
                && !error.is_not_found()
            {
                tracing::warn!(claim = name, %error, "claim could not be deleted; it goes with its workflow");
            }
        });
    }

    pub fn delete_workflow(&self, key: Key, uid: String) {
        let calls = self.clone();
        self.tracker.spawn(async move {
            let options = DeleteOptions { uid: Some(uid), ..DeleteOptions::default() };
            match timed(calls.cluster.delete(&resources::WORKFLOWS, &key.namespace, &key.name, options)).await {
                Ok(_) => tracing::info!(workflow = %key, "deleted expired workflow"),
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => tracing::warn!(workflow = %key, %error, "expired workflow could not be deleted"),
            }
        });
    }

    pub fn write(&self, key: Key, uid: String, changes: Changes) {
        let calls = self.clone();
        self.tracker.spawn(async move {
            let begun = Instant::now();
            let edits = changes.into_edits();
            let write = calls.cluster.edit(&resources::WORKFLOWS, &key.namespace, &key.name, &uid, edits);
            let result = timed(write).await;
            calls.tell(key, uid, What::Written(result, begun.elapsed()));
        });
    }

    /// Fails a Workflow that cannot even be read.
    pub fn reject(&self, key: Key, uid: String, message: String) {
        let calls = self.clone();
        self.tracker.spawn(async move {
            let now = kfp_core::argo::Timestamp(chrono::Utc::now()).to_string();
            let mut changes = Changes::default();
            for (member, value) in
                [("phase", "Failed"), ("message", &message), ("startedAt", &now), ("finishedAt", &now)]
            {
                changes.status.insert(member.to_owned(), json!(value));
            }
            changes.labels =
                vec![(names::LABEL_PHASE, "Failed".to_owned()), (names::LABEL_COMPLETED, "true".to_owned())];
            let edits = changes.into_edits();
            let write = calls.cluster.edit(&resources::WORKFLOWS, &key.namespace, &key.name, &uid, edits);
            if let Err(error) = timed(write).await {
                tracing::warn!(workflow = %key, %error, "unreadable workflow could not be marked failed");
            }
        });
    }
}
