//! Tasks: what the nodes of a run did, and the cache entries of the v2 driver.

use std::collections::BTreeMap;

use super::db::{Failure, Row, Tx};
use super::list::{Listable, Options, Page, page, text, time};
use super::sql::{Sql, Value};
use crate::domain::state::{History, State};
use crate::error::{Error, Result};

/// A row of `tasks`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Task {
    /// Primary key.
    pub id: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pipeline of a cache entry, `pipeline/NAME`.
    pub pipeline_name: String,
    /// Run that it belongs to.
    pub run_id: String,
    /// Pod, or what a pod of the node would be called.
    pub pod_name: String,
    /// Execution in the metadata store; text, as in the API.
    pub execution_id: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub started_at: i64,
    /// Unix seconds.
    pub finished_at: i64,
    /// Cache key.
    pub fingerprint: String,
    /// Display name of the node.
    pub name: String,
    /// Parent task.
    pub parent_id: String,
    /// Where it stands.
    pub state: State,
    /// Where it stood before.
    pub history: History,
    /// JSON, opaque.
    pub inputs: String,
    /// JSON, opaque.
    pub outputs: String,
    /// Node ids of the children.
    pub children: Vec<String>,
    /// Why the task failed. It has no column of its own and lives in `Payload`; see [`fill_messages`].
    pub message: String,
    /// Whether its node is a pod. Lives in `Payload` too; see [`fill_details`].
    pub is_pod: bool,
}

const TABLE: &str = "tasks";
const COLUMNS: &[&str] = &[
    "UUID",
    "Namespace",
    "PipelineName",
    "RunUUID",
    "PodName",
    "MLMDExecutionID",
    "CreatedTimestamp",
    "StartedTimestamp",
    "FinishedTimestamp",
    "Fingerprint",
    "Name",
    "ParentTaskUUID",
    "State",
    "StateHistory",
    "MLMDInputs",
    "MLMDOutputs",
    "ChildrenPods",
];

/// How tasks are listed.
pub static LISTABLE: Listable = Listable {
    kind: "Task",
    table: TABLE,
    created: "CreatedTimestamp",
    fields: &[
        text("id", "UUID"),
        text("task_id", "UUID"),
        text("namespace", "Namespace"),
        text("pipelineName", "PipelineName"),
        text("pipeline_name", "PipelineName"),
        text("runId", "RunUUID"),
        text("run_id", "RunUUID"),
        text("display_name", "Name").nullable(),
        text("mlmdExecutionID", "MLMDExecutionID"),
        text("execution_id", "MLMDExecutionID"),
        time("created_at", "CreatedTimestamp"),
        time("create_time", "CreatedTimestamp"),
        time("start_time", "StartedTimestamp").nullable(),
        time("finished_at", "FinishedTimestamp").nullable(),
        time("end_time", "FinishedTimestamp").nullable(),
        text("fingerprint", "Fingerprint"),
        text("state", "State").nullable(),
        text("state_history", "StateHistory").nullable(),
        text("parent_task_id", "ParentTaskUUID").nullable(),
    ],
    tags: None,
    parts: None,
    metrics: None,
};

fn read(row: &Row) -> Result<Task> {
    let mut cursor = row.cursor();
    Ok(Task {
        id: cursor.text()?,
        namespace: cursor.text()?,
        pipeline_name: cursor.text()?,
        run_id: cursor.text()?,
        pod_name: cursor.text()?,
        execution_id: cursor.text()?,
        created_at: cursor.int()?,
        started_at: cursor.int()?,
        finished_at: cursor.int()?,
        fingerprint: cursor.text()?,
        name: cursor.text()?,
        parent_id: cursor.text()?,
        state: State::parse(&cursor.text()?),
        history: History::parse(&cursor.text()?),
        inputs: cursor.text()?,
        outputs: cursor.text()?,
        children: serde_json::from_str::<Option<Vec<String>>>(&cursor.text()?).ok().flatten().unwrap_or_default(),
        message: String::new(),
        is_pod: false,
    })
}

/// The copy of a task that upstream's run API reads; written so that upstream can take the database over again.
fn payload(task: &Task) -> String {
    serde_json::json!({
        "UUID": task.id, "Namespace": task.namespace, "PipelineName": task.pipeline_name, "RunID": task.run_id,
        "PodName": task.pod_name, "MLMDExecutionID": task.execution_id, "CreatedTimestamp": task.created_at,
        "StartedTimestamp": task.started_at, "FinishedTimestamp": task.finished_at, "Fingerprint": task.fingerprint,
        "Name": task.name, "ParentTaskId": task.parent_id, "State": task.state.word(), "StateHistoryString": "",
        "MLMDInputs": task.inputs, "MLMDOutputs": task.outputs, "ChildrenPodsString": "",
        "StateHistory": task.history.0, "ChildrenPods": task.children, "Payload": "",
        "Message": task.message, "IsPod": task.is_pod,
    })
    .to_string()
}

