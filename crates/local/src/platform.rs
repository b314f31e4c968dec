//! The platform: every component in one process, on an embedded Kubernetes API.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt as _;
use kfp_core::grpc::{self, Transport};
use kfp_core::mlmd;
use kfp_core::shutdown::CancellationToken;
use kfp_local_api::Cluster;
use tokio::task::JoinSet;

use crate::listen::{self, Listeners};
use crate::options::Platform as Options;

/// Namespace of everything.
pub const NAMESPACE: &str = "kubeflow";
/// Where artifacts go unless a run says otherwise; the bucket is a folder of the data directory.
const PIPELINE_ROOT: &str = "minio://mlpipeline/v2/artifacts";
/// Bucket of what belongs to the platform.
const BUCKET: &str = "mlpipeline";
/// Key under which logs lie whose Workflow is gone.
const LOGS: &str = "logs";

/// Why the platform did not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port is taken.
    #[error(transparent)]
    Port(#[from] listen::Error),
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {reason}; choose another with --data-dir", path = .path.display())]
    Data {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The embedded Kubernetes API cannot start.
    #[error(transparent)]
    Cluster(#[from] kfp_local_api::Error),
    /// The launcher is not where it should be.
    #[error("the program launcher-v2 is missing at {}; build it (make build) or name it with --launcher", .0.display())]
    Launcher(PathBuf),
    /// A component failed.
    #[error("{component}: {reason}")]
    Component {
        /// Its name.
        component: &'static str,
        /// Why.
        reason: String,
    },
}

/// A running platform.
pub struct Platform {
    /// REST address, such as `http://127.0.0.1:8888`.
    pub rest: String,
    /// Host of all ports as clients reach it.
    pub host: String,
    /// gRPC port.
    pub grpc_port: u16,
    /// Metadata port.
    pub metadata_port: u16,
    /// Address of the Kubernetes API.
    pub kubernetes: String,
    /// Its kubeconfig.
    pub kubeconfig: PathBuf,
    cluster: Cluster,
    workers: CancellationToken,
    servers: CancellationToken,
    tasks: JoinSet<(&'static str, Result<(), String>)>,
}

fn failed<E: std::fmt::Display>(component: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::Component { component, reason: error.to_string() }
}

impl Platform {
    /// Starts everything.
    ///
    /// # Errors
    /// See [`Error`]; each names its remedy where there is one.
    pub async fn start(options: &Options) -> Result<Self, Error> {
        let data = data_dir(&options.data_dir)?;
        let launcher = launcher(options.launcher.as_deref())?;
        let listeners = Listeners::bind(options)?;
        let cluster = Cluster::open(&data).await?;
        let port = |listener| listen::port(listener).map_err(failed("ports"));
        let (rest_port, grpc_port) = (port(&listeners.rest)?, port(&listeners.grpc)?);
        let (metadata_port, kubernetes_port) = (port(&listeners.metadata)?, port(&listeners.kubernetes)?);
        // A wildcard address is no address to connect to.
        let host = if options.host.is_unspecified() { "127.0.0.1".to_owned() } else { options.host.to_string() };
        let authority = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let kubernetes = format!("http://{authority}:{kubernetes_port}");
        let kubeconfig = data.join("kubeconfig");
        write(&data, &kubeconfig, &kfp_local_api::kubeconfig(&kubernetes, NAMESPACE))?;
        let objects = data.join("objects");
        std::fs::create_dir_all(&objects).map_err(|e| unusable(&data, &e))?;

        let mut platform = Self {
            rest: format!("http://{authority}:{rest_port}"),
            host: host.clone(),
            grpc_port,
            metadata_port,
            kubernetes,
            kubeconfig: kubeconfig.clone(),
            cluster: cluster.clone(),
            workers: CancellationToken::new(),
            servers: CancellationToken::new(),
            tasks: JoinSet::new(),
        };
        let servers = platform.servers.clone();
        let workers = platform.workers.clone();

        let kubernetes_listener =
            tokio::net::TcpListener::from_std(listeners.kubernetes).map_err(failed("kubernetes API"))?;
        platform.spawn("kubernetes API", {
            let (cluster, servers) = (cluster.clone(), servers.clone());
            async move { kfp_local_api::serve(cluster, kubernetes_listener, servers).await }
        });

        let storage = kfp_metadata::Storage::Sqlite(data.join("metadata.db"));
        let mut metadata = kfp_metadata::Options::new(&host, metadata_port, storage);
        metadata.listener = Some(listeners.metadata);
        let (ready, metadata_ready) = tokio::sync::oneshot::channel();
        metadata.ready = Some(ready);
        platform.spawn("metadata store", kfp_metadata::run(metadata, servers.clone()));

        let kube = kube_client(&kubeconfig).await?;
        let compiler = kfp_compiler::Options {
            ml_pipeline_address: Some(host.clone()),
            ml_pipeline_port: grpc_port,
            mlmd_address: Some(host.clone()),
            mlmd_port: metadata_port,
            namespace: NAMESPACE.to_owned(),
            importers_wait: true,
            ..kfp_compiler::Options::default()
        };
        let api = apiserver_options(&data, &objects, kube.clone(), compiler, listeners.rest, listeners.grpc)?;
        platform.spawn("API server", kfp_apiserver::run(api, servers.clone()));

        let agent = agent_options(kube.clone(), &host, grpc_port)?;
        platform.spawn("persistence agent", kfp_persistence_agent::run(agent, workers.clone()));
        let schedules = schedule_options(kube, &host, grpc_port)?;
        platform.spawn("schedule controller", kfp_scheduledworkflow::run(schedules, workers.clone()));

        let engine = kfp_local_engine::run(cluster.clone(), kfp_local_engine::Options::default(), workers.clone());
        platform.spawn("workflow engine", engine.map(Ok::<_, std::convert::Infallible>));

        let Ok(metadata) = metadata_ready.await else { return Err(ended(&mut platform.tasks).await) };
        let driver = driver_hook(&kubeconfig, &host, grpc_port, metadata.transport)?;
        let mut pods = kfp_local_pods::Options::new(data.clone(), kubeconfig, launcher, pod_init()?, driver);
        if options.max_pods > 0 {
            pods.max_parallel = options.max_pods;
        }
        pods.runner = options.runner;
        pods.isolation = options.isolation;
        pods.python.clone_from(&options.python);
        pods.log_archive = Some(objects.join(BUCKET).join(LOGS));
        let flag = |name: &str, value: &dyn ToString| (name.to_owned(), value.to_string());
        pods.launcher_flags = BTreeMap::from([
            flag("ml_pipeline_server_address", &host),
            flag("ml_pipeline_server_port", &grpc_port),
            flag("mlmd_server_address", &host),
            flag("mlmd_server_port", &metadata_port),
        ]);
        pods.extra_env = BTreeMap::from([("KFP_OBJECT_STORE_DIR".to_owned(), objects.display().to_string())]);
        platform.spawn("pod runner", kfp_local_pods::run(cluster, pods, workers));
        platform.wait_until_healthy().await?;
        if let Some(file) = &options.ready_file {
            write(&data, file, &platform.rest)?;
        }
        Ok(platform)
    }

    fn spawn<E, F>(&mut self, name: &'static str, component: F)
    where
        E: std::fmt::Display,
        F: Future<Output = Result<(), E>> + Send + 'static,
    {
        self.tasks.spawn(async move { (name, component.await.map_err(|error| error.to_string())) });
    }

    /// The API server answers its health endpoint; a component that fails before ends the wait.
    async fn wait_until_healthy(&mut self) -> Result<(), Error> {
        let client = crate::client::Client::new(&self.rest).map_err(failed("API server"))?;
        let healthy = async {
            while client.get("/apis/v2beta1/healthz").await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            ended = ended(&mut self.tasks) => Err(ended),
            healthy = tokio::time::timeout(std::time::Duration::from_secs(60), healthy) => healthy.map_err(|_| {
                Error::Component { component: "API server", reason: "not healthy within 60 s".to_owned() }
            }),
        }
    }

    /// Waits until `shutdown` is cancelled or a component fails.
    ///
    /// # Errors
    /// The failure of the component.
    pub async fn serve(&mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        tokio::select! {
            () = shutdown.cancelled() => Ok(()),
            ended = ended(&mut self.tasks) => Err(ended),
        }
    }

    /// Stops: first what works, then what serves, then the store under it.
    ///
    /// # Errors
    /// The first failure of a component while it stopped.
    pub async fn stop(mut self) -> Result<(), Error> {
        let mut result = Ok(());
        self.workers.cancel();
        let mut left = self.tasks.len();
        while let Some(done) = self.tasks.join_next().await {
            left -= 1;
            if let Ok((component, Err(reason))) = done
                && result.is_ok()
            {
                result = Err(Error::Component { component, reason });
            }
            // Three servers remain when everything that calls them is done.
            if left <= 3 {
                self.servers.cancel();
            }
        }
        self.cluster.close().await;
        result
    }
}

/// The first component that ends although nobody asked it to.
async fn ended(tasks: &mut JoinSet<(&'static str, Result<(), String>)>) -> Error {
    match tasks.join_next().await {
        Some(Ok((component, result))) => {
            Error::Component { component, reason: result.err().unwrap_or_else(|| "ended unexpectedly".to_owned()) }
        }
        Some(Err(error)) => Error::Component { component: "platform", reason: error.to_string() },
        None => std::future::pending().await,
    }
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Data { path: path.to_owned(), reason: error.to_string() }
}

fn data_dir(path: &Path) -> Result<PathBuf, Error> {
    std::fs::create_dir_all(path).map_err(|e| unusable(path, &e))?;
    let path = path.canonicalize().map_err(|e| unusable(path, &e))?;
    let probe = path.join(".writable");
    std::fs::write(&probe, b"x").and_then(|()| std::fs::remove_file(&probe)).map_err(|e| unusable(&path, &e))?;
    Ok(path)
}

/// Writes through a temporary file, so that readers never see half of it.
fn write(data: &Path, path: &Path, text: &str) -> Result<(), Error> {
    let temporary = path.with_extension("new");
    std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, path)).map_err(|e| unusable(data, &e))
}

fn launcher(given: Option<&Path>) -> Result<PathBuf, Error> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("launcher-v2"));
    let path = given.map(Path::to_owned).or_else(beside).unwrap_or_else(|| PathBuf::from("launcher-v2"));
    path.canonicalize().map_err(|_| Error::Launcher(path))
}

/// The program that enters a pod's namespaces: the small one beside this program if it is there, else this program.
fn pod_init() -> Result<PathBuf, Error> {
    let own = std::env::current_exe().map_err(failed("pod runner"))?;
    let small = own.with_file_name("kfp-pod-init");
    Ok(if small.is_file() { small } else { own })
}

async fn kube_client(kubeconfig: &Path) -> Result<kube::Client, Error> {
    let wrong = failed("Kubernetes client");
    let file = kube::config::Kubeconfig::read_from(kubeconfig).map_err(|e| wrong(e.to_string()))?;
    let options = kube::config::KubeConfigOptions::default();
    let mut config = kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|e| wrong(e.to_string()))?;
    // Callers have their own retries and deadlines.
    config.default_retry = false;
    kube::Client::try_from(config).map_err(|e| wrong(e.to_string()))
}

