//! The rules of Argo's validator that a compiled Workflow could break.

use std::collections::{HashMap, HashSet};

use serde_json::Value;

/// Longest name of a template or task.
pub const MAX_NAME: usize = 128;

/// Checks names, references and parameters of a Workflow.
///
/// # Errors
/// Every rule broken, with the template and task where.
pub fn workflow(workflow: &Value) -> Result<(), Vec<String>> {
    let spec = &workflow["spec"];
    let mut problems = Vec::new();
    let arguments: HashSet<&str> = names(&spec["arguments"]["parameters"], "workflow argument", &mut problems);
    let mut templates: HashMap<&str, &Value> = HashMap::new();
    for template in items(&spec["templates"]) {
        let name = text(template, "name");
        if !is_name(name) {
            problems.push(format!("template name {name:?} is not made of letters, digits and '-', at most {MAX_NAME}"));
        }
        if templates.insert(name, template).is_some() {
            problems.push(format!("two templates are named {name:?}"));
        }
    }
    match spec["entrypoint"].as_str() {
        Some(entry) if templates.contains_key(entry) => {}
        entry => problems.push(format!("entrypoint template {:?} does not exist", entry.unwrap_or_default())),
    }
    let required: Required = templates.iter().map(|(name, template)| (*name, required_inputs(template))).collect();
    for (name, template) in &templates {
        let inputs = names(&template["inputs"]["parameters"], &format!("input of template {name:?}"), &mut problems);
        let scope = Scope { template: name, inputs: &inputs, arguments: &arguments };
        scope.references(&template["container"], &mut problems);
        scope.tasks(items(&template["dag"]["tasks"]), &required, &mut problems);
    }
    problems.sort();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
}

/// By template, the inputs that a task has to give.
type Required<'a> = HashMap<&'a str, Vec<&'a str>>;

fn required_inputs(template: &Value) -> Vec<&str> {
    items(&template["inputs"]["parameters"])
        .iter()
        .filter(|input| input.get("default").is_none())
        .map(|input| text(input, "name"))
        .collect()
}

fn items(list: &Value) -> &[Value] {
    list.as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object[key].as_str().unwrap_or_default()
}

fn names<'a>(list: &'a Value, what: &str, problems: &mut Vec<String>) -> HashSet<&'a str> {
    let mut found = HashSet::new();
    for item in items(list) {
        let name = text(item, "name");
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            problems.push(format!("parameter name {name:?} is not made of letters, digits, '-' and '_' ({what})"));
        }
        if !found.insert(name) {
            problems.push(format!("two parameters are named {name:?} ({what})"));
        }
    }
    found
}

/// A template, hook or task name Argo accepts.
fn is_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && name.bytes().next().is_some_and(|b| b != b'-')
}

/// Where in the Workflow a problem is; text is only made of it when there is one.
#[derive(Clone, Copy)]
struct Place<'a> {
    template: &'a str,
    task: &'a str,
    part: &'static str,
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "template {:?}, task {:?}{}", self.template, self.task, self.part)
    }
}

struct Scope<'a> {
    template: &'a str,
    inputs: &'a HashSet<&'a str>,
    arguments: &'a HashSet<&'a str>,
}

