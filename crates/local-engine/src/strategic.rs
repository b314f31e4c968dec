//! Strategic merge patch for pod specs: maps merge, lists of named things merge by their key, others are replaced.

use serde_json::{Map, Value};

/// Member that identifies the elements of a list, by the name of the list.
fn merge_key(list: &str) -> Option<&'static str> {
    Some(match list {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "env"
        | "volumes"
        | "imagePullSecrets"
        | "resourceClaims" => "name",
        "volumeMounts" => "mountPath",
        "volumeDevices" => "devicePath",
        "ports" => "containerPort",
        "hostAliases" => "ip",
        "topologySpreadConstraints" => "topologyKey",
        _ => return None,
    })
}

/// Applies a patch to a pod spec (or any part of it).
pub fn merge(target: &mut Map<String, Value>, patch: &Map<String, Value>) {
    if patch.get("$patch").and_then(Value::as_str) == Some("replace") {
        *target = patch.iter().filter(|(key, _)| !key.starts_with('$')).map(|(k, v)| (k.clone(), v.clone())).collect();
        return;
    }
    for (key, value) in patch.iter().filter(|(key, _)| !key.starts_with('$')) {
        match (target.get_mut(key), value) {
            (_, Value::Null) => {
                target.remove(key);
            }
            (Some(Value::Object(old)), Value::Object(new)) => merge(old, new),
            (Some(Value::Array(old)), Value::Array(new)) => match merge_key(key) {
                Some(name) => merge_list(old, new, name),
                None => *old = new.clone(),
            },
            _ => {
                target.insert(key.clone(), strip(value));
            }
        }
    }
}

fn merge_list(target: &mut Vec<Value>, patch: &[Value], key: &str) {
    if patch.iter().any(|item| item.get("$patch").and_then(Value::as_str) == Some("replace")) {
        *target = patch.iter().filter(|item| item.get("$patch").is_none()).map(strip).collect();
        return;
    }
    for item in patch {
        let at = item.get(key).and_then(|wanted| target.iter().position(|old| old.get(key) == Some(wanted)));
        let delete = item.get("$patch").and_then(Value::as_str) == Some("delete");
        match (at, item) {
            (Some(at), _) if delete => {
                target.remove(at);
            }
            (None, _) if delete => {}
            (Some(at), Value::Object(new)) => {
                if let Some(Value::Object(old)) = target.get_mut(at) {
                    merge(old, new);
                }
            }
            (_, item) => target.push(strip(item)),
        }
    }
}

/// A new value without nulls and directives inside maps.
fn strip(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(key, value)| !key.starts_with('$') && !value.is_null())
                .map(|(key, value)| (key.clone(), strip(value)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(strip).collect()),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(target: Value, patch: Value) -> Value {
        let Value::Object(mut map) = target else { panic!() };
        merge(&mut map, patch.as_object().unwrap());
        Value::Object(map)
    }

    #[test]
    fn named_lists_merge_and_others_are_replaced() {
        let target = json!({
            "containers": [{"name": "main", "image": "a", "command": ["x"], "args": ["1", "2"],
                "env": [{"name": "A", "value": "1"}], "volumeMounts": [{"mountPath": "/a", "name": "a"}]}],
            "volumes": [{"name": "a", "emptyDir": {}}],
            "tolerations": [{"key": "x"}],
        });
        let patch = json!({
            "containers": [{"name": "main", "image": "b", "command": ["y", "z"], "args": null,
                "env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}],
                "volumeMounts": [{"mountPath": "/b", "name": "b"}], "resources": {"limits": {"cpu": "1", "x": null}}}],
            "volumes": [{"name": "b", "emptyDir": {}}],
            "tolerations": [{"key": "y"}],
            "nodeSelector": {"k": "v"},
        });
        assert_eq!(
            merged(target, patch),
            json!({
                "containers": [{"name": "main", "image": "b", "command": ["y", "z"],
                    "env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}],
                    "volumeMounts": [{"mountPath": "/a", "name": "a"}, {"mountPath": "/b", "name": "b"}],
                    "resources": {"limits": {"cpu": "1"}}}],
                "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "emptyDir": {}}],
                "tolerations": [{"key": "y"}],
                "nodeSelector": {"k": "v"},
            })
        );
    }

    #[test]
    fn directives_delete_and_replace() {
        assert_eq!(
            merged(
                json!({"volumes": [{"name": "a"}, {"name": "b"}], "env": [{"name": "x"}], "m": {"a": 1}}),
                json!({"volumes": [{"name": "a", "$patch": "delete"}], "env": [{"$patch": "replace"}, {"name": "y"}],
                    "m": {"$patch": "replace", "b": 2}}),
            ),
            json!({"volumes": [{"name": "b"}], "env": [{"name": "y"}], "m": {"b": 2}})
        );
    }
}
