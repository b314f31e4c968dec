//! The cron dialect against the recorded answers of robfig/cron v1.2.0, its own tables, and an oracle that tries seconds.
//!
//! The recorded answers are not part of this repository. The folder is taken from `KFP_CONFORMANCE_DIR`, else from
//! `../shared/conformance` beside the repository; without it the test says so and passes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Datelike as _, TimeZone as _, Timelike as _};
use chrono_tz::Tz;
use kfp_core::cron::Cron;
use kfp_core::schedule::{Timing, Trigger};
use proptest::prelude::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Vector {
    expr: String,
    error: Option<String>,
    zone: Option<String>,
    from: Option<String>,
    next: Option<Vec<String>>,
    truth: Option<Vec<String>>,
    #[serde(default)]
    never: bool,
}

fn seconds(text: &str) -> i64 {
    DateTime::parse_from_rfc3339(text).unwrap_or_else(|e| panic!("{text}: {e}")).timestamp()
}

fn rfc3339(seconds: i64) -> String {
    DateTime::from_timestamp(seconds, 0).unwrap().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// What is wrong with our answer to a vector.
fn wrong(vector: &Vector) -> Option<String> {
    let parsed = Cron::parse(&vector.expr);
    if let Some(error) = &vector.error {
        return match parsed {
            Ok(_) => Some(format!("accepted, but: {error}")),
            Err(ours) => (ours.to_string() != *error).then(|| format!("{ours}, not {error}")),
        };
    }
    let cron = match parsed {
        Ok(cron) => cron,
        Err(error) => return Some(format!("refused: {error}")),
    };
    let zone: Tz = vector.zone.as_ref().unwrap().parse().unwrap();
    let mut at = seconds(vector.from.as_ref().unwrap());
    if vector.never {
        return cron.next(at, zone).map(|found| format!("fires at {}", rfc3339(found)));
    }
    let want = vector.truth.as_ref().or(vector.next.as_ref()).unwrap();
    for want in want {
        match cron.next(at, zone) {
            Some(found) if found == seconds(want) => at = found,
            found => return Some(format!("{:?} instead of {want}", found.map(rfc3339))),
        }
    }
    None
}

#[test]
fn recorded_answers() {
    let dir = match std::env::var_os("KFP_CONFORMANCE_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"),
    };
    let path = dir.join("vectors/cron.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("SKIPPED: no recorded answers at {}; set KFP_CONFORMANCE_DIR", path.display());
        return;
    };
    let vectors: Vec<Vector> = serde_json::from_str(&text).unwrap();
    assert!(vectors.len() > 2000, "{} vectors", vectors.len());
    let failures: Vec<String> =
        vectors.iter().filter_map(|v| Some(format!("{:?} {:?} {:?}: {}", v.expr, v.zone, v.from, wrong(v)?))).collect();
    assert!(failures.is_empty(), "{} of {} wrong:\n{}", failures.len(), vectors.len(), failures.join("\n"));
}

#[test]
fn next_in_utc() {
    for (from, text, want) in [
        ("2012-07-09T14:45:00Z", "0 0/15 * * * *", "2012-07-09T15:00:00Z"),
        ("2012-07-09T14:59:59Z", "0 0/15 * * * *", "2012-07-09T15:00:00Z"),
        ("2012-07-09T15:45:00Z", "0 20-35/15 * * * *", "2012-07-09T16:20:00Z"),
        ("2012-07-09T23:46:00Z", "0 */15 * * * *", "2012-07-10T00:00:00Z"),
        ("2012-07-09T23:35:51Z", "15/35 20-35/15 * * * *", "2012-07-10T00:20:15Z"),
        ("2012-07-09T23:35:51Z", "15/35 20-35/15 1/2 * * *", "2012-07-10T01:20:15Z"),
        ("2012-07-09T23:35:51Z", "15/35 20-35/15 10-12 * * *", "2012-07-10T10:20:15Z"),
        ("2012-07-09T23:35:51Z", "15/35 20-35/15 1/2 */2 * *", "2012-07-11T01:20:15Z"),
        ("2012-07-09T23:35:51Z", "15/35 20-35/15 * 9-20 Jul *", "2012-07-10T00:20:15Z"),
        ("2012-07-09T23:35:00Z", "0 0 0 9 Apr-Oct ?", "2012-08-09T00:00:00Z"),
        ("2012-07-09T23:35:00Z", "0 0 0 */5 Apr,Aug,Oct Mon", "2012-08-06T00:00:00Z"),
        ("2012-07-09T23:35:00Z", "0 0 0 * Feb Mon", "2013-02-04T00:00:00Z"),
        ("2012-07-09T23:35:00Z", "0 0 0 * Feb Mon/2", "2013-02-01T00:00:00Z"),
        ("2012-12-31T23:59:45Z", "0 * * * * *", "2013-01-01T00:00:00Z"),
        ("2012-07-09T23:35:00Z", "0 0 0 29 Feb ?", "2016-02-29T00:00:00Z"),
        // Neither is a star: either one matches.
        ("2012-07-09T23:35:00Z", "0 0 0 1 * wed", "2012-07-11T00:00:00Z"),
    ] {
        let found = Cron::parse(text).unwrap().next(seconds(from), Tz::UTC).map(rfc3339);
        assert_eq!(found.as_deref(), Some(want), "{text} from {from}");
    }
    for text in ["0 0 0 30 Feb ?", "0 0 0 31 Apr ?", ", * * * *", "0 0 0 , * ?"] {
        assert_eq!(Cron::parse(text).unwrap().next(seconds("2012-07-09T23:35:00Z"), Tz::UTC), None, "{text}");
    }
}

