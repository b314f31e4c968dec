//! Transfers to and from an object-store service with bounded memory.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload, WriteMultipart};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::error::Error;
use super::local::{self, File};
use super::store::{Entry, Transfer, safe, too_large};

type Service = Arc<dyn ObjectStore>;

/// Files up to this size are sent in one request, larger ones in parts of it.
const PART: usize = 8 << 20;
/// Parts of one file on their way at the same time.
const PARTS_IN_FLIGHT: usize = 3;
/// Stores accept at most 10 000 parts, so very large files get larger ones.
const MAX_PARTS: u64 = 9_000;
/// Small files of a directory on their way at the same time.
const FILES_IN_FLIGHT: usize = 4;
/// Tries in all for a download whose stream broke half way (requests themselves are retried below this layer).
const TRIES: u32 = 4;

fn key(text: &str) -> Result<Key, Error> {
    // Keys are taken as they are; `Key::from` would escape some characters and miss what other tools have stored.
    Key::parse(text).map_err(|e| Error::Store { what: "use", uri: text.to_owned(), reason: e.to_string() })
}

/// Sends files below `prefix`: large ones after each other in parallel parts, small ones side by side.
pub(super) async fn upload(service: &Service, bucket: &str, prefix: &str, files: Vec<File>) -> Result<Transfer, Error> {
    let mut done = Transfer { files: files.len() as u64, bytes: 0 };
    let mut work = Vec::with_capacity(files.len());
    for file in files {
        let relative = file.relative.to_str().ok_or_else(|| Error::Store {
            what: "upload",
            uri: file.path.display().to_string(),
            reason: "the file's name is not UTF-8, which object stores require".into(),
        })?;
        let name = if relative.is_empty() { prefix.to_owned() } else { format!("{prefix}/{relative}") };
        done.bytes += file.size;
        work.push((file, name));
    }
    let (small, large): (Vec<_>, Vec<_>) = work.into_iter().partition(|(file, _)| file.size <= PART as u64);
    stream::iter(small)
        .map(|(file, name)| async move { upload_small(service, bucket, &file, &name).await })
        .buffer_unordered(FILES_IN_FLIGHT)
        .try_collect::<Vec<()>>()
        .await?;
    for (file, name) in large {
        upload_large(service, bucket, &file, &name).await?;
    }
    Ok(done)
}

async fn upload_small(service: &Service, bucket: &str, file: &File, name: &str) -> Result<(), Error> {
    let bytes = tokio::fs::read(&file.path).await.map_err(Error::file("read", &file.path))?;
    put(service, bucket, name, bytes.into()).await
}

async fn upload_large(service: &Service, bucket: &str, file: &File, name: &str) -> Result<(), Error> {
    let uri = format!("{bucket}/{name}");
    let failed = |e: object_store::Error| Error::store("upload to", &uri, &e);
    let part = PART.max(usize::try_from(file.size / MAX_PARTS + 1).unwrap_or(PART));
    let mut input = tokio::fs::File::open(&file.path).await.map_err(Error::file("read", &file.path))?;
    let upload = service.put_multipart(&key(name)?).await.map_err(failed)?;
    let mut output = WriteMultipart::new_with_chunk_size(upload, part);
    let sent: Result<(), Error> = async {
        loop {
            output.wait_for_capacity(PARTS_IN_FLIGHT).await.map_err(failed)?;
            let mut buffer = BytesMut::with_capacity(part);
            while buffer.len() < part {
                if input.read_buf(&mut buffer).await.map_err(Error::file("read", &file.path))? == 0 {
                    break;
                }
            }
            if buffer.is_empty() {
                return Ok(());
            }
            output.put(buffer.freeze());
        }
    }
    .await;
    match sent {
        Ok(()) => output.finish().await.map(drop).map_err(failed),
        Err(error) => {
            // Parts of an abandoned upload are kept, and billed, until it is aborted.
            if let Err(second) = output.abort().await {
                tracing::warn!(%uri, error = %second, "cannot abort the upload");
            }
            Err(error)
        }
    }
}

pub(super) async fn put(service: &Service, bucket: &str, name: &str, bytes: Bytes) -> Result<(), Error> {
    let failed = |e| Error::store("upload to", &format!("{bucket}/{name}"), &e);
    service.put(&key(name)?, PutPayload::from_bytes(bytes)).await.map(drop).map_err(failed)
}

