//! Creating runs: from what a request of either API version says to a Workflow and a row.

use serde_json::{Value, json};

use super::runs::Service;
use super::sources::{self, Origin};
use super::{new_id, to_the_end};
use crate::domain::names;
use crate::domain::nodes::text;
use crate::domain::state::{History, State, Storage};
use crate::error::{Error, Result, Wrap as _};
use crate::store::{experiments, jobs, now, runs};
use crate::workflows::cluster::{Failure, Kind, Propagation};

/// Namespace of the ids of runs that recurring runs create; upstream's constant.
const RUN_IDS: uuid::Uuid = uuid::Uuid::from_u128(0xc2f3_a9d4_1e6b_4c8a_9f7d_0b5e_3a1c_2d4f);

/// What a caller wants of a new run.
#[derive(Clone, Debug, Default)]
pub struct Draft {
    /// Chosen by the caller, or empty.
    pub id: String,
    /// Required.
    pub display_name: String,
    /// Free text.
    pub description: String,
    /// Empty for the default experiment.
    pub experiment_id: String,
    /// Namespace of the request, or empty.
    pub namespace: String,
    /// Recurring run that ticks, or empty.
    pub job_id: String,
    /// Archived runs may be created.
    pub storage: Storage,
    /// Empty for the Workflow's own.
    pub service_account: String,
    /// Which pipeline.
    pub origin: Origin,
    /// v2 parameters as stored.
    pub runtime_parameters: String,
    /// v1 parameters as stored.
    pub parameters: String,
    /// Where artifacts go, or empty.
    pub pipeline_root: String,
    /// Unix seconds; 0 for now.
    pub scheduled_at: i64,
    /// As stored.
    pub plugins_input: String,
}

fn kube_error(message: String, failure: Failure) -> Error {
    match failure {
        Failure::Unavailable(_) => Error::unavailable(format!("{message} - try again later"), failure),
        _ => Error::internal(message, failure),
    }
}

impl Service {
    /// Creates a run. It goes on to its end although the caller goes away.
    ///
    /// # Errors
    /// Code 3 for what does not fit, 5 for what does not exist, 13 and 14 when Kubernetes fails.
    pub async fn launch(&self, draft: Draft) -> Result<runs::Run> {
        let service = self.clone();
        to_the_end(async move { service.create(draft).await }).await
    }

    async fn create(&self, draft: Draft) -> Result<runs::Run> {
        if draft.display_name.is_empty() {
            return Err(Error::invalid("Run name cannot be empty"));
        }
        names::length("Run.DisplayName", &draft.display_name, names::SHORT)?;
        names::length("Run.Description", &draft.description, names::SHORT)?;
        names::length("Run.ServiceAccount", &draft.service_account, names::SHORT)?;
        names::length("Run.UUID", &draft.id, 191)?;
        self.0.live.get().rules.check_size(&draft.parameters)?;
        let (experiment_id, namespace) = sources::experiment(&self.0, &draft.experiment_id, &draft.namespace).await?;
        let mut tx = self.0.db.read().await?;
        if !draft.job_id.is_empty()
            && let Some(existing) = runs::by_job(&mut tx, &draft.job_id, &draft.display_name).await?
            // A recurring run may be gone, and then nothing says whose it was.
            && (existing.experiment_id == experiment_id || !self.0.access.multi_user)
        {
            return Ok(existing);
        }
        let job = match draft.job_id.as_str() {
            "" => None,
            id => Some(jobs::get(&mut tx, id).await.wrap(|| format!("RecurringRunId doesn't exist: {id}"))?),
        };
        let pinned = match &job {
            // A tick of a recurring run with a pinned spec.
            Some(job) if draft.origin.is_empty() => Some(sources::pinned(&mut tx, job).await),
            _ => None,
        };
        drop(tx);
        let source = match pinned {
            Some(source) => source,
            None => draft.origin.resolve(&self.0.catalog).await,
        };
        let source = source.wrap(|| "Failed to create a run due to error fetching manifest".to_owned())?;

        let created_at = now();
        let mut history = History::default();
        history.note(State::Pending, created_at);
        // The installation's own namespace is not stored, unless it is one among many.
        let own = !self.0.access.multi_user && namespace == self.0.namespace;
        let namespace = if own { String::new() } else { namespace };
        let mut run = runs::Run {
            id: run_id(&draft),
            description: draft.description,
            namespace,
            experiment_id,
            job_id: draft.job_id,
            storage: draft.storage,
            service_account: draft.service_account,
            pipeline_id: source.pipeline_id,
            version_id: source.version_id,
            pipeline_name: source.name,
            runtime_parameters: draft.runtime_parameters,
            parameters: draft.parameters,
            pipeline_root: draft.pipeline_root,
            created_at,
            scheduled_at: draft.scheduled_at,
            state: State::Pending,
            history,
            plugins_input: draft.plugins_input,
            display_name: draft.display_name,
            ..runs::Run::default()
        };
        let namespace = self.namespace(&run).to_owned();
        source.template.check_runnable(&namespace, &self.0.live.get().rules)?;
        let mut workflow = source.template.run(&run, &namespace, self.0.live.get().template())?;
        if let Some(job) = &job {
            self.adopt(&mut workflow, job, &run).await?;
        }
        let created = self.0.cluster.create(Kind::Workflow, &namespace, &workflow).await.map_err(|failure| {
            let name = text(&workflow, "/metadata/generateName");
            kube_error(format!("Failed to create a workflow for ({name})"), failure)
        })?;
        text(&created, "/metadata/name").clone_into(&mut run.workflow);
        text(&created, "/spec/serviceAccountName").clone_into(&mut run.service_account);
        if run.scheduled_at <= 0 {
            run.scheduled_at = created_at;
        }
        let mut manifests = runs::Manifests {
            pipeline_spec: source.specs.pipeline,
            workflow_spec: source.specs.workflow,
            ..runs::Manifests::default()
        };
        // Where upstream puts the Workflow as created: v1 runs are shown without a report, too.
        if manifests.pipeline_spec.is_empty() {
            manifests.workflow_runtime = created.to_string();
        } else {
            manifests.pipeline_runtime = created.to_string();
        }
        match self.store(&run, &manifests).await {
            Ok(()) => {}
            Err(error) => {
                // The Workflow must not run without a row; a report would delete it only after the grace period.
                let gone = self.0.cluster.delete(Kind::Workflow, &namespace, &run.workflow, Propagation::Default).await;
                if let Err(failure) = gone {
                    tracing::warn!(workflow = %run.workflow, %failure, "cannot delete the workflow of a failed run creation");
                }
                return Err(error);
            }
        }
        tracing::info!(run = %run.id, workflow = %run.workflow, "run created");
        Ok(run)
    }

