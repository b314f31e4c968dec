//! An object as it is kept.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde_json::Value;

use super::bodies::Bodies;
use super::head::Head;
use super::state::TableKey;
use crate::{ApiError, Selectors};

/// The JSON of an object.
pub type Json = Arc<Box<str>>;

/// One version of an object: its head, and its JSON where that is in memory.
///
/// What is committed and current is read back from the database on demand. So that this gives the version that was
/// asked for, the writer takes a version into memory for good ([`Stored::pin`]) before it commits the next one; who
/// still has it, like the history, reads on as before.
///
/// The parsed form takes about ten times the memory of the JSON, so it exists only while somebody uses it or while
/// the object is among the latest few.
#[derive(Debug)]
pub(crate) struct Stored {
    head: Arc<Head>,
    size: usize,
    body: Mutex<Body>,
}

#[derive(Debug)]
struct Body {
    text: Text,
    parsed: Weak<Value>,
}

#[derive(Debug)]
enum Text {
    Held(Json),
    /// In the database, and perhaps still in memory.
    Stored {
        recent: Weak<Box<str>>,
        table: TableKey,
        bodies: Arc<Bodies>,
    },
}

impl Stored {
    /// Keeps an object that is in use in its parsed form.
    pub(crate) fn new(object: &Arc<Value>) -> Self {
        let stored = Self::with(object.to_string().into(), Head::of(object));
        stored.body().parsed = Arc::downgrade(object);
        stored
    }

    /// Keeps an object given as JSON, of which only the head is parsed.
    ///
    /// # Errors
    /// When it is not JSON.
    pub(crate) fn parse(json: impl Into<Box<str>>) -> Result<Self, serde_json::Error> {
        let json = json.into();
        let head = Head::parse(&json)?;
        Ok(Self::with(json, head))
    }

    fn with(json: Box<str>, head: Head) -> Self {
        let size = json.len();
        let text = Text::Held(Arc::new(json));
        Self { head: Arc::new(head), size, body: Mutex::new(Body { text, parsed: Weak::new() }) }
    }

    fn body(&self) -> MutexGuard<'_, Body> {
        self.body.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the JSON, which is in the database now, and gives it to who wants to hold it for a while.
    pub(crate) fn release(&self, table: TableKey, bodies: &Arc<Bodies>) -> Option<Json> {
        let mut body = self.body();
        let Text::Held(json) = &body.text else { return None };
        let json = json.clone();
        body.text = Text::Stored { recent: Arc::downgrade(&json), table, bodies: bodies.clone() };
        Some(json)
    }

    /// Takes the JSON into memory for good, before the database has another one.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn pin(&self) -> Result<(), ApiError> {
        let mut body = self.body();
        let json = self.read(&mut body)?;
        body.text = Text::Held(json);
        Ok(())
    }

    /// Reads under the body's lock: a [pin](Stored::pin), and with it the next version, waits for that.
    fn read(&self, body: &mut Body) -> Result<Json, ApiError> {
        match &mut body.text {
            Text::Held(json) => Ok(json.clone()),
            Text::Stored { recent, table, bodies } => {
                if let Some(json) = recent.upgrade() {
                    return Ok(json);
                }
                let (table, namespace, name) = (*table, self.head.namespace(), self.head.name());
                let json = bodies.read(table, namespace, name).map_err(|error| {
                    tracing::error!(group = table.0, plural = table.1, namespace, name, %error, "reading an object");
                    ApiError::internal(format!("cannot read {} \"{name}\": {error}", table.1))
                })?;
                *recent = Arc::downgrade(&json);
                Ok(json)
            }
        }
    }

    /// The JSON.
    ///
    /// # Errors
    /// 500 when it cannot be read.
    pub(crate) fn json(&self) -> Result<Json, ApiError> {
        self.read(&mut self.body())
    }

    /// The parsed form, shared by all who use it at the same time.
    ///
    /// # Errors
    /// 500 when it cannot be read.
    pub(crate) fn object(&self) -> Result<Arc<Value>, ApiError> {
        let mut body = self.body();
        if let Some(object) = body.parsed.upgrade() {
            return Ok(object);
        }
        let json = self.read(&mut body)?;
        let object = Arc::new(serde_json::from_str(&json).map_err(|error| self.unreadable(&error))?);
        body.parsed = Arc::downgrade(&object);
        Ok(object)
    }

    /// The metadata, without parsing the rest for good.
    ///
    /// # Errors
    /// 500 when it cannot be read.
    pub(crate) fn metadata(&self) -> Result<Value, ApiError> {
        #[derive(serde::Deserialize)]
        struct Object {
            #[serde(default)]
            metadata: Value,
        }
        let object: Object = serde_json::from_str(&self.json()?).map_err(|error| self.unreadable(&error))?;
        Ok(object.metadata)
    }

    fn unreadable(&self, error: &serde_json::Error) -> ApiError {
        let name = self.head.name();
        tracing::error!(name, %error, "a stored object cannot be read");
        ApiError::internal(format!("stored object \"{name}\" cannot be read: {error}"))
    }

    pub(crate) fn head(&self) -> &Arc<Head> {
        &self.head
    }

    /// Bytes of JSON.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// Whether the object is selected.
    pub(crate) fn matches(&self, selectors: &Selectors) -> bool {
        self.head.matches(selectors)
    }

    /// Whether anybody holds the parsed form.
    #[cfg(test)]
    pub(crate) fn is_parsed(&self) -> bool {
        self.body().parsed.strong_count() > 0
    }

    /// Whether the JSON is in memory.
    #[cfg(test)]
    pub(crate) fn is_in_memory(&self) -> bool {
        match &self.body().text {
            Text::Held(_) => true,
            Text::Stored { recent, .. } => recent.strong_count() > 0,
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
        assert!(Arc::ptr_eq(&stored.object().unwrap(), &value));
        drop(value);
        assert!(!stored.is_parsed());
        let again = stored.object().unwrap();
        assert_eq!(again["data"]["k"], "xxxxxxxxxx");
        assert!(Arc::ptr_eq(&stored.object().unwrap(), &again));
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
}
