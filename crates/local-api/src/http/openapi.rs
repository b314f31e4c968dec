//! Just enough OpenAPI for kubectl: it looks here whether the server validates fields by itself, and
//! which patches a type takes. No schemas are published.

use axum::body::Body;
use http::{HeaderMap, StatusCode, header};
use serde_json::{Map, Value, json};

use super::discovery::group_versions;
use super::response::{Response, json as json_response, with};
use super::server::Context;
use crate::Resource;

/// The version 2 document without content, as JSON or in the protobuf form kubectl asks for.
pub(super) fn v2(headers: &HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if accept.contains("proto-openapi") && !accept.contains("application/json") {
        // Document { swagger (1): "2.0", info (2): Info { title (1), version (2) }, paths (8): {} }
        let info = [&[0x0a, 9][..], b"kfp-local", &[0x12, 2], b"v1"].concat();
        let mut document = [&[0x0a, 3][..], b"2.0", &[0x12]].concat();
        document.push(u8::try_from(info.len()).unwrap_or(0));
        document.extend(info);
        document.extend([0x42, 0]);
        return with(
            StatusCode::OK,
            "application/com.github.proto-openapi.spec.v2@v1.0+protobuf",
            Body::from(document),
        );
    }
    json_response(&json!({
        "swagger": "2.0", "info": {"title": "kfp-local", "version": "v1"}, "paths": {}, "definitions": {},
    }))
}

/// Where the documents of the groups are.
pub(super) fn v3_root(context: &Context) -> Value {
    let state = context.cluster.shared().read();
    let mut paths = Map::new();
    for (group, version) in group_versions(&state.registry) {
        let path = if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") };
        let url = json!({"serverRelativeURL": format!("/openapi/v3/{path}")});
        paths.insert(path, url);
    }
    json!({ "paths": paths })
}

/// The document of one group and version.
pub(super) fn v3(context: &Context, rest: &[&str]) -> Option<Value> {
    let (group, version) = match rest {
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return None,
    };
    let state = context.cluster.shared().read();
    if !group_versions(&state.registry).iter().any(|(g, v)| *g == group && *v == version) {
        return None;
    }
    let mut paths = Map::new();
    for r in state.registry.all().filter(|r| r.group == group && r.version == version) {
        let root = if group.is_empty() { "/api".to_string() } else { format!("/apis/{group}") };
        let scope = if r.namespaced { "/namespaces/{namespace}" } else { "" };
        paths.insert(format!("{root}/{version}{scope}/{}/{{name}}", r.plural), json!({"patch": operation(r)}));
    }
    Some(json!({
        "openapi": "3.0.0", "info": {"title": "kfp-local", "version": "v1"}, "paths": paths,
        "components": {"schemas": {}},
    }))
}

fn operation(r: &Resource) -> Value {
    let parameter =
        |name: &str| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}});
    json!({
        "operationId": format!("patch{}{}", r.kind, r.version),
        "parameters": [parameter("dryRun"), parameter("fieldManager"), parameter("fieldValidation"), parameter("force")],
        "x-kubernetes-action": "patch",
        "x-kubernetes-group-version-kind": {"group": r.group, "version": r.version, "kind": r.kind},
        "responses": {"200": {"description": "OK"}},
    })
}
