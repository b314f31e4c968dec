//! `COMPILED_PIPELINE_SPEC_PATCH`: a Kubernetes strategic merge patch of the Workflow's `spec`.

use serde_json::{Map, Value};

use crate::Error;

/// Applies `patch`, a JSON object; nothing for empty text, `{}` and `null`.
///
/// # Errors
/// [`Error::Setting`] if the text is not a JSON object.
pub fn apply(spec: &mut Value, patch: &str) -> Result<(), Error> {
    if patch.trim().is_empty() {
        return Ok(());
    }
    let parsed: Option<Map<String, Value>> = serde_json::from_str(patch).map_err(|e| {
        Error::Setting(format!(
            "failed to apply workflow spec patch: invalid JSON in COMPILED_PIPELINE_SPEC_PATCH: {e}"
        ))
    })?;
    if let (Some(patch), Value::Object(spec)) = (parsed, spec) {
        merge(spec, patch, Kind::Spec);
    }
    Ok(())
}

/// Which Go type an object has; that decides the merge keys of its lists.
#[derive(Clone, Copy)]
enum Kind {
    Spec,
    Template,
    Dag,
    DagTask,
    Arguments,
    Container,
    Other,
}

impl Kind {
    /// The merge key of list `field` and the kind of its items; lists without one are replaced.
    fn list(self, field: &str) -> Option<(&'static str, Kind)> {
        match (self, field) {
            (Self::Spec, "templates") => Some(("name", Self::Template)),
            (Self::Spec | Self::Template, "volumes") | (Self::Spec, "imagePullSecrets") => Some(("name", Self::Other)),
            (Self::Spec | Self::Template, "tolerations") => Some(("key", Self::Other)),
            (Self::Spec | Self::Template, "hostAliases") => Some(("ip", Self::Other)),
            (Self::Template, "initContainers" | "sidecars") => Some(("name", Self::Container)),
            (Self::Dag, "tasks") => Some(("name", Self::DagTask)),
            (Self::Arguments, "parameters" | "artifacts") => Some(("name", Self::Other)),
            (Self::Container, "env") => Some(("name", Self::Other)),
            (Self::Container, "volumeMounts") => Some(("mountPath", Self::Other)),
            (Self::Container, "ports") => Some(("containerPort", Self::Other)),
            (Self::Container, "volumeDevices") => Some(("devicePath", Self::Other)),
            _ => None,
        }
    }

    fn object(self, field: &str) -> Kind {
        match (self, field) {
            (Self::Spec, "templateDefaults") => Self::Template,
            (Self::Spec | Self::DagTask, "arguments") | (Self::Template, "inputs" | "outputs") => Self::Arguments,
            (Self::Template, "dag") => Self::Dag,
            (Self::Template, "container" | "script") => Self::Container,
            _ => Self::Other,
        }
    }
}

fn directive(value: &Value) -> Option<&str> {
    value.get("$patch").and_then(Value::as_str)
}

fn merge(target: &mut Map<String, Value>, patch: Map<String, Value>, kind: Kind) {
    if patch.get("$patch").and_then(Value::as_str) == Some("replace") {
        *target = without_directives(patch);
        return;
    }
    let retain = patch.get("$retainKeys").and_then(Value::as_array).cloned();
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(items)), Value::Array(gone)) = (target.get_mut(field), &value) {
                items.retain(|item| !gone.contains(item));
            }
        } else if key.starts_with('$') {
            // The order of elements is a hint, the others are handled by the caller or above.
        } else {
            merge_field(target, key, value, kind);
        }
    }
    if let Some(retain) = retain {
        target.retain(|key, _| retain.iter().any(|kept| kept == key));
    }
}

fn merge_field(target: &mut Map<String, Value>, key: String, value: Value, kind: Kind) {
    if value.is_null() || directive(&value) == Some("delete") {
        target.remove(&key);
        return;
    }
    let list = kind.list(&key);
    let child = kind.object(&key);
    match (target.get_mut(&key), value, list) {
        (Some(Value::Object(old)), Value::Object(new), _) => merge(old, new, child),
        (Some(Value::Array(old)), Value::Array(new), Some((merge_key, item))) => merge_list(old, new, merge_key, item),
        (_, value, _) => {
            target.insert(key, clean(value));
        }
    }
}

