//! What is decided about PipelineVersion objects; no input or output here.

use serde_json::{Map, Value, json};

use crate::catalog::objects::{self, API_VERSION, PIPELINE_ID, PIPELINE_NAME};
use crate::domain::names;
use crate::domain::nodes::text;
use crate::workflows::template::Template;

/// Longest value of a label, in bytes.
const LABEL: usize = 63;
/// What may change in a version.
const MUTABLE: [&str; 2] = ["displayName", "tags"];

/// Whether a new version may be stored.
pub fn check_new(version: &Value) -> Result<(), String> {
    let invalid = |error: crate::error::Error| format!("The pipeline spec is invalid: {error}");
    match objects::template(version).map_err(invalid)? {
        Template::Pipeline(package) => names::spec_name(package.name()).map_err(|error| error.external().to_owned()),
        Template::Workflow(_) => Err("The pipeline spec is invalid: it is an Argo Workflow".to_owned()),
    }
}

/// The spec without what may change, and without what is as good as absent.
fn fixed(version: &Value) -> Map<String, Value> {
    let spec = version["spec"].as_object().cloned().unwrap_or_default();
    let empty = |value: &Value| value.is_null() || value == "";
    spec.into_iter().filter(|(key, value)| !MUTABLE.contains(&key.as_str()) && !empty(value)).collect()
}

/// Whether a stored version may be replaced.
pub fn check_change(old: &Value, new: &Value) -> Result<(), String> {
    // Metadata and status change without a new generation.
    if old["metadata"]["generation"] == new["metadata"]["generation"] || fixed(old) == fixed(new) {
        return Ok(());
    }
    Err("Pipeline spec is immutable; only mutable fields (display_name, tags) can be updated".to_owned())
}

fn step(path: &str, value: Value) -> Value {
    // "add" replaces what is there.
    json!({"op": "add", "path": path, "value": value})
}

/// The patch that ties a version to its pipeline; empty when it is tied already.
pub fn completion(version: &Value, pipeline: &Value) -> Vec<Value> {
    let (name, uid) = (text(pipeline, "/metadata/name"), text(pipeline, "/metadata/uid"));
    let mut short = name;
    while short.len() > LABEL {
        short = &short[..short.floor_char_boundary(LABEL)];
    }
    // A label must not end like this.
    let short = short.trim_end_matches(['-', '.']);
    let mut patch = Vec::new();
    let labels = &version["metadata"]["labels"];
    let mut wanted = labels.as_object().cloned().unwrap_or_default();
    wanted.insert(PIPELINE_ID.to_owned(), json!(uid));
    wanted.insert(PIPELINE_NAME.to_owned(), json!(short));
    if labels.as_object() != Some(&wanted) {
        patch.push(step("/metadata/labels", json!(wanted)));
    }
    let owners = &version["metadata"]["ownerReferences"];
    let mut all = owners.as_array().cloned().unwrap_or_default();
    let owner = json!({
        "apiVersion": API_VERSION, "kind": "Pipeline", "name": name, "uid": uid, "blockOwnerDeletion": true,
    });
    match all.iter_mut().find(|owner| owner["apiVersion"] == API_VERSION && owner["kind"] == "Pipeline") {
        Some(known) => {
            for key in ["name", "uid", "blockOwnerDeletion"] {
                known[key] = owner[key].clone();
            }
        }
        None => all.push(owner),
    }
    if owners.as_array() != Some(&all) {
        patch.push(step("/metadata/ownerReferences", json!(all)));
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> Value {
        json!({
            "pipelineInfo": {"name": name}, "root": {"dag": {"tasks": {}}}, "schemaVersion": "2.1.0",
            "deploymentSpec": {"executors": {}},
        })
    }

    fn version(spec: Value) -> Value {
        json!({"metadata": {"generation": 1}, "spec": {"pipelineName": "p", "pipelineSpec": spec}})
    }

    #[test]
    fn new_versions_hold_a_pipeline_spec() {
        assert_eq!(check_new(&version(spec("p"))), Ok(()));
        // Platforms that are not known are not looked at.
        let mut other = version(spec("p"));
        other["spec"]["platformSpec"] = json!({"platforms": {"vertex": 1}});
        assert_eq!(check_new(&other), Ok(()));
        for (bad, text) in [
            (spec("p.q"), "pipeline's name must contain only lowercase"),
            (spec("P P"), "The pipeline spec is invalid"),
            (json!({}), "The pipeline spec is invalid"),
            (json!(null), "The pipeline spec is invalid"),
            (
                json!({"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "spec": {}}),
                "The pipeline spec is invalid",
            ),
        ] {
            let error = check_new(&version(bad)).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn only_name_and_tags_of_a_version_change() {
        let old = version(spec("p"));
        let changed = |change: fn(&mut Value)| {
            let mut new = old.clone();
            change(&mut new);
            check_change(&old, &new)
        };
        assert_eq!(
            changed(|new| {
                new["metadata"]["generation"] = json!(2);
                new["spec"]["displayName"] = json!("Shown");
                new["spec"]["tags"] = json!({"a": "b"});
                new["spec"]["description"] = json!("");
            }),
            Ok(())
        );
        // Seen only in the generation: defaults may have been filled in.
        assert_eq!(changed(|new| new["spec"]["extra"] = json!(1)), Ok(()));
        for field in ["pipelineSpec", "pipelineName", "description", "versionName"] {
            let mut new = old.clone();
            new["metadata"]["generation"] = json!(2);
            new["spec"][field] = json!("other");
            assert!(check_change(&old, &new).unwrap_err().contains("immutable"), "{field}");
        }
    }

    #[test]
    fn versions_are_tied_to_their_pipeline_once() {
        let name = format!("{}-{}", "a".repeat(62), "b".repeat(10));
        let pipeline = json!({"metadata": {"name": name, "uid": "u"}});
        let mut version = json!({"metadata": {
            "labels": {"x": "y"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "c"}],
        }});
        let patch = completion(&version, &pipeline);
        let labels = &patch[0]["value"];
        assert_eq!(
            (&labels["x"], &labels[PIPELINE_ID], &labels[PIPELINE_NAME]),
            (&json!("y"), &json!("u"), &json!("a".repeat(62)))
        );
        let owners = &patch[1]["value"];
        assert_eq!((owners.as_array().unwrap().len(), &owners[1]["uid"]), (2, &json!("u")));
        version["metadata"]["labels"] = labels.clone();
        version["metadata"]["ownerReferences"] = owners.clone();
        assert!(completion(&version, &pipeline).is_empty());
        // The pipeline was made anew.
        let again = completion(&version, &json!({"metadata": {"name": name, "uid": "v"}}));
        assert_eq!(again[1]["value"][1]["uid"], "v");
        assert_eq!(again[1]["value"].as_array().unwrap().len(), 2);
    }
}
