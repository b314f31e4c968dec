//! Pipeline versions and their specs.

use std::collections::BTreeMap;

use super::db::{Failure, Row, Tx};
use super::list::{Listable, Options, Page, text, time};
use super::pipelines::READY;
use super::sql::{Sql, Value};
use super::tagged::{self, Kind, Tagged, Tags};
use crate::error::{Error, Result};

/// A row of `pipeline_versions` with its tags.
#[derive(Clone, Debug)]
pub struct Version {
    /// Primary key.
    pub id: String,
    /// Unix seconds.
    pub created_at: i64,
    /// Unique within the pipeline.
    pub name: String,
    /// Shown to users.
    pub display_name: String,
    /// Pipeline that it belongs to.
    pub pipeline_id: String,
    /// Where the source lives.
    pub code_source_url: String,
    /// Free text.
    pub description: String,
    /// Where the package came from.
    pub spec_uri: String,
    /// Parameters of an Argo Workflow, JSON array of names, values and defaults; `[]` for pipeline specs.
    pub parameters: String,
    /// The normalised package; empty in lists.
    pub spec: String,
    /// Labels of the version.
    pub tags: Tags,
}

const TABLE: &str = "pipeline_versions";
const LIST_COLUMNS: &[&str] = &[
    "UUID",
    "CreatedAtInSec",
    "Name",
    "DisplayName",
    "PipelineId",
    "CodeSourceUrl",
    "Description",
    "PipelineSpecURI",
    "Parameters",
];
/// [`LIST_COLUMNS`] and the spec.
const COLUMNS: &[&str] = &[
    "UUID",
    "CreatedAtInSec",
    "Name",
    "DisplayName",
    "PipelineId",
    "CodeSourceUrl",
    "Description",
    "PipelineSpecURI",
    "Parameters",
    "PipelineSpec",
];

/// How versions are listed.
pub static LISTABLE: Listable = Listable {
    kind: "PipelineVersion",
    table: TABLE,
    created: "CreatedAtInSec",
    fields: &[
        text("id", "UUID"),
        text("pipeline_version_id", "UUID"),
        text("name", "Name"),
        text("display_name", "DisplayName"),
        time("created_at", "CreatedAtInSec"),
        text("status", "Status"),
        text("description", "Description").nullable(),
        text("pipeline_spec", "PipelineSpec"),
    ],
    tags: Some(Version::KIND.tags),
    parts: None,
    metrics: None,
};

impl Tagged for Version {
    const KIND: Kind =
        Kind { table: TABLE, tags: ("pipeline_version_tags", "PipelineVersionId"), name: "PipelineVersion" };

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

fn read_light(row: &Row) -> Result<Version> {
    let mut cursor = row.cursor();
    Ok(Version {
        id: cursor.text()?,
        created_at: cursor.int()?,
        name: cursor.text()?,
        display_name: cursor.text()?,
        pipeline_id: cursor.text()?,
        code_source_url: cursor.text()?,
        description: cursor.text()?,
        spec_uri: cursor.text()?,
        parameters: cursor.text()?,
        spec: String::new(),
        tags: Tags::new(),
    })
}

fn read(row: &Row) -> Result<Version> {
    Ok(Version { spec: row.text(LIST_COLUMNS.len())?, ..read_light(row)? })
}

/// Stores a new version.
///
/// # Errors
/// Code 6 when the name is taken in the pipeline, 5 when the pipeline does not exist.
pub async fn insert(tx: &mut Tx, version: &Version) -> Result<()> {
    let row = vec![
        ("UUID", (&version.id).into()),
        ("CreatedAtInSec", version.created_at.into()),
        ("Name", (&version.name).into()),
        ("DisplayName", (&version.display_name).into()),
        ("Parameters", (&version.parameters).into()),
        ("PipelineId", (&version.pipeline_id).into()),
        ("Status", READY.into()),
        ("CodeSourceUrl", (&version.code_source_url).into()),
        ("Description", (&version.description).into()),
        ("PipelineSpec", (&version.spec).into()),
        ("PipelineSpecURI", (&version.spec_uri).into()),
    ];
    match tx.execute(Sql::insert(tx.dialect(), TABLE, row)).await {
        Err(Failure::Duplicate) => Err(Error::already_exists(format!(
            "Failed to create a new pipeline version. The name {} already exist. Specify a new name",
            version.name
        ))),
        Err(Failure::MissingParent) => Err(Error::not_found("Pipeline", &version.pipeline_id)),
        Err(other) => Err(other.into()),
        Ok(_) => tagged::put_tags::<Version>(tx, &version.id, &version.tags).await,
    }
}

/// The version with this id.
///
/// # Errors
/// Code 5 when there is none.
pub async fn get(tx: &mut Tx, id: &str) -> Result<Version> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("UUID", "=", id).and("Status", "=", READY);
    tagged::one(tx, sql, read).await?.ok_or_else(|| Error::not_found("PipelineVersion", id))
}

