//! Resource templates: what Argo's executor does with kubectl, done by the server with its own API.

use futures::StreamExt as _;
use jsonpath_rust::JsonPath as _;
use kfp_core::argo::Template;
use serde_json::{Value, json};

use crate::api::{Api, ApiError, EventKind, Patch, RawObject, Resource};
use crate::condition::{self, Requirement};
use crate::logs::LogWriter;
use crate::outputs::TEMPLATE;
use crate::spec::Pod;

/// Program and first argument of the main container of such a pod.
pub(crate) const COMMAND: [&str; 2] = ["argoexec", "resource"];

/// Does what the template says and gives its output parameters.
///
/// # Errors
/// A sentence for the node's message.
pub(crate) async fn run(api: &dyn Api, pod: &Pod, template: &Template, log: &LogWriter) -> Result<Vec<Value>, String> {
    let Some(resource) = &template.resource else {
        return Err(format!("the template in annotation {TEMPLATE} has no resource"));
    };
    let text = |name: &str| resource[name].as_str().unwrap_or_default();
    for member in ["manifestFrom", "flags"] {
        if !resource[member].is_null() {
            return Err(format!("resource.{member} is not supported"));
        }
    }
    let success = condition::parse(text("successCondition")).map_err(|e| format!("success {e}"))?;
    let failure = condition::parse(text("failureCondition")).map_err(|e| format!("failure {e}"))?;
    let mut object: Value =
        serde_norway::from_str(text("manifest")).map_err(|e| format!("the manifest cannot be read: {e}"))?;
    if resource["setOwnerReference"] == true {
        let owners: Vec<Value> = pod.metadata.owner_references.clone();
        object["metadata"]["ownerReferences"] = json!(owners);
    }
    let done = act(api, pod, text("action"), text("mergeStrategy"), object).await?;
    let Some((kind, object)) = done else {
        log.line("deleted");
        return Ok(Vec::new());
    };
    let meta = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    let (namespace, name) = (meta("namespace"), meta("name"));
    log.line(&format!("{}/{name} {}", kind.qualified(), text("action")));
    let object = if success.is_empty() && failure.is_empty() {
        api.get(&kind, &namespace, &name).await.map(|object| (*object).clone()).unwrap_or(object)
    } else {
        wait(api, &kind, &namespace, &name, &success, &failure).await?
    };
    let mut parameters = Vec::new();
    for parameter in &template.outputs.parameters {
        let Some(path) = parameter.value_from.as_ref().and_then(|from| from.json_path.as_deref()) else { continue };
        let value = extract(&object, path).map_err(|e| format!("output parameter {}: {e}", parameter.name))?;
        parameters.push(json!({"name": parameter.name, "value": value}));
    }
    Ok(parameters)
}

/// Carries the action out; `None` after a deletion.
async fn act(
    api: &dyn Api,
    pod: &Pod,
    action: &str,
    strategy: &str,
    object: Value,
) -> Result<Option<(Resource, Value)>, String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
    let (name, prefix) = (text(&object["metadata"]["name"]), text(&object["metadata"]["generateName"]));
    if version.is_empty() || kind.is_empty() {
        return Err("the manifest needs apiVersion and kind".into());
    }
    if name.is_empty() && (prefix.is_empty() || action != "create") {
        return Err("the manifest needs metadata.name".into());
    }
    let Some(resource) = api.resource(&version, &kind) else {
        return Err(format!("no matches for kind \"{kind}\" in version \"{version}\""));
    };
    let namespace = match (resource.namespaced, text(&object["metadata"]["namespace"])) {
        (false, _) => String::new(),
        (true, given) if given.is_empty() => pod.metadata.namespace.clone(),
        (true, given) => given,
    };
    let failed = |error: ApiError| format!("{action} {}/{name}: {error}", resource.qualified());
    let result = match action {
        "create" => api.create(&resource, &namespace, object).await,
        "apply" => api.patch(&resource, &namespace, &name, Patch::Apply(object)).await,
        "replace" => api.update(&resource, &namespace, object).await,
        "get" => api.get(&resource, &namespace, &name).await,
        "patch" => {
            let patch = match strategy {
                "" | "strategic" if resource.native => Patch::Strategic(object),
                "" | "merge" => Patch::Merge(object),
                "json" => return Err("resource.mergeStrategy json needs flags, which are not supported".into()),
                other => return Err(format!("resource.mergeStrategy {other} does not fit {}", resource.qualified())),
            };
            api.patch(&resource, &namespace, &name, patch).await
        }
        "delete" => match api.delete(&resource, &namespace, &name, None).await {
            Ok(()) => return Ok(None),
            Err(error) if error.code == 404 => return Ok(None),
            Err(error) => return Err(failed(error)),
        },
        other => return Err(format!("resource.action {other} is not supported")),
    };
    result.map(|object| Some((resource, (*object).clone()))).map_err(failed)
}

