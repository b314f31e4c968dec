//! Begin and end of a Workflow: claims, the entry, the exit handler, deadlines and shutdown.

use crate::execution::{Call, Effect, Execution, MAX_DEPTH, Stage, Started};
use crate::nodes::Index;
use chrono::{DateTime, Duration, Utc};
use kfp_core::argo::{Condition, NodePhase, NodeType, WorkflowPhase};
use serde_json::{Value, json};

/// Members of a spec or template that only tell or save something.
const IGNORED: [&str; 3] = ["memoize", "metrics", "artifactGC"];

impl Execution {
    pub(crate) fn begin(&mut self) {
        self.stage = Stage::Main;
        self.status.started_at = Some(self.now.into());
        self.set_phase(WorkflowPhase::Running, "");
        self.set_condition("PodRunning", "False");
        if self.broken.is_some() {
            return;
        }
        self.warn_of_ignored();
        self.status.artifact_repository_ref = crate::repository::reference(&self.repository, &self.model);
        let name = self.workflow.metadata.name.clone();
        let claims: Vec<Value> = self.model.spec.volume_claim_templates.clone();
        for claim in &claims {
            let Some(template) = claim["metadata"]["name"].as_str() else { continue };
            let claim_name = format!("{name}-{template}");
            let mut object = claim.clone();
            object["apiVersion"] = json!("v1");
            object["kind"] = json!("PersistentVolumeClaim");
            object["metadata"]["name"] = json!(claim_name);
            object["metadata"]["namespace"] = json!(self.workflow.metadata.namespace);
            object["metadata"]["ownerReferences"] = json!([{
                "apiVersion": kfp_core::argo::API_VERSION, "kind": kfp_core::argo::KIND, "name": name,
                "uid": self.workflow.metadata.uid, "controller": true, "blockOwnerDeletion": true,
            }]);
            if let Some(members) = object.as_object_mut() {
                members.remove("status");
            }
            self.status
                .persistent_volume_claims
                .push(json!({"name": template, "persistentVolumeClaim": {"claimName": claim_name}}));
            self.effects.push(Effect::CreateClaim(object));
        }
        if !claims.is_empty() {
            self.stage = Stage::Claims(self.effects.len());
            self.set_claim_volumes();
        }
    }

    /// Says which members of the spec have no effect here.
    fn warn_of_ignored(&mut self) {
        let spec = IGNORED.iter().filter(|member| self.model.spec.extra.contains_key(**member));
        let mut ignored: Vec<String> = spec.map(|member| format!("spec.{member}")).collect();
        for (name, template) in &self.model.templates {
            let members = IGNORED.iter().filter(|member| template.template.extra.contains_key(**member));
            ignored.extend(members.map(|member| format!("templates.{name}.{member}")));
        }
        if !ignored.is_empty() {
            ignored.sort();
            self.status.conditions.push(Condition {
                kind: "SpecWarning".to_owned(),
                status: "True".to_owned(),
                message: format!("without effect in this engine: {}", ignored.join(", ")),
            });
        }
    }

    pub(crate) fn set_claim_volumes(&mut self) {
        self.claim_volumes = self.status.persistent_volume_claims.clone();
    }

    /// Starts the entry, works off the queue, then goes on to the exit handler and the end.
    pub(crate) fn advance(&mut self) {
        let name = self.workflow.metadata.name.clone();
        loop {
            while let Some(index) = self.queue.pop_front() {
                self.queued.remove(&index);
                self.evaluate(index);
            }
            let progressed = match self.stage {
                Stage::Main => self.advance_main(&name),
                Stage::Exit => self.advance_exit(&name),
                _ => false,
            };
            if !progressed {
                return;
            }
        }
    }

