//! Symbolic links that many directories have in common.
//!
//! A pod needs a dozen links that look the same in every pod. Made anew each time they cost an inode each, and ext4
//! passes over inodes freed in the last minute one by one when it looks for another: short tasks get slower with every
//! task before them. A hard link to a symbolic link costs none, and nobody can change it for the others.

use std::ffi::OsStr;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// Directory of links by the hash of where they lead to.
#[derive(Debug, Clone)]
pub(crate) struct Links {
    dir: PathBuf,
}

impl Links {
    /// Makes the directory.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn create(dir: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    /// Makes `at` a symbolic link to `target`.
    ///
    /// # Errors
    /// As `symlink`.
    pub(crate) fn make(&self, target: &Path, at: &Path) -> std::io::Result<()> {
        let name: &OsStr = target.as_os_str();
        let kept = self.dir.join(kfp_core::hex::text(&Sha256::digest(name.as_bytes())));
        match std::fs::hard_link(&kept, at) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(e),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                // Another pod may be quicker.
                let _ = symlink(target, &kept);
                if std::fs::hard_link(&kept, at).is_ok() {
                    return Ok(());
                }
            }
            // Another file system, or more links than an inode can have.
            Err(_) => {}
        }
        symlink(target, at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn links_are_shared_and_lead_where_they_should() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links::create(dir.path().join("links")).unwrap();
        let (a, b, c) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
        links.make("x/y".as_ref(), &a).unwrap();
        links.make("x/y".as_ref(), &b).unwrap();
        links.make("z".as_ref(), &c).unwrap();
        let inode = |path: &Path| std::fs::symlink_metadata(path).unwrap().ino();
        assert_eq!(inode(&a), inode(&b));
        assert_eq!([&a, &b, &c].map(|path| std::fs::read_link(path).unwrap()), ["x/y", "x/y", "z"].map(PathBuf::from));
        assert_eq!(links.make("z".as_ref(), &a).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert!(links.make("z".as_ref(), &dir.path().join("none/c")).is_err());
    }
}
