//! Archived logs: out of their wrapping, and without what log drivers put before each line.

use std::io::Read;
use std::sync::LazyLock;

use flate2::read::MultiGzDecoder;
use regex::bytes::Regex;

/// Most bytes of a log after unpacking.
const LIMIT: u64 = 256 << 20;
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// What CRI-O and Kubernetes write before the line itself: a time and, perhaps, the stream and a tag.
#[allow(clippy::expect_used)] // A constant pattern; a test compiles it.
static PREFIX: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d) ((stdout|stderr) [FP] )?")
        .expect("constant pattern")
});

/// Why an archived log cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The compression is damaged.
    #[error("cannot unpack the archived log: {0}")]
    Unpack(#[from] std::io::Error),
    /// It would take too much memory.
    #[error("the archived log is larger than {} MiB", LIMIT >> 20)]
    TooLarge,
}

fn bounded(reader: impl Read) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    reader.take(LIMIT + 1).read_to_end(&mut out)?;
    if out.len() as u64 > LIMIT { Err(Error::TooLarge) } else { Ok(out) }
}

/// The first file of a tar archive; other bytes as they are.
fn untar(bytes: Vec<u8>) -> Result<Vec<u8>, Error> {
    // The magic of every tar dialect in use.
    if bytes.get(257..262) != Some(b"ustar") {
        return Ok(bytes);
    }
    for entry in tar::Archive::new(bytes.as_slice()).entries()? {
        let entry = entry?;
        if entry.header().entry_type().is_file() {
            return bounded(entry);
        }
    }
    Ok(Vec::new())
}

/// The text of a line of JSON, as Docker writes them.
fn from_json(line: &[u8]) -> Option<Vec<u8>> {
    #[derive(serde::Deserialize)]
    struct Entry {
        log: String,
    }
    let entry: Entry = serde_json::from_slice(line).ok().filter(|_| line.first() == Some(&b'{'))?;
    Some(entry.log.trim_end_matches('\n').to_owned().into_bytes())
}

/// The log inside of an archived object: gzip and tar are unwrapped, prefixes stripped, blank lines dropped.
///
/// # Errors
/// When the object is damaged or too large.
pub fn plain(object: &[u8]) -> Result<Vec<u8>, Error> {
    let bytes = if object.starts_with(&GZIP) { bounded(MultiGzDecoder::new(object))? } else { object.to_vec() };
    let bytes = untar(bytes)?;
    let mut out = Vec::with_capacity(bytes.len());
    for line in bytes.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let shown = match from_json(line) {
            Some(text) => text,
            None => line.get(PREFIX.find(line).map_or(0, |prefix| prefix.end())..).unwrap_or_default().to_vec(),
        };
        if !shown.iter().all(u8::is_ascii_whitespace) {
            out.extend_from_slice(&shown);
            out.push(b'\n');
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn tar(bytes: &[u8]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, "main.log", bytes).unwrap();
        builder.into_inner().unwrap()
    }

    #[test]
    fn every_form_shows_the_same_lines() {
        for text in [
            "[INFO] OK\n\n[ERROR] Unable to connect",
            "2020-08-31T15:00:00Z [INFO] OK\n[ERROR] Unable to connect\n",
            "2020-08-31T15:00:00.000000000Z stdout F [INFO] OK\n2020-08-31T15:00:02.260657206Z stderr F [ERROR] Unable to connect\n",
            "{\"timestamp\": \"2020-08-31T15:00:00Z\", \"log\": \"[INFO] OK\\n\"}\n{\"log\": \"[ERROR] Unable to connect\"}\n",
        ] {
            let bytes = text.as_bytes().to_vec();
            for object in [bytes.clone(), gzip(&bytes), gzip(&tar(&bytes))] {
                let shown = String::from_utf8(plain(&object).unwrap()).unwrap();
                assert_eq!(shown, "[INFO] OK\n[ERROR] Unable to connect\n", "{text}");
            }
        }
    }

    #[test]
    fn what_only_looks_like_a_prefix_stays() {
        assert_eq!(
            plain(b"{\"a\": 1}\nat 2020-08-31T15:00:00Z x").unwrap(),
            b"{\"a\": 1}\nat 2020-08-31T15:00:00Z x\n"
        );
        assert!(plain(&GZIP).is_err());
    }
}
