//! What holds for every Workflow, however its pods end, in whatever order, and wherever the engine dies.
#![allow(clippy::unwrap_used, clippy::panic)] // test code

mod common;

use chrono::{DateTime, Duration, Utc};
use common::{complete, node_name, start};
use kfp_core::argo::{NodePhase, NodeStatus, NodeType, Workflow, WorkflowPhase, names};
use kfp_local_engine::execution::{Effect, Event, Execution};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One task of a random DAG.
#[derive(Clone, Debug)]
struct Task {
    needs: u8,
    kind: u8,
    flavour: u8,
}

#[derive(Clone, Debug)]
struct Plan {
    tasks: Vec<Task>,
    parallelism: u8,
    pods: u8,
    exit: bool,
    /// Decides which pods fail.
    seed: u64,
}

fn plans() -> impl Strategy<Value = Plan> {
    let task = (any::<u8>(), 0..9u8, any::<u8>()).prop_map(|(needs, kind, flavour)| Task { needs, kind, flavour });
    (proptest::collection::vec(task, 1..7), 0..3u8, 0..4u8, any::<bool>(), any::<u64>())
        .prop_map(|(tasks, parallelism, pods, exit, seed)| Plan { tasks, parallelism, pods, exit, seed })
}

fn build(plan: &Plan) -> Workflow {
    let tasks: Vec<Value> = plan.tasks.iter().enumerate().map(|(at, task)| one(plan, at, task)).collect();
    let pod = |name: &str, more: Value| {
        let mut template = json!({"name": name, "inputs": {"parameters": [{"name": "x", "default": "d"}]},
            "outputs": {"parameters": [{"name": "o", "valueFrom": {"path": "/tmp/o", "default": "none"}}]},
            "container": {"image": "i", "command": ["run", "{{inputs.parameters.x}}"]}});
        template.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        template
    };
    let inner = json!([
        {"name": "first", "template": "pod"},
        {"name": "second", "template": "pod", "depends": "first", "arguments": {"parameters": [{"name": "x", "value": "{{tasks.first.outputs.parameters.o}}"}]}}]);
    let mut workflow = json!({
        "metadata": {"name": "wf"},
        "spec": {"entrypoint": "main", "parallelism": plan.pods, "templates": [
            {"name": "main", "parallelism": plan.parallelism, "dag": {"tasks": tasks}},
            pod("pod", json!({})),
            pod("retried", json!({"retryStrategy": {"limit": 2, "backoff": {"duration": "7"}}})),
            {"name": "inner", "dag": {"tasks": inner}},
            {"name": "groups", "steps": [
                [{"name": "a", "template": "pod"}, {"name": "b", "template": "retried", "continueOn": {"failed": true}}],
                [{"name": "c", "template": "pod", "withItems": [1, {"k": "v"}]}]]},
            {"name": "pause", "suspend": {"duration": "5"}},
            pod("note", json!({})),
        ]},
    });
    if plan.exit {
        workflow["spec"]["onExit"] = json!("note");
    }
    complete(&mut workflow);
    serde_json::from_value(workflow).unwrap()
}

fn one(plan: &Plan, at: usize, task: &Task) -> Value {
    let needs: Vec<usize> = (0..at).filter(|need| task.needs & (1 << need) != 0).collect();
    let join = |with: &dyn Fn(usize) -> String| needs.iter().map(|need| with(*need)).collect::<Vec<_>>().join(" && ");
    let mut value = json!({"name": format!("t{at}"), "template": "pod"});
    if !needs.is_empty() {
        value["depends"] = json!(match task.flavour % 4 {
            0 => join(&|need| format!("t{need}.Succeeded")),
            1 => join(&|need| format!("t{need}")),
            2 => join(&|need| format!("(t{need}.Succeeded || t{need}.Failed || t{need}.Skipped)")),
            _ => join(&|need| format!("!t{need}.Failed")),
        });
        value["arguments"] = json!({"parameters": [{"name": "x", "value": format!("of t{}", needs[0])}]});
    }
    match task.kind {
        1 => value["template"] = json!("retried"),
        2 => value["template"] = json!("inner"),
        3 => value["template"] = json!("groups"),
        4 => value["withItems"] = json!(["a", "b", "c"]),
        5 => {
            value["template"] = json!("inner");
            value["withSequence"] = json!({"count": task.flavour % 3});
        }
        6 => {
            let own = format!("tasks.t{at}.status == 'Succeeded'");
            value["hooks"] = json!({"exit": {"template": "note"}, "good": {"template": "note", "expression": own}});
        }
        7 => value["when"] = json!(format!("{} == 1", task.flavour % 2)),
        8 => value["template"] = json!("pause"),
        _ => {}
    }
    if task.flavour & 64 != 0 && plan.seed & 1 != 0 {
        value["continueOn"] = json!({"failed": true});
    }
    value
}

/// The engine with a pod runner whose pods end as their names say.
struct Sim {
    execution: Execution,
    seed: u64,
    now: DateTime<Utc>,
    /// The Workflow as written, and as it was written before.
    object: String,
    before: String,
    pods: BTreeMap<String, Value>,
    open: Vec<String>,
    phases: BTreeMap<String, NodePhase>,
    /// All that was applied, for a replay.
    recorded: Vec<(DateTime<Utc>, Option<Event>)>,
    effects: Vec<Effect>,
}

