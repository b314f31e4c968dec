//! Finding the pipeline document in what was uploaded: plain text, zip or gzipped tar.

use std::io::{Cursor, Read};

use crate::Error;

/// Largest pipeline file accepted, packed or unpacked.
pub const MAX_BYTES: usize = 32 << 20;
/// Most bytes unpacked from a tarball while looking for its `pipeline.yaml`.
const MAX_TAR: u64 = 8 * MAX_BYTES as u64;
const PIPELINE: &str = "pipeline.yaml";

/// The YAML or JSON text in `bytes`. The name decides first (`.yaml`, `.yml`, `.json`), the content second.
///
/// # Errors
/// [`Error::TooLarge`] and [`Error::Package`] with upstream's texts.
pub fn extract(bytes: &[u8], file_name: &str) -> Result<Vec<u8>, Error> {
    check_size(bytes.len())?;
    if is_yaml(file_name) || file_name.ends_with(".json") {
        return Ok(bytes.to_vec());
    }
    if bytes.len() > 2 && bytes.starts_with(b"PK") {
        return unzip(bytes).map_err(decompress);
    }
    if bytes.starts_with(&[0x1f, 0x8b]) {
        return untar(bytes).map_err(decompress);
    }
    Err(Error::Package("Unexpected pipeline file format. Support .zip, .tar.gz, .json or YAML".into()))
}

fn is_yaml(name: &str) -> bool {
    name.ends_with(".yaml") || name.ends_with(".yml")
}

fn decompress(error: Error) -> Error {
    match error {
        Error::Package(text) => Error::Package(format!("Error decompress the pipeline file: {text}")),
        other => other,
    }
}

/// Refuses more than [`MAX_BYTES`].
pub fn check_size(size: usize) -> Result<(), Error> {
    if size <= MAX_BYTES {
        return Ok(());
    }
    Err(Error::TooLarge(format!(
        "File size too large ({size} bytes). Maximum supported size: {MAX_BYTES}. Consider moving large embedded \
         artifacts or notebooks or Python code into a container image or object store."
    )))
}

fn read_bounded(reader: impl Read, failed: &str) -> Result<Vec<u8>, Error> {
    let mut out = Vec::new();
    reader.take(MAX_BYTES as u64 + 1).read_to_end(&mut out).map_err(|e| Error::Package(format!("{failed}: {e}")))?;
    check_size(out.len())?;
    Ok(out)
}

fn unzip(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let zip_error = |text: &str| Error::Package(format!("Error extracting pipeline from the zip file. {text}"));
    let mut archive =
        zip::ZipArchive::new(Cursor::new(bytes)).map_err(|e| zip_error(&format!("Not a valid zip file: {e}")))?;
    if archive.is_empty() {
        return Err(zip_error("Empty zip file"));
    }
    let index = match archive.index_for_name(PIPELINE) {
        Some(index) => index,
        None => {
            let unreadable = |e| zip_error(&format!("Failed to read the content: {e}"));
            let entry = archive.by_index(0).map_err(unreadable)?;
            let name = entry.name().map_err(unreadable)?.into_owned();
            if !is_yaml(&name) {
                return Err(zip_error(&format!("Expecting a pipeline.yaml file inside the zip. Got: {name}")));
            }
            0
        }
    };
    let file = archive.by_index(index).map_err(|e| zip_error(&format!("Failed to read the content: {e}")))?;
    read_bounded(file, "Error extracting pipeline from the zip file. Failed to read the content")
}

fn untar(bytes: &[u8]) -> Result<Vec<u8>, Error> {
    let tar_error = |text: &str| Error::Package(format!("Error extracting pipeline from the tarball file. {text}"));
    let invalid = |e: std::io::Error| tar_error(&format!("Not a valid tarball file: {e}"));
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes).take(MAX_TAR));
    let mut first: Option<(String, Vec<u8>)> = None;
    for entry in archive.entries().map_err(invalid)? {
        let entry = entry.map_err(invalid)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if name == PIPELINE {
            return read_bounded(entry, "Error reading pipeline YAML from the tarball file");
        }
        if first.is_none() {
            let content = if is_yaml(&name) {
                read_bounded(entry, "Error reading pipeline YAML from the tarball file")?
            } else {
                Vec::new()
            };
            first = Some((name, content));
        }
    }
    match first {
        Some((name, content)) if is_yaml(&name) => Ok(content),
        Some((name, _)) => Err(tar_error(&format!("Expecting a pipeline.yaml file inside the tarball. Got: {name}"))),
        None => Err(tar_error("Not a valid tarball file")),
    }
}
