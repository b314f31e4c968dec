//! Deletion: finalizers, owner references, namespaces.
//!
//! Everything happens in the transaction of the request: when a delete is answered, the objects that
//! go with it are gone. Kubernetes does the same in the background, a moment later. Pods go at once
//! too: there is no grace period here, whoever runs their processes stops them on the deletion event.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::resource::resources;
use crate::store::{Key, Txn};
use crate::{ApiError, DeleteOptions, Propagation, Resource, object};

const FOREGROUND: &str = "foregroundDeletion";

/// Namespaces that stay.
const PROTECTED: &[&str] = &["default", "kube-system", "kubeflow"];

/// What a delete led to.
#[derive(Debug, Clone)]
pub(crate) struct Deleted {
    /// Last state of the object.
    pub object: Arc<Value>,
    /// Whether it is gone; otherwise finalizers hold it.
    pub gone: bool,
}

/// Deletes one object.
///
/// # Errors
/// 404, 409 (a precondition does not hold), 403 (a namespace the cluster needs).
pub(crate) fn delete(
    txn: &mut Txn<'_>,
    r: &Resource,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted, ApiError> {
    let key = Key::new(r, namespace, name);
    if txn.unreadable(&key).is_some() {
        return discard(txn, r, &key, options);
    }
    let old = txn.get(&key).ok_or_else(|| ApiError::not_found(r, name))?;
    for (field, wanted) in [("UID", &options.uid), ("ResourceVersion", &options.resource_version)] {
        let found = if field == "UID" { object::uid(&old) } else { object::meta(&old, "resourceVersion") };
        if let Some(wanted) = wanted
            && Some(wanted.as_str()) != found
        {
            let found = found.unwrap_or_default();
            let why =
                format!("Precondition failed: {field} in precondition: {wanted}, {field} in object meta: {found}");
            return Err(ApiError::conflict(r, name, &why));
        }
    }
    let is_namespace = (r.group, r.plural) == (resources::NAMESPACES.group, resources::NAMESPACES.plural);
    if is_namespace && PROTECTED.contains(&name) {
        return Err(ApiError::forbidden(r, name, "this namespace may not be deleted"));
    }
    let savepoint = txn.savepoint();
    let deleted = if is_namespace && !empty_namespace(txn, name) {
        terminate(txn, &key, &old)
    } else {
        start(txn, &key, &old, options.propagation)
    };
    if options.dry_run {
        txn.rollback(savepoint);
    }
    Ok(deleted)
}

/// Deletes an object that cannot be read: nobody knows what it owned, or whether finalizers should hold it.
fn discard(txn: &mut Txn<'_>, r: &Resource, key: &Key, options: &DeleteOptions) -> Result<Deleted, ApiError> {
    if options.uid.is_some() || options.resource_version.is_some() {
        return Err(ApiError::conflict(r, &key.name, "Precondition failed: the stored object cannot be read"));
    }
    let mut object = json!({"apiVersion": r.api_version(), "kind": r.kind, "metadata": {"name": *key.name}});
    if r.namespaced {
        object::set_meta(&mut object, "namespace", json!(*key.namespace));
    }
    let savepoint = txn.savepoint();
    let object = txn.discard(key, object);
    if options.dry_run {
        txn.rollback(savepoint);
    }
    Ok(Deleted { object, gone: true })
}

fn start(txn: &mut Txn<'_>, key: &Key, old: &Arc<Value>, propagation: Propagation) -> Deleted {
    let mut finalizers = object::finalizers(old);
    if propagation == Propagation::Orphan
        && let Some(uid) = object::uid(old)
    {
        for dependent in txn.dependents(uid) {
            disown(txn, &dependent, uid);
        }
    }
    let blocking = propagation == Propagation::Foreground && object::uid(old).is_some_and(|uid| is_blocked(txn, uid));
    if blocking && !finalizers.iter().any(|f| f == FOREGROUND) {
        finalizers.push(FOREGROUND.into());
    }
    if finalizers.is_empty() {
        return match remove(txn, key) {
            Some(object) => Deleted { object, gone: true },
            None => Deleted { object: old.clone(), gone: true },
        };
    }
    let mut object = old.as_ref().clone();
    if !object::is_deleting(old) {
        object::set_meta(&mut object, "deletionTimestamp", json!(object::now()));
        if let Some(generation) = object["metadata"]["generation"].as_i64() {
            object::set_meta(&mut object, "generation", json!(generation + 1));
        }
        object::set_meta(&mut object, "deletionGracePeriodSeconds", json!(0));
    }
    object::set_meta(&mut object, "finalizers", json!(finalizers));
    let stored = if object == **old { old.clone() } else { txn.put(key, object) };
    if blocking && let Some(uid) = object::uid(&stored).map(str::to_string) {
        leave(txn, &uid, Propagation::Foreground);
        release(txn, &uid);
    }
    match txn.get(key) {
        Some(object) => Deleted { object, gone: false },
        None => Deleted { object: stored, gone: true },
    }
}

/// Removes an object without looking at its finalizers, and then what it owned.
pub(super) fn remove(txn: &mut Txn<'_>, key: &Key) -> Option<Arc<Value>> {
    let last = txn.remove(key)?;
    if let Some(uid) = object::uid(&last) {
        leave(txn, uid, Propagation::Background);
    }
    let definitions = resources::CUSTOM_RESOURCE_DEFINITIONS;
    if key.table == (definitions.group, definitions.plural) {
        remove_custom_objects(txn, &last);
    }
    // An owner in foreground deletion waits for this one.
    let owners: Vec<String> = object::owner_uids(&last).map(str::to_string).collect();
    for owner in owners {
        release(txn, &owner);
    }
    if !key.namespace.is_empty() {
        finish_namespace(txn, &key.namespace);
    }
    Some(last)
}

/// Deletes the dependents of an owner that goes, save those that have another one.
fn leave(txn: &mut Txn<'_>, uid: &str, propagation: Propagation) {
    for dependent in txn.dependents(uid) {
        // It may be gone already, as a dependent of one before it.
        let Some(stored) = txn.stored(&dependent) else { continue };
        if stored.head().owners().any(|owner| owner != uid && txn.uid_exists(owner)) {
            disown(txn, &dependent, uid);
        } else if let Some(object) = txn.get(&dependent) {
            start(txn, &dependent, &object, propagation);
        }
    }
}

/// Whether a dependent keeps its owner from going first.
fn is_blocked(txn: &Txn<'_>, uid: &str) -> bool {
    txn.dependents(uid).iter().any(|key| txn.metadata(key).is_some_and(|metadata| blocks(&metadata, uid)))
}

fn blocks(metadata: &Value, owner: &str) -> bool {
    let owners = metadata["ownerReferences"].as_array();
    owners.into_iter().flatten().any(|o| o["uid"] == owner && o["blockOwnerDeletion"] == true)
}

fn disown(txn: &mut Txn<'_>, key: &Key, uid: &str) {
    let Some(object) = txn.get(key) else { return };
    let mut object = Arc::unwrap_or_clone(object);
    let kept: Vec<Value> = object::owners(&object).filter(|owner| owner["uid"] != uid).cloned().collect();
    object::set_meta(&mut object, "ownerReferences", if kept.is_empty() { Value::Null } else { json!(kept) });
    txn.put(key, object);
}

/// Ends the foreground deletion of an owner whose last blocking dependent is gone.
fn release(txn: &mut Txn<'_>, uid: &str) {
    let Some(key) = txn.by_uid(uid) else { return };
    // The owner may be large, and most of the time it is not even being deleted.
    if !txn.is_deleting(&key) {
        return;
    }
    let Some(owner) = txn.metadata(&key).map(|metadata| json!({"metadata": metadata})) else { return };
    let finalizers = object::finalizers(&owner);
    if !finalizers.iter().any(|f| f == FOREGROUND) || is_blocked(txn, uid) {
        return;
    }
    let rest: Vec<&String> = finalizers.iter().filter(|f| *f != FOREGROUND).collect();
    let Some(mut object) = txn.get(&key).map(Arc::unwrap_or_clone) else { return };
    object::set_meta(&mut object, "finalizers", if rest.is_empty() { Value::Null } else { json!(rest) });
    txn.put(&key, object);
    if rest.is_empty() {
        remove(txn, &key);
    }
}

/// Deletes what a namespace contains; false when finalizers hold something.
fn empty_namespace(txn: &mut Txn<'_>, namespace: &str) -> bool {
    let mut empty = true;
    for key in contents(txn, namespace) {
        if let Some(object) = txn.get(&key) {
            empty &= start(txn, &key, &object, Propagation::Background).gone;
        }
    }
    empty
}

fn contents(txn: &Txn<'_>, namespace: &str) -> Vec<Key> {
    let tables = txn.tables().into_iter();
    tables.flat_map(|table| txn.list(table, Some(namespace))).map(|(key, _)| key).collect()
}

/// Marks a namespace whose last objects wait for their finalizers.
fn terminate(txn: &mut Txn<'_>, key: &Key, old: &Arc<Value>) -> Deleted {
    if object::is_deleting(old) {
        return Deleted { object: old.clone(), gone: false };
    }
    let mut namespace = old.as_ref().clone();
    object::set_meta(&mut namespace, "deletionTimestamp", json!(object::now()));
    if let Some(map) = namespace.as_object_mut() {
        map.insert("status".into(), json!({"phase": "Terminating"}));
    }
    Deleted { object: txn.put(key, namespace), gone: false }
}

/// Removes a terminating namespace when its last object went.
fn finish_namespace(txn: &mut Txn<'_>, namespace: &str) {
    let key = Key::new(&resources::NAMESPACES, "", namespace);
    if txn.get(&key).is_some_and(|found| object::is_deleting(&found)) && contents(txn, namespace).is_empty() {
        txn.remove(&key);
    }
}

fn remove_custom_objects(txn: &mut Txn<'_>, definition: &Value) {
    let (group, plural) = (&definition["spec"]["group"], &definition["spec"]["names"]["plural"]);
    let built_in = resources::ALL.iter().any(|r| *group == r.group && *plural == r.plural);
    let table = txn.tables().into_iter().find(|(g, p)| *group == *g && *plural == *p);
    if let Some(table) = table.filter(|_| !built_in) {
        for (key, _) in txn.list(table, None) {
            remove(txn, &key);
        }
    }
}