fn apiserver_options(
    data: &Path,
    objects: &Path,
    kube: kube::Client,
    compiler: kfp_compiler::Options,
    rest: std::net::TcpListener,
    grpc: std::net::TcpListener,
) -> Result<kfp_apiserver::Options, Error> {
    // Nothing of this machine's environment may change what the platform is, save where pipelines may be downloaded from.
    let environment = std::env::vars().filter(|(name, _)| name.starts_with("PIPELINE_URL_")).collect();
    let config = kfp_apiserver::config::Config::new(serde_json::Value::Null, environment);
    let mut options = kfp_apiserver::Options::from_config(&config).map_err(failed("API server"))?;
    options.database = kfp_apiserver::options::Database::Sqlite(data.join("mlpipeline.db"));
    options.kube = Some(kube);
    options.compiler = compiler;
    options.http_listener = Some(rest);
    options.grpc_listener = Some(grpc);
    NAMESPACE.clone_into(&mut options.namespace);
    options.objects.directory = Some(objects.to_owned());
    options.archive = kfp_apiserver::options::Archive { prefix: LOGS.to_owned(), file: "main.log".to_owned() };
    Ok(options)
}

fn agent_options(kube: kube::Client, host: &str, grpc_port: u16) -> Result<kfp_persistence_agent::Options, Error> {
    let words = ["--namespace", NAMESPACE, "--mlPipelineAPIServerName", host].map(str::to_owned);
    let mut options = kfp_persistence_agent::Options::parse(words)
        .map_err(|stop| Error::Component { component: "persistence agent", reason: format!("{stop:?}") })?;
    options.api_grpc_port = grpc_port;
    options.client = Some(kube);
    Ok(options)
}

