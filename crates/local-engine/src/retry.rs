//! Retry nodes: attempts, backoff, and when to give up.

use crate::execution::{Call, Execution, Started};
use crate::expression;
use crate::frames::{RetryRun, Work};
use crate::nodes::Index;
use crate::substitute::{self, Chain, Scope};
use crate::variables::InputScope;
use chrono::{DateTime, Duration, Utc};
use kfp_core::argo::{NodePhase, RetryStrategy};
use regex::Regex;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Messages that `OnTransientError` takes for passing troubles, as KFP configures Argo.
const TRANSIENT: &str = "(?i)(imminent node shutdown|node is shutting down|preempt|evict|spot|pod deleted)";

static TRANSIENT_ERROR: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(TRANSIENT).ok());

/// A retry strategy with its texts read.
#[derive(Clone, Debug, PartialEq)]
pub struct Rules {
    limit: Option<u64>,
    policy: Policy,
    backoff: Option<Backoff>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Policy {
    Always,
    OnFailure,
    OnError,
    OnTransientError,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Backoff {
    base: f64,
    factor: f64,
    max: Option<f64>,
    cap: Option<f64>,
}

/// An attempt that has ended badly, and what came before it.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// Number of attempts so far.
    pub count: u64,
    /// Phase of the last one.
    pub phase: NodePhase,
    /// Message of the last one.
    pub message: &'a str,
    /// Start of the first one.
    pub first_started: DateTime<Utc>,
    /// End of the last one.
    pub last_finished: DateTime<Utc>,
}

/// What comes after a failed attempt.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Give up with this message.
    Stop(String),
    /// Try again at this time.
    At(DateTime<Utc>),
}

impl Rules {
    /// Reads a strategy, tags replaced.
    ///
    /// # Errors
    /// Names the value that cannot be read.
    pub fn read(strategy: &RetryStrategy, scope: &dyn Scope) -> Result<Rules, String> {
        let resolve = |text: &Option<String>| -> Result<Option<String>, String> {
            let Some(text) = text else { return Ok(None) };
            substitute::text(text, scope).map(|text| Some(text.trim().to_owned())).map_err(|error| error.to_string())
        };
        let limit = match resolve(&strategy.limit)? {
            None => None,
            Some(text) => {
                let limit: i64 = text.parse().map_err(|_| format!("value '{text}' cannot be resolved to an int"))?;
                Some(u64::try_from(limit).unwrap_or(0))
            }
        };
        let policy = match resolve(&strategy.retry_policy)?.as_deref() {
            None | Some("") if strategy.expression.is_some() => Policy::Always,
            None | Some("" | "OnFailure") => Policy::OnFailure,
            Some("Always") => Policy::Always,
            Some("OnError") => Policy::OnError,
            Some("OnTransientError") => Policy::OnTransientError,
            Some(other) => return Err(format!("retryPolicy '{other}' is unknown")),
        };
        let backoff = match &strategy.backoff {
            None => None,
            Some(backoff) => {
                let base = resolve(&backoff.duration)?.unwrap_or_default();
                if base.is_empty() {
                    return Err("no base duration specified for retryStrategy".to_owned());
                }
                let positive = |text: Option<String>| -> Result<Option<f64>, String> {
                    let seconds = text.filter(|text| !text.is_empty()).map(|text| seconds(&text)).transpose()?;
                    // KFP passes 0 where nothing was asked for.
                    Ok(seconds.filter(|seconds| *seconds > 0.0))
                };
                let factor = match resolve(&backoff.factor)?.filter(|text| !text.is_empty()) {
                    None => 1.0,
                    Some(text) => text
                        .parse::<f64>()
                        .ok()
                        .filter(|factor| factor.is_finite())
                        .ok_or_else(|| format!("backoff factor '{text}' is not a number"))?,
                };
                Some(Backoff {
                    base: seconds(&base)?,
                    factor: if factor > 0.0 { factor } else { 1.0 },
                    max: positive(resolve(&backoff.max_duration)?)?,
                    cap: positive(resolve(&backoff.cap)?)?,
                })
            }
        };
        Ok(Rules { limit, policy, backoff })
    }

