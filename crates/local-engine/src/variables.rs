//! Variables: global ones, inputs, output paths, and what other tasks left behind.

use crate::model::Model;
use crate::nodes::{Index, Nodes};
use crate::substitute::{self, Lookup, Scope};
use chrono::{DateTime, SecondsFormat, Utc};
use kfp_core::argo::{Artifact, Inputs, NodePhase, NodeStatus, Parameter, Template, Workflow};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Parameters whose values hold pipeline text of the user; tags in them are left alone.
const OPAQUE: [&str; 3] = ["components-", "implementations-", "kubernetes-"];

/// `workflow.*` variables.
#[derive(Debug, Default)]
pub struct Globals {
    map: BTreeMap<String, String>,
    created: Option<DateTime<Utc>>,
}

impl Globals {
    /// The variables of a Workflow at its start.
    ///
    /// # Errors
    /// Names the parameter that has neither a value nor a source.
    pub fn new(workflow: &Workflow) -> Result<Globals, String> {
        let meta = &workflow.metadata;
        let created = meta.creation_timestamp.map(|time| time.0);
        let mut globals = Globals { map: BTreeMap::new(), created };
        for (key, value) in [
            ("workflow.name", meta.name.as_str()),
            ("workflow.namespace", &meta.namespace),
            ("workflow.uid", &meta.uid),
            ("workflow.mainEntrypoint", &workflow.spec.entrypoint),
            ("workflow.serviceAccountName", workflow.spec.service_account_name.as_deref().unwrap_or_default()),
            ("workflow.status", workflow.status.phase.as_str()),
        ] {
            globals.set(key, value);
        }
        if let Some(created) = created {
            globals.set("workflow.creationTimestamp", created.to_rfc3339_opts(SecondsFormat::Secs, true));
        }
        for (kind, map) in [("labels", &meta.labels), ("annotations", &meta.annotations)] {
            for (key, value) in map {
                globals.set(format!("workflow.{kind}.{key}"), value);
            }
            globals.set(format!("workflow.{kind}"), json!(map).to_string());
            globals.set(format!("workflow.{kind}.json"), json!(map).to_string());
        }
        let mut values: Vec<Parameter> = Vec::new();
        for parameter in &workflow.spec.arguments.parameters {
            let name = &parameter.name;
            let value = parameter
                .value
                .clone()
                .or_else(|| parameter.value_from.as_ref().and_then(|from| from.default.clone()))
                .ok_or_else(|| format!("spec.arguments.{name}.value or spec.arguments.{name}.valueFrom is required"))?;
            let value = if OPAQUE.iter().any(|prefix| name.starts_with(prefix)) {
                value
            } else {
                substitute::text(&value, &globals).map_err(|error| error.to_string())?.into_owned()
            };
            values.push(Parameter::new(name, value));
        }
        let all = json!(values).to_string();
        globals.set("workflow.parameters", &all);
        globals.set("workflow.parameters.json", &all);
        for parameter in values {
            globals.set(format!("workflow.parameters.{}", parameter.name), parameter.value.unwrap_or_default());
        }
        Ok(globals)
    }

    /// Sets a variable.
    pub fn set(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.map.insert(key.into(), value.into());
    }

    /// Value of a workflow parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.map.get(&format!("workflow.parameters.{name}")).map(String::as_str)
    }
}

impl Scope for Globals {
    fn lookup(&self, tag: &str) -> Lookup {
        if let Some(value) = self.map.get(tag) {
            return Lookup::Value(value.clone());
        }
        let (Some(format), Some(created)) = (tag.strip_prefix("workflow.creationTimestamp."), self.created) else {
            return Lookup::Unknown;
        };
        match format {
            "RFC3339" => Lookup::Value(created.to_rfc3339_opts(SecondsFormat::Secs, true)),
            "s" => Lookup::Value(created.timestamp().to_string()),
            _ if format.len() == 1 && "YmdHMSyBbAajwpIUZ".contains(format) => {
                Lookup::Value(created.format(&format!("%{format}")).to_string())
            }
            _ => Lookup::Unknown,
        }
    }
}

/// `inputs.*` of a node.
pub struct InputScope<'a>(pub Option<&'a Inputs>);

impl Scope for InputScope<'_> {
    fn lookup(&self, tag: &str) -> Lookup {
        let Some(rest) = tag.strip_prefix("inputs.") else { return Lookup::Unknown };
        let none = Inputs::default();
        let inputs = self.0.unwrap_or(&none);
        if rest == "parameters" {
            return Lookup::Value(json!(inputs.parameters).to_string());
        }
        if let Some(name) = rest.strip_prefix("parameters.") {
            let found = inputs.parameters.iter().find(|parameter| parameter.name == name);
            return match found.and_then(|parameter| parameter.value.clone()) {
                Some(value) => Lookup::Value(value),
                None => Lookup::Unknown,
            };
        }
        let artifact = rest.strip_prefix("artifacts.").and_then(|rest| rest.strip_suffix(".path"));
        match artifact.and_then(|name| inputs.artifacts.iter().find(|artifact| artifact.name == name)) {
            Some(artifact) => artifact.path.clone().map_or(Lookup::Unknown, Lookup::Value),
            None => Lookup::Unknown,
        }
    }
}

/// `outputs.*.path` of a pod template.
pub struct PathScope<'a>(pub &'a Template);

