//! Upstream's own recorded messages, binary and JSON. They are not part of this repository: `KFP_PROTO_GOLDENS` names the
//! folder (`backend/test/proto_tests/testdata/generated-*` of a checkout), and `cargo test -p kfp-rest -- --ignored` runs.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

use std::path::PathBuf;

use prost::Message as _;
use prost_reflect::{DynamicMessage, MessageDescriptor};
use serde_json::Value;

const API: &str = "kubeflow.pipelines.backend.api.v2beta1";

/// Without what is null: upstream writes all that is unset so, which for a `Value` would be one.
fn without_null(json: Value) -> Value {
    match json {
        Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, value)| (key, without_null(value)))
            .collect(),
        Value::Array(items) => items.into_iter().map(without_null).collect(),
        other => other,
    }
}

fn parsed(kind: &MessageDescriptor, json: &[u8]) -> DynamicMessage {
    let json = without_null(serde_json::from_slice(json).unwrap());
    let message = DynamicMessage::deserialize(kind.clone(), json).unwrap();
    // Fields that are set to their default count as set until they have been written.
    DynamicMessage::decode(kind.clone(), message.encode_to_vec().as_slice()).unwrap()
}

#[test]
#[ignore = "needs upstream's recorded messages"]
fn recorded_messages_mean_the_same_in_both_forms() {
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
        assert_eq!(parsed(&kind, &read("json")), binary, "{name}");
        assert_eq!(parsed(&kind, &kfp_rest::to_vec(&binary).unwrap()), binary, "{name}, as we write it");
    }
}
