//! Where pipelines and their versions are kept: in tables, or as objects in the cluster (`--pipelinesStoreKubernetes`).

mod database;
pub mod kubernetes;
pub mod objects;

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::store::Db;
use crate::store::list::{Options, Page};
use crate::store::pipelines::Pipeline;
use crate::store::tagged::Tags;
use crate::store::versions::Version;

/// Pipelines and their versions.
#[derive(Debug)]
pub enum Catalog {
    /// In tables.
    Database(Db),
    /// As Kubernetes objects.
    Kubernetes(kubernetes::Store),
}

/// Refuses to delete a pipeline that has versions.
fn has_versions(id: &str, version: &str) -> Error {
    Error::invalid(format!(
        "Failed to delete pipeline with id {id} as it has existing pipeline versions (e.g. {version}). Set cascade=true \
         to delete all versions"
    ))
}

macro_rules! either {
    ($catalog:expr, $method:ident($($argument:expr),*)) => {
        match $catalog {
            Catalog::Database(db) => database::$method(db, $($argument),*).await,
            Catalog::Kubernetes(store) => store.$method($($argument),*).await,
        }
    };
}

/// Errors are those of the API: code 3 for what does not fit, 5 for what does not exist, 6 when a name is taken.
#[allow(clippy::missing_errors_doc)]
impl Catalog {
    /// What healthz calls it.
    #[must_use]
    pub fn name(kubernetes: bool) -> &'static str {
        if kubernetes { "kubernetes" } else { "database" }
    }

    /// Refuses calls of v1beta1 that upstream serves from tables only.
    pub fn check_v1(&self) -> Result<()> {
        match self {
            Catalog::Database(_) => Ok(()),
            Catalog::Kubernetes(_) => {
                Err(Error::unimplemented("the v1 API is not available for the Kubernetes pipeline store"))
            }
        }
    }

    /// Stores a pipeline without a version; it comes back as stored.
    pub async fn create(&self, pipeline: Pipeline) -> Result<Pipeline> {
        either!(self, create(pipeline))
    }

    /// Stores a pipeline and its first version, or neither.
    pub async fn create_both(&self, pipeline: Pipeline, version: Version) -> Result<(Pipeline, Version)> {
        either!(self, create_both(pipeline, version))
    }

    /// Stores another version of a pipeline.
    pub async fn create_version(&self, pipeline: &Pipeline, version: Version) -> Result<Version> {
        either!(self, create_version(pipeline, version))
    }

    /// The pipeline with this id.
    pub async fn get(&self, id: &str) -> Result<Pipeline> {
        either!(self, get(id))
    }

    /// The newest pipeline of this name, in this namespace if one is given.
    pub async fn by_name(&self, name: &str, namespace: Option<&str>) -> Result<Pipeline> {
        either!(self, by_name(name, namespace))
    }

    /// One page of a namespace's pipelines.
    pub async fn list(&self, namespace: &str, options: &Options) -> Result<Page<Pipeline>> {
        either!(self, list(namespace, options))
    }

    /// The newest version of each of several pipelines, without specs and tags, by pipeline.
    pub async fn latest_of(&self, ids: &[String]) -> Result<BTreeMap<String, Version>> {
        either!(self, latest_of(ids))
    }

    /// Changes display name and tags; an empty display name and absent tags leave them as they are.
    pub async fn update(&self, id: &str, display_name: &str, tags: Option<&Tags>) -> Result<Pipeline> {
        either!(self, update(id, display_name, tags))
    }

    /// Removes a pipeline, with its versions only if `cascade` says so.
    pub async fn delete(&self, id: &str, cascade: bool) -> Result<()> {
        either!(self, delete(id, cascade))
    }

    /// The version with this id.
    pub async fn version(&self, id: &str) -> Result<Version> {
        either!(self, version(id))
    }

    /// Id of the pipeline that a version belongs to.
    pub async fn parent(&self, id: &str) -> Result<String> {
        either!(self, parent(id))
    }

    /// The newest version of a pipeline.
    pub async fn latest(&self, pipeline_id: &str) -> Result<Version> {
        either!(self, latest(pipeline_id))
    }

    /// One page of a pipeline's versions; their specs are filled in only if `specs` says so.
    pub async fn versions(&self, pipeline_id: &str, options: &Options, specs: bool) -> Result<Page<Version>> {
        if pipeline_id.is_empty() {
            return Err(Error::invalid("Failed to list pipeline versions. Pipeline id cannot be empty"));
        }
        either!(self, versions(pipeline_id, options, specs))
    }

    /// Changes display name and tags; an empty display name and absent tags leave them as they are.
    pub async fn update_version(&self, id: &str, display_name: &str, tags: Option<&Tags>) -> Result<Version> {
        either!(self, update_version(id, display_name, tags))
    }

    /// Removes a version; runs made from it stay.
    pub async fn delete_version(&self, id: &str) -> Result<()> {
        either!(self, delete_version(id))
    }

    /// Records the default version that v1beta1 clients choose; nothing reads it.
    pub async fn set_default(&self, id: &str, version_id: &str) -> Result<()> {
        either!(self, set_default(id, version_id))
    }
}
