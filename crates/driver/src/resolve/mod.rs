//! From a task's specification to the values and artifacts it gets.

mod parameters;
mod producers;
mod types;

use std::collections::{BTreeMap, BTreeSet};

use kfp_core::mlmd::{self, Execution, Run, Tree};
use kfp_proto::ml_pipelines::parameter_type::ParameterTypeEnum;
use kfp_proto::ml_pipelines::pipeline_task_spec::Iterator as TaskIterator;
use kfp_proto::ml_pipelines::{
    ArtifactList, ComponentInputsSpec, ExecutorInput, executor_input, parameter_iterator_spec::items_spec,
    task_inputs_spec::input_artifact_spec::Kind as ArtifactKind,
};
use prost_types::Value;

pub(crate) use parameters::{Resolved, Times, WORKSPACE_PATH, WORKSPACE_PLACEHOLDER, mentioned_times};
pub(crate) use types::items;

use crate::request::{Request, Task, Work};
use crate::{Error, cel};

/// Resolved inputs of a task.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Inputs {
    pub(crate) parameters: BTreeMap<String, Value>,
    pub(crate) artifacts: BTreeMap<String, ArtifactList>,
}

impl Inputs {
    /// The inputs as the launcher gets them, without outputs.
    pub(crate) fn executor_input(&self) -> ExecutorInput {
        let inputs = executor_input::Inputs {
            parameter_values: self.parameters.clone(),
            artifacts: self.artifacts.clone(),
            ..Default::default()
        };
        ExecutorInput { inputs: Some(inputs), outputs: None }
    }

    /// Metadata ids of the artifacts, by input. Their names are their ids.
    pub(crate) fn artifact_ids(&self) -> BTreeMap<String, Vec<i64>> {
        let ids = |list: &ArtifactList| list.artifacts.iter().filter_map(|a| a.name.parse().ok()).collect();
        self.artifacts.iter().map(|(name, list)| (name.clone(), ids(list))).collect()
    }
}

/// Resolves inputs within one parent DAG. Reads of the metadata store are remembered.
pub(crate) struct Resolver<'a> {
    request: &'a Request,
    task: &'a Task,
    metadata: &'a mlmd::Client,
    tree: Tree<'a>,
    dag: Execution,
    /// Parameters of the parent DAG.
    parameters: BTreeMap<String, Value>,
    /// Artifacts of the parent DAG, once needed.
    artifacts: Option<BTreeMap<String, ArtifactList>>,
    times: Times,
    /// Pipeline root of the run.
    pipeline_root: String,
}

impl<'a> Resolver<'a> {
    pub(crate) fn new(
        request: &'a Request,
        task: &'a Task,
        metadata: &'a mlmd::Client,
        run: &Run,
        dag: Execution,
        times: Times,
    ) -> Self {
        let (tree, parameters) = (Tree::new(metadata, run), dag.inputs());
        let pipeline_root = run.pipeline_root().to_owned();
        Self { request, task, metadata, tree, dag, parameters, artifacts: None, times, pipeline_root }
    }

    fn definitions(&self) -> ComponentInputsSpec {
        self.request.component.input_definitions.clone().unwrap_or_default()
    }

    /// An input parameter of the parent DAG; `None` when it was not given one.
    async fn dag_parameter(&self, name: &str) -> Result<Option<Value>, Error> {
        match self.parameters.get(name) {
            Some(value) => Ok(Some(value.clone())),
            None => Ok(self.metadata.loop_input(&self.dag, name).await?),
        }
    }

    async fn dag_artifacts(&mut self) -> Result<BTreeMap<String, ArtifactList>, Error> {
        if let Some(known) = &self.artifacts {
            return Ok(known.clone());
        }
        let mut all = BTreeMap::new();
        for (name, list) in self.metadata.input_artifacts(&self.dag).await? {
            let artifacts = list.iter().map(|a| mlmd::runtime_artifact(a, false)).collect::<Result<_, _>>()?;
            all.insert(name, ArtifactList { artifacts });
        }
        self.artifacts = Some(all.clone());
        Ok(all)
    }

