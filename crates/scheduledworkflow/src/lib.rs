//! The ScheduledWorkflow controller: starts the runs of recurring runs when they are due.
//!
//! The decision is a pure function of a schedule, its Workflows and the time ([`reconcile`]); around it stand watches, an
//! agenda with exact timers, and the calls that start runs and write the status. Upstream notices a due time at the next
//! resync; here a timer does.
//!
//! Every slot starts one run: names of runs are deterministic, the decision is repeated on the object as the API server
//! holds it now, and the status is written under its version.

mod agenda;
mod clock;
mod controller;
mod events;
pub mod macros;
mod metrics;
mod model;
pub mod names;
mod options;
pub mod reconcile;
mod runs;
mod sync;
mod workflow;

use std::pin::pin;
use std::sync::Arc;

use futures::future::BoxFuture;
use kfp_core::cluster::Connection;
use kfp_core::cluster::lease::Lease;
use kfp_core::cron::zone;
use kfp_core::grpc::{Tls, channel, opened};
use kfp_core::metrics::Registry;
use kfp_core::shutdown::CancellationToken;

pub use clock::Clock;
pub use model::{Run, Schedule};
pub use options::Options;

/// Name of the lease that replicas compete for.
pub const LEASE: &str = "ml-pipeline-scheduledworkflow";

/// Why the controller stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable Kubernetes configuration.
    #[error(transparent)]
    Kubernetes(#[from] kfp_core::cluster::Error),
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
    /// Another replica works now.
    #[error("the lease {LEASE} was lost")]
    LeaseLost,
}

/// Runs until `shutdown` is cancelled; then finishes what is under way.
///
/// # Errors
/// When the configuration is unusable, the API server does not answer within the initial timeout, or the lease is lost.
pub fn run(options: Options, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that all of it is compiled in this crate, once, and not in each that awaits it.
    Box::pin(run_unboxed(options, shutdown))
}

async fn run_unboxed(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let Options {
        kubeconfig,
        master,
        client_qps,
        client_burst,
        client,
        namespace,
        log_level: _,
        api_host,
        api_grpc_port,
        tls,
        ca_cert_path,
        initialize_timeout,
        resync,
        workers,
        user_identity_header,
        user_identity_value,
        token_path,
        time_zone,
        block_v1_pipelines,
        v1_allowed_namespaces,
        metrics_port,
        leader_elect,
        leader_elect_namespace,
        lease_timing,
        clock,
    } = options;
    let tz = std::env::var("TZ").ok();
    let zone = zone::configured(&time_zone, tz.as_deref())?;
    let identity = runs::identity(&user_identity_header, &user_identity_value).map_err(Error::Option)?;
    let policy = workflow::V1Policy::from_env(&block_v1_pipelines, &v1_allowed_namespaces).map_err(Error::Option)?;
    let client = match client {
        Some(client) => client,
        None => Connection { kubeconfig, master, qps: client_qps, burst: client_burst }.client().await?,
    };
    let mut registry = Registry::default();
    let metrics = metrics::Metrics::new(&mut registry);
    if !metrics_port.is_empty() {
        let listener = kfp_core::metrics::listen(&metrics_port).await.map_err(Error::Option)?;
        tokio::spawn(kfp_core::metrics::serve(listener, Arc::new(registry), shutdown.clone()));
    }
    let tls = if tls { Some(Tls::load(&ca_cert_path)?) } else { None };
    let channel = channel(&api_host, api_grpc_port, tls.as_ref())?;
    if !opened(&api_host, api_grpc_port, initialize_timeout, &shutdown).await {
        let address = format!("{api_host}:{api_grpc_port}");
        return Err(Error::NotReady { address, seconds: initialize_timeout.as_secs() });
    }
    let runs = runs::Runs::new(channel, token_path, identity);
    let held = if leader_elect {
        let namespace = Some(leader_elect_namespace).filter(|name| !name.is_empty());
        let namespace = namespace.unwrap_or_else(|| client.default_namespace().to_owned());
        let lease = Lease::new(client.clone(), &namespace, LEASE, replica(), lease_timing);
        let Some(held) = lease.acquire(&shutdown).await else { return Ok(()) };
        Some(held)
    } else {
        None
    };
    tracing::info!(namespace, %zone, "starting the runs of ScheduledWorkflows");
    let syncer = sync::Syncer::new(client, runs, policy, zone, metrics, clock);
    let working = controller::Controller::new(syncer, zone, workers, resync).run(&namespace, shutdown);
    let Some(held) = held else {
        working.await;
        return Ok(());
    };
    let mut working = pin!(working);
    tokio::select! {
        // What is under way stops where it is: another replica may have begun already.
        () = held.lost.cancelled() => return Err(Error::LeaseLost),
        () = &mut working => {}
    }
    held.release().await;
    Ok(())
}

/// A name that no other replica has.
fn replica() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{}", host.trim(), uuid::Uuid::new_v4())
}
