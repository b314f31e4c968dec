//! Binding: path variables, query parameters and the JSON body make one request message.

use prost_reflect::{Cardinality, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, Value};

use crate::route::{BodyField, FIELD_MASK, Route, field_path};

const WELL_KNOWN: &str = "google.protobuf.";

/// Builds the request message.
///
/// # Errors
/// A text for code 3 that names the field or the place in the JSON.
pub(crate) fn bind(route: &Route, variables: &[String], query: &str, body: &[u8]) -> Result<DynamicMessage, String> {
    let mut message = DynamicMessage::new(route.input.clone());
    let mut named = Vec::new();
    match &route.body {
        BodyField::None => {}
        BodyField::Whole => {
            if let Some(whole) = parse(&Kind::Message(route.input.clone()), body)?
                && let Value::Message(whole) = whole
            {
                message = whole;
            }
        }
        BodyField::Field(field) => {
            if let Some(value) = parse(&field.kind(), body)? {
                message.set_field(field, value);
                if route.mask.is_some()
                    && let Kind::Message(descriptor) = field.kind()
                {
                    let json = serde_json::from_slice(body).map_err(|e| json_error(&e))?;
                    leaves(&descriptor, &json, "", &mut named);
                }
            }
        }
    }
    if !matches!(route.body, BodyField::Whole) {
        for pair in query.split('&').filter(|p| !p.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name)?, decode(value)?);
            let Some(path) = field_path(&route.input, &name) else { continue };
            let in_body = matches!(&route.body, BodyField::Field(f) if path.first() == Some(f));
            if in_body || route.variables.contains(&path) {
                continue;
            }
            set(&mut message, &path, &value).map_err(|reason| format!("parsing field {name:?}: {reason}"))?;
        }
    }
    if let Some((mask, descriptor)) = &route.mask
        && !message.has_field(mask)
    {
        message.set_field(mask, Value::Message(field_mask(descriptor, named)));
    }
    for (path, value) in route.variables.iter().zip(variables) {
        set(&mut message, path, value).map_err(|reason| {
            let name: Vec<_> = path.iter().map(FieldDescriptor::name).collect();
            format!("type mismatch, parameter: {}, error: {reason}", name.join("."))
        })?;
    }
    Ok(message)
}

/// Paths of the fields that a JSON body sets: what an update changes when its mask is left out, as in grpc-gateway.
fn leaves(descriptor: &MessageDescriptor, json: &serde_json::Value, parent: &str, found: &mut Vec<String>) {
    for (key, value) in json.as_object().into_iter().flatten() {
        let known = descriptor.get_field_by_name(key).or_else(|| descriptor.get_field_by_json_name(key));
        let Some(field) = known else { continue };
        let path = format!("{parent}{}", field.name());
        match field.kind() {
            Kind::Message(inner)
                if field.cardinality() != Cardinality::Repeated
                    && !inner.full_name().starts_with(WELL_KNOWN)
                    && value.as_object().is_some_and(|fields| !fields.is_empty()) =>
            {
                leaves(&inner, value, &format!("{path}."), found);
            }
            _ => found.push(path),
        }
    }
}

fn field_mask(descriptor: &MessageDescriptor, paths: Vec<String>) -> DynamicMessage {
    let mut mask = DynamicMessage::new(descriptor.clone());
    mask.set_field_by_name("paths", Value::List(paths.into_iter().map(Value::String).collect()));
    mask
}

fn decode(text: &str) -> Result<String, String> {
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| format!("query parameter {text:?} is not valid UTF-8"))
}

/// Reads a JSON body of the given kind; an empty body is no body.
fn parse(kind: &Kind, body: &[u8]) -> Result<Option<Value>, String> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    if std::str::from_utf8(body).is_err() {
        return Err("the request body is not valid UTF-8".to_owned());
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = match kind {
        Kind::Message(descriptor) => {
            let options = DeserializeOptions::new().deny_unknown_fields(true);
            DynamicMessage::deserialize_with_options(descriptor.clone(), &mut json, &options)
                .map(Value::Message)
                .map_err(|e| json_error(&e))?
        }
        _ => {
            use serde::Deserialize as _;
            let text = String::deserialize(&mut json).map_err(|e| json_error(&e))?;
            scalar(kind, &text)?
        }
    };
    json.end().map_err(|e| json_error(&e))?;
    Ok(Some(value))
}

