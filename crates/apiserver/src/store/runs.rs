//! Runs and the references between resources.

use std::collections::BTreeMap;

use super::db::{Failure, Row, Tx};
use super::list::{Listable, Options, Page, page, text, time};
use super::specs::Specs;
use super::sql::{Sql, Value};
use crate::domain::state::{History, State, Storage};
use crate::error::{Error, Result};

/// A row of `run_details` without its large columns.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Primary key.
    pub id: String,
    /// Chosen by the user.
    pub display_name: String,
    /// Name of the Workflow.
    pub workflow: String,
    /// Free text.
    pub description: String,
    /// Empty for runs created through the API in single-user mode.
    pub namespace: String,
    /// Experiment that it belongs to.
    pub experiment_id: String,
    /// Recurring run that made it, or empty.
    pub job_id: String,
    /// Archived or not.
    pub storage: Storage,
    /// Kubernetes service account of its pods.
    pub service_account: String,
    /// Pipeline it was made from, or empty.
    pub pipeline_id: String,
    /// Version it was made from, or empty.
    pub version_id: String,
    /// Name of that version.
    pub pipeline_name: String,
    /// v2 parameters: JSON object of values; empty when none.
    pub runtime_parameters: String,
    /// v1 parameters: JSON array of names and texts.
    pub parameters: String,
    /// Where its artifacts go, or empty.
    pub pipeline_root: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub scheduled_at: i64,
    /// Unix seconds; 0 while it is not finished.
    pub finished_at: i64,
    /// Where it stands.
    pub state: State,
    /// Where it stood before.
    pub history: History,
    /// JSON object, echoed.
    pub plugins_input: String,
    /// JSON object, written by plugins.
    pub plugins_output: String,
    /// How often it was retried; guards against reports of earlier attempts.
    pub retry_generation: i64,
    /// When the last retry was claimed.
    pub retry_claimed_at: i64,
}

/// The large columns of a run.
#[derive(Clone, Debug, Default)]
pub struct Manifests {
    /// v2 spec as stored.
    pub pipeline_spec: String,
    /// v1 Workflow spec.
    pub workflow_spec: String,
    /// v2 Workflow as created.
    pub pipeline_runtime: String,
    /// Workflow as last reported.
    pub workflow_runtime: String,
}

const TABLE: &str = "run_details";
const COLUMNS: &[&str] = &[
    "UUID",
    "DisplayName",
    "Name",
    "Description",
    "Namespace",
    "ExperimentUUID",
    "JobUUID",
    "StorageState",
    "ServiceAccount",
    "PipelineId",
    "PipelineVersionId",
    "PipelineName",
    "RuntimeParameters",
    "Parameters",
    "PipelineRoot",
    "CreatedAtInSec",
    "ScheduledAtInSec",
    "FinishedAtInSec",
    "State",
    "Conditions",
    "StateHistory",
    "PluginsInput",
    "PluginsOutput",
    "RetryGeneration",
    "RetryClaimedAtInSec",
];

/// The index of the parts of runs' names, on SQLite and PostgreSQL.
pub(super) const NAME_PARTS: &str = "list_runs_by_name_part";

/// How runs are listed.
pub static LISTABLE: Listable = Listable {
    kind: "Run",
    table: TABLE,
    created: "CreatedAtInSec",
    fields: &[
        text("run_id", "UUID"),
        text("id", "UUID"),
        text("display_name", "DisplayName"),
        text("name", "DisplayName"),
        time("created_at", "CreatedAtInSec"),
        time("finished_at", "FinishedAtInSec").nullable(),
        time("scheduled_at", "ScheduledAtInSec").nullable(),
        text("description", "Description"),
        text("storage_state", "StorageState"),
        text("status", "Conditions"),
        text("namespace", "Namespace"),
        text("experiment_id", "ExperimentUUID"),
        text("state", "State").nullable(),
        text("state_history", "StateHistory").nullable(),
        text("runtime_details", "PipelineRuntimeManifest"),
        text("recurring_run_id", "JobUUID").nullable(),
    ],
    tags: None,
    parts: Some(("DisplayName", NAME_PARTS)),
    metrics: Some(("run_metrics", "RunUUID")),
};

fn read(row: &Row) -> Result<Run> {
    let mut cursor = row.cursor();
    let mut run = Run {
        id: cursor.text()?,
        display_name: cursor.text()?,
        workflow: cursor.text()?,
        description: cursor.text()?,
        namespace: cursor.text()?,
        experiment_id: cursor.text()?,
        job_id: cursor.text()?,
        storage: Storage::parse(&cursor.text()?),
        service_account: cursor.text()?,
        pipeline_id: cursor.text()?,
        version_id: cursor.text()?,
        pipeline_name: cursor.text()?,
        runtime_parameters: cursor.text()?,
        parameters: cursor.text()?,
        pipeline_root: cursor.text()?,
        created_at: cursor.int()?,
        scheduled_at: cursor.int()?,
        finished_at: cursor.int()?,
        ..Run::default()
    };
    let (state, condition) = (cursor.text()?, cursor.text()?);
    // Rows of old releases have no State.
    run.state = State::parse(if state.is_empty() { &condition } else { &state });
    run.history = History::parse(&cursor.text()?);
    run.plugins_input = cursor.text()?;
    run.plugins_output = cursor.text()?;
    run.retry_generation = cursor.int()?;
    run.retry_claimed_at = cursor.int()?;
    Ok(run)
}

