//! The index that finds runs by a part of their name, which else takes reading all names.

use super::super::engine::Link;
use super::super::runs::NAME_PARTS;
use super::super::sql::{Dialect, Sql};
use super::Catalog;
use crate::error::Result;

const TABLE: &str = "run_details";
const COLUMN: &str = "DisplayName";

/// SQLite: a table of all names, kept up to date by triggers. Rows are found by their ids, which unlike row numbers stay
/// when the file is compacted. A name that is too short for the index may stay in it; its run is not found any more.
const SQLITE: [&str; 5] = [
    r"CREATE VIRTUAL TABLE list_runs_by_name_part USING fts5(DisplayName, UUID UNINDEXED, tokenize = 'trigram')",
    r"INSERT INTO list_runs_by_name_part (DisplayName, UUID) SELECT DisplayName, UUID FROM run_details",
    r"CREATE TRIGGER list_run_by_name_part AFTER INSERT ON run_details BEGIN
        INSERT INTO list_runs_by_name_part (DisplayName, UUID) VALUES (new.DisplayName, new.UUID);
      END",
    r#"CREATE TRIGGER unlist_run_by_name_part AFTER DELETE ON run_details BEGIN
        DELETE FROM list_runs_by_name_part WHERE rowid IN (SELECT rowid FROM list_runs_by_name_part
            WHERE list_runs_by_name_part MATCH '"' || replace(old.DisplayName, '"', '""') || '"' AND UUID = old.UUID);
      END"#,
    r#"CREATE TRIGGER relist_run_by_name_part AFTER UPDATE OF DisplayName ON run_details
      WHEN new.DisplayName <> old.DisplayName BEGIN
        DELETE FROM list_runs_by_name_part WHERE rowid IN (SELECT rowid FROM list_runs_by_name_part
            WHERE list_runs_by_name_part MATCH '"' || replace(old.DisplayName, '"', '""') || '"' AND UUID = old.UUID);
        INSERT INTO list_runs_by_name_part (DisplayName, UUID) VALUES (new.DisplayName, new.UUID);
      END"#,
];

/// Makes the index where there is none. MySQL has nothing of the kind.
///
/// # Errors
/// When the database fails.
pub(super) async fn index(link: &mut Link, catalog: &Catalog) -> Result<()> {
    match link.dialect() {
        Dialect::Sqlite if !catalog.tables.contains_key(NAME_PARTS) => {
            for statement in SQLITE {
                link.text(statement).await?;
            }
        }
        Dialect::Postgres if !catalog.indexes.contains(&(TABLE.to_owned(), NAME_PARTS.to_owned())) => {
            postgres(link).await?;
        }
        _ => {}
    }
    Ok(())
}

/// PostgreSQL needs an extension that the owner of a database may install, where the server has it; all works without.
async fn postgres(link: &mut Link) -> Result<()> {
    let mut index = Sql::new(link.dialect());
    index.push("CREATE INDEX ").ident(NAME_PARTS).push(" ON ").ident(TABLE).push(" USING gin (").ident(COLUMN);
    // Without a list of pending entries, which one of many inserts would have to work off.
    index.push(" gin_trgm_ops) WITH (fastupdate = off)");
    link.text("SAVEPOINT name_parts").await?;
    let made = match link.text("CREATE EXTENSION IF NOT EXISTS pg_trgm").await {
        Ok(()) => link.run(&index).await.map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = made {
        tracing::info!(%error, "no index of the parts of runs' names: a search for one reads them all");
        link.text("ROLLBACK TO SAVEPOINT name_parts").await?;
    }
    Ok(link.text("RELEASE SAVEPOINT name_parts").await?)
}
