//! Setting members of a large object without parsing the rest of it.
//!
//! Parsed, an object takes about ten times the memory of its JSON. A controller that changes a few members of a
//! large status many times a second should pay for these members only.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::Value;
use serde_json::value::RawValue;

use crate::store::{Key, Stored, Txn};
use crate::{ApiError, Resource, object};

/// What becomes of one member.
#[derive(Debug, Clone)]
enum Edit {
    Set(Value),
    SetIfAbsent(Value),
    Remove,
    Inside(Edits),
}

/// Changes of members of a custom resource, by their paths. Where the path leads through something that is not
/// a map, a map takes its place.
#[derive(Debug, Clone, Default)]
pub struct Edits {
    members: BTreeMap<String, Edit>,
}

impl Edits {
    /// Sets a member.
    pub fn set(&mut self, path: &[&str], value: Value) {
        self.edit(path, Edit::Set(value));
    }

    /// Sets a member that does not exist.
    pub fn set_if_absent(&mut self, path: &[&str], value: Value) {
        self.edit(path, Edit::SetIfAbsent(value));
    }

    /// Removes a member, if it exists.
    pub fn remove(&mut self, path: &[&str]) {
        self.edit(path, Edit::Remove);
    }

    /// The edited object.
    ///
    /// # Errors
    /// When `json` is not JSON as far as it is looked at.
    pub fn apply(&self, json: &str) -> Result<String, serde_json::Error> {
        let mut out = String::with_capacity(json.len() + (16 << 10));
        self.write(&mut out, json)?;
        Ok(out)
    }

    /// A later edit of the same path, or of one above it, wins.
    fn edit(&mut self, path: &[&str], edit: Edit) {
        match path {
            [] => {}
            [last] => drop(self.members.insert((*last).to_owned(), edit)),
            [first, rest @ ..] => {
                let member = self.members.entry((*first).to_owned()).or_insert_with(|| Edit::Inside(Self::default()));
                if !matches!(member, Edit::Inside(_)) {
                    *member = Edit::Inside(Self::default());
                }
                if let Edit::Inside(edits) = member {
                    edits.edit(rest, edit);
                }
            }
        }
    }

    /// Appends the edited map to `out`; its members are in order of their names, as in every object that is kept.
    fn write(&self, out: &mut String, map: &str) -> Result<(), serde_json::Error> {
        let mut members: BTreeMap<Cow<'_, str>, &RawValue> =
            if map.starts_with('{') { serde_json::from_str(map)? } else { BTreeMap::new() };
        out.push('{');
        let start = out.len();
        let name = |out: &mut String, key: &str| {
            if out.len() > start {
                out.push(',');
            }
            out.push_str(&Value::from(key).to_string());
            out.push(':');
        };
        for (key, edit) in &self.members {
            // Everything before this member is as it was.
            let rest = members.split_off(key.as_str());
            for (other, value) in std::mem::replace(&mut members, rest) {
                name(out, &other);
                out.push_str(value.get());
            }
            let old = members.remove(key.as_str());
            match edit {
                Edit::Remove => {}
                Edit::SetIfAbsent(value) => {
                    name(out, key);
                    match old {
                        Some(old) => out.push_str(old.get()),
                        None => out.push_str(&value.to_string()),
                    }
                }
                Edit::Set(value) => {
                    name(out, key);
                    out.push_str(&value.to_string());
                }
                Edit::Inside(edits) => {
                    name(out, key);
                    edits.write(out, old.map_or("{}", RawValue::get))?;
                }
            }
        }
        for (other, value) in members {
            name(out, &other);
            out.push_str(value.get());
        }
        out.push('}');
        Ok(())
    }
}

