//! Steps nodes: groups one after the other, the steps of a group side by side.

use crate::dag::{outputs, producer};
use crate::execution::{Call, Execution};
use crate::frames::{GroupRun, StepGroupRun, StepsRun, TaskRun, Work};
use crate::hooks::{self, Wanted};
use crate::model::{Kind, TaskModel};
use crate::nodes::Index;
use crate::substitute::{Chain, Lookup, Scope};
use crate::tasks::{self, Decision};
use crate::variables::{InputScope, Producer, ProducerScope};
use crate::{loops, names};
use kfp_core::argo::{NodePhase, NodeType};

/// The variables of one step, leaving those of others to the scopes behind it.
struct OnlyKnown<'a> {
    name: &'a str,
    scope: &'a dyn Scope,
}

impl Scope for OnlyKnown<'_> {
    fn lookup(&self, tag: &str) -> Lookup {
        let own = tag.strip_prefix("steps.").and_then(|rest| rest.strip_prefix(self.name));
        if own.is_some_and(|rest| rest.starts_with('.')) { self.scope.lookup(tag) } else { Lookup::Unknown }
    }
}

impl Execution {
    /// Goes on with a Steps node.
    pub(crate) fn evaluate_steps(&mut self, index: Index, mut run: StepsRun) {
        let template = run.template.clone();
        let Kind::Steps(groups) = &template.kind else { return };
        let stopping = self.shutdown_for(self.nodes[index].on_exit).is_some();
        loop {
            let at = run.groups.len().saturating_sub(1);
            if run.groups.is_empty() {
                if groups.is_empty() {
                    break;
                }
                self.begin_group(index, &mut run, groups, 0);
                continue;
            }
            match self.continue_steps(index, &mut run, groups, at, stopping) {
                None => {
                    self.nodes[index].work = Work::Steps(Box::new(run));
                    return;
                }
                Some(Err((phase, message))) => {
                    self.set_outbound(index, &run);
                    self.finish(index, phase, &message);
                    return;
                }
                Some(Ok(())) if at + 1 < groups.len() => self.begin_group(index, &mut run, groups, at + 1),
                Some(Ok(())) => break,
            }
        }
        self.set_outbound(index, &run);
        let declared = run.template.template.outputs.clone();
        match self.with_step_scope(index, groups, &run, |scope| outputs(&declared, scope)) {
            Ok(outputs) => {
                if !outputs.is_empty() {
                    self.nodes.change(index).outputs = Some(outputs);
                }
                self.finish(index, NodePhase::Succeeded, "");
            }
            Err(message) => self.finish(index, NodePhase::Error, &message),
        }
    }

    fn set_outbound(&mut self, index: Index, run: &StepsRun) {
        let Some(group) = run.groups.last() else { return };
        let ids: Vec<String> =
            self.last_of(group.node).into_iter().map(|node| self.nodes[node].status.id.clone()).collect();
        self.nodes.change(index).outbound_nodes = ids;
    }

    /// Outbound nodes of all children of a group, or the group itself.
    fn last_of(&self, group: Index) -> Vec<Index> {
        let children: Vec<Index> = self.nodes[group]
            .status
            .children
            .iter()
            .filter_map(|id| self.nodes.by_id(id))
            .filter(|child| !self.nodes.is_hook(*child))
            .collect();
        if children.is_empty() {
            return vec![group];
        }
        children.into_iter().flat_map(|child| self.nodes.outbound(child)).collect()
    }

    fn begin_group(&mut self, index: Index, run: &mut StepsRun, groups: &[Vec<TaskModel>], at: usize) {
        let frame = &self.nodes[index];
        let name = format!("{}[{at}]", frame.status.name);
        let (on_exit, depth) = (frame.on_exit, frame.depth);
        let node = self.nodes.by_name(&name).unwrap_or_else(|| {
            let call = Call { name, owner: Some(index), boundary: Some(index), on_exit, depth, ..Call::default() };
            let node = self.add_node(&call, NodeType::StepGroup);
            self.nodes.change(node).template_scope.clear();
            node
        });
        let parents = match run.groups.last() {
            None => vec![index],
            Some(last) => self.last_of(last.node),
        };
        for parent in parents {
            self.nodes.attach(parent, node);
        }
        let steps = groups[at].iter().map(|_| TaskRun::default()).collect();
        run.groups.push(StepGroupRun { node, steps });
    }

