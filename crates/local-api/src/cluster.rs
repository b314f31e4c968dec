//! The in-process handle.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};

use crate::ops::{self, Deleted, Scope, WriteOptions};
use crate::resource::resources;
use crate::store::{DirLock, Disk, Key, Shared, Stored, TableKey, Writer};
use crate::watch::{RawEvent, RawObject, Request, Seen, changes};
use crate::{ApiError, DeleteOptions, Edits, Error, LogSource, Patch, Resource, Selectors, Watch};

/// Objects of a list, with the version to watch from.
#[derive(Debug, Clone, Default)]
pub struct List {
    /// Objects, by namespace and name.
    pub items: Vec<Arc<Value>>,
    /// The state listed; a watch from here misses nothing.
    pub resource_version: u64,
}

/// One page of a list.
#[derive(Debug, Default)]
pub(crate) struct Page {
    pub items: Vec<Arc<Stored>>,
    pub resource_version: u64,
    /// Where the next page starts (after this namespace and name) and how many objects follow,
    /// the latter only when no selector makes it unknown.
    pub next: Option<((String, String), Option<usize>)>,
}

/// The embedded Kubernetes API. Cheap to clone; all clones are the same cluster.
///
/// Through this handle writes may change whole objects, status included; over HTTP the status
/// subresource rules of Kubernetes hold. A write returns when it is on disk, and only then can
/// readers and watches see it.
#[derive(Clone)]
pub struct Cluster {
    writer: Writer,
    shared: Arc<Shared>,
    logs: Arc<RwLock<Option<Arc<dyn LogSource>>>>,
}

const WHOLE: WriteOptions = WriteOptions { scope: Scope::Whole, dry_run: false };

impl Cluster {
    /// Opens (or makes) the cluster kept in `dir`. Must be called inside a tokio runtime, which then
    /// runs the writer task.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has the directory; otherwise when the directory or the
    /// database in it cannot be used.
    pub async fn open(dir: &Path) -> Result<Self, Error> {
        let lock = DirLock::acquire(dir)?;
        let mut disk = Disk::open(dir).await?;
        let state = disk.load().await?;
        let (writer, shared) = Writer::start(state, disk, lock);
        let cluster = Self { writer, shared, logs: Arc::default() };
        cluster.writer.write(seed).await.map_err(|source| Error::Seed { dir: dir.to_path_buf(), source })?;
        Ok(cluster)
    }

    /// Waits for the writes made so far, closes the database and releases the directory. Reads go
    /// on, writes are refused from then on.
    pub async fn close(&self) {
        self.writer.close().await;
    }

    /// The type of resource with this `apiVersion` and `kind`, if the cluster has it.
    pub fn resource(&self, api_version: &str, kind: &str) -> Option<Resource> {
        self.shared.read().registry.by_kind(api_version, kind)
    }

    /// Creates an object; see the crate's documentation for what is filled in.
    ///
    /// # Errors
    /// 400 (not an object of the type), 404 (no such namespace), 409 (exists), 422 (name, labels or a
    /// required field).
    pub async fn create(&self, r: &Resource, ns: &str, object: Value) -> Result<Arc<Value>, ApiError> {
        self.create_with(r, ns, object, WHOLE).await
    }

    /// The object of that name.
    ///
    /// # Errors
    /// 404.
    pub async fn get(&self, r: &Resource, ns: &str, name: &str) -> Result<Arc<Value>, ApiError> {
        Ok(self.stored(r, ns, name)?.object())
    }

    /// Objects of one namespace, or of all when `ns` is `None`.
    ///
    /// # Errors
    /// None today.
    pub async fn list(&self, r: &Resource, ns: Option<&str>, selectors: &Selectors) -> Result<List, ApiError> {
        let page = self.page(r, ns, selectors, None, None);
        Ok(List {
            items: page.items.iter().map(|stored| stored.object()).collect(),
            resource_version: page.resource_version,
        })
    }

    /// As [`Cluster::list`], but objects are not parsed.
    pub fn list_raw(&self, r: &Resource, ns: Option<&str>, selectors: &Selectors) -> (Vec<RawObject>, u64) {
        let page = self.page(r, ns, selectors, None, None);
        (page.items.into_iter().map(RawObject).collect(), page.resource_version)
    }

