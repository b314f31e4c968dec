//! The wire form of a message to canonical JSON, guided by its descriptor.

use base64::Engine;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions};
use serde_json::{Map, Value};

use super::{number_of, struct_to_json, to_json};

/// Canonical JSON of wire form `bytes`; `None` if they are not a message of type `descriptor`.
pub(super) fn message(descriptor: &MessageDescriptor, bytes: &[u8]) -> Option<Value> {
    match descriptor.full_name() {
        "google.protobuf.Value" => return prost_types::Value::decode(bytes).ok().map(|value| to_json(&value)),
        "google.protobuf.Struct" => {
            return prost_types::Struct::decode(bytes).ok().map(|fields| struct_to_json(&fields));
        }
        name if name.starts_with("google.protobuf.") => {
            let dynamic = DynamicMessage::decode(descriptor.clone(), bytes).ok()?;
            return dynamic.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new()).ok();
        }
        _ => {}
    }
    let mut out = Map::new();
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
            slot(&mut out, &field, Value::Object(Map::new())).as_object_mut()?.insert(key, value);
        } else if field.is_list() {
            let packed = wire == WireType::LengthDelimited && packable(&field.kind());
            let mut items = Vec::new();
            if packed {
                let mut inner = length_delimited(&mut rest)?;
                while !inner.is_empty() {
                    items.push(single(&field.kind(), natural_wire(&field.kind()), &mut inner)?);
                }
            } else {
                items.push(single(&field.kind(), wire, &mut rest)?);
            }
            slot(&mut out, &field, Value::Array(Vec::new())).as_array_mut()?.append(&mut items);
        } else {
            let value = single(&field.kind(), wire, &mut rest)?;
            out.insert(field.json_name().to_owned(), value);
        }
    }
    Some(Value::Object(out))
}

fn slot<'a>(out: &'a mut Map<String, Value>, field: &FieldDescriptor, empty: Value) -> &'a mut Value {
    out.entry(field.json_name()).or_insert(empty)
}

fn length_delimited<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(decode_varint(rest).ok()?).ok()?;
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    Some(head)
}

fn map_entry(entry: &MessageDescriptor, mut rest: &[u8]) -> Option<(String, Value)> {
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
        Value::String(text) => text,
        other => other.to_string(),
    };
    Some((key, value.map_or_else(|| zero(&value_kind), Some)?))
}

fn zero(kind: &Kind) -> Option<Value> {
    match kind {
        Kind::Message(descriptor) => message(descriptor, &[]),
        Kind::String | Kind::Bytes => Some(Value::from("")),
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

fn single(kind: &Kind, wire: WireType, rest: &mut &[u8]) -> Option<Value> {
    if wire != natural_wire(kind) {
        return None;
    }
    let zigzag = |n: u64| ((n >> 1) as i64) ^ -((n & 1) as i64);
    Some(match kind {
        Kind::Message(descriptor) => message(descriptor, length_delimited(rest)?)?,
        Kind::String => Value::from(std::str::from_utf8(length_delimited(rest)?).ok()?),
        Kind::Bytes => Value::from(base64::engine::general_purpose::STANDARD.encode(length_delimited(rest)?)),
        Kind::Bool => Value::from(decode_varint(rest).ok()? != 0),
        Kind::Enum(kind) => {
            let number = decode_varint(rest).ok()? as i32;
            match kind.get_value(number) {
                _ if kind.full_name() == "google.protobuf.NullValue" => Value::Null,
                Some(value) => Value::from(value.name()),
                None => Value::from(number),
            }
        }
        Kind::Double => float(f64::from_le_bytes(fixed(rest)?)),
        Kind::Float => {
            let number = f32::from_le_bytes(fixed(rest)?);
            // The shortest digits of the narrow type, not its exact value.
            float(number.to_string().parse().unwrap_or(f64::from(number)))
        }
        Kind::Int32 => Value::from(decode_varint(rest).ok()? as i32),
        Kind::Uint32 => Value::from(decode_varint(rest).ok()? as u32),
        Kind::Sint32 => Value::from(zigzag(decode_varint(rest).ok()?) as i32),
        Kind::Sfixed32 => Value::from(i32::from_le_bytes(fixed(rest)?)),
        Kind::Fixed32 => Value::from(u32::from_le_bytes(fixed(rest)?)),
        Kind::Int64 => Value::from((decode_varint(rest).ok()? as i64).to_string()),
        Kind::Uint64 => Value::from(decode_varint(rest).ok()?.to_string()),
        Kind::Sint64 => Value::from(zigzag(decode_varint(rest).ok()?).to_string()),
        Kind::Sfixed64 => Value::from(i64::from_le_bytes(fixed(rest)?).to_string()),
        Kind::Fixed64 => Value::from(u64::from_le_bytes(fixed(rest)?).to_string()),
    })
}
