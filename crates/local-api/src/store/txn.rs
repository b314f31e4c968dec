//! Changes that are decided and not yet on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use super::history::Change;
use super::state::{Key, State, TableKey};
use super::stored::Stored;
use crate::object;
use crate::registry::Registry;

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
}

impl<'a> Txn<'a> {
    pub(crate) fn new(state: &'a State, overlay: &'a mut Overlay) -> Self {
        Self { state, overlay }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.state.registry
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Value>> {
        self.stored(key).map(|stored| stored.object())
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
    pub(crate) fn list(&self, table: TableKey, namespace: Option<&str>) -> Vec<(Key, Arc<Value>)> {
        let mut found: BTreeMap<Key, Arc<Value>> = BTreeMap::new();
        if let Some(stored) = self.state.table(table) {
            for ((ns, name), object) in stored.range(namespace, None) {
                let key = Key { table, namespace: ns.clone(), name: name.clone() };
                if !self.overlay.latest.contains_key(&key) {
                    found.insert(key, object.object());
                }
            }
        }
        for (key, changed) in &self.overlay.latest {
            if key.table == table && namespace.is_none_or(|wanted| key.namespace == wanted) {
                match changed {
                    Some(object) => found.insert(key.clone(), object.object()),
                    None => found.remove(key),
                };
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
        // Writes keep uids, so an object of this uid that is still there has not changed it.
        self.state.by_uid(uid).is_some_and(|key| match self.overlay.latest.get(key) {
            Some(changed) => changed.as_ref().is_some_and(|object| object.uid() == Some(uid)),
            None => true,
        }) || self.overlay.latest.values().flatten().any(|object| object.uid() == Some(uid))
    }

    /// The object with this uid.
    pub(crate) fn by_uid(&self, uid: &str) -> Option<(Key, Arc<Value>)> {
        let stored = self.state.by_uid(uid).cloned();
        let changed =
            self.overlay.latest.iter().find_map(|(key, object)| {
                object.as_ref().filter(|object| object.uid() == Some(uid)).map(|_| key.clone())
            });
        let key = changed.or(stored)?;
        let object = self.stored(&key).filter(|object| object.uid() == Some(uid))?.object();
        Some((key, object))
    }

    /// Objects whose ownerReferences name the uid.
    pub(crate) fn dependents(&self, uid: &str) -> Vec<(Key, Arc<Value>)> {
        let mut keys: BTreeSet<Key> = self.state.dependents(uid).cloned().collect();
        keys.extend(self.overlay.latest.iter().filter(|(_, object)| object.is_some()).map(|(key, _)| key.clone()));
        let owned = |key: &Key| self.stored(key).filter(|object| object.owners().any(|owner| owner == uid));
        keys.into_iter().filter_map(|key| owned(&key).map(|object| (key, object.object()))).collect()
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
        let previous = self.get(key)?;
        let revision = self.next();
        let mut last = Arc::unwrap_or_clone(previous);
        object::set_meta(&mut last, "resourceVersion", revision.to_string().into());
        let object = Arc::new(last);
        self.overlay.latest.insert(key.clone(), None);
        self.overlay.pending.push(Pending {
            key: key.clone(),
            revision,
            change: Change::Deleted,
            object: Arc::new(Stored::new(&object)),
            parsed: Some(object.clone()),
        });
        Some(object)
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
