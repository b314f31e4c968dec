//! Fetching from a service into files: several at a time, large objects in parallel ranges, within a bound of memory.

use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::{GetOptions, GetRange, ObjectStore};

use super::error::Error;
use super::local;
use super::remote::{Remote, key};
use super::store::{Entry, Transfer, safe};
use super::upload::{Held, memory};

/// Objects above twice this size are fetched in ranges of it.
const RANGE: u64 = 16 << 20;
/// Ranges of one object on their way at the same time.
const RANGES_IN_FLIGHT: usize = 4;
/// Objects of a directory on their way at the same time.
const FILES_IN_FLIGHT: usize = 8;
/// What is gathered before it is written.
const PIECE: usize = 256 << 10;
/// What one answer holds in memory: the piece, and the connection's own buffers.
const STREAM_MEMORY: u64 = 1 << 20;

/// Fetches the object at `name`, or the objects below it.
pub(super) async fn download(remote: &Remote, name: &str, to: &Path) -> Result<Transfer, Error> {
    // One request is enough for the usual case, a single object. An empty one may be a directory's marker.
    let single = object(remote, name, to).await?;
    if let Some(bytes) = single.filter(|bytes| *bytes > 0) {
        return Ok(Transfer { files: 1, bytes });
    }
    let mut below = remote.list_below(name).fuse();
    let mut running = stream::FuturesUnordered::new();
    let mut done = Transfer::default();
    let mut marker = single.is_some();
    loop {
        while running.len() < FILES_IN_FLIGHT
            && let Some(entry) = below.try_next().await?
        {
            let Some((name, target)) = target(name, to, &entry)? else { continue };
            if std::mem::take(&mut marker) {
                tokio::fs::remove_file(to).await.map_err(Error::file("remove", to))?;
            }
            running.push(async move { object(remote, &name, &target).await });
        }
        match running.try_next().await? {
            Some(bytes) => done += bytes.map_or_else(Transfer::default, |bytes| Transfer { files: 1, bytes }),
            None if marker => return Ok(Transfer { files: 1, bytes: 0 }),
            None => return Ok(done),
        }
    }
}

/// Where an object below `name` goes. The marker of the directory itself goes nowhere.
fn target(name: &str, to: &Path, entry: &Entry) -> Result<Option<(String, PathBuf)>, Error> {
    if entry.name.is_empty() {
        return Ok(None);
    }
    safe(&entry.name)?;
    Ok(Some((format!("{name}/{}", entry.name), to.join(&entry.name))))
}

/// Fetches one object; `None` when there is none.
async fn object(remote: &Remote, name: &str, to: &Path) -> Result<Option<u64>, Error> {
    let key = key(name)?;
    let begin = || async {
        let held = memory(STREAM_MEMORY).await;
        match remote.service.get_opts(&key, GetOptions::default()).await {
            Err(object_store::Error::NotFound { source, .. }) if !no_bucket(source.as_ref()) => Ok(None),
            Err(error) => Err(remote.failed("download", name, &error)),
            Ok(answer) => Ok(Some((answer, held))),
        }
    };
    let Some((answer, held)) = remote.patience.with(begin).await? else { return Ok(None) };
    let (meta, target) = (answer.meta.clone(), to.to_owned());
    let (path, file) = local::blocking(move || local::create(&target)).await?;
    let part = Part { remote, key: &key, name, path: &path, file: Arc::new(file), version: meta.e_tag };
    // The answer at hand serves as the first range; its connection is given up at that range's end.
    let mut first = Some((answer.into_stream(), held));
    let step = if meta.size > 2 * RANGE { RANGE } else { meta.size.max(1) };
    let ranges = stream::iter((0..meta.size.div_ceil(step)).map(|index| {
        let range = index * step..meta.size.min((index + 1) * step);
        part.fetch(range, first.take())
    }));
    let written: Result<(), Error> = ranges.buffer_unordered(RANGES_IN_FLIGHT).try_collect().await;
    let (path, target) = (path.clone(), to.to_owned());
    local::blocking(move || local::finish(written, &path, &target)).await.map(|()| Some(meta.size))
}

/// Nothing is stored in a bucket that does not exist, but that is hardly what was meant.
fn no_bucket(error: &(dyn std::error::Error + 'static)) -> bool {
    crate::https::chain(error).contains("NoSuchBucket")
}

type Content = BoxStream<'static, object_store::Result<Bytes>>;

/// An object on its way to a temporary file.
struct Part<'a> {
    remote: &'a Remote,
    key: &'a object_store::path::Path,
    name: &'a str,
    path: &'a Path,
    file: Arc<std::fs::File>,
    /// ETag, so that ranges of two versions of the object are not mixed.
    version: Option<String>,
}

impl Part<'_> {
    /// Fetches and writes one range. `begun` is an answer that begins with it; without one, or when that one breaks, the
    /// range is asked for.
    async fn fetch(&self, range: Range<u64>, begun: Option<(Content, Option<Held>)>) -> Result<(), Error> {
        let mut begun = begun;
        let fetch = || {
            let begun = begun.take();
            async {
                let (input, _held) = match begun {
                    Some(begun) => begun,
                    None => {
                        let held = memory(STREAM_MEMORY).await;
                        let wanted = Some(GetRange::Bounded(range.clone()));
                        let options =
                            GetOptions { range: wanted, if_match: self.version.clone(), ..GetOptions::default() };
                        let answer = self.remote.service.get_opts(self.key, options).await;
                        (answer.map_err(|error| self.failed(&error))?.into_stream(), held)
                    }
                };
                self.save(input, &range).await
            }
        };
        self.remote.patience.with(fetch).await
    }

    fn failed(&self, error: &object_store::Error) -> Error {
        self.remote.failed("download", self.name, error)
    }

    /// Writes a range from a stream that begins there and may go on beyond.
    async fn save(&self, mut input: Content, range: &Range<u64>) -> Result<(), Error> {
        let mut at = range.start;
        let mut gathered = BytesMut::with_capacity(PIECE);
        while at + (gathered.len() as u64) < range.end {
            let Some(mut bytes) = input.try_next().await.map_err(|error| self.failed(&error))? else {
                let reason = format!("the answer ended after {} of {} bytes", at + gathered.len() as u64, range.end);
                let uri = self.remote.uri(self.name);
                return Err(Error::Store { what: "download", uri, reason, transient: true });
            };
            bytes.truncate(usize::try_from(range.end - at).unwrap_or(usize::MAX) - gathered.len());
            gathered.extend_from_slice(&bytes);
            if gathered.len() >= PIECE {
                at = self.write(&mut gathered, at).await?;
            }
        }
        self.write(&mut gathered, at).await.map(drop)
    }

    /// Writes what was gathered and gives the buffer back. Returns where the next bytes go.
    async fn write(&self, gathered: &mut BytesMut, at: u64) -> Result<u64, Error> {
        let (file, path, mut bytes) = (self.file.clone(), self.path.to_owned(), std::mem::take(gathered));
        let written = bytes.len() as u64;
        *gathered = local::blocking(move || {
            file.write_all_at(&bytes, at).map_err(Error::file("write", &path))?;
            bytes.clear();
            Ok(bytes)
        })
        .await?;
        Ok(at + written)
    }
}
