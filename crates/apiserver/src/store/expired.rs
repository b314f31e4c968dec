//! Runs whose time is up: finished ones to archive, archived ones to delete.

use super::db::Tx;
use super::sql::{Sql, Value};
use crate::domain::state::Storage;
use crate::error::Result;

/// Words of `State` and, for rows of old releases, `Conditions` that mean that a run has ended.
const ENDED: [&str; 5] = ["SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", "ERROR"];
const ENDED_CONDITIONS: [&str; 6] = ["Succeeded", "Failed", "Skipped", "Error", "Done", "Canceled"];
/// Words of `StorageState` that mean archived, newest first.
const ARCHIVED: [&str; 3] = ["ARCHIVED", "STORAGESTATE_ARCHIVED", "DISABLED"];
const TABLE: &str = "run_details";

fn words(words: &[&str]) -> Vec<Value> {
    words.iter().map(|word| (*word).into()).collect()
}

/// Archives at most `limit` runs that ended before `cutoff` (Unix seconds), oldest first, and returns how many.
///
/// # Errors
/// When the database fails.
pub async fn archive(tx: &mut Tx, cutoff: i64, limit: u32, now: i64) -> Result<u64> {
    let dialect = tx.dialect();
    let mut sql = Sql::select(dialect, TABLE, &["UUID"]);
    sql.and("FinishedAtInSec", ">", 0).and("FinishedAtInSec", "<", cutoff).push(" AND (").ident("StorageState");
    sql.push(" IS NULL OR ").ident("StorageState").push(" NOT IN (").binds(words(&ARCHIVED)).push(")) AND (");
    sql.ident("State").push(" IN (").binds(words(&ENDED)).push(") OR ((").ident("State").push(" IS NULL OR ");
    sql.ident("State").push(" = '') AND ").ident("Conditions").push(" IN (").binds(words(&ENDED_CONDITIONS));
    sql.push("))) ORDER BY ").ident("FinishedAtInSec").push(" LIMIT ").push(&limit.to_string());
    let ids: Vec<Value> = tx.rows(sql).await?.iter().map(|row| Ok(row.text(0)?.into())).collect::<Result<_>>()?;
    if ids.is_empty() {
        return Ok(0);
    }
    let set = vec![("StorageState", Storage::Archived.word().into()), ("ArchivedAtInSec", now.into())];
    let mut update = Sql::update(dialect, TABLE, set);
    update.and_in("UUID", ids);
    Ok(tx.execute(update).await?)
}

/// Ids of at most `limit` archived runs that ended before `cutoff` and were archived before it; runs that were archived
/// before releases kept that time count by their end alone.
///
/// # Errors
/// When the database fails.
pub async fn archived(tx: &mut Tx, cutoff: i64, limit: u32) -> Result<Vec<String>> {
    let mut sql = Sql::select(tx.dialect(), TABLE, &["UUID"]);
    sql.and_in("StorageState", words(&ARCHIVED)).and("FinishedAtInSec", ">", 0).and("FinishedAtInSec", "<", cutoff);
    sql.push(" AND (").ident("ArchivedAtInSec").push(" IS NULL OR ").ident("ArchivedAtInSec").push(" < ").bind(cutoff);
    sql.push(") ORDER BY ").ident("ArchivedAtInSec").push(" LIMIT ").push(&limit.to_string());
    tx.rows(sql).await?.iter().map(|row| row.text(0)).collect()
}
