//! Pipelines and versions as Kubernetes objects of `pipelines.kubeflow.org/v2beta1`.

use serde_json::{Value, json};

use crate::domain::names;
use crate::domain::nodes::{seconds, text};
use crate::error::{Error, Result};
use crate::store::pipelines::Pipeline;
use crate::store::tagged::Tags;
use crate::store::versions::Version;
use crate::workflows::template::Template;

/// Group and version of both kinds.
pub const API_VERSION: &str = "pipelines.kubeflow.org/v2beta1";
/// Label of a version with the uid of its pipeline.
pub const PIPELINE_ID: &str = "pipelines.kubeflow.org/pipeline-id";
/// Label of a version with the beginning of its pipeline's name.
pub const PIPELINE_NAME: &str = "pipelines.kubeflow.org/pipeline";
/// Condition that says whether a version is to be used.
const CONDITION: &str = "PipelineVersionStatus";
const READY: &str = "READY";
/// Longest name of an object, in bytes.
const NAME: usize = 253;

fn checked(what: &str, name: &str) -> Result<()> {
    if names::is_subdomain(name) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "Invalid {what} name \"{name}\": a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, \
         '-' or '.', and must start and end with an alphanumeric character. Use 'display_name' for human-readable labels"
    )))
}

fn tags_of(object: &Value) -> Tags {
    let tags = object["spec"]["tags"].as_object().into_iter().flatten();
    tags.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// Sets a text of the spec, or removes it.
fn set(object: &mut Value, key: &str, value: &str) {
    let Some(spec) = object["spec"].as_object_mut() else { return };
    if value.is_empty() {
        spec.remove(key);
    } else {
        spec.insert(key.to_owned(), json!(value));
    }
}

/// Changes display name and tags; an empty display name and absent tags leave them as they are.
pub fn change(object: &mut Value, display_name: &str, tags: Option<&Tags>) {
    if !object["spec"].is_object() {
        object["spec"] = json!({});
    }
    if !display_name.is_empty() {
        set(object, "displayName", display_name);
    }
    match tags {
        Some(tags) if tags.is_empty() => drop(object["spec"].as_object_mut().map(|spec| spec.remove("tags"))),
        Some(tags) => object["spec"]["tags"] = json!(tags),
        None => {}
    }
}

/// The pipeline that an object holds.
#[must_use]
pub fn pipeline(object: &Value) -> Pipeline {
    let name = text(object, "/metadata/name");
    let display_name = text(object, "/spec/displayName");
    Pipeline {
        id: text(object, "/metadata/uid").to_owned(),
        created_at: seconds(&object["metadata"]["creationTimestamp"]),
        name: name.to_owned(),
        display_name: if display_name.is_empty() { name } else { display_name }.to_owned(),
        description: text(object, "/spec/description").to_owned(),
        namespace: text(object, "/metadata/namespace").to_owned(),
        tags: tags_of(object),
    }
}

/// The object that holds a pipeline.
///
/// # Errors
/// Code 3 when the name cannot be an object's.
pub fn of_pipeline(pipeline: &Pipeline) -> Result<Value> {
    checked("pipeline", &pipeline.name)?;
    let mut object = json!({
        "apiVersion": API_VERSION, "kind": "Pipeline",
        "metadata": {"name": pipeline.name, "namespace": pipeline.namespace}, "spec": {},
    });
    set(&mut object, "description", &pipeline.description);
    change(&mut object, &pipeline.display_name, Some(&pipeline.tags));
    Ok(object)
}

/// Uid of the pipeline that owns a version, or empty.
#[must_use]
pub fn owner(object: &Value) -> &str {
    let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let mut owners = owners.filter(|owner| owner["apiVersion"] == API_VERSION && owner["kind"] == "Pipeline");
    owners.next().map_or("", |owner| text(owner, "/uid"))
}

/// Whether a version is to be used; those that a user created have no condition.
#[must_use]
pub fn is_ready(object: &Value) -> bool {
    condition(object).is_none_or(|reason| reason == READY)
}

fn condition(object: &Value) -> Option<&str> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == CONDITION)?["reason"].as_str()
}

