//! The host's interpreter.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

/// An interpreter that environments are made of.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Base {
    /// The real program, outside any virtual environment.
    pub(crate) executable: PathBuf,
    /// `3.11`.
    pub(crate) minor: String,
    /// `3.11.2`.
    pub(crate) version: String,
    /// Identifies the interpreter with its version.
    pub(crate) key: String,
}

const PROBE: &str = "import os, sys
base = getattr(sys, '_base_executable', None) or sys.executable
v = sys.version_info
print(os.path.realpath(base) if not os.path.exists(base) else base)
print('%d.%d' % v[:2])
print('%d.%d.%d' % v[:3])
print(os.path.realpath(base), sys.version, sys.base_prefix, sep='|')";
/// The oldest version whose environments work this way.
const OLDEST: (u32, u32) = (3, 9);

/// Finds out what `python` (or the first `python3` of the path) really is.
///
/// # Errors
/// A sentence that names the remedy.
pub(crate) fn detect(python: Option<&Path>) -> Result<Base, String> {
    let program = python.unwrap_or(Path::new("python3"));
    let output = Command::new(program)
        .args(["-I", "-S", "-c", PROBE])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{} cannot be started ({e}): install python3 and python3-venv", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines = text.lines();
    let (Some(executable), Some(minor), Some(version), Some(identity)) =
        (lines.next(), lines.next(), lines.next(), lines.next())
    else {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{} does not work: {}", program.display(), why.trim()));
    };
    let mut numbers = minor.split('.').filter_map(|n| n.parse::<u32>().ok());
    if (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) < OLDEST {
        return Err(format!("{} is Python {version}; components need 3.9 or newer", program.display()));
    }
    let rest: Vec<&str> = std::iter::once(identity).chain(lines).collect();
    Ok(Base {
        executable: executable.into(),
        minor: minor.into(),
        version: version.into(),
        key: super::store::hash([executable, &rest.join(" ")]),
    })
}
