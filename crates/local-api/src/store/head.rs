//! What indexes and selections look at.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::{Selectors, object, selector};

/// Members whose scalar members can be selected by; see [`selector::selectable`].
const SELECTABLE: [&str; 4] = ["spec", "status", "involvedObject", "regarding"];

/// The part of an object that is always in memory, so it is packed: all texts lie in one, one after the other.
#[derive(Debug)]
pub(crate) struct Head {
    text: Box<str>,
    /// Where each text ends: version, namespace, name and uid, owners, labels and fields, the last two as pairs.
    ends: Box<[u32]>,
    owners: u32,
    labels: u32,
    revision: u64,
    deleting: bool,
}

/// Texts before the owners.
const FIXED: usize = 4;

impl Head {
    pub(crate) fn of(object: &Value) -> Self {
        let mut texts: Vec<Cow<'_, str>> = Vec::new();
        let meta = |key| Cow::from(object::meta(object, key).unwrap_or_default());
        let api_version = object["apiVersion"].as_str().unwrap_or_default();
        texts.extend([api_version.into(), meta("namespace"), meta("name"), meta("uid")]);
        texts.extend(object::owner_uids(object).map(Cow::from));
        let owners = texts.len() - FIXED;
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        for (key, value) in labels.filter_map(|(key, value)| Some((key, value.as_str()?))) {
            texts.extend([key.into(), value.into()]);
        }
        let labels = texts.len() - FIXED - owners;
        if has_fields(api_version) {
            for (path, value) in fields(object) {
                texts.extend([path.into(), value.into()]);
            }
        }
        let mut text = String::with_capacity(texts.iter().map(|text| text.len()).sum());
        let ends = texts.iter().map(|part| {
            text.push_str(part);
            short(text.len())
        });
        let ends = ends.collect();
        let revision = object::meta(object, "resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
        let deleting = object::is_deleting(object);
        Self { text: text.into(), ends, owners: short(owners), labels: short(labels), revision, deleting }
    }

    /// The head of an object given as JSON, the rest of which is skipped.
    ///
    /// # Errors
    /// When it is not JSON as far as it is looked at.
    pub(crate) fn parse(json: &str) -> Result<Self, serde_json::Error> {
        let mut members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(json)?;
        let mut object = Map::new();
        for key in ["apiVersion", "metadata"] {
            if let Some(raw) = members.remove(key) {
                object.insert(key.into(), serde_json::from_str(raw.get())?);
            }
        }
        if has_fields(object.get("apiVersion").and_then(Value::as_str).unwrap_or_default()) {
            for (key, raw) in members {
                let raw = raw.get();
                if SELECTABLE.contains(&key.as_ref()) {
                    object.insert(key.into(), scalars(raw)?);
                } else if !raw.starts_with(['{', '[']) {
                    object.insert(key.into(), serde_json::from_str(raw)?);
                }
            }
        }
        Ok(Self::of(&Value::Object(object)))
    }

    fn part(&self, index: usize) -> &str {
        let at = |index: usize| self.ends.get(index).map_or(0, |end| *end as usize);
        let start = index.checked_sub(1).map_or(0, at);
        self.text.get(start..at(index)).unwrap_or_default()
    }

    fn pairs(&self, range: std::ops::Range<usize>) -> impl Iterator<Item = (&str, &str)> {
        range.step_by(2).map(|index| (self.part(index), self.part(index + 1)))
    }

    pub(crate) fn api_version(&self) -> &str {
        self.part(0)
    }

    pub(crate) fn namespace(&self) -> &str {
        self.part(1)
    }

    pub(crate) fn name(&self) -> &str {
        self.part(2)
    }

    pub(crate) fn uid(&self) -> Option<&str> {
        Some(self.part(3)).filter(|uid| !uid.is_empty())
    }

    /// The resourceVersion.
    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether the object waits for its deletion.
    pub(crate) fn is_deleting(&self) -> bool {
        self.deleting
    }

    /// The uids of the owners.
    pub(crate) fn owners(&self) -> impl Iterator<Item = &str> {
        (FIXED..FIXED + self.owners as usize).map(|index| self.part(index))
    }

    pub(crate) fn label(&self, key: &str) -> Option<&str> {
        let start = FIXED + self.owners as usize;
        self.pairs(start..start + self.labels as usize).find(|(k, _)| *k == key).map(|(_, value)| value)
    }

    /// A field that can be selected by; empty when there is none.
    pub(crate) fn field(&self, path: &str) -> &str {
        match path {
            "metadata.name" => self.name(),
            "metadata.namespace" => self.namespace(),
            _ => {
                let start = FIXED + self.owners as usize + self.labels as usize;
                self.pairs(start..self.ends.len()).find(|(p, _)| *p == path).map_or("", |(_, value)| value)
            }
        }
    }

    /// Whether the object is selected.
    pub(crate) fn matches(&self, selectors: &Selectors) -> bool {
        selectors.matches_parts(|key| self.label(key), |path| self.field(path).to_string())
    }
}

/// Objects are far smaller than this; see the limit on request bodies.
fn short(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Whether objects can be selected by more than their names: those of Kubernetes' own types.
fn has_fields(api_version: &str) -> bool {
    api_version.split_once('/').is_none_or(|(group, _)| !group.contains('.') || group.ends_with(".k8s.io"))
}

/// The fields by which an object can be selected, besides its name and namespace.
fn fields(object: &Value) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut take = |path: String, value: &Value| {
        if selector::selectable(&path) {
            let text = selector::scalar(value);
            if !text.is_empty() {
                found.push((path, text));
            }
        }
    };
    for (key, value) in object.as_object().into_iter().flatten() {
        match value {
            Value::Object(members) if SELECTABLE.contains(&key.as_str()) => {
                members.iter().for_each(|(name, value)| take(format!("{key}.{name}"), value));
            }
            _ => take(key.clone(), value),
        }
    }
    found
}

/// A map's members that are neither maps nor lists.
fn scalars(json: &str) -> Result<Value, serde_json::Error> {
    if !json.starts_with('{') {
        return Ok(Value::Null);
    }
    let members: BTreeMap<Cow<'_, str>, &RawValue> = serde_json::from_str(json)?;
    let scalars = members.into_iter().filter(|(_, raw)| !raw.get().starts_with(['{', '[']));
    let parse = |(key, raw): (Cow<'_, str>, &RawValue)| Ok((key.into_owned(), serde_json::from_str(raw.get())?));
    scalars.map(parse).collect::<Result<Map<_, _>, _>>().map(Value::Object)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": "17", "labels": {"l": "1", "k\"é": ""},
                "ownerReferences": [{"uid": "o1"}, {"uid": "o2"}]},
            "spec": {"nodeName": "node", "containers": [{"name": "c"}]},
            "status": {"phase": "Running", "conditions": [], "message": "not selectable"},
        })
    }

    #[test]
    fn a_head_is_the_same_from_text_and_from_the_parsed_object() {
        for head in [Head::of(&pod()), Head::parse(&pod().to_string()).unwrap()] {
            assert_eq!((head.api_version(), head.namespace(), head.name()), ("v1", "n", "a"));
            assert_eq!((head.uid(), head.revision(), head.is_deleting()), (Some("u"), 17, false));
            assert_eq!(head.owners().collect::<Vec<_>>(), ["o1", "o2"]);
            assert_eq!((head.label("l"), head.label("k\"é"), head.label("m")), (Some("1"), Some(""), None));
            for (path, value) in [
                ("metadata.name", "a"),
                ("spec.nodeName", "node"),
                ("status.phase", "Running"),
                ("status.message", ""),
                ("spec.containers", ""),
            ] {
                assert_eq!(head.field(path), value, "{path}");
            }
        }
    }

    #[test]
    fn an_object_with_a_time_of_deletion_is_being_deleted() {
        let object = json!({"metadata": {"name": "w", "deletionTimestamp": "2026-01-01T00:00:00Z"}});
        for head in [Head::of(&object), Head::parse(&object.to_string()).unwrap()] {
            assert!(head.is_deleting());
        }
    }

    #[test]
    fn custom_objects_are_selected_by_name_only() {
        let object = json!({"apiVersion": "argoproj.io/v1alpha1", "metadata": {"name": "w"}, "status": {"phase": "x"}});
        for head in [Head::of(&object), Head::parse(&object.to_string()).unwrap()] {
            assert_eq!((head.field("status.phase"), head.field("metadata.name"), head.uid()), ("", "w", None));
        }
    }

    #[test]
    fn events_are_selected_by_what_they_are_about() {
        let event = json!({"apiVersion": "events.k8s.io/v1", "metadata": {"name": "e"}, "reason": "Started",
            "regarding": {"kind": "Pod", "name": "p"}, "note": "text"});
        for head in [Head::of(&event), Head::parse(&event.to_string()).unwrap()] {
            assert_eq!((head.field("regarding.name"), head.field("reason"), head.field("note")), ("p", "Started", ""));
        }
    }

    #[test]
    fn objects_without_anything_have_a_head_and_broken_text_has_none() {
        let head = Head::parse("{}").unwrap();
        assert_eq!((head.name(), head.uid(), head.owners().count(), head.revision()), ("", None, 0, 0));
        assert!(Head::parse("[]").is_err() && Head::parse("{\"metadata\": {").is_err());
    }
}
