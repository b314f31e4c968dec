//! What runs and recurring runs were made from: the columns that both tables have.

use std::collections::BTreeMap;

use super::db::Tx;
use super::sql::{Sql, Value};
use crate::error::Result;

/// The specs of a run or recurring run; at most one is set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Specs {
    /// Pipeline spec (v2).
    pub pipeline: String,
    /// Argo Workflow (v1).
    pub workflow: String,
}

/// Specs of several rows of `table` by id.
pub(super) async fn of(tx: &mut Tx, table: &str, ids: &[String]) -> Result<BTreeMap<String, Specs>> {
    if ids.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut sql = Sql::select(tx.dialect(), table, &["UUID", "PipelineSpecManifest", "WorkflowSpecManifest"]);
    sql.and_in("UUID", ids.iter().map(Value::from).collect());
    let read = |row: &super::db::Row| Ok((row.text(0)?, Specs { pipeline: row.text(1)?, workflow: row.text(2)? }));
    tx.rows(sql).await?.iter().map(read).collect()
}
