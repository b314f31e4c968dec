//! Flags and environment to a typed request.

use std::path::PathBuf;

use kfp_core::flags::{Flags, Stop, Values};
use kfp_core::ir::{self, Unknown};
use prost::{Message, Name};

use crate::request::{Container, DriverPod, Launcher, Proxies, Request, RunInfo, SecurityDefaults, Task, Work};
use crate::{Error, Response};

/// Where upstream keeps artifacts unless told otherwise.
pub const DEFAULT_PIPELINE_ROOT: &str = "minio://mlpipeline/v2/artifacts";
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// What a driver reads from around it, apart from its flags.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Kubernetes namespace of the run.
    pub namespace: String,
    /// This driver's pod.
    pub pod: DriverPod,
    /// Pipeline root when neither the run nor the `kfp-launcher` ConfigMap names one.
    pub default_pipeline_root: String,
}

impl Environment {
    /// Reads the service account's namespace (else `POD_NAMESPACE`, `NAMESPACE`, `default`) and the pod's name
    /// (`KFP_POD_NAME`, else `/etc/hostname`).
    #[must_use]
    pub fn detect() -> Self {
        let file = |path: &str| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let env = |name: &str| std::env::var(name).ok();
        let filled = |text: &String| !text.is_empty();
        let namespace = file(NAMESPACE_FILE)
            .filter(filled)
            .or_else(|| env("POD_NAMESPACE").filter(filled))
            .or_else(|| env("NAMESPACE").filter(filled))
            .unwrap_or_else(|| "default".to_owned());
        let name = env("KFP_POD_NAME").filter(filled).or_else(|| file("/etc/hostname")).unwrap_or_default();
        let uid = env("KFP_POD_UID").unwrap_or_default();
        let default_pipeline_root = DEFAULT_PIPELINE_ROOT.to_owned();
        Self { namespace, pod: DriverPod { name, uid }, default_pipeline_root }
    }
}

/// Paths of the files that Argo reads as output parameters; empty when not wanted.
#[derive(Clone, Debug, Default)]
pub struct OutputPaths {
    execution_id: String,
    iteration_count: String,
    condition: String,
    cached_decision: String,
    pod_spec_patch: String,
}

/// Everything a driver process needs.
#[derive(Clone, Debug)]
pub struct Options {
    /// What to do.
    pub request: Request,
    /// Addresses and TLS of the API server and the metadata store.
    pub servers: Launcher,
    /// Where to leave the results.
    pub outputs: OutputPaths,
}

/// Why a command line gives no options.
#[derive(Debug)]
pub enum Refused {
    /// Help, version, or a wrong flag.
    Usage(Stop),
    /// Flags that are well-formed but make no sense.
    Invalid(Error),
}

fn flags() -> Flags {
    Flags::new("driver", "resolves a task's inputs, decides whether it runs and prepares its pod")
        .text("type", "", "ROOT_DAG, DAG or CONTAINER")
        .text("pipeline_name", "", "name of the pipeline's metadata context")
        .text("run_id", "", "UUID of the run")
        .text("run_name", "", "name of the Workflow")
        .text("run_display_name", "", "name of the run to show")
        .text("pipeline_job_create_time_utc", "", "creation time of the run, RFC 3339")
        .text("pipeline_job_schedule_time_epoch_seconds", "", "scheduled time of the run; ignored (2.17.0 only)")
        .text("component", "{}", "ComponentSpec as JSON, or @ and the path of a file with it")
        .text("task", "", "PipelineTaskSpec as JSON")
        .text("runtime_config", "", "PipelineJob.RuntimeConfig as JSON (ROOT_DAG)")
        .int("iteration_index", -1, "index of the loop iteration, -1 if it is none")
        .text("task_name", "", "key of the task in its parent DAG")
        .int("dag_execution_id", 0, "metadata execution id of the parent DAG")
        .text("container", "{}", "PipelineContainerSpec as JSON (CONTAINER)")
        .text("kubernetes_config", "{}", "KubernetesExecutorConfig as JSON (CONTAINER)")
        .text("ml_pipeline_server_address", "ml-pipeline", "address of the API server")
        .text("ml_pipeline_server_port", "8887", "gRPC port of the API server")
        .text("mlmd_server_address", "", "address of the metadata store")
        .text("mlmd_server_port", "", "gRPC port of the metadata store")
        .text("execution_id_path", "", "output file: metadata execution id")
        .text("iteration_count_path", "", "output file: number of iterations")
        .text("pod_spec_patch_path", "", "output file: JSON to merge into the pod")
        .text("cached_decision_path", "", "output file: whether outputs come from the cache")
        .text("condition_path", "", "output file: whether the task runs")
        .text("log_level", "1", "verbosity; 4 and more logs details")
        .text("http_proxy", "", "proxy for the user's container")
        .text("https_proxy", "", "proxy for the user's container")
        .text("no_proxy", "", "addresses that need no proxy")
        .text("publish_logs", "true", "whether logs become artifacts; only the word true does")
        .bool("cache_disabled", false, "never read or write the cache")
        .bool("ml_pipeline_tls_enabled", false, "TLS towards the API server")
        .bool("metadata_tls_enabled", false, "TLS towards the metadata store")
        .text("ca_cert_path", "", "PEM file of one more certificate authority")
        .int("default_run_as_user", 0, "administrator's default for runAsUser")
        .int("default_run_as_group", 0, "administrator's default for runAsGroup")
        .text("default_run_as_non_root", "", "administrator's default for runAsNonRoot")
        .text("default_host_users", "", "administrator's default for hostUsers")
        .ignoring_glog()
}

