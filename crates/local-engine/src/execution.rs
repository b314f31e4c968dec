//! The pure core: one Workflow under execution. Events go in, effects come out; no clock and no I/O inside.
//!
//! Every unfulfilled node is looked at only when something it waits for has happened: a fulfilled node puts its
//! owner into a queue, the queue is worked off, nothing else is visited. All state besides the status can be
//! rebuilt from it, so a restart continues where the last written status stands.

use crate::Settings;
use crate::assess;
use crate::changes::Changes;
use crate::frames::Work;
use crate::model::{Kind, Model};
use crate::names;
use crate::nodes::{Index, Node, Nodes};
use crate::substitute::Chain;
use crate::validate;
use crate::variables::{Globals, InputScope, PathScope};
use chrono::{DateTime, Utc};
use kfp_core::argo::{
    NodeFlag, NodePhase, NodeStatus, NodeType, Parameter, Status, Timestamp, Workflow, WorkflowPhase, names as labels,
};
use serde_json::Value;
use std::collections::{BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A pod exists or changed.
    Pod(Arc<Value>),
    /// A pod is gone: node identifier and name of the pod.
    PodDeleted(String, String),
    /// Names of all pods there are, after changes may have been missed.
    Pods(HashSet<String>),
    /// The API refused a pod for good: node identifier and reason.
    PodRefused(String, String),
    /// A claim exists.
    ClaimReady,
    /// The API refused a claim: reason.
    ClaimRefused(String),
    /// Somebody changed the Workflow.
    Edited(Box<Workflow>),
}

/// What the shell has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Create a pod for a node.
    CreatePod {
        /// Identifier of the node.
        node: String,
        /// The pod.
        pod: Value,
    },
    /// End a pod that has been given up.
    StopPod {
        /// Name of the pod.
        name: String,
    },
    /// Create a claim.
    CreateClaim(Value),
    /// Delete a claim.
    DeleteClaim {
        /// Name of the claim.
        name: String,
    },
}

/// Message of a node some of whose children have to wait.
const WAITING: &str = "waiting for others to end: as many as parallelism allows are running";

/// Deepest nesting of templates; recursion beyond it is an error of the Workflow.
pub(crate) const MAX_DEPTH: u32 = 100;

/// Where the execution stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Fresh,
    Claims(usize),
    Main,
    Exit,
    Done,
}

/// One Workflow under execution.
#[derive(Debug)]
pub struct Execution {
    pub(crate) workflow: Workflow,
    pub(crate) model: Arc<Model>,
    pub(crate) globals: Globals,
    pub(crate) nodes: Nodes,
    pub(crate) status: Status,
    pub(crate) status_changed: bool,
    pub(crate) labels_changed: bool,
    pub(crate) now: DateTime<Utc>,
    pub(crate) stage: Stage,
    pub(crate) broken: Option<String>,
    pub(crate) queue: VecDeque<Index>,
    pub(crate) queued: HashSet<Index>,
    deferred: BTreeSet<Index>,
    timers: BTreeSet<(DateTime<Utc>, Index)>,
    pub(crate) effects: Vec<Effect>,
    seen_pods: HashSet<String>,
    pub(crate) stopped_for: Option<String>,
    pub(crate) claim_volumes: Vec<Value>,
    pub(crate) repository: Value,
}

/// A template to be executed as a node.
#[derive(Default)]
pub(crate) struct Call<'a> {
    pub name: String,
    pub template: &'a str,
    pub parameters: Vec<Parameter>,
    pub artifacts: Vec<kfp_core::argo::Artifact>,
    pub owner: Option<Index>,
    pub boundary: Option<Index>,
    pub on_exit: bool,
    pub hooked: bool,
    pub retried: bool,
    pub depth: u32,
    pub locals: std::collections::BTreeMap<String, String>,
    pub result: bool,
}

/// What became of a call.
pub(crate) enum Started {
    /// There is a node now, or was before.
    Node(Index),
    /// A parallelism limit is reached; try again later.
    Deferred,
}

impl Execution {
    /// As [`Execution::with`], with the settings of a stock installation.
    pub fn new(workflow: Workflow, now: DateTime<Utc>) -> Execution {
        Execution::with(workflow, &Settings::default(), now)
    }

