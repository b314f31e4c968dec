//! A pipeline as uploaded: which documents of the file are the pipeline spec and the platform spec.

mod archive;
mod emit;
mod scalar;
pub mod yaml;

use kfp_core::ir::{self, Unknown};
use kfp_proto::ml_pipelines::{PipelineSpec, PlatformSpec};
use serde_json::{Value, json};

pub use archive::{MAX_BYTES, extract};

use crate::Error;

const SCHEMA_VERSION: &str = "2.1.0";
const UNKNOWN_FORMAT: &str = "unknown template format";

/// A pipeline spec and, if there is one, the platform spec that came with it. Both have been checked to be of the
/// right shape; whether the pipeline compiles is another question.
#[derive(Debug, Clone, PartialEq)]
pub struct Package {
    spec: PipelineSpec,
    platform: Option<PlatformSpec>,
}

impl Package {
    /// Reads a pipeline file: YAML or JSON by its name (`.yaml`, `.yml`, `.json`), else zip or gzipped tar by content.
    ///
    /// # Errors
    /// [`Error::TooLarge`] or [`Error::Package`], with upstream's texts for what upstream refuses too.
    pub fn parse(bytes: &[u8], file_name: &str) -> Result<Self, Error> {
        Self::from_text(&extract(bytes, file_name)?)
    }

    /// Reads YAML (several documents) or JSON text, such as what [`Package::to_yaml`] writes.
    ///
    /// # Errors
    /// [`Error::TooLarge`] or [`Error::Package`].
    pub fn from_text(bytes: &[u8]) -> Result<Self, Error> {
        archive::check_size(bytes.len())?;
        let documents =
            yaml::documents(bytes).map_err(|e| Error::Package(format!("failed to parse pipeline spec YAML: {e}")))?;
        Self::from_documents(documents)
    }

    /// The JSON form an API request carries: a pipeline spec, or `{"pipeline_spec": .., "platform_spec": ..}`.
    ///
    /// # Errors
    /// [`Error::Package`].
    pub fn from_json(value: Value) -> Result<Self, Error> {
        let Value::Object(mut fields) = value else {
            return Err(Error::Package(format!("{UNKNOWN_FORMAT}: the pipeline spec is not an object")));
        };
        let mut documents = Vec::new();
        let wrapped = ["pipeline_spec", "pipelineSpec"].iter().find_map(|key| fields.remove(*key));
        match wrapped {
            Some(spec) => {
                documents.push(spec);
                documents.extend(["platform_spec", "platformSpec"].iter().find_map(|key| fields.remove(*key)));
            }
            None => documents.push(Value::Object(fields)),
        }
        Self::from_documents(documents)
    }

    fn from_documents(documents: Vec<Value>) -> Result<Self, Error> {
        let mut spec = None;
        let mut platform = None;
        let mut refused = None;
        if documents.iter().any(is_argo) {
            return Err(Error::Package(format!(
                "{UNKNOWN_FORMAT}: Argo Workflows as pipelines (KFP v1) are not supported; recompile with the KFP SDK 2"
            )));
        }
        for (number, document) in documents.into_iter().enumerate() {
            if document.is_null() {
                continue;
            }
            if !document.is_object() {
                let text = format!("unable to decode yaml document: document {} is not a mapping", number + 1);
                refused.get_or_insert(text);
                continue;
            }
            match pipeline_spec(&document) {
                Ok(_) if spec.is_some() => return Err(Error::Package("multiple pipeline specs provided".into())),
                Ok(found) => spec = Some(found),
                Err(_) if document.get("platforms").is_some() => {
                    let found = platform_spec(document)?;
                    if found.platforms.contains_key("kubernetes") && platform.replace(found).is_some() {
                        return Err(Error::Package("multiple platform specs provided".into()));
                    }
                }
                Err(reason) => {
                    refused.get_or_insert(format!("{UNKNOWN_FORMAT}: {reason}"));
                }
            }
        }
        let Some(spec) = spec else {
            return Err(Error::Package(
                refused.unwrap_or_else(|| format!("{UNKNOWN_FORMAT}: no pipeline spec is provided")),
            ));
        };
        if let Some(text) = refused.filter(|text| text.starts_with("unable")) {
            return Err(Error::Package(text));
        }
        Self::new(spec, platform)
    }

