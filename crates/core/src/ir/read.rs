//! JSON to the wire form of a message, guided by its descriptor; errors carry the path of the field.
//!
//! JSON comes as parsed text or as a `google.protobuf.Struct`, so the reader is generic over a [`Document`].

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use prost::Message;
use prost::encoding::{self, WireType, encode_key, encode_varint};
use prost_reflect::{DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use prost_types::value::Kind as Proto;
use serde_json::{Map, Number, Value};

use super::{Error, Unknown, from_json, number_of, struct_from_json, to_json};

/// A JSON value in some form.
pub(super) trait Document: Sized + 'static {
    /// What an object holds.
    type Fields;

    fn view(&self) -> View<'_, Self>;
    fn entries(fields: &Self::Fields) -> impl ExactSizeIterator<Item = (&String, &Self)>;
    fn entry<'a>(fields: &'a Self::Fields, name: &str) -> Option<&'a Self>;
    /// The protobuf value of the same content.
    fn proto(&self) -> Cow<'_, prost_types::Value>;
    fn json(&self) -> Cow<'_, Value>;
    /// The wire form of an object as `google.protobuf.Struct`.
    fn object_bytes(fields: &Self::Fields) -> Vec<u8>;
}

pub(super) enum View<'a, D: Document> {
    Null,
    Bool(bool),
    Number(Cow<'a, Number>),
    Text(&'a str),
    List(&'a [D]),
    Object(&'a D::Fields),
}

impl Document for Value {
    type Fields = Map<String, Value>;

    fn view(&self) -> View<'_, Self> {
        match self {
            Value::Null => View::Null,
            Value::Bool(flag) => View::Bool(*flag),
            Value::Number(number) => View::Number(Cow::Borrowed(number)),
            Value::String(text) => View::Text(text),
            Value::Array(items) => View::List(items),
            Value::Object(fields) => View::Object(fields),
        }
    }

    fn entries(fields: &Self::Fields) -> impl ExactSizeIterator<Item = (&String, &Self)> {
        fields.iter()
    }

    fn entry<'a>(fields: &'a Self::Fields, name: &str) -> Option<&'a Self> {
        fields.get(name)
    }

    fn proto(&self) -> Cow<'_, prost_types::Value> {
        Cow::Owned(from_json(self))
    }

    fn json(&self) -> Cow<'_, Value> {
        Cow::Borrowed(self)
    }

    fn object_bytes(fields: &Self::Fields) -> Vec<u8> {
        struct_from_json(fields).encode_to_vec()
    }
}

impl Document for prost_types::Value {
    type Fields = prost_types::Struct;

    fn view(&self) -> View<'_, Self> {
        match &self.kind {
            None | Some(Proto::NullValue(_)) => View::Null,
            Some(Proto::BoolValue(flag)) => View::Bool(*flag),
            Some(Proto::NumberValue(number)) => match number_of(*number) {
                Value::Number(number) => View::Number(Cow::Owned(number)),
                _ => View::Null,
            },
            Some(Proto::StringValue(text)) => View::Text(text),
            Some(Proto::ListValue(list)) => View::List(&list.values),
            Some(Proto::StructValue(fields)) => View::Object(fields),
        }
    }

    fn entries(fields: &Self::Fields) -> impl ExactSizeIterator<Item = (&String, &Self)> {
        let fields: &BTreeMap<String, Self> = &fields.fields;
        fields.iter()
    }

    fn entry<'a>(fields: &'a Self::Fields, name: &str) -> Option<&'a Self> {
        fields.fields.get(name)
    }

    fn proto(&self) -> Cow<'_, prost_types::Value> {
        Cow::Borrowed(self)
    }

    fn json(&self) -> Cow<'_, Value> {
        Cow::Owned(to_json(self))
    }

    fn object_bytes(fields: &Self::Fields) -> Vec<u8> {
        fields.encode_to_vec()
    }
}

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

    fn expected<T, D: Document>(&self, what: &str, got: &View<D>) -> Result<T, Error> {
        let got = match got {
            View::Null => "null",
            View::Bool(_) => "a boolean",
            View::Number(_) => "a number",
            View::Text(_) => "a string",
            View::List(_) => "a list",
            View::Object(_) => "an object",
        };
        self.fail(format!("expected {what}, got {got}"))
    }
}

