//! Suspend nodes: they wait for a time, or for somebody who sets their phase and, with it, their outputs.

use crate::execution::Execution;
use crate::nodes::Index;
use kfp_core::argo::{NodePhase, NodeStatus, Outputs, Parameter, Template};

/// Outputs of a suspend template that somebody is to supply.
pub(crate) fn asked(template: &Template) -> Option<Outputs> {
    let supplied =
        |parameter: &&Parameter| parameter.value_from.as_ref().is_some_and(|from| from.extra.contains_key("supplied"));
    let parameters: Vec<Parameter> = template.outputs.parameters.iter().filter(supplied).cloned().collect();
    (!parameters.is_empty()).then(|| Outputs { parameters, ..Outputs::default() })
}

impl Execution {
    /// Takes over what somebody made of a suspend node.
    pub(crate) fn edit_suspended(&mut self, index: Index, edited: &NodeStatus) {
        let given = edited.outputs.iter().flat_map(|outputs| &outputs.parameters);
        let given: Vec<(String, String)> =
            given.filter_map(|parameter| Some((parameter.name.clone(), parameter.value.clone()?))).collect();
        if let Some(outputs) = &self.nodes[index].status.outputs {
            let mut outputs = outputs.clone();
            for parameter in &mut outputs.parameters {
                let value = given.iter().find(|(name, _)| *name == parameter.name).map(|(_, value)| value.clone());
                parameter.value = value.or_else(|| parameter.value.take());
            }
            if self.nodes[index].status.outputs.as_ref() != Some(&outputs) {
                self.nodes.change(index).outputs = Some(outputs);
            }
        }
        match edited.phase {
            NodePhase::Succeeded => self.go_on(index, &edited.message),
            phase if phase.is_fulfilled() => self.finish(index, phase, &edited.message),
            _ => {}
        }
    }

    /// Ends a suspend node; outputs that nobody supplied get their defaults.
    pub(crate) fn go_on(&mut self, index: Index, message: &str) {
        if let Some(outputs) = &self.nodes[index].status.outputs {
            let mut outputs = outputs.clone();
            for parameter in &mut outputs.parameters {
                let default = parameter.value_from.as_ref().and_then(|from| from.default.clone());
                parameter.value = parameter.value.take().or(default);
            }
            if let Some(open) = outputs.parameters.iter().find(|parameter| parameter.value.is_none()) {
                let why =
                    format!("raw output parameter '{}' has not been set and does not have a default value", open.name);
                self.finish(index, NodePhase::Error, &why);
                return;
            }
            self.nodes.change(index).outputs = Some(outputs);
        }
        self.finish(index, NodePhase::Succeeded, message);
        self.export_globals(index);
    }
}