    /// Takes up a Workflow where its status stands. Apply an [`Event::Pod`] for each of its pods before `run`.
    pub fn with(workflow: Workflow, settings: &Settings, now: DateTime<Utc>) -> Execution {
        let workflow = settings.apply(workflow);
        let (model, mut broken) = match Model::new(&workflow) {
            Ok(model) => (model, None),
            Err(error) => {
                let empty = Model { spec: workflow.spec.clone(), templates: Default::default() };
                (empty, Some(format!("invalid spec: {error}")))
            }
        };
        if broken.is_none() {
            broken = validate::workflow(&workflow, &model).err().map(|error| format!("invalid spec: {error}"));
        }
        let globals = Globals::new(&workflow).unwrap_or_else(|error| {
            broken.get_or_insert(format!("failed to set global parameters: {error}"));
            Globals::default()
        });
        let mut status = workflow.status.clone();
        let nodes = Nodes::load(&workflow.metadata.name, &status.nodes);
        status.nodes.clear();
        let stage = match status.phase {
            _ if workflow.label(labels::LABEL_COMPLETED) == Some("true") => Stage::Done,
            WorkflowPhase::Unknown => Stage::Fresh,
            _ => Stage::Main,
        };
        let mut execution = Execution {
            model: Arc::new(model),
            globals,
            nodes,
            status,
            status_changed: false,
            labels_changed: false,
            now,
            stage,
            broken,
            queue: VecDeque::new(),
            queued: HashSet::new(),
            deferred: BTreeSet::new(),
            timers: BTreeSet::new(),
            effects: Vec::new(),
            seen_pods: HashSet::new(),
            stopped_for: None,
            claim_volumes: Vec::new(),
            repository: settings.artifact_repository.clone(),
            workflow,
        };
        execution.load_globals();
        execution.workflow.status = Status::default();
        execution.workflow.spec.templates.clear();
        execution.set_claim_volumes();
        execution
    }

    /// Takes an event in. Call [`Execution::run`] after a batch of them.
    pub fn apply(&mut self, event: Event, now: DateTime<Utc>) {
        self.now = now;
        if self.stage == Stage::Done {
            return;
        }
        match event {
            Event::Pod(pod) => self.apply_pod(&pod),
            Event::PodDeleted(id, name) => {
                self.seen_pods.remove(&id);
                if let Some(index) =
                    self.nodes.by_id(&id).filter(|index| self.nodes[*index].status.kind == NodeType::Pod)
                    && self.pod_name(&self.nodes[index].status) == name
                {
                    self.finish(index, NodePhase::Error, "pod deleted");
                }
            }
            Event::Pods(names) => self.miss_pods(&names),
            Event::PodRefused(id, why) => {
                if let Some(index) = self.nodes.by_id(&id) {
                    self.finish(index, NodePhase::Error, &why);
                }
            }
            Event::ClaimReady => {
                if let Stage::Claims(open) = self.stage {
                    self.stage = if open <= 1 { Stage::Main } else { Stage::Claims(open - 1) };
                }
            }
            Event::ClaimRefused(why) => {
                if matches!(self.stage, Stage::Claims(_)) {
                    self.end(WorkflowPhase::Error, &why);
                }
            }
            Event::Edited(workflow) => self.apply_edit(*workflow),
        }
    }

    /// Takes over what others may change while the Workflow runs: deadline, shutdown, suspend, and the phases of
    /// suspended nodes.
    fn apply_edit(&mut self, workflow: Workflow) {
        self.workflow.spec.active_deadline_seconds = workflow.spec.active_deadline_seconds;
        self.workflow.spec.shutdown = workflow.spec.shutdown;
        self.workflow.spec.suspend = workflow.spec.suspend;
        for (id, node) in &workflow.status.nodes {
            let known = self.nodes.by_id(id).filter(|_| node.kind == NodeType::Suspend);
            if let Some(index) = known.filter(|index| !self.nodes[*index].status.phase.is_fulfilled()) {
                self.edit_suspended(index, node);
            }
        }
    }

