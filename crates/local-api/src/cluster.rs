//! The in-process handle.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};

use crate::ops::{self, Deleted, Scope, WriteOptions};
use crate::resource::resources;
use crate::store::{Bodies, DirLock, Disk, Key, Shared, Stored, TableKey, Writer};
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
        let bodies = Bodies::open(dir)?;
        let state = disk.load(&bodies).await?;
        let (writer, shared) = Writer::start(state, disk, bodies, lock);
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
    /// 404; 500 when it cannot be read.
    pub async fn get(&self, r: &Resource, ns: &str, name: &str) -> Result<Arc<Value>, ApiError> {
        self.stored(r, ns, name)?.object()
    }

    /// Objects of one namespace, or of all when `ns` is `None`. All of them are in memory at once; see
    /// [`Cluster::list_raw`].
    ///
    /// # Errors
    /// 500 when an object cannot be read.
    pub async fn list(&self, r: &Resource, ns: Option<&str>, selectors: &Selectors) -> Result<List, ApiError> {
        let page = self.page(r, ns, selectors, None, None);
        Ok(List {
            items: page.items.iter().map(|stored| stored.object()).collect::<Result<_, _>>()?,
            resource_version: page.resource_version,
        })
    }

    /// As [`Cluster::list`], but objects are neither read nor parsed before somebody asks for that.
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
        let (state, key) = (self.shared.read(), Key::new(r, ns, name));
        let missing = || state.unreadable(&key).unwrap_or_else(|| ApiError::not_found(r, name));
        state.get(&key).cloned().ok_or_else(missing)
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
            last = Some((key.0.to_string(), key.1.to_string()));
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

#[cfg(test)]
mod tests {
    use super::*;
    use resources::CONFIG_MAPS;

    const NS: &str = "kubeflow";
    const LARGE: usize = 256 << 10;