fn schedule_options(kube: kube::Client, host: &str, grpc_port: u16) -> Result<kfp_scheduledworkflow::Options, Error> {
    let words = ["--namespace", NAMESPACE, "--mlPipelineAPIServerName", host].map(str::to_owned);
    let mut options = kfp_scheduledworkflow::Options::parse(words)
        .map_err(|stop| Error::Component { component: "schedule controller", reason: format!("{stop:?}") })?;
    options.api_grpc_port = grpc_port;
    options.client = Some(kube);
    options.metrics_port.clear();
    Ok(options)
}

/// Runs drivers in this process, with connections that all of them share.
fn driver_hook(
    kubeconfig: &Path,
    host: &str,
    grpc_port: u16,
    metadata: Transport,
) -> Result<kfp_local_pods::DriverHook, Error> {
    let wrong = failed("driver");
    let tasks = grpc::channel(host, grpc_port, None).map_err(|e| wrong(e.to_string()))?;
    let config = kfp_core::kubeapi::Config::from_kubeconfig(kubeconfig).map_err(|e| wrong(e.to_string()))?;
    let kubernetes = kfp_core::kubeapi::Client::new(config).map_err(|e| wrong(e.to_string()))?;
    let services = kfp_driver::Services {
        metadata: mlmd::Client::new(metadata),
        cache: kfp_driver::Cache::new(tasks),
        kubernetes: Some(kubernetes),
    };
    Ok(Arc::new(move |invocation| {
        let services = services.clone();
        Box::pin(async move {
            let environment = kfp_driver::Environment {
                namespace: invocation.namespace.clone(),
                pod: kfp_driver::DriverPod {
                    name: invocation.pod.clone(),
                    uid: invocation.env.get("KFP_POD_UID").cloned().unwrap_or_default(),
                },
                default_pipeline_root: PIPELINE_ROOT.to_owned(),
            };
            let paths = invocation.paths.clone();
            let map = move |path: &str| paths.host(Path::new(path));
            let driven = kfp_driver::run_with(invocation.args, &services, &environment, &map).await;
            let (code, message) = driven.result.map_or_else(|error| (1, error.to_string()), |()| (0, String::new()));
            if code != 0 {
                invocation.log.line(&message);
            }
            kfp_local_pods::DriverExit { code, message, files: driven.files }
        })
    }))
}
