//! Environment, arguments and downward API of a container, as Kubernetes computes them; pure.

use std::collections::BTreeMap;

use crate::spec::{Container, Metadata, Pod};

/// Values of one ConfigMap or Secret.
pub(crate) type Data = BTreeMap<String, Vec<u8>>;

/// ConfigMaps and Secrets a pod refers to, by name; absent ones are not in the maps.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub(crate) config_maps: BTreeMap<String, Data>,
    pub(crate) secrets: BTreeMap<String, Data>,
}

/// Every pod is on this machine.
pub(crate) const ADDRESS: &str = "127.0.0.1";
/// Name of the one node.
pub(crate) const NODE: &str = "kfp-local";

/// Variables of a container in the order of definition, later ones winning. `base` comes first and
/// takes part in the expansion of `$(NAME)`.
///
/// # Errors
/// A reference to something that does not exist and is not optional.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    base: &[(String, String)],
    sources: &Sources,
) -> Result<BTreeMap<String, String>, String> {
    let mut env: BTreeMap<String, String> = base.iter().cloned().collect();
    for from in &container.env_from {
        let found = [
            ("configmap", from.config_map_ref.as_ref(), &sources.config_maps),
            ("secret", from.secret_ref.as_ref(), &sources.secrets),
        ];
        for (kind, reference, all) in found {
            let Some(reference) = reference else { continue };
            match all.get(&reference.name) {
                Some(data) => env.extend(
                    data.iter().map(|(k, v)| (format!("{}{k}", from.prefix), String::from_utf8_lossy(v).into_owned())),
                ),
                None if reference.optional => {}
                None => return Err(format!("{kind} \"{}\" not found", reference.name)),
            }
        }
    }
    for var in &container.env {
        let value = match (&var.value_from, &var.value) {
            (Some(from), _) => {
                if let Some(field) = &from.field_ref {
                    Some(self::field(pod, &field.field_path)?)
                } else if let Some(resource) = &from.resource_field_ref {
                    Some(self::resource(container, &resource.resource))
                } else if let Some(key) = &from.secret_key_ref {
                    self::key("secret", &sources.secrets, key)?
                } else if let Some(key) = &from.config_map_key_ref {
                    self::key("configmap", &sources.config_maps, key)?
                } else {
                    None
                }
            }
            (None, Some(value)) => Some(expand(value, &env)),
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.insert(var.name.clone(), value);
        }
    }
    Ok(env)
}

fn key(kind: &str, all: &BTreeMap<String, Data>, wanted: &crate::spec::KeyRef) -> Result<Option<String>, String> {
    match all.get(&wanted.name).map(|data| data.get(&wanted.key)) {
        Some(Some(value)) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        _ if wanted.optional => Ok(None),
        Some(None) => Err(format!("couldn't find key {} in {kind} {}", wanted.key, wanted.name)),
        None => Err(format!("{kind} \"{}\" not found", wanted.name)),
    }
}

/// Replaces `$(NAME)` by the variable's value; `$$` stands for one `$`; unknown names stay.
pub(crate) fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let name = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        match name {
            Some((name, tail)) => {
                match env.get(name) {
                    Some(value) => out.push_str(value),
                    None => {
                        out.push_str("$(");
                        out.push_str(name);
                        out.push(')');
                    }
                }
                rest = tail;
            }
            None => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// A field of the pod as the downward API gives it.
///
/// # Errors
/// A path that Kubernetes does not offer.
pub(crate) fn field(pod: &Pod, path: &str) -> Result<String, String> {
    let meta: &Metadata = &pod.metadata;
    let value = match path {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "metadata.labels" => lines(&meta.labels),
        "metadata.annotations" => lines(&meta.annotations),
        "spec.nodeName" if pod.spec.node_name.is_empty() => NODE.into(),
        "spec.nodeName" => pod.spec.node_name.clone(),
        "spec.serviceAccountName" if pod.spec.service_account_name.is_empty() => "default".into(),
        "spec.serviceAccountName" => pod.spec.service_account_name.clone(),
        "status.hostIP" | "status.podIP" | "status.hostIPs" | "status.podIPs" => ADDRESS.into(),
        _ => {
            let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']");
            if let Some(name) = subscript("metadata.labels") {
                meta.labels.get(name).cloned().unwrap_or_default()
            } else if let Some(name) = subscript("metadata.annotations") {
                meta.annotations.get(name).cloned().unwrap_or_default()
            } else {
                return Err(format!("fieldPath \"{path}\" is not supported"));
            }
        }
    };
    Ok(value)
}

fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
}

/// A limit or request of the container, as it is written (`resourceFieldRef`); `0` when absent.
pub(crate) fn resource(container: &Container, name: &str) -> String {
    let (map, resource) = match name.split_once('.') {
        Some(("limits", resource)) => (&container.resources.limits, resource),
        Some(("requests", resource)) => (&container.resources.requests, resource),
        _ => return "0".into(),
    };
    map.get(resource).map_or_else(|| "0".into(), |v| v.as_str().map_or_else(|| v.to_string(), str::to_string))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn vars(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    }

    #[test]
    fn expansion_follows_kubernetes() {
        let env = vars(&[("A", "1"), ("B", "$(A)"), ("E", "")]);
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(NO)", "$(NO)"),
            ("$A $", "$A $"),
            ("$(A", "$(A"),
            ("$(E)", ""),
            ("$$$$", "$$"),
        ] {
            assert_eq!(expand(text, &env), want, "{text}");
        }
    }

    proptest! {
        #[test]
        fn text_without_dollar_is_untouched(text in "[^$]*") {
            prop_assert_eq!(expand(&text, &vars(&[("A", "1")])), text);
        }
    }

    #[test]
    fn variables_come_from_everywhere() {
        let pod = Pod::parse(&json!({
            "metadata": {"name": "p", "uid": "u", "namespace": "n", "labels": {"a/b": "c"}},
            "spec": {"containers": [{"name": "main", "envFrom": [
                {"configMapRef": {"name": "gone", "optional": true}}, {"prefix": "P_", "configMapRef": {"name": "cm"}}],
              "env": [
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
                {"name": "BOTH", "value": "$(NAME)-$(P_k)-$(LATER)"},
                {"name": "LATER", "value": "x"},
                {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "MAYBE", "valueFrom": {"secretKeyRef": {"name": "s", "key": "none", "optional": true}}},
                {"name": "EMPTY", "value": null},
                {"name": "BASE", "value": "$(BASE)+"}]}]}
        }))
        .unwrap();
        let data = |v: &str| BTreeMap::from([("k".to_string(), v.as_bytes().to_vec())]);
        let sources = Sources {
            config_maps: BTreeMap::from([("cm".into(), data("v"))]),
            secrets: BTreeMap::from([("s".into(), data("hush"))]),
        };
        let base = [("BASE".to_string(), "b".to_string())];
        let env = environment(&pod, &pod.spec.containers[0], &base, &sources).unwrap();
        let want = vars(&[
            ("BASE", "b+"),
            ("P_k", "v"),
            ("NAME", "p"),
            ("LABEL", "c"),
            ("BOTH", "p-v-$(LATER)"),
            ("LATER", "x"),
            ("SECRET", "hush"),
            ("EMPTY", ""),
        ]);
        assert_eq!(env, want);
        let missing = environment(&pod, &pod.spec.containers[0], &base, &Sources::default());
        assert_eq!(missing, Err("configmap \"cm\" not found".into()));
    }
}