/// Marks a version as one to be used. False when it is already.
pub fn set_ready(object: &mut Value) -> bool {
    if condition(object) == Some(READY) {
        return false;
    }
    let mut all = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    all.retain(|condition| condition["type"] != CONDITION);
    all.push(json!({"type": CONDITION, "status": "True", "reason": READY, "message": READY}));
    object["status"] = json!({"conditions": all});
    true
}

/// The package that a version object holds.
///
/// # Errors
/// Code 3 when it is none.
pub fn template(object: &Value) -> Result<Template> {
    let spec = &object["spec"];
    let platform = &spec["platformSpec"];
    let value = if platform["platforms"].get("kubernetes").is_some() {
        json!({"pipeline_spec": spec["pipelineSpec"], "platform_spec": platform})
    } else {
        spec["pipelineSpec"].clone()
    };
    match Template::from_json(value)? {
        Template::Workflow(_) => Err(Error::invalid("it is an Argo Workflow")),
        template => Ok(template),
    }
}

/// The version that an object holds.
#[must_use]
pub fn version(object: &Value) -> Version {
    let given = |pointer: &str, otherwise: &str| match text(object, pointer) {
        "" => otherwise.to_owned(),
        text => text.to_owned(),
    };
    let name = given("/spec/versionName", text(object, "/metadata/name"));
    Version {
        id: text(object, "/metadata/uid").to_owned(),
        created_at: seconds(&object["metadata"]["creationTimestamp"]),
        display_name: given("/spec/displayName", &name),
        name,
        pipeline_id: owner(object).to_owned(),
        code_source_url: text(object, "/spec/codeSourceURL").to_owned(),
        description: text(object, "/spec/description").to_owned(),
        spec_uri: text(object, "/spec/pipelineSpecURI").to_owned(),
        parameters: "[]".to_owned(),
        // What is no package is shown with the reason, like a damaged row.
        spec: template(object).map_or_else(|_| object["spec"]["pipelineSpec"].to_string(), |template| template.text()),
        tags: tags_of(object),
    }
}

/// Name of the object that holds a version.
///
/// # Errors
/// Code 3 when it cannot be one.
pub fn version_name(pipeline: &str, version: &str) -> Result<String> {
    checked("pipeline version", version)?;
    if pipeline == version {
        return Ok(version.to_owned());
    }
    let name = format!("{pipeline}-{version}");
    if name.len() > NAME {
        return Err(Error::invalid(format!(
            "The combined pipeline and version name \"{name}\" exceeds the Kubernetes {NAME}-character naming limit"
        )));
    }
    Ok(name)
}

/// The object that holds a version of a pipeline.
///
/// # Errors
/// Code 3 when the name cannot be an object's, or for Argo Workflows.
pub fn of_version(pipeline: &Pipeline, version: &Version) -> Result<Value> {
    let Template::Pipeline(package) = Template::from_text(version.spec.as_bytes())? else {
        return Err(Error::invalid(
            "Invalid pipeline spec: Argo Workflows cannot be kept in the Kubernetes pipeline store",
        ));
    };
    let mut object = json!({
        "apiVersion": API_VERSION, "kind": "PipelineVersion",
        "metadata": {
            "name": version_name(&pipeline.name, &version.name)?, "namespace": pipeline.namespace,
            "labels": {PIPELINE_ID: pipeline.id},
            "ownerReferences": [
                {"apiVersion": API_VERSION, "kind": "Pipeline", "name": pipeline.name, "uid": pipeline.id},
            ],
        },
        "spec": {
            "pipelineName": pipeline.name, "versionName": version.name, "pipelineSpec": package.spec_json(),
        },
    });
    if let Some(platform) = package.platform_json() {
        object["spec"]["platformSpec"] = platform;
    }
    set(&mut object, "description", &version.description);
    set(&mut object, "codeSourceURL", &version.code_source_url);
    set(&mut object, "pipelineSpecURI", &version.spec_uri);
    change(&mut object, &version.display_name, Some(&version.tags));
    Ok(object)
}
