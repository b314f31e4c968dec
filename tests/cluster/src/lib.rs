//! A Kubernetes API for a test: the embedded one, or a real one when `KFP_TEST_KUBECONFIG` names its kubeconfig.
//!
//! Tests that use it say the same about both. Every test has a namespace of its own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

pub mod proxy;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt as _};
use kfp_core::shutdown::CancellationToken;
use kfp_local_api::{Cluster, kubeconfig, serve};
use kube::api::{Api, ApiResource, DeleteParams, GroupVersionKind, ListParams, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use kube::core::DynamicObject;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};

/// Longest wait for something that should happen soon; only a failing test waits so long.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A Kubernetes API, and a namespace in it.
pub struct Kube {
    pub client: kube::Client,
    pub namespace: String,
    /// A kubeconfig that leads there.
    pub config: Kubeconfig,
    home: Home,
}

enum Home {
    /// Embedded, in a directory of its own.
    Embedded { stop: CancellationToken, _dir: tempfile::TempDir },
    /// Real, and started for these tests only.
    Private,
    /// Somebody's cluster.
    Shared,
}

/// A change that a watch shows.
#[derive(Clone, Debug)]
pub enum Change {
    Added(Value),
    Modified(Value),
    Deleted(Value),
}

pub fn schedules() -> ApiResource {
    let gvk = GroupVersionKind::gvk("kubeflow.org", "v1beta1", "ScheduledWorkflow");
    ApiResource::from_gvk_with_plural(&gvk, "scheduledworkflows")
}

pub fn workflows() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("argoproj.io", "v1alpha1", "Workflow"), "workflows")
}

/// The kinds of pipelines that are kept in the cluster: `Pipeline` and `PipelineVersion`.
pub fn pipelines(kind: &str) -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("pipelines.kubeflow.org", "v2beta1", kind))
}

pub fn events() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Event"), "events")
}

pub fn leases() -> ApiResource {
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("coordination.k8s.io", "v1", "Lease"), "leases")
}

