//! Sending files to a service: several at a time, large ones in parallel parts, within a bound of memory.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use futures::stream::{StreamExt, TryStreamExt};
use object_store::PutPayload;
use object_store::multipart::PartId;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};

use super::error::Error;
use super::local::{self, File};
use super::remote::Remote;
use super::store::Transfer;

/// Files up to this size are sent in one request, larger ones in parts of it. The smallest part that S3 accepts.
const PART: u64 = 5 << 20;
/// Stores accept at most 10 000 parts, so very large files get larger ones.
const MAX_PARTS: u64 = 9_000;
/// Files on their way at the same time, if memory allows.
const FILES_IN_FLIGHT: usize = 8;
/// Files found but not yet begun.
const FILES_AHEAD: usize = 64;

/// KiB that transfers of this process hold in memory at the same time. What is on its way to and from stores shares
/// it, whatever the number of artifacts, so that a task's memory limit is the user's program's.
static MEMORY: Semaphore = Semaphore::const_new(BUDGET);
const BUDGET: usize = 16 << 10;

/// The right to hold some memory.
pub(super) type Held = SemaphorePermit<'static>;

/// Waits until `bytes` may be held. More than the whole budget (parts of files above 140 GiB) is held alone.
pub(super) async fn memory(bytes: u64) -> Option<Held> {
    let kib = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX).clamp(1, BUDGET as u32);
    // Nobody closes it.
    MEMORY.acquire_many(kib).await.ok()
}

/// Sends the file at `from`, or every file below it.
pub(super) async fn upload(remote: &Remote, prefix: &str, from: &Path) -> Result<Transfer, Error> {
    let (found, mut files) = mpsc::channel::<File>(FILES_AHEAD);
    let from = from.to_owned();
    // The receiver only goes away after a failure, which is the one to report.
    let walked = local::blocking(move || {
        local::walk(&from, &mut |file| found.blocking_send(file).map_err(|e| Error::MissingFile(e.0.path)))
    });
    let sent = async {
        let files = futures::stream::poll_fn(move |cx| files.poll_recv(cx));
        let mut sending = files.map(|file| one(remote, prefix, file)).buffer_unordered(FILES_IN_FLIGHT);
        let mut done = Transfer::default();
        while let Some(bytes) = sending.try_next().await? {
            done += Transfer { files: 1, bytes };
        }
        Ok::<_, Error>(done)
    };
    let (walked, sent) = tokio::join!(walked, sent);
    let done = sent?;
    walked.map(|()| done)
}

async fn one(remote: &Remote, prefix: &str, file: File) -> Result<u64, Error> {
    let relative = file.relative.to_str().ok_or_else(|| Error::Store {
        what: "upload",
        uri: file.path.display().to_string(),
        reason: "the file's name is not UTF-8, which object stores require".into(),
        transient: false,
    })?;
    let name = if relative.is_empty() { prefix.to_owned() } else { format!("{prefix}/{relative}") };
    if file.size > PART {
        return in_parts(remote, &name, &file).await;
    }
    let _held = memory(file.size).await;
    let source = open(&file).await?;
    let bytes = read(&source, &file, 0, file.size).await?;
    remote.put(&name, bytes.into()).await.map(|()| file.size)
}

async fn in_parts(remote: &Remote, name: &str, file: &File) -> Result<u64, Error> {
    let source = open(file).await?;
    let key = super::remote::key(name)?;
    let upload = remote.attempt("upload to", name, || remote.service.create_multipart(&key)).await?;
    let size = PART.max(file.size.div_ceil(MAX_PARTS));
    let parts = futures::stream::iter(0..file.size.div_ceil(size)).map(|index| {
        let (source, key, upload) = (&source, &key, &upload);
        async move {
            let _held = memory(size).await;
            let start = index * size;
            let bytes = PutPayload::from(read(source, file, start, size.min(file.size - start)).await?);
            let index = usize::try_from(index).unwrap_or(usize::MAX);
            let put = || remote.service.put_part(key, upload, index, bytes.clone());
            remote.attempt("upload to", name, put).await
        }
    });
    let sent: Result<Vec<PartId>, Error> = parts.buffered(FILES_IN_FLIGHT).try_collect().await;
    let done = match sent {
        Ok(parts) => {
            let finish = || remote.service.complete_multipart(&key, &upload, parts.clone());
            remote.attempt("upload to", name, finish).await.map(|_| file.size)
        }
        Err(error) => Err(error),
    };
    if done.is_err()
        // Parts of an abandoned upload are kept, and billed, until it is aborted.
        && let Err(error) = remote.service.abort_multipart(&key, &upload).await
    {
        tracing::warn!(uri = remote.uri(name), %error, "cannot abort the upload");
    }
    done
}

async fn open(file: &File) -> Result<Arc<std::fs::File>, Error> {
    let path = file.path.clone();
    local::blocking(move || std::fs::File::open(&path).map(Arc::new).map_err(Error::file("read", &path))).await
}

async fn read(source: &Arc<std::fs::File>, file: &File, start: u64, length: u64) -> Result<Vec<u8>, Error> {
    let (source, path) = (source.clone(), file.path.clone());
    local::blocking(move || {
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
        // A file that shrinks under the reader ends with an error rather than with half an artifact.
        source.read_exact_at(&mut bytes, start).map_err(Error::file("read", &path))?;
        Ok(bytes)
    })
    .await
}
