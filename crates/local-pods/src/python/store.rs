//! The directory of environments, `<data>/python`:
//!
//! ```text
//! shim/python      this program, for the scripts of environments
//! envs/<key>       an environment; complete when it contains the file .complete
//! envs/<key>.lock  held while it is built
//! private/<pod>/   copies for one pod, removed with it
//! pip-cache        downloads and built wheels
//! ```

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest as _, Sha256};

use super::{Ahead, Base, Config};
use crate::links::Links;

/// Marks a finished environment.
pub(super) const COMPLETE: &str = ".complete";

/// Handle on the directory.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: PathBuf,
}

/// First half of the SHA-256 over the parts, in hexadecimal: short enough for a `#!` line.
pub(super) fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part.as_bytes());
        hasher.update([0]);
    }
    let hash = hasher.finalize();
    kfp_core::hex::text(hash.get(..16).unwrap_or_default())
}

pub(super) fn describe<E: std::fmt::Display>(what: &str, path: &Path) -> impl FnOnce(E) -> String {
    let text = format!("{what} {}", path.display());
    move |e| format!("{text}: {e}")
}

impl Store {
    /// The store in a directory.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Makes the directories and puts this program into place.
    ///
    /// # Errors
    /// When the data directory cannot be written.
    pub(crate) fn create(&self, program: &Path) -> std::io::Result<()> {
        for name in ["shim", "envs", "private", "pip-cache"] {
            std::fs::create_dir_all(self.dir.join(name))?;
        }
        let (shim, new) = (self.shim(), self.dir.join("shim/.new"));
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        link_or_copy(program, &new)?;
        std::fs::rename(new, shim)
    }

    fn shim(&self) -> PathBuf {
        self.dir.join("shim/python")
    }

    pub(super) fn pip_cache(&self) -> PathBuf {
        self.dir.join("pip-cache")
    }

    /// Path of an environment.
    pub(crate) fn env(&self, key: &str) -> PathBuf {
        self.dir.join("envs").join(key)
    }

    /// Where copies for one pod go.
    pub(crate) fn private(&self, pod: &str) -> PathBuf {
        self.dir.join("private").join(pod)
    }

    pub(super) fn is_complete(env: &Path) -> bool {
        env.join(COMPLETE).exists()
    }

    /// Makes this process able to write here; in a pod the directory is mounted read-only.
    pub(super) fn open_for_writing(&self) -> Result<(), String> {
        let probe = self.dir.join(format!("envs/.probe-{}-{}", std::process::id(), uuid::Uuid::new_v4()));
        let outcome = match File::create(&probe) {
            Err(e) if e.kind() == ErrorKind::ReadOnlyFilesystem => crate::init::remount_writable(&self.dir),
            Err(e) => Err(e),
            Ok(_) => std::fs::remove_file(probe),
        };
        outcome.map_err(describe("write to", &self.dir))
    }

    /// Takes the lock of an environment, waiting for whoever builds it. It is released when the file is dropped, also
    /// by the death of the process, and the file is closed by the programs that it was [lent](lend) to.
    pub(super) fn lock(&self, key: &str) -> Result<File, String> {
        let path = self.dir.join("envs").join(format!("{key}.lock"));
        let open = || {
            let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path)?;
            file.lock()?;
            Ok(file)
        };
        open().map_err(|e: std::io::Error| format!("lock {}: {e}", path.display()))
    }

    /// Builds the environment `key` with `build` unless it is there. An environment left half-built
    /// by a killed process is removed first.
    pub(super) fn ensure(
        &self,
        key: &str,
        build: impl FnOnce(&Path, &File) -> Result<i32, String>,
    ) -> Result<i32, String> {
        let env = self.env(key);
        if Self::is_complete(&env) {
            return Ok(0);
        }
        self.open_for_writing()?;
        let lock = self.lock(key)?;
        if Self::is_complete(&env) {
            return Ok(0);
        }
        remove_tree(&env)?;
        let built =
            build(&env, &lock).and_then(|code| if code == 0 { self.finish(&env).map(|()| 0) } else { Ok(code) });
        if !matches!(built, Ok(0)) {
            // The reason of the failure matters more than that its remains could not be removed.
            let _ = remove_tree(&env);
        }
        built
    }

    /// Scripts of a finished environment run this program, which then uses the pod's environment.
    pub(super) fn finish(&self, env: &Path) -> Result<(), String> {
        set_interpreter(env, &self.shim())?;
        let marker = env.join(COMPLETE);
        File::create(&marker).map(drop).map_err(describe("write", &marker))
    }

    /// The environment with pip only, made of the host's interpreter.
    ///
    /// # Errors
    /// A sentence that names the remedy.
    pub(crate) fn ensure_base(&self, base: &Base) -> Result<(), String> {
        self.base_by(base, None, || Command::new(&base.executable))
    }

    /// [`Store::ensure_base`] ahead of its use: seconds of work that give way to whatever else runs, and to the end of
    /// the server.
    ///
    /// # Errors
    /// A sentence that names the remedy.
    pub(crate) fn prepare_base(&self, base: &Base, ahead: &Ahead) -> Result<(), String> {
        let polite = || {
            let mut command = Command::new("nice");
            command.arg(&base.executable).process_group(0);
            command
        };
        // Without that program, whoever needs the environment first makes it.
        match Command::new("nice").stdout(Stdio::null()).stderr(Stdio::null()).status() {
            Ok(status) if status.success() => self.base_by(base, Some(ahead), polite),
            _ => Ok(()),
        }
    }

    fn base_by(&self, base: &Base, ahead: Option<&Ahead>, python: impl FnOnce() -> Command) -> Result<(), String> {
        let code = self.ensure(&base.key, |env, lock| make_base(base, env, lock, ahead, python()))?;
        if code == 0 { Ok(()) } else { Err(format!("making the base environment failed with exit code {code}")) }
    }
}

