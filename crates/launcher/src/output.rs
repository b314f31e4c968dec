//! What the user's program left behind: the executor output file and the files of output parameters.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::paths::Paths;
use crate::spec::{Artifact, Component, ExecutorInput, ParameterType};

/// Executor output files hold parameters and metadata, not data.
const MAX_OUTPUT: u64 = 32 << 20;
/// Bytes of one output parameter, and of all together, as text. The metadata store keeps them in one value, which may
/// have 16 MiB on MySQL, and encodes them in four thirds of their size.
const MAX_PARAMETERS: u64 = 10 << 20;

/// Why outputs could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The executor output file is unreadable or not what it should be.
    #[error("failed to read the executor output file {path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Output parameters are too large for the metadata store.
    #[error(
        "output {what} {bytes} bytes, but the parameters of a task may have {} MiB in all; \
         large values belong into an output artifact (dsl.Output[dsl.Artifact])",
        MAX_PARAMETERS >> 20
    )]
    TooLarge {
        /// `parameter "x" has` or `parameters have`.
        what: String,
        /// Their size as text.
        bytes: u64,
    },
    /// An output parameter is missing or not of its type.
    #[error("failed to read output parameter name={name:?} type={:?} path={path:?}: {reason}", kind.name())]
    Parameter {
        /// Name of the output.
        name: String,
        /// Its declared type.
        kind: ParameterType,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// The executor output file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExecutorOutput {
    /// Output parameters.
    pub parameter_values: BTreeMap<String, Value>,
    /// Output artifacts.
    artifacts: BTreeMap<String, ArtifactList>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct ArtifactList {
    artifacts: Vec<Returned>,
}

/// An artifact as the user's program describes it; nulls count as absent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Returned {
    uri: Option<String>,
    metadata: Option<Map<String, Value>>,
    #[serde(alias = "customPath")]
    custom_path: Option<String>,
}

impl ExecutorOutput {
    /// Reads the file; one that does not exist is an empty output.
    ///
    /// # Errors
    /// [`Error::Malformed`].
    pub async fn read(path: &Path) -> Result<Self, Error> {
        let malformed = |reason: String| Error::Malformed { path: path.to_owned(), reason };
        let text = match tokio::fs::metadata(path).await {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(malformed(e.to_string())),
            Ok(meta) if meta.len() > MAX_OUTPUT => {
                return Err(malformed(format!(
                    "it has {} bytes, but at most {} MiB may be returned as parameters and metadata; large values \
                     belong into an output artifact (dsl.Output[dsl.Artifact])",
                    meta.len(),
                    MAX_OUTPUT >> 20
                )));
            }
            Ok(meta) if !meta.is_file() => return Err(malformed("it is not a file".into())),
            Ok(_) => tokio::fs::read(path).await.map_err(|e| malformed(e.to_string()))?,
        };
        if text.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        serde_json::from_slice(&text).map_err(|e| malformed(format!("{e} (NaN and Infinity are not JSON)")))
    }

    /// The artifact `name` as provisioned, with what the user's program changed: URI, metadata keys, local path.
    #[must_use]
    pub fn merge(&self, name: &str, provisioned: &Artifact, paths: &Paths) -> Artifact {
        let mut artifact = provisioned.clone();
        let Some(returned) = self.artifacts.get(name).and_then(|list| list.artifacts.first()) else { return artifact };
        // Below a root the program was given the local path as URI; handing that back changes nothing.
        let local = paths.artifact(provisioned);
        let same = |text: &str| local.as_deref() == Some(Path::new(text));
        if let Some(uri) = returned.uri.as_ref().filter(|uri| !uri.is_empty() && !same(uri)) {
            artifact.uri = paths.uri_from_user(uri);
        }
        if let Some(path) = returned.custom_path.as_ref().filter(|path| !path.is_empty()) {
            artifact.custom_path.clone_from(path);
        }
        for (key, value) in returned.metadata.iter().flatten() {
            artifact.metadata.insert(key.clone(), value.clone());
        }
        artifact
    }
}

