//! Experiments, and which of them is the default.

use super::db::{Failure, Row, Tx};
use super::list::{Listable, Options, Page, page, text, time};
use super::sql::{Sql, Value};
use crate::domain::state::Storage;
use crate::error::{Error, Result};

/// A row of `experiments`.
#[derive(Clone, Debug)]
pub struct Experiment {
    /// Primary key.
    pub id: String,
    /// Unique within the namespace.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds; 0 when no run was ever created.
    pub last_run_created_at: i64,
    /// Empty in single-user mode.
    pub namespace: String,
    /// Archived or not.
    pub storage: Storage,
}

const TABLE: &str = "experiments";
const COLUMNS: &[&str] =
    &["UUID", "Name", "Description", "CreatedAtInSec", "LastRunCreatedAtInSec", "Namespace", "StorageState"];

/// How experiments are listed.
pub static LISTABLE: Listable = Listable {
    kind: "Experiment",
    table: TABLE,
    created: "CreatedAtInSec",
    fields: &[
        text("id", "UUID"),
        text("experiment_id", "UUID"),
        text("name", "Name"),
        text("display_name", "Name"),
        time("created_at", "CreatedAtInSec"),
        time("last_run_created_at", "LastRunCreatedAtInSec"),
        text("description", "Description"),
        text("namespace", "Namespace"),
        text("storage_state", "StorageState"),
    ],
    tags: None,
    parts: None,
    metrics: None,
};

fn read(row: &Row) -> Result<Experiment> {
    let mut cursor = row.cursor();
    Ok(Experiment {
        id: cursor.text()?,
        name: cursor.text()?,
        description: cursor.text()?,
        created_at: cursor.int()?,
        last_run_created_at: cursor.int()?,
        namespace: cursor.text()?,
        storage: Storage::parse(&cursor.text()?),
    })
}

/// Stores a new experiment.
///
/// # Errors
/// Code 6 when the name is taken in the namespace.
pub async fn insert(tx: &mut Tx, experiment: &Experiment) -> Result<()> {
    let row = vec![
        ("UUID", (&experiment.id).into()),
        ("Name", (&experiment.name).into()),
        ("Description", (&experiment.description).into()),
        ("CreatedAtInSec", experiment.created_at.into()),
        ("LastRunCreatedAtInSec", experiment.last_run_created_at.into()),
        ("Namespace", (&experiment.namespace).into()),
        ("StorageState", experiment.storage.word().into()),
    ];
    match tx.execute(Sql::insert(tx.dialect(), TABLE, row)).await {
        Err(Failure::Duplicate) => Err(Error::already_exists(format!(
            "Failed to create a new experiment. The name {} already exists. Please specify a new name",
            experiment.name
        ))),
        other => Ok(other.map(drop)?),
    }
}

/// The experiment with this id.
///
/// # Errors
/// Code 5 when there is none.
pub async fn get(tx: &mut Tx, id: &str) -> Result<Experiment> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("UUID", "=", id);
    let row = tx.row(sql).await?;
    row.as_ref().map_or_else(|| Err(Error::not_found("Experiment", id)), read)
}

/// The experiment with this name in this namespace.
///
/// # Errors
/// When the database fails.
pub async fn by_name(tx: &mut Tx, name: &str, namespace: &str) -> Result<Option<Experiment>> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("Name", "=", name).and("Namespace", "=", namespace);
    tx.row(sql).await?.as_ref().map(read).transpose()
}

/// One page of a namespace's experiments.
///
/// # Errors
/// When the database fails.
pub async fn list(tx: &mut Tx, namespace: &str, options: &Options) -> Result<Page<Experiment>> {
    page(tx, &LISTABLE, COLUMNS, &[("Namespace", namespace.into())], options, read).await
}

/// Archives an experiment with all its runs, and disables its recurring runs.
///
/// # Errors
/// Code 5 when there is no such experiment.
pub async fn archive(tx: &mut Tx, id: &str, now: i64) -> Result<()> {
    set_storage(tx, id, Storage::Archived).await?;
    let archived = Storage::Archived.word();
    // Runs that were archived before keep their time: the collector counts from it.
    let set = vec![("StorageState", archived.into()), ("ArchivedAtInSec", now.into())];
    let mut runs = Sql::update(tx.dialect(), "run_details", set);
    runs.and("ExperimentUUID", "=", id).and("StorageState", "<>", archived);
    tx.execute(runs).await?;
    let set = vec![("Enabled", false.into()), ("UpdatedAtInSec", now.into())];
    let mut jobs = Sql::update(tx.dialect(), "jobs", set);
    jobs.and("ExperimentUUID", "=", id).and("Enabled", "=", true);
    tx.execute(jobs).await?;
    Ok(())
}

/// Sets the storage state of the experiment alone.
///
/// # Errors
/// Code 5 when there is no such experiment.
pub async fn set_storage(tx: &mut Tx, id: &str, storage: Storage) -> Result<()> {
    let mut sql = Sql::update(tx.dialect(), TABLE, vec![("StorageState", storage.word().into())]);
    sql.and("UUID", "=", id);
    if tx.execute(sql).await? == 0 { Err(Error::not_found("Experiment", id)) } else { Ok(()) }
}

/// Removes the experiment and the references to it; its runs stay.
///
/// # Errors
/// Code 5 when there is no such experiment.
pub async fn delete(tx: &mut Tx, id: &str) -> Result<()> {
    let mut sql = Sql::delete(tx.dialect(), TABLE);
    sql.and("UUID", "=", id);
    if tx.execute(sql).await? == 0 {
        return Err(Error::not_found("Experiment", id));
    }
    let mut references = Sql::delete(tx.dialect(), "resource_references");
    references.and_in("ResourceType", super::RESOURCES.map(Value::from).to_vec());
    references.and("ReferenceUUID", "=", id).and("ReferenceType", "=", "Experiment");
    tx.execute(references).await?;
    Ok(())
}

/// Notes that a run was created in the experiment.
///
/// # Errors
/// When the database fails.
pub async fn touch(tx: &mut Tx, id: &str, at: i64) -> Result<()> {
    let mut sql = Sql::update(tx.dialect(), TABLE, vec![("LastRunCreatedAtInSec", at.into())]);
    sql.and("UUID", "=", id);
    tx.execute(sql).await?;
    Ok(())
}

/// Id of the default experiment; empty when there is none.
///
/// # Errors
/// When the database fails.
pub async fn default_id(tx: &mut Tx) -> Result<String> {
    let sql = Sql::select(tx.dialect(), "default_experiments", &["DefaultExperimentId"]);
    tx.row(sql).await?.map_or(Ok(String::new()), |row| row.text(0))
}

/// Records which experiment is the default.
///
/// # Errors
/// When the database fails.
pub async fn set_default_id(tx: &mut Tx, id: &str) -> Result<()> {
    tx.execute(Sql::update(tx.dialect(), "default_experiments", vec![("DefaultExperimentId", id.into())])).await?;
    Ok(())
}
