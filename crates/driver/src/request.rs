//! What a driver is asked to do and what it answers.

use kfp_proto::kfp_kubernetes::KubernetesExecutorConfig;
use kfp_proto::ml_pipelines::pipeline_deployment_config::PipelineContainerSpec;
use kfp_proto::ml_pipelines::pipeline_job::RuntimeConfig;
use kfp_proto::ml_pipelines::{ComponentSpec, PipelineTaskSpec};

/// One driver invocation.
#[derive(Clone, Debug)]
pub struct Request {
    /// The run that this belongs to.
    pub run: RunInfo,
    /// The component to drive.
    pub component: ComponentSpec,
    /// Which kind of driver, with what only that kind needs.
    pub work: Work,
}

/// Facts about the run.
#[derive(Clone, Debug, Default)]
pub struct RunInfo {
    /// Name of the pipeline's metadata context.
    pub pipeline_name: String,
    /// UUID of the run.
    pub id: String,
    /// Name of the Workflow object.
    pub name: String,
    /// Name to show.
    pub display_name: String,
    /// Creation time, RFC 3339; empty when the Workflow has to be asked.
    pub create_time: String,
    /// Kubernetes namespace.
    pub namespace: String,
}

/// What kind of driver this is.
#[derive(Clone, Debug)]
pub enum Work {
    /// The pipeline itself.
    Root {
        /// Parameter values and pipeline root of the run.
        runtime_config: RuntimeConfig,
        /// Pipeline root when neither the run nor the `kfp-launcher` ConfigMap names one.
        default_pipeline_root: String,
    },
    /// A DAG within the pipeline: sub-pipeline, branch, exit handler, loop, loop iteration.
    Dag(Box<Task>),
    /// A container task.
    Container(Box<Container>),
}

/// The task to drive.
#[derive(Clone, Debug, Default)]
pub struct Task {
    /// The task's specification in its parent DAG.
    pub spec: PipelineTaskSpec,
    /// The task's key in its parent DAG.
    pub name: String,
    /// Whether `name` may be a display name, which several tasks can share: older compilers pass no key.
    pub ambiguous: bool,
    /// Execution id of the parent DAG.
    pub dag_execution_id: i64,
    /// Set for one iteration of a loop.
    pub iteration_index: Option<i64>,
}

impl Task {
    /// What is the same for all drivers of one task of a run, and for no other task.
    #[must_use]
    pub fn identity(&self, run_id: &str) -> String {
        let iteration = self.iteration_index.map_or_else(String::new, |index| index.to_string());
        format!("{run_id}/{}/{}/{iteration}", self.dag_execution_id, self.name)
    }

    /// The display name: `taskInfo.name`.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.spec.task_info.as_ref().map_or("", |info| &info.name)
    }

    /// The trigger condition, if there is one.
    #[must_use]
    pub fn condition(&self) -> Option<&str> {
        self.spec.trigger_policy.as_ref().map(|policy| policy.condition.as_str()).filter(|text| !text.is_empty())
    }

    /// Whether the task's outputs may come from the cache.
    #[must_use]
    pub fn caching(&self) -> bool {
        self.spec.caching_options.as_ref().is_some_and(|options| options.enable_cache)
    }
}

/// A container task with everything its pod needs.
#[derive(Clone, Debug, Default)]
pub struct Container {
    /// The task.
    pub task: Task,
    /// Image, command, resources.
    pub spec: PipelineContainerSpec,
    /// Kubernetes settings; empty when the task has none.
    pub kubernetes: KubernetesExecutorConfig,
    /// Cache off for everything.
    pub cache_disabled: bool,
    /// What the launcher is told.
    pub launcher: Launcher,
    /// Proxy settings for the user's container.
    pub proxies: Proxies,
    /// The administrator's security defaults.
    pub defaults: SecurityDefaults,
    /// The pod that this driver runs in.
    pub pod: DriverPod,
}

/// Flags handed on to the launcher, as text where the launcher takes text.
#[derive(Clone, Debug, Default)]
pub struct Launcher {
    /// Address of the API server.
    pub ml_pipeline_server_address: String,
    /// gRPC port of the API server.
    pub ml_pipeline_server_port: String,
    /// Address of the metadata store.
    pub mlmd_server_address: String,
    /// gRPC port of the metadata store.
    pub mlmd_server_port: String,
    /// TLS towards the API server.
    pub ml_pipeline_tls_enabled: bool,
    /// TLS towards the metadata store.
    pub metadata_tls_enabled: bool,
    /// PEM file of one more certificate authority; empty for none.
    pub ca_cert_path: String,
    /// Verbosity.
    pub log_level: String,
    /// Exactly `true` keeps logs as artifacts.
    pub publish_logs: String,
}

/// Proxy addresses; empty ones are not set.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    /// For `http_proxy` and `HTTP_PROXY`.
    pub http: String,
    /// For `https_proxy` and `HTTPS_PROXY`.
    pub https: String,
    /// For `no_proxy` and `NO_PROXY`.
    pub none: String,
}

/// What the administrator sets for every pod unless stated otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecurityDefaults {
    /// `runAsUser`.
    pub run_as_user: Option<i64>,
    /// `runAsGroup`.
    pub run_as_group: Option<i64>,
    /// `runAsNonRoot`.
    pub run_as_non_root: Option<bool>,
    /// Pod-level `hostUsers`; always wins.
    pub host_users: Option<bool>,
}

/// The pod that a driver runs in; PVC operations record it.
#[derive(Clone, Debug, Default)]
pub struct DriverPod {
    /// Name.
    pub name: String,
    /// UID; looked up when empty.
    pub uid: String,
}

/// What a driver found out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Response {
    /// Execution in the metadata store.
    pub execution_id: i64,
    /// Number of iterations, for loop heads.
    pub iteration_count: Option<i64>,
    /// The trigger condition's value, if there is a condition.
    pub condition: Option<bool>,
    /// Whether outputs came from the cache, once that was decided.
    pub cached_decision: Option<bool>,
    /// JSON of a PodSpec to merge into the task's pod.
    pub pod_spec_patch: Option<serde_json::Value>,
}

impl Work {
    /// Upstream's name of the driver type.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Work::Root { .. } => "ROOT_DAG",
            Work::Dag(_) => "DAG",
            Work::Container(_) => "CONTAINER",
        }
    }

    /// The task, except for the root.
    #[must_use]
    pub fn task(&self) -> Option<&Task> {
        match self {
            Work::Root { .. } => None,
            Work::Dag(task) => Some(task),
            Work::Container(container) => Some(&container.task),
        }
    }
}

impl Request {
    /// What is driven, for error messages.
    #[must_use]
    pub fn describe(&self) -> String {
        let function = match self.work {
            Work::Root { .. } => "driver.RootDAG",
            Work::Dag(_) => "driver.DAG",
            Work::Container(_) => "driver.Container",
        };
        let mut text = format!("{function}(pipelineName={}, runID={}", self.run.pipeline_name, self.run.id);
        if let Some(task) = self.work.task() {
            let component = task.spec.component_ref.as_ref().map_or("", |component| component.name.as_str());
            let name = &task.name;
            let (display, dag) = (task.display_name(), task.dag_execution_id);
            text +=
                &format!(", taskDisplayName={display}, taskName={name}, component={component}, dagExecutionID={dag}");
            if let Some(index) = task.iteration_index {
                text += &format!(", iterationIndex={index}");
            }
        }
        text + ")"
    }
}
