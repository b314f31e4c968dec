//! `ReportService`: what the persistence agent saw in the cluster becomes the state of runs, tasks and schedules.

use kfp_core::argo::gone::RUN_ID;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use serde_json::{Value, json};
use v2::report_service_server::ReportService;

use super::{Answer, Handle, answer, new_id};
use crate::domain::nodes::{self, meta, seconds, text};
use crate::domain::retry::{GENERATION, PERSISTED};
use crate::domain::slim;
use crate::domain::state::{History, State, Storage, is_given};
use crate::error::{Error, Result};
use crate::metrics::WORKFLOW_GC;
use crate::store::{experiments, jobs, now, runs, tasks};
use crate::workflows::cluster::{Failure, Kind, Propagation};

/// Takes reports.
#[derive(Clone, Debug)]
pub struct Service(pub Handle);

const EPOCH: &str = "scheduledworkflows.kubeflow.org/workflowEpoch";
/// How long final reports of an earlier attempt are ignored after a retry was claimed.
const CLAIM_SECONDS: i64 = 600;

/// A reported Workflow with what decides about it.
struct Report<'a> {
    /// As it was sent, which is what is stored.
    json: &'a str,
    /// The parts of it that are looked at.
    workflow: Value,
    name: String,
    namespace: String,
    version: String,
    run_id: String,
    job_id: Option<String>,
    state: State,
    is_final: bool,
}

fn object(parsed: serde_json::Result<Value>, what: &str) -> Result<Value> {
    let value = parsed.map_err(|error| Error::invalid_because(format!("Could not unmarshal {what}"), error))?;
    for (pointer, field) in [("/metadata/name", "name"), ("/metadata/namespace", "namespace"), ("/metadata/uid", "UID")]
    {
        if text(&value, pointer).is_empty() {
            return Err(Error::invalid(format!("The {what} must have a {field}: {}", text(&value, "/metadata/name"))));
        }
    }
    Ok(value)
}

impl<'a> Report<'a> {
    fn parse(json: &'a str) -> Result<Self> {
        let workflow = object(slim::workflow(json), "workflow")?;
        let name = text(&workflow, "/metadata/name").to_owned();
        let run_id = meta(&workflow, "labels", RUN_ID).to_owned();
        if run_id.is_empty() {
            return Err(Error::invalid(format!("Workflow[{name}] missing the Run ID label")));
        }
        let phase = text(&workflow, "/status/phase");
        let owners = workflow["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        let job_id = owners
            .filter(|owner| owner["apiVersion"] == "kubeflow.org/v1beta1" && owner["kind"] == "ScheduledWorkflow")
            .find_map(|owner| owner["uid"].as_str().map(str::to_owned));
        Ok(Report {
            state: State::of_workflow(phase, workflow["spec"]["activeDeadlineSeconds"] == json!(0)),
            is_final: matches!(phase, "Succeeded" | "Failed" | "Error"),
            namespace: text(&workflow, "/metadata/namespace").to_owned(),
            version: text(&workflow, "/metadata/resourceVersion").to_owned(),
            name,
            run_id,
            job_id,
            json,
            workflow,
        })
    }

    fn generation(workflow: &Value) -> i64 {
        meta(workflow, "annotations", GENERATION).parse().unwrap_or(0)
    }

    fn skip(&self, reason: impl std::fmt::Display) -> Error {
        Error::unavailable(self.skipping(), reason)
    }

    /// The next report of the Workflow is on its way.
    fn overtaken(&self, reason: impl std::fmt::Display) -> Error {
        Error::not_yet(self.skipping(), reason)
    }

    fn skipping(&self) -> String {
        format!("Skipping terminal workflow report for run {} workflow {}", self.run_id, self.name)
    }
}

impl Service {
    /// Takes a report of a Workflow.
    ///
    /// # Errors
    /// The codes are the protocol with the agent: 3 and 5 mean "do not send again", anything else "send again later".
    pub async fn workflow(&self, json: &str) -> Result<()> {
        self.take(Report::parse(json)?).await.map_err(|error| error.wrap("Failed to report workflow"))
    }

