//! Metrics that v1 runs report.

use std::collections::BTreeMap;

use super::db::{Failure, Tx};
use super::sql::{Sql, Value};
use crate::error::{Error, Result};

/// A row of `run_metrics`.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Metric {
    /// Run that reported it.
    #[serde(rename = "RunUUID")]
    pub run_id: String,
    /// Node that reported it.
    #[serde(rename = "NodeID")]
    pub node_id: String,
    /// Unique within the node.
    pub name: String,
    /// The value.
    #[serde(rename = "NumberValue")]
    pub value: f64,
    /// Name of the v1beta1 enum value.
    pub format: String,
}

const TABLE: &str = "run_metrics";

/// Stores a metric. False when the node has reported one of this name.
///
/// # Errors
/// Code 5 when there is no such run.
pub async fn insert(tx: &mut Tx, metric: &Metric) -> Result<bool> {
    let mut payload = serde_json::json!(metric);
    payload["Payload"] = "".into();
    let row = vec![
        ("RunUUID", (&metric.run_id).into()),
        ("NodeID", (&metric.node_id).into()),
        ("Name", (&metric.name).into()),
        ("NumberValue", if metric.value.is_finite() { metric.value.into() } else { Value::Null }),
        ("Format", (&metric.format).into()),
        ("Payload", payload.to_string().into()),
    ];
    match tx.execute(Sql::insert(tx.dialect(), TABLE, row)).await {
        Ok(_) => Ok(true),
        Err(Failure::Duplicate) => Ok(false),
        Err(Failure::MissingParent) => Err(Error::not_found("Run", &metric.run_id)),
        Err(other) => Err(other.into()),
    }
}

/// Metrics of several runs by run: one query. Damaged rows are left out, as upstream does.
///
/// # Errors
/// When the database fails.
pub async fn of_runs(tx: &mut Tx, run_ids: &[String]) -> Result<BTreeMap<String, Vec<Metric>>> {
    let mut found: BTreeMap<String, Vec<Metric>> = BTreeMap::new();
    if run_ids.is_empty() {
        return Ok(found);
    }
    let mut sql = Sql::select(tx.dialect(), TABLE, &["Payload"]);
    sql.and_in("RunUUID", run_ids.iter().map(Value::from).collect());
    sql.push(" ORDER BY ").columns(&["RunUUID", "NodeID", "Name"]);
    for row in tx.rows(sql).await? {
        if let Ok(metric) = serde_json::from_str::<Metric>(&row.text(0)?) {
            found.entry(metric.run_id.clone()).or_default().push(metric);
        }
    }
    Ok(found)
}
