//! What the launcher reads of the pipeline spec's messages, as JSON.
//!
//! The JSON stays JSON: it is handed on to the user's program as it came, fields that this version does not know
//! included, and starting up does not pay for protobuf reflection.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// Type of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParameterType {
    /// Floating-point number.
    Double,
    /// Integer.
    Integer,
    /// Text.
    Text,
    /// Boolean.
    Boolean,
    /// JSON array.
    List,
    /// JSON object.
    Struct,
    /// Not given or not known: taken as text.
    Other,
}

impl ParameterType {
    /// The name in the pipeline spec.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Double => "NUMBER_DOUBLE",
            Self::Integer => "NUMBER_INTEGER",
            Self::Text => "STRING",
            Self::Boolean => "BOOLEAN",
            Self::List => "LIST",
            Self::Struct => "STRUCT",
            Self::Other => "PARAMETER_TYPE_ENUM_UNSPECIFIED",
        }
    }
}

/// Type of an artifact.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ArtifactType {
    /// For example `system.Model`.
    pub schema_title: String,
    /// Not supported, as upstream.
    pub schema_uri: String,
    /// YAML of a schema whose `title` counts.
    pub instance_schema: String,
}

impl ArtifactType {
    /// The name of the type in the metadata store.
    ///
    /// # Errors
    /// A text that says why there is none.
    pub fn title(&self) -> Result<String, String> {
        if !self.schema_title.is_empty() {
            return Ok(self.schema_title.clone());
        }
        if !self.schema_uri.is_empty() {
            return Err("SchemaUri is unsupported".into());
        }
        if self.instance_schema.is_empty() {
            return Err("the artifact has no schema".into());
        }
        let schema: Value = serde_norway::from_str(&self.instance_schema).map_err(|e| e.to_string())?;
        match schema["title"].as_str() {
            Some(title) if !title.is_empty() => Ok(title.to_owned()),
            _ => Err("the artifact's instance schema has no title".into()),
        }
    }
}

/// An artifact of the ExecutorInput.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Artifact {
    /// Output name, or the metadata id of an input.
    pub name: String,
    /// Where it is stored.
    pub uri: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: ArtifactType,
    /// Arbitrary values.
    pub metadata: Map<String, Value>,
    /// Local path that takes precedence over the one that follows from the URI.
    #[serde(alias = "custom_path")]
    pub custom_path: String,
}

impl Artifact {
    /// Whether the artifact lies in the run's workspace.
    #[must_use]
    pub fn in_workspace(&self) -> bool {
        match self.metadata.get("_kfp_workspace") {
            Some(Value::Bool(value)) => *value,
            Some(Value::Number(value)) => value.as_f64() != Some(0.0),
            Some(Value::String(value)) => value == "true",
            _ => false,
        }
    }
}

/// The ExecutorInput, with its JSON.
#[derive(Clone, Debug, Default)]
pub struct ExecutorInput {
    /// The message as it came.
    pub json: Value,
    /// Input artifacts by name.
    pub input_artifacts: BTreeMap<String, Vec<Artifact>>,
    /// Output artifacts by name.
    pub output_artifacts: BTreeMap<String, Vec<Artifact>>,
}

fn artifacts(group: &Value) -> Result<BTreeMap<String, Vec<Artifact>>, serde_json::Error> {
    let Some(group) = group["artifacts"].as_object() else { return Ok(BTreeMap::new()) };
    let list = |value: &Value| match &value["artifacts"] {
        Value::Null => Ok(Vec::new()),
        list => Vec::<Artifact>::deserialize(list),
    };
    group.iter().map(|(name, value)| Ok((name.clone(), list(value)?))).collect()
}

impl ExecutorInput {
    /// Parses the JSON text.
    ///
    /// # Errors
    /// When it is not JSON or an artifact is malformed.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        let mut json: Value = serde_json::from_str(text)?;
        // The SDK insists on this part.
        if let Some(object) = json.as_object_mut() {
            object.entry("outputs").or_insert_with(|| Value::Object(Map::new()));
        }
        Ok(Self { input_artifacts: artifacts(&json["inputs"])?, output_artifacts: artifacts(&json["outputs"])?, json })
    }

    /// Path of the file in which the user's program leaves its results; empty if not given.
    #[must_use]
    pub fn output_file(&self) -> &str {
        self.json["outputs"]["outputFile"].as_str().unwrap_or_default()
    }

    /// Value of an input parameter; `None` when it is not there at all.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&Value> {
        self.json["inputs"]["parameterValues"].get(name)
    }

    /// Paths of the output parameters' files, by name.
    pub fn output_parameters(&self) -> impl Iterator<Item = (&str, &str)> {
        let map = self.json["outputs"]["parameters"].as_object();
        map.into_iter().flatten().filter_map(|(name, value)| Some((name.as_str(), value["outputFile"].as_str()?)))
    }

    /// Adds the component's defaults for parameters that are absent; null counts as present.
    #[must_use]
    pub fn with_defaults(mut self, component: &Component) -> Self {
        if component.defaults.is_empty() {
            return self;
        }
        let Some(object) = self.json.as_object_mut() else { return self };
        let inputs = object.entry("inputs").or_insert_with(|| Value::Object(Map::new()));
        let Some(inputs) = inputs.as_object_mut() else { return self };
        let values = inputs.entry("parameterValues").or_insert_with(|| Value::Object(Map::new()));
        if let Some(values) = values.as_object_mut() {
            for (name, value) in &component.defaults {
                values.entry(name.clone()).or_insert_with(|| value.clone());
            }
        }
        self
    }
}