    /// Makes the Workflow a child of its ScheduledWorkflow.
    async fn adopt(&self, workflow: &mut Value, job: &jobs::Job, run: &runs::Run) -> Result<()> {
        let schedule = self.0.cluster.get(Kind::ScheduledWorkflow, &job.namespace, &job.name).await;
        let schedule = schedule.map_err(|failure| match failure {
            Failure::NotFound(_) => {
                Error::not_found_because(format!("ScheduledWorkflow doesn't exist: {}", job.name), failure)
            }
            _ => kube_error(format!("Failed to read ScheduledWorkflow {}", job.name), failure),
        })?;
        let name = text(&schedule, "/metadata/name");
        workflow["metadata"]["ownerReferences"] = json!([{
            "apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow", "name": name,
            "uid": text(&schedule, "/metadata/uid"), "controller": true, "blockOwnerDeletion": true,
        }]);
        let index = schedule.pointer("/status/trigger/lastWorkflowIndex").and_then(Value::as_i64).unwrap_or(0) + 1;
        for (key, value) in [
            ("scheduledWorkflowName", name.to_owned()),
            ("workflowEpoch", run.created_at.to_string()),
            ("workflowIndex", index.to_string()),
            ("isOwnedByScheduledWorkflow", "true".to_owned()),
        ] {
            workflow["metadata"]["labels"][format!("scheduledworkflows.kubeflow.org/{key}")] = json!(value);
        }
        Ok(())
    }

    async fn store(&self, run: &runs::Run, manifests: &runs::Manifests) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        if !runs::insert(&mut tx, run, manifests).await? {
            return Err(Error::already_exists(format!("Failed to store a run. The id {} already exists", run.id)));
        }
        experiments::touch(&mut tx, &run.experiment_id, run.created_at).await?;
        tx.commit().await
    }
}

/// The client's id, else one that a repeated tick of a recurring run gets again, else a random one.
fn run_id(draft: &Draft) -> String {
    if !draft.id.is_empty() {
        return draft.id.clone();
    }
    if draft.job_id.is_empty() {
        return new_id();
    }
    let name = format!("{}/{}", draft.job_id, draft.display_name);
    uuid::Uuid::new_v5(&RUN_IDS, name.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_scheduled_runs_are_upstreams() {
        let draft = Draft { job_id: "job-1".into(), display_name: "run-1".into(), ..Draft::default() };
        assert_eq!(run_id(&draft), "832960ed-ee24-5da1-8e56-29cc54df1d8d");
    }
}
