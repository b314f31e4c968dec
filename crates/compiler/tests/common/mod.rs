//! Strict comparison of Workflows.

use serde_json::{Map, Value};

/// Drops what Go prints and does not mean: status, nulls, empty maps and lists (but `emptyDir: {}` means something).
fn normal(value: &Value, key: &str) -> Option<Value> {
    match value {
        Value::Null => None,
        Value::Object(fields) => {
            let kept: Map<String, Value> = fields
                .iter()
                .filter(|(name, item)| {
                    !(name.as_str() == "creationTimestamp" || (key == "container" && *name == "name" && *item == ""))
                })
                .filter_map(|(name, item)| normal(item, name).map(|item| (name.clone(), item)))
                .collect();
            (!kept.is_empty() || key == "emptyDir").then_some(Value::Object(kept))
        }
        Value::Array(items) => {
            let kept: Vec<Value> = items.iter().filter_map(|item| normal(item, "")).collect();
            (!kept.is_empty()).then_some(Value::Array(kept))
        }
        other => Some(other.clone()),
    }
}

/// What is compared of a Workflow.
pub fn normal_workflow(mut workflow: Value) -> Value {
    if let Some(fields) = workflow.as_object_mut() {
        fields.remove("status");
    }
    if let Some(claims) = workflow["spec"].get_mut("volumeClaimTemplates").and_then(Value::as_array_mut) {
        for claim in claims {
            claim.as_object_mut().unwrap().remove("status");
        }
    }
    normal(&workflow, "").unwrap()
}

/// Every place where two values differ, maps key by key, lists in order, strings byte for byte.
pub fn differences(want: &Value, got: &Value, at: &str, out: &mut Vec<String>) {
    match (want, got) {
        (Value::Object(w), Value::Object(g)) => {
            for key in w.keys().chain(g.keys().filter(|key| !w.contains_key(*key))) {
                differences(&want[key], &got[key], &format!("{at}.{key}"), out);
            }
        }
        (Value::Array(w), Value::Array(g)) => {
            if w.len() != g.len() {
                out.push(format!("{at}: want {} items, got {}", w.len(), g.len()));
            }
            for (i, (w, g)) in w.iter().zip(g).enumerate() {
                differences(w, g, &format!("{at}[{i}]"), out);
            }
        }
        _ if want != got => out.push(format!("{at}: want {want}, got {got}")),
        _ => {}
    }
}

/// Turns what is expected with caching into what is expected without.
pub fn disable_cache(value: &mut Value) {
    match value {
        Value::String(text) if text.starts_with("--cache_disabled=") => *text = "--cache_disabled=true".into(),
        Value::Array(items) => items.iter_mut().for_each(disable_cache),
        Value::Object(fields) => fields.values_mut().for_each(disable_cache),
        _ => {}
    }
}
