//! Strategic merge patch and the merge of server-side apply.
//!
//! Kubernetes declares per list field whether it merges and by which key. The names of those fields
//! decide here: over the kinds served they are unambiguous but for `ports`, which the kind settles.

use serde_json::{Map, Value};

use crate::Resource;

/// How a list is merged.
enum ListKind {
    /// Maps, matched by this field.
    Keyed(&'static str),
    /// Scalars, as a set.
    Set,
    /// As one value.
    Atomic,
}

fn list_kind(r: &Resource, field: &str) -> ListKind {
    if !r.native {
        // Custom resources merge lists only as their schema says; ours say nothing.
        return match field {
            "ownerReferences" => ListKind::Keyed("uid"),
            "finalizers" => ListKind::Set,
            _ => ListKind::Atomic,
        };
    }
    match field {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "env"
        | "volumes"
        | "imagePullSecrets"
        | "secrets"
        | "resourceClaims" => ListKind::Keyed("name"),
        "ports" if r.kind == "Service" => ListKind::Keyed("port"),
        "ports" => ListKind::Keyed("containerPort"),
        "volumeMounts" => ListKind::Keyed("mountPath"),
        "volumeDevices" => ListKind::Keyed("devicePath"),
        "conditions" | "addresses" => ListKind::Keyed("type"),
        "hostAliases" | "podIPs" | "hostIPs" => ListKind::Keyed("ip"),
        "topologySpreadConstraints" => ListKind::Keyed("topologyKey"),
        "ownerReferences" => ListKind::Keyed("uid"),
        "finalizers" => ListKind::Set,
        _ => ListKind::Atomic,
    }
}

/// The object after a strategic merge patch.
///
/// # Errors
/// A sentence when a directive is malformed or a list item lacks its merge key.
pub(super) fn patch(r: &Resource, old: &Value, patch: Map<String, Value>) -> Result<Value, String> {
    let mut object = old.as_object().cloned().unwrap_or_default();
    merge_map(r, &mut object, patch)?;
    Ok(Value::Object(object))
}

fn merge_map(r: &Resource, target: &mut Map<String, Value>, mut patch: Map<String, Value>) -> Result<(), String> {
    match patch.remove("$patch") {
        None => {}
        Some(Value::String(directive)) => match directive.as_str() {
            "replace" => {
                target.clear();
                target.extend(patch);
                return Ok(());
            }
            "delete" => {
                target.clear();
                return Ok(());
            }
            "merge" => {}
            other => return Err(format!("unknown $patch directive \"{other}\"")),
        },
        Some(other) => return Err(format!("$patch must be a string, not {other}")),
    }
    if let Some(Value::Array(keep)) = patch.remove("$retainKeys") {
        target.retain(|key, _| keep.iter().any(|k| k == key));
    }
    let mut orders = Vec::new();
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let Value::Array(gone) = value else { return Err(format!("{key} must be a list")) };
            if let Some(Value::Array(list)) = target.get_mut(field) {
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if let Some(field) = key.strip_prefix("$setElementOrder/") {
            let Value::Array(order) = value else { return Err(format!("{key} must be a list")) };
            orders.push((field.to_string(), order));
            continue;
        }
        match value {
            Value::Null => {
                target.remove(&key);
            }
            Value::Object(map) => {
                let place = target.entry(key).or_insert_with(|| Value::Object(Map::new()));
                if !place.is_object() {
                    *place = Value::Object(Map::new());
                }
                if let Some(place) = place.as_object_mut() {
                    merge_map(r, place, map)?;
                }
            }
            Value::Array(items) => {
                let old = match target.remove(&key) {
                    Some(Value::Array(old)) => old,
                    _ => Vec::new(),
                };
                let merged = merge_list(r, &key, old, items)?;
                target.insert(key, Value::Array(merged));
            }
            scalar => {
                target.insert(key, scalar);
            }
        }
    }
    for (field, order) in orders {
        if let Some(Value::Array(list)) = target.get_mut(&field) {
            sort(r, &field, list, &order);
        }
    }
    Ok(())
}

fn merge_list(r: &Resource, field: &str, mut old: Vec<Value>, items: Vec<Value>) -> Result<Vec<Value>, String> {
    match list_kind(r, field) {
        ListKind::Atomic => Ok(items),
        ListKind::Set => {
            for item in items {
                if !old.contains(&item) {
                    old.push(item);
                }
            }
            Ok(old)
        }
        ListKind::Keyed(key) => {
            if items.iter().any(|item| item["$patch"] == "replace") {
                return Ok(items.into_iter().filter(|item| item["$patch"] != "replace").collect());
            }
            for item in items {
                let Value::Object(mut item) = item else {
                    return Err(format!("items of {field} must be maps, not {item}"));
                };
                let Some(id) = item.get(key).cloned() else {
                    return Err(format!("an item of {field} does not contain its merge key \"{key}\""));
                };
                if item.get("$patch").is_some_and(|directive| directive == "delete") {
                    old.retain(|other| other[key] != id);
                    continue;
                }
                match old.iter_mut().find(|other| other[key] == id).and_then(Value::as_object_mut) {
                    Some(found) => merge_map(r, found, item)?,
                    None => {
                        item.remove("$patch");
                        let mut fresh = Map::new();
                        merge_map(r, &mut fresh, item)?;
                        old.push(Value::Object(fresh));
                    }
                }
            }
            Ok(old)
        }
    }
}

/// Puts the items named in `order` into that order; the others keep their place after them.
fn sort(r: &Resource, field: &str, list: &mut [Value], order: &[Value]) {
    let rank = |item: &Value| {
        let place = match list_kind(r, field) {
            ListKind::Keyed(key) => order.iter().position(|o| o[key] == item[key]),
            ListKind::Set | ListKind::Atomic => order.iter().position(|o| o == item),
        };
        place.unwrap_or(usize::MAX)
    };
    list.sort_by_key(rank);
}

/// The object after server-side apply: applied fields are set, the rest stays. Who applied what is
/// not recorded, so a field that is left out of a later apply is kept, not removed.
pub(super) fn apply(r: &Resource, old: &Value, applied: Map<String, Value>) -> Value {
    let mut object = old.as_object().cloned().unwrap_or_default();
    apply_map(r, &mut object, applied);
    Value::Object(object)
}

fn apply_map(r: &Resource, target: &mut Map<String, Value>, applied: Map<String, Value>) {
    for (key, value) in applied {
        match (target.get_mut(&key), value) {
            (Some(Value::Object(place)), Value::Object(map)) => apply_map(r, place, map),
            (Some(Value::Array(place)), Value::Array(items)) => match list_kind(r, &key) {
                ListKind::Atomic => *place = items,
                ListKind::Set => {
                    let fresh: Vec<Value> = items.into_iter().filter(|item| !place.contains(item)).collect();
                    place.extend(fresh);
                }
                ListKind::Keyed(id) => {
                    for item in items {
                        let found = place.iter_mut().find(|other| other[id] == item[id]);
                        match (found.and_then(Value::as_object_mut), item) {
                            (Some(found), Value::Object(item)) => apply_map(r, found, item),
                            (_, item) => place.push(item),
                        }
                    }
                }
            },
            (_, value) => {
                target.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::{PODS, SERVICES, WORKFLOWS};

    fn pod() -> Value {
        json!({"metadata": {"labels": {"a": "1"}, "finalizers": ["x"]}, "spec": {
            "containers": [
                {"name": "main", "image": "old", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
                {"name": "side", "image": "s"}],
            "volumes": [{"name": "v", "emptyDir": {}}],
            "tolerations": [{"key": "k"}]}})
    }

    fn patched(document: Value) -> Value {
        patch(&PODS, &pod(), document.as_object().unwrap().clone()).unwrap()
    }

    #[test]
    fn lists_merge_by_key() {
        let out = patched(json!({"spec": {"containers": [
            {"name": "main", "image": "new", "env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}]},
            {"name": "third"}]}}));
        assert_eq!(
            out["spec"]["containers"],
            json!([
            {"name": "main", "image": "new", "env":
                [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}]},
            {"name": "side", "image": "s"}, {"name": "third"}])
        );
    }

    #[test]
    fn directives_delete_replace_and_order() {
        let out = patched(json!({"spec": {
            "$setElementOrder/containers": [{"name": "side"}, {"name": "main"}],
            "containers": [{"name": "side", "image": "t"}],
            "volumes": [{"name": "v", "$patch": "delete"}, {"name": "w"}]}}));
        assert_eq!(out["spec"]["containers"][0], json!({"name": "side", "image": "t"}));
        assert_eq!(out["spec"]["volumes"], json!([{"name": "w"}]));
        let out = patched(json!({"spec": {"containers": [{"$patch": "replace"}, {"name": "only"}]}}));
        assert_eq!(out["spec"]["containers"], json!([{"name": "only"}]));
        let out = patched(json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}}));
        assert_eq!(out["metadata"]["labels"], json!({"b": "2"}));
        let out = patched(json!({"metadata": {"finalizers": ["y"], "$deleteFromPrimitiveList/finalizers": ["x"]}}));
        assert_eq!(out["metadata"]["finalizers"], json!(["y"]));
        let out = patched(json!({"spec": {"$retainKeys": ["containers"], "hostname": "h"}}));
        assert_eq!(out["spec"].as_object().unwrap().keys().collect::<Vec<_>>(), ["containers", "hostname"]);
    }

    #[test]
    fn nulls_delete_and_atomic_lists_are_replaced() {
        let out = patched(json!({"metadata": {"labels": {"a": null, "b": "2"}}, "spec": {"tolerations": []}}));
        assert_eq!(out["metadata"]["labels"], json!({"b": "2"}));
        assert_eq!(out["spec"]["tolerations"], json!([]));
    }

    #[test]
    fn malformed_patches_are_refused() {
        for document in [
            json!({"$patch": "explode"}),
            json!({"$patch": 1}),
            json!({"spec": {"containers": [{"image": "x"}]}}),
            json!({"spec": {"containers": ["x"]}}),
            json!({"$setElementOrder/containers": 1}),
        ] {
            assert!(patch(&PODS, &pod(), document.as_object().unwrap().clone()).is_err(), "{document}");
        }
    }

    #[test]
    fn service_ports_merge_by_port() {
        let old = json!({"spec": {"ports": [{"port": 80, "name": "a"}]}});
        let document = json!({"spec": {"ports": [{"port": 80, "targetPort": 1}, {"port": 81}]}});
        let out = patch(&SERVICES, &old, document.as_object().unwrap().clone()).unwrap();
        assert_eq!(out["spec"]["ports"], json!([{"port": 80, "name": "a", "targetPort": 1}, {"port": 81}]));
    }

    #[test]
    fn apply_merges_native_lists_and_replaces_custom_ones() {
        let applied = json!({"spec": {"containers": [{"name": "main", "image": "new"}]}});
        let out = apply(&PODS, &pod(), applied.as_object().unwrap().clone());
        assert_eq!(out["spec"]["containers"][0]["image"], "new");
        assert_eq!(out["spec"]["containers"].as_array().unwrap().len(), 2);
        let old = json!({"spec": {"templates": [{"name": "a"}], "x": 1}});
        let applied = json!({"spec": {"templates": [{"name": "b"}]}});
        let out = apply(&WORKFLOWS, &old, applied.as_object().unwrap().clone());
        assert_eq!(out, json!({"spec": {"templates": [{"name": "b"}], "x": 1}}));
    }
}
