//! `api.RunService`.

use std::sync::LazyLock;

use api::report_run_metrics_response::{ReportRunMetricResult, report_run_metric_result::Status};
use api::run_service_server::RunService;
use api::{Relationship, ResourceType};
use kfp_proto::api;
use regex::Regex;

use super::{origin, paging, referenced, references, scope, shown_pipeline, stored_config, stored_parameters};
use crate::domain::state::{Storage, timestamp};
use crate::error::{Error, Result, Wrap as _};
use crate::services::launch::Draft;
use crate::services::runs::Service;
use crate::services::{Answer, answer, required};
use crate::store::metrics::{self, Metric};
use crate::store::specs::Specs;
use crate::store::{Tx, list, runs};

/// Longest id of a node that may report metrics, in bytes.
const NODE_ID: usize = 128;

#[allow(clippy::expect_used)] // A constant pattern; a test compiles it.
static METRIC_NAME: LazyLock<Regex> =
    LazyLock::new(|| Regex::new("^[a-zA-Z]([-_a-zA-Z0-9]{0,62}[a-zA-Z0-9])?$").expect("constant pattern"));

fn metric_shown(metric: Metric) -> api::RunMetric {
    api::RunMetric {
        name: metric.name,
        node_id: metric.node_id,
        value: Some(api::run_metric::Value::NumberValue(metric.value)),
        format: api::run_metric::Format::from_str_name(&metric.format).unwrap_or_default() as i32,
    }
}

fn shown(run: runs::Run, specs: &Specs, metrics: Vec<Metric>) -> api::Run {
    use api::run::StorageState;
    let mut all = vec![
        (ResourceType::Experiment, run.experiment_id.as_str(), Relationship::Owner),
        (ResourceType::Namespace, &run.namespace, Relationship::Owner),
        (ResourceType::Job, &run.job_id, Relationship::Creator),
    ];
    all.push(if run.version_id.is_empty() {
        (ResourceType::Pipeline, &run.pipeline_id, Relationship::Creator)
    } else {
        (ResourceType::PipelineVersion, &run.version_id, Relationship::Creator)
    });
    let resource_references = references(&all);
    let pipeline = (run.pipeline_id.as_str(), run.pipeline_name.as_str());
    let parameters = (run.parameters.as_str(), run.runtime_parameters.as_str(), run.pipeline_root.as_str());
    let pipeline_spec = match shown_pipeline(pipeline, specs, parameters) {
        Ok(spec) => spec,
        Err(error) => return api::Run { id: run.id, error: error.to_string(), ..api::Run::default() },
    };
    let state = match run.storage {
        Storage::Available => StorageState::StoragestateAvailable,
        Storage::Archived => StorageState::StoragestateArchived,
    };
    api::Run {
        id: run.id,
        name: run.display_name,
        storage_state: state as i32,
        description: run.description,
        pipeline_spec: Some(pipeline_spec),
        resource_references,
        service_account: run.service_account,
        created_at: Some(timestamp(run.created_at)),
        scheduled_at: Some(timestamp(run.scheduled_at)),
        finished_at: Some(timestamp(run.finished_at)),
        status: run.state.condition().to_owned(),
        error: String::new(),
        metrics: metrics.into_iter().map(metric_shown).collect(),
    }
}

impl Service {
    async fn create_v1(&self, request: api::CreateRunRequest) -> Result<api::RunDetail> {
        let given = required(request.run, "run")?;
        let references = &given.resource_references;
        let spec = given.pipeline_spec.as_ref();
        let (runtime_parameters, pipeline_root) = stored_config(spec);
        let draft = Draft {
            id: given.id.clone(),
            display_name: match given.name.as_str() {
                "" => spec.map(|spec| spec.pipeline_name.clone()).unwrap_or_default(),
                name => name.to_owned(),
            },
            description: given.description.clone(),
            experiment_id: referenced(references, ResourceType::Experiment, None),
            namespace: referenced(references, ResourceType::Namespace, None),
            job_id: referenced(references, ResourceType::Job, None),
            storage: match given.storage_state() {
                api::run::StorageState::StoragestateAvailable => Storage::Available,
                api::run::StorageState::StoragestateArchived => Storage::Archived,
            },
            service_account: given.service_account.clone(),
            origin: origin(spec, references),
            runtime_parameters,
            parameters: stored_parameters(spec.map(|spec| spec.parameters.as_slice()).unwrap_or_default()),
            pipeline_root,
            scheduled_at: given.scheduled_at.map_or(0, |time| time.seconds),
            plugins_input: String::new(),
        };
        let run = self.launch(draft).await?;
        let mut tx = self.0.db.read().await?;
        Self::detail(&mut tx, run).await
    }

