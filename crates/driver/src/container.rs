//! Container drivers: inputs, condition, cache, and the patch for the task's pod.

use std::collections::BTreeMap;

use kfp_core::ir;
use kfp_core::mlmd::{self, Execution, NewExecution, Run, State, names};
use kfp_proto::ml_metadata::Value as Property;
use kfp_proto::ml_pipelines::ExecutorInput;
use kfp_proto::ml_pipelines::parameter_type::ParameterTypeEnum;
use prost::Message as _;

use crate::cache::{self, Reusable};
use crate::pod::{self, Pod};
use crate::request::{Container, Request, Response};
use crate::resolve::{Inputs, Resolver};
use crate::{Error, Services, dag, kubernetes, outputs, pvc, times};

/// Drives a container task.
pub(crate) async fn drive(request: &Request, container: &Container, services: &Services) -> Result<Response, Error> {
    let (metadata, task) = (&services.metadata, &container.task);
    let (run, parent) = tokio::try_join!(
        metadata.run(&request.run.pipeline_name, &request.run.id),
        metadata.execution(task.dag_execution_id)
    )?;
    let times = times::of(request, task, services).await?;
    let mut resolver = Resolver::new(request, task, metadata, &run, parent, times);
    let plan = match plan(request, container, &run, &mut resolver, services).await {
        Ok(plan) => plan,
        Err(error) => {
            dag::record_failure(names::CONTAINER_EXECUTION, request, task, &run, &error, services).await;
            return Err(error);
        }
    };
    let Plan { inputs, condition, input, next } = plan;
    let response = Response { condition, ..Default::default() };
    let reuse = match next {
        Next::Skip => {
            let skipped =
                create(request, &run, container, inputs, State::Canceled, &Reuse::default(), services).await?;
            dag::tell(&run, task.dag_execution_id, services).await;
            return Ok(Response { execution_id: skipped.0.id(), ..response });
        }
        Next::Operate(operation) => {
            let done = pvc::operate(operation, request, container, &run, inputs, &input, services).await;
            return done.map(|()| response.clone()).map_err(|error| error.late(response));
        }
        Next::Run(reuse) => reuse,
    };
    let (execution, _) = create(request, &run, container, inputs, State::Running, &reuse, services).await?;
    let response = Response { execution_id: execution.id(), cached_decision: Some(reuse.hit.is_some()), ..response };
    let result = match reuse.hit {
        Some(hit) => publish_cached(&run, &execution, hit, services).await.map(|()| None),
        None => patch(request, container, &execution, input, &mut resolver).await.map(Some),
    };
    match result {
        Ok(patch) => {
            if patch.is_none() {
                dag::tell(&run, task.dag_execution_id, services).await;
            }
            Ok(Response { pod_spec_patch: patch, ..response })
        }
        Err(error) => {
            publish_failed(&run, execution, task.dag_execution_id, &error, services).await;
            // Without its outputs a task is not to be taken from the cache.
            Err(error.late(Response { cached_decision: Some(false), ..response }))
        }
    }
}

/// What is known of a task before anything is recorded.
struct Plan {
    inputs: Inputs,
    condition: Option<bool>,
    input: ExecutorInput,
    next: Next,
}

enum Next {
    /// The condition is false.
    Skip,
    /// The driver does it itself.
    Operate(pvc::Operation),
    /// A pod does it, or an earlier one did.
    Run(Reuse),
}

async fn plan(
    request: &Request,
    container: &Container,
    run: &Run,
    resolver: &mut Resolver<'_>,
    services: &Services,
) -> Result<Plan, Error> {
    let task = &container.task;
    let inputs = resolver.inputs().await?;
    let condition = dag::condition(task, &inputs)?;
    let mut input = inputs.executor_input();
    if condition == Some(false) {
        return Ok(Plan { inputs, condition, input, next: Next::Skip });
    }
    let operation = pvc::Operation::of(&container.spec.image);
    let logs = operation.is_none() && container.launcher.publish_logs == "true";
    let salt = uuid::Uuid::new_v4().to_string();
    let definitions = request.component.output_definitions.as_ref();
    input.outputs = Some(outputs::provision(run.pipeline_root(), &task.name, definitions, &salt, logs));
    let next = match operation {
        Some(operation) => Next::Operate(operation),
        None => Next::Run(look_up(request, container, &input, Some(resolver), services).await?),
    };
    Ok(Plan { inputs, condition, input, next })
}

/// What the cache says about a task.
#[derive(Debug, Default)]
pub(crate) struct Reuse {
    pub(crate) fingerprint: String,
    pub(crate) hit: Option<Reusable>,
    /// Why, in words. Empty where the question does not arise.
    pub(crate) decision: String,
}

impl Reuse {
    fn none(decision: &str) -> Self {
        Self { decision: decision.to_owned(), ..Self::default() }
    }
}

