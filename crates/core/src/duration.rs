//! Durations as Go's `time.ParseDuration` reads them, with its error texts.

/// Nanoseconds of a text such as `1h30m`, `-1.5s` or `300ms`.
///
/// # Errors
/// Go's words: `time: invalid duration "x"`, `time: missing unit in duration "5"`, `time: unknown unit ...`.
pub fn parse(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total = 0i128;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let unit_length = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, tail) = after.split_at(unit_length);
        if unit.is_empty() {
            return Err(format!("time: missing unit in duration {}", quote(text)));
        }
        let scale =
            scale(unit).ok_or_else(|| format!("time: unknown unit {} in duration {}", quote(unit), quote(text)))?;
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        total = total.saturating_add(whole.saturating_mul(scale));
        // Eighteen digits are beyond a nanosecond even of an hour.
        let mut weight = scale;
        let mut part = 0i128;
        let mut divisor = 1i128;
        for digit in fraction.bytes().take(18) {
            part = part * 10 + i128::from(digit - b'0');
            divisor *= 10;
        }
        weight = weight * part / divisor;
        total += weight;
        if total > 1i128 << 63 {
            return Err(invalid());
        }
        rest = tail;
    }
    let total = if negative { -total } else { total };
    i64::try_from(total).map_err(|_| invalid())
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len())
}

fn scale(unit: &str) -> Option<i128> {
    Some(match unit {
        "ns" => 1,
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// The text in quotes as Go prints it.
pub(crate) fn quote(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn reads_what_go_reads() {
        let s = 1_000_000_000;
        for (text, want) in [
            ("1h30m", 5_400 * s),
            ("-1s", -s),
            ("1m0.9s", 60 * s + 900_000_000),
            (".5s", s / 2),
            ("1.s", s),
            ("+2us", 2_000),
            ("2\u{b5}s", 2_000),
            ("0", 0),
            ("100ns", 100),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
    }

    #[test]
    fn refuses_in_gos_words() {
        for (text, want) in [
            ("x", "time: invalid duration \"x\""),
            ("", "time: invalid duration \"\""),
            ("5", "time: missing unit in duration \"5\""),
            ("5x", "time: unknown unit \"x\" in duration \"5x\""),
            ("1 h", "time: unknown unit \" h\" in duration \"1 h\""),
            (".s", "time: invalid duration \".s\""),
            ("9999999h", "time: invalid duration \"9999999h\""),
        ] {
            assert_eq!(parse(text).unwrap_err(), want, "{text}");
        }
    }
}
