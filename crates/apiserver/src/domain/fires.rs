//! When a recurring run fires next, as the controller will see it.

use kfp_core::cron::Cron;
use kfp_core::cron::zone::Tz;
use kfp_core::schedule::{CHANGED, Timing, Trigger};
use serde_json::Value;

use super::nodes::{meta, seconds};
use super::state::is_given;
use crate::store::jobs::{self, Job};

/// How many times are told.
const COUNT: usize = 5;

/// The trigger as the schedule arithmetic knows it; `None` when nothing is to come.
fn trigger(of: &jobs::Trigger) -> Option<Trigger> {
    let limits =
        |start: Option<i64>, end: Option<i64>| (start.filter(|at| is_given(*at)), end.filter(|at| is_given(*at)));
    if !of.cron.is_empty() {
        let (start, end) = limits(of.cron_start, of.cron_end);
        return Some(Trigger::Cron { cron: Cron::parse(&of.cron).ok()?, start, end });
    }
    let (start, end) = limits(of.periodic_start, of.periodic_end);
    (of.interval > 0).then_some(Trigger::Periodic { interval: of.interval, start, end })
}

/// Whether [`next`] needs the ScheduledWorkflow: intervals count from what happened before, the wall clock does not.
#[must_use]
pub fn depend_on_the_past(job: &Job) -> bool {
    job.enabled && job.trigger.cron.is_empty() && job.trigger.interval > 0
}

/// The next times after `now` in Unix seconds; none when the recurring run does not fire. `live` is its
/// ScheduledWorkflow if it [matters](depend_on_the_past).
#[must_use]
pub fn next(job: &Job, live: &Value, now: i64, zone: Tz) -> Vec<i64> {
    let Some(trigger) = trigger(&job.trigger).filter(|_| job.enabled) else { return Vec::new() };
    let at = |value: &Value| Some(seconds(value)).filter(|at| is_given(*at));
    let timing = Timing {
        trigger,
        created: at(&live["metadata"]["creationTimestamp"]).unwrap_or(job.created_at),
        last: at(&live["status"]["trigger"]["lastTriggeredTime"]),
        changed: at(&Value::from(meta(live, "annotations", CHANGED))),
        catchup: !job.no_catchup,
    };
    timing.upcoming(now, zone, COUNT)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOON: i64 = 1_767_268_800; // 2026-01-01 12:00:00 UTC

    fn job(trigger: jobs::Trigger) -> Job {
        Job { trigger, enabled: true, created_at: NOON - 7200, ..Job::default() }
    }

    #[test]
    fn clock_times_are_those_of_the_zone() {
        let noon = jobs::Trigger { cron: "0 0 12 * * *".into(), ..jobs::Trigger::default() };
        let days = |first: i64| (0..5).map(|day| first + day * 86_400).collect::<Vec<_>>();
        assert_eq!(next(&job(noon.clone()), &Value::Null, NOON, Tz::UTC), days(NOON + 86_400));
        assert_eq!(next(&job(noon.clone()), &Value::Null, NOON, Tz::America__New_York), days(NOON + 5 * 3600));
        let ends = jobs::Trigger { cron_end: Some(NOON + 86_400), ..noon.clone() };
        assert_eq!(next(&job(ends), &Value::Null, NOON, Tz::UTC), [NOON + 86_400]);
        let disabled = Job { enabled: false, ..job(noon) };
        assert!(next(&disabled, &Value::Null, NOON, Tz::UTC).is_empty());
        assert!(!depend_on_the_past(&disabled));
    }

    #[test]
    fn intervals_count_from_the_last_run_or_change() {
        let hourly = job(jobs::Trigger { interval: 3600, ..jobs::Trigger::default() });
        assert!(depend_on_the_past(&hourly));
        let first = |live: Value| next(&hourly, &live, NOON, Tz::UTC)[0];
        let created = json!({"creationTimestamp": "2026-01-01T09:59:59Z"});
        assert_eq!(first(json!({"metadata": created})), NOON + 3599);
        let status = json!({"trigger": {"lastTriggeredTime": "2026-01-01T11:10:00Z"}});
        assert_eq!(first(json!({"metadata": created, "status": status})), NOON + 600);
        let mut changed = json!({"metadata": created, "status": status});
        changed["metadata"]["annotations"] = json!({CHANGED: "2026-01-01T11:30:00Z"});
        assert_eq!(first(changed), NOON + 1800);
    }

    #[test]
    fn without_a_trigger_nothing_is_to_come() {
        assert!(next(&job(jobs::Trigger::default()), &Value::Null, NOON, Tz::UTC).is_empty());
        let damaged = jobs::Trigger { cron: "nonsense".into(), ..jobs::Trigger::default() };
        assert!(next(&job(damaged), &Value::Null, NOON, Tz::UTC).is_empty());
    }
}
