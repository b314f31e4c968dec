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
        /// Whether the same may succeed a little later (no connection, a timeout, an overloaded server).
        transient: bool,
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

    /// Whether the same may succeed a little later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Store { transient: true, .. })
    }

    pub(super) fn store(what: &'static str, uri: &str, source: &object_store::Error) -> Error {
        use object_store::Error as Cause;
        let text = crate::https::chain(source).replace(['\n', '\r'], " ");
        let passing = matches!(source, Cause::Generic { .. }) && (no_answer(source) || overloaded(&text));
        let reason = match (source, answer(&text)) {
            (Cause::NotFound { .. }, Some(said)) if said.starts_with("NoSuchBucket") => {
                format!("the bucket does not exist ({said})")
            }
            (Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. }, Some(said)) => {
                format!("the store refuses the credentials ({said})")
            }
            (Cause::PermissionDenied { .. } | Cause::Unauthenticated { .. }, None) => {
                format!("the store refuses the credentials: {}", shortened(&text))
            }
            (_, Some(said)) => said,
            (_, None) => shortened(&text),
        };
        Error::Store { what, uri: uri.to_owned(), reason, transient: passing }
    }
}

/// No connection, or it broke.
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
fn no_answer(error: &(dyn std::error::Error + 'static)) -> bool {
    use object_store::client::HttpErrorKind as Kind;
    std::iter::successors(Some(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<object_store::client::HttpError>())
        .any(|error| matches!(error.kind(), Kind::Connect | Kind::Timeout | Kind::Interrupted | Kind::Request))
}

/// Without a client for services there is no connection that could break.
#[cfg(not(any(feature = "s3", feature = "gcs", feature = "azure")))]
fn no_answer(_: &(dyn std::error::Error + 'static)) -> bool {
    false
}

/// A status that means "later". object_store keeps its error type, which knows the status, to itself.
fn overloaded(text: &str) -> bool {
    let status = text.split_once("non-2xx status code: ").and_then(|(_, rest)| rest.get(..3));
    matches!(status, Some("408" | "429" | "500" | "502" | "503" | "504"))
}

/// What the server itself said, if it answered in the XML of S3, GCS and Azure: `AccessDenied: Access Denied`.
fn answer(text: &str) -> Option<String> {
    let tag = |name: &str| {
        let (_, rest) = text.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(value, _)| value.trim())
    };
    let code = tag("Code")?;
    Some(shortened(&match tag("Message") {
        Some(message) if !message.is_empty() => format!("{code}: {message}"),
        _ => code.to_owned(),
    }))
}

/// object_store prints pages of debug text for some errors.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(600) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
