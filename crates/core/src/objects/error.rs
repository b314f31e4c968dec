//! Why an object store did not do what it was asked.

use std::path::PathBuf;

use super::uri::UriError;

/// Failure of an object-store operation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URI is not one of an object store.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The URI lies in another bucket than the one that was opened.
    #[error("URI {uri:?} does not have expected bucket prefix {bucket:?}")]
    OtherBucket {
        /// The URI asked for.
        uri: String,
        /// Scheme and bucket of the open store.
        bucket: String,
    },
    /// The URI names a bucket only, but an object is needed.
    #[error("URI {0:?} has empty key")]
    EmptyKey(String),
    /// A key contains `..` and would be written outside its directory.
    #[error("path traversal detected: key {0:?}")]
    Traversal(String),
    /// Nothing is stored there.
    #[error("nothing is stored at {0}")]
    Missing(String),
    /// The file or directory to upload does not exist.
    #[error("{0} does not exist")]
    MissingFile(PathBuf),
    /// A local file could not be read or written.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// Verb.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause (for example, no space left on device).
        source: std::io::Error,
    },
    /// Symbolic links form a loop.
    #[error("directory {0} contains itself through a symbolic link")]
    Loop(PathBuf),
    /// The store refused or could not be reached.
    #[error("cannot {what} {uri}: {reason}")]
    Store {
        /// Verb.
        what: &'static str,
        /// What it was about.
        uri: String,
        /// The cause in one line.
        reason: String,
    },
    /// Access keys are missing or unreadable.
    #[error("object store credentials: {0}")]
    Credentials(String),
    /// The store's settings are unusable.
    #[error("object store settings for {bucket}: {reason}")]
    Settings {
        /// Scheme and bucket.
        bucket: String,
        /// What is wrong.
        reason: String,
    },
    /// The program was built without this kind of store.
    #[error("this program was built without support for {0:?} object stores")]
    NotBuilt(String),
}

impl Error {
    /// Nothing is stored at the URI asked for.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Error::Missing(_))
    }

    pub(super) fn file(what: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { what, path, source }
    }

    pub(super) fn store(what: &'static str, uri: &str, source: &object_store::Error) -> Error {
        Error::Store { what, uri: uri.to_owned(), reason: chain(source) }
    }
}

/// The error's text with its causes. object_store prints pages of debug text for some, so the length is limited.
fn chain(error: &object_store::Error) -> String {
    let text = crate::https::chain(error).replace(['\n', '\r'], " ");
    if text.len() <= 600 { text } else { text.chars().take(600).chain("…".chars()).collect() }
}
