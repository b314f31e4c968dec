//! Where a task leaves its outputs.

use std::collections::BTreeMap;

use kfp_core::mlmd::names::EXECUTOR_LOGS;
use kfp_core::objects;
use kfp_proto::ml_pipelines::{
    ArtifactList, ArtifactTypeSchema, ComponentOutputsSpec, RuntimeArtifact, artifact_type_schema, executor_input,
};

/// Where the launcher reads output parameters.
const PARAMETER_DIRECTORY: &str = "/tmp/kfp/outputs";
/// Where the executor's own output file goes when the pipeline root has no local form.
const FALLBACK_OUTPUT_FILE: &str = "/tmp/kfp_outputs/output_metadata.json";

/// `root` without its `?query`, joined with `parts`.
#[must_use]
pub(crate) fn join(root: &str, parts: &[&str]) -> String {
    let root = root.split_once('?').map_or(root, |(root, _)| root).trim_end_matches('/');
    format!("{root}/{}", clean(&parts.join("/")))
}

/// As [`join`], with the query kept at the end.
#[must_use]
pub(crate) fn join_keeping_query(root: &str, parts: &[&str]) -> String {
    match root.split_once('?') {
        Some((_, query)) => format!("{}?{query}", join(root, parts)),
        None => join(root, parts),
    }
}

/// A relative path without empty, `.` and `..` steps.
fn clean(path: &str) -> String {
    let mut steps: Vec<&str> = Vec::new();
    for step in path.split('/') {
        match step {
            "" | "." => {}
            ".." => drop(steps.pop()),
            step => steps.push(step),
        }
    }
    steps.join("/")
}

/// Outputs of one attempt at a task, below `<pipeline root>/<task>/<salt>`. With `logs` there is one more artifact for
/// the task's log, as upstream adds it.
#[must_use]
pub(crate) fn provision(
    pipeline_root: &str,
    task: &str,
    definitions: Option<&ComponentOutputsSpec>,
    salt: &str,
    logs: bool,
) -> executor_input::Outputs {
    let root = join(pipeline_root, &[task, salt]);
    let artifact = |name: &str, kind: Option<ArtifactTypeSchema>, metadata| {
        let artifact = RuntimeArtifact {
            name: name.to_owned(),
            uri: join(&root, &[name]),
            r#type: kind,
            metadata,
            ..Default::default()
        };
        (name.to_owned(), ArtifactList { artifacts: vec![artifact] })
    };
    let declared = definitions.map(|definitions| &definitions.artifacts).into_iter().flatten();
    let mut artifacts: BTreeMap<_, _> =
        declared.map(|(name, spec)| artifact(name, spec.artifact_type.clone(), spec.metadata.clone())).collect();
    if logs {
        let title = artifact_type_schema::Kind::SchemaTitle("system.Artifact".to_owned());
        let kind = ArtifactTypeSchema { kind: Some(title), ..Default::default() };
        artifacts.extend([artifact(EXECUTOR_LOGS, Some(kind), None)]);
    }
    let declared = definitions.map(|definitions| &definitions.parameters).into_iter().flatten();
    let parameters = declared
        .map(|(name, _)| {
            let output_file = format!("{PARAMETER_DIRECTORY}/{name}");
            (name.clone(), executor_input::OutputParameter { output_file })
        })
        .collect();
    let output_file = objects::local_path(&root).map_or_else(
        || FALLBACK_OUTPUT_FILE.to_owned(),
        |local| local.join("output_metadata.json").to_string_lossy().into_owned(),
    );
    executor_input::Outputs { parameters, artifacts, output_file }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfp_core::ir;
    use serde_json::json;

    #[test]
    fn queries_stay_with_the_run_and_off_the_artifacts() {
        assert_eq!(join("minio://b/p/?region=x", &["t", "u"]), "minio://b/p/t/u");
        assert_eq!(join_keeping_query("minio://b/p/?region=x", &["n", "r"]), "minio://b/p/n/r?region=x");
        assert_eq!(join("gs://b", &["a/../b", "./c"]), "gs://b/b/c");
    }

    #[test]
    fn outputs_are_declared_ones_and_logs() {
        let definitions: ComponentOutputsSpec = ir::decode(
            &json!({"parameters": {"p": {"parameterType": "STRING"}},
                    "artifacts": {"m": {"artifactType": {"schemaTitle": "system.Model"}, "metadata": {"k": 1}}}}),
            ir::Unknown::Reject,
        )
        .unwrap();
        let outputs = provision("minio://b/r?x=1", "train", Some(&definitions), "salt", true);
        assert_eq!(
            ir::encode(&outputs),
            json!({
                "parameters": {"p": {"outputFile": "/tmp/kfp/outputs/p"}},
                "artifacts": {
                    "m": {"artifacts": [{"name": "m", "uri": "minio://b/r/train/salt/m",
                        "type": {"schemaTitle": "system.Model"}, "metadata": {"k": 1}}]},
                    "executor-logs": {"artifacts": [{"name": "executor-logs",
                        "uri": "minio://b/r/train/salt/executor-logs", "type": {"schemaTitle": "system.Artifact"}}]}},
                "outputFile": "/minio/b/r/train/salt/output_metadata.json"})
        );
        let outputs = provision("hdfs://b/r", "t", None, "s", false);
        assert_eq!(ir::encode(&outputs), json!({"outputFile": "/tmp/kfp_outputs/output_metadata.json"}));
    }
}
