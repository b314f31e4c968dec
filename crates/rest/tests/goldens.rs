//! Upstream's own recorded messages, binary and JSON. They are not part of this repository: `KFP_PROTO_GOLDENS` names the
//! folder (`backend/test/proto_tests/testdata/generated-*` of a checkout), and `cargo test -p kfp-rest -- --ignored` runs.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use prost::Message as _;
use prost_reflect::{DynamicMessage, Kind, MapKey, ReflectMessage as _, Value as Field};
use serde_json::{Value, json};

const API: &str = "kubeflow.pipelines.backend.api.v2beta1";

/// What is in the recorded JSON of a message, without the fields that the message lacks: they are recorded with their default,
/// and upstream's gateway, as ours, leaves them out.
fn set(message: &DynamicMessage, json: Value) -> Value {
    let Value::Object(fields) = json else { return json };
    let kind = message.descriptor();
    // These have a form of their own, in which a null is a value.
    if kind.package_name() == "google.protobuf" {
        return Value::Object(fields);
    }
    let mut out = serde_json::Map::new();
    for (name, json) in fields {
        let field = kind.get_field_by_name(&name).unwrap_or_else(|| panic!("{} has no {name}", kind.full_name()));
        if !message.has_field(&field) {
            let default = match field.kind() {
                Kind::Enum(kind) => json.as_str() == Some(kind.default_value().name()),
                _ => [json!(null), json!(""), json!(0), json!("0"), json!(false), json!([]), json!({})].contains(&json),
            };
            assert!(default, "{}.{name} lacks {json}", kind.full_name());
            continue;
        }
        let json = match (&*message.get_field(&field), json) {
            (Field::Message(inner), json) => set(inner, json),
            (Field::List(items), Value::Array(recorded)) => {
                assert_eq!(items.len(), recorded.len(), "{}.{name}", kind.full_name());
                let pairs = items.iter().zip(recorded);
                pairs
                    .map(|(item, json)| item.as_message().map_or_else(|| json.clone(), |item| set(item, json.clone())))
                    .collect()
            }
            (Field::Map(items), Value::Object(recorded)) => recorded
                .into_iter()
                .map(|(key, json)| match items.get(&MapKey::String(key.clone())) {
                    Some(Field::Message(inner)) => (key, set(inner, json)),
                    _ => (key, json),
                })
                .collect(),
            (_, json) => json,
        };
        out.insert(name, json);
    }
    Value::Object(out)
}

#[test]
#[ignore = "needs upstream's recorded messages"]
fn recorded_messages_are_read_and_written_as_upstream_does() {
    let folder = PathBuf::from(std::env::var_os("KFP_PROTO_GOLDENS").unwrap());
    for (name, package, kind) in [
        ("pipeline", API, "Pipeline"),
        ("pipeline_version", API, "PipelineVersion"),
        ("experiment", API, "Experiment"),
        ("run_completed", API, "Run"),
        ("run_completed_with_spec", API, "Run"),
        ("run_failed", API, "Run"),
        ("recurring_run", API, "RecurringRun"),
        ("visualization", API, "Visualization"),
        ("pipeline_spec", "ml_pipelines", "PipelineSpec"),
        ("platform_spec", "ml_pipelines", "PlatformSpec"),
    ] {
        let kind = kfp_proto::POOL.get_message_by_name(&format!("{package}.{kind}")).unwrap();
        let read = |end: &str| std::fs::read(folder.join(format!("{name}.{end}"))).unwrap();
        let binary = DynamicMessage::decode(kind.clone(), read("pb").as_slice()).unwrap();
        assert_eq!(binary.unknown_fields().count(), 0, "{name}");
        let again = DynamicMessage::decode(kind.clone(), binary.encode_to_vec().as_slice()).unwrap();
        assert_eq!(again, binary, "{name}");
        let recorded = set(&binary, serde_json::from_slice(&read("json")).unwrap());
        let written: Value = serde_json::from_slice(&kfp_rest::to_vec(&binary).unwrap()).unwrap();
        assert_eq!(written, recorded, "{name}");
        assert_eq!(DynamicMessage::deserialize(kind, recorded).unwrap(), binary, "{name}");
    }
}
