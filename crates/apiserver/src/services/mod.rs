//! One file for each gRPC service: requests to domain values, domain values to answers.

pub mod experiments;
pub mod pipelines;
pub mod recurring_runs;
pub mod reports;
mod retry;
pub mod runs;
pub mod tasks;
pub mod v1;

use std::sync::Arc;

use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;

use crate::error::{Error, Result};
use crate::store::filter::Generation;
use crate::store::{Db, list};
use crate::workflows::cluster::Cluster;
use crate::workflows::fetch::Policy;

/// What every service needs.
#[derive(Debug)]
pub struct App {
    /// Rows.
    pub db: Db,
    /// Kubernetes.
    pub cluster: Cluster,
    /// What compiled Workflows carry.
    pub compiler: kfp_compiler::Options,
    /// Namespace of Workflows in single-user mode.
    pub namespace: String,
    /// Seconds before a Workflow without a run is deleted.
    pub grace_seconds: i64,
    /// Which pipelines may be downloaded.
    pub urls: Policy,
}

/// Handle that the services share.
pub type Handle = Arc<App>;

/// A fresh random id.
#[must_use]
pub fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// The message field `field`, which must be there.
fn required<T>(value: Option<T>, field: &str) -> Result<T> {
    value.ok_or_else(|| Error::invalid(format!("{field} is required")))
}

/// Paging fields of a v2beta1 list request.
fn paging<'a>(token: &'a str, size: i32, sort_by: &'a str, filter: &'a str) -> list::Request<'a> {
    list::Request { token, size, sort_by, filter, generation: Generation::V2 }
}

/// Serves a value as the body of a gRPC answer.
type Answer<T> = std::result::Result<tonic::Response<T>, tonic::Status>;

/// Does work that changes both the cluster and the database to its end, even when the caller goes away: the server drops
/// a handler with its connection, which would leave a Workflow without its row.
async fn to_the_end<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    tokio::spawn(work).await.unwrap_or_else(|error| Err(Error::internal("the request was not finished", error)))
}

fn answer<T>(result: Result<T>) -> Answer<T> {
    Ok(tonic::Response::new(result?))
}

/// A v2 spec for the API: the stored text as a protobuf struct, or the error that takes its place.
fn spec_struct(text: &str) -> Result<prost_types::Struct> {
    let package = kfp_compiler::Package::from_text(text.as_bytes())
        .map_err(|error| Error::invalid_because("failed to parse the stored pipeline spec", error))?;
    match package.to_json() {
        serde_json::Value::Object(fields) => Ok(kfp_core::ir::struct_from_json(&fields)),
        _ => Err(Error::internal("failed to show the stored pipeline spec", "it is not an object")),
    }
}

/// Parameters of a run or schedule as stored: JSON object of values; empty when there are none.
fn parameters_json(config: Option<&v2::RuntimeConfig>) -> String {
    let Some(config) = config.filter(|config| !config.parameters.is_empty()) else { return String::new() };
    let fields: serde_json::Map<String, serde_json::Value> =
        config.parameters.iter().map(|(name, value)| (name.clone(), kfp_core::ir::to_json(value))).collect();
    serde_json::Value::Object(fields).to_string()
}

/// Stored parameters as JSON values; v1 parameters are texts.
fn stored_parameters(runtime: &str, v1: &str) -> Result<std::collections::BTreeMap<String, serde_json::Value>> {
    let bad = |error| Error::internal("error unmarshalling model runtime config parameters", error);
    if !runtime.is_empty() && runtime != "null" {
        return serde_json::from_str(runtime).map_err(bad);
    }
    if v1.is_empty() || v1 == "null" {
        return Ok(std::collections::BTreeMap::new());
    }
    #[derive(serde::Deserialize)]
    struct Parameter {
        name: String,
        #[serde(default)]
        value: serde_json::Value,
    }
    let list: Vec<Parameter> = serde_json::from_str(v1).map_err(bad)?;
    Ok(list.into_iter().map(|parameter| (parameter.name, parameter.value)).collect())
}

/// The runtime config that the API shows; absent when there is nothing to show.
fn runtime_config(runtime: &str, v1: &str, root: &str) -> Option<v2::RuntimeConfig> {
    let parameters = stored_parameters(runtime, v1).unwrap_or_default();
    if parameters.is_empty() && root.is_empty() {
        return None;
    }
    let parameters = parameters.iter().map(|(name, value)| (name.clone(), kfp_core::ir::from_json(value))).collect();
    Some(v2::RuntimeConfig { parameters, pipeline_root: root.to_owned() })
}

/// `plugins_input` as stored.
fn plugins_json(plugins: &std::collections::BTreeMap<String, prost_types::Struct>) -> String {
    if plugins.is_empty() {
        return String::new();
    }
    let fields: serde_json::Map<String, serde_json::Value> =
        plugins.iter().map(|(name, value)| (name.clone(), kfp_core::ir::struct_to_json(value))).collect();
    serde_json::Value::Object(fields).to_string()
}

/// `plugins_input` as shown; damaged text shows nothing.
fn plugins_shown(json: &str) -> std::collections::BTreeMap<String, prost_types::Struct> {
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    fields
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), kfp_core::ir::struct_from_json(value.as_object()?))))
        .collect()
}
