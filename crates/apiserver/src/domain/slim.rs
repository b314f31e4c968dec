//! Reading a reported Workflow without what nobody looks at.
//!
//! Parsed whole, a Workflow takes ten times the memory of its JSON, most of it for inputs and outputs of nodes.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::reuse;

/// Members of a node that the API server uses.
const NODE: &[&str] = &[
    "id",
    "name",
    "displayName",
    "type",
    "phase",
    "message",
    "templateName",
    "templateRef",
    "startedAt",
    "finishedAt",
    "children",
    "boundaryID",
    "inputs",
    "outputs",
];
/// Members of inputs and outputs that the API server uses, and which of the parameters.
const EXCHANGED: &[&str] = &["parameters"];
const PARAMETERS: &[&str] = &[reuse::TASK, reuse::DECISION, reuse::CONDITION];

/// Where in the Workflow a value stands.
#[derive(Clone, Copy)]
enum Place {
    Workflow,
    Status,
    Nodes,
    Node,
    Exchanged,
    Parameters,
}

impl Place {
    /// What becomes of a member.
    fn member(self, key: &str) -> Member {
        match self {
            Place::Workflow if key == "status" => Member::Inside(Place::Status),
            Place::Status if key == "nodes" => Member::Inside(Place::Nodes),
            Place::Status if key == "storedTemplates" => Member::Dropped,
            Place::Nodes => Member::Inside(Place::Node),
            Place::Node if key == "inputs" || key == "outputs" => Member::Inside(Place::Exchanged),
            Place::Node if !NODE.contains(&key) => Member::Dropped,
            Place::Exchanged if EXCHANGED.contains(&key) => Member::Inside(Place::Parameters),
            Place::Exchanged => Member::Dropped,
            _ => Member::Kept,
        }
    }
}

enum Member {
    Kept,
    Dropped,
    Inside(Place),
}

impl<'de> DeserializeSeed<'de> for Place {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Place::Workflow => "a Workflow",
            Place::Status => "the status of a Workflow",
            Place::Nodes => "a map of nodes",
            Place::Node => "a node",
            Place::Exchanged => "the inputs or outputs of a node",
            Place::Parameters => "a list of parameters",
        })
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        if !matches!(self, Place::Parameters) {
            return Err(serde::de::Error::invalid_type(serde::de::Unexpected::Seq, &self));
        }
        let mut kept = Vec::new();
        while let Some(item) = items.next_element::<Value>()? {
            if item["name"].as_str().is_some_and(|name| PARAMETERS.contains(&name)) {
                kept.push(item);
            }
        }
        Ok(Value::Array(kept))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut kept = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            match self.member(&key) {
                Member::Kept => drop(kept.insert(key, members.next_value()?)),
                Member::Inside(place) => drop(kept.insert(key, members.next_value_seed(place)?)),
                Member::Dropped => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(kept))
    }
}

/// A Workflow without those members of its nodes that the API server does not use. Not for writing back.
///
/// # Errors
/// When the text is not JSON or not shaped like a Workflow.
pub fn workflow(json: &str) -> Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let workflow = Place::Workflow.deserialize(&mut reader)?;
    reader.end()?;
    Ok(workflow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_unused_members_of_nodes_are_dropped() {
        let whole = json!({
            "metadata": {"name": "w", "annotations": {"inputs": "kept"}},
            "spec": {"templates": [{"inputs": {}}]},
            "status": {
                "phase": "Running", "storedTemplates": {"a": {}}, "conditions": [{"type": "PodRunning"}],
                "nodes": {"n": {"id": "n", "phase": "Failed", "children": ["m"], "resourcesDuration": {"cpu": 1},
                                "inputs": {"parameters": [{"name": "component", "value": "long"}, {"name": "task"}]},
                                "outputs": {"exitCode": "0", "parameters": null}}, "m": null},
            },
        });
        let mut expected = whole.clone();
        expected["status"].as_object_mut().unwrap().remove("storedTemplates");
        let node = &mut expected["status"]["nodes"]["n"];
        node.as_object_mut().unwrap().remove("resourcesDuration");
        node["inputs"]["parameters"].as_array_mut().unwrap().remove(0);
        node["outputs"].as_object_mut().unwrap().remove("exitCode");
        assert_eq!(workflow(&whole.to_string()).unwrap(), expected);
        let tasks = |workflow: &Value| crate::domain::nodes::tasks(workflow, "r");
        assert_eq!(tasks(&workflow(&whole.to_string()).unwrap()), tasks(&whole));
    }

    #[test]
    fn what_is_no_workflow_is_refused() {
        for (text, expected) in [
            ("{", "EOF"),
            ("[]", "expected a Workflow"),
            (r#"{"status":1}"#, "expected the status"),
            (r#"{"status":{"nodes":[]}}"#, "expected a map of nodes"),
            ("{} x", "trailing"),
        ] {
            let error = workflow(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert_eq!(workflow(r#"{"status":null}"#).unwrap(), json!({"status": null}));
    }
}
