//! Reading of stored logs: whole, their end, or while they are written.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use bytes::Bytes;
use chrono::DateTime;
use futures::StreamExt as _;
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;

use crate::api::{LogOptions, LogStream};

const READ_BLOCK: usize = 64 << 10;

/// Bytes written so far; nothing more comes when the sender is gone.
pub(crate) type Progress = watch::Receiver<u64>;

/// What one request reads of a log, and follows while the log is written.
pub(crate) struct Reader {
    file: File,
    live: Option<Progress>,
    carry: Vec<u8>,
    options: LogOptions,
    sent: u64,
    continued: bool,
    ended: bool,
}

impl Reader {
    /// Reads from where the file stands, and goes on while there is `live` progress.
    pub(crate) fn new(file: std::fs::File, live: Option<Progress>, options: LogOptions) -> Self {
        let file = File::from_std(file);
        Self { file, live, carry: Vec::new(), options, sent: 0, continued: false, ended: false }
    }

    /// The parts of the text; nothing comes after an error.
    pub(crate) fn into_stream(self) -> LogStream {
        let stream = futures::stream::unfold(self, |mut reader| async move {
            match reader.next().await {
                Ok(Some(bytes)) => Some((Ok(bytes), reader)),
                Ok(None) => None,
                Err(e) => {
                    reader.ended = true;
                    Some((Err(e), reader))
                }
            }
        });
        stream.boxed()
    }

    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        let mut block = vec![0; READ_BLOCK];
        loop {
            if self.ended {
                return Ok(None);
            }
            // Taken before the read: whatever was written by then is seen by it.
            let over = self.live.as_mut().is_none_or(|live| {
                let closed = live.has_changed().is_err();
                live.mark_unchanged();
                closed
            });
            let n = self.file.read(&mut block).await?;
            if n > 0 {
                let out = self.take(block.get(..n).unwrap_or_default());
                if !out.is_empty() {
                    return Ok(Some(out));
                }
            } else if over {
                return Ok(None);
            } else if let Some(live) = &mut self.live
                && live.changed().await.is_err()
            {
                self.live = None;
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Bytes {
        self.carry.extend_from_slice(bytes);
        let complete = self.carry.iter().rposition(|b| *b == b'\n').map_or(0, |p| p + 1);
        let rest = self.carry.split_off(complete);
        let lines = std::mem::replace(&mut self.carry, rest);
        let mut out = Vec::with_capacity(lines.len());
        for line in lines.split_inclusive(|b| *b == b'\n') {
            self.render(line, &mut out);
        }
        if let Some(limit) = self.options.limit_bytes {
            let left = usize::try_from(limit.saturating_sub(self.sent)).unwrap_or(usize::MAX);
            if out.len() >= left {
                out.truncate(left);
                self.ended = true;
            }
        }
        self.sent += out.len() as u64;
        out.into()
    }

    fn render(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let mut fields = line.splitn(4, |b| *b == b' ');
        let (Some(time), Some(_), Some(tag), Some(text)) = (fields.next(), fields.next(), fields.next(), fields.next())
        else {
            return;
        };
        let time = String::from_utf8_lossy(time);
        if let Some(since) = self.options.since
            && DateTime::parse_from_rfc3339(&time).is_ok_and(|t| t < since)
        {
            return;
        }
        if self.options.timestamps && !self.continued {
            out.extend_from_slice(time.as_bytes());
            out.push(b' ');
        }
        self.continued = tag == b"P";
        out.extend_from_slice(if self.continued { text.strip_suffix(b"\n").unwrap_or(text) } else { text });
    }
}

/// Start of the last `lines` lines.
pub(crate) fn tail(file: &mut std::fs::File, lines: u64) -> std::io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    let (mut at, mut found) = (end, 0);
    let mut block = vec![0; READ_BLOCK];
    while at > 0 {
        let size = usize::try_from(at).unwrap_or(READ_BLOCK).min(READ_BLOCK);
        at -= size as u64;
        file.seek(SeekFrom::Start(at))?;
        let part = block.get_mut(..size).unwrap_or_default();
        file.read_exact(part)?;
        for (index, byte) in part.iter().enumerate().rev() {
            let offset = at + index as u64;
            if *byte == b'\n' && offset + 1 < end {
                found += 1;
                if found == lines {
                    return Ok(offset + 1);
                }
            }
        }
    }
    Ok(0)
}

/// The text of the last `lines` lines of a log file, at most the last `bytes` of them.
pub(crate) fn last_lines(path: &Path, lines: u64, bytes: usize) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let start = tail(&mut file, lines)?;
    file.seek(SeekFrom::Start(start))?;
    let mut stored = Vec::new();
    // Lines have a largest length, so this is bounded.
    file.read_to_end(&mut stored)?;
    let out = text_of(&stored);
    let mut from = out.len().saturating_sub(bytes);
    // Not within a character.
    while out.get(from).is_some_and(|b| b & 0xc0 == 0x80) {
        from += 1;
    }
    Ok(String::from_utf8_lossy(out.get(from..).unwrap_or_default()).into_owned())
}

/// The text of stored records, without times and tags.
pub(crate) fn text_of(stored: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for line in stored.split_inclusive(|b| *b == b'\n') {
        let mut fields = line.splitn(4, |b| *b == b' ').skip(2);
        if let (Some(tag), Some(text)) = (fields.next(), fields.next()) {
            out.extend_from_slice(if tag == b"P" { text.strip_suffix(b"\n").unwrap_or(text) } else { text });
        }
    }
    out
}