#[test]
fn clock_changes_in_new_york() {
    for (text, times) in [
        // A skipped time does not fire.
        ("0 30 2 11 Mar ?", ["2012-03-11T00:00:00-05:00", "2013-03-11T02:30:00-04:00", "2014-03-11T02:30:00-04:00"]),
        ("0 0 * * * ?", ["2012-03-11T00:00:00-05:00", "2012-03-11T01:00:00-05:00", "2012-03-11T03:00:00-04:00"]),
        ("0 0 1 * * ?", ["2012-03-11T00:00:00-05:00", "2012-03-11T01:00:00-05:00", "2012-03-12T01:00:00-04:00"]),
        ("0 0 2 * * ?", ["2012-03-11T00:00:00-05:00", "2012-03-12T02:00:00-04:00", "2012-03-13T02:00:00-04:00"]),
        // A repeated time fires twice.
        ("0 30 2 04 Nov ?", ["2012-11-04T00:00:00-04:00", "2012-11-04T02:30:00-05:00", "2013-11-04T02:30:00-05:00"]),
        ("0 30 1 04 Nov ?", ["2012-11-04T00:00:00-04:00", "2012-11-04T01:30:00-04:00", "2012-11-04T01:30:00-05:00"]),
        ("0 0 * * * ?", ["2012-11-04T01:00:00-04:00", "2012-11-04T01:00:00-05:00", "2012-11-04T02:00:00-05:00"]),
        ("0 0 1 * * ?", ["2012-11-04T01:00:00-04:00", "2012-11-04T01:00:00-05:00", "2012-11-05T01:00:00-05:00"]),
    ] {
        let cron = Cron::parse(text).unwrap();
        for pair in times.windows(2) {
            let found = cron.next(seconds(pair[0]), Tz::America__New_York);
            assert_eq!(found.map(rfc3339), Some(rfc3339(seconds(pair[1]))), "{text} from {}", pair[0]);
        }
    }
}

/// Every schedule ends its search, also around the day that Samoa skipped.
#[test]
fn skipped_day_in_samoa() {
    let zone = Tz::Pacific__Apia;
    let from = seconds("2011-12-30T09:59:00Z");
    for (text, want) in [
        ("0 0 0 30 12 *", Some("2012-12-29T10:00:00Z")),
        ("0 0 0 31 12 *", Some("2011-12-30T10:00:00Z")),
        ("0 0 0 * * fri", Some("2012-01-05T10:00:00Z")),
    ] {
        assert_eq!(Cron::parse(text).unwrap().next(from, zone).map(rfc3339).as_deref(), want, "{text}");
    }
}

/// An expression as its sets, so that the oracle does not need the parser. An empty set stands for a star.
#[derive(Clone, Debug)]
struct Sets([BTreeSet<u32>; 6]);

impl Sets {
    fn text(&self) -> String {
        let field = |set: &BTreeSet<u32>| {
            let values: Vec<String> = set.iter().map(u32::to_string).collect();
            if values.is_empty() { "*".to_owned() } else { values.join(",") }
        };
        self.0.iter().map(field).collect::<Vec<_>>().join(" ")
    }

