//! Pipeline-spec messages to and from canonical proto3 JSON, and `google.protobuf.Value` to and from JSON values.

use kfp_proto::POOL;
use prost::{Message, Name};
use prost_reflect::{DeserializeOptions, DynamicMessage, SerializeOptions};
use prost_types::value::Kind;
use serde_json::{Map, Number, Value};

/// What to do with JSON fields the message does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unknown {
    /// Fail, as upstream does nearly everywhere.
    Reject,
    /// Drop them, as upstream does for the deployment config.
    Ignore,
}

/// Why JSON is not a message.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The type is not part of the compiled descriptors.
    #[error("message type {0} is unknown")]
    Type(String),
    /// A field is unknown, of a wrong type or given twice.
    #[error("{0}")]
    Json(String),
}

/// Reads canonical proto3 JSON (lowerCamelCase or original names).
///
/// # Errors
/// [`Error::Json`] says which field does not fit.
pub fn decode<T: Message + Name + Default>(json: &Value, unknown: Unknown) -> Result<T, Error> {
    let descriptor = POOL.get_message_by_name(&T::full_name()).ok_or_else(|| Error::Type(T::full_name()))?;
    let options = DeserializeOptions::new().deny_unknown_fields(unknown == Unknown::Reject);
    let message =
        DynamicMessage::deserialize_with_options(descriptor, json, &options).map_err(|e| Error::Json(e.to_string()))?;
    message.transcode_to().map_err(|e| Error::Json(e.to_string()))
}

/// Writes canonical proto3 JSON: lowerCamelCase names, fields without presence omitted when zero, enums by name,
/// 64-bit integers as strings, integral doubles as integers.
pub fn encode<T: Message + Name>(message: &T) -> Value {
    let Some(descriptor) = POOL.get_message_by_name(&T::full_name()) else { return Value::Null };
    let mut dynamic = DynamicMessage::new(descriptor);
    let mut value = match dynamic.merge(message.encode_to_vec().as_slice()) {
        Ok(()) => {
            dynamic.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new()).unwrap_or_default()
        }
        Err(_) => Value::Null,
    };
    integral(&mut value);
    value
}

fn integral(value: &mut Value) {
    match value {
        Value::Number(number) => {
            if let Some(double) = number.as_f64().filter(|_| number.is_f64()) {
                *value = number_of(double);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(integral),
        Value::Object(fields) => fields.values_mut().for_each(integral),
        _ => {}
    }
}

/// A double as JSON number; an integer where it is one (but `-0` stays), `null` where JSON has no such number.
pub fn number_of(double: f64) -> Value {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if double.fract() == 0.0 && double.abs() <= EXACT && !(double == 0.0 && double.is_sign_negative()) {
        // In range by the comparison above.
        return Value::from(double as i64);
    }
    Number::from_f64(double).map_or(Value::Null, Value::Number)
}

/// A protobuf value as JSON. A value without a kind is `null`.
pub fn to_json(value: &prost_types::Value) -> Value {
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(number)) => number_of(*number),
        Some(Kind::StringValue(text)) => Value::String(text.clone()),
        Some(Kind::BoolValue(flag)) => Value::Bool(*flag),
        Some(Kind::StructValue(fields)) => struct_to_json(fields),
        Some(Kind::ListValue(list)) => Value::Array(list.values.iter().map(to_json).collect()),
    }
}

/// A protobuf struct as JSON object.
pub fn struct_to_json(fields: &prost_types::Struct) -> Value {
    Value::Object(fields.fields.iter().map(|(key, value)| (key.clone(), to_json(value))).collect())
}

/// JSON as protobuf value. Numbers become doubles, so integers beyond 2^53 lose precision (upstream's do too).
pub fn from_json(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(flag) => Kind::BoolValue(*flag),
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => Kind::StringValue(text.clone()),
        Value::Array(items) => {
            Kind::ListValue(prost_types::ListValue { values: items.iter().map(from_json).collect() })
        }
        Value::Object(fields) => Kind::StructValue(struct_from_json(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// A JSON object as protobuf struct.
pub fn struct_from_json(fields: &Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct { fields: fields.iter().map(|(key, value)| (key.clone(), from_json(value))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfp_proto::ml_pipelines::{PipelineSpec, PipelineTaskSpec, RuntimeArtifact};
    use serde_json::json;

    #[test]
    fn task_round_trips_with_canonical_choices() {
        let given = json!({
            "taskInfo": {"name": "a"},
            "caching_options": {"enable_cache": false},
            "retryPolicy": {"maxRetryCount": 2, "backoffDuration": "30s", "backoffFactor": 2.0},
            "inputs": {"parameters": {
                "n": {"runtimeValue": {"constant": null}},
                "e": {"runtimeValue": {"constant": ""}},
                "s": {"componentInputParameter": ""},
                "i": {"runtimeValue": {"constantValue": {"intValue": "7"}}}}},
            "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
        });
        let task: PipelineTaskSpec = decode(&given, Unknown::Reject).unwrap();
        let want = json!({
            "taskInfo": {"name": "a"},
            "cachingOptions": {},
            "retryPolicy": {"maxRetryCount": 2, "backoffDuration": "30s", "backoffFactor": 2},
            "inputs": {"parameters": {
                "n": {"runtimeValue": {"constant": null}},
                "e": {"runtimeValue": {"constant": ""}},
                "s": {"componentInputParameter": ""},
                "i": {"runtimeValue": {"constantValue": {"intValue": "7"}}}}},
            "triggerPolicy": {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"},
        });
        assert_eq!(encode(&task), want);
    }

    #[test]
    fn unknown_fields_fail_only_when_asked() {
        let given = json!({"schemaVersion": "2.1.0", "nope": 1});
        assert!(decode::<PipelineSpec>(&given, Unknown::Reject).unwrap_err().to_string().contains("nope"));
        assert_eq!(decode::<PipelineSpec>(&given, Unknown::Ignore).unwrap().schema_version, "2.1.0");
    }

    #[test]
    fn artifact_metadata_keeps_types() {
        let given = json!({"name": "m", "metadata": {"a": 1.0, "b": [true, null, "x"], "c": {}}});
        let artifact: RuntimeArtifact = decode(&given, Unknown::Reject).unwrap();
        assert_eq!(encode(&artifact), json!({"name": "m", "metadata": {"a": 1, "b": [true, null, "x"], "c": {}}}));
    }

    #[test]
    fn values_convert_both_ways() {
        let given = json!({"a": 3, "b": -0.0, "c": 1.5, "d": [null, false, "s", {}], "e": 1e300});
        let value = from_json(&given);
        assert_eq!(to_json(&value), given);
        assert_eq!(
            crate::gojson::to_string(&to_json(&value)),
            r#"{"a":3,"b":-0,"c":1.5,"d":[null,false,"s",{}],"e":1e+300}"#
        );
    }
}
