//! All objects, as readers see them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::head::Head;
use super::history::{Change, Event, History};
use super::stored::Stored;
use crate::registry::Registry;
use crate::{ApiError, Resource};

/// Group and plural: versions of one resource share their objects.
pub(crate) type TableKey = (&'static str, &'static str);

/// One object's place. Its texts are shared by all indexes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub table: TableKey,
    /// Empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// Namespace and name.
type Place = (Arc<str>, Arc<str>);

impl Key {
    pub(crate) fn new(r: &Resource, namespace: &str, name: &str) -> Self {
        let namespace = if r.namespaced { namespace } else { "" };
        Self { table: (r.group, r.plural), namespace: namespace.into(), name: name.into() }
    }
}

/// Objects of one type.
#[derive(Debug)]
pub(crate) struct Table {
    objects: BTreeMap<Place, Arc<Stored>>,
    pub history: History,
}

impl Table {
    pub(crate) fn new(floor: u64) -> Self {
        Self { objects: BTreeMap::new(), history: History::new(floor) }
    }

    pub(crate) fn len(&self) -> usize {
        self.objects.len()
    }

    /// Objects of one namespace or of all, in order, from after `start` on.
    pub(crate) fn range<'a>(
        &'a self,
        namespace: Option<&'a str>,
        start: Option<&(String, String)>,
    ) -> impl Iterator<Item = (&'a Place, &'a Arc<Stored>)> + use<'a> {
        use std::ops::Bound;
        let first: Place = (namespace.unwrap_or("").into(), "".into());
        let start = start.map(|(namespace, name)| (namespace.as_str().into(), name.as_str().into()));
        let from = match start {
            Some(key) if key >= first => Bound::Excluded(key),
            _ => Bound::Included(first),
        };
        self.objects
            .range((from, Bound::Unbounded))
            .take_while(move |((ns, _), _)| namespace.is_none_or(|wanted| **ns == *wanted))
    }
}

/// Everything there is.
#[derive(Debug)]
pub(crate) struct State {
    /// The last change; also the resourceVersion of lists.
    pub revision: u64,
    /// Revision at start: history before it is not known.
    floor: u64,
    tables: HashMap<TableKey, Table>,
    /// Objects that could not be read at the start, and why; they are in no table.
    unreadable: HashMap<Key, Box<str>>,
    by_uid: HashMap<Box<str>, Key>,
    /// Owner's uid to the objects that name it.
    dependents: HashMap<Box<str>, BTreeSet<Key>>,
    pub registry: Registry,
}

impl State {
    pub(crate) fn new(revision: u64, registry: Registry) -> Self {
        Self {
            revision,
            floor: revision,
            tables: HashMap::new(),
            unreadable: HashMap::new(),
            by_uid: HashMap::new(),
            dependents: HashMap::new(),
            registry,
        }
    }

    pub(crate) fn table(&self, key: TableKey) -> Option<&Table> {
        self.tables.get(&key)
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = (&TableKey, &Table)> {
        self.tables.iter()
    }

    /// Oldest revision a watch on the type can start from.
    pub(crate) fn watch_floor(&self, key: TableKey) -> u64 {
        self.tables.get(&key).map_or(self.floor, |table| table.history.floor())
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Stored>> {
        self.tables.get(&key.table)?.objects.get(&(key.namespace.clone(), key.name.clone()))
    }

    pub(crate) fn by_uid(&self, uid: &str) -> Option<&Key> {
        self.by_uid.get(uid)
    }

    pub(crate) fn dependents(&self, uid: &str) -> impl Iterator<Item = &Key> {
        self.dependents.get(uid).into_iter().flatten()
    }

    /// Puts an object in place without an event: used when loading.
    pub(crate) fn load(&mut self, key: Key, object: Stored) {
        self.index(&key, object.head());
        let floor = self.floor;
        let table = self.tables.entry(key.table).or_insert_with(|| Table::new(floor));
        table.objects.insert((key.namespace, key.name), Arc::new(object));
    }

    /// Remembers an object that cannot be read.
    pub(crate) fn leave_out(&mut self, key: Key, why: &str) {
        self.unreadable.insert(key, why.into());
    }

    /// The error for who asks for an object that could not be read at the start.
    pub(crate) fn unreadable(&self, key: &Key) -> Option<ApiError> {
        let why = self.unreadable.get(key)?;
        Some(ApiError::internal(format!(
            "the stored {} \"{}\" cannot be read: {why}; delete it, or create it anew",
            key.table.1, key.name
        )))
    }

    /// Carries out a committed change.
    pub(crate) fn apply(&mut self, key: &Key, event: Event) {
        if !self.unreadable.is_empty() {
            self.unreadable.remove(key);
        }
        if let Some(previous) = &event.previous {
            self.unindex(key, previous);
        }
        if event.change != Change::Deleted {
            self.index(key, event.object.head());
        }
        let floor = self.floor;
        let table = self.tables.entry(key.table).or_insert_with(|| Table::new(floor));
        let place = (key.namespace.clone(), key.name.clone());
        if event.change == Change::Deleted {
            table.objects.remove(&place);
        } else {
            table.objects.insert(place, event.object.clone());
        }
        self.revision = event.revision;
        table.history.push(event);
    }

    fn index(&mut self, key: &Key, object: &Head) {
        if let Some(uid) = object.uid() {
            self.by_uid.insert(uid.into(), key.clone());
        }
        for owner in object.owners() {
            self.dependents.entry(owner.into()).or_default().insert(key.clone());
        }
    }

    fn unindex(&mut self, key: &Key, object: &Head) {
        if let Some(uid) = object.uid() {
            self.by_uid.remove(uid);
        }
        for owner in object.owners() {
            if let Some(set) = self.dependents.get_mut(owner) {
                set.remove(key);
                if set.is_empty() {
                    self.dependents.remove(owner);
                }
            }
        }
    }
}
