//! Kubernetes settings of a task (`kfp-kubernetes`): volumes, environment, scheduling, security.

mod scheduling;
mod security;
mod storage;

use kfp_proto::kfp_kubernetes::KubernetesExecutorConfig;
use kfp_proto::ml_pipelines::task_config_passthrough_type::TaskConfigPassthroughTypeEnum as Field;
use kfp_proto::ml_pipelines::task_inputs_spec::InputParameterSpec;
use serde_json::{Value, json};

use crate::Error;
use crate::pod::Pod;
use crate::request::Container;
use crate::resolve::Resolver;

pub(crate) use storage::{access_mode, claims};

/// Adds the settings of a container to its pod. Names and JSON values may come from the parent DAG's parameters.
///
/// # Errors
/// When a name cannot be resolved or a setting is not valid.
pub(crate) async fn extend(pod: &mut Pod, container: &Container, resolver: &mut Resolver<'_>) -> Result<(), Error> {
    let config = &container.kubernetes;
    storage::add_claims(pod, config, resolver).await?;
    add_pull_policy(pod, config)?;
    scheduling::add_node_selector(pod, config, resolver).await?;
    scheduling::add_tolerations(pod, config, resolver).await?;
    storage::add_secrets_and_config_maps(pod, config, resolver).await?;
    add_env(pod, config, resolver).await?;
    for secret in &config.image_pull_secret {
        let what = "image pull secret";
        let missing = "missing either SecretName or SecretNameParameter for image pull secret in executor config";
        #[allow(deprecated)]
        let fixed = &secret.secret_name;
        if let Some(name) = name(resolver, secret.secret_name_parameter.as_ref(), fixed, what, missing).await? {
            pod.image_pull_secrets.push(json!({"name": name}));
        }
    }
    if config.active_deadline_seconds > 0 {
        pod.active_deadline_seconds = Some(config.active_deadline_seconds);
    }
    storage::add_scratch(pod, config)?;
    scheduling::add_affinity(pod, config, resolver).await?;
    security::apply(pod, config, &container.defaults)?;
    security::add_init_containers(pod, config, &container.defaults)
}

/// A name that is fixed or comes from a parameter. `None` when that parameter is null: then the setting is skipped.
async fn name(
    resolver: &mut Resolver<'_>,
    parameter: Option<&InputParameterSpec>,
    fixed: &str,
    what: &str,
    missing: &str,
) -> Result<Option<String>, Error> {
    match parameter {
        Some(parameter) => resolver
            .non_empty_text(parameter)
            .await
            .map_err(|error| Error::Pod(format!("failed to resolve {what} name: {error}"))),
        None if fixed.is_empty() => Err(Error::Pod(missing.to_owned())),
        None => Ok(Some(fixed.to_owned())),
    }
}

fn add_pull_policy(pod: &mut Pod, config: &KubernetesExecutorConfig) -> Result<(), Error> {
    match config.image_pull_policy.as_str() {
        "" => {}
        policy @ ("Always" | "Never" | "IfNotPresent") => pod.image_pull_policy = Some(policy.to_owned()),
        other => {
            return Err(Error::Pod(format!(
                "unsupported value: {other}. ImagePullPolicy should be one of 'Always', 'Never' or 'IfNotPresent'"
            )));
        }
    }
    Ok(())
}

/// `{"name": name, "key": key}`, with `optional` if it was given.
fn key_reference(name: &str, key: &str, optional: Option<bool>) -> Value {
    let mut reference = json!({"name": name, "key": key});
    if let Some(optional) = optional {
        reference["optional"] = json!(optional);
    }
    reference
}

async fn add_env(pod: &mut Pod, config: &KubernetesExecutorConfig, resolver: &mut Resolver<'_>) -> Result<(), Error> {
    let mut env = Vec::new();
    for secret in &config.secret_as_env {
        let missing =
            "missing either SecretName or SecretNameParameter for secret environment variable in executor config";
        #[allow(deprecated)]
        let fixed = &secret.secret_name;
        let parameter = secret.secret_name_parameter.as_ref();
        let Some(name) = name(resolver, parameter, fixed, "secret", missing).await? else { continue };
        for pair in &secret.key_to_env {
            let reference = key_reference(&name, &pair.secret_key, secret.optional);
            env.push(json!({"name": pair.env_var, "valueFrom": {"secretKeyRef": reference}}));
        }
    }
    for map in &config.config_map_as_env {
        let missing =
            "missing either ConfigMapName or ConfigNameParameter for configmap environment variable in executor config";
        #[allow(deprecated)]
        let fixed = &map.config_map_name;
        let parameter = map.config_map_name_parameter.as_ref();
        let Some(name) = name(resolver, parameter, fixed, "configmap", missing).await? else { continue };
        for pair in &map.key_to_env {
            let reference = key_reference(&name, &pair.config_map_key, map.optional);
            env.push(json!({"name": pair.env_var, "valueFrom": {"configMapKeyRef": reference}}));
        }
    }
    for field in &config.field_path_as_env {
        env.push(json!({"name": field.name, "valueFrom": {"fieldRef": {"fieldPath": field.field_path}}}));
    }
    pod.route(Field::Env, |scope| scope.env.extend(env.iter().cloned()));
    Ok(())
}
