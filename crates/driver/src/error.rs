//! Why a driver failed.

use kfp_core::{grpc, kubeapi, mlmd};

use crate::Response;

/// Why a driver failed. Texts that upstream's users know are kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line contradicts itself or lacks something.
    #[error("{0}")]
    Arguments(String),
    /// An input of the task could not be resolved.
    #[error("failed to resolve inputs: {0}")]
    Inputs(String),
    /// A condition or selector is wrong or cannot be evaluated.
    #[error(transparent)]
    Expression(#[from] crate::cel::Error),
    /// The pod patch cannot be built from the task's configuration.
    #[error("failed to init podSpecPatch: {0}")]
    Pod(String),
    /// A PVC operation failed.
    #[error("failed to {operation} and publish execution {task}: {reason}")]
    Volume {
        /// `create PVC` or `delete PVC`.
        operation: &'static str,
        /// Name of the task.
        task: String,
        /// The cause.
        reason: String,
    },
    /// The cache could not be asked or told.
    #[error("failure while getting executionCache: {0}")]
    Cache(String),
    /// The pipeline root or its provider configuration is unusable.
    #[error("{0}")]
    Store(String),
    /// A server cannot be connected to.
    #[error(transparent)]
    Connection(#[from] grpc::Error),
    /// The metadata store failed.
    #[error(transparent)]
    Metadata(#[from] mlmd::Error),
    /// The Kubernetes API failed.
    #[error(transparent)]
    Kubernetes(#[from] kubeapi::Error),
    /// An output file cannot be written.
    #[error("failed to write {path:?}: {source}")]
    Output {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The process was told to stop.
    #[error("stopped by a signal")]
    Stopped,
    /// A failure after the execution was recorded. What was decided by then is still left for Argo.
    #[error("{source}")]
    Late {
        /// What was decided.
        response: Box<Response>,
        /// The cause.
        source: Box<Error>,
    },
    /// Any of the above, with what was being driven.
    #[error("KFP driver: {what} failed: {source}")]
    Driving {
        /// `driver.Container(pipelineName=..., ...)`.
        what: String,
        /// The cause.
        source: Box<Error>,
    },
}

impl Error {
    /// What was decided before the failure, if anything was recorded.
    #[must_use]
    pub fn response(&self) -> Option<&Response> {
        match self {
            Error::Late { response, .. } => Some(response),
            Error::Driving { source, .. } => source.response(),
            _ => None,
        }
    }

    pub(crate) fn late(self, response: Response) -> Self {
        Error::Late { response: Box::new(response), source: Box::new(self) }
    }
}