    /// A package of parts that are typed already.
    ///
    /// # Errors
    /// [`Error::Package`] for another schema version or a name without any lower-case letter or digit.
    pub fn new(spec: PipelineSpec, platform: Option<PlatformSpec>) -> Result<Self, Error> {
        if spec.schema_version != SCHEMA_VERSION {
            return Err(Error::Package(format!(
                "KFP only supports schema version {SCHEMA_VERSION}, but the pipeline spec has version {}",
                spec.schema_version
            )));
        }
        let package = Self { spec, platform };
        // Upstream's pattern is not anchored; one matching character is enough.
        if !package.name().bytes().any(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return Err(Error::Package(
                "invalid v2 pipeline spec: name should consist of lower case alphanumeric characters, '-' or '.', and must \
                 start and end with an alphanumeric character"
                    .into(),
            ));
        }
        Ok(package)
    }

    /// The pipeline spec.
    pub fn spec(&self) -> &PipelineSpec {
        &self.spec
    }

    /// The platform spec, if the file had one for Kubernetes.
    pub fn platform(&self) -> Option<&PlatformSpec> {
        self.platform.as_ref()
    }

    /// `pipelineInfo.name`.
    pub fn name(&self) -> &str {
        self.spec.pipeline_info.as_ref().map_or("", |info| &info.name)
    }

    /// `pipelineInfo.displayName`, else the name.
    pub fn display_name(&self) -> &str {
        match &self.spec.pipeline_info {
            Some(info) if !info.display_name.is_empty() => &info.display_name,
            _ => self.name(),
        }
    }

    /// `pipelineInfo.description`.
    pub fn description(&self) -> &str {
        self.spec.pipeline_info.as_ref().map_or("", |info| &info.description)
    }

    /// The pipeline spec in canonical JSON.
    pub fn spec_json(&self) -> Value {
        ir::encode(&self.spec)
    }

    /// The platform spec in canonical JSON.
    pub fn platform_json(&self) -> Option<Value> {
        self.platform.as_ref().map(ir::encode)
    }

    /// What the API shows as a version's spec: the spec itself, or both wrapped when there is a platform spec.
    pub fn to_json(&self) -> Value {
        match self.platform_json() {
            None => self.spec_json(),
            Some(platform) => json!({"pipeline_spec": self.spec_json(), "platform_spec": platform}),
        }
    }

    /// What upstream stores: canonical YAML with sorted keys, the platform spec as second document.
    pub fn to_yaml(&self) -> String {
        let mut out = yaml::to_yaml(&self.spec_json());
        if let Some(platform) = self.platform_json() {
            out.push_str("\n---\n");
            out.push_str(&yaml::to_yaml(&platform));
        }
        out
    }
}

fn is_argo(document: &Value) -> bool {
    let text = |key| document.get(key).and_then(Value::as_str).unwrap_or_default();
    text("apiVersion").starts_with("argoproj.io/") && text("kind") == "Workflow"
}

fn pipeline_spec(document: &Value) -> Result<PipelineSpec, String> {
    let spec: PipelineSpec = ir::decode(document, Unknown::Reject).map_err(|e| e.to_string())?;
    if spec.pipeline_info.as_ref().is_none_or(|info| info.name.is_empty()) {
        return Err("pipelineInfo.name is empty".into());
    }
    if spec.root.is_none() {
        return Err("root is missing".into());
    }
    Ok(spec)
}

/// Upstream drops a platform document with an unknown field without a word; here it is an error.
fn platform_spec(mut document: Value) -> Result<PlatformSpec, Error> {
    if let Some(platforms) = document.get_mut("platforms").and_then(Value::as_object_mut) {
        for platform in platforms.values_mut() {
            // The name of this field before 2.17; its number is the same.
            if let Some(config) = platform.get_mut("pipelineConfig").and_then(Value::as_object_mut)
                && let Some(ttl) = config.remove("resourceTtl").or_else(|| config.remove("resource_ttl"))
            {
                config.entry("resourceTtlOnCompletion").or_insert(ttl);
            }
        }
    }
    ir::decode(&document, Unknown::Reject).map_err(|e| Error::Package(format!("platform spec is invalid: {e}")))
}
