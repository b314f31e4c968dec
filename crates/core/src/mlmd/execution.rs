//! Executions: one per task, DAG, loop iteration and importer of a run.

use std::collections::{BTreeMap, BTreeSet};

use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_metadata::execution::State;
use kfp_proto::ml_metadata::value::Value as Kind;
use prost_types::{Struct, Value};

use super::{Client, Error, Run, names, rpc, struct_value, text};

/// An execution as stored, with its properties by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Execution {
    /// The stored message.
    pub message: pb::Execution,
}

impl Execution {
    /// The execution's id.
    #[must_use]
    pub fn id(&self) -> i64 {
        self.message.id()
    }

    /// Name of the execution's type, for instance [`names::DAG_EXECUTION`].
    #[must_use]
    pub fn type_name(&self) -> &str {
        self.message.r#type()
    }

    /// Whether this is a DAG; everything else is a leaf.
    #[must_use]
    pub fn is_dag(&self) -> bool {
        self.type_name() == names::DAG_EXECUTION
    }

    /// Last known state.
    #[must_use]
    pub fn state(&self) -> State {
        self.message.last_known_state()
    }

    /// Whether the execution produced its outputs, by running or from the cache.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        matches!(self.state(), State::Complete | State::Cached)
    }

    fn property(&self, name: &str) -> Option<&Kind> {
        self.message.custom_properties.get(name)?.value.as_ref()
    }

    /// A string property; empty when absent.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        match self.property(name) {
            Some(Kind::StringValue(value)) => value,
            _ => "",
        }
    }

    /// An integer property.
    #[must_use]
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.property(name) {
            Some(Kind::IntValue(value)) => Some(*value),
            _ => None,
        }
    }

    /// A struct property.
    #[must_use]
    pub fn fields(&self, name: &str) -> Option<&BTreeMap<String, Value>> {
        match self.property(name) {
            Some(Kind::StructValue(value)) => Some(&value.fields),
            _ => None,
        }
    }

    /// The task's key in its parent DAG.
    #[must_use]
    pub fn task_name(&self) -> &str {
        self.text(names::TASK_NAME)
    }

    /// Id of the parent DAG's execution; `None` for the root.
    #[must_use]
    pub fn parent_dag_id(&self) -> Option<i64> {
        self.int(names::PARENT_DAG_ID)
    }

    /// Which loop iteration this is.
    #[must_use]
    pub fn iteration_index(&self) -> Option<i64> {
        self.int(names::ITERATION_INDEX)
    }

    /// How many iterations this loop head has; `None` for everything else.
    #[must_use]
    pub fn iteration_count(&self) -> Option<i64> {
        self.int(names::ITERATION_COUNT)
    }

    /// Input parameter values; empty when none were recorded.
    #[must_use]
    pub fn inputs(&self) -> BTreeMap<String, Value> {
        self.fields(names::INPUTS).cloned().unwrap_or_default()
    }

    /// One output parameter value.
    #[must_use]
    pub fn output(&self, name: &str) -> Option<&Value> {
        self.fields(names::OUTPUTS)?.get(name)
    }

    /// Output parameter values; empty when none were recorded.
    #[must_use]
    pub fn outputs(&self) -> BTreeMap<String, Value> {
        self.fields(names::OUTPUTS).cloned().unwrap_or_default()
    }

    /// Sets or replaces a property; takes effect with the next update or publish.
    pub fn set(&mut self, name: &str, value: pb::Value) {
        self.message.custom_properties.insert(name.to_owned(), value);
    }

    /// Sets the state; takes effect with the next update.
    pub fn set_state(&mut self, state: State) {
        self.message.last_known_state = Some(state.into());
    }
}

/// Earlier executions of one task that are looked at for one that has no end: each retry of a run may leave one.
const MOST_EARLIER: u64 = 1_000;

/// What to create. Properties are those of [`names`].
#[derive(Clone, Debug, Default)]
pub struct NewExecution {
    /// Name of the execution's type.
    pub type_name: &'static str,
    /// Unique name among executions of the type, if it has one; [`Client::create_task_execution`] finds one itself.
    pub name: Option<String>,
    /// First state.
    pub state: State,
    /// Custom properties besides inputs.
    pub properties: BTreeMap<String, pb::Value>,
    /// Input parameter values; the property is left out when `None`.
    pub inputs: Option<BTreeMap<String, Value>>,
    /// Ids of the input artifacts in order, by input.
    pub input_artifacts: BTreeMap<String, Vec<i64>>,
}

