//! Flags and configuration of the API server, as one typed value.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use kfp_core::cron::zone::{self, Tz};
use kfp_core::flags::Flags;
use kfp_core::objects::Session;

use crate::access;
use crate::config::{self, Config};
use crate::domain::plugins::Limits;
use crate::services::samples;
use crate::services::upkeep::Retention;
use crate::services::v1::visualizations;
pub use crate::store::settings::Database;
use crate::{tls, webhook};

/// The agent, which reports deletions at once, has longer than that after a restart of everything.
const LOST_RUNS_INTERVAL: Duration = Duration::from_secs(300);

/// Everything the server needs to know.
pub struct Options {
    /// Where REST, uploads and health are served, unless `http_listener` is given.
    pub http_address: SocketAddr,
    /// Where gRPC is served, unless `grpc_listener` is given.
    pub grpc_address: SocketAddr,
    /// A socket that is bound already.
    pub http_listener: Option<TcpListener>,
    /// A socket that is bound already.
    pub grpc_listener: Option<TcpListener>,
    /// How long clients may take for the head of a request; no flag, tests shorten it.
    pub patience: Duration,
    /// Rows.
    pub database: Database,
    /// The cluster; `None` takes the in-cluster configuration or the kubeconfig.
    pub kube: Option<kube::Client>,
    /// What compiled Workflows carry.
    pub compiler: kfp_compiler::Options,
    /// Namespace of Workflows in single-user mode (`POD_NAMESPACE`).
    pub namespace: String,
    /// How long reports of Workflows without a run are asked for again before the Workflow is deleted, in seconds
    /// (`WORKFLOW_GC_GRACE_PERIOD_SECONDS`).
    pub grace_seconds: i64,
    /// Shown by healthz (`COMMIT_SHA`).
    pub commit: String,
    /// Shown by healthz (`TAG_NAME`).
    pub tag: String,
    /// Which pipelines may be downloaded by URL.
    pub urls: crate::workflows::fetch::Policy,
    /// How Argo Workflows as pipelines are treated.
    pub rules: crate::workflows::template::Rules,
    /// Names and files of the log archive (`ARCHIVE_CONFIG_LOG_PATH_PREFIX`, `ARCHIVE_CONFIG_LOG_FILE_NAME`).
    pub archive: Archive,
    /// Where artifacts and archived logs are read from.
    pub objects: Objects,
    /// Whether calls are counted by handler, besides the counts that gRPC servers keep (`--collectMetricsFlag`).
    pub count_handlers: bool,
    /// File that lists the sample pipelines (`--sampleconfig`).
    pub samples: Option<PathBuf>,
    /// Their tags (`MANAGED_PIPELINES_UPLOAD_TAGS`).
    pub sample_tags: BTreeMap<String, String>,
    /// Where visualization servers are.
    pub visualizations: visualizations::Servers,
    /// How long runs are kept.
    pub retention: Retention,
    /// How often unfinished runs are looked for whose Workflow is gone; zero for never (`LOST_RUNS_INTERVAL`).
    pub lost_runs_interval: Duration,
    /// TLS of both listeners.
    pub tls: Option<tls::Settings>,
    /// Limits of what plugins are given (`PLUGIN_MAX_*`).
    pub plugins: Limits,
    /// Who may do what.
    pub access: access::Settings,
    /// Whether pipelines and their versions are Kubernetes objects (`--pipelinesStoreKubernetes`).
    pub pipelines_in_cluster: bool,
    /// Admission of such objects, unless another server does it (`--disableWebhook`).
    pub webhook: Option<webhook::Settings>,
    /// Directory whose `config.json` is followed while the server runs; `None` for settings that stay.
    pub config_directory: Option<PathBuf>,
    /// Where cron schedules count their hours: the controller's setting (`CRON_SCHEDULE_TIMEZONE`), which tells here when
    /// they fire next.
    pub zone: Tz,
}

/// Where Argo archives logs; empty fields turn the archive off.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    /// Prefix of the object key.
    pub prefix: String,
    /// Last part of the object key.
    pub file: String,
}

