//! The wire form of a message to canonical JSON, guided by its descriptor.
//!
//! The wire form is read into a tree that borrows its text; that becomes a JSON value or, without one, JSON text.

use std::borrow::Cow;

use base64::Engine;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions};
use serde_json::{Number, Value};

use super::{number_of, struct_to_json, to_json};
use crate::gojson;

/// Canonical JSON as it is read from a wire form.
pub(super) enum Node<'a> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'a, str>),
    List(Vec<Node<'a>>),
    /// Sorted by name.
    Object(Vec<(Name<'a>, Node<'a>)>),
    /// What has no fields of its own: the well-known types.
    Json(Value),
}

pub(super) enum Name<'a> {
    Field(FieldDescriptor),
    Key(Cow<'a, str>),
}

impl Name<'_> {
    fn as_str(&self) -> &str {
        match self {
            Self::Field(field) => field.json_name(),
            Self::Key(key) => key,
        }
    }
}

impl Node<'_> {
    pub(super) fn into_value(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bool(flag) => Value::Bool(flag),
            Self::Number(number) => Value::Number(number),
            Self::Text(text) => Value::String(text.into_owned()),
            Self::List(items) => Value::Array(items.into_iter().map(Node::into_value).collect()),
            Self::Object(fields) => Value::Object(
                fields.into_iter().map(|(name, node)| (name.as_str().to_owned(), node.into_value())).collect(),
            ),
            Self::Json(value) => value,
        }
    }

    /// Appends the tree as [`gojson`] prints it.
    pub(super) fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
            Self::Number(number) => gojson::write_number(out, number),
            Self::Text(text) => gojson::write_string(out, text),
            Self::List(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    item.write(out);
                }
                out.push(']');
            }
            Self::Object(fields) => {
                out.push('{');
                for (i, (name, node)) in fields.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    gojson::write_string(out, name.as_str());
                    out.push(':');
                    node.write(out);
                }
                out.push('}');
            }
            Self::Json(value) => gojson::write(out, value),
        }
    }
}

impl From<Value> for Node<'_> {
    fn from(value: Value) -> Self {
        match value {
            Value::Null => Self::Null,
            Value::Bool(flag) => Self::Bool(flag),
            Value::Number(number) => Self::Number(number),
            Value::String(text) => Self::Text(text.into()),
            other => Self::Json(other),
        }
    }
}

/// Canonical JSON of wire form `bytes`; `None` if they are not a message of type `descriptor`.
pub(super) fn message<'a>(descriptor: &MessageDescriptor, bytes: &'a [u8]) -> Option<Node<'a>> {
    match descriptor.full_name() {
        "google.protobuf.Value" => return prost_types::Value::decode(bytes).ok().map(|value| to_json(&value).into()),
        "google.protobuf.Struct" => {
            return prost_types::Struct::decode(bytes).ok().map(|fields| Node::Json(struct_to_json(&fields)));
        }
        name if name.starts_with("google.protobuf.") => {
            let dynamic = DynamicMessage::decode(descriptor.clone(), bytes).ok()?;
            let value = dynamic.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new());
            return value.ok().map(Node::from);
        }
        _ => {}
    }
    let mut out: Vec<(FieldDescriptor, Node<'a>)> = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (tag, wire) = decode_key(&mut rest).ok()?;
        let Some(field) = descriptor.get_field(tag) else {
            skip_field(wire, tag, &mut rest, DecodeContext::default()).ok()?;
            continue;
        };
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else { return None };
            let (key, value) = map_entry(&entry, length_delimited(&mut rest)?)?;
            let Node::Object(entries) = slot(&mut out, field, Node::Object(Vec::new())) else { return None };
            entries.push((Name::Key(key), value));
        } else if field.is_list() {
            let kind = field.kind();
            let Node::List(items) = slot(&mut out, field, Node::List(Vec::new())) else { return None };
            if wire == WireType::LengthDelimited && packable(&kind) {
                let mut inner = length_delimited(&mut rest)?;
                while !inner.is_empty() {
                    items.push(single(&kind, natural_wire(&kind), &mut inner)?);
                }
            } else {
                items.push(single(&kind, wire, &mut rest)?);
            }
        } else {
            let value = single(&field.kind(), wire, &mut rest)?;
            *slot(&mut out, field, Node::Null) = value;
        }
    }
    let fields = out.into_iter().map(|(field, node)| {
        let node = match node {
            Node::Object(entries) if field.is_map() => sorted(entries),
            node => node,
        };
        (Name::Field(field), node)
    });
    Some(sorted(fields.collect()))
}

fn sorted<'a>(mut fields: Vec<(Name<'a>, Node<'a>)>) -> Node<'a> {
    fields.sort_by(|a, b| a.0.as_str().cmp(b.0.as_str()));
    Node::Object(fields)
}

