//! What can go wrong between the bytes of a pipeline file and a Workflow.

/// Why a pipeline cannot be read or compiled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file or document is not a pipeline (upstream: InvalidArgument).
    #[error("{0}")]
    Package(String),
    /// The file is larger than accepted (upstream: InvalidArgument).
    #[error("{0}")]
    TooLarge(String),
    /// The pipeline spec contradicts itself or asks for something that does not exist.
    #[error("{0}")]
    Spec(String),
    /// The parameters of a run do not fit the pipeline.
    #[error("invalid pipeline job inputs: {0}")]
    Inputs(String),
    /// A setting of the compiler is wrong.
    #[error("{0}")]
    Setting(String),
    /// Where it happened.
    #[error("{context}: {cause}")]
    At {
        /// Component, task or phase.
        context: String,
        /// What happened; part of the text already, so it is not offered as `source` again.
        cause: Box<Error>,
    },
}

impl Error {
    /// Whether the pipeline's author or the caller is to blame, rather than the installation's settings.
    pub fn is_user_error(&self) -> bool {
        match self {
            Self::At { cause, .. } => cause.is_user_error(),
            Self::Setting(_) => false,
            _ => true,
        }
    }

    pub(crate) fn spec(message: impl Into<String>) -> Self {
        Self::Spec(message.into())
    }
}

/// Adds context to errors.
pub(crate) trait At<T> {
    /// Prefixes the error with `context`.
    fn at(self, context: impl FnOnce() -> String) -> Result<T, Error>;
}

impl<T> At<T> for Result<T, Error> {
    fn at(self, context: impl FnOnce() -> String) -> Result<T, Error> {
        self.map_err(|cause| Error::At { context: context(), cause: Box::new(cause) })
    }
}
