//! Label and field selectors.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::ApiError;

/// Which objects a list, a watch or a collection delete is about. The default selects all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selectors {
    labels: Vec<Requirement>,
    fields: Vec<FieldRequirement>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    In(BTreeSet<String>),
    /// Also true when the label is missing, as in Kubernetes.
    NotIn(BTreeSet<String>),
    Exists,
    Missing,
    Greater(i64),
    Less(i64),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct FieldRequirement {
    path: String,
    equal: bool,
    value: String,
}

impl Selectors {
    /// Parses `labelSelector` and `fieldSelector` as in query strings; empty texts select all.
    ///
    /// # Errors
    /// 400 with the place when a text cannot be parsed or a field is not selectable.
    pub fn parse(labels: &str, fields: &str) -> Result<Self, ApiError> {
        Ok(Self { labels: parse_labels(labels)?, fields: parse_fields(fields)? })
    }

    /// Objects that have all of these labels.
    pub fn labels<K: Into<String>, V: Into<String>>(labels: impl IntoIterator<Item = (K, V)>) -> Self {
        let labels = labels
            .into_iter()
            .map(|(key, value)| Requirement { key: key.into(), test: Test::In(BTreeSet::from([value.into()])) })
            .collect();
        Self { labels, fields: Vec::new() }
    }

    /// The one object of this name (`metadata.name=NAME`).
    pub fn name(name: impl Into<String>) -> Self {
        let field = FieldRequirement { path: "metadata.name".into(), equal: true, value: name.into() };
        Self { labels: Vec::new(), fields: vec![field] }
    }

    /// Adds the requirements of `other`.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.labels.extend(other.labels);
        self.fields.extend(other.fields);
        self
    }

    /// Whether everything is selected.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether an object is selected.
    pub fn matches(&self, object: &Value) -> bool {
        let labels = &object["metadata"]["labels"];
        self.matches_parts(|key| labels.get(key).and_then(Value::as_str), |path| field(object, path))
    }

    /// Whether an object with these labels and fields is selected.
    pub(crate) fn matches_parts<'a>(
        &self,
        label: impl Fn(&str) -> Option<&'a str>,
        field: impl Fn(&str) -> String,
    ) -> bool {
        self.labels.iter().all(|r| r.matches(label(&r.key)))
            && self.fields.iter().all(|f| (field(&f.path) == f.value) == f.equal)
    }
}

/// A field as selectors see it; empty when there is none.
fn field(object: &Value, path: &str) -> String {
    path.split('.').try_fold(object, |value, key| value.get(key)).map(scalar).unwrap_or_default()
}

/// A value as selectors see it; empty for what is no scalar.
pub(crate) fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        _ => String::new(),
    }
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.test {
            Test::In(set) => value.is_some_and(|v| set.contains(v)),
            Test::NotIn(set) => value.is_none_or(|v| !set.contains(v)),
            Test::Exists => value.is_some(),
            Test::Missing => value.is_none(),
            Test::Greater(bound) => number().is_some_and(|n| n > *bound),
            Test::Less(bound) => number().is_some_and(|n| n < *bound),
        }
    }
}

/// Splits at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn parse_labels(text: &str) -> Result<Vec<Requirement>, ApiError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    split(text).into_iter().map(|part| parse_label(part.trim(), text)).collect()
}

fn parse_label(part: &str, whole: &str) -> Result<Requirement, ApiError> {
    let bad = |why: &str| {
        ApiError::bad_request(format!("unable to parse requirement: {why} in \"{part}\" of labelSelector \"{whole}\""))
    };
    let requirement = |key: &str, test: Test| {
        let key = key.trim();
        if valid_key(key) {
            Ok(Requirement { key: key.to_string(), test })
        } else {
            Err(bad(&format!("\"{key}\" is not a label key")))
        }
    };
    let value = |text: &str| {
        let text = text.trim();
        if valid_value(text) { Ok(text.to_string()) } else { Err(bad(&format!("\"{text}\" is not a label value"))) }
    };
    if let Some(open) = part.find('(') {
        let Some(list) = part[open + 1..].strip_suffix(')') else { return Err(bad("\")\" expected")) };
        let mut words = part[..open].split_whitespace();
        let (Some(key), Some(operator), None) = (words.next(), words.next(), words.next()) else {
            return Err(bad("\"KEY in (...)\" or \"KEY notin (...)\" expected"));
        };
        let set = list.split(',').map(value).collect::<Result<BTreeSet<_>, _>>()?;
        return match operator {
            "in" => requirement(key, Test::In(set)),
            "notin" => requirement(key, Test::NotIn(set)),
            other => Err(bad(&format!("unknown operator \"{other}\""))),
        };
    }
    if let Some((key, v)) = part.split_once("!=") {
        return requirement(key, Test::NotIn(BTreeSet::from([value(v)?])));
    }
    if let Some((key, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return requirement(key, Test::In(BTreeSet::from([value(v)?])));
    }
    let number = |v: &str| v.trim().parse::<i64>().map_err(|_| bad("an integer is expected"));
    if let Some((key, v)) = part.split_once('>') {
        return requirement(key, Test::Greater(number(v)?));
    }
    if let Some((key, v)) = part.split_once('<') {
        return requirement(key, Test::Less(number(v)?));
    }
    match part.strip_prefix('!') {
        Some(key) => requirement(key, Test::Missing),
        None => requirement(part, Test::Exists),
    }
}

/// Whether a label may be stored; the message says what is wrong.
pub(crate) fn check_label(key: &str, value: &str) -> Result<(), String> {
    if !valid_key(key) {
        return Err(format!(
            "Invalid value: \"{key}\": a label key is an optional DNS prefix and '/' and a name of at most 63 letters, digits, '-', '_' or '.'"
        ));
    }
    if !valid_value(value) {
        return Err(format!(
            "Invalid value: \"{value}\": a label value is at most 63 letters, digits, '-', '_' or '.', starting and ending with a letter or digit"
        ));
    }
    Ok(())
}

fn valid_value(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.is_empty()
        || (text.len() <= 63
            && text.starts_with(edge)
            && text.ends_with(edge)
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)))
}

