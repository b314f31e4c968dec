//! Drives the pure core with pods that end as the test says.
#![allow(dead_code, clippy::unwrap_used, clippy::panic)] // each test file uses a part; this is test code

use chrono::{DateTime, Duration, Utc};
use kfp_core::argo::{NodePhase, NodeStatus, Workflow, WorkflowPhase, names};
use kfp_local_engine::execution::{Effect, Event, Execution};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// How a fake pod ends.
pub enum End {
    /// Exit code 0 and these outputs.
    Good(Vec<(String, String)>),
    /// Exit code 0 and this as the pod runner reports it.
    Outputs(Value),
    /// This exit code.
    Bad(i64),
    /// Stays running.
    Hangs,
}

pub type Answer<'a> = dyn FnMut(&Value) -> End + 'a;

pub fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_767_323_045, 0).unwrap()
}

/// A Workflow from YAML text, named as the API server would.
pub fn workflow(text: &str) -> Workflow {
    let mut value: Value = serde_norway::from_str(text).unwrap();
    complete(&mut value);
    serde_json::from_value(value).unwrap()
}

pub fn complete(value: &mut Value) {
    value["apiVersion"] = json!("argoproj.io/v1alpha1");
    value["kind"] = json!("Workflow");
    if value["metadata"]["name"].is_null() {
        let prefix = value["metadata"]["generateName"].as_str().unwrap_or("wf-").to_owned();
        value["metadata"]["name"] = json!(format!("{prefix}abcde"));
    }
    value["metadata"]["namespace"] = json!("kubeflow");
    value["metadata"]["uid"] = json!("11111111-2222-3333-4444-555555555555");
    value["metadata"]["creationTimestamp"] = json!("2026-01-02T03:04:00Z");
    if value["status"].is_null() {
        value["status"] = json!({});
    }
}

pub struct World {
    pub execution: Execution,
    name: String,
    /// JSON of the Workflow as written.
    object: String,
    pub now: DateTime<Utc>,
    pub pods: BTreeMap<String, Value>,
    pub open: VecDeque<String>,
    pub created: Vec<String>,
    pub stopped: BTreeSet<String>,
    pub claims: Vec<String>,
    pub most_at_once: usize,
    phases: BTreeMap<String, NodePhase>,
}

impl World {
    pub fn new(workflow: Workflow) -> World {
        World {
            name: workflow.metadata.name.clone(),
            object: json!(workflow).to_string(),
            execution: Execution::new(workflow, start()),
            now: start(),
            pods: BTreeMap::new(),
            open: VecDeque::new(),
            created: Vec::new(),
            stopped: BTreeSet::new(),
            claims: Vec::new(),
            most_at_once: 0,
            phases: BTreeMap::new(),
        }
    }

    /// Lets the engine work and carries out its effects.
    pub fn settle(&mut self) {
        loop {
            let effects = self.execution.run(self.now);
            self.check_monotone();
            if let Some(changes) = self.execution.take_changes() {
                self.object = changes.into_edits().apply(&self.object).unwrap();
            }
            if effects.is_empty() {
                return;
            }
            for effect in effects {
                match effect {
                    Effect::CreatePod { node, pod } => {
                        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
                        assert_eq!(pod["metadata"]["annotations"][names::ANNOTATION_NODE_ID], json!(node));
                        assert!(!self.created.contains(&name), "pod {name} was created twice");
                        self.created.push(name.clone());
                        self.open.push_back(name.clone());
                        self.pods.insert(name, pod);
                    }
                    Effect::StopPod { name } => {
                        self.open.retain(|open| *open != name);
                        self.stopped.insert(name);
                    }
                    Effect::CreateClaim(claim) => {
                        self.claims.push(claim["metadata"]["name"].as_str().unwrap().to_owned());
                        self.execution.apply(Event::ClaimReady, self.now);
                    }
                    Effect::DeleteClaim { name } => self.claims.retain(|claim| *claim != name),
                }
            }
            self.most_at_once = self.most_at_once.max(self.open.len());
        }
    }

    fn check_monotone(&mut self) {
        for node in self.execution.node_statuses() {
            let old = self.phases.insert(node.id.clone(), node.phase);
            if let Some(old) = old.filter(|old| old.is_fulfilled()) {
                assert_eq!(old, node.phase, "node {} changed after its end", node.name);
            }
        }
    }