/// All output parameters: values from the executor output file, and for every other declared output its own file.
///
/// # Errors
/// [`Error::Parameter`] for a declared output that is missing or not of its type.
pub async fn parameters(
    input: &ExecutorInput,
    component: &Component,
    output: &ExecutorOutput,
    paths: &Paths,
) -> Result<BTreeMap<String, Value>, Error> {
    let mut values = output.parameter_values.clone();
    for (name, path) in input.output_parameters() {
        if values.contains_key(name) {
            continue;
        }
        let kind = component.output_parameters.get(name).copied().unwrap_or(ParameterType::Other);
        let path = paths.place(path);
        let failed = |reason: String| Error::Parameter { name: name.to_owned(), kind, path: path.clone(), reason };
        let size = tokio::fs::metadata(&path).await.map_or(0, |meta| meta.len());
        if size > MAX_PARAMETERS {
            return Err(Error::TooLarge { what: format!("parameter {name:?} has"), bytes: size });
        }
        let text = match tokio::fs::read(&path).await {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| failed("the file is not UTF-8 text".into()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(failed(
                    "the task declares this output, but its program neither returned it nor wrote the file".into(),
                ));
            }
            Err(e) => return Err(failed(e.to_string())),
        };
        values.insert(name.to_owned(), convert(&text, kind).map_err(failed)?);
    }
    check_size(&values)?;
    Ok(values)
}

fn check_size(values: &BTreeMap<String, Value>) -> Result<(), Error> {
    let sizes: Vec<u64> = values.values().map(size).collect();
    let bytes = sizes.iter().sum();
    if bytes <= MAX_PARAMETERS {
        return Ok(());
    }
    let one = values.keys().zip(sizes).find(|(_, size)| *size > MAX_PARAMETERS);
    Err(match one {
        Some((name, bytes)) => Error::TooLarge { what: format!("parameter {name:?} has"), bytes },
        None => Error::TooLarge { what: "parameters have".into(), bytes },
    })
}

/// Bytes of a value as JSON, about.
fn size(value: &Value) -> u64 {
    match value {
        Value::Null | Value::Bool(_) => 5,
        Value::Number(_) => 9,
        Value::String(text) => text.len() as u64,
        Value::Array(list) => list.iter().map(|item| size(item) + 1).sum(),
        Value::Object(map) => map.iter().map(|(key, item)| key.len() as u64 + size(item) + 4).sum(),
    }
}

