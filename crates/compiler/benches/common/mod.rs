//! Pipelines of any size, in the form the SDK writes, and the reference pipelines when their folder is there.

use std::fmt::Write;
use std::path::{Path, PathBuf};

const HEAD: &str = "schemaVersion: 2.1.0\nsdkVersion: kfp-2.17.0\npipelineInfo:\n  name: bench\n";

/// A pipeline by its name in the reports.
pub fn generated(name: &str) -> Option<String> {
    let (kind, size) = name.rsplit_once('-')?;
    let size = size.parse().ok()?;
    match kind {
        "chain" => Some(chain(size)),
        "fan-out" => Some(fan_out(size)),
        "nested" => Some(nested(size)),
        _ => None,
    }
}

/// What the SDK makes of a small Python function: about a kilobyte of shell and source.
fn executor(out: &mut String, label: &str, number: usize) {
    write!(
        out,
        "    {label}:\n      container:\n        args:\n        - --executor_input\n        - '{{{{$}}}}'\n        - --function_to_execute\n        - step\n        command:\n        - sh\n        - -c\n        - \"\\nif ! [ -x \\\"$(command -v pip)\\\" ]; then\\n    python3 -m ensurepip || python3 -m ensurepip\\\n          \\ --user || apt-get install python3-pip\\nfi\\n\\nPIP_DISABLE_PIP_VERSION_CHECK=1\\\n          \\ python3 -m pip install --quiet --no-warn-script-location 'kfp==2.17.0' && \\\"$0\\\" \\\"$@\\\"\\n\"\n        - sh\n        - -ec\n        - 'program_path=$(mktemp -d)\n\n          printf \"%s\" \"$0\" > \"$program_path/ephemeral_component.py\"\n\n          exec python3 -m kfp.dsl.executor_main --component_module_path \"$program_path/ephemeral_component.py\" \"$@\"\n\n          '\n        - \"\\nimport kfp\\nfrom kfp import dsl\\nfrom kfp.dsl import *\\nfrom typing import *\\n\\ndef step(value: str) -> str:\\n    \\\"\\\"\\\"Step {number}.\\\"\\\"\\\"\\n    result = value + '{number}'\\n    return result if result < 'z' else value\\n\\n\"\n        image: python:3.11\n"
    )
    .unwrap_or_default();
}

const PARAMETERS: &str = "    inputDefinitions:\n      parameters:\n        value:\n          parameterType: STRING\n    outputDefinitions:\n      parameters:\n        Output:\n          parameterType: STRING\n";

/// `size` tasks of one component, each taking the output of the one before.
fn chain(size: usize) -> String {
    let mut out = format!(
        "{HEAD}components:\n  comp-step:\n    executorLabel: exec-step\n{PARAMETERS}deploymentSpec:\n  executors:\n"
    );
    executor(&mut out, "exec-step", 0);
    out.push_str("root:\n  dag:\n    tasks:\n");
    for i in 0..size {
        let name = if i == 0 { "step".into() } else { format!("step-{}", i + 1) };
        let before = if i == 1 { "step".into() } else { format!("step-{i}") };
        let (waits, value) = match i {
            0 => (String::new(), "            runtimeValue:\n                constant: begin\n".to_owned()),
            _ => (
                format!("        dependentTasks:\n        - {before}\n"),
                format!(
                    "            taskOutputParameter:\n                outputParameterKey: Output\n                producerTask: {before}\n"
                ),
            ),
        };
        write!(
            out,
            "      {name}:\n        cachingOptions:\n          enableCache: true\n        componentRef:\n          name: comp-step\n{waits}        inputs:\n          parameters:\n            value:\n  {value}        taskInfo:\n          name: {name}\n"
        )
        .unwrap_or_default();
    }
    out
}

/// `size` tasks side by side, each with a component and a container of its own.
fn fan_out(size: usize) -> String {
    let mut out = format!("{HEAD}components:\n");
    for i in 0..size {
        write!(out, "  comp-step-{i}:\n    executorLabel: exec-step-{i}\n{PARAMETERS}").unwrap_or_default();
    }
    out.push_str("deploymentSpec:\n  executors:\n");
    for i in 0..size {
        executor(&mut out, &format!("exec-step-{i}"), i);
    }
    out.push_str("root:\n  dag:\n    tasks:\n");
    for i in 0..size {
        write!(
            out,
            "      step-{i}:\n        cachingOptions:\n          enableCache: true\n        componentRef:\n          name: comp-step-{i}\n        inputs:\n          parameters:\n            value:\n              runtimeValue:\n                constant: v{i}\n        taskInfo:\n          name: step-{i}\n"
        )
        .unwrap_or_default();
    }
    out
}

/// `size` DAG components, each the only task of the one around it.
fn nested(size: usize) -> String {
    let mut out = format!("{HEAD}components:\n  comp-step:\n    executorLabel: exec-step\n{PARAMETERS}");
    let task = |indent: &str, component: &str, value: &str| {
        format!(
            "{indent}inner:\n{indent}  componentRef:\n{indent}    name: {component}\n{indent}  inputs:\n{indent}    parameters:\n{indent}      value:\n{indent}        {value}\n{indent}  taskInfo:\n{indent}    name: inner\n"
        )
    };
    for i in 0..size {
        let next = if i + 1 == size { "comp-step".into() } else { format!("comp-level-{}", i + 1) };
        write!(
            out,
            "  comp-level-{i}:\n    dag:\n      tasks:\n{}    inputDefinitions:\n      parameters:\n        value:\n          parameterType: STRING\n",
            task("        ", &next, "componentInputParameter: value")
        )
        .unwrap_or_default();
    }
    out.push_str("deploymentSpec:\n  executors:\n");
    executor(&mut out, "exec-step", 0);
    write!(out, "root:\n  dag:\n    tasks:\n{}", task("      ", "comp-level-0", "{runtimeValue: {constant: x}}"))
        .unwrap_or_default();
    out
}

/// The reference pipelines, smallest first; none without their folder (`KFP_CONFORMANCE_DIR`, else
/// `../shared/conformance` beside the repository).
pub fn references() -> Vec<(String, Vec<u8>)> {
    let dir = std::env::var_os("KFP_CONFORMANCE_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"), PathBuf::from);
    let mut found = Vec::new();
    collect(&dir.join("pipelines/valid"), &dir.join("workflows"), &mut found);
    found.sort_by_key(|(_, bytes)| bytes.len());
    found
}

fn collect(dir: &Path, workflows: &Path, found: &mut Vec<(String, Vec<u8>)>) {
    for path in std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            collect(&path, workflows, found);
            continue;
        }
        let text = |part: Option<&std::ffi::OsStr>| part.and_then(|part| part.to_str()).unwrap_or_default().to_owned();
        let expected = workflows.join(format!("{}.yaml", text(path.file_stem())));
        if let (true, Ok(bytes)) = (expected.is_file(), std::fs::read(&path)) {
            found.push((text(path.file_name()), bytes));
        }
    }
}