fn merge_list(old: &mut Vec<Value>, new: Vec<Value>, key: &str, kind: Kind) {
    if new.iter().any(|item| directive(item) == Some("replace")) {
        *old = new.into_iter().filter(|item| directive(item) != Some("replace")).map(clean).collect();
        return;
    }
    for item in new {
        let at = old.iter().position(|existing| existing.get(key).is_some() && existing.get(key) == item.get(key));
        match (at, item) {
            (Some(at), item) if directive(&item) == Some("delete") => {
                old.remove(at);
            }
            (Some(at), Value::Object(item)) => {
                if let Some(Value::Object(existing)) = old.get_mut(at) {
                    merge(existing, item, kind);
                }
            }
            (_, item) if directive(&item) == Some("delete") => {}
            (_, item) => old.push(clean(item)),
        }
    }
}

fn without_directives(patch: Map<String, Value>) -> Map<String, Value> {
    patch
        .into_iter()
        .filter(|(key, value)| !key.starts_with('$') && !value.is_null())
        .map(|(k, v)| (k, clean(v)))
        .collect()
}

/// New content without nulls and directives.
fn clean(value: Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(without_directives(fields)),
        Value::Array(items) => {
            Value::Array(items.into_iter().filter(|item| directive(item).is_none()).map(clean).collect())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::apply;
    use serde_json::{Value, json};

    fn patched(mut spec: Value, patch: Value) -> Value {
        apply(&mut spec, &patch.to_string()).unwrap();
        spec
    }

    #[test]
    fn maps_merge_and_null_deletes() {
        let spec = json!({"securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}}, "serviceAccountName": "a", "entrypoint": "e"});
        let patch = json!({"securityContext": {"runAsUser": 5}, "serviceAccountName": "b", "entrypoint": null, "nodeSelector": {"x": "y", "z": null}});
        assert_eq!(
            patched(spec, patch),
            json!({"securityContext": {"runAsNonRoot": true, "runAsUser": 5, "seccompProfile": {"type": "RuntimeDefault"}}, "serviceAccountName": "b", "nodeSelector": {"x": "y"}})
        );
    }

    #[test]
    fn lists_merge_by_their_keys() {
        let spec = json!({"tolerations": [{"key": "a", "effect": "NoSchedule"}], "templates": [{"name": "t", "container": {"args": ["x"], "env": [{"name": "E", "value": "1"}], "volumeMounts": [{"mountPath": "/a", "name": "v"}]}}]});
        let patch = json!({"tolerations": [{"key": "b"}, {"key": "a", "effect": "NoExecute"}], "templates": [{"name": "t", "container": {"args": ["y"], "env": [{"name": "F", "value": "2"}, {"name": "E", "$patch": "delete"}], "volumeMounts": [{"mountPath": "/a", "name": "w"}]}}]});
        assert_eq!(
            patched(spec, patch),
            json!({"tolerations": [{"key": "a", "effect": "NoExecute"}, {"key": "b"}], "templates": [{"name": "t", "container": {"args": ["y"], "env": [{"name": "F", "value": "2"}], "volumeMounts": [{"mountPath": "/a", "name": "w"}]}}]})
        );
    }

    #[test]
    fn directives_are_obeyed() {
        assert_eq!(
            patched(json!({"a": {"b": 1, "c": 2}}), json!({"a": {"$patch": "replace", "d": 3}})),
            json!({"a": {"d": 3}})
        );
        assert_eq!(patched(json!({"a": {"b": 1}}), json!({"a": {"$patch": "delete"}})), json!({}));
        assert_eq!(
            patched(json!({"l": ["a", "b"]}), json!({"$deleteFromPrimitiveList/l": ["a"]})),
            json!({"l": ["b"]})
        );
        assert_eq!(
            patched(json!({"volumes": [{"name": "a"}]}), json!({"volumes": [{"$patch": "replace"}, {"name": "b"}]})),
            json!({"volumes": [{"name": "b"}]})
        );
    }

    #[test]
    fn nothing_to_do_and_nonsense() {
        for text in ["", "{}", "null"] {
            let mut spec = json!({"a": 1});
            apply(&mut spec, text).unwrap();
            assert_eq!(spec, json!({"a": 1}));
        }
        for text in ["[]", "3", "{"] {
            let error = apply(&mut json!({}), text).unwrap_err().to_string();
            assert!(
                error
                    .starts_with("failed to apply workflow spec patch: invalid JSON in COMPILED_PIPELINE_SPEC_PATCH: "),
                "{error}"
            );
        }
    }
}
