//! Directories whose children go to different places of the disk.

use std::path::Path;

use rustix::fs::{IFlags, Mode, OFlags, ioctl_getflags, ioctl_setflags, open};

/// Tells ext4 that the directories in `dir` have nothing to do with each other, so that each gets a block group of its
/// own. Otherwise all pods share one, and there every new file is looked for behind all those that were removed within
/// the last minute: ten times the cost and more when many short tasks run. Other file systems have no such flag and no
/// such trouble, so nothing is said when it cannot be set.
pub(crate) fn spread(dir: &Path) {
    let set = || {
        let dir = open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let flags = ioctl_getflags(&dir)?;
        ioctl_setflags(&dir, flags | IFlags::TOPDIR)
    };
    if let Err(error) = set() {
        tracing::debug!(%error, dir = %dir.display(), "directories are not spread over the disk");
    }
}
