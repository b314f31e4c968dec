//! The persistence agent: watches Workflows and ScheduledWorkflows and reports their state to the API server.
//!
//! Upstream's agent polls its informer caches with rate-limited queues; this one reports each change at once, one report
//! at a time for each object, always its latest state. It holds no objects but those that are not reported yet.

mod follow;
mod metrics;
mod object;
mod options;
pub mod queue;
mod report;
mod timers;

use std::sync::Arc;

use futures::future::BoxFuture;
use kfp_core::cluster::Connection;
use kfp_core::grpc::{Tls, channel, opened};
use kfp_core::metrics::Registry;
use kfp_core::shutdown::CancellationToken;
use kfp_core::token::Token;

pub use options::Options;
pub use report::Kind;

use follow::{Follower, Objects};
use metrics::Metrics;
use report::Reporter;

/// Why the agent stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No usable Kubernetes configuration.
    #[error(transparent)]
    Kubernetes(#[from] kfp_core::cluster::Error),
    /// The API server's address or certificate is unusable.
    #[error("cannot use the API server's address: {0}")]
    Address(#[from] kfp_core::grpc::Error),
    /// The API server did not answer in time.
    #[error("the API server at {address} did not answer within {seconds} s; is it running and is the address right?")]
    NotReady {
        /// Host and port.
        address: String,
        /// How long the agent waited.
        seconds: u64,
    },
    /// An option has a value that cannot be used.
    #[error("{0}")]
    Option(String),
}

/// Runs until `shutdown` is cancelled; then finishes the reports under way.
///
/// # Errors
/// When the configuration is unusable or the API server does not answer within the initial timeout.
pub fn run(options: Options, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that all of it is compiled in this crate, once, and not in each that awaits it.
    Box::pin(run_unboxed(options, shutdown))
}

async fn run_unboxed(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let Options {
        kubeconfig,
        master,
        client,
        client_qps,
        client_burst,
        namespace,
        log_level: _,
        initialize_timeout,
        api_host,
        api_grpc_port,
        tls,
        ca_cert_path,
        ttl_after_finish,
        workers,
        token_path,
        metrics_port,
    } = options;
    let client = match client {
        Some(client) => client,
        None => Connection { kubeconfig, master, qps: client_qps, burst: client_burst }.client().await?,
    };
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
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
    let reporter = Reporter::new(channel, Token::new(token_path));
    tracing::info!(namespace, api_host, api_grpc_port, "reporting Workflows and ScheduledWorkflows");
    let follow = |kind| {
        let objects = Objects::new(&client, &namespace, kind);
        Follower::new(objects, kind, reporter.clone(), workers, ttl_after_finish, metrics.clone()).run(shutdown.clone())
    };
    tokio::join!(follow(Kind::Workflow), follow(Kind::ScheduledWorkflow));
    Ok(())
}
