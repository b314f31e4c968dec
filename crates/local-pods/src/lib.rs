//! The kubelet of kfp-local: runs the Pods of the embedded Kubernetes API as processes of this
//! machine, or from their images with podman or docker.
//!
//! [`run`] watches pods and runs each in a directory of its own below the data directory; see
//! [`Isolation`] for how far that keeps them apart. It also keeps container logs and answers
//! requests for them.
//!
//! Containers with the command `driver` are run in this process by [`Options::driver`];
//! `launcher-v2 --copy` is done without a process; `launcher-v2` otherwise is [`Options::launcher`].
//! Images are ignored by the process runner.
//!
//! What `sh` means in an image differs (bash, dash, busybox); here it is bash where the machine has it, because only
//! that understands what all of them do.
//!
//! What the template in a pod's annotation (`workflows.argoproj.io/template`) says about scripts, artifacts and output
//! parameters is done by the server itself, instead of by containers of Argo: artifacts come from and go to the
//! directory in `KFP_OBJECT_STORE_DIR`. So are the actions of resource templates.
//!
//! Attempts of one task (annotation `workflows.argoproj.io/retry-parent`) share `/tmp` and the working directory.
//!
//! The program in [`Options::pod_init`] must call [`pod_init_main`] before it starts a thread.

mod api;
mod archive;
mod artifacts;
mod condition;
mod container;
mod dirs;
mod driver;
mod engine;
mod env;
mod exchange;
mod gc;
mod init;
mod job;
mod kubelet;
mod links;
mod log_file;
mod log_reader;
mod logs;
mod options;
mod outputs;
mod paths;
mod pod;
mod process;
mod python;
mod recovery;
mod resource;
mod retry;
mod spare;
mod spec;
mod spread;
mod status;
mod termination;
mod volumes;

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;
use kfp_core::objects::Opener;
use kfp_core::shutdown::CancellationToken;
use kfp_local_api::Cluster;

pub use logs::{LogWriter, plain_text};
pub use options::{DriverExit, DriverHook, Invocation, Isolation, Options, Runner};
pub use paths::Paths;

use kubelet::{Host, Kubelet};

/// Why pods cannot be run at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something in the data directory cannot be made, or a program to copy into it is missing.
    #[error("{path}: {source}")]
    DataDir {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// Namespaces were demanded and are not permitted.
    #[error("the kernel does not permit namespaces here ({0}); choose path mapping instead")]
    Namespaces(String),
    /// No thread for starting processes.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// Runs this process as a container's supervisor, or as `python` or `pip` of a container, if the
/// arguments say so, and returns the exit code. To be called first thing in `main`, with all
/// arguments, while the process has one thread.
pub fn pod_init_main(args: impl IntoIterator<Item = OsString>) -> Option<i32> {
    let args: Vec<OsString> = args.into_iter().collect();
    init::main(&args).or_else(|| python::main(&args))
}

/// Runs pods until shutdown, then ends their processes; their pods are failed at the next start.
///
/// # Errors
/// When the data directory or the demanded isolation is not available.
pub fn run(cluster: Cluster, options: Options, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that all of it is compiled in this crate, once, and not in each that awaits it.
    Box::pin(run_unboxed(cluster, options, shutdown))
}

async fn run_unboxed(cluster: Cluster, options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let api: Arc<dyn api::Api> = Arc::new(cluster);
    let setup = options.clone();
    let task = tokio::task::spawn_blocking(move || {
        let dirs = dirs::Dirs::create(&setup)?;
        let python = python::detect(setup.python.as_deref());
        let store = python::Store::new(dirs.python());
        store.create(&dirs.pod_init()).map_err(|source| Error::DataDir { path: dirs.python(), source })?;
        Ok((dirs, python))
    });
    let (dirs, python) = task.await.unwrap_or_else(|e| Err(Error::Thread(std::io::Error::other(e))))?;
    if let Err(message) = &python {
        tracing::warn!("{message}");
    }
    let spawner = process::Spawner::start().map_err(Error::Thread)?;
    let namespaces = namespaces(&options, &dirs, &spawner).await?;
    tracing::info!(namespaces, runner = ?options.runner, "pods run in {}", dirs.pods().display());
    let logs = logs::Logs::new(dirs.logs(), options.max_log_bytes).with_archive(options.log_archive.clone());
    let logs = Arc::new(logs);
    api.set_log_source(logs.clone());
    let (processes, drivers) = kubelet::slots(&options);
    let spare = dirs.spare_pods();
    let spares = spare::Spares::create(spare.clone()).map_err(|source| Error::DataDir { path: spare, source })?;
    let objects = Opener { dir: dirs::objects(&options), ..Opener::default() };
    let kubelet = Kubelet {
        shutdown_grace: kubelet::shutdown_grace(&options),
        host: Host::read(),
        api,
        options,
        dirs,
        spares,
        ended: tokio::sync::watch::Sender::new(0),
        objects,
        logs,
        spawner,
        namespaces,
        python,
        processes,
        drivers,
    };
    kubelet::serve(Arc::new(kubelet), shutdown).await
}

/// Tries whether a container with namespaces comes up.
async fn namespaces(options: &Options, dirs: &dirs::Dirs, spawner: &process::Spawner) -> Result<bool, Error> {
    if options.isolation == Isolation::Mapped {
        return Ok(false);
    }
    match probe(dirs, spawner).await {
        Ok(()) => Ok(true),
        Err(message) if options.isolation == Isolation::Namespaces => Err(Error::Namespaces(message)),
        Err(message) => {
            tracing::warn!("no namespaces ({message}): pods are kept apart by path mapping only");
            Ok(false)
        }
    }
}

async fn probe(dirs: &dirs::Dirs, spawner: &process::Spawner) -> Result<(), String> {
    let name = format!("probe-{}", uuid::Uuid::new_v4());
    let dir = dirs.pod(&name);
    let root = dir.join("root");
    std::fs::create_dir_all(root.join("tmp")).map_err(|e| format!("{}: {e}", root.display()))?;
    let spec = init::Spec {
        namespaces: true,
        server: std::process::id(),
        root,
        binds: dirs.common.clone(),
        hostname: "probe".into(),
        argv: vec!["/bin/sh".into(), "-c".into(), ": > /tmp/probe".into()],
        env: vec![],
        cwd: "/tmp".into(),
        result: None,
    };
    let input = serde_json::to_vec(&spec).map_err(|e| e.to_string())?;
    let launch = container::Launch {
        program: vec![dirs.pod_init().display().to_string(), init::OUTER.into()],
        env: vec![(recovery::MARK.into(), dir.display().to_string())],
        input,
    };
    let logs = logs::Logs::new(dir.join("logs"), 1 << 10);
    let log = logs.begin("probe", "probe", "probe", None, false).map_err(|e| e.to_string())?;
    let (orders, mut queue) = tokio::sync::mpsc::channel(1);
    let run =
        process::run(spawner, launch.command(), launch.input, &log, &process::Supervision::Namespace, &mut queue, None);
    let result = tokio::time::timeout(std::time::Duration::from_secs(20), run).await;
    drop(orders);
    let appeared = dir.join("root/tmp/probe").exists();
    recovery::remove(&dir);
    match result {
        Ok(Ok(exit)) if exit.code == 0 && appeared => Ok(()),
        Ok(Ok(exit)) if exit.report.is_empty() => Err(format!("the attempt ended with exit code {}", exit.code)),
        Ok(Ok(exit)) => Err(exit.report),
        Ok(Err(e)) => Err(e.to_string()),
        Err(_) => Err("the attempt did not end within 20 s".into()),
    }
}