fn row(task: &Task) -> Vec<(&'static str, Value)> {
    let children = if task.children.is_empty() { String::new() } else { serde_json::json!(task.children).to_string() };
    vec![
        ("UUID", (&task.id).into()),
        ("Namespace", (&task.namespace).into()),
        ("PipelineName", (&task.pipeline_name).into()),
        ("RunUUID", (&task.run_id).into()),
        ("PodName", (&task.pod_name).into()),
        ("MLMDExecutionID", (&task.execution_id).into()),
        ("CreatedTimestamp", task.created_at.into()),
        ("StartedTimestamp", task.started_at.into()),
        ("FinishedTimestamp", task.finished_at.into()),
        ("Fingerprint", (&task.fingerprint).into()),
        ("Name", (&task.name).into()),
        ("ParentTaskUUID", (&task.parent_id).into()),
        ("State", task.state.word().into()),
        ("StateHistory", task.history.json().into()),
        ("MLMDInputs", (&task.inputs).into()),
        ("MLMDOutputs", (&task.outputs).into()),
        ("ChildrenPods", children.into()),
        ("Payload", payload(task).into()),
    ]
}

/// Stores a new task.
///
/// # Errors
/// Code 5 when its run does not exist.
pub async fn insert(tx: &mut Tx, task: &Task) -> Result<()> {
    match tx.execute(Sql::insert(tx.dialect(), TABLE, row(task))).await {
        Err(Failure::MissingParent) => Err(Error::not_found("Run", &task.run_id)),
        other => Ok(other.map(drop)?),
    }
}

/// Stores the new state of a task that exists.
///
/// # Errors
/// When the database fails.
pub async fn update(tx: &mut Tx, task: &Task) -> Result<()> {
    let mut sql = Sql::update(tx.dialect(), TABLE, row(task).split_off(1));
    sql.and("UUID", "=", &task.id);
    tx.execute(sql).await?;
    Ok(())
}

/// Tasks of several runs in one query, ordered by creation and id.
///
/// # Errors
/// When the database fails.
pub async fn of_runs(tx: &mut Tx, run_ids: &[String]) -> Result<BTreeMap<String, Vec<Task>>> {
    let mut found: BTreeMap<String, Vec<Task>> = BTreeMap::new();
    if run_ids.is_empty() {
        return Ok(found);
    }
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and_in("RunUUID", run_ids.iter().map(Value::from).collect());
    sql.push(" ORDER BY ").columns(&["CreatedTimestamp", "StartedTimestamp", "UUID"]);
    for row in tx.rows(sql).await? {
        let task = read(&row)?;
        found.entry(task.run_id.clone()).or_default().push(task);
    }
    Ok(found)
}

/// Reads why the failed ones among the tasks of one run failed: one query, which touches only failed rows.
///
/// # Errors
/// When the database fails.
pub async fn fill_messages(tx: &mut Tx, run_id: &str, tasks: &mut [Task]) -> Result<()> {
    if !tasks.iter().any(|task| task.state == State::Failed) {
        return Ok(());
    }
    let mut sql = payloads(tx, run_id);
    sql.and("State", "=", State::Failed.word());
    fill(tx, sql, tasks).await
}

/// Reads all that has no column of its own, for all tasks of one run: one query.
///
/// # Errors
/// When the database fails.
pub async fn fill_details(tx: &mut Tx, run_id: &str, tasks: &mut [Task]) -> Result<()> {
    if tasks.is_empty() {
        return Ok(());
    }
    let sql = payloads(tx, run_id);
    fill(tx, sql, tasks).await
}

fn payloads(tx: &Tx, run_id: &str) -> Sql {
    let mut sql = Sql::select(tx.dialect(), TABLE, &["UUID", "Payload"]);
    sql.and("RunUUID", "=", run_id);
    sql
}

async fn fill(tx: &mut Tx, sql: Sql, tasks: &mut [Task]) -> Result<()> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default, rename_all = "PascalCase")]
    struct Own {
        message: String,
        is_pod: bool,
    }
    let mut found = BTreeMap::new();
    for row in tx.rows(sql).await? {
        // Rows that upstream wrote have none of it.
        let own: Own = serde_json::from_str(&row.text(1)?).unwrap_or_default();
        found.insert(row.text(0)?, own);
    }
    for task in tasks {
        if let Some(own) = found.remove(&task.id) {
            (task.message, task.is_pod) = (own.message, own.is_pod);
        }
    }
    Ok(())
}

/// One page of tasks: two queries.
///
/// # Errors
/// When the database fails.
pub async fn list(tx: &mut Tx, scope: &[(&str, Value)], options: &Options) -> Result<Page<Task>> {
    page(tx, &LISTABLE, COLUMNS, scope, options, read).await
}