    fn apply_pod(&mut self, pod: &Value) {
        let Some(id) = pod["metadata"]["annotations"][labels::ANNOTATION_NODE_ID].as_str() else { return };
        if pod["metadata"]["deletionTimestamp"].is_null() {
            self.seen_pods.insert(id.to_owned());
        }
        let Some(index) = self.nodes.by_id(id) else { return };
        let old = &self.nodes[index].status;
        if old.phase.is_fulfilled() || old.kind != NodeType::Pod {
            return;
        }
        let template = self.model.templates.get(&old.template_name);
        let seen = assess::assess(pod, template.map(|template| &template.template));
        // A pod that is seen pending again (a late event) does not take its node back.
        let phase =
            if old.phase == NodePhase::Running && seen.phase == NodePhase::Pending { old.phase } else { seen.phase };
        let changed = old.phase != phase
            || old.message != seen.message
            || old.pod_ip != seen.ip
            || (old.host_node_name != seen.host && !seen.host.is_empty());
        if !changed {
            return;
        }
        let status = self.nodes.change(index);
        status.pod_ip = seen.ip;
        if !seen.host.is_empty() {
            status.host_node_name = seen.host;
        }
        if let Some(outputs) = seen.outputs {
            status.outputs = Some(outputs);
        }
        if phase.is_fulfilled() {
            if let Some(finished) = seen.finished_at {
                status.finished_at = Some(finished);
            }
            self.finish(index, phase, &seen.message);
            self.export_globals(index);
        } else {
            let moved = status.phase != phase;
            status.phase = phase;
            status.message = seen.message;
            let owner = self.nodes[index].owner.filter(|owner| moved && self.is_hooked(*owner));
            if let Some(owner) = owner {
                self.wake(owner);
            }
        }
    }

    /// True when a frame has hooks that watch its children.
    fn is_hooked(&self, frame: Index) -> bool {
        let template = self.model.templates.get(&self.nodes[frame].status.template_name);
        template.is_some_and(|template| template.hooked)
    }

    /// Ends nodes whose pods have vanished unseen. Pods of pending nodes may still be on their way.
    fn miss_pods(&mut self, names: &HashSet<String>) {
        for index in self.nodes.indexes() {
            let status = &self.nodes[index].status;
            let known = self.seen_pods.contains(&status.id);
            if known
                && status.kind == NodeType::Pod
                && !status.phase.is_fulfilled()
                && !names.contains(&self.pod_name(status))
            {
                self.finish(index, NodePhase::Error, "pod deleted");
            }
        }
    }

    /// Works off everything that can go on at this time and says what is to be done outside.
    pub fn run(&mut self, now: DateTime<Utc>) -> Vec<Effect> {
        self.now = now;
        if self.stage == Stage::Done {
            return std::mem::take(&mut self.effects);
        }
        if let Some(why) = self.broken.take() {
            self.begin();
            self.end(WorkflowPhase::Failed, &why);
            return std::mem::take(&mut self.effects);
        }
        if self.stage == Stage::Fresh {
            self.begin();
        }
        while let Some((due, index)) = self.timers.first().copied().filter(|(due, _)| *due <= now) {
            self.timers.remove(&(due, index));
            self.wake(index);
        }
        self.enforce_stop();
        if self.workflow.spec.suspend != Some(true) && !matches!(self.stage, Stage::Claims(_)) {
            self.advance();
        }
        std::mem::take(&mut self.effects)
    }

    /// When `run` has to be called although nothing happened.
    pub fn next_wakeup(&self) -> Option<DateTime<Utc>> {
        if self.stage == Stage::Done {
            return None;
        }
        let deadline = self.deadline().filter(|deadline| *deadline > self.now);
        self.timers.first().map(|(due, _)| *due).into_iter().chain(deadline).min()
    }

    /// True when the Workflow has ended.
    pub fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Phase of the Workflow.
    pub fn phase(&self) -> WorkflowPhase {
        self.status.phase
    }

    /// Status of a node, by its full name.
    pub fn node(&self, name: &str) -> Option<&NodeStatus> {
        Some(&self.nodes[self.nodes.by_name(name)?].status)
    }

    /// Status of all nodes.
    pub fn node_statuses(&self) -> impl Iterator<Item = &NodeStatus> {
        self.nodes.indexes().map(|index| &self.nodes[index].status)
    }

    /// Everything that changed since the last call, to be written into the Workflow; `None` if nothing did.
    pub fn take_changes(&mut self) -> Option<Changes> {
        Changes::take(self)
    }

    /// True when [`Execution::take_changes`] would give something.
    pub fn has_changes(&self) -> bool {
        self.status_changed || self.nodes.is_dirty()
    }

    /// Makes the next [`Execution::take_changes`] give everything, after a write that failed.
    pub fn mark_all_changed(&mut self) {
        self.status_changed = true;
        self.labels_changed = true;
        self.nodes.mark_all();
    }

    pub(crate) fn pod_name(&self, node: &NodeStatus) -> String {
        let v1 = self.workflow.annotation(labels::ANNOTATION_POD_NAME_FORMAT) == Some("v1");
        names::pod_name(&self.workflow.metadata.name, &node.name, &node.template_name, v1)
    }

