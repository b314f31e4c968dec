//! Laws of pure parts: the life cycle of runs, and what lists understand.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kfp_apiserver::domain::state::{History, State};
use kfp_apiserver::domain::{nodes, retry};
use kfp_apiserver::store::filter::{Filter, Generation};
use kfp_apiserver::store::list::{Kind, Options, Request};
use kfp_apiserver::store::runs::LISTABLE;
use kfp_apiserver::store::sql::{Dialect, Sql};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};

const PHASES: [&str; 8] = ["Pending", "Running", "Succeeded", "Skipped", "Failed", "Error", "Omitted", ""];
const TYPES: [&str; 4] = ["Pod", "DAG", "Retry", "Skipped"];

/// A node: phase, type, whether it is an exit handler, and which nodes are its children.
type Node = (usize, usize, bool, Vec<usize>);

fn node(phases: std::ops::Range<usize>) -> impl Strategy<Value = Node> {
    (phases, 0..TYPES.len(), any::<bool>(), vec(0..8_usize, 0..3))
}

fn workflow(nodes: &[Node], phase: &str) -> Value {
    let mut all = serde_json::Map::new();
    for (index, (state, kind, exit, children)) in nodes.iter().enumerate() {
        let id = format!("wf-{index}");
        let name = if *exit { format!("wf.onExit.n{index}") } else { format!("wf.n{index}") };
        let children: Vec<String> = children.iter().map(|child| format!("wf-{child}")).collect();
        all.insert(
            id.clone(),
            json!({"id": id, "name": name, "displayName": format!("n{index}"), "type": TYPES[*kind],
                   "phase": PHASES[*state], "templateName": "t", "children": children}),
        );
    }
    json!({"apiVersion": "argoproj.io/v1alpha1", "metadata": {"name": "wf", "namespace": "ns"}, "spec": {},
           "status": {"phase": phase, "nodes": all}})
}