/// A client for a kubeconfig.
pub async fn client(config: Kubeconfig) -> kube::Client {
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

/// The real API, if the tests are to use one.
pub fn real() -> Option<PathBuf> {
    std::env::var_os("KFP_TEST_KUBECONFIG").map(PathBuf::from)
}

impl Kube {
    /// The API that the environment asks for.
    pub async fn start() -> Self {
        match real() {
            Some(path) => Self::real(Kubeconfig::read_from(path).unwrap()).await,
            None => Self::embedded().await,
        }
    }

    /// An embedded API.
    pub async fn embedded() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cluster = Cluster::open(dir.path()).await.unwrap();
        let stop = CancellationToken::new();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(serve(cluster, listener, stop.clone()));
        let config = Kubeconfig::from_yaml(&kubeconfig(&url, "default")).unwrap();
        Self::open(config, Home::Embedded { stop, _dir: dir }).await
    }

    /// A real API.
    pub async fn real(config: Kubeconfig) -> Self {
        let private = std::env::var_os("KFP_TEST_CLUSTER_IS_PRIVATE").is_some();
        let kube = Self::open(config, if private { Home::Private } else { Home::Shared }).await;
        for text in [
            include_str!("../crds/workflows.yaml"),
            include_str!("../crds/scheduledworkflows.yaml"),
            include_str!("../crds/pipelines.yaml"),
            include_str!("../crds/pipelineversions.yaml"),
        ] {
            define(&kube.client, serde_norway::from_str(text).unwrap()).await;
        }
        kube
    }

    async fn open(config: Kubeconfig, home: Home) -> Self {
        let client = client(config.clone()).await;
        let kube = Self { client, namespace: format!("kfp-test-{}", uuid::Uuid::new_v4().simple()), config, home };
        kube.add_namespace(&kube.namespace).await;
        kube
    }

    /// Whether nothing but these tests uses the cluster.
    pub fn is_private(&self) -> bool {
        !matches!(self.home, Home::Shared)
    }

    pub async fn add_namespace(&self, name: &str) {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Namespace"), "namespaces");
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        api.create(&PostParams::default(), &DynamicObject::new(name, &resource)).await.unwrap();
    }

    pub fn api(&self, resource: &ApiResource) -> Api<DynamicObject> {
        self.api_in(&self.namespace, resource)
    }

    pub fn api_in(&self, namespace: &str, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource)
    }

    pub async fn create(&self, resource: &ApiResource, object: Value) -> Value {
        self.create_in(&self.namespace, resource, object).await
    }

    pub async fn create_in(&self, namespace: &str, resource: &ApiResource, mut object: Value) -> Value {
        object["apiVersion"] = json!(resource.api_version);
        object["kind"] = json!(resource.kind);
        let object = serde_json::from_value(object).unwrap();
        json(&self.api_in(namespace, resource).create(&PostParams::default(), &object).await.unwrap())
    }

    pub async fn get(&self, resource: &ApiResource, name: &str) -> Value {
        json(&self.api(resource).get(name).await.unwrap())
    }

    pub async fn list(&self, resource: &ApiResource) -> Vec<Value> {
        self.api(resource).list(&ListParams::default()).await.unwrap().items.iter().map(json).collect()
    }

    /// Changes an object, again when somebody else does so at the same time. `None` when there is no such object.
    pub async fn change(&self, resource: &ApiResource, name: &str, edit: impl Fn(&mut Value)) -> Option<Value> {
        loop {
            let mut object = json(&self.api(resource).get_opt(name).await.unwrap()?);
            edit(&mut object);
            let object: DynamicObject = serde_json::from_value(object).unwrap();
            match self.api(resource).replace(name, &PostParams::default(), &object).await {
                Ok(stored) => return Some(json(&stored)),
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    pub async fn delete(&self, resource: &ApiResource, name: &str) {
        self.api(resource).delete(name, &DeleteParams::background()).await.unwrap();
    }

    pub async fn merge(&self, resource: &ApiResource, name: &str, patch: Value) -> Value {
        json(&self.api(resource).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap())
    }

    /// Changes of all objects of a kind, beginning with those that exist.
    pub fn changes(&self, resource: &ApiResource) -> BoxStream<'static, Change> {
        let events = watcher(self.api(resource), Config::default()).default_backoff();
        let mut known = HashSet::new();
        let changes = events.filter_map(move |event| {
            let change = match event {
                Ok(Event::InitApply(object) | Event::Apply(object)) => {
                    let (fresh, object) = (known.insert(object.metadata.uid.clone()), json(&object));
                    Some(if fresh { Change::Added(object) } else { Change::Modified(object) })
                }
                Ok(Event::Delete(object)) => {
                    known.remove(&object.metadata.uid);
                    Some(Change::Deleted(json(&object)))
                }
                Ok(Event::Init | Event::InitDone) | Err(_) => None,
            };
            std::future::ready(change)
        });
        changes.boxed()
    }

    /// Waits until an object is as `check` wants.
    pub async fn until(&self, resource: &ApiResource, name: &str, check: impl Fn(&Value) -> bool) -> Value {
        let config = Config::default().fields(&format!("metadata.name={name}"));
        let mut events = watcher(self.api(resource), config).default_backoff().applied_objects().boxed();
        let mut last = Value::Null;
        let waiting = async {
            loop {
                let Some(Ok(object)) = events.next().await else { continue };
                last = json(&object);
                if check(&last) {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            panic!("{name} stays {last:#}");
        }
        last
    }
}

/// The object as JSON.
pub fn json(object: &DynamicObject) -> Value {
    serde_json::to_value(object).unwrap()
}

/// Creates a definition unless it exists, and waits until its objects can be created.
pub async fn define(client: &kube::Client, definition: Value) {
    let gvk = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
    let resource = ApiResource::from_gvk_with_plural(&gvk, "customresourcedefinitions");
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let object: DynamicObject = serde_json::from_value(definition).unwrap();
    let name = object.metadata.name.clone().unwrap();
    match api.create(&PostParams::default(), &object).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => panic!("{name}: {error}"),
    }
    let established = |object: Option<&DynamicObject>| {
        let conditions = object.and_then(|object| object.data.pointer("/status/conditions")?.as_array());
        conditions.is_some_and(|list| list.iter().any(|c| c["type"] == "Established" && c["status"] == "True"))
    };
    let established = kube::runtime::wait::await_condition(api, &name, established);
    tokio::time::timeout(PATIENCE, established).await.expect("the definition is taken up in time").unwrap();
}

impl Drop for Kube {
    fn drop(&mut self) {
        match &self.home {
            Home::Embedded { stop, .. } => stop.cancel(),
            // A namespace whose controllers run elsewhere than here would stay for ever, so its objects go one by one.
            Home::Private | Home::Shared => {
                let (config, namespace) = (self.config.clone(), self.namespace.clone());
                let cleaned = std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(clean(config, &namespace));
                });
                if cleaned.join().is_err() {
                    eprintln!("the namespace {} could not be removed", self.namespace);
                }
            }
        }
    }
}

async fn clean(config: Kubeconfig, namespace: &str) {
    let client = client(config).await;
    for resource in [schedules(), workflows(), leases(), pipelines("PipelineVersion"), pipelines("Pipeline")] {
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        api.delete_collection(&DeleteParams::background(), &ListParams::default()).await.unwrap();
    }
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("", "v1", "Namespace"), "namespaces");
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    api.delete(namespace, &DeleteParams::background()).await.unwrap();
}
