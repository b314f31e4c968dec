//! Why a task failed, in words for the person who wrote the pipeline.

use std::path::PathBuf;
use std::time::Duration;

use kfp_core::{mlmd, objects};

use crate::{command, output};

/// Failure of the launcher or of the task that it runs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A flag holds JSON that cannot be read.
    #[error("cannot read --{flag}: {source}")]
    Flag {
        /// Name of the flag.
        flag: &'static str,
        /// The cause.
        source: serde_json::Error,
    },
    /// The own binary could not be copied.
    #[error("cannot copy the launcher to {path}: {source}")]
    Copy {
        /// Target.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The task's execution could not be marked as running; the program was stopped or not even started.
    #[error("failed to pre-publish Pod info to ML Metadata: {0}")]
    PrePublish(mlmd::Error),
    /// The metadata store failed later.
    #[error(transparent)]
    Metadata(#[from] mlmd::Error),
    /// The session information of the run is unreadable.
    #[error("the run's store_session_info is not valid JSON: {0}")]
    Session(serde_json::Error),
    /// An output artifact has an address without a local path.
    #[error("failed to generate local path for URI {0}: unsupported storage scheme")]
    NoLocalPath(String),
    /// A file or directory of the task could not be made.
    #[error("cannot create {path}: {source}")]
    File {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A certificate authority is unreadable.
    #[error("cannot use the certificate authority {path}: {source}")]
    Authority {
        /// The PEM file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Object stores cannot be reached as the options say.
    #[error(transparent)]
    Opener(Box<objects::Error>),
    /// An input could not be fetched.
    #[error("failed to download input artifact {name:?} from {uri}: {source}")]
    Download {
        /// Name of the input.
        name: String,
        /// Where it is stored.
        uri: String,
        /// The cause.
        source: Box<objects::Error>,
    },
    /// The launcher was stopped before the user's program ran.
    #[error("the task was stopped before its command was started")]
    Stopped,
    /// The user's program did not succeed.
    #[error(transparent)]
    Command(#[from] command::Error),
    /// The user's program succeeded, but its outputs are missing or wrong.
    #[error(transparent)]
    Output(#[from] output::Error),
    /// An output could not be stored.
    #[error("failed to upload output artifact {name:?} from {path} to {uri}: {source}")]
    Upload {
        /// Name of the output.
        name: String,
        /// Local file or directory.
        path: PathBuf,
        /// Where it should go.
        uri: String,
        /// The cause.
        source: Box<objects::Error>,
    },
    /// An artifact's type has no name.
    #[error("artifact {name:?}: {reason}")]
    ArtifactType {
        /// Name of the output.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The outcome could not be recorded.
    #[error("failed to publish execution with error {publish} after execution failed: {failure}")]
    PublishFailure {
        /// Why recording failed.
        publish: mlmd::Error,
        /// Why the task itself failed.
        failure: Box<Error>,
    },
    /// The importer's task or component is not what it should be.
    #[error("importer: {0}")]
    Importer(String),
}

impl Error {
    /// How long keeping the log may take after this failure: not long if the pod is about to be killed, or if the store
    /// has been away for minutes already.
    pub(crate) fn time_for_log(&self) -> Option<Duration> {
        match self {
            Error::Stopped | Error::Command(command::Error::Stopped { .. }) => Some(Duration::from_secs(8)),
            Error::Download { source, .. } | Error::Upload { source, .. } if source.is_transient() => {
                Some(Duration::from_secs(15))
            }
            _ => None,
        }
    }
}