fn valid_key(text: &str) -> bool {
    let name = match text.split_once('/') {
        Some((prefix, name)) => {
            let host = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            if prefix.is_empty() || prefix.len() > 253 || !prefix.chars().all(host) {
                return false;
            }
            name
        }
        None => text,
    };
    !name.is_empty() && valid_value(name)
}

/// Fields Kubernetes lets one select by, over all kinds served here.
pub(crate) fn selectable(path: &str) -> bool {
    const FIELDS: &[&str] = &[
        "metadata.name",
        "metadata.namespace",
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.unschedulable",
        "status.phase",
        "status.podIP",
        "status.nominatedNodeName",
        "status.successful",
        "reason",
        "type",
        "source",
        "reportingComponent",
        "reportingController",
    ];
    FIELDS.contains(&path) || path.starts_with("involvedObject.") || path.starts_with("regarding.")
}

fn parse_fields(text: &str) -> Result<Vec<FieldRequirement>, ApiError> {
    let mut fields = Vec::new();
    for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
        let (path, equal, value) = if let Some((path, value)) = part.split_once("!=") {
            (path, false, value)
        } else if let Some((path, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
            (path, true, value)
        } else {
            return Err(ApiError::bad_request(format!(
                "invalid field selector \"{text}\": \"{part}\" is not PATH=VALUE or PATH!=VALUE"
            )));
        };
        let path = path.trim();
        if !selectable(path) {
            return Err(ApiError::bad_request(format!("field label not supported: {path}")));
        }
        fields.push(FieldRequirement { path: path.to_string(), equal, value: value.trim().to_string() });
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn label_selectors_follow_kubernetes() {
        let pod = json!({"metadata": {"labels": {"app": "web", "tier": "1", "x.io/done": ""}}});
        for (selector, expected) in [
            ("", true),
            ("app", true),
            ("app=web", true),
            ("app==web,tier=1", true),
            ("app=web,tier=2", false),
            ("app in (db, web)", true),
            ("app notin (db,web)", false),
            ("missing notin (a)", true),
            ("missing!=a", true),
            ("!missing", true),
            ("!app", false),
            ("missing", false),
            ("x.io/done=", true),
            ("tier>0", true),
            ("tier<1", false),
            ("app in (web),tier notin (2),x.io/done", true),
        ] {
            let parsed = Selectors::parse(selector, "").unwrap();
            assert_eq!(parsed.matches(&pod), expected, "{selector}");
        }
    }

    #[test]
    fn broken_selectors_are_named() {
        for text in ["app in web", "app in (web", "=x", "a b", "app=w eb", "app near (a)", "tier>x", "a//b"] {
            let error = Selectors::parse(text, "").unwrap_err();
            assert_eq!(error.code, 400, "{text}");
            assert!(error.message.contains(text), "{error}");
        }
        assert_eq!(Selectors::parse("", "spec.foo=1").unwrap_err().message, "field label not supported: spec.foo");
        assert!(Selectors::parse("", "metadata.name").is_err());
    }

    #[test]
    fn field_selectors_treat_missing_as_empty() {
        let pod = json!({"metadata": {"name": "a", "namespace": "n"}, "status": {"phase": "Running"}, "spec": {}});
        for (selector, expected) in [
            ("metadata.name=a,metadata.namespace=n", true),
            ("status.phase!=Running", false),
            ("spec.nodeName=", true),
            ("spec.nodeName!=x", true),
            ("status.phase==Running", true),
        ] {
            assert_eq!(Selectors::parse("", selector).unwrap().matches(&pod), expected, "{selector}");
        }
    }
}
