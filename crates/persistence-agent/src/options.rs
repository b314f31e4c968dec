//! The agent's command line: upstream's flags.

use std::path::PathBuf;
use std::time::Duration;

use kfp_core::flags::{Flags, Stop, Values};

/// Everything that the agent can be told.
#[derive(Clone)]
pub struct Options {
    /// Kubeconfig file; empty means in-cluster, else the usual places.
    pub kubeconfig: String,
    /// Address of the Kubernetes API that replaces the kubeconfig's; empty means none.
    pub master: String,
    /// Calls a second to each group of the Kubernetes API.
    pub client_qps: f64,
    /// Calls at once after a pause.
    pub client_burst: i64,
    /// A ready client, given by programs that host the agent; wins over the four above.
    pub client: Option<kube::Client>,
    /// Namespace to watch; empty means all.
    pub namespace: String,
    /// Log level.
    pub log_level: String,
    /// How long to wait for the API server at the start.
    pub initialize_timeout: Duration,
    /// Host of the API server.
    pub api_host: String,
    /// Its gRPC port.
    pub api_grpc_port: u16,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// PEM file of an additional authority.
    pub ca_cert_path: String,
    /// How long finished workflows stay in the cluster before they are reported for deletion.
    pub ttl_after_finish: Duration,
    /// Reports in flight for each kind of object.
    pub workers: usize,
    /// The token file; absent in single-user installations.
    pub token_path: PathBuf,
    /// Port of the metrics; empty means none.
    pub metrics_port: String,
}

const TOKEN_PATH: &str = "/var/run/secrets/kubeflow/tokens/persistenceagent-sa-token";

impl Options {
    fn flags() -> Flags {
        Flags::new("persistence_agent", "reports Workflows and ScheduledWorkflows to the Kubeflow Pipelines API server")
            .text("kubeconfig", "", "kubeconfig file; in-cluster configuration when empty")
            .text("master", "", "address of the Kubernetes API; that of the kubeconfig when empty")
            .text("logLevel", "", "error, warn, info, debug or trace")
            .text("namespace", "", "namespace to watch; all when empty")
            .duration("initializeTimeout", "2m", "how long to wait for the API server at the start")
            .duration("timeout", "1m", "accepted for compatibility; every call has a deadline of its own")
            .text("mlPipelineAPIServerName", "ml-pipeline", "host of the API server")
            .text("mlPipelineServiceHttpPort", "8888", "REST port of the API server")
            .text("mlPipelineServiceGRPCPort", "8887", "gRPC port of the API server")
            .text("mlPipelineAPIServerBasePath", "/apis/v1beta1", "accepted for compatibility")
            .bool("mlPipelineServiceTLSEnabled", false, "whether the API server speaks TLS")
            .text("caCertPath", "", "PEM file of the authority that signed the API server's certificate")
            .int("ttlSecondsAfterWorkflowFinish", 604_800, "seconds that finished workflows stay in the cluster")
            .int("numWorker", 2, "reports in flight for each kind of object")
            .float("clientQPS", 5.0, "calls a second to each group of the Kubernetes API; negative for no limit")
            .int("clientBurst", 10, "calls at once after a pause")
            .text("executionType", "Workflow", "kind of the executions; only Workflow")
            .int(
                "saTokenRefreshIntervalInSecs",
                3600,
                "accepted for compatibility; the token file is read when it changes",
            )
            .text("metricsPort", "", "port of the metrics; none when empty")
            .ignoring_glog()
    }

    /// Reads the words after the program's name.
    ///
    /// # Errors
    /// As Go's flag package: unknown flags and wrong values.
    pub fn parse<I: IntoIterator<Item = String>>(words: I) -> Result<Self, Stop> {
        Self::from_values(&Self::flags().parse(words)?)
    }

    /// Reads the process's command line; exits on errors and `--help` as upstream's binary does.
    #[must_use]
    pub fn from_command_line() -> Self {
        Self::parse(std::env::args().skip(1)).unwrap_or_else(|stop| stop.exit())
    }

    fn from_values(v: &Values) -> Result<Self, Stop> {
        let wrong = |text: String| Stop::Wrong(format!("persistence_agent: {text}"));
        if v.text("executionType") != "Workflow" {
            return Err(wrong(format!("unsupported --executionType {:?}; only Workflow", v.text("executionType"))));
        }
        let port = v.text("mlPipelineServiceGRPCPort");
        let seconds = |name: &str| {
            u64::try_from(v.int(name)).map(Duration::from_secs).map_err(|_| wrong(format!("--{name} is negative")))
        };
        Ok(Self {
            kubeconfig: v.text("kubeconfig").to_owned(),
            master: v.text("master").to_owned(),
            client_qps: v.float("clientQPS"),
            client_burst: v.int("clientBurst"),
            client: None,
            namespace: v.text("namespace").to_owned(),
            log_level: v.text("logLevel").to_owned(),
            initialize_timeout: v.duration("initializeTimeout"),
            api_host: v.text("mlPipelineAPIServerName").to_owned(),
            api_grpc_port: port
                .parse()
                .map_err(|_| wrong(format!("--mlPipelineServiceGRPCPort {port:?} is not a port")))?,
            tls: v.bool("mlPipelineServiceTLSEnabled"),
            ca_cert_path: v.text("caCertPath").to_owned(),
            ttl_after_finish: seconds("ttlSecondsAfterWorkflowFinish")?,
            workers: usize::try_from(v.int("numWorker")).unwrap_or(2).clamp(1, 64),
            token_path: PathBuf::from(TOKEN_PATH),
            metrics_port: v.text("metricsPort").to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Stop> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn takes_the_image_command_line() {
        let o = parse(
            "--logtostderr=true --namespace= --ttlSecondsAfterWorkflowFinish=86400 --numWorker 2 \
             --executionType Workflow --logLevel=info",
        );
        let Ok(o) = o else { panic!("refused") };
        assert_eq!((o.namespace.as_str(), o.ttl_after_finish.as_secs(), o.workers), ("", 86_400, 2));
        assert_eq!((o.api_host.as_str(), o.api_grpc_port), ("ml-pipeline", 8887));
    }

    #[test]
    fn wrong_values_are_named() {
        for (line, text) in [
            ("--executionType CronJob", "executionType"),
            ("--mlPipelineServiceGRPCPort 99999", "99999"),
            ("--ttlSecondsAfterWorkflowFinish=-5", "negative"),
            ("--initializeTimeout 5", "initializeTimeout"),
        ] {
            match parse(line) {
                Err(Stop::Wrong(message)) => assert!(message.contains(text), "{message}"),
                _ => panic!("{line} was taken"),
            }
        }
    }
}