impl Sim {
    fn new(workflow: &Workflow, seed: u64) -> Sim {
        let object = json!(workflow).to_string();
        Sim {
            execution: Execution::new(workflow.clone(), start()),
            seed,
            now: start(),
            before: object.clone(),
            object,
            pods: BTreeMap::new(),
            open: Vec::new(),
            phases: BTreeMap::new(),
            recorded: Vec::new(),
            effects: Vec::new(),
        }
    }

    fn apply(&mut self, event: Event) {
        self.recorded.push((self.now, Some(event.clone())));
        self.execution.apply(event, self.now);
    }

    /// Lets the engine work; `write` says whether what changed gets written.
    fn settle(&mut self, write: bool) {
        loop {
            self.recorded.push((self.now, None));
            let effects = self.execution.run(self.now);
            self.check_phases();
            if write && let Some(changes) = self.execution.take_changes() {
                self.before = std::mem::take(&mut self.object);
                self.object = changes.into_edits().apply(&self.before).unwrap();
            }
            if effects.is_empty() {
                return;
            }
            self.effects.extend(effects.iter().cloned());
            for effect in effects {
                match effect {
                    Effect::CreatePod { pod, .. } => {
                        let name = pod["metadata"]["name"].as_str().unwrap().to_owned();
                        // The API refuses a second pod of a name and shows the first, as the shell then tells.
                        match self.pods.get(&name).cloned() {
                            Some(known) => self.apply(Event::Pod(Arc::new(known))),
                            None => {
                                self.open.push(name.clone());
                                self.pods.insert(name, pod);
                            }
                        }
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn check_phases(&mut self) {
        let rank = |phase: NodePhase| match phase {
            NodePhase::Unknown => 0,
            NodePhase::Pending => 1,
            NodePhase::Running => 2,
            _ => 3,
        };
        for node in self.execution.node_statuses() {
            let old = self.phases.insert(node.name.clone(), node.phase).unwrap_or_default();
            let (before, after) = (rank(old), rank(node.phase));
            assert!(before < after || old == node.phase, "{} went from {old:?} to {:?}", node.name, node.phase);
        }
    }

    /// Something happens: the pod at this place starts or ends, or time passes. False when nothing can.
    fn happen(&mut self, choice: u8) -> bool {
        if self.open.is_empty() {
            let Some(due) = self.execution.next_wakeup() else { return false };
            self.now = due.max(self.now);
            return true;
        }
        let place = usize::from(choice / 2) % self.open.len();
        let name = self.open[place].clone();
        self.now += Duration::seconds(1);
        let pod = self.pods.get_mut(&name).unwrap();
        if choice.is_multiple_of(2) && pod["status"]["phase"] != "Running" {
            pod["status"] = json!({"phase": "Running"});
        } else {
            self.open.remove(place);
            let bad = fails(&name, self.seed);
            let finished = kfp_core::argo::Timestamp(self.now).to_string();
            pod["status"] = json!({"phase": if bad { "Failed" } else { "Succeeded" }, "containerStatuses": [
                {"name": "main", "state": {"terminated": {"exitCode": u8::from(bad), "finishedAt": finished}}}]});
            let outputs = json!({"parameters": [{"name": "o", "value": format!("out of {name}")}]});
            pod["metadata"]["annotations"][names::ANNOTATION_OUTPUTS] = json!(outputs.to_string());
        }
        let event = Event::Pod(Arc::new(pod.clone()));
        self.apply(event);
        true
    }

    /// The engine dies and starts on what is stored.
    fn crash(&mut self, stored: &str) {
        self.object = stored.to_owned();
        self.before = stored.to_owned();
        self.execution = Execution::new(serde_json::from_str(stored).unwrap(), self.now);
        self.phases.clear();
        for pod in self.pods.values().cloned().collect::<Vec<_>>() {
            self.execution.apply(Event::Pod(Arc::new(pod)), self.now);
        }
    }

    fn finish(&mut self, order: &[u8]) {
        let mut choices = order.iter().copied().cycle();
        for _ in 0..5000 {
            self.settle(true);
            if self.execution.is_done() {
                return;
            }
            assert!(self.happen(choices.next().unwrap_or(1)), "nothing can happen, but the workflow has not ended");
        }
        panic!("no end");
    }

    fn outcome(&self) -> (WorkflowPhase, BTreeMap<String, NodePhase>) {
        let workflow: Workflow = serde_json::from_str(&self.object).unwrap();
        (workflow.status.phase, workflow.status.nodes.into_values().map(|node| (node.name, node.phase)).collect())
    }
}

fn fails(name: &str, seed: u64) -> bool {
    let hash = name.bytes().fold(seed | 1, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash >> 17) % 5 == 0
}

/// Children decide about their parents.
fn check_tree(written: &Workflow) {
    let nodes = &written.status.nodes;
    let hooked = |node: &NodeStatus| node.node_flag.is_some_and(|flag| flag.hooked);
    for node in nodes.values() {
        assert!(node.phase.is_fulfilled(), "{} is {:?} at the end", node.name, node.phase);
        assert!(node.finished_at.is_some() && node.finished_at >= node.started_at, "{}", node.name);
        let own: Vec<&NodeStatus> = node.children.iter().map(|id| &nodes[id]).filter(|child| !hooked(child)).collect();
        let failed = own.iter().any(|child| child.phase.is_failure());
        match node.kind {
            NodeType::Retry => assert_eq!(own.last().map(|child| child.phase), Some(node.phase), "{}", node.name),
            NodeType::TaskGroup => assert_eq!(node.phase.is_failure(), failed, "{}", node.name),
            NodeType::Dag | NodeType::Steps if node.phase.is_failure() => {
                let inside = nodes.values().filter(|other| other.boundary_id == node.id && !hooked(other));
                assert!(inside.into_iter().any(|other| other.phase.is_failure()), "{} failed by itself", node.name);
            }
            _ => {}
        }
    }
    let main = nodes[&written.metadata.name].phase;
    let all_good = nodes.values().all(|node| !node.phase.is_failure());
    assert!(!all_good || written.status.phase == WorkflowPhase::Succeeded);
    assert!(main != NodePhase::Failed || written.status.phase == WorkflowPhase::Failed);
    assert_eq!(written.label(names::LABEL_COMPLETED), Some("true"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_workflow_ends_and_children_decide(plan in plans(), order in proptest::collection::vec(any::<u8>(), 1..40)) {
        let mut sim = Sim::new(&build(&plan), plan.seed);
        sim.finish(&order);
        check_tree(&serde_json::from_str(&sim.object).unwrap());
        let created: Vec<&str> = sim.effects.iter().map(|effect| match effect {
            Effect::CreatePod { node, .. } => node.as_str(),
            _ => "",
        }).collect();
        let distinct: BTreeSet<&str> = created.iter().copied().collect();
        prop_assert_eq!(created.len(), distinct.len(), "a node was started twice: {:?}", created);
    }

    #[test]
    fn recorded_events_lead_to_the_same_end(plan in plans(), order in proptest::collection::vec(any::<u8>(), 1..40)) {
        let workflow = build(&plan);
        let mut sim = Sim::new(&workflow, plan.seed);
        sim.finish(&order);
        let mut again = Execution::new(workflow.clone(), start());
        let (mut effects, mut object) = (Vec::new(), json!(workflow).to_string());
        for (now, event) in sim.recorded {
            match event {
                Some(event) => again.apply(event, now),
                None => effects.extend(again.run(now)),
            }
        }
        if let Some(changes) = again.take_changes() {
            object = changes.into_edits().apply(&object).unwrap();
        }
        prop_assert_eq!(effects, sim.effects);
        let (left, right): (Workflow, Workflow) =
            (serde_json::from_str(&object).unwrap(), serde_json::from_str(&sim.object).unwrap());
        prop_assert_eq!(left, right);
    }

    #[test]
    fn the_order_of_events_does_not_change_the_end(plan in plans(), order in proptest::collection::vec(any::<u8>(), 1..40)) {
        let workflow = build(&plan);
        let mut one = Sim::new(&workflow, plan.seed);
        one.finish(&order);
        let mut other = Sim::new(&workflow, plan.seed);
        other.finish(&[255, 1]);
        prop_assert_eq!(one.outcome(), other.outcome());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, ..ProptestConfig::default() })]

    /// The engine is dropped after every single event, with its last writes done, lost or half done.
    #[test]
    fn a_crash_at_any_event_loses_and_repeats_nothing(
        plan in plans(),
        order in proptest::collection::vec(any::<u8>(), 1..40),
    ) {
        let workflow = build(&plan);
        let mut whole = Sim::new(&workflow, plan.seed);
        whole.finish(&order);
        let expected = whole.outcome();
        let pods: Vec<String> = whole.pods.keys().cloned().collect();
        let events = whole.recorded.iter().filter(|(_, event)| event.is_some()).count();
        for at in 0..events {
            for loss in 0..3 {
                let mut sim = Sim::new(&workflow, plan.seed);
                let mut choices = order.iter().copied().cycle();
                for _ in 0..at {
                    sim.settle(true);
                    sim.happen(choices.next().unwrap_or(1));
                }
                let stored = match loss {
                    // Written, and the write before, and what the engine did after its last write is lost.
                    0 => { sim.settle(true); sim.object.clone() }
                    1 => { sim.settle(true); sim.before.clone() }
                    _ => { sim.settle(false); sim.object.clone() }
                };
                sim.crash(&stored);
                sim.finish(&order);
                prop_assert_eq!(sim.outcome(), expected.clone(), "after event {}, loss {}", at, loss);
                let again: Vec<String> = sim.pods.keys().cloned().collect();
                prop_assert_eq!(&again, &pods);
                for pod in sim.pods.values() {
                    prop_assert!(pod["status"]["phase"] == "Succeeded" || pod["status"]["phase"] == "Failed", "{}", node_name(pod));
                }
            }
        }
    }
}
