//! Who may do what. In multi-user mode (`MULTIUSER=true`) every call belongs to a user, and Kubernetes is asked whether
//! that user may do it in the namespace of what the call is about. One layer in front of all gRPC services does this by a
//! table of RPCs; what the table does not name is denied. In single-user mode everybody may do everything.

mod identity;
mod layer;
mod review;
pub mod rules;
mod target;

use http::HeaderName;

use crate::config::{self, Config};

pub use layer::guard;
pub use review::check;
pub use target::Target;

/// How multi-user mode works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whether calls are checked at all (`MULTIUSER`).
    pub multi_user: bool,
    /// Whether everybody may read everything (`MULTIUSER_SHARED_READ`).
    pub shared_read: bool,
    /// Header with the user's name (`KUBEFLOW_USERID_HEADER`), set by the proxy in front.
    pub user_header: HeaderName,
    /// What precedes the name (`KUBEFLOW_USERID_PREFIX`).
    pub user_prefix: String,
    /// What tokens must be made for (`TOKEN_REVIEW_AUDIENCE`).
    pub audience: String,
    /// Whether pipelines that everybody sees cannot be made or listed (`REQUIRE_NAMESPACE_FOR_PIPELINES`).
    pub namespace_required: bool,
}

impl Settings {
    /// From upstream's settings.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn from_config(config: &Config) -> Result<Self, config::Error> {
        let header = config.text("KUBEFLOW_USERID_HEADER", "x-goog-authenticated-user-email");
        let Ok(user_header) = HeaderName::from_bytes(header.as_bytes()) else {
            let key = "KUBEFLOW_USERID_HEADER".to_owned();
            return Err(config::Error::Value { key, value: header, expected: "the name of a header" });
        };
        Ok(Settings {
            multi_user: config.bool("MULTIUSER", false)?,
            shared_read: config.bool("MULTIUSER_SHARED_READ", false)?,
            user_header,
            user_prefix: config.text("KUBEFLOW_USERID_PREFIX", "accounts.google.com:"),
            audience: config.text("TOKEN_REVIEW_AUDIENCE", "pipelines.kubeflow.org"),
            namespace_required: config.bool("REQUIRE_NAMESPACE_FOR_PIPELINES", false)?,
        })
    }

    /// Namespace in which experiments and pipelines are stored and looked for; single-user mode ignores what requests say.
    #[must_use]
    pub fn stored_namespace(&self, requested: &str) -> String {
        if self.multi_user { plain_namespace(requested).to_owned() } else { String::new() }
    }
}

/// A namespace as requests write it; `-` is one of the ways to write that there is none.
fn plain_namespace(requested: &str) -> &str {
    if requested == "-" { "" } else { requested }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn read(settings: &[(&str, &str)]) -> Result<Settings, config::Error> {
        let env: BTreeMap<_, _> = settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Settings::from_config(&Config::new(serde_json::Value::Null, env))
    }

    #[test]
    fn an_empty_prefix_is_a_prefix() {
        assert_eq!(read(&[]).unwrap().user_prefix, "accounts.google.com:");
        let set = read(&[("KUBEFLOW_USERID_PREFIX", ""), ("KUBEFLOW_USERID_HEADER", "Kubeflow-UserID")]).unwrap();
        assert_eq!((set.user_prefix.as_str(), set.user_header.as_str()), ("", "kubeflow-userid"));
        assert!(read(&[("KUBEFLOW_USERID_HEADER", "a b")]).is_err());
        assert!(read(&[("MULTIUSER", "maybe")]).is_err());
    }

    #[test]
    fn namespaces_count_in_multi_user_mode_only() {
        let (single, multi) = (read(&[]).unwrap(), read(&[("MULTIUSER", "true")]).unwrap());
        for (requested, stored) in [("a", "a"), ("-", ""), ("", "")] {
            assert_eq!(single.stored_namespace(requested), "");
            assert_eq!(multi.stored_namespace(requested), stored);
        }
    }
}
