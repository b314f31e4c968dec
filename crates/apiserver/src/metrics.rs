//! What the server counts, under upstream's names.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use prometheus_client::encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use prost_reflect::DescriptorPool;
use tonic::Code;

/// A counted call: the method without package and without the `V1` at its end, the counter, and the gauge that a success
/// moves.
type Call = (&'static str, &'static str, Option<(&'static str, i64)>);

const CALLS: &[Call] = &[
    (
        "ExperimentService/CreateExperiment",
        "experiment_server_create_requests",
        Some(("experiment_server_run_count", 1)),
    ),
    ("ExperimentService/GetExperiment", "experiment_server_get_requests", None),
    ("ExperimentService/ListExperiments", "experiment_server_list_requests", None),
    (
        "ExperimentService/DeleteExperiment",
        "experiment_server_delete_requests",
        Some(("experiment_server_run_count", -1)),
    ),
    ("ExperimentService/ArchiveExperiment", "experiment_server_archive_requests", None),
    ("ExperimentService/UnarchiveExperiment", "experiment_server_unarchive_requests", None),
    ("PipelineService/CreatePipeline", "pipeline_server_create_requests", Some(("pipeline_server_pipeline_count", 1))),
    (
        "PipelineService/CreatePipelineAndVersion",
        "pipeline_server_create_requests",
        Some(("pipeline_server_pipeline_count", 1)),
    ),
    (
        "PipelineService/CreatePipelineAndVersion",
        "pipeline_server_create_version_requests",
        Some(("pipeline_server_pipeline_version_count", 1)),
    ),
    ("PipelineService/GetPipeline", "pipeline_server_get_requests", None),
    ("PipelineService/GetPipelineByName", "pipeline_server_get_requests", None),
    ("PipelineService/ListPipelines", "pipeline_server_list_requests", None),
    ("PipelineService/UpdatePipeline", "pipeline_server_update_requests", None),
    ("PipelineService/DeletePipeline", "pipeline_server_delete_requests", Some(("pipeline_server_pipeline_count", -1))),
    (
        "PipelineService/CreatePipelineVersion",
        "pipeline_server_create_version_requests",
        Some(("pipeline_server_pipeline_version_count", 1)),
    ),
    ("PipelineService/GetPipelineVersion", "pipeline_server_get_version_requests", None),
    ("PipelineService/ListPipelineVersions", "pipeline_server_list_version_requests", None),
    ("PipelineService/UpdatePipelineVersion", "pipeline_server_update_version_requests", None),
    (
        "PipelineService/DeletePipelineVersion",
        "pipeline_server_delete_version_requests",
        Some(("pipeline_server_pipeline_version_count", -1)),
    ),
    ("PipelineService/UpdatePipelineDefaultVersion", "pipeline_server_update_default_version_requests", None),
    ("RunService/CreateRun", "run_server_create_requests", Some(("run_server_run_count", 1))),
    ("RunService/GetRun", "run_server_get_requests", None),
    ("RunService/ListRuns", "run_server_list_requests", None),
    ("RunService/DeleteRun", "run_server_delete_requests", Some(("run_server_run_count", -1))),
    ("RunService/ArchiveRun", "run_server_archive_requests", None),
    ("RunService/UnarchiveRun", "run_server_unarchive_requests", None),
    ("RunService/ReportRunMetrics", "run_server_report_metrics_requests", None),
    ("RunService/TerminateRun", "run_server_terminate_requests", None),
    ("RunService/RetryRun", "run_server_retry_requests", None),
    ("RecurringRunService/CreateRecurringRun", "job_server_create_requests", Some(("job_server_job_count", 1))),
    ("RecurringRunService/GetRecurringRun", "job_server_get_requests", None),
    ("RecurringRunService/ListRecurringRuns", "job_server_list_requests", None),
    ("RecurringRunService/DeleteRecurringRun", "job_server_delete_requests", Some(("job_server_job_count", -1))),
    ("RecurringRunService/UpdateRecurringRun", "job_server_update_requests", None),
    ("RecurringRunService/EnableRecurringRun", "job_server_enable_requests", None),
    ("RecurringRunService/DisableRecurringRun", "job_server_disable_requests", None),
    ("JobService/CreateJob", "job_server_create_requests", Some(("job_server_job_count", 1))),
    ("JobService/GetJob", "job_server_get_requests", None),
    ("JobService/ListJobs", "job_server_list_requests", None),
    ("JobService/DeleteJob", "job_server_delete_requests", Some(("job_server_job_count", -1))),
    ("JobService/EnableJob", "job_server_enable_requests", None),
    ("JobService/DisableJob", "job_server_disable_requests", None),
];

/// Plain HTTP endpoints that are counted like calls.
pub const UPLOAD: &str = "pipeline_upload_requests";
/// See [`UPLOAD`].
pub const UPLOAD_VERSION: &str = "pipeline_version_upload_requests";
/// See [`UPLOAD`].
pub const READ_ARTIFACT: &str = "run_server_read_artifact_requests";
/// Workflows that reports have removed.
pub const WORKFLOW_GC: &str = "resource_manager_workflow_gc";
const MORE: [&str; 4] = [UPLOAD, UPLOAD_VERSION, READ_ARTIFACT, WORKFLOW_GC];

/// Bounds of the duration of calls, in seconds.
const SECONDS: [f64; 13] = [0.005, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0];

/// A counter whose name does not end in `_total`: upstream's names are older than that rule.
#[derive(Clone, Debug, Default)]
struct Plain(Counter);

impl EncodeMetric for Plain {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), std::fmt::Error> {
        encoder.encode_gauge(&i64::try_from(self.0.get()).unwrap_or(i64::MAX))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Unknown
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    grpc_type: &'static str,
    grpc_service: String,
    grpc_method: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handled {
    grpc_type: &'static str,
    grpc_service: String,
    grpc_method: String,
    grpc_code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Workflow {
    profile: String,
    workflow: String,
}

/// All metrics of one server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    counters: HashMap<&'static str, Plain>,
    gauges: HashMap<&'static str, Gauge>,
    methods: HashMap<String, Method>,
    started: Family<Method, Counter>,
    received: Family<Method, Counter>,
    sent: Family<Method, Counter>,
    handled: Family<Handled, Counter>,
    seconds: Family<Method, Histogram, fn() -> Histogram>,
    succeeded: Family<Workflow, Gauge>,
    failed: Family<Workflow, Gauge>,
    gap: Histogram,
    /// Whether calls are counted by handler (`--collectMetricsFlag`).
    by_handler: bool,
}

fn durations() -> Histogram {
    Histogram::new(SECONDS)
}

impl Metrics {
    /// Metrics of the services in `packages`, all zero.
    #[must_use]
    pub fn new(pool: &DescriptorPool, packages: &[&str], by_handler: bool) -> Self {
        let mut registry = Registry::default();
        let (mut counters, mut gauges) = (HashMap::new(), HashMap::new());
        let moved = CALLS.iter().filter_map(|(_, _, gauge)| gauge.map(|(name, _)| name));
        for name in CALLS.iter().map(|(_, counter, _)| *counter).chain(MORE) {
            counters.entry(name).or_insert_with(|| {
                let counter = Plain::default();
                registry.register(name, "Requests", counter.clone());
                counter
            });
        }
        for name in moved {
            gauges.entry(name).or_insert_with(|| {
                let gauge = Gauge::<i64>::default();
                registry.register(name, "Created less deleted since the start", gauge.clone());
                gauge
            });
        }
        let services = pool.services().filter(|service| packages.contains(&service.package_name()));
        let methods = services.flat_map(|service| {
            let label = service.full_name().to_owned();
            let one = move |method: prost_reflect::MethodDescriptor| {
                let labels =
                    Method { grpc_type: "unary", grpc_service: label.clone(), grpc_method: method.name().to_owned() };
                (format!("/{label}/{}", method.name()), labels)
            };
            service.methods().map(one).collect::<Vec<_>>()
        });
        let metrics = Metrics {
            methods: methods.collect(),
            counters,
            gauges,
            started: Family::default(),
            received: Family::default(),
            sent: Family::default(),
            handled: Family::default(),
            seconds: Family::new_with_constructor(durations),
            succeeded: Family::default(),
            failed: Family::default(),
            gap: Histogram::new(exponential_buckets(0.5, 2.0, 10)),
            by_handler,
            registry: Registry::default(),
        };
        registry.register("grpc_server_started", "RPCs started on the server", metrics.started.clone());
        registry.register("grpc_server_msg_received", "Messages received from clients", metrics.received.clone());
        registry.register("grpc_server_msg_sent", "Messages sent to clients", metrics.sent.clone());
        registry.register("grpc_server_handled", "RPCs completed on the server", metrics.handled.clone());
        registry.register("grpc_server_handling_seconds", "Time that RPCs took", metrics.seconds.clone());
        registry.register("resource_manager_workflow_runs_success", "Runs that succeeded", metrics.succeeded.clone());
        registry.register("resource_manager_workflow_runs_failed", "Runs that failed", metrics.failed.clone());
        registry.register(
            "resource_manager_recurring_run_report_gap",
            "Seconds between the creation of a scheduled Workflow and its first report",
            metrics.gap.clone(),
        );
        Metrics { registry, ..metrics }
    }

    /// Everything, as Prometheus reads it.
    ///
    /// # Errors
    /// Never in practice: writing to a text does not fail.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.registry)?;
        Ok(out)
    }

    /// Counts a request or event by name.
    pub fn count(&self, name: &str) {
        if let Some(Plain(counter)) = self.counters.get(name).filter(|_| self.by_handler || name == WORKFLOW_GC) {
            counter.inc();
        }
    }

    /// Notes that an upload has stored something.
    pub fn uploaded(&self, pipeline: bool) {
        let names = ["pipeline_server_pipeline_version_count", "pipeline_server_pipeline_count"];
        for name in names.into_iter().take(if pipeline { 2 } else { 1 }).filter(|_| self.by_handler) {
            if let Some(gauge) = self.gauges.get(name) {
                gauge.inc();
            }
        }
    }

    /// Notes that a run ended.
    pub fn ended(&self, namespace: &str, workflow: &str, succeeded: bool) {
        let labels = Workflow { profile: namespace.to_owned(), workflow: workflow.to_owned() };
        let family = if succeeded { &self.succeeded } else { &self.failed };
        family.get_or_create(&labels).inc();
    }

    /// Notes how long after its creation a scheduled Workflow was first reported.
    pub fn reported_after(&self, seconds: i64) {
        #[allow(clippy::cast_precision_loss)] // Ages of objects.
        self.gap.observe(seconds.max(0) as f64);
    }

    fn finished(&self, method: &Method, code: Code, took: Duration) {
        let grpc_code = match code {
            Code::Ok => "OK".to_owned(),
            Code::Cancelled => "Canceled".to_owned(),
            code => format!("{code:?}"),
        };
        self.handled
            .get_or_create(&Handled {
                grpc_type: method.grpc_type,
                grpc_service: method.grpc_service.clone(),
                grpc_method: method.grpc_method.clone(),
                grpc_code,
            })
            .inc();
        self.seconds.get_or_create(method).observe(took.as_secs_f64());
        if code == Code::Ok {
            self.sent.get_or_create(method).inc();
        }
    }

    fn effects(method: &Method) -> impl Iterator<Item = &'static Call> + use<> {
        let service = method.grpc_service.rsplit('.').next().unwrap_or_default();
        let name = method.grpc_method.strip_suffix("V1").unwrap_or(&method.grpc_method);
        // Creating a v1 pipeline always makes a version.
        let name = if method.grpc_method == "CreatePipelineV1" { "CreatePipelineAndVersion" } else { name };
        let full = format!("{service}/{name}");
        CALLS.iter().filter(move |(call, _, _)| *call == full)
    }
}

/// Counts the calls that pass. REST calls pass here too, because they are calls of the same router.
pub async fn observe(State(metrics): State<std::sync::Arc<Metrics>>, request: Request, next: Next) -> Response {
    let Some(method) = metrics.methods.get(request.uri().path()).cloned() else { return next.run(request).await };
    metrics.started.get_or_create(&method).inc();
    metrics.received.get_or_create(&method).inc();
    for (_, counter, _) in Metrics::effects(&method) {
        metrics.count(counter);
    }
    let start = Instant::now();
    let response = next.run(request).await;
    // Unary calls that fail say so in the head; those that succeed only in the trailers.
    let code = response.headers().get("grpc-status").and_then(|code| code.to_str().ok()?.parse().ok());
    let code = code.map_or(Code::Ok, Code::from_i32);
    metrics.finished(&method, code, start.elapsed());
    if code == Code::Ok && metrics.by_handler {
        for (name, by) in Metrics::effects(&method).filter_map(|(_, _, gauge)| *gauge) {
            if let Some(gauge) = metrics.gauges.get(name) {
                gauge.inc_by(by);
            }
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(service: &str, method: &str) -> Method {
        Method { grpc_type: "unary", grpc_service: service.to_owned(), grpc_method: method.to_owned() }
    }

    #[test]
    fn every_counted_call_exists() {
        let pool = &kfp_proto::POOL;
        let metrics = Metrics::new(pool, &["api", "kubeflow.pipelines.backend.api.v2beta1"], true);
        for (call, counter, _) in CALLS {
            let known =
                metrics.methods.values().any(|method| Metrics::effects(method).any(|(name, _, _)| name == call));
            assert!(known, "{call} of {counter}");
        }
    }

    #[test]
    fn both_api_versions_share_counters() {
        let counters = |one: &Method| Metrics::effects(one).map(|(_, counter, _)| *counter).collect::<Vec<_>>();
        assert_eq!(counters(&method("api.RunService", "GetRunV1")), ["run_server_get_requests"]);
        assert_eq!(counters(&method("a.b.RunService", "GetRun")), ["run_server_get_requests"]);
        assert_eq!(
            counters(&method("api.PipelineService", "CreatePipelineV1")),
            ["pipeline_server_create_requests", "pipeline_server_create_version_requests"]
        );
    }

    #[test]
    fn names_are_upstreams() {
        let metrics = Metrics::new(&kfp_proto::POOL, &["api"], true);
        metrics.count(UPLOAD);
        metrics.finished(&method("api.RunService", "GetRunV1"), Code::NotFound, Duration::from_millis(20));
        metrics.ended("ns", "wf", true);
        let text = metrics.text().unwrap();
        for line in [
            "pipeline_upload_requests 1",
            "run_server_run_count 0",
            r#"grpc_server_handled_total{grpc_type="unary",grpc_service="api.RunService",grpc_method="GetRunV1",grpc_code="NotFound"} 1"#,
            r#"grpc_server_handling_seconds_bucket{le="0.03",grpc_type="unary",grpc_service="api.RunService",grpc_method="GetRunV1"} 1"#,
            r#"resource_manager_workflow_runs_success{profile="ns",workflow="wf"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
