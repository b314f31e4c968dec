//! The API server of Kubeflow Pipelines: pipelines, experiments, runs and schedules over gRPC and REST, stored in SQL and
//! executed as Argo Workflows.

pub mod access;
pub mod config;
pub mod domain;
pub mod error;
pub mod http;
pub mod metrics;
pub mod options;
mod server;
pub mod services;
pub mod store;
pub mod tls;
pub mod workflows;

use std::net::SocketAddr;
use std::sync::Arc;

use kfp_core::shutdown::{CancellationToken, TaskTracker};

pub use options::Options;

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Database or Kubernetes cannot be used.
    #[error(transparent)]
    Start(#[from] error::Error),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}; choose another port or stop what uses it")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// Certificate or key cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// A listener failed.
    #[error("serving failed: {0}")]
    Serve(String),
    /// The program is put together wrongly.
    #[error("the API server is put together wrongly: {0}")]
    Wiring(String),
}

/// Runs the API server until `shutdown` is cancelled.
///
/// # Errors
/// When it cannot start, or when a listener fails.
pub async fn run(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let Options {
        http_address,
        grpc_address,
        http_listener,
        grpc_listener,
        database,
        kube,
        compiler,
        namespace,
        grace_seconds,
        commit,
        tag,
        urls,
        rules,
        archive,
        objects,
        count_handlers,
        samples,
        sample_tags,
        visualizations,
        retention,
        lost_runs_interval,
        tls,
        plugins,
        access,
        zone,
    } = options;
    let http_listener = server::listener(http_listener, http_address).await?;
    let grpc_listener = server::listener(grpc_listener, grpc_address).await?;
    let http = http_listener.local_addr().unwrap_or(http_address);
    let grpc = grpc_listener.local_addr().unwrap_or(grpc_address);
    tracing::info!(%http, %grpc, tls = tls.is_some(), %database, %namespace, multi_user = access.multi_user, "API server starts");
    let settings = http::Settings { commit, tag, archive, objects, multi_user: access.multi_user };
    let front = server::Front::open(http_listener, settings, tls.as_ref(), &shutdown)?;
    let metrics = Arc::new(metrics::Metrics::new(&kfp_proto::POOL, &server::PACKAGES, count_handlers));
    let prepare = async {
        let db = store::Db::open(&database).await?;
        let cluster = match kube {
            Some(client) => workflows::cluster::Cluster::new(client),
            None => workflows::cluster::Cluster::infer().await?,
        };
        // With many users, each namespace has experiments of its own and none by default.
        if !access.multi_user {
            let mut tx = db.write().await?;
            services::experiments::ensure_default(&mut tx).await?;
            tx.commit().await?;
        }
        let app = Arc::new(services::App {
            db,
            cluster,
            compiler,
            namespace,
            grace_seconds,
            urls,
            rules,
            metrics,
            visualizations,
            plugins,
            access,
            zone,
        });
        if let Some(list) = samples {
            services::samples::load(&app, &list, &sample_tags).await?;
        }
        Ok::<_, Error>(app)
    };
    let app = tokio::select! {
        app = prepare => app,
        () = shutdown.cancelled() => return front.close().await,
    };
    let app = match app {
        Ok(app) => app,
        Err(error) => {
            front.close().await?;
            return Err(error);
        }
    };
    tracing::info!("API server is ready");
    let (work, stop) = (TaskTracker::new(), shutdown.child_token());
    work.spawn(follow_upgrade(app.clone(), stop.clone()));
    if retention.is_limited() {
        work.spawn(services::upkeep::collect(app.clone(), retention, stop.clone()));
    }
    if !lost_runs_interval.is_zero() {
        work.spawn(services::lost::watch(app.clone(), lost_runs_interval, stop.clone()));
    }
    work.close();
    let done = front.serve(&app, grpc_listener, tls.as_ref()).await;
    stop.cancel();
    work.wait().await;
    app.db.close().await;
    tracing::info!("API server stopped");
    done
}

/// Brings the schedules that exist up to what this version compiles.
async fn follow_upgrade(app: services::Handle, shutdown: CancellationToken) {
    match services::upkeep::reconcile(&app, &shutdown).await {
        Ok(0) => {}
        Ok(updated) => tracing::info!(updated, "scheduled workflows follow the settings of this server"),
        Err(error) => tracing::warn!(%error, "cannot bring all scheduled workflows up to date"),
    }
}
