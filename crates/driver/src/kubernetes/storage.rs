//! Volumes: claims, secrets, config maps, ephemeral volumes, empty directories, shared memory.

use kfp_proto::kfp_kubernetes::{KubernetesExecutorConfig, PvcMount, pvc_mount};
use kfp_proto::ml_pipelines::task_config_passthrough_type::TaskConfigPassthroughTypeEnum as Field;
use kfp_proto::ml_pipelines::task_inputs_spec::InputParameterSpec;
use kfp_proto::ml_pipelines::task_inputs_spec::input_parameter_spec::Kind;
use kfp_proto::ml_pipelines::{ValueOrRuntimeParameter, value_or_runtime_parameter};
use serde_json::{Value, json};

use super::name;
use crate::Error;
use crate::pod::{Pod, check_quantity};
use crate::resolve::Resolver;

/// A Kubernetes access mode by name.
///
/// # Errors
/// When there is no such mode.
pub(crate) fn access_mode(mode: &str) -> Result<&str, String> {
    match mode {
        "ReadWriteOnce" | "ReadOnlyMany" | "ReadWriteMany" | "ReadWriteOncePod" => Ok(mode),
        other => Err(format!(
            "unknown access mode {other:?}: use ReadWriteOnce, ReadOnlyMany, ReadWriteMany or ReadWriteOncePod"
        )),
    }
}

/// The parameter that names a mount's claim, in today's or the older spelling.
#[allow(deprecated)]
fn claim_parameter(mount: &PvcMount) -> Result<InputParameterSpec, Error> {
    if let Some(parameter) = &mount.pvc_name_parameter {
        return Ok(parameter.clone());
    }
    let kind = match mount.pvc_reference.as_ref() {
        Some(pvc_mount::PvcReference::Constant(name)) if !name.is_empty() => {
            let text = prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(name.clone())) };
            let value = Some(value_or_runtime_parameter::Value::Constant(text));
            Kind::RuntimeValue(ValueOrRuntimeParameter { value })
        }
        Some(pvc_mount::PvcReference::TaskOutputParameter(output)) => Kind::TaskOutputParameter(output.clone()),
        Some(pvc_mount::PvcReference::ComponentInputParameter(name)) if !name.is_empty() => {
            Kind::ComponentInputParameter(name.clone())
        }
        _ => {
            let text = "failed to make podSpecPatch: volume mount: volume name not provided";
            return Err(Error::Pod(text.to_owned()));
        }
    };
    Ok(InputParameterSpec { kind: Some(kind), ..Default::default() })
}

/// Names of the mounted claims in order.
pub(crate) async fn claims(
    config: &KubernetesExecutorConfig,
    resolver: &mut Resolver<'_>,
) -> Result<Vec<String>, Error> {
    let mut names = Vec::new();
    for mount in &config.pvc_mount {
        let name = resolver
            .non_empty_text(&claim_parameter(mount)?)
            .await
            .map_err(|error| Error::Pod(format!("failed to resolve pvc name: {error}")))?;
        match name {
            Some(name) if !mount.mount_path.is_empty() => names.push(name),
            _ => return Err(Error::Pod("failed to mount volume, missing mountpath or pvc name".to_owned())),
        }
    }
    Ok(names)
}

pub(super) async fn add_claims(
    pod: &mut Pod,
    config: &KubernetesExecutorConfig,
    resolver: &mut Resolver<'_>,
) -> Result<(), Error> {
    for (name, mount) in claims(config, resolver).await?.iter().zip(&config.pvc_mount) {
        let volume = json!({"name": name, "persistentVolumeClaim": {"claimName": name}});
        let mut at = json!({"name": name, "mountPath": mount.mount_path});
        if !mount.sub_path.is_empty() {
            at["subPath"] = json!(mount.sub_path);
        }
        pod.add_volume(Some(Field::KubernetesVolumes), &volume, &at);
    }
    Ok(())
}

