//! Python for containers: `python` and `pip` in a pod are this program under their names.
//!
//! Each container owns a small virtual environment whose `bin/python3` is this program and whose
//! `lib` leads, through the link `env`, to one of the environments kept in `<data>/python/envs`.
//! `pip install` of anything that can be named (requirements, indexes, URLs) turns the link to the
//! environment with exactly that added, which is built once, under a lock, and never changed
//! afterwards. Everything else that installs gets a copy for this container alone.
//!
//! The interpreter is told its name in the container's own environment, so that `sys.executable`
//! is this program again and `subprocess.run([sys.executable, "-m", "pip", ...])` works as well.

mod ahead;
mod base;
mod envs;
mod request;
mod store;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

pub(crate) use ahead::Ahead;
pub(crate) use base::{Base, detect};
pub(crate) use store::{Store, link_or_copy, prepare_container};

use request::Request;

/// Environment variable that names the container's own environment.
pub(crate) const STATE: &str = "KFP_PYTHON_STATE";

/// What the program needs to know in a container (`kfp-python.json` of its environment).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Config {
    /// `<data>/python`.
    pub(crate) store: PathBuf,
    /// Where copies for this container alone go.
    pub(crate) private: PathBuf,
    /// The interpreter beneath, or why there is none.
    pub(crate) base: Result<Base, String>,
}

/// Runs as `python` or `pip` if called by such a name.
pub(crate) fn main(args: &[OsString]) -> Option<i32> {
    let called = PathBuf::from(args.first()?);
    let name = called.file_name()?.to_str()?.to_string();
    let version = name.strip_prefix("python").or_else(|| name.strip_prefix("pip"))?;
    if !version.chars().all(|c| c.is_ascii_digit() || c == '.') {
        return None;
    }
    let args: Vec<String> = args.iter().skip(1).map(|a| a.to_string_lossy().into_owned()).collect();
    Some(run(&called, &name, &args).unwrap_or_else(|message| {
        eprintln!("{message}");
        1
    }))
}

fn run(called: &Path, name: &str, args: &[String]) -> Result<i32, String> {
    let state = find_state(called)?;
    let config = state.join("kfp-python.json");
    let text = std::fs::read(&config).map_err(|e| format!("{}: {e}", config.display()))?;
    let config: Config = serde_json::from_slice(&text).map_err(|e| format!("{}: {e}", config.display()))?;
    let base = match &config.base {
        Ok(base) => base,
        Err(message) => {
            eprintln!("{message}");
            return Ok(127);
        }
    };
    let store = Store::new(config.store.clone());
    store.ensure_base(base)?;
    match request::parse(name, args) {
        Request::Run(args) => Err(execute(base, &state, name, &args)),
        Request::Install { args, key } => envs::install(&store, base, &state, &args, &key),
        Request::Private(args) => envs::private(&store, base, &state, &config.private, &args),
    }
}

/// The container's environment: named by the variable, else by where this program lies.
fn find_state(called: &Path) -> Result<PathBuf, String> {
    if let Some(state) = std::env::var_os(STATE) {
        return Ok(state.into());
    }
    let exe = std::env::current_exe().map_err(|e| format!("find this program: {e}"))?;
    [called, exe.as_path()]
        .iter()
        .filter_map(|p| Some(p.parent()?.parent()?.to_path_buf()))
        .find(|p| p.join("kfp-python.json").is_file())
        .ok_or_else(|| format!("{}: the variable {STATE} is not set", called.display()))
}

/// Becomes the interpreter; returns only when that fails.
fn execute(base: &Base, state: &Path, name: &str, args: &[String]) -> String {
    let name = if name.starts_with("pip") { "python3" } else { name };
    let error = Command::new(&base.executable).arg0(state.join("bin").join(name)).args(args).exec();
    format!("start {}: {error}", base.executable.display())
}
