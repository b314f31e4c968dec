//! What an earlier life of the server may have left.

use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Variable in the environment of every process of a pod that names the pod's directory.
pub(crate) const MARK: &str = "KFP_POD_DIR";

/// Kills every process whose environment says that it belongs to a pod below `dir`, until none is
/// left. Processes in namespaces die with their server; this finds the others.
pub(crate) fn kill_marked(dir: &Path) -> usize {
    let mut killed = 0;
    // A process may fork between being seen and being killed; each round finds fewer.
    for _ in 0..20 {
        let found = marked(dir);
        if found.is_empty() {
            break;
        }
        killed += found.len();
        for pid in found {
            let _ = kill(pid, Signal::SIGKILL);
        }
    }
    killed
}

fn marked(dir: &Path) -> Vec<Pid> {
    let wanted = format!("{MARK}={}", dir.display());
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id();
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| u32::try_from(*pid) != Ok(own) && is_marked(*pid, wanted.as_bytes()))
        .map(Pid::from_raw)
        .collect()
}

fn is_marked(pid: i32, wanted: &[u8]) -> bool {
    // Processes of other users cannot be read and are not ours. A dead one has no environment.
    let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else { return false };
    environment
        .split(|b| *b == 0)
        .any(|var| var.strip_prefix(wanted).is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/')))
}

/// Removes directories of pods that do not exist any more.
pub(crate) fn remove_unknown(dirs: &[PathBuf], known: &dyn Fn(&str) -> bool) {
    for dir in dirs {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if !known(&entry.file_name().to_string_lossy()) {
                remove(&entry.path());
            }
        }
    }
}

/// Removes a directory, including parts that a container made unwritable.
pub(crate) fn remove(path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    fn open_up(path: &Path) {
        let Ok(meta) = std::fs::symlink_metadata(path) else { return };
        if !meta.is_dir() {
            return;
        }
        let _ = std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700));
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            open_up(&entry.path());
        }
    }
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            open_up(path);
            if let Err(error) = std::fs::remove_dir_all(path) {
                tracing::warn!(%error, path = %path.display(), "cannot remove");
            }
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "cannot remove");
        }
        _ => {}
    }
}
