//! Keeps the end of a command's standard output beside the log.

use std::io::{PipeReader, Read as _, Write as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// Argo keeps so many bytes of a script's output.
pub(crate) const LIMIT: usize = 256 << 10;
/// A process that escaped may hold the pipe; nobody waits for it longer than this.
const DRAIN: Duration = Duration::from_secs(2);

/// The last [`LIMIT`] bytes of what was added.
#[derive(Debug, Default)]
pub(crate) struct Tail(Vec<u8>);

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        // Moved seldom, so that each byte is copied at most twice.
        if self.0.len() > 2 * LIMIT {
            self.cut();
        }
    }

    fn cut(&mut self) {
        self.0.drain(..self.0.len().saturating_sub(LIMIT));
    }

    /// The kept bytes without one final line end.
    pub(crate) fn text(mut self) -> Vec<u8> {
        if self.0.last() == Some(&b'\n') {
            self.0.pop();
        }
        self.cut();
        self.0
    }
}

/// A running copy of a command's output.
pub(super) struct Copying(Receiver<Vec<u8>>);

/// A pipe for the command; what comes through it goes to this process's own standard output, and its end is kept.
///
/// # Errors
/// When there is no pipe or thread to be had.
pub(super) fn begin() -> std::io::Result<(Stdio, Copying)> {
    let (reader, writer) = std::io::pipe()?;
    let (done, receiver) = channel();
    std::thread::Builder::new().name("output".into()).spawn(move || {
        // The receiver is gone only when this process is about to end.
        let _ = done.send(copy(reader));
    })?;
    Ok((Stdio::from(writer), Copying(receiver)))
}

fn copy(mut reader: PipeReader) -> Vec<u8> {
    let mut tail = Tail::default();
    let mut block = vec![0; 32 << 10];
    let mut out = std::io::stdout();
    while let Ok(n @ 1..) = reader.read(&mut block) {
        let bytes = block.get(..n).unwrap_or_default();
        tail.push(bytes);
        // Without a log there is still the result.
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }
    tail.text()
}

impl Copying {
    /// To be called when the command's processes have ended: writes what was kept to a file.
    pub(super) fn finish(self, to: &Path) -> std::io::Result<()> {
        std::fs::write(to, self.0.recv_timeout(DRAIN).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_without_one_line_end() {
        let mut tail = Tail::default();
        tail.push(b"a\n\n");
        assert_eq!(tail.text(), b"a\n");
        let mut tail = Tail::default();
        (0..40u8).for_each(|round| tail.push(&vec![round; 30_000]));
        tail.push(b"end\n");
        let text = tail.text();
        assert!(text.len() == LIMIT && text.ends_with(b"\x27end"));
    }
}
