//! The nodes of one execution: status as Argo writes it, and beside it what only the running engine needs.

use crate::frames::Work;
use crate::names;
use kfp_core::argo::{NodePhase, NodeStatus, NodeType};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Index of a node; nodes are never removed while a Workflow is executed.
pub type Index = usize;

/// A node with its bookkeeping.
#[derive(Debug, Default)]
pub struct Node {
    /// What is written into the Workflow.
    pub status: NodeStatus,
    /// Node to evaluate again when this one is fulfilled.
    pub owner: Option<Index>,
    /// Enclosing DAG or Steps node.
    pub boundary: Option<Index>,
    /// Part of an exit handler, so deadlines and Stop do not end it.
    pub on_exit: bool,
    /// Number of templates around it.
    pub depth: u32,
    /// Variables of this node alone (`retries`, `lastRetry.*`).
    pub locals: BTreeMap<String, String>,
    /// State of the evaluation.
    pub work: Work,
    /// Children in this boundary that are pending or running.
    pub active: i64,
    /// Pods inside this boundary: succeeded and all.
    pub pods: (u32, u32),
    /// Others refer to the standard output of its pod.
    pub result: bool,
}

impl Node {
    /// The running engine already works on it.
    pub fn is_taken_up(&self) -> bool {
        !matches!(self.work, Work::None)
    }
}

/// All nodes of one execution.
#[derive(Debug)]
pub struct Nodes {
    workflow: String,
    list: Vec<Node>,
    by_id: HashMap<String, Index>,
    dirty: BTreeSet<Index>,
    /// Pods that are pending or running.
    pub active_pods: i64,
    /// Pods of the whole workflow: succeeded and all.
    pub pods: (u32, u32),
}

impl std::ops::Index<Index> for Nodes {
    type Output = Node;

    fn index(&self, index: Index) -> &Node {
        &self.list[index]
    }
}

impl std::ops::IndexMut<Index> for Nodes {
    fn index_mut(&mut self, index: Index) -> &mut Node {
        &mut self.list[index]
    }
}

/// True for kinds that count against `parallelism`.
fn counts(kind: NodeType) -> bool {
    matches!(kind, NodeType::Pod | NodeType::Dag | NodeType::Steps)
}

impl Nodes {
    /// Takes over the nodes of a status.
    pub fn load(workflow: &str, statuses: &BTreeMap<String, NodeStatus>) -> Nodes {
        let mut nodes = Nodes {
            workflow: workflow.to_owned(),
            list: Vec::new(),
            by_id: HashMap::new(),
            dirty: BTreeSet::new(),
            active_pods: 0,
            pods: (0, 0),
        };
        for (index, (id, status)) in statuses.iter().enumerate() {
            nodes.by_id.insert(id.clone(), index);
            nodes.list.push(Node { status: status.clone(), ..Node::default() });
        }
        for index in 0..nodes.list.len() {
            nodes.list[index].boundary = nodes.by_id.get(&nodes.list[index].status.boundary_id).copied();
        }
        for index in 0..nodes.list.len() {
            nodes.count(index);
        }
        nodes
    }

    fn count(&mut self, index: Index) {
        let (kind, phase) = (self[index].status.kind, self[index].status.phase);
        let boundary = self[index].boundary;
        if kind == NodeType::Pod {
            let done = u32::from(phase == NodePhase::Succeeded);
            self.add_pods(index, done, 1);
        }
        if counts(kind) && !phase.is_fulfilled() {
            self.active_pods += i64::from(kind == NodeType::Pod);
            if let Some(boundary) = boundary {
                self[boundary].active += 1;
            }
        }
    }

    fn add_pods(&mut self, index: Index, done: u32, all: u32) {
        self.pods.0 += done;
        self.pods.1 += all;
        let mut at = self[index].boundary;
        // A status written by somebody else could hold a cycle of boundaries.
        let mut left = self.list.len();
        while let Some(boundary) = at.filter(|_| left > 0) {
            let pods = &mut self[boundary].pods;
            pods.0 += done;
            pods.1 += all;
            at = self[boundary].boundary;
            left -= 1;
        }
    }

    /// Indexes of all nodes.
    pub fn indexes(&self) -> std::ops::Range<Index> {
        0..self.list.len()
    }

    /// The node of an identifier.
    pub fn by_id(&self, id: &str) -> Option<Index> {
        self.by_id.get(id).copied()
    }

