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
    for (name, template) in &templates {
        let inputs = names(&template["inputs"]["parameters"], &format!("input of template {name:?}"), &mut problems);
        let scope = Scope { template: name, inputs: &inputs, arguments: &arguments };
        for task in items(&template["dag"]["tasks"]) {
            scope.references(task, &mut problems);
        }
        scope.references(&template["container"], &mut problems);
        scope.tasks(items(&template["dag"]["tasks"]), &templates, &mut problems);
    }
    problems.sort();
    if problems.is_empty() { Ok(()) } else { Err(problems) }
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
    fn tasks(&self, tasks: &[Value], templates: &HashMap<&str, &Value>, problems: &mut Vec<String>) {
        let known: HashSet<&str> = tasks.iter().map(|task| text(task, "name")).collect();
        if known.len() != tasks.len() {
            problems.push(format!("template {:?} has two tasks of one name", self.template));
        }
        let mut edges: HashMap<&str, Vec<&str>> = HashMap::new();
        for task in tasks {
            let name = text(task, "name");
            let place = Place { template: self.template, task: name, part: "" };
            if !is_name(name) {
                problems.push(format!("{place}: the name is not made of letters, digits and '-', at most {MAX_NAME}"));
            }
            self.arguments_fit(task, templates, place, problems);
            if let Some(hook) = task["hooks"].get("exit") {
                self.arguments_fit(hook, templates, Place { part: ", exit hook", ..place }, problems);
            }
            for term in text(task, "depends").split(" && ").filter(|term| !term.is_empty()) {
                let dependency = term.split_once('.').map_or(term, |(dependency, _)| dependency);
                if known.contains(dependency) {
                    edges.entry(name).or_default().push(dependency);
                } else {
                    problems.push(format!("{place}: depends on {dependency:?}, which does not exist"));
                }
            }
        }
        if has_cycle(&known, &edges) {
            problems.push(format!("template {:?}: tasks depend on each other in a cycle", self.template));
        }
    }

    fn arguments_fit(&self, user: &Value, templates: &HashMap<&str, &Value>, place: Place, problems: &mut Vec<String>) {
        let Some(template) = templates.get(text(user, "template")) else {
            problems.push(format!("{place}: template {:?} does not exist", text(user, "template")));
            return;
        };
        let inputs = items(&template["inputs"]["parameters"]);
        let arguments = items(&user["arguments"]["parameters"]);
        // Nearly always a handful, so that looking through all of them is quickest.
        let many: HashSet<&str> = match inputs.len() {
            0..=32 => HashSet::new(),
            _ => arguments.iter().map(|p| text(p, "name")).collect(),
        };
        let is_given = |name: &str| match many.is_empty() {
            true => arguments.iter().any(|argument| text(argument, "name") == name),
            false => many.contains(name),
        };
        for input in inputs {
            if input.get("default").is_none() && !is_given(text(input, "name")) {
                problems.push(format!("{place}: argument {:?} is missing", text(input, "name")));
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
            (e(json!([{"name": "a", "template": "e"}, {"name": "a", "template": "e"}])), "two tasks of one name"),
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