    fn matches(&self, at: i64, zone: Tz) -> bool {
        let wall = zone.from_utc_datetime(&DateTime::from_timestamp(at, 0).unwrap().naive_utc());
        let [second, minute, hour, day, month, weekday] = &self.0;
        let has = |set: &BTreeSet<u32>, value: u32| set.is_empty() || set.contains(&value);
        let (in_month, in_week) = (has(day, wall.day()), has(weekday, wall.weekday().num_days_from_sunday()));
        let days = if day.is_empty() || weekday.is_empty() { in_month && in_week } else { in_month || in_week };
        has(second, wall.second())
            && has(minute, wall.minute())
            && has(hour, wall.hour())
            && has(month, wall.month())
            && days
    }
}

fn sets() -> impl Strategy<Value = Sets> {
    let some = |range: std::ops::Range<u32>, most: usize| {
        prop_oneof![Just(BTreeSet::new()), proptest::collection::btree_set(range, 1..most)]
    };
    (some(0..60, 20), some(0..60, 30), some(0..24, 20), some(1..32, 25), some(1..13, 12), some(0..7, 6))
        .prop_map(|(a, b, c, d, e, f)| Sets([a, b, c, d, e, f]))
}

fn zones() -> impl Strategy<Value = Tz> {
    proptest::sample::select(vec![
        Tz::UTC,
        Tz::America__New_York,
        Tz::Europe__Berlin,
        Tz::Australia__Lord_Howe,
        Tz::Africa__Cairo,
        Tz::America__Sao_Paulo,
        Tz::Asia__Kolkata,
        Tz::Pacific__Apia,
        Tz::Africa__Casablanca,
        Tz::America__St_Johns,
    ])
}

/// Times between 2000 and 2037, half of them within a day of a change of some clock.
fn times() -> impl Strategy<Value = i64> {
    let changes = [
        "2011-12-30T10:00:00Z",
        "2012-03-11T07:00:00Z",
        "2012-11-04T06:00:00Z",
        "2018-11-04T03:00:00Z",
        "2026-03-29T01:00:00Z",
        "2026-04-04T15:00:00Z",
        "2026-04-23T22:00:00Z",
        "2026-10-03T15:30:00Z",
        "2026-10-25T01:00:00Z",
        "2010-08-10T21:00:00Z",
    ];
    let near = (proptest::sample::select(changes.map(seconds).to_vec()), -86_400i64..86_400).prop_map(|(a, b)| a + b);
    prop_oneof![946_684_800i64..2_145_916_800, near]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// The next activation is the first later second at which the wall clock matches.
    #[test]
    fn next_is_what_the_wall_clock_says(sets in sets(), zone in zones(), from in times()) {
        const WINDOW: i64 = 3 * 3600;
        let found = Cron::parse(&sets.text()).unwrap().next(from, zone);
        let oracle = (from + 1..=from + WINDOW).find(|at| sets.matches(*at, zone));
        prop_assert_eq!(found.filter(|at| *at <= from + WINDOW), oracle);
        if let Some(found) = found {
            prop_assert!(sets.matches(found, zone));
        }
    }

    /// Asking from any moment between two activations gives the second one: nothing is lost, the order is strict.
    #[test]
    fn activations_do_not_depend_on_when_one_asks(sets in sets(), zone in zones(), from in times(), part in 0.0..1.0) {
        let cron = Cron::parse(&sets.text()).unwrap();
        let mut at = from;
        for _ in 0..5 {
            let Some(next) = cron.next(at, zone) else { break };
            prop_assert!(next > at);
            #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
            let between = at + ((next - at - 1) as f64 * part) as i64;
            prop_assert_eq!(cron.next(between, zone), Some(next));
            prop_assert_eq!(cron.next(next - 1, zone), Some(next));
            at = next;
        }
    }

    #[test]
    fn latest_is_the_last_one_that_is_due(sets in sets(), zone in zones(), from in times(), ahead in 0i64..10_000_000) {
        let cron = Cron::parse(&sets.text()).unwrap();
        if let Some(first) = cron.next(from, zone) {
            let until = first + ahead;
            let latest = cron.latest(first, until, zone);
            prop_assert!(first <= latest && latest <= until);
            prop_assert_eq!(cron.next(latest - 1, zone), Some(latest));
            prop_assert!(cron.next(latest, zone).is_none_or(|next| next > until));
        }
    }

    /// Texts of any kind are read or refused.
    #[test]
    fn parser_always_answers(text in "[0-9a-zA-Z*?,/@ +.-]{0,30}") {
        if let Ok(cron) = Cron::parse(&text) {
            prop_assert!(cron.next(1_500_000_000, Tz::UTC).is_none_or(|next| next > 1_500_000_000));
        }
    }
}