    /// What comes after a failed attempt.
    pub fn next(&self, attempt: &Attempt<'_>, now: DateTime<Utc>) -> Next {
        let mut due = now;
        if let Some(backoff) = self.backoff {
            let since = |time: DateTime<Utc>| (time - attempt.first_started).num_milliseconds() as f64 / 1000.0;
            if backoff.max.is_some_and(|max| since(now) > max) {
                return Next::Stop("Max duration limit exceeded".to_owned());
            }
            if self.limit.is_some_and(|limit| attempt.count <= limit) {
                let exponent = i32::try_from(attempt.count.saturating_sub(1)).unwrap_or(i32::MAX);
                let wait = backoff.base * backoff.factor.powi(exponent);
                let wait = backoff.cap.map_or(wait, |cap| wait.min(cap)).min(MAX_WAIT);
                due = attempt.last_finished + Duration::milliseconds((wait * 1000.0) as i64);
                if wait > 0.0 && backoff.max.is_some_and(|max| since(due) > max) {
                    return Next::Stop("Backoff would exceed max duration limit".to_owned());
                }
            }
        }
        let retriable = match self.policy {
            Policy::Always => true,
            Policy::OnFailure => attempt.phase == NodePhase::Failed,
            Policy::OnError => attempt.phase == NodePhase::Error,
            Policy::OnTransientError => {
                TRANSIENT_ERROR.as_ref().is_some_and(|pattern| pattern.is_match(attempt.message))
            }
        };
        if !retriable {
            return Next::Stop(attempt.message.to_owned());
        }
        if self.limit.is_some_and(|limit| attempt.count > limit) {
            return Next::Stop("No more retries left".to_owned());
        }
        Next::At(due)
    }
}

/// Longest wait between attempts: ten years, so that no sum leaves the calendar.
const MAX_WAIT: f64 = 315_360_000.0;

/// Seconds of a duration: a bare number, or Go's notation such as `1m30s`.
pub(crate) fn seconds(text: &str) -> Result<f64, String> {
    let bad = || format!("'{text}' is not a duration");
    if let Ok(number) = text.parse::<f64>() {
        return if number.is_finite() { Ok(number.clamp(0.0, MAX_WAIT)) } else { Err(bad()) };
    }
    let mut total = 0.0;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..end].parse().map_err(|_| bad())?;
        let unit_end =
            rest[end..].find(|c: char| c.is_ascii_digit() || c == '.').map_or(rest.len(), |length| end + length);
        total += number
            * match &rest[end..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(bad()),
            };
        rest = &rest[unit_end..];
    }
    Ok(total.clamp(0.0, MAX_WAIT))
}

impl Execution {
    /// Goes on with a Retry node.
    pub(crate) fn evaluate_retry(&mut self, index: Index, mut run: RetryRun) {
        if let Some(last) = run.attempts.last().copied() {
            let status = &self.nodes[last].status;
            let (phase, message, outputs) = (status.phase, status.message.clone(), status.outputs.clone());
            if !phase.is_fulfilled() {
                self.nodes[index].work = Work::Retry(Box::new(run));
                return;
            }
            if outputs.is_some() {
                self.nodes.change(index).outputs = outputs;
            }
            if !phase.is_failure() {
                self.finish(index, NodePhase::Succeeded, &message);
                return;
            }
            let next = match (self.after_failure(index, &run, phase, &message), run.not_before) {
                (Next::At(due), Some(earliest)) => Next::At(due.max(earliest)),
                (next, _) => next,
            };
            match next {
                Next::Stop(why) => {
                    self.finish(index, phase, &why);
                    return;
                }
                Next::At(due) if due > self.now => {
                    if run.not_before != Some(due) {
                        run.not_before = Some(due);
                        let wait = (due - self.now).num_seconds();
                        self.nodes.change(index).message = format!("Backoff for {}", humanised(wait));
                        self.wake_at(due, index);
                    }
                    self.nodes[index].work = Work::Retry(Box::new(run));
                    return;
                }
                Next::At(_) => {}
            }
        }
        self.start_attempt(index, &mut run);
        self.nodes[index].work = Work::Retry(Box::new(run));
    }

