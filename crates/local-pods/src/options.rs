//! Settings of the pod runner.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures::future::BoxFuture;

use crate::logs::LogWriter;
use crate::paths::Paths;

/// What runs the containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Runner {
    /// Processes of this machine; images are ignored.
    #[default]
    Process,
    /// The images, with podman.
    Podman,
    /// The images, with docker.
    Docker,
}

/// How processes are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// Namespaces if the kernel permits them, else path mapping.
    #[default]
    Auto,
    /// Mount, PID and (for ordinary users) user namespaces; an error when not permitted.
    Namespaces,
    /// No namespaces: private paths are rewritten to the pod's directory in commands, arguments
    /// and variables, `KFP_POD_ROOT` and `TMPDIR` name it. Programs that build such a path
    /// themselves see the machine's own, and nothing stops them from writing elsewhere.
    Mapped,
}

/// A driver container to be run in this process.
#[derive(Debug, Clone)]
pub struct Invocation {
    /// Arguments after the program name, `$(VAR)` expanded.
    pub args: Vec<String>,
    /// The container's environment.
    pub env: BTreeMap<String, String>,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// Where paths of the container are on this machine.
    pub paths: Paths,
    /// The container's log.
    pub log: LogWriter,
}

/// How a driver ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DriverExit {
    /// 0 for success.
    pub code: i32,
    /// What failed and why; becomes the termination message of the container and so the message of its node.
    pub message: String,
    /// Files that it wrote, path in the container and content: they never get to the disk.
    pub files: Vec<(String, String)>,
}

/// Runs a driver.
pub type DriverHook = Arc<dyn Fn(Invocation) -> BoxFuture<'static, DriverExit> + Send + Sync>;

/// Settings; every path may be relative and must exist unless said otherwise.
#[derive(Clone)]
pub struct Options {
    /// Everything is kept below; made when missing. Symbolic links are resolved.
    pub data_dir: PathBuf,
    /// Kubeconfig for containers; written before [`crate::run`] is called.
    pub kubeconfig: PathBuf,
    /// The launcher binary.
    pub launcher: PathBuf,
    /// The program that calls [`crate::pod_init_main`] first thing: normally this executable, or
    /// a smaller one that starts faster (`kfp-pod-init` of this crate).
    pub pod_init: PathBuf,
    /// Runs driver containers in this process.
    pub driver: DriverHook,
    /// Pods with processes at the same time; the rest waits. Drivers do not count.
    pub max_parallel: usize,
    /// What runs the containers.
    pub runner: Runner,
    /// How processes are kept apart.
    pub isolation: Isolation,
    /// Variables for every container, such as `KFP_OBJECT_STORE_DIR`.
    pub extra_env: BTreeMap<String, String>,
    /// Flags of launchers, without dashes, that hold whatever a pod says: the servers may be elsewhere by now than when
    /// its Workflow was compiled.
    pub launcher_flags: BTreeMap<String, String>,
    /// Directories that containers may write besides their own; the one in
    /// `KFP_OBJECT_STORE_DIR` is always among them.
    pub writable: Vec<PathBuf>,
    /// Interpreter for components; by default the first `python3` of the path.
    pub python: Option<PathBuf>,
    /// Make the base Python environment at once instead of when first needed.
    pub prepare_python: bool,
    /// Bytes kept of one container's log.
    pub max_log_bytes: u64,
    /// Where the logs of main containers go when their Workflow is deleted, as `<workflow>/<pod>/main.log`. Without it
    /// they are deleted, too.
    pub log_archive: Option<PathBuf>,
    /// Ended pods that stay to be looked at; of more, the oldest go. Their logs stay as long as their Workflow.
    pub ended_pods: usize,
    /// Seconds between SIGTERM and SIGKILL for pods that do not say.
    pub grace_seconds: u64,
}

impl Options {
    /// Defaults: processes, automatic isolation, four pods per core, 256 MiB of log, 2,000 ended pods, 30 s grace.
    pub fn new(
        data_dir: PathBuf,
        kubeconfig: PathBuf,
        launcher: PathBuf,
        pod_init: PathBuf,
        driver: DriverHook,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(4, std::num::NonZero::get);
        Self {
            data_dir,
            kubeconfig,
            launcher,
            pod_init,
            driver,
            max_parallel: 4 * cores,
            runner: Runner::default(),
            isolation: Isolation::default(),
            extra_env: BTreeMap::new(),
            launcher_flags: BTreeMap::new(),
            writable: Vec::new(),
            python: None,
            prepare_python: true,
            max_log_bytes: 256 << 20,
            log_archive: None,
            ended_pods: 2000,
            grace_seconds: 30,
        }
    }
}
