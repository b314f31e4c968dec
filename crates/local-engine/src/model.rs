//! The templates of one Workflow, prepared once: kinds told apart, dependencies parsed and ordered.

use crate::depends::{self, Expr};
use crate::expression;
use kfp_core::argo::{Arguments, ContinueOn, DagTask, Hook, Spec, Template, Workflow, WorkflowStep};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Why the templates cannot be executed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// Everything of a Workflow's spec that execution needs.
#[derive(Debug)]
pub struct Model {
    /// The spec without its templates.
    pub spec: Spec,
    /// Templates by name.
    pub templates: HashMap<String, Arc<TemplateModel>>,
}

/// A prepared template.
#[derive(Debug)]
pub struct TemplateModel {
    /// As given, without its tasks and steps.
    pub template: Template,
    /// What kind it is.
    pub kind: Kind,
    /// One of its tasks or steps has a hook that waits for an expression.
    pub hooked: bool,
}

/// Kind of a template.
#[derive(Debug)]
pub enum Kind {
    /// Runs a pod (`container`, `script` or `resource`).
    Pod,
    /// A graph of tasks.
    Dag(DagModel),
    /// Groups of steps; every group is run in parallel.
    Steps(Vec<Vec<TaskModel>>),
    /// A pause.
    Suspend,
}

/// A prepared DAG.
#[derive(Debug)]
pub struct DagModel {
    /// Tasks in template order.
    pub tasks: Vec<TaskModel>,
    /// Indexes of the tasks that are to be run, every task after those it depends on.
    pub order: Vec<usize>,
    /// Indexes of the tasks that decide the DAG's phase, by name.
    pub targets: Vec<usize>,
    /// Index by name.
    pub by_name: HashMap<String, usize>,
}

/// A prepared task or step.
#[derive(Debug)]
pub struct TaskModel {
    /// As given.
    pub task: DagTask,
    /// Indexes of the tasks it depends on.
    pub needs: Vec<usize>,
    /// When it may run, given the results of those.
    pub depends: Expr,
    /// Hook that runs when it is completed.
    pub exit_hook: Option<Hook>,
    /// Hooks that run as soon as their expression is true, by name.
    pub hooks: Vec<(String, Hook)>,
    /// Others refer to the standard output of its pod.
    pub result: bool,
}

impl TaskModel {
    /// Failures that do not count.
    pub fn continue_on(&self) -> ContinueOn {
        self.task.continue_on.unwrap_or_default()
    }
}

impl Model {
    /// Prepares the templates of a Workflow.
    ///
    /// # Errors
    /// When a template is of no or an unsupported kind, or its dependencies are malformed.
    pub fn new(workflow: &Workflow) -> Result<Model, Error> {
        let mut spec = workflow.spec.clone();
        let mut templates = HashMap::new();
        for template in std::mem::take(&mut spec.templates) {
            let template = with_defaults(template, &spec)?;
            let name = template.name.clone();
            let prepared = prepare(template).map_err(|why| Error(format!("templates.{name} {why}")))?;
            if templates.insert(name.clone(), Arc::new(prepared)).is_some() {
                return Err(Error(format!("template name '{name}' is not unique")));
            }
        }
        Ok(Model { spec, templates })
    }
}

/// Fills members that the template leaves out from `spec.templateDefaults` and `spec.retryStrategy`. A retry
/// strategy of its own is taken whole, so that defaults never change its policy.
fn with_defaults(template: Template, spec: &Spec) -> Result<Template, Error> {
    let mut template = template;
    if let Some(Value::Object(defaults)) = &spec.template_defaults {
        let name = template.name.clone();
        let failed = |error: serde_json::Error| Error(format!("templateDefaults for template '{name}': {error}"));
        let mut value = serde_json::to_value(&template).map_err(failed)?;
        if let Value::Object(members) = &mut value {
            for (key, default) in defaults {
                members.entry(key.clone()).or_insert_with(|| default.clone());
            }
        }
        template = serde_json::from_value(value).map_err(failed)?;
    }
    if template.retry_strategy.is_none() && (template.container.is_some() || template.script.is_some()) {
        template.retry_strategy = spec.retry_strategy.clone();
    }
    Ok(template)
}

/// Kinds that Argo has and this engine does not.
const UNSUPPORTED: [&str; 11] = [
    "http",
    "plugin",
    "data",
    "containerSet",
    "template",
    "templateRef",
    "inline",
    "daemon",
    "synchronization",
    "timeout",
    "pendingTimeout",
];