    async fn take(&self, report: Report<'_>) -> Result<()> {
        if report.is_final && !report.version.is_empty() {
            match self.0.cluster.metadata(Kind::Workflow, &report.namespace, &report.name).await {
                Ok(live) if text(&live, "/metadata/resourceVersion") != report.version => {
                    return Err(report.overtaken("the workflow has changed since"));
                }
                Ok(_) | Err(Failure::NotFound(_)) => {}
                Err(failure) => return Err(report.skip(failure)),
            }
        }
        let mut tx = self.0.db.read().await?;
        let run = match runs::get(&mut tx, &report.run_id).await {
            Ok(run) => Some(run),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        drop(tx);
        if let Some(run) = &run
            && self.is_outdated(&report, run).await?
        {
            return Ok(());
        }
        let persisted = !meta(&report.workflow, "labels", PERSISTED).is_empty();
        if persisted {
            self.delete(&report).await?;
        }
        match (&run, &report.job_id) {
            (None, None) => return self.orphan(&report).await,
            (None, Some(job)) => self.adopt(&report, job).await?,
            (Some(_), _) => self.store(&report).await?,
        }
        // The Workflow that was just deleted cannot be marked; its report is done, which code 5 tells the agent.
        if persisted {
            return Err(Error::not_found("Workflow", &report.name));
        }
        if report.is_final {
            self.mark(&report).await?;
        }
        Ok(())
    }

    /// Whether the report is of an attempt before the last retry.
    async fn is_outdated(&self, report: &Report<'_>, run: &runs::Run) -> Result<bool> {
        let generation = run.retry_generation;
        if generation == 0 || !report.is_final || Report::generation(&report.workflow) >= generation {
            return Ok(false);
        }
        if now() - run.retry_claimed_at <= CLAIM_SECONDS {
            return Ok(true);
        }
        match self.0.cluster.metadata(Kind::Workflow, &report.namespace, &report.name).await {
            Ok(live) => Ok(Report::generation(&live) >= generation),
            Err(Failure::NotFound(_)) => Ok(false),
            Err(failure) => Err(report.skip(failure)),
        }
    }

    async fn delete(&self, report: &Report<'_>) -> Result<()> {
        match self.0.cluster.delete(Kind::Workflow, &report.namespace, &report.name, Propagation::Default).await {
            Ok(()) => {
                self.0.metrics.count(WORKFLOW_GC);
                Ok(())
            }
            Err(Failure::NotFound(_)) => Err(Error::not_found("Workflow", &report.name)),
            Err(failure) => Err(Error::internal(format!("Failed to delete workflow {}", report.name), failure)),
        }
    }

    /// A Workflow that no run knows: wait for the row of a run that is being created, then delete it.
    async fn orphan(&self, report: &Report<'_>) -> Result<()> {
        let age = now() - seconds(&report.workflow["metadata"]["creationTimestamp"]);
        if age < self.0.live.get().grace_seconds {
            return Err(Error::not_yet(
                format!("Skipping GC for workflow {} - will retry", report.name),
                format!("run {} does not exist yet", report.run_id),
            ));
        }
        tracing::warn!(workflow = %report.name, run = %report.run_id, "deleting a workflow whose run does not exist");
        match self.delete(report).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Err(Error::not_found("Run", &report.run_id)),
        }
    }

