//! Flags and environment of the launcher.

use std::path::PathBuf;

use kfp_core::flags::{Flags, Stop};

/// What the launcher is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Copy the own binary to this path.
    Copy(PathBuf),
    /// Wrap a user command.
    Container,
    /// Register an artifact that exists already.
    Importer,
}

/// Address of a gRPC service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Server {
    /// Host name or IP address.
    pub address: String,
    /// Port.
    pub port: u16,
    /// Whether to speak TLS.
    pub tls: bool,
}

/// Everything the launcher was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do.
    pub mode: Mode,
    /// Name of the pipeline (that of its metadata context).
    pub pipeline_name: String,
    /// UUID of the run.
    pub run_id: String,
    /// Metadata id of the task's execution (container).
    pub execution_id: i64,
    /// JSON of the ExecutorInput (container).
    pub executor_input: String,
    /// JSON of the ComponentSpec.
    pub component_spec: String,
    /// JSON of the PipelineTaskSpec (importer).
    pub task_spec: String,
    /// JSON of the ImporterSpec (importer).
    pub importer_spec: String,
    /// Metadata id of the parent DAG's execution (importer).
    pub parent_dag_id: i64,
    /// Name of this pod.
    pub pod_name: String,
    /// UID of this pod.
    pub pod_uid: String,
    /// The API server's gRPC address, for the cache.
    pub api: Server,
    /// The metadata store.
    pub metadata: Server,
    /// PEM file with a further certificate authority; empty for none.
    pub ca_cert_path: String,
    /// Keep the user's output as artifact `executor-logs`.
    pub publish_logs: bool,
    /// Do not offer the result to later runs.
    pub cache_disabled: bool,
    /// Level for the logging of this program.
    pub log_level: String,
    /// The user's command and its arguments.
    pub command: Vec<String>,
    /// Directory below which the well-known absolute paths lie (`KFP_POD_ROOT`), where a pod has no file system of
    /// its own.
    pub root: Option<PathBuf>,
    /// Directory that stands in for all object stores (`KFP_OBJECT_STORE_DIR`).
    pub object_store_dir: Option<PathBuf>,
    /// Which try of the task this is (`KFP_RETRY_INDEX`); unknown in workflows compiled by old versions.
    pub retry_index: Option<String>,
}

fn flags() -> Flags {
    Flags::new("launcher-v2", "runs a pipeline task: artifacts in, user command, artifacts and results out")
        .text("copy", "", "copy this binary to the given path and exit")
        .text("executor_type", "container", "container or importer")
        .text("pipeline_name", "", "pipeline context name")
        .text("run_id", "", "run UUID")
        .int("execution_id", 0, "metadata id of the execution (container)")
        .text("executor_input", "", "JSON of the executor input (container)")
        .text("component_spec", "", "JSON of the component spec")
        .text("task_spec", "", "JSON of the task spec (importer)")
        .text("importer_spec", "", "JSON of the importer spec (importer)")
        .int("parent_dag_id", 0, "metadata id of the parent DAG (importer)")
        .text("pod_name", "", "name of this pod")
        .text("pod_uid", "", "UID of this pod")
        .text("ml_pipeline_server_address", "ml-pipeline.kubeflow", "host of the API server")
        .text("ml_pipeline_server_port", "8887", "gRPC port of the API server")
        .text("mlmd_server_address", "", "host of the metadata store")
        .text("mlmd_server_port", "8080", "gRPC port of the metadata store")
        .text("log_level", "1", "0 to 4, or error, warn, info, debug, trace")
        .text("publish_logs", "true", "keep the user's output as artifact executor-logs")
        .bool("cache_disabled", false, "do not offer the result to later runs")
        .bool("ml_pipeline_tls_enabled", false, "speak TLS to the API server")
        .bool("metadata_tls_enabled", false, "speak TLS to the metadata store")
        .text("ca_cert_path", "", "PEM file with a further certificate authority")
        .text("pipeline_job_schedule_time_epoch_seconds", "", "accepted for version 2.17.0, without effect")
        .ignoring_glog()
}