/// The wire form of `json` as a message of type `descriptor`.
pub(super) fn message(
    descriptor: &MessageDescriptor,
    json: &impl Document,
    unknown: Unknown,
) -> Result<Vec<u8>, Error> {
    Reader { unknown }.message(descriptor, json, &Path { up: None, segment: "" })
}

/// The wire form of an object with these fields as a message of type `descriptor`.
pub(super) fn object<D: Document>(
    descriptor: &MessageDescriptor,
    fields: &D::Fields,
    unknown: Unknown,
) -> Result<Vec<u8>, Error> {
    Reader { unknown }.fields::<D>(descriptor, fields, &Path { up: None, segment: "" })
}

#[derive(Clone, Copy)]
struct Reader {
    unknown: Unknown,
}

impl Reader {
    fn message<D: Document>(self, descriptor: &MessageDescriptor, json: &D, path: &Path) -> Result<Vec<u8>, Error> {
        match descriptor.full_name() {
            "google.protobuf.Value" => return Ok(json.proto().encode_to_vec()),
            "google.protobuf.Struct" => {
                return match json.view() {
                    View::Object(fields) => Ok(D::object_bytes(fields)),
                    other => path.expected("an object", &other),
                };
            }
            name if name.starts_with("google.protobuf.") => {
                let options = DeserializeOptions::new().deny_unknown_fields(self.unknown == Unknown::Reject);
                return match DynamicMessage::deserialize_with_options(descriptor.clone(), &*json.json(), &options) {
                    Ok(message) => Ok(message.encode_to_vec()),
                    Err(error) => path.fail(error),
                };
            }
            _ => {}
        }
        match json.view() {
            View::Object(fields) => self.fields::<D>(descriptor, fields, path),
            other => path.expected("an object", &other),
        }
    }

    fn fields<D: Document>(
        self,
        descriptor: &MessageDescriptor,
        fields: &D::Fields,
        path: &Path,
    ) -> Result<Vec<u8>, Error> {
        let mut out = Vec::new();
        let entries = D::entries(fields);
        let mut seen = Vec::with_capacity(entries.len());
        for (name, value) in entries {
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
            let view = value.view();
            if matches!(view, View::Null) && !takes_null(&field) {
                continue;
            }
            if let Some(oneof) = field.containing_oneof() {
                let given = |other: &FieldDescriptor, name: &str| {
                    D::entry(fields, name).is_some_and(|value| !matches!(value.view(), View::Null) || takes_null(other))
                };
                let other = oneof.fields().find(|other| {
                    other.number() != field.number()
                        && [other.json_name(), other.name()].iter().any(|name| given(other, name))
                });
                if let Some(other) = other {
                    return path.fail(format!("cannot be given beside {:?}", other.json_name()));
                }
            }
            if field.is_map() {
                self.map(&field, value, &path, &mut out)?;
            } else if field.is_list() {
                let View::List(items) = view else { return path.expected("a list", &view) };
                for (i, item) in items.iter().enumerate() {
                    self.single(&field, item, &Path { up: Some(&path), segment: &i.to_string() }, &mut out)?;
                }
            } else {
                self.single(&field, value, &path, &mut out)?;
            }
        }
        Ok(out)
    }

    fn map<D: Document>(self, field: &FieldDescriptor, json: &D, path: &Path, out: &mut Vec<u8>) -> Result<(), Error> {
        let view = json.view();
        let View::Object(entries) = view else { return path.expected("an object", &view) };
        let Kind::Message(entry) = field.kind() else { return path.fail("is not a map") };
        let (key_field, value_field) = (entry.map_entry_key_field(), entry.map_entry_value_field());
        let key_kind = key_field.kind();
        for (key, value) in D::entries(entries) {
            let path = Path { up: Some(path), segment: key };
            let mut bytes = Vec::new();
            match (&key_kind, key.as_str()) {
                (Kind::String, text) => nested(key_field.number(), text.as_bytes(), &mut bytes),
                (Kind::Bool, "true") => self.single(&key_field, &Value::Bool(true), &path, &mut bytes)?,
                (Kind::Bool, "false") => self.single(&key_field, &Value::Bool(false), &path, &mut bytes)?,
                (_, text) => self.single(&key_field, &Value::from(text), &path, &mut bytes)?,
            }
            self.single(&value_field, value, &path, &mut bytes)?;
            nested(field.number(), &bytes, out);
        }
        Ok(())
    }

