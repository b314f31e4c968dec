//! What a program that failed said last: usually the reason.

use std::path::Path;

use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

/// How much of the log is looked at, in bytes: a traceback may be followed by the 8 KiB of standard output that Python
/// keeps back until it ends.
const TAIL: u64 = 32 << 10;
/// Longer lines are cut, in bytes: the message stands in tables and in the pod's status.
const LONGEST: usize = 512;
/// Exit code of Python after an exception.
const EXCEPTION: i32 = 1;
const TRACEBACK: &str = "Traceback (most recent call last):";

/// The line of a log that says why its program ended with `code`; empty when nothing was printed, `None` when the log
/// cannot be read.
pub(crate) async fn of(log: &Path, code: i32) -> Option<String> {
    let end = end_of(log).await;
    let end = end.inspect_err(|error| tracing::warn!(path = %log.display(), %error, "cannot read the log")).ok()?;
    Some(reason(&String::from_utf8_lossy(&end), code).unwrap_or_default())
}

async fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = tokio::fs::File::open(path).await?;
    let length = file.metadata().await?.len();
    file.seek(std::io::SeekFrom::Start(length.saturating_sub(TAIL))).await?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// The last line that is not empty. Output that Python kept back comes after the exception that ended it, so an exception
/// goes first.
fn reason(text: &str, code: i32) -> Option<String> {
    let exception = (code == EXCEPTION).then(|| exception(text)).flatten();
    exception.or_else(|| text.split('\n').rev().map(shown).find(|line| !line.is_empty())).map(shortened)
}

/// The exception of the last traceback: what follows its indented lines.
fn exception(text: &str) -> Option<String> {
    let mut tracebacks = text.rmatch_indices(TRACEBACK);
    let (at, _) =
        tracebacks.find(|(at, _)| text.get(..*at).is_some_and(|before| before.is_empty() || before.ends_with('\n')))?;
    let line = text.get(at..)?.split('\n').skip(1).find(|line| !line.starts_with([' ', '\t']))?;
    Some(shown(line)).filter(|line| !line.is_empty())
}

/// What of a line remains to be seen on a terminal: nothing before a carriage return, and no colours.
fn shown(line: &str) -> String {
    let last = line.split('\r').rfind(|part| !part.trim().is_empty()).unwrap_or_default();
    let mut text = String::with_capacity(last.len());
    let mut chars = last.chars();
    while let Some(char) = chars.next() {
        match char {
            '\u{1b}' if chars.as_str().starts_with('[') => {
                // Parameters, then one letter.
                let _ = chars.by_ref().skip(1).find(|c| ('@'..='~').contains(c));
            }
            char if char.is_control() => text.push(' '),
            char => text.push(char),
        }
    }
    text.trim().to_owned()
}

fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST));
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> String {
        reason(text, 1).unwrap()
    }

    #[test]
    fn the_last_line_that_can_be_seen_is_the_reason() {
        assert_eq!(reason("", 3), None);
        assert_eq!(reason("\n \r\n\t\n\u{1b}[0m", 3), None);
        assert_eq!(said("one\ntwo\n\n  \n"), "two");
        assert_eq!(said("1%\r50%\r\u{1b}[31mERROR:\u{1b}[0m no\trows\u{7}\r\n\r\n"), "ERROR: no rows");
        assert_eq!(said("cut\u{1b}[3"), "cut");
    }

    #[test]
    fn an_exception_counts_more_than_output_that_was_kept_back() {
        let text = "start\nTraceback (most recent call last):\n  File \"m.py\", line 1, in <module>\n    main()\n    ~~~~^^\n\
            ValueError: bad input\nand more of it\nloading\ndone\n";
        assert_eq!(said(text), "ValueError: bad input");
        assert_eq!(reason(text, 3).unwrap(), "done", "the program went on after it");
        let chained = text.replace("ValueError", "KeyError") + "\nDuring handling of it:\n\n" + text;
        assert_eq!(said(&chained), "ValueError: bad input");
        for unfinished in ["Traceback (most recent call last):", "Traceback (most recent call last):\n  File"] {
            assert_eq!(said(unfinished), unfinished.rsplit('\n').next().unwrap().trim());
        }
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        let text = said(&"é".repeat(300).replacen('é', "e", 1));
        assert!(text.len() <= LONGEST + 3 && text.ends_with("é..."), "{text}");
        assert_eq!(said(&"e".repeat(LONGEST)).len(), LONGEST);
    }

    #[tokio::test]
    async fn of_a_long_log_only_the_end_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "é\n".repeat(100_000) + "the end\n\n").unwrap();
        assert_eq!(of(&log, 2).await.unwrap(), "the end");
        assert_eq!(of(&dir.path().join("none"), 2).await, None);
    }

    proptest::proptest! {
        #[test]
        fn any_output_gives_one_short_line(text: String, code in 1..3) {
            if let Some(line) = reason(&text, code) {
                assert!(!line.is_empty() && line.len() <= LONGEST + 3);
                assert!(!line.contains(char::is_control), "{line:?}");
            }
        }
    }
}
