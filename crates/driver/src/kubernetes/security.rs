//! Security contexts and init containers. The administrator's defaults win over the user's wishes.

use std::collections::BTreeMap;

use kfp_proto::kfp_kubernetes::{InitContainer, KubernetesExecutorConfig};
use serde_json::{Map, Value, json};

use crate::Error;
use crate::pod::{Pod, check_quantity, env_var};
use crate::request::SecurityDefaults;

/// The administrator's identity settings.
fn identity(defaults: &SecurityDefaults) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.extend(defaults.run_as_user.map(|v| ("runAsUser".to_owned(), json!(v))));
    fields.extend(defaults.run_as_group.map(|v| ("runAsGroup".to_owned(), json!(v))));
    fields.extend(defaults.run_as_non_root.map(|v| ("runAsNonRoot".to_owned(), json!(v))));
    fields
}

/// Sets the security context of the user's container and the pod's user namespace.
///
/// # Errors
/// When the user asks for root although running as root is forbidden.
pub(super) fn apply(
    pod: &mut Pod,
    config: &KubernetesExecutorConfig,
    defaults: &SecurityDefaults,
) -> Result<(), Error> {
    pod.security = identity(defaults);
    pod.host_users = defaults.host_users;
    let Some(wanted) = &config.security_context else { return Ok(()) };
    let non_root = defaults.run_as_non_root.or(wanted.run_as_non_root).unwrap_or(false);
    if wanted.run_as_user == Some(0) && defaults.run_as_user.is_none() && non_root {
        let text = "runAsUser=0 (root) is not allowed: runAsNonRoot is true; use a non-root UID instead";
        return Err(Error::Pod(text.to_owned()));
    }
    let wishes = [
        ("runAsUser", wanted.run_as_user.map(|v| json!(v))),
        ("runAsGroup", wanted.run_as_group.map(|v| json!(v))),
        ("runAsNonRoot", wanted.run_as_non_root.map(|v| json!(v))),
    ];
    for (name, wish) in wishes {
        match (wish, pod.security.get(name)) {
            (Some(wish), Some(set)) => tracing::warn!("{name}={wish} is ignored: the administrator has set {set}"),
            (Some(wish), None) => drop(pod.security.insert(name.to_owned(), wish)),
            (None, _) => {}
        }
    }
    pod.security.insert("capabilities".to_owned(), json!({"drop": ["ALL"]}));
    Ok(())
}

/// Adds the user's init containers, hardened.
///
/// # Errors
/// When one is incomplete or clashes with another container.
pub(super) fn add_init_containers(
    pod: &mut Pod,
    config: &KubernetesExecutorConfig,
    defaults: &SecurityDefaults,
) -> Result<(), Error> {
    for container in &config.init_containers {
        let name = &container.name;
        if name.is_empty() {
            return Err(Error::Pod("init container name must not be empty".to_owned()));
        }
        let taken = name == "main"
            || pod.sidecars.iter().chain(&pod.init_containers).any(|other| other["name"] == name.as_str());
        if taken {
            let text = format!("init container name {name:?} conflicts with an existing container in the pod");
            return Err(Error::Pod(text));
        }
        pod.init_containers.push(init_container(container, defaults).map_err(Error::Pod)?);
    }
    Ok(())
}

