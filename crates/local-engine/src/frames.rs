//! What the engine remembers about nodes that are not fulfilled yet. All of it can be rebuilt from the status.

use crate::model::TemplateModel;
use crate::nodes::Index;
use chrono::{DateTime, Utc};
use kfp_core::argo::{NodePhase, Outputs};
use serde_json::Value;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How a node comes to its end.
#[derive(Debug, Default)]
pub enum Work {
    /// Fulfilled, or only a mark in the graph.
    #[default]
    None,
    /// A pod decides.
    Pod,
    /// Tasks decide.
    Dag(Box<DagRun>),
    /// Groups of steps decide.
    Steps(Box<StepsRun>),
    /// Attempts decide.
    Retry(Box<RetryRun>),
    /// The time decides, or somebody who edits the node's phase.
    Suspend(Option<DateTime<Utc>>),
}

/// A DAG node under way.
#[derive(Debug)]
pub struct DagRun {
    /// Its template.
    pub template: Arc<TemplateModel>,
    /// State per task, in template order.
    pub tasks: Vec<TaskRun>,
}

/// A task or step under way.
#[derive(Debug, Default)]
pub struct TaskRun {
    /// Its node, once there is one.
    pub node: Option<Index>,
    /// Its items, when it is a loop.
    pub group: Option<GroupRun>,
    /// Node of the exit hook.
    pub hook: Option<Index>,
    /// Nodes of the other hooks, by name.
    pub hooks: BTreeMap<String, Index>,
    /// The node and its hook are fulfilled.
    pub done: bool,
    /// Phase as seen by the DAG: skipped and omitted tasks carry that of their dependencies.
    pub branch: NodePhase,
}

/// The items of a loop.
#[derive(Debug, Default)]
pub struct GroupRun {
    /// All items.
    pub items: Vec<Value>,
    /// Nodes of the items started so far, in order.
    pub children: Vec<Index>,
}

/// A Steps node under way.
#[derive(Debug)]
pub struct StepsRun {
    /// Its template.
    pub template: Arc<TemplateModel>,
    /// State per group and step; groups after the current one are absent.
    pub groups: Vec<StepGroupRun>,
}

/// One group of steps.
#[derive(Debug, Default)]
pub struct StepGroupRun {
    /// The group's node.
    pub node: Index,
    /// State per step.
    pub steps: Vec<TaskRun>,
}

/// A Retry node under way.
#[derive(Debug)]
pub struct RetryRun {
    /// Its template.
    pub template: Arc<TemplateModel>,
    /// Nodes of the attempts.
    pub attempts: Vec<Index>,
    /// Do not start the next attempt before.
    pub not_before: Option<DateTime<Utc>>,
}

impl DagRun {
    /// A DAG of which nothing has been looked at.
    pub fn new(template: Arc<TemplateModel>, tasks: usize) -> DagRun {
        DagRun { template, tasks: std::iter::repeat_with(TaskRun::default).take(tasks).collect() }
    }
}

/// Outputs a pod's node got, and whether one is missing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Collected {
    /// The outputs.
    pub outputs: Outputs,
    /// Path of a declared file that was not written and has no default.
    pub missing: Option<String>,
}