/// The parts of a ComponentSpec that matter here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Component {
    /// Default values of input parameters.
    pub defaults: BTreeMap<String, Value>,
    /// Types of output parameters.
    pub output_parameters: BTreeMap<String, ParameterType>,
    /// Types of output artifacts.
    pub output_artifacts: BTreeMap<String, ArtifactType>,
}

fn parameter_type(definition: &Value) -> ParameterType {
    let given = &definition["parameterType"];
    // The older field `type` is used by specs of the first v2 betas.
    match given.as_str().or(definition["type"].as_str()) {
        Some("NUMBER_DOUBLE" | "DOUBLE") => ParameterType::Double,
        Some("NUMBER_INTEGER" | "INT") => ParameterType::Integer,
        Some("STRING") => ParameterType::Text,
        Some("BOOLEAN") => ParameterType::Boolean,
        Some("LIST") => ParameterType::List,
        Some("STRUCT" | "TASK_CONFIG" | "TASK_FINAL_STATUS") => ParameterType::Struct,
        Some(_) => ParameterType::Other,
        None => match given.as_u64() {
            Some(1) => ParameterType::Double,
            Some(2) => ParameterType::Integer,
            Some(3) => ParameterType::Text,
            Some(4) => ParameterType::Boolean,
            Some(5) => ParameterType::List,
            Some(6..=8) => ParameterType::Struct,
            _ => ParameterType::Other,
        },
    }
}

impl Component {
    /// Parses the JSON text; an empty text is an empty component.
    ///
    /// # Errors
    /// When it is not JSON or an artifact type is malformed.
    pub fn parse(text: &str) -> Result<Self, serde_json::Error> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let json: Value = serde_json::from_str(text)?;
        let each = |value: &Value| value.as_object().cloned().unwrap_or_default().into_iter();
        let inputs = each(&json["inputDefinitions"]["parameters"]);
        let outputs = &json["outputDefinitions"];
        Ok(Self {
            defaults: inputs.filter_map(|(name, d)| Some((name, d.get("defaultValue")?.clone()))).collect(),
            output_parameters: each(&outputs["parameters"]).map(|(name, d)| (name, parameter_type(&d))).collect(),
            output_artifacts: each(&outputs["artifacts"])
                .map(|(name, d)| match &d["artifactType"] {
                    Value::Null => Ok((name, ArtifactType::default())),
                    kind => Ok((name, ArtifactType::deserialize(kind)?)),
                })
                .collect::<Result<_, serde_json::Error>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_fill_gaps_only() {
        let component = Component::parse(
            &json!({"inputDefinitions": {"parameters": {
                "a": {"parameterType": "STRING", "defaultValue": "x"},
                "b": {"parameterType": "STRING", "defaultValue": "y"},
                "c": {"parameterType": "STRING"}}}})
            .to_string(),
        )
        .unwrap();
        let input = ExecutorInput::parse(r#"{"inputs":{"parameterValues":{"a":null}},"future":1}"#).unwrap();
        let filled = input.with_defaults(&component).json;
        assert_eq!(filled, json!({"inputs": {"parameterValues": {"a": null, "b": "y"}}, "outputs": {}, "future": 1}));
    }

    #[test]
    fn parameter_types_by_name_number_and_old_field() {
        for (definition, want) in [
            (json!({"parameterType": "NUMBER_DOUBLE"}), ParameterType::Double),
            (json!({"parameterType": 4}), ParameterType::Boolean),
            (json!({"type": "INT"}), ParameterType::Integer),
            (json!({}), ParameterType::Other),
        ] {
            assert_eq!(parameter_type(&definition), want, "{definition}");
        }
    }

    #[test]
    fn titles_come_from_either_schema() {
        let instance =
            ArtifactType { instance_schema: "title: kfp.Model\ntype: object\n".into(), ..Default::default() };
        assert_eq!(instance.title().unwrap(), "kfp.Model");
        let uri = ArtifactType { schema_uri: "x".into(), ..Default::default() };
        assert_eq!(uri.title().unwrap_err(), "SchemaUri is unsupported");
        assert!(ArtifactType::default().title().is_err());
    }

    #[test]
    fn malformed_artifacts_are_errors() {
        assert!(ExecutorInput::parse(r#"{"inputs":{"artifacts":{"a":{"artifacts":[{"uri":3}]}}}}"#).is_err());
        assert!(ExecutorInput::parse("{").is_err());
    }
}
