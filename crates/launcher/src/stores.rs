//! Buckets of a task: that of its run, and others that artifacts happen to lie in, opened when first needed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use kfp_core::objects::{Error, Opener, Session, Store, Transfer, Uri};
use tokio::sync::Mutex;

/// Opens buckets and keeps them.
#[derive(Debug)]
pub struct Stores {
    opener: Opener,
    /// Pipeline root of the run, with its options.
    root: String,
    session: Option<Session>,
    open: Mutex<HashMap<String, Arc<Store>>>,
}

impl Stores {
    /// Buckets of a run with this pipeline root. Opens nothing.
    #[must_use]
    pub fn new(opener: Opener, root: &str, session: Option<Session>) -> Self {
        Self { opener, root: root.to_owned(), session, open: Mutex::default() }
    }

    /// The bucket of `uri`. That of the run is reached with the run's session, others with the environment's
    /// credentials.
    async fn of(&self, uri: &str) -> Result<Arc<Store>, Error> {
        let bucket = Uri::parse(uri)?.bucket_url();
        let mut open = self.open.lock().await;
        if let Some(store) = open.get(&bucket) {
            return Ok(store.clone());
        }
        let own = Uri::parse(&self.root).is_ok_and(|root| root.bucket_url() == bucket);
        let store = Arc::new(if own {
            self.opener.open(&self.root, self.session.as_ref()).await?
        } else {
            self.opener.open(uri, None).await?
        });
        open.insert(bucket, store.clone());
        Ok(store)
    }

    /// Forgets all open buckets, so that the next use reads fresh credentials.
    pub async fn reopen(&self) {
        self.open.lock().await.clear();
    }

    /// Fetches what is stored at `uri`.
    ///
    /// # Errors
    /// As [`Store::download`].
    pub async fn download(&self, uri: &str, to: &Path) -> Result<Transfer, Error> {
        self.of(uri).await?.download(uri, to).await
    }

    /// Does what can be done for storing something at `uri` before it exists. Best effort: storing does the rest.
    pub async fn prepare(&self, uri: &str) {
        if self.opener.dir.is_none() {
            return;
        }
        let prepared = async { self.of(uri).await?.prepare(uri).await };
        if let Err(error) = prepared.await {
            tracing::debug!(uri, %error, "not prepared");
        }
    }

    /// Stores a file or directory at `uri`. Tried twice, the second time with fresh credentials.
    ///
    /// # Errors
    /// As [`Store::upload`].
    pub async fn upload(&self, from: &Path, uri: &str) -> Result<Transfer, Error> {
        let first = async { self.of(uri).await?.upload(from, uri).await };
        match first.await {
            // What may pass has been waited for already.
            Err(error @ (Error::Store { transient: false, .. } | Error::Credentials(_))) => {
                tracing::warn!(%uri, %error, "upload failed, trying once more");
                self.reopen().await;
                self.of(uri).await?.upload(from, uri).await
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn several_buckets_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let opener = Opener { dir: Some(dir.path().join("s")), ..Opener::default() };
        let stores = Stores::new(opener, "minio://root/a?region=x", None);
        let file = dir.path().join("f");
        std::fs::write(&file, "x").unwrap();
        for uri in ["minio://root/a/b", "gs://other/k", "minio://root/c"] {
            stores.upload(&file, uri).await.unwrap();
            let back = dir.path().join("back");
            assert_eq!(stores.download(uri, &back).await.unwrap().files, 1, "{uri}");
        }
        assert!(dir.path().join("s/other/k").exists());
        for uri in ["minio://root/deep/er/x", "minio://root/../x", "https://x/y"] {
            stores.prepare(uri).await;
        }
        assert!(dir.path().join("s/root/deep/er").is_dir());
        assert!(matches!(stores.upload(&file, "https://x/y").await, Err(Error::Uri(_))));
    }
}
