//! Whether the sample pipelines were loaded.

use super::db::Tx;
use super::sql::Sql;
use crate::error::Result;

const TABLE: &str = "db_statuses";
const COLUMN: &str = "HaveSamplesLoaded";

/// Whether samples were loaded into this database.
///
/// # Errors
/// When the database fails.
pub async fn loaded(tx: &mut Tx) -> Result<bool> {
    let sql = Sql::select(tx.dialect(), TABLE, &[COLUMN]);
    tx.row(sql).await?.map_or(Ok(false), |row| row.bool(0))
}

/// Records that samples were loaded.
///
/// # Errors
/// When the database fails.
pub async fn mark_loaded(tx: &mut Tx) -> Result<()> {
    tx.execute(Sql::update(tx.dialect(), TABLE, vec![(COLUMN, true.into())])).await?;
    Ok(())
}
