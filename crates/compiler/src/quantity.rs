//! Kubernetes quantities in canonical form.

const INVALID: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const NANO: i128 = 1_000_000_000;

/// A quantity as Kubernetes prints it, and whether it is below zero.
///
/// # Errors
/// Kubernetes' text for anything that is not a quantity.
pub fn canonical(text: &str) -> Result<(String, bool), &'static str> {
    let (negative, rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    let (digits, suffix) = rest.split_at(end);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return Err(INVALID);
    }
    let scale = Scale::parse(suffix).ok_or(INVALID)?;
    let nano = nanos(whole, fraction, &scale).ok_or(INVALID)?;
    let sign = if negative && nano != 0 { "-" } else { "" };
    Ok((format!("{sign}{}", print(nano, &scale)), negative && nano != 0))
}

enum Scale {
    Binary(u32),
    Decimal(i32),
    Exponent(i32),
}

impl Scale {
    fn parse(suffix: &str) -> Option<Self> {
        let decimal = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
        let binary = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        if let Some(at) = decimal.iter().position(|s| *s == suffix) {
            return Some(Self::Decimal((i32::try_from(at).ok()? - 3) * 3));
        }
        if let Some(at) = binary.iter().position(|s| *s == suffix) {
            return Some(Self::Binary(u32::try_from(at).ok()? + 1));
        }
        let exponent = suffix.strip_prefix(['e', 'E'])?;
        exponent.parse().ok().filter(|e: &i32| e.abs() <= 18).map(Self::Exponent)
    }
}

/// The absolute value in billionths, rounded up.
fn nanos(whole: &str, fraction: &str, scale: &Scale) -> Option<i128> {
    // Digits beyond what the largest suffix can lift above a billionth only matter for rounding up.
    let kept = &fraction[..fraction.len().min(27)];
    let lost = fraction[kept.len()..].bytes().any(|b| b != b'0');
    let joined = format!("{whole}{kept}");
    let significant = joined.trim_start_matches('0');
    let mantissa: i128 = if significant.is_empty() { 0 } else { significant.parse().ok()? };
    let mut exponent = 9 - i32::try_from(kept.len()).ok()?;
    let factor = match scale {
        Scale::Binary(power) => 1024_i128.checked_pow(*power)?,
        Scale::Decimal(e) | Scale::Exponent(e) => {
            exponent += e;
            1
        }
    };
    let value = mantissa.checked_mul(factor)?;
    let power = 10_i128.checked_pow(exponent.unsigned_abs())?;
    if exponent >= 0 {
        return value.checked_mul(power)?.checked_add(i128::from(lost));
    }
    Some(value / power + i128::from(value % power != 0 || lost))
}

fn print(nano: i128, scale: &Scale) -> String {
    if nano == 0 {
        return "0".into();
    }
    if matches!(scale, Scale::Binary(_)) && nano >= 1024 * NANO {
        let mut value = nano / NANO + i128::from(nano % NANO != 0);
        let mut power = 0;
        let suffixes = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
        while value % 1024 == 0 && power < 6 {
            value /= 1024;
            power += 1;
        }
        return format!("{value}{}", suffixes[power]);
    }
    let (mut value, mut exponent) = (nano, -9_i32);
    while value % 1000 == 0 && exponent < 18 {
        value /= 1000;
        exponent += 3;
    }
    let suffix = match (scale, exponent) {
        (_, 0) => String::new(),
        (Scale::Exponent(_), e) => format!("e{e}"),
        (_, -9) => "n".into(),
        (_, -6) => "u".into(),
        (_, -3) => "m".into(),
        (_, 3) => "k".into(),
        (_, 6) => "M".into(),
        (_, 9) => "G".into(),
        (_, 12) => "T".into(),
        (_, 15) => "P".into(),
        _ => "E".into(),
    };
    format!("{value}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn prints_like_kubernetes() {
        for (given, want) in [
            ("1Gi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("1024Mi", "1Gi"),
            ("0.5Gi", "512Mi"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1500M", "1500M"),
            ("1000M", "1G"),
            ("512", "512"),
            ("1e3", "1e3"),
            ("12E2", "1200"),
            ("0Gi", "0"),
            ("+5Gi", "5Gi"),
            (".5Ki", "512"),
            ("1.0000000001", "1000000001n"),
        ] {
            assert_eq!(canonical(given), Ok((want.to_string(), false)), "{given}");
        }
        assert_eq!(canonical("-1Gi"), Ok(("-1Gi".to_string(), true)));
    }

    #[test]
    fn refuses_the_rest() {
        for given in ["", "Gi", "1.2.3", "1gi", "1 Gi", "abc", "1e", "-", "99999999999999999999999999999999999999999Ei"]
        {
            assert!(canonical(given).is_err(), "{given}");
        }
    }
}
