//! Builds the pod of a node.

use crate::strategic;
use crate::substitute::{self, Scope};
use kfp_core::argo::{Inputs, Metadata, Spec, Template, names};
use serde_json::{Map, Value, json};

/// Annotation of this engine: the Retry node whose attempt a pod is. The pod runner lets attempts share their scratch.
pub const ANNOTATION_RETRY_PARENT: &str = "workflows.argoproj.io/retry-parent";

/// Where the pod runner puts the source of a script, as Argo does.
const SCRIPT: &str = "/argo/staging/script";

/// Facts about the workflow and node a pod belongs to.
pub struct Context<'a> {
    /// Name of the Workflow.
    pub workflow: &'a str,
    /// Namespace of the Workflow.
    pub namespace: &'a str,
    /// Identity of the Workflow.
    pub uid: &'a str,
    /// Full name of the node.
    pub node_name: &'a str,
    /// Identifier of the node.
    pub node_id: &'a str,
    /// Name of the pod.
    pub pod_name: &'a str,
    /// Inputs of the node.
    pub inputs: Option<&'a Inputs>,
    /// Identifier of the Retry node that this is an attempt of.
    pub retry_parent: Option<&'a str>,
    /// Part of an exit handler.
    pub on_exit: bool,
    /// Spec of the Workflow.
    pub spec: &'a Spec,
    /// Volumes of the claims made for the Workflow.
    pub claims: &'a [Value],
    /// `artifactRepository` of the installation.
    pub repository: &'a Value,
    /// Others refer to the standard output.
    pub result: bool,
}

/// Why a pod cannot be built.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A tag in the template must resolve but does not.
    #[error(transparent)]
    Tag(#[from] substitute::Error),
    /// The template has no usable container.
    #[error("template '{0}': {1}")]
    Template(String, String),
    /// The patch is neither JSON nor YAML of a map.
    #[error("invalid podSpecPatch of template '{0}': {1}")]
    Patch(String, String),
}

/// Members of a template or Workflow spec that go into the pod's spec as they are.
const PASSED_ON: [&str; 14] = [
    "nodeSelector",
    "tolerations",
    "affinity",
    "hostAliases",
    "schedulerName",
    "priorityClassName",
    "automountServiceAccountToken",
    "serviceAccountName",
    "imagePullSecrets",
    "hostNetwork",
    "dnsPolicy",
    "dnsConfig",
    "priority",
    "runtimeClassName",
];