fn prepare(mut template: Template) -> Result<TemplateModel, String> {
    if let Some(kind) = UNSUPPORTED.into_iter().find(|kind| template.extra.contains_key(*kind)) {
        return Err(format!("uses '{kind}', which is not supported by this engine"));
    }
    let text = serde_json::to_string(&template).unwrap_or_default();
    let results = text.contains("outputs.result").then_some(text);
    let kinds = [
        template.container.is_some(),
        template.script.is_some(),
        template.resource.is_some(),
        template.dag.is_some(),
        template.steps.is_some(),
        template.suspend.is_some(),
    ];
    match kinds.into_iter().filter(|present| *present).count() {
        0 => {
            return Err("template type unspecified. choose one of: container, containerSet, steps, script, resource, \
                        dag, suspend, template, template ref"
                .to_owned());
        }
        1 => {}
        _ => {
            return Err("multiple template types specified. choose one of: container, containerSet, steps, script, \
                        resource, dag, suspend, template, template ref"
                .to_owned());
        }
    }
    let kind = if let Some(dag) = template.dag.take() {
        Kind::Dag(dag_model(dag.tasks, dag.target.as_deref())?)
    } else if let Some(groups) = template.steps.take() {
        let mut seen = BTreeSet::new();
        for step in groups.iter().flatten() {
            if !seen.insert(step.name.clone()) {
                return Err(format!("steps name '{}' is not unique", step.name));
            }
        }
        Kind::Steps(
            groups
                .into_iter()
                .map(|group| group.into_iter().map(|step| task_model(as_task(step))).collect())
                .collect::<Result<_, String>>()?,
        )
    } else if template.suspend.is_some() {
        Kind::Suspend
    } else {
        Kind::Pod
    };
    let mut kind = kind;
    let tasks: Vec<&mut TaskModel> = match &mut kind {
        Kind::Dag(dag) => dag.tasks.iter_mut().collect(),
        Kind::Steps(groups) => groups.iter_mut().flatten().collect(),
        _ => Vec::new(),
    };
    let mut hooked = false;
    for task in tasks {
        hooked |= !task.hooks.is_empty();
        task.result = results.as_deref().is_some_and(|text| names_result(text, &task.task.name));
    }
    Ok(TemplateModel { template, kind, hooked })
}

/// True when the JSON of a template refers to the standard output of its task or step of this name.
fn names_result(text: &str, name: &str) -> bool {
    [
        format!("tasks.{name}.outputs.result"),
        format!("steps.{name}.outputs.result"),
        format!("['{name}'].outputs.result"),
        format!("[\\\"{name}\\\"].outputs.result"),
    ]
    .iter()
    .any(|reference| text.contains(reference.as_str()))
}

fn as_task(step: WorkflowStep) -> DagTask {
    DagTask {
        name: step.name,
        template: step.template,
        arguments: step.arguments,
        when: step.when,
        with_items: step.with_items,
        with_param: step.with_param,
        with_sequence: step.with_sequence,
        continue_on: step.continue_on,
        hooks: step.hooks,
        on_exit: step.on_exit,
        extra: step.extra,
        ..DagTask::default()
    }
}

fn task_model(task: DagTask) -> Result<TaskModel, String> {
    let name = &task.name;
    if let Some(member) = ["inline", "templateRef"].into_iter().find(|member| task.extra.contains_key(*member)) {
        return Err(format!("tasks.{name} uses '{member}', which is not supported by this engine"));
    }
    if task.depends.is_some() && !task.dependencies.is_empty() {
        return Err("cannot use both 'depends' and 'dependencies' in the same DAG template".to_owned());
    }
    for (key, hook) in &task.hooks {
        check_hook(key, hook).map_err(|why| format!("tasks.{name} {why}"))?;
    }
    let depends = match &task.depends {
        Some(text) => depends::parse(text).map_err(|error| format!("tasks.{name} {error}"))?,
        None => depends::all_good(&task.dependencies),
    };
    let exit_hook = match (task.hooks.get("exit"), &task.on_exit) {
        (Some(hook), _) => Some(hook.clone()),
        (None, Some(template)) => {
            Some(Hook { template: template.clone(), arguments: Arguments::default(), ..Hook::default() })
        }
        (None, None) => None,
    };
    let hooks =
        task.hooks.iter().filter(|(key, _)| *key != "exit").map(|(k, hook)| (k.clone(), hook.clone())).collect();
    Ok(TaskModel { task, needs: Vec::new(), depends, exit_hook, hooks, result: false })
}

