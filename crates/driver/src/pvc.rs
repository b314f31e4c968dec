//! Creating and deleting persistent volume claims: tasks without a pod of their own, done by the driver itself.

use std::collections::BTreeMap;
use std::time::SystemTime;

use kfp_core::ir;
use kfp_core::kubeapi::{PERSISTENT_VOLUME_CLAIMS, PODS};
use kfp_core::mlmd::{self, Execution, Run, State, names};
use kfp_proto::ml_pipelines::ExecutorInput;
use prost_types::Value;
use prost_types::value::Kind;
use serde_json::{Value as Json, json};

use crate::container::{Reuse, create, look_up};
use crate::pod::check_quantity;
use crate::request::{Container, Request};
use crate::resolve::Inputs;
use crate::{Error, Services, dag, kubernetes};

/// What to do with a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Delete,
}

impl Operation {
    /// The operation that an image stands for.
    pub(crate) fn of(image: &str) -> Option<Self> {
        match image {
            "argostub/createpvc" => Some(Operation::Create),
            "argostub/deletepvc" => Some(Operation::Delete),
            _ => None,
        }
    }

    fn describe(self) -> &'static str {
        match self {
            Operation::Create => "create PVC",
            Operation::Delete => "delete PVC",
        }
    }
}

/// Annotation of a claim with the task that made it, by which a driver that runs again knows its own claim.
const MAKER: &str = "pipelines.kubeflow.org/created-by-task";

/// A claim to create.
#[derive(Debug, PartialEq)]
struct Claim {
    name: String,
    /// The name was made up, so no earlier execution can be the same.
    generated: bool,
    object: Json,
}

fn text<'a>(inputs: &'a BTreeMap<String, Value>, name: &str) -> Option<&'a str> {
    match &inputs.get(name)?.kind {
        Some(Kind::StringValue(text)) => Some(text),
        _ => None,
    }
}

/// The claim that the inputs describe, made by `maker`, from which a name follows that is not given.
fn claim(inputs: &BTreeMap<String, Value>, maker: &str) -> Result<Claim, String> {
    let unique = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, maker.as_bytes()).to_string();
    let given = |name| text(inputs, name).filter(|text| !text.is_empty());
    let modes = match inputs.get("access_modes").and_then(|value| value.kind.as_ref()) {
        Some(Kind::ListValue(list)) => list.values.iter().map(ir::to_json).collect::<Vec<_>>(),
        _ => return Err("failed to create pvc: parameter access_modes not provided".to_owned()),
    };
    for mode in &modes {
        kubernetes::access_mode(mode.as_str().unwrap_or_default())?;
    }
    let (name, generated) = match (given("pvc_name"), given("pvc_name_suffix")) {
        (Some(_), Some(_)) => {
            let text = "failed to create pvc: at most one of pvc_name and pvc_name_suffix can be non-empty";
            return Err(text.to_owned());
        }
        (Some(name), None) => (name.to_owned(), false),
        (None, Some(suffix)) => (format!("{unique}{suffix}"), true),
        (None, None) => (unique, true),
    };
    let size = text(inputs, "size").ok_or("failed to create pvc: parameter volumeSize not provided")?;
    check_quantity(size).map_err(|error| format!("failed to parse pvc size {size:?}: {error}"))?;
    let class = match inputs.get("storage_class_name") {
        None => "standard",
        Some(_) => text(inputs, "storage_class_name").unwrap_or_default(),
    };
    let mut spec =
        json!({"accessModes": modes, "resources": {"requests": {"storage": size}}, "storageClassName": class});
    if let Some(volume) = given("volume_name") {
        spec["volumeName"] = json!(volume);
    }
    match inputs.get("data_source").map(ir::to_json) {
        None | Some(Json::Null) => {}
        Some(source @ Json::Object(_)) => spec["dataSource"] = source,
        Some(other) => return Err(format!("failed to build data source: {other} is not a struct")),
    }
    let given = match inputs.get("annotations").map(ir::to_json) {
        Some(Json::Object(annotations)) => annotations,
        _ => serde_json::Map::new(),
    };
    let mut annotations: BTreeMap<&str, &str> =
        given.iter().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default())).collect();
    annotations.insert(MAKER, maker);
    let metadata = json!({"name": name, "annotations": annotations});
    let object = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec});
    Ok(Claim { name, generated, object })
}

