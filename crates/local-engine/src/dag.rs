//! DAG nodes: which tasks may start, what became of the loops and hooks, how the DAG ends.

use crate::depends::Outcome;
use crate::execution::{Call, Execution, Started};
use crate::frames::{DagRun, GroupRun, TaskRun, Work};
use crate::hooks::Wanted;
use crate::model::{DagModel, Kind, TaskModel};
use crate::nodes::Index;
use crate::substitute::{self, Chain};
use crate::tasks::{self, Decision};
use crate::variables::{InputScope, Producer, ProducerScope};
use crate::{expression, hooks, loops, names};
use kfp_core::argo::{Artifact, ContinueOn, NodePhase, NodeType, Outputs, Parameter};

impl Execution {
    /// Goes on with a DAG node.
    pub(crate) fn evaluate_dag(&mut self, index: Index, mut run: DagRun) {
        let template = run.template.clone();
        let Kind::Dag(dag) = &template.kind else { return };
        let stopping = self.shutdown_for(self.nodes[index].on_exit).is_some();
        let mut all_done = true;
        for &at in &dag.order {
            if run.tasks[at].done {
                continue;
            }
            if run.tasks[at].node.is_none() {
                let ready = dag.tasks[at].needs.iter().all(|need| run.tasks[*need].done);
                if !ready || stopping {
                    all_done = all_done && stopping;
                    continue;
                }
                self.begin_task(index, dag, &mut run, at);
            }
            self.continue_task(index, dag, &mut run, at);
            all_done = all_done && run.tasks[at].done;
        }
        if all_done {
            self.finish_dag(index, dag, &run, stopping);
        } else {
            self.nodes[index].work = Work::Dag(Box::new(run));
        }
    }

    /// Starts a task whose dependencies are done; it may have to wait for a free place instead.
    fn begin_task(&mut self, index: Index, dag: &DagModel, run: &mut DagRun, at: usize) {
        let task = &dag.tasks[at];
        let call = self.task_call(index, task, &task.task.name);
        let existing =
            self.nodes.by_name(&call.name).filter(|node| self.nodes[*node].status.kind != NodeType::TaskGroup);
        let node = if let Some(node) = existing {
            // Left by an earlier life of the engine or kept by a retry of the run.
            match self.execute(call) {
                Started::Node(_) | Started::Deferred => Some(node),
            }
        } else if !self.may_run(dag, run, task) {
            Some(self.add_mark(&call, NodePhase::Omitted, "omitted: depends condition not met"))
        } else {
            self.start_task(index, dag, run, at, call)
        };
        let Some(node) = node else {
            self.defer(index);
            return;
        };
        run.tasks[at].node = Some(node);
        for parent in self.parents(index, &task.needs, run) {
            self.nodes.attach(parent, node);
        }
    }

    /// Nodes that a task's node becomes a child of.
    fn parents(&self, index: Index, needs: &[usize], run: &DagRun) -> Vec<Index> {
        if needs.is_empty() {
            return vec![index];
        }
        needs.iter().filter_map(|need| run.tasks[*need].node).flat_map(|node| self.nodes.outbound(node)).collect()
    }

    fn may_run(&self, dag: &DagModel, run: &DagRun, task: &TaskModel) -> bool {
        let is = |name: &str, outcome: Outcome| {
            let Some(state) = dag.by_name.get(name).map(|at| &run.tasks[*at]) else { return false };
            let Some(node) = state.node else { return false };
            let phase = self.nodes[node].status.phase;
            let children =
                || state.group.iter().flat_map(|group| &group.children).map(|child| self.nodes[*child].status.phase);
            match outcome {
                Outcome::Succeeded => phase == NodePhase::Succeeded,
                Outcome::Failed => phase == NodePhase::Failed,
                Outcome::Errored => phase == NodePhase::Error,
                Outcome::Skipped => phase == NodePhase::Skipped,
                Outcome::Omitted => phase == NodePhase::Omitted,
                Outcome::Daemoned => false,
                Outcome::AnySucceeded => children().any(|phase| phase == NodePhase::Succeeded),
                Outcome::AllFailed => children().next().is_some() && children().all(|phase| phase == NodePhase::Failed),
            }
        };
        let continue_on =
            |name: &str| dag.by_name.get(name).map_or(ContinueOn::default(), |at| dag.tasks[*at].continue_on());
        task.depends.eval(&is, &continue_on)
    }

