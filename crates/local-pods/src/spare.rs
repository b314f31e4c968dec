//! Directories of pods that are used again.
//!
//! The root of a pod has a place for each of the host's top-level directories, which is most of what a short pod makes
//! and removes on the disk; and ext4 makes a new directory slowly where many have just been removed. So the places of
//! ended pods are kept for pods to come. Nothing else is: what a container could leave there goes with its pod.

use std::fs::{DirEntry, Metadata};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::recovery;

/// Most directories kept.
const MOST: usize = 32;
/// Mode of a directory that nobody has changed, under the usual masks.
const USUAL: [u32; 2] = [0o755, 0o775];

/// Emptied directories of pods.
#[derive(Debug)]
pub(crate) struct Spares {
    dir: PathBuf,
    kept: Mutex<Vec<PathBuf>>,
}

impl Spares {
    /// Keeps them in `dir`, which is made, and emptied of what an earlier life of the server left.
    ///
    /// # Errors
    /// When it cannot be made.
    pub(crate) fn create(dir: PathBuf) -> std::io::Result<Self> {
        recovery::remove(&dir);
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir, kept: Mutex::default() })
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts one at `to`, if there is one and nothing is there.
    pub(crate) fn take(&self, to: &Path) {
        let spare = self.kept().pop();
        if let Some(spare) = spare
            && std::fs::rename(&spare, to).is_err()
        {
            recovery::remove(&spare);
        }
    }

    /// Takes the directory of a pod that has ended: it is gone afterwards, with everything the pod left.
    pub(crate) fn give(&self, pod: &Path) {
        let place = pod.file_name().map(|name| self.dir.join(name));
        match place.filter(|_| self.kept().len() < MOST) {
            Some(place) if empty(pod, Path::new("/")).and_then(|()| std::fs::rename(pod, &place)).is_ok() => {
                self.kept().push(place);
            }
            _ => recovery::remove(pod),
        }
    }
}

/// Removes everything from a pod's directory except the places for what the host has.
fn empty(pod: &Path, host: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(pod)? {
        let entry = entry?;
        if entry.file_name() != "root" {
            remove(&entry)?;
            continue;
        }
        let same = entry.file_type()?.is_dir() && as_made(&entry.metadata()?);
        if !same {
            return Err(ErrorKind::InvalidInput.into());
        }
        for entry in std::fs::read_dir(entry.path())? {
            let entry = entry?;
            if !is_place(&entry, host).unwrap_or(false) {
                remove(&entry)?;
            }
        }
    }
    Ok(())
}

fn remove(entry: &DirEntry) -> std::io::Result<()> {
    if entry.file_type()?.is_dir() {
        recovery::remove(&entry.path());
        return Ok(());
    }
    std::fs::remove_file(entry.path())
}

/// Whether this is an empty directory, or a link, as the host has one of that name.
fn is_place(entry: &DirEntry, host: &Path) -> std::io::Result<bool> {
    let (kind, original) = (entry.file_type()?, host.join(entry.file_name()));
    let original_kind = std::fs::symlink_metadata(&original)?.file_type();
    if kind.is_symlink() {
        return Ok(original_kind.is_symlink() && std::fs::read_link(entry.path())? == std::fs::read_link(original)?);
    }
    let place = kind.is_dir() && original_kind.is_dir() && as_made(&entry.metadata()?);
    Ok(place && std::fs::read_dir(entry.path())?.next().is_none())
}

/// Whether a directory belongs to this process and has the mode that it was made with.
fn as_made(found: &Metadata) -> bool {
    found.uid() == nix::unistd::geteuid().as_raw() && USUAL.contains(&(found.mode() & 0o7777))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn list(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn only_untouched_places_of_the_host_stay() {
        let dir = tempfile::tempdir().unwrap();
        let (host, pod) = (dir.path().join("host"), dir.path().join("pod"));
        for name in ["usr", "etc", "opt", "srv", "mnt"] {
            std::fs::create_dir_all(host.join(name)).unwrap();
        }
        for name in ["root/usr", "root/etc/left", "root/own", "root/opt", "artifacts/a"] {
            std::fs::create_dir_all(pod.join(name)).unwrap();
        }
        for (name, to) in [("bin", "usr/bin"), ("lib", "usr/lib")] {
            symlink(to, host.join(name)).unwrap();
        }
        symlink("usr/bin", pod.join("root/bin")).unwrap();
        symlink("elsewhere", pod.join("root/lib")).unwrap();
        symlink("usr", pod.join("root/mnt")).unwrap();
        std::fs::write(pod.join("root/srv"), "a file").unwrap();
        std::fs::write(pod.join("hosts"), "x").unwrap();
        std::fs::set_permissions(pod.join("root/opt"), std::fs::Permissions::from_mode(0o777)).unwrap();
        empty(&pod, &host).unwrap();
        assert_eq!(list(&pod), ["root"]);
        assert_eq!(list(&pod.join("root")), ["bin", "usr"]);
        std::fs::set_permissions(pod.join("root"), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(empty(&pod, &host).is_err(), "a root that was opened to others");
    }

    #[test]
    fn a_directory_is_used_again_and_nothing_stays_where_the_pod_was() {
        let dir = tempfile::tempdir().unwrap();
        let spares = Spares::create(dir.path().join("spare")).unwrap();
        let (a, b, c) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
        std::fs::create_dir_all(a.join("root/tmp/left")).unwrap();
        spares.give(&a);
        assert!(!a.exists());
        std::fs::create_dir_all(c.join("root")).unwrap();
        spares.take(&c);
        assert_eq!(list(dir.path()), ["c", "spare"], "a place that is taken is left alone");
        spares.give(&c);
        spares.take(&b);
        assert!(b.join("root").is_dir() && list(&b.join("root")).is_empty());
        spares.take(&a);
        assert!(!a.exists(), "there was one only");
        spares.give(&dir.path().join("never made"));
        assert!(list(&dir.path().join("spare")).is_empty());
        std::fs::create_dir_all(a.join("root")).unwrap();
        spares.give(&a);
        assert_eq!(list(&dir.path().join("spare")), ["a"]);
        Spares::create(dir.path().join("spare")).unwrap();
        assert!(list(&dir.path().join("spare")).is_empty(), "nothing outlives the server");
    }
}
