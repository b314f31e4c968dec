//! The tree of a run's executions: who is whose child, and how a DAG's state follows from its children's.

use std::collections::{BTreeMap, HashMap};

use kfp_proto::ml_metadata as pb;

use super::{Client, Error, Execution, Run, State, names, rpc};

/// The most that the store returns at once.
const PAGE: i32 = 100;
/// Of a DAG with more children than this not all are read each time one of them ends: for a loop that would be the square
/// of their number.
const FEW_CHILDREN: i64 = 20;
/// Up to so many iterations, children of a loop are fetched one DAG at a time; beyond, the whole run is read once.
const FEW_ITERATIONS: i64 = 8;

/// What tells children of one DAG apart: the task's name, and the iteration within a loop.
type Key = (String, Option<i64>);

fn key(execution: &Execution) -> Key {
    (execution.task_name().to_owned(), execution.iteration_index())
}

/// Children of a DAG by key. Of several executions with one key (a driver that was started again) the newest counts.
fn by_key(executions: Vec<Execution>) -> BTreeMap<Key, Execution> {
    let mut children: BTreeMap<Key, Execution> = BTreeMap::new();
    for execution in executions {
        let key = key(&execution);
        match children.get(&key) {
            Some(known) if known.id() > execution.id() => {}
            _ => drop(children.insert(key, execution)),
        }
    }
    children
}

/// The executions of one run, read on demand and remembered: a snapshot for one resolution of inputs.
#[derive(Debug)]
pub struct Tree<'a> {
    client: &'a Client,
    run: i64,
    children: HashMap<i64, BTreeMap<Key, Execution>>,
    complete: bool,
}

impl<'a> Tree<'a> {
    /// An empty snapshot.
    #[must_use]
    pub fn new(client: &'a Client, run: &Run) -> Self {
        Self { client, run: run.id(), children: HashMap::new(), complete: false }
    }

    async fn load(&mut self, dag: i64) -> Result<(), Error> {
        if !self.complete && !self.children.contains_key(&dag) {
            let children = by_key(self.client.executions(self.run, Some(dag)).await?);
            self.children.insert(dag, children);
        }
        Ok(())
    }

    async fn load_all(&mut self) -> Result<(), Error> {
        if self.complete {
            return Ok(());
        }
        let mut groups: HashMap<i64, Vec<Execution>> = HashMap::new();
        for execution in self.client.executions(self.run, None).await? {
            if let Some(parent) = execution.parent_dag_id() {
                groups.entry(parent).or_default().push(execution);
            }
        }
        self.children = groups.into_iter().map(|(dag, executions)| (dag, by_key(executions))).collect();
        self.complete = true;
        Ok(())
    }

    /// The task `name` directly within DAG `dag`.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn child(&mut self, dag: i64, name: &str) -> Result<Option<Execution>, Error> {
        self.load(dag).await?;
        Ok(self.children.get(&dag).and_then(|children| children.get(&(name.to_owned(), None))).cloned())
    }

    /// The state of a task that has come to its end, for tasks that depend on it. A DAG may be left RUNNING: tasks whose
    /// dependencies were skipped are never driven, and pods may vanish. Then its children tell: it failed if one of them
    /// did, or began and did not end, or if there is none.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn outcome(&mut self, task: &Execution) -> Result<State, Error> {
        if !task.is_dag() || task.state() != State::Running {
            return Ok(task.state());
        }
        let mut pending = vec![task.id()];
        while let Some(dag) = pending.pop() {
            self.load(dag).await?;
            let children = self.children.get(&dag).filter(|children| !children.is_empty());
            let Some(children) = children else { return Ok(State::Failed) };
            for child in children.values() {
                match child.state() {
                    State::Running if child.is_dag() => pending.push(child.id()),
                    State::Complete | State::Cached | State::Canceled => {}
                    _ => return Ok(State::Failed),
                }
            }
        }
        Ok(State::Complete)
    }

    /// The iterations of a loop in order; `None` for those that do not exist.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn iterations(&mut self, head: &Execution) -> Result<Vec<Option<Execution>>, Error> {
        let count = head.iteration_count().unwrap_or_default();
        if count > FEW_ITERATIONS {
            self.load_all().await?
        } else {
            self.load(head.id()).await?
        }
        let children = self.children.get(&head.id());
        let find = |index| children?.get(&(head.task_name().to_owned(), Some(index))).cloned();
        Ok((0..count).map(find).collect())
    }
}

/// The state that a DAG's children imply, if they imply one. `expected` is how many children there will be.
fn state_from_children<'a>(expected: i64, children: impl Iterator<Item = &'a Execution>) -> Option<State> {
    let (mut done, mut failed) = (0, false);
    for child in children {
        match child.state() {
            State::Complete | State::Cached | State::Canceled => done += 1,
            State::Failed => failed = true,
            _ => {}
        }
    }
    match (done == expected, failed) {
        (true, _) => Some(State::Complete),
        (false, true) => Some(State::Failed),
        (false, false) => None,
    }
}

/// A filter for the children of a DAG.
fn children_of(dag: i64) -> String {
    format!("custom_properties.{}.int_value = {dag}", names::PARENT_DAG_ID)
}