    async fn detail(tx: &mut Tx, run: runs::Run) -> Result<api::RunDetail> {
        let manifests = runs::manifests(tx, &run.id).await?;
        let metrics = metrics::of_runs(tx, std::slice::from_ref(&run.id)).await?.remove(&run.id).unwrap_or_default();
        let specs = Specs { pipeline: manifests.pipeline_spec, workflow: manifests.workflow_spec };
        Ok(api::RunDetail {
            run: Some(shown(run, &specs, metrics)),
            pipeline_runtime: Some(api::PipelineRuntime {
                pipeline_manifest: manifests.pipeline_runtime,
                workflow_manifest: manifests.workflow_runtime,
            }),
        })
    }

    async fn get_v1(&self, id: &str) -> Result<api::RunDetail> {
        let mut tx = self.0.db.read().await?;
        let run = runs::get(&mut tx, id).await?;
        Self::detail(&mut tx, run).await
    }

    async fn list_v1(&self, request: api::ListRunsRequest) -> Result<api::ListRunsResponse> {
        let (experiment, namespace) = match scope(request.resource_reference_key.as_ref())? {
            Some((ResourceType::Experiment, id)) => (id, ""),
            Some((ResourceType::Namespace, id)) => ("", id),
            _ => ("", ""),
        };
        let paging = paging(&request.page_token, request.page_size, &request.sort_by, &request.filter);
        let options = list::Options::parse(paging, &runs::LISTABLE)?;
        let mut tx = self.0.db.read().await?;
        let page = Self::page(&mut tx, self.0.scope(experiment, namespace), &options).await?;
        let ids: Vec<String> = page.items.iter().map(|run| run.id.clone()).collect();
        let mut specs = runs::specs_of(&mut tx, &ids).await?;
        let mut metrics = metrics::of_runs(&mut tx, &ids).await?;
        let shown = page.items.into_iter().map(|run| {
            let specs = specs.remove(&run.id).unwrap_or_default();
            let metrics = metrics.remove(&run.id).unwrap_or_default();
            shown(run, &specs, metrics)
        });
        Ok(api::ListRunsResponse { runs: shown.collect(), total_size: page.total, next_page_token: page.next })
    }

    async fn report_metrics(&self, request: api::ReportRunMetricsRequest) -> Result<api::ReportRunMetricsResponse> {
        let mut tx = self.0.db.read().await?;
        runs::get(&mut tx, &request.run_id).await?;
        drop(tx);
        let mut results = Vec::new();
        for metric in request.metrics {
            let (status, message) = match self.report_metric(&request.run_id, &metric).await {
                Ok(true) => (Status::Ok, String::new()),
                Ok(false) => (
                    Status::DuplicateReporting,
                    format!("same metric has been reported before: {}/{}", metric.node_id, metric.name),
                ),
                Err(error) if error.code() == tonic::Code::InvalidArgument => {
                    (Status::InvalidArgument, error.external().to_owned())
                }
                Err(error) => {
                    tracing::error!(run = %request.run_id, %error, "cannot store a metric");
                    (Status::InternalError, error.external().to_owned())
                }
            };
            results.push(ReportRunMetricResult {
                metric_name: metric.name,
                metric_node_id: metric.node_id,
                status: status as i32,
                message,
            });
        }
        Ok(api::ReportRunMetricsResponse { results })
    }