/// Asks the cache, if the task may use it.
pub(crate) async fn look_up(
    request: &Request,
    container: &Container,
    input: &ExecutorInput,
    resolver: Option<&mut Resolver<'_>>,
    services: &Services,
) -> Result<Reuse, Error> {
    if container.cache_disabled {
        return Ok(Reuse::none("not reused: caching is off for all tasks"));
    }
    if !container.task.caching() {
        return Ok(Reuse::none("not reused: caching is off for this task"));
    }
    let mut volumes = match resolver {
        Some(resolver) => kubernetes::claims(&container.kubernetes, resolver).await?,
        None => Vec::new(),
    };
    if pod::needs_workspace(input) {
        volumes.push(pod::workspace_claim(request)?);
    }
    let fingerprint = cache::fingerprint(request, container, input, &volumes);
    let found = match services.cache.find(request, &fingerprint).await? {
        Ok(execution) => {
            let wanted = input.outputs.clone().unwrap_or_default();
            cache::reusable(&services.metadata, execution, &wanted).await?
        }
        Err(reason) => Err(reason),
    };
    let (hit, decision) = match found {
        Ok(hit) => {
            let decision = format!("reused the outputs of execution {}", hit.execution);
            (Some(hit), decision)
        }
        Err(reason) => (None, format!("not reused: {reason}")),
    };
    tracing::info!(task = container.task.name, "cache: {decision}");
    Ok(Reuse { fingerprint, hit, decision })
}

/// Records the task's execution. Returns also the state in which an earlier driver left the task.
pub(crate) async fn create(
    request: &Request,
    run: &Run,
    container: &Container,
    inputs: Inputs,
    state: State,
    reuse: &Reuse,
    services: &Services,
) -> Result<(Execution, Option<State>), Error> {
    let mut properties = dag::placed(&container.task);
    let cached = reuse.hit.as_ref().map_or(String::new(), |hit| hit.execution.to_string());
    let always = [names::POD_NAME, names::POD_UID, names::NAMESPACE, names::IMAGE].map(|name| (name, ""));
    let filled = [
        (names::CACHED_EXECUTION_ID, cached.as_str()),
        (names::CACHE_FINGERPRINT, &reuse.fingerprint),
        (names::CACHE_DECISION, &reuse.decision),
    ];
    let text = |(name, value): (&str, &str)| -> (String, Property) { (name.to_owned(), mlmd::text(value)) };
    properties.extend(always.into_iter().map(text));
    properties.extend(filled.into_iter().filter(|(_, value)| !value.is_empty()).map(text));
    let new = NewExecution {
        type_name: names::CONTAINER_EXECUTION,
        name: None,
        state,
        properties,
        input_artifacts: inputs.artifact_ids(),
        inputs: Some(inputs.parameters),
    };
    Ok(dag::record(request, &container.task, run, new, services).await?)
}

async fn publish_cached(run: &Run, execution: &Execution, hit: Reusable, services: &Services) -> Result<(), Error> {
    let outputs = Some(hit.parameters);
    services.metadata.publish(run, execution, State::Cached, outputs, hit.artifacts).await?;
    Ok(())
}

/// Marks an execution whose pod will never start. Errors are only logged: another error is on its way already.
async fn publish_failed(run: &Run, mut execution: Execution, dag: i64, reason: &Error, services: &Services) {
    execution.set(names::ERROR_MESSAGE, mlmd::text(reason.to_string()));
    let published = services.metadata.publish(run, &execution, State::Failed, None, Vec::new()).await;
    match published {
        Ok(()) => dag::tell(run, dag, services).await,
        Err(error) => tracing::error!(execution = execution.id(), "cannot mark the execution as failed: {error}"),
    }
}

/// The patch for the task's pod. `dsl.TaskConfig` inputs are filled in last: they hold what the patch holds.
async fn patch(
    request: &Request,
    container: &Container,
    execution: &Execution,
    mut input: ExecutorInput,
    resolver: &mut Resolver<'_>,
) -> Result<serde_json::Value, Error> {
    let mut pod = pod::build(request, container, execution.id(), &input)?;
    kubernetes::extend(&mut pod, container, resolver).await?;
    pod::check_workspace_conflicts(&pod, &input)?;
    if fill_task_config(request, &pod, &mut input) {
        pod.command = pod::launcher(request, container, execution.id(), &input);
    }
    check_length(&pod.command, &input)?;
    Ok(pod.to_json())
}

/// The longest argument that Linux passes to a program, the final zero included (32 pages).
const MAX_ARGUMENT: usize = 128 << 10;

/// The inputs travel as one argument. Too long ones would end in an error of Kubernetes or of the kernel that names
/// neither the task's input nor the remedy.
fn check_length(command: &[String], input: &ExecutorInput) -> Result<(), Error> {
    let Some(length) = command.iter().map(String::len).max().filter(|length| *length >= MAX_ARGUMENT) else {
        return Ok(());
    };
    let values = input.inputs.iter().flat_map(|inputs| &inputs.parameter_values);
    let sizes = values.map(|(name, value)| (value.encoded_len(), name));
    let largest = sizes.max().map_or(String::new(), |(size, name)| format!(", of which {name:?} has about {size}"));
    Err(Error::Inputs(format!(
        "the input parameters are too long: {length} bytes as a program's argument{largest}; Linux allows {}. Pass large \
         values as artifacts (dsl.Input[dsl.Artifact])",
        MAX_ARGUMENT - 1
    )))
}

fn fill_task_config(request: &Request, pod: &Pod, input: &mut ExecutorInput) -> bool {
    let definitions = request.component.input_definitions.as_ref().map(|d| &d.parameters).into_iter().flatten();
    let wanted = definitions.filter(|(_, spec)| spec.parameter_type() == ParameterTypeEnum::TaskConfig);
    let values: BTreeMap<_, _> =
        wanted.map(|(name, _)| (name.clone(), ir::from_json(&pod.task_config_json()))).collect();
    let any = !values.is_empty();
    input.inputs.get_or_insert_default().parameter_values.extend(values);
    any
}
