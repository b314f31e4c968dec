//! Placing the launcher's binary where the user's container can run it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::Error;

/// Copies the running binary to `target`, readable and executable for everyone. An existing file is replaced, even
/// one that is running.
///
/// # Errors
/// [`Error::Copy`].
pub fn install(target: &Path) -> Result<(), Error> {
    let failed = |source| Error::Copy { path: target.to_owned(), source };
    let own = std::env::current_exe().map_err(failed)?;
    let dir = target.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(failed)?;
    let part = dir.join(format!(".launch-{}", std::process::id()));
    let copied = std::fs::copy(&own, &part)
        .and_then(|_| std::fs::set_permissions(&part, std::fs::Permissions::from_mode(0o555)))
        .and_then(|()| std::fs::rename(&part, target));
    copied.map_err(|error| {
        // Best effort: the first failure is the one to report.
        let _ = std::fs::remove_file(&part);
        failed(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_replace_and_are_executable() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("deep/launch");
        install(&target).unwrap();
        install(&target).unwrap();
        let meta = std::fs::metadata(&target).unwrap();
        assert_eq!(meta.permissions().mode() & 0o777, 0o555);
        assert_eq!(meta.len(), std::fs::metadata(std::env::current_exe().unwrap()).unwrap().len());
        assert_eq!(std::fs::read_dir(target.parent().unwrap()).unwrap().count(), 1);
        let error = install(Path::new("/proc/no/launch")).unwrap_err().to_string();
        assert!(error.contains("/proc/no/launch"), "{error}");
    }
}
