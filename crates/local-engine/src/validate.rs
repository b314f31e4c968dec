//! Checks a Workflow before anything is started.

use crate::expression;
use crate::model::{self, DagModel, Error, Kind, Model, TaskModel, TemplateModel};
use crate::substitute;
use kfp_core::argo::{Arguments, Template, Workflow};
use std::collections::HashSet;

/// Members of a spec that would change what is run.
const UNSUPPORTED: [&str; 3] = ["workflowTemplateRef", "synchronization", "artifactRepositoryRef"];
/// Kinds of artifact location that are not supported.
const LOCATIONS: [&str; 7] = ["http", "git", "hdfs", "oss", "azure", "artifactory", "plugin"];

/// Longest name of a template, task or step.
const MAX_NAME: usize = 128;

/// Checks names, references and arguments of all templates.
///
/// # Errors
/// The first thing found wrong, with the place it is in.
pub fn workflow(workflow: &Workflow, model: &Model) -> Result<(), Error> {
    let entrypoint = &workflow.spec.entrypoint;
    if entrypoint.is_empty() {
        return Err(Error("spec.entrypoint is required".to_owned()));
    }
    let handlers = workflow.spec.on_exit.iter().chain(workflow.spec.hooks.values().map(|hook| &hook.template));
    for name in [entrypoint].into_iter().chain(handlers) {
        if !model.templates.contains_key(name) {
            return Err(Error(format!("template name '{name}' undefined")));
        }
    }
    for (name, hook) in &workflow.spec.hooks {
        model::check_hook(name, hook).map_err(|why| Error(format!("spec {why}")))?;
    }
    if let Some(member) = UNSUPPORTED.into_iter().find(|member| workflow.spec.extra.contains_key(*member)) {
        return Err(Error(format!("spec.{member} is not supported by this engine")));
    }
    let mut seen = HashSet::new();
    for parameter in &workflow.spec.arguments.parameters {
        let name = &parameter.name;
        if !seen.insert(name) {
            return Err(Error(format!("spec.arguments.parameters name '{name}' is not unique")));
        }
        if parameter.value.is_none() && parameter.value_from.is_none() {
            return Err(Error(format!("spec.arguments.{name}.value or spec.arguments.{name}.valueFrom is required")));
        }
    }
    if let Some(main) = model.templates.get(entrypoint) {
        check_arguments(main, &workflow.spec.arguments).map_err(Error)?;
    }
    let mut names: Vec<&String> = model.templates.keys().collect();
    names.sort();
    for name in names {
        if let Some(template) = model.templates.get(name) {
            check_template(template, model).map_err(|why| Error(format!("templates.{name}{why}")))?;
        }
    }
    Ok(())
}

fn check_template(template: &TemplateModel, model: &Model) -> Result<(), String> {
    check_name(&template.template.name).map_err(|why| format!(" {why}"))?;
    let mut inputs = HashSet::new();
    for parameter in &template.template.inputs.parameters {
        if !inputs.insert(parameter.name.as_str()) {
            return Err(format!(".inputs.parameters name '{}' is not unique", parameter.name));
        }
    }
    check_sources(&template.template)?;
    match &template.kind {
        Kind::Pod | Kind::Suspend => Ok(()),
        Kind::Dag(dag) => {
            for (at, task) in dag.tasks.iter().enumerate() {
                let ancestors = ancestors(dag, at);
                let known = |name: &str| dag.by_name.get(name).is_some_and(|other| ancestors[*other]);
                let graph = task.task.depends.is_some() || !task.task.dependencies.is_empty();
                let digit = task.task.name.starts_with(|first: char| first.is_ascii_digit());
                if graph && digit {
                    return Err(format!(
                        ".tasks.{} name cannot begin with a digit when using either 'depends' or 'dependencies'",
                        task.task.name
                    ));
                }
                check_task(task, model, "tasks", &inputs, &known)
                    .map_err(|why| format!(".tasks.{}{why}", task.task.name))?;
            }
            Ok(())
        }
        Kind::Steps(groups) => {
            let mut before: HashSet<&str> = HashSet::new();
            for (number, group) in groups.iter().enumerate() {
                for step in group {
                    check_task(step, model, "steps", &inputs, &|name| before.contains(name))
                        .map_err(|why| format!(".steps[{number}].{}{why}", step.task.name))?;
                }
                before.extend(group.iter().map(|step| step.task.name.as_str()));
            }
            Ok(())
        }
    }
}

/// Which tasks are reached by going from a task to those it needs.
fn ancestors(dag: &DagModel, at: usize) -> Vec<bool> {
    let mut found = vec![false; dag.tasks.len()];
    let mut open = dag.tasks[at].needs.clone();
    while let Some(need) = open.pop() {
        if !std::mem::replace(&mut found[need], true) {
            open.extend(&dag.tasks[need].needs);
        }
    }
    found
}

