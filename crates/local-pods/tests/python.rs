//! Python environments of containers: shared by what is installed, separate otherwise.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{Bench, exit_code};
use kfp_local_pods::Isolation;

/// A wheel with one module and one console script, both telling the version.
const WHEEL: &str = r#"
import sys, zipfile
for version in ("1.0", "2.0"):
    with zipfile.ZipFile(f"{sys.argv[1]}/kfpdemo-{version}-py3-none-any.whl", "w") as z:
        info = f"kfpdemo-{version}.dist-info"
        z.writestr("kfpdemo.py", f"version = '{version}'\ndef main(): print('script', version)\n")
        z.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: kfpdemo\nVersion: {version}\n")
        z.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        z.writestr(f"{info}/entry_points.txt", "[console_scripts]\nkfpdemo = kfpdemo:main\n")
        z.writestr(f"{info}/RECORD", "".join(f"{n},,\n" for n in z.namelist()) + f"{info}/RECORD,,\n")
"#;

fn make_wheels(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let status = std::process::Command::new("python3").args(["-c", WHEEL]).arg(dir).status().unwrap();
    assert!(status.success());
}

async fn environments(isolation: Isolation) {
    let temp = tempfile::tempdir().unwrap();
    let mut options = common::options(temp.path(), isolation);
    let wheels = temp.path().join("wheels");
    make_wheels(&wheels);
    options.writable.push(wheels.clone());
    let wheels = wheels.canonicalize().unwrap();
    let bench = Bench::start_in(temp.path(), options).await;
    let pip = |how: &str| format!("{how} install --quiet --no-warn-script-location --no-index --find-links $WHEELS");
    let text = |body: &str| format!("set -e; WHEELS={}; {body}", wheels.display());
    // As the SDK writes it; then a program that installs by itself.
    let component = |version: &str| {
        text(&format!(
            "if ! [ -x \"$(command -v pip)\" ]; then echo no pip; fi; {} 'kfpdemo=={version}' && sh -c 'python3 -c \"import kfpdemo, sys; print(kfpdemo.version, sys.prefix != sys.base_prefix)\"'; kfpdemo; python -m pip list --format=freeze | grep kfpdemo",
            pip("PIP_DISABLE_PIP_VERSION_CHECK=1 python3 -m pip")
        ))
    };
    let want = |v: &str| format!("{v} True\nscript {v}\nkfpdemo=={v}\n");
    let (one, two, three) = (component("1.0"), component("2.0"), component("1.0"));
    let (a, b, c) = tokio::join!(bench.sh("a", &one), bench.sh("b", &two), bench.sh("c", &three));
    for ((ended, log), version) in [(a, "1.0"), (b, "2.0"), (c, "1.0")] {
        assert_eq!((exit_code(&ended), log), (Some(0), want(version)), "{:#}", ended["status"]);
    }
    // Without wheels: whatever is installed now comes from the cache.
    for file in std::fs::read_dir(&wheels).unwrap().flatten() {
        std::fs::remove_file(file.path()).unwrap();
    }
    let quick = text(&format!("{} kfpdemo==1.0; {} 'kfpdemo == 1.0'", pip("pip"), pip("true")));
    let (ended, log) = bench.sh("again", &quick).await;
    assert_eq!((exit_code(&ended), log.as_str()), (Some(0), ""));
    let (ended, log) = bench.sh("none", "python3 -c 'import kfpdemo'").await;
    assert_eq!(exit_code(&ended), Some(1));
    assert!(log.contains("ModuleNotFoundError"), "{log}");
    // From local files: for this pod alone. By the interpreter itself: intercepted as well.
    make_wheels(&wheels);
    let local = text(
        "pip install -q --no-index $WHEELS/kfpdemo-2.0-py3-none-any.whl; python3 -c 'import kfpdemo; print(kfpdemo.version)'; \
         pip uninstall -q -y kfpdemo; python3 -c 'import kfpdemo' 2>/dev/null || echo gone; \
         python3 -c 'import subprocess, sys; subprocess.check_call([sys.executable, \"-m\", \"pip\", \"install\", \"-q\", \"--no-index\", \"--find-links\", sys.argv[1], \"kfpdemo==1.0\"])' $WHEELS; \
         python3 -c 'import kfpdemo; print(kfpdemo.version)'",
    );
    let (ended, log) = bench.sh("local", &local).await;
    assert_eq!((exit_code(&ended), log.as_str()), (Some(0), "2.0\ngone\n1.0\n"));
    let (ended, log) = bench.sh("after", "python3 -c 'import kfpdemo' 2>&1 | tail -1").await;
    assert_eq!((exit_code(&ended), log.contains("ModuleNotFoundError")), (Some(0), true), "{log}");
    let (ended, _) = bench.sh("fails", &text(&format!("{} no-such-package-anywhere", pip("pip")))).await;
    assert_eq!(exit_code(&ended), Some(1));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_with_path_mapping() {
    environments(Isolation::Mapped).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn environments_with_namespaces_where_permitted() {
    environments(Isolation::Auto).await;
}

/// Containers have a private `/var/tmp`, which must not hide the data directory.
#[tokio::test(flavor = "multi_thread")]
async fn the_data_directory_may_be_below_var_tmp() {
    if !Path::new("/var/tmp").is_dir() {
        eprintln!("SKIPPED: no /var/tmp");
        return;
    }
    let temp = tempfile::tempdir_in("/var/tmp").unwrap();
    let bench = Bench::start_in(temp.path(), common::options(temp.path(), Isolation::Auto)).await;
    let (ended, log) = bench.sh("p", "python3 -c 'print(1)'").await;
    assert_eq!((exit_code(&ended), log.as_str()), (Some(0), "1\n"));
    bench.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_interpreter_gives_one_sentence() {
    let temp = tempfile::tempdir().unwrap();
    let mut options = common::options(temp.path(), Isolation::Auto);
    options.python = Some(temp.path().join("no-python"));
    let bench = Bench::start_in(temp.path(), options).await;
    let (ended, log) = bench.sh("p", "python3 -c 1").await;
    assert_eq!(exit_code(&ended), Some(127));
    assert!(log.contains("no-python cannot be started") && log.contains("install python3 and python3-venv"), "{log}");
    bench.stop().await;
}
