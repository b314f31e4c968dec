//! Configuration for clients.

use serde_json::json;

/// A kubeconfig for the server at `url` (e.g. `http://127.0.0.1:6443`) with `namespace` as default.
/// The text is JSON, which every reader of kubeconfig files (they are YAML) accepts.
pub fn kubeconfig(url: &str, namespace: &str) -> String {
    let name = "kfp-local";
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": name,
        "clusters": [{"name": name, "cluster": {"server": url}}],
        "users": [{"name": name, "user": {}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": name, "namespace": namespace}}],
    });
    format!("{config:#}\n")
}
