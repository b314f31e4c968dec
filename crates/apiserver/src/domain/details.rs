//! What the tasks of a run say of each other.

use std::collections::HashMap;

use crate::store::tasks::Task;

/// Facts about a task that only the other tasks of its run tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// Names of the tasks that had to end before it could start.
    pub waited_for: Vec<String>,
    /// Its pod, or the only pod within it; empty when it has none.
    pub pod: String,
}

/// Last part of a node's id; it is also that of its pod's name.
fn suffix(name: &str) -> &str {
    name.rsplit('-').next().unwrap_or_default()
}

/// What is to be said of each task of one run, in their order.
#[must_use]
pub fn of(tasks: &[Task]) -> Vec<Detail> {
    let by_id: HashMap<&str, usize> = tasks.iter().enumerate().map(|(at, task)| (task.id.as_str(), at)).collect();
    let by_node: HashMap<&str, usize> =
        tasks.iter().enumerate().map(|(at, task)| (suffix(&task.pod_name), at)).collect();
    let parent = |at: usize| tasks.get(at).and_then(|task| by_id.get(task.parent_id.as_str()).copied());
    let mut details = vec![Detail::default(); tasks.len()];
    let mut inside: HashMap<usize, Vec<usize>> = HashMap::new();
    for (at, task) in tasks.iter().enumerate() {
        if let Some(around) = parent(at) {
            inside.entry(around).or_default().push(at);
        }
        for child in &task.children {
            let Some(&after) = by_node.get(suffix(child)) else { continue };
            if let Some(name) = predecessor(tasks, at, after, &parent)
                && let Some(detail) = details.get_mut(after)
                && !detail.waited_for.contains(&name)
            {
                detail.waited_for.push(name);
            }
        }
    }
    for (at, task) in tasks.iter().enumerate() {
        let Some(detail) = details.get_mut(at) else { continue };
        let only = match inside.get(&at).map(Vec::as_slice) {
            Some(&[only]) => tasks.get(only),
            _ => None,
        };
        let pod = [Some(task), only].into_iter().flatten().find(|task| task.is_pod);
        detail.pod = pod.map(|task| task.pod_name.clone()).unwrap_or_default();
        detail.waited_for.sort();
    }
    details
}

/// Name of the task beside `after` that ended with the node `before`: a node's successors hang on the last nodes
/// within what they waited for. `None` when they hang together otherwise: as a whole and its part, or as a loop or a
/// retried task and one of its rounds.
fn predecessor(
    tasks: &[Task],
    before: usize,
    after: usize,
    parent: &impl Fn(usize) -> Option<usize>,
) -> Option<String> {
    let around = parent(after);
    let mut at = before;
    // No chain of parents is longer than the list, unless it is a ring.
    for _ in 0..tasks.len() {
        if parent(at) == around {
            let (first, then) = (tasks.get(at)?, tasks.get(after)?);
            let round = then.name.strip_prefix(&first.name).is_some_and(|rest| rest.starts_with('('));
            let group = first.name.starts_with('[');
            return (Some(at) != around && !round && !group).then(|| first.name.clone());
        }
        at = parent(at)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(node: &str, name: &str, parent: &str, is_pod: bool, children: &[&str]) -> Task {
        Task {
            id: node.to_owned(),
            pod_name: if node == "wf" { node.to_owned() } else { format!("wf-t-{node}") },
            name: name.to_owned(),
            parent_id: parent.to_owned(),
            is_pod,
            children: children.iter().map(|child| format!("wf-{child}")).collect(),
            ..Task::default()
        }
    }

    #[test]
    fn tasks_wait_for_their_neighbours_however_deep_those_end() {
        let tasks = [
            task("wf", "wf", "", false, &["1"]),
            task("1", "root-driver", "wf", true, &["2"]),
            task("2", "root", "wf", false, &["3"]),
            task("3", "a-driver", "2", true, &["4"]),
            task("4", "a", "2", false, &["5"]),
            task("5", "executor", "4", true, &["6", "7"]),
            task("6", "b-driver", "2", true, &[]),
            // A loop with two rounds and what follows it.
            task("7", "loop", "2", false, &["8", "9"]),
            task("8", "loop(0:x)", "2", true, &["10"]),
            task("9", "loop(1:y)", "2", true, &["10"]),
            task("10", "after", "2", true, &["none"]),
        ];
        let details = of(&tasks);
        let waited: Vec<String> = details.iter().map(|detail| detail.waited_for.join(",")).collect();
        assert_eq!(waited, ["", "", "root-driver", "", "a-driver", "", "a", "a", "", "", "loop(0:x),loop(1:y)"]);
        let pods: Vec<&str> = details.iter().map(|detail| detail.pod.as_str()).collect();
        assert_eq!(pods, ["", "wf-t-1", "", "wf-t-3", "wf-t-5", "wf-t-5", "wf-t-6", "", "wf-t-8", "wf-t-9", "wf-t-10"]);
    }

    #[test]
    fn rings_end() {
        let tasks =
            [task("1", "a", "2", false, &["3"]), task("2", "b", "1", false, &[]), task("3", "c", "", true, &[])];
        assert!(of(&tasks).iter().all(|detail| detail.waited_for.is_empty()));
    }
}
