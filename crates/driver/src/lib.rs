//! The driver: runs before every DAG and every container of a pipeline, resolves inputs from the metadata store,
//! decides about conditions, iterations and the cache, and computes the patch for the task's pod.
//!
//! [`drive`] is the whole of it as one function from a typed request to a typed response; [`run`] is the process
//! around it, [`run_with`] the same for a host that brings its own connections.

mod cache;
mod cel;
mod container;
mod dag;
mod error;
mod kubernetes;
mod options;
mod outputs;
mod placeholders;
mod pod;
mod pvc;
mod request;
mod resolve;
mod text;
mod times;

use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use kfp_core::shutdown::CancellationToken;
use kfp_core::{grpc, kubeapi, mlmd};

pub use cache::Cache;
pub use cel::Error as ExpressionError;
pub use error::Error;
pub use options::{DEFAULT_PIPELINE_ROOT, Environment, Options, OutputPaths, Refused, log_level};
pub use request::{Container, DriverPod, Launcher, Proxies, Request, Response, RunInfo, SecurityDefaults, Task, Work};

/// Environment variable with the largest message to and from the metadata store.
const MESSAGE_SIZE: &str = "METADATA_GRPC_MESSAGE_SIZE";

/// Environment variable with the settings of upstream's MLflow plugin.
const MLFLOW: &str = "KFP_MLFLOW_CONFIG";

/// Connections that a driver uses.
#[derive(Clone, Debug)]
pub struct Services {
    /// The metadata store.
    pub metadata: mlmd::Client,
    /// The API server's record of reusable executions.
    pub cache: Cache,
    /// The Kubernetes API. Without one there is no `kfp-launcher` ConfigMap, and PVC operations fail.
    pub kubernetes: Option<kubeapi::Client>,
}

impl Services {
    /// Connections to the addresses of a command line, made on first use.
    ///
    /// # Errors
    /// When an address is malformed or the CA certificate cannot be read.
    pub fn connect(servers: &Launcher) -> Result<Self, Error> {
        let port = |name: &str, text: &str, default: u16| match text {
            "" => Ok(default),
            text => text.parse().map_err(|_| Error::Arguments(format!("--{name}: {text:?} is not a port"))),
        };
        let tls = |enabled: bool| enabled.then(|| grpc::Tls::load(&servers.ca_cert_path)).transpose();
        let metadata = mlmd::Client::connect_lazy(
            &servers.mlmd_server_address,
            port("mlmd_server_port", &servers.mlmd_server_port, 8080)?,
            tls(servers.metadata_tls_enabled)?.as_ref(),
        )?;
        let metadata = match std::env::var(MESSAGE_SIZE) {
            Ok(text) => match text.trim().parse::<usize>() {
                Ok(bytes) if bytes > 0 => metadata.with_max_message_bytes(bytes),
                _ => {
                    return Err(Error::Arguments(format!("{MESSAGE_SIZE}={text:?} is not a positive number of bytes")));
                }
            },
            Err(_) => metadata,
        };
        let channel = grpc::channel(
            &servers.ml_pipeline_server_address,
            port("ml_pipeline_server_port", &servers.ml_pipeline_server_port, 8887)?,
            tls(servers.ml_pipeline_tls_enabled)?.as_ref(),
        )?;
        Ok(Self { metadata, cache: Cache::new(channel), kubernetes: Some(kubeapi::Client::from_env()?) })
    }

    pub(crate) fn kubernetes(&self) -> Result<&kubeapi::Client, Error> {
        self.kubernetes.as_ref().ok_or_else(|| Error::Arguments("no Kubernetes API is configured".to_owned()))
    }
}

/// Does what one driver invocation has to do.
///
/// # Errors
/// [`Error::Driving`], which says what was driven and why it failed. The task has a FAILED execution by then, so that
/// its DAG fails too, unless the metadata store is what failed.
pub fn drive(request: Request, services: &Services) -> BoxFuture<'_, Result<Response, Error>> {
    // Boxed, so that all of it is compiled in this crate, once, and not in each that awaits it.
    Box::pin(drive_unboxed(request, services))
}