/// The text of an output parameter's file as a value of its type.
fn convert(text: &str, kind: ParameterType) -> Result<Value, String> {
    let trimmed = text.trim();
    let shown: String = trimmed.chars().take(80).collect();
    let wrong = |what: &str| format!("{shown:?} is not {what}");
    match kind {
        ParameterType::Text | ParameterType::Other => Ok(Value::String(text.to_owned())),
        ParameterType::Integer => trimmed.parse::<i64>().map(Value::from).map_err(|_| wrong("an integer")),
        ParameterType::Double => {
            let number = trimmed.parse::<f64>().map_err(|_| wrong("a number"))?;
            serde_json::Number::from_f64(number).map(Value::Number).ok_or_else(|| wrong("a finite number"))
        }
        ParameterType::Boolean => match trimmed {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Value::Bool(true)),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Value::Bool(false)),
            _ => Err(wrong("a boolean")),
        },
        ParameterType::List => match serde_json::from_str(trimmed) {
            Ok(value @ Value::Array(_)) => Ok(value),
            _ => Err(wrong("a JSON list")),
        },
        ParameterType::Struct => match serde_json::from_str(trimmed) {
            Ok(value @ Value::Object(_)) => Ok(value),
            _ => Err(wrong("a JSON object")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_become_values() {
        for (text, kind, want) in [
            (" a \n", ParameterType::Text, Ok(json!(" a \n"))),
            (" 42\n", ParameterType::Integer, Ok(json!(42))),
            ("4.5", ParameterType::Integer, Err("\"4.5\" is not an integer")),
            ("1e3", ParameterType::Double, Ok(json!(1000.0))),
            ("nan", ParameterType::Double, Err("\"nan\" is not a finite number")),
            ("True\n", ParameterType::Boolean, Ok(json!(true))),
            ("yes", ParameterType::Boolean, Err("\"yes\" is not a boolean")),
            ("[1, 2]", ParameterType::List, Ok(json!([1, 2]))),
            ("{}", ParameterType::List, Err("\"{}\" is not a JSON list")),
            ("{\"a\": null}", ParameterType::Struct, Ok(json!({"a": null}))),
            ("", ParameterType::Struct, Err("\"\" is not a JSON object")),
        ] {
            assert_eq!(convert(text, kind), want.map_err(str::to_owned), "{text:?} {kind:?}");
        }
    }

    #[tokio::test]
    async fn very_large_parameters_are_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
        let input = json!({"outputs": {"parameters": {"p": {"outputFile": path.to_string_lossy()}}}});
        let input = ExecutorInput::parse(&input.to_string()).unwrap();
        let none = ExecutorOutput::default();
        let error = parameters(&input, &Component::default(), &none, &Paths::default()).await.unwrap_err().to_string();
        let words = "output parameter \"p\" has 104857600 bytes, but the parameters of a task may have 10 MiB in all; \
                     large values belong into an output artifact";
        assert!(error.starts_with(words), "{error}");
        let error = ExecutorOutput::read(&path).await.unwrap_err().to_string();
        assert!(error.contains("it has 104857600 bytes, but at most 32 MiB"), "{error}");

        let many: BTreeMap<_, _> = (0..12).map(|i| (format!("p{i}"), json!(["x".repeat(1 << 20)]))).collect();
        let error = check_size(&many).unwrap_err().to_string();
        assert!(error.starts_with("output parameters have 12582924 bytes, but"), "{error}");
        check_size(&many.into_iter().take(9).collect()).unwrap();
    }

    async fn read(text: &str) -> Result<ExecutorOutput, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.json");
        tokio::fs::write(&path, text).await.unwrap();
        ExecutorOutput::read(&path).await
    }

    #[tokio::test]
    async fn output_file_is_optional_and_tolerant() {
        let absent = ExecutorOutput::read(Path::new("/nonexistent/out.json")).await.unwrap();
        assert_eq!(absent, ExecutorOutput::default());
        assert_eq!(read(" \n").await.unwrap(), ExecutorOutput::default());
        assert!(
            read("{\"parameterValues\": {\"a\": 1}, \"unknown\": []}")
                .await
                .unwrap()
                .parameter_values
                .contains_key("a")
        );
        let error = read("{\"parameterValues\": {\"a\": NaN}}").await.unwrap_err().to_string();
        assert!(error.contains("out.json") && error.contains("NaN"), "{error}");
    }

    #[tokio::test]
    async fn artifacts_are_merged() {
        let output = read(
            r#"{"artifacts": {"m": {"artifacts": [{"name": "x", "uri": "s3://o/k", "metadata": {"b": 2}, "custom_path": "/data/m"}]},
                "n": {"artifacts": [{"uri": "", "metadata": null}]}}}"#,
        )
        .await
        .unwrap();
        let provisioned: Artifact =
            serde_json::from_value(json!({"uri": "minio://b/m", "metadata": {"a": 1, "b": 1}})).unwrap();
        let merged = output.merge("m", &provisioned, &Paths::default());
        assert_eq!((merged.uri.as_str(), merged.custom_path.as_str()), ("s3://o/k", "/data/m"));
        assert_eq!(Value::Object(merged.metadata), json!({"a": 1, "b": 2}));
        assert_eq!(output.merge("n", &provisioned, &Paths::default()), provisioned);
    }

    #[tokio::test]
    async fn below_a_root_the_echoed_path_is_no_change() {
        let output = read(
            r#"{"artifacts": {"m": {"artifacts": [{"uri": "/pods/1/minio/b/m"}]},
            "n": {"artifacts": [{"uri": "/pods/1/minio/b/other"}]}}}"#,
        )
        .await
        .unwrap();
        let paths = Paths::new(Some("/pods/1".into()));
        let provisioned = Artifact { uri: "minio://b/m".into(), ..Artifact::default() };
        assert_eq!(output.merge("m", &provisioned, &paths).uri, "minio://b/m");
        assert_eq!(output.merge("n", &provisioned, &paths).uri, "minio://b/other");
    }

    #[tokio::test]
    async fn declared_parameters_must_exist() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        std::fs::write(file("i"), "7").unwrap();
        let input =
            json!({"outputs": {"parameters": {"i": {"outputFile": file("i")}, "f": {"outputFile": file("f")}}}});
        let input = ExecutorInput::parse(&input.to_string()).unwrap();
        let spec = json!({"outputDefinitions": {"parameters": {
            "i": {"parameterType": "NUMBER_INTEGER"}, "f": {"parameterType": "STRING"}}}});
        let component = Component::parse(&spec.to_string()).unwrap();
        let mut output = read(r#"{"parameterValues": {"f": null, "extra": [1]}}"#).await.unwrap();
        let values = parameters(&input, &component, &output, &Paths::default()).await.unwrap();
        assert_eq!(json!(values), json!({"i": 7, "f": null, "extra": [1]}));
        output.parameter_values.remove("f");
        let error = parameters(&input, &component, &output, &Paths::default()).await.unwrap_err().to_string();
        assert!(error.starts_with("failed to read output parameter name=\"f\" type=\"STRING\" path="), "{error}");
    }
}