    /// All inputs of the task, checked against the component's definitions.
    pub(crate) async fn inputs(&mut self) -> Result<Inputs, Error> {
        let definitions = self.definitions();
        if let Some(index) = self.task.iteration_index {
            let mut inputs = self.iteration(index).await?;
            types::check(&definitions, self.task, &mut inputs.parameters, &BTreeSet::new())?;
            return Ok(inputs);
        }
        let (mut inputs, mut null) = (Inputs::default(), BTreeSet::new());
        let is_dag = matches!(self.request.work, Work::Dag(_));
        let spec = self.task.spec.inputs.clone().unwrap_or_default();
        // A container's launcher fills in defaults; below a DAG nobody does, so it is done here.
        let omitted = |name: &str, inputs: &mut Inputs, null: &mut BTreeSet<String>| {
            if let Some(value) = definitions.parameters.get(name).and_then(|d| d.default_value.clone()) {
                inputs.parameters.insert(name.to_owned(), value);
            } else {
                inputs.parameters.insert(name.to_owned(), null_value());
                null.insert(name.to_owned());
            }
        };
        if is_dag {
            for (name, definition) in &definitions.parameters {
                if definition.is_optional && !spec.parameters.contains_key(name) {
                    omitted(name, &mut inputs, &mut null);
                }
            }
        }
        for (name, parameter) in &spec.parameters {
            let definition = definitions.parameters.get(name);
            if definition.is_some_and(|d| d.parameter_type() == ParameterTypeEnum::TaskConfig) {
                continue;
            }
            match self.parameter(parameter).await? {
                Resolved::Value(value) => {
                    if let Some(definition) = definition {
                        types::check_literals(name, &value, &definition.literals)?;
                    }
                    inputs.parameters.insert(name.clone(), value);
                }
                Resolved::Null(source) => match definition {
                    Some(definition) if definition.is_optional && is_dag => omitted(name, &mut inputs, &mut null),
                    Some(definition) if definition.is_optional => {}
                    _ => return Err(Error::Inputs(format!("the resolved input parameter is null: {source}"))),
                },
            }
        }
        for (name, artifact) in &spec.artifacts {
            let optional = definitions.artifacts.get(name).is_some_and(|definition| definition.is_optional);
            match self.artifact(name, artifact.kind.as_ref()).await? {
                Some(list) => drop(inputs.artifacts.insert(name.clone(), list)),
                None if optional => {}
                None => {
                    return Err(Error::Inputs(format!(
                        "failed to resolve input artifact {name}: parent DAG does not have such an input artifact"
                    )));
                }
            }
        }
        self.apply_selectors(&mut inputs, &null)?;
        types::check(&definitions, self.task, &mut inputs.parameters, &null)?;
        Ok(inputs)
    }

    fn apply_selectors(&self, inputs: &mut Inputs, null: &BTreeSet<String>) -> Result<(), Error> {
        let spec = self.task.spec.inputs.as_ref();
        for (name, parameter) in spec.into_iter().flat_map(|spec| &spec.parameters) {
            let selector = &parameter.parameter_expression_selector;
            if selector.is_empty() || null.contains(name) {
                continue;
            }
            let failed = |reason: String| {
                Error::Inputs(format!(
                    "resolving parameter {name:?}: evaluation of parameter expression selector {selector:?} failed: {reason}"
                ))
            };
            let value = inputs.parameters.get(name).ok_or_else(|| failed("value not found in inputs".to_owned()))?;
            let selected = cel::select(selector, value).map_err(|error| failed(error.to_string()))?;
            inputs.parameters.insert(name.clone(), selected);
        }
        Ok(())
    }

    /// Inputs of one loop iteration: those of the loop head, with the item in place of the items.
    async fn iteration(&mut self, index: i64) -> Result<Inputs, Error> {
        let mut inputs = Inputs { parameters: self.parameters.clone(), artifacts: self.dag_artifacts().await? };
        let iterator = match &self.task.spec.iterator {
            Some(TaskIterator::ParameterIterator(iterator)) => iterator,
            Some(TaskIterator::ArtifactIterator(_)) => {
                return Err(Error::Inputs("artifact iterator not implemented yet".to_owned()));
            }
            None => return Err(Error::Inputs("iteration_index>=0, but the task has no iterator".to_owned())),
        };
        let source = match iterator.items.as_ref().and_then(|items| items.kind.as_ref()) {
            Some(items_spec::Kind::InputParameter(name)) if !name.is_empty() => name,
            _ if !iterator.item_input.is_empty() => &iterator.item_input,
            _ => return Err(Error::Inputs("cannot retrieve parameter iterator".to_owned())),
        };
        let list = items(source, inputs.parameters.get(source))?;
        let item = usize::try_from(index)
            .ok()
            .and_then(|index| list.get(index))
            .ok_or_else(|| Error::Inputs(format!("bug: {} items found, but getting index {index}", list.len())))?;
        inputs.parameters.remove(source);
        inputs.parameters.insert(iterator.item_input.clone(), item.clone());
        Ok(inputs)
    }

    /// One artifact input; `None` when the parent DAG was not given it.
    async fn artifact(&mut self, name: &str, kind: Option<&ArtifactKind>) -> Result<Option<ArtifactList>, Error> {
        match kind {
            Some(ArtifactKind::ComponentInputArtifact(input)) => Ok(self.dag_artifacts().await?.remove(input)),
            Some(ArtifactKind::TaskOutputArtifact(output)) => {
                let artifacts = self.output_artifacts(&output.producer_task, &output.output_artifact_key).await?;
                Ok(Some(ArtifactList { artifacts }))
            }
            None => {
                Err(Error::Inputs(format!("failed to resolve input artifact {name}: artifact spec without a kind")))
            }
        }
    }
}

pub(crate) fn null_value() -> Value {
    Value { kind: Some(prost_types::value::Kind::NullValue(0)) }
}
