//! From an address and a session to an open bucket.

use std::path::{Path, PathBuf};

use super::error::Error;
use super::patience::Patience;
use super::session::Session;
use super::store::Store;
use super::uri::Uri;

/// How this process reaches object stores.
#[derive(Clone, Debug, Default)]
pub struct Opener {
    /// Keep buckets as directories `<dir>/<bucket>`, whatever their scheme, unless the session or the address itself
    /// names a store.
    pub dir: Option<PathBuf>,
    /// Certificate authorities in PEM that are trusted besides the system's.
    pub authorities: Vec<u8>,
    /// How long to wait for a store that is away.
    pub patience: Patience,
}

impl Opener {
    /// Opens the bucket of `uri` (an artifact or a pipeline root, with or without options after `?`).
    ///
    /// # Errors
    /// [`Error::Uri`], [`Error::Credentials`], [`Error::Settings`] or [`Error::NotBuilt`].
    pub async fn open(&self, uri: &str, session: Option<&Session>) -> Result<Store, Error> {
        let uri = Uri::parse(uri)?;
        let bucket = uri.bucket_url();
        if uri.scheme == "file" {
            return Ok(Store::directory(&bucket, PathBuf::from("/")));
        }
        let named = session.is_some_and(Session::names_a_store) || uri.options().any(|(name, _)| name == "endpoint");
        if let Some(dir) = self.dir.as_ref().filter(|_| !named) {
            // A bucket called ".." would be its parent's sibling.
            super::store::safe(&uri.bucket)?;
            return Ok(Store::directory(&bucket, dir.join(&uri.bucket)));
        }
        match uri.scheme.as_str() {
            #[cfg(feature = "s3")]
            "s3" | "minio" => Ok(super::s3::open(&uri, session, &self.authorities).await?.with_patience(self.patience)),
            #[cfg(feature = "gcs")]
            "gs" => Ok(super::gcs::open(&uri, session, &self.authorities).await?.with_patience(self.patience)),
            #[cfg(feature = "azure")]
            "azblob" => Ok(super::azure::open(&uri, session, &self.authorities).await?.with_patience(self.patience)),
            other => {
                let _ = session;
                Err(Error::NotBuilt(other.to_owned()))
            }
        }
    }

    /// Reads a PEM file of further authorities; an empty path adds nothing.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn with_authorities(mut self, path: &Path) -> Result<Self, Error> {
        if !path.as_os_str().is_empty() {
            self.authorities = std::fs::read(path).map_err(Error::file("read", path))?;
        }
        Ok(self)
    }
}
