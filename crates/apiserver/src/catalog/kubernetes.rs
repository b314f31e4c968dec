//! Pipelines as Kubernetes objects. Ids are their uids, which Kubernetes finds nothing by: where an object with an id is,
//! is remembered, and looked up in lists of metadata otherwise.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use super::{has_versions, objects};
use crate::domain::names;
use crate::domain::nodes::{seconds, text};
use crate::error::{Error, Result};
use crate::store::list::{Options, Page};
use crate::store::memory;
use crate::store::pipelines::{self, Pipeline};
use crate::store::tagged::Tags;
use crate::store::versions::{self, Version};
use crate::workflows::cluster::{Cluster, Failure, Kind, Propagation};

/// Places remembered; with more they are looked up anew.
const PLACES: usize = 10_000;
/// Attempts of a change of an object that others change, too.
const ATTEMPTS: u32 = 5;

/// Pipelines and versions in a cluster.
#[derive(Debug)]
pub struct Store {
    cluster: Cluster,
    /// The one namespace; `None` for all, each of them on its own.
    namespace: Option<String>,
    /// Namespace and name by uid.
    places: Mutex<HashMap<String, (String, String)>>,
}

fn failed(message: &str) -> impl FnOnce(Failure) -> Error + '_ {
    move |failure| match failure {
        Failure::Unavailable(_) => Error::unavailable(message, failure),
        _ => Error::internal(message, failure),
    }
}

fn place(object: &Value) -> (String, String) {
    (text(object, "/metadata/namespace").to_owned(), text(object, "/metadata/name").to_owned())
}

/// What a kind is called in messages.
fn noun(kind: Kind) -> &'static str {
    if kind == Kind::Pipeline { "Pipeline" } else { "PipelineVersion" }
}

impl Store {
    /// Keeps everything in `namespace`, or in many namespaces.
    #[must_use]
    pub fn new(cluster: Cluster, namespace: Option<String>) -> Self {
        Store { cluster, namespace, places: Mutex::default() }
    }

    fn remembered(&self, id: &str) -> Option<(String, String)> {
        // Nothing in there can be left half done.
        self.places.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn remember<'a>(&self, found: impl IntoIterator<Item = &'a Value>) {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if places.len() >= PLACES {
            places.clear();
        }
        places.extend(found.into_iter().map(|object| (text(object, "/metadata/uid").to_owned(), place(object))));
    }

    /// The object with this uid.
    async fn find(&self, kind: Kind, id: &str) -> Result<Value> {
        let message = format!("Failed to get the {} {id}", noun(kind));
        if let Some((namespace, name)) = self.remembered(id) {
            match self.cluster.get(kind, &namespace, &name).await {
                Ok(object) if text(&object, "/metadata/uid") == id => return Ok(object),
                // Deleted, or made anew under the same name.
                Ok(_) | Err(Failure::NotFound(_)) => {}
                Err(failure) => return Err(failed(&message)(failure)),
            }
        }
        let all = self.cluster.list(kind, self.namespace.as_deref(), "", true).await.map_err(failed(&message))?;
        self.remember(&all);
        let missing = || Error::not_found(noun(kind), id);
        let found = all.iter().find(|object| text(object, "/metadata/uid") == id).ok_or_else(missing)?;
        let (namespace, name) = place(found);
        match self.cluster.get(kind, &namespace, &name).await {
            Ok(object) if text(&object, "/metadata/uid") == id => Ok(object),
            Ok(_) | Err(Failure::NotFound(_)) => Err(missing()),
            Err(failure) => Err(failed(&message)(failure)),
        }
    }

    /// The versions of a pipeline.
    async fn children(&self, pipeline: &Pipeline, metadata: bool) -> Result<Vec<Value>> {
        let label = format!("{}={}", objects::PIPELINE_ID, pipeline.id);
        let found = self.cluster.list(Kind::PipelineVersion, Some(&pipeline.namespace), &label, metadata).await;
        let mut found = found.map_err(failed("Failed to list pipeline versions"))?;
        // Anybody may write labels.
        found.retain(|object| objects::owner(object) == pipeline.id);
        self.remember(&found);
        Ok(found)
    }

    async fn put(&self, kind: Kind, namespace: &str, object: &Value, taken: impl FnOnce() -> Error) -> Result<Value> {
        match self.cluster.create(kind, namespace, object).await {
            Ok(object) => {
                self.remember([&object]);
                Ok(object)
            }
            Err(Failure::Conflict(_)) => Err(taken()),
            Err(Failure::NotFound(_)) => Err(Error::not_found("Namespace", namespace)),
            Err(failure) => Err(failed(&format!("Failed to create the {}", noun(kind)))(failure)),
        }
    }

