//! Strict comparison with the reference Workflows: maps key by key, lists in order, strings byte for byte.
//!
//! The references are not part of this repository. The folder is taken from `KFP_CONFORMANCE_DIR`, else from
//! `../shared/conformance` beside the repository; without it the test says so and passes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{differences, disable_cache, normal_workflow};
use kfp_compiler::{Options, Package, check, compile, package::yaml};
use serde_json::Value;

fn conformance() -> Option<PathBuf> {
    let dir = match std::env::var_os("KFP_CONFORMANCE_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/conformance"),
    };
    if dir.join("workflows").is_dir() {
        return Some(dir);
    }
    eprintln!("SKIPPED: no reference Workflows in {}; set KFP_CONFORMANCE_DIR", dir.display());
    None
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
    found.sort();
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_str().unwrap().to_owned()
}

fn load(path: &Path) -> Package {
    let name = path.file_name().unwrap().to_str().unwrap();
    Package::parse(&std::fs::read(path).unwrap(), name).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn options(stem: &str, cache_disabled: bool) -> Options {
    let env: BTreeMap<&str, &str> = match stem {
        "run_as_user_cache_disabled" | "run_as_user_cache_enabled" => {
            BTreeMap::from([("PIPELINE_RUN_AS_USER", "1001"), ("PIPELINE_LOG_LEVEL", "3")])
        }
        "mounted_cabundle_configmap" => BTreeMap::from([
            ("CABUNDLE_CONFIGMAP_NAME", "test-configmap-name"),
            ("CABUNDLE_KEY_NAME", "test-configmap-key"),
        ]),
        "mounted_cabundle_secret" => BTreeMap::from([("CABUNDLE_SECRET_NAME", "test-secret-name")]),
        _ => BTreeMap::new(),
    };
    let mut options = Options::from_settings(&|name| env.get(name).map(|v| v.to_string()), &Value::Null).unwrap();
    options.cache_disabled = cache_disabled;
    options
}

#[test]
fn every_reference_is_met_exactly() {
    let Some(dir) = conformance() else { return };
    let mut sources = Vec::new();
    files(&dir.join("pipelines/valid"), &mut sources);
    let mut compared = 0;
    let mut failures = Vec::new();
    for source in &sources {
        let stem = stem(source);
        let golden = dir.join("workflows").join(format!("{stem}.yaml"));
        if !golden.is_file() {
            continue;
        }
        let golden = yaml::documents(&std::fs::read(golden).unwrap()).unwrap().remove(0);
        let contexts: &[bool] = match stem.as_str() {
            "run_as_user_cache_disabled" => &[true],
            "run_as_user_cache_enabled" | "mounted_cabundle_configmap" | "mounted_cabundle_secret" => &[false],
            _ => &[false, true],
        };
        let package = load(source);
        for &cache_disabled in contexts {
            let mut want = normal_workflow(golden.clone());
            if cache_disabled {
                disable_cache(&mut want);
            }
            let got = compile(&package, &options(&stem, cache_disabled)).unwrap_or_else(|e| panic!("{stem}: {e}"));
            check::workflow(&got).unwrap();
            let mut found = Vec::new();
            differences(&want, &normal_workflow(got), "", &mut found);
            failures.extend(found.iter().take(3).map(|difference| format!("{stem}{difference}")));
            compared += 1;
        }
    }
    assert!(failures.is_empty(), "{} differences:\n{}", failures.len(), failures.join("\n"));
    eprintln!("{compared} Workflows compared");
    assert!(compared >= 280, "only {compared} Workflows were compared");
}

#[test]
fn stored_yaml_reads_back_and_compiles_the_same() {
    let Some(dir) = conformance() else { return };
    let mut sources = Vec::new();
    files(&dir.join("pipelines/valid"), &mut sources);
    for source in sources.iter().filter(|path| path.extension().is_some_and(|e| e == "yaml")) {
        let package = load(source);
        let stored = package.to_yaml();
        let again = Package::from_text(stored.as_bytes()).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
        assert_eq!(again, package, "{}", source.display());
        assert_eq!(again.to_yaml(), stored);
        assert_eq!(Package::from_json(package.to_json()).unwrap(), package);
    }
}

#[test]
fn the_invalid_corpus_is_refused() {
    let Some(dir) = conformance() else { return };
    let mut sources = Vec::new();
    files(&dir.join("pipelines/invalid"), &mut sources);
    assert!(!sources.is_empty());
    for source in sources {
        let name = source.file_name().unwrap().to_str().unwrap();
        let error = Package::parse(&std::fs::read(&source).unwrap(), name).expect_err(name);
        let want = if name == "empty_zip.zip" || name == "wrong_format.png" {
            "Unexpected pipeline file format"
        } else {
            "unknown template format"
        };
        assert!(error.to_string().starts_with(want), "{name}: {error}");
    }
}
