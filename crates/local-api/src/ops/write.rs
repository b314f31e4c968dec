//! Create, update and patch.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{kinds, patch as documents};
use crate::resource::resources;
use crate::store::{Key, Txn};
use crate::{ApiError, Patch, Resource, object};

/// Which part of an object a write may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything: components in this process.
    Whole,
    /// The main path over HTTP: status is kept where the type has a status subresource.
    Main,
    /// The status subresource: the rest is kept.
    Status,
}

/// How to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WriteOptions {
    pub scope: Scope,
    /// Check everything, change nothing.
    pub dry_run: bool,
}

/// How often a generated name is drawn anew when it exists, as in Kubernetes.
const NAME_ATTEMPTS: usize = 8;

/// Most events kept; the oldest go first. Kubernetes bounds them by age (one hour), which on one
/// machine would let a busy hour grow without limit.
const MAX_EVENT_OBJECTS: usize = 2000;
/// Events removed at once, so that the scan is rare.
const EVENT_SWEEP: usize = 200;

/// Creates an object.
///
/// # Errors
/// 400 (not an object of the type, wrong namespace), 404 (no such namespace), 409 (exists),
/// 422 (name, labels, required fields).
pub(crate) fn create(
    txn: &mut Txn<'_>,
    r: &Resource,
    namespace: &str,
    mut object: Value,
    options: WriteOptions,
) -> Result<Arc<Value>, ApiError> {
    object::check_shape(r, &mut object)?;
    let namespace = place(r, namespace, &object)?;
    if r.namespaced {
        check_namespace(txn, r, &namespace, object::meta(&object, "name").unwrap_or_default())?;
    }
    let name = match object::meta(&object, "name").filter(|name| !name.is_empty()) {
        Some(name) => name.to_string(),
        None => draw_name(txn, r, &namespace, &object)?,
    };
    let key = Key::new(r, &namespace, &name);
    if txn.exists(&key) {
        return Err(ApiError::already_exists(r, &name));
    }
    for (field, value) in [
        ("name", json!(name)),
        ("namespace", if r.namespaced { json!(namespace) } else { Value::Null }),
        ("uid", json!(uuid::Uuid::new_v4().to_string())),
        ("creationTimestamp", json!(object::now())),
        ("generation", if has_generation(r) { json!(1) } else { Value::Null }),
        ("resourceVersion", Value::Null),
        ("deletionTimestamp", Value::Null),
        ("deletionGracePeriodSeconds", Value::Null),
        ("selfLink", Value::Null),
        ("managedFields", Value::Null),
    ] {
        object::set_meta(&mut object, field, value);
    }
    object::check_meta(r, &name, &object)?;
    if options.scope == Scope::Main
        && r.status
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    kinds::check(r, &name, &object)?;
    kinds::default(r, &mut object);
    let savepoint = txn.savepoint();
    let created = txn.put(&key, object);
    if options.dry_run {
        txn.rollback(savepoint);
        return Ok(created);
    }
    if orphaned(txn, &created) {
        // As the garbage collector does with objects created after their owner was deleted.
        super::delete::remove(txn, &key);
    }
    if key.table == (resources::EVENTS.group, resources::EVENTS.plural) {
        sweep_events(txn, &key);
    }
    Ok(created)
}

/// Puts an object in place if it does not exist: used for what every cluster has from the start.
pub(crate) fn seed(txn: &mut Txn<'_>, r: &Resource, namespace: &str, object: Value) -> Result<(), ApiError> {
    match create(txn, r, namespace, object, WriteOptions { scope: Scope::Whole, dry_run: false }) {
        Err(error) if !error.is_already_exists() => Err(error),
        _ => Ok(()),
    }
}

/// Replaces an object.
///
/// # Errors
/// 404, 409 (its resourceVersion or uid is set and stale), 400, 422.
pub(crate) fn update(
    txn: &mut Txn<'_>,
    r: &Resource,
    namespace: &str,
    name: &str,
    mut object: Value,
    options: WriteOptions,
) -> Result<Arc<Value>, ApiError> {
    object::check_shape(r, &mut object)?;
    check_name(name, &object)?;
    let namespace = place(r, namespace, &object)?;
    let key = Key::new(r, &namespace, name);
    let old = txn.get(&key).ok_or_else(|| ApiError::not_found(r, name))?;
    check_version(r, name, &old, &object)?;
    store(txn, r, &key, &old, object, options)
}

