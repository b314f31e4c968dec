//! Output parameters of a finished pod, for the engine.

use std::io::Read as _;

use kfp_core::argo::Template;
use serde_json::{Value, json};

use crate::paths::Paths;

/// Annotation with the template the pod was made from.
pub(crate) const TEMPLATE: &str = "workflows.argoproj.io/template";
/// Annotation with what the pod put out.
pub(crate) const OUTPUTS: &str = "workflows.argoproj.io/outputs";
/// An object of the API may have 1.5 MiB; Argo fails a node beyond that, only less clearly.
const MAX_TOTAL: usize = 1 << 20;

/// What a pod put out.
#[derive(Debug, Default)]
pub(crate) struct Outputs {
    /// Name and value of each parameter that was written.
    pub(crate) parameters: Vec<Value>,
    /// Artifacts with their locations.
    pub(crate) artifacts: Vec<Value>,
    /// The end of the standard output, where it is wanted.
    pub(crate) result: Option<String>,
    /// Exit code of the main container.
    pub(crate) exit_code: Option<i32>,
    /// What went wrong outside the pod's own containers; the engine takes it for an error of the platform.
    pub(crate) message: Option<String>,
}

impl Outputs {
    /// JSON for the engine; members without content are left out.
    pub(crate) fn json(self) -> String {
        let mut out = serde_json::Map::new();
        for (name, list) in [("parameters", self.parameters), ("artifacts", self.artifacts)] {
            if !list.is_empty() {
                out.insert(name.into(), list.into());
            }
        }
        let texts = [
            ("result", self.result),
            ("exitCode", self.exit_code.map(|code| code.to_string())),
            ("message", self.message),
        ];
        out.extend(texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text?.into()))));
        Value::Object(out).to_string()
    }
}

/// Reads the declared output parameters. A file that is not there is left out: the engine knows
/// whether the template has a default.
///
/// # Errors
/// A parameter that cannot be read or is too large.
pub(crate) fn parameters(template: &Template, paths: &Paths) -> Result<Vec<Value>, String> {
    collect(template, |name, path| read(paths, name, path))
}

/// The same from files that a driver left in memory.
///
/// # Errors
/// A parameter that is too large.
pub(crate) fn in_memory(template: &Template, files: &[(String, String)]) -> Result<Vec<Value>, String> {
    collect(template, |_, path| Ok(files.iter().find(|(other, _)| other == path).map(|(_, text)| text.clone())))
}

fn collect(
    template: &Template,
    read: impl Fn(&str, &str) -> Result<Option<String>, String>,
) -> Result<Vec<Value>, String> {
    let mut parameters = Vec::new();
    let mut total = 0;
    for parameter in &template.outputs.parameters {
        let Some(path) = parameter.value_from.as_ref().and_then(|from| from.path.as_deref()) else { continue };
        let name = &parameter.name;
        let Some(mut value) = read(name, path)? else { continue };
        // Exactly one line end belongs to the file and not to the value.
        if value.ends_with('\n') {
            value.pop();
        }
        total += value.len();
        if total > MAX_TOTAL {
            return Err(format!(
                "output parameters are larger than {MAX_TOTAL} bytes in total (at \"{name}\" from {path}); pass large values as artifacts"
            ));
        }
        parameters.push(json!({"name": name, "value": value}));
    }
    Ok(parameters)
}

fn read(paths: &Paths, name: &str, path: &str) -> Result<Option<String>, String> {
    let failed = |e: std::io::Error| format!("output parameter \"{name}\" from {path}: {e}");
    let place = paths.resolve(path.as_ref()).map_err(failed)?;
    let file = match std::fs::File::open(&place) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(format!("output parameter \"{name}\" from {path}: not a file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_TOTAL as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > MAX_TOTAL {
        return Err(format!(
            "output parameter \"{name}\" from {path} is larger than {MAX_TOTAL} bytes; pass it as an artifact"
        ));
    }
    Ok(Some(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(template: Value) -> Template {
        serde_json::from_value(template).unwrap()
    }

    #[test]
    fn declared_files_become_parameters() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::new(dir.path().into(), []);
        std::fs::create_dir_all(dir.path().join("tmp/outputs")).unwrap();
        std::fs::write(dir.path().join("tmp/outputs/a"), "x\n\n").unwrap();
        std::fs::write(dir.path().join("tmp/outputs/b"), "").unwrap();
        let template = json!({"outputs": {"parameters": [
            {"name": "a", "valueFrom": {"path": "/tmp/outputs/a"}},
            {"name": "b", "valueFrom": {"path": "/tmp/outputs/b"}},
            {"name": "c", "valueFrom": {"path": "/tmp/outputs/c", "default": "d"}}]}});
        let got = parameters(&self::template(template), &paths).unwrap();
        assert_eq!(got, [json!({"name": "a", "value": "x\n"}), json!({"name": "b", "value": ""})]);
    }

    #[test]
    fn too_large_is_an_error_that_names_the_parameter() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("big"), vec![b'x'; MAX_TOTAL + 1]).unwrap();
        let template = json!({"outputs": {"parameters": [{"name": "big", "valueFrom": {"path": "/big"}}]}});
        let error = parameters(&self::template(template), &Paths::new(dir.path().into(), [])).unwrap_err();
        assert!(error.contains("\"big\" from /big"), "{error}");
    }
}
