//! Metadata of objects: reading, setting, checking.

use serde_json::{Map, Value};

use crate::{ApiError, Resource};

pub(crate) fn meta<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    object.get("metadata")?.get(key)?.as_str()
}

/// The uid, if set and not empty.
pub(crate) fn uid(object: &Value) -> Option<&str> {
    meta(object, "uid").filter(|uid| !uid.is_empty())
}

pub(crate) fn owners(object: &Value) -> impl Iterator<Item = &Value> {
    object["metadata"]["ownerReferences"].as_array().into_iter().flatten()
}

pub(crate) fn owner_uids(object: &Value) -> impl Iterator<Item = &str> {
    owners(object).filter_map(|owner| owner["uid"].as_str())
}

pub(crate) fn finalizers(object: &Value) -> Vec<String> {
    let list = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    list.filter_map(|f| f.as_str().map(str::to_string)).collect()
}

pub(crate) fn is_deleting(object: &Value) -> bool {
    meta(object, "deletionTimestamp").is_some()
}

/// Sets a metadata field; null removes it.
pub(crate) fn set_meta(object: &mut Value, key: &str, value: Value) {
    let Some(map) = object.as_object_mut() else { return };
    let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    let Some(metadata) = metadata.as_object_mut() else { return };
    if value.is_null() {
        metadata.remove(key);
    } else {
        metadata.insert(key.to_string(), value);
    }
}

/// Now, as Kubernetes writes moments: UTC, whole seconds.
pub(crate) fn now() -> String {
    chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

/// `base` and five random characters, at most 63 long, from Kubernetes' alphabet without vowels.
pub(crate) fn generate_name(base: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    const MAX_BASE: usize = 58;
    let mut end = base.len().min(MAX_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let random = uuid::Uuid::new_v4().into_bytes();
    // Two bytes per character keep the modulo bias invisible; bytes 6 and 8 carry version bits.
    let suffix = [(0, 1), (2, 3), (4, 5), (9, 10), (11, 12)].map(|(a, b)| {
        let number = usize::from(random[a]) << 8 | usize::from(random[b]);
        char::from(ALPHABET[number % ALPHABET.len()])
    });
    base[..end].chars().chain(suffix).collect()
}

/// Checks that the body is an object of the type, and fills in apiVersion and kind when missing.
///
/// # Errors
/// 400 naming what does not fit.
pub(crate) fn check_shape(r: &Resource, object: &mut Value) -> Result<(), ApiError> {
    let Value::Object(map) = object else {
        return Err(ApiError::bad_request(format!("the body must be a JSON object of kind {}", r.kind)));
    };
    let api_version = r.api_version();
    match map.get("apiVersion").and_then(Value::as_str) {
        None | Some("") => {
            map.insert("apiVersion".into(), api_version.into());
        }
        // Another version of the same group is accepted: the objects are the same.
        Some(given) if given == api_version || same_group(given, r) => {}
        Some(given) => {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({given}) does not match the expected API version ({api_version})"
            )));
        }
    }
    match map.get("kind").and_then(Value::as_str) {
        None | Some("") => {
            map.insert("kind".into(), r.kind.into());
        }
        Some(given) if given == r.kind => {}
        Some(given) => {
            return Err(ApiError::bad_request(format!(
                "the kind in the data ({given}) does not match the expected kind ({})",
                r.kind
            )));
        }
    }
    match map.get("metadata") {
        None | Some(Value::Null | Value::Object(_)) => Ok(()),
        Some(_) => Err(ApiError::bad_request("metadata must be an object")),
    }
}

fn same_group(api_version: &str, r: &Resource) -> bool {
    api_version.split_once('/').is_some_and(|(group, _)| group == r.group)
}

/// Deepest nesting of an object; readers of JSON refuse documents a little deeper than this.
const MAX_DEPTH: usize = 120;

fn is_deeper(value: &Value, levels: usize) -> bool {
    let Some(rest) = levels.checked_sub(1) else { return true };
    match value {
        Value::Array(items) => items.iter().any(|item| is_deeper(item, rest)),
        Value::Object(members) => members.values().any(|member| is_deeper(member, rest)),
        _ => false,
    }
}

