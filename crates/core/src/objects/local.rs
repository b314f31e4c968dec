//! Objects as files: walks, copies without a detour through memory, atomic replacement.

use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::Error;

/// A file found by [`files`].
pub(super) struct File {
    pub path: PathBuf,
    /// Path below the start; empty when the start is the file itself.
    pub relative: PathBuf,
    pub size: u64,
}

/// The file at `start`, or all files below it in order of their names. Links are followed; sockets, pipes and devices
/// are skipped.
pub(super) async fn files(start: &Path) -> Result<Vec<File>, Error> {
    let start = start.to_owned();
    blocking(move || {
        let meta = match std::fs::metadata(&start) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.kind() == std::io::ErrorKind::NotADirectory => {
                return Err(Error::MissingFile(start));
            }
            other => other.map_err(Error::file("read", &start))?,
        };
        let mut found = Vec::new();
        if meta.is_file() {
            found.push(File { path: start, relative: PathBuf::new(), size: meta.len() });
        } else {
            walk(&start, &PathBuf::new(), &mut vec![(meta.dev(), meta.ino())], &mut found)?;
        }
        Ok(found)
    })
    .await
}

/// `above` holds device and inode of the directories on the way down.
fn walk(dir: &Path, relative: &Path, above: &mut Vec<(u64, u64)>, found: &mut Vec<File>) -> Result<(), Error> {
    let read = |e| Error::file("read", dir)(e);
    let entries: Result<Vec<_>, _> = std::fs::read_dir(dir).map_err(read)?.collect();
    let mut names: Vec<_> = entries.map_err(Error::file("read", dir))?.into_iter().map(|e| e.file_name()).collect();
    names.sort();
    for name in names {
        let path = dir.join(&name);
        let relative = relative.join(&name);
        let meta = std::fs::metadata(&path).map_err(Error::file("read", &path))?;
        if meta.is_dir() {
            let identity = (meta.dev(), meta.ino());
            if above.contains(&identity) {
                return Err(Error::Loop(path));
            }
            above.push(identity);
            walk(&path, &relative, above, found)?;
            above.pop();
        } else if meta.is_file() {
            found.push(File { path, relative, size: meta.len() });
        } else {
            tracing::warn!(path = %path.display(), "not a regular file, skipped");
        }
    }
    Ok(())
}

/// Copies a file; the target appears complete or not at all, and is an ordinary writable file whatever the source's
/// permissions were. The kernel shares blocks where the file system can.
pub(super) async fn copy(from: &Path, to: &Path) -> Result<(), Error> {
    let (from, to) = (from.to_owned(), to.to_owned());
    blocking(move || {
        let part = prepare(&to)?;
        let copied = std::fs::copy(&from, &part)
            .and_then(|_| std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o644)))
            .map_err(|source| Error::File { what: "copy to", path: to.clone(), source });
        finish(copied, &part, &to)
    })
    .await
}

/// Writes a small file atomically.
pub(super) async fn write(to: &Path, bytes: &[u8]) -> Result<(), Error> {
    let (to, bytes) = (to.to_owned(), bytes.to_vec());
    blocking(move || {
        let part = prepare(&to)?;
        let written = std::fs::write(&part, &bytes).map_err(Error::file("write", &to));
        finish(written, &part, &to)
    })
    .await
}

/// Makes the directories of a target and names a temporary file in the last of them.
pub(super) fn prepare(to: &Path) -> Result<PathBuf, Error> {
    let parent = to.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent).map_err(Error::file("create directory", parent))?;
    // Not derived from the target's name, which may already be as long as the file system allows.
    let name: OsString = format!(".part-{}", uuid::Uuid::new_v4().simple()).into();
    Ok(parent.join(name))
}

/// Gives a written temporary file its name, or removes it after a failure.
pub(super) fn finish(written: Result<(), Error>, part: &Path, to: &Path) -> Result<(), Error> {
    let done = written.and_then(|()| std::fs::rename(part, to).map_err(Error::file("write", to)));
    if done.is_err() {
        // Best effort: the failure that is reported is the one that matters.
        let _ = std::fs::remove_file(part);
    }
    done
}

/// Runs file work on the blocking pool.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Store { what: "run", uri: "file work".into(), reason: error.to_string() }),
    }
}
