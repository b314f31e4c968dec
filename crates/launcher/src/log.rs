//! The log of a task: a file with all that was printed, or with its beginning and its end when that is very much.

use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::{AsyncSeekExt as _, AsyncWriteExt as _};

/// How much of a log is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of the beginning.
    pub head: u64,
    /// Bytes of the end, at least; at most twice as many.
    pub tail: u64,
}

/// A program in an endless loop of messages must not fill the store, nor keep its reason from being seen.
pub(crate) const LIMITS: Limits = Limits { head: 64 << 20, tail: 64 << 20 };

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    limits: Limits,
    file: File,
    length: u64,
    /// What comes after the beginning.
    end: Option<End>,
}

/// The end of a log, in two files that take turns; they have no names any more.
#[derive(Debug)]
struct End {
    older: File,
    older_length: u64,
    newer: File,
    newer_length: u64,
    /// Bytes given up.
    dropped: u64,
}

impl Log {
    /// A fresh log at `path`, with the directories above it.
    pub async fn create(path: &Path, limits: Limits) -> std::io::Result<Self> {
        if let Some(parent) = path.parent() {
            tokio::fs::create_dir_all(parent).await?;
        }
        Ok(Self { path: path.to_owned(), limits, file: File::create(path).await?, length: 0, end: None })
    }

    pub async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        let room = usize::try_from(self.limits.head - self.length).unwrap_or(usize::MAX).min(bytes.len());
        let (head, mut rest) = bytes.split_at(room);
        self.file.write_all(head).await?;
        self.length += head.len() as u64;
        while !rest.is_empty() {
            let end = match &mut self.end {
                Some(end) => end,
                None => self.end.insert(End::create(&self.path).await?),
            };
            rest = end.write(rest, self.limits.tail).await?;
        }
        Ok(())
    }

    /// Puts the parts together.
    pub async fn finish(mut self) -> std::io::Result<()> {
        if let Some(mut end) = self.end {
            if end.dropped > 0 {
                let note = format!("\n[launcher: {} bytes are left out here]\n", end.dropped);
                self.file.write_all(note.as_bytes()).await?;
            }
            for part in [&mut end.older, &mut end.newer] {
                part.rewind().await?;
                tokio::io::copy(part, &mut self.file).await?;
            }
        }
        self.file.flush().await
    }
}

impl End {
    async fn create(log: &Path) -> std::io::Result<Self> {
        let (older, newer) = (nameless(log, "older").await?, nameless(log, "newer").await?);
        Ok(Self { older, older_length: 0, newer, newer_length: 0, dropped: 0 })
    }

    /// Writes what fits into the newer file, and returns the rest.
    async fn write<'a>(&mut self, bytes: &'a [u8], limit: u64) -> std::io::Result<&'a [u8]> {
        if self.newer_length == limit {
            std::mem::swap(&mut self.older, &mut self.newer);
            self.dropped += self.older_length;
            self.older_length = std::mem::take(&mut self.newer_length);
            self.newer.rewind().await?;
            self.newer.set_len(0).await?;
        }
        let room = usize::try_from(limit - self.newer_length).unwrap_or(usize::MAX).min(bytes.len());
        self.newer.write_all(&bytes[..room]).await?;
        self.newer_length += room as u64;
        Ok(&bytes[room..])
    }
}

/// A file beside the log that goes away with this process.
async fn nameless(log: &Path, suffix: &str) -> std::io::Result<File> {
    let path = log.with_extension(format!("launcher-{suffix}"));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path).await?;
    tokio::fs::remove_file(&path).await?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn written(pieces: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/log");
        let mut log = Log::create(&path, Limits { head: 10, tail: 8 }).await.unwrap();
        for piece in pieces {
            log.write(piece.as_bytes()).await.unwrap();
        }
        log.finish().await.unwrap();
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        std::fs::read_to_string(path).unwrap()
    }

    #[tokio::test]
    async fn all_is_kept_while_it_is_little() {
        for text in ["", "0123456789", "0123456789a", "0123456789abcdefgh", "0123456789abcdefghijklmnop"] {
            assert_eq!(written(&[text]).await, text);
            let letters: Vec<String> = text.chars().map(String::from).collect();
            assert_eq!(written(&letters.iter().map(String::as_str).collect::<Vec<_>>()).await, text);
        }
    }

    #[tokio::test]
    async fn beginning_and_end_are_kept_of_much() {
        let text = "0123456789abcdefghABCDEFGHstuvwxyz";
        let want = "0123456789\n[launcher: 8 bytes are left out here]\nABCDEFGHstuvwxyz";
        assert_eq!(written(&[text]).await, want);
        assert_eq!(written(&[&text[..15], &text[15..20], &text[20..]]).await, want);
    }
}
