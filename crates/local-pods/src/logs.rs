//! Container logs: one file per container, `<data>/logs/<namespace>/<pod>/<container>.log`, in the
//! format of the Container Runtime Interface: time, stream, `F` (full line) or `P` (part of a line
//! that continues), text. Both streams of a container arrive on one pipe, so that their order is
//! kept; all lines say `stdout`.
//!
//! Logs outlive their pod and the server. Where there is an archive, the main ones of a Workflow move there when their pod goes,
//! the others go with their Workflow.

use std::collections::HashMap;
use std::fs::File;
use std::io::{ErrorKind, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use chrono::Utc;
use futures::StreamExt as _;
use tokio::sync::watch;

use crate::api::{ApiError, LogOptions, LogSource, LogStream};
use crate::log_file::{LogFile, OWNER};
use crate::log_reader::{Progress, Reader, tail, text_of};

/// Longer lines are split, as container runtimes do.
const MAX_LINE: usize = 16 << 10;
/// Logs end when less than this, or than a twentieth of the disk, is left.
const RESERVE: u64 = 64 << 20;
/// How often the disk is looked at.
const CHECK_EVERY: u64 = 1 << 20;
/// The log that the archive keeps, there and here.
const MAIN: &str = "main.log";

/// A log that is being written.
#[derive(Debug)]
struct Live {
    progress: Progress,
    writer: Weak<Mutex<Inner>>,
}

/// All logs below one directory.
#[derive(Debug)]
pub(crate) struct Logs {
    dir: PathBuf,
    archive: Option<PathBuf>,
    max: u64,
    live: Mutex<HashMap<PathBuf, Live>>,
}

/// The log of one running container; clones write to the same file.
#[derive(Debug, Clone)]
pub struct LogWriter {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    file: LogFile,
    partial: Vec<u8>,
    written: u64,
    max: u64,
    full: bool,
    /// Bytes written when the disk is looked at again.
    check_at: u64,
    progress: Option<watch::Sender<u64>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LogWriter {
    /// Appends output as it comes; complete lines become visible at once.
    pub fn append(&self, bytes: &[u8]) {
        locked(&self.inner).append(bytes);
    }

    /// Appends one line.
    pub fn line(&self, text: &str) {
        let mut inner = locked(&self.inner);
        inner.append(text.as_bytes());
        inner.append(b"\n");
    }

    /// Writes an unfinished last line and tells readers that nothing more comes.
    pub(crate) fn finish(&self) {
        let mut inner = locked(&self.inner);
        if !inner.partial.is_empty() {
            inner.append(b"\n");
        }
        inner.progress = None;
    }
}

impl std::io::Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Inner {
    fn append(&mut self, bytes: &[u8]) {
        if self.full {
            return;
        }
        let now = Utc::now().format("%Y-%m-%dT%H:%M:%S%.9fZ").to_string();
        let mut out = Vec::with_capacity(bytes.len() + 64);
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|b| *b == b'\n') {
            let (line, after) = rest.split_at(end);
            self.partial.extend_from_slice(line);
            self.emit(&mut out, &now, 'F');
            rest = after.get(1..).unwrap_or_default();
        }
        self.partial.extend_from_slice(rest);
        self.split_long(&mut out, &now);
        if !out.is_empty() {
            self.store(&out, &now);
        }
    }

    fn split_long(&mut self, out: &mut Vec<u8>, now: &str) {
        while self.partial.len() > MAX_LINE {
            let rest = self.partial.split_off(MAX_LINE);
            record(out, now, 'P', &self.partial);
            self.partial = rest;
        }
    }

    fn emit(&mut self, out: &mut Vec<u8>, now: &str, tag: char) {
        self.split_long(out, now);
        record(out, now, tag, &self.partial);
        self.partial.clear();
    }

    fn store(&mut self, out: &[u8], now: &str) {
        let text = if self.written + out.len() as u64 > self.max {
            format!("[kfp-local: this log reached its limit of {} bytes; the rest is not kept]", self.max)
        } else if self.disk_is_full() {
            "[kfp-local: the disk is nearly full; the rest of this log is not kept]".to_owned()
        } else {
            self.write(out);
            return;
        };
        self.full = true;
        let mut note = Vec::new();
        record(&mut note, now, 'F', text.as_bytes());
        self.write(&note);
    }

    /// Logs leave the last part of a disk to the databases, without which no run can end.
    fn disk_is_full(&mut self) -> bool {
        if self.written < self.check_at {
            return false;
        }
        self.check_at = self.written + CHECK_EVERY;
        let Ok(disk) = self.file.open().and_then(|file| Ok(nix::sys::statvfs::fstatvfs(file)?)) else { return false };
        let size = disk.fragment_size();
        let reserve = RESERVE.min(disk.blocks().saturating_mul(size) / 20);
        disk.blocks_available().saturating_mul(size) < reserve
    }

    /// A full disk must not stop the container: what cannot be kept is lost.
    fn write(&mut self, out: &[u8]) {
        if let Err(error) = self.file.open().and_then(|file| file.write_all(out)) {
            if !self.full {
                tracing::warn!(%error, "a container log cannot be written; the rest of it is not kept");
            }
            self.full = true;
            // Half a record would be read as a wrong one.
            let _ = self.file.open().and_then(|file| file.set_len(self.written));
            return;
        }
        self.written += out.len() as u64;
        if let Some(progress) = &self.progress {
            progress.send_replace(self.written);
        }
    }
}

fn record(out: &mut Vec<u8>, now: &str, tag: char, line: &[u8]) {
    out.extend_from_slice(now.as_bytes());
    out.extend_from_slice(b" stdout ");
    out.push(tag as u8);
    out.push(b' ');
    out.extend_from_slice(line);
    out.push(b'\n');
}

impl Logs {
    pub(crate) fn new(dir: PathBuf, max: u64) -> Self {
        Self { dir, archive: None, max, live: Mutex::default() }
    }

    /// The same with an archive.
    pub(crate) fn with_archive(mut self, archive: Option<PathBuf>) -> Self {
        self.archive = archive;
        self
    }

    /// The file of a container's log.
    pub(crate) fn path(&self, namespace: &str, pod: &str, container: &str) -> PathBuf {
        self.dir.join(namespace).join(pod).join(format!("{container}.log"))
    }

    /// Begins the log of a container, replacing one of an earlier pod of the same name. That of a silent container gets
    /// its file with the first line.
    pub(crate) fn begin(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        workflow: Option<&str>,
        silent: bool,
    ) -> std::io::Result<LogWriter> {
        let path = self.path(namespace, pod, container);
        // One step for those who archive what no pod writes to.
        let mut live = locked(&self.live);
        let mut file = LogFile::new(path.clone(), workflow)?;
        if !silent {
            file.open()?;
        }
        let (progress, receiver) = watch::channel(0);
        let inner = Arc::new(Mutex::new(Inner {
            file,
            partial: Vec::new(),
            written: 0,
            max: self.max,
            full: false,
            check_at: 0,
            progress: Some(progress),
        }));
        live.insert(path, Live { progress: receiver, writer: Arc::downgrade(&inner) });
        Ok(LogWriter { inner })
    }

    /// Forgets finished writers.
    pub(crate) fn end(&self, namespace: &str, pod: &str, container: &str, writer: &LogWriter) {
        writer.finish();
        locked(&self.live).remove(&self.path(namespace, pod, container));
    }

    /// Archives the log of a deleted pod of a Workflow, unless another pod of that name has begun its own.
    pub(crate) fn archive_pod(&self, namespace: &str, pod: &str) {
        let dir = self.dir.join(namespace).join(pod);
        let Ok(workflow) = std::fs::read_to_string(dir.join(OWNER)) else { return };
        let live = locked(&self.live);
        if !live.contains_key(&dir.join(MAIN)) {
            self.archive(&dir, &workflow);
        }
    }

    /// Removes the logs of a Workflow's pods, after the archive has what it keeps.
    pub(crate) fn remove_workflow(&self, namespace: &str, workflow: &str) {
        let Ok(pods) = std::fs::read_dir(self.dir.join(namespace)) else { return };
        for pod in pods.flatten() {
            let dir = pod.path();
            if std::fs::read_to_string(dir.join(OWNER)).is_ok_and(|owner| owner == workflow) {
                self.archive(&dir, workflow);
                if let Err(error) = std::fs::remove_dir_all(&dir) {
                    tracing::warn!(%error, path = %dir.display(), "cannot remove logs");
                }
            }
        }
    }

    fn archive(&self, pod: &Path, workflow: &str) {
        let (Some(archive), Some(name)) = (&self.archive, pod.file_name()) else { return };
        if let Err(error) = keep(&pod.join(MAIN), &archive.join(workflow).join(name)) {
            tracing::warn!(%error, path = %pod.display(), "cannot archive a log");
        }
    }
}

/// Moves a log into the directory `to`; one that is missing or empty is not kept.
fn keep(log: &Path, to: &Path) -> std::io::Result<()> {
    if !log.metadata().is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    std::fs::create_dir_all(to)?;
    let to = to.join(MAIN);
    match std::fs::rename(log, &to) {
        Err(error) if error.kind() == ErrorKind::CrossesDevices => std::fs::copy(log, to).map(drop),
        other => other,
    }
}

/// The text of a stored log without times and tags.
///
/// # Errors
/// When the file cannot be read.
pub fn plain_text(data_dir: &Path, namespace: &str, pod: &str, container: &str) -> std::io::Result<Vec<u8>> {
    let path = Logs::new(data_dir.join("logs"), 0).path(namespace, pod, container);
    Ok(text_of(&std::fs::read(path)?))
}

#[crate::api::async_trait]
impl LogSource for Logs {
    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        options: LogOptions,
    ) -> Result<LogStream, ApiError> {
        if options.previous {
            let text = format!("previous terminated container \"{container}\" in pod \"{pod}\" not found");
            return Err(ApiError::bad_request(text));
        }
        let path = self.path(namespace, pod, container);
        let live = locked(&self.live).get(&path).map(|live| (live.progress.clone(), live.writer.clone()));
        let (progress, writer) = live.unzip();
        let live = progress.filter(|_| options.follow);
        let lines = options.tail_lines;
        let opened = tokio::task::spawn_blocking(move || {
            let mut file = match (File::open(&path), writer.and_then(|writer| writer.upgrade())) {
                (Err(error), Some(writer)) if error.kind() == ErrorKind::NotFound => {
                    locked(&writer).file.open()?;
                    File::open(path)?
                }
                (opened, _) => opened?,
            };
            let start = match lines {
                Some(0) => file.seek(SeekFrom::End(0))?,
                Some(lines) => tail(&mut file, lines)?,
                None => 0,
            };
            file.seek(SeekFrom::Start(start))?;
            Ok(file)
        })
        .await
        .unwrap_or_else(|e| Err(std::io::Error::other(e)));
        let missing = opened.as_ref().is_err_and(|error| error.kind() == ErrorKind::NotFound);
        if missing && options.ended {
            return Ok(futures::stream::empty().boxed());
        }
        let file = opened.map_err(|e: std::io::Error| {
            if missing {
                ApiError::bad_request(format!(
                    "container \"{container}\" in pod \"{pod}\" is waiting to start: ContainerCreating"
                ))
            } else {
                ApiError::new(
                    500,
                    "InternalError",
                    format!("read the log of container \"{container}\" in pod \"{pod}\": {e}"),
                )
            }
        })?;
        Ok(Reader::new(file, live, options).into_stream())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log_reader::last_lines;
    use chrono::DateTime;

    async fn read(logs: &Logs, options: LogOptions) -> String {
        let stream = logs.logs("ns", "p", "main", options).await.unwrap();
        let parts: Vec<_> = stream.map(Result::unwrap).collect().await;
        String::from_utf8(parts.concat()).unwrap()
    }

    #[tokio::test]
    async fn logs_can_be_followed_and_cut() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(dir.path().join("logs"), 1 << 20);
        let missing = logs.logs("ns", "p", "main", LogOptions::default()).await;
        assert_eq!(missing.err().unwrap().code, 400);
        let ended = LogOptions { ended: true, ..LogOptions::default() };
        assert_eq!(read(&logs, ended).await, "", "an end without a word");
        let silent = logs.begin("ns", "p", "main", Some("wf"), true).unwrap();
        assert!(!dir.path().join("logs").exists());
        assert_eq!(read(&logs, LogOptions::default()).await, "");
        silent.line("after all");
        assert_eq!(read(&logs, LogOptions::default()).await, "after all\n");
        logs.end("ns", "p", "main", &silent);
        let writer = logs.begin("ns", "p", "main", Some("wf"), false).unwrap();
        writer.append(b"one\ntwo\nunfin");
        let mut stream =
            logs.logs("ns", "p", "main", LogOptions { follow: true, ..LogOptions::default() }).await.unwrap();
        assert_eq!(stream.next().await.unwrap().unwrap(), "one\ntwo\n");
        writer.append(b"ished\n");
        assert_eq!(stream.next().await.unwrap().unwrap(), "unfinished\n");
        writer.append(b"end");
        logs.end("ns", "p", "main", &writer);
        let rest: Vec<_> = stream.map(Result::unwrap).collect().await;
        assert_eq!(rest.concat(), b"end\n");
        assert_eq!(read(&logs, LogOptions { tail_lines: Some(2), ..LogOptions::default() }).await, "unfinished\nend\n");
        assert_eq!(read(&logs, LogOptions { tail_lines: Some(0), ..LogOptions::default() }).await, "");
        assert_eq!(
            read(&logs, LogOptions { tail_lines: Some(99), follow: true, ..LogOptions::default() }).await,
            "one\ntwo\nunfinished\nend\n"
        );
        assert_eq!(read(&logs, LogOptions { limit_bytes: Some(5), ..LogOptions::default() }).await, "one\nt");
        let stamped = read(&logs, LogOptions { timestamps: true, tail_lines: Some(1), ..LogOptions::default() }).await;
        let (time, text) = stamped.split_once(' ').unwrap();
        assert_eq!(text, "end\n");
        let last = DateTime::parse_from_rfc3339(time).unwrap().to_utc();
        assert_eq!(read(&logs, LogOptions { since: Some(last), ..LogOptions::default() }).await, "end\n");
        assert_eq!(plain_text(dir.path(), "ns", "p", "main").unwrap(), b"one\ntwo\nunfinished\nend\n");
        logs.remove_workflow("ns", "other");
        assert!(plain_text(dir.path(), "ns", "p", "main").is_ok());
        logs.remove_workflow("ns", "wf");
        assert!(plain_text(dir.path(), "ns", "p", "main").is_err());
    }

    #[test]
    fn logs_move_to_the_archive_with_their_workflow() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        let logs = Logs::new(dir.path().join("logs"), 1 << 20).with_archive(Some(archive.clone()));
        for (pod, workflow, text) in [("p", "wf", "kept\n"), ("silent", "wf", ""), ("q", "other", "stays\n")] {
            let writer = logs.begin("ns", pod, "main", Some(workflow), false).unwrap();
            writer.append(text.as_bytes());
            logs.end("ns", pod, "main", &writer);
        }
        logs.remove_workflow("ns", "wf");
        let kept = std::fs::read_to_string(archive.join("wf/p/main.log")).unwrap();
        assert!(kept.ends_with(" stdout F kept\n"), "{kept}");
        assert!(!archive.join("wf/silent").exists() && !archive.join("other").exists());
        assert!(!logs.path("ns", "p", "main").exists() && logs.path("ns", "q", "main").exists());
    }

    #[test]
    fn the_log_of_a_deleted_pod_moves_unless_another_pod_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("archive");
        let logs = Logs::new(dir.path().join("logs"), 1 << 20).with_archive(Some(archive.clone()));
        for (pod, workflow) in [("p", Some("wf")), ("free", None)] {
            let writer = logs.begin("ns", pod, "main", workflow, false).unwrap();
            writer.line("first");
            logs.archive_pod("ns", pod);
            assert!(!archive.exists(), "a running pod keeps its log");
            logs.end("ns", pod, "main", &writer);
        }
        logs.archive_pod("ns", "free");
        logs.archive_pod("ns", "none");
        assert!(!archive.exists(), "no Workflow, no archive");
        logs.archive_pod("ns", "p");
        let kept = || std::fs::read_to_string(archive.join("wf/p/main.log")).unwrap();
        assert!(kept().ends_with(" stdout F first\n"));
        let writer = logs.begin("ns", "p", "main", Some("wf"), false).unwrap();
        writer.line("again");
        logs.end("ns", "p", "main", &writer);
        logs.remove_workflow("ns", "wf");
        assert!(kept().ends_with(" stdout F again\n"));
    }

    #[test]
    fn a_log_that_cannot_be_written_ends_with_a_whole_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("main.log");
        std::fs::write(&path, "").unwrap();
        let mut inner = Inner {
            // Opened for reading only: each write fails, as on a full disk.
            file: LogFile::of(File::open(&path).unwrap()),
            partial: Vec::new(),
            written: 0,
            max: 1000,
            full: false,
            check_at: u64::MAX,
            progress: None,
        };
        inner.append(b"lost\n");
        assert!(inner.full);
        inner.file = LogFile::of(File::create(&path).unwrap());
        inner.append(b"lost as well\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "");
    }

    #[test]
    fn the_last_lines_are_cut_at_characters() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(dir.path().into(), 1 << 20);
        let writer = logs.begin("ns", "p", "main", None, false).unwrap();
        writer.append("one\ntwo\nthree é\n".as_bytes());
        logs.end("ns", "p", "main", &writer);
        let path = logs.path("ns", "p", "main");
        assert_eq!(last_lines(&path, 2, 100).unwrap(), "two\nthree é\n");
        assert_eq!(last_lines(&path, 80, 2).unwrap(), "\n");
        assert_eq!(last_lines(&path, 80, 3).unwrap(), "é\n");
    }

    #[tokio::test]
    async fn long_lines_and_logs_have_limits() {
        let dir = tempfile::tempdir().unwrap();
        let logs = Logs::new(dir.path().join("logs"), 100_000);
        let writer = logs.begin("ns", "p", "main", None, false).unwrap();
        let long = "x".repeat(50_000);
        writer.line(&long);
        assert_eq!(read(&logs, LogOptions::default()).await, format!("{long}\n"));
        writer.line(&"y".repeat(60_000));
        writer.line("lost");
        logs.end("ns", "p", "main", &writer);
        let text = read(&logs, LogOptions::default()).await;
        assert!(text.contains("reached its limit of 100000 bytes") && !text.contains("lost"), "{}", text.len());
        assert!(std::fs::metadata(dir.path().join("logs/ns/p/main.log")).unwrap().len() < 101_000);
    }
}
