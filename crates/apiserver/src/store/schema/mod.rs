//! The schema: created where there is none, and brought up to date in place where upstream or an earlier release of ours
//! made it. Nothing that upstream made since 2.15 is ever dropped, resized or given another type, so that upstream can take
//! the database back; what is older becomes what upstream's own upgrade makes of it.

mod legacy;
mod parts;
mod tables;

use std::collections::{BTreeMap, BTreeSet};

use super::engine::Link;
use super::sql::{Dialect, Sql};
use crate::error::{Error, Result};
use tables::{TABLES, Table};

/// Seconds that a replica waits for another one that is at the schema.
const LOCK_SECONDS: i64 = 3600;
/// Name of that lock on MySQL, and its number on PostgreSQL.
const LOCK: (&str, i64) = ("ml-pipeline-schema", 0x6d6c_7069_7065);

/// What the database has.
#[derive(Debug, Default)]
struct Catalog {
    /// Columns by table with the length of varchar ones (0: none or no limit).
    tables: BTreeMap<String, BTreeMap<String, i64>>,
    /// (table, index).
    indexes: BTreeSet<(String, String)>,
    /// (table, foreign key).
    foreign: BTreeSet<(String, String)>,
}

/// How many characters a column of upstream's schema on MySQL takes, if that is limited.
pub(super) fn limit(table: &str, column: &str) -> Option<usize> {
    let table = TABLES.iter().find(|known| known.name == table)?;
    let (_, kind, _) = table.columns.iter().find(|(name, _, _)| *name == column)?;
    kind.limit(Dialect::MySql)
}

fn failed(error: impl Into<Error>) -> Error {
    error.into().wrap("cannot bring the database schema up to date")
}

async fn pairs(link: &mut Link, text: &str) -> Result<BTreeSet<(String, String)>> {
    let mut sql = Sql::new(link.dialect());
    sql.push(text);
    let done = link.run(&sql).await?;
    done.rows.iter().map(|row| Ok((row.text(0)?, row.text(1)?))).collect()
}

impl Catalog {
    async fn read(link: &mut Link) -> Result<Self> {
        let (columns, indexes, foreign) = match link.dialect() {
            Dialect::Sqlite => (
                "SELECT t.name, c.name, 0 FROM sqlite_master t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'",
                "SELECT tbl_name, name FROM sqlite_master WHERE type = 'index'",
                // They cannot be added to a table that exists.
                "SELECT t.name, '' FROM sqlite_master t WHERE 1 = 0",
            ),
            Dialect::MySql => (
                "SELECT TABLE_NAME, COLUMN_NAME, CAST(COALESCE(CHARACTER_MAXIMUM_LENGTH, 0) AS SIGNED) \
                 FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE()",
                "SELECT DISTINCT TABLE_NAME, INDEX_NAME FROM information_schema.STATISTICS \
                 WHERE TABLE_SCHEMA = DATABASE()",
                "SELECT TABLE_NAME, CONSTRAINT_NAME FROM information_schema.TABLE_CONSTRAINTS \
                 WHERE TABLE_SCHEMA = DATABASE() AND CONSTRAINT_TYPE = 'FOREIGN KEY'",
            ),
            Dialect::Postgres => (
                "SELECT CAST(table_name AS text), CAST(column_name AS text), \
                 CAST(COALESCE(character_maximum_length, 0) AS bigint) \
                 FROM information_schema.columns WHERE table_schema = current_schema()",
                "SELECT CAST(tablename AS text), CAST(indexname AS text) FROM pg_indexes \
                 WHERE schemaname = current_schema()",
                "SELECT CAST(table_name AS text), CAST(constraint_name AS text) \
                 FROM information_schema.table_constraints \
                 WHERE table_schema = current_schema() AND constraint_type = 'FOREIGN KEY'",
            ),
        };
        let mut sql = Sql::new(link.dialect());
        sql.push(columns);
        let mut catalog = Catalog::default();
        for row in link.run(&sql).await?.rows {
            catalog.tables.entry(row.text(0)?).or_default().insert(row.text(1)?, row.int(2)?);
        }
        catalog.indexes = pairs(link, indexes).await?;
        catalog.foreign = pairs(link, foreign).await?;
        Ok(catalog)
    }

