//! JSON values as YAML text.

use serde_json::Value;

/// `value` as YAML in block style. Strings that any YAML version could read as something else are quoted.
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(fields) if !fields.is_empty() => block(&mut out, value, 0, false),
        Value::Array(items) if !items.is_empty() => block(&mut out, value, 0, false),
        _ => {
            scalar(&mut out, value);
            out.push('\n');
        }
    }
    out
}

fn block(out: &mut String, value: &Value, indent: usize, mut inline: bool) {
    let pad = |out: &mut String, inline: &mut bool| {
        if !std::mem::take(inline) {
            out.extend(std::iter::repeat_n(' ', indent));
        }
    };
    match value {
        Value::Object(fields) => {
            for (key, item) in fields {
                pad(out, &mut inline);
                text(out, key);
                out.push(':');
                match item {
                    Value::Object(inner) if !inner.is_empty() => {
                        out.push('\n');
                        block(out, item, indent + 2, false);
                    }
                    Value::Array(inner) if !inner.is_empty() => {
                        out.push('\n');
                        block(out, item, indent, false);
                    }
                    _ => {
                        out.push(' ');
                        scalar(out, item);
                        out.push('\n');
                    }
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                pad(out, &mut inline);
                out.push_str("- ");
                match item {
                    Value::Object(inner) if !inner.is_empty() => block(out, item, indent + 2, true),
                    Value::Array(inner) if !inner.is_empty() => block(out, item, indent + 2, true),
                    _ => {
                        scalar(out, item);
                        out.push('\n');
                    }
                }
            }
        }
        _ => scalar(out, value),
    }
}

fn scalar(out: &mut String, value: &Value) {
    match value {
        Value::String(content) => text(out, content),
        Value::Number(number) if number.is_f64() => {
            let mut digits = String::new();
            kfp_core::gojson::write_f64(&mut digits, number.as_f64().unwrap_or_default());
            // `1e+21` is a string to YAML 1.1 without the dot.
            match digits.split_once('e') {
                Some((mantissa, exponent)) if !mantissa.contains('.') => {
                    out.push_str(&format!("{mantissa}.0e{exponent}"))
                }
                _ => out.push_str(&digits),
            }
        }
        other => out.push_str(&other.to_string()),
    }
}

fn text(out: &mut String, content: &str) {
    if is_plain(content) {
        out.push_str(content);
    } else if content.bytes().any(|b| !(0x20..0x7f).contains(&b)) && content.chars().any(needs_escape) {
        // Double quotes for what needs escapes; YAML understands JSON's.
        for character in serde_json::Value::from(content).to_string().chars() {
            match character {
                '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                    out.push_str(&format!("\\u{:04x}", u32::from(character)))
                }
                other => out.push(other),
            }
        }
    } else {
        out.push('\'');
        for (i, part) in content.split('\'').enumerate() {
            if i > 0 {
                out.push_str("''");
            }
            out.push_str(part);
        }
        out.push('\'');
    }
}

fn needs_escape(character: char) -> bool {
    character.is_control() || matches!(character, '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// Whether every YAML version reads `content` without quotes as this text.
fn is_plain(content: &str) -> bool {
    const RESERVED: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    content.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'/')
        && content.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'/' | b'-'))
        && (content.len() > 5 || !RESERVED.iter().any(|word| content.eq_ignore_ascii_case(word)))
}