    async fn cluster() -> (Cluster, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Cluster::open(dir.path()).await.unwrap(), dir)
    }

    fn map(name: &str, text: &str) -> Value {
        json!({"metadata": {"name": name}, "data": {"text": text}})
    }

    /// Writes so much that what was written before is no longer in memory.
    async fn displace(cluster: &Cluster) {
        // Large objects are held as text only, small ones parsed too.
        for (count, size) in [(20, LARGE), (10, 100 << 10)] {
            for number in 0..count {
                let name = format!("other-{size}-{number}");
                cluster.delete(&CONFIG_MAPS, NS, &name, DeleteOptions::default()).await.ok();
                cluster.create(&CONFIG_MAPS, NS, map(&name, &"x".repeat(size))).await.unwrap();
            }
        }
    }

    fn in_memory(cluster: &Cluster) -> usize {
        let page = cluster.page(&CONFIG_MAPS, None, &Selectors::default(), None, None);
        page.items.iter().filter(|stored| stored.is_in_memory()).map(|stored| stored.size()).sum()
    }

    #[tokio::test]
    async fn old_objects_are_read_from_the_disk_and_only_the_latest_are_in_memory() {
        let (cluster, dir) = cluster().await;
        for number in 0..100 {
            let text = format!("{number}{}", "x".repeat(LARGE));
            cluster.create(&CONFIG_MAPS, NS, map(&format!("m{number:02}"), &text)).await.unwrap();
        }
        let all = |cluster: Cluster| async move {
            let (items, _) = cluster.list_raw(&CONFIG_MAPS, Some(NS), &Selectors::default());
            assert_eq!(items.len(), 100);
            for (number, item) in items.iter().enumerate() {
                let object = cluster.get(&CONFIG_MAPS, NS, item.name()).await.unwrap();
                let expected = format!("{number}{}", "x".repeat(LARGE));
                assert_eq!(object["data"]["text"], expected.as_str());
                assert_eq!(*item.parse().unwrap(), *object);
            }
            assert!(in_memory(&cluster) < 20 * LARGE, "{}", in_memory(&cluster));
        };
        all(cluster.clone()).await;
        cluster.close().await;
        let again = Cluster::open(dir.path()).await.unwrap();
        assert_eq!(in_memory(&again), 0);
        all(again).await;
    }

    #[tokio::test]
    async fn a_version_that_was_seen_stays_the_same_when_the_next_ones_are_written() {
        let (cluster, _dir) = cluster().await;
        let one = |cluster: &Cluster| {
            let (mut items, _) = cluster.list_raw(&CONFIG_MAPS, Some(NS), &Selectors::name("a"));
            items.pop().unwrap()
        };
        let from = cluster.create(&CONFIG_MAPS, NS, map("a", "first")).await.unwrap();
        let from = from["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
        let mut watch = cluster.watch(&CONFIG_MAPS, Some(NS), Some(from), Selectors::name("a"));
        let first = one(&cluster);
        displace(&cluster).await;
        assert!(!first.0.is_in_memory());
        cluster.update(&CONFIG_MAPS, NS, map("a", "second")).await.unwrap();
        let second = one(&cluster);
        displace(&cluster).await;
        assert!(!second.0.is_in_memory());
        cluster.delete(&CONFIG_MAPS, NS, "a", DeleteOptions::default()).await.unwrap();
        displace(&cluster).await;
        assert_eq!(first.parse().unwrap()["data"]["text"], "first");
        assert_eq!(second.parse().unwrap()["data"]["text"], "second");
        // The history is bounded by bytes as well, so that the watch may have to list anew; what it yields is true.
        match watch.next().await.unwrap() {
            Ok(event) => assert_eq!(event.object["data"]["text"], "second"),
            Err(error) => assert!(error.is_gone(), "{error}"),
        }
    }

    #[tokio::test]
    async fn late_watches_see_every_version_of_objects_that_are_not_in_memory() {
        let (cluster, _dir) = cluster().await;
        let (_, from) = cluster.list_raw(&CONFIG_MAPS, Some(NS), &Selectors::default());
        let mut watch = cluster.watch(&resources::SECRETS, Some(NS), Some(from), Selectors::default());
        for version in 0..4 {
            let secret = json!({"metadata": {"name": "s"}, "stringData": {"v": version.to_string()}});
            match version {
                0 => cluster.create(&resources::SECRETS, NS, secret).await.unwrap(),
                _ => cluster.update(&resources::SECRETS, NS, secret).await.unwrap(),
            };
            displace(&cluster).await;
        }
        let mut seen = Vec::new();
        for _ in 0..4 {
            let event = watch.next().await.unwrap().unwrap();
            seen.push(event.object["data"]["v"].as_str().unwrap().to_string());
        }
        let expected: Vec<String> = ["0", "1", "2", "3"].map(base64_of).into();
        assert_eq!(seen, expected);
    }

    fn base64_of(text: &str) -> String {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(text)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn readers_beside_writers_never_see_the_body_of_another_version() {
        let (cluster, _dir) = cluster().await;
        for number in 0..30 {
            cluster.create(&CONFIG_MAPS, NS, map(&format!("m{number}"), &"x".repeat(LARGE))).await.unwrap();
        }
        let writer = cluster.clone();
        let writing = tokio::spawn(async move {
            for round in 0..300 {
                let name = format!("m{}", round * 7 % 30);
                let change = move |object: &mut Value| {
                    object["data"]["round"] = round.to_string().into();
                    Ok(())
                };
                writer.modify(&CONFIG_MAPS, NS, &name, change).await.unwrap();
            }
        });
        let mut compared = 0;
        while !writing.is_finished() || compared == 0 {
            let (items, _) = cluster.list_raw(&CONFIG_MAPS, Some(NS), &Selectors::default());
            tokio::task::yield_now().await;
            for item in items {
                let object = item.parse().unwrap();
                assert_eq!(object["metadata"]["resourceVersion"], item.0.head().revision().to_string());
                compared += 1;
            }
        }
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn an_object_that_cannot_be_read_is_an_error_and_changes_nothing() {
        let (cluster, dir) = cluster().await;
        let made = cluster.create(&CONFIG_MAPS, NS, map("a", "text")).await.unwrap();
        let from = made["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() - 1;
        drop(made);
        displace(&cluster).await;
        let database = rusqlite::Connection::open(dir.path().join("kubernetes.db")).unwrap();
        assert_eq!(database.execute("UPDATE objects SET body = '{' WHERE name = 'a'", []).unwrap(), 1);
        assert_eq!(cluster.get(&CONFIG_MAPS, NS, "a").await.unwrap_err().code, 500);
        assert_eq!(cluster.list(&CONFIG_MAPS, Some(NS), &Selectors::default()).await.unwrap_err().code, 500);
        let change = |object: &mut Value| {
            object["data"] = json!({});
            Ok(())
        };
        assert_eq!(cluster.modify(&CONFIG_MAPS, NS, "a", change).await.unwrap_err().code, 500);
        let deleted = cluster.delete(&CONFIG_MAPS, NS, "a", DeleteOptions::default()).await;
        assert_eq!(deleted.unwrap_err().code, 500);
        let mut watch = cluster.watch(&CONFIG_MAPS, Some(NS), Some(from), Selectors::name("a"));
        assert!(matches!(watch.next().await, Some(Err(error)) if error.code == 500 || error.is_gone()));
        assert!(watch.next().await.is_none());
        // Everything else goes on, in the same transactions too.
        cluster.create(&CONFIG_MAPS, NS, map("b", "text")).await.unwrap();
    }
}