/// The level of logging that a command line asks for in glog's numbers, to be known before the rest is read.
#[must_use]
pub fn log_level(words: &[String]) -> &'static str {
    let level = flags().parse(words.to_vec()).map(|values| values.text("log_level").to_owned());
    match level.ok().and_then(|text| text.parse::<i64>().ok()) {
        Some(4..) => "debug",
        _ => "info",
    }
}

/// Flags that every compiled workflow passes. Older workflows lack some, so their absence only warns.
const EXPECTED: [&str; 6] =
    ["pipeline_name", "run_id", "run_name", "mlmd_server_address", "mlmd_server_port", "condition_path"];

fn message<T: Message + Name + Default>(what: &str, text: &str) -> Result<T, Error> {
    let text = if text.trim().is_empty() { "{}" } else { text };
    let bad = |error: String| Error::Arguments(format!("failed to unmarshal {what}, error: {error}"));
    let json: serde_json::Value = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    ir::decode(&json, Unknown::Ignore).map_err(|error| bad(error.to_string()))
}

fn optional_bool(values: &Values, name: &str) -> Result<Option<bool>, Error> {
    match values.text(name) {
        "" => Ok(None),
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
        other => Err(Error::Arguments(format!("invalid --{name} value {other:?}: expected true or false"))),
    }
}

impl Options {
    /// Reads the words after the program's name. `map_path` says where a path of the command line really is.
    ///
    /// # Errors
    /// [`Refused::Usage`] as Go's flag package would; [`Refused::Invalid`] for JSON that does not fit, and for
    /// combinations that make no sense.
    pub fn from_args<I, S>(
        words: I,
        environment: &Environment,
        map_path: &(dyn Fn(&str) -> PathBuf + Sync),
    ) -> Result<Self, Refused>
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let values = flags().parse(words).map_err(Refused::Usage)?;
        for name in EXPECTED.iter().filter(|name| !values.given(name)) {
            tracing::warn!("--{name} was not provided");
        }
        Self::from_values(&values, environment, map_path).map_err(Refused::Invalid)
    }

    fn from_values(
        values: &Values,
        environment: &Environment,
        map_path: &(dyn Fn(&str) -> PathBuf + Sync),
    ) -> Result<Self, Error> {
        let text = |name: &str| values.text(name).to_owned();
        let run = RunInfo {
            pipeline_name: text("pipeline_name"),
            id: text("run_id"),
            name: text("run_name"),
            display_name: text("run_display_name"),
            create_time: text("pipeline_job_create_time_utc"),
            namespace: environment.namespace.clone(),
        };
        let servers = Launcher {
            ml_pipeline_server_address: text("ml_pipeline_server_address"),
            ml_pipeline_server_port: text("ml_pipeline_server_port"),
            mlmd_server_address: text("mlmd_server_address"),
            mlmd_server_port: text("mlmd_server_port"),
            ml_pipeline_tls_enabled: values.bool("ml_pipeline_tls_enabled"),
            metadata_tls_enabled: values.bool("metadata_tls_enabled"),
            ca_cert_path: text("ca_cert_path"),
            log_level: text("log_level"),
            publish_logs: text("publish_logs"),
        };
        let component = component(values.text("component"), map_path)?;
        let work = match values.text("type") {
            "ROOT_DAG" => Work::Root {
                runtime_config: message("runtime config", values.text("runtime_config"))?,
                default_pipeline_root: environment.default_pipeline_root.clone(),
            },
            "DAG" => Work::Dag(Box::new(task(values)?)),
            "CONTAINER" => Work::Container(Box::new(container(values, environment, &servers)?)),
            other => {
                return Err(Error::Arguments(format!(
                    "unknown driver type {other:?}, must be one of ROOT_DAG, DAG, CONTAINER"
                )));
            }
        };
        let request = Request { run, component, work };
        validate(&request, values)?;
        let outputs = OutputPaths {
            execution_id: text("execution_id_path"),
            iteration_count: text("iteration_count_path"),
            condition: text("condition_path"),
            cached_decision: text("cached_decision_path"),
            pod_spec_patch: text("pod_spec_patch_path"),
        };
        Ok(Self { request, servers, outputs })
    }
}

