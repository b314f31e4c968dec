//! Objects of which only some fields matter.

use std::borrow::Cow;

use kube::api::{ApiResource, ObjectMeta};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The fields of an object that matter, besides its metadata.
pub trait Fields: Sized {
    /// Reads them from the object's JSON. There is no error: one strange object must not stop the watch of all, so what
    /// cannot be read counts as absent.
    fn read(json: Box<RawValue>) -> Self;
}

/// An object of any kind that is never taken apart as a whole: parsed, a large Workflow takes ten times the memory of its
/// JSON.
#[derive(Clone, Debug)]
pub struct Part<F> {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// The other fields that matter.
    pub fields: F,
}

impl<'de, F: Fields> Deserialize<'de> for Part<F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            metadata: ObjectMeta,
        }
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let head: Head = serde_json::from_str(json.get()).map_err(D::Error::custom)?;
        Ok(Self { metadata: head.metadata, fields: F::read(json) })
    }
}

impl<F> kube::Resource for Part<F> {
    type DynamicType = ApiResource;
    type Scope = kube::core::DynamicResourceScope;

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn api_version(resource: &ApiResource) -> Cow<'_, str> {
        resource.api_version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use kube::api::{ObjectList, WatchEvent};

    use super::*;

    const WORKFLOW: &str =
        r#"{"kind":"Workflow","metadata":{"name":"w","labels":{"a":"b"}},"status":{"nodes":{"n":{"x":1.50}}}}"#;

    #[derive(Clone)]
    struct Verbatim(Box<RawValue>);

    impl Fields for Verbatim {
        fn read(json: Box<RawValue>) -> Self {
            Self(json)
        }
    }

    #[test]
    fn watch_events_and_lists_carry_objects_verbatim() {
        let event = format!(r#"{{"type":"MODIFIED","object":{WORKFLOW}}}"#);
        let Ok(WatchEvent::Modified(object)) = serde_json::from_str::<WatchEvent<Part<Verbatim>>>(&event) else {
            panic!()
        };
        assert_eq!(object.fields.0.get(), WORKFLOW);
        assert_eq!(object.metadata.name.as_deref(), Some("w"));
        let list = format!(r#"{{"kind":"WorkflowList","apiVersion":"v1","metadata":{{}},"items":[{WORKFLOW}]}}"#);
        let list: ObjectList<Part<Verbatim>> = serde_json::from_str(&list).unwrap();
        assert_eq!(list.items[0].fields.0.get(), WORKFLOW);
    }
}
