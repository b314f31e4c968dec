//! Outputs of tasks: through nested DAGs, branches (`OneOf`) and loops (`Collected`).

use std::collections::BTreeMap;

use kfp_proto::ml_pipelines::dag_outputs_spec::DagOutputParameterSpec;
use kfp_proto::ml_pipelines::dag_outputs_spec::dag_output_parameter_spec::Kind;
use prost_types::value::Kind as ValueKind;
use prost_types::{ListValue, Value};
use serde::Deserialize;

use super::{Error, Execution, State, Tree, names};
use crate::ir::{self, Unknown};

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
    done.pop().unwrap_or_else(null)
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
        |error: String| Error::Output(format!("task, {task}, has unreadable outputs (dag ID {id}): {error}"));
    match what {
        What::Parameter => {
            let outputs = dag.fields(names::PARAMETER_PRODUCER_TASK).ok_or_else(|| {
                let property = names::PARAMETER_PRODUCER_TASK;
                Error::Output(format!("task, {task}, does not have a {property} custom property"))
            })?;
            let Some(Value { kind: Some(ValueKind::StringValue(text)) }) = outputs.get(key) else {
                return Err(Error::Output(format!(
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
                Error::Output(format!("artifact output key {key:?} not found in parent task {task:?} (dag ID {id})"))
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

fn null() -> Value {
    Value { kind: Some(ValueKind::NullValue(0)) }
}

impl Tree<'_> {
    /// Value of output parameter `key` of `producer`: a list for each loop that is crossed, nested as the loops are.
    /// Components are written for that (`List[List[int]]`) and the SDK's local runner does the same; upstream's driver
    /// makes one flat list of nested loops. Null when the task recorded no such output.
    ///
    /// # Errors
    /// [`Error::Output`] when the way to the output is broken, or when the store fails.
    pub async fn output_parameter(&mut self, producer: Execution, key: &str) -> Result<Value, Error> {
        let pieces = self.follow(producer, key, What::Parameter).await?;
        Ok(assemble(&pieces, |execution, key| execution.output(key).cloned().unwrap_or_else(null)))
    }

    /// The tasks that made output artifact `key` of `producer`, each with its own key: one, or as many as loops made, in
    /// one list however the loops are nested.
    ///
    /// # Errors
    /// As [`Self::output_parameter`].
    pub async fn artifact_producers(
        &mut self,
        producer: Execution,
        key: &str,
    ) -> Result<Vec<(Execution, String)>, Error> {
        let pieces = self.follow(producer, key, What::Artifact).await?;
        let leaf = |piece| match piece {
            Piece::Leaf(execution, key) => Some((*execution, key)),
            Piece::Open | Piece::Close => None,
        };
        Ok(pieces.into_iter().filter_map(leaf).collect())
    }

    /// Follows an output down to the tasks that made it; within a loop, iterations in order. Upstream does not collect
    /// a loop without iterations and fails; here the list is empty. Iterations whose condition skipped the task are left
    /// out, where upstream fails too.
    async fn follow(&mut self, producer: Execution, key: &str, what: What) -> Result<Vec<Piece>, Error> {
        if key.is_empty() {
            return Err(Error::Output(format!("output key of producer task {:?} is empty", producer.task_name())));
        }
        let mut pieces = Vec::new();
        // `None` stands for the end of a loop.
        let mut pending = vec![Some((producer, key.to_owned()))];
        let mut loops = 0;
        while let Some(step) = pending.pop() {
            let Some((execution, key)) = step else {
                pieces.push(Piece::Close);
                loops -= 1;
                continue;
            };
            if loops > 0 && execution.state() == State::Canceled {
                // A condition within the loop skipped it in this iteration, which has nothing to contribute.
            } else if !execution.is_dag() {
                pieces.push(Piece::Leaf(Box::new(execution), key));
            } else if execution.iteration_count().is_some() {
                pieces.push(Piece::Open);
                loops += 1;
                pending.push(None);
                let iterations = self.iterations(&execution).await?;
                for (index, iteration) in iterations.into_iter().enumerate().rev() {
                    let iteration = iteration.ok_or_else(|| {
                        let (task, id) = (execution.task_name(), execution.id());
                        Error::Output(format!("cannot find producer task {task:?}, iteration {index} (dag ID {id})"))
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
                let found = self.child(id, &task).await?;
                let missing = || Error::Output(format!("subTaskName, {task}, not in tasks (dag ID {id})"));
                Ok((found.ok_or_else(missing)?, key))
            }
            Source::FirstOf(candidates) => {
                for (task, key) in candidates {
                    if let Some(found) = self.child(id, &task).await?
                        && matches!(self.outcome(&found).await?, State::Complete | State::Cached)
                    {
                        return Ok((found, key));
                    }
                }
                Err(Error::Output(format!(
                    "processing OneOf: No successful task found for output key {key:?} in parent task {:?} (dag ID {id})",
                    dag.task_name()
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super as mlmd;
    use super::*;
    use kfp_proto::ml_metadata as pb;
    use prost_types::Struct;

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
