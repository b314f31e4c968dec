//! When a schedule fires: arithmetic on values, in whole Unix seconds. `None` means never.

use chrono_tz::Tz;

use crate::cron::Cron;

/// Annotation of a ScheduledWorkflow: when its trigger was last changed, RFC 3339.
pub const CHANGED: &str = "scheduledworkflows.kubeflow.org/triggerChangedAt";

/// What makes a schedule fire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// When the wall clock matches, strictly after `start`, `end` included.
    Cron {
        /// The expression.
        cron: Cron,
        /// Not before this time.
        start: Option<i64>,
        /// Not after this time.
        end: Option<i64>,
    },
    /// Every `interval` seconds after `start` or, without one, after the schedule's creation.
    Periodic {
        /// Seconds, at least 1.
        interval: i64,
        /// The first run is one interval later.
        start: Option<i64>,
        /// Not after this time.
        end: Option<i64>,
    },
    /// Once, at the schedule's creation.
    Once,
    /// Never, because the object does not say when; the text explains it.
    Broken(String),
}

/// The facts that decide about the next time, apart from the present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timing {
    /// What makes it fire.
    pub trigger: Trigger,
    /// Creation of the schedule.
    pub created: i64,
    /// The slot of the last run.
    pub last: Option<i64>,
    /// When the trigger was changed: it does not make up for times before that.
    pub changed: Option<i64>,
    /// Whether missed slots are run one after the other; otherwise only the latest one is.
    pub catchup: bool,
}

impl Timing {
    /// The slot that comes next, be it due at `now` or not.
    #[must_use]
    pub fn next(&self, now: i64, zone: Tz) -> Option<i64> {
        match &self.trigger {
            Trigger::Cron { cron, start, end } => self.cron(cron, *start, end.unwrap_or(i64::MAX), now, zone),
            Trigger::Periodic { interval, start, end } => {
                self.periodic(*interval, *start, end.unwrap_or(i64::MAX), now)
            }
            Trigger::Once if self.last.is_none() => Some(self.created),
            Trigger::Once | Trigger::Broken(_) => None,
        }
    }

    /// The next `count` slots after `now`, given that everything which is due by then is started at `now`.
    #[must_use]
    pub fn upcoming(&self, now: i64, zone: Tz, count: usize) -> Vec<i64> {
        let mut timing = self.clone();
        while let Some(slot) = timing.next(now, zone).filter(|slot| *slot <= now) {
            timing.last = Some(if self.catchup { timing.last_due(slot, now, zone) } else { slot });
        }
        let slots = std::iter::from_fn(|| {
            let slot = timing.next(now, zone)?;
            timing.last = Some(slot);
            Some(slot)
        });
        slots.take(count).collect()
    }

    /// The last slot that is due at `now` when the first one is `first` and none is left out.
    fn last_due(&self, first: i64, now: i64, zone: Tz) -> i64 {
        match &self.trigger {
            Trigger::Cron { cron, end, .. } => cron.latest(first, now.min(end.unwrap_or(i64::MAX)), zone),
            Trigger::Periodic { interval, end, .. } => {
                let interval = (*interval).max(1);
                first + (now.min(end.unwrap_or(i64::MAX)) - first) / interval * interval
            }
            Trigger::Once | Trigger::Broken(_) => first,
        }
    }

    /// The time that slots are counted from.
    fn base(&self, start: Option<i64>) -> i64 {
        let base = self.last.or(start).unwrap_or(self.created);
        self.changed.map_or(base, |changed| changed.max(base))
    }

    fn cron(&self, cron: &Cron, start: Option<i64>, end: i64, now: i64, zone: Tz) -> Option<i64> {
        let from = self.base(start).max(start.unwrap_or(i64::MIN));
        let next = cron.next(from, zone).filter(|next| *next <= end)?;
        let until = now.min(end);
        Some(if self.catchup || next >= until { next } else { cron.latest(next, until, zone) })
    }

