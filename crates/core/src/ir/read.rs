//! JSON to the wire form of a message, guided by its descriptor; errors carry the path of the field.

use base64::Engine;
use prost::Message;
use prost::encoding::{self, WireType, encode_key, encode_varint};
use prost_reflect::{DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};

use super::{Error, Unknown, from_json};

/// Where in the document the reader is.
struct Path<'a> {
    up: Option<&'a Path<'a>>,
    segment: &'a str,
}

impl Path<'_> {
    fn fail<T>(&self, text: impl std::fmt::Display) -> Result<T, Error> {
        let mut segments = Vec::new();
        let mut at = Some(self);
        while let Some(path) = at {
            segments.push(path.segment);
            at = path.up;
        }
        segments.reverse();
        let place = segments.join(".");
        Err(Error::Json(if place.is_empty() { text.to_string() } else { format!("{}: {text}", &place[1..]) }))
    }

    fn expected<T>(&self, what: &str, got: &Value) -> Result<T, Error> {
        let got = match got {
            Value::Null => "null",
            Value::Bool(_) => "a boolean",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        self.fail(format!("expected {what}, got {got}"))
    }
}

/// The wire form of `json` as a message of type `descriptor`.
pub(super) fn message(descriptor: &MessageDescriptor, json: &Value, unknown: Unknown) -> Result<Vec<u8>, Error> {
    Reader { unknown }.message(descriptor, json, &Path { up: None, segment: "" })
}

#[derive(Clone, Copy)]
struct Reader {
    unknown: Unknown,
}

impl Reader {
    fn message(self, descriptor: &MessageDescriptor, json: &Value, path: &Path) -> Result<Vec<u8>, Error> {
        match descriptor.full_name() {
            "google.protobuf.Value" => return Ok(from_json(json).encode_to_vec()),
            "google.protobuf.Struct" => {
                let Value::Object(fields) = json else { return path.expected("an object", json) };
                return Ok(super::struct_from_json(fields).encode_to_vec());
            }
            name if name.starts_with("google.protobuf.") => {
                let options = DeserializeOptions::new().deny_unknown_fields(self.unknown == Unknown::Reject);
                return match DynamicMessage::deserialize_with_options(descriptor.clone(), json, &options) {
                    Ok(message) => Ok(message.encode_to_vec()),
                    Err(error) => path.fail(error),
                };
            }
            _ => {}
        }
        let Value::Object(fields) = json else { return path.expected("an object", json) };
        self.fields(descriptor, fields, path)
    }