    /// Replaces an object, status included.
    ///
    /// # Errors
    /// 404; 409 when the object's resourceVersion is set and no longer the latest; 400, 422.
    pub async fn update(&self, r: &Resource, ns: &str, object: Value) -> Result<Arc<Value>, ApiError> {
        let name = crate::object::meta(&object, "name").unwrap_or_default().to_string();
        self.update_with(r, ns, &name, object, WHOLE).await
    }

    /// Changes the latest state of an object; never conflicts. A change that leaves everything as it
    /// was writes nothing.
    ///
    /// # Errors
    /// 404, what `change` returns, or 422 when its result cannot be stored; then nothing is changed.
    pub async fn modify<F>(&self, r: &Resource, ns: &str, name: &str, change: F) -> Result<Arc<Value>, ApiError>
    where
        F: FnOnce(&mut Value) -> Result<(), ApiError> + Send + 'static,
    {
        let (r, ns, name) = (*r, ns.to_string(), name.to_string());
        self.writer.write(move |txn| ops::modify(txn, &r, &ns, &name, change, WHOLE)).await
    }

    /// Sets and removes members of a custom resource's status, labels and annotations, without parsing the rest of
    /// the object, and returns its new resourceVersion. For types without a status subresource.
    ///
    /// # Errors
    /// 404 (also when the object of that name has another uid), 422 when the result cannot be stored.
    pub async fn edit(&self, r: &Resource, ns: &str, name: &str, uid: &str, edits: Edits) -> Result<u64, ApiError> {
        let (r, ns, name, uid) = (*r, ns.to_string(), name.to_string(), uid.to_string());
        self.writer.write(move |txn| ops::edit(txn, &r, &ns, &name, &uid, edits)).await
    }

    /// Applies a patch document. With subresource `status` only the status changes (where the type
    /// has that subresource).
    ///
    /// # Errors
    /// 404, 409 (the document names a stale resourceVersion), 415 (strategic merge on a custom
    /// resource), 400, 422.
    pub async fn patch(
        &self,
        r: &Resource,
        ns: &str,
        name: &str,
        patch: Patch,
        subresource: Option<&str>,
    ) -> Result<Arc<Value>, ApiError> {
        let scope = match subresource {
            None => Scope::Whole,
            Some("status") if r.status => Scope::Status,
            Some(_) => return Err(ApiError::no_such_resource()),
        };
        self.patch_with(r, ns, name, patch, WriteOptions { scope, dry_run: false }).await
    }

