//! An object-store service: small operations, and what transfers have in common.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{Stream, StreamExt, TryStreamExt};
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};

use super::error::Error;
use super::patience::Patience;
use super::store::{Entry, too_large};

/// What a service must be able to do.
pub trait Service: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> Service for T {}

/// A bucket of a service.
#[derive(Clone, Debug)]
pub(super) struct Remote {
    pub service: Arc<dyn Service>,
    /// Scheme and bucket.
    pub bucket: String,
    pub patience: Patience,
}

pub(super) fn key(text: &str) -> Result<Key, Error> {
    // Keys are taken as they are; `Key::from` would escape some characters and miss what other tools have stored.
    Key::parse(text).map_err(|e| {
        let (uri, reason) = (text.to_owned(), e.to_string());
        Error::Store { what: "use", uri, reason, transient: false }
    })
}

impl Remote {
    pub fn uri(&self, name: &str) -> String {
        format!("{}/{name}", self.bucket)
    }

    pub fn failed(&self, what: &'static str, name: &str, error: &object_store::Error) -> Error {
        Error::store(what, &self.uri(name), error)
    }

    /// One operation, repeated as patience allows.
    pub async fn attempt<T, F>(&self, what: &'static str, name: &str, operation: impl Fn() -> F) -> Result<T, Error>
    where
        F: Future<Output = object_store::Result<T>>,
    {
        let run = || async { operation().await.map_err(|error| self.failed(what, name, &error)) };
        self.patience.with(run).await
    }

    pub async fn put(&self, name: &str, bytes: Bytes) -> Result<(), Error> {
        let (key, payload) = (key(name)?, PutPayload::from_bytes(bytes));
        self.attempt("upload to", name, || self.service.put(&key, payload.clone())).await.map(drop)
    }

    /// Objects below `name/`. Zero-byte keys that end in `/` stand for directories; the listing normalises them to the
    /// directory's own name.
    pub fn list_below(&self, name: &str) -> impl Stream<Item = Result<Entry, Error>> + Unpin {
        let prefix = format!("{name}/");
        let listing = match key(name) {
            Ok(location) => {
                let failed = move |e: object_store::Error| self.failed("list", name, &e);
                self.service.list(Some(&location)).map_err(failed).left_stream()
            }
            Err(error) => futures::stream::once(async { Err(error) }).right_stream(),
        };
        let below = listing.try_filter_map(move |meta| {
            let name = meta.location.as_ref().strip_prefix(&prefix).map(str::to_owned);
            let entry = name.map(|name| Entry { name, size: meta.size });
            async move { Ok(entry) }
        });
        Box::pin(below)
    }
}

pub(super) async fn put(remote: &Remote, name: &str, bytes: Bytes) -> Result<(), Error> {
    remote.put(name, bytes).await
}

pub(super) async fn get(remote: &Remote, name: &str, limit: u64) -> Result<Bytes, Error> {
    let failed = |e: object_store::Error| match e {
        object_store::Error::NotFound { .. } => Error::Missing(remote.uri(name)),
        other => remote.failed("read", name, &other),
    };
    let answer = remote.service.get(&key(name)?).await.map_err(failed)?;
    if answer.meta.size > limit {
        return Err(too_large(&remote.uri(name)));
    }
    answer.bytes().await.map_err(failed)
}

pub(super) async fn exists(remote: &Remote, name: &str) -> Result<bool, Error> {
    match remote.service.head(&key(name)?).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => Ok(remote.list_below(name).try_next().await?.is_some()),
        Err(e) => Err(remote.failed("read", name, &e)),
    }
}

pub(super) async fn list(remote: &Remote, name: &str) -> Result<Vec<Entry>, Error> {
    let mut entries: Vec<Entry> = remote.list_below(name).try_collect().await?;
    match remote.service.head(&key(name)?).await {
        Ok(meta) => entries.push(Entry { name: String::new(), size: meta.size }),
        Err(object_store::Error::NotFound { .. }) => {}
        Err(e) => return Err(remote.failed("read", name, &e)),
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}
