//! The decision about one schedule: a function of the schedule, its Workflows and the time.

use std::cmp::Reverse;

use chrono_tz::Tz;
use serde_json::{Map, Value, json};

use crate::model::{LABELS, Run, Schedule, rfc3339};
use crate::names;
use kfp_core::schedule::Trigger;

/// Times from this one on are written as "never", as upstream does.
const MAX_TIME: i64 = 9_223_371_974_719_179_007;

/// What to do before the status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Rest,
    /// Start the next run for this slot.
    Submit(i64),
    /// The run for this slot was started but not noted, because the controller was stopped in between: note it.
    Note(i64),
}

/// The outcome of [`reconcile`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// When to look again without an event, Unix seconds.
    pub wake: Option<i64>,
    /// The status to write when nothing is done first.
    pub status: Value,
    /// Labels to write.
    pub labels: [(String, String); 2],
}

/// Decides about `schedule` at `now`. `runs` are its Workflows; `starting` counts runs whose Workflows are not seen yet.
#[must_use]
pub fn reconcile(schedule: &Schedule, runs: &[Run], starting: usize, now: i64, zone: Tz) -> Decision {
    let next = schedule.timing.next(now, zone);
    let active = runs.iter().filter(|run| !run.completed && run.index > 0).count() + starting;
    let free = active < schedule.max_concurrency;
    let action = match unnoted(schedule, runs, zone) {
        Some(action) => action,
        None => match next {
            Some(slot) if schedule.enabled && free && slot <= now => Action::Submit(slot),
            _ => Action::Rest,
        },
    };
    Decision {
        action,
        wake: next.filter(|slot| schedule.enabled && *slot > now),
        status: status(schedule, runs, starting, next),
        labels: labels(schedule, active),
    }
}

/// A run that exists although the status does not count it.
fn unnoted(schedule: &Schedule, runs: &[Run], zone: Tz) -> Option<Action> {
    let index = schedule.index + 1;
    let run = runs.iter().find(|run| run.index == index && run.owner == schedule.uid)?;
    let started = run.scheduled?;
    if schedule.embedded {
        // Here the label holds the slot itself.
        return (run.name == names::run_name(&schedule.name, index)).then_some(Action::Note(started));
    }
    // The label holds when the run was created; the API server knows the slot and answers a repeated request with it.
    let slot = schedule.timing.next(started, zone).filter(|slot| *slot <= started)?;
    Some(if schedule.enabled { Action::Submit(slot) } else { Action::Note(slot) })
}

/// Type and message of the condition.
fn condition(schedule: &Schedule, active: usize) -> (&'static str, &'static str) {
    match schedule.timing.trigger {
        Trigger::Once if schedule.timing.last.is_some() && active == 0 => {
            ("Succeeded", "The one-off schedule has succeeded.")
        }
        Trigger::Once => ("Running", "The one-off schedule is running."),
        _ if schedule.enabled => ("Enabled", "The schedule is enabled."),
        _ => ("Disabled", "The schedule is disabled."),
    }
}

fn labels(schedule: &Schedule, active: usize) -> [(String, String); 2] {
    let (kind, _) = condition(schedule, active);
    [(format!("{LABELS}enabled"), schedule.enabled.to_string()), (format!("{LABELS}status"), kind.to_owned())]
}

/// The whole status, as upstream writes it.
#[must_use]
pub fn status(schedule: &Schedule, runs: &[Run], starting: usize, next: Option<i64>) -> Value {
    let mut active: Vec<&Run> = runs.iter().filter(|run| !run.completed && run.index > 0).collect();
    let oldest = (schedule.index - schedule.max_history).max(0);
    let mut completed: Vec<&Run> = runs.iter().filter(|run| run.completed && run.index > oldest).collect();
    let (kind, message) = condition(schedule, active.len() + starting);
    for list in [&mut active, &mut completed] {
        list.sort_by_key(|run| (Reverse(run.scheduled), Reverse(run.index)));
    }
    let mut trigger = Map::new();
    let next = next.filter(|next| *next < MAX_TIME);
    for (key, time) in [("lastTriggeredTime", schedule.timing.last), ("nextTriggeredTime", next)] {
        if let Some(time) = time.and_then(rfc3339) {
            trigger.insert(key.to_owned(), json!(time));
        }
    }
    if schedule.index > 0 {
        trigger.insert("lastWorkflowIndex".to_owned(), json!(schedule.index));
    }
    let mut history = Map::new();
    for (key, list) in [("active", active), ("completed", completed)] {
        if !list.is_empty() {
            history.insert(key.to_owned(), list.into_iter().map(entry).collect());
        }
    }
    json!({
        "conditions": [{"type": kind, "status": "True", "reason": kind, "message": message}],
        "trigger": trigger,
        "workflowHistory": history,
    })
}

