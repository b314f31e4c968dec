//! The ScheduledWorkflow controller: starts the runs of recurring runs when they are due.
//!
//! The decision is a pure function of a schedule, its Workflows and the time ([`reconcile`]); around it stand watches, an
//! agenda with exact timers, and the calls that start runs and write the status. Upstream notices a due time at the next
//! resync; here a timer does.
//!
//! Every slot starts one run: names of runs are deterministic, the decision is repeated on the object as the API server
//! holds it now, and the status is written under its version.

mod agenda;
mod controller;
mod events;
pub mod macros;
mod model;
pub mod names;
mod options;
pub mod reconcile;
mod runs;
mod sync;
mod workflow;

use std::time::Duration;

use kfp_core::cron::zone;
use kfp_core::grpc::{Tls, channel};
use kfp_core::shutdown::CancellationToken;

pub use model::{Run, Schedule};
pub use options::Options;

/// Why the controller stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable Kubernetes configuration.
    #[error("cannot configure the Kubernetes client: {0}")]
    Kubernetes(String),
    /// The API server's address or certificate is unusable.
    #[error("cannot use the API server's address: {0}")]
    Address(#[from] kfp_core::grpc::Error),
    /// The API server did not answer in time.
    #[error("Error connecting to the API server after trying for {seconds} s: {address} does not answer")]
    NotReady {
        /// Host and port.
        address: String,
        /// How long the controller waited.
        seconds: u64,
    },
    /// `CRON_SCHEDULE_TIMEZONE` names no zone.
    #[error(transparent)]
    Zone(#[from] zone::Unknown),
    /// Another option has a value that cannot be used.
    #[error("{0}")]
    Option(String),
}

/// Runs until `shutdown` is cancelled; then finishes what is under way.
///
/// # Errors
/// When the configuration is unusable or the API server does not answer within the initial timeout.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let tz = std::env::var("TZ").ok();
    let zone = zone::configured(&options.time_zone, tz.as_deref())?;
    let identity =
        runs::identity(&options.user_identity_header, &options.user_identity_value).map_err(Error::Option)?;
    let policy = workflow::V1Policy::from_env(&options.block_v1_pipelines, &options.v1_allowed_namespaces);
    let policy = policy.map_err(Error::Option)?;
    let client = match options.client {
        Some(client) => client,
        None => kube_client(&options.kubeconfig).await?,
    };
    let tls = if options.tls { Some(Tls::load(&options.ca_cert_path)?) } else { None };
    let channel = channel(&options.api_host, options.api_grpc_port, tls.as_ref())?;
    wait_until_open(&options.api_host, options.api_grpc_port, options.initialize_timeout, &shutdown).await?;
    let runs = runs::Runs::new(channel, options.token_path, identity);
    tracing::info!(namespace = options.namespace, %zone, "starting the runs of ScheduledWorkflows");
    let syncer = sync::Syncer::new(client, runs, policy, zone);
    controller::Controller::new(syncer, zone, options.workers, options.resync).run(&options.namespace, shutdown).await;
    Ok(())
}

async fn kube_client(kubeconfig: &str) -> Result<kube::Client, Error> {
    let wrong = |error: &dyn std::fmt::Display| Error::Kubernetes(error.to_string());
    let config = if kubeconfig.is_empty() {
        kube::Config::infer().await.map_err(|e| wrong(&e))?
    } else {
        let file = kube::config::Kubeconfig::read_from(kubeconfig).map_err(|e| wrong(&e))?;
        let options = kube::config::KubeConfigOptions::default();
        kube::Config::from_custom_kubeconfig(file, &options).await.map_err(|e| wrong(&e))?
    };
    kube::Client::try_from(config).map_err(|e| wrong(&e))
}

/// Waits until the API server takes connections.
async fn wait_until_open(host: &str, port: u16, timeout: Duration, shutdown: &CancellationToken) -> Result<(), Error> {
    let opened = async {
        let mut pause = Duration::from_millis(50);
        while tokio::net::TcpStream::connect((host, port)).await.is_err() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        opened = tokio::time::timeout(timeout, opened) => opened
            .map_err(|_| Error::NotReady { address: format!("{host}:{port}"), seconds: timeout.as_secs() }),
    }
}
