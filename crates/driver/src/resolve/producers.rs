//! Outputs of other tasks: through nested DAGs, branches (`OneOf`) and loops (`Collected`).

use std::collections::BTreeMap;

use kfp_core::ir::{self, Unknown};
use kfp_core::mlmd::{self, Execution, names};
use kfp_proto::ml_pipelines::RuntimeArtifact;
use kfp_proto::ml_pipelines::dag_outputs_spec::DagOutputParameterSpec;
use kfp_proto::ml_pipelines::dag_outputs_spec::dag_output_parameter_spec::Kind;
use prost_types::value::Kind as ValueKind;
use prost_types::{ListValue, Struct, Value};
use serde::Deserialize;

use super::{Resolver, null_value};
use crate::Error;

/// Which kind of output is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Parameter,
    Artifact,
}

/// What an output is made of: one leaf, or those of a loop between `Open` and `Close`, nested as the loops are.
enum Piece {
    Open,
    /// A task that is no DAG, and the key of its output.
    Leaf(Box<Execution>, String),
    Close,
}

/// The value of an output whose leaves' values `of` gives: each loop is a list.
fn assemble(pieces: &[Piece], of: impl Fn(&Execution, &str) -> Value) -> Value {
    let mut done: Vec<Value> = Vec::new();
    let mut enclosing: Vec<Vec<Value>> = Vec::new();
    for piece in pieces {
        match piece {
            Piece::Open => enclosing.push(std::mem::take(&mut done)),
            Piece::Leaf(execution, key) => done.push(of(execution, key)),
            Piece::Close => {
                let values = std::mem::replace(&mut done, enclosing.pop().unwrap_or_default());
                done.push(Value { kind: Some(ValueKind::ListValue(ListValue { values })) });
            }
        }
    }
    done.pop().unwrap_or_else(null_value)
}

/// Where a DAG's output comes from.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    /// This task, whatever became of it.
    Task(String, String),
    /// The first of these tasks that succeeded.
    FirstOf(Vec<(String, String)>),
}

/// The JSON of [`names::ARTIFACT_PRODUCER_TASK`]; written in snake_case, read in both spellings.
#[derive(Deserialize)]
struct ArtifactOutput {
    #[serde(alias = "artifactSelectors", default)]
    artifact_selectors: Vec<ArtifactSelector>,
}

#[derive(Deserialize)]
struct ArtifactSelector {
    #[serde(alias = "producerSubtask", default)]
    producer_subtask: String,
    #[serde(alias = "outputArtifactKey", default)]
    output_artifact_key: String,
}

