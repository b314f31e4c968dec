//! Parameters of requests.

use serde_json::Value;

/// A patch document with its kind.
#[derive(Debug, Clone)]
pub enum Patch {
    /// RFC 6902 operations.
    Json(Value),
    /// RFC 7396 merge patch.
    Merge(Value),
    /// Strategic merge patch; Kubernetes' own kinds only.
    Strategic(Value),
    /// Server-side apply: creates the object when absent, else merges the applied fields.
    Apply(Value),
}

/// What happens to the objects an owner leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// The owner goes at once, its dependents after it.
    #[default]
    Background,
    /// The owner goes when its dependents are gone.
    Foreground,
    /// Dependents stay and lose the reference.
    Orphan,
}

/// How to delete.
#[derive(Debug, Clone, Default)]
pub struct DeleteOptions {
    /// Dependents.
    pub propagation: Propagation,
    /// Delete only the object with this uid.
    pub uid: Option<String>,
    /// Delete only this version of the object.
    pub resource_version: Option<String>,
    /// Check everything, change nothing.
    pub dry_run: bool,
}