    fn single<D: Document>(
        self,
        field: &FieldDescriptor,
        json: &D,
        path: &Path,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let tag = field.number();
        let kind = field.kind();
        if let Kind::Message(descriptor) = kind {
            nested(tag, &self.message(&descriptor, json, path)?, out);
            return Ok(());
        }
        let view = json.view();
        match kind {
            Kind::Message(_) => {}
            Kind::Enum(kind) => {
                let number = match &view {
                    View::Text(name) => match kind.get_value_by_name(name) {
                        Some(value) => value.number(),
                        None if self.unknown == Unknown::Ignore => return Ok(()),
                        None => return path.fail(format!("{name:?} is not a value of {}", kind.name())),
                    },
                    View::Null if kind.full_name() == "google.protobuf.NullValue" => 0,
                    other => signed(other, path)?,
                };
                encoding::int32::encode(tag, &number, out);
            }
            Kind::String => match view {
                View::Text(text) => nested(tag, text.as_bytes(), out),
                other => return path.expected("a string", &other),
            },
            Kind::Bool => match view {
                View::Bool(flag) => encoding::bool::encode(tag, &flag, out),
                other => return path.expected("a boolean", &other),
            },
            Kind::Bytes => match view {
                View::Text(text) => nested(tag, &base64(text, path)?, out),
                other => return path.expected("a base64 string", &other),
            },
            Kind::Double => encoding::double::encode(tag, &float(&view, path)?, out),
            Kind::Float => {
                let number = float(&view, path)?;
                if number.is_finite() && number.abs() > f64::from(f32::MAX) {
                    return path.fail("the number is out of range");
                }
                encoding::float::encode(tag, &(number as f32), out);
            }
            Kind::Int32 => encoding::int32::encode(tag, &signed(&view, path)?, out),
            Kind::Sint32 => encoding::sint32::encode(tag, &signed(&view, path)?, out),
            Kind::Sfixed32 => encoding::sfixed32::encode(tag, &signed(&view, path)?, out),
            Kind::Int64 => encoding::int64::encode(tag, &signed(&view, path)?, out),
            Kind::Sint64 => encoding::sint64::encode(tag, &signed(&view, path)?, out),
            Kind::Sfixed64 => encoding::sfixed64::encode(tag, &signed(&view, path)?, out),
            Kind::Uint32 => encoding::uint32::encode(tag, &signed(&view, path)?, out),
            Kind::Fixed32 => encoding::fixed32::encode(tag, &signed(&view, path)?, out),
            Kind::Uint64 => encoding::uint64::encode(tag, &signed(&view, path)?, out),
            Kind::Fixed64 => encoding::fixed64::encode(tag, &signed(&view, path)?, out),
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
fn signed<T: TryFrom<i128>, D: Document>(json: &View<D>, path: &Path) -> Result<T, Error> {
    let number = match json {
        View::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), ..) => Some(i128::from(integer)),
            (_, Some(integer), _) => Some(i128::from(integer)),
            (.., Some(double)) if double.fract() == 0.0 => Some(double as i128),
            _ => None,
        },
        View::Text(text) => text.parse::<i128>().ok(),
        other => return path.expected("an integer", other),
    };
    let shown = || match json {
        View::Number(number) => number.to_string(),
        View::Text(text) => format!("{text:?}"),
        _ => String::new(),
    };
    let Some(number) = number else { return path.fail(format!("{} is not an integer", shown())) };
    T::try_from(number).or_else(|_| path.fail(format!("{} is out of range", shown())))
}

fn float<D: Document>(json: &View<D>, path: &Path) -> Result<f64, Error> {
    match json {
        View::Number(number) => number.as_f64().map_or_else(|| path.fail("the number is out of range"), Ok),
        View::Text(text) => match *text {
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
