//! Environments made of others: copy, then pip.

use std::os::unix::fs::symlink;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Base;
use super::store::{COMPLETE, Store, describe, hash, link_or_copy, remove_tree, set_interpreter};

/// Settings of pip that decide where packages come from.
const SOURCES: [&str; 4] = ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONFIG_FILE"];

/// `pip install` with a result that is shared by everybody who asks for the same.
pub(super) fn install(
    store: &Store,
    base: &Base,
    state: &Path,
    args: &[String],
    key: &[String],
) -> Result<i32, String> {
    let current = current(state)?;
    let key = {
        let sources: Vec<String> = SOURCES.iter().map(|n| std::env::var(n).unwrap_or_default()).collect();
        let before = current.to_string_lossy().into_owned();
        hash(
            [base.key.as_str(), &before]
                .into_iter()
                .chain(sources.iter().map(String::as_str))
                .chain(key.iter().map(String::as_str)),
        )
    };
    let code = store.ensure(&key, |env, _| {
        copy_env(&current, env, base)?;
        let args: Vec<String> = std::iter::once("install".to_string()).chain(args.iter().cloned()).collect();
        pip(store, base, env, &args)
    })?;
    if code == 0 {
        switch(state, &store.env(&key))?;
    }
    Ok(code)
}

/// A change that nobody else sees, on a copy of the current environment.
pub(super) fn private(store: &Store, base: &Base, state: &Path, dir: &Path, args: &[String]) -> Result<i32, String> {
    let current = current(state)?;
    store.open_for_writing()?;
    let env = dir.join(hash([uuid::Uuid::new_v4().to_string().as_str()]));
    std::fs::create_dir_all(dir).map_err(describe("make", dir))?;
    copy_env(&current, &env, base)?;
    let code = pip(store, base, &env, args)?;
    if code == 0 {
        store.finish(&env)?;
        switch(state, &env)?;
    } else {
        remove_tree(&env)?;
    }
    Ok(code)
}

fn current(state: &Path) -> Result<PathBuf, String> {
    let link = state.join("env");
    std::fs::read_link(&link).map_err(describe("read", &link))
}

/// Turns the link in one step: an interpreter that starts meanwhile sees one or the other.
fn switch(state: &Path, env: &Path) -> Result<(), String> {
    let (link, new) = (state.join("env"), state.join(format!(".env-{}", std::process::id())));
    symlink(env, &new).and_then(|()| std::fs::rename(&new, &link)).map_err(describe("switch", &link))
}

fn pip(store: &Store, base: &Base, env: &Path, args: &[String]) -> Result<i32, String> {
    let mut command = Command::new(&base.executable);
    command.arg0(env.join("bin/python3")).args(["-m", "pip"]).args(args);
    command.env_remove("PYTHONHOME").env("PIP_DISABLE_PIP_VERSION_CHECK", "1").env("PIP_ROOT_USER_ACTION", "ignore");
    if std::env::var_os("PIP_CACHE_DIR").is_none() {
        command.env("PIP_CACHE_DIR", store.pip_cache());
    }
    let status = command.status().map_err(describe("start", &base.executable))?;
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Copies an environment by hard links. Nothing writes to installed files in place: the
/// interpreter replaces byte code by renaming, pip removes files before it writes new ones.
fn copy_env(from: &Path, to: &Path, base: &Base) -> Result<(), String> {
    copy_tree(from, to)?;
    let bin = to.join("bin");
    for entry in std::fs::read_dir(&bin).map_err(describe("list", &bin))?.flatten() {
        move_script(&entry.path(), from, to)?;
    }
    move_script(&to.join("pyvenv.cfg"), from, to)?;
    set_interpreter(to, &base.executable)
}

/// Rewrites the environment's own path in a text file, by replacing the file.
fn move_script(path: &Path, from: &Path, to: &Path) -> Result<(), String> {
    if path.is_symlink() {
        return Ok(());
    }
    // Programs in binary form do not contain the path.
    let Ok(text) = std::fs::read_to_string(path) else { return Ok(()) };
    let (from, to) = (from.to_string_lossy(), to.to_string_lossy());
    if !text.contains(from.as_ref()) {
        return Ok(());
    }
    let mode = std::fs::metadata(path).map_err(describe("read", path))?.permissions();
    std::fs::remove_file(path)
        .and_then(|()| std::fs::write(path, text.replace(from.as_ref(), &to)))
        .and_then(|()| std::fs::set_permissions(path, mode))
        .map_err(describe("rewrite", path))
}

fn copy_tree(from: &Path, to: &Path) -> Result<(), String> {
    std::fs::create_dir_all(to).map_err(describe("make", to))?;
    for entry in std::fs::read_dir(from).map_err(describe("list", from))? {
        let entry = entry.map_err(describe("list", from))?;
        // The copy is not complete before pip has run; others look for this file without a lock.
        if entry.file_name() == COMPLETE {
            continue;
        }
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().map_err(describe("read", &source))?;
        if kind.is_dir() {
            copy_tree(&source, &target)?;
        } else if kind.is_symlink() {
            let link = std::fs::read_link(&source).map_err(describe("read", &source))?;
            symlink(link, &target).map_err(describe("link", &target))?;
        } else {
            link_or_copy(&source, &target).map_err(describe("copy", &source))?;
        }
    }
    Ok(())
}