impl Scope<'_> {
    /// Looks at every task just once, as a thousand of them do not stay in the processor's cache.
    fn tasks(&self, tasks: &[Value], required: &Required, problems: &mut Vec<String>) {
        let mut known: HashSet<&str> = HashSet::with_capacity(tasks.len());
        let mut edges: HashMap<&str, Vec<&str>> = HashMap::new();
        for task in tasks {
            let name = text(task, "name");
            let place = self.place(name);
            if !is_name(name) {
                problems.push(format!("{place}: the name is not made of letters, digits and '-', at most {MAX_NAME}"));
            }
            if !known.insert(name) {
                problems.push(format!(
                    "template {:?} would have two tasks named {name:?}; a generated name collides with a task's, rename it",
                    self.template
                ));
            }
            self.references(task, problems);
            self.arguments_fit(task, required, place, problems);
            if let Some(hook) = task.get("hooks").and_then(|hooks| hooks.get("exit")) {
                self.arguments_fit(hook, required, Place { part: ", exit hook", ..place }, problems);
            }
            let terms = text(task, "depends").split(" && ").filter(|term| !term.is_empty());
            let dependencies: Vec<&str> =
                terms.map(|term| term.split_once('.').map_or(term, |(dependency, _)| dependency)).collect();
            if !dependencies.is_empty() {
                edges.insert(name, dependencies);
            }
        }
        for (name, dependencies) in &mut edges {
            dependencies.retain(|dependency| {
                let exists = known.contains(dependency);
                if !exists {
                    problems.push(format!("{}: depends on {dependency:?}, which does not exist", self.place(name)));
                }
                exists
            });
        }
        if has_cycle(&known, &edges) {
            problems.push(format!("template {:?}: tasks depend on each other in a cycle", self.template));
        }
    }

    fn place<'a>(&'a self, task: &'a str) -> Place<'a> {
        Place { template: self.template, task, part: "" }
    }

    fn arguments_fit(&self, user: &Value, required: &Required, place: Place, problems: &mut Vec<String>) {
        let Some(inputs) = required.get(text(user, "template")) else {
            problems.push(format!("{place}: template {:?} does not exist", text(user, "template")));
            return;
        };
        let mut given: Vec<&str> =
            items(&user["arguments"]["parameters"]).iter().map(|argument| text(argument, "name")).collect();
        given.sort_unstable();
        for input in inputs {
            if given.binary_search(input).is_err() {
                problems.push(format!("{place}: argument {input:?} is missing"));
            }
        }
    }

    /// Workflow arguments and inputs named in placeholders exist.
    fn references(&self, value: &Value, problems: &mut Vec<String>) {
        match value {
            Value::String(text) => {
                for (prefix, known) in
                    [("{{workflow.parameters.", self.arguments), ("{{inputs.parameters.", self.inputs)]
                {
                    // Only what the compiler wrote: user text in JSON may hold anything.
                    if let Some(name) = text.strip_prefix(prefix).and_then(|rest| rest.split("}}").next())
                        && !known.contains(name)
                    {
                        problems.push(format!("template {:?}: {prefix}{name}}}}} does not exist", self.template));
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.references(item, problems)),
            Value::Object(fields) => fields.values().for_each(|item| self.references(item, problems)),
            _ => {}
        }
    }
}

fn has_cycle(tasks: &HashSet<&str>, edges: &HashMap<&str, Vec<&str>>) -> bool {
    let mut waiting: HashMap<&str, usize> =
        tasks.iter().map(|task| (*task, edges.get(task).map_or(0, Vec::len))).collect();
    let mut dependants: HashMap<&str, Vec<&str>> = HashMap::new();
    for (task, dependencies) in edges {
        for dependency in dependencies {
            dependants.entry(dependency).or_default().push(task);
        }
    }
    let mut ready: Vec<&str> = waiting.iter().filter(|(_, count)| **count == 0).map(|(task, _)| *task).collect();
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
    !waiting.is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    fn problems(templates: Value) -> String {
        let workflow = json!({"spec": {"entrypoint": "e", "arguments": {"parameters": [{"name": "w", "value": "1"}]}, "templates": templates}});
        super::workflow(&workflow).err().unwrap_or_default().join("; ")
    }

    #[test]
    fn accepts_a_sound_workflow() {
        let leaf = json!({"name": "l", "inputs": {"parameters": [{"name": "p"}, {"name": "q", "default": ""}]}, "container": {"args": ["{{inputs.parameters.p}}"]}});
        let dag = json!({"name": "e", "dag": {"tasks": [
            {"name": "a", "template": "l", "arguments": {"parameters": [{"name": "p", "value": "{{workflow.parameters.w}}"}]}},
            {"name": "b", "template": "l", "depends": "a.Succeeded", "arguments": {"parameters": [{"name": "p", "value": "x"}]}}]}});
        assert_eq!(problems(json!([leaf, dag])), "");
    }

    #[test]
    fn names_what_is_wrong() {
        let e = |tasks: Value| json!([{"name": "e", "dag": {"tasks": tasks}}, {"name": "l", "inputs": {"parameters": [{"name": "p"}]}, "container": {}}]);
        for (templates, want) in [
            (json!([]), "entrypoint template \"e\" does not exist"),
            (json!([{"name": "e"}, {"name": "e"}]), "two templates are named \"e\""),
            (json!([{"name": "e"}, {"name": "a.b"}]), "template name \"a.b\" is not made of"),
            (e(json!([{"name": "a", "template": "x"}])), "template \"e\", task \"a\": template \"x\" does not exist"),
            (e(json!([{"name": "a", "template": "l"}])), "argument \"p\" is missing"),
            (
                e(json!([{"name": "a", "template": "e", "depends": "b.Succeeded"}])),
                "depends on \"b\", which does not exist",
            ),
            (
                e(
                    json!([{"name": "a", "template": "e", "depends": "b.Succeeded"}, {"name": "b", "template": "e", "depends": "a.Succeeded"}]),
                ),
                "in a cycle",
            ),
            (e(json!([{"name": "a", "template": "e"}, {"name": "a", "template": "e"}])), "two tasks named \"a\""),
            (
                e(json!([{"name": "a", "template": "e", "when": "{{inputs.parameters.z}} != 1"}])),
                "{{inputs.parameters.z}} does not exist",
            ),
            (
                e(json!([{"name": "a", "template": "e", "hooks": {"exit": {"template": "gone"}}}])),
                "exit hook: template \"gone\" does not exist",
            ),
        ] {
            let found = problems(templates);
            assert!(found.contains(want), "{found}");
        }
    }
}