/// Where a field's value goes: what is there, mostly the last, or a new place.
fn slot<'s, 'a>(
    out: &'s mut Vec<(FieldDescriptor, Node<'a>)>,
    field: FieldDescriptor,
    empty: Node<'a>,
) -> &'s mut Node<'a> {
    let at = out.iter().rposition(|(known, _)| known.number() == field.number()).unwrap_or_else(|| {
        out.push((field, empty));
        out.len() - 1
    });
    &mut out[at].1
}

fn length_delimited<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

fn map_entry<'a>(entry: &MessageDescriptor, mut rest: &'a [u8]) -> Option<(Cow<'a, str>, Node<'a>)> {
    let (key_kind, value_kind) = (entry.map_entry_key_field().kind(), entry.map_entry_value_field().kind());
    let (mut key, mut value) = (None, None);
    while !rest.is_empty() {
        let (tag, wire) = decode_key(&mut rest).ok()?;
        match tag {
            1 => key = Some(single(&key_kind, wire, &mut rest)?),
            2 => value = Some(single(&value_kind, wire, &mut rest)?),
            _ => skip_field(wire, tag, &mut rest, DecodeContext::default()).ok()?,
        }
    }
    // Zero keys and values may be left out.
    let key = match key.map_or_else(|| zero(&key_kind), Some)? {
        Node::Text(text) => text,
        other => other.into_value().to_string().into(),
    };
    Some((key, value.map_or_else(|| zero(&value_kind), Some)?))
}

fn zero(kind: &Kind) -> Option<Node<'static>> {
    match kind {
        Kind::Message(descriptor) => message(descriptor, &[]),
        Kind::String | Kind::Bytes => Some(Node::Text("".into())),
        kind => single(kind, natural_wire(kind), &mut [0; 8].as_slice()),
    }
}

fn natural_wire(kind: &Kind) -> WireType {
    match kind {
        Kind::Double | Kind::Fixed64 | Kind::Sfixed64 => WireType::SixtyFourBit,
        Kind::Float | Kind::Fixed32 | Kind::Sfixed32 => WireType::ThirtyTwoBit,
        Kind::String | Kind::Bytes | Kind::Message(_) => WireType::LengthDelimited,
        _ => WireType::Varint,
    }
}

fn packable(kind: &Kind) -> bool {
    natural_wire(kind) != WireType::LengthDelimited
}

fn fixed<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn float(number: f64) -> Value {
    if number.is_nan() {
        Value::from("NaN")
    } else if number.is_infinite() {
        Value::from(if number > 0.0 { "Infinity" } else { "-Infinity" })
    } else {
        number_of(number)
    }
}

fn single<'a>(kind: &Kind, wire: WireType, rest: &mut &'a [u8]) -> Option<Node<'a>> {
    if wire != natural_wire(kind) {
        return None;
    }
    let zigzag = |n: u64| ((n >> 1) as i64) ^ -((n & 1) as i64);
    let text = |integer: &dyn std::fmt::Display| Node::Text(integer.to_string().into());
    let number = |integer: i64| Node::Number(integer.into());
    Some(match kind {
        Kind::Message(descriptor) => message(descriptor, length_delimited(rest)?)?,
        Kind::String => Node::Text(std::str::from_utf8(length_delimited(rest)?).ok()?.into()),
        Kind::Bytes => Node::Text(base64::engine::general_purpose::STANDARD.encode(length_delimited(rest)?).into()),
        Kind::Bool => Node::Bool(decode_varint(rest).ok()? != 0),
        Kind::Enum(kind) => {
            let value = decode_varint(rest).ok()? as i32;
            match kind.get_value(value) {
                _ if kind.full_name() == "google.protobuf.NullValue" => Node::Null,
                Some(value) => Node::Text(value.name().to_owned().into()),
                None => number(value.into()),
            }
        }
        Kind::Double => float(f64::from_le_bytes(fixed(rest)?)).into(),
        Kind::Float => {
            let number = f32::from_le_bytes(fixed(rest)?);
            // The shortest digits of the narrow type, not its exact value.
            float(number.to_string().parse().unwrap_or(f64::from(number))).into()
        }
        Kind::Int32 => number((decode_varint(rest).ok()? as i32).into()),
        Kind::Uint32 => number((decode_varint(rest).ok()? as u32).into()),
        Kind::Sint32 => number((zigzag(decode_varint(rest).ok()?) as i32).into()),
        Kind::Sfixed32 => number(i32::from_le_bytes(fixed(rest)?).into()),
        Kind::Fixed32 => number(u32::from_le_bytes(fixed(rest)?).into()),
        Kind::Int64 => text(&(decode_varint(rest).ok()? as i64)),
        Kind::Uint64 => text(&decode_varint(rest).ok()?),
        Kind::Sint64 => text(&zigzag(decode_varint(rest).ok()?)),
        Kind::Sfixed64 => text(&i64::from_le_bytes(fixed(rest)?)),
        Kind::Fixed64 => text(&u64::from_le_bytes(fixed(rest)?)),
    })
}
