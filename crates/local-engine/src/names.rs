//! Names and identifiers of nodes and pods, equal to Argo's to the byte: KFP computes pod names from them.

use serde_json::Value;

/// Longest `<workflow>-<template>` prefix of a pod name (253 less the hash and its dash).
const MAX_PREFIX: usize = 242;

/// 32-bit FNV-1a hash.
pub fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Identifier of a node, the key in `status.nodes`.
pub fn node_id(workflow: &str, name: &str) -> String {
    if name == workflow { name.to_owned() } else { format!("{workflow}-{}", fnv1a(name)) }
}

/// Name of a node's pod. `v1` names equal the node's identifier.
pub fn pod_name(workflow: &str, node_name: &str, template: &str, v1: bool) -> String {
    if v1 || node_name == workflow {
        return node_id(workflow, node_name);
    }
    let mut prefix = if template.is_empty() { workflow.to_owned() } else { format!("{workflow}-{template}") };
    if prefix.len() > MAX_PREFIX {
        let cut = (0..=MAX_PREFIX).rev().find(|&end| prefix.is_char_boundary(end)).unwrap_or(0);
        prefix.truncate(cut);
    }
    format!("{prefix}-{}", fnv1a(node_name))
}

/// Name shown for a node: without the boundary's name, a step group index and the dot.
pub fn display_name(name: &str, boundary: Option<&str>) -> String {
    let Some(rest) = boundary.and_then(|boundary| name.strip_prefix(boundary)) else {
        return name.to_owned();
    };
    let after_index = rest
        .strip_prefix('[')
        .and_then(|inner| inner.split_once(']'))
        .filter(|(digits, _)| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .map_or(rest, |(_, after)| after);
    after_index.strip_prefix('.').unwrap_or(rest).to_owned()
}

/// Name of the node of one loop item.
pub fn item_name(task: &str, index: usize, item: &Value) -> String {
    let text: String = item_text(item).chars().filter(|character| !matches!(character, '(' | ')')).collect();
    format!("{task}({index}:{text})")
}

/// A loop item as Argo prints it into node names.
fn item_text(item: &Value) -> String {
    match item {
        Value::String(text) => text.clone(),
        Value::Object(map) => {
            let mut parts: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            parts.sort();
            parts.join(",")
        }
        other => go_text(other),
    }
}

/// A JSON value as Go's `%v` prints it.
pub fn go_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(go_text).collect::<Vec<_>>().join(" ")),
        Value::Object(map) => {
            let mut parts: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go_text(value))).collect();
            parts.sort();
            format!("map[{}]", parts.join(" "))
        }
        Value::Null => "<nil>".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn hashes_match_argo() {
        assert_eq!(fnv1a("hello-abc.root"), 4_242_393_248);
        assert_eq!(fnv1a("hello-abc(0).root-driver(0)"), 1_447_693_289);
        assert_eq!(fnv1a("wf.A(0:a)"), 1_717_129_291);
        assert_eq!(node_id("hello-abc", "hello-abc.root"), "hello-abc-4242393248");
        assert_eq!(
            pod_name("hello-abc", "hello-abc.root-driver", "system-dag-driver", false),
            "hello-abc-system-dag-driver-4247242141"
        );
        assert_eq!(pod_name("w", "w", "t", false), "w");
    }

    #[test]
    fn long_prefixes_are_cut() {
        let name = pod_name(&"w".repeat(200), "x", &"t".repeat(100), false);
        assert_eq!(name.rfind('-'), Some(242));
    }

    #[test]
    fn display_names_drop_boundary_and_group() {
        assert_eq!(display_name("w.a", Some("w")), "a");
        assert_eq!(display_name("w[0].a", Some("w")), "a");
        assert_eq!(display_name("w[0]", Some("w")), "[0]");
        assert_eq!(display_name("w.a(0:x)", Some("w")), "a(0:x)");
        assert_eq!(display_name("w.onExit", None), "w.onExit");
    }

    #[test]
    fn items_are_printed_as_go_does() {
        assert_eq!(item_name("t", 0, &json!("a(b)")), "t(0:ab)");
        assert_eq!(item_name("t", 1, &json!({"b": 1, "a": [1, "x"]})), "t(1:a:[1 x],b:1)");
        assert_eq!(item_name("t", 2, &json!([1, 2])), "t(2:[1 2])");
    }
}