/// An output artifact to publish: new, or existing when `artifact.id` is set.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Name of the output.
    pub name: String,
    /// The artifact; needs `type_id` (see [`Client::artifact_type`]) unless it exists.
    pub artifact: pb::Artifact,
}

fn event(kind: pb::event::Type, name: &str, artifact: Option<i64>) -> pb::Event {
    let step = pb::event::path::Step { value: Some(pb::event::path::step::Value::Key(name.to_owned())) };
    pb::Event {
        artifact_id: artifact,
        r#type: Some(kind.into()),
        path: Some(pb::event::Path { steps: vec![step] }),
        ..Default::default()
    }
}

/// Input events, at most one per artifact, and the property that keeps what events cannot express.
fn input_events(
    inputs: &BTreeMap<String, Vec<i64>>,
) -> (Vec<pb::put_execution_request::ArtifactAndEvent>, Option<String>) {
    let mut seen = BTreeSet::new();
    let mut pairs = Vec::new();
    let mut needs_property = false;
    for (name, ids) in inputs {
        needs_property |= ids.len() != 1;
        for id in ids {
            if seen.insert(*id) {
                let event = Some(event(pb::event::Type::Input, name, Some(*id)));
                pairs.push(pb::put_execution_request::ArtifactAndEvent { artifact: None, event });
            } else {
                needs_property = true;
            }
        }
    }
    let property = needs_property.then(|| serde_json::json!(inputs).to_string());
    (pairs, property)
}

impl Client {
    async fn execution_type(&self, name: &'static str) -> Result<i64, Error> {
        if let Some(id) = self.known_type(name) {
            return Ok(id);
        }
        let kind = pb::ExecutionType { name: Some(name.to_owned()), ..Default::default() };
        let request = pb::PutExecutionTypeRequest { execution_type: Some(kind), ..Default::default() };
        let id = rpc!(self, put_execution_type, request).await?.type_id();
        self.learn_type(name, id);
        Ok(id)
    }

