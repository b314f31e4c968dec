//! Packing and unpacking of artifacts as Argo does: a file or directory is one entry of the archive, under its own name.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read as _, Write as _};
use std::path::Path;

use flate2::Compression;
use flate2::bufread::GzDecoder;
use flate2::write::GzEncoder;

/// First bytes of gzip data.
const GZIP: [u8; 2] = [0x1f, 0x8b];
/// A tar block, and where its mark stands in it.
const BLOCK: usize = 512;
const MARK: (usize, &[u8]) = (257, b"ustar");

/// Writes the file or directory `from` to `to`, a gzipped tar archive in which it is called `name`. Symbolic links stay
/// links. `level` is that of gzip, 0 to 9.
///
/// # Errors
/// When something cannot be read or written.
pub(crate) fn tar(from: &Path, name: &str, level: u32, to: &Path) -> io::Result<()> {
    let out = GzEncoder::new(BufWriter::new(File::create(to)?), Compression::new(level.min(9)));
    let mut archive = tar::Builder::new(out);
    archive.follow_symlinks(false);
    if from.is_dir() {
        archive.append_dir_all(name, from)?
    } else {
        archive.append_path_with_name(from, name)?
    }
    archive.into_inner()?.finish()?.into_inner().map_err(io::IntoInnerError::into_error)?.sync_data()
}

/// Writes the file or directory `from` to `to`, a zip archive in which it is called `name`. Symbolic links and special
/// files are left out.
///
/// # Errors
/// When something cannot be read or written.
pub(crate) fn zip(from: &Path, name: &str, to: &Path) -> io::Result<()> {
    let mut archive = zip::ZipWriter::new(BufWriter::new(File::create(to)?));
    let options = zip::write::SimpleFileOptions::default().large_file(true);
    let mut open = vec![(from.to_path_buf(), name.to_owned())];
    while let Some((path, name)) = open.pop() {
        let kind = std::fs::symlink_metadata(&path)?;
        if kind.is_dir() {
            archive.add_directory(name.as_str(), options)?;
            for entry in std::fs::read_dir(&path)? {
                let entry = entry?;
                open.push((entry.path(), format!("{name}/{}", entry.file_name().to_string_lossy())));
            }
        } else if kind.is_file() {
            archive.start_file(name.as_str(), options)?;
            io::copy(&mut File::open(&path)?, &mut archive)?;
        }
    }
    archive.finish()?.flush()
}

/// True for gzipped tar archives.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn is_tar(path: &Path) -> io::Result<bool> {
    let mut start = [0; 2];
    let mut file = File::open(path)?;
    if file.read(&mut start)? < start.len() || start != GZIP {
        return Ok(false);
    }
    let mut block = Vec::new();
    let read = GzDecoder::new(BufReader::new(File::open(path)?)).take(BLOCK as u64).read_to_end(&mut block);
    Ok(read.is_ok() && block.get(MARK.0..).is_some_and(|rest| rest.starts_with(MARK.1)))
}

/// Unpacks a gzipped tar archive: one with a single entry at the top becomes that file or directory, another one a
/// directory of all entries. `scratch` is a directory to be made beside `to`.
///
/// # Errors
/// When the archive is damaged or something cannot be written.
pub(crate) fn untar(from: &Path, scratch: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(scratch)?;
    tar::Archive::new(GzDecoder::new(BufReader::new(File::open(from)?))).unpack(scratch)?;
    settle(scratch, to)
}

/// As [`untar`], for zip archives.
///
/// # Errors
/// When the archive is damaged or something cannot be written.
pub(crate) fn unzip(from: &Path, scratch: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(scratch)?;
    zip::ZipArchive::new(BufReader::new(File::open(from)?))?.extract(scratch)?;
    settle(scratch, to)
}

fn settle(scratch: &Path, to: &Path) -> io::Result<()> {
    let mut entries = std::fs::read_dir(scratch)?;
    match (entries.next().transpose()?, entries.next()) {
        (Some(only), None) => {
            std::fs::rename(only.path(), to)?;
            std::fs::remove_dir(scratch)
        }
        _ => std::fs::rename(scratch, to),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_directories_come_back_under_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(at("d/inner")).unwrap();
        std::fs::write(at("d/inner/f"), "text").unwrap();
        std::fs::write(at("d/g"), "").unwrap();
        std::fs::write(at("file"), "one").unwrap();
        tar(&at("d"), "d", 6, &at("d.tgz")).unwrap();
        tar(&at("file"), "file", 0, &at("f.tgz")).unwrap();
        zip(&at("d"), "d", &at("d.zip")).unwrap();
        assert!(is_tar(&at("d.tgz")).unwrap() && is_tar(&at("f.tgz")).unwrap());
        assert!(!is_tar(&at("file")).unwrap() && !is_tar(&at("d/g")).unwrap());
        untar(&at("d.tgz"), &at("s1"), &at("again")).unwrap();
        untar(&at("f.tgz"), &at("s2"), &at("again-file")).unwrap();
        unzip(&at("d.zip"), &at("s3"), &at("again-zip")).unwrap();
        for copy in ["again", "again-zip"] {
            assert_eq!(std::fs::read_to_string(at(copy).join("inner/f")).unwrap(), "text");
        }
        assert_eq!(std::fs::read_to_string(at("again-file")).unwrap(), "one");
        assert!(!at("s1").exists() && !at("s3").exists());
    }

    #[test]
    fn damaged_archives_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("bad"), [0x1f, 0x8b, 8, 0, 1, 2, 3]).unwrap();
        let (bad, to) = (dir.path().join("bad"), dir.path().join("to"));
        assert!(!is_tar(&bad).unwrap());
        assert!(untar(&bad, &dir.path().join("s"), &to).is_err());
        assert!(unzip(&bad, &dir.path().join("z"), &to).is_err());
    }
}
