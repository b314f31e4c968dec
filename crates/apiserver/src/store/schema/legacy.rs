//! The schema of releases before 2.15, brought up to today's in place as upstream's own 2.15 and later do it: shorter keys,
//! display names, no index twice. Every step can be repeated, and the column that tells an old schema is changed last, so a
//! start that was interrupted is taken up by the next one.

use super::super::engine::Link;
use super::super::sql::{Dialect, Sql};
use super::tables::{Null, TABLES, Table, Type, type_name};
use super::{Catalog, failed};
use crate::error::{Error, Result};

/// Longest `pipelines.UUID` of the schema that upstream uses since 2.15.
const MODERN_ID: i64 = 64;
/// Examples of values that are too long, and how much of each is shown.
const EXAMPLES: (&str, usize) = (" LIMIT 5", 50);
/// Indexes of releases that are older still, or that stand beside one of the same columns.
const RELICS: [(&str, &str); 4] = [
    ("experiments", "Name"),
    ("pipelines", "Name"),
    ("pipelines", "name_namespace_index"),
    ("pipeline_versions", "idx_pipeline_version_uuid_name"),
];
/// Columns that releases before 2.0 kept as references only: table, column, and both types of the reference.
const REFERENCES: [(&str, &str, &str, &str); 8] = [
    ("run_details", "ExperimentUUID", "Run", "Experiment"),
    ("run_details", "Namespace", "Run", "Namespace"),
    ("run_details", "JobUUID", "Run", "Job"),
    ("run_details", "PipelineVersionId", "Run", "PipelineVersion"),
    ("jobs", "ExperimentUUID", "Job", "Experiment"),
    ("jobs", "Namespace", "Job", "Namespace"),
    ("jobs", "PipelineId", "Job", "pipeline"),
    ("jobs", "PipelineVersionId", "Job", "PipelineVersion"),
];

/// Whether a release before 2.15 made the schema. Upstream tells it by the same column.
pub(super) fn is_legacy(catalog: &Catalog, dialect: Dialect) -> bool {
    let length = catalog.tables.get("pipelines").and_then(|columns| columns.get("UUID"));
    dialect != Dialect::Sqlite && length.is_some_and(|length| !(1..=MODERN_ID).contains(length))
}

/// Gives the tables that exist today's columns and drops keys and indexes that are in the way; what is missing after it is
/// missing from a newer schema too.
///
/// # Errors
/// When values are too long for their columns, the schema is older than 2.0, or the database refuses a statement.
pub(super) async fn upgrade(link: &mut Link, catalog: &Catalog) -> Result<()> {
    if let Some(table) = ["pipeline_versions", "run_details"].iter().find(|table| !catalog.tables.contains_key(**table))
    {
        return Err(Error::internal(
            format!("the database has no table {table}"),
            "its schema is older than that of release 2.0: start a 2.x release of Kubeflow Pipelines on it once",
        ));
    }
    let existing = || TABLES.iter().filter(|table| catalog.tables.contains_key(table.name));
    for table in existing() {
        check_lengths(link, catalog, table).await?;
    }
    tracing::warn!(
        "the database has the schema of a release before 2.15; its tables are rewritten, which takes a while"
    );
    // Columns of a foreign key cannot be changed. Those of today come back under today's names.
    for (table, key) in
        catalog.foreign.iter().filter(|(name, _)| TABLES.iter().any(|table| table.name == name.as_str()))
    {
        let mut sql = alter(link.dialect(), table);
        sql.push(if link.dialect() == Dialect::MySql { "DROP FOREIGN KEY " } else { "DROP CONSTRAINT " }).ident(key);
        change(link, &sql).await?;
    }
    for table in existing() {
        tidy_indexes(link, catalog, table).await?;
    }
    let (last, others): (Vec<_>, Vec<_>) = existing().partition(|table| table.name == "pipelines");
    for table in others {
        reshape(link, catalog, table).await?;
    }
    for (table, column, kind, reference) in REFERENCES {
        if ["resource_references", table].iter().all(|name| catalog.tables.contains_key(*name)) {
            refer(link, table, column, (kind, reference)).await?;
        }
    }
    for table in last {
        reshape(link, catalog, table).await?;
    }
    Ok(())
}

fn alter(dialect: Dialect, table: &str) -> Sql {
    let mut sql = Sql::new(dialect);
    sql.push("ALTER TABLE ").ident(table).push(" ");
    sql
}

async fn change(link: &mut Link, sql: &Sql) -> Result<()> {
    tracing::info!(statement = sql.text(), "changing the database schema");
    link.run(sql).await.map(drop).map_err(failed)
}

async fn check_lengths(link: &mut Link, catalog: &Catalog, table: &Table) -> Result<()> {
    let dialect = link.dialect();
    for (column, kind, _) in table.columns {
        let Some(limit) = kind.limit(dialect).and_then(|limit| i64::try_from(limit).ok()) else { continue };
        let length = catalog.tables.get(table.name).and_then(|columns| columns.get(*column));
        if length.is_none_or(|length| (1..=limit).contains(length)) {
            continue;
        }
        let mut sql = Sql::select(dialect, table.name, &[column]);
        sql.push(" WHERE CHAR_LENGTH(").ident(column).push(") > ").bind(limit).push(EXAMPLES.0);
        let found = link.run(&sql).await.map_err(failed)?;
        let values = found.rows.iter().map(|row| Ok(row.text(0)?.chars().take(EXAMPLES.1).collect()));
        let values: Vec<String> = values.collect::<Result<_>>()?;
        if !values.is_empty() {
            return Err(failed(Error::internal(
                format!("{}.{column} has values of more than {limit} characters", table.name),
                format!("shorten them first: {}", values.join(", ")),
            )));
        }
    }
    Ok(())
}

