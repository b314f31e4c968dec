//! Lifecycle hooks: templates that run beside a node as soon as an expression is true, or when the node has ended.

use crate::execution::{Call, Execution, Started};
use crate::expression;
use crate::nodes::Index;
use crate::substitute::Scope;
use crate::tasks::{self, Decision};
use kfp_core::argo::{Hook, NodePhase, Parameter};

/// What is to become of a hook.
pub(crate) enum Wanted {
    /// Its expression is not true (yet).
    No,
    /// Run it.
    Yes(Decision),
}

/// Decides about a hook. An expression that cannot be evaluated counts only when the node has ended: until then what
/// it names may still come.
pub(crate) fn decide(hook: &Hook, ended: bool, scope: &dyn Scope) -> Wanted {
    if let Some(expression) = &hook.expression {
        match expression::truth(expression, scope) {
            Ok(true) => {}
            Ok(false) => return Wanted::No,
            Err(_) if !ended => return Wanted::No,
            Err(error) => return Wanted::Yes(Decision::Fail(error.to_string())),
        }
    }
    let arguments = tasks::arguments(&hook.arguments, scope);
    Wanted::Yes(arguments.map_or_else(|error| Decision::Fail(error.to_string()), Decision::Run))
}

impl Execution {
    /// Starts a hook of a node; `None` when a parallelism limit is reached. `name` is that of the hook, none for the
    /// exit hook.
    pub(crate) fn start_hook(
        &mut self,
        index: Index,
        node: Index,
        name: Option<&str>,
        template: &str,
        decision: Decision,
    ) -> Option<Index> {
        let frame = &self.nodes[index];
        let of = &self.nodes[node].status.name;
        let call = Call {
            name: node_name(of, name),
            template,
            owner: Some(index),
            boundary: Some(index),
            on_exit: name.is_none() || frame.on_exit,
            hooked: true,
            depth: frame.depth + 1,
            ..Call::default()
        };
        let hook = self.carry_out(call, decision)?;
        self.nodes.attach(node, hook);
        Some(hook)
    }

    /// Starts hooks of the workflow whose expressions are true. Says whether one was started, and whether all that
    /// were started have ended.
    pub(crate) fn workflow_hooks(&mut self, entry: Index) -> (bool, bool) {
        let hooks: Vec<(String, Hook)> = self
            .model
            .spec
            .hooks
            .iter()
            .filter(|(name, _)| *name != "exit")
            .map(|(n, h)| (n.clone(), h.clone()))
            .collect();
        let ended = self.nodes[entry].status.phase.is_fulfilled();
        let (mut started, mut done) = (false, true);
        for (name, hook) in hooks {
            let full = node_name(&self.workflow.metadata.name, Some(&name));
            let known = self.nodes.by_name(&full);
            if let Some(known) = known
                && (self.nodes[known].status.phase.is_fulfilled() || self.nodes[known].is_taken_up())
            {
                done &= self.nodes[known].status.phase.is_fulfilled();
                continue;
            }
            let decision = match known {
                Some(_) => Decision::Run(Default::default()),
                None if self.stop_message(false).is_some() => continue,
                None => match decide(&hook, ended, &self.globals) {
                    Wanted::No => continue,
                    Wanted::Yes(decision) => decision,
                },
            };
            let call = Call { name: full, template: &hook.template, hooked: true, depth: 1, ..Call::default() };
            let node = match decision {
                Decision::Run(arguments) => {
                    match self.execute(Call {
                        parameters: arguments.parameters,
                        artifacts: arguments.artifacts,
                        ..call
                    }) {
                        Started::Node(node) => Some(node),
                        Started::Deferred => None,
                    }
                }
                Decision::Fail(why) | Decision::Skip(why) => Some(self.add_mark(&call, NodePhase::Error, &why)),
            };
            if let Some(node) = node {
                self.nodes.attach(entry, node);
                started = true;
            }
            done = false;
        }
        (started, done)
    }

    /// Template and parameters of the workflow's exit handler, if it is to run.
    pub(crate) fn exit_template(&self) -> Option<(String, Vec<Parameter>)> {
        let spec = &self.model.spec;
        match (spec.hooks.get("exit"), &spec.on_exit) {
            (Some(hook), _) => {
                let wanted = hook.expression.as_ref().is_none_or(|expression| {
                    // One that fails is an error of its node, so the handler is run and tells.
                    expression::truth(expression, &self.globals).unwrap_or(true)
                });
                wanted.then(|| (hook.template.clone(), hook.arguments.parameters.clone()))
            }
            (None, Some(template)) => Some((template.clone(), spec.arguments.parameters.clone())),
            (None, None) => None,
        }
    }
}

/// Name of a hook's node.
pub(crate) fn node_name(of: &str, name: Option<&str>) -> String {
    name.map_or_else(|| format!("{of}.onExit"), |name| format!("{of}.hooks.{name}"))
}