/// Fetches the object at `name`, or the objects below it.
pub(super) async fn download(service: &Service, bucket: &str, name: &str, to: &Path) -> Result<Transfer, Error> {
    // One request is enough for the usual case, a single object. An empty one may be a directory's marker.
    let single = fetch(service, bucket, name, to).await?;
    if let Some(bytes) = single.filter(|bytes| *bytes > 0) {
        return Ok(Transfer { files: 1, bytes });
    }
    let below = list_below(service, bucket, name).await?;
    if below.is_empty() {
        return Ok(single.map_or_else(Transfer::default, |bytes| Transfer { files: 1, bytes }));
    }
    if single.is_some() {
        tokio::fs::remove_file(to).await.map_err(Error::file("remove", to))?;
    }
    let targets: Result<Vec<(String, PathBuf)>, Error> = below
        .into_iter()
        .filter(|entry| !entry.name.is_empty())
        .map(|entry| safe(&entry.name).map(|()| (format!("{name}/{}", entry.name), to.join(&entry.name))))
        .collect();
    let mut done = Transfer::default();
    let mut running = stream::iter(targets?)
        .map(|(name, target)| async move { fetch(service, bucket, &name, &target).await })
        .buffer_unordered(FILES_IN_FLIGHT);
    while let Some(bytes) = running.try_next().await? {
        done += bytes.map_or_else(Transfer::default, |bytes| Transfer { files: 1, bytes });
    }
    Ok(done)
}

/// Streams one object into a file; `None` when there is none. Starts again when the stream breaks.
async fn fetch(service: &Service, bucket: &str, name: &str, to: &Path) -> Result<Option<u64>, Error> {
    let uri = format!("{bucket}/{name}");
    let location = key(name)?;
    let mut tries = 1;
    loop {
        let answer = match service.get(&location).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            other => other.map_err(|e| Error::store("download", &uri, &e))?,
        };
        let size = answer.meta.size;
        let target = to.to_owned();
        let part = local::blocking(move || local::prepare(&target)).await?;
        let written = save(answer.into_stream(), &part, size, &uri).await;
        let broken = matches!(written, Err(Error::Store { .. }));
        let (target, temporary) = (to.to_owned(), part);
        match local::blocking(move || local::finish(written, &temporary, &target)).await {
            Err(error) if broken && tries < TRIES => {
                tracing::warn!(%uri, %error, "download broke, starting again");
                tokio::time::sleep(Duration::from_millis(500) * 2_u32.pow(tries - 1)).await;
                tries += 1;
            }
            result => return result.map(|()| Some(size)),
        }
    }
}

async fn save(
    mut input: stream::BoxStream<'static, object_store::Result<Bytes>>,
    part: &Path,
    size: u64,
    uri: &str,
) -> Result<(), Error> {
    let write = |e| Error::file("write", part)(e);
    let mut output = tokio::fs::File::create(part).await.map_err(write)?;
    let mut received = 0;
    while let Some(chunk) = input.try_next().await.map_err(|e| Error::store("download", uri, &e))? {
        received += chunk.len() as u64;
        output.write_all(&chunk).await.map_err(Error::file("write", part))?;
    }
    output.flush().await.map_err(Error::file("write", part))?;
    if received == size {
        Ok(())
    } else {
        let reason = format!("received {received} of {size} bytes");
        Err(Error::Store { what: "download", uri: uri.to_owned(), reason })
    }
}

pub(super) async fn get(service: &Service, bucket: &str, name: &str, limit: u64) -> Result<Bytes, Error> {
    let uri = format!("{bucket}/{name}");
    let failed = |e: object_store::Error| match e {
        object_store::Error::NotFound { .. } => Error::Missing(uri.clone()),
        other => Error::store("read", &uri, &other),
    };
    let answer = service.get(&key(name)?).await.map_err(failed)?;
    if answer.meta.size > limit {
        return Err(too_large(&uri));
    }
    answer.bytes().await.map_err(failed)
}

pub(super) async fn exists(service: &Service, bucket: &str, name: &str) -> Result<bool, Error> {
    let location = key(name)?;
    match service.head(&location).await {
        Ok(_) => Ok(true),
        Err(object_store::Error::NotFound { .. }) => {
            let mut below = service.list(Some(&location));
            let first = below.try_next().await;
            Ok(first.map_err(|e| Error::store("list", &format!("{bucket}/{name}"), &e))?.is_some())
        }
        Err(e) => Err(Error::store("read", &format!("{bucket}/{name}"), &e)),
    }
}

pub(super) async fn list(service: &Service, bucket: &str, name: &str) -> Result<Vec<Entry>, Error> {
    let mut entries = list_below(service, bucket, name).await?;
    match service.head(&key(name)?).await {
        Ok(meta) => entries.push(Entry { name: String::new(), size: meta.size }),
        Err(object_store::Error::NotFound { .. }) => {}
        Err(e) => return Err(Error::store("read", &format!("{bucket}/{name}"), &e)),
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// Objects below `name/`. Zero-byte keys that end in `/` stand for directories; the listing normalises them to the
/// directory's own name.
async fn list_below(service: &Service, bucket: &str, name: &str) -> Result<Vec<Entry>, Error> {
    let location = key(name)?;
    let prefix = format!("{name}/");
    let mut entries = Vec::new();
    let mut listing = service.list(Some(&location));
    while let Some(meta) =
        listing.try_next().await.map_err(|e| Error::store("list", &format!("{bucket}/{name}"), &e))?
    {
        if let Some(below) = meta.location.as_ref().strip_prefix(&prefix) {
            entries.push(Entry { name: below.to_owned(), size: meta.size });
        }
    }
    Ok(entries)
}
