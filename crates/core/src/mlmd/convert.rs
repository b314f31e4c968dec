//! ML-Metadata's values: how to make them, and what becomes of artifact metadata.

use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_metadata::value::Value as Kind;
use prost_types::Struct;
use prost_types::value::Kind as ProtoKind;

/// A string property.
#[must_use]
pub fn text(value: impl Into<String>) -> pb::Value {
    pb::Value { value: Some(Kind::StringValue(value.into())) }
}

/// An integer property.
#[must_use]
pub fn int(value: i64) -> pb::Value {
    pb::Value { value: Some(Kind::IntValue(value)) }
}

/// A double property.
#[must_use]
pub fn double(value: f64) -> pb::Value {
    pb::Value { value: Some(Kind::DoubleValue(value)) }
}

/// A struct property.
#[must_use]
pub fn struct_value(value: Struct) -> pb::Value {
    pb::Value { value: Some(Kind::StructValue(value)) }
}

/// One metadata value of an artifact as a property: numbers become doubles, booleans 0 or 1, lists and objects structs
/// wrapped in `list` or `struct`. A null has no such form and gives `None`: callers leave it out.
#[must_use]
pub(super) fn property_from_value(value: &prost_types::Value) -> Option<pb::Value> {
    let wrapped =
        |key: &str| struct_value(Struct { fields: std::iter::once((key.to_owned(), value.clone())).collect() });
    match value.kind.as_ref()? {
        ProtoKind::NullValue(_) => None,
        ProtoKind::StringValue(value) => Some(text(value)),
        ProtoKind::NumberValue(value) => Some(double(*value)),
        ProtoKind::BoolValue(value) => Some(int(i64::from(*value))),
        ProtoKind::ListValue(_) => Some(wrapped("list")),
        ProtoKind::StructValue(_) => Some(wrapped("struct")),
    }
}

/// A property as artifact metadata; `None` for kinds that have no JSON form.
#[allow(clippy::cast_precision_loss)]
pub(super) fn value_from_property(value: &pb::Value) -> Option<prost_types::Value> {
    let kind = match value.value.as_ref()? {
        Kind::StringValue(value) => ProtoKind::StringValue(value.clone()),
        Kind::DoubleValue(value) => ProtoKind::NumberValue(*value),
        Kind::IntValue(value) => ProtoKind::NumberValue(*value as f64),
        Kind::BoolValue(value) => ProtoKind::BoolValue(*value),
        Kind::StructValue(value) => ProtoKind::StructValue(value.clone()),
        Kind::ProtoValue(_) => return None,
    };
    Some(prost_types::Value { kind: Some(kind) })
}

/// Whether artifact metadata says that the artifact lies in the run's workspace.
#[must_use]
pub fn is_truthy_workspace(metadata: Option<&Struct>) -> bool {
    let value = metadata.and_then(|m| m.fields.get(super::names::WORKSPACE_METADATA)).and_then(|v| v.kind.as_ref());
    match value {
        Some(ProtoKind::BoolValue(value)) => *value,
        Some(ProtoKind::NumberValue(value)) => *value != 0.0,
        Some(ProtoKind::StringValue(value)) => value == "true",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{from_json, to_json};
    use serde_json::json;

    #[test]
    fn properties_take_the_documented_kinds() {
        let property = |json| property_from_value(&from_json(&json)).map(|v| v.value.unwrap());
        assert_eq!(property(json!(null)), None);
        assert_eq!(property(json!(2)), Some(Kind::DoubleValue(2.0)));
        assert_eq!(property(json!(true)), Some(Kind::IntValue(1)));
        assert_eq!(property(json!("s")), Some(Kind::StringValue("s".into())));
        let Some(Kind::StructValue(list)) = property(json!([1])) else { panic!("not a struct") };
        assert_eq!(to_json(&list.fields["list"]), json!([1]));
        let Some(Kind::StructValue(object)) = property(json!({"a": 1})) else { panic!("not a struct") };
        assert_eq!(to_json(&object.fields["struct"]), json!({"a": 1}));
    }
}
