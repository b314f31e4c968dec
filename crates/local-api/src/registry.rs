//! Which resource types are served.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use serde_json::Value;

use crate::resource::{Resource, resources};

/// A printer column of `kubectl get`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub name: String,
    /// `string`, `integer`, `number`, `boolean` or `date`.
    pub kind: String,
    pub path: String,
    /// 0 is always shown, others with `-o wide`.
    pub priority: i64,
}

impl Column {
    fn new(name: &str, kind: &str, path: &str) -> Self {
        Self { name: name.into(), kind: kind.into(), path: path.into(), priority: 0 }
    }
}

/// Served types by group, version and plural.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    types: BTreeMap<(&'static str, &'static str, &'static str), Resource>,
    columns: BTreeMap<(&'static str, &'static str), Vec<Column>>,
}

impl Registry {
    pub(crate) fn built_in() -> Self {
        let mut registry = Self::default();
        for r in resources::ALL {
            registry.types.insert((r.group, r.version, r.plural), *r);
        }
        let mut columns = |r: Resource, list: &[(&str, &str, &str)]| {
            let list = list.iter().map(|(name, kind, path)| Column::new(name, kind, path)).collect();
            registry.columns.insert((r.group, r.plural), list);
        };
        columns(
            resources::WORKFLOWS,
            &[
                ("Status", "string", ".status.phase"),
                ("Age", "date", ".status.startedAt"),
                ("Message", "string", ".status.message"),
            ],
        );
        columns(
            resources::NAMESPACES,
            &[("Status", "string", ".status.phase"), ("Age", "date", ".metadata.creationTimestamp")],
        );
        columns(
            resources::PERSISTENT_VOLUME_CLAIMS,
            &[
                ("Status", "string", ".status.phase"),
                ("Capacity", "string", ".spec.resources.requests.storage"),
                ("Age", "date", ".metadata.creationTimestamp"),
            ],
        );
        columns(resources::SECRETS, &[("Type", "string", ".type"), ("Age", "date", ".metadata.creationTimestamp")]);
        for events in [resources::EVENTS, resources::EVENTS_V1] {
            columns(
                events,
                &[
                    ("Last Seen", "date", ".lastTimestamp"),
                    ("Type", "string", ".type"),
                    ("Reason", "string", ".reason"),
                    ("Object", "string", ".involvedObject.name"),
                    ("Message", "string", ".message"),
                ],
            );
        }
        registry
    }

    /// The type at a path.
    pub(crate) fn at(&self, group: &str, version: &str, plural: &str) -> Option<Resource> {
        // Keys borrow for 'static, so a direct look-up with shorter borrows needs the range form.
        self.types
            .iter()
            .find(|((g, v, p), _)| *g == group && *v == version && *p == plural)
            .map(|(_, resource)| *resource)
    }

    /// The type of an owner reference.
    pub(crate) fn by_kind(&self, api_version: &str, kind: &str) -> Option<Resource> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        self.types.values().find(|r| r.group == group && r.version == version && r.kind == kind).copied()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Resource> {
        self.types.values()
    }

    /// Groups with their versions, without the core group.
    pub(crate) fn groups(&self) -> BTreeMap<&'static str, BTreeSet<&'static str>> {
        let mut groups: BTreeMap<&'static str, BTreeSet<&'static str>> = BTreeMap::new();
        for r in self.types.values().filter(|r| !r.group.is_empty()) {
            groups.entry(r.group).or_default().insert(r.version);
        }
        groups
    }

    pub(crate) fn columns(&self, r: &Resource) -> &[Column] {
        self.columns.get(&(r.group, r.plural)).map_or(&[], Vec::as_slice)
    }

    /// Serves what a CustomResourceDefinition describes. Types known from the start stay as they are.
    pub(crate) fn define(&mut self, crd: &Value) {
        let spec = &crd["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
        let (group, names) = (text(&spec["group"]), &spec["names"]);
        let (plural, kind) = (text(&names["plural"]), text(&names["kind"]));
        let singular = names["singular"].as_str().map_or_else(|| kind.to_lowercase(), str::to_string);
        let list = |value: &Value| -> &'static [&'static str] {
            let words: Vec<&'static str> =
                value.as_array().into_iter().flatten().filter_map(Value::as_str).map(intern).collect();
            intern_list(words)
        };
        let built_in = resources::ALL.iter().any(|r| r.group == group && r.plural == plural);
        if built_in {
            return;
        }
        self.undefine(crd);
        for version in spec["versions"].as_array().into_iter().flatten().filter(|v| v["served"] == true) {
            let Some(name) = version["name"].as_str() else { continue };
            let resource = Resource {
                group: intern(&group),
                version: intern(name),
                plural: intern(&plural),
                singular: intern(&singular),
                kind: intern(&kind),
                short: list(&names["shortNames"]),
                categories: list(&names["categories"]),
                namespaced: spec["scope"] != "Cluster",
                status: version["subresources"]["status"].is_object(),
                native: false,
            };
            self.types.insert((resource.group, resource.version, resource.plural), resource);
            let columns: Vec<Column> = version["additionalPrinterColumns"]
                .as_array()
                .into_iter()
                .flatten()
                .map(|c| Column {
                    priority: c["priority"].as_i64().unwrap_or(0),
                    ..Column::new(&text(&c["name"]), &text(&c["type"]), &text(&c["jsonPath"]))
                })
                .collect();
            if !columns.is_empty() {
                self.columns.insert((resource.group, resource.plural), columns);
            }
        }
    }

    /// Stops serving a deleted definition's types, unless they are built in.
    pub(crate) fn undefine(&mut self, crd: &Value) {
        let (group, plural) = (&crd["spec"]["group"], &crd["spec"]["names"]["plural"]);
        self.types.retain(|_, r| {
            let built_in = resources::ALL.iter().any(|b| b.group == r.group && b.plural == r.plural);
            built_in || *group != r.group || *plural != r.plural
        });
    }
}

/// Names of types live as long as the process: their number is bounded by the definitions ever
/// made, and [`Resource`] stays a plain copyable value.
static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
static LISTS: Mutex<BTreeSet<&'static [&'static str]>> = Mutex::new(BTreeSet::new());

pub(crate) fn intern(text: &str) -> &'static str {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(text) {
        return known;
    }
    let name: &'static str = Box::leak(text.to_string().into_boxed_str());
    names.insert(name);
    name
}

fn intern_list(words: Vec<&'static str>) -> &'static [&'static str] {
    let mut lists = LISTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = lists.get(words.as_slice()) {
        return known;
    }
    let list: &'static [&'static str] = Box::leak(words.into_boxed_slice());
    lists.insert(list);
    list
}
