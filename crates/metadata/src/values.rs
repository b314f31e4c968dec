//! Property values as columns.

use base64::Engine as _;
use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_metadata::value::Value as Inner;
use prost::Message as _;

use crate::database::{BASE64, Param, Row};
use crate::failure::{Failure, Outcome};

/// Marks a string column that holds a struct.
const STRUCT_PREFIX: &str = "mlmd-struct::";
/// The value columns, in the order of [`columns`] and [`read`].
pub const COLUMNS: &str = "`int_value`, `double_value`, `string_value`, `proto_value`, `bool_value`";

/// The value as the five columns of [`COLUMNS`].
///
/// # Errors
/// INVALID_ARGUMENT for a value with nothing set (upstream aborts) and for NaN, which databases turn into NULL.
pub fn columns(name: &str, value: &pb::Value) -> Outcome<[Param; 5]> {
    let mut cells = [Param::Null, Param::Null, Param::Null, Param::Null, Param::Null];
    match &value.value {
        None => return Err(Failure::invalid(format!("property {name:?} has no value"))),
        Some(Inner::IntValue(value)) => cells[0] = (*value).into(),
        Some(Inner::DoubleValue(value)) if value.is_nan() => {
            return Err(Failure::invalid(format!("property {name:?} is NaN, which cannot be stored")));
        }
        Some(Inner::DoubleValue(value)) => cells[1] = (*value).into(),
        Some(Inner::StringValue(value)) => cells[2] = value.as_str().into(),
        Some(Inner::StructValue(value)) => {
            cells[2] = format!("{STRUCT_PREFIX}{}", BASE64.encode(value.encode_to_vec())).into();
        }
        Some(Inner::ProtoValue(value)) => cells[3] = value.encode_to_vec().into(),
        Some(Inner::BoolValue(value)) => cells[4] = (*value).into(),
    }
    Ok(cells)
}

/// The value in the five columns from `first` on.
///
/// # Errors
/// INTERNAL when the columns hold nothing or something undecodable.
pub fn read(name: &str, row: &Row, first: usize) -> Outcome<pb::Value> {
    let broken = |what: &str| Failure::internal(format!("property {name:?} in the database {what}"));
    let value = if let Some(value) = row.int_or_null(first)? {
        Inner::IntValue(value)
    } else if let Some(value) = row.real_or_null(first + 1)? {
        Inner::DoubleValue(value)
    } else if let Some(value) = row.text_or_null(first + 2)? {
        match value.strip_prefix(STRUCT_PREFIX) {
            Some(encoded) => {
                let bytes = BASE64.decode(encoded).map_err(|_| broken("is not base64"))?;
                let decoded = prost_types::Struct::decode(bytes.as_slice()).map_err(|_| broken("is not a struct"))?;
                Inner::StructValue(decoded)
            }
            None => Inner::StringValue(value),
        }
    } else if let Some(value) = row.bytes_or_null(first + 3)? {
        Inner::ProtoValue(prost_types::Any::decode(value.as_slice()).map_err(|_| broken("is not a message"))?)
    } else if let Some(value) = row.int_or_null(first + 4)? {
        Inner::BoolValue(value != 0)
    } else {
        return Err(broken("has no value"));
    };
    Ok(pb::Value { value: Some(value) })
}

/// Whether a value is of the declared kind.
#[must_use]
pub fn matches(declared: i32, value: &pb::Value) -> bool {
    let kind = match &value.value {
        None => pb::PropertyType::Unknown,
        Some(Inner::IntValue(_)) => pb::PropertyType::Int,
        Some(Inner::DoubleValue(_)) => pb::PropertyType::Double,
        Some(Inner::StringValue(_)) => pb::PropertyType::String,
        Some(Inner::StructValue(_)) => pb::PropertyType::Struct,
        Some(Inner::ProtoValue(_)) => pb::PropertyType::Proto,
        Some(Inner::BoolValue(_)) => pb::PropertyType::Boolean,
    };
    kind as i32 == declared
}