    pub fn pod(&mut self, name: &str, status: Value, outputs: Option<Value>) {
        let pod = self.pods.get_mut(name).unwrap();
        pod["status"] = status;
        if let Some(outputs) = outputs {
            pod["metadata"]["annotations"][names::ANNOTATION_OUTPUTS] = json!(outputs.to_string());
        }
        let pod = Arc::new(pod.clone());
        self.execution.apply(Event::Pod(pod), self.now);
    }

    /// Ends one open pod.
    pub fn end_pod(&mut self, name: &str, end: End) {
        let finished = kfp_core::argo::Timestamp(self.now).to_string();
        let state = |code: i64| json!([{"name": "main", "state": {"terminated": {"exitCode": code, "reason": "Error", "finishedAt": finished}}}]);
        match end {
            End::Good(outputs) => {
                let parameters: Vec<Value> =
                    outputs.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
                let outputs = json!({"parameters": parameters, "exitCode": "0"});
                self.pod(name, json!({"phase": "Succeeded", "containerStatuses": state(0)}), Some(outputs));
            }
            End::Outputs(outputs) => {
                self.pod(name, json!({"phase": "Succeeded", "containerStatuses": state(0)}), Some(outputs));
            }
            End::Bad(code) => self.pod(name, json!({"phase": "Failed", "containerStatuses": state(code)}), None),
            End::Hangs => self.pod(name, json!({"phase": "Running"}), None),
        }
    }

    /// Runs to the end, or until only hanging pods are left. Newest pods may end first.
    pub fn drive(&mut self, answer: &mut Answer<'_>, newest_first: bool) -> WorkflowPhase {
        for _ in 0..200_000 {
            self.settle();
            if self.execution.is_done() {
                return self.execution.phase();
            }
            let name = if newest_first { self.open.pop_back() } else { self.open.pop_front() };
            match (name, self.execution.next_wakeup()) {
                (Some(name), _) => {
                    self.now += Duration::seconds(1);
                    let end = answer(&self.pods[&name]);
                    self.end_pod(&name, end);
                }
                (None, Some(due)) => self.now = due,
                (None, None) => return self.execution.phase(),
            }
        }
        panic!("no end after many steps");
    }

    pub fn node(&self, suffix: &str) -> &NodeStatus {
        let name = format!("{}{suffix}", self.name);
        self.execution.node(&name).unwrap_or_else(|| panic!("no node {name}"))
    }

    pub fn has(&self, suffix: &str) -> bool {
        self.execution.node(&format!("{}{suffix}", self.name)).is_some()
    }

    pub fn phase(&self, suffix: &str) -> NodePhase {
        self.node(suffix).phase
    }

    /// The Workflow as written.
    pub fn written(&self) -> Workflow {
        serde_json::from_str(&self.object).unwrap()
    }
}

/// Node name of a pod.
pub fn node_name(pod: &Value) -> &str {
    pod["metadata"]["annotations"][names::ANNOTATION_NODE_NAME].as_str().unwrap()
}

/// Declared outputs of a pod, each with a value.
pub fn plausible(pod: &Value, iterations: &str) -> Vec<(String, String)> {
    let contract = pod["metadata"]["annotations"][names::ANNOTATION_TEMPLATE].as_str().unwrap();
    let contract: Value = serde_json::from_str(contract).unwrap();
    let parameters = contract["outputs"]["parameters"].as_array().cloned().unwrap_or_default();
    parameters
        .iter()
        .map(|parameter| {
            let name = parameter["name"].as_str().unwrap();
            let value = match name {
                "execution-id" => "7",
                "iteration-count" => iterations,
                "condition" => "true",
                "cached-decision" => "false",
                "pod-spec-patch" => {
                    r#"{"containers":[{"name":"main","image":"python","command":["/kfp-launcher/launch"],"args":["{{$}}"],"resources":{}}]}"#
                }
                _ => "value",
            };
            (name.to_owned(), value.to_owned())
        })
        .collect()
}

pub fn good(pod: &Value) -> End {
    End::Good(plausible(pod, "0"))
}