    fn fields(
        self,
        descriptor: &MessageDescriptor,
        fields: &Map<String, Value>,
        path: &Path,
    ) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let mut seen = Vec::with_capacity(fields.len());
        for (name, value) in fields {
            let field = descriptor.get_field_by_json_name(name).or_else(|| descriptor.get_field_by_name(name));
            let Some(field) = field else {
                match self.unknown {
                    Unknown::Ignore => continue,
                    Unknown::Reject => return path.fail(format!("unknown field {name:?}")),
                }
            };
            let path = Path { up: Some(path), segment: name };
            if seen.contains(&field.number()) {
                return path.fail("the field is given twice");
            }
            seen.push(field.number());
            if value.is_null() && !takes_null(&field) {
                continue;
            }
            if let Some(oneof) = field.containing_oneof() {
                let other = oneof.fields().find(|other| {
                    other.number() != field.number()
                        && [other.json_name(), other.name()]
                            .iter()
                            .any(|name| fields.get(*name).is_some_and(|value| !value.is_null() || takes_null(other)))
                });
                if let Some(other) = other {
                    return path.fail(format!("cannot be given beside {:?}", other.json_name()));
                }
            }
            if field.is_map() {
                self.map(&field, value, &path, &mut out)?;
            } else if field.is_list() {
                let Value::Array(items) = value else { return path.expected("a list", value) };
                for (i, item) in items.iter().enumerate() {
                    self.single(&field, item, &Path { up: Some(&path), segment: &i.to_string() }, &mut out)?;
                }
            } else {
                self.single(&field, value, &path, &mut out)?;
            }
        }
        Ok(out)
    }

    fn map(self, field: &FieldDescriptor, json: &Value, path: &Path, out: &mut Vec<u8>) -> Result<(), Error> {
        let Value::Object(entries) = json else { return path.expected("an object", json) };
        let Kind::Message(entry) = field.kind() else { return path.fail("is not a map") };
        let (key_field, value_field) = (entry.map_entry_key_field(), entry.map_entry_value_field());
        for (key, value) in entries {
            let path = Path { up: Some(path), segment: key };
            let mut bytes = Vec::new();
            let key_json = match (key_field.kind(), key.as_str()) {
                (Kind::Bool, "true") => Value::Bool(true),
                (Kind::Bool, "false") => Value::Bool(false),
                _ => Value::from(key.as_str()),
            };
            self.single(&key_field, &key_json, &path, &mut bytes)?;
            self.single(&value_field, value, &path, &mut bytes)?;
            nested(field.number(), &bytes, out);
        }
        Ok(())
    }

    fn single(self, field: &FieldDescriptor, json: &Value, path: &Path, out: &mut Vec<u8>) -> Result<(), Error> {
        let tag = field.number();
        match field.kind() {
            Kind::Message(descriptor) => nested(tag, &self.message(&descriptor, json, path)?, out),
            Kind::Enum(kind) => {
                let number = match json {
                    Value::String(name) => match kind.get_value_by_name(name) {
                        Some(value) => value.number(),
                        None if self.unknown == Unknown::Ignore => return Ok(()),
                        None => return path.fail(format!("{name:?} is not a value of {}", kind.name())),
                    },
                    Value::Null if kind.full_name() == "google.protobuf.NullValue" => 0,
                    other => signed(other, path)?,
                };
                encoding::int32::encode(tag, &number, out);
            }
            Kind::String => match json {
                Value::String(text) => encoding::string::encode(tag, text, out),
                other => return path.expected("a string", other),
            },
            Kind::Bool => match json {
                Value::Bool(flag) => encoding::bool::encode(tag, flag, out),
                other => return path.expected("a boolean", other),
            },
            Kind::Bytes => {
                let Value::String(text) = json else { return path.expected("a base64 string", json) };
                encoding::bytes::encode(tag, &base64(text, path)?, out);
            }
            Kind::Double => encoding::double::encode(tag, &float(json, path)?, out),
            Kind::Float => {
                let number = float(json, path)?;
                if number.is_finite() && number.abs() > f64::from(f32::MAX) {
                    return path.fail("the number is out of range");
                }
                encoding::float::encode(tag, &(number as f32), out);
            }
            Kind::Int32 => encoding::int32::encode(tag, &signed(json, path)?, out),
            Kind::Sint32 => encoding::sint32::encode(tag, &signed(json, path)?, out),
            Kind::Sfixed32 => encoding::sfixed32::encode(tag, &signed(json, path)?, out),
            Kind::Int64 => encoding::int64::encode(tag, &signed(json, path)?, out),
            Kind::Sint64 => encoding::sint64::encode(tag, &signed(json, path)?, out),
            Kind::Sfixed64 => encoding::sfixed64::encode(tag, &signed(json, path)?, out),
            Kind::Uint32 => encoding::uint32::encode(tag, &signed(json, path)?, out),
            Kind::Fixed32 => encoding::fixed32::encode(tag, &signed(json, path)?, out),
            Kind::Uint64 => encoding::uint64::encode(tag, &signed(json, path)?, out),
            Kind::Fixed64 => encoding::fixed64::encode(tag, &signed(json, path)?, out),
        }
        Ok(())
    }
}

/// Whether JSON null is a value of the field rather than its absence.
fn takes_null(field: &FieldDescriptor) -> bool {
    !field.is_list()
        && match field.kind() {
            Kind::Message(descriptor) => descriptor.full_name() == "google.protobuf.Value",
            Kind::Enum(kind) => kind.full_name() == "google.protobuf.NullValue",
            _ => false,
        }
}

fn nested(tag: u32, bytes: &[u8], out: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, out);
    encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// An integer as number or string; a double counts if it is integral.
fn signed<T: TryFrom<i128>>(json: &Value, path: &Path) -> Result<T, Error> {
    let number = match json {
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), ..) => Some(i128::from(integer)),
            (_, Some(integer), _) => Some(i128::from(integer)),
            (.., Some(double)) if double.fract() == 0.0 => Some(double as i128),
            _ => None,
        },
        Value::String(text) => text.parse::<i128>().ok(),
        other => return path.expected("an integer", other),
    };
    let Some(number) = number else { return path.fail(format!("{json} is not an integer")) };
    T::try_from(number).or_else(|_| path.fail(format!("{json} is out of range")))
}

fn float(json: &Value, path: &Path) -> Result<f64, Error> {
    match json {
        Value::Number(number) => number.as_f64().map_or_else(|| path.fail("the number is out of range"), Ok),
        Value::String(text) => match text.as_str() {
            "NaN" => Ok(f64::NAN),
            "Infinity" => Ok(f64::INFINITY),
            "-Infinity" => Ok(f64::NEG_INFINITY),
            text => match text.parse::<f64>() {
                Ok(number) if number.is_finite() => Ok(number),
                _ => path.fail(format!("{text:?} is not a number")),
            },
        },
        other => path.expected("a number", other),
    }
}

fn base64(text: &str, path: &Path) -> Result<Vec<u8>, Error> {
    use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
    let config = GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let alphabet = if text.contains(['-', '_']) { &base64::alphabet::URL_SAFE } else { &base64::alphabet::STANDARD };
    GeneralPurpose::new(alphabet, config).decode(text).or_else(|error| path.fail(format!("invalid base64: {error}")))
}