    /// A Workflow that the schedule controller created without asking: its run is made from the recurring run.
    async fn adopt(&self, report: &Report<'_>, job_id: &str) -> Result<()> {
        let created_at = seconds(&report.workflow["metadata"]["creationTimestamp"]);
        let scheduled = meta(&report.workflow, "labels", EPOCH).parse().unwrap_or(created_at);
        let mut history = History::default();
        history.note(report.state, now());
        let mut spec = json!({
            "apiVersion": report.workflow["apiVersion"], "kind": report.workflow["kind"],
            "spec": report.workflow["spec"], "metadata": {},
        });
        spec["metadata"]["generateName"] = json!(report.name.chars().take(200).collect::<String>());
        let mut tx = self.0.db.write().await?;
        let job = jobs::get(&mut tx, job_id).await?;
        let experiment_id = if job.experiment_id.is_empty() {
            super::experiments::ensure_default(&mut tx).await?
        } else {
            job.experiment_id
        };
        let run = runs::Run {
            id: report.run_id.clone(),
            display_name: report.name.clone(),
            workflow: report.name.clone(),
            namespace: if job.namespace.is_empty() { report.namespace.clone() } else { job.namespace },
            experiment_id,
            job_id: job_id.to_owned(),
            storage: Storage::Available,
            pipeline_id: job.pipeline_id,
            version_id: job.version_id,
            pipeline_name: job.pipeline_name,
            runtime_parameters: job.runtime_parameters,
            pipeline_root: job.pipeline_root,
            created_at,
            scheduled_at: scheduled,
            finished_at: seconds(&report.workflow["status"]["finishedAt"]),
            state: report.state,
            history,
            ..runs::Run::default()
        };
        let specs = jobs::specs(&mut tx, job_id).await?;
        let manifests = runs::Manifests {
            pipeline_spec: specs.pipeline,
            workflow_spec: spec.to_string(),
            workflow_runtime: report.json.to_owned(),
            ..runs::Manifests::default()
        };
        runs::insert(&mut tx, &run, &manifests).await?;
        experiments::touch(&mut tx, &run.experiment_id, run.created_at).await?;
        self.tasks(&mut tx, report).await?;
        tx.commit().await?;
        self.0.metrics.reported_after(now() - created_at);
        Ok(())
    }

    async fn store(&self, report: &Report<'_>) -> Result<()> {
        let mut tx = self.0.db.write().await?;
        // Read again: the write transaction is where the decision counts.
        let mut run = runs::get(&mut tx, &report.run_id).await?;
        run.state = run.state.after_report(report.state);
        run.history.note(run.state, now());
        run.finished_at = seconds(&report.workflow["status"]["finishedAt"]);
        runs::update(&mut tx, &run, report.json).await?;
        self.tasks(&mut tx, report).await?;
        tx.commit().await
    }

    async fn tasks(&self, tx: &mut crate::store::Tx, report: &Report<'_>) -> Result<()> {
        let reported = nodes::tasks(&report.workflow, &report.run_id);
        if reported.is_empty() {
            return Ok(());
        }
        let ids = vec![report.run_id.clone()];
        let mut stored = tasks::of_runs(tx, &ids).await?.remove(&report.run_id).unwrap_or_default();
        tasks::fill_messages(tx, &report.run_id, &mut stored).await?;
        let changes = nodes::merge(&stored, reported, now(), new_id);
        for task in &changes.insert {
            tasks::insert(tx, task).await?;
        }
        for task in &changes.update {
            tasks::update(tx, task).await?;
        }
        Ok(())
    }

    /// Marks the Workflow as stored, provided it is still the one that was reported.
    async fn mark(&self, report: &Report<'_>) -> Result<()> {
        let mut patch = vec![];
        if !report.version.is_empty() {
            patch.push(json!({"op": "test", "path": "/metadata/resourceVersion", "value": report.version}));
        }
        patch.push(json!({"op": "add", "path": "/metadata/labels/pipeline~1persistedFinalState", "value": "true"}));
        match self.0.cluster.patch(Kind::Workflow, &report.namespace, &report.name, &json!(patch)).await {
            Ok(_) => {
                let succeeded = report.state == State::Succeeded;
                self.0.metrics.ended(&report.namespace, &report.name, succeeded);
                Ok(())
            }
            Err(Failure::NotFound(_)) => Err(Error::not_found("Workflow", &report.name)),
            Err(Failure::Conflict(reason)) => Err(report.overtaken(reason)),
            Err(failure) => Err(Error::unavailable(format!("Failed to label workflow {}", report.name), failure)),
        }
    }

    /// Takes a report of a ScheduledWorkflow.
    ///
    /// # Errors
    /// Code 3 means "do not send again", anything else "send again later".
    pub async fn schedule(&self, json: &str) -> Result<()> {
        let schedule = object(serde_json::from_str(json), "scheduled workflow")
            .map_err(|error| error.wrap("Failed to report scheduled workflow"))?;
        let report = schedule_report(&schedule)?;
        let uid = text(&schedule, "/metadata/uid");
        let mut tx = self.0.db.read().await?;
        let job = jobs::get(&mut tx, uid).await?;
        drop(tx);
        if report.revises(&job) && self.is_overtaken(&schedule).await? {
            // What was changed meanwhile, for instance that it no longer fires, is not to be undone for the moment
            // until the next report, which tells of that change, too.
            return Ok(());
        }
        let mut tx = self.0.db.write().await?;
        if !jobs::report(&mut tx, uid, &report, now()).await? {
            return Err(Error::invalid(format!(
                "There is no job corresponding to this scheduled workflow: {uid}/{}/{}",
                text(&schedule, "/metadata/namespace"),
                report.name
            )));
        }
        tx.commit().await
    }

