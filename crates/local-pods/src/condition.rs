//! Conditions of resource templates: requirements in the syntax of label selectors, over paths into an object.

use serde_json::Value;

/// One requirement, such as `status.phase == Running` or `status.conditions.0.type in (Ready, Done)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requirement {
    text: String,
    path: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
    Greater(String),
    Less(String),
}

/// Reads requirements separated by commas; all must hold.
///
/// # Errors
/// Says which one cannot be read.
pub(crate) fn parse(text: &str) -> Result<Vec<Requirement>, String> {
    pieces(text).into_iter().map(|piece| requirement(piece.trim())).collect()
}

/// Splits at commas outside of parentheses.
fn pieces(text: &str) -> Vec<&str> {
    let (mut pieces, mut start, mut depth) = (Vec::new(), 0, 0i32);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                pieces.push(text.get(start..at).unwrap_or_default());
                start = at + 1;
            }
            _ => {}
        }
    }
    pieces.push(text.get(start..).unwrap_or_default());
    pieces.retain(|piece| !piece.trim().is_empty());
    pieces
}

fn requirement(text: &str) -> Result<Requirement, String> {
    let made = |path: &str, test| Requirement { text: text.to_owned(), path: path.trim().to_owned(), test };
    let list = |values: &str| -> Option<Vec<String>> {
        let inner = values.trim().strip_prefix('(')?.strip_suffix(')')?;
        Some(inner.split(',').map(|value| value.trim().to_owned()).collect())
    };
    let bad = || format!("condition '{text}' cannot be read");
    let one = |value: &str| vec![value.trim().to_owned()];
    if let Some((path, values)) = text.split_once(" notin ") {
        return list(values).map(|values| made(path, Test::NotIn(values))).ok_or_else(bad);
    }
    if let Some((path, values)) = text.split_once(" in ") {
        return list(values).map(|values| made(path, Test::In(values))).ok_or_else(bad);
    }
    for (operator, test) in [("!=", Test::NotIn as fn(Vec<String>) -> Test), ("==", Test::In), ("=", Test::In)] {
        if let Some((path, value)) = text.split_once(operator) {
            return Ok(made(path, test(one(value))));
        }
    }
    if let Some((path, value)) = text.split_once('>') {
        return Ok(made(path, Test::Greater(value.trim().to_owned())));
    }
    if let Some((path, value)) = text.split_once('<') {
        return Ok(made(path, Test::Less(value.trim().to_owned())));
    }
    let (path, test) = text.strip_prefix('!').map_or((text, Test::Exists), |path| (path, Test::Absent));
    if path.is_empty() || path.contains(char::is_whitespace) {
        return Err(bad());
    }
    Ok(made(path, test))
}

impl Requirement {
    /// As it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether an object meets it.
    pub(crate) fn holds(&self, object: &Value) -> bool {
        let found = at(object, &self.path).map(print);
        let number = |text: &str| text.parse::<i64>().ok();
        let compared = |limit: &str| Some((number(found.as_deref()?)?, number(limit)?));
        match &self.test {
            Test::In(values) => found.is_some_and(|found| values.contains(&found)),
            Test::NotIn(values) => found.is_none_or(|found| !values.contains(&found)),
            Test::Exists => found.is_some(),
            Test::Absent => found.is_none(),
            Test::Greater(limit) => compared(limit).is_some_and(|(found, limit)| found > limit),
            Test::Less(limit) => compared(limit).is_some_and(|(found, limit)| found < limit),
        }
    }
}

/// The value at a path whose names are separated by dots; numbers are places in lists, a dot in a name is escaped.
fn at<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    let mut value = object;
    for name in path.replace("\\.", "\u{0}").split('.') {
        let name = name.replace('\u{0}', ".");
        value = match value {
            Value::Array(items) => items.get(name.parse::<usize>().ok()?)?,
            other => other.get(&name)?,
        };
    }
    Some(value)
}

/// A value as text: strings as they are, everything else as JSON.
pub(crate) fn print(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conditions_hold_or_not() {
        let object = json!({"status": {"phase": "Running", "ready": true, "n": 3, "list": [{"t": "a"}], "a.b": "c"}});
        for (text, expected) in [
            ("status.phase == Running", true),
            ("status.phase=Running, status.ready = true", true),
            ("status.phase == Running, status.n == 4", false),
            ("status.phase in (Running, Done)", true),
            ("status.phase notin (Running, Done)", false),
            ("status.phase != Done", true),
            ("status.none != Done", true),
            ("status.n > 2, status.n < 4", true),
            ("status.n > 3", false),
            ("status.list.0.t == a", true),
            ("status.a\\.b == c", true),
            ("status.ready", true),
            ("!status.none", true),
            ("!status.ready", false),
        ] {
            let all = parse(text).unwrap().iter().all(|requirement| requirement.holds(&object));
            assert_eq!(all, expected, "{text}");
        }
    }

    #[test]
    fn unreadable_conditions_are_errors() {
        for text in ["a b", "a in b", "!", "x notin (a"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
