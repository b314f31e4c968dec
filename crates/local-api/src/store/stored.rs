//! An object as it is kept.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::Value;

use crate::{Selectors, object};

/// An object as it is kept: its JSON and what indexes and selections look at. The parsed form takes
/// about ten times the memory of the JSON, so it exists only while somebody uses it or while the
/// object is among the latest few ([`Recent`]).
#[derive(Debug)]
pub(crate) struct Stored {
    json: Box<str>,
    api_version: Box<str>,
    namespace: Box<str>,
    name: Box<str>,
    uid: Option<Box<str>>,
    owners: Box<[Box<str>]>,
    labels: Box<[(Box<str>, Box<str>)]>,
    parsed: Mutex<Weak<Value>>,
}

impl Stored {
    /// Keeps an object that is in use in its parsed form.
    pub(crate) fn new(object: &Arc<Value>) -> Self {
        let stored = Self::with(object.to_string().into(), object);
        *stored.parsed.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(object);
        stored
    }

    /// Keeps an object given as JSON, of which only the head is parsed.
    ///
    /// # Errors
    /// When it is not JSON.
    pub(crate) fn parse(json: impl Into<Box<str>>) -> Result<Self, serde_json::Error> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            #[serde(default)]
            api_version: Value,
            #[serde(default)]
            metadata: Value,
        }
        let json = json.into();
        let Head { api_version, metadata } = serde_json::from_str(&json)?;
        Ok(Self::with(json, &serde_json::json!({"apiVersion": api_version, "metadata": metadata})))
    }

    fn with(json: Box<str>, object: &Value) -> Self {
        let meta = |key| object::meta(object, key).unwrap_or_default().into();
        let labels = object["metadata"]["labels"].as_object().into_iter().flatten();
        Self {
            json,
            api_version: object["apiVersion"].as_str().unwrap_or_default().into(),
            namespace: meta("namespace"),
            name: meta("name"),
            uid: object::uid(object).map(Into::into),
            owners: object::owner_uids(object).map(Into::into).collect(),
            labels: labels.filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into()))).collect(),
            parsed: Mutex::default(),
        }
    }

    /// The parsed form, shared by all who use it at the same time.
    pub(crate) fn object(&self) -> Arc<Value> {
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(object) = parsed.upgrade() {
            return object;
        }
        let object = Arc::new(serde_json::from_str(&self.json).unwrap_or_else(|error| {
            tracing::error!(name = %self.name, %error, "a stored object cannot be read");
            Value::Null
        }));
        *parsed = Arc::downgrade(&object);
        object
    }

    /// The metadata, without parsing the rest for good.
    pub(crate) fn metadata(&self) -> Value {
        #[derive(serde::Deserialize)]
        struct Head {
            #[serde(default)]
            metadata: Value,
        }
        serde_json::from_str::<Head>(&self.json).map(|head| head.metadata).unwrap_or_default()
    }

    pub(crate) fn json(&self) -> &str {
        &self.json
    }

    pub(crate) fn api_version(&self) -> &str {
        &self.api_version
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn uid(&self) -> Option<&str> {
        self.uid.as_deref()
    }

    pub(crate) fn owners(&self) -> impl Iterator<Item = &str> {
        self.owners.iter().map(AsRef::as_ref)
    }

    /// Whether the object is selected. Parses it only for fields that are rarely asked for.
    pub(crate) fn matches(&self, selectors: &Selectors) -> bool {
        let label = |key: &str| self.labels.iter().find(|(k, _)| **k == *key).map(|(_, value)| value.as_ref());
        selectors.matches_parts(label, |path| match path {
            "metadata.name" => self.name.to_string(),
            "metadata.namespace" => self.namespace.to_string(),
            other => crate::selector::field(&self.object(), other),
        })
    }

    /// Whether anybody holds the parsed form.
    #[cfg(test)]
    pub(crate) fn is_parsed(&self) -> bool {
        self.parsed.lock().unwrap().strong_count() > 0
    }
}

/// Parsed forms of the latest objects, which are likely to be read and changed again soon.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    objects: std::collections::VecDeque<(Arc<Value>, usize)>,
    bytes: usize,
}

impl Recent {
    /// Most JSON bytes of objects held parsed.
    pub(crate) const MAX_BYTES: usize = 512 << 10;
    /// Larger objects are not held: one of them would displace all others.
    pub(crate) const MAX_OBJECT: usize = 128 << 10;

    /// Holds one more object, of that many bytes of JSON, and lets go of the oldest.
    pub(crate) fn hold(&mut self, object: Arc<Value>, size: usize) {
        if size > Self::MAX_OBJECT {
            return;
        }
        self.bytes += size;
        self.objects.push_back((object, size));
        while self.bytes > Self::MAX_BYTES {
            let Some((_, size)) = self.objects.pop_front() else { break };
            self.bytes -= size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(name: &str, size: usize) -> Arc<Value> {
        Arc::new(json!({
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "x".repeat(size)},
            "metadata": {"name": name, "namespace": "n", "labels": {"a": "b"}, "uid": "u"},
        }))
    }

    #[test]
    fn the_parsed_form_lives_only_while_it_is_used() {
        let value = object("a", 10);
        let stored = Stored::new(&value);
        assert!(Arc::ptr_eq(&stored.object(), &value));
        drop(value);
        assert!(!stored.is_parsed());
        let again = stored.object();
        assert_eq!(again["data"]["k"], "xxxxxxxxxx");
        assert!(Arc::ptr_eq(&stored.object(), &again));
    }

    #[test]
    fn selections_do_not_parse() {
        let stored = Stored::new(&object("a", 10));
        for (labels, fields, expected) in [
            ("a=b", "", true),
            ("a=c", "", false),
            ("", "metadata.name=a", true),
            ("!a", "metadata.namespace=n", false),
        ] {
            let selectors = Selectors::parse(labels, fields).unwrap();
            assert_eq!(stored.matches(&selectors), expected, "{labels} {fields}");
            assert_eq!(selectors.matches(&object("a", 10)), expected);
        }
        assert!(!stored.is_parsed());
    }

    #[test]
    fn recent_objects_are_bounded_by_bytes() {
        let mut recent = Recent::default();
        for round in 0..200 {
            recent.hold(object(&round.to_string(), 1), 100 << 10);
        }
        assert_eq!(recent.objects.len(), Recent::MAX_BYTES / (100 << 10));
        let large = object("large", 1);
        recent.hold(large.clone(), Recent::MAX_OBJECT + 1);
        assert_eq!(Arc::strong_count(&large), 1);
    }
}