impl Scope for PathScope<'_> {
    fn lookup(&self, tag: &str) -> Lookup {
        let Some((kind, name)) = tag
            .strip_prefix("outputs.")
            .and_then(|rest| rest.strip_suffix(".path"))
            .and_then(|rest| rest.split_once('.'))
        else {
            return Lookup::Unknown;
        };
        let outputs = &self.0.outputs;
        let path = match kind {
            "parameters" => outputs
                .parameters
                .iter()
                .find(|parameter| parameter.name == name)
                .and_then(|parameter| parameter.value_from.as_ref()?.path.clone()),
            "artifacts" => {
                outputs.artifacts.iter().find(|artifact| artifact.name == name).and_then(|found| found.path.clone())
            }
            _ => None,
        };
        path.map_or(Lookup::Unknown, Lookup::Value)
    }
}

/// A task or step that others refer to.
pub struct Producer {
    /// Its node, once there is one.
    pub node: Option<Index>,
    /// Nodes of its items, when it is a loop with items.
    pub items: Option<Vec<Index>>,
    /// Name of its template.
    pub template: String,
}

/// `tasks.<name>.*` or `steps.<name>.*`.
pub struct ProducerScope<'a> {
    /// `tasks` or `steps`.
    pub prefix: &'static str,
    /// All nodes.
    pub nodes: &'a Nodes,
    /// All templates.
    pub model: &'a Model,
    /// Finds a producer by name.
    pub find: &'a dyn Fn(&str) -> Option<Producer>,
}

impl Scope for ProducerScope<'_> {
    fn lookup(&self, tag: &str) -> Lookup {
        let Some((name, rest)) =
            tag.strip_prefix(self.prefix).and_then(|rest| rest.strip_prefix('.')).and_then(|rest| rest.split_once('.'))
        else {
            return Lookup::Unknown;
        };
        let Some(producer) = (self.find)(name) else {
            return Lookup::Unresolvable(format!("no {} named \"{name}\" has run before", self.prefix));
        };
        if let (Some(items), Some(what)) = (&producer.items, rest.strip_prefix("outputs.")) {
            return self.aggregate(items, what);
        }
        // A loop of a Steps template has no node of its own.
        let node = producer.node.or_else(|| producer.items.as_ref()?.last().copied());
        let Some(node) = node else {
            return Lookup::Unresolvable(format!("\"{name}\" has not run"));
        };
        let status = &self.nodes[node].status;
        let outputs = status.outputs.as_ref();
        let value = match rest {
            "id" => Some(status.id.clone()),
            "ip" => Some(status.pod_ip.clone()),
            "status" => Some(status.phase.as_str().to_owned()),
            "startedAt" => status.started_at.map(|time| time.to_string()),
            "finishedAt" => status.finished_at.map(|time| time.to_string()),
            "hostNodeName" => Some(status.host_node_name.clone()),
            "exitCode" => outputs.and_then(|outputs| outputs.exit_code.clone()),
            "outputs.result" => outputs.and_then(|outputs| outputs.result.clone()),
            "outputs.parameters" => outputs.map(|outputs| json!(outputs.parameters).to_string()),
            other => other
                .strip_prefix("outputs.parameters.")
                .and_then(|parameter| outputs?.parameter(parameter).map(str::to_owned)),
        };
        match value {
            Some(value) => Lookup::Value(value),
            None => self.missing(&producer, status, rest),
        }
    }
}

impl ProducerScope<'_> {
    /// A value that the producer did not leave: its declared default when it was skipped, else nothing.
    fn missing(&self, producer: &Producer, status: &NodeStatus, rest: &str) -> Lookup {
        if !matches!(status.phase, NodePhase::Skipped | NodePhase::Omitted) {
            let name = &status.display_name;
            return Lookup::Unresolvable(format!("\"{name}\" is {} and has no {rest}", status.phase.as_str()));
        }
        let default = rest.strip_prefix("outputs.parameters.").and_then(|name| {
            let template = self.model.templates.get(&producer.template)?;
            let declared = template.template.outputs.parameters.iter().find(|parameter| parameter.name == name)?;
            declared.value_from.as_ref()?.default.clone()
        });
        default.map_or(Lookup::Absent, Lookup::Value)
    }

    fn aggregate(&self, items: &[Index], what: &str) -> Lookup {
        let outputs = items
            .iter()
            .map(|item| &self.nodes[*item].status)
            .filter(|status| status.phase == NodePhase::Succeeded)
            .filter_map(|status| status.outputs.as_ref());
        if what == "parameters" {
            let maps: Vec<Value> = outputs
                .filter(|outputs| !outputs.parameters.is_empty())
                .map(|outputs| {
                    let pairs = outputs.parameters.iter();
                    pairs.map(|pair| (pair.name.clone(), json!(pair.value))).collect::<serde_json::Map<_, _>>().into()
                })
                .collect();
            return Lookup::Value(Value::Array(maps).to_string());
        }
        let values: Vec<String> = match (what, what.strip_prefix("parameters.")) {
            ("result", _) => outputs.filter_map(|outputs| outputs.result.clone()).collect(),
            (_, Some(name)) => outputs.filter_map(|outputs| outputs.parameter(name).map(str::to_owned)).collect(),
            _ => return Lookup::Unknown,
        };
        let parsed: Option<Vec<Value>> = values
            .iter()
            .map(|value| serde_json::from_str(value).ok().filter(|value: &Value| value.is_array() || value.is_object()))
            .collect();
        Lookup::Value(match parsed {
            Some(parsed) => Value::Array(parsed).to_string(),
            None => json!(values).to_string(),
        })
    }

    /// The artifact behind a reference such as `tasks.t.outputs.artifacts.a`.
    pub fn artifact(&self, tag: &str) -> Option<Artifact> {
        let (name, artifact) = tag.strip_prefix(self.prefix)?.strip_prefix('.')?.split_once(".outputs.artifacts.")?;
        let node = (self.find)(name)?.node?;
        let outputs = self.nodes[node].status.outputs.as_ref()?;
        outputs.artifacts.iter().find(|found| found.name == artifact).cloned()
    }
}