fn triggers() -> impl Strategy<Value = Trigger> {
    let cron = prop_oneof![Just("0 * * * * *"), Just("*/7 * * * * *"), Just("0 0/10 1-3 * * *"), Just("@every 90s")];
    let span = || (proptest::option::of(-2000i64..2000), proptest::option::of(0i64..6000));
    prop_oneof![
        (cron, span()).prop_map(|(text, (start, end))| {
            let cron = Cron::parse(text).unwrap();
            Trigger::Cron { cron, start: start.map(|s| BASE + s), end: end.map(|s| BASE + 2000 + s) }
        }),
        (0i64..600, span()).prop_map(|(interval, (start, end))| {
            let end = end.map(|s| BASE + 2000 + s);
            Trigger::Periodic { interval, start: start.map(|s| BASE + s), end }
        }),
        Just(Trigger::Once),
    ]
}

const BASE: i64 = 1_500_000_000;

fn bounds(trigger: &Trigger) -> (Option<i64>, Option<i64>) {
    match trigger {
        Trigger::Cron { start, end, .. } | Trigger::Periodic { start, end, .. } => (*start, *end),
        _ => (None, None),
    }
}

/// The slots that a controller fires which looks at the given moments, with restarts in between (it has no other memory).
fn fired(trigger: &Trigger, catchup: bool, looks: &[i64], zone: Tz) -> (Vec<i64>, Timing) {
    let mut timing = Timing { trigger: trigger.clone(), created: BASE, last: None, changed: None, catchup };
    let mut slots = Vec::new();
    for now in looks {
        while let Some(slot) = timing.next(*now, zone).filter(|slot| slot <= now) {
            slots.push(slot);
            timing.last = Some(slot);
            assert!(slots.len() < 100_000, "fires without end");
        }
    }
    (slots, timing)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn slots_follow_the_laws(
        trigger in triggers(), catchup: bool, zone in zones(),
        looks in proptest::collection::vec(0i64..3000, 1..12),
    ) {
        let looks: Vec<i64> = looks.iter().scan(BASE, |at, step| { *at += step; Some(*at) }).collect();
        let (slots, timing) = fired(&trigger, catchup, &looks, zone);
        let (start, end) = bounds(&trigger);
        prop_assert!(slots.windows(2).all(|pair| pair[0] < pair[1]), "strictly increasing, no slot twice");
        prop_assert!(slots.iter().all(|slot| start.is_none_or(|start| *slot >= start)), "never before the start");
        prop_assert!(slots.iter().all(|slot| end.is_none_or(|end| *slot <= end)), "never after the end");
        let last = looks.last().copied().unwrap_or(BASE);
        prop_assert!(timing.next(last, zone).is_none_or(|next| next > last), "nothing is left that is due");
        if catchup {
            // One look at the end gives the same slots as many looks: none is lost, none is added.
            prop_assert_eq!(&slots, &fired(&trigger, true, &[last], zone).0);
        } else {
            // At most one run for each look.
            prop_assert!(slots.len() <= looks.len());
        }
    }

    /// What is announced is what happens: the slots that a controller starts which is always on time.
    #[test]
    fn upcoming_slots_are_those_that_fire(trigger in triggers(), catchup: bool, zone in zones(), first in 0i64..9000) {
        let now = BASE + first;
        let (_, mut timing) = fired(&trigger, catchup, &[now], zone);
        let mut want = Vec::new();
        while want.len() < 4 && let Some(slot) = timing.next(now, zone) {
            prop_assert_eq!(timing.next(slot, zone), Some(slot));
            timing.last = Some(slot);
            want.push(slot);
        }
        let fresh = Timing { trigger, created: BASE, last: None, changed: None, catchup };
        prop_assert_eq!(fresh.upcoming(now, zone, 4), want);
    }
}
