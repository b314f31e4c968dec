//! Changes that are decided and not yet on disk.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::history::Change;
use super::state::{Key, State, TableKey};
use super::stored::Stored;
use crate::registry::Registry;
use crate::{ApiError, object};

/// A change waiting for its transaction.
#[derive(Debug)]
pub(crate) struct Pending {
    pub key: Key,
    pub revision: u64,
    pub change: Change,
    pub object: Arc<Stored>,
    /// Keeps the parsed form alive for who reads the object next, where the change was made on it.
    pub parsed: Option<Arc<Value>>,
}

/// The changes of one transaction, in order.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    pub pending: Vec<Pending>,
    /// Latest state of the changed objects; `None` means deleted.
    latest: BTreeMap<Key, Option<Arc<Stored>>>,
}

impl Overlay {
    /// The last state of every changed object.
    pub(crate) fn latest(&self) -> impl Iterator<Item = (&Key, Option<&Arc<Stored>>)> {
        self.latest.iter().map(|(key, object)| (key, object.as_ref()))
    }

    /// Whether this is the last state of the object.
    pub(super) fn is_latest(&self, key: &Key, object: &Arc<Stored>) -> bool {
        self.latest.get(key).and_then(Option::as_ref).is_some_and(|latest| Arc::ptr_eq(latest, object))
    }

    /// Takes back everything after the first `length` changes.
    pub(crate) fn truncate(&mut self, length: usize) {
        while self.pending.len() > length {
            let Some(undone) = self.pending.pop() else { break };
            match self.pending.iter().rev().find(|p| p.key == undone.key) {
                Some(p) if p.change == Change::Deleted => self.latest.insert(undone.key, None),
                Some(p) => self.latest.insert(undone.key, Some(p.object.clone())),
                None => self.latest.remove(&undone.key),
            };
        }
    }
}

/// The state as one write sees it: what is on disk plus the writes before it in the same transaction.
pub(crate) struct Txn<'a> {
    state: &'a State,
    overlay: &'a mut Overlay,
    /// Why an object could not be read that was asked for.
    failure: RefCell<Option<ApiError>>,
}

impl<'a> Txn<'a> {
    pub(crate) fn new(state: &'a State, overlay: &'a mut Overlay) -> Self {
        Self { state, overlay, failure: RefCell::default() }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.state.registry
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Value>> {
        match self.stored(key) {
            Some(stored) => self.readable(stored.object()),
            None => self.unreadable(key).and_then(|error| self.readable(Err(error))),
        }
    }

    /// The metadata of an object, without parsing the rest of it.
    pub(crate) fn metadata(&self, key: &Key) -> Option<Value> {
        self.stored(key).and_then(|stored| self.readable(stored.metadata()))
    }

    /// Whether an object waits for its deletion.
    pub(crate) fn is_deleting(&self, key: &Key) -> bool {
        self.stored(key).is_some_and(|stored| stored.head().is_deleting())
    }

    /// Why the object of this place, which is on disk, cannot be read.
    pub(crate) fn unreadable(&self, key: &Key) -> Option<ApiError> {
        if self.overlay.latest.contains_key(key) { None } else { self.state.unreadable(key) }
    }

    /// Remembers a failure, with which the write then ends, whatever it makes of the missing object.
    fn readable<T>(&self, read: Result<T, ApiError>) -> Option<T> {
        read.map_err(|error| self.failure.replace(Some(error))).ok()
    }

    /// Why an object could not be read.
    pub(super) fn take_failure(&mut self) -> Option<ApiError> {
        self.failure.take()
    }

    /// The object as it is kept.
    pub(crate) fn stored(&self, key: &Key) -> Option<&Arc<Stored>> {
        match self.overlay.latest.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.state.get(key),
        }
    }

    /// Whether the object exists, without parsing it.
    pub(crate) fn exists(&self, key: &Key) -> bool {
        self.stored(key).is_some()
    }

    /// Number of objects of a type (on disk; close enough for limits).
    pub(crate) fn count(&self, table: TableKey) -> usize {
        self.state.table(table).map_or(0, |table| table.len())
    }