fn init_container(container: &InitContainer, defaults: &SecurityDefaults) -> Result<Value, String> {
    let name = &container.name;
    if container.image.is_empty() {
        return Err(format!("init container {name:?} must specify an image"));
    }
    let mut security = identity(defaults);
    security.insert("allowPrivilegeEscalation".to_owned(), json!(false));
    security.insert("capabilities".to_owned(), json!({"drop": ["ALL"]}));
    security.insert("seccompProfile".to_owned(), json!({"type": "RuntimeDefault"}));
    let mut result = json!({"name": name, "image": container.image, "securityContext": security, "resources": {}});
    for (key, words) in [("command", &container.command), ("args", &container.args)] {
        if !words.is_empty() {
            result[key] = json!(words);
        }
    }
    match container.restart_policy.as_deref() {
        None | Some("") => {}
        Some("Always") => result["restartPolicy"] = json!("Always"),
        Some(other) => {
            return Err(format!("init container {name:?} restart policy must be \"Always\", got {other:?}"));
        }
    }
    if let Some(resources) = &container.resources {
        let checked = |kind: &str, list: &BTreeMap<String, String>| {
            for (resource, quantity) in list {
                check_quantity(quantity).map_err(|error| {
                    format!("init container {name:?} has an invalid resource {kind} {resource}={quantity:?}: {error}")
                })?;
            }
            Ok::<_, String>(json!(list))
        };
        for (key, kind, list) in [("requests", "request", &resources.requests), ("limits", "limit", &resources.limits)]
        {
            if !list.is_empty() {
                result["resources"][key] = checked(kind, list)?;
            }
        }
    }
    if container.env.iter().any(|var| var.name.is_empty()) {
        return Err(format!("init container {name:?} has an environment variable with an empty name"));
    }
    if !container.env.is_empty() {
        result["env"] = container.env.iter().map(|var| env_var(&var.name, &var.value)).collect();
    }
    for mount in &container.volume_mounts {
        if mount.volume_name.is_empty() {
            return Err(format!("init container {name:?} has a volume mount with an empty volume name"));
        }
        if !mount.mount_path.starts_with('/') {
            let volume = &mount.volume_name;
            return Err(format!("init container {name:?} volume mount {volume:?} must use an absolute mount path"));
        }
    }
    if !container.volume_mounts.is_empty() {
        let mounts = container.volume_mounts.iter();
        result["volumeMounts"] = mounts.map(|m| json!({"name": m.volume_name, "mountPath": m.mount_path})).collect();
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfp_core::ir::{self, Unknown};

    fn config(json: Value) -> KubernetesExecutorConfig {
        ir::decode(&json, Unknown::Reject).unwrap()
    }

    #[test]
    fn administrators_win() {
        let wishes = config(json!({"securityContext": {"runAsUser": "5", "runAsGroup": "6", "runAsNonRoot": true}}));
        let defaults = SecurityDefaults { run_as_user: Some(1000), host_users: Some(false), ..Default::default() };
        let mut pod = Pod::default();
        apply(&mut pod, &wishes, &defaults).unwrap();
        assert_eq!(
            json!(pod.security),
            json!({"runAsUser": 1000, "runAsGroup": 6, "runAsNonRoot": true,
            "capabilities": {"drop": ["ALL"]}})
        );
        assert_eq!(pod.host_users, Some(false));
        let mut plain = Pod::default();
        apply(&mut plain, &KubernetesExecutorConfig::default(), &defaults).unwrap();
        assert_eq!(json!(plain.security), json!({"runAsUser": 1000}));
    }

    #[test]
    fn root_is_refused_where_it_is_forbidden() {
        let wishes = config(json!({"securityContext": {"runAsUser": "0"}}));
        let strict = SecurityDefaults { run_as_non_root: Some(true), ..Default::default() };
        assert!(apply(&mut Pod::default(), &wishes, &strict).unwrap_err().to_string().contains("runAsUser=0 (root)"));
        assert!(apply(&mut Pod::default(), &wishes, &SecurityDefaults::default()).is_ok());
    }

    #[test]
    fn init_containers_are_checked_and_hardened() {
        let good =
            config(json!({"initContainers": [{"name": "a", "image": "i", "command": ["c"], "restartPolicy": "Always",
            "env": [{"name": "E", "value": "1"}], "volumeMounts": [{"volumeName": "v", "mountPath": "/v"}],
            "resources": {"limits": {"cpu": "1"}}}]}));
        let mut pod = Pod::default();
        add_init_containers(&mut pod, &good, &SecurityDefaults { run_as_user: Some(7), ..Default::default() }).unwrap();
        assert_eq!(
            pod.init_containers[0],
            json!({"name": "a", "image": "i", "command": ["c"], "restartPolicy": "Always",
            "env": [{"name": "E", "value": "1"}], "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "resources": {"limits": {"cpu": "1"}},
            "securityContext": {"runAsUser": 7, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
                "seccompProfile": {"type": "RuntimeDefault"}}})
        );
        for (container, wanted) in [
            (json!({"image": "i"}), "name must not be empty"),
            (json!({"name": "main", "image": "i"}), "conflicts with an existing container"),
            (json!({"name": "a", "image": "i"}), "conflicts with an existing container"),
            (json!({"name": "b"}), "must specify an image"),
            (json!({"name": "b", "image": "i", "restartPolicy": "Never"}), "restart policy must be \"Always\""),
            (json!({"name": "b", "image": "i", "env": [{"value": "1"}]}), "environment variable with an empty name"),
            (
                json!({"name": "b", "image": "i", "volumeMounts": [{"volumeName": "v", "mountPath": "v"}]}),
                "absolute mount path",
            ),
            (
                json!({"name": "b", "image": "i", "resources": {"limits": {"cpu": "x"}}}),
                "invalid resource limit cpu=\"x\"",
            ),
        ] {
            let bad = config(json!({"initContainers": [container]}));
            let error = add_init_containers(&mut pod, &bad, &SecurityDefaults::default()).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
