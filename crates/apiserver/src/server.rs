//! The two listeners: gRPC with reflection and health, and HTTP with REST in front of the same services.

use std::net::SocketAddr;
use std::time::Duration;

use ::http::HeaderValue;
use kfp_core::serve::{self, Incoming};
use kfp_core::shutdown::{CancellationToken, TaskTracker};
use kfp_proto::api;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::service::Routes;

use crate::services::v1::{Auth, visualizations};
use crate::services::{Handle, experiments, pipelines, recurring_runs, reports, runs, tasks};
use crate::{Error, access, http, metrics, tls};

/// Workflows and pipelines may be large; upstream sets no limit either.
const MESSAGE_LIMIT: usize = i32::MAX as usize;
/// How long open requests may take after the signal to stop.
pub(crate) const DRAIN: Duration = Duration::from_secs(10);
/// Packages whose services have REST routes.
pub(crate) const PACKAGES: [&str; 2] = ["kubeflow.pipelines.backend.api.v2beta1", "api"];

/// Names the method in the answers of services and methods that are not built, which say nothing by themselves.
async fn name_unimplemented(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    let path = request.uri().path().to_owned();
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    let bare = headers.get("grpc-message").is_none_or(|text| text.as_bytes() == b"Not%20yet%20implemented");
    if bare
        && headers.get("grpc-status").is_some_and(|code| code == "12")
        && let Ok(text) = HeaderValue::from_str(&format!("{}%20is%20not%20implemented", path.trim_start_matches('/')))
    {
        headers.insert("grpc-message", text);
    }
    response
}

/// Names of the services that are served: those of the packages, without those that upstream declares and never serves.
fn served() -> impl Iterator<Item = String> {
    let unserved = ["HealthzService", "DummyFilterService"];
    let known = kfp_proto::POOL.services().filter(move |service| {
        PACKAGES.contains(&service.package_name())
            && !unserved.contains(&service.name())
            && service.full_name() != "kubeflow.pipelines.backend.api.v2beta1.VisualizationService"
    });
    known.map(|service| service.full_name().to_owned()).chain(["grpc.health.v1.Health".to_owned()])
}