#[allow(deprecated)]
pub(super) async fn add_secrets_and_config_maps(
    pod: &mut Pod,
    config: &KubernetesExecutorConfig,
    resolver: &mut Resolver<'_>,
) -> Result<(), Error> {
    for secret in &config.secret_as_volume {
        let missing = "missing either SecretName or SecretNameParameter for secret volume in executor config";
        let parameter = secret.secret_name_parameter.as_ref();
        let Some(name) = name(resolver, parameter, &secret.secret_name, "secret", missing).await? else { continue };
        let source = json!({"secretName": name, "optional": secret.optional.unwrap_or(false)});
        let mount = json!({"name": name, "mountPath": secret.mount_path});
        pod.add_volume(Some(Field::KubernetesVolumes), &json!({"name": name, "secret": source}), &mount);
    }
    for map in &config.config_map_as_volume {
        let missing = "missing either ConfigMapName or ConfigNameParameter for config volume in executor config";
        let parameter = map.config_map_name_parameter.as_ref();
        let Some(name) = name(resolver, parameter, &map.config_map_name, "configmap", missing).await? else { continue };
        let source = json!({"name": name, "optional": map.optional.unwrap_or(false)});
        let mount = json!({"name": name, "mountPath": map.mount_path});
        pod.add_volume(Some(Field::KubernetesVolumes), &json!({"name": name, "configMap": source}), &mount);
    }
    Ok(())
}

/// Volumes that live as long as the pod.
pub(super) fn add_scratch(pod: &mut Pod, config: &KubernetesExecutorConfig) -> Result<(), Error> {
    for volume in &config.generic_ephemeral_volume {
        let (name, size) = (&volume.volume_name, &volume.size);
        check_quantity(size).map_err(|error| {
            Error::Pod(format!("failed to parse generic ephemeral volume size {size:?} for volume {name:?}: {error}"))
        })?;
        let modes: Result<Vec<_>, _> = volume.access_modes.iter().map(|mode| access_mode(mode)).collect();
        let modes = modes.map_err(|error| Error::Pod(format!("generic ephemeral volume {name:?}: {error}")))?;
        let mut spec = json!({"accessModes": modes, "resources": {"requests": {"storage": size}}});
        if !volume.default_storage_class {
            spec["storageClassName"] = json!(volume.storage_class_name);
        }
        let mut template = json!({"spec": spec});
        if let Some(metadata) = &volume.metadata {
            template["metadata"] = json!({"labels": metadata.labels, "annotations": metadata.annotations});
        }
        let source = json!({"name": name, "ephemeral": {"volumeClaimTemplate": template}});
        pod.add_volume(None, &source, &json!({"name": name, "mountPath": volume.mount_path}));
    }
    for volume in &config.empty_dir_mounts {
        let source = empty_dir(&volume.volume_name, volume.medium.as_deref(), volume.size_limit.as_deref())?;
        pod.add_volume(None, &source, &json!({"name": volume.volume_name, "mountPath": volume.mount_path}));
    }
    if let Some(shared) = &config.enabled_shared_memory {
        let name = if shared.volume_name.is_empty() { "shm" } else { shared.volume_name.as_str() };
        let source = empty_dir(name, Some("Memory"), Some(&shared.size))?;
        pod.add_volume(None, &source, &json!({"name": name, "mountPath": "/dev/shm"}));
    }
    Ok(())
}

fn empty_dir(name: &str, medium: Option<&str>, size: Option<&str>) -> Result<Value, Error> {
    let mut source = json!({});
    if let Some(medium) = medium.filter(|medium| !medium.is_empty()) {
        source["medium"] = json!(medium);
    }
    if let Some(size) = size.filter(|size| !size.is_empty()) {
        check_quantity(size).map_err(|error| {
            Error::Pod(format!("failed to parse size limit {size:?} for emptyDir volume {name:?}: {error}"))
        })?;
        source["sizeLimit"] = json!(size);
    }
    Ok(json!({"name": name, "emptyDir": source}))
}