    /// Starts a task; `None` when a parallelism limit is reached.
    fn start_task(
        &mut self,
        index: Index,
        dag: &DagModel,
        run: &mut DagRun,
        at: usize,
        call: Call<'_>,
    ) -> Option<Index> {
        let task = &dag.tasks[at];
        if !loops::is_loop(&task.task) {
            let decision = self.with_scope(index, dag, run, |scope| tasks::decide(&task.task, scope));
            return self.carry_out(call, decision);
        }
        let items = self.with_scope(index, dag, run, |scope| match loops::items(&task.task, scope) {
            Ok(items) => Ok(items.unwrap_or_default()),
            // A malformed loop does not matter when the condition is false anyway.
            Err(error) => match tasks::decide(&task.task, scope) {
                Decision::Skip(message) => Err((NodePhase::Skipped, message)),
                _ => Err((NodePhase::Error, error.to_string())),
            },
        });
        let items = match items {
            Err((phase, message)) => return Some(self.add_mark(&call, phase, &message)),
            Ok(items) if items.is_empty() => {
                return Some(self.add_mark(&call, NodePhase::Skipped, "Skipped, empty params"));
            }
            Ok(items) => items,
        };
        let group = match self.nodes.by_name(&call.name) {
            Some(existing) => existing,
            None => self.add_node(&call, NodeType::TaskGroup),
        };
        run.tasks[at].group = Some(GroupRun { items, children: Vec::new() });
        Some(group)
    }

    /// Does what was decided about a task or item; `None` when a parallelism limit is reached.
    pub(crate) fn carry_out(&mut self, mut call: Call<'_>, decision: Decision) -> Option<Index> {
        match decision {
            Decision::Skip(message) => Some(self.add_mark(&call, NodePhase::Skipped, &message)),
            Decision::Fail(message) => Some(self.add_mark(&call, NodePhase::Error, &message)),
            Decision::Run(arguments) => {
                call.parameters = arguments.parameters;
                call.artifacts = arguments.artifacts;
                match self.execute(call) {
                    Started::Node(node) => Some(node),
                    Started::Deferred => None,
                }
            }
        }
    }

