//! Who may do what. Only single-user mode exists so far: everybody may do everything, and multi-user mode is refused at
//! start, so that no installation believes itself protected.

/// Namespace in which experiments and pipelines are stored; single-user mode ignores what requests say.
#[must_use]
pub fn stored_namespace(_requested: &str) -> String {
    String::new()
}