    async fn remove(&self, kind: Kind, object: &Value) -> Result<()> {
        let (namespace, name) = place(object);
        match self.cluster.delete(kind, &namespace, &name, Propagation::Default).await {
            Ok(()) | Err(Failure::NotFound(_)) => Ok(()),
            Err(failure) => Err(failed(&format!("Failed to delete the {}", noun(kind)))(failure)),
        }
    }

    /// Changes an object, again if others changed it meanwhile.
    async fn edit(&self, kind: Kind, id: &str, change: impl Fn(&mut Value)) -> Result<Value> {
        let mut attempt = 1;
        loop {
            let mut object = self.find(kind, id).await?;
            change(&mut object);
            let (namespace, name) = place(&object);
            match self.cluster.replace(kind, &namespace, &name, &object).await {
                Ok(object) => return Ok(object),
                Err(Failure::Conflict(_)) if attempt < ATTEMPTS => attempt += 1,
                Err(Failure::NotFound(_)) => return Err(Error::not_found(noun(kind), id)),
                Err(failure) => return Err(failed(&format!("Failed to update the {} {id}", noun(kind)))(failure)),
            }
        }
    }

    /// The namespace in which a pipeline is kept.
    fn kept_in(&self, pipeline: &Pipeline) -> Result<String> {
        match (&self.namespace, pipeline.namespace.as_str()) {
            (Some(only), _) => Ok(only.clone()),
            (None, "") => Err(Error::bad_request("A namespace is required", "pipelines are Kubernetes objects")),
            (None, namespace) if !names::is_label(namespace) => {
                Err(Error::invalid(format!("{namespace:?} is not the name of a namespace")))
            }
            (None, namespace) => Ok(namespace.to_owned()),
        }
    }

    pub(super) async fn create(&self, mut pipeline: Pipeline) -> Result<Pipeline> {
        pipeline.namespace = self.kept_in(&pipeline)?;
        let object = objects::of_pipeline(&pipeline)?;
        let taken = || {
            let name = &pipeline.name;
            Error::already_exists(format!(
                "Failed to create a new pipeline. The name {name} already exists. Please specify a new name"
            ))
        };
        let created = self.put(Kind::Pipeline, &pipeline.namespace, &object, taken).await?;
        Ok(objects::pipeline(&created))
    }

    pub(super) async fn create_both(&self, pipeline: Pipeline, version: Version) -> Result<(Pipeline, Version)> {
        // What cannot be stored is known before the pipeline is.
        objects::of_version(&pipeline, &version)?;
        let pipeline = self.create(pipeline).await?;
        match self.create_version(&pipeline, version).await {
            Ok(version) => Ok((pipeline, version)),
            Err(error) => {
                let gone =
                    self.cluster.delete(Kind::Pipeline, &pipeline.namespace, &pipeline.name, Propagation::Default);
                if let Err(failure) = gone.await {
                    tracing::warn!(pipeline = %pipeline.name, %failure, "cannot delete the pipeline of a failed creation");
                }
                Err(error)
            }
        }
    }

    pub(super) async fn create_version(&self, pipeline: &Pipeline, version: Version) -> Result<Version> {
        let object = objects::of_version(pipeline, &version)?;
        let taken = || {
            let name = &version.name;
            Error::already_exists(format!(
                "Failed to create a new pipeline version. The name {name} already exists. Please specify a new name"
            ))
        };
        // Objects made by hand may be called otherwise.
        let known = self.children(pipeline, false).await?;
        if known.iter().any(|known| objects::version(known).name == version.name) {
            return Err(taken());
        }
        let mut created = self.put(Kind::PipelineVersion, &pipeline.namespace, &object, taken).await?;
        if objects::set_ready(&mut created) {
            let (namespace, name) = place(&created);
            let marked = self.cluster.replace_status(Kind::PipelineVersion, &namespace, &name, &created).await;
            created = marked.map_err(failed("Failed to update the pipeline version status"))?;
        }
        Ok(objects::version(&created))
    }

    pub(super) async fn get(&self, id: &str) -> Result<Pipeline> {
        Ok(objects::pipeline(&self.find(Kind::Pipeline, id).await?))
    }