async fn tidy_indexes(link: &mut Link, catalog: &Catalog, table: &Table) -> Result<()> {
    let dialect = link.dialect();
    let known = |index: &str| catalog.indexes.contains(&(table.name.to_owned(), index.to_owned()));
    for (_, index) in RELICS.iter().filter(|(name, index)| *name == table.name && known(index)) {
        let mut sql = Sql::new(dialect);
        sql.push("DROP INDEX ").ident(index);
        if dialect == Dialect::MySql {
            sql.push(" ON ").ident(table.name);
        }
        change(link, &sql).await?;
    }
    // Releases before 2.15 did not quote the names, which PostgreSQL then wrote small.
    for (_, (name, _)) in table.indexes().filter(|_| dialect == Dialect::Postgres) {
        let small = name.to_lowercase();
        if known(&small) && !known(name) {
            let mut sql = Sql::new(dialect);
            sql.push("ALTER INDEX ").ident(&small).push(" RENAME TO ").ident(name);
            change(link, &sql).await?;
        }
    }
    Ok(())
}

/// Gives a table today's columns: those that are missing, and type, length, default and NOT NULL of the others.
async fn reshape(link: &mut Link, catalog: &Catalog, table: &Table) -> Result<()> {
    let dialect = link.dialect();
    let columns = catalog.tables.get(table.name);
    for (name, kind, null) in table.columns {
        if columns.is_none_or(|columns| !columns.contains_key(*name)) {
            // Rows have to get a value before it may not be NULL.
            let null = if matches!(null, Null::Not) { &Null::Yes } else { null };
            let mut sql = alter(dialect, table.name);
            sql.push("ADD COLUMN ");
            Table::define(&mut sql, &(*name, *kind, *null));
            change(link, &sql).await?;
        }
    }
    change(link, &fill(dialect, table)).await?;
    let mut sql = alter(dialect, table.name);
    for (place, column) in table.columns.iter().enumerate() {
        sql.push(if place == 0 { "" } else { ", " });
        match dialect {
            Dialect::Postgres => redefine(&mut sql, column),
            Dialect::MySql | Dialect::Sqlite => Table::define(sql.push("MODIFY COLUMN "), column),
        }
    }
    change(link, &sql).await
}

/// PostgreSQL changes type, NULL and default of a column one by one.
fn redefine(sql: &mut Sql, (name, kind, null): &(&str, Type, Null)) {
    let kind = type_name(sql.dialect(), *kind);
    sql.push("ALTER COLUMN ").ident(name).push(" TYPE ").push(&kind);
    sql.push(", ALTER COLUMN ").ident(name);
    sql.push(if matches!(null, Null::Not) { " SET NOT NULL" } else { " DROP NOT NULL" });
    sql.push(", ALTER COLUMN ").ident(name);
    sql.push(if matches!(null, Null::Zero) { " SET DEFAULT 0" } else { " DROP DEFAULT" });
}

/// Replaces NULL where it is no longer allowed: display names by names, the rest by nothing, zero or false.
fn fill(dialect: Dialect, table: &Table) -> Sql {
    let required = || table.columns.iter().filter(|(_, _, null)| matches!(null, Null::Not));
    let mut sql = Sql::new(dialect);
    sql.push("UPDATE ").ident(table.name).push(" SET ");
    for (place, (name, kind, _)) in required().enumerate() {
        sql.push(if place == 0 { "" } else { ", " }).ident(name).push(" = COALESCE(").ident(name).push(", ");
        match kind {
            Type::Key(_) | Type::Short | Type::Long if *name == "DisplayName" => sql.ident("Name"),
            Type::Key(_) | Type::Short | Type::Long => sql.push("''"),
            Type::Int | Type::Float => sql.push("0"),
            Type::Bool => sql.push("FALSE"),
        };
        sql.push(")");
    }
    for (place, (name, _, _)) in required().enumerate() {
        sql.push(if place == 0 { " WHERE " } else { " OR " }).ident(name).push(" IS NULL");
    }
    sql
}

/// Fills an empty column from the references of its rows.
async fn refer(link: &mut Link, table: &str, column: &str, (kind, reference): (&str, &str)) -> Result<()> {
    let mut sql = Sql::new(link.dialect());
    let found = |sql: &mut Sql| {
        sql.push(" FROM resource_references WHERE ")
            .ident("ResourceUUID")
            .push(" = ")
            .ident(table)
            .push(".")
            .ident("UUID");
        sql.push(" AND ").ident("ResourceType").push(" = ").bind(kind);
        sql.push(" AND ").ident("ReferenceType").push(" = ").bind(reference).push(")");
    };
    sql.push("UPDATE ").ident(table).push(" SET ").ident(column).push(" = (SELECT ").ident("ReferenceUUID");
    found(&mut sql);
    sql.push(" WHERE COALESCE(").ident(column).push(", '') = '' AND EXISTS (SELECT 1");
    found(&mut sql);
    change(link, &sql).await
}