    fn after_failure(&self, index: Index, run: &RetryRun, phase: NodePhase, message: &str) -> Next {
        let node = &self.nodes[index];
        if let Some(strategy) = self.shutdown_for(node.on_exit) {
            return Next::Stop(format!("Stopped with strategy '{strategy}'"));
        }
        if let Some(deadline) = self.deadline().filter(|deadline| !node.on_exit && *deadline <= self.now) {
            let time = kfp_core::argo::Timestamp(deadline);
            return Next::Stop(format!("retry exceeded workflow deadline {time}"));
        }
        let inputs = InputScope(node.status.inputs.as_ref());
        let scope = Chain(vec![&inputs, &self.globals]);
        let strategy = run.template.template.retry_strategy.clone().unwrap_or_default();
        let rules = match Rules::read(&strategy, &scope) {
            Ok(rules) => rules,
            Err(why) => return Next::Stop(why),
        };
        let time = |at: Option<&Index>, start: bool| {
            let status = at.map(|at| &self.nodes[*at].status);
            let time = status.and_then(|status| if start { status.started_at } else { status.finished_at });
            time.map_or(self.now, |time| time.0)
        };
        let attempt = Attempt {
            count: run.attempts.len() as u64,
            phase,
            message,
            first_started: time(run.attempts.first(), true),
            last_finished: time(run.attempts.last(), false),
        };
        let next = rules.next(&attempt, self.now);
        let (Next::At(_), Some(expression)) = (&next, &strategy.expression) else { return next };
        let locals = self.retry_variables(run, run.attempts.len().saturating_sub(1), "-1");
        match expression::truth(expression, &Chain(vec![&locals, &inputs, &self.globals])) {
            Ok(true) => next,
            Ok(false) => Next::Stop("retryStrategy.expression evaluated to false".to_owned()),
            Err(error) => Next::Stop(error.to_string()),
        }
    }

    /// `retries` and `lastRetry.*`.
    fn retry_variables(&self, run: &RetryRun, retries: usize, no_exit_code: &str) -> BTreeMap<String, String> {
        let last = run.attempts.last().map(|last| &self.nodes[*last].status);
        let exit_code = last.and_then(|last| last.outputs.as_ref()?.exit_code.clone());
        let duration = last.and_then(|last| Some((last.finished_at?.0 - last.started_at?.0).num_seconds()));
        [
            ("retries", retries.to_string()),
            ("lastRetry.exitCode", exit_code.unwrap_or_else(|| no_exit_code.to_owned())),
            ("lastRetry.status", last.map(|last| last.phase.as_str().to_owned()).unwrap_or_default()),
            ("lastRetry.duration", duration.unwrap_or(0).to_string()),
            ("lastRetry.message", last.map(|last| last.message.clone()).unwrap_or_default()),
        ]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
    }

    fn start_attempt(&mut self, index: Index, run: &mut RetryRun) {
        let count = run.attempts.len();
        let mut locals = self.nodes[index].locals.clone();
        locals.extend(self.retry_variables(run, count, "0"));
        let node = &self.nodes[index];
        let inputs = node.status.inputs.clone().unwrap_or_default();
        let template = node.status.template_name.clone();
        let call = Call {
            name: format!("{}({count})", node.status.name),
            template: &template,
            parameters: inputs.parameters,
            artifacts: inputs.artifacts,
            owner: Some(index),
            boundary: node.boundary,
            on_exit: node.on_exit,
            hooked: false,
            retried: true,
            depth: node.depth,
            locals,
            result: node.result,
        };
        let known = self.nodes.by_name(&call.name).is_some();
        match self.execute(call) {
            Started::Deferred => self.defer(index),
            Started::Node(attempt) => {
                self.nodes.attach(index, attempt);
                run.attempts.push(attempt);
                run.not_before = None;
                if !self.nodes[index].status.message.is_empty() {
                    self.nodes.change(index).message.clear();
                }
                // The attempt may be fulfilled already: found so after a restart, or failed before its pod was made.
                // The latter would fail the same way at once, without end when there is no limit.
                if self.nodes[attempt].status.phase.is_fulfilled() {
                    match known {
                        true => self.wake(index),
                        false => {
                            let due = self.now + Duration::seconds(1);
                            run.not_before = Some(due);
                            self.wake_at(due, index);
                        }
                    }
                }
            }
        }
    }
}