    /// Deletes an object and, by owner references, what it owned. Returns its last state; with
    /// finalizers the object stays, marked by `metadata.deletionTimestamp`.
    ///
    /// # Errors
    /// 404, 409 (a precondition of the options does not hold), 403 (a namespace the cluster needs).
    pub async fn delete(
        &self,
        r: &Resource,
        ns: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<Arc<Value>, ApiError> {
        self.delete_with(r, ns, name, options).await.map(|deleted| deleted.object)
    }

    /// Changes after the version `from` (as of [`List::resource_version`]), or, without it, first
    /// every existing object as added and then the changes.
    pub fn watch(&self, r: &Resource, ns: Option<&str>, from: Option<u64>, selectors: Selectors) -> Watch {
        let request = Request { namespace: ns.map(str::to_string), from, selectors, ..Request::default() };
        Watch::open(self.shared.clone(), *r, request)
    }

    /// As [`Cluster::watch`], but objects are not parsed.
    pub fn watch_raw(
        &self,
        r: &Resource,
        ns: Option<&str>,
        from: Option<u64>,
        selectors: Selectors,
    ) -> impl Stream<Item = Result<RawEvent, ApiError>> + Send + use<> {
        let request = Request { namespace: ns.map(str::to_string), from, selectors, ..Request::default() };
        changes(self.shared.clone(), *r, request)
            .map(|seen| seen.map(|seen| RawEvent { kind: seen.kind, object: RawObject(seen.object) }))
    }

    /// Sets where `pods/log` reads; until then it answers 501.
    pub fn set_log_source(&self, source: Arc<dyn LogSource>) {
        *self.logs.write().unwrap_or_else(PoisonError::into_inner) = Some(source);
    }

    pub(crate) fn log_source(&self) -> Option<Arc<dyn LogSource>> {
        self.logs.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// An object as it is kept.
    pub(crate) fn stored(&self, r: &Resource, ns: &str, name: &str) -> Result<Arc<Stored>, ApiError> {
        let found = self.shared.read().get(&Key::new(r, ns, name)).cloned();
        found.ok_or_else(|| ApiError::not_found(r, name))
    }

    pub(crate) fn watch_with(
        &self,
        r: &Resource,
        request: Request,
    ) -> impl Stream<Item = Result<Seen, ApiError>> + Send + use<> {
        changes(self.shared.clone(), *r, request)
    }

    pub(crate) fn page(
        &self,
        r: &Resource,
        ns: Option<&str>,
        selectors: &Selectors,
        start: Option<&(String, String)>,
        limit: Option<usize>,
    ) -> Page {
        let state = self.shared.read();
        let mut page = Page { resource_version: state.revision, ..Page::default() };
        let table: TableKey = (r.group, r.plural);
        let ns = ns.filter(|_| r.namespaced);
        let mut last = None;
        let mut found = state
            .table(table)
            .into_iter()
            .flat_map(|table| table.range(ns, start))
            .filter(|(_, object)| object.matches(selectors))
            .peekable();
        for (key, object) in found.by_ref() {
            page.items.push(object.clone());
            last = Some(key.clone());
            if limit.is_some_and(|limit| page.items.len() >= limit) {
                break;
            }
        }
        if found.peek().is_some() {
            let remaining = selectors.is_empty().then(|| found.count());
            page.next = last.map(|last| (last, remaining));
        }
        page
    }

    pub(crate) async fn create_with(
        &self,
        r: &Resource,
        ns: &str,
        object: Value,
        options: WriteOptions,
    ) -> Result<Arc<Value>, ApiError> {
        let (r, ns) = (*r, ns.to_string());
        self.writer.write(move |txn| ops::create(txn, &r, &ns, object, options)).await
    }

    pub(crate) async fn update_with(
        &self,
        r: &Resource,
        ns: &str,
        name: &str,
        object: Value,
        options: WriteOptions,
    ) -> Result<Arc<Value>, ApiError> {
        let (r, ns, name) = (*r, ns.to_string(), name.to_string());
        self.writer.write(move |txn| ops::update(txn, &r, &ns, &name, object, options)).await
    }

    pub(crate) async fn patch_with(
        &self,
        r: &Resource,
        ns: &str,
        name: &str,
        patch: Patch,
        options: WriteOptions,
    ) -> Result<Arc<Value>, ApiError> {
        let (r, ns, name) = (*r, ns.to_string(), name.to_string());
        self.writer.write(move |txn| ops::patch(txn, &r, &ns, &name, patch, options)).await
    }

    pub(crate) async fn delete_with(
        &self,
        r: &Resource,
        ns: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        let (r, ns, name) = (*r, ns.to_string(), name.to_string());
        self.writer.write(move |txn| ops::delete(txn, &r, &ns, &name, &options)).await
    }
}

/// What every cluster has: namespaces, one node, service accounts.
fn seed(txn: &mut crate::store::Txn<'_>) -> Result<(), ApiError> {
    for name in ["default", "kube-system", "kubeflow"] {
        ops::seed(txn, &resources::NAMESPACES, "", json!({"metadata": {"name": name}}))?;
        ops::seed(txn, &resources::SERVICE_ACCOUNTS, name, json!({"metadata": {"name": "default"}}))?;
    }
    ops::seed(txn, &resources::SERVICE_ACCOUNTS, "kubeflow", json!({"metadata": {"name": "pipeline-runner"}}))?;
    ops::seed(txn, &resources::NODES, "", node())
}

/// Name of the only node.
pub const NODE_NAME: &str = "kfp-local";

fn node() -> Value {
    let now = crate::object::now();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).to_string();
    json!({
        "metadata": {"name": NODE_NAME, "labels": {
            "kubernetes.io/hostname": NODE_NAME,
            "kubernetes.io/os": std::env::consts::OS,
            "kubernetes.io/arch": match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other },
        }},
        "spec": {},
        "status": {
            "capacity": {"cpu": cpus, "pods": "1000"},
            "allocatable": {"cpu": cpus, "pods": "1000"},
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "LocalProcess",
                "message": "pods run as processes of this machine",
                "lastTransitionTime": now, "lastHeartbeatTime": now,
            }],
            "nodeInfo": {"kubeletVersion": crate::VERSION, "operatingSystem": std::env::consts::OS, "architecture": std::env::consts::ARCH},
        },
    })
}
