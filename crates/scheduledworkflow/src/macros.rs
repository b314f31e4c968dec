//! Macros in parameters: `[[ScheduledTime]]`, `[[Index]]`, `{{$.currentTime.strftime('%Y')}}` and their like.

use std::fmt::Write as _;

use chrono::{DateTime, Datelike as _, Timelike as _, Utc};

/// Format of times that bring none of their own, in Go's notation.
const LAYOUT: &str = "20060102150405";

/// What a run can tell about itself; `None` leaves the macro as it is, for a later reader.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts<'a> {
    /// Id of the run.
    pub run_id: Option<&'a str>,
    /// The time for which the run is scheduled, Unix seconds.
    pub scheduled: Option<i64>,
    /// The present, Unix seconds.
    pub now: Option<i64>,
    /// Number of the run in its schedule, from 1 on.
    pub index: Option<i64>,
}

/// Replaces the macros in `text`; unknown ones stay.
#[must_use]
pub fn expand(text: &str, facts: &Facts<'_>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = [rest.find("[["), rest.find("{{$.")].into_iter().flatten().min() {
        let (before, macro_on) = rest.split_at(at);
        out.push_str(before);
        let (open, close) = if macro_on.starts_with("[[") { (2, "]]") } else { (4, "}}") };
        let end = macro_on[open..].find(close).filter(|end| !macro_on[open..open + end].contains('\n'));
        let Some(end) = end else {
            out.push_str(&macro_on[..1]);
            rest = &macro_on[1..];
            continue;
        };
        let (whole, after) = macro_on.split_at(open + end + 2);
        match replacement(&whole[open..open + end], open == 2, facts) {
            Some(value) => out.push_str(&value),
            None => out.push_str(whole),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}

fn replacement(word: &str, square: bool, facts: &Facts<'_>) -> Option<String> {
    let time = |seconds: Option<i64>| DateTime::from_timestamp(seconds?, 0);
    if square {
        match word {
            "RunUUID" => return facts.run_id.map(str::to_owned),
            "Index" => return facts.index.map(|index| index.to_string()),
            _ => {}
        }
        let (name, layout) = word.split_once('.').unwrap_or((word, LAYOUT));
        let time = match name {
            "ScheduledTime" => time(facts.scheduled),
            "CurrentTime" => time(facts.now),
            _ => None,
        };
        return time.map(|time| go_format(time, layout));
    }
    let (name, format) = word.split_once(".strftime('")?;
    let format = format.strip_suffix("')")?;
    let time = match name {
        "scheduledTime" => time(facts.scheduled)?,
        "currentTime" => time(facts.now)?,
        _ => return None,
    };
    strftime(time, format)
}

/// Formats by strftime directives; `None` when one is unknown.
fn strftime(time: DateTime<Utc>, format: &str) -> Option<String> {
    const KNOWN: &str = "AaBbCcDdeFHhIjklMmnpRrSTtUuVvWwXxYyZz%s";
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c == '%' {
            let directive = chars.next().filter(|d| KNOWN.contains(*d))?;
            write!(out, "{}", time.format(&format!("%{directive}"))).ok()?;
        } else {
            out.push(c);
        }
    }
    Some(out)
}

/// Elements of Go's layouts; where one begins with another, the longer one stands first.
const ELEMENTS: &[(&str, &str)] = &[
    ("January", "%B"),
    ("Jan", "%b"),
    ("Monday", "%A"),
    ("Mon", "%a"),
    ("MST", "%Z"),
    ("2006", "%Y"),
    ("__2", "%j"),
    ("_2", "%e"),
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
    ("-07:00:00", "+00:00:00"),
    ("-070000", "+000000"),
    ("-07:00", "+00:00"),
    ("-0700", "+0000"),
    ("-07", "+00"),
    ("Z07:00:00", "Z"),
    ("Z070000", "Z"),
    ("Z07:00", "Z"),
    ("Z0700", "Z"),
    ("Z07", "Z"),
];