fn entry(run: &Run) -> Value {
    let mut entry = Map::new();
    for (key, value) in [
        ("name", &run.name),
        ("namespace", &run.namespace),
        ("uid", &run.uid),
        ("phase", &run.phase),
        ("message", &run.message),
    ] {
        if !value.is_empty() {
            entry.insert(key.to_owned(), json!(value));
        }
    }
    for (key, time) in [
        ("createdAt", run.created),
        ("startedAt", run.started),
        ("finishedAt", run.finished),
        ("scheduledAt", run.scheduled),
    ] {
        entry.insert(key.to_owned(), json!(time.and_then(rfc3339)));
    }
    if run.index != 0 {
        entry.insert("index".to_owned(), json!(run.index));
    }
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 10_000;

    fn schedule(spec: Value, status: Value) -> Schedule {
        let object = json!({
            "metadata": {"name": "s", "namespace": "n", "uid": "u", "creationTimestamp": "1970-01-01T01:00:00Z"},
            "spec": spec, "status": status,
        });
        Schedule::read(&serde_json::from_value(object).unwrap())
    }

    fn periodic(enabled: bool, concurrency: i64) -> Schedule {
        let trigger = json!({"periodicSchedule": {"intervalSecond": 100}});
        schedule(json!({"enabled": enabled, "maxConcurrency": concurrency, "trigger": trigger}), json!({}))
    }

    fn run(index: i64, completed: bool) -> Run {
        Run {
            name: format!("w{index}"),
            index,
            completed,
            scheduled: Some(index * 10),
            created: Some(index * 10),
            ..Run::default()
        }
    }

    fn decide(schedule: &Schedule, runs: &[Run]) -> Decision {
        reconcile(schedule, runs, 0, NOW, Tz::UTC)
    }

    #[test]
    fn due_enabled_and_below_the_limit_submits() {
        assert_eq!(decide(&periodic(true, 1), &[]).action, Action::Submit(3700));
        assert_eq!(decide(&periodic(false, 1), &[]).action, Action::Rest);
        assert_eq!(decide(&periodic(true, 1), &[run(9, false)]).action, Action::Rest);
        assert_eq!(decide(&periodic(true, 2), &[run(9, false)]).action, Action::Submit(3700));
        assert_eq!(decide(&periodic(true, 1), &[run(9, true)]).action, Action::Submit(3700));
        // Workflows without an index do not count.
        assert_eq!(decide(&periodic(true, 1), &[run(0, false)]).action, Action::Submit(3700));
        assert_eq!(reconcile(&periodic(true, 1), &[], 1, NOW, Tz::UTC).action, Action::Rest);
        let later = reconcile(&periodic(true, 1), &[], 0, 3699, Tz::UTC);
        assert_eq!((later.action, later.wake), (Action::Rest, Some(3700)));
    }

    #[test]
    fn run_that_was_not_noted_is_noted_and_not_repeated() {
        let mut embedded = periodic(true, 1);
        embedded.embedded = true;
        let mut found = run(1, true);
        found.name = names::run_name("s", 1);
        found.scheduled = Some(3700);
        assert_eq!(decide(&embedded, std::slice::from_ref(&found)).action, Action::Submit(3700), "another owner");
        found.owner = "u".to_owned();
        assert_eq!(decide(&embedded, std::slice::from_ref(&found)).action, Action::Note(3700));
        // Made by the API server: the creation of the run tells which slot it was.
        found.scheduled = Some(3725);
        found.completed = false;
        assert_eq!(decide(&periodic(true, 1), std::slice::from_ref(&found)).action, Action::Submit(3700));
        assert_eq!(decide(&periodic(false, 1), &[found]).action, Action::Note(3700));
    }

    #[test]
    fn conditions() {
        let once = |status| schedule(json!({"enabled": true}), status);
        let ran = json!({"trigger": {"lastTriggeredTime": "1970-01-01T01:00:00Z", "lastWorkflowIndex": 1}});
        for (schedule, runs, want) in [
            (once(json!({})), vec![], "Running"),
            (once(ran.clone()), vec![run(1, false)], "Running"),
            (once(ran), vec![run(1, true)], "Succeeded"),
            (periodic(true, 1), vec![], "Enabled"),
            (periodic(false, 1), vec![], "Disabled"),
        ] {
            let decision = decide(&schedule, &runs);
            assert_eq!(decision.status["conditions"][0]["type"], want);
            assert_eq!(decision.status["conditions"][0]["reason"], want);
            assert_eq!(decision.labels[1], (format!("{LABELS}status"), want.to_owned()));
        }
    }

    #[test]
    fn history_is_newest_first_and_bounded() {
        let mut schedule = periodic(true, 10);
        schedule.index = 7;
        schedule.max_history = 3;
        let runs: Vec<Run> = (1..=7).map(|index| run(index, index != 2 && index != 6)).collect();
        let status = decide(&schedule, &runs).status;
        let names = |list: &str| -> Vec<&str> {
            let list = status["workflowHistory"][list].as_array().unwrap();
            list.iter().map(|entry| entry["name"].as_str().unwrap()).collect()
        };
        assert_eq!(names("active"), ["w6", "w2"]);
        assert_eq!(names("completed"), ["w7", "w5"]);
        let first = &status["workflowHistory"]["active"][0];
        let want = json!({"name": "w6", "index": 6, "createdAt": "1970-01-01T00:01:00Z", "startedAt": null,
            "finishedAt": null, "scheduledAt": "1970-01-01T00:01:00Z"});
        assert_eq!(*first, want);
        assert_eq!(status["trigger"]["lastWorkflowIndex"], 7);
    }

    #[test]
    fn never_is_written_as_nothing() {
        let trigger = json!({"cronSchedule": {"cron": "0 0 0 30 2 ?"}});
        let never = schedule(json!({"enabled": true, "trigger": trigger}), json!({}));
        let decision = decide(&never, &[]);
        assert_eq!((decision.action, decision.wake), (Action::Rest, None));
        assert_eq!(decision.status["trigger"], json!({}));
    }
}