/// Stores a new run and its references to experiment, namespace and recurring run. False when the id is taken.
///
/// # Errors
/// When the database fails.
pub async fn insert(tx: &mut Tx, run: &Run, manifests: &Manifests) -> Result<bool> {
    let archived_at = if run.storage == Storage::Archived { run.created_at } else { 0 };
    let row = vec![
        ("UUID", (&run.id).into()),
        ("DisplayName", (&run.display_name).into()),
        ("Name", (&run.workflow).into()),
        ("Description", (&run.description).into()),
        ("Namespace", (&run.namespace).into()),
        ("ExperimentUUID", (&run.experiment_id).into()),
        ("JobUUID", (&run.job_id).into()),
        ("StorageState", run.storage.word().into()),
        ("ServiceAccount", (&run.service_account).into()),
        ("PipelineId", (&run.pipeline_id).into()),
        ("PipelineVersionId", (&run.version_id).into()),
        ("PipelineName", (&run.pipeline_name).into()),
        ("PipelineSpecManifest", (&manifests.pipeline_spec).into()),
        ("WorkflowSpecManifest", (&manifests.workflow_spec).into()),
        ("Parameters", (&run.parameters).into()),
        ("RuntimeParameters", (&run.runtime_parameters).into()),
        ("PipelineRoot", (&run.pipeline_root).into()),
        ("CreatedAtInSec", run.created_at.into()),
        ("ScheduledAtInSec", run.scheduled_at.into()),
        ("FinishedAtInSec", run.finished_at.into()),
        ("Conditions", run.state.condition().into()),
        ("State", run.state.word().into()),
        ("StateHistory", run.history.json().into()),
        ("PluginsInput", (&run.plugins_input).into()),
        ("PluginsOutput", (&run.plugins_output).into()),
        ("PipelineRuntimeManifest", (&manifests.pipeline_runtime).into()),
        ("WorkflowRuntimeManifest", (&manifests.workflow_runtime).into()),
        ("PipelineContextId", 0.into()),
        ("PipelineRunContextId", 0.into()),
        ("RetryGeneration", run.retry_generation.into()),
        ("RetryClaimedAtInSec", run.retry_claimed_at.into()),
        ("ArchivedAtInSec", archived_at.into()),
    ];
    match tx.execute(Sql::insert(tx.dialect(), TABLE, row)).await {
        Err(Failure::Duplicate) => return Ok(false),
        Err(other) => return Err(other.into()),
        Ok(_) => {}
    }
    for (kind, id, relationship) in [
        ("Experiment", &run.experiment_id, "Owner"),
        ("Namespace", &run.namespace, "Owner"),
        ("Job", &run.job_id, "Creator"),
    ] {
        if !id.is_empty() {
            refer(tx, ("Run", &run.id), (kind, id, ""), relationship).await?;
        }
    }
    Ok(true)
}

/// Stores a reference of one resource to another (kind, id, name).
///
/// # Errors
/// When the database fails.
pub async fn refer(
    tx: &mut Tx,
    (kind, id): (&str, &str),
    (target_kind, target_id, target_name): (&str, &str, &str),
    relationship: &str,
) -> Result<()> {
    let payload = serde_json::json!({
        "ResourceUUID": id, "ResourceType": kind, "ReferenceUUID": target_id, "ReferenceName": target_name,
        "ReferenceType": target_kind, "Relationship": relationship, "Payload": "",
    });
    let row = vec![
        ("ResourceUUID", id.into()),
        ("ResourceType", kind.into()),
        ("ReferenceUUID", target_id.into()),
        ("ReferenceName", target_name.into()),
        ("ReferenceType", target_kind.into()),
        ("Relationship", relationship.into()),
        ("Payload", payload.to_string().into()),
    ];
    tx.execute(Sql::insert(tx.dialect(), "resource_references", row)).await?;
    Ok(())
}

/// The run with this id.
///
/// # Errors
/// Code 5 when there is none.
pub async fn get(tx: &mut Tx, id: &str) -> Result<Run> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("UUID", "=", id);
    let row = tx.row(sql).await?;
    row.as_ref().map_or_else(|| Err(Error::not_found("Run", id)), read)
}

/// The large columns of a run.
///
/// # Errors
/// Code 5 when there is no such run.
pub async fn manifests(tx: &mut Tx, id: &str) -> Result<Manifests> {
    let columns =
        ["PipelineSpecManifest", "WorkflowSpecManifest", "PipelineRuntimeManifest", "WorkflowRuntimeManifest"];
    let mut sql = Sql::select(tx.dialect(), TABLE, &columns);
    sql.and("UUID", "=", id);
    let row = tx.row(sql).await?.ok_or_else(|| Error::not_found("Run", id))?;
    Ok(Manifests {
        pipeline_spec: row.text(0)?,
        workflow_spec: row.text(1)?,
        pipeline_runtime: row.text(2)?,
        workflow_runtime: row.text(3)?,
    })
}

