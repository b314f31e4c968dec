//! The projected token that identifies a program to the API server.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tonic::metadata::{Ascii, MetadataValue};

/// What tells one version of the file from the next: the kubelet replaces the file, others may write into it.
type Version = (u64, u64, i64, i64, u64);

/// The version of the file that was read last, and the token.
type Known = (Option<Version>, Option<MetadataValue<Ascii>>);

/// A token in a file that the kubelet renews. The file is read again whenever it has changed.
#[derive(Clone, Debug)]
pub struct Token {
    path: PathBuf,
    known: Arc<Mutex<Known>>,
}

impl Token {
    /// The token at `path`.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, known: Arc::default() }
    }

    /// The present value for the `authorization` header; `None` while there has never been a file. A file that is gone or
    /// empty for a moment does not take the token away.
    #[must_use]
    pub fn get(&self) -> Option<MetadataValue<Ascii>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let version =
            std::fs::metadata(&self.path).ok().map(|m| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()));
        if version.is_some() && version != known.0 {
            self.read(&mut known);
            known.0 = version;
        }
        known.1.clone()
    }

    /// Reads the file again although it looks unchanged; for a token that was rejected.
    pub fn refresh(&self) {
        self.read(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn read(&self, known: &mut Known) {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) => {
                tracing::warn!(path = %self.path.display(), "cannot read the token: {error}");
                return;
            }
        };
        match format!("Bearer {}", text.trim()).parse() {
            Ok(value) if !text.trim().is_empty() => known.1 = Some(value),
            _ => tracing::warn!(path = %self.path.display(), "the token file holds no token"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_file_is_read_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        let token = Token::new(path.clone());
        assert!(token.get().is_none());
        let get = || token.get().unwrap().to_str().unwrap().to_owned();
        std::fs::write(&path, "one\n").unwrap();
        assert_eq!(get(), "Bearer one");
        // As the kubelet does it: a new file in place of the old one.
        std::fs::write(dir.path().join("next"), "two").unwrap();
        std::fs::rename(dir.path().join("next"), &path).unwrap();
        assert_eq!(get(), "Bearer two");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(get(), "Bearer two", "gone for a moment");
        std::fs::write(&path, "").unwrap();
        assert_eq!(get(), "Bearer two", "half written");
        std::fs::write(&path, "three").unwrap();
        assert_eq!(get(), "Bearer three");
    }
}