/// Builds the pod object of a container or script template.
///
/// # Errors
/// When a tag does not resolve, the container is malformed or the patch is.
pub fn build(context: &Context<'_>, template: &Template, scope: &dyn Scope) -> Result<Value, Error> {
    let malformed = |why: &str| Error::Template(template.name.clone(), why.to_owned());
    let main = match (&template.container, &template.script) {
        (Some(container), _) => container.clone(),
        (None, Some(script)) => script_container(script).ok_or_else(|| malformed("script is not a map"))?,
        (None, None) => match &template.resource {
            Some(resource) => json!({"command": ["argoexec", "resource", resource["action"]]}),
            None => return Err(malformed("has no container")),
        },
    };
    let Value::Object(mut main) = substitute::json(&main, scope)? else {
        return Err(malformed("container is not a map"));
    };
    main.insert("name".to_owned(), json!(names::MAIN_CONTAINER));
    add_env(context, &mut main);
    let mounts = main.get("volumeMounts").cloned();

    let others = |list: &[Value]| -> Result<Vec<Value>, Error> {
        list.iter()
            .map(|container| {
                let Value::Object(mut container) = substitute::json(container, scope)? else {
                    return Err(malformed("init container or sidecar is not a map"));
                };
                if container.remove("mirrorVolumeMounts") == Some(Value::Bool(true)) {
                    mirror(&mut container, mounts.as_ref());
                }
                add_env(context, &mut container);
                Ok(Value::Object(container))
            })
            .collect()
    };
    let init = others(&template.init_containers)?;
    let mut containers = vec![Value::Object(main)];
    containers.extend(others(&template.sidecars)?);

    let mut spec = Map::new();
    for key in PASSED_ON {
        if let Some(value) = template.extra.get(key).or_else(|| context.spec.extra.get(key)) {
            spec.insert(key.to_owned(), substitute::json(value, scope)?);
        }
    }
    if let (None, Some(account)) = (spec.get("serviceAccountName"), &context.spec.service_account_name) {
        spec.insert("serviceAccountName".to_owned(), json!(account));
    }
    if let Some(security) = template.security_context.as_ref().or(context.spec.security_context.as_ref()) {
        spec.insert("securityContext".to_owned(), security.clone());
    }
    if let Some(deadline) = &template.active_deadline_seconds {
        let text = substitute::text(deadline, scope)?;
        let seconds: i64 =
            text.trim().parse().map_err(|_| malformed(&format!("activeDeadlineSeconds '{text}' is not a number")))?;
        spec.insert("activeDeadlineSeconds".to_owned(), json!(seconds));
    }
    let volumes = volumes(context, template, scope)?;
    if !volumes.is_empty() {
        spec.insert("volumes".to_owned(), Value::Array(volumes));
    }
    if !init.is_empty() {
        spec.insert("initContainers".to_owned(), Value::Array(init));
    }
    spec.insert("containers".to_owned(), Value::Array(containers));
    spec.insert("restartPolicy".to_owned(), json!("Never"));
    for patch in [&context.spec.pod_spec_patch, &template.pod_spec_patch].into_iter().flatten() {
        apply_patch(&mut spec, &substitute::text(patch, scope)?)
            .map_err(|why| Error::Patch(template.name.clone(), why))?;
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(context, template, scope)?,
        "spec": spec,
    }))
}

fn apply_patch(spec: &mut Map<String, Value>, text: &str) -> Result<(), String> {
    if text.trim().is_empty() {
        return Ok(());
    }
    let patch: Value = match serde_json::from_str(text) {
        Ok(patch) => patch,
        Err(_) => serde_norway::from_str(text).map_err(|error| error.to_string())?,
    };
    match patch {
        Value::Object(patch) => strategic::merge(spec, &patch),
        Value::Null => {}
        other => return Err(format!("\"{other}\" is not a map")),
    }
    Ok(())
}

fn metadata(context: &Context<'_>, template: &Template, scope: &dyn Scope) -> Result<Value, Error> {
    let mut labels = Map::new();
    labels.insert(names::LABEL_COMPLETED.to_owned(), json!("false"));
    labels.insert(names::LABEL_WORKFLOW.to_owned(), json!(context.workflow));
    if context.on_exit {
        labels.insert(names::LABEL_ON_EXIT.to_owned(), json!("true"));
    }
    let mut annotations = Map::new();
    annotations.insert(names::ANNOTATION_NODE_NAME.to_owned(), json!(context.node_name));
    annotations.insert(names::ANNOTATION_NODE_ID.to_owned(), json!(context.node_id));
    annotations.insert(names::ANNOTATION_DEFAULT_CONTAINER.to_owned(), json!(names::MAIN_CONTAINER));
    if let Some(parent) = context.retry_parent {
        annotations.insert(ANNOTATION_RETRY_PARENT.to_owned(), json!(parent));
    }
    for Metadata { labels: more_labels, annotations: more_annotations } in
        context.spec.pod_metadata.iter().chain([&template.metadata])
    {
        for (map, more) in [(&mut labels, more_labels), (&mut annotations, more_annotations)] {
            for (key, value) in more {
                let value = substitute::text(value, scope)?.into_owned();
                map.insert(substitute::text(key, scope)?.into_owned(), Value::String(value));
            }
        }
    }
    annotations.insert(names::ANNOTATION_TEMPLATE.to_owned(), Value::String(contract(context, template, scope)?));
    Ok(json!({
        "name": context.pod_name,
        "namespace": context.namespace,
        "labels": labels,
        "annotations": annotations,
        "ownerReferences": [{
            "apiVersion": kfp_core::argo::API_VERSION,
            "kind": kfp_core::argo::KIND,
            "name": context.workflow,
            "uid": context.uid,
            "controller": true,
            "blockOwnerDeletion": true,
        }],
    }))
}

