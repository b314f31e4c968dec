//! Upstream's metrics. Its `swflist` and `swflistcompleted` operations do not exist here: Workflows are known from the
//! watch.

use std::time::Instant;

use kfp_core::metrics::Registry;
use kfp_core::metrics::counter::Counter;
use kfp_core::metrics::family::Family;
use kfp_core::metrics::gauge::Gauge;
use kfp_core::metrics::histogram::{Histogram, exponential_buckets};

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Durations<const N: usize> = Family<Labels<N>, Histogram, fn() -> Histogram>;

/// Calls that are measured.
#[derive(Clone, Copy, Debug)]
pub enum Operation {
    /// Reading a schedule.
    Get,
    /// Starting a run.
    Submit,
    /// Writing the status.
    Update,
}

/// Metrics of the controller.
#[derive(Clone)]
pub struct Metrics {
    process: Durations<1>,
    operations: Durations<2>,
    queue: Gauge,
    throughput: Counter,
}

impl Metrics {
    /// Metrics that `registry` shows.
    pub fn new(registry: &mut Registry) -> Self {
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 16));
        let metrics = Self {
            process: Family::new_with_constructor(buckets),
            operations: Family::new_with_constructor(buckets),
            queue: Gauge::default(),
            throughput: Counter::default(),
        };
        registry.register(
            "process_scheduled_workflow_duration_seconds",
            "Time that work on a ScheduledWorkflow took",
            metrics.process.clone(),
        );
        registry.register(
            "scheduled_workflow_duration_operation_seconds",
            "Time that a call took",
            metrics.operations.clone(),
        );
        registry.register(
            "scheduled_workflow_queue_size",
            "ScheduledWorkflows that wait for a worker",
            metrics.queue.clone(),
        );
        registry.register(
            "scheduled_workflow_throughput",
            "ScheduledWorkflows that were worked on",
            metrics.throughput.clone(),
        );
        metrics
    }

    /// Measures work on a schedule.
    pub fn processed<T, E>(&self, since: Instant, result: &Result<T, E>) {
        self.process.get_or_create(&[status(result)]).observe(since.elapsed().as_secs_f64());
        self.throughput.inc();
    }

    /// Measures one call.
    pub async fn measured<T, E>(&self, operation: Operation, call: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let since = Instant::now();
        let result = call.await;
        let name = match operation {
            Operation::Get => "swfget",
            Operation::Submit => "swfsubmit",
            Operation::Update => "swfupdate",
        };
        let labels = [("operation", name), status(&result)];
        self.operations.get_or_create(&labels).observe(since.elapsed().as_secs_f64());
        result
    }

    /// Notes how many schedules wait.
    pub fn waiting(&self, count: usize) {
        self.queue.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

fn status<T, E>(result: &Result<T, E>) -> (&'static str, &'static str) {
    ("status", if result.is_ok() { "ok" } else { "error" })
}