/// Changes an object through a function that sees its latest state.
///
/// # Errors
/// 404, the function's error, 400 and 422 when the result cannot be stored.
pub(crate) fn modify(
    txn: &mut Txn<'_>,
    r: &Resource,
    namespace: &str,
    name: &str,
    change: impl FnOnce(&mut Value) -> Result<(), ApiError>,
    options: WriteOptions,
) -> Result<Arc<Value>, ApiError> {
    let key = Key::new(r, namespace, name);
    let old = txn.get(&key).ok_or_else(|| ApiError::not_found(r, name))?;
    let mut object = old.as_ref().clone();
    change(&mut object)?;
    object::check_shape(r, &mut object)?;
    store(txn, r, &key, &old, object, options)
}

/// Applies a patch document.
///
/// # Errors
/// 404 (except for apply, which creates), 409 (the document carries a stale resourceVersion), 415
/// (strategic merge on a custom resource), 400 and 422 when the document or the result is wrong.
pub(crate) fn patch(
    txn: &mut Txn<'_>,
    r: &Resource,
    namespace: &str,
    name: &str,
    patch: Patch,
    options: WriteOptions,
) -> Result<Arc<Value>, ApiError> {
    let key = Key::new(r, namespace, name);
    let Some(old) = txn.get(&key) else {
        return match patch {
            Patch::Apply(mut object) if options.scope != Scope::Status => {
                object::check_shape(r, &mut object)?;
                object::set_meta(&mut object, "name", name.into());
                create(txn, r, namespace, object, options)
            }
            _ => Err(ApiError::not_found(r, name)),
        };
    };
    let mut object = documents::apply(r, name, &old, patch)?;
    object::check_shape(r, &mut object)?;
    check_name(name, &object)?;
    check_version(r, name, &old, &object)?;
    store(txn, r, &key, &old, object, options)
}

/// 400 when the object has another name than the request.
fn check_name(name: &str, object: &Value) -> Result<(), ApiError> {
    match object::meta(object, "name") {
        Some(given) if !given.is_empty() && given != name => Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        ))),
        _ => Ok(()),
    }
}

/// 409 when the new object was made from another version or another object of the same name.
fn check_version(r: &Resource, name: &str, old: &Value, new: &Value) -> Result<(), ApiError> {
    if let Some(uid) = object::uid(new)
        && Some(uid) != object::uid(old)
    {
        let found = object::uid(old).unwrap_or_default();
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {found}");
        return Err(ApiError::conflict(r, name, &why));
    }
    let version = object::meta(new, "resourceVersion").filter(|version| !version.is_empty() && *version != "0");
    if version.is_some() && version != object::meta(old, "resourceVersion") {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        return Err(ApiError::conflict(r, name, why));
    }
    Ok(())
}

/// Checks and stores the next state of an object.
fn store(
    txn: &mut Txn<'_>,
    r: &Resource,
    key: &Key,
    old: &Arc<Value>,
    new: Value,
    options: WriteOptions,
) -> Result<Arc<Value>, ApiError> {
    let mut new = in_scope(r, old, new, options.scope);
    for field in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "generation",
        "resourceVersion",
        "generateName",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let kept = old["metadata"].get(field).cloned().unwrap_or(Value::Null);
        object::set_meta(&mut new, field, kept);
    }
    for field in ["selfLink", "managedFields"] {
        object::set_meta(&mut new, field, Value::Null);
    }
    kinds::normalise(r, &mut new);
    if new == **old {
        return Ok(old.clone());
    }
    object::check_meta(r, &key.name, &new)?;
    kinds::check(r, &key.name, &new)?;
    if changes_generation(r, old, &new) {
        let generation = old["metadata"]["generation"].as_i64().unwrap_or(1);
        object::set_meta(&mut new, "generation", json!(generation + 1));
    }
    if object::is_deleting(&new) && object::finalizers(&new).is_empty() && !options.dry_run {
        // The last finalizer is gone: now the deletion happens, and watches see nothing else.
        super::delete::remove(txn, key);
        return Ok(Arc::new(new));
    }
    let savepoint = txn.savepoint();
    let stored = txn.put(key, new);
    if options.dry_run {
        txn.rollback(savepoint);
    }
    Ok(stored)
}

