//! Creation and schedule time of a run, for tasks that ask for them.

use chrono::{DateTime, SecondsFormat, Utc};
use kfp_core::kubeapi::{self, WORKFLOWS};

use crate::request::{Request, Task};
use crate::resolve::{Times, mentioned_times};
use crate::{Error, Services};

/// Label of the Unix time for which a recurring run was scheduled.
const EPOCH_LABEL: &str = "scheduledworkflows.kubeflow.org/workflowEpoch";

/// The times that the task's constants mention; the Workflow is read only if it must be.
///
/// # Errors
/// When the Workflow has to be read for its creation time and cannot be.
pub(crate) async fn of(request: &Request, task: &Task, services: &Services) -> Result<Times, Error> {
    let (create_wanted, schedule_wanted) = mentioned_times(task);
    let create = request.run.create_time.clone();
    if !(schedule_wanted || create_wanted && create.is_empty()) {
        return Ok(Times { schedule: create.clone(), create });
    }
    let workflow = read(request, services).await;
    match workflow {
        Ok(workflow) => Ok(from_workflow(&workflow, create)),
        Err(error) if !create.is_empty() => {
            tracing::warn!("schedule time falls back to the creation time: {error}");
            Ok(Times { schedule: create.clone(), create })
        }
        Err(error) => Err(error),
    }
}

async fn read(request: &Request, services: &Services) -> Result<serde_json::Value, Error> {
    let client: &kubeapi::Client = services.kubernetes()?;
    Ok(client.get(WORKFLOWS, &request.run.namespace, &request.run.name).await?)
}

fn from_workflow(workflow: &serde_json::Value, create: String) -> Times {
    let metadata = &workflow["metadata"];
    let create =
        if create.is_empty() { metadata["creationTimestamp"].as_str().unwrap_or_default().to_owned() } else { create };
    let epoch = metadata["labels"][EPOCH_LABEL].as_str().and_then(|text| text.parse().ok());
    let schedule = epoch
        .and_then(|seconds| DateTime::<Utc>::from_timestamp(seconds, 0))
        .map_or_else(|| create.clone(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true));
    Times { create, schedule }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn schedule_comes_from_the_label() {
        let workflow = |epoch: &str| json!({"metadata": {"creationTimestamp": "2026-01-02T03:04:05Z", "labels": {EPOCH_LABEL: epoch}}});
        let times = from_workflow(&workflow("1767225600"), String::new());
        assert_eq!((times.create.as_str(), times.schedule.as_str()), ("2026-01-02T03:04:05Z", "2026-01-01T00:00:00Z"));
        let times = from_workflow(&workflow("soon"), "given".to_owned());
        assert_eq!((times.create.as_str(), times.schedule.as_str()), ("given", "given"));
    }
}
