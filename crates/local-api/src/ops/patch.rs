//! Patch documents on JSON values.

use serde_json::{Map, Value};

use super::strategic;
use crate::{ApiError, Patch, Resource};

/// The object after the patch.
///
/// # Errors
/// 400 (not a patch document), 415 (strategic merge on a custom resource), 422 (an operation does
/// not fit the object).
pub(super) fn apply(r: &Resource, name: &str, old: &Value, patch: Patch) -> Result<Value, ApiError> {
    match patch {
        Patch::Json(operations) => {
            // Kubernetes does not say which operation failed; here the message does.
            let refused = |why: String| {
                let text = "the server rejected our request due to an error in our request";
                ApiError::new(422, "Invalid", format!("{text}: {why}"))
            };
            if !operations.as_array().is_some_and(|list| list.iter().all(Value::is_object)) {
                return Err(ApiError::bad_request("a JSON patch must be a list of operations"));
            }
            let operations: json_patch::Patch =
                serde_json::from_value(operations).map_err(|error| refused(error.to_string()))?;
            let mut object = old.clone();
            json_patch::patch(&mut object, &operations).map_err(|error| refused(error.to_string()))?;
            Ok(object)
        }
        Patch::Merge(document) => {
            expect_map(&document)?;
            let mut object = old.clone();
            merge(&mut object, document);
            Ok(object)
        }
        Patch::Strategic(document) => {
            if !r.native {
                return Err(ApiError::unsupported_media_type(format!(
                    "the body of the request was in an unknown format - strategic merge patches are not supported for \
                     {}; use application/merge-patch+json or application/json-patch+json",
                    r.qualified()
                )));
            }
            let document = into_map(document)?;
            strategic::patch(r, old, document).map_err(|why| ApiError::invalid(r, name, "patch", &why))
        }
        Patch::Apply(document) => {
            let document = into_map(document)?;
            Ok(strategic::apply(r, old, document))
        }
    }
}

/// RFC 7396.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(&key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn expect_map(document: &Value) -> Result<(), ApiError> {
    if document.is_object() { Ok(()) } else { Err(ApiError::bad_request("a merge patch must be a JSON object")) }
}

fn into_map(document: Value) -> Result<Map<String, Value>, ApiError> {
    match document {
        Value::Object(map) => Ok(map),
        _ => Err(ApiError::bad_request("the patch must be a JSON object")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resources::{PODS, WORKFLOWS};

    #[test]
    fn merge_patches_follow_rfc_7396() {
        // The examples of the RFC's appendix that concern objects.
        for (target, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
            (json!({"a": "b"}), json!({"a": null}), json!({})),
            (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
            (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
            (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
            (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
            (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
            (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
            (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        ] {
            let mut object = target.clone();
            merge(&mut object, patch.clone());
            assert_eq!(object, expected, "{target} + {patch}");
        }
    }

    #[test]
    fn json_patches_are_atomic_and_tests_refuse() {
        let old = json!({"a": 1, "list": [1, 2]});
        let ok = json!([{"op": "test", "path": "/a", "value": 1}, {"op": "add", "path": "/list/-", "value": 3}]);
        assert_eq!(apply(&PODS, "p", &old, Patch::Json(ok)).unwrap(), json!({"a": 1, "list": [1, 2, 3]}));
        let no = json!([{"op": "remove", "path": "/list"}, {"op": "test", "path": "/a", "value": 2}]);
        assert_eq!(apply(&PODS, "p", &old, Patch::Json(no)).unwrap_err().code, 422);
        assert_eq!(apply(&PODS, "p", &old, Patch::Json(json!({"op": "x"}))).unwrap_err().code, 400);
    }

    #[test]
    fn strategic_merge_is_for_native_kinds() {
        let refused = apply(&WORKFLOWS, "w", &json!({}), Patch::Strategic(json!({}))).unwrap_err();
        assert_eq!(refused.code, 415);
        assert!(apply(&PODS, "p", &json!({}), Patch::Strategic(json!([]))).is_err());
        assert!(apply(&PODS, "p", &json!({}), Patch::Merge(json!(1))).is_err());
    }
}