fn component(
    text: &str,
    map_path: &(dyn Fn(&str) -> PathBuf + Sync),
) -> Result<kfp_proto::ml_pipelines::ComponentSpec, Error> {
    let Some(path) = text.strip_prefix('@') else { return message("component spec", text) };
    let path = map_path(path);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        Error::Arguments(format!("failed to read component spec from file {}: {error}", path.display()))
    })?;
    message("component spec", &text)
}

fn task(values: &Values) -> Result<Task, Error> {
    let index = values.int("iteration_index");
    let spec: kfp_proto::ml_pipelines::PipelineTaskSpec = message("task spec", values.text("task"))?;
    let info = spec.task_info.as_ref().map(|info| info.name.clone()).unwrap_or_default();
    let ambiguous = values.text("task_name").is_empty();
    let name = if ambiguous { info } else { values.text("task_name").to_owned() };
    let dag_execution_id = values.int("dag_execution_id");
    Ok(Task { spec, name, ambiguous, dag_execution_id, iteration_index: (index >= 0).then_some(index) })
}

fn container(values: &Values, environment: &Environment, servers: &Launcher) -> Result<Container, Error> {
    // The content names secrets, so it must not appear in the message.
    let kubernetes = message("Kubernetes config", values.text("kubernetes_config"))
        .map_err(|_| Error::Arguments("failed to unmarshal Kubernetes config".to_owned()))?;
    let given = |name: &str| values.given(name).then(|| values.int(name));
    Ok(Container {
        task: task(values)?,
        spec: message("container spec", values.text("container"))?,
        kubernetes,
        cache_disabled: values.bool("cache_disabled"),
        launcher: servers.clone(),
        proxies: Proxies {
            http: values.text("http_proxy").to_owned(),
            https: values.text("https_proxy").to_owned(),
            none: values.text("no_proxy").to_owned(),
        },
        defaults: SecurityDefaults {
            run_as_user: given("default_run_as_user"),
            run_as_group: given("default_run_as_group"),
            run_as_non_root: optional_bool(values, "default_run_as_non_root")?,
            host_users: optional_bool(values, "default_host_users")?,
        },
        pod: environment.pod.clone(),
    })
}

/// Upstream's checks of what must and must not be there.
fn validate(request: &Request, values: &Values) -> Result<(), Error> {
    let empty = |name: &str| matches!(values.text(name).trim(), "" | "{}" | "null");
    let (kind, problem) = match &request.work {
        Work::Root { .. } => {
            let checks = [
                (values.text("runtime_config").trim().is_empty(), "runtime config is required"),
                (!values.text("task_name").is_empty(), "task name is unnecessary"),
                (values.int("dag_execution_id") != 0, "DAG execution ID is unnecessary"),
                (!empty("container"), "container spec is unnecessary"),
                (values.int("iteration_index") >= 0, "iteration index is unnecessary"),
            ];
            ("root DAG", first(&checks))
        }
        Work::Dag(task) => {
            ("DAG", first(&[(!empty("container"), "container spec is unnecessary")]).or(of_task(task, values)))
        }
        Work::Container(container) => {
            let missing = first(&[(empty("container"), "container spec is required")]);
            ("container", missing.or(of_task(&container.task, values)))
        }
    };
    let common = [
        (request.run.pipeline_name.is_empty(), "pipeline name is required"),
        (request.run.id.is_empty(), "KFP run ID is required"),
        (request.run.namespace.is_empty(), "namespace is required"),
    ];
    match first(&common).or(problem) {
        Some(problem) => Err(Error::Arguments(format!("invalid {kind} driver args: {problem}"))),
        None => Ok(()),
    }
}

