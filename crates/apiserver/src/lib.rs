//! The API server of Kubeflow Pipelines: pipelines, experiments, runs and schedules over gRPC and REST, stored in SQL and
//! executed as Argo Workflows.

pub mod access;
pub mod catalog;
pub mod config;
pub mod domain;
pub mod error;
pub mod http;
pub mod live;
pub mod metrics;
pub mod options;
mod server;
pub mod services;
pub mod store;
pub mod tls;
pub mod webhook;
pub mod workflows;

use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
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
pub fn run(options: Options, shutdown: CancellationToken) -> BoxFuture<'static, Result<(), Error>> {
    // Boxed, so that all of it is compiled in this crate, once, and not in each that awaits it.
    Box::pin(run_unboxed(options, shutdown))
}

async fn run_unboxed(options: Options, shutdown: CancellationToken) -> Result<(), Error> {
    let Options {
        http_address,
        grpc_address,
        http_listener,
        grpc_listener,
        patience,
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
        pipelines_in_cluster,
        webhook,
        zone,
        config_directory,
    } = options;
    let settings = live::Settings { compiler, grace_seconds, urls, rules, plugins };
    // A listener that fails stops everything else.
    let stop = shutdown.child_token();
    let webhook = match webhook {
        Some(settings) if settings.alone => {
            webhook::Server::bind(settings).await?.serve(connect(kube).await?, stop).await;
            return Ok(());
        }
        Some(settings) => Some(webhook::Server::bind(settings).await?),
        None => None,
    };
    let http_listener = server::listener(http_listener, http_address).await?;
    let grpc_listener = server::listener(grpc_listener, grpc_address).await?;
    let http = http_listener.local_addr().unwrap_or(http_address);
    let grpc = grpc_listener.local_addr().unwrap_or(grpc_address);
    tracing::info!(%http, %grpc, tls = tls.is_some(), %database, %namespace, multi_user = access.multi_user, "API server starts");
    let (multi_user, in_cluster) = (access.multi_user, pipelines_in_cluster);
    let shown = http::Settings { commit, tag, archive, objects, multi_user, in_cluster };
    let front = server::Front::open(http_listener, shown, tls.as_ref(), patience, &stop)?;
    let work = TaskTracker::new();
    let metrics = Arc::new(metrics::Metrics::new(&kfp_proto::POOL, &server::PACKAGES, count_handlers));
    let prepare = async {
        let db = store::Db::open(&database).await?;
        let cluster = connect(kube).await?;
        // Before the samples, which Kubernetes asks it about.
        let admission = webhook.map(|webhook| work.spawn(webhook.serve(cluster.clone(), stop.clone())));
        let catalog = if in_cluster {
            let only = (!multi_user).then(|| namespace.clone());
            catalog::Catalog::Kubernetes(catalog::kubernetes::Store::new(cluster.clone(), only))
        } else {
            catalog::Catalog::Database(db.clone())
        };
        // With many users, each namespace has experiments of its own and none by default.
        if !multi_user {
            let mut tx = db.write().await?;
            services::experiments::ensure_default(&mut tx).await?;
            tx.commit().await?;
        }
        let app = Arc::new(services::App {
            db,
            catalog,
            cluster,
            live: live::Live::new(settings, config_directory),
            namespace,
            metrics,
            visualizations,
            access,
            zone,
        });
        if let Some(list) = samples {
            services::samples::load(&app, &list, &sample_tags).await?;
        }
        Ok::<_, Error>((app, admission))
    };
    let app = tokio::select! {
        app = prepare => app,
        () = stop.cancelled() => return front.close().await,
    };
    let (app, admission) = match app {
        Ok(ready) => ready,
        Err(error) => {
            stop.cancel();
            front.close().await?;
            return Err(error);
        }
    };
    tracing::info!("API server is ready");
    work.spawn(follow_upgrade(app.clone(), stop.clone()));
    if retention.is_limited() {
        work.spawn(services::upkeep::collect(app.clone(), retention, stop.clone()));
    }
    if !lost_runs_interval.is_zero() {
        work.spawn(services::lost::watch(app.clone(), lost_runs_interval, stop.clone()));
    }
    work.close();
    let mut done = front.serve(&app, grpc_listener, tls.as_ref()).await;
    stop.cancel();
    work.wait().await;
    if let Some(admission) = admission {
        done = done.and(admission.await.map_err(|error| Error::Serve(error.to_string())));
    }
    app.db.close().await;
    tracing::info!("API server stopped");
    done
}

async fn connect(client: Option<kube::Client>) -> Result<workflows::cluster::Cluster, Error> {
    match client {
        Some(client) => Ok(workflows::cluster::Cluster::new(client)),
        None => Ok(workflows::cluster::Cluster::infer().await?),
    }
}

/// Brings the schedules that exist up to what this version compiles.
async fn follow_upgrade(app: services::Handle, shutdown: CancellationToken) {
    match services::upkeep::reconcile(&app, &shutdown).await {
        Ok(0) => {}
        Ok(updated) => tracing::info!(updated, "scheduled workflows follow the settings of this server"),
        Err(error) => tracing::warn!(%error, "cannot bring all scheduled workflows up to date"),
    }
}
