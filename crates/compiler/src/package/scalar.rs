//! What an unquoted YAML scalar means, by the rules of Go's yaml.v3: YAML 1.2 booleans and nulls, Go's integers with
//! underscores, timestamps.

use serde_json::{Number, Value};

/// The JSON value of plain scalar `text`. Timestamps become RFC 3339 text, as upstream's way through JSON makes them.
///
/// # Errors
/// Infinity and NaN, which JSON does not have.
pub fn resolve(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf"
        | "-.INF" => return Err(format!("{text} has no JSON form")),
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return Ok(Value::from(text));
    }
    if let Some(stamp) = timestamp(text) {
        return Ok(Value::from(stamp));
    }
    let digits = text.replace('_', "");
    if let Some(number) = integer(&digits) {
        return Ok(number);
    }
    if is_float(&digits) {
        let number = digits.parse().ok().and_then(Number::from_f64);
        return number.map(Value::Number).ok_or_else(|| format!("{text} is out of range"));
    }
    Ok(Value::from(text))
}

fn integer(text: &str) -> Option<Value> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match rest.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &rest[2..]),
        [b'0', b'b' | b'B', ..] => (2, &rest[2..]),
        [b'0', b'o' | b'O', ..] => (8, &rest[2..]),
        [b'0', _, ..] => (8, &rest[1..]),
        _ => (10, rest),
    };
    if !digits.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return None;
    }
    let size = u64::from_str_radix(digits, radix).ok()?;
    if negative { 0_i64.checked_sub_unsigned(size).map(Value::from) } else { Some(Value::from(size)) }
}

/// `[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_float(text: &str) -> bool {
    let all_digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let text = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = text.split_once(['e', 'E']).map_or((text, None), |(m, e)| (m, Some(e)));
    let (whole, fraction) = mantissa.split_once('.').map_or((mantissa, None), |(w, f)| (w, Some(f)));
    let exponent_fits = exponent.is_none_or(|exponent| {
        let digits = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
        !digits.is_empty() && all_digits(digits)
    });
    all_digits(whole)
        && fraction.is_none_or(all_digits)
        && (!whole.is_empty() || fraction.is_some_and(|fraction| !fraction.is_empty()))
        && exponent_fits
}

/// `2006-1-2`, or with a time after `T`, `t` or a space: `15:4:5`, a fraction, and (not after a space) a zone.
fn timestamp(text: &str) -> Option<String> {
    let bytes = text.as_bytes();
    if bytes.len() < 8 || !bytes[..4].iter().all(u8::is_ascii_digit) || bytes[4] != b'-' {
        return None;
    }
    let (date, time) = match text.find(['T', 't', ' ']) {
        Some(at) => (&text[..at], Some((bytes[at], &text[at + 1..]))),
        None => (text, None),
    };
    let mut parts = date.split('-');
    let year: u32 = parts.next()?.parse().ok()?;
    let month = small(parts.next()?, 12)?;
    let day = small(parts.next()?, 31)?;
    if parts.next().is_some() || month == 0 || day == 0 || day > days(year, month) {
        return None;
    }
    let date = format!("{year:04}-{month:02}-{day:02}T");
    let Some((separator, time)) = time else { return Some(format!("{date}00:00:00Z")) };
    let zone_at = time.find(['Z', '+', '-']);
    let (clock, zone) = match zone_at {
        Some(_) if separator == b' ' => return None,
        Some(at) => time.split_at(at),
        None if separator == b' ' => (time, "Z"),
        None => return None,
    };
    let (clock, fraction) = clock.split_once('.').map_or((clock, ""), |(clock, fraction)| (clock, fraction));
    let mut parts = clock.split(':');
    let hour = small(parts.next()?, 23)?;
    let minute = small(parts.next()?, 59)?;
    let second = small(parts.next()?, 59)?;
    if parts.next().is_some() || !fraction.bytes().all(|b| b.is_ascii_digit()) || fraction.len() > 9 {
        return None;
    }
    let zone = match zone.strip_prefix('Z') {
        Some("") => "Z".to_owned(),
        Some(_) => return None,
        None => {
            let (hours, minutes) = zone[1..].split_once(':')?;
            if hours.len() != 2 || minutes.len() != 2 {
                return None;
            }
            let (hours, minutes) = (small(hours, 24)?, small(minutes, 59)?);
            if hours + minutes == 0 { "Z".to_owned() } else { format!("{}{hours:02}:{minutes:02}", &zone[..1]) }
        }
    };
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    Some(format!("{date}{hour:02}:{minute:02}:{second:02}{dot}{fraction}{zone}"))
}

fn small(text: &str, max: u32) -> Option<u32> {
    let digits = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|number| digits && *number <= max)
}

fn days(year: u32, month: u32) -> u32 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => 29,
        2 => 28,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::resolve;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    #[test]
    fn resolves_as_yaml_v3() {
        for (text, want) in [
            ("yes", json!("yes")),
            ("True", json!(true)),
            ("~", Value::Null),
            ("NULL", Value::Null),
            ("12", json!(12)),
            ("+12", json!(12)),
            ("-0x10", json!(-16)),
            ("0o17", json!(15)),
            ("017", json!(15)),
            ("019", json!(19.0)),
            ("0b101", json!(5)),
            ("1_000", json!(1000)),
            ("18446744073709551615", json!(18446744073709551615_u64)),
            ("-9223372036854775808", json!(i64::MIN)),
            ("1.", json!(1.0)),
            (".5", json!(0.5)),
            ("1e3", json!(1000.0)),
            ("1e", json!("1e")),
            ("-", json!("-")),
            (".", json!(".")),
            ("1.2.3", json!("1.2.3")),
            ("2.1.0", json!("2.1.0")),
            ("12:30", json!("12:30")),
            ("2020-01-01", json!("2020-01-01T00:00:00Z")),
            ("2020-1-2", json!("2020-01-02T00:00:00Z")),
            ("2020-02-30", json!("2020-02-30")),
            ("2020-01-01 10:20:30.500", json!("2020-01-01T10:20:30.5Z")),
            ("2020-01-01T10:20:30+02:00", json!("2020-01-01T10:20:30+02:00")),
            ("2020-01-01T10:20:30", json!("2020-01-01T10:20:30")),
        ] {
            assert_eq!(resolve(text), Ok(want), "{text}");
        }
        assert!(resolve(".inf").is_err());
        assert!(resolve("1e999").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "[-+.0-9a-fxoTZ: _é]{0,24}") {
            let _ = resolve(&text);
        }
    }
}