    pub(super) async fn by_name(&self, name: &str, namespace: Option<&str>) -> Result<Pipeline> {
        let namespace = self.namespace.as_deref().or(namespace).unwrap_or_default();
        let missing = || Error::not_found("Namespace/Pipeline", &format!("{namespace}/{name}"));
        // Both become part of an address.
        if !names::is_label(namespace) || !names::is_subdomain(name) {
            return Err(missing());
        }
        match self.cluster.get(Kind::Pipeline, namespace, name).await {
            Ok(object) => Ok(objects::pipeline(&object)),
            Err(Failure::NotFound(_)) => Err(missing()),
            Err(failure) => Err(failed("Failed to get a pipeline by its name")(failure)),
        }
    }

    pub(super) async fn list(&self, namespace: &str, options: &Options) -> Result<Page<Pipeline>> {
        let namespace = self.namespace.as_deref().unwrap_or(namespace);
        // Nothing here belongs to all namespaces.
        let found = if names::is_label(namespace) {
            let found = self.cluster.list(Kind::Pipeline, Some(namespace), "", false).await;
            found.map_err(failed("Failed to list the pipelines"))?
        } else {
            Vec::new()
        };
        self.remember(&found);
        let all = found.iter().map(objects::pipeline).collect();
        memory::page(all, options, &pipelines::LISTABLE)
    }

    pub(super) async fn latest_of(&self, ids: &[String]) -> Result<BTreeMap<String, Version>> {
        let mut newest = BTreeMap::new();
        for id in ids {
            match self.latest(id).await {
                Ok(version) => drop(newest.insert(id.clone(), version)),
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(newest)
    }

    pub(super) async fn update(&self, id: &str, display_name: &str, tags: Option<&Tags>) -> Result<Pipeline> {
        let changed = self.edit(Kind::Pipeline, id, |object| objects::change(object, display_name, tags)).await?;
        Ok(objects::pipeline(&changed))
    }

    pub(super) async fn delete(&self, id: &str, cascade: bool) -> Result<()> {
        let object = self.find(Kind::Pipeline, id).await?;
        let versions = self.children(&objects::pipeline(&object), true).await?;
        if !cascade && let Some(version) = versions.first() {
            return Err(has_versions(id, text(version, "/metadata/uid")));
        }
        for version in &versions {
            self.remove(Kind::PipelineVersion, version).await?;
        }
        self.remove(Kind::Pipeline, &object).await
    }

    pub(super) async fn version(&self, id: &str) -> Result<Version> {
        let object = self.find(Kind::PipelineVersion, id).await?;
        if !objects::is_ready(&object) {
            return Err(Error::not_found(noun(Kind::PipelineVersion), id));
        }
        Ok(objects::version(&object))
    }

    pub(super) async fn parent(&self, id: &str) -> Result<String> {
        let object = self.find(Kind::PipelineVersion, id).await?;
        match objects::owner(&object) {
            "" => Err(Error::not_found("Pipeline of version", id)),
            owner => Ok(owner.to_owned()),
        }
    }

    pub(super) async fn latest(&self, pipeline_id: &str) -> Result<Version> {
        let pipeline = self.get(pipeline_id).await?;
        let mut known = self.children(&pipeline, true).await?;
        known.sort_by_key(|object| {
            let created = seconds(&object["metadata"]["creationTimestamp"]);
            std::cmp::Reverse((created, text(object, "/metadata/uid").to_owned()))
        });
        for object in &known {
            match self.version(text(object, "/metadata/uid")).await {
                Err(error) if error.is_not_found() => {}
                other => return other,
            }
        }
        Err(Error::not_found("PipelineVersion of pipeline", pipeline_id))
    }

    pub(super) async fn versions(&self, pipeline_id: &str, options: &Options, _specs: bool) -> Result<Page<Version>> {
        let pipeline = self.get(pipeline_id).await?;
        let found = self.children(&pipeline, false).await?;
        let all = found.iter().filter(|object| objects::is_ready(object)).map(objects::version).collect();
        memory::page(all, options, &versions::LISTABLE)
    }

    pub(super) async fn update_version(&self, id: &str, display_name: &str, tags: Option<&Tags>) -> Result<Version> {
        let changed =
            self.edit(Kind::PipelineVersion, id, |object| objects::change(object, display_name, tags)).await?;
        Ok(objects::version(&changed))
    }

    pub(super) async fn delete_version(&self, id: &str) -> Result<()> {
        let object = self.find(Kind::PipelineVersion, id).await?;
        self.remove(Kind::PipelineVersion, &object).await
    }

    #[allow(clippy::unused_async)] // As the other store.
    pub(super) async fn set_default(&self, _id: &str, _version_id: &str) -> Result<()> {
        Err(Error::bad_request(
            "pipeline default version is unsupported when storing in Kubernetes",
            "pipeline default version is unsupported",
        ))
    }
}
