//! Work that the server does by itself: schedules that follow an upgrade, and runs whose time is up.

use std::time::Duration;

use kfp_core::shutdown::CancellationToken;
use tonic::Code;

use super::{Handle, recurring_runs, runs as run_service, sources};
use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::store::{expired, jobs, now};
use crate::workflows::cluster::{Failure, Kind};

/// Recurring runs that are looked at together.
const PAGE: u32 = 50;
/// Between batches, so that requests get their turn.
const PAUSE: Duration = Duration::from_millis(100);
/// Largest batch that may be set.
const MAX_BATCH: i64 = 1000;

/// How long runs are kept; zero keeps them for ever.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Finished runs are archived after this time (`RUNS_RETENTION_TIME`).
    pub runs: Duration,
    /// Archived runs are deleted after this time (`ARCHIVED_RUNS_RETENTION_TIME`).
    pub archived: Duration,
    /// How often runs are looked at (`RUNS_GC_INTERVAL`).
    pub interval: Duration,
    /// Runs that are changed together (`RUNS_GC_BATCH_SIZE`).
    pub batch: u32,
}

impl Retention {
    /// Reads the settings.
    ///
    /// # Errors
    /// When a value has the wrong form.
    pub fn from_config(config: &Config) -> std::result::Result<Self, config::Error> {
        Ok(Retention {
            runs: config.duration("RUNS_RETENTION_TIME", Duration::ZERO)?,
            archived: config.duration("ARCHIVED_RUNS_RETENTION_TIME", Duration::ZERO)?,
            interval: config.duration("RUNS_GC_INTERVAL", Duration::from_secs(6 * 3600))?.max(Duration::from_secs(1)),
            batch: u32::try_from(config.int("RUNS_GC_BATCH_SIZE", 100)?.clamp(1, MAX_BATCH)).unwrap_or(1),
        })
    }

    /// Whether anything ever expires.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        !self.runs.is_zero() || !self.archived.is_zero()
    }

    fn before(length: Duration) -> i64 {
        now().saturating_sub(i64::try_from(length.as_secs()).unwrap_or(i64::MAX))
    }
}

/// Archives and deletes runs whose time is up, again and again until `stop`. Several servers may do so at once: they
/// would only find less to do.
pub async fn collect(app: Handle, retention: Retention, stop: CancellationToken) {
    loop {
        match expire(&app, &retention, &stop).await {
            Ok((0, 0)) => {}
            Ok((archived, deleted)) => tracing::info!(archived, deleted, "runs whose time was up"),
            Err(error) => {
                tracing::warn!(%error, "cannot collect expired runs; the next attempt is in {:?}", retention.interval)
            }
        }
        if stop.run_until_cancelled(tokio::time::sleep(retention.interval)).await.is_none() {
            return;
        }
    }
}

/// One pass over all runs. Returns how many were archived and deleted.
///
/// # Errors
/// When the database fails.
pub async fn expire(app: &Handle, retention: &Retention, stop: &CancellationToken) -> Result<(u64, u64)> {
    let (mut archived, mut deleted) = (0, 0);
    while !retention.runs.is_zero() && !stop.is_cancelled() {
        let mut tx = app.db.write().await?;
        let count = expired::archive(&mut tx, Retention::before(retention.runs), retention.batch, now()).await?;
        tx.commit().await?;
        archived += count;
        if count < u64::from(retention.batch) {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    let service = run_service::Service(app.clone());
    while !retention.archived.is_zero() && !stop.is_cancelled() {
        let mut tx = app.db.read().await?;
        let ids = expired::archived(&mut tx, Retention::before(retention.archived), retention.batch).await?;
        drop(tx);
        for id in &ids {
            match service.delete(id).await {
                Ok(()) => deleted += 1,
                // Somebody else was faster.
                Err(error) if error.code() == Code::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        if ids.len() < retention.batch as usize {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok((archived, deleted))
}

/// Compiles the pinned recurring runs again and updates those ScheduledWorkflows that differ: an upgrade of the images
/// reaches existing schedules this way. Returns how many were updated.
///
/// # Errors
/// The first failure ends the pass.
pub async fn reconcile(app: &Handle, stop: &CancellationToken) -> Result<u64> {
    let service = recurring_runs::Service(app.clone());
    let (mut after, mut updated) = (String::new(), 0);
    loop {
        let mut tx = app.db.read().await?;
        let page = jobs::pinned(&mut tx, &after, PAGE).await?;
        drop(tx);
        let Some(last) = page.last() else { return Ok(updated) };
        after.clone_from(&last.id);
        for mut job in page {
            if stop.is_cancelled() {
                return Ok(updated);
            }
            let mut tx = app.db.read().await?;
            let source = sources::pinned(&mut tx, &job).await?;
            drop(tx);
            let spec = service.object_spec(&mut job, &source, true)?;
            let failed = |failure| Error::internal(format!("cannot update scheduled workflow {}", job.name), failure);
            let live = match app.cluster.get(Kind::ScheduledWorkflow, &job.namespace, &job.name).await {
                Err(Failure::NotFound(_)) => continue,
                other => other.map_err(failed)?,
            };
            let fields = spec.as_object().into_iter().flatten();
            if fields.into_iter().all(|(key, value)| live["spec"][key] == *value) {
                continue;
            }
            let patch = serde_json::json!({"spec": spec});
            match app.cluster.merge_surely(Kind::ScheduledWorkflow, &job.namespace, &job.name, &patch).await {
                Ok(()) => updated += 1,
                Err(Failure::NotFound(_)) => {}
                Err(failure) => return Err(failed(failure)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(settings: &[(&str, &str)]) -> std::result::Result<Retention, config::Error> {
        let env =
            settings.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<BTreeMap<_, _>>();
        Retention::from_config(&Config::new(serde_json::Value::Null, env))
    }

    #[test]
    fn runs_are_kept_unless_a_time_is_set() {
        assert!(!read(&[]).unwrap().is_limited());
        assert!(!read(&[("RUNS_RETENTION_TIME", "0")]).unwrap().is_limited());
        let set = read(&[("ARCHIVED_RUNS_RETENTION_TIME", "720h"), ("RUNS_GC_BATCH_SIZE", "5000")]).unwrap();
        assert!(set.is_limited());
        assert_eq!((set.archived.as_secs(), set.batch), (720 * 3600, 1000));
        for bad in ["x", "-1h", "5"] {
            assert!(read(&[("RUNS_RETENTION_TIME", bad)]).is_err(), "{bad}");
        }
    }
}