/// Checks a hook of a task or of the workflow.
///
/// # Errors
/// Says what is wrong.
pub(crate) fn check_hook(name: &str, hook: &Hook) -> Result<(), String> {
    if hook.extra.contains_key("templateRef") {
        return Err(format!("hook '{name}' uses 'templateRef', which is not supported by this engine"));
    }
    match &hook.expression {
        Some(expression) => expression::check(expression).map_err(|error| format!("hook '{name}': {error}")),
        None if name == "exit" => Ok(()),
        None => Err(format!("hook '{name}': Expression required")),
    }
}

fn dag_model(tasks: Vec<DagTask>, target: Option<&str>) -> Result<DagModel, String> {
    let mut models = tasks.into_iter().map(task_model).collect::<Result<Vec<_>, _>>()?;
    let mut by_name = HashMap::new();
    for (index, model) in models.iter().enumerate() {
        if by_name.insert(model.task.name.clone(), index).is_some() {
            return Err(format!("tasks name '{}' is not unique", model.task.name));
        }
    }
    let mixed = models.iter().any(|model| model.task.depends.is_some())
        && models.iter().any(|model| !model.task.dependencies.is_empty());
    if mixed {
        return Err("cannot use both 'depends' and 'dependencies' in the same DAG template".to_owned());
    }
    let needs = models
        .iter()
        .map(|model| {
            let mut names = Vec::new();
            model.depends.tasks(&mut names);
            let mut needs = Vec::new();
            for name in names {
                let index = *by_name
                    .get(name)
                    .ok_or_else(|| format!("tasks.{} dependency '{name}' not defined", model.task.name))?;
                if !needs.contains(&index) {
                    needs.push(index);
                }
            }
            Ok(needs)
        })
        .collect::<Result<Vec<Vec<usize>>, String>>()?;
    for (model, needs) in models.iter_mut().zip(needs) {
        model.needs = needs;
    }
    let order = topological(&models)?;

    let mut targets: Vec<usize> = match target.map(str::trim).filter(|target| !target.is_empty()) {
        Some(target) => target
            .split_whitespace()
            .map(|name| by_name.get(name).copied().ok_or_else(|| format!("target '{name}' is not defined")))
            .collect::<Result<_, _>>()?,
        None => {
            let needed: BTreeSet<usize> = models.iter().flat_map(|model| model.needs.iter().copied()).collect();
            (0..models.len()).filter(|index| !needed.contains(index)).collect()
        }
    };
    targets.sort_by(|left, right| models[*left].task.name.cmp(&models[*right].task.name));
    let mut wanted = vec![false; models.len()];
    let mut open = targets.clone();
    while let Some(index) = open.pop() {
        if !std::mem::replace(&mut wanted[index], true) {
            open.extend(&models[index].needs);
        }
    }
    let order = order.into_iter().filter(|index| wanted[*index]).collect();
    Ok(DagModel { tasks: models, order, targets, by_name })
}

/// Task indexes in template order, but each after those it needs.
fn topological(tasks: &[TaskModel]) -> Result<Vec<usize>, String> {
    let mut dependents = vec![Vec::new(); tasks.len()];
    let mut open: Vec<usize> = tasks.iter().map(|task| task.needs.len()).collect();
    for (index, task) in tasks.iter().enumerate() {
        task.needs.iter().for_each(|need| dependents[*need].push(index));
    }
    let mut ready: BTreeSet<usize> = (0..tasks.len()).filter(|index| open[*index] == 0).collect();
    let mut order = Vec::with_capacity(tasks.len());
    while let Some(index) = ready.pop_first() {
        order.push(index);
        for dependent in &dependents[index] {
            open[*dependent] -= 1;
            if open[*dependent] == 0 {
                ready.insert(*dependent);
            }
        }
    }
    if order.len() == tasks.len() {
        return Ok(order);
    }
    Err(format!("tasks dependency cycle detected: {}", cycle(tasks, &order)))
}

/// Names along one cycle among the tasks that have no place in the order.
fn cycle(tasks: &[TaskModel], order: &[usize]) -> String {
    let Some(mut at) = (0..tasks.len()).find(|index| !order.contains(index)) else {
        return String::new();
    };
    let mut path = Vec::new();
    while !path.contains(&at) {
        path.push(at);
        match tasks[at].needs.iter().find(|need| !order.contains(need)) {
            Some(next) => at = *next,
            None => break,
        }
    }
    let start = path.iter().position(|index| *index == at).unwrap_or(0);
    path.push(at);
    path[start..].iter().map(|index| tasks[*index].task.name.as_str()).collect::<Vec<_>>().join("->")
}
