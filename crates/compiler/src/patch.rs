//! `COMPILED_PIPELINE_SPEC_PATCH`: a Kubernetes strategic merge patch of the Workflow's `spec`.

use serde_json::{Map, Value, json};

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
        merge(spec, patch, Kind::Spec).map_err(|e| {
            Error::Setting(format!("failed to apply workflow spec patch: COMPILED_PIPELINE_SPEC_PATCH: {e}"))
        })?;
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

fn merge(target: &mut Map<String, Value>, mut patch: Map<String, Value>, kind: Kind) -> Result<(), String> {
    if patch.get("$patch").and_then(Value::as_str) == Some("replace") {
        *target = without_directives(patch);
        return Ok(());
    }
    let mut orders: Vec<(String, Vec<Value>)> = Vec::new();
    let mut retain = None;
    for key in patch.keys().filter(|key| key.starts_with('$')).cloned().collect::<Vec<_>>() {
        let value = patch.remove(&key).unwrap_or_default();
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(items)), Value::Array(gone)) = (target.get_mut(field), &value) {
                items.retain(|item| !gone.contains(item));
            }
        } else if let (Some(field), Value::Array(order)) = (key.strip_prefix("$setElementOrder/"), &value) {
            orders.push((field.to_owned(), order.clone()));
        } else if key == "$retainKeys" {
            retain = value.as_array().cloned();
        }
    }
    for (key, value) in patch {
        let order = orders.iter().position(|(field, _)| *field == key).map(|at| orders.swap_remove(at).1);
        merge_field(target, key, value, order, kind)?;
    }
    for (field, order) in orders {
        if let (Some(Value::Array(items)), Some((merge_key, _))) = (target.get_mut(&field), kind.list(&field)) {
            let before = items.clone();
            arrange(items, &order, &before, merge_key);
        }
    }
    if let Some(retain) = retain {
        target.retain(|key, _| retain.iter().any(|kept| kept == key));
    }
    Ok(())
}

fn merge_field(
    target: &mut Map<String, Value>,
    key: String,
    value: Value,
    order: Option<Vec<Value>>,
    kind: Kind,
) -> Result<(), String> {
    if value.is_null() || directive(&value) == Some("delete") {
        target.remove(&key);
        return Ok(());
    }
    let list = kind.list(&key);
    let child = kind.object(&key);
    match (target.get_mut(&key), value, list) {
        (Some(Value::Object(old)), Value::Object(new), _) => {
            merge(old, new, child).map_err(|e| format!("{key}: {e}"))?
        }
        (Some(Value::Array(old)), Value::Array(new), Some((merge_key, item))) => {
            merge_list(old, new, order, merge_key, item).map_err(|e| format!("{key}: {e}"))?;
        }
        (_, value, _) => {
            target.insert(key, clean(value));
        }
    }
    Ok(())
}

fn merge_list(
    old: &mut Vec<Value>,
    new: Vec<Value>,
    order: Option<Vec<Value>>,
    key: &str,
    kind: Kind,
) -> Result<(), String> {
    if new.iter().any(|item| directive(item) == Some("replace")) {
        *old = new.into_iter().filter(|item| directive(item) != Some("replace")).map(clean).collect();
        return Ok(());
    }
    if let Some(item) = new.iter().find(|item| item.get(key).is_none()) {
        return Err(format!("{item} does not contain the merge key {key:?}"));
    }
    let before = old.clone();
    let given: Vec<Value> = new.iter().map(|item| json!({key: item[key]})).collect();
    if let Some(order) = &order {
        let mut rest = order.iter();
        if !given.iter().all(|item| rest.any(|next| next.get(key) == item.get(key))) {
            return Err("the order of the list is not that of $setElementOrder".into());
        }
    }
    for item in new {
        let at = position(old, &item, key);
        match (at, item) {
            (Some(at), item) if directive(&item) == Some("delete") => {
                old.remove(at);
            }
            (Some(at), Value::Object(item)) => {
                if let Some(Value::Object(existing)) = old.get_mut(at) {
                    merge(existing, item, kind)?;
                }
            }
            (_, item) if directive(&item) == Some("delete") => {}
            (_, item) => old.push(clean(item)),
        }
    }
    arrange(old, &order.unwrap_or(given), &before, key);
    Ok(())
}

fn position(list: &[Value], item: &Value, key: &str) -> Option<usize> {
    list.iter().position(|other| other.get(key).is_some() && other.get(key) == item.get(key))
}

/// Kubernetes' order of a merged list: the patch's items keep the patch's order, the others their own; where one of
/// each meet, the order before the patch decides, and an item that is new goes first.
fn arrange(items: &mut Vec<Value>, order: &[Value], before: &[Value], key: &str) {
    let (mut patched, kept): (Vec<Value>, Vec<Value>) =
        std::mem::take(items).into_iter().partition(|item| position(order, item, key).is_some());
    patched.sort_by_key(|item| position(order, item, key));
    let (mut patched, mut kept) = (patched.into_iter().peekable(), kept.into_iter().peekable());
    loop {
        let keep = match (patched.peek(), kept.peek()) {
            (Some(new), Some(old)) => match (position(before, old, key), position(before, new, key)) {
                (Some(old), Some(new)) => old < new,
                _ => false,
            },
            (patched, _) => patched.is_none(),
        };
        let Some(next) = (if keep { kept.next() } else { patched.next() }) else { return };
        items.push(next);
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
            json!({"tolerations": [{"key": "b"}, {"key": "a", "effect": "NoExecute"}], "templates": [{"name": "t", "container": {"args": ["y"], "env": [{"name": "F", "value": "2"}], "volumeMounts": [{"mountPath": "/a", "name": "w"}]}}]})
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
    fn lists_are_ordered_as_kubernetes_orders_them() {
        let spec = || json!({"volumes": [{"name": "a"}, {"name": "b"}, {"name": "c"}]});
        let names = |patch: Value| -> String {
            let volumes = patched(spec(), patch)["volumes"].take();
            volumes.as_array().unwrap().iter().map(|volume| volume["name"].as_str().unwrap()).collect()
        };
        assert_eq!(names(json!({"volumes": [{"name": "n"}]})), "nabc");
        assert_eq!(names(json!({"volumes": [{"name": "b"}, {"name": "n"}]})), "abnc");
        assert_eq!(names(json!({"volumes": [{"name": "c"}, {"name": "a"}]})), "bca");
        assert_eq!(
            names(
                json!({"$setElementOrder/volumes": [{"name": "c"}, {"name": "n"}, {"name": "a"}], "volumes": [{"name": "n"}]})
            ),
            "bcna"
        );
        assert_eq!(names(json!({"$setElementOrder/volumes": [{"name": "c"}, {"name": "a"}]})), "bca");
        for (patch, want) in [
            (json!({"volumes": [{"emptyDir": {}}]}), "does not contain the merge key \"name\""),
            (
                json!({"$setElementOrder/volumes": [{"name": "y"}, {"name": "x"}], "volumes": [{"name": "x"}, {"name": "y"}]}),
                "$setElementOrder",
            ),
        ] {
            let error = apply(&mut spec(), &patch.to_string()).unwrap_err().to_string();
            assert!(error.starts_with("failed to apply workflow spec patch: ") && error.contains(want), "{error}");
        }
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