/// The specs of several runs by id: one query.
///
/// # Errors
/// When the database fails.
pub async fn specs_of(tx: &mut Tx, ids: &[String]) -> Result<BTreeMap<String, Specs>> {
    super::specs::of(tx, TABLE, ids).await
}

/// The newest run of a recurring run with this display name.
///
/// # Errors
/// When the database fails.
pub async fn by_job(tx: &mut Tx, job_id: &str, display_name: &str) -> Result<Option<Run>> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("JobUUID", "=", job_id).and("DisplayName", "=", display_name);
    sql.push(" ORDER BY ").ident("CreatedAtInSec").push(" DESC LIMIT 1");
    tx.row(sql).await?.as_ref().map(read).transpose()
}

/// One page of runs, of one experiment or of one namespace or all, without manifests: two queries.
///
/// # Errors
/// When the database fails.
pub async fn list(tx: &mut Tx, scope: &[(&str, Value)], options: &Options) -> Result<Page<Run>> {
    page(tx, &LISTABLE, COLUMNS, scope, options, read).await
}

/// Stores what a report or a retry changed, if the run still is in the same retry generation.
///
/// # Errors
/// Code 5 when it is not, or when there is no such run.
pub async fn update(tx: &mut Tx, run: &Run, workflow_runtime: &str) -> Result<()> {
    let set = vec![
        ("Conditions", run.state.condition().into()),
        ("State", run.state.word().into()),
        ("StateHistory", run.history.json().into()),
        ("FinishedAtInSec", run.finished_at.into()),
        ("WorkflowRuntimeManifest", workflow_runtime.into()),
    ];
    let mut sql = Sql::update(tx.dialect(), TABLE, set);
    sql.and("UUID", "=", &run.id).and("RetryGeneration", "=", run.retry_generation);
    if tx.execute(sql).await? == 0 { Err(Error::not_found("Run", &run.id)) } else { Ok(()) }
}

/// Stores state, finish time and retry columns, as a retry claim and its roll-back do.
///
/// # Errors
/// Code 5 when the generation is no longer `expected`.
pub async fn claim(tx: &mut Tx, run: &Run, expected: i64) -> Result<()> {
    let set = vec![
        ("Conditions", run.state.condition().into()),
        ("State", run.state.word().into()),
        ("FinishedAtInSec", run.finished_at.into()),
        ("RetryGeneration", run.retry_generation.into()),
        ("RetryClaimedAtInSec", run.retry_claimed_at.into()),
    ];
    let mut sql = Sql::update(tx.dialect(), TABLE, set);
    sql.and("UUID", "=", &run.id).and("RetryGeneration", "=", expected);
    if tx.execute(sql).await? == 0 { Err(Error::not_found("Run", &run.id)) } else { Ok(()) }
}

/// Archives or unarchives a run.
///
/// # Errors
/// Code 5 when there is no such run.
pub async fn set_storage(tx: &mut Tx, id: &str, storage: Storage, now: i64) -> Result<()> {
    let at = if storage == Storage::Archived { now } else { 0 };
    let set = vec![("StorageState", storage.word().into()), ("ArchivedAtInSec", at.into())];
    let mut sql = Sql::update(tx.dialect(), TABLE, set);
    sql.and("UUID", "=", id);
    if tx.execute(sql).await? == 0 { Err(Error::not_found("Run", id)) } else { Ok(()) }
}

/// Marks a run as being terminated. False when its state does not allow it.
///
/// # Errors
/// When the database fails.
pub async fn terminate(tx: &mut Tx, id: &str) -> Result<bool> {
    let state = State::Canceling;
    let set = vec![("Conditions", state.condition().into()), ("State", state.word().into())];
    let mut sql = Sql::update(tx.dialect(), TABLE, set);
    sql.and("UUID", "=", id);
    sql.and_in("State", State::TERMINABLE.iter().map(|state| state.word().into()).collect());
    Ok(tx.execute(sql).await? > 0)
}

/// Removes the run with its metrics, tasks and references.
///
/// # Errors
/// Code 5 when there is no such run.
pub async fn delete(tx: &mut Tx, id: &str) -> Result<()> {
    let dialect = tx.dialect();
    for (table, column) in [("run_metrics", "RunUUID"), ("tasks", "RunUUID")] {
        let mut sql = Sql::delete(dialect, table);
        sql.and(column, "=", id);
        tx.execute(sql).await?;
    }
    for (kind, column) in [("ResourceType", "ResourceUUID"), ("ReferenceType", "ReferenceUUID")] {
        let mut sql = Sql::delete(dialect, "resource_references");
        // All types that refer to anything: the index begins with them.
        sql.and_in("ResourceType", super::RESOURCES.map(Value::from).to_vec())
            .and(column, "=", id)
            .and(kind, "=", "Run");
        tx.execute(sql).await?;
    }
    let mut sql = Sql::delete(dialect, TABLE);
    sql.and("UUID", "=", id);
    if tx.execute(sql).await? == 0 { Err(Error::not_found("Run", id)) } else { Ok(()) }
}