    /// Puts an unfulfilled frame into the queue.
    pub(crate) fn wake(&mut self, index: Index) {
        let status = &self.nodes[index].status;
        let frame = matches!(status.kind, NodeType::Dag | NodeType::Steps | NodeType::Retry | NodeType::Suspend);
        if frame && !status.phase.is_fulfilled() && self.queued.insert(index) {
            self.queue.push_back(index);
        }
    }

    /// Wakes a frame at a time.
    pub(crate) fn wake_at(&mut self, due: DateTime<Utc>, index: Index) {
        self.timers.insert((due, index));
    }

    /// Looks at a frame again when a pod or DAG ends anywhere; until then the frame says what it waits for.
    pub(crate) fn defer(&mut self, index: Index) {
        self.deferred.insert(index);
        if self.nodes[index].status.message.is_empty() {
            self.nodes.change(index).message = WAITING.to_owned();
            self.status_changed = true;
        }
    }

    /// A frame that no longer waits for a free place does not say so any more.
    pub(crate) fn clear_waiting(&mut self, index: Index) {
        if self.nodes[index].status.message == WAITING && !self.deferred.contains(&index) {
            self.nodes.change(index).message.clear();
            self.status_changed = true;
        }
    }

    /// Ends a node, once; whoever waits for it looks again.
    pub(crate) fn finish(&mut self, index: Index, phase: NodePhase, message: &str) {
        if self.nodes[index].status.phase.is_fulfilled() {
            return;
        }
        let now = Timestamp(self.now);
        let status = self.nodes.change(index);
        status.phase = phase;
        status.message = message.to_owned();
        let finished = *status.finished_at.get_or_insert(now);
        if status.kind == NodeType::Pod {
            let seconds = status.started_at.map_or(0, |started| (finished.0 - started.0).num_seconds().max(0));
            for resource in ["cpu", "memory"] {
                status.resources_duration.insert(resource.to_owned(), seconds);
                *self.status.resources_duration.entry(resource.to_owned()).or_default() += seconds;
            }
        }
        self.nodes[index].work = Work::None;
        self.status_changed = true;
        if self.nodes.fulfilled(index) {
            for frame in std::mem::take(&mut self.deferred) {
                self.wake(frame);
            }
        }
        if let Some(owner) = self.nodes[index].owner {
            self.wake(owner);
        }
    }

    /// Adds a node that is fulfilled from the start: skipped, omitted or failed before it could begin.
    pub(crate) fn add_mark(&mut self, call: &Call<'_>, phase: NodePhase, message: &str) -> Index {
        let index = self.add_node(call, NodeType::Skipped);
        let now = Timestamp(self.now);
        let status = self.nodes.change(index);
        status.node_flag = Some(NodeFlag { hooked: call.hooked, retried: call.retried });
        status.phase = phase;
        status.message = message.to_owned();
        status.finished_at = Some(now);
        self.status_changed = true;
        index
    }

    /// Adds a running node.
    pub(crate) fn add_node(&mut self, call: &Call<'_>, kind: NodeType) -> Index {
        let scope = format!("local/{}", self.workflow.metadata.name);
        let flag = NodeFlag { hooked: call.hooked, retried: call.retried };
        self.status_changed = true;
        self.nodes.add(Node {
            status: NodeStatus {
                name: call.name.clone(),
                kind,
                phase: match kind {
                    NodeType::Pod => NodePhase::Pending,
                    _ => NodePhase::Running,
                },
                template_name: call.template.to_owned(),
                template_scope: scope,
                started_at: Some(self.now.into()),
                node_flag: (flag != NodeFlag::default() || matches!(kind, NodeType::TaskGroup | NodeType::StepGroup))
                    .then_some(flag),
                ..NodeStatus::default()
            },
            owner: call.owner,
            boundary: call.boundary,
            on_exit: call.on_exit,
            depth: call.depth,
            locals: call.locals.clone(),
            result: call.result,
            ..Node::default()
        })
    }

    /// True when one more child of the boundary, or one more pod, would exceed a limit.
    pub(crate) fn at_limit(&self, boundary: Option<Index>, pod: bool) -> bool {
        let over = |limit: Option<i64>, active: i64| limit.is_some_and(|limit| limit > 0 && active >= limit);
        let boundary_full = boundary.is_some_and(|boundary| {
            let template = self.model.templates.get(&self.nodes[boundary].status.template_name);
            over(template.and_then(|template| template.template.parallelism), self.nodes[boundary].active)
        });
        boundary_full || (pod && over(self.model.spec.parallelism, self.nodes.active_pods))
    }