/// Rewords a JSON error so that unknown fields read as clients of upstream expect (`unknown field "x"`).
fn json_error(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let unknown = text.split_once("unrecognized field name '").and_then(|(_, rest)| rest.split_once('\''));
    match unknown {
        Some((name, rest)) => format!("unknown field \"{name}\"{rest}"),
        None => format!("syntax error or wrong type in the request body: {text}"),
    }
}

/// Sets the field at the end of `path`; a repeated field grows by one value.
fn set(message: &mut DynamicMessage, path: &[FieldDescriptor], text: &str) -> Result<(), String> {
    let Some((field, rest)) = path.split_first() else { return Ok(()) };
    if rest.is_empty() {
        if field.is_map() {
            return Err("a map cannot be given here".to_owned());
        }
        let value = leaf(&field.kind(), text)?;
        if field.is_list() {
            if let Value::List(list) = message.get_field_mut(field) {
                list.push(value);
            }
        } else {
            message.set_field(field, value);
        }
        return Ok(());
    }
    match message.get_field_mut(field) {
        Value::Message(inner) => set(inner, rest, text),
        _ => Err("not a message".to_owned()),
    }
}

fn leaf(kind: &Kind, text: &str) -> Result<Value, String> {
    match kind {
        // Upstream's gateway takes paths as they are; their JSON form is in camel case.
        Kind::Message(descriptor) if descriptor.full_name() == FIELD_MASK => {
            let paths = text.split(',').filter(|path| !path.is_empty()).map(snake_case).collect();
            Ok(Value::Message(field_mask(descriptor, paths)))
        }
        // Well-known types (Timestamp, Duration, wrappers) have a JSON form that is one word.
        Kind::Message(descriptor) if descriptor.full_name().starts_with(WELL_KNOWN) => {
            let read = |json: serde_json::Value| {
                DynamicMessage::deserialize_with_options(descriptor.clone(), json, &DeserializeOptions::new())
            };
            read(serde_json::Value::String(text.to_owned()))
                .or_else(|error| match serde_json::from_str(text) {
                    Ok(json) => read(json),
                    Err(_) => Err(error),
                })
                .map(Value::Message)
                .map_err(|e| e.to_string())
        }
        Kind::Message(descriptor) => Err(format!("{} cannot be given as one value", descriptor.full_name())),
        _ => scalar(kind, text),
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

fn scalar(kind: &Kind, text: &str) -> Result<Value, String> {
    fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
        text.parse().map_err(|_| format!("{text:?} is not a valid number of this type"))
    }
    Ok(match kind {
        Kind::String => Value::String(text.to_owned()),
        Kind::Bool => Value::Bool(match text {
            "true" | "1" | "t" | "T" | "TRUE" | "True" => true,
            "false" | "0" | "f" | "F" | "FALSE" | "False" => false,
            _ => return Err(format!("{text:?} is not a boolean")),
        }),
        Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => Value::I32(number(text)?),
        Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => Value::I64(number(text)?),
        Kind::Uint32 | Kind::Fixed32 => Value::U32(number(text)?),
        Kind::Uint64 | Kind::Fixed64 => Value::U64(number(text)?),
        Kind::Float => Value::F32(number(text)?),
        Kind::Double => Value::F64(number(text)?),
        Kind::Bytes => {
            use base64::Engine as _;
            let engine = base64::engine::general_purpose::STANDARD;
            Value::Bytes(engine.decode(text).map_err(|e| format!("{text:?} is not base64: {e}"))?.into())
        }
        Kind::Enum(descriptor) => Value::EnumNumber(
            descriptor
                .get_value_by_name(text)
                .map(|v| v.number())
                .or_else(|| text.parse().ok().filter(|n| descriptor.get_value(*n).is_some()))
                .ok_or_else(|| format!("{text:?} is not a value of {}", descriptor.full_name()))?,
        ),
        Kind::Message(descriptor) => return Err(format!("{} cannot be given as one value", descriptor.full_name())),
    })
}
