//! `/api`, `/apis` and below: which types there are.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::server::Context;
use crate::registry::Registry;
use crate::{Resource, resources};

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// Plural, kind, and whether the path names a namespace.
type Review = (&'static str, &'static str, bool);

/// Groups that take reviews only.
const REVIEW_GROUPS: &[(&str, &[Review])] = &[
    (
        "authorization.k8s.io",
        &[
            ("subjectaccessreviews", "SubjectAccessReview", false),
            ("selfsubjectaccessreviews", "SelfSubjectAccessReview", false),
            ("selfsubjectrulesreviews", "SelfSubjectRulesReview", false),
            ("localsubjectaccessreviews", "LocalSubjectAccessReview", true),
        ],
    ),
    (
        "authentication.k8s.io",
        &[("tokenreviews", "TokenReview", false), ("selfsubjectreviews", "SelfSubjectReview", false)],
    ),
];

/// The answer to a discovery path.
pub(super) fn answer(context: &Context, segments: &[&str]) -> Option<Value> {
    let state = context.cluster.shared().read();
    let registry = &state.registry;
    match segments {
        ["api"] => Some(json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": context.address.to_string()}],
        })),
        ["api", "v1"] => Some(resource_list(registry, "", "v1")?),
        ["apis"] => Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups(registry)})),
        ["apis", name] => groups(registry).into_iter().find(|group| group["name"] == *name).map(|mut group| {
            group["kind"] = json!("APIGroup");
            group["apiVersion"] = json!("v1");
            group
        }),
        ["apis", group, version] => resource_list(registry, group, version),
        _ => None,
    }
}

/// Paths served, for `/`.
pub(super) fn paths(context: &Context) -> Value {
    let mut paths: Vec<String> = ["/api", "/api/v1", "/apis"].map(str::to_string).to_vec();
    for (group, version) in group_versions(&context.cluster.shared().read().registry) {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}/{version}"));
        }
    }
    paths.extend(["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(str::to_string));
    json!({ "paths": paths })
}

/// All groups and versions, the core group included.
pub(super) fn group_versions(registry: &Registry) -> BTreeSet<(&'static str, &'static str)> {
    let reviews = REVIEW_GROUPS.iter().map(|(group, _)| (*group, "v1"));
    registry.all().map(|r| (r.group, r.version)).chain(reviews).collect()
}

fn groups(registry: &Registry) -> Vec<Value> {
    let mut groups = registry.groups();
    for (group, _) in REVIEW_GROUPS {
        groups.entry(group).or_default().insert("v1");
    }
    let group = |(name, versions): (&str, BTreeSet<&str>)| {
        let mut versions: Vec<&str> = versions.into_iter().collect();
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        let versions: Vec<Value> = versions
            .into_iter()
            .map(|version| json!({"groupVersion": format!("{name}/{version}"), "version": version}))
            .collect();
        json!({"name": name, "preferredVersion": versions.first(), "versions": versions})
    };
    groups.into_iter().map(group).collect()
}

/// Kubernetes' order of versions: stable before beta before alpha, higher numbers first.
fn priority(version: &str) -> (u8, u64, u64) {
    let number = |text: &str| text.parse::<u64>().ok();
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    for (word, stage) in [("beta", 2), ("alpha", 1)] {
        if let Some((major, minor)) = rest.split_once(word) {
            return match (number(major), number(minor)) {
                (Some(major), Some(minor)) => (stage, major, minor),
                _ => (0, 0, 0),
            };
        }
    }
    number(rest).map_or((0, 0, 0), |major| (3, major, 0))
}

fn resource_list(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let mut list: Vec<Value> = Vec::new();
    for r in registry.all().filter(|r| r.group == group && r.version == version) {
        let mut entry = json!({
            "name": r.plural, "singularName": r.singular, "namespaced": r.namespaced, "kind": r.kind, "verbs": VERBS,
        });
        if !r.short.is_empty() {
            entry["shortNames"] = json!(r.short);
        }
        if !r.categories.is_empty() {
            entry["categories"] = json!(r.categories);
        }
        list.push(entry);
        list.extend(subresources(r));
    }
    for (_, kinds) in REVIEW_GROUPS.iter().filter(|(name, _)| *name == group && version == "v1") {
        for (plural, kind, namespaced) in *kinds {
            list.push(json!({
                "name": plural, "singularName": kind.to_lowercase(), "namespaced": namespaced, "kind": kind,
                "verbs": ["create"],
            }));
        }
    }
    if list.is_empty() {
        return None;
    }
    let group_version = if group.is_empty() { version.to_string() } else { format!("{group}/{version}") };
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}))
}

fn subresources(r: &Resource) -> Vec<Value> {
    let mut list = Vec::new();
    let entry = |name: &str, verbs: &[&str]| {
        json!({
            "name": format!("{}/{name}", r.plural), "singularName": "", "namespaced": r.namespaced, "kind": r.kind,
            "verbs": verbs,
        })
    };
    if r.status {
        list.push(entry("status", &["get", "patch", "update"]));
    }
    if *r == resources::PODS {
        list.push(entry("log", &["get"]));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_as_kubernetes_does() {
        let mut versions = vec!["v1alpha1", "v2beta1", "v1", "v10", "foo", "v2", "v1beta2"];
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]);
    }

    #[test]
    fn every_type_is_listed_in_its_group() {
        let registry = Registry::built_in();
        for r in resources::ALL {
            let list = resource_list(&registry, r.group, r.version).unwrap();
            assert!(
                list["resources"].as_array().unwrap().iter().any(|entry| entry["name"] == r.plural),
                "{}",
                r.plural
            );
        }
        assert!(resource_list(&registry, "none", "v1").is_none());
    }
}