    /// Executes a template as a node: makes the node unless it exists, and takes up its work.
    pub(crate) fn execute(&mut self, call: Call<'_>) -> Started {
        let template = self.model.templates.get(call.template).cloned();
        if let Some(index) = self.nodes.by_name(&call.name) {
            self.resume(index, &call);
            return Started::Node(index);
        }
        let Some(template) = template else {
            let message = format!("template name '{}' undefined", call.template);
            return Started::Node(self.add_mark(&call, NodePhase::Error, &message));
        };
        if call.depth > MAX_DEPTH {
            let message = format!("Maximum recursion depth exceeded. See the limit of {MAX_DEPTH} nested templates");
            return Started::Node(self.add_mark(&call, NodePhase::Error, &message));
        }
        let inputs = match crate::inputs::process(&template.template, &call, &self.globals) {
            Ok(inputs) => inputs,
            Err(message) => return Started::Node(self.add_mark(&call, NodePhase::Error, &message)),
        };
        if self.at_limit(call.boundary, matches!(template.kind, Kind::Pod)) {
            return Started::Deferred;
        }
        let kind = match &template.kind {
            _ if template.template.retry_strategy.is_some() && !call.retried => NodeType::Retry,
            Kind::Pod => NodeType::Pod,
            Kind::Dag(_) => NodeType::Dag,
            Kind::Steps(_) => NodeType::Steps,
            Kind::Suspend => NodeType::Suspend,
        };
        let index = self.add_node(&call, kind);
        let status = self.nodes.change(index);
        status.inputs = (!inputs.is_empty()).then_some(inputs);
        if kind == NodeType::Suspend {
            status.outputs = crate::suspend::asked(&template.template);
        }
        self.take_up(index, &template);
        if kind == NodeType::Pod {
            self.start_pod(index);
        }
        Started::Node(index)
    }

    /// Continues a node of an earlier life of the engine, or of a run that is retried.
    fn resume(&mut self, index: Index, call: &Call<'_>) {
        let node = &mut self.nodes[index];
        if node.status.phase.is_fulfilled() || !matches!(node.work, Work::None) {
            return;
        }
        node.owner = call.owner;
        node.boundary = call.boundary.or(node.boundary);
        node.on_exit = call.on_exit;
        node.depth = call.depth;
        node.locals = call.locals.clone();
        node.result = call.result;
        let (kind, phase, id) = (node.status.kind, node.status.phase, node.status.id.clone());
        let Some(template) = self.model.templates.get(call.template).cloned() else {
            self.finish(index, NodePhase::Error, &format!("template name '{}' undefined", call.template));
            return;
        };
        self.take_up(index, &template);
        if kind == NodeType::Pod && !self.seen_pods.contains(&id) {
            if phase == NodePhase::Pending {
                self.start_pod(index);
            } else {
                self.finish(index, NodePhase::Error, "pod deleted");
            }
        }
    }

    fn start_pod(&mut self, index: Index) {
        if let Some(message) = self.stop_message(self.nodes[index].on_exit) {
            self.finish(index, NodePhase::Failed, &message);
            return;
        }
        let node = &self.nodes[index];
        let Some(template) = self.model.templates.get(&node.status.template_name).cloned() else { return };
        let pod_name = self.pod_name(&node.status);
        let mut locals = node.locals.clone();
        locals.insert("pod.name".to_owned(), pod_name.clone());
        locals.insert("node.name".to_owned(), node.status.name.clone());
        let inputs = InputScope(node.status.inputs.as_ref());
        let paths = PathScope(&template.template);
        let scope = Chain(vec![&locals, &inputs, &paths, &self.globals]);
        let parent = node.owner.map(|owner| &self.nodes[owner].status);
        let retry_parent = parent.filter(|parent| parent.kind == NodeType::Retry).map(|parent| parent.id.as_str());
        let context = crate::pod::Context {
            workflow: &self.workflow.metadata.name,
            namespace: &self.workflow.metadata.namespace,
            uid: &self.workflow.metadata.uid,
            node_name: &node.status.name,
            node_id: &node.status.id,
            pod_name: &pod_name,
            inputs: node.status.inputs.as_ref(),
            retry_parent,
            on_exit: node.on_exit,
            spec: &self.model.spec,
            claims: &self.claim_volumes,
            repository: &self.repository,
            result: node.result,
        };
        match crate::pod::build(&context, &template.template, &scope) {
            Ok(pod) => self.effects.push(Effect::CreatePod { node: node.status.id.clone(), pod }),
            Err(error) => self.finish(index, NodePhase::Error, &error.to_string()),
        }
    }
}
