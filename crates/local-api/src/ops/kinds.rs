//! What single kinds need on the way in: defaults that Kubernetes' controllers and admission would
//! set, and required fields.

use base64::Engine as _;
use serde_json::{Value, json};

use crate::resource::{Resource, resources};
use crate::{ApiError, object};

/// Sets what Kubernetes sets when an object is created.
pub(super) fn default(r: &Resource, object: &mut Value) {
    let is = |other: &Resource| (r.group, r.plural) == (other.group, other.plural);
    if is(&resources::PODS) {
        set(object, &["status", "phase"], json!("Pending"));
        set(object, &["spec", "restartPolicy"], json!("Always"));
        set(object, &["spec", "serviceAccountName"], json!("default"));
    } else if is(&resources::NAMESPACES) {
        set(object, &["status", "phase"], json!("Active"));
        if let Some(name) = object::meta(object, "name").map(str::to_string) {
            set(object, &["metadata", "labels", "kubernetes.io/metadata.name"], json!(name));
        }
    } else if is(&resources::PERSISTENT_VOLUME_CLAIMS) {
        // There is one node and a claim is a directory on it: nothing to wait for.
        set(object, &["status", "phase"], json!("Bound"));
        if let Some(modes) = object["spec"].get("accessModes").cloned() {
            set(object, &["status", "accessModes"], modes);
        }
        if let Some(requests) = object["spec"]["resources"].get("requests").cloned() {
            set(object, &["status", "capacity"], requests);
        }
    } else if is(&resources::SECRETS) {
        set(object, &["type"], json!("Opaque"));
        encode_string_data(object);
    } else if is(&resources::SERVICES) {
        set(object, &["spec", "type"], json!("ClusterIP"));
        set(object, &["spec", "clusterIP"], json!("None"));
    } else if is(&resources::CUSTOM_RESOURCE_DEFINITIONS) {
        let names = object["spec"]["names"].clone();
        let now = object::now();
        let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now});
        let status = json!({
            "acceptedNames": names,
            "conditions": [
                condition("NamesAccepted", "NoConflicts", "no conflicts found"),
                condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
            ],
        });
        if let Some(map) = object.as_object_mut() {
            map.insert("status".into(), status);
        }
    }
}

/// What must hold on every write: secrets' `stringData` is folded into `data`.
pub(super) fn normalise(r: &Resource, object: &mut Value) {
    if (r.group, r.plural) == (resources::SECRETS.group, resources::SECRETS.plural) {
        encode_string_data(object);
    }
}

fn encode_string_data(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    let Some(Value::Object(plain)) = map.remove("stringData") else { return };
    let data = map.entry("data").or_insert_with(|| json!({}));
    for (key, value) in plain {
        if let (Some(text), Some(data)) = (value.as_str(), data.as_object_mut()) {
            data.insert(key, base64::engine::general_purpose::STANDARD.encode(text).into());
        }
    }
}

/// Sets a nested field that is missing or empty; a path through something that is not a map is left.
fn set(object: &mut Value, path: &[&str], value: Value) {
    let Some((last, parents)) = path.split_last() else { return };
    let mut place = object;
    for key in parents {
        let Some(map) = place.as_object_mut() else { return };
        place = map.entry(*key).or_insert_with(|| json!({}));
        if place.is_null() {
            *place = json!({});
        }
    }
    if let Some(map) = place.as_object_mut()
        && map.get(*last).is_none_or(|old| old.is_null() || old == "")
    {
        map.insert((*last).to_string(), value);
    }
}

/// Fields the kinds' own definitions require, as far as a missing one would surprise later.
const REQUIRED: &[(&Resource, &[&str])] = &[
    (&resources::WORKFLOWS, &["spec"]),
    (&resources::WORKFLOW_TEMPLATES, &["spec"]),
    (&resources::CLUSTER_WORKFLOW_TEMPLATES, &["spec"]),
    (&resources::CRON_WORKFLOWS, &["spec"]),
    (&resources::SCHEDULED_WORKFLOWS, &["spec", "status"]),
    (&resources::PIPELINE_VERSIONS, &["spec", "spec.pipelineSpec"]),
    (
        &resources::CUSTOM_RESOURCE_DEFINITIONS,
        &["spec", "spec.group", "spec.names.plural", "spec.names.kind", "spec.versions"],
    ),
];

/// Checks an object before it is stored.
///
/// # Errors
/// 422 naming the field.
pub(super) fn check(r: &Resource, name: &str, object: &Value) -> Result<(), ApiError> {
    let required = REQUIRED.iter().find(|(kind, _)| (kind.group, kind.plural) == (r.group, r.plural));
    for path in required.map_or(&[][..], |(_, fields)| fields) {
        if path.split('.').try_fold(object, |value, key| value.get(key)).is_none_or(Value::is_null) {
            return Err(ApiError::invalid(r, name, path, "Required value"));
        }
    }
    if (r.group, r.plural) == (resources::PODS.group, resources::PODS.plural) {
        check_containers(r, name, object)?;
    }
    if (r.group, r.plural)
        == (resources::CUSTOM_RESOURCE_DEFINITIONS.group, resources::CUSTOM_RESOURCE_DEFINITIONS.plural)
    {
        let part = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let expected = format!("{}.{}", part(&object["spec"]["names"]["plural"]), part(&object["spec"]["group"]));
        if name != expected {
            return Err(ApiError::invalid(
                r,
                name,
                "metadata.name",
                &format!("Invalid value: \"{name}\": must be spec.names.plural+\".\"+spec.group"),
            ));
        }
    }
    Ok(())
}

fn check_containers(r: &Resource, name: &str, pod: &Value) -> Result<(), ApiError> {
    if pod["spec"]["containers"].as_array().is_none_or(Vec::is_empty) {
        return Err(ApiError::invalid(r, name, "spec.containers", "Required value"));
    }
    let mut seen = std::collections::BTreeSet::new();
    for field in ["initContainers", "containers"] {
        for (index, container) in pod["spec"][field].as_array().into_iter().flatten().enumerate() {
            let place = format!("spec.{field}[{index}].name");
            let Some(own) = container["name"].as_str().filter(|own| !own.is_empty()) else {
                return Err(ApiError::invalid(r, name, &place, "Required value"));
            };
            if !seen.insert(own) {
                return Err(ApiError::invalid(r, name, &place, &format!("Duplicate value: \"{own}\"")));
            }
        }
    }
    Ok(())
}
