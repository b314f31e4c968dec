//! The OpenAPI document: what the transcoder serves, and the plain endpoints beside it.

use serde_json::{Value, json};

/// Where it is served.
pub const PATH: &str = "/apis/openapi.json";

/// Adds the plain endpoints to the document of the transcoder.
#[must_use]
pub fn complete(mut document: Value) -> Value {
    let text = |name: &str, place: &str, required: bool| json!({"name": name, "in": place, "required": required, "schema": {"type": "string"}});
    let answer = |schema: Value| {
        json!({
            "200": {"description": "Success", "content": {"application/json": {"schema": schema}}},
            "default": {"description": "Failure", "content": {"application/json": {"schema": {
                "type": "object",
                "properties": {"error_message": {"type": "string"}, "error_details": {"type": "string"}},
            }}}},
        })
    };
    let schema = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let file = json!({"required": true, "content": {"multipart/form-data": {"schema": {
        "type": "object", "required": ["uploadfile"],
        "properties": {"uploadfile": {"type": "string", "format": "binary"}},
    }}}});
    for (version, package) in [("v1beta1", "api"), ("v2beta1", "kubeflow.pipelines.backend.api.v2beta1")] {
        let common = ["name", "display_name", "description", "tags", "code_source_url"];
        let mut parameters: Vec<Value> = common.iter().map(|name| text(name, "query", false)).collect();
        let mut both = parameters.clone();
        both.push(text("namespace", "query", false));
        parameters.push(text("pipelineid", "query", true));
        document["paths"][format!("/apis/{version}/pipelines/upload")] = json!({"post": {
            "operationId": format!("UploadPipeline_{version}"), "tags": ["Upload"], "parameters": both,
            "requestBody": file, "responses": answer(schema(&format!("{package}.Pipeline"))),
        }});
        document["paths"][format!("/apis/{version}/pipelines/upload_version")] = json!({"post": {
            "operationId": format!("UploadPipelineVersion_{version}"), "tags": ["Upload"], "parameters": parameters,
            "requestBody": file, "responses": answer(schema(&format!("{package}.PipelineVersion"))),
        }});
        document["paths"][format!("/apis/{version}/healthz")] = json!({"get": {
            "operationId": format!("GetHealthz_{version}"), "tags": ["Healthz"],
            "responses": answer(json!({"type": "object", "properties": {
                "commit_sha": {"type": "string"}, "tag_name": {"type": "string"}, "multi_user": {"type": "boolean"},
                "pipeline_store": {"type": "string"},
            }})),
        }});
        let of_node = [text("run_id", "path", true), text("node_id", "path", true)];
        let path = format!("/apis/{version}/runs/{{run_id}}/nodes/{{node_id}}/artifacts/{{artifact_name}}:read");
        let mut parameters = of_node.to_vec();
        parameters.push(text("artifact_name", "path", true));
        document["paths"][path] = json!({"get": {
            "operationId": format!("ReadArtifact_{version}"), "tags": ["Artifacts"], "parameters": parameters,
            "responses": answer(json!({"type": "object", "properties": {"data": {"type": "string", "format": "byte"}}})),
        }});
    }
    document["paths"]["/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log"] = json!({"get": {
        "operationId": "ReadRunLog", "tags": ["Logs"],
        "parameters": [
            text("run_id", "path", true), text("node_id", "path", true),
            {"name": "follow", "in": "query", "schema": {"type": "boolean"}},
        ],
        "responses": {"200": {"description": "Success", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    }});
    document
}
