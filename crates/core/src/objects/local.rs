//! Objects as files: walks, copies, atomic replacement.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::store::Transfer;

/// A file found by [`walk`].
pub(super) struct File {
    pub path: PathBuf,
    /// Path below the start; empty when the start is the file itself.
    pub relative: PathBuf,
    pub size: u64,
}

/// Calls `each` for the file at `start`, or for every file below it; within a directory in order of their names, if it
/// is small enough to be sorted. Links are followed; sockets, pipes and devices are skipped. Only one directory per
/// level is held in memory, and large ones are not.
///
/// # Errors
/// [`Error::MissingFile`] when there is nothing at `start`, and the first failure of `each`.
pub(super) fn walk(start: &Path, each: &mut dyn FnMut(File) -> Result<(), Error>) -> Result<(), Error> {
    let meta = match std::fs::metadata(start) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound || e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(Error::MissingFile(start.to_owned()));
        }
        other => other.map_err(Error::file("read", start))?,
    };
    if meta.is_file() {
        return each(File { path: start.to_owned(), relative: PathBuf::new(), size: meta.len() });
    }
    below(start, &PathBuf::new(), &mut vec![(meta.dev(), meta.ino())], each)
}

/// Directories with more entries are taken in the file system's order.
const SORTED: usize = 10_000;

/// `above` holds device and inode of the directories on the way down.
fn below(
    dir: &Path,
    relative: &Path,
    above: &mut Vec<(u64, u64)>,
    each: &mut dyn FnMut(File) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut entries = std::fs::read_dir(dir).map_err(Error::file("read", dir))?;
    let mut first = Vec::new();
    for entry in entries.by_ref().take(SORTED) {
        first.push(entry.map_err(Error::file("read", dir))?.file_name());
    }
    if first.len() < SORTED {
        first.sort_unstable();
    }
    for name in first {
        visit(dir.join(&name), relative.join(&name), above, each)?;
    }
    for entry in entries {
        let name = entry.map_err(Error::file("read", dir))?.file_name();
        visit(dir.join(&name), relative.join(&name), above, each)?;
    }
    Ok(())
}

fn visit(
    path: PathBuf,
    relative: PathBuf,
    above: &mut Vec<(u64, u64)>,
    each: &mut dyn FnMut(File) -> Result<(), Error>,
) -> Result<(), Error> {
    let meta = std::fs::metadata(&path).map_err(Error::file("read", &path))?;
    if meta.is_file() {
        return each(File { path, relative, size: meta.len() });
    }
    if !meta.is_dir() {
        tracing::warn!(path = %path.display(), "not a regular file, skipped");
        return Ok(());
    }
    let identity = (meta.dev(), meta.ino());
    if above.contains(&identity) {
        return Err(Error::Loop(path));
    }
    above.push(identity);
    below(&path, &relative, above, each)?;
    above.pop();
    Ok(())
}

/// Copies the file at `from`, or every file below it, to `to` and below. Each target appears complete or not at all,
/// and is an ordinary writable file whatever the source's permissions were. The kernel copies, and shares blocks where
/// the file system can; no hard links are made, because a task may change its inputs, and what it has stored.
///
/// # Errors
/// As [`walk`]; and what reading or writing failed with.
pub(super) async fn copy_tree(from: &Path, to: &Path) -> Result<Transfer, Error> {
    let (from, to) = (from.to_owned(), to.to_owned());
    blocking(move || {
        let mut done = Transfer::default();
        walk(&from, &mut |file| {
            // Joining nothing would add a slash, and a file is no directory.
            let target = if file.relative.as_os_str().is_empty() { to.clone() } else { to.join(&file.relative) };
            done += Transfer { files: 1, bytes: copy(&file.path, &target)? };
            Ok(())
        })?;
        Ok(done)
    })
    .await
}

fn copy(from: &Path, to: &Path) -> Result<u64, Error> {
    let mut source = std::fs::File::open(from).map_err(Error::file("read", from))?;
    let (part, mut target) = create(to)?;
    // Advice: it does not matter if it is not taken. The kernel then reads further ahead.
    let _ = rustix::fs::fadvise(&source, 0, None, rustix::fs::Advice::Sequential);
    let copied = std::io::copy(&mut source, &mut target)
        .and_then(|bytes| target.set_permissions(std::fs::Permissions::from_mode(0o644)).map(|()| bytes))
        .map_err(|source| Error::File { what: "copy to", path: to.to_owned(), source });
    finish(copied, &part, to)
}

/// Writes a small file atomically.
pub(super) async fn write(to: &Path, bytes: &[u8]) -> Result<(), Error> {
    let (to, bytes) = (to.to_owned(), bytes.to_vec());
    blocking(move || {
        let (part, mut file) = create(&to)?;
        finish(file.write_all(&bytes).map_err(Error::file("write", &to)), &part, &to)
    })
    .await
}

/// Makes a temporary file beside a target, and the directories above it.
pub(super) fn create(to: &Path) -> Result<(PathBuf, std::fs::File), Error> {
    let parent = to.parent().unwrap_or(Path::new("/"));
    // Not derived from the target's name, which may already be as long as the file system allows.
    let part = parent.join(format!(".part-{}", uuid::Uuid::new_v4().simple()));
    // The directory is there most of the time: files of one directory come one after the other.
    let file = match std::fs::File::create_new(&part) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(parent).map_err(Error::file("create directory", parent))?;
            std::fs::File::create_new(&part)
        }
        other => other,
    };
    file.map(|file| (part, file)).map_err(Error::file("write", to))
}

/// Gives a written temporary file its name, or removes it after a failure.
pub(super) fn finish<T>(written: Result<T, Error>, part: &Path, to: &Path) -> Result<T, Error> {
    let done = written.and_then(|value| std::fs::rename(part, to).map(|()| value).map_err(Error::file("write", to)));
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
        Err(error) => {
            let (uri, reason) = ("file work".into(), error.to_string());
            Err(Error::Store { what: "run", uri, reason, transient: false })
        }
    }
}