/// Changes members of an object and returns its resourceVersion.
///
/// # Errors
/// 404 (also when the object of that name has another uid), 422 when the result cannot be stored.
pub(crate) fn edit(
    txn: &mut Txn<'_>,
    r: &Resource,
    namespace: &str,
    name: &str,
    uid: &str,
    mut edits: Edits,
) -> Result<u64, ApiError> {
    let allowed = |(key, edit): (&String, &Edit)| match (key.as_str(), edit) {
        ("status", _) => true,
        ("metadata", Edit::Inside(inside)) => inside.members.keys().all(|key| key == "labels" || key == "annotations"),
        _ => false,
    };
    if r.native || r.status || !edits.members.iter().all(allowed) {
        let why = "only status, labels and annotations of custom resources without a status subresource can be edited";
        return Err(ApiError::internal(format!("{}: {why}", r.plural)));
    }
    let key = Key::new(r, namespace, name);
    let old = txn.stored(&key).filter(|old| old.head().uid() == Some(uid)).cloned();
    let old = old.ok_or_else(|| ApiError::not_found(r, name))?;
    let broken = |error| ApiError::internal(format!("{} \"{name}\" cannot be read: {error}", r.plural));
    let revision = txn.next();
    edits.set(&["metadata", "resourceVersion"], revision.to_string().into());
    if edits.members.contains_key("status") {
        let generation = old.metadata()?["generation"].as_i64().unwrap_or(1);
        edits.set(&["metadata", "generation"], (generation + 1).into());
    }
    let stored = edits.apply(&old.json()?).and_then(Stored::parse).map_err(broken)?;
    object::check_meta(r, name, &serde_json::json!({"metadata": stored.metadata()?}))?;
    txn.put_json(&key, std::sync::Arc::new(stored));
    Ok(revision)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn edited(edits: &Edits, object: &Value) -> String {
        edits.apply(&object.to_string()).unwrap()
    }

    #[test]
    fn members_are_set_kept_and_removed_at_every_level() {
        let object = json!({"a": 1, "m": {"x": {"deep": [1, 2]}, "y": "gone", "n": null}, "z": "text"});
        let mut edits = Edits::default();
        edits.set(&["m", "x", "new\"name"], json!({"v": [1.5]}));
        edits.remove(&["m", "y"]);
        edits.remove(&["m", "never was"]);
        edits.set_if_absent(&["m", "n"], json!("kept as it was"));
        edits.set_if_absent(&["m", "o"], json!("new"));
        edits.set(&["z", "inside"], json!(true));
        edits.set(&["b", "c"], json!({}));
        let expected = json!({
            "a": 1, "b": {"c": {}}, "z": {"inside": true},
            "m": {"x": {"deep": [1, 2], "new\"name": {"v": [1.5]}}, "n": null, "o": "new"},
        });
        assert_eq!(edited(&edits, &object), expected.to_string());
    }

    #[test]
    fn later_edits_win() {
        let mut edits = Edits::default();
        edits.set(&["a", "b"], json!(1));
        edits.set(&["a"], json!({"c": 2}));
        edits.set(&["d"], json!(1));
        edits.set(&["d", "e"], json!(2));
        assert_eq!(edited(&edits, &json!({"d": {"f": 3}})), r#"{"a":{"c":2},"d":{"e":2,"f":3}}"#);
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<u8>().prop_map(Value::from), ".{0,3}".prop_map(Value::from), Just(Value::Null)];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop::collection::btree_map("[a-d\"\\\\é]{0,2}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect()))
        })
    }

    /// The same on parsed values.
    fn slow(object: &mut Value, path: &[String], value: Option<&Value>) {
        let [first, rest @ ..] = path else { return };
        if !object.is_object() {
            *object = json!({});
        }
        let Value::Object(map) = object else { unreachable!() };
        match (rest, value) {
            ([], Some(value)) => drop(map.insert(first.clone(), value.clone())),
            ([], None) => drop(map.remove(first)),
            _ => slow(map.entry(first.clone()).or_insert(json!({})), rest, value),
        }
    }

    proptest! {
        #[test]
        fn one_edit_does_what_it_does_to_parsed_values(
            mut object in tree().prop_filter("map", Value::is_object),
            path in prop::collection::vec("[a-d\"\\\\é]{0,2}", 1..4),
            value in prop::option::of(tree()),
        ) {
            let mut edits = Edits::default();
            let names: Vec<&str> = path.iter().map(String::as_str).collect();
            match &value {
                Some(value) => edits.set(&names, value.clone()),
                None => edits.remove(&names),
            }
            let text = edited(&edits, &object);
            slow(&mut object, &path, value.as_ref());
            prop_assert_eq!(text, object.to_string());
        }
    }
}