/// The installation's bucket (`ObjectStoreConfig.*`).
#[derive(Clone, Default)]
pub struct Objects {
    /// Bucket name.
    pub bucket: String,
    /// Directory that stands for every bucket (`KFP_OBJECT_STORE_DIR`); used on one machine.
    pub directory: Option<PathBuf>,
    /// How the bucket is reached otherwise, with its keys.
    pub session: Session,
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The session holds secrets.
        f.debug_struct("Objects")
            .field("bucket", &self.bucket)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

/// S3 session of the installation's bucket; without keys the environment's are used.
fn session(config: &Config) -> Result<Session, config::Error> {
    let get = |key: &str| config.text(&format!("ObjectStoreConfig.{key}"), "");
    let (host, port) = (get("Host"), get("Port"));
    let endpoint = if port.is_empty() { host } else { format!("{host}:{port}") };
    let secure = config.bool("ObjectStoreConfig.Secure", false)?;
    let region = config.text("ObjectStoreConfig.Region", "us-east-1");
    let settings = [
        ("endpoint", endpoint),
        ("region", region),
        ("disableSSL", (!secure).to_string()),
        ("forcePathStyle", "true".to_owned()),
        ("accessKey", get("AccessKey")),
        ("secretKey", get("SecretAccessKey")),
    ];
    let params = settings.into_iter().filter(|(_, value)| !value.is_empty());
    let params = params.map(|(name, value)| (name.to_owned(), value)).collect();
    Ok(Session { provider: "s3".to_owned(), params })
}

/// Why the options cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A setting is wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// A setting of the compiler is wrong.
    #[error(transparent)]
    Compiler(#[from] kfp_compiler::Error),
    /// There is no such time zone.
    #[error("CRON_SCHEDULE_TIMEZONE: {0}")]
    Zone(#[from] zone::Unknown),
    /// A flag about TLS is wrong.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// A flag is wrong.
    #[error("{0}")]
    Flag(String),
}

/// The flags of upstream's API server.
#[must_use]
pub fn flags() -> Flags {
    Flags::new("apiserver", "Kubeflow Pipelines API server: gRPC and REST, runs, pipelines, experiments, schedules.")
        .text("config", "", "directory with config.json")
        .text("sampleconfig", "", "file that lists sample pipelines")
        .text("logLevel", "", "panic, fatal, error, warn, info, debug or trace")
        .text("httpPortFlag", ":8888", "address of the HTTP listener")
        .text("rpcPortFlag", ":8887", "address of the gRPC listener")
        .text("webhookPortFlag", ":8443", "address of the webhook listener")
        .text("tlsCertPath", "", "certificate of both listeners")
        .text("tlsCertKeyPath", "", "key of that certificate")
        .text("tlsMinVersion", "VersionTLS12", "VersionTLS12 or VersionTLS13")
        .text("tlsCipherSuites", "", "comma-separated cipher suites")
        .text("webhookTLSCertPath", "", "certificate of the webhook listener")
        .text("webhookTLSKeyPath", "", "key of that certificate")
        .bool("collectMetricsFlag", true, "count calls per handler")
        .bool("pipelinesStoreKubernetes", false, "keep pipelines as Kubernetes objects")
        .bool("disableWebhook", false, "do not serve webhooks")
        .bool("globalKubernetesWebhookMode", false, "serve only webhooks")
        .ignoring_glog()
}

fn address(flag: &str, text: &str) -> Result<SocketAddr, Error> {
    let full = if text.starts_with(':') { format!("0.0.0.0{text}") } else { text.to_owned() };
    full.parse().map_err(|_| Error::Flag(format!("flag --{flag} is {text:?}, which is not ADDRESS:PORT or :PORT")))
}

impl Options {
    /// Reads flags, `config.json` and the environment.
    ///
    /// # Errors
    /// Names the flag or setting that is wrong.
    pub fn from_values(values: &kfp_core::flags::Values) -> Result<Self, Error> {
        let flag = |name| values.text(name);
        let tls = tls::Settings::from_flags(
            flag("tlsCertPath"),
            flag("tlsCertKeyPath"),
            flag("tlsMinVersion"),
            flag("tlsCipherSuites"),
        )?;
        let (in_cluster, alone) = (values.bool("pipelinesStoreKubernetes"), values.bool("globalKubernetesWebhookMode"));
        let disabled = values.bool("disableWebhook");
        if alone && disabled {
            return Err(Error::Flag(
                "flags --globalKubernetesWebhookMode and --disableWebhook exclude each other".to_owned(),
            ));
        }
        let webhook = if alone || (in_cluster && !disabled) {
            let (certificate, key) = (flag("webhookTLSCertPath"), flag("webhookTLSKeyPath"));
            // Half of its own counts as none.
            let both = if certificate.is_empty() || key.is_empty() { ("", "") } else { (certificate, key) };
            let own = tls::Settings::from_flags(both.0, both.1, flag("tlsMinVersion"), flag("tlsCipherSuites"))?;
            Some(webhook::Settings {
                address: address("webhookPortFlag", flag("webhookPortFlag"))?,
                listener: None,
                tls: own.or_else(|| tls.clone()),
                alone,
            })
        } else {
            None
        };
        let config = Config::load(values.text("config"))?;
        let mut options = Self::from_config(&config)?;
        options.http_address = address("httpPortFlag", values.text("httpPortFlag"))?;
        options.grpc_address = address("rpcPortFlag", values.text("rpcPortFlag"))?;
        options.count_handlers = values.bool("collectMetricsFlag");
        // Drivers and launchers have to know.
        options.compiler.ml_pipeline_tls = tls.is_some();
        options.tls = tls;
        options.config_directory = Some(flag("config")).filter(|path| !path.is_empty()).map(PathBuf::from);
        options.pipelines_in_cluster = in_cluster;
        options.webhook = webhook;
        options.samples = Some(values.text("sampleconfig")).filter(|file| !file.is_empty()).map(PathBuf::from);
        Ok(options)
    }

    /// From configuration alone, listening on upstream's ports.
    ///
    /// # Errors
    /// Names the setting that is wrong.
    pub fn from_config(config: &Config) -> Result<Self, Error> {
        let env = |name: &str| config.env(name).map(str::to_owned);
        Ok(Options {
            http_address: SocketAddr::from(([0, 0, 0, 0], 8888)),
            grpc_address: SocketAddr::from(([0, 0, 0, 0], 8887)),
            http_listener: None,
            grpc_listener: None,
            patience: kfp_core::serve::PATIENCE,
            database: Database::from_config(config)?,
            kube: None,
            compiler: kfp_compiler::Options::from_settings(&env, config.file())?,
            namespace: config.text("POD_NAMESPACE", "kubeflow"),
            grace_seconds: config.int("WORKFLOW_GC_GRACE_PERIOD_SECONDS", 120)?,
            commit: config.text("COMMIT_SHA", "unknown"),
            tag: config.text("TAG_NAME", "unknown"),
            urls: crate::workflows::fetch::Policy::from_config(config)?,
            rules: crate::workflows::template::Rules::from_config(config)?,
            archive: Archive {
                prefix: config.text("ARCHIVE_CONFIG_LOG_PATH_PREFIX", ""),
                file: config.text("ARCHIVE_CONFIG_LOG_FILE_NAME", ""),
            },
            objects: Objects {
                bucket: config.text("ObjectStoreConfig.BucketName", "mlpipeline"),
                directory: env("KFP_OBJECT_STORE_DIR").filter(|dir| !dir.is_empty()).map(PathBuf::from),
                session: session(config)?,
            },
            count_handlers: true,
            samples: None,
            sample_tags: samples::tags(&config.text("MANAGED_PIPELINES_UPLOAD_TAGS", ""))
                .map_err(|text| Error::Flag(format!("MANAGED_PIPELINES_UPLOAD_TAGS: {text}")))?,
            visualizations: visualizations::Servers::from_config(config),
            retention: Retention::from_config(config)?,
            lost_runs_interval: config.duration("LOST_RUNS_INTERVAL", LOST_RUNS_INTERVAL)?,
            tls: None,
            plugins: Limits::from_config(config)?,
            access: access::Settings::from_config(config)?,
            pipelines_in_cluster: false,
            config_directory: None,
            webhook: None,
            zone: zone::configured(&config.text("CRON_SCHEDULE_TIMEZONE", ""), env("TZ").as_deref())?,
        })
    }
}