proptest! {
    #[test]
    fn a_retry_keeps_what_succeeded_and_only_that(nodes in vec(node(2..PHASES.len()), 0..8), generation in 1..9_i64) {
        let before = workflow(&nodes, "Failed");
        let plan = retry::plan(before.clone(), generation).unwrap();
        let kept = plan.workflow["status"]["nodes"].as_object().unwrap();
        for (id, old) in before["status"]["nodes"].as_object().unwrap() {
            let exits = old["name"].as_str().unwrap().contains("onExit");
            let done = matches!(old["phase"].as_str().unwrap(), "Succeeded" | "Skipped") && !exits;
            match kept.get(id) {
                Some(new) if done => {
                    prop_assert_eq!(&new["phase"], &old["phase"]);
                }
                Some(new) => {
                    prop_assert_eq!(&old["type"], "DAG");
                    prop_assert_eq!(&new["phase"], "Running");
                }
                None => prop_assert!(!done, "{} is lost", id),
            }
            let pod = nodes::pod_name(&before, old);
            prop_assert_eq!(plan.pods.contains(&pod), old["type"] == "Pod" && !kept.contains_key(id));
        }
        for new in kept.values() {
            let children = new["children"].as_array().unwrap();
            prop_assert!(children.iter().all(|child| kept.contains_key(child.as_str().unwrap())));
        }
        prop_assert_eq!(&plan.workflow["metadata"]["annotations"][retry::GENERATION], &json!(generation.to_string()));
        // What runs again cannot be retried at the same time.
        prop_assert!(retry::plan(plan.workflow, generation + 1).is_err());
    }

    #[test]
    fn only_failed_workflows_without_active_nodes_are_retried(nodes in vec(node(0..PHASES.len()), 0..6), phase in 0..PHASES.len()) {
        let active = nodes.iter().any(|(state, ..)| matches!(PHASES[*state], "Pending" | "Running"));
        let failed = matches!(PHASES[phase], "Failed" | "Error");
        prop_assert_eq!(retry::plan(workflow(&nodes, PHASES[phase]), 1).is_ok(), failed && !active);
    }

    #[test]
    fn reports_are_idempotent_and_histories_only_grow(reports in vec(vec(node(0..PHASES.len()), 0..6), 1..6)) {
        let mut stored: Vec<kfp_apiserver::store::tasks::Task> = Vec::new();
        let mut ids = 0;
        for (at, nodes) in reports.iter().enumerate() {
            let now = i64::try_from(at).unwrap();
            let reported = nodes::tasks(&workflow(nodes, "Running"), "run");
            let changes = nodes::merge(&stored, reported.clone(), now, || { ids += 1; format!("id{ids}") });
            for new in &changes.update {
                let old = stored.iter_mut().find(|old| old.id == new.id).unwrap();
                prop_assert_eq!(&old.pod_name, &new.pod_name);
                prop_assert!(new.history.0.starts_with(&old.history.0));
                *old = new.clone();
            }
            stored.extend(changes.insert);
            let pods: BTreeSet<&String> = stored.iter().map(|task| &task.pod_name).collect();
            prop_assert_eq!(pods.len(), stored.len(), "one task for each pod");
            for task in &stored {
                prop_assert_eq!(task.history.0.last().map(|last| State::parse(&last.state)), Some(task.state));
                prop_assert!(task.history.0.windows(2).all(|pair| pair[0].state != pair[1].state));
            }
            let again = nodes::merge(&stored, reported, now + 1, || unreachable!("a repeated report makes no tasks"));
            prop_assert_eq!(again, nodes::Changes::default());
        }
    }

    #[test]
    fn states_and_histories_survive_the_database(words in vec(0..9_usize, 0..6)) {
        let mut history = History::default();
        for (at, word) in words.iter().enumerate() {
            let names = ["", "Pending", "Running", "Succeeded", "Skipped", "Failed", "Terminating", "CANCELED", "PAUSED"];
            let state = State::parse(names[*word]);
            prop_assert_eq!(State::parse(state.word()), state);
            // v1 words know no difference between failed and cancelled, nor between pending and paused.
            let seen = State::parse(state.condition());
            prop_assert_eq!(seen.condition(), state.condition());
            prop_assert!(!(state.is_final() && State::TERMINABLE.contains(&state)));
            history.note(state, i64::try_from(at).unwrap());
        }
        prop_assert_eq!(History::parse(&history.json()), history);
    }

    #[test]
    fn a_report_never_reopens_a_workflow_that_ended(phase in 0..PHASES.len(), deadline in any::<bool>()) {
        let state = State::of_workflow(PHASES[phase], deadline);
        let ended = matches!(PHASES[phase], "Succeeded" | "Failed" | "Error");
        prop_assert_eq!(state == State::Canceling, deadline && !ended);
    }

    #[test]
    fn a_terminated_run_stays_so_until_its_workflow_ends(reports in vec((0..PHASES.len(), any::<bool>()), 1..8)) {
        let mut state = State::Canceling;
        for (phase, deadline) in reports {
            let reported = State::of_workflow(PHASES[phase], deadline);
            state = state.after_report(reported);
            prop_assert_eq!(state, if reported.is_final() { reported } else { State::Canceling });
            if reported.is_final() {
                break;
            }
        }
    }

    #[test]
    fn filters_tokens_and_orders_are_understood_or_refused(filter in "\\PC{0,40}", sort_by in "\\PC{0,20}", token in "\\PC{0,40}", inside: bool) {
        let token = if inside { STANDARD.encode(token) } else { token };
        for generation in [Generation::V1, Generation::V2] {
            let request = Request { token: &token, size: 0, sort_by: &sort_by, filter: &filter, generation };
            if let Err(error) = Options::parse(request, &LISTABLE) {
                prop_assert_eq!(error.code(), tonic::Code::InvalidArgument);
            }
        }
    }

    #[test]
    fn values_of_filters_never_become_sql(value in "\\PC{1,20}", key in "\\PC{0,20}", operation in 1..10_i32) {
        let text = |value: &str| {
            let filter = json!({"predicates": [{"operation": operation, "key": "name", "string_value": value}]});
            let filter = Filter::parse(&filter.to_string(), Generation::V2, &LISTABLE).ok()?;
            let mut sql = Sql::select(Dialect::Sqlite, "t", &["c"]);
            filter.predicates.iter().for_each(|predicate| predicate.apply(&mut sql, Kind::Text));
            Some(sql.text().to_owned())
        };
        prop_assert_eq!(text(&value), text("plain"));
        let unknown = json!({"predicates": [{"operation": 1, "key": format!("{key}'"), "string_value": "x"}]});
        prop_assert!(Filter::parse(&unknown.to_string(), Generation::V2, &LISTABLE).is_err());
    }
}