/// What the pod runner has to know of the template: its script, artifacts and where they go, outputs, and the object
/// of a resource template.
/// The containers are in the pod already and are not repeated.
fn contract(context: &Context<'_>, template: &Template, scope: &dyn Scope) -> Result<String, Error> {
    let outputs = serde_json::to_value(&template.outputs).unwrap_or_default();
    let mut contract = json!({
        "name": template.name,
        "container": {"name": names::MAIN_CONTAINER},
        "outputs": substitute::json(&outputs, scope)?,
    });
    // Resolved already: what came in as a value is not looked through for tags.
    if let Some(inputs) = context.inputs.filter(|inputs| !inputs.artifacts.is_empty()) {
        contract["inputs"] = json!({"artifacts": inputs.artifacts});
    }
    if let Some(source) = template.script.as_ref().and_then(|script| script.get("source")) {
        contract["script"] = json!({"source": substitute::json(source, scope)?});
    }
    if let Some(resource) = &template.resource {
        contract["resource"] = substitute::json(resource, scope)?;
    }
    if let Some(location) = crate::repository::location(context.repository, context.spec, template, scope)? {
        contract["archiveLocation"] = location;
    }
    Ok(contract.to_string())
}

fn add_env(context: &Context<'_>, container: &mut Map<String, Value>) {
    let name = container.get("name").cloned().unwrap_or_default();
    let env = container.entry("env").or_insert_with(|| json!([]));
    if env.is_null() {
        *env = json!([]);
    }
    if let Value::Array(env) = env {
        env.push(json!({"name": "ARGO_CONTAINER_NAME", "value": name}));
        env.push(json!({"name": "ARGO_NODE_ID", "value": context.node_id}));
        env.push(json!({"name": "ARGO_WORKFLOW_NAME", "value": context.workflow}));
        let wanted = context.result && name == names::MAIN_CONTAINER;
        env.push(json!({"name": "ARGO_INCLUDE_SCRIPT_OUTPUT", "value": wanted.to_string()}));
    }
}

/// Adds the main container's mounts to another container, where it has none at that path.
fn mirror(container: &mut Map<String, Value>, mounts: Option<&Value>) {
    let Some(Value::Array(mounts)) = mounts else { return };
    if let Value::Array(own) = container.entry("volumeMounts").or_insert_with(|| json!([])) {
        for mount in mounts {
            if !own.iter().any(|old| old.get("mountPath") == mount.get("mountPath")) {
                own.push(mount.clone());
            }
        }
    }
}

fn volumes(context: &Context<'_>, template: &Template, scope: &dyn Scope) -> Result<Vec<Value>, Error> {
    let mut volumes: Vec<Value> = Vec::new();
    for volume in template.volumes.iter().chain(&context.spec.volumes).chain(context.claims) {
        let Value::Object(mut volume) = substitute::json(volume, scope)? else { continue };
        if volume.len() == 1 && volume.contains_key("name") {
            volume.insert("emptyDir".to_owned(), json!({}));
        }
        if !volumes.iter().any(|old| old.get("name") == volume.get("name")) {
            volumes.push(Value::Object(volume));
        }
    }
    Ok(volumes)
}

/// The container of a script: its command with the file that the pod runner makes of the source.
fn script_container(script: &Value) -> Option<Value> {
    let mut container = script.as_object()?.clone();
    container.remove("source");
    let mut command = match container.remove("command") {
        Some(Value::Array(words)) if !words.is_empty() => words,
        _ => vec![json!("sh")],
    };
    command.push(json!(SCRIPT));
    container.insert("command".to_owned(), Value::Array(command));
    Some(Value::Object(container))
}