/// Formats by a layout of Go's reference time (`2006-01-02 15:04:05`).
#[must_use]
pub fn go_format(time: DateTime<Utc>, layout: &str) -> String {
    let mut out = String::new();
    let mut rest = layout;
    while let Some(first) = rest.chars().next() {
        if let Some((text, after)) = element(time, rest) {
            out.push_str(&text);
            rest = after;
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    out
}

fn element(time: DateTime<Utc>, rest: &str) -> Option<(String, &str)> {
    // An underscore before a year is no padding of a day.
    if let Some(after) = rest.strip_prefix("_2006") {
        return Some((format!("_{}", time.year()), after));
    }
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let length = fraction.len() - fraction.trim_start_matches(fraction.chars().next()?).len();
        let (digits, after) = fraction.split_at(length);
        let whole = !after.starts_with(|c: char| c.is_ascii_digit());
        return match digits.chars().next()? {
            // Scheduled and current time are whole seconds.
            '0' if whole => Some((rest[..=length].to_owned(), after)),
            '9' if whole => Some((String::new(), after)),
            _ => None,
        };
    }
    for (element, format) in ELEMENTS {
        let Some(after) = rest.strip_prefix(element) else { continue };
        if matches!(*element, "Jan" | "Mon") && after.starts_with(|c: char| c.is_ascii_lowercase()) {
            continue;
        }
        let text = if *element == "__2" { format!("{:>3}", time.ordinal()) } else { time.format(format).to_string() };
        return Some((text, after));
    }
    let value = match rest.chars().next()? {
        '1' => time.month(),
        '2' => time.day(),
        '3' => time.hour12().1,
        '4' => time.minute(),
        '5' => time.second(),
        _ => return None,
    };
    Some((value.to_string(), &rest[1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    // 2017-07-06 05:04:03 and 2018-08-07 06:05:04 UTC.
    const FACTS: Facts<'_> =
        Facts { run_id: Some("uuid"), scheduled: Some(1_499_317_443), now: Some(1_533_621_904), index: Some(23) };

    #[test]
    fn every_macro_has_its_value() {
        for (text, want) in [
            ("no macro", "no macro"),
            ("[[RunUUID]]", "uuid"),
            ("a [[ScheduledTime]] b", "a 20170706050403 b"),
            ("[[CurrentTime]]", "20180807060504"),
            ("[[Index]]-[[Index]]", "23-23"),
            ("[[ScheduledTime.2006-01-02]]", "2017-07-06"),
            ("[[CurrentTime.15-04-05]]", "06-05-04"),
            ("{{$.scheduledTime.strftime('%Y-%m-%d %s')}}", "2017-07-06 1499317443"),
            ("{{$.currentTime.strftime('%H:%M%%')}}", "06:05%"),
            ("{{$.currentTime.strftime('%Q')}}", "{{$.currentTime.strftime('%Q')}}"),
            ("{{$.currentTime.strftime('%')}}", "{{$.currentTime.strftime('%')}}"),
            ("[[Unknown]] [[Index]]", "[[Unknown]] 23"),
            ("[[Index", "[[Index"),
            ("[[Index\n]] [[Index]]", "[[Index\n]] 23"),
            ("{{inputs.parameters.x}} {{$.outputs}}", "{{inputs.parameters.x}} {{$.outputs}}"),
            ("\u{e9}[[Index]]\u{e9}", "\u{e9}23\u{e9}"),
        ] {
            assert_eq!(expand(text, &FACTS), want, "{text}");
        }
    }

    #[test]
    fn what_is_not_known_stays() {
        let facts = Facts { run_id: None, index: None, scheduled: None, ..FACTS };
        let text = "[[RunUUID]] [[Index]] [[ScheduledTime]] [[ScheduledTime.06]] {{$.scheduledTime.strftime('%Y')}}";
        assert_eq!(expand(text, &facts), text);
    }

    #[test]
    fn layouts_as_in_go() {
        let time = DateTime::from_timestamp(1_499_317_443, 0).unwrap();
        for (layout, want) in [
            ("Monday, January _2 2006", "Thursday, July  6 2017"),
            ("Mon Jan 2 15:04:05 MST 2006", "Thu Jul 6 05:04:03 UTC 2017"),
            ("Month January", "Month July"),
            ("3:4:5 PM pm", "5:4:3 AM am"),
            ("2006-01-02T15:04:05Z07:00", "2017-07-06T05:04:03Z"),
            ("-0700 -07:00 -07", "+0000 +00:00 +00"),
            ("05.000 05.999 05.0001", "03.000 03 03.0007"),
            ("002 __2 _2006", "187 187 _2017"),
            ("1/2/06", "7/6/17"),
        ] {
            assert_eq!(go_format(time, layout), want, "{layout}");
        }
    }
}