/// Id of the pipeline that a version belongs to.
///
/// # Errors
/// Code 5 when there is no such version.
pub async fn parent(tx: &mut Tx, id: &str) -> Result<String> {
    let mut sql = Sql::select(tx.dialect(), TABLE, &["PipelineId"]);
    sql.and("UUID", "=", id).and("Status", "=", READY);
    tx.row(sql).await?.ok_or_else(|| Error::not_found("PipelineVersion", id))?.text(0)
}

/// The newest version of a pipeline.
///
/// # Errors
/// Code 5 when the pipeline has none.
pub async fn latest(tx: &mut Tx, pipeline_id: &str) -> Result<Version> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("PipelineId", "=", pipeline_id).and("Status", "=", READY);
    sql.push(" ORDER BY ").ident("CreatedAtInSec").push(" DESC, ").ident("UUID").push(" DESC LIMIT 1");
    tagged::one(tx, sql, read).await?.ok_or_else(|| Error::not_found("PipelineVersion of pipeline", pipeline_id))
}

/// One page of a pipeline's versions, without their specs: three queries.
///
/// # Errors
/// When the database fails.
pub async fn list(tx: &mut Tx, pipeline_id: &str, options: &Options) -> Result<Page<Version>> {
    let scope = [("PipelineId", pipeline_id.into()), ("Status", READY.into())];
    tagged::list(tx, &LISTABLE, LIST_COLUMNS, &scope, options, read_light).await
}

/// Changes display name and tags; an empty display name and absent tags leave them as they are.
///
/// # Errors
/// Code 5 when there is no such version.
pub async fn update(tx: &mut Tx, id: &str, display_name: &str, tags: Option<&Tags>) -> Result<Version> {
    let version = get(tx, id).await?;
    tagged::update(tx, version, display_name, tags).await
}

/// Removes the version; runs made from it stay.
///
/// # Errors
/// Code 5 when there is no such version.
pub async fn delete(tx: &mut Tx, id: &str) -> Result<()> {
    tagged::delete::<Version>(tx, id).await
}

/// Id of some version of the pipeline, if it has any.
///
/// # Errors
/// When the database fails.
pub async fn any(tx: &mut Tx, pipeline_id: &str) -> Result<Option<String>> {
    let mut sql = Sql::select(tx.dialect(), TABLE, &["UUID"]);
    sql.and("PipelineId", "=", pipeline_id).and("Status", "=", READY).push(" LIMIT 1");
    tx.row(sql).await?.map(|row| row.text(0)).transpose()
}

/// The newest version of each of several pipelines, without specs and tags, by pipeline: one query.
///
/// # Errors
/// When the database fails.
pub async fn latest_of(tx: &mut Tx, pipeline_ids: &[String]) -> Result<BTreeMap<String, Version>> {
    if pipeline_ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut sql = Sql::new(tx.dialect());
    sql.push("SELECT ").columns(LIST_COLUMNS).push(" FROM (SELECT ").columns(LIST_COLUMNS);
    sql.push(", ROW_NUMBER() OVER (PARTITION BY ").ident("PipelineId").push(" ORDER BY ").ident("CreatedAtInSec");
    sql.push(" DESC, ").ident("UUID").push(" DESC) AS place FROM ").ident(TABLE);
    sql.and_in("PipelineId", pipeline_ids.iter().map(Value::from).collect()).and("Status", "=", READY);
    sql.push(") AS ranked WHERE place = 1");
    let versions = tx.rows(sql).await?.iter().map(read_light).collect::<Result<Vec<_>>>()?;
    Ok(versions.into_iter().map(|version| (version.pipeline_id.clone(), version)).collect())
}

/// Specs of several versions by id: one query.
///
/// # Errors
/// When the database fails.
pub async fn specs(tx: &mut Tx, ids: &[String]) -> Result<BTreeMap<String, String>> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut sql = Sql::select(tx.dialect(), TABLE, &["UUID", "PipelineSpec"]);
    sql.and_in("UUID", ids.iter().map(Value::from).collect());
    tx.rows(sql).await?.iter().map(|row| Ok((row.text(0)?, row.text(1)?))).collect()
}