    /// Stores a metric in a transaction of its own, because one that is refused ends it. False for duplicates.
    async fn report_metric(&self, run_id: &str, metric: &api::RunMetric) -> Result<bool> {
        if !METRIC_NAME.is_match(&metric.name) {
            return Err(Error::invalid(format!(
                "metric.name '{}' doesn't match with the pattern '{}'",
                metric.name,
                METRIC_NAME.as_str()
            )));
        }
        if metric.node_id.is_empty() {
            return Err(Error::invalid("metric.node_id must not be empty"));
        }
        if metric.node_id.len() > NODE_ID {
            return Err(Error::invalid(format!(
                "metric.node_id '{}' cannot be longer than {NODE_ID} characters",
                metric.node_id
            )));
        }
        let value = match metric.value {
            Some(api::run_metric::Value::NumberValue(value)) => value,
            None => 0.0,
        };
        let row = Metric {
            run_id: run_id.to_owned(),
            node_id: metric.node_id.clone(),
            name: metric.name.clone(),
            value,
            format: metric.format().as_str_name().to_owned(),
        };
        let mut tx = self.0.db.write().await?;
        let stored = metrics::insert(&mut tx, &row).await?;
        if stored {
            tx.commit().await?;
        }
        Ok(stored)
    }
}

#[tonic::async_trait]
impl RunService for Service {
    async fn create_run_v1(&self, request: tonic::Request<api::CreateRunRequest>) -> Answer<api::RunDetail> {
        answer(self.create_v1(request.into_inner()).await.wrap(|| "Failed to create a new v1beta1 run".to_owned()))
    }

    async fn get_run_v1(&self, request: tonic::Request<api::GetRunRequest>) -> Answer<api::RunDetail> {
        answer(self.get_v1(&request.get_ref().run_id).await.wrap(|| "Failed to get a v1beta1 run".to_owned()))
    }

    async fn list_runs_v1(&self, request: tonic::Request<api::ListRunsRequest>) -> Answer<api::ListRunsResponse> {
        answer(self.list_v1(request.into_inner()).await.wrap(|| "Failed to list v1beta1 runs".to_owned()))
    }

    async fn archive_run_v1(&self, request: tonic::Request<api::ArchiveRunRequest>) -> Answer<()> {
        answer(self.archive(&request.get_ref().id).await.wrap(|| "Failed to archive a v1beta1 run".to_owned()))
    }

    async fn unarchive_run_v1(&self, request: tonic::Request<api::UnarchiveRunRequest>) -> Answer<()> {
        answer(self.unarchive(&request.get_ref().id).await.wrap(|| "Failed to unarchive a v1beta1 run".to_owned()))
    }

    async fn delete_run_v1(&self, request: tonic::Request<api::DeleteRunRequest>) -> Answer<()> {
        answer(self.delete(&request.get_ref().id).await.wrap(|| "Failed to delete a v1beta1 run".to_owned()))
    }

    async fn report_run_metrics_v1(
        &self,
        request: tonic::Request<api::ReportRunMetricsRequest>,
    ) -> Answer<api::ReportRunMetricsResponse> {
        let done = self.report_metrics(request.into_inner()).await;
        answer(done.wrap(|| "Failed to report v1beta1 run metrics".to_owned()))
    }

    async fn terminate_run_v1(&self, request: tonic::Request<api::TerminateRunRequest>) -> Answer<()> {
        answer(self.terminate(&request.get_ref().run_id).await.wrap(|| "Failed to terminate a v1beta1 run".to_owned()))
    }

    async fn retry_run_v1(&self, request: tonic::Request<api::RetryRunRequest>) -> Answer<()> {
        answer(self.retry_fully(request.into_inner().run_id).await.wrap(|| "Failed to retry a run".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_metrics_follow_upstreams_pattern() {
        for good in ["a", "accuracy-score", "x_1", &"a".repeat(64)] {
            assert!(METRIC_NAME.is_match(good), "{good}");
        }
        for bad in ["", "1a", "a-", "a b", &"a".repeat(65)] {
            assert!(!METRIC_NAME.is_match(bad), "{bad}");
        }
    }
}
