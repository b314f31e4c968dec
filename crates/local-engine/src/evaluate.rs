//! Takes up a node's work and goes on with it.

use crate::execution::Execution;
use crate::frames::{DagRun, RetryRun, StepsRun, Work};
use crate::model::{Kind, TemplateModel};
use crate::nodes::Index;
use chrono::{DateTime, Utc};
use kfp_core::argo::{NodePhase, NodeType};
use std::sync::Arc;

impl Execution {
    /// Gives an unfulfilled node the state it needs to go on, and puts it into the queue.
    pub(crate) fn take_up(&mut self, index: Index, template: &Arc<TemplateModel>) {
        let kind = self.nodes[index].status.kind;
        let work = match (kind, &template.kind) {
            (NodeType::Retry, _) => {
                Work::Retry(Box::new(RetryRun { template: template.clone(), attempts: Vec::new(), not_before: None }))
            }
            (NodeType::Pod, Kind::Pod) => Work::Pod,
            (NodeType::Dag, Kind::Dag(dag)) => Work::Dag(Box::new(DagRun::new(template.clone(), dag.tasks.len()))),
            (NodeType::Steps, Kind::Steps(_)) => {
                Work::Steps(Box::new(StepsRun { template: template.clone(), groups: Vec::new() }))
            }
            (NodeType::Suspend, Kind::Suspend) => Work::Suspend(self.resume_time(index, template)),
            _ => {
                let message = format!("node of type {} does not fit its template", kind.as_str());
                self.finish(index, NodePhase::Error, &message);
                return;
            }
        };
        if let Work::Suspend(Some(due)) = work {
            self.wake_at(due, index);
        }
        self.nodes[index].work = work;
        self.wake(index);
    }

    /// When a suspend template goes on by itself.
    fn resume_time(&self, index: Index, template: &TemplateModel) -> Option<DateTime<Utc>> {
        let duration = template.template.suspend.as_ref()?["duration"].as_str()?.to_owned();
        let node = &self.nodes[index];
        let inputs = crate::variables::InputScope(node.status.inputs.as_ref());
        let scope = crate::substitute::Chain(vec![&inputs, &self.globals]);
        let text = crate::substitute::text(&duration, &scope).ok()?;
        let seconds = crate::retry::seconds(&text).ok()?;
        Some(node.status.started_at?.0 + chrono::Duration::milliseconds((seconds * 1000.0) as i64))
    }

    /// Goes on with a frame.
    pub(crate) fn evaluate(&mut self, index: Index) {
        if self.nodes[index].status.phase.is_fulfilled() {
            return;
        }
        match std::mem::take(&mut self.nodes[index].work) {
            Work::None => {}
            Work::Pod => self.nodes[index].work = Work::Pod,
            Work::Dag(run) => self.evaluate_dag(index, *run),
            Work::Steps(run) => self.evaluate_steps(index, *run),
            Work::Retry(run) => self.evaluate_retry(index, *run),
            Work::Suspend(due) => match due {
                Some(due) if due <= self.now => self.go_on(index, ""),
                due => self.nodes[index].work = Work::Suspend(due),
            },
        }
        self.clear_waiting(index);
    }
}
