//! DAG components as templates: tasks, exit handlers, loops and retries.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use kfp_core::ir;
use kfp_proto::ml_pipelines::pipeline_task_spec::{Iterator, RetryPolicy, trigger_policy::TriggerStrategy};
use kfp_proto::ml_pipelines::task_inputs_spec::{input_artifact_spec, input_parameter_spec};
use kfp_proto::ml_pipelines::{DagSpec, PipelineTaskSpec};
use serde_json::{Value, json};

use crate::Error;
use crate::error::At;
use crate::templates::{RETRY_PARAMETERS, Shape, declared, given, input, object, parameters, task_output};
use crate::workflow::{Compiler, ComponentKind, ROOT};

const PARENT: &str = "parent-dag-id";
const INDEX: &str = "iteration-index";
const CONTAINER_DRIVER: &str = "system-container-driver";
const DAG_DRIVER: &str = "system-dag-driver";

/// Most tasks of a cycle that an error lists.
const SHOWN: usize = 20;

/// Where a task is compiled.
#[derive(Clone, Copy, Default)]
struct Place<'a> {
    /// The DAG component around it.
    dag: &'a str,
    /// Template of the exit handler that guards it.
    hook: Option<&'a str>,
    /// Name of the loop task whose iteration this is.
    iteration_of: Option<&'a str>,
}

fn is_exit(task: &PipelineTaskSpec) -> bool {
    task.trigger_policy.as_ref().is_some_and(|policy| policy.strategy() == TriggerStrategy::AllUpstreamTasksCompleted)
}

fn has_condition(task: &PipelineTaskSpec) -> bool {
    task.trigger_policy.as_ref().is_some_and(|policy| !policy.condition.is_empty())
}

fn component_of(task: &PipelineTaskSpec) -> &str {
    task.component_ref.as_ref().map_or("", |reference| &reference.name)
}

fn depends(tasks: &[String]) -> Option<String> {
    let terms: Vec<String> = tasks.iter().map(|task| format!("{task}.Succeeded")).collect();
    (!terms.is_empty()).then(|| terms.join(" && "))
}

fn set(task: &mut Value, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        task[key] = value.into();
    }
}

fn attach_hook(task: &mut Value, hook: Option<&str>) {
    if let Some(template) = hook {
        let arguments = parameters(vec![given(PARENT, input(PARENT))]);
        task["hooks"] = object([("exit", object([("template", template.into()), ("arguments", arguments)]))]);
    }
}

fn dag_template(name: &str, inputs: &[&str], tasks: Vec<Value>) -> Value {
    let inputs: Vec<Value> = inputs.iter().map(|name| declared(name)).collect();
    object([
        ("name", name.into()),
        ("inputs", parameters(inputs)),
        ("outputs", json!({})),
        ("metadata", json!({})),
        ("dag", object([("tasks", Value::Array(tasks))])),
    ])
}

/// A task of a DAG template.
fn called(name: &str, template: &str, arguments: Vec<Value>) -> Value {
    object([("name", name.into()), ("template", template.into()), ("arguments", parameters(arguments))])
}