    /// The node of a full name.
    pub fn by_name(&self, name: &str) -> Option<Index> {
        self.by_id(&names::node_id(&self.workflow, name))
    }

    /// Adds a node; its identifier and display name follow from its name and boundary.
    pub fn add(&mut self, mut node: Node) -> Index {
        let index = self.list.len();
        let boundary = node.boundary.map(|boundary| &self[boundary].status);
        node.status.id = names::node_id(&self.workflow, &node.status.name);
        node.status.display_name =
            names::display_name(&node.status.name, boundary.map(|boundary| boundary.name.as_str()));
        node.status.boundary_id = boundary.map(|boundary| boundary.id.clone()).unwrap_or_default();
        self.by_id.insert(node.status.id.clone(), index);
        self.list.push(node);
        self.dirty.insert(index);
        self.count(index);
        index
    }

    /// A node's status, for a change that is to be written.
    pub fn change(&mut self, index: Index) -> &mut NodeStatus {
        self.dirty.insert(index);
        &mut self.list[index].status
    }

    /// Books that a node is fulfilled now. Returns whether it counted against a parallelism limit.
    pub fn fulfilled(&mut self, index: Index) -> bool {
        let (kind, phase) = (self[index].status.kind, self[index].status.phase);
        if kind == NodeType::Pod && phase == NodePhase::Succeeded {
            self.add_pods(index, 1, 0);
        }
        if counts(kind) {
            self.active_pods -= i64::from(kind == NodeType::Pod);
            if let Some(boundary) = self[index].boundary {
                self[boundary].active -= 1;
            }
        }
        counts(kind)
    }

    /// Makes a node the child of another, once.
    pub fn attach(&mut self, parent: Index, child: Index) {
        if parent == child {
            return;
        }
        let id = self.list[child].status.id.clone();
        if !self.list[parent].status.children.contains(&id) {
            self.change(parent).children.push(id);
        }
    }

    /// The last nodes of a node: those whose children come after it.
    pub fn outbound(&self, index: Index) -> Vec<Index> {
        let mut out = Vec::new();
        let mut seen = BTreeSet::new();
        self.collect_outbound(index, &mut out, &mut seen);
        out
    }

    fn collect_outbound(&self, index: Index, out: &mut Vec<Index>, seen: &mut BTreeSet<Index>) {
        if !seen.insert(index) {
            return;
        }
        let status = &self[index].status;
        let next: Vec<Index> = match status.kind {
            NodeType::Retry => {
                { status.children.iter().rev().filter_map(|id| self.by_id(id)).find(|child| !self.is_hook(*child)) }
                    .into_iter()
                    .collect()
            }
            NodeType::TaskGroup => {
                status.children.iter().filter_map(|id| self.by_id(id)).filter(|child| !self.is_hook(*child)).collect()
            }
            NodeType::Dag | NodeType::Steps => status.outbound_nodes.iter().filter_map(|id| self.by_id(id)).collect(),
            _ => Vec::new(),
        };
        if next.is_empty() {
            out.push(index);
            return;
        }
        for child in next {
            self.collect_outbound(child, out, seen);
        }
    }

    /// True for nodes made by a lifecycle hook.
    pub fn is_hook(&self, index: Index) -> bool {
        self[index].status.node_flag.is_some_and(|flag| flag.hooked)
    }

    /// Takes the indexes of the nodes changed since the last call.
    pub fn take_dirty(&mut self) -> BTreeSet<Index> {
        std::mem::take(&mut self.dirty)
    }

    /// Marks every node as changed.
    pub fn mark_all(&mut self) {
        self.dirty.extend(0..self.list.len());
    }

    /// True when a node was changed since the last `take_dirty`.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// `done/all` of a node's pods.
    pub fn progress(&self, index: Index) -> String {
        let status = &self[index].status;
        let (done, all) = match status.kind {
            NodeType::Pod => (u32::from(status.phase == NodePhase::Succeeded), 1),
            NodeType::TaskGroup | NodeType::Retry | NodeType::StepGroup => {
                status.children.iter().filter_map(|id| self.by_id(id)).fold((0, 0), |sum, child| {
                    let pods = match self[child].status.kind {
                        NodeType::Pod => (u32::from(self[child].status.phase == NodePhase::Succeeded), 1),
                        _ => self[child].pods,
                    };
                    (sum.0 + pods.0, sum.1 + pods.1)
                })
            }
            _ => self[index].pods,
        };
        if all == 0 { String::new() } else { format!("{done}/{all}") }
    }
}
