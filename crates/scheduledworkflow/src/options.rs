//! The controller's command line and environment: upstream's flags and variables.

use std::path::PathBuf;
use std::time::Duration;

use kfp_core::cluster::lease;
use kfp_core::flags::{Flags, Stop, Values};

use crate::clock::Clock;

/// Everything that the controller can be told.
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
    /// A ready client, given by programs that host the controller; wins over the four above.
    pub client: Option<kube::Client>,
    /// Namespace to watch; empty means all.
    pub namespace: String,
    /// Log level.
    pub log_level: String,
    /// Host of the API server.
    pub api_host: String,
    /// Its gRPC port.
    pub api_grpc_port: u16,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// PEM file of an additional authority.
    pub ca_cert_path: String,
    /// How long to wait for the API server at the start.
    pub initialize_timeout: Duration,
    /// How often every schedule is looked at without an event.
    pub resync: Duration,
    /// Schedules that are worked on at the same time.
    pub workers: usize,
    /// Header that names the user for whom runs are created; used together with the value.
    pub user_identity_header: String,
    /// Value of that header.
    pub user_identity_value: String,
    /// The token file; absent in single-user installations.
    pub token_path: PathBuf,
    /// Time zone of cron schedules (`CRON_SCHEDULE_TIMEZONE`); empty means the process's own.
    pub time_zone: String,
    /// Whether v1 pipelines are blocked (`BLOCK_V1_PIPELINES`), a boolean in Go's spelling.
    pub block_v1_pipelines: String,
    /// Namespaces where they are not (`V1_ALLOWED_NAMESPACES`), separated by commas.
    pub v1_allowed_namespaces: String,
    /// Port of the metrics; empty means none.
    pub metrics_port: String,
    /// Whether only the replica works that holds a lease.
    pub leader_elect: bool,
    /// Namespace of the lease; empty means the client's own.
    pub leader_elect_namespace: String,
    /// How long the lease lasts.
    pub lease_timing: lease::Timing,
    /// The wall clock.
    pub clock: Clock,
}

const TOKEN_PATH: &str = "/var/run/secrets/kubeflow/tokens/scheduledworkflow-sa-token";
/// Upstream gives the API server this long.
const INITIALIZE_TIMEOUT: Duration = Duration::from_secs(60);
const WORKERS: usize = 16;

impl Options {
    fn flags() -> Flags {
        Flags::new("controller", "starts the runs of ScheduledWorkflows")
            .text("kubeconfig", "", "kubeconfig file; in-cluster configuration when empty")
            .text("master", "", "address of the Kubernetes API; that of the kubeconfig when empty")
            .text("namespace", "", "namespace to watch; all when empty")
            .text("logLevel", "", "error, warn, info, debug or trace")
            .float("clientQPS", 5.0, "calls a second to each group of the Kubernetes API; negative for no limit")
            .int("clientBurst", 10, "calls at once after a pause")
            .text("mlPipelineAPIServerName", "ml-pipeline", "host of the API server")
            .text("mlPipelineServiceGRPCPort", "8887", "gRPC port of the API server")
            .bool("mlPipelineServiceTLSEnabled", false, "whether the API server speaks TLS")
            .text("caCertPath", "", "PEM file of the authority that signed the API server's certificate")
            .text("metricsPort", "9090", "port of the metrics; none when empty")
            .int("recurringRunResyncIntervalSeconds", 30, "seconds between two looks at every schedule")
            .text("userIdentityHeader", "", "header that names the user for whom runs are created")
            .text("userIdentityValue", "", "value of that header")
            .bool("leaderElect", false, "whether only the replica that holds a lease works")
            .text("leaderElectNamespace", "", "namespace of the lease; the controller's own when empty")
            .ignoring_glog()
    }

    /// Reads the words after the program's name and the process's environment.
    ///
    /// # Errors
    /// As Go's flag package: unknown flags and wrong values.
    pub fn parse<I: IntoIterator<Item = String>>(words: I) -> Result<Self, Stop> {
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        Self::from_values(&Self::flags().parse(words)?, &variable)
    }