    /// A call for a task of a DAG or Steps node, without arguments.
    pub(crate) fn task_call<'t>(&self, index: Index, task: &'t TaskModel, name: &str) -> Call<'t> {
        let frame = &self.nodes[index];
        Call {
            name: format!("{}.{name}", frame.status.name),
            template: &task.task.template,
            owner: Some(index),
            boundary: Some(index),
            on_exit: frame.on_exit,
            depth: frame.depth + 1,
            result: task.result,
            ..Call::default()
        }
    }

    /// Goes on with a task that has a node: its items, its hook.
    fn continue_task(&mut self, index: Index, dag: &DagModel, run: &mut DagRun, at: usize) {
        let task = &dag.tasks[at];
        let Some(node) = run.tasks[at].node else { return };
        if let Some(mut group) = run.tasks[at].group.take() {
            self.continue_group(index, dag, run, at, node, &mut group);
            run.tasks[at].group = Some(group);
        }
        let phase = self.nodes[node].status.phase;
        let mut hooks = std::mem::take(&mut run.tasks[at].hooks);
        for (name, hook) in &task.hooks {
            if hooks.contains_key(name) || self.stop_message(self.nodes[index].on_exit).is_some() {
                continue;
            }
            let known = self.nodes.by_name(&hooks::node_name(&self.nodes[node].status.name, Some(name)));
            let wanted = match known {
                Some(_) => Wanted::Yes(Decision::Run(Default::default())),
                None => self.with_scope(index, dag, run, |scope| hooks::decide(hook, phase.is_fulfilled(), scope)),
            };
            if let Wanted::Yes(decision) = wanted {
                match self.start_hook(index, node, Some(name), &hook.template, decision) {
                    Some(started) => drop(hooks.insert(name.clone(), started)),
                    None => self.defer(index),
                }
            }
        }
        let busy = hooks.values().any(|hook| !self.nodes[*hook].status.phase.is_fulfilled());
        run.tasks[at].hooks = hooks;
        if !phase.is_fulfilled() || busy {
            return;
        }
        if let (Some(hook), true) = (&task.exit_hook, phase.is_completed()) {
            if run.tasks[at].hook.is_none() && self.workflow.spec.shutdown.as_deref() != Some("Terminate") {
                let wanted = self.with_scope(index, dag, run, |scope| hooks::decide(hook, true, scope));
                if let Wanted::Yes(decision) = wanted {
                    let started = self.start_hook(index, node, None, &hook.template, decision);
                    if started.is_none() {
                        self.defer(index);
                        return;
                    }
                    run.tasks[at].hook = started;
                }
            }
            let waiting = run.tasks[at].hook.is_some_and(|hook| !self.nodes[hook].status.phase.is_fulfilled());
            if waiting {
                return;
            }
        }
        run.tasks[at].branch = if phase.is_completed() { phase } else { inherited(&task.needs, &run.tasks) };
        run.tasks[at].done = true;
    }

    /// Starts items as far as the limits allow, and ends the group when all are fulfilled.
    fn continue_group(
        &mut self,
        index: Index,
        dag: &DagModel,
        run: &DagRun,
        at: usize,
        node: Index,
        group: &mut GroupRun,
    ) {
        let task = &dag.tasks[at];
        if self.nodes[node].status.phase.is_fulfilled() {
            return;
        }
        let stopping = self.shutdown_for(self.nodes[index].on_exit).is_some();
        while group.children.len() < group.items.len() && !stopping {
            let number = group.children.len();
            let item = &group.items[number];
            let call = self.task_call(index, task, &names::item_name(&task.task.name, number, item));
            // Cheap look before the arguments are resolved: most looks at a limited loop end here.
            let known = self.nodes.by_name(&call.name);
            if known.is_none() && self.at_limit(Some(index), false) {
                self.defer(index);
                break;
            }
            let decision = match known {
                Some(_) => Decision::Run(Default::default()),
                None => {
                    let item = loops::ItemScope(item);
                    self.with_scope(index, dag, run, |scope| tasks::decide(&task.task, &Chain(vec![&item, scope])))
                }
            };
            let Some(child) = self.carry_out(call, decision) else {
                self.defer(index);
                break;
            };
            self.nodes.attach(node, child);
            group.children.push(child);
        }
        if group.children.len() < group.items.len() && !stopping {
            return;
        }
        let phases = || group.children.iter().map(|child| self.nodes[*child].status.phase);
        if phases().all(NodePhase::is_fulfilled) {
            let phase = phases().rfind(|phase| phase.is_failure()).unwrap_or(NodePhase::Succeeded);
            let phase = if stopping && group.children.len() < group.items.len() { NodePhase::Failed } else { phase };
            self.finish(node, phase, "");
        }
    }

    /// Calls a function with the variables that a task of this DAG sees.
    fn with_scope<T>(
        &self,
        index: Index,
        dag: &DagModel,
        run: &DagRun,
        function: impl FnOnce(&dyn substitute::Scope) -> T,
    ) -> T {
        let find = |name: &str| {
            let at = *dag.by_name.get(name)?;
            producer(&run.tasks[at], &dag.tasks[at])
        };
        let producers = ProducerScope { prefix: "tasks", nodes: &self.nodes, model: &self.model, find: &find };
        let inputs = InputScope(self.nodes[index].status.inputs.as_ref());
        let artifacts = tasks::Artifacts { producers: &producers, inputs: self.nodes[index].status.inputs.as_ref() };
        function(&Chain(vec![&inputs, &producers, &artifacts, &self.globals]))
    }

    fn finish_dag(&mut self, index: Index, dag: &DagModel, run: &DagRun, stopping: bool) {
        let outbound: Vec<String> = dag
            .targets
            .iter()
            .filter_map(|at| run.tasks[*at].node)
            .flat_map(|node| self.nodes.outbound(node))
            .map(|node| self.nodes[node].status.id.clone())
            .collect();
        self.nodes.change(index).outbound_nodes = outbound;
        let cut_short = stopping && dag.order.iter().any(|at| !run.tasks[*at].done);
        let failed = dag.targets.iter().find_map(|at| {
            let tolerated = dag.tasks[*at].continue_on();
            match run.tasks[*at].branch {
                NodePhase::Failed if !tolerated.failed => Some(NodePhase::Failed),
                NodePhase::Error if !tolerated.error => Some(NodePhase::Error),
                _ => None,
            }
        });
        if let Some(phase) = failed.or(cut_short.then_some(NodePhase::Failed)) {
            self.finish(index, phase, "");
            return;
        }
        let declared = run.template.template.outputs.clone();
        match self.with_scope(index, dag, run, |scope| outputs(&declared, scope)) {
            Ok(outputs) => {
                if !outputs.is_empty() {
                    self.nodes.change(index).outputs = Some(outputs);
                }
                self.finish(index, NodePhase::Succeeded, "");
            }
            Err(message) => self.finish(index, NodePhase::Error, &message),
        }
    }
}