/// A number of seconds in words, as Argo shows it.
fn humanised(seconds: i64) -> String {
    let part = |count: i64, unit: &str| {
        if count == 1 { format!("1 {unit}") } else { format!("{count} {unit}s") }
    };
    match seconds.max(0) {
        seconds if seconds < 60 => part(seconds, "second"),
        seconds if seconds < 3600 => format!("{} {}", part(seconds / 60, "minute"), part(seconds % 60, "second")),
        seconds => format!("{} {}", part(seconds / 3600, "hour"), part(seconds % 3600 / 60, "minute")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_700_000_000 + second, 0).unwrap()
    }

    fn rules(strategy: Value) -> Result<Rules, String> {
        Rules::read(&serde_json::from_value(strategy).unwrap(), &BTreeMap::new())
    }

    fn next(strategy: Value, count: u64, phase: NodePhase, now: i64) -> Next {
        let message = "boom: pod deleted";
        let attempt = Attempt { count, phase, message, first_started: at(0), last_finished: at(now) };
        rules(strategy).unwrap().next(&attempt, at(now))
    }

    fn stop(why: &str) -> Next {
        Next::Stop(why.to_owned())
    }

    #[test]
    fn limits_and_policies_decide() {
        use NodePhase::{Error, Failed};
        for (strategy, count, phase, now, expected) in [
            (json!({"limit": 2}), 2, Failed, 1, Next::At(at(1))),
            (json!({"limit": "2"}), 3, Failed, 1, stop("No more retries left")),
            (json!({"limit": 0}), 1, Failed, 1, stop("No more retries left")),
            (json!({}), 99, Failed, 1, Next::At(at(1))),
            (json!({}), 1, Error, 1, stop("boom: pod deleted")),
            (json!({"retryPolicy": "Always"}), 1, Error, 1, Next::At(at(1))),
            (json!({"retryPolicy": "OnError"}), 1, Failed, 1, stop("boom: pod deleted")),
            (json!({"retryPolicy": "OnTransientError"}), 1, Failed, 1, Next::At(at(1))),
            (json!({"limit": 5, "backoff": {"duration": "2", "factor": 3}}), 3, Failed, 10, Next::At(at(28))),
            (
                json!({"limit": 5, "backoff": {"duration": "2", "factor": 3, "cap": "5s"}}),
                3,
                Failed,
                10,
                Next::At(at(15)),
            ),
            (json!({"backoff": {"duration": "2"}}), 3, Failed, 10, Next::At(at(10))),
            (
                json!({"limit": 5, "backoff": {"duration": "1m", "maxDuration": "30s"}}),
                1,
                Failed,
                1,
                stop("Backoff would exceed max duration limit"),
            ),
            (
                json!({"limit": 5, "backoff": {"duration": "1", "maxDuration": "30s"}}),
                1,
                Failed,
                31,
                stop("Max duration limit exceeded"),
            ),
            (json!({"limit": 5, "backoff": {"duration": "0", "maxDuration": "0"}}), 1, Failed, 31, Next::At(at(31))),
        ] {
            assert_eq!(next(strategy.clone(), count, phase, now), expected, "{strategy} {count}");
        }
    }

    #[test]
    fn unreadable_strategies_are_errors() {
        for strategy in [
            json!({"limit": "x"}),
            json!({"retryPolicy": "Sometimes"}),
            json!({"backoff": {"duration": ""}}),
            json!({"backoff": {"duration": "1 fortnight"}}),
            json!({"backoff": {"duration": "1", "factor": "x"}}),
        ] {
            assert!(rules(strategy.clone()).is_err(), "{strategy}");
        }
    }

    #[test]
    fn durations_follow_go() {
        assert_eq!(seconds("1m30s"), Ok(90.0));
        assert_eq!(seconds("1.5h"), Ok(5400.0));
        assert_eq!(seconds("7"), Ok(7.0));
        assert!(seconds("inf").is_err() && seconds("s").is_err() && seconds("1").is_ok());
    }

    proptest! {
        #[test]
        fn any_numbers_give_a_decision(limit in any::<i64>(), base in "[0-9]{1,30}", factor in "[0-9]{1,30}", count in any::<u64>()) {
            let strategy = json!({"limit": limit, "backoff": {"duration": base, "factor": factor}});
            let _ = next(strategy, count, NodePhase::Failed, 1);
        }
    }
}