fn source(dag: &Execution, key: &str, what: What) -> Result<Source, Error> {
    let (task, id) = (dag.task_name(), dag.id());
    let unreadable =
        |error: String| Error::Inputs(format!("task, {task}, has unreadable outputs (dag ID {id}): {error}"));
    match what {
        What::Parameter => {
            let outputs = dag.fields(names::PARAMETER_PRODUCER_TASK).ok_or_else(|| {
                let property = names::PARAMETER_PRODUCER_TASK;
                Error::Inputs(format!("task, {task}, does not have a {property} custom property"))
            })?;
            let Some(Value { kind: Some(ValueKind::StringValue(text)) }) = outputs.get(key) else {
                return Err(Error::Inputs(format!(
                    "parameter output key {key:?} not found in parent task {task:?} (dag ID {id})"
                )));
            };
            let json = serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
            let spec: DagOutputParameterSpec =
                ir::decode(&json, Unknown::Ignore).map_err(|error| unreadable(error.to_string()))?;
            match spec.kind {
                Some(Kind::ValueFromParameter(from)) => {
                    Ok(Source::Task(from.producer_subtask, from.output_parameter_key))
                }
                Some(Kind::ValueFromOneof(oneof)) => {
                    let pair = |s: kfp_proto::ml_pipelines::dag_outputs_spec::ParameterSelectorSpec| {
                        (s.producer_subtask, s.output_parameter_key)
                    };
                    Ok(Source::FirstOf(oneof.parameter_selectors.into_iter().map(pair).collect()))
                }
                None => Err(unreadable(format!("output {key:?} has no source"))),
            }
        }
        What::Artifact => {
            let missing = || {
                Error::Inputs(format!("artifact output key {key:?} not found in parent task {task:?} (dag ID {id})"))
            };
            let text = dag.text(names::ARTIFACT_PRODUCER_TASK);
            if text.is_empty() {
                return Err(missing());
            }
            let mut outputs: BTreeMap<String, ArtifactOutput> =
                serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
            let selectors = outputs.remove(key).ok_or_else(missing)?.artifact_selectors;
            let mut pairs: Vec<_> =
                selectors.into_iter().map(|s| (s.producer_subtask, s.output_artifact_key)).collect();
            match (pairs.len(), pairs.pop()) {
                (1, Some((task, key))) => Ok(Source::Task(task, key)),
                (_, last) => {
                    pairs.extend(last);
                    Ok(Source::FirstOf(pairs))
                }
            }
        }
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

    /// Value of an output parameter: a list for each loop that is crossed, nested as the loops are. Components are
    /// written for that (`List[List[int]]`) and the SDK's local runner does the same; upstream's driver makes one flat
    /// list of nested loops.
    pub(super) async fn output_parameter(&mut self, producer: &str, key: &str) -> Result<Value, Error> {
        let pieces = self.follow(producer, key, What::Parameter).await?;
        Ok(assemble(&pieces, |execution, key| execution.output(key).cloned().unwrap_or_else(null_value)))
    }

    /// Output artifacts: one, or as many as loops made, in one list however the loops are nested.
    pub(super) async fn output_artifacts(&mut self, producer: &str, key: &str) -> Result<Vec<RuntimeArtifact>, Error> {
        let pieces = self.follow(producer, key, What::Artifact).await?;
        let mut artifacts = Vec::new();
        for piece in &pieces {
            let Piece::Leaf(execution, key) = piece else { continue };
            let found = self.metadata.output_artifacts(execution.id()).await?.remove(key).ok_or_else(|| {
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

    /// Follows an output down to the tasks that made it; within a loop, iterations in order. Upstream does not collect
    /// a loop without iterations and fails; here the list is empty.
    async fn follow(&mut self, producer: &str, key: &str, what: What) -> Result<Vec<Piece>, Error> {
        if key.is_empty() {
            return Err(Error::Inputs(format!("output key of producer task {producer:?} is empty")));
        }
        let mut pieces = Vec::new();
        // `None` stands for the end of a loop.
        let mut pending = vec![Some((self.producer(producer).await?, key.to_owned()))];
        while let Some(step) = pending.pop() {
            let Some((execution, key)) = step else {
                pieces.push(Piece::Close);
                continue;
            };
            if !execution.is_dag() {
                pieces.push(Piece::Leaf(Box::new(execution), key));
            } else if execution.iteration_count().is_some() {
                pieces.push(Piece::Open);
                pending.push(None);
                let iterations = self.tree.iterations(&execution).await?;
                for (index, iteration) in iterations.into_iter().enumerate().rev() {
                    let iteration = iteration.ok_or_else(|| {
                        let (task, id) = (execution.task_name(), execution.id());
                        Error::Inputs(format!("cannot find producer task {task:?}, iteration {index} (dag ID {id})"))
                    })?;
                    pending.push(Some((iteration, key.clone())));
                }
            } else {
                pending.push(Some(self.descend(&execution, &key, what).await?));
            }
        }
        Ok(pieces)
    }

    /// The task within a DAG that makes one of the DAG's outputs.
    async fn descend(&mut self, dag: &Execution, key: &str, what: What) -> Result<(Execution, String), Error> {
        let id = dag.id();
        match source(dag, key, what)? {
            Source::Task(task, key) => {
                let found = self.tree.child(id, &task).await?;
                let missing = || Error::Inputs(format!("subTaskName, {task}, not in tasks (dag ID {id})"));
                Ok((found.ok_or_else(missing)?, key))
            }
            Source::FirstOf(candidates) => {
                for (task, key) in candidates {
                    if let Some(found) = self.tree.child(id, &task).await?.filter(Execution::succeeded) {
                        return Ok((found, key));
                    }
                }
                Err(Error::Inputs(format!(
                    "processing OneOf: No successful task found for output key {key:?} in parent task {:?} (dag ID {id})",
                    dag.task_name()
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfp_proto::ml_metadata as pb;

    fn dag(properties: &[(&str, pb::Value)]) -> Execution {
        let mut execution = Execution { message: pb::Execution { id: Some(4), ..Default::default() } };
        execution.set(names::TASK_NAME, mlmd::text("branches"));
        for (name, value) in properties {
            execution.set(name, value.clone());
        }
        execution
    }

    fn pair(task: &str, key: &str) -> (String, String) {
        (task.to_owned(), key.to_owned())
    }

    #[test]
    fn artifact_sources_in_both_spellings() {
        for text in [
            r#"{"a":{"artifact_selectors":[{"producer_subtask":"t","output_artifact_key":"k"}]}}"#,
            r#"{"a":{"artifactSelectors":[{"producerSubtask":"t","outputArtifactKey":"k"}]}}"#,
        ] {
            let dag = dag(&[(names::ARTIFACT_PRODUCER_TASK, mlmd::text(text))]);
            assert_eq!(source(&dag, "a", What::Artifact).unwrap(), Source::Task("t".into(), "k".into()));
            let error = source(&dag, "b", What::Artifact).unwrap_err().to_string();
            assert!(
                error.ends_with("artifact output key \"b\" not found in parent task \"branches\" (dag ID 4)"),
                "{error}"
            );
        }
        let text = r#"{"a":{"artifact_selectors":[{"producer_subtask":"t","output_artifact_key":"k"},{"producer_subtask":"u","output_artifact_key":"l"}]}}"#;
        let dag = dag(&[(names::ARTIFACT_PRODUCER_TASK, mlmd::text(text))]);
        assert_eq!(source(&dag, "a", What::Artifact).unwrap(), Source::FirstOf(vec![pair("t", "k"), pair("u", "l")]));
    }

    #[test]
    fn parameter_sources() {
        let value = |text: &str| Value { kind: Some(ValueKind::StringValue(text.to_owned())) };
        let fields = [
            ("one", r#"{"valueFromParameter":{"producerSubtask":"t","outputParameterKey":"k"}}"#),
            ("any", r#"{"valueFromOneof":{"parameterSelectors":[{"producerSubtask":"t","outputParameterKey":"k"}]}}"#),
            ("bad", "{"),
        ]
        .into_iter()
        .map(|(name, text)| (name.to_owned(), value(text)))
        .collect();
        let with = dag(&[(names::PARAMETER_PRODUCER_TASK, mlmd::struct_value(Struct { fields }))]);
        assert_eq!(source(&with, "one", What::Parameter).unwrap(), Source::Task("t".into(), "k".into()));
        assert_eq!(source(&with, "any", What::Parameter).unwrap(), Source::FirstOf(vec![pair("t", "k")]));
        for (dag, key, wanted) in [
            (&with, "bad", "has unreadable outputs"),
            (&with, "none", "parameter output key \"none\" not found"),
            (&dag(&[]), "one", "does not have a parameter_producer_task custom property"),
        ] {
            let error = source(dag, key, What::Parameter).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