/// A task or step as others refer to it.
pub(crate) fn producer(state: &TaskRun, task: &TaskModel) -> Option<Producer> {
    Some(Producer {
        node: state.node,
        items: state.group.as_ref().map(|group| group.children.clone()),
        template: task.task.template.clone(),
    })
}

/// Phase that a skipped or omitted task hands on: a failure of its dependencies, else success.
fn inherited(needs: &[usize], tasks: &[TaskRun]) -> NodePhase {
    let mut phases = needs.iter().map(|need| tasks[*need].branch);
    phases.find(|phase| phase.is_failure()).unwrap_or(NodePhase::Succeeded)
}

/// Declared outputs of a DAG or Steps template, resolved.
pub(crate) fn outputs(declared: &Outputs, scope: &dyn substitute::Scope) -> Result<Outputs, String> {
    let mut outputs = Outputs::default();
    for parameter in &declared.parameters {
        let from = parameter.value_from.as_ref();
        let text = from.and_then(|from| from.parameter.as_ref()).or(parameter.value.as_ref());
        let computed = from.and_then(|from| from.expression.as_deref());
        let resolved = match text {
            _ if let Some(expression) = computed => expression::evaluate(expression, scope)
                .map(|value| expression::print(&value))
                .map_err(|error| error.to_string()),
            Some(text) => {
                substitute::text(text, scope).map(|value| value.into_owned()).map_err(|error| error.to_string())
            }
            None => Err(format!("outputs.parameters.{} has no valueFrom.parameter", parameter.name)),
        };
        let value = match (resolved, from.and_then(|from| from.default.clone())) {
            (Ok(value), _) => value,
            (Err(_), Some(default)) => default,
            (Err(error), None) => return Err(error),
        };
        outputs.parameters.push(Parameter { value: Some(value), ..parameter.clone() });
    }
    for artifact in &declared.artifacts {
        let source = tasks::source(artifact, scope).map_err(|error| error.to_string())?;
        match source.and_then(|(_, found)| found) {
            Some(found) => {
                let mut found = Artifact { name: artifact.name.clone(), ..found };
                found.extra.extend(artifact.extra.get_key_value("globalName").map(|(k, v)| (k.clone(), v.clone())));
                outputs.artifacts.push(found);
            }
            None if artifact.optional => {}
            None => return Err(format!("Unable to resolve: outputs.artifacts.{}", artifact.name)),
        }
    }
    Ok(outputs)
}