    /// Whether the cluster has another version of a ScheduledWorkflow than the reported one.
    async fn is_overtaken(&self, schedule: &Value) -> Result<bool> {
        let (namespace, name) = (text(schedule, "/metadata/namespace"), text(schedule, "/metadata/name"));
        let version = text(schedule, "/metadata/resourceVersion");
        match self.0.cluster.get(Kind::ScheduledWorkflow, namespace, name).await {
            Ok(live) => Ok(!version.is_empty() && text(&live, "/metadata/resourceVersion") != version),
            Err(Failure::NotFound(_)) => Ok(false),
            Err(failure) => Err(Error::unavailable(format!("Failed to read scheduled workflow {name}"), failure)),
        }
    }
}

fn schedule_report(schedule: &Value) -> Result<jobs::Report> {
    let spec = &schedule["spec"];
    let time = |pointer: &str| spec.pointer(pointer).map(seconds).filter(|seconds| is_given(*seconds));
    let conditions = schedule["status"]["conditions"].as_array().and_then(|list| list.last());
    let condition = conditions.map_or("", |last| text(last, "/type")).to_uppercase();
    let mut report = jobs::Report {
        name: text(schedule, "/metadata/name").to_owned(),
        enabled: spec["enabled"].as_bool().unwrap_or(false),
        conditions: match condition.as_str() {
            "ENABLED" | "READY" | "DONE" | "RUNNING" | "SUCCEEDED" => "ENABLED",
            "DISABLED" => "DISABLED",
            _ => "STATUS_UNSPECIFIED",
        }
        .to_owned(),
        max_concurrency: spec["maxConcurrency"].as_i64().unwrap_or(0),
        no_catchup: spec["noCatchup"].as_bool().unwrap_or(false),
        trigger: jobs::Trigger {
            cron_start: time("/trigger/cronSchedule/startTime"),
            cron_end: time("/trigger/cronSchedule/endTime"),
            cron: text(spec, "/trigger/cronSchedule/cron").to_owned(),
            periodic_start: time("/trigger/periodicSchedule/startTime"),
            periodic_end: time("/trigger/periodicSchedule/endTime"),
            interval: spec.pointer("/trigger/periodicSchedule/intervalSecond").and_then(Value::as_i64).unwrap_or(0),
        },
        runtime_parameters: None,
        parameters: None,
    };
    let Some(parameters) = spec["workflow"]["parameters"].as_array().filter(|list| !list.is_empty()) else {
        return Ok(report);
    };
    // The agent reports v2beta1; its values are JSON texts. Values of v1 objects are plain texts.
    if text(schedule, "/apiVersion") == "kubeflow.org/v1beta1" {
        report.parameters = Some(json!(parameters).to_string());
        return Ok(report);
    }
    let mut values = serde_json::Map::new();
    for parameter in parameters {
        let value = serde_json::from_str(text(parameter, "/value")).map_err(|error| {
            Error::internal(format!("parameter {} of the scheduled workflow is not JSON", parameter["name"]), error)
        })?;
        values.insert(text(parameter, "/name").to_owned(), value);
    }
    report.runtime_parameters = Some(Value::Object(values).to_string());
    Ok(report)
}

#[tonic::async_trait]
impl ReportService for Service {
    async fn report_workflow(&self, request: tonic::Request<v2::ReportWorkflowRequest>) -> Answer<()> {
        answer(self.workflow(&request.get_ref().workflow).await)
    }

    async fn report_scheduled_workflow(
        &self,
        request: tonic::Request<v2::ReportScheduledWorkflowRequest>,
    ) -> Answer<()> {
        answer(self.schedule(&request.get_ref().scheduled_workflow).await)
    }
}
