//! One file for each gRPC service: requests to domain values, domain values to answers.

pub mod experiments;
pub mod launch;
pub mod lost;
pub mod pipelines;
pub mod recurring_runs;
pub mod reports;
mod retry;
mod revise;
pub mod runs;
pub mod samples;
pub mod schedules;
pub mod sources;
pub mod tasks;
pub mod upkeep;
pub mod v1;

use std::sync::Arc;

use kfp_core::cron::zone::Tz;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;

use crate::access;
use crate::catalog::Catalog;
use crate::error::{Error, Result};
use crate::live::Live;
use crate::metrics::Metrics;
use crate::store::filter::Generation;
use crate::store::specs::Specs;
use crate::store::{Db, list};
use crate::workflows::cluster::Cluster;
use crate::workflows::template;

/// What every service needs.
#[derive(Debug)]
pub struct App {
    /// Rows.
    pub db: Db,
    /// Pipelines and their versions.
    pub catalog: Catalog,
    /// Kubernetes.
    pub cluster: Cluster,
    /// Settings that may change.
    pub live: Live,
    /// Namespace of Workflows in single-user mode.
    pub namespace: String,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where visualization servers are.
    pub visualizations: v1::visualizations::Servers,
    /// Who may do what.
    pub access: access::Settings,
    /// Where cron schedules count their hours.
    pub zone: Tz,
}

/// What a list of runs or recurring runs is limited to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// Nothing.
    All,
    /// One experiment.
    Experiment(&'a str),
    /// One namespace.
    Namespace(&'a str),
}

impl Scope<'_> {
    /// Columns and what they have to hold.
    fn columns(&self) -> Vec<(&'static str, crate::store::sql::Value)> {
        match self {
            Scope::All => vec![],
            Scope::Experiment(id) => vec![("ExperimentUUID", (*id).into())],
            Scope::Namespace(namespace) => vec![("Namespace", (*namespace).into())],
        }
    }
}

impl App {
    /// What a list is limited to. Namespaces are looked at only where there are several of them, and experiments belong
    /// to one.
    #[must_use]
    pub fn scope<'a>(&self, experiment: &'a str, namespace: &'a str) -> Scope<'a> {
        match experiment {
            "" if self.access.multi_user => Scope::Namespace(namespace),
            "" => Scope::All,
            id => Scope::Experiment(id),
        }
    }

    /// Namespace in which a pipeline is looked for by its name: in single-user mode the namespace is no part of it.
    #[must_use]
    pub fn wanted<'a>(&self, namespace: &'a str) -> Option<&'a str> {
        self.access.multi_user.then_some(namespace)
    }
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

/// The spec of a run or recurring run as a protobuf struct, or the error that takes its place; `None` when there is none.
fn shown_spec(specs: Option<&Specs>) -> Result<Option<prost_types::Struct>> {
    let text = specs.map(|specs| if specs.pipeline.is_empty() { &specs.workflow } else { &specs.pipeline });
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(None) };
    Ok(Some(kfp_core::ir::struct_from_json(&template::shown(text)?)))
}

/// Parameters of a run or schedule as stored: JSON object of values; empty when there are none.
fn parameters_json(config: Option<&v2::RuntimeConfig>) -> String {
    let Some(config) = config.filter(|config| !config.parameters.is_empty()) else { return String::new() };
    let fields: serde_json::Map<String, serde_json::Value> =
        config.parameters.iter().map(|(name, value)| (name.clone(), kfp_core::ir::to_json(value))).collect();
    serde_json::Value::Object(fields).to_string()
}

/// The runtime config that the API shows; absent when there is nothing to show.
fn runtime_config(runtime: &str, v1: &str, root: &str) -> Option<v2::RuntimeConfig> {
    let parameters = template::values(runtime, v1).unwrap_or_default();
    if parameters.is_empty() && root.is_empty() {
        return None;
    }
    let parameters = parameters.iter().map(|(name, value)| (name.clone(), kfp_core::ir::from_json(value))).collect();
    Some(v2::RuntimeConfig { parameters, pipeline_root: root.to_owned() })
}

/// `plugins_input` as shown; damaged text shows nothing.
fn plugins_shown(json: &str) -> std::collections::BTreeMap<String, prost_types::Struct> {
    let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(json).unwrap_or_default();
    fields
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), kfp_core::ir::struct_from_json(value.as_object()?))))
        .collect()
}
