//! Pipeline-wide settings of the Kubernetes platform: workspace, time to live, deadline.

use kfp_core::ir;
use kfp_proto::ml_pipelines::{PipelineConfig, WorkspaceConfig};
use serde_json::{Map, Value, json};

use crate::{Error, quantity, templates::WORKSPACE};

/// `spec.ttlStrategy`, if any time to live is above zero.
pub fn ttl(config: &PipelineConfig) -> Option<Value> {
    let fields: Map<String, Value> = [
        ("secondsAfterCompletion", config.resource_ttl_on_completion),
        ("secondsAfterSuccess", config.resource_ttl_on_success),
        ("secondsAfterFailure", config.resource_ttl_on_failure),
    ]
    .into_iter()
    .filter(|(_, seconds)| *seconds > 0)
    .map(|(key, seconds)| (key.to_owned(), seconds.into()))
    .collect();
    (!fields.is_empty()).then_some(Value::Object(fields))
}

/// The claim template of the pipeline's workspace; `None` for a workspace without a `kubernetes` part, as upstream.
///
/// # Errors
/// [`Error::Spec`] with upstream's texts.
pub fn workspace_claim(config: &WorkspaceConfig, default: Option<&Value>) -> Result<Option<Value>, Error> {
    let Some(kubernetes) = &config.kubernetes else { return Ok(None) };
    if config.size.is_empty() {
        return Err(Error::spec("workspace size is required but not specified"));
    }
    let mut claim = default.and_then(Value::as_object).cloned().unwrap_or_default();
    if let Some(patch) = &kubernetes.pvc_spec_patch {
        apply(&mut claim, &ir::struct_to_json(patch))?;
    }
    if claim.get("accessModes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
        return Err(Error::spec("workspace PVC spec must specify accessModes"));
    }
    if claim.get("storageClassName").and_then(Value::as_str) == Some("") {
        return Err(Error::spec("workspace PVC spec storageClassName must be omitted or set to a non-empty value"));
    }
    let (size, negative) = quantity::canonical(&config.size)
        .map_err(|e| Error::spec(format!("invalid size value for workspace PVC: {e}")))?;
    if negative {
        return Err(Error::spec(format!("negative size value for workspace PVC: {}", config.size)));
    }
    claim.insert("resources".into(), json!({"requests": {"storage": size}}));
    Ok(Some(json!({"metadata": {"name": WORKSPACE}, "spec": claim})))
}

fn apply(claim: &mut Map<String, Value>, patch: &Value) -> Result<(), Error> {
    let fields = patch.as_object().cloned().unwrap_or_default();
    let unknown: Vec<&str> =
        fields.keys().map(String::as_str).filter(|key| !["accessModes", "storageClassName"].contains(key)).collect();
    if !unknown.is_empty() {
        return Err(Error::spec(format!("unknown fields in PVC spec patch: [{}]", unknown.join(" "))));
    }
    let wrong = |key: &str, what: &str| Error::spec(format!("PVC spec patch: {key} must be {what}"));
    for (key, value) in fields {
        match (key.as_str(), &value) {
            (_, Value::Null) => {}
            ("accessModes", Value::Array(modes)) if modes.iter().all(Value::is_string) => {
                if !modes.is_empty() {
                    claim.insert(key, value);
                }
            }
            ("accessModes", _) => return Err(wrong("accessModes", "a list of strings")),
            (_, Value::String(_)) => {
                claim.insert(key, value);
            }
            _ => return Err(wrong("storageClassName", "a string")),
        }
    }
    Ok(())
}
