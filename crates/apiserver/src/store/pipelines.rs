//! Pipelines and their tags.

use super::db::{Failure, Row, Tx};
use super::list::{Listable, Options, Page, text, time};
use super::sql::Sql;
use super::tagged::{self, Kind, Tagged, Tags};
use crate::error::{Error, Result};

/// A row of `pipelines` with its tags.
#[derive(Clone, Debug)]
pub struct Pipeline {
    /// Primary key.
    pub id: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unique within the namespace.
    pub name: String,
    /// Shown to users.
    pub display_name: String,
    /// Free text.
    pub description: String,
    /// Empty in single-user mode and for shared pipelines.
    pub namespace: String,
    /// Labels of the pipeline.
    pub tags: Tags,
}

const TABLE: &str = "pipelines";
const COLUMNS: &[&str] = &["UUID", "CreatedAtInSec", "Name", "DisplayName", "Description", "Namespace"];
/// Status of a row that is visible.
pub const READY: &str = "READY";

/// How pipelines are listed.
pub static LISTABLE: Listable = Listable {
    kind: "Pipeline",
    table: TABLE,
    created: "CreatedAtInSec",
    fields: &[
        text("id", "UUID"),
        text("pipeline_id", "UUID"),
        text("name", "Name"),
        text("display_name", "DisplayName"),
        time("created_at", "CreatedAtInSec"),
        text("description", "Description"),
        text("namespace", "Namespace").nullable(),
    ],
    tags: Some(Pipeline::KIND.tags),
    parts: None,
    metrics: None,
};

impl Tagged for Pipeline {
    const KIND: Kind = Kind { table: TABLE, tags: ("pipeline_tags", "PipelineId"), name: "Pipeline" };

    fn id(&self) -> &str {
        &self.id
    }

    fn display_name(&mut self) -> &mut String {
        &mut self.display_name
    }

    fn tags(&mut self) -> &mut Tags {
        &mut self.tags
    }
}

fn read(row: &Row) -> Result<Pipeline> {
    let mut cursor = row.cursor();
    Ok(Pipeline {
        id: cursor.text()?,
        created_at: cursor.int()?,
        name: cursor.text()?,
        display_name: cursor.text()?,
        description: cursor.text()?,
        namespace: cursor.text()?,
        tags: Tags::new(),
    })
}

/// Stores a new pipeline; `already` is upstream's wording of the conflict, which differs between its calls.
///
/// # Errors
/// Code 6 when the name is taken in the namespace.
pub async fn insert(tx: &mut Tx, pipeline: &Pipeline, already: &str) -> Result<()> {
    let row = vec![
        ("UUID", (&pipeline.id).into()),
        ("CreatedAtInSec", pipeline.created_at.into()),
        ("Name", (&pipeline.name).into()),
        ("DisplayName", (&pipeline.display_name).into()),
        ("Description", (&pipeline.description).into()),
        ("Parameters", "".into()),
        ("Status", READY.into()),
        ("DefaultVersionId", "".into()),
        ("Namespace", (&pipeline.namespace).into()),
    ];
    match tx.execute(Sql::insert(tx.dialect(), TABLE, row)).await {
        Err(Failure::Duplicate) => Err(Error::already_exists(format!(
            "Failed to create a new pipeline. The name {} {already}. Please specify a new name",
            pipeline.name
        ))),
        Err(other) => Err(other.into()),
        Ok(_) => tagged::put_tags::<Pipeline>(tx, &pipeline.id, &pipeline.tags).await,
    }
}

/// The pipeline with this id.
///
/// # Errors
/// Code 5 when there is none.
pub async fn get(tx: &mut Tx, id: &str) -> Result<Pipeline> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("UUID", "=", id).and("Status", "=", READY);
    tagged::one(tx, sql, read).await?.ok_or_else(|| Error::not_found("Pipeline", id))
}

/// The newest pipeline of this name, in this namespace if one is given.
///
/// # Errors
/// Code 5 when there is none.
pub async fn by_name(tx: &mut Tx, name: &str, namespace: Option<&str>) -> Result<Pipeline> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("Name", "=", name).and("Status", "=", READY);
    if let Some(namespace) = namespace {
        sql.and("Namespace", "=", namespace);
    }
    sql.push(" ORDER BY ").ident("CreatedAtInSec").push(" DESC LIMIT 1");
    tagged::one(tx, sql, read)
        .await?
        .ok_or_else(|| Error::not_found("Namespace/Pipeline", &format!("{}/{name}", namespace.unwrap_or_default())))
}

/// One page of a namespace's pipelines: three queries.
///
/// # Errors
/// When the database fails.
pub async fn list(tx: &mut Tx, namespace: &str, options: &Options) -> Result<Page<Pipeline>> {
    let scope = [("Namespace", namespace.into()), ("Status", READY.into())];
    tagged::list(tx, &LISTABLE, COLUMNS, &scope, options, read).await
}

/// Changes display name and tags; an empty display name and absent tags leave them as they are.
///
/// # Errors
/// Code 5 when there is no such pipeline.
pub async fn update(tx: &mut Tx, id: &str, display_name: &str, tags: Option<&Tags>) -> Result<Pipeline> {
    let pipeline = get(tx, id).await?;
    tagged::update(tx, pipeline, display_name, tags).await
}

/// Removes the pipeline; versions and tags go with it.
///
/// # Errors
/// Code 5 when there is no such pipeline.
pub async fn delete(tx: &mut Tx, id: &str) -> Result<()> {
    tagged::delete::<Pipeline>(tx, id).await
}

/// Records the default version that v1beta1 clients choose; nothing reads it.
///
/// # Errors
/// Code 5 when there is no such pipeline.
pub async fn set_default(tx: &mut Tx, id: &str, version_id: &str) -> Result<()> {
    let mut sql = Sql::update(tx.dialect(), TABLE, vec![("DefaultVersionId", version_id.into())]);
    sql.and("UUID", "=", id).and("Status", "=", READY);
    if tx.execute(sql).await? == 0 { Err(Error::not_found("Pipeline", id)) } else { Ok(()) }
}
