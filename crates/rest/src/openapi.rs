//! An OpenAPI description of the routes, from the same annotations and descriptors that serve them.

use std::collections::BTreeSet;

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

use crate::Transcoder;
use crate::route::{BodyField, Route};

/// How deep query parameters reach into messages; no request needs more, and messages may contain themselves.
const QUERY_DEPTH: usize = 3;

impl Transcoder {
    /// The OpenAPI 3.0 document of all routes.
    #[must_use]
    pub fn openapi(&self, title: &str, version: &str) -> Value {
        let mut schemas = Schemas::default();
        let mut paths = Map::new();
        let failure = json!({"description": "Failure", "content": {"application/json": {
            "schema": schemas.message(&self.inner.status)}}});
        for route in self.routes() {
            let operation = operation(route, &mut schemas, &failure);
            let path = paths.entry(plain(&route.template)).or_insert_with(|| json!({}));
            path[route.method.as_str().to_lowercase()] = operation;
        }
        let schemas = schemas.finish();
        json!({
            "openapi": "3.0.3", "info": {"title": title, "version": version}, "paths": paths,
            "components": {"schemas": schemas},
        })
    }
}

fn operation(route: &Route, schemas: &mut Schemas, failure: &Value) -> Value {
    let call = route.grpc_path.path().trim_start_matches('/');
    let (service, method) = call.split_once('/').unwrap_or((call, ""));
    let service = service.rsplit('.').next().unwrap_or(service);
    let mut parameters = Vec::new();
    for path in &route.variables {
        let Some(field) = path.last() else { continue };
        let schema = schemas.value(&field.kind());
        parameters.push(json!({"name": field.name(), "in": "path", "required": true, "schema": schema}));
    }
    if !matches!(route.body, BodyField::Whole) {
        query(route, &route.input, &mut Vec::new(), schemas, &mut parameters);
    }
    let mut operation = json!({
        "operationId": format!("{service}_{method}"), "tags": [service],
        "responses": {
            "200": {"description": "Success", "content": {"application/json": {"schema": schemas.message(&route.output)}}},
            "default": failure,
        },
    });
    let body = match &route.body {
        BodyField::None => None,
        BodyField::Whole => Some(schemas.message(&route.input)),
        BodyField::Field(field) => Some(schemas.field(field)),
    };
    if let Some(schema) = body {
        operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
    }
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    operation
}

/// A template whose variables are named by the last part of their field's path: tools take dots for something else, and
/// methods of the same path belong together.
fn plain(template: &str) -> String {
    let mut parts = template.split('{');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |whole, part| {
        let (name, rest) = part.split_once('}').unwrap_or((part, ""));
        format!("{whole}{{{}}}{rest}", name.rsplit('.').next().unwrap_or(name))
    })
}

fn dotted(path: &[FieldDescriptor]) -> String {
    path.iter().map(FieldDescriptor::name).collect::<Vec<_>>().join(".")
}

/// Adds the fields of `message` that a query may set: neither bound otherwise nor maps nor lists of messages.
fn query(
    route: &Route,
    message: &MessageDescriptor,
    path: &mut Vec<FieldDescriptor>,
    schemas: &mut Schemas,
    parameters: &mut Vec<Value>,
) {
    for field in message.fields() {
        let in_body = path.is_empty() && matches!(&route.body, BodyField::Field(body) if *body == field);
        if in_body || field.is_map() {
            continue;
        }
        path.push(field.clone());
        let nested = match field.kind() {
            Kind::Message(inner) if well_known(&inner).is_none() => Some(inner),
            _ => None,
        };
        match nested {
            Some(_) if field.is_list() || path.len() >= QUERY_DEPTH => {}
            Some(inner) => query(route, &inner, path, schemas, parameters),
            None if route.variables.contains(path) => {}
            None => parameters.push(json!({"name": dotted(path), "in": "query", "schema": schemas.field(&field)})),
        }
        path.pop();
    }
}

/// Schemas of messages that are in use.
#[derive(Default)]
struct Schemas {
    wanted: Vec<MessageDescriptor>,
    seen: BTreeSet<String>,
}

impl Schemas {
    /// A reference to the schema of a message, which is written later.
    fn message(&mut self, message: &MessageDescriptor) -> Value {
        if let Some(schema) = well_known(message) {
            return schema;
        }
        if self.seen.insert(message.full_name().to_owned()) {
            self.wanted.push(message.clone());
        }
        json!({"$ref": format!("#/components/schemas/{}", message.full_name())})
    }

    fn field(&mut self, field: &FieldDescriptor) -> Value {
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else { return json!({}) };
            let value = self.value(&entry.map_entry_value_field().kind());
            return json!({"type": "object", "additionalProperties": value});
        }
        let value = self.value(&field.kind());
        if field.is_list() { json!({"type": "array", "items": value}) } else { value }
    }

    fn value(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::String => json!({"type": "string"}),
            Kind::Bool => json!({"type": "boolean"}),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => json!({"type": "integer", "format": "int32"}),
            Kind::Uint32 | Kind::Fixed32 => json!({"type": "integer", "format": "int64", "minimum": 0}),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => json!({"type": "string", "format": "int64"}),
            Kind::Uint64 | Kind::Fixed64 => json!({"type": "string", "format": "uint64"}),
            Kind::Float => json!({"type": "number", "format": "float"}),
            Kind::Double => json!({"type": "number", "format": "double"}),
            Kind::Bytes => json!({"type": "string", "format": "byte"}),
            Kind::Enum(names) => enumeration(names),
            Kind::Message(message) => self.message(message),
        }
    }

    /// The schemas of everything that was referred to, and of what that refers to.
    fn finish(mut self) -> Map<String, Value> {
        let mut schemas = Map::new();
        while let Some(message) = self.wanted.pop() {
            let fields: Map<String, Value> =
                message.fields().map(|field| (field.name().to_owned(), self.field(&field))).collect();
            let mut schema = json!({"type": "object"});
            if !fields.is_empty() {
                schema["properties"] = fields.into();
            }
            schemas.insert(message.full_name().to_owned(), schema);
        }
        schemas
    }
}

fn enumeration(names: &EnumDescriptor) -> Value {
    let names: Vec<String> = names.values().map(|value| value.name().to_owned()).collect();
    json!({"type": "string", "enum": names})
}

/// Schemas of the messages that have a JSON form of their own.
fn well_known(message: &MessageDescriptor) -> Option<Value> {
    Some(match message.full_name() {
        "google.protobuf.Timestamp" => json!({"type": "string", "format": "date-time"}),
        "google.protobuf.Duration" | "google.protobuf.FieldMask" => json!({"type": "string"}),
        "google.protobuf.Struct" => json!({"type": "object", "additionalProperties": true}),
        "google.protobuf.Value" => json!({"nullable": true}),
        "google.protobuf.ListValue" => json!({"type": "array", "items": {}}),
        "google.protobuf.Any" => {
            json!({"type": "object", "properties": {"@type": {"type": "string"}}, "additionalProperties": true})
        }
        "google.protobuf.Empty" => json!({"type": "object"}),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_named_without_dots() {
        for (template, want) in [
            ("/p/{pipeline.pipeline_id}/v/{version.version_id}", "/p/{pipeline_id}/v/{version_id}"),
            ("/r/{run_id}:archive", "/r/{run_id}:archive"),
            ("/healthz", "/healthz"),
        ] {
            assert_eq!(plain(template), want);
        }
    }
}
