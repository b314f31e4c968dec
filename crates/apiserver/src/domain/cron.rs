//! Checks cron texts as upstream's parser (robfig/cron, first generation) reads them: seconds first, 5 or 6 fields.

/// Names of a field's values, from its smallest on.
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

struct Bounds {
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const FIELDS: [Bounds; 6] = [
    Bounds { low: 0, high: 59, names: &[] },
    Bounds { low: 0, high: 59, names: &[] },
    Bounds { low: 0, high: 23, names: &[] },
    Bounds { low: 1, high: 31, names: &[] },
    Bounds { low: 1, high: 12, names: &MONTHS },
    Bounds { low: 0, high: 6, names: &DAYS },
];

/// Checks a cron text.
///
/// # Errors
/// What is wrong with it, in the parser's words where clients see them.
pub fn check(text: &str) -> Result<(), String> {
    if let Some(descriptor) = text.strip_prefix('@') {
        return describe(descriptor).ok_or_else(|| format!("Unrecognized descriptor: {text}"));
    }
    let fields: Vec<&str> = text.split_whitespace().collect();
    if !(5..=6).contains(&fields.len()) {
        return Err(format!("Expected 5 to 6 fields, found {}: {text}", fields.len()));
    }
    fields.iter().zip(&FIELDS).try_for_each(|(field, bounds)| {
        field.split(',').filter(|part| !part.is_empty()).try_for_each(|part| range(part, bounds))
    })
}

fn describe(descriptor: &str) -> Option<()> {
    if let Some(duration) = descriptor.strip_prefix("every ") {
        return duration_is_valid(duration).then_some(());
    }
    let known = ["yearly", "annually", "monthly", "weekly", "daily", "midnight", "hourly"];
    known.contains(&descriptor).then_some(())
}

fn duration_is_valid(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.').len();
        let (number, tail) = rest.split_at(digits);
        let Some(unit) = ["ns", "us", "µs", "ms", "s", "m", "h"].into_iter().find(|unit| {
            tail.strip_prefix(unit)
                .is_some_and(|after| after.is_empty() || after.starts_with(|c: char| c.is_ascii_digit()))
        }) else {
            return false;
        };
        if number.parse::<f64>().is_err() {
            return false;
        }
        rest = &tail[unit.len()..];
    }
    !text.is_empty()
}

fn value(text: &str, bounds: &Bounds) -> Result<u32, String> {
    let lower = text.to_lowercase();
    if let Some(at) = bounds.names.iter().position(|name| *name == lower) {
        return Ok(bounds.low + u32::try_from(at).unwrap_or_default());
    }
    text.parse().map_err(|_| format!("Failed to parse int from {text}"))
}

fn range(part: &str, bounds: &Bounds) -> Result<(), String> {
    let mut halves = part.split('/');
    let (span, step, more) = (halves.next().unwrap_or_default(), halves.next(), halves.next());
    if more.is_some() {
        return Err(format!("Too many slashes: {part}"));
    }
    let (low, high) = match span {
        "*" | "?" => (bounds.low, bounds.high),
        _ => match span.split('-').collect::<Vec<_>>().as_slice() {
            [one] => {
                let low = value(one, bounds)?;
                (low, if step.is_some() { bounds.high } else { low })
            }
            [low, high] => (value(low, bounds)?, value(high, bounds)?),
            _ => return Err(format!("Too many hyphens: {part}")),
        },
    };
    if low < bounds.low {
        return Err(format!("Beginning of range ({low}) below minimum ({}): {part}", bounds.low));
    }
    if high > bounds.high {
        return Err(format!("End of range ({high}) above maximum ({}): {part}", bounds.high));
    }
    if low > high {
        return Err(format!("Beginning of range ({low}) beyond end of range ({high}): {part}"));
    }
    match step {
        None => Ok(()),
        Some(step) if step.parse::<u32>().is_ok_and(|step| step > 0) => Ok(()),
        Some(_) => Err(format!("Step of range should be a positive number: {part}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_upstream_accepts_pass() {
        for text in [
            "0 0 1 1 *",
            "1 * * * * *",
            "0 0/5 * * * ?",
            "0 0 0 1 JAN MON-FRI",
            "0 1,2,3-7/2 * * *",
            "@hourly",
            "@every 1h30m",
        ] {
            assert_eq!(check(text), Ok(()), "{text}");
        }
    }

    #[test]
    fn wrong_texts_are_explained() {
        assert_eq!(check("1 * * ").unwrap_err(), "Expected 5 to 6 fields, found 3: 1 * * ");
        for text in [
            "60 * * * *",
            "* * * 0 *",
            "* * * * 13",
            "a * * * *",
            "5-1 * * * *",
            "*/0 * * * *",
            "@nope",
            "@every x",
            "",
        ] {
            assert!(check(text).is_err(), "{text}");
        }
    }
}
