//! The file of a log.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::spread::spread;

/// Name of the Workflow the logs of a pod go with.
pub(crate) const OWNER: &str = ".workflow";

/// A file that exists once it is opened: most drivers say nothing, and their files would be most of what they cost.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    owner: Option<String>,
    file: Option<File>,
}

impl LogFile {
    /// A file at `<namespace>/<pod>/<container>.log`, of a Workflow if its pod has one. What an earlier pod of the same
    /// name left there is removed.
    pub(crate) fn new(path: PathBuf, owner: Option<&str>) -> std::io::Result<Self> {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(Self { path, owner: owner.map(str::to_owned), file: None }),
        }
    }

    /// The file, made with its directories when this is the first time.
    pub(crate) fn open(&mut self) -> std::io::Result<&mut File> {
        let file = match self.file.take() {
            Some(file) => file,
            None => self.make()?,
        };
        Ok(self.file.insert(file))
    }

    fn make(&self) -> std::io::Result<File> {
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        let all = dir.parent().unwrap_or(Path::new("/"));
        if !all.exists() {
            std::fs::create_dir_all(all)?;
            spread(all);
        }
        std::fs::create_dir_all(dir)?;
        if let Some(workflow) = &self.owner {
            let owner = dir.join(OWNER);
            if !owner.exists() {
                std::fs::write(owner, workflow)?;
            }
        }
        OpenOptions::new().create(true).append(true).open(&self.path)
    }

    /// A file that is open already.
    #[cfg(test)]
    pub(crate) fn of(file: File) -> Self {
        Self { path: PathBuf::new(), owner: None, file: Some(file) }
    }
}
