//! Output parameters of a finished pod, for the engine.

use std::io::Read as _;

use serde_json::{Map, Value, json};

use crate::paths::Paths;
use crate::spec::Pod;

/// Annotation with the template the pod was made from.
const TEMPLATE: &str = "workflows.argoproj.io/template";
/// Annotation with what the pod put out.
pub(crate) const OUTPUTS: &str = "workflows.argoproj.io/outputs";
/// An object of the API may have 1.5 MiB; Argo fails a node beyond that, only less clearly.
const MAX_TOTAL: usize = 1 << 20;

/// Reads the declared output parameters. A file that is not there is left out: the engine knows
/// whether the template has a default.
///
/// # Errors
/// A parameter that cannot be read or is too large.
pub(crate) fn collect(pod: &Pod, paths: &Paths, exit_code: Option<i32>) -> Result<Option<String>, String> {
    let Some(template) = pod.metadata.annotations.get(TEMPLATE) else { return Ok(None) };
    let template: Value =
        serde_json::from_str(template).map_err(|e| format!("annotation {TEMPLATE} is not JSON: {e}"))?;
    let mut parameters = Vec::new();
    let mut total = 0;
    let declared = template.pointer("/outputs/parameters").and_then(Value::as_array);
    for parameter in declared.into_iter().flatten() {
        let (Some(name), Some(path)) = (
            parameter.get("name").and_then(Value::as_str),
            parameter.pointer("/valueFrom/path").and_then(Value::as_str),
        ) else {
            continue;
        };
        let Some(value) = read(paths, name, path)? else { continue };
        total += value.len();
        if total > MAX_TOTAL {
            return Err(format!(
                "output parameters are larger than {MAX_TOTAL} bytes in total (at \"{name}\" from {path}); pass large values as artifacts"
            ));
        }
        parameters.push(json!({"name": name, "value": value}));
    }
    let mut out = Map::new();
    if !parameters.is_empty() {
        out.insert("parameters".into(), parameters.into());
    }
    if let Some(code) = exit_code {
        out.insert("exitCode".into(), code.to_string().into());
    }
    Ok(Some(Value::Object(out).to_string()))
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
    // Exactly one line end belongs to the file and not to the value.
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    Ok(Some(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(template: &Value) -> Pod {
        Pod::parse(&json!({"metadata": {"annotations": {TEMPLATE: template.to_string()}}})).unwrap()
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
        let got = collect(&pod(&template), &paths, Some(0)).unwrap().unwrap();
        let got: Value = serde_json::from_str(&got).unwrap();
        let want = json!({"parameters": [{"name": "a", "value": "x\n"}, {"name": "b", "value": ""}], "exitCode": "0"});
        assert_eq!(got, want);
    }

    #[test]
    fn too_large_is_an_error_that_names_the_parameter() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("big"), vec![b'x'; MAX_TOTAL + 1]).unwrap();
        let template = json!({"outputs": {"parameters": [{"name": "big", "valueFrom": {"path": "/big"}}]}});
        let error = collect(&pod(&template), &Paths::new(dir.path().into(), []), Some(0)).unwrap_err();
        assert!(error.contains("\"big\" from /big"), "{error}");
    }
}
