//! One process per data directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::Error;

/// Name of the lock file inside the data directory.
const FILE: &str = "kubernetes.lock";

/// An advisory lock on the directory, released when dropped (or when the process dies).
#[derive(Debug)]
pub(crate) struct DirLock {
    _file: File,
}

impl DirLock {
    /// Takes the lock and writes this process's id into the file.
    pub(crate) fn acquire(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE);
        let io = |source| Error::Io { path: path.clone(), source };
        std::fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.to_path_buf(), source })?;
        let mut file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // The holder's id is only there to help; an unreadable file must not hide the real message.
                let pid = match file.read_to_string(&mut pid) {
                    Ok(_) if !pid.trim().is_empty() => pid.trim().to_string(),
                    _ => "?".into(),
                };
                return Err(Error::Locked { dir: dir.to_path_buf(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(io(source)),
        }
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { _file: file })
    }
}