    /// Creates an execution with its input events in the contexts of a run. If `new.name` is taken (a retried driver),
    /// the existing execution is returned as it is.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn create_execution(&self, run: &Run, new: NewExecution) -> Result<Execution, Error> {
        let type_name = new.type_name;
        let mut request = self.creation(run, new).await?;
        let name = request.execution.as_ref().and_then(|execution| execution.name.clone());
        match (self.create(type_name, &mut request).await, name) {
            (Err(error), Some(name)) if error.is_already_exists() => self.existing(type_name, &name).await,
            (created, _) => created,
        }
    }

    /// Creates the execution of a task, whose `key` no other task has. What an earlier driver of the task left without an
    /// end becomes this execution, so that the task does not look as if it went on for ever; what came to an end stays
    /// beside it. Returns also the state of the last earlier execution.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn create_task_execution(
        &self,
        run: &Run,
        key: &str,
        new: NewExecution,
    ) -> Result<(Execution, Option<State>), Error> {
        let type_name = new.type_name;
        let mut request = self.creation(run, new).await?;
        let (mut number, mut earlier) = (1_u64, None);
        loop {
            let name = if number == 1 { key.to_owned() } else { format!("{key}/{number}") };
            if let Some(execution) = &mut request.execution {
                execution.name = Some(name.clone());
            }
            match self.create(type_name, &mut request).await {
                Err(error) if error.is_already_exists() => {}
                created => return Ok((created?, earlier)),
            }
            let existing = self.existing(type_name, &name).await?;
            earlier = Some(existing.state());
            if !matches!(existing.state(), State::Complete | State::Cached | State::Failed) {
                let mut message = request.execution.unwrap_or_default();
                message.id = existing.message.id;
                message.r#type = existing.message.r#type;
                let execution = Execution { message };
                self.update_execution(&execution).await?;
                return Ok((execution, earlier));
            }
            if number == MOST_EARLIER {
                return Err(Error::Invalid(format!("the task has {number} executions already, the last {name:?}")));
            }
            number += 1;
        }
    }

    /// The request that creates an execution.
    async fn creation(&self, run: &Run, new: NewExecution) -> Result<pb::PutExecutionRequest, Error> {
        let type_id = self.execution_type(new.type_name).await?;
        let mut custom_properties = new.properties;
        if let Some(fields) = new.inputs {
            custom_properties.insert(names::INPUTS.to_owned(), struct_value(Struct { fields }));
        }
        let (artifact_event_pairs, property) = input_events(&new.input_artifacts);
        if let Some(property) = property {
            custom_properties.insert(names::INPUT_ARTIFACTS.to_owned(), text(property));
        }
        let execution = pb::Execution {
            type_id: Some(type_id),
            name: new.name,
            last_known_state: Some(new.state.into()),
            custom_properties,
            ..Default::default()
        };
        Ok(pb::PutExecutionRequest {
            execution: Some(execution),
            artifact_event_pairs,
            contexts: run.contexts(),
            ..Default::default()
        })
    }

    /// Sends a request that creates an execution; takes the execution out of it when that succeeds.
    async fn create(&self, type_name: &str, request: &mut pb::PutExecutionRequest) -> Result<Execution, Error> {
        let id = rpc!(self, put_execution, request.clone()).await?.execution_id;
        let mut message = request.execution.take().unwrap_or_default();
        message.id = id;
        message.r#type = Some(type_name.to_owned());
        Ok(Execution { message })
    }

    async fn existing(&self, type_name: &str, name: &str) -> Result<Execution, Error> {
        let found = self.execution_by_name(type_name, name).await?;
        found.ok_or_else(|| Error::NotFound(format!("execution {type_name} {name:?}")))
    }

    /// The execution of a type with a name.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn execution_by_name(&self, type_name: &str, name: &str) -> Result<Option<Execution>, Error> {
        let request = pb::GetExecutionByTypeAndNameRequest {
            type_name: Some(type_name.to_owned()),
            execution_name: Some(name.to_owned()),
            ..Default::default()
        };
        let found = rpc!(self, get_execution_by_type_and_name, request).await?.execution;
        Ok(found.map(|message| Execution { message }))
    }

    /// The execution with an id.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is none, or when the store fails.
    pub async fn execution(&self, id: i64) -> Result<Execution, Error> {
        let request = pb::GetExecutionsByIdRequest { execution_ids: vec![id], ..Default::default() };
        let found = rpc!(self, get_executions_by_id, request).await?.executions.into_iter().next();
        found.map(|message| Execution { message }).ok_or_else(|| Error::NotFound(format!("execution {id}")))
    }

    /// Stores an execution's state and properties as they are in `execution`, replacing what was there.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn update_execution(&self, execution: &Execution) -> Result<(), Error> {
        let request = pb::PutExecutionRequest { execution: Some(execution.message.clone()), ..Default::default() };
        rpc!(self, put_execution, request).await.map(drop)
    }

    /// Records the end of an execution in one transaction: its state, output parameters (`None` leaves the property
    /// out), output artifacts and their events, in the contexts of the run.
    ///
    /// # Errors
    /// When the store fails; then nothing was recorded.
    pub async fn publish(
        &self,
        run: &Run,
        execution: &Execution,
        state: State,
        outputs: Option<BTreeMap<String, Value>>,
        artifacts: Vec<Output>,
    ) -> Result<(), Error> {
        let mut execution = execution.clone();
        execution.set_state(state);
        if let Some(fields) = outputs {
            execution.set(names::OUTPUTS, struct_value(Struct { fields }));
        }
        let mut seen = BTreeSet::new();
        let artifact_event_pairs = artifacts
            .into_iter()
            .filter(|output| output.artifact.id.is_none_or(|id| seen.insert(id)))
            .map(|output| pb::put_execution_request::ArtifactAndEvent {
                event: Some(event(pb::event::Type::Output, &output.name, output.artifact.id)),
                artifact: Some(output.artifact),
            })
            .collect();
        let request = pb::PutExecutionRequest {
            execution: Some(execution.message),
            artifact_event_pairs,
            contexts: run.contexts(),
            ..Default::default()
        };
        self.put_once(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inputs(list: &[(&str, &[i64])]) -> BTreeMap<String, Vec<i64>> {
        list.iter().map(|(name, ids)| ((*name).to_owned(), ids.to_vec())).collect()
    }

    #[test]
    fn one_event_per_artifact_and_a_property_only_where_needed() {
        let (pairs, property) = input_events(&inputs(&[("a", &[1]), ("b", &[2])]));
        assert_eq!((pairs.len(), property), (2, None));
        let (pairs, property) = input_events(&inputs(&[("a", &[1]), ("b", &[1])]));
        assert_eq!((pairs.len(), property.as_deref()), (1, Some(r#"{"a":[1],"b":[1]}"#)));
        let (pairs, property) = input_events(&inputs(&[("a", &[3, 1, 3])]));
        assert_eq!((pairs.len(), property.as_deref()), (2, Some(r#"{"a":[3,1,3]}"#)));
        let (pairs, property) = input_events(&inputs(&[("a", &[])]));
        assert_eq!((pairs.len(), property.as_deref()), (0, Some(r#"{"a":[]}"#)));
    }
}
