//! Options of the engine.

/// How the engine runs.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only Workflows of this namespace; of all without one.
    pub namespace: Option<String>,
}