/// Checks name, labels, annotations, finalizers and owner references.
///
/// # Errors
/// 422 naming the field.
pub(crate) fn check_meta(r: &Resource, name: &str, object: &Value) -> Result<(), ApiError> {
    check_name(r, name)?;
    if is_deeper(object, MAX_DEPTH) {
        return Err(ApiError::invalid(r, name, "", &format!("nested deeper than {MAX_DEPTH} levels")));
    }
    let metadata = &object["metadata"];
    for field in ["labels", "annotations"] {
        let place = format!("metadata.{field}");
        match &metadata[field] {
            Value::Null => {}
            Value::Object(map) => {
                for (key, value) in map {
                    let Some(text) = value.as_str() else {
                        let why = format!("Invalid value: {value}: the value of \"{key}\" must be a string");
                        return Err(ApiError::invalid(r, name, &place, &why));
                    };
                    if field == "labels" {
                        crate::selector::check_label(key, text)
                            .map_err(|why| ApiError::invalid(r, name, &place, &why))?;
                    }
                }
            }
            other => {
                return Err(ApiError::invalid(r, name, &place, &format!("Invalid value: {other}: must be a map")));
            }
        }
    }
    match &metadata["finalizers"] {
        Value::Null => {}
        Value::Array(list) if list.iter().all(Value::is_string) => {}
        other => {
            let why = format!("Invalid value: {other}: must be a list of strings");
            return Err(ApiError::invalid(r, name, "metadata.finalizers", &why));
        }
    }
    for (index, owner) in owners(object).enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                let place = format!("metadata.ownerReferences[{index}].{field}");
                return Err(ApiError::invalid(r, name, &place, "Required value: must not be empty"));
            }
        }
    }
    Ok(())
}

fn check_name(r: &Resource, name: &str) -> Result<(), ApiError> {
    let refuse =
        |why: String| Err(ApiError::invalid(r, name, "metadata.name", &format!("Invalid value: \"{name}\": {why}")));
    if r.group == "rbac.authorization.k8s.io" {
        // Role names may contain colons; they only have to be one path segment.
        return if name == "." || name == ".." || name.contains(['/', '%']) {
            refuse("may not be '.' or '..' or contain '/' or '%'".into())
        } else {
            Ok(())
        };
    }
    let label = matches!(r.plural, "namespaces" | "services");
    let longest = if label { 63 } else { 253 };
    if name.len() > longest {
        return refuse(format!("must be no more than {longest} characters"));
    }
    let part = |text: &str| {
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        !text.is_empty() && text.chars().all(inside) && !text.starts_with('-') && !text.ends_with('-')
    };
    if label {
        if part(name) {
            return Ok(());
        }
        return refuse(
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
             and end with an alphanumeric character"
                .into(),
        );
    }
    if name.split('.').all(part) {
        return Ok(());
    }
    refuse(
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must \
         start and end with an alphanumeric character"
            .into(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::{CONFIG_MAPS, NAMESPACES, ROLES};

    #[test]
    fn generated_names_keep_the_base_and_differ() {
        let (a, b) = (generate_name("run-"), generate_name("run-"));
        assert_ne!(a, b);
        assert!(a.starts_with("run-") && a.len() == 9, "{a}");
        assert_eq!(generate_name(&"x".repeat(200)).len(), 63);
        assert!(generate_name(&"é".repeat(40)).chars().count() <= 34);
    }

    #[test]
    fn names_follow_the_kind() {
        for (r, name, fits) in [
            (&CONFIG_MAPS, "a.b-c1", true),
            (&CONFIG_MAPS, "A", false),
            (&CONFIG_MAPS, "-a", false),
            (&CONFIG_MAPS, "a..b", false),
            (&CONFIG_MAPS, "a_b", false),
            (&NAMESPACES, "a.b", false),
            (&NAMESPACES, "a-b", true),
            (&ROLES, "system:Node", true),
            (&ROLES, "a/b", false),
        ] {
            assert_eq!(check_meta(r, name, &json!({})).is_ok(), fits, "{} {name}", r.kind);
        }
        assert!(check_meta(&CONFIG_MAPS, &"a".repeat(254), &json!({})).is_err());
    }

    #[test]
    fn wrong_metadata_is_named() {
        for (metadata, place) in [
            (json!({"labels": {"a": 1}}), "metadata.labels"),
            (json!({"labels": {"a b": "x"}}), "metadata.labels"),
            (json!({"labels": {"a": "x y"}}), "metadata.labels"),
            (json!({"annotations": []}), "metadata.annotations"),
            (json!({"finalizers": [1]}), "metadata.finalizers"),
            (json!({"ownerReferences": [{"kind": "Pod"}]}), "metadata.ownerReferences[0].apiVersion"),
        ] {
            let error = check_meta(&CONFIG_MAPS, "a", &json!({ "metadata": metadata })).unwrap_err();
            assert!(error.code == 422 && error.message.contains(place), "{error}");
        }
    }

    #[test]
    fn shape_is_completed_or_refused() {
        let mut object = json!({});
        check_shape(&CONFIG_MAPS, &mut object).unwrap();
        assert_eq!(object, json!({"apiVersion": "v1", "kind": "ConfigMap"}));
        for mut wrong in [json!([]), json!({"kind": "Pod"}), json!({"apiVersion": "apps/v1"}), json!({"metadata": 1})] {
            assert_eq!(check_shape(&CONFIG_MAPS, &mut wrong).unwrap_err().code, 400);
        }
    }
}