async fn drive_unboxed(request: Request, services: &Services) -> Result<Response, Error> {
    let result = match &request.work {
        Work::Root { runtime_config, default_pipeline_root } => {
            dag::root(&request, runtime_config, default_pipeline_root, services).await
        }
        Work::Dag(task) => dag::nested(&request, task, services).await,
        Work::Container(container) => container::drive(&request, container, services).await,
    };
    result.map_err(|source| Error::Driving { what: request.describe(), source: Box::new(source) })
}

/// Runs the driver as a process: connects, drives, writes the output files.
///
/// # Errors
/// Whatever [`drive`] fails with, or when an output file cannot be written, or `shutdown` comes first.
pub fn run(options: Options, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that all of it is compiled in this crate, once, and not in each that awaits it.
    Box::pin(run_unboxed(options, shutdown))
}

async fn run_unboxed(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    if std::env::var_os(MLFLOW).is_some() {
        tracing::warn!("{MLFLOW} is set, but this driver has no MLflow plugin: tasks are not reported there");
    }
    let services = Services::connect(&options.servers)?;
    let driven = tokio::select! {
        () = shutdown.cancelled() => return Err(Error::Stopped),
        driven = run_options(options, &services) => driven,
    };
    match (write(&driven.files), driven.result) {
        (written, Ok(())) => written,
        (Ok(()), Err(error)) => Err(error),
        (Err(second), Err(error)) => {
            tracing::warn!("the output files of the failed driver are incomplete: {second}");
            Err(error)
        }
    }
}

fn write(files: &[(String, String)]) -> Result<(), Error> {
    for (path, content) in files {
        let path = Path::new(path);
        let failed = |source| Error::Output { path: path.to_owned(), source };
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).map_err(failed)?;
        std::fs::write(path, content).map_err(failed)?;
    }
    Ok(())
}

/// What a driver invocation came to.
#[derive(Debug)]
pub struct Driven {
    /// The output files, path and content. A driver that fails may have some, too.
    pub files: Vec<(String, String)>,
    /// Whether it succeeded; the errors are those of [`run`], and a wrong command line is [`Error::Arguments`].
    pub result: Result<(), Error>,
}

impl From<Error> for Driven {
    fn from(error: Error) -> Self {
        Self { files: Vec::new(), result: Err(error) }
    }
}

/// Runs one driver invocation in the calling process, with the caller's connections. Writes nothing: the output files
/// are the caller's to place. `map_path` says where the paths of the command line really are (`@component`).
pub async fn run_with(
    args: Vec<String>,
    services: &Services,
    environment: &Environment,
    map_path: &(dyn Fn(&str) -> PathBuf + Sync),
) -> Driven {
    use kfp_core::flags::Stop;
    match Options::from_args(args, environment, map_path) {
        Ok(options) => run_options(options, services).await,
        Err(Refused::Invalid(error)) => error.into(),
        Err(Refused::Usage(Stop::Info(text) | Stop::Wrong(text))) => Error::Arguments(text).into(),
    }
}

async fn run_options(options: Options, services: &Services) -> Driven {
    let Options { request, servers: _, outputs } = options;
    let work = request.work.clone();
    match drive(request, services).await {
        Ok(response) => match outputs.files(&work, &response) {
            Ok(files) => Driven { files, result: Ok(()) },
            Err(error) => error.into(),
        },
        Err(error) => {
            let files = error.response().map(|response| outputs.files(&work, response)).transpose();
            let files = files.unwrap_or_else(|second| {
                tracing::warn!("the output files of the failed driver are incomplete: {second}");
                None
            });
            Driven { files: files.unwrap_or_default(), result: Err(error) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn wrong_command_lines_fail_within_a_host_and_the_future_may_move_between_threads() {
        let channel = grpc::channel("localhost", 1, None).unwrap();
        let services =
            Services { metadata: mlmd::Client::new(channel.clone()), cache: Cache::new(channel), kubernetes: None };
        let environment = Environment::detect();
        let task = tokio::spawn(async move {
            let args = vec!["--no_such_flag".to_owned()];
            run_with(args, &services, &environment, &|path| PathBuf::from(path)).await
        });
        let error = task.await.unwrap().result.unwrap_err().to_string();
        assert!(error.starts_with("flag provided but not defined: -no_such_flag"), "{error}");
    }
}
