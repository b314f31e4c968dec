//! What a container says about its end.

use std::path::Path;

/// Kubernetes shows what a container leaves in this file as the message of its termination.
pub const MESSAGE_FILE: &str = "/dev/termination-log";

/// Leaves `message` at `path`, which is [`MESSAGE_FILE`] as this process sees it, if it runs in a container that has
/// such a file. Best effort: callers print the same text to standard error.
pub fn leave_message(path: &Path, message: &str) {
    if path.is_file() {
        let _ = std::fs::write(path, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_go_to_a_file_that_is_there_and_make_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("termination-log");
        leave_message(&path, "lost");
        assert!(!path.exists());
        std::fs::write(&path, "an older and longer text").unwrap();
        leave_message(&path, "kept");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept");
    }
}