    fn periodic(&self, interval: i64, start: Option<i64>, end: i64, now: i64) -> Option<i64> {
        let base = self.base(start);
        if let Some(start) = start
            && start > base
        {
            return (start <= end).then_some(start);
        }
        let next = base.saturating_add(interval.max(1));
        if next > end || next == i64::MAX {
            return None;
        }
        // Upstream shifts the phase to the present after a gap.
        let gap = !self.catchup && now >= next.saturating_add(interval.max(1));
        Some(if gap { now.min(end) } else { next })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NINE: i64 = 1_500_022_800; // 2017-07-14 09:00:00 UTC
    const HOUR: i64 = 3600;

    fn cron(text: &str, start: Option<i64>, end: Option<i64>) -> Trigger {
        Trigger::Cron { cron: Cron::parse(text).unwrap(), start, end }
    }

    fn periodic(interval: i64, start: Option<i64>, end: Option<i64>) -> Trigger {
        Trigger::Periodic { interval, start, end }
    }

    fn next(trigger: Trigger, last: Option<i64>, catchup: bool, now: i64) -> Option<i64> {
        Timing { trigger, created: NINE, last, changed: None, catchup }.next(now, Tz::UTC)
    }

    #[test]
    fn cron_slots() {
        let minutely = "0 * * * * * ";
        let at = |h: i64, m: i64| NINE + (h - 9) * HOUR + m * 60;
        for (trigger, last, catchup, now, want) in [
            (cron(minutely, Some(at(10, 10)), None), None, true, at(12, 0), Some(at(10, 11))),
            (cron(minutely, None, None), None, true, at(12, 0), Some(at(9, 1))),
            (cron(minutely, None, None), Some(at(10, 20)), true, at(12, 0), Some(at(10, 21))),
            // A start in the past lets the schedule begin before its creation.
            (cron(minutely, Some(at(8, 0)), None), None, true, at(12, 0), Some(at(8, 1))),
            (cron(minutely, Some(at(11, 0)), None), Some(at(10, 20)), true, at(12, 0), Some(at(11, 1))),
            // The end itself is allowed, nothing after it.
            (cron(minutely, None, Some(at(10, 21))), Some(at(10, 20)), true, at(12, 0), Some(at(10, 21))),
            (cron(minutely, None, Some(at(10, 21) - 1)), Some(at(10, 20)), true, at(12, 0), None),
            // Without catch-up: the latest missed slot, not beyond the end; the coming one when none is missed.
            (cron(minutely, None, Some(at(11, 0))), Some(at(10, 20)), false, at(12, 0), Some(at(11, 0))),
            (cron(minutely, None, None), Some(at(10, 20)), false, at(12, 0) + 30, Some(at(12, 0))),
            (cron(minutely, None, None), Some(at(10, 20)), false, at(10, 20) + 30, Some(at(10, 21))),
            (cron("@every 7s", None, None), None, false, at(10, 0), Some(NINE + 514 * 7)),
            (cron("0 0 0 30 Feb ?", None, None), None, true, at(10, 0), None),
            (cron("0 0 0 30 Feb ?", None, None), None, false, at(10, 0), None),
        ] {
            assert_eq!(next(trigger.clone(), last, catchup, now), want, "{trigger:?} {last:?}");
        }
    }

    #[test]
    fn periodic_slots() {
        let now = NINE + HOUR;
        for (trigger, last, catchup, now, want) in [
            (periodic(60, None, None), None, true, now, Some(NINE + 60)),
            (periodic(60, None, None), None, true, NINE - 6 * HOUR, Some(NINE + 60)),
            (periodic(0, None, None), None, true, now, Some(NINE + 1)),
            (periodic(60, Some(NINE + 600), None), None, true, now, Some(NINE + 660)),
            (periodic(60, Some(NINE + 600), None), Some(NINE + 60), true, now, Some(NINE + 600)),
            (periodic(60, None, Some(NINE + 120)), Some(NINE + 60), true, now, Some(NINE + 120)),
            (periodic(60, None, Some(NINE + 119)), Some(NINE + 60), true, now, None),
            (periodic(60, None, None), Some(NINE + 60), false, now, Some(now)),
            (periodic(60, None, Some(NINE + 1000)), Some(NINE + 60), false, now, Some(NINE + 1000)),
            (periodic(60, None, None), Some(now - 60), false, now, Some(now)),
            (periodic(60, None, None), Some(now - 30), false, now, Some(now + 30)),
            (periodic(i64::MAX, None, None), None, true, now, None),
        ] {
            assert_eq!(next(trigger.clone(), last, catchup, now), want, "{trigger:?} {last:?}");
        }
    }

    #[test]
    fn changed_trigger_counts_from_its_change() {
        let (noon, ten) = (NINE + 3 * HOUR, NINE + HOUR);
        for (trigger, last, want) in [
            (cron("0 * * * * *", None, None), Some(NINE + 60), Some(ten + 60)),
            (cron("0 * * * * *", Some(NINE - HOUR), None), None, Some(ten + 60)),
            // A start or a run that comes later counts instead.
            (cron("0 * * * * *", Some(ten + 600), None), None, Some(ten + 660)),
            (cron("0 * * * * *", None, None), Some(ten + 60), Some(ten + 120)),
            (cron("0 * * * * *", None, Some(ten)), Some(NINE + 60), None),
            (periodic(300, None, None), Some(NINE + 60), Some(ten + 300)),
            (periodic(300, None, None), Some(ten + 300), Some(ten + 600)),
            (periodic(300, Some(ten + 600), None), None, Some(ten + 900)),
        ] {
            let timing = Timing { trigger: trigger.clone(), created: NINE, last, changed: Some(ten), catchup: true };
            assert_eq!(timing.next(noon, Tz::UTC), want, "{trigger:?} {last:?}");
        }
    }

    #[test]
    fn one_off_slot_is_the_creation() {
        assert_eq!(next(Trigger::Once, None, true, NINE), Some(NINE));
        assert_eq!(next(Trigger::Once, Some(NINE), true, NINE + HOUR), None);
        assert_eq!(next(Trigger::Broken("x".into()), None, true, NINE + HOUR), None);
    }
}
