//! Pipeline files in all their containers, and the command line.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;

use kfp_compiler::{Options, Package, cli::Command, package::MAX_BYTES};
use serde_json::json;

const PIPELINE: &str = "schemaVersion: 2.1.0\npipelineInfo: {name: p, displayName: P}\nroot: {inputDefinitions: {parameters: {n: {parameterType: NUMBER_INTEGER, defaultValue: 1}, s: {parameterType: STRING, defaultValue: x}}}, dag: {tasks: {t: {componentRef: {name: c}}}}}\ncomponents: {c: {executorLabel: e}}\ndeploymentSpec: {'@type': x, executors: {e: {container: {image: i}}}}\n";

fn zip(files: &[(&str, &str)]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in files {
        writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
        writer.write_all(text.as_bytes()).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn tar_gz(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

fn error(bytes: &[u8], name: &str) -> String {
    Package::parse(bytes, name).expect_err(name).to_string()
}

#[test]
fn archives_hold_pipelines() {
    for bytes in [
        zip(&[("a.yaml", "junk: 1"), ("pipeline.yaml", PIPELINE)]),
        zip(&[("other.yml", PIPELINE)]),
        tar_gz(&[("a.txt", b"junk"), ("pipeline.yaml", PIPELINE.as_bytes())]),
        tar_gz(&[("other.yaml", PIPELINE.as_bytes()), ("b.yaml", b"junk: 1")]),
    ] {
        let package = Package::parse(&bytes, "upload").unwrap();
        assert_eq!((package.name(), package.display_name()), ("p", "P"));
    }
}

#[test]
fn bad_archives_are_explained() {
    for (bytes, want) in [
        (zip(&[]), "Empty zip file"),
        (zip(&[("a.txt", "x")]), "Expecting a pipeline.yaml file inside the zip. Got: a.txt"),
        (b"PK nothing".to_vec(), "Not a valid zip file"),
        (tar_gz(&[("a.txt", b"x")]), "Expecting a pipeline.yaml file inside the tarball. Got: a.txt"),
        (tar_gz(&[]), "Not a valid tarball file"),
        (vec![0x1f, 0x8b, 1, 2, 3], "Not a valid tarball file"),
    ] {
        let text = error(&bytes, "upload");
        assert!(text.starts_with("Error decompress the pipeline file: ") && text.contains(want), "{text}");
    }
    assert!(error(b"text", "a.YAML").starts_with("Unexpected pipeline file format."));
}

#[test]
fn sizes_are_bounded() {
    let big = vec![b' '; MAX_BYTES + 1];
    assert!(
        error(&big, "a.yaml").starts_with(&format!(
            "File size too large ({} bytes). Maximum supported size: {MAX_BYTES}.",
            MAX_BYTES + 1
        ))
    );
    assert!(error(&tar_gz(&[("pipeline.yaml", &big)]), "a.tar.gz").starts_with("File size too large"));
    assert!(error(&"a: 1\n".repeat(3_000_000).into_bytes(), "a.yaml").contains("line ends, colons"));
}

#[test]
fn documents_are_told_apart() {
    let platform = "platforms: {kubernetes: {deploymentSpec: {executors: {e: {imagePullPolicy: Always}}}}}\n";
    let both = Package::from_text(format!("# a comment\n---\n{PIPELINE}---\n{platform}").as_bytes()).unwrap();
    assert!(both.platform().is_some());
    assert_eq!(Package::from_text(both.to_yaml().as_bytes()).unwrap(), both);
    assert_eq!(
        both.to_json()["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["e"],
        json!({"imagePullPolicy": "Always"})
    );
    let elsewhere = format!("{PIPELINE}---\nplatforms: {{moon: {{}}}}\n");
    assert!(Package::from_text(elsewhere.as_bytes()).unwrap().platform().is_none());
    for (text, want) in [
        (String::new(), "unknown template format: no pipeline spec is provided"),
        (format!("{PIPELINE}---\n{PIPELINE}"), "multiple pipeline specs provided"),
        (format!("{PIPELINE}---\n{platform}---\n{platform}"), "multiple platform specs provided"),
        (format!("{PIPELINE}---\n- a\n"), "unable to decode yaml document"),
        (format!("{PIPELINE}---\n{}", platform.replace("imagePullPolicy", "x")), ""),
        (
            format!("{PIPELINE}---\n{}", platform.replace("deploymentSpec", "x")),
            "platform spec is invalid: platforms.kubernetes: unknown field \"x\"",
        ),
        (
            PIPELINE.replace("2.1.0", "2.0.0"),
            "KFP only supports schema version 2.1.0, but the pipeline spec has version 2.0.0",
        ),
        (PIPELINE.replace("name: p,", "name: '--',"), "invalid v2 pipeline spec: name should consist of"),
        (
            PIPELINE.replace("componentRef", "componentReff"),
            "unknown template format: root.dag.tasks.t: unknown field \"componentReff\"",
        ),
        ("apiVersion: argoproj.io/v1alpha1\nkind: Workflow\n".into(), "KFP v1"),
        ("a: [".into(), "failed to parse pipeline spec YAML: "),
    ] {
        match Package::from_text(text.as_bytes()) {
            Err(error) => assert!(error.to_string().contains(want) && !want.is_empty(), "{error}"),
            Ok(_) => assert!(want.is_empty(), "{text}"),
        }
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn the_command_line_is_read_in_any_order() {
    let command = Command::parse(
        "kfp-compile",
        words("--param n=2 a.yaml -o json --namespace=ns --cache-disabled --pipeline-root s3://b --param=s=3"),
    )
    .unwrap();
    assert_eq!(command.file, "a.yaml");
    assert!(command.cache_disabled && command.json);
    let text = command.run(PIPELINE.as_bytes(), Options::default()).unwrap();
    let workflow: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(workflow["metadata"]["namespace"], "ns");
    assert!(text.contains("--cache_disabled=true") && text.contains("ml-pipeline.ns.svc.cluster.local"));
    assert!(
        text.contains(r#"{\"gcsOutputDirectory\":\"s3://b\",\"parameterValues\":{\"n\":2,\"s\":\"3\"}}"#),
        "{text}"
    );
    for wrong in ["", "a.yaml b.yaml", "a.yaml -o xml", "a.yaml --nope"] {
        assert!(Command::parse("kfp-compile", words(wrong)).is_err(), "{wrong}");
    }
    for (parameter, want) in [
        ("n=x", "not JSON"),
        ("n=\"x\"", "requires type double or integer"),
        ("z=1", "not required by pipeline: z"),
        ("n", "NAME=VALUE"),
    ] {
        let command = Command::parse("kfp-compile", words(&format!("a.yaml --param {parameter}"))).unwrap();
        let error = command.run(PIPELINE.as_bytes(), Options::default()).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn the_program_fails_with_a_message() {
    let run = |file: &std::path::Path| {
        std::process::Command::new(env!("CARGO_BIN_EXE_kfp-compile")).arg(file).output().unwrap()
    };
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let missing = run(&dir.join("no-such-file.yaml"));
    assert_eq!(missing.status.code(), Some(1));
    assert!(missing.stdout.is_empty() && String::from_utf8_lossy(&missing.stderr).contains("no-such-file.yaml"));
    let file = dir.join("pipeline.yaml");
    std::fs::write(&file, PIPELINE).unwrap();
    let broken = dir.join("broken.yaml");
    std::fs::write(&broken, PIPELINE.replace("{name: c}", "{name: gone}")).unwrap();
    let text = String::from_utf8(run(&broken).stderr).unwrap();
    assert!(text.contains("component name=\"root\": task \"t\": "), "{text}");
    assert_eq!(text.matches("gone").count(), 1, "{text}");
    let good = run(&file);
    assert!(good.status.success(), "{}", String::from_utf8_lossy(&good.stderr));
    assert!(String::from_utf8_lossy(&good.stdout).starts_with("apiVersion: argoproj.io/v1alpha1\nkind: Workflow\n"));
}
