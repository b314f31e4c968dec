//! Why the outputs of a task were or were not taken from an earlier execution, as far as its Workflow tells.
//!
//! The driver alone knows all of it and writes it into the execution's `cache_decision`.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

use super::nodes::{self, text};

/// Input of a container driver: the task, in JSON.
pub const TASK: &str = "task";
/// Output of a container driver: whether the task is taken from the cache.
pub const DECISION: &str = "cached-decision";
/// Output of a driver: whether the task is wanted at all.
pub const CONDITION: &str = "condition";

const REUSED: &str = "cached: the outputs of an earlier execution were reused";
const OFF: &str = "not cached: caching is off for all tasks";
const OFF_HERE: &str = "not cached: caching is off for this task";
const NOTHING: &str = "not cached: no earlier execution could be reused; cache_decision of the execution says why";

fn parameter<'a>(node: &'a Value, direction: &str, name: &str) -> Option<&'a str> {
    let parameters = node[direction]["parameters"].as_array()?;
    parameters.iter().find(|parameter| parameter["name"] == name)?["value"].as_str()
}

/// Templates whose driver is told not to use the cache.
fn switched_off(workflow: &Value) -> HashSet<&str> {
    let templates = workflow["spec"]["templates"].as_array().into_iter().flatten();
    let told = |template: &&Value| {
        let args = template["container"]["args"].as_array().into_iter().flatten();
        args.filter_map(Value::as_str).any(|arg| matches!(arg, "--cache_disabled" | "--cache_disabled=true"))
    };
    templates.filter(told).map(|template| text(template, "/name")).collect()
}

fn of_driver(node: &Value, off: &HashSet<&str>) -> Option<&'static str> {
    if text(node, "/type") != "Pod" || text(node, "/phase") != "Succeeded" {
        return None;
    }
    let decision = parameter(node, "outputs", DECISION)?;
    if parameter(node, "outputs", CONDITION) == Some("false") {
        return None;
    }
    let task = parameter(node, "inputs", TASK)?;
    Some(match decision {
        "true" => REUSED,
        _ if off.contains(text(node, "/templateName")) => OFF,
        // Quotes within texts of the task are escaped, so this is the option.
        _ if !task.contains(r#""enableCache":true"#) => OFF_HERE,
        _ => NOTHING,
    })
}

/// What is to be said about the nodes of container tasks: of the driver, the task itself, and its pod. By node id.
#[must_use]
pub fn notes(workflow: &Value) -> HashMap<&str, &'static str> {
    let off = switched_off(workflow);
    let mut notes = HashMap::new();
    let all = nodes::nodes(workflow);
    for node in &all {
        let Some(note) = of_driver(node, &off) else { continue };
        let children = node["children"].as_array().into_iter().flatten();
        notes.extend(children.filter_map(Value::as_str).chain([text(node, "/id")]).map(|id| (id, note)));
    }
    let inside = |node| Some((text(node, "/id"), *notes.get(text(node, "/boundaryID"))?));
    let inner: Vec<_> = all.into_iter().filter_map(inside).collect();
    notes.extend(inner);
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workflow(decision: &str, condition: &str, options: &Value, flag: &str) -> Value {
        let task = json!({"cachingOptions": options}).to_string();
        json!({
            "spec": {"templates": [{"name": "driver", "container": {"args": ["--task", "x", flag]}}]},
            "status": {"nodes": {
                "w-1": {"id": "w-1", "type": "Pod", "phase": "Succeeded", "templateName": "driver", "children": ["w-2"],
                    "inputs": {"parameters": [{"name": "task", "value": task}]},
                    "outputs": {"parameters": [{"name": "cached-decision", "value": decision},
                        {"name": "condition", "value": condition}]}},
                "w-2": {"id": "w-2", "type": "DAG", "children": ["w-3"]},
                "w-3": {"id": "w-3", "type": "Pod", "boundaryID": "w-2", "children": ["w-4"]},
                "w-4": {"id": "w-4", "type": "Pod"},
            }},
        })
    }

    #[test]
    fn every_decision_has_its_reason() {
        let (on, off) = (json!({"enableCache": true}), json!({}));
        for (decision, options, flag, want) in [
            ("true", &on, "--cache_disabled=false", REUSED),
            ("false", &on, "--cache_disabled=false", NOTHING),
            ("false", &off, "--cache_disabled=false", OFF_HERE),
            ("false", &on, "--cache_disabled=true", OFF),
            ("false", &on, "--cache_disabled", OFF),
        ] {
            let workflow = workflow(decision, "nil", options, flag);
            let notes = notes(&workflow);
            assert_eq!(
                notes,
                HashMap::from([("w-1", want), ("w-2", want), ("w-3", want)]),
                "{decision} {options} {flag}"
            );
        }
        assert!(notes(&workflow("false", "false", &on, "")).is_empty(), "a task that is not wanted is not looked up");
        assert!(notes(&json!({})).is_empty());
    }
}
