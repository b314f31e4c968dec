//! Admission of PipelineVersion objects, for pipelines that are kept in the cluster.

mod review;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use kfp_core::serve::{self, Incoming};
use kfp_core::shutdown::CancellationToken;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::catalog::objects;
use crate::domain::names;
use crate::domain::nodes::text;
use crate::workflows::cluster::{Cluster, Failure, Kind};
use crate::{Error, server, tls};

/// Largest review: Kubernetes refuses larger objects itself, and an update carries two of them.
const LIMIT: usize = 16 << 20;

/// Where reviews are answered.
#[derive(Debug)]
pub struct Settings {
    /// Address, unless there is a listener.
    pub address: SocketAddr,
    /// A socket that is bound already.
    pub listener: Option<std::net::TcpListener>,
    /// TLS, which Kubernetes insists on; a proxy may do it instead.
    pub tls: Option<tls::Settings>,
    /// Serves nothing else (`--globalKubernetesWebhookMode`).
    pub alone: bool,
}

/// The webhooks' listener.
pub struct Server {
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens; connections wait until they are served.
    ///
    /// # Errors
    /// When the address cannot be listened on or the certificate cannot be used.
    pub async fn bind(settings: Settings) -> Result<Self, Error> {
        let acceptor = settings.tls.as_ref().map(|tls| tls.acceptor("http/1.1")).transpose()?;
        let listener = server::listener(settings.listener, settings.address).await?;
        let address = listener.local_addr().unwrap_or(settings.address);
        tracing::info!(%address, tls = acceptor.is_some(), "webhook starts");
        if acceptor.is_none() {
            tracing::warn!("the webhook has no certificate and is served without TLS");
        }
        Ok(Server { listener, acceptor })
    }

    /// Answers reviews until `stop`, which it cancels if it ends before; reviews under way then have a while to end.
    pub async fn serve(self, cluster: Cluster, stop: CancellationToken) {
        let _stops = stop.clone().drop_guard();
        let late = {
            let stop = stop.clone();
            async move {
                stop.cancelled().await;
                tokio::time::sleep(server::DRAIN).await;
            }
        };
        let router = router(cluster);
        let incoming = Incoming::new(self.listener, self.acceptor);
        tokio::select! {
            () = serve::http1(incoming, router, serve::PATIENCE, stop) => {}
            () = late => {}
        }
    }
}

/// The two webhooks.
pub fn router(cluster: Cluster) -> Router {
    Router::new()
        .route("/webhooks/validate-pipelineversion", post(validate))
        .route("/webhooks/mutate-pipelineversion", post(mutate))
        .layer(DefaultBodyLimit::max(LIMIT))
        .with_state(Arc::new(cluster))
}

/// The request of a review.
fn request(body: &[u8]) -> Result<Value, (StatusCode, &'static str)> {
    let refuse = |text| Err((StatusCode::BAD_REQUEST, text));
    let Ok(mut review) = serde_json::from_slice::<Value>(body) else { return refuse("the body is no JSON\n") };
    let is_review = review["apiVersion"] == "admission.k8s.io/v1" && review["kind"] == "AdmissionReview";
    if !is_review || text(&review, "/request/uid").is_empty() {
        return refuse("the body is no AdmissionReview of admission.k8s.io/v1\n");
    }
    Ok(review["request"].take())
}

fn answer(request: &Value, decision: Result<Option<Value>, String>) -> Response {
    let mut response = json!({"uid": request["uid"], "allowed": decision.is_ok()});
    match decision {
        Ok(None) => {}
        Ok(Some(patch)) => {
            use base64::Engine as _;
            let patch = base64::engine::general_purpose::STANDARD.encode(patch.to_string());
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(patch);
        }
        Err(message) => {
            response["status"] = json!({
                "status": "Failure", "code": 400, "reason": "BadRequest", "message": message,
            });
        }
    }
    let review = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    axum::Json(review).into_response()
}

async fn validate(body: Bytes) -> Response {
    let request = match request(&body) {
        Ok(request) => request,
        Err(refused) => return refused.into_response(),
    };
    let decision = match text(&request, "/operation") {
        "CREATE" => review::check_new(&request["object"]),
        "UPDATE" => review::check_change(&request["oldObject"], &request["object"]),
        _ => Ok(()),
    };
    answer(&request, decision.map(|()| None))
}

async fn mutate(State(cluster): State<Arc<Cluster>>, body: Bytes) -> Response {
    let request = match request(&body) {
        Ok(request) => request,
        Err(refused) => return refused.into_response(),
    };
    if !matches!(text(&request, "/operation"), "CREATE" | "UPDATE") {
        return answer(&request, Ok(None));
    }
    let version = &request["object"];
    let decision = pipeline_of(&cluster, &request, version).await.map(|pipeline| {
        let patch = review::completion(version, &pipeline);
        (!patch.is_empty()).then(|| json!(patch))
    });
    answer(&request, decision)
}

/// The pipeline that a version names.
async fn pipeline_of(cluster: &Cluster, request: &Value, version: &Value) -> Result<Value, String> {
    let missing = || "The spec.pipelineName doesn't map to an existing Pipeline object".to_owned();
    let name = text(version, "/spec/pipelineName");
    let namespace = match text(version, "/metadata/namespace") {
        // New objects may leave it to the address that they are sent to.
        "" => text(request, "/namespace"),
        namespace => namespace,
    };
    if !names::is_label(namespace) || !names::is_subdomain(name) {
        return Err(missing());
    }
    match cluster.get(Kind::Pipeline, namespace, name).await {
        Ok(pipeline) if pipeline["apiVersion"] == objects::API_VERSION => Ok(pipeline),
        Ok(_) | Err(Failure::NotFound(_)) => Err(missing()),
        Err(failure) => Err(format!("Failed to get the Pipeline {namespace}/{name}: {failure}")),
    }
}