impl Options {
    /// Reads the words after the program's name and the environment.
    ///
    /// # Errors
    /// [`Stop`] with a text to print for `--help`, `--version`, and wrong or missing flags.
    pub fn from_args<I, S>(words: I) -> Result<Self, Stop>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        Self::from_words(words, |name| std::env::var(name).ok())
    }

    fn from_words<I, S>(words: I, env: impl Fn(&str) -> Option<String>) -> Result<Self, Stop>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let v = flags().parse(words)?;
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let mode = match (v.text("copy"), v.text("executor_type")) {
            ("", "container") => Mode::Container,
            ("", "importer") => Mode::Importer,
            ("", other) => {
                let text = format!("unsupported executor type {other:?}, must be one of container, importer");
                return Err(Stop::Wrong(text));
            }
            (target, _) => Mode::Copy(PathBuf::from(target)),
        };
        let port = |name: &str| match v.text(name).parse() {
            Ok(port) => Ok(port),
            Err(_) if matches!(mode, Mode::Copy(_)) => Ok(0),
            Err(_) => Err(Stop::Wrong(format!("--{name} {:?} is not a port", v.text(name)))),
        };
        let options = Self {
            pipeline_name: v.text("pipeline_name").into(),
            run_id: v.text("run_id").into(),
            execution_id: v.int("execution_id"),
            executor_input: v.text("executor_input").into(),
            component_spec: v.text("component_spec").into(),
            task_spec: v.text("task_spec").into(),
            importer_spec: v.text("importer_spec").into(),
            parent_dag_id: v.int("parent_dag_id"),
            pod_name: v.text("pod_name").into(),
            pod_uid: v.text("pod_uid").into(),
            api: Server {
                address: v.text("ml_pipeline_server_address").into(),
                port: port("ml_pipeline_server_port")?,
                tls: v.bool("ml_pipeline_tls_enabled"),
            },
            metadata: Server {
                address: v.text("mlmd_server_address").into(),
                port: port("mlmd_server_port")?,
                tls: v.bool("metadata_tls_enabled"),
            },
            ca_cert_path: v.text("ca_cert_path").into(),
            publish_logs: v.text("publish_logs") == "true",
            cache_disabled: v.bool("cache_disabled"),
            log_level: level(v.text("log_level")).into(),
            command: v.rest().to_vec(),
            root: env("KFP_POD_ROOT").filter(|root| root != "/").map(PathBuf::from),
            object_store_dir: env("KFP_OBJECT_STORE_DIR").map(PathBuf::from),
            retry_index: env("KFP_RETRY_INDEX"),
            mode,
        };
        options.check().map_err(|text| Stop::Wrong(format!("failed to create component launcher v2: {text}")))?;
        Ok(options)
    }

    fn check(&self) -> Result<(), String> {
        if matches!(self.mode, Mode::Copy(_)) {
            return Ok(());
        }
        let required = [
            ("PodName", &self.pod_name),
            ("PodUID", &self.pod_uid),
            ("MLMDServerAddress", &self.metadata.address),
            ("PipelineName", &self.pipeline_name),
            ("RunID", &self.run_id),
        ];
        if let Some((name, _)) = required.iter().find(|(_, value)| value.is_empty()) {
            return Err(format!("invalid launcher options: must specify {name}"));
        }
        if self.mode == Mode::Container {
            if self.execution_id == 0 {
                return Err("must specify execution ID".into());
            }
            if self.command.is_empty() {
                return Err("command and arguments are empty".into());
            }
        }
        Ok(())
    }
}

/// Upstream's numbers as names. Its default, 1, is `warn` here: what the user's program prints is what people want to
/// see in a task's log.
fn level(text: &str) -> &str {
    match text {
        "0" => "error",
        "" | "1" => "warn",
        "2" | "3" => "info",
        other if other.bytes().all(|b| b.is_ascii_digit()) => "debug",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    const CONTAINER: &str = "--executor_type container --pipeline_name p --run_id r --execution_id 7 --pod_name n \
        --pod_uid u --mlmd_server_address m --mlmd_server_port 1234 --publish_logs true --cache_disabled=false \
        --metadata_tls_enabled --log_level 1";

    fn parse(text: &str) -> Result<Options, Stop> {
        Options::from_words(words(text), |name| (name == "KFP_POD_ROOT").then(|| "/pods/1".to_owned()))
    }

    #[test]
    fn container_flags() {
        let options = parse(&format!("{CONTAINER} -- sh -c --x")).unwrap();
        assert_eq!(options.metadata, Server { address: "m".into(), port: 1234, tls: true });
        assert_eq!(options.command, ["sh", "-c", "--x"]);
        assert!(options.publish_logs && !options.cache_disabled);
        assert_eq!(options.root, Some(PathBuf::from("/pods/1")));
        assert_eq!(options.log_level, "warn");
    }

    #[test]
    fn copy_needs_nothing_else() {
        let options = parse("--copy /kfp-launcher/launch --mlmd_server_port x").unwrap();
        assert_eq!(options.mode, Mode::Copy("/kfp-launcher/launch".into()));
    }

    #[test]
    fn what_is_missing_is_named() {
        for (text, message) in [
            (CONTAINER.to_owned(), "command and arguments are empty"),
            (format!("{CONTAINER} --execution_id 0 -- x"), "must specify execution ID"),
            (format!("{CONTAINER} --pod_uid= -- x"), "must specify PodUID"),
            (format!("{CONTAINER} --mlmd_server_port nine -- x"), "--mlmd_server_port \"nine\" is not a port"),
            ("--executor_type dag".to_owned(), "unsupported executor type \"dag\""),
        ] {
            match parse(&text) {
                Err(Stop::Wrong(error)) => assert!(error.contains(message), "{error}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