/// Gives a builder the lock as its input, which it does not read: should this process be killed, whoever wants the
/// environment next waits for what is left of the builder, instead of building beside it.
fn lend(lock: &File, builder: &mut Command) -> Result<(), String> {
    let lock = lock.try_clone().map_err(|error| format!("lend the lock of an environment: {error}"))?;
    builder.stdin(lock);
    Ok(())
}

fn make_base(base: &Base, env: &Path, lock: &File, ahead: Option<&Ahead>, mut python: Command) -> Result<i32, String> {
    lend(lock, &mut python)?;
    let child = python
        .args(["-I", "-m", "venv"])
        .arg(env)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(describe("start", &base.executable))?;
    if let Some(ahead) = ahead {
        ahead.begin(child.id());
    }
    let output = child.wait_with_output();
    if let Some(ahead) = ahead {
        ahead.done();
    }
    let output = output.map_err(describe("wait for", &base.executable))?;
    if output.status.success() {
        return Ok(0);
    }
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if text.contains("ensurepip") || text.contains("No module named venv") {
        return Err(format!(
            "{} cannot make virtual environments: install the package python3-venv (apt-get install python3-venv)",
            base.executable.display()
        ));
    }
    Err(format!("{} -m venv failed: {}", base.executable.display(), text.trim()))
}

/// Points every interpreter name of an environment at a program.
pub(super) fn set_interpreter(env: &Path, program: &Path) -> Result<(), String> {
    let bin = env.join("bin");
    for entry in std::fs::read_dir(&bin).map_err(describe("list", &bin))?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("python") && entry.path().is_symlink() {
            std::fs::remove_file(entry.path()).map_err(describe("replace", &entry.path()))?;
        }
    }
    let python = bin.join("python3");
    symlink(program, &python).map_err(describe("link", &python))?;
    let plain = bin.join("python");
    symlink("python3", &plain).map_err(describe("link", &plain))
}

pub(super) fn remove_tree(path: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(describe("remove", path)(e)),
        _ => Ok(()),
    }
}

/// A hard link where the file system allows it, else a copy.
pub(crate) fn link_or_copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::hard_link(from, to).or_else(|_| std::fs::copy(from, to).map(drop))
}

/// Makes a container's own environment in `dir`, which the container sees as `seen`.
///
/// # Errors
/// When the pod's directory cannot be written.
pub(crate) fn prepare_container(store: &Store, links: &Links, config: &Config, dir: &Path) -> std::io::Result<()> {
    let bin = dir.join("bin");
    std::fs::create_dir_all(&bin)?;
    link_or_copy(&store.shim(), &bin.join("python3"))?;
    for name in ["python", "pip", "pip3"] {
        links.make("python3".as_ref(), &bin.join(name))?;
    }
    if let Ok(base) = &config.base {
        for name in ["python", "pip"] {
            links.make("python3".as_ref(), &bin.join(format!("{name}{}", base.minor)))?;
        }
        links.make(&store.env(&base.key), &dir.join("env"))?;
        for name in ["lib", "lib64", "include", "share", "etc"] {
            links.make(&Path::new("env").join(name), &dir.join(name))?;
        }
        let home = base.executable.parent().unwrap_or(Path::new("/usr/bin")).display();
        let version = &base.version;
        std::fs::write(
            dir.join("pyvenv.cfg"),
            format!("home = {home}\ninclude-system-site-packages = false\nversion = {version}\n"),
        )?;
    }
    std::fs::write(dir.join("kfp-python.json"), serde_json::to_vec(config)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_builder_that_outlives_its_server_keeps_others_from_building() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_path_buf());
        std::fs::create_dir_all(dir.path().join("envs")).unwrap();
        let mut left = None;
        let build = |_: &Path, lock: &File| {
            let mut command = Command::new("sleep");
            command.arg("600");
            lend(lock, &mut command)?;
            left = Some(command.spawn().map_err(describe("start", Path::new("sleep")))?);
            Ok(1)
        };
        assert_eq!(store.ensure("key", build), Ok(1));
        let lock = OpenOptions::new().write(true).open(dir.path().join("envs/key.lock")).unwrap();
        assert!(matches!(lock.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
        let mut left = left.unwrap();
        left.kill().unwrap();
        left.wait().unwrap();
        lock.try_lock().unwrap();
    }
}