impl Client {
    /// Executions of a run: all, or the children of one DAG.
    async fn executions(&self, run: i64, parent: Option<i64>) -> Result<Vec<Execution>, Error> {
        let filter = parent.map_or(String::new(), children_of);
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let (page, next) = self.page(run, filter.clone(), token).await?;
            found.extend(page);
            if next.is_empty() {
                return Ok(found);
            }
            token = next;
        }
    }

    /// Executions of a run that a filter lets through, from `token` on, and the token of the next page.
    async fn page(&self, run: i64, filter: String, token: String) -> Result<(Vec<Execution>, String), Error> {
        let options = pb::ListOperationOptions {
            max_result_size: Some(PAGE),
            filter_query: Some(filter),
            next_page_token: Some(token),
            ..Default::default()
        };
        let request =
            pb::GetExecutionsByContextRequest { context_id: Some(run), options: Some(options), ..Default::default() };
        let page = rpc!(self, get_executions_by_context, request).await?;
        let found = page.executions.into_iter().map(|message| Execution { message }).collect();
        Ok((found, page.next_page_token.unwrap_or_default()))
    }

    /// Whether some child of a DAG goes on and none has failed, so that the DAG's state stays. `false` where only all of
    /// the children tell.
    async fn goes_on(&self, run: i64, dag: i64) -> Result<bool, Error> {
        let ended =
            ["COMPLETE", "CACHED", "CANCELED"].map(|state| format!(" AND last_known_state != {state}")).concat();
        let (open, more) = match self.page(run, children_of(dag) + &ended, String::new()).await {
            // A store that does not know such filters.
            Err(error) if error.code() == Some(tonic::Code::InvalidArgument) => return Ok(false),
            page => page?,
        };
        let Some(newest) = open.iter().max_by_key(|child| child.id()) else { return Ok(false) };
        if !more.is_empty() || open.iter().any(|child| child.state() == State::Failed) {
            return Ok(false);
        }
        // A driver that was started again leaves an execution that nobody ends.
        let filter = format!("{} AND id > {}", children_of(dag), newest.id());
        let (newer, more) = self.page(run, filter, String::new()).await?;
        Ok(more.is_empty() && newer.iter().all(|other| key(other) != key(newest)))
    }

    /// Children of a DAG, the newest of each task and iteration.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn executions_of_dag(&self, run: &Run, dag: i64) -> Result<Vec<Execution>, Error> {
        Ok(by_key(self.executions(run.id(), Some(dag)).await?).into_values().collect())
    }

    /// An input parameter that DAG `dag` was given but does not record: an iteration has the item in place of the items,
    /// which only the loop's head keeps (storing them with every iteration would take the square of their size).
    /// Upstream does not look there, so that a loop within a loop over the same items fails.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn loop_input(&self, dag: &Execution, name: &str) -> Result<Option<prost_types::Value>, Error> {
        match (dag.iteration_index(), dag.parent_dag_id()) {
            (Some(_), Some(head)) => Ok(self.execution(head).await?.inputs().remove(name)),
            _ => Ok(None),
        }
    }

    /// Brings the state of DAG `dag` and of its ancestors up to date after one of its children came to an end. Stops
    /// at the root (whose state nobody changes) and where nothing follows yet. Upstream does this only when a
    /// container ends; here drivers and importers do it too, so that no DAG is left RUNNING.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn propagate_dag_state(&self, run: &Run, dag: i64) -> Result<(), Error> {
        self.propagate_dag_state_from(run, self.execution(dag).await?).await
    }

    /// [`Client::propagate_dag_state`] for a DAG that may have been read long ago: what it expects never changes.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn propagate_dag_state_from(&self, run: &Run, mut dag: Execution) -> Result<(), Error> {
        loop {
            let Some(expected) = dag.iteration_count().or_else(|| dag.int(names::TOTAL_DAG_TASKS)) else {
                return Ok(());
            };
            if dag.state() == State::Canceled || (expected == 0 && dag.iteration_count().is_none()) {
                return Ok(());
            }
            if expected > FEW_CHILDREN && self.goes_on(run.id(), dag.id()).await? {
                return Ok(());
            }
            let children = self.executions_of_dag(run, dag.id()).await?;
            let Some(state) = state_from_children(expected, children.iter()) else { return Ok(()) };
            let mut current = self.execution(dag.id()).await?;
            if current.state() == State::Canceled {
                return Ok(());
            }
            if current.state() != state {
                current.set_state(state);
                self.update_execution(&current).await?;
            }
            let Some(parent) = current.parent_dag_id() else { return Ok(()) };
            dag = self.execution(parent).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{int, text};
    use super::*;

    fn execution(id: i64, task: &str, index: Option<i64>, state: State) -> Execution {
        let mut execution = Execution { message: pb::Execution { id: Some(id), ..Default::default() } };
        execution.set(names::TASK_NAME, text(task));
        if let Some(index) = index {
            execution.set(names::ITERATION_INDEX, int(index));
        }
        execution.set_state(state);
        execution
    }

    #[test]
    fn newest_execution_of_a_task_counts() {
        let children = by_key(vec![
            execution(7, "a", None, State::Complete),
            execution(3, "a", None, State::Failed),
            execution(4, "a", Some(0), State::Failed),
        ]);
        assert_eq!(children[&("a".to_owned(), None)].id(), 7);
        assert_eq!(children.len(), 2);
    }

    #[test]
    fn dag_state_follows_from_children() {
        use State::{Cached, Canceled, Complete, Failed, Running};
        for (expected, states, wanted) in [
            (0, vec![], Some(Complete)),
            (2, vec![Complete], None),
            (2, vec![Complete, Running], None),
            (2, vec![Complete, Cached], Some(Complete)),
            (2, vec![Canceled, Canceled], Some(Complete)),
            (3, vec![Complete, Failed], Some(Failed)),
            (2, vec![Complete, Failed], Some(Failed)),
            (1, vec![Failed], Some(Failed)),
        ] {
            let children: Vec<_> = states.iter().map(|s| execution(1, "t", None, *s)).collect();
            assert_eq!(state_from_children(expected, children.iter()), wanted, "{expected} {states:?}");
        }
    }
}
