//! What a container says about its own end: the file at `terminationMessagePath`, as a kubelet offers it.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use crate::log_reader;
use crate::spec::Container;
use crate::volumes::Mounted;

/// `terminationMessagePolicy` that takes the end of the log where the file is empty.
pub(crate) const FROM_LOG: &str = "FallbackToLogsOnError";
/// Where the file is unless the container says otherwise.
const DEFAULT_PATH: &str = "/dev/termination-log";
/// Limits of the kubelet.
const MAX_BYTES: usize = 4096;
const MAX_LOG_BYTES: usize = 2048;
const MAX_LOG_LINES: u64 = 80;
/// A disk with fewer free bytes than this has no room for what a task may want to say.
const FULL: u64 = 1 << 20;

/// Where the file of a container is in the pod's directory and where it belongs.
///
/// # Errors
/// A path that is not absolute.
pub(crate) fn locate(pod_dir: &Path, container: &Container) -> Result<Mounted, String> {
    let path = match container.termination_message_path.as_str() {
        "" => DEFAULT_PATH,
        path if path.starts_with('/') => path,
        path => return Err(format!("terminationMessagePath \"{path}\" must start with /")),
    };
    let place = pod_dir.join("termination").join(&container.name);
    Ok(Mounted { path: PathBuf::from(path).components().collect(), place, read_only: false })
}

/// Makes the empty file that [`locate`] named.
///
/// # Errors
/// A directory that cannot be written.
pub(crate) fn make(place: &Path) -> Result<(), String> {
    let dir = place.parent().unwrap_or(place);
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(place, b""))
        .map_err(|e| format!("make {}: {e}", place.display()))
}

/// The message left in `file`, else the end of the log where one is given.
pub(crate) fn message(file: &Path, log: Option<&Path>) -> String {
    let left = end_of(file).unwrap_or_default();
    match log {
        Some(log) if left.is_empty() => log_reader::last_lines(log, MAX_LOG_LINES, MAX_LOG_BYTES).unwrap_or_default(),
        _ => left,
    }
}

/// What to say of a failed container that could not say anything because the disk of `dir` is full.
pub(crate) fn full_disk(dir: &Path) -> Option<String> {
    let disk = nix::sys::statvfs::statvfs(dir).ok()?;
    let left = disk.blocks_available().saturating_mul(disk.fragment_size());
    (left < FULL).then(|| format!("no space is left on the disk of {}; free some and run again", dir.display()))
}

/// A message cut to the kubelet's limit; what matters is usually at its end.
pub(crate) fn shortened(text: String) -> String {
    if text.len() <= MAX_BYTES {
        return text;
    }
    let from = (text.len() - MAX_BYTES..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text.get(from..).unwrap_or_default().to_owned()
}

fn end_of(path: &Path) -> std::io::Result<String> {
    // The container may have put anything into the place of the file; a pipe would be waited for.
    if !std::fs::symlink_metadata(path)?.is_file() {
        return Ok(String::new());
    }
    let mut file = std::fs::File::open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(size.saturating_sub(MAX_BYTES as u64)))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64).read_to_end(&mut bytes)?;
    Ok(shortened(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_long_message_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let container = Container { name: "main".into(), ..Container::default() };
        let made = locate(dir.path(), &container).unwrap();
        make(&made.place).unwrap();
        assert_eq!(made.path, Path::new(DEFAULT_PATH));
        assert_eq!(message(&made.place, None), "");
        std::fs::write(&made.place, format!("{}the end", "é".repeat(4000))).unwrap();
        let text = message(&made.place, None);
        assert!(text.len() <= MAX_BYTES && text.ends_with("éthe end"), "{text}");
        assert!(shortened(text.repeat(2)).ends_with("éthe end"));
    }

    #[test]
    fn a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "hush").unwrap();
        std::os::unix::fs::symlink("secret", dir.path().join("link")).unwrap();
        assert_eq!(message(&dir.path().join("link"), None), "");
    }

    #[test]
    fn relative_paths_are_refused() {
        let container = Container { termination_message_path: "x".into(), ..Container::default() };
        let error = locate(Path::new("/nonexistent"), &container).unwrap_err();
        assert!(error.contains("\"x\" must start with /"), "{error}");
    }
}
