//! Macros in string parameters of a run: `[[RunUUID]]`, `[[CurrentTime]]`, `{{$.scheduledTime.strftime('%Y')}}` ...

use std::fmt::Write as _;
use std::sync::LazyLock;

use chrono::{DateTime, Datelike as _, Timelike as _, Utc};
use regex::Regex;

/// Format of times without one of their own, in Go's notation.
const DEFAULT_LAYOUT: &str = "20060102150405";

#[allow(clippy::expect_used)] // A constant pattern; a test compiles it.
static PATTERN: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\[\[(.*?)\]\]|\{\{\$\.(.*?)\}\}").expect("constant pattern"));

/// What a run can tell about itself.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Id of the run.
    pub run_id: &'a str,
    /// Creation, Unix seconds.
    pub current: i64,
    /// Scheduled time, Unix seconds; 0 when the run is not scheduled.
    pub scheduled: i64,
}

/// Replaces the macros in `text`; unknown and unavailable ones stay as they are.
#[must_use]
pub fn expand(text: &str, facts: Facts<'_>) -> String {
    PATTERN
        .replace_all(text, |found: &regex::Captures<'_>| {
            let whole = found[0].to_owned();
            let value = match (found.get(1), found.get(2)) {
                (Some(word), _) => square(word.as_str(), facts),
                (_, Some(word)) => curly(word.as_str(), facts),
                _ => None,
            };
            value.unwrap_or(whole)
        })
        .into_owned()
}

fn time(seconds: i64) -> Option<DateTime<Utc>> {
    if seconds <= 0 { None } else { DateTime::from_timestamp(seconds, 0) }
}

fn square(word: &str, facts: Facts<'_>) -> Option<String> {
    if word == "RunUUID" {
        return Some(facts.run_id.to_owned());
    }
    let (name, layout) = word.split_once('.').unwrap_or((word, DEFAULT_LAYOUT));
    let time = match name {
        "CurrentTime" => time(facts.current)?,
        "ScheduledTime" => time(facts.scheduled)?,
        _ => return None,
    };
    Some(go_format(time, layout))
}

fn curly(word: &str, facts: Facts<'_>) -> Option<String> {
    let (name, call) = word.split_once(".strftime('")?;
    let format = call.strip_suffix("')")?;
    let time = match name {
        "currentTime" => time(facts.current)?,
        "scheduledTime" => time(facts.scheduled)?,
        _ => return None,
    };
    let mut out = String::new();
    // chrono reports unknown directives only while writing.
    write!(out, "{}", time.format(format)).ok()?;
    Some(out)
}

/// Formats `time` by a Go reference-time layout (`2006-01-02 15:04:05`).
#[must_use]
pub fn go_format(time: DateTime<Utc>, layout: &str) -> String {
    // Longest patterns first where one begins with another.
    const PARTS: &[(&str, &str)] = &[
        ("January", "%B"),
        ("Jan", "%b"),
        ("Monday", "%A"),
        ("Mon", "%a"),
        ("MST", "UTC"),
        ("2006", "%Y"),
        ("002", "%j"),
        ("01", "%m"),
        ("02", "%d"),
        ("03", "%I"),
        ("04", "%M"),
        ("05", "%S"),
        ("06", "%y"),
        ("15", "%H"),
        ("PM", "%p"),
        ("pm", "%P"),
        ("-07:00", "+00:00"),
        ("-0700", "+0000"),
        ("Z07:00", "Z"),
        ("Z0700", "Z"),
        ("_2", "%e"),
    ];
    let mut out = String::new();
    let mut rest = layout;
    'next: while let Some(first) = rest.chars().next() {
        for (part, format) in PARTS {
            if let Some(after) = rest.strip_prefix(part) {
                if format.starts_with('%') {
                    // Constant directives: writing to a String cannot fail.
                    let _ = write!(out, "{}", time.format(format));
                } else {
                    out.push_str(format);
                }
                rest = after;
                continue 'next;
            }
        }
        let single = match first {
            '1' => Some(time.month()),
            '2' => Some(time.day()),
            '3' => Some(time.hour12().1),
            '4' => Some(time.minute()),
            '5' => Some(time.second()),
            _ => None,
        };
        match single {
            Some(number) => {
                let _ = write!(out, "{number}");
            }
            None => out.push(first),
        }
        rest = &rest[first.len_utf8()..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts<'static> {
        // 2026-03-04 05:06:07 UTC
        Facts { run_id: "run-1", current: 1_772_600_767, scheduled: 0 }
    }

    #[test]
    fn known_macros_are_replaced_and_others_left() {
        for (text, expected) in [
            ("a-[[RunUUID]]-b", "a-run-1-b"),
            ("[[CurrentTime]]", "20260304050607"),
            ("[[CurrentTime.2006-01-02]]", "2026-03-04"),
            ("[[CurrentTime.15-04-05]]", "05-06-07"),
            ("{{$.currentTime.strftime('%Y/%m')}}", "2026/03"),
            ("{{$.currentTime.strftime('%s')}}", "1772600767"),
            ("[[ScheduledTime]]", "[[ScheduledTime]]"),
            ("[[Index]] [[Nope]] {{$.inputs.x}}", "[[Index]] [[Nope]] {{$.inputs.x}}"),
            ("{{$.currentTime.strftime('%Q')}}", "{{$.currentTime.strftime('%Q')}}"),
            ("plain", "plain"),
        ] {
            assert_eq!(expand(text, facts()), expected, "{text}");
        }
    }

    #[test]
    fn scheduled_time_appears_when_there_is_one() {
        let facts = Facts { scheduled: 1_772_600_767, ..facts() };
        assert_eq!(expand("[[ScheduledTime.Jan _2, 2006]]", facts), "Mar  4, 2026");
    }
}