/// Waits until an object meets all conditions of success, or one of failure.
async fn wait(
    api: &dyn Api,
    kind: &Resource,
    namespace: &str,
    name: &str,
    success: &[Requirement],
    failure: &[Requirement],
) -> Result<Value, String> {
    let decide = |object: &Value| -> Option<Result<Value, String>> {
        if let Some(bad) = failure.iter().find(|requirement| requirement.holds(object)) {
            return Some(Err(format!("failure condition '{}' evaluated true", bad.text())));
        }
        success.iter().all(|requirement| requirement.holds(object)).then(|| Ok(object.clone()))
    };
    let gone = || format!("{}/{name} has been deleted while its status was still being checked", kind.qualified());
    loop {
        let (items, version) = api.list(kind);
        let own = |object: &RawObject| object.name() == name && object.namespace() == namespace;
        let Some(object) = items.iter().find(|object| own(object)) else { return Err(gone()) };
        let unreadable = |e| format!("look for {}/{name}: {e}", kind.qualified());
        if let Some(decided) = decide(&*object.parse().map_err(unreadable)?) {
            return decided;
        }
        drop(items);
        let mut changes = api.watch_raw(kind, version);
        while let Some(Ok(event)) = changes.next().await {
            if event.kind == EventKind::Bookmark || !own(&event.object) {
                continue;
            }
            if event.kind == EventKind::Deleted {
                return Err(gone());
            }
            if let Some(decided) = decide(&*event.object.parse().map_err(unreadable)?) {
                return decided;
            }
        }
        // The watch fell behind; the next one begins at a new list.
    }
}

/// What a template of kubectl's JSONPath gives for an object: text with paths in braces.
fn extract(object: &Value, template: &str) -> Result<String, String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let (inner, tail) = after.split_once('}').ok_or_else(|| format!("\"{template}\" has an open brace"))?;
        rest = tail;
        let inner = inner.trim();
        if let Some(literal) = inner.strip_prefix('"').and_then(|inner| inner.strip_suffix('"')) {
            out.push_str(&literal.replace("\\n", "\n").replace("\\t", "\t"));
            continue;
        }
        if inner == "end" || inner.starts_with("range ") {
            return Err(format!("{{{inner}}} is not supported"));
        }
        let path = query(inner);
        let found = object.query(&path).map_err(|e| format!("path {{{inner}}}: {e}"))?;
        if found.is_empty() {
            return Err(format!("{{{inner}}} is not found"));
        }
        out.push_str(&found.into_iter().map(condition::print).collect::<Vec<_>>().join(" "));
    }
    out.push_str(rest);
    Ok(out)
}

/// A path of kubectl in the standard's form: from the root, names with escaped dots in brackets.
fn query(path: &str) -> String {
    let path = path.trim_start_matches(['$', '@']);
    let mut out = String::from("$");
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        if let Some(after) = rest.strip_prefix("..") {
            out.push_str("..");
            rest = after;
        } else if first == '[' {
            let end = rest.find(']').map_or(rest.len(), |end| end + 1);
            out.push_str(rest.get(..end).unwrap_or_default());
            rest = rest.get(end..).unwrap_or_default();
        } else {
            rest = rest.strip_prefix('.').unwrap_or(rest);
            let mut name = String::new();
            let mut characters = rest.char_indices().peekable();
            let mut end = rest.len();
            while let Some((at, c)) = characters.next() {
                match c {
                    '\\' => name.extend(characters.next().map(|(_, escaped)| escaped)),
                    '.' | '[' => {
                        end = at;
                        break;
                    }
                    c => name.push(c),
                }
            }
            rest = rest.get(end..).unwrap_or_default();
            match name.as_str() {
                "" => {}
                "*" => out.push_str("[*]"),
                name => out.push_str(&format!("['{}']", name.replace('\\', "\\\\").replace('\'', "\\'"))),
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_kubectl_are_followed() {
        let object = json!({"metadata": {"name": "n", "labels": {"app.x/y": "l"}}, "items": [{"v": 1}, {"v": "two"}], "b": true});
        for (path, expected) in [
            ("{.metadata.name}", "n"),
            ("name {.metadata.name}, {.b}!", "name n, true!"),
            ("{.metadata.labels.app\\.x/y}", "l"),
            ("{.metadata.labels['app.x/y']}", "l"),
            ("{.items[1].v}", "two"),
            ("{.items[*].v}", "1 two"),
            ("{$.items[0]}", "{\"v\":1}"),
            ("{.b}{\"\\n\"}", "true\n"),
        ] {
            assert_eq!(extract(&object, path).as_deref(), Ok(expected), "{path}");
        }
        assert_eq!(extract(&object, "{}").unwrap(), object.to_string());
        for path in ["{.none}", "{.a", "{range .items[*]}{.v}{end}"] {
            assert!(extract(&object, path).is_err(), "{path}");
        }
    }
}