/// Takes the parts outside the scope from the old object.
fn in_scope(r: &Resource, old: &Value, new: Value, scope: Scope) -> Value {
    if !r.status || scope == Scope::Whole {
        return new;
    }
    let mut merged = match scope {
        Scope::Status => {
            let mut merged = old.clone();
            if r.native
                && let (Some(map), Some(metadata)) = (merged.as_object_mut(), new.get("metadata"))
            {
                // Kubernetes' own kinds let /status change labels and annotations too.
                map.insert("metadata".into(), metadata.clone());
            }
            merged
        }
        Scope::Main | Scope::Whole => new.clone(),
    };
    let status = if scope == Scope::Status { new.get("status") } else { old.get("status") };
    if let Some(map) = merged.as_object_mut() {
        match status {
            Some(status) => map.insert("status".into(), status.clone()),
            None => map.remove("status"),
        };
    }
    merged
}

/// Whether objects count the changes of their desired state: custom ones, and those of Kubernetes that controllers act on.
fn has_generation(r: &Resource) -> bool {
    !r.native || (r.status && matches!(r.group, "apps" | "batch" | "apiextensions.k8s.io")) || *r == resources::PODS
}

/// Whether the desired state differs: anything but metadata, and but status where that is a subresource.
fn changes_generation(r: &Resource, old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return false };
    if !has_generation(r) {
        return false;
    }
    let counts = |key: &&String| *key != "metadata" && !(key.as_str() == "status" && (r.status || r.native));
    let keys = old.keys().chain(new.keys());
    keys.filter(counts).any(|key| old.get(key) != new.get(key))
}

/// The namespace an object belongs to; empty for cluster-scoped types.
fn place(r: &Resource, namespace: &str, object: &Value) -> Result<String, ApiError> {
    if !r.namespaced {
        return Ok(String::new());
    }
    let own = object::meta(object, "namespace").unwrap_or_default();
    match (namespace, own) {
        ("", "") => Err(ApiError::bad_request("an empty namespace may not be set during creation")),
        ("", own) => Ok(own.to_string()),
        (asked, "") => Ok(asked.to_string()),
        (asked, own) if asked == own => Ok(asked.to_string()),
        _ => Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        )),
    }
}

fn check_namespace(txn: &Txn<'_>, r: &Resource, namespace: &str, name: &str) -> Result<(), ApiError> {
    match txn.get(&Key::new(&resources::NAMESPACES, "", namespace)) {
        None => Err(ApiError::not_found(&resources::NAMESPACES, namespace)),
        Some(found) if object::is_deleting(&found) => Err(ApiError::forbidden(
            r,
            name,
            &format!("unable to create new content in namespace {namespace} because it is being terminated"),
        )),
        Some(_) => Ok(()),
    }
}

fn draw_name(txn: &Txn<'_>, r: &Resource, namespace: &str, object: &Value) -> Result<String, ApiError> {
    let Some(base) = object::meta(object, "generateName").filter(|base| !base.is_empty()) else {
        return Err(ApiError::invalid(r, "", "metadata.name", "Required value: name or generateName is required"));
    };
    let mut name = object::generate_name(base);
    for _ in 1..NAME_ATTEMPTS {
        if !txn.exists(&Key::new(r, namespace, &name)) {
            break;
        }
        name = object::generate_name(base);
    }
    Ok(name)
}

/// Whether the object names owners and none of them exists. Owners of types not served here cannot
/// be looked up and count as existing.
fn orphaned(txn: &Txn<'_>, object: &Value) -> bool {
    let mut owners = object::owners(object).peekable();
    owners.peek().is_some()
        && owners.all(|owner| {
            let text = |key: &str| owner[key].as_str().unwrap_or_default();
            txn.registry().by_kind(text("apiVersion"), text("kind")).is_some() && !txn.uid_exists(text("uid"))
        })
}

fn sweep_events(txn: &mut Txn<'_>, created: &Key) {
    if txn.count(created.table) < MAX_EVENT_OBJECTS {
        return;
    }
    let mut events = txn.list(created.table, None);
    if events.len() <= MAX_EVENT_OBJECTS {
        return;
    }
    events.sort_by_key(|(_, object)| object.head().revision());
    for (key, _) in events.into_iter().take(EVENT_SWEEP).filter(|(key, _)| key != created) {
        txn.remove(&key);
    }
}