    fn advance_main(&mut self, name: &str) -> bool {
        let entry = match self.nodes.by_name(name) {
            Some(entry) if self.nodes[entry].status.phase.is_fulfilled() || self.nodes[entry].is_taken_up() => entry,
            _ => {
                let entrypoint = self.model.spec.entrypoint.clone();
                let mut parameters = self.model.spec.arguments.parameters.clone();
                for parameter in &mut parameters {
                    parameter.value = self.globals.parameter(&parameter.name).map(str::to_owned);
                }
                let artifacts = self.model.spec.arguments.artifacts.clone();
                let call =
                    Call { name: name.to_owned(), template: &entrypoint, parameters, artifacts, ..Call::default() };
                return matches!(self.execute(call), Started::Node(_));
            }
        };
        let status = &self.nodes[entry].status;
        let ended = status.phase.is_fulfilled();
        let phase = if ended { outcome(status.phase) } else { WorkflowPhase::Running };
        let message = status.message.clone();
        self.globals.set("workflow.status", phase.as_str());
        let (started, hooks_done) = self.workflow_hooks(entry);
        if started || !ended || !hooks_done {
            return started;
        }
        if self.exit_template().is_some() && self.workflow.spec.shutdown.as_deref() != Some("Terminate") {
            self.globals.set("workflow.failures", self.failures());
            let started = self.status.started_at.map_or(self.now, |time| time.0);
            let seconds = (self.now - started).num_milliseconds() as f64 / 1000.0;
            self.globals.set("workflow.duration", format!("{seconds:.6}"));
            self.stage = Stage::Exit;
            return true;
        }
        self.end(phase, &message);
        true
    }

    fn advance_exit(&mut self, name: &str) -> bool {
        let exit_name = format!("{name}.onExit");
        let exit = match self.nodes.by_name(&exit_name) {
            Some(exit) if self.nodes[exit].status.phase.is_fulfilled() => exit,
            Some(exit) if self.nodes[exit].is_taken_up() => return false,
            _ => {
                let Some((template, mut parameters)) = self.exit_template() else { return false };
                for parameter in &mut parameters {
                    let text = parameter.value.clone().unwrap_or_default();
                    if let Ok(value) = crate::substitute::text(&text, &self.globals) {
                        parameter.value = Some(value.into_owned());
                    }
                }
                let call = Call { name: exit_name, template: &template, parameters, on_exit: true, ..Call::default() };
                return matches!(self.execute(call), Started::Node(_));
            }
        };
        let entry = self.nodes.by_name(name).map(|entry| &self.nodes[entry].status);
        let (main, message) = entry.map_or((WorkflowPhase::Error, ""), |entry| (outcome(entry.phase), &entry.message));
        let exit = &self.nodes[exit].status;
        let (phase, message) = match outcome(exit.phase) {
            failed if main == WorkflowPhase::Succeeded && failed != main => (failed, exit.message.clone()),
            _ => (main, message.to_owned()),
        };
        self.end(phase, &message);
        true
    }

    /// `workflow.failures`: a quoted JSON list of the failed nodes.
    fn failures(&self) -> String {
        let failed: Vec<Value> = self
            .node_statuses()
            .filter(|node| node.phase.is_failure() && node.kind == NodeType::Pod)
            .map(|node| {
                json!({"displayName": node.display_name, "message": node.message, "templateName": node.template_name,
                    "phase": node.phase, "podName": self.pod_name(node), "finishedAt": node.finished_at})
            })
            .collect();
        let list = if failed.is_empty() { "null".to_owned() } else { Value::Array(failed).to_string() };
        Value::String(list).to_string()
    }

    pub(crate) fn end(&mut self, phase: WorkflowPhase, message: &str) {
        let message = match &self.workflow.spec.shutdown {
            Some(strategy) if !strategy.is_empty() => format!("Stopped with strategy '{strategy}'"),
            _ => message.to_owned(),
        };
        self.status.finished_at = Some(self.now.into());
        self.set_condition("PodRunning", "False");
        self.set_condition("Completed", "True");
        self.set_phase(phase, &message);
        let policy = self.model.spec.volume_claim_gc.as_ref().and_then(|gc| gc["strategy"].as_str());
        if phase == WorkflowPhase::Succeeded || policy == Some("OnWorkflowCompletion") {
            for claim in std::mem::take(&mut self.status.persistent_volume_claims) {
                if let Some(name) = claim["persistentVolumeClaim"]["claimName"].as_str() {
                    self.effects.push(Effect::DeleteClaim { name: name.to_owned() });
                }
            }
        }
        self.stage = Stage::Done;
    }

