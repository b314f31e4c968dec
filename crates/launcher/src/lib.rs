//! The launcher: the program that wraps user code in a task's pod.
//!
//! It fetches input artifacts, fills placeholders, runs the user's command, collects parameters and artifacts, stores
//! them and records everything in the metadata store. As an importer it registers an artifact that exists already;
//! with `--copy` it places itself where the user's container finds it.

pub mod command;
mod container;
mod copy;
mod error;
mod importer;
mod last_words;
mod log;
pub mod options;
pub mod output;
pub mod paths;
pub mod placeholders;
pub mod spec;
pub mod stores;

use futures::future::LocalBoxFuture;
use kfp_core::objects::{Opener, Patience};
use kfp_core::shutdown::CancellationToken;
use kfp_core::{grpc, mlmd, termination};

pub use error::Error;
pub use options::{Mode, Options};

/// Settings of upstream's MLflow plugin.
const MLFLOW: &str = "KFP_MLFLOW_CONFIG";

/// What was achieved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The binary was copied.
    Copied,
    /// The task succeeded and was recorded as COMPLETE.
    Completed {
        /// Metadata id of the execution.
        execution: i64,
    },
}

/// Does what the options say. Must run inside a tokio runtime. When `shutdown` is cancelled, the user's command is
/// stopped and the task recorded as failed.
///
/// # Errors
/// [`Error`]; a failed task has been recorded as FAILED by then (unless the metadata store itself failed), and the
/// message has been left for the pod's status.
pub fn run(options: Options, shutdown: CancellationToken) -> LocalBoxFuture<'static, Result<Outcome, Error>> {
    // Boxed, so that all of it is compiled in this crate, once, and not in each that awaits it.
    Box::pin(run_unboxed(options, shutdown))
}

async fn run_unboxed(options: Options, shutdown: CancellationToken) -> Result<Outcome, Error> {
    if std::env::var_os(MLFLOW).is_some() {
        tracing::warn!("{MLFLOW} is set, but this launcher has no MLflow plugin: the task is not reported there");
    }
    let result = match &options.mode {
        Mode::Copy(target) => {
            copy::install(&paths::Paths::new(options.root.clone()).place(target)).map(|()| Outcome::Copied)
        }
        Mode::Container => container::run(&options, &shutdown).await.map(|execution| Outcome::Completed { execution }),
        Mode::Importer => importer::run(&options).await.map(|execution| Outcome::Completed { execution }),
    };
    if let Err(error) = &result {
        let path = paths::Paths::new(options.root.clone()).place(termination::MESSAGE_FILE);
        termination::leave_message(&path, &error.to_string());
    }
    result
}

fn metadata_client(options: &Options) -> Result<mlmd::Client, mlmd::Error> {
    let server = &options.metadata;
    let tls = if server.tls { Some(grpc::Tls::load(&options.ca_cert_path)?) } else { None };
    mlmd::Client::connect_lazy(&server.address, server.port, tls.as_ref())
}

fn opener(options: &Options) -> Result<Opener, kfp_core::objects::Error> {
    let dir = options.object_store_dir.clone();
    let opener = Opener { dir, patience: Patience::of_a_task(), ..Opener::default() };
    opener.with_authorities(options.ca_cert_path.as_ref())
}