fn check_task(
    task: &TaskModel,
    model: &Model,
    prefix: &str,
    inputs: &HashSet<&str>,
    known: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    check_name(&task.task.name).map_err(|why| format!(" {why}"))?;
    let hooks = task.exit_hook.iter().chain(task.hooks.iter().map(|(_, hook)| hook));
    let hooks = hooks.map(|hook| (&hook.template, &hook.arguments));
    for (name, arguments) in [(&task.task.template, &task.task.arguments)].into_iter().chain(hooks) {
        let target = model.templates.get(name).ok_or_else(|| format!(" template name '{name}' undefined"))?;
        check_arguments(target, arguments).map_err(|why| format!(" {why}"))?;
    }
    let own = &task.task;
    let sequence = own.with_sequence.iter().flat_map(|sequence| {
        [&sequence.count, &sequence.start, &sequence.end].into_iter().flatten().map(String::as_str)
    });
    let texts = own
        .arguments
        .parameters
        .iter()
        .filter_map(|parameter| parameter.value.as_deref())
        .chain(own.when.as_deref())
        .chain(own.with_param.as_deref())
        .chain(sequence);
    for text in texts {
        for tag in substitute::tags(text) {
            if let Some(text) = tag.strip_prefix('=') {
                expression::check(text).map_err(|error| format!(" {error}"))?;
                continue;
            }
            let unknown_input = tag.strip_prefix("inputs.parameters.").is_some_and(|name| !inputs.contains(name));
            let unknown_task = tag
                .strip_prefix(prefix)
                .and_then(|rest| rest.strip_prefix('.'))
                .and_then(|rest| rest.split_once('.'))
                .is_some_and(|(name, _)| !known(name));
            if unknown_input || unknown_task {
                return Err(format!(" failed to resolve {{{{{tag}}}}}"));
            }
        }
    }
    Ok(())
}

/// Checks where a template's parameters and artifacts come from.
fn check_sources(template: &Template) -> Result<(), String> {
    for (place, parameters) in [("inputs", &template.inputs.parameters), ("outputs", &template.outputs.parameters)] {
        for parameter in parameters {
            let Some(from) = &parameter.value_from else { continue };
            let name = &parameter.name;
            let unsupported = ["configMapKeyRef", "event"].into_iter().find(|kind| from.extra.contains_key(*kind));
            let unsupported = unsupported.or_else(|| from.jq_filter.as_ref().map(|_| "jqFilter"));
            if let Some(kind) = unsupported {
                return Err(format!(".{place}.parameters.{name}.valueFrom.{kind} is not supported by this engine"));
            }
            if let Some(text) = &from.expression {
                expression::check(text).map_err(|error| format!(".{place}.parameters.{name} {error}"))?;
            }
        }
    }
    for (place, artifacts) in [("inputs", &template.inputs.artifacts), ("outputs", &template.outputs.artifacts)] {
        for artifact in artifacts {
            let name = &artifact.name;
            if let Some(kind) = LOCATIONS.iter().find(|kind| artifact.extra.contains_key(**kind)) {
                return Err(format!(".{place}.artifacts.{name}.{kind} is not supported by this engine"));
            }
            if let Some(text) = artifact.extra.get("fromExpression").and_then(|text| text.as_str()) {
                expression::check(text).map_err(|error| format!(".{place}.artifacts.{name} {error}"))?;
            }
        }
    }
    if let Some(text) = template.retry_strategy.as_ref().and_then(|strategy| strategy.expression.as_ref()) {
        expression::check(text).map_err(|error| format!(".retryStrategy {error}"))?;
    }
    let actions = ["create", "apply", "get", "delete", "patch", "replace"];
    match template.resource.as_ref().map(|resource| resource["action"].as_str().unwrap_or_default()) {
        Some("") => Err(".resource.action must be specified".to_owned()),
        Some(action) if !actions.contains(&action) => {
            Err(format!(".resource.action must be one of: get, create, apply, delete, replace, patch, not '{action}'"))
        }
        _ => Ok(()),
    }
}

/// Every input of a template needs an argument or a default.
fn check_arguments(target: &TemplateModel, arguments: &Arguments) -> Result<(), String> {
    for input in &target.template.inputs.parameters {
        let given = arguments.parameters.iter().any(|argument| argument.name == input.name);
        if !given && input.default.is_none() && input.value.is_none() {
            return Err(format!(
                "missing argument: templates.{}.inputs.parameters.{} was not supplied",
                target.template.name, input.name
            ));
        }
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), String> {
    let fits = name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|character| character.is_ascii_alphanumeric() || character == '-')
        && name.len() <= MAX_NAME;
    if fits {
        return Ok(());
    }
    Err(format!(
        "name '{name}' is invalid: it must have at most {MAX_NAME} letters, digits and dashes and begin with a letter or digit"
    ))
}