/// All gRPC services.
///
/// # Errors
/// When the descriptors do not load, which no input can cause.
pub async fn routes(app: &Handle) -> Result<Routes, Error> {
    macro_rules! serve {
        ($server:path, $service:expr) => {
            <$server>::new($service).max_decoding_message_size(MESSAGE_LIMIT).max_encoding_message_size(MESSAGE_LIMIT)
        };
    }
    let (health_reporter, health) = tonic_health::server::health_reporter();
    health_reporter.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = || {
        let all = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(kfp_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        served().fold(all, tonic_reflection::server::Builder::with_service_name)
    };
    let mut routes = Routes::builder();
    routes
        .add_service(serve!(
            v2::experiment_service_server::ExperimentServiceServer<_>,
            experiments::Service(app.clone())
        ))
        .add_service(serve!(v2::pipeline_service_server::PipelineServiceServer<_>, pipelines::Service(app.clone())))
        .add_service(serve!(v2::run_service_server::RunServiceServer<_>, runs::Service(app.clone())))
        .add_service(serve!(
            v2::recurring_run_service_server::RecurringRunServiceServer<_>,
            recurring_runs::Service(app.clone())
        ))
        .add_service(serve!(v2::report_service_server::ReportServiceServer<_>, reports::Service(app.clone())))
        .add_service(serve!(v2::auth_service_server::AuthServiceServer<_>, Auth))
        .add_service(serve!(api::task_service_server::TaskServiceServer<_>, tasks::Service(app.clone())))
        .add_service(serve!(api::report_service_server::ReportServiceServer<_>, reports::Service(app.clone())))
        .add_service(serve!(api::auth_service_server::AuthServiceServer<_>, Auth))
        .add_service(serve!(
            api::experiment_service_server::ExperimentServiceServer<_>,
            experiments::Service(app.clone())
        ))
        .add_service(serve!(api::job_service_server::JobServiceServer<_>, recurring_runs::Service(app.clone())))
        .add_service(serve!(api::pipeline_service_server::PipelineServiceServer<_>, pipelines::Service(app.clone())))
        .add_service(serve!(api::run_service_server::RunServiceServer<_>, runs::Service(app.clone())))
        .add_service(serve!(
            api::visualization_service_server::VisualizationServiceServer<_>,
            visualizations::Service(app.clone())
        ))
        .add_service(health)
        .add_service(reflection().build_v1().map_err(|error| Error::Wiring(error.to_string()))?)
        .add_service(reflection().build_v1alpha().map_err(|error| Error::Wiring(error.to_string()))?);
    let observe = axum::middleware::from_fn_with_state(app.metrics.clone(), metrics::observe);
    let guard = axum::middleware::from_fn_with_state(app.clone(), access::guard);
    let router = routes.routes().into_axum_router().layer(guard);
    let router = router.layer(axum::middleware::from_fn(name_unimplemented)).layer(observe);
    Ok(Routes::from(router))
}

/// Takes a bound socket over, or binds one.
pub(crate) async fn listener(bound: Option<std::net::TcpListener>, address: SocketAddr) -> Result<TcpListener, Error> {
    let failed = |source| Error::Listen { address, source };
    match bound {
        Some(socket) => {
            socket.set_nonblocking(true).map_err(failed)?;
            TcpListener::from_std(socket).map_err(failed)
        }
        None => TcpListener::bind(address).await.map_err(failed),
    }
}

fn incoming(listener: TcpListener, tls: Option<&tls::Settings>, protocol: &str) -> Result<Incoming, Error> {
    Ok(Incoming::new(listener, tls.map(|tls| tls.acceptor(protocol)).transpose()?))
}

/// The HTTP port, open before the API is ready: health is answered at once, everything else as soon as it is.
#[derive(Debug)]
pub(crate) struct Front {
    ready: watch::Sender<Option<axum::Router>>,
    settings: http::Settings,
    patience: Duration,
    stop: CancellationToken,
    tracker: TaskTracker,
    http: JoinHandle<Result<(), Error>>,
}

impl Front {
    /// Starts to serve; ends when `shutdown` does.
    pub fn open(
        listener: TcpListener,
        settings: http::Settings,
        tls: Option<&tls::Settings>,
        patience: Duration,
        shutdown: &CancellationToken,
    ) -> Result<Self, Error> {
        let (ready, gate) = watch::channel(None);
        let router = http::gate(settings.clone(), gate);
        let (tracker, stop) = (TaskTracker::new(), shutdown.child_token());
        let incoming = incoming(listener, tls, "http/1.1")?;
        let signal = stop.clone();
        let http = tracker.spawn(async move {
            let _stops = signal.clone().drop_guard();
            serve::http1(incoming, router, patience, signal).await;
            Ok(())
        });
        Ok(Front { ready, settings, patience, stop, tracker, http })
    }

    /// Serves the API on both ports until the end; a listener that fails stops the other one too.
    pub async fn serve(
        self,
        app: &Handle,
        grpc_listener: TcpListener,
        tls: Option<&tls::Settings>,
    ) -> Result<(), Error> {
        let routes = routes(app).await?;
        let rest = kfp_rest::Transcoder::new(&kfp_proto::POOL, &PACKAGES, routes.clone().into_axum_router())
            .map_err(|error| Error::Wiring(error.to_string()))?;
        let document = http::openapi::complete(rest.openapi("Kubeflow Pipelines API", &self.settings.tag));
        let router = http::router(app.clone(), self.settings.clone(), &document, rest.into_router());
        self.ready.send_replace(Some(router));
        let signal = self.stop.clone();
        let incoming = incoming(grpc_listener, tls, "h2")?.into_stream(self.patience);
        let paced = routes.into_axum_router().layer(axum::middleware::from_fn(http::pace::bound));
        let server = serve::grpc(self.patience).add_routes(Routes::from(paced));
        let grpc = self.tracker.spawn(async move {
            let stopped = signal.clone().cancelled_owned();
            let done = server.serve_with_incoming_shutdown(incoming, stopped).await;
            signal.cancel();
            done.map_err(|error| Error::Serve(error.to_string()))
        });
        self.stop.cancelled().await;
        self.end(Some(grpc)).await
    }

    /// Stops before the API became ready.
    pub async fn close(self) -> Result<(), Error> {
        self.stop.cancel();
        self.end(None).await
    }

    async fn end(self, grpc: Option<JoinHandle<Result<(), Error>>>) -> Result<(), Error> {
        // Requests that still wait for the API are told that it does not come.
        drop(self.ready);
        self.tracker.close();
        let tasks = || [Some(&self.http), grpc.as_ref()].into_iter().flatten();
        // Streams that follow a log never end by themselves.
        if tokio::time::timeout(DRAIN, self.tracker.wait()).await.is_err() {
            tracing::warn!("open requests did not end in time");
            tasks().for_each(JoinHandle::abort);
        }
        for task in [Some(self.http), grpc].into_iter().flatten() {
            match task.await {
                Ok(done) => done?,
                Err(error) if error.is_cancelled() => {}
                Err(error) => return Err(Error::Serve(error.to_string())),
            }
        }
        Ok(())
    }
}
