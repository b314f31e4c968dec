//! The project's own pipelines against the Workflows that upstream's compiler made of them, see
//! `tests/pipelines/expected/README.md`. Needs nothing outside the repository.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::{Path, PathBuf};

use common::{differences, disable_cache, normal_workflow};
use kfp_compiler::{Options, Package, check, compile, package::yaml};
use serde_json::Value;

fn pipelines() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/pipelines")
}

fn stems(dir: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    found
}

/// The settings behind `NAME.settings.yaml`.
const SETTINGS: &[(&str, &str)] = &[
    ("V2_LAUNCHER_IMAGE", "registry.example/launcher:1"),
    ("V2_LAUNCHER_COMMAND", "/bin/launcher --x"),
    ("V2_DRIVER_IMAGE", "registry.example/driver:1"),
    ("V2_DRIVER_COMMAND", "/bin/driver  -v"),
    ("PIPELINE_RUN_AS_USER", "1001"),
    ("PIPELINE_LOG_LEVEL", "4"),
    ("PUBLISH_LOGS", "false"),
    ("DEFAULTPIPELINERUNNERSERVICEACCOUNT", "runner"),
    ("POD_NAMESPACE", "ml"),
    ("ML_PIPELINE_SERVICE_NAME", "api"),
    ("METADATA_SERVICE_NAME", "metadata"),
    ("CLUSTER_DOMAIN", "example.internal"),
    ("HTTP_PROXY", "http://proxy:3128"),
    ("HTTPS_PROXY", "http://proxy:3129"),
    ("METADATA_TLS_ENABLED", "true"),
    ("CACHEENABLED", "false"),
    ("CABUNDLE_SECRET_NAME", "certificates"),
    ("CABUNDLE_CONFIGMAP_NAME", "ignored"),
    ("CABUNDLE_KEY_NAME", "bundle.pem"),
    ("DEFAULT_SECURITY_CONTEXT_RUN_AS_USER", "1234"),
    ("DEFAULT_SECURITY_CONTEXT_RUN_AS_GROUP", "0"),
    ("DEFAULT_SECURITY_CONTEXT_RUN_AS_NON_ROOT", "true"),
    ("DEFAULT_SECURITY_CONTEXT_HOST_USERS", "false"),
    ("DRIVER_POD_LABELS", r#"{"app":"driver","pipelines.kubeflow.org/x":"dropped"}"#),
    ("DRIVER_POD_ANNOTATIONS", r#"{"example.com/a":"<1>","sidecar.istio.io/inject":"true"}"#),
    (
        "COMPILED_PIPELINE_SPEC_PATCH",
        r#"{"nodeSelector":{"pool":"kfp"},"tolerations":[{"key":"k","operator":"Exists"}],"securityContext":{"fsGroup":5},"podMetadata":{"labels":{"team":"ml"},"annotations":{"a":"b"}},"parallelism":4,"templates":[{"name":"system-dag-driver","container":{"imagePullPolicy":"Always","env":[{"name":"E","value":"1"}]}}]}"#,
    ),
];

fn compare(stem: &str, expected: &str, options: &Options, mend: fn(&mut Value)) {
    let file = format!("{stem}.yaml");
    let package = Package::parse(&std::fs::read(pipelines().join(&file)).unwrap(), &file).unwrap();
    let stored = std::fs::read(pipelines().join("expected").join(expected)).unwrap();
    let mut want = normal_workflow(yaml::documents(&stored).unwrap().remove(0));
    mend(&mut want);
    let workflow = compile(&package, options).unwrap();
    check::workflow(&workflow).unwrap();
    let mut found = Vec::new();
    differences(&want, &normal_workflow(workflow), "", &mut found);
    assert!(found.is_empty(), "{expected}: {} differences:\n{}", found.len(), found.join("\n"));
}

#[test]
fn every_pipeline_has_its_expectation() {
    let expected = stems(&pipelines().join("expected"));
    for stem in stems(&pipelines()) {
        assert!(expected.contains(&stem), "no expectation for {stem}");
    }
}

#[test]
fn own_pipelines_compile_as_upstream_compiles_them() {
    for stem in stems(&pipelines()) {
        let expected = format!("{stem}.yaml");
        compare(&stem, &expected, &Options::default(), |_| {});
        compare(&stem, &expected, &Options { cache_disabled: true, ..Options::default() }, disable_cache);
    }
}

#[test]
fn settings_show_as_upstream_shows_them() {
    let env = |name: &str| SETTINGS.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let mut options = Options::from_settings(&env, &Value::Null).unwrap();
    options.ml_pipeline_tls = true;
    for stem in ["importers", "kubernetes_settings", "nested_loops"] {
        compare(stem, &format!("{stem}.settings.yaml"), &options, |_| {});
    }
}