    /// Goes on with the steps of the current group. `None` while it is running, else whether the next may start.
    fn continue_steps(
        &mut self,
        index: Index,
        run: &mut StepsRun,
        groups: &[Vec<TaskModel>],
        at: usize,
        stopping: bool,
    ) -> Option<Result<(), (NodePhase, String)>> {
        let group = run.groups[at].node;
        let mut all_done = true;
        for (number, step) in groups[at].iter().enumerate() {
            let mut state = std::mem::take(&mut run.groups[at].steps[number]);
            if !state.done {
                self.continue_step(index, groups, run, at, step, &mut state, stopping);
            }
            all_done &= state.done;
            run.groups[at].steps[number] = state;
        }
        if !all_done {
            return None;
        }
        let failed = groups[at].iter().zip(&run.groups[at].steps).find_map(|(step, state)| {
            let tolerated = step.continue_on();
            let nodes = match &state.group {
                Some(items) => items.children.clone(),
                None => state.node.into_iter().collect(),
            };
            nodes.into_iter().find(|node| match self.nodes[*node].status.phase {
                NodePhase::Failed => !tolerated.failed,
                NodePhase::Error => !tolerated.error,
                _ => false,
            })
        });
        if let Some(child) = failed {
            let message = format!("child '{}' failed", self.nodes[child].status.id);
            self.finish(group, NodePhase::Failed, &message);
            return Some(Err((NodePhase::Failed, message)));
        }
        if stopping {
            self.finish(group, NodePhase::Failed, "");
            return Some(Err((NodePhase::Failed, String::new())));
        }
        self.finish(group, NodePhase::Succeeded, "");
        Some(Ok(()))
    }

