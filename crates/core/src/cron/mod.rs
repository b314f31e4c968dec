//! The cron dialect of robfig/cron v1.2.0, which recurring runs are written in.
//!
//! Seconds come first: `second minute hour day-of-month month [day-of-week]`; a descriptor (`@daily`, `@every 1h`) stands
//! alone. [`Cron::parse`] answers with the library's own error texts because clients see them through the API.
//!
//! The calendar is computed here and not by the `cron` crate, because its dialect and its results differ where the
//! recorded answers of the library leave no choice:
//! * a set may be empty (`, 0 0 1 * *`), which never fires; the crate has no such schedule;
//! * when neither the day of the month nor the weekday is a star, either may match (`0 0 0 1 * mon`); the crate wants both;
//!   when one is a star both must match, and that star may hide in a list or carry a step (`*/5`, `3,*`);
//! * an hour that occurs twice in autumn fires twice, also with offsets of half an hour (`0 0 1 * * ?` in New York,
//!   `* 0 3 18 * 0` on Lord Howe); a skipped one does not fire;
//! * the search ends with the fifth year after its start; the crate goes on to 2100.

mod search;
pub mod zone;

use crate::duration;

/// Why a text is not a schedule, in the library's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

/// A parsed expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cron {
    /// Fires when the wall clock matches.
    Calendar(Calendar),
    /// Fires so many seconds after the last time, at least 1.
    Every(i64),
}

/// Values of one field as a bit set, and whether a star is among its ranges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Field {
    bits: u64,
    star: bool,
}

/// The six fields of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calendar {
    second: Field,
    minute: Field,
    hour: Field,
    day: Field,
    month: Field,
    weekday: Field,
}

struct Bounds {
    low: i64,
    high: i64,
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

const SECOND: Bounds = Bounds { low: 0, high: 59, names: &[] };
const HOUR: Bounds = Bounds { low: 0, high: 23, names: &[] };
const DAY: Bounds = Bounds { low: 1, high: 31, names: &[] };
const MONTH: Bounds = Bounds { low: 1, high: 12, names: &MONTHS };
const WEEKDAY: Bounds = Bounds { low: 0, high: 6, names: &DAYS };

impl Cron {
    /// Reads an expression or descriptor.
    ///
    /// # Errors
    /// As robfig/cron v1.2.0, word for word.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            return Err(Error("Empty spec string".to_owned()));
        }
        if text.starts_with('@') {
            return descriptor(text);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let (second, minute, hour, day, month, weekday) = match fields.as_slice() {
            [second, minute, hour, day, month] => (second, minute, hour, day, month, &"*"),
            [second, minute, hour, day, month, weekday] => (second, minute, hour, day, month, weekday),
            _ => return Err(Error(format!("Expected 5 to 6 fields, found {}: {text}", fields.len()))),
        };
        Ok(Self::Calendar(Calendar {
            second: field(second, &SECOND)?,
            minute: field(minute, &SECOND)?,
            hour: field(hour, &HOUR)?,
            day: field(day, &DAY)?,
            month: field(month, &MONTH)?,
            weekday: field(weekday, &WEEKDAY)?,
        }))
    }
}

fn descriptor(text: &str) -> Result<Cron, Error> {
    if let Some(every) = text.strip_prefix("@every ") {
        let nanos = duration::parse(every).map_err(|e| Error(format!("Failed to parse duration {text}: {e}")))?;
        return Ok(Cron::Every((nanos / 1_000_000_000).max(1)));
    }
    let plain = match text {
        "@yearly" | "@annually" => "0 0 0 1 1 *",
        "@monthly" => "0 0 0 1 * *",
        "@weekly" => "0 0 0 * * 0",
        "@daily" | "@midnight" => "0 0 0 * * *",
        "@hourly" => "0 0 * * * *",
        _ => return Err(Error(format!("Unrecognized descriptor: {text}"))),
    };
    Cron::parse(plain)
}

/// A comma list of ranges; empty items do not count.
fn field(text: &str, bounds: &Bounds) -> Result<Field, Error> {
    let mut all = Field::default();
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let one = range(part, bounds)?;
        all = Field { bits: all.bits | one.bits, star: all.star | one.star };
    }
    Ok(all)
}

fn range(text: &str, bounds: &Bounds) -> Result<Field, Error> {
    let (span, step, too_many) = {
        let mut parts = text.split('/');
        (parts.next().unwrap_or_default(), parts.next(), parts.next().is_some())
    };
    let ends: Vec<&str> = span.split('-').collect();
    let star = matches!(ends.first(), Some(&("*" | "?")));
    let (low, mut high) = match ends.as_slice() {
        _ if star => (bounds.low, bounds.high),
        [one] => {
            let value = value(one, bounds)?;
            (value, value)
        }
        [low, high] => (value(low, bounds)?, value(high, bounds)?),
        [low, ..] => {
            value(low, bounds)?;
            return Err(Error(format!("Too many hyphens: {text}")));
        }
        [] => (bounds.low, bounds.high),
    };
    if too_many {
        return Err(Error(format!("Too many slashes: {text}")));
    }
    let step = match step {
        None => 1,
        Some(step) => {
            if ends.len() == 1 {
                high = bounds.high;
            }
            number(step)?
        }
    };
    if low < bounds.low {
        return Err(Error(format!("Beginning of range ({low}) below minimum ({}): {text}", bounds.low)));
    }
    if high > bounds.high {
        return Err(Error(format!("End of range ({high}) above maximum ({}): {text}", bounds.high)));
    }
    if low > high {
        return Err(Error(format!("Beginning of range ({low}) beyond end of range ({high}): {text}")));
    }
    if step == 0 {
        return Err(Error(format!("Step of range should be a positive number: {text}")));
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    let bits = (low..=high).step_by(step).fold(0, |bits, value| bits | 1 << value);
    Ok(Field { bits, star })
}

fn value(text: &str, bounds: &Bounds) -> Result<i64, Error> {
    let lower = text.to_lowercase();
    match (bounds.low..).zip(bounds.names).find(|(_, name)| **name == lower) {
        Some((value, _)) => Ok(value),
        None => number(text),
    }
}

/// A number as Go's `strconv.Atoi` reads it, not negative.
fn number(text: &str) -> Result<i64, Error> {
    let wrong = |why: &str| {
        Error(format!("Failed to parse int from {text}: strconv.Atoi: parsing {}: {why}", duration::quote(text)))
    };
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.is_empty() {
        return Err(wrong("invalid syntax"));
    }
    let mut value = 0i64;
    for c in digits.chars() {
        let digit = c.to_digit(10).ok_or_else(|| wrong("invalid syntax"))?;
        let next = value.checked_mul(10).and_then(|v| v.checked_add(i64::from(digit)));
        value = next.ok_or_else(|| wrong("value out of range"))?;
    }
    if negative && value > 0 {
        return Err(Error(format!("Negative number (-{value}) not allowed: {text}")));
    }
    Ok(value)
}
