//! Pipeline-spec messages to and from canonical proto3 JSON, and `google.protobuf.Value` to and from JSON values.

mod read;
mod write;

use kfp_proto::POOL;
use prost::{Message, Name};
use prost_reflect::MessageDescriptor;
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
    typed(&read::message(&descriptor::<T>()?, json, unknown)?)
}

/// [`decode`] for JSON that is an object in protobuf form.
///
/// # Errors
/// See [`decode`].
pub fn decode_struct<T: Message + Name + Default>(json: &prost_types::Struct, unknown: Unknown) -> Result<T, Error> {
    typed(&read::object::<prost_types::Value>(&descriptor::<T>()?, json, unknown)?)
}

fn descriptor<T: Name>() -> Result<MessageDescriptor, Error> {
    POOL.get_message_by_name(&T::full_name()).ok_or_else(|| Error::Type(T::full_name()))
}

fn typed<T: Message + Default>(bytes: &[u8]) -> Result<T, Error> {
    // What can still go wrong is nesting: prost stops at a hundred messages, three for each level of a Struct.
    T::decode(bytes).map_err(|e| Error::Json(e.to_string()))
}

/// Writes canonical proto3 JSON: lowerCamelCase names, fields without presence omitted when zero, enums by name,
/// 64-bit integers as strings, integral doubles as integers. A value nested deeper than prost accepts becomes null.
pub fn encode<T: Message + Name>(message: &T) -> Value {
    let Ok(descriptor) = descriptor::<T>() else { return Value::Null };
    write::message(&descriptor, &message.encode_to_vec()).map_or(Value::Null, write::Node::into_value)
}

