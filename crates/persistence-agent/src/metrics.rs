//! What the agent counts.

use kfp_core::metrics::Registry;
use kfp_core::metrics::counter::Counter;
use kfp_core::metrics::family::Family;
use kfp_core::metrics::gauge::Gauge;
use kfp_core::metrics::histogram::{Histogram, exponential_buckets};

use crate::queue::{Done, Outcome};
use crate::report::Kind;

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Metrics of the agent.
#[derive(Clone)]
pub struct Metrics {
    lag: Family<Labels<1>, Histogram, fn() -> Histogram>,
    reports: Family<Labels<2>, Counter>,
    waiting: Family<Labels<1>, Gauge>,
}

fn label(kind: Kind) -> (&'static str, &'static str) {
    let kind = match kind {
        Kind::Workflow => "workflow",
        Kind::ScheduledWorkflow => "scheduledworkflow",
    };
    ("kind", kind)
}

impl Metrics {
    /// Metrics that `registry` shows.
    pub fn new(registry: &mut Registry) -> Self {
        // From 1 ms to 16 minutes.
        let buckets = || Histogram::new(exponential_buckets(0.001, 2.0, 20));
        let metrics = Self {
            lag: Family::new_with_constructor(buckets as fn() -> Histogram),
            reports: Family::default(),
            waiting: Family::default(),
        };
        registry.register(
            "persistence_agent_report_lag_seconds",
            "Time from the change of an object until the API server has stored it",
            metrics.lag.clone(),
        );
        registry.register("persistence_agent_reports", "Reports by outcome", metrics.reports.clone());
        registry.register(
            "persistence_agent_unreported_objects",
            "Objects with a state that is not stored yet",
            metrics.waiting.clone(),
        );
        metrics
    }

    /// Counts a report.
    pub fn reported(&self, kind: Kind, outcome: Outcome, done: &Done) {
        let name = match outcome {
            Outcome::Stored => "stored",
            Outcome::Refused => "refused",
            Outcome::Retry => "retry",
        };
        self.reports.get_or_create(&[label(kind), ("outcome", name)]).inc();
        if outcome == Outcome::Stored {
            self.lag.get_or_create(&[label(kind)]).observe(done.lag.as_secs_f64());
        }
    }

    /// Notes how many objects wait.
    pub fn waiting(&self, kind: Kind, count: usize) {
        self.waiting.get_or_create(&[label(kind)]).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}