fn first(checks: &[(bool, &'static str)]) -> Option<&'static str> {
    checks.iter().find(|(wrong, _)| *wrong).map(|(_, text)| *text)
}

fn of_task(task: &Task, values: &Values) -> Option<&'static str> {
    first(&[
        (task.display_name().is_empty(), "task spec is required"),
        (!values.text("runtime_config").is_empty(), "runtime config is unnecessary"),
        (task.dag_execution_id == 0, "DAG execution ID is required"),
    ])
}

impl OutputPaths {
    /// The files to write for a response: path and content.
    ///
    /// # Errors
    /// When something has to be written but no path was given.
    pub fn files(&self, work: &Work, response: &Response) -> Result<Vec<(String, String)>, Error> {
        let need = |path: &'_ str, name: &str| {
            if path.is_empty() { Err(Error::Arguments(format!("--{name}: path is not specified"))) } else { Ok(()) }
        };
        let mut files: Vec<(String, String)> = Vec::new();
        if !matches!(work, Work::Container(_)) {
            if !self.execution_id.is_empty() && response.execution_id != 0 {
                files.push((self.execution_id.clone(), response.execution_id.to_string()));
            }
            need(&self.iteration_count, "iteration_count_path")?;
            files.push((self.iteration_count.clone(), response.iteration_count.unwrap_or(0).to_string()));
        }
        need(&self.condition, "condition_path")?;
        files.push((self.condition.clone(), response.condition.map_or("nil".to_owned(), |value| value.to_string())));
        if let Some(cached) = response.cached_decision {
            need(&self.cached_decision, "cached_decision_path")?;
            files.push((self.cached_decision.clone(), cached.to_string()));
        }
        if let Some(patch) = &response.pod_spec_patch {
            if self.pod_spec_patch.is_empty() {
                let text = "--pod_spec_patch_path is required for container executor drivers";
                return Err(Error::Arguments(text.to_owned()));
            }
            files.push((self.pod_spec_patch.clone(), kfp_core::gojson::to_string(patch)));
        }
        Ok(files)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options, Refused> {
        let environment = Environment {
            namespace: "ns".into(),
            pod: DriverPod::default(),
            default_pipeline_root: DEFAULT_PIPELINE_ROOT.into(),
        };
        Options::from_args(words.iter().copied(), &environment, &|path| PathBuf::from(path))
    }

    fn problem(words: &[&str]) -> String {
        match parse(words) {
            Err(Refused::Invalid(error)) => error.to_string(),
            other => panic!("{other:?}"),
        }
    }

    const ROOT: [&str; 5] = ["--type=ROOT_DAG", "--pipeline_name", "p", "--run_id", "r"];
    const CONTAINER: [&str; 9] = [
        "--type=CONTAINER",
        "--pipeline_name=p",
        "--run_id=r",
        "--task_name=t",
        "--dag_execution_id=3",
        r#"--task={"taskInfo":{"name":"T"},"new":1}"#,
        r#"--container={"image":"i"}"#,
        "--runtime_config=",
        "--cache_disabled",
    ];

    #[test]
    fn container_flags_become_a_request() {
        let mut words = CONTAINER.to_vec();
        words.extend(["--default_run_as_user=0", "--default_host_users=false", "--kubernetes_config="]);
        let options = parse(&words).unwrap();
        let Work::Container(container) = &options.request.work else { panic!("{options:?}") };
        assert_eq!((container.task.display_name(), container.task.name.as_str()), ("T", "t"));
        assert_eq!(container.task.iteration_index, None);
        assert!(container.cache_disabled);
        let wanted = SecurityDefaults { run_as_user: Some(0), host_users: Some(false), ..Default::default() };
        assert_eq!(container.defaults, wanted);
    }

    #[test]
    fn command_lines_of_all_releases_are_accepted() {
        let of_2_14 = [
            "--type=CONTAINER",
            "--pipeline_name=p",
            "--run_id=r",
            "--run_name=w",
            "--run_display_name=",
            "--dag_execution_id=3",
            "--component={}",
            r#"--task={"taskInfo":{"name":"T"}}"#,
            r#"--container={"image":"i"}"#,
            "--iteration_index=-1",
            "--cached_decision_path=/d",
            "--pod_spec_patch_path=/p",
            "--condition_path=/c",
            "--kubernetes_config={}",
            "--mlmd_server_address=m",
            "--mlmd_server_port=8080",
            "--http_proxy=",
            "--https_proxy=",
            "--no_proxy=",
            "--publish_logs=true",
            "--log_level=1",
        ];
        // Switches stand alone before 2.18.
        let of_2_15 = [
            "--task_name=t",
            "--ml_pipeline_server_address=a",
            "--ml_pipeline_server_port=8887",
            "--cache_disabled",
            "--ml_pipeline_tls_enabled",
            "--metadata_tls_enabled",
            "--ca_cert_path=/ca",
        ];
        let of_2_16 = ["--default_run_as_user=1", "--default_run_as_group=1", "--default_run_as_non_root=true"];
        let of_2_17_0 = ["--default_host_users=false", "--pipeline_job_schedule_time_epoch_seconds=1"];
        let of_master = ["--pipeline_job_create_time_utc=2026-01-01T00:00:00Z", "--cache_disabled=false"];
        let mut words = of_2_14.to_vec();
        for more in [&[][..], &of_2_15, &of_2_16, &of_2_17_0, &of_master] {
            words.extend(more);
            assert_eq!(parse(&words).unwrap().request.run.name, "w");
        }
    }

    #[test]
    fn verbosity_is_glogs() {
        let level = |words: &[&str]| log_level(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        assert_eq!((level(&[]), level(&["--log_level=4"]), level(&["--log_level", "1"])), ("info", "debug", "info"));
        assert_eq!(level(&["--nope"]), "info");
    }

    #[test]
    fn component_may_come_from_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), r#"{"executorLabel":"exec"}"#).unwrap();
        let at = format!("--component=@{}", file.path().display());
        let mut words = ROOT.to_vec();
        words.extend(["--runtime_config={}", &at]);
        let options = parse(&words).unwrap();
        assert_eq!(kfp_core::ir::encode(&options.request.component)["executorLabel"], "exec");
    }

    #[test]
    fn nonsense_is_named() {
        let with = |base: &[&'static str], more: &[&'static str]| problem(&[base, more].concat());
        assert_eq!(with(&ROOT, &[]), "invalid root DAG driver args: runtime config is required");
        assert_eq!(
            with(&ROOT, &["--runtime_config={}", "--iteration_index=0"]),
            "invalid root DAG driver args: iteration index is unnecessary"
        );
        assert_eq!(
            with(&CONTAINER, &["--dag_execution_id=0"]),
            "invalid container driver args: DAG execution ID is required"
        );
        assert_eq!(with(&CONTAINER, &["--type=DAG"]), "invalid DAG driver args: container spec is unnecessary");
        assert_eq!(
            with(&CONTAINER, &[r#"--kubernetes_config={"secretAsEnv":[{"secretName":7}]}"#]),
            "failed to unmarshal Kubernetes config"
        );
        assert!(with(&CONTAINER, &["--type=X"]).starts_with("unknown driver type \"X\""));
        assert!(with(&CONTAINER, &["--default_host_users=maybe"]).starts_with("invalid --default_host_users value"));
        assert!(matches!(parse(&["--nope"]), Err(Refused::Usage(Stop::Wrong(_)))));
    }

    #[test]
    fn files_follow_the_kind_of_driver() {
        let paths = OutputPaths {
            execution_id: "e".into(),
            iteration_count: "i".into(),
            condition: "c".into(),
            cached_decision: "d".into(),
            pod_spec_patch: String::new(),
        };
        let dag = Work::Dag(Box::default());
        let response = Response { execution_id: 7, condition: Some(false), ..Default::default() };
        let text = |text: &str| text.to_owned();
        let owned = |list: &[(&str, &str)]| list.iter().map(|(p, t)| (text(p), text(t))).collect::<Vec<_>>();
        assert_eq!(paths.files(&dag, &response).unwrap(), owned(&[("e", "7"), ("i", "0"), ("c", "false")]));
        let container = Work::Container(Box::default());
        let mut response = Response { cached_decision: Some(true), ..Default::default() };
        assert_eq!(paths.files(&container, &response).unwrap(), owned(&[("c", "nil"), ("d", "true")]));
        response.pod_spec_patch = Some(serde_json::json!({}));
        let error = paths.files(&container, &response).unwrap_err().to_string();
        assert_eq!(error, "--pod_spec_patch_path is required for container executor drivers");
    }
}