    #[allow(clippy::too_many_arguments)] // one step in its place among frames; a struct would only rename them
    fn continue_step(
        &mut self,
        index: Index,
        groups: &[Vec<TaskModel>],
        run: &StepsRun,
        at: usize,
        step: &TaskModel,
        state: &mut TaskRun,
        stopping: bool,
    ) {
        let group = run.groups[at].node;
        let prefix = self.nodes[group].status.name.clone();
        let call = |execution: &Self, name: &str| Call {
            name: format!("{prefix}.{name}"),
            ..execution.task_call(index, step, name)
        };
        if state.node.is_none() && state.group.is_none() {
            if stopping {
                state.done = true;
                return;
            }
            if loops::is_loop(&step.task) {
                let items = self.with_step_scope(index, groups, run, |scope| match loops::items(&step.task, scope) {
                    Ok(items) => Ok(items.unwrap_or_default()),
                    Err(error) => match tasks::decide(&step.task, scope) {
                        Decision::Skip(message) => Err((NodePhase::Skipped, message)),
                        _ => Err((NodePhase::Error, error.to_string())),
                    },
                });
                let items = match items {
                    Ok(items) if items.is_empty() => Err((NodePhase::Skipped, "Skipped, empty params".to_owned())),
                    other => other,
                };
                match items {
                    Ok(items) => state.group = Some(GroupRun { items, children: Vec::new() }),
                    Err((phase, message)) => {
                        let call = call(self, &step.task.name);
                        state.node = Some(
                            self.nodes.by_name(&call.name).unwrap_or_else(|| self.add_mark(&call, phase, &message)),
                        );
                    }
                }
            } else {
                let call = call(self, &step.task.name);
                let decision = match self.nodes.by_name(&call.name) {
                    Some(_) => Decision::Run(Default::default()),
                    None => self.with_step_scope(index, groups, run, |scope| tasks::decide(&step.task, scope)),
                };
                state.node = self.carry_out(call, decision);
                if state.node.is_none() {
                    self.defer(index);
                    return;
                }
            }
            if let Some(node) = state.node {
                self.nodes.attach(group, node);
            }
        }
        if let Some(items) = &mut state.group {
            while items.children.len() < items.items.len() && !stopping {
                let number = items.children.len();
                let item = &items.items[number];
                let call = call(self, &names::item_name(&step.task.name, number, item));
                let decision = match self.nodes.by_name(&call.name) {
                    Some(_) => Decision::Run(Default::default()),
                    None => {
                        let item = loops::ItemScope(item);
                        self.with_step_scope(index, groups, run, |scope| {
                            tasks::decide(&step.task, &Chain(vec![&item, scope]))
                        })
                    }
                };
                let Some(child) = self.carry_out(call, decision) else {
                    self.defer(index);
                    return;
                };
                self.nodes.attach(group, child);
                items.children.push(child);
            }
        }
        let nodes: Vec<Index> = match &state.group {
            Some(items) => items.children.clone(),
            None => state.node.into_iter().collect(),
        };
        let ended = nodes.iter().all(|node| self.nodes[*node].status.phase.is_fulfilled());
        if let Some(node) = state.node {
            for (name, hook) in &step.hooks {
                if state.hooks.contains_key(name) || self.stop_message(self.nodes[index].on_exit).is_some() {
                    continue;
                }
                let known = self.nodes.by_name(&hooks::node_name(&self.nodes[node].status.name, Some(name)));
                let wanted = match known {
                    Some(_) => Wanted::Yes(Decision::Run(Default::default())),
                    None => {
                        self.with_own_scope(index, groups, run, step, node, |scope| hooks::decide(hook, ended, scope))
                    }
                };
                if let Wanted::Yes(decision) = wanted {
                    match self.start_hook(index, node, Some(name), &hook.template, decision) {
                        Some(started) => drop(state.hooks.insert(name.clone(), started)),
                        None => self.defer(index),
                    }
                }
            }
        }
        if !ended || state.hooks.values().any(|hook| !self.nodes[*hook].status.phase.is_fulfilled()) {
            return;
        }
        if let (Some(hook), Some(node)) = (&step.exit_hook, state.node) {
            let completed = self.nodes[node].status.phase.is_completed();
            if completed && state.hook.is_none() && self.workflow.spec.shutdown.as_deref() != Some("Terminate") {
                let wanted =
                    self.with_own_scope(index, groups, run, step, node, |scope| hooks::decide(hook, true, scope));
                if let Wanted::Yes(decision) = wanted {
                    state.hook = self.start_hook(index, node, None, &hook.template, decision);
                    if state.hook.is_none() {
                        self.defer(index);
                        return;
                    }
                }
            }
            if state.hook.is_some_and(|hook| !self.nodes[hook].status.phase.is_fulfilled()) {
                return;
            }
        }
        state.done = true;
    }

    /// As [`Execution::with_step_scope`], with the variables of the step itself, whose state is not in the frame while
    /// it is worked on.
    fn with_own_scope<T>(
        &self,
        index: Index,
        groups: &[Vec<TaskModel>],
        run: &StepsRun,
        step: &TaskModel,
        node: Index,
        function: impl FnOnce(&dyn Scope) -> T,
    ) -> T {
        let find = |name: &str| {
            (name == step.task.name).then(|| Producer {
                node: Some(node),
                items: None,
                template: step.task.template.clone(),
            })
        };
        let own = ProducerScope { prefix: "steps", nodes: &self.nodes, model: &self.model, find: &find };
        let own = OnlyKnown { name: &step.task.name, scope: &own };
        self.with_step_scope(index, groups, run, |scope| function(&Chain(vec![&own, scope])))
    }

    /// Calls a function with the variables that a step sees: those of all groups before.
    fn with_step_scope<T>(
        &self,
        index: Index,
        groups: &[Vec<TaskModel>],
        run: &StepsRun,
        function: impl FnOnce(&dyn Scope) -> T,
    ) -> T {
        let find = |name: &str| {
            run.groups.iter().zip(groups).find_map(|(states, steps)| {
                let at = steps.iter().position(|step| step.task.name == name)?;
                producer(&states.steps[at], &steps[at])
            })
        };
        let producers = ProducerScope { prefix: "steps", nodes: &self.nodes, model: &self.model, find: &find };
        let inputs = InputScope(self.nodes[index].status.inputs.as_ref());
        let artifacts = tasks::Artifacts { producers: &producers, inputs: self.nodes[index].status.inputs.as_ref() };
        function(&Chain(vec![&inputs, &producers, &artifacts, &self.globals]))
    }
}