    fn set_phase(&mut self, phase: WorkflowPhase, message: &str) {
        self.status.phase = phase;
        self.status.message = message.to_owned();
        self.status_changed = true;
        self.labels_changed = true;
    }

    pub(crate) fn set_condition(&mut self, kind: &str, value: &str) {
        match self.status.conditions.iter_mut().find(|condition| condition.kind == kind) {
            Some(condition) if condition.status == value => return,
            Some(condition) => condition.status = value.to_owned(),
            None => self.status.conditions.push(Condition {
                kind: kind.to_owned(),
                status: value.to_owned(),
                ..Condition::default()
            }),
        }
        self.status_changed = true;
    }

    /// When everything that is no exit handler has to end.
    pub(crate) fn deadline(&self) -> Option<DateTime<Utc>> {
        let seconds = self.workflow.spec.active_deadline_seconds?;
        let started = self.status.started_at?.0;
        let started = DateTime::from_timestamp(started.timestamp(), 0)?;
        started.checked_add_signed(Duration::try_seconds(seconds)?)
    }

    /// Strategy of a shutdown that concerns this node.
    pub(crate) fn shutdown_for(&self, on_exit: bool) -> Option<&str> {
        let strategy = self.workflow.spec.shutdown.as_deref().filter(|strategy| !strategy.is_empty())?;
        (!on_exit || strategy == "Terminate").then_some(strategy)
    }

    /// Why no pod may run for such a node any more, as the message of nodes whose pod would only now be made.
    pub(crate) fn stop_message(&self, on_exit: bool) -> Option<String> {
        if let Some(strategy) = self.shutdown_for(on_exit) {
            return Some(format!("workflow shutdown with strategy: {strategy}"));
        }
        let passed = !on_exit && self.deadline().is_some_and(|deadline| deadline <= self.now);
        passed.then(|| "Step exceeded its deadline".to_owned())
    }

    /// Ends pods that a shutdown or the deadline concerns, once per reason.
    pub(crate) fn enforce_stop(&mut self) {
        let reason = match (self.shutdown_for(false), self.stop_message(false)) {
            (Some(strategy), _) => strategy.to_owned(),
            (None, Some(_)) => "deadline".to_owned(),
            (None, None) => {
                self.stopped_for = None;
                return;
            }
        };
        if self.stopped_for.as_ref() == Some(&reason) {
            return;
        }
        self.stopped_for = Some(reason);
        for index in self.nodes.indexes() {
            let node = &self.nodes[index];
            if node.status.phase.is_fulfilled() || !matches!(node.status.kind, NodeType::Pod | NodeType::Suspend) {
                continue;
            }
            let on_exit = node.on_exit || self.is_exit(index);
            let Some(mut message) = self.stop_message(on_exit) else { continue };
            if node.status.kind == NodeType::Pod {
                let name = self.pod_name(&node.status);
                self.effects.push(Effect::StopPod { name });
                message = message.replace("strategy: ", "strategy:  ");
            } else if let Some(strategy) = self.shutdown_for(on_exit) {
                message = format!("Stopped with strategy '{strategy}'");
            }
            self.finish(index, NodePhase::Failed, &message);
        }
        // Frames that wait for a retry, a free place or a shutdown look again.
        for index in self.nodes.indexes() {
            self.wake(index);
        }
    }

    /// True when the node or a boundary around it is made by a hook. Tells exit handlers apart in a status that was
    /// loaded, before the nodes are taken up again.
    fn is_exit(&self, index: Index) -> bool {
        let mut at = Some(index);
        for _ in 0..=MAX_DEPTH {
            let Some(index) = at else { return false };
            let status = &self.nodes[index].status;
            if self.nodes.is_hook(index) || (status.boundary_id.is_empty() && status.name.ends_with(".onExit")) {
                return true;
            }
            at = self.nodes[index].boundary;
        }
        false
    }
}

/// Phase of a Workflow whose entry ended in this phase.
fn outcome(phase: NodePhase) -> WorkflowPhase {
    match phase {
        NodePhase::Succeeded | NodePhase::Skipped | NodePhase::Omitted => WorkflowPhase::Succeeded,
        NodePhase::Failed => WorkflowPhase::Failed,
        _ => WorkflowPhase::Error,
    }
}
