//! Parameters and artifacts of templates, tasks and nodes.

use super::{Extra, is_false, null_default};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A named string value with the ways it may be obtained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Parameter {
    /// Name.
    #[serde(deserialize_with = "null_default")]
    pub name: String,
    /// Value of an input that was given none.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// The value; a present empty string counts as a value.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where the value comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,
    /// Name under which an output is known in the whole workflow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub global_name: Option<String>,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

impl Parameter {
    /// A parameter with a value.
    pub fn new(name: impl Into<String>, value: impl Into<String>) -> Self {
        Parameter { name: name.into(), value: Some(value.into()), ..Parameter::default() }
    }
}

/// Source of a parameter's value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ValueFrom {
    /// File in the main container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// kubectl JSONPath over the object of a resource template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json_path: Option<String>,
    /// jq filter over the object of a resource template.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jq_filter: Option<String>,
    /// Reference to another parameter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// expr-lang expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// Value when the source gives none.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// Members not named above.
    #[serde(flatten)]
    pub extra: Extra,
}

/// An artifact of a template or node; its location is kept in `extra`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Artifact {
    /// Name.
    #[serde(deserialize_with = "null_default")]
    pub name: String,
    /// Path in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Reference to another artifact.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// True when it may be absent.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "is_false")]
    pub optional: bool,
    /// Location (`s3`, `raw`, …) and everything else.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Inputs of a template or node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Inputs {
    /// Input parameters.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<Parameter>,
    /// Input artifacts.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
}

impl Inputs {
    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty() && self.artifacts.is_empty()
    }
}

/// Outputs of a template or node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Outputs {
    /// Output parameters.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub parameters: Vec<Parameter>,
    /// Output artifacts.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub artifacts: Vec<Artifact>,
    /// Standard output of a script.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<String>,
    /// Exit code of the main container.
    #[serde(deserialize_with = "any_string", skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<String>,
}

impl Outputs {
    /// True when there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.parameters.is_empty() && self.artifacts.is_empty() && self.result.is_none() && self.exit_code.is_none()
    }

    /// Value of an output parameter.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|parameter| parameter.name == name)?.value.as_deref()
    }
}

/// Reads a string, number or boolean as a string (Argo's `AnyString`); structured values become compact JSON.
pub(super) fn any_string<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(match Option::<Value>::deserialize(deserializer)? {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text),
        Some(other) => Some(other.to_string()),
    })
}