    /// The statements that a table still needs.
    fn missing(&self, dialect: Dialect, table: &Table) -> Result<Vec<Sql>> {
        let name = table.name;
        let mut all = Vec::new();
        let Some(columns) = self.tables.get(name) else {
            all.push(table.create(dialect));
            if dialect != Dialect::MySql {
                all.extend(table.indexes().map(|(unique, index)| create_index(dialect, table, unique, index)));
            }
            return Ok(all);
        };
        for column in table.columns.iter().filter(|column| !columns.contains_key(column.0)) {
            if matches!(column.2, tables::Null::Not) {
                return Err(Error::internal(
                    format!("table {name} has no column {}", column.0),
                    "this is no schema of Kubeflow Pipelines 2.15 or later",
                ));
            }
            let mut sql = Sql::new(dialect);
            sql.push("ALTER TABLE ").ident(name).push(" ADD COLUMN ");
            Table::define(&mut sql, column);
            all.push(sql);
        }
        let known = |set: &BTreeSet<(String, String)>, part: &str| set.contains(&(name.to_owned(), part.to_owned()));
        for (unique, index) in table.indexes().filter(|(_, index)| !known(&self.indexes, index.0)) {
            all.push(create_index(dialect, table, unique, index));
        }
        if dialect != Dialect::Sqlite {
            for foreign in table.foreign.iter().filter(|foreign| !known(&self.foreign, foreign.0)) {
                let mut sql = Sql::new(dialect);
                sql.push("ALTER TABLE ").ident(name).push(" ADD ");
                Table::reference(&mut sql, foreign);
                all.push(sql);
            }
        }
        Ok(all)
    }
}

fn create_index(dialect: Dialect, table: &Table, unique: bool, (name, columns): &tables::Index) -> Sql {
    let mut sql = Sql::new(dialect);
    sql.push(if unique { "CREATE UNIQUE INDEX " } else { "CREATE INDEX " });
    sql.ident(name).push(" ON ").ident(table.name).push(" (").columns(columns).push(")");
    sql
}

/// Creates what is missing and seeds the two one-row tables. Replicas that start together do it one after the other. On
/// SQLite and PostgreSQL all of it happens or nothing; on MySQL, which cannot do that, the next start goes on.
///
/// # Errors
/// When the database refuses a statement, or has a schema that is older than what can be brought up to date.
pub(super) async fn bring_up_to_date(link: &mut Link) -> Result<()> {
    lock(link).await.map_err(failed)?;
    let done = change(link).await;
    let end = match link.dialect() {
        Dialect::Sqlite | Dialect::Postgres if done.is_ok() => "COMMIT",
        Dialect::Sqlite | Dialect::Postgres => "ROLLBACK",
        Dialect::MySql => "DO RELEASE_LOCK('ml-pipeline-schema')",
    };
    let ended = link.text(end).await;
    done?;
    ended.map_err(failed)
}

async fn lock(link: &mut Link) -> Result<()> {
    let mut sql = Sql::new(link.dialect());
    match link.dialect() {
        Dialect::Sqlite => return Ok(link.text("BEGIN IMMEDIATE").await?),
        Dialect::Postgres => {
            link.text("BEGIN").await?;
            sql.push("SELECT pg_advisory_xact_lock(").bind(LOCK.1).push(")");
        }
        Dialect::MySql => drop(sql.push("SELECT GET_LOCK(").bind(LOCK.0).push(", ").bind(LOCK_SECONDS).push(")")),
    }
    let done = link.run(&sql).await?;
    let held = link.dialect() != Dialect::MySql || done.rows.first().map_or(Ok(0), |row| row.int(0))? == 1;
    if held { Ok(()) } else { Err(Error::unavailable("another server holds the lock", LOCK.0)) }
}

async fn change(link: &mut Link) -> Result<()> {
    let dialect = link.dialect();
    let mut catalog = Catalog::read(link).await.map_err(failed)?;
    if legacy::is_legacy(&catalog, dialect) {
        legacy::upgrade(link, &catalog).await?;
        catalog = Catalog::read(link).await.map_err(failed)?;
    }
    for table in TABLES {
        for sql in catalog.missing(dialect, table).map_err(failed)? {
            if catalog.tables.contains_key(table.name) {
                tracing::info!(table = table.name, statement = sql.text(), "changing the database schema");
            }
            link.run(&sql).await.map_err(failed)?;
        }
    }
    parts::index(link, &catalog).await.map_err(failed)?;
    for (table, column, seed) in
        [("db_statuses", "HaveSamplesLoaded", false.into()), ("default_experiments", "DefaultExperimentId", "".into())]
    {
        let seeded = link.run(Sql::select(dialect, table, &[column]).push(" LIMIT 1")).await.map_err(failed)?;
        if seeded.rows.is_empty() {
            link.run(&Sql::insert(dialect, table, vec![(column, seed)])).await.map_err(failed)?;
        }
    }
    Ok(())
}