/// [`encode`] as text, as [`crate::gojson::to_string`] would print it.
pub fn encode_text<T: Message + Name>(message: &T) -> String {
    let bytes = message.encode_to_vec();
    // Quotes, names and escapes come to somewhat more than tags and lengths.
    let mut out = String::with_capacity(bytes.len() + bytes.len() / 4 + 64);
    match descriptor::<T>().ok().and_then(|descriptor| write::message(&descriptor, &bytes)) {
        Some(node) => node.write(&mut out),
        None => out.push_str("null"),
    }
    out
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
    fn errors_carry_the_path() {
        for (given, want) in [
            (
                json!({"root": {"dag": {"tasks": {"a-task": {"inputs": {"nope": 1}}}}}}),
                "root.dag.tasks.a-task.inputs: unknown field \"nope\"",
            ),
            (json!({"pipelineInfo": {"name": 3}}), "pipelineInfo.name: expected a string, got a number"),
            (json!({"components": []}), "components: expected an object, got a list"),
            (
                json!({"root": {"inputDefinitions": {"parameters": {"p": {"parameterType": "X"}}}}}),
                "root.inputDefinitions.parameters.p.parameterType: \"X\" is not a value of ParameterTypeEnum",
            ),
            (json!({"root": {"dag": {}, "executorLabel": "e"}}), "root.dag: cannot be given beside \"executorLabel\""),
            (json!({"sdkVersion": "a", "sdk_version": "b"}), "sdk_version: the field is given twice"),
            (json!([]), "expected an object, got a list"),
            (
                json!({"root": {"dag": {"tasks": {"t": {"dependentTasks": ["a", 1]}}}}}),
                "root.dag.tasks.t.dependentTasks.1: expected a string, got a number",
            ),
        ] {
            assert_eq!(decode::<PipelineSpec>(&given, Unknown::Reject).unwrap_err().to_string(), want);
        }
    }

    #[test]
    fn numbers_are_read_in_all_their_forms() {
        use kfp_proto::ml_pipelines::PipelineJob;
        let spec: PipelineTaskSpec = decode(
            &json!({"retryPolicy": {"maxRetryCount": "3", "backoffFactor": "1.5", "backoffDuration": "1.5s"}, "iteratorPolicy": {"parallelismLimit": 2.0}}),
            Unknown::Reject,
        )
        .unwrap();
        assert_eq!(
            encode(&spec),
            json!({"retryPolicy": {"maxRetryCount": 3, "backoffFactor": 1.5, "backoffDuration": "1.500s"}, "iteratorPolicy": {"parallelismLimit": 2}})
        );
        for wrong in [json!(1.5), json!("x"), json!(1_u64 << 40), json!(null).take(), json!([])] {
            let given = json!({"retryPolicy": {"maxRetryCount": wrong}});
            assert_eq!(decode::<PipelineTaskSpec>(&given, Unknown::Reject).is_ok(), wrong.is_null(), "{wrong}");
        }
        let job: PipelineJob = decode(
            &json!({"labels": {"": "", "a": "b"}, "runtimeConfig": {"parameterValues": {"n": null}}}),
            Unknown::Reject,
        )
        .unwrap();
        assert_eq!(
            encode(&job),
            json!({"labels": {"": "", "a": "b"}, "runtimeConfig": {"parameterValues": {"n": null}}})
        );
    }

    #[test]
    fn deep_values_end_in_an_error() {
        let mut deep = json!(1);
        for _ in 0..90 {
            deep = json!([deep]);
        }
        let given = json!({"metadata": {"a": deep}});
        assert!(decode::<RuntimeArtifact>(&given, Unknown::Reject).unwrap_err().to_string().contains("recursion"));
    }

    mod against_prost_reflect {
        use super::*;
        use proptest::prelude::*;
        use prost_reflect::{DeserializeOptions, DynamicMessage};

        fn any_json() -> impl Strategy<Value = Value> {
            let keys = [
                "taskInfo",
                "name",
                "inputs",
                "parameters",
                "artifacts",
                "dependentTasks",
                "cachingOptions",
                "enableCache",
                "componentRef",
                "triggerPolicy",
                "condition",
                "strategy",
                "parameterIterator",
                "items",
                "raw",
                "inputParameter",
                "retryPolicy",
                "maxRetryCount",
                "backoffFactor",
                "backoffDuration",
                "runtimeValue",
                "constant",
                "intValue",
                "constantValue",
                "doubleValue",
                "runtime_parameter",
                "bogus",
            ];
            let leaf = prop_oneof![
                Just(Value::Null),
                any::<bool>().prop_map(Value::from),
                (-5_i64..5).prop_map(Value::from),
                any::<f32>().prop_filter("finite", |x| x.is_finite()).prop_map(Value::from),
                prop::sample::select(vec!["", "a", "7", "1.5", "30s", "ALL_UPSTREAM_TASKS_COMPLETED"])
                    .prop_map(Value::from),
            ];
            leaf.prop_recursive(6, 48, 4, move |inner| {
                prop_oneof![
                    1 => prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                    6 => prop::collection::btree_map(prop::sample::select(keys.to_vec()), inner, 0..4)
                        .prop_map(|m| m.into_iter().map(|(k, v)| (k.to_string(), v)).collect()),
                ]
            })
        }

        proptest! {
            #![proptest_config(ProptestConfig::with_cases(2000))]
            #[test]
            fn tasks_are_read_and_written_alike(json in any_json()) {
                let descriptor = POOL.get_message_by_name("ml_pipelines.PipelineTaskSpec").unwrap();
                for unknown in [Unknown::Reject, Unknown::Ignore] {
                    let ours = decode::<PipelineTaskSpec>(&json, unknown);
                    if let Value::Object(fields) = &json {
                        let fields = struct_from_json(fields);
                        let text = decode::<PipelineTaskSpec>(&struct_to_json(&fields), unknown);
                        let direct = decode_struct::<PipelineTaskSpec>(&fields, unknown);
                        prop_assert_eq!(direct.map_err(|e| e.to_string()), text.map_err(|e| e.to_string()));
                    }
                    let options = DeserializeOptions::new().deny_unknown_fields(unknown == Unknown::Reject);
                    if let Ok(theirs) = DynamicMessage::deserialize_with_options(descriptor.clone(), &json, &options) {
                        let theirs: PipelineTaskSpec = theirs.transcode_to().unwrap();
                        prop_assert_eq!(ours.as_ref().map_err(ToString::to_string), Ok(&theirs));
                    }
                    if let Ok(task) = ours {
                        let mut dynamic = DynamicMessage::new(descriptor.clone());
                        dynamic.transcode_from(&task).unwrap();
                        let theirs = serde_json::to_value(&dynamic).unwrap();
                        let again: PipelineTaskSpec = decode(&encode(&task), Unknown::Reject).unwrap();
                        prop_assert_eq!(&again, &task);
                        prop_assert_eq!(encode_text(&task), crate::gojson::to_string(&encode(&task)));
                        prop_assert_eq!(crate::gojson::to_string(&encode(&task)), crate::gojson::to_string(&theirs));
                    }
                }
            }
        }
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