/// Writes into every task which tasks it depends on because it uses their outputs, and checks the graph.
fn connect(dag: &mut DagSpec) -> Result<(), Error> {
    let names: HashSet<String> = dag.tasks.keys().cloned().collect();
    let exits: HashSet<String> =
        dag.tasks.iter().filter(|(_, task)| is_exit(task)).map(|(name, _)| name.clone()).collect();
    for (name, task) in &mut dag.tasks {
        let mut producers = BTreeSet::new();
        if let Some(inputs) = &task.inputs {
            for parameter in inputs.parameters.values() {
                if let Some(input_parameter_spec::Kind::TaskOutputParameter(from)) = &parameter.kind {
                    producers.insert(from.producer_task.as_str());
                }
            }
            for artifact in inputs.artifacts.values() {
                if let Some(input_artifact_spec::Kind::TaskOutputArtifact(from)) = &artifact.kind {
                    producers.insert(from.producer_task.as_str());
                }
            }
        }
        if let Some(unknown) = producers.iter().find(|producer| !names.contains(**producer)) {
            return Err(Error::spec(format!("failed to add implicit deps: unknown producer task {unknown:?} in DAG")))
                .at(|| format!("task {name:?}"));
        }
        for known in &task.dependent_tasks {
            producers.remove(known.as_str());
        }
        task.dependent_tasks.extend(producers.into_iter().map(str::to_owned));
        task.dependent_tasks.sort();
        for dependency in &task.dependent_tasks {
            if !names.contains(dependency) {
                return Err(Error::spec(format!("task {name:?} depends on unknown task {dependency:?}")));
            }
            if exits.contains(dependency) {
                return Err(Error::spec(format!(
                    "task {name:?} depends on exit task {dependency:?}, which runs outside the order of tasks"
                )));
            }
        }
    }
    acyclic(&dag.tasks)
}

fn acyclic(tasks: &BTreeMap<String, PipelineTaskSpec>) -> Result<(), Error> {
    let mut waiting: HashMap<&str, usize> =
        tasks.iter().map(|(name, task)| (name.as_str(), task.dependent_tasks.len())).collect();
    let mut dependants: HashMap<&str, Vec<&str>> = HashMap::new();
    for (name, task) in tasks {
        for dependency in &task.dependent_tasks {
            dependants.entry(dependency).or_default().push(name);
        }
    }
    let mut ready: Vec<&str> = waiting.iter().filter(|(_, count)| **count == 0).map(|(name, _)| *name).collect();
    while let Some(done) = ready.pop() {
        waiting.remove(done);
        for dependant in dependants.get(done).into_iter().flatten() {
            if let Some(count) = waiting.get_mut(dependant) {
                *count -= 1;
                if *count == 0 {
                    ready.push(dependant);
                }
            }
        }
    }
    let Some(mut at) = waiting.keys().min().copied() else { return Ok(()) };
    // Every task left waits for another one left, so walking back must meet a task twice.
    let mut walk = vec![at];
    let mut seen = HashMap::from([(at, 0)]);
    while let Some(next) = tasks[at].dependent_tasks.iter().find(|name| waiting.contains_key(name.as_str())) {
        at = next;
        if let Some(start) = seen.insert(at, walk.len()) {
            walk.drain(..start);
            break;
        }
        walk.push(at);
    }
    walk.push(at);
    walk.reverse();
    if walk.len() > SHOWN {
        // Both ends of a long way round say where to look.
        walk.splice(SHOWN / 2..walk.len() - SHOWN / 2, ["..."]);
    }
    Err(Error::spec(format!("tasks depend on each other in a cycle: {}", walk.join(" -> "))))
}

