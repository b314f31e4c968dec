//! What this crate needs of the Kubernetes API; the only place that knows the embedded one.

use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use kfp_local_api::{Cluster, DeleteOptions, Selectors};
use serde_json::Value;

pub(crate) use kfp_local_api::{
    ApiError, EventKind, LogOptions, LogSource, LogStream, Patch, RawEvent, RawObject, Resource, WatchEvent,
    async_trait, resources,
};

/// A change to an object.
pub(crate) type Change = Box<dyn FnOnce(&mut Value) -> Result<(), ApiError> + Send>;
/// Objects, read when they are parsed, with the version to watch from.
pub(crate) type Listed = (Vec<RawObject>, u64);
/// Changes in order; an error ends them and means: list again.
pub(crate) type Changes = BoxStream<'static, Result<WatchEvent, ApiError>>;
/// As [`Changes`], of objects that are not parsed.
pub(crate) type RawChanges = BoxStream<'static, Result<RawEvent, ApiError>>;

/// An object of the API.
pub(crate) type Object = Arc<Value>;

/// The Kubernetes API as a kubelet uses it.
pub(crate) trait Api: Send + Sync {
    /// All objects of a kind, with the version to watch from.
    fn list(&self, r: &Resource) -> Listed;
    /// One object.
    fn get<'a>(&'a self, r: &'a Resource, ns: &'a str, name: &'a str) -> BoxFuture<'a, Result<Arc<Value>, ApiError>>;
    /// Changes one object in one step.
    fn modify<'a>(
        &'a self,
        r: &'a Resource,
        ns: &'a str,
        name: &'a str,
        change: Change,
    ) -> BoxFuture<'a, Result<(), ApiError>>;
    /// Changes after a version.
    fn watch(&self, r: &Resource, from: u64) -> Changes;
    /// Changes after a version, of objects that are not parsed.
    fn watch_raw(&self, r: &Resource, from: u64) -> RawChanges;
    /// The type of resource of a manifest, if there is one.
    fn resource(&self, api_version: &str, kind: &str) -> Option<Resource>;
    /// Creates an object.
    fn create<'a>(&'a self, r: &'a Resource, ns: &'a str, object: Value) -> BoxFuture<'a, Result<Object, ApiError>>;
    /// Replaces an object.
    fn update<'a>(&'a self, r: &'a Resource, ns: &'a str, object: Value) -> BoxFuture<'a, Result<Object, ApiError>>;
    /// Patches an object.
    fn patch<'a>(
        &'a self,
        r: &'a Resource,
        ns: &'a str,
        name: &'a str,
        patch: Patch,
    ) -> BoxFuture<'a, Result<Object, ApiError>>;
    /// Deletes an object; given a uid, only the one that has it (409 otherwise).
    fn delete<'a>(
        &'a self,
        r: &'a Resource,
        ns: &'a str,
        name: &'a str,
        uid: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), ApiError>>;
    /// Who answers requests for logs.
    fn set_log_source(&self, source: Arc<dyn LogSource>);
}

impl Api for Cluster {
    fn list(&self, r: &Resource) -> Listed {
        self.list_raw(r, None, &Selectors::default())
    }

    fn get<'a>(&'a self, r: &'a Resource, ns: &'a str, name: &'a str) -> BoxFuture<'a, Result<Arc<Value>, ApiError>> {
        Cluster::get(self, r, ns, name).boxed()
    }

    fn modify<'a>(
        &'a self,
        r: &'a Resource,
        ns: &'a str,
        name: &'a str,
        change: Change,
    ) -> BoxFuture<'a, Result<(), ApiError>> {
        async move { Cluster::modify(self, r, ns, name, change).await.map(drop) }.boxed()
    }

    fn watch(&self, r: &Resource, from: u64) -> Changes {
        Cluster::watch(self, r, None, Some(from), Selectors::default()).boxed()
    }

    fn watch_raw(&self, r: &Resource, from: u64) -> RawChanges {
        Cluster::watch_raw(self, r, None, Some(from), Selectors::default()).boxed()
    }

    fn resource(&self, api_version: &str, kind: &str) -> Option<Resource> {
        Cluster::resource(self, api_version, kind)
    }

    fn create<'a>(&'a self, r: &'a Resource, ns: &'a str, object: Value) -> BoxFuture<'a, Result<Object, ApiError>> {
        Cluster::create(self, r, ns, object).boxed()
    }

    fn update<'a>(&'a self, r: &'a Resource, ns: &'a str, object: Value) -> BoxFuture<'a, Result<Object, ApiError>> {
        Cluster::update(self, r, ns, object).boxed()
    }

    fn patch<'a>(
        &'a self,
        r: &'a Resource,
        ns: &'a str,
        name: &'a str,
        patch: Patch,
    ) -> BoxFuture<'a, Result<Object, ApiError>> {
        Cluster::patch(self, r, ns, name, patch, None).boxed()
    }

    fn delete<'a>(
        &'a self,
        r: &'a Resource,
        ns: &'a str,
        name: &'a str,
        uid: Option<&'a str>,
    ) -> BoxFuture<'a, Result<(), ApiError>> {
        let options = DeleteOptions { uid: uid.map(str::to_owned), ..DeleteOptions::default() };
        async move { Cluster::delete(self, r, ns, name, options).await.map(drop) }.boxed()
    }

    fn set_log_source(&self, source: Arc<dyn LogSource>) {
        Cluster::set_log_source(self, source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[tokio::test]
    async fn a_pod_that_has_taken_the_name_is_not_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::open(dir.path()).await.unwrap();
        let api: &dyn Api = &cluster;
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "main", "image": "i"}]}});
        let made = api.create(&resources::PODS, "kubeflow", pod).await.unwrap();
        let refused = api.delete(&resources::PODS, "kubeflow", "p", Some("another")).await.unwrap_err();
        assert_eq!(refused.code, 409);
        api.delete(&resources::PODS, "kubeflow", "p", made["metadata"]["uid"].as_str()).await.unwrap();
        assert_eq!(api.get(&resources::PODS, "kubeflow", "p").await.unwrap_err().code, 404);
        cluster.close().await;
    }
}