/// Carries out the operation and records it: COMPLETE, CACHED or FAILED.
pub(crate) async fn operate(
    operation: Operation,
    request: &Request,
    container: &Container,
    run: &Run,
    inputs: Inputs,
    input: &ExecutorInput,
    services: &Services,
) -> Result<(), Error> {
    let failed = |reason: String| Error::Volume {
        operation: operation.describe(),
        task: container.task.display_name().to_owned(),
        reason,
    };
    let started = SystemTime::now();
    let claim = match operation {
        Operation::Create => claim(&inputs.parameters, &container.task.identity(&request.run.id)).map(Some),
        Operation::Delete => Ok(None),
    };
    // A made-up name goes into the fingerprint, not into the recorded inputs, so that nothing earlier matches.
    let mut identity = input.clone();
    if let Ok(Some(claim)) = &claim
        && claim.generated
    {
        let name = Value { kind: Some(Kind::StringValue(claim.name.clone())) };
        identity.inputs.get_or_insert_default().parameter_values.insert(claim.name.clone(), name);
    }
    let reuse = match look_up(request, container, &identity, None, services).await {
        Ok(reuse) => reuse,
        Err(error) => {
            tracing::warn!("going on without the cache: {error}");
            Reuse::default()
        }
    };
    let to_delete = text(&inputs.parameters, "pvc_name").map(str::to_owned);
    let (mut execution, earlier) = create(request, run, container, inputs, State::Running, &reuse, services).await?;
    if let Err(error) = set_pod(&mut execution, container, request, services).await {
        tracing::warn!("the driver's own pod is not recorded: {error}");
    }
    let fingerprint = reuse.fingerprint;
    let outcome = match (reuse.hit, claim) {
        (Some(hit), _) => Ok((State::Cached, hit.parameters)),
        (None, Ok(Some(claim))) => create_claim(&claim, request, services).await.map(|name| {
            let name = Value { kind: Some(Kind::StringValue(name)) };
            (State::Complete, BTreeMap::from([("name".to_owned(), name)]))
        }),
        (None, Ok(None)) => {
            let deleted = delete_claim(to_delete.as_deref(), earlier, request, services).await;
            deleted.map(|()| (State::Complete, BTreeMap::new()))
        }
        (None, Err(reason)) => Err(reason),
    };
    let (state, outputs) = match &outcome {
        Ok((state, outputs)) => (*state, Some(outputs.clone())),
        Err(reason) => {
            execution.set(names::ERROR_MESSAGE, mlmd::text(reason.clone()));
            (State::Failed, None)
        }
    };
    let published = services.metadata.publish(run, &execution, state, outputs, Vec::new()).await;
    let published = published.map_err(|error| failed(format!("failed to publish driver execution: {error}")));
    dag::tell(run, container.task.dag_execution_id, services).await;
    outcome.map_err(failed)?;
    published?;
    // Only creation is remembered: a deletion that was skipped would leave the claim behind.
    if state == State::Complete && operation == Operation::Create && !fingerprint.is_empty() {
        services.cache.store(request, execution.id(), &fingerprint, started).await?;
    }
    Ok(())
}

async fn create_claim(claim: &Claim, request: &Request, services: &Services) -> Result<String, String> {
    let client = services.kubernetes().map_err(|error| error.to_string())?;
    let namespace = &request.run.namespace;
    match client.create(PERSISTENT_VOLUME_CLAIMS, namespace, &claim.object).await {
        Ok(_) => Ok(claim.name.clone()),
        // Perhaps this task's driver made it and ended before it could say so.
        Err(error) if error.is_already_exists() => {
            let found = client.get(PERSISTENT_VOLUME_CLAIMS, namespace, &claim.name).await;
            let own = found.is_ok_and(|found| {
                let (found, made) = (&found["metadata"], &claim.object["metadata"]["annotations"][MAKER]);
                found["deletionTimestamp"].is_null() && found["annotations"][MAKER] == *made
            });
            if own { Ok(claim.name.clone()) } else { Err(format!("failed to create pvc: {error}")) }
        }
        Err(error) => Err(format!("failed to create pvc: {error}")),
    }
}

