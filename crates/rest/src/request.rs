//! Binding: path variables, query parameters and the JSON body make one request message.

use prost_reflect::{DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, Value};

use crate::route::{BodyField, Route, field_path};

/// Builds the request message.
///
/// # Errors
/// A text for code 3 that names the field or the place in the JSON.
pub(crate) fn bind(route: &Route, variables: &[String], query: &str, body: &[u8]) -> Result<DynamicMessage, String> {
    let mut message = DynamicMessage::new(route.input.clone());
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
    for (path, value) in route.variables.iter().zip(variables) {
        set(&mut message, path, value).map_err(|reason| {
            let name: Vec<_> = path.iter().map(FieldDescriptor::name).collect();
            format!("type mismatch, parameter: {}, error: {reason}", name.join("."))
        })?;
    }
    Ok(message)
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
        // Well-known types (Timestamp, Duration, wrappers, FieldMask) have a JSON form that is one word.
        Kind::Message(descriptor) if descriptor.full_name().starts_with("google.protobuf.") => {
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