    /// Reads the process's command line; exits on errors and `--help` as upstream's binary does.
    #[must_use]
    pub fn from_command_line() -> Self {
        Self::parse(std::env::args().skip(1)).unwrap_or_else(|stop| stop.exit())
    }

    fn from_values(v: &Values, variable: &dyn Fn(&str) -> String) -> Result<Self, Stop> {
        let wrong = |text: String| Stop::Wrong(format!("controller: {text}"));
        let port = v.text("mlPipelineServiceGRPCPort");
        let resync = u64::try_from(v.int("recurringRunResyncIntervalSeconds")).ok().filter(|seconds| *seconds > 0);
        Ok(Self {
            kubeconfig: v.text("kubeconfig").to_owned(),
            master: v.text("master").to_owned(),
            client_qps: v.float("clientQPS"),
            client_burst: v.int("clientBurst"),
            client: None,
            namespace: v.text("namespace").to_owned(),
            log_level: v.text("logLevel").to_owned(),
            api_host: v.text("mlPipelineAPIServerName").to_owned(),
            api_grpc_port: port
                .parse()
                .map_err(|_| wrong(format!("--mlPipelineServiceGRPCPort {port:?} is not a port")))?,
            tls: v.bool("mlPipelineServiceTLSEnabled"),
            ca_cert_path: v.text("caCertPath").to_owned(),
            initialize_timeout: INITIALIZE_TIMEOUT,
            resync: resync
                .map(Duration::from_secs)
                .ok_or_else(|| wrong("recurringRunResyncInterval must be a positive number".to_owned()))?,
            workers: WORKERS,
            user_identity_header: v.text("userIdentityHeader").to_owned(),
            user_identity_value: v.text("userIdentityValue").to_owned(),
            token_path: PathBuf::from(TOKEN_PATH),
            time_zone: variable("CRON_SCHEDULE_TIMEZONE"),
            block_v1_pipelines: variable("BLOCK_V1_PIPELINES"),
            v1_allowed_namespaces: variable("V1_ALLOWED_NAMESPACES"),
            metrics_port: v.text("metricsPort").to_owned(),
            leader_elect: v.bool("leaderElect"),
            leader_elect_namespace: v.text("leaderElectNamespace").to_owned(),
            lease_timing: lease::Timing::default(),
            clock: Clock::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Stop> {
        let values = Options::flags().parse(line.split_whitespace())?;
        Options::from_values(&values, &|name| name.to_lowercase())
    }

    #[test]
    fn takes_the_image_command_line() {
        let o = parse(
            "--logtostderr=true --namespace= --logLevel=info --clientQPS=5 --clientBurst=10 \
             --recurringRunResyncIntervalSeconds=30 --metricsPort=9090 --userIdentityHeader=kubeflow-userid \
             --userIdentityValue=system:serviceaccount:kubeflow:ml-pipeline-scheduledworkflow",
        );
        let Ok(o) = o else { panic!("refused") };
        assert_eq!((o.namespace.as_str(), o.resync.as_secs(), o.api_grpc_port), ("", 30, 8887));
        assert_eq!(o.user_identity_value, "system:serviceaccount:kubeflow:ml-pipeline-scheduledworkflow");
        assert_eq!(o.time_zone, "cron_schedule_timezone");
    }

    #[test]
    fn wrong_values_are_named() {
        for (line, text) in [
            ("--recurringRunResyncIntervalSeconds=0", "recurringRunResyncInterval must be a positive number"),
            ("--recurringRunResyncIntervalSeconds=-3", "recurringRunResyncInterval must be a positive number"),
            ("--mlPipelineServiceGRPCPort x", "\"x\" is not a port"),
        ] {
            match parse(line) {
                Err(Stop::Wrong(message)) => assert!(message.contains(text), "{message}"),
                _ => panic!("{line} was taken"),
            }
        }
    }
}
