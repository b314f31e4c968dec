//! Pipelines and their tags.

use std::collections::BTreeMap;

use super::db::{Failure, Row, Tx};
use super::list::{Listable, Options, Page, page, text, time};
use super::sql::{Sql, Value};
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
    pub tags: BTreeMap<String, String>,
}

const TABLE: &str = "pipelines";
const COLUMNS: &[&str] = &["UUID", "CreatedAtInSec", "Name", "DisplayName", "Description", "Namespace"];
/// Tag table of pipelines and its id column.
pub const TAGS: (&str, &str) = ("pipeline_tags", "PipelineId");
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
        text("namespace", "Namespace"),
    ],
    tags: true,
};

fn read(row: &Row) -> Result<Pipeline> {
    let mut cursor = row.cursor();
    Ok(Pipeline {
        id: cursor.text()?,
        created_at: cursor.int()?,
        name: cursor.text()?,
        display_name: cursor.text()?,
        description: cursor.text()?,
        namespace: cursor.text()?,
        tags: BTreeMap::new(),
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
        Ok(_) => put_tags(tx, TAGS, &pipeline.id, &pipeline.tags).await,
    }
}

async fn one(tx: &mut Tx, sql: Sql) -> Result<Option<Pipeline>> {
    let Some(row) = tx.row(sql).await? else { return Ok(None) };
    let mut pipeline = read(&row)?;
    let ids = vec![pipeline.id.clone()];
    pipeline.tags = tags_of(tx, TAGS, &ids).await?.remove(&pipeline.id).unwrap_or_default();
    Ok(Some(pipeline))
}

/// The pipeline with this id.
///
/// # Errors
/// Code 5 when there is none.
pub async fn get(tx: &mut Tx, id: &str) -> Result<Pipeline> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("UUID", "=", id).and("Status", "=", READY);
    one(tx, sql).await?.ok_or_else(|| Error::not_found("Pipeline", id))
}

/// The newest pipeline of this name; an empty namespace matches any.
///
/// # Errors
/// Code 5 when there is none.
pub async fn by_name(tx: &mut Tx, name: &str, namespace: &str) -> Result<Pipeline> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("Name", "=", name).and("Status", "=", READY);
    if !namespace.is_empty() {
        sql.and("Namespace", "=", namespace);
    }
    sql.push(" ORDER BY ").ident("CreatedAtInSec").push(" DESC LIMIT 1");
    one(tx, sql).await?.ok_or_else(|| Error::not_found("Namespace/Pipeline", &format!("{namespace}/{name}")))
}

/// One page of a namespace's pipelines: three queries.
///
/// # Errors
/// When the database fails.
pub async fn list(tx: &mut Tx, namespace: &str, options: &Options) -> Result<Page<Pipeline>> {
    let scope = [("Namespace", namespace.into()), ("Status", READY.into())];
    let mut found = page(tx, &LISTABLE, COLUMNS, &scope, Some(TAGS), options, read).await?;
    let ids: Vec<String> = found.items.iter().map(|pipeline| pipeline.id.clone()).collect();
    let mut tags = tags_of(tx, TAGS, &ids).await?;
    for pipeline in &mut found.items {
        pipeline.tags = tags.remove(&pipeline.id).unwrap_or_default();
    }
    Ok(found)
}

/// Changes display name and tags; an empty display name and absent tags leave them as they are.
///
/// # Errors
/// Code 5 when there is no such pipeline.
pub async fn update(
    tx: &mut Tx,
    id: &str,
    display_name: &str,
    tags: Option<&BTreeMap<String, String>>,
) -> Result<Pipeline> {
    let mut pipeline = get(tx, id).await?;
    if !display_name.is_empty() {
        let mut sql = Sql::update(tx.dialect(), TABLE, vec![("DisplayName", display_name.into())]);
        sql.and("UUID", "=", id);
        tx.execute(sql).await?;
        display_name.clone_into(&mut pipeline.display_name);
    }
    if let Some(tags) = tags {
        replace_tags(tx, TAGS, id, tags).await?;
        pipeline.tags.clone_from(tags);
    }
    Ok(pipeline)
}

/// Removes the pipeline; versions and tags go with it.
///
/// # Errors
/// Code 5 when there is no such pipeline.
pub async fn delete(tx: &mut Tx, id: &str) -> Result<()> {
    let mut sql = Sql::delete(tx.dialect(), TABLE);
    sql.and("UUID", "=", id);
    if tx.execute(sql).await? == 0 { Err(Error::not_found("Pipeline", id)) } else { Ok(()) }
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

/// Tags of several entities in one query.
///
/// # Errors
/// When the database fails.
pub async fn tags_of(
    tx: &mut Tx,
    (table, column): (&str, &str),
    ids: &[String],
) -> Result<BTreeMap<String, BTreeMap<String, String>>> {
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    if ids.is_empty() {
        return Ok(found);
    }
    let mut sql = Sql::select(tx.dialect(), table, &[column, "TagKey", "TagValue"]);
    sql.and_in(column, ids.iter().map(Value::from).collect());
    for row in tx.rows(sql).await? {
        found.entry(row.text(0)?).or_default().insert(row.text(1)?, row.text(2)?);
    }
    Ok(found)
}

/// Stores the tags of a new entity.
///
/// # Errors
/// When the database fails.
pub async fn put_tags(
    tx: &mut Tx,
    (table, column): (&str, &str),
    id: &str,
    tags: &BTreeMap<String, String>,
) -> Result<()> {
    for (key, value) in tags {
        let row = vec![(column, id.into()), ("TagKey", key.into()), ("TagValue", value.into())];
        tx.execute(Sql::insert(tx.dialect(), table, row)).await?;
    }
    Ok(())
}

/// Replaces all tags of an entity.
///
/// # Errors
/// When the database fails.
pub async fn replace_tags(tx: &mut Tx, table: (&str, &str), id: &str, tags: &BTreeMap<String, String>) -> Result<()> {
    let mut sql = Sql::delete(tx.dialect(), table.0);
    sql.and(table.1, "=", id);
    tx.execute(sql).await?;
    put_tags(tx, table, id, tags).await
}