    /// Objects of a type, in one namespace or all.
    pub(crate) fn list(&self, table: TableKey, namespace: Option<&str>) -> Vec<(Key, Arc<Stored>)> {
        let mut found: BTreeMap<Key, Arc<Stored>> = BTreeMap::new();
        if let Some(stored) = self.state.table(table) {
            for ((ns, name), object) in stored.range(namespace, None) {
                let key = Key { table, namespace: ns.clone(), name: name.clone() };
                if !self.overlay.latest.contains_key(&key) {
                    found.insert(key, object.clone());
                }
            }
        }
        for (key, changed) in &self.overlay.latest {
            if key.table == table
                && namespace.is_none_or(|wanted| *key.namespace == *wanted)
                && let Some(object) = changed
            {
                found.insert(key.clone(), object.clone());
            }
        }
        found.into_iter().collect()
    }

    /// Types that may have objects in the namespace.
    pub(crate) fn tables(&self) -> BTreeSet<TableKey> {
        let stored = self.state.tables().filter(|(_, table)| table.len() > 0).map(|(key, _)| *key);
        stored.chain(self.overlay.latest.keys().map(|key| key.table)).collect()
    }

    /// Whether an object with this uid exists.
    pub(crate) fn uid_exists(&self, uid: &str) -> bool {
        self.by_uid(uid).is_some()
    }

    /// The place of the object with this uid.
    pub(crate) fn by_uid(&self, uid: &str) -> Option<Key> {
        let is = |object: &Arc<Stored>| object.head().uid() == Some(uid);
        let changed = self.overlay.latest.iter().find(|(_, object)| object.as_ref().is_some_and(is));
        let key = changed.map(|(key, _)| key).or_else(|| self.state.by_uid(uid))?;
        self.stored(key).is_some_and(is).then(|| key.clone())
    }

    /// Places of the objects whose ownerReferences name the uid.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<Key> {
        let mut keys: BTreeSet<&Key> = self.state.dependents(uid).collect();
        keys.extend(self.overlay.latest.iter().filter(|(_, object)| object.is_some()).map(|(key, _)| key));
        let owned = |key: &&Key| self.stored(key).is_some_and(|object| object.head().owners().any(|o| o == uid));
        keys.into_iter().filter(owned).cloned().collect()
    }

    /// Stores an object under the next revision, which it sets as its resourceVersion.
    pub(crate) fn put(&mut self, key: &Key, mut object: Value) -> Arc<Value> {
        object::set_meta(&mut object, "resourceVersion", self.next().to_string().into());
        let object = Arc::new(object);
        self.push(key, Arc::new(Stored::new(&object)), Some(object.clone()));
        object
    }

    /// Stores an object given as JSON, which carries the [next](Txn::next) revision as its resourceVersion.
    pub(crate) fn put_json(&mut self, key: &Key, object: Arc<Stored>) {
        self.push(key, object, None);
    }

    fn push(&mut self, key: &Key, object: Arc<Stored>, parsed: Option<Arc<Value>>) {
        let change = if self.exists(key) { Change::Modified } else { Change::Added };
        let revision = self.next();
        self.overlay.latest.insert(key.clone(), Some(object.clone()));
        self.overlay.pending.push(Pending { key: key.clone(), revision, change, object, parsed });
    }

    /// Removes an object and returns its last state.
    pub(crate) fn remove(&mut self, key: &Key) -> Option<Arc<Value>> {
        let last = Arc::unwrap_or_clone(self.get(key)?);
        Some(self.discard(key, last))
    }

    /// Removes what is stored at a place, of which `last` is known, and returns that.
    pub(crate) fn discard(&mut self, key: &Key, mut last: Value) -> Arc<Value> {
        let revision = self.next();
        object::set_meta(&mut last, "resourceVersion", revision.to_string().into());
        let object = Arc::new(last);
        self.overlay.latest.insert(key.clone(), None);
        self.overlay.pending.push(Pending {
            key: key.clone(),
            revision,
            change: Change::Deleted,
            object: Arc::new(Stored::new(&object)),
            parsed: None,
        });
        object
    }

    /// A place to return to with [`Txn::rollback`].
    pub(crate) fn savepoint(&self) -> usize {
        self.overlay.pending.len()
    }

    pub(crate) fn rollback(&mut self, savepoint: usize) {
        self.overlay.truncate(savepoint);
    }

    /// The revision of the next change.
    pub(crate) fn next(&self) -> u64 {
        self.overlay.pending.last().map_or(self.state.revision, |pending| pending.revision) + 1
    }
}
