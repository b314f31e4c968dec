//! Paths of the Kubernetes API.

use percent_encoding::percent_decode_str;

use super::server::Context;
use crate::{ApiError, Resource};

/// A decoded path.
pub(super) struct Path {
    pub segments: Vec<String>,
}

impl Path {
    pub(super) fn parse(path: &str) -> Result<Self, ApiError> {
        let segments = path.split('/').filter(|part| !part.is_empty()).map(|part| {
            let decoded = percent_decode_str(part).decode_utf8();
            decoded.map(|text| text.into_owned()).map_err(|_| ApiError::bad_request("the path is not UTF-8"))
        });
        Ok(Self { segments: segments.collect::<Result<_, _>>()? })
    }
}

/// What a path points at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub resource: Resource,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

impl Target {
    /// Finds the resource at a path.
    ///
    /// # Errors
    /// 404 when no such type is served.
    pub(super) fn find(context: &Context, segments: &[&str]) -> Result<Self, ApiError> {
        let state = context.cluster.shared().read();
        Self::locate(segments, |group, version, plural| state.registry.at(group, version, plural))
            .ok_or_else(ApiError::no_such_resource)
    }

    fn locate(segments: &[&str], find: impl Fn(&str, &str, &str) -> Option<Resource>) -> Option<Self> {
        let (group, version, rest) = match segments {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        // `namespaces/NAME/status` is a namespace's subresource, anything else below a namespace is a type.
        let (namespace, rest) = match rest {
            ["namespaces", namespace, inner @ ..]
                if !(inner.is_empty() || group.is_empty() && matches!(inner, ["status" | "finalize"])) =>
            {
                (Some((*namespace).to_string()), inner)
            }
            _ => (None, rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (plural, None, None),
            [plural, name] => (plural, Some(name), None),
            [plural, name, subresource] => (plural, Some(name), Some(subresource)),
            _ => return None,
        };
        let resource = find(group, version, plural)?;
        if namespace.is_some() && !resource.namespaced {
            return None;
        }
        Some(Self {
            resource,
            namespace,
            name: name.map(ToString::to_string),
            subresource: subresource.map(ToString::to_string),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Registry;
    use crate::resources::{NAMESPACES, PODS, WORKFLOWS};

    #[test]
    fn paths_name_types_objects_and_subresources() {
        let registry = Registry::built_in();
        let find = |path: &str| {
            let parsed = Path::parse(path).unwrap();
            let segments: Vec<&str> = parsed.segments.iter().map(String::as_str).collect();
            Target::locate(&segments, |g, v, p| registry.at(g, v, p)).map(|t| {
                (
                    t.resource,
                    t.namespace.unwrap_or_default(),
                    t.name.unwrap_or_default(),
                    t.subresource.unwrap_or_default(),
                )
            })
        };
        let target = |r: Resource, ns: &str, name: &str, sub: &str| Some((r, ns.into(), name.into(), sub.into()));
        for (path, expected) in [
            ("/api/v1/pods", target(PODS, "", "", "")),
            ("/api/v1/namespaces/n/pods", target(PODS, "n", "", "")),
            ("/api/v1/namespaces/n/pods/p/log", target(PODS, "n", "p", "log")),
            ("/api/v1/namespaces", target(NAMESPACES, "", "", "")),
            ("/api/v1/namespaces/n", target(NAMESPACES, "", "n", "")),
            ("/api/v1/namespaces/n/status", target(NAMESPACES, "", "n", "status")),
            ("/apis/argoproj.io/v1alpha1/namespaces/n/workflows/w", target(WORKFLOWS, "n", "w", "")),
            ("/apis/argoproj.io/v1alpha1/workflows", target(WORKFLOWS, "", "", "")),
            ("/apis/argoproj.io/v1/workflows", None),
            ("/api/v1/namespaces/n/nodes", None),
            ("/api/v1/namespaces/n/pods/p/log/more", None),
            ("/apis/argoproj.io", None),
            ("/x", None),
        ] {
            assert_eq!(find(path), expected, "{path}");
        }
    }
}