impl Compiler<'_> {
    /// Compiles DAG component `name`, whose components have all been visited.
    pub(crate) fn dag(&mut self, name: &str, mut dag: DagSpec) -> Result<(), Error> {
        connect(&mut dag)?;
        let dag = self.save_dag(name, dag)?;
        for (task_name, task) in &dag.tasks {
            if matches!(task.iterator, Some(Iterator::ArtifactIterator(_))) {
                return Err(Error::spec("artifact iterator not implemented yet")).at(|| format!("task {task_name:?}"));
            }
        }
        let mut hooks: HashMap<&str, (String, &str)> = HashMap::new();
        for (task_name, task) in dag.tasks.iter().filter(|(_, task)| is_exit(task)) {
            let tasks = self.task(task_name, task, Place { dag: name, ..Place::default() })?;
            let template = format!("exit-hook-{name}-{task_name}");
            for target in &task.dependent_tasks {
                let earlier = hooks.insert(target, (template.clone(), task_name));
                if let Some((_, other)) = earlier.filter(|(_, other)| other != task_name) {
                    return Err(Error::spec(format!(
                        "task {target:?} has two exit tasks, {other:?} and {task_name:?}; only one can run"
                    )));
                }
            }
            let built = dag_template(&template, &[PARENT], tasks);
            self.add_template(&template, built).at(|| "DAG".into())?;
        }
        let mut tasks = Vec::new();
        for (task_name, task) in dag.tasks.iter().filter(|(_, task)| !is_exit(task)) {
            let hook = hooks.get(task_name.as_str()).map(|(template, _)| template.as_str());
            tasks.extend(self.task(task_name, task, Place { dag: name, hook, iteration_of: None })?);
        }
        if tasks.is_empty() {
            return Err(Error::spec(format!("DAG {name} must contain one or more non-exit tasks")));
        }
        let template = dag_template(name, &[PARENT], tasks);
        self.add_template(name, template).at(|| "DAG".into())?;
        if name == ROOT { self.entrypoint() } else { Ok(()) }
    }

    fn entrypoint(&mut self) -> Result<(), Error> {
        let arguments = vec![
            given("component", self.component_placeholder(ROOT)),
            given("runtime-config", self.runtime_config.clone()),
            given("driver-type", "ROOT_DAG"),
        ];
        let driver = self.dag_driver("root-driver", arguments)?;
        let arguments = vec![given(PARENT, task_output("root-driver", "execution-id")), given("condition", "")];
        let mut root = called(ROOT, ROOT, arguments);
        root["depends"] = "root-driver.Succeeded".into();
        let template = dag_template("entrypoint", &[], vec![driver, root]);
        self.add_template("entrypoint", template)
    }

    fn task(&mut self, name: &str, task: &PipelineTaskSpec, place: Place) -> Result<Vec<Value>, Error> {
        let text = ir::encode_text(task);
        self.task_with(name, task, &text, place).at(|| format!("compiling task {name:?}"))
    }

    fn task_with(
        &mut self,
        name: &str,
        task: &PipelineTaskSpec,
        text: &str,
        place: Place,
    ) -> Result<Vec<Value>, Error> {
        if task.iterator.is_some() && place.iteration_of.is_none() {
            return self.iterator(name, task, text, place).at(|| "iterator task".into());
        }
        let waits = if place.iteration_of.is_some() || is_exit(task) { None } else { depends(&task.dependent_tasks) };
        match self.kind(component_of(task))? {
            ComponentKind::Dag => self.dag_task(name, task, text, place, waits),
            ComponentKind::Container => self.container_task(name, task, text, place, waits),
            ComponentKind::DriverOnly => {
                let mut driver = self.container_driver(name, name, task, text, place, waits)?;
                attach_hook(&mut driver, place.hook);
                Ok(vec![driver])
            }
            ComponentKind::Importer { workspace } => self.importer_task(name, task, text, place, workspace, waits),
        }
    }

    fn dag_driver(&mut self, name: &str, arguments: Vec<Value>) -> Result<Value, Error> {
        self.share(DAG_DRIVER, |shared| shared.dag_driver(DAG_DRIVER))?;
        Ok(called(name, DAG_DRIVER, arguments))
    }

    fn dag_task(
        &mut self,
        name: &str,
        task: &PipelineTaskSpec,
        text: &str,
        place: Place,
        waits: Option<String>,
    ) -> Result<Vec<Value>, Error> {
        let component = component_of(task);
        let driver_name = format!("{name}-driver");
        let mut arguments = vec![given("component", self.component_placeholder(component))];
        if place.iteration_of.is_some() {
            arguments.push(given(INDEX, input(INDEX)));
        }
        arguments.push(given(PARENT, input(PARENT)));
        arguments.push(given("task", text));
        arguments.push(given("task-name", place.iteration_of.unwrap_or(name)));
        let mut driver = self.dag_driver(&driver_name, arguments)?;
        set(&mut driver, "depends", waits);
        let condition = task_output(&driver_name, "condition");
        let arguments =
            vec![given(PARENT, task_output(&driver_name, "execution-id")), given("condition", condition.as_str())];
        let mut body = called(name, component, arguments);
        body["depends"] = format!("{driver_name}.Succeeded").into();
        attach_hook(&mut body, place.hook);
        set(&mut body, "when", has_condition(task).then(|| format!("{condition} != false")));
        Ok(vec![driver, body])
    }

    fn container_driver(
        &mut self,
        driver_name: &str,
        name: &str,
        task: &PipelineTaskSpec,
        text: &str,
        place: Place,
        waits: Option<String>,
    ) -> Result<Value, Error> {
        let component = component_of(task);
        self.share(CONTAINER_DRIVER, |shared| shared.container_driver(CONTAINER_DRIVER))?;
        let mut arguments = vec![
            given("component", self.component_placeholder(component)),
            given("task", text),
            given("container", self.implementation_placeholder(component)),
            given("task-name", place.iteration_of.unwrap_or(name)),
            given(PARENT, input(PARENT)),
        ];
        if place.iteration_of.is_some() {
            arguments.push(given(INDEX, input(INDEX)));
        }
        arguments.extend(self.kubernetes_placeholder(component).map(|config| given("kubernetes-config", config)));
        let mut driver = called(driver_name, CONTAINER_DRIVER, arguments);
        set(&mut driver, "depends", waits);
        Ok(driver)
    }

    fn container_task(
        &mut self,
        name: &str,
        task: &PipelineTaskSpec,
        text: &str,
        place: Place,
        waits: Option<String>,
    ) -> Result<Vec<Value>, Error> {
        let driver_name = format!("{name}-driver");
        let driver = self.container_driver(&driver_name, name, task, text, place, waits)?;
        let metadata = self.pod_metadata.get(component_of(task)).cloned();
        let shape = Shape {
            retry: task.retry_policy.is_some(),
            metadata: metadata.as_ref().map(|metadata| (metadata.annotations.len(), metadata.labels.len())),
        };
        let mut cached = given("cached-decision", task_output(&driver_name, "cached-decision"));
        cached["default"] = "false".into();
        let mut arguments = vec![given("pod-spec-patch", task_output(&driver_name, "pod-spec-patch")), cached];
        if let Some(metadata) = &metadata {
            arguments.extend(shape.metadata_arguments(metadata));
        }
        if let Some(policy) = &task.retry_policy {
            arguments.extend(retry_arguments(policy));
        }
        let mut executor = called(name, &self.share_executor(shape)?, arguments);
        executor["depends"] = format!("{driver_name}.Succeeded").into();
        attach_hook(&mut executor, place.hook);
        let condition = task_output(&driver_name, "condition");
        set(&mut executor, "when", has_condition(task).then(|| format!("{condition} != false")));
        Ok(vec![driver, executor])
    }

    fn importer_task(
        &mut self,
        name: &str,
        task: &PipelineTaskSpec,
        text: &str,
        place: Place,
        workspace: bool,
        waits: Option<String>,
    ) -> Result<Vec<Value>, Error> {
        if has_condition(task) {
            return Err(Error::spec("triggerPolicy.condition on importer task is not supported"));
        }
        let component = component_of(task);
        let template = if workspace { "system-importer-workspace" } else { "system-importer" };
        self.share(template, |shared| shared.importer(template, workspace))?;
        let arguments = vec![
            given("task", text),
            given("component", self.component_placeholder(component)),
            given("importer", self.implementation_placeholder(component)),
            given(PARENT, input(PARENT)),
        ];
        let mut importer = called(name, template, arguments);
        set(&mut importer, "depends", waits.filter(|_| self.shared.options.importers_wait));
        attach_hook(&mut importer, place.hook);
        Ok(vec![importer])
    }

    /// A loop: the enclosing DAG gets one task, whose template runs a driver that counts the items and then, in
    /// parallel, one instance of the iteration template per item.
    fn iterator(&mut self, name: &str, task: &PipelineTaskSpec, text: &str, place: Place) -> Result<Vec<Value>, Error> {
        let component = component_of(task);
        let tasks = self.iterations(name, task, text, place).at(|| "iterationItem task".into())?;
        let template_name = self
            .free_name(&[format!("{component}-{name}-iterator"), format!("{component}-{}-{name}-iterator", place.dag)]);
        let mut template = dag_template(&template_name, &[PARENT], tasks);
        let limit = task.iterator_policy.as_ref().map_or(0, |policy| policy.parallelism_limit);
        set(&mut template, "parallelism", (limit > 0).then_some(limit));
        self.add_template(&template_name, template)?;
        let mut looped = called(name, &template_name, vec![given(PARENT, input(PARENT))]);
        // An exit task runs in a DAG of its own, where what it waits for does not exist.
        set(&mut looped, "depends", if is_exit(task) { None } else { depends(&task.dependent_tasks) });
        attach_hook(&mut looped, place.hook);
        Ok(vec![looped])
    }

    fn iterations(
        &mut self,
        name: &str,
        task: &PipelineTaskSpec,
        text: &str,
        place: Place,
    ) -> Result<Vec<Value>, Error> {
        let component = component_of(task);
        let arguments = vec![
            given("component", self.component_placeholder(component)),
            given(PARENT, input(PARENT)),
            given("task", text),
            given("task-name", name),
        ];
        let driver = self.dag_driver("iteration-driver", arguments)?;
        let item = "iteration-item";
        let items = self
            .task_with(item, task, text, Place { iteration_of: Some(name), hook: None, dag: place.dag })
            .at(|| format!("compiling task {item:?}"))?;
        let template_name = self.free_name(&[
            format!("{component}-iteration"),
            format!("{component}-{name}-iteration"),
            format!("{component}-{}-{name}-iteration", place.dag),
        ]);
        let template = dag_template(&template_name, &[PARENT, INDEX], items);
        self.add_template(&template_name, template)?;
        let output = |parameter| task_output("iteration-driver", parameter);
        let arguments = vec![given(PARENT, output("execution-id")), given(INDEX, "{{item}}")];
        let mut iterations = called("iteration-iterations", &template_name, arguments);
        iterations["depends"] = "iteration-driver.Succeeded".into();
        iterations["withSequence"] = object([("count", output("iteration-count").into())]);
        set(&mut iterations, "when", has_condition(task).then(|| format!("{} != false", output("condition"))));
        Ok(vec![driver, iterations])
    }

    /// The first name not taken by a template, else the first name. Upstream only knows the first and fails when
    /// one component is the body of two loops.
    fn free_name(&self, names: &[String]) -> String {
        let free = names.iter().find(|name| !self.has_template(name));
        free.or(names.first()).cloned().unwrap_or_default()
    }
}

fn retry_arguments(policy: &RetryPolicy) -> Vec<Value> {
    let seconds = |duration: &Option<prost_types::Duration>| duration.as_ref().map(|d| d.seconds.to_string());
    let values = [
        Some(policy.max_retry_count.to_string()),
        seconds(&policy.backoff_duration),
        Some(go_v(policy.backoff_factor)),
        seconds(&policy.backoff_max_duration),
    ];
    RETRY_PARAMETERS.iter().zip(values).filter_map(|(name, value)| value.map(|value| given(name, value))).collect()
}

/// A double as Go's `%v`: shortest digits, an exponent of at least two digits below 1e-4 and from 1e6 on.
pub(crate) fn go_v(number: f64) -> String {
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e6).contains(&size) {
        let text = format!("{number:e}");
        if let Some((digits, exponent)) = text.split_once('e') {
            let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
            return format!("{digits}e{sign}{exponent:0>2}");
        }
    }
    number.to_string()
}
