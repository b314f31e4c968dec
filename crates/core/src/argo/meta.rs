//! Kubernetes object metadata, as far as the components look into it.

use super::{Extra, Timestamp, is_false, null_default};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Standard object metadata.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ObjectMeta {
    /// Name, unique per kind and namespace; empty while only `generate_name` is set.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Prefix from which the API makes a name.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub generate_name: String,
    /// Namespace.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Identity of this very object.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Version for optimistic locking and watches.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// When the API accepted the object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub creation_timestamp: Option<Timestamp>,
    /// When deletion was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletion_timestamp: Option<Timestamp>,
    /// Labels.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Owners; the object goes when all of them are gone.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub owner_references: Vec<OwnerReference>,
    /// Who still has to clean up before the object may go.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub finalizers: Vec<String>,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Reference to an owning object.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Identity.
    pub uid: String,
    /// True for the managing controller.
    #[serde(skip_serializing_if = "is_false")]
    pub controller: bool,
    /// True when foreground deletion of the owner waits for this object.
    #[serde(skip_serializing_if = "is_false")]
    pub block_owner_deletion: bool,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}
