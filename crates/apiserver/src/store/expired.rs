//! Runs that are looked at by the server itself: finished ones to archive, archived ones to delete, unfinished ones whose
//! Workflow may be gone.

use super::db::{Row, Tx};
use super::sql::{Sql, Value};
use crate::domain::state::{State, Storage};
use crate::error::Result;

/// Words of `State` and, for rows of old releases, `Conditions` that mean that a run has ended.
const ENDED: [&str; 5] = ["SUCCEEDED", "FAILED", "SKIPPED", "CANCELED", "ERROR"];
const ENDED_CONDITIONS: [&str; 6] = ["Succeeded", "Failed", "Skipped", "Error", "Done", "Canceled"];
/// Words of `StorageState` that mean archived, newest first.
const ARCHIVED: [&str; 3] = ["ARCHIVED", "STORAGESTATE_ARCHIVED", "DISABLED"];
/// States of runs that go on.
const UNFINISHED: [State; 5] = [State::Pending, State::Running, State::Canceling, State::Paused, State::Unspecified];
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

/// A run that has not ended.
#[derive(Clone, Debug)]
pub struct Unfinished {
    /// Its id.
    pub id: String,
    /// Name of its Workflow.
    pub workflow: String,
    /// Namespace; empty for the installation's own.
    pub namespace: String,
    /// When it was created, Unix seconds.
    pub created_at: i64,
}

/// At most `limit` runs that have not ended, created before `cutoff` and not retried since, by creation after `after`.
///
/// # Errors
/// When the database fails.
pub async fn unfinished(tx: &mut Tx, cutoff: i64, after: Option<&Unfinished>, limit: u32) -> Result<Vec<Unfinished>> {
    let columns = ["UUID", "Name", "Namespace", "CreatedAtInSec"];
    let mut sql = Sql::select(tx.dialect(), TABLE, &columns);
    sql.and_in("State", UNFINISHED.map(|state| state.word().into()).to_vec());
    sql.and("CreatedAtInSec", "<", cutoff).push(" AND COALESCE(").ident("RetryClaimedAtInSec").push(", 0) < ");
    sql.bind(cutoff);
    if let Some(last) = after {
        sql.push(" AND (").ident("CreatedAtInSec").push(" > ").bind(last.created_at).push(" OR (");
        sql.ident("CreatedAtInSec").push(" = ").bind(last.created_at).push(" AND ").ident("UUID").push(" > ");
        sql.bind(last.id.as_str()).push("))");
    }
    sql.push(" ORDER BY ").ident("CreatedAtInSec").push(", ").ident("UUID").push(" LIMIT ").push(&limit.to_string());
    let read = |row: &Row| {
        Ok(Unfinished { id: row.text(0)?, workflow: row.text(1)?, namespace: row.text(2)?, created_at: row.int(3)? })
    };
    tx.rows(sql).await?.iter().map(read).collect()
}