/// Deletes a claim. It must be there, unless `earlier` says that a driver of this very task came so far as to delete it.
async fn delete_claim(
    name: Option<&str>,
    earlier: Option<State>,
    request: &Request,
    services: &Services,
) -> Result<(), String> {
    let name =
        name.filter(|name| !name.is_empty()).ok_or("failed to delete pvc: required parameter pvc_name not provided")?;
    let client = services.kubernetes().map_err(|error| error.to_string())?;
    let namespace = &request.run.namespace;
    match client.get(PERSISTENT_VOLUME_CLAIMS, namespace, name).await {
        Err(error) if error.is_not_found() && matches!(earlier, Some(State::Running | State::Complete)) => {
            return Ok(());
        }
        found => found.map_err(|error| format!("failed to delete pvc {name}: cannot find pvc: {error}"))?,
    };
    client
        .delete(PERSISTENT_VOLUME_CLAIMS, namespace, name)
        .await
        .map_err(|error| format!("failed to delete pvc {name}: {error}"))
}

/// Records this driver's pod as the one that did the work.
async fn set_pod(
    execution: &mut Execution,
    container: &Container,
    request: &Request,
    services: &Services,
) -> Result<(), Error> {
    let (name, namespace) = (&container.pod.name, &request.run.namespace);
    execution.set(names::POD_NAME, mlmd::text(name.clone()));
    execution.set(names::NAMESPACE, mlmd::text(namespace.clone()));
    let uid = if container.pod.uid.is_empty() {
        let pod = services.kubernetes()?.get(PODS, namespace, name).await?;
        pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
    } else {
        container.pod.uid.clone()
    };
    execution.set(names::POD_UID, mlmd::text(uid));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(json: Json) -> BTreeMap<String, Value> {
        json.as_object().unwrap().iter().map(|(key, value)| (key.clone(), ir::from_json(value))).collect()
    }

    #[test]
    fn claims_follow_the_inputs() {
        let full = claim(
            &inputs(json!({"access_modes": ["ReadWriteOnce"], "size": "5Gi", "pvc_name": "data",
                "storage_class_name": "", "annotations": {"a": "b"}, "volume_name": "pv",
                "data_source": {"apiGroup": "g", "kind": "k", "name": "n"}})),
            "u",
        )
        .unwrap();
        assert_eq!(
            full.object,
            json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data", "annotations": {"a": "b", (MAKER): "u"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "5Gi"}},
                "storageClassName": "", "volumeName": "pv",
                "dataSource": {"apiGroup": "g", "kind": "k", "name": "n"}}})
        );
        assert!(!full.generated);
        let suffixed = claim(&inputs(json!({"access_modes": [], "size": "1", "pvc_name_suffix": "-x"})), "u").unwrap();
        let again = claim(&inputs(json!({"access_modes": [], "size": "1", "pvc_name_suffix": "-x"})), "u").unwrap();
        let other = claim(&inputs(json!({"access_modes": [], "size": "1", "pvc_name_suffix": "-x"})), "v").unwrap();
        assert!(suffixed.generated && suffixed.name.ends_with("-x"));
        assert!(suffixed.name == again.name && suffixed.name != other.name, "{}", other.name);
        assert_eq!(suffixed.object["spec"]["storageClassName"], "standard");
    }

    #[test]
    fn wrong_claims_are_named() {
        for (given, wanted) in [
            (json!({"size": "1"}), "parameter access_modes not provided"),
            (json!({"access_modes": ["Sometimes"], "size": "1"}), "unknown access mode \"Sometimes\""),
            (json!({"access_modes": []}), "parameter volumeSize not provided"),
            (json!({"access_modes": [], "size": "big"}), "failed to parse pvc size \"big\""),
            (json!({"access_modes": [], "size": "1", "pvc_name": "a", "pvc_name_suffix": "b"}), "at most one of"),
            (json!({"access_modes": [], "size": "1", "data_source": 3}), "failed to build data source"),
        ] {
            let error = claim(&inputs(given), "u").unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
