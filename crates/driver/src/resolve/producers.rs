//! Outputs of other tasks.

use kfp_core::mlmd::{self, Execution, names};
use kfp_proto::ml_pipelines::RuntimeArtifact;
use prost_types::value::Kind as ValueKind;
use prost_types::{Struct, Value};

use super::Resolver;
use crate::Error;

/// Broken outputs are the pipeline's problem, not the store's.
fn told(error: mlmd::Error) -> Error {
    match error {
        mlmd::Error::Output(reason) => Error::Inputs(reason),
        other => other.into(),
    }
}

impl Resolver<'_> {
    /// The task `name` beside the one that is driven.
    pub(super) async fn producer(&mut self, name: &str) -> Result<Execution, Error> {
        let missing = || Error::Inputs(format!("producer task, {name}, not in tasks (dag ID {})", self.dag.id()));
        if name.is_empty() {
            return Err(Error::Inputs("producer task is empty".to_owned()));
        }
        let found = self.tree.child(self.dag.id(), name).await?;
        found.ok_or_else(missing)
    }

    /// Value of an output parameter.
    pub(super) async fn output_parameter(&mut self, producer: &str, key: &str) -> Result<Value, Error> {
        let producer = self.producer(producer).await?;
        self.tree.output_parameter(producer, key).await.map_err(told)
    }

    /// Output artifacts: one, or as many as loops made.
    pub(super) async fn output_artifacts(&mut self, producer: &str, key: &str) -> Result<Vec<RuntimeArtifact>, Error> {
        let producer = self.producer(producer).await?;
        let mut artifacts = Vec::new();
        for (execution, key) in self.tree.artifact_producers(producer, key).await.map_err(told)? {
            let found = self.metadata.output_artifacts(execution.id()).await?.remove(&key).ok_or_else(|| {
                let (task, id) = (execution.task_name(), execution.id());
                Error::Inputs(format!("task {task:?} (execution {id}) has no output artifact {key:?}"))
            })?;
            let mut artifact = mlmd::runtime_artifact(&found, true)?;
            if execution.type_name() == names::IMPORTER_WORKSPACE_EXECUTION {
                let metadata = artifact.metadata.get_or_insert_with(Struct::default);
                let mark = Value { kind: Some(ValueKind::BoolValue(true)) };
                metadata.fields.insert(names::WORKSPACE_METADATA.to_owned(), mark);
            }
            artifacts.push(artifact);
        }
        Ok(artifacts)
    }
}
