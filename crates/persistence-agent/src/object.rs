//! An object as it travels through the agent: its JSON, and the little of it that decides what to do.

use std::borrow::Cow;

use kube::api::{ApiResource, ObjectMeta};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// An object of any kind. It is reported as it was received, so it is never taken apart: parsed whole, a large
/// Workflow takes ten times the memory of its JSON.
#[derive(Clone, Debug)]
pub struct Object {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// `status.finishedAt`, empty if there is none.
    pub finished_at: String,
    json: Box<RawValue>,
}

impl Object {
    /// The object as it was received.
    #[must_use]
    pub fn json(&self) -> &str {
        self.json.get()
    }
}

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Status {
            finished_at: Option<String>,
        }
        #[derive(Deserialize)]
        struct Head {
            #[serde(default)]
            metadata: ObjectMeta,
            status: Option<Status>,
        }
        let json = Box::<RawValue>::deserialize(deserializer)?;
        let head: Head = serde_json::from_str(json.get()).map_err(D::Error::custom)?;
        let finished_at = head.status.and_then(|status| status.finished_at).unwrap_or_default();
        Ok(Self { metadata: head.metadata, finished_at, json })
    }
}

impl kube::Resource for Object {
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
    use super::*;
    use kube::api::{ObjectList, WatchEvent};

    const WORKFLOW: &str = r#"{"kind":"Workflow","metadata":{"name":"w","labels":{"a":"b"}},"status":{"finishedAt":null,"nodes":{"n":{"x":1.50}}}}"#;

    #[test]
    fn watch_events_and_lists_carry_objects_verbatim() {
        let event = format!(r#"{{"type":"MODIFIED","object":{WORKFLOW}}}"#);
        let Ok(WatchEvent::Modified(object)) = serde_json::from_str::<WatchEvent<Object>>(&event) else { panic!() };
        assert_eq!(object.json(), WORKFLOW);
        assert_eq!((object.metadata.name.as_deref(), object.finished_at.as_str()), (Some("w"), ""));
        let list = format!(r#"{{"kind":"WorkflowList","apiVersion":"v1","metadata":{{}},"items":[{WORKFLOW}]}}"#);
        let list: ObjectList<Object> = serde_json::from_str(&list).unwrap();
        assert_eq!(list.items[0].json(), WORKFLOW);
    }

    #[test]
    fn the_time_of_the_end_is_read() {
        let object: Object =
            serde_json::from_str(r#"{"metadata":{},"status":{"finishedAt":"2026-01-01T00:00:00Z"}}"#).unwrap();
        assert_eq!(object.finished_at, "2026-01-01T00:00:00Z");
    }
}
