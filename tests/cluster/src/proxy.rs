//! A Kubernetes API that fails on demand: it forwards to another one, and a rule decides about each request.

use std::convert::Infallible;
use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use kfp_core::shutdown::CancellationToken;
use kube::client::Body;

use crate::Kube;

/// When a rule is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before the request is forwarded.
    Before,
    /// After it was carried out, before it is answered.
    After,
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Pass,
    /// Refuse it with this status.
    Refuse(u16),
    /// Never answer.
    Hang,
    /// Answer a watch with nothing but the news that its resource version is too old.
    Expire,
}

/// Whether a request opens a watch.
pub fn is_watch(parts: &Parts) -> bool {
    parts.uri.query().is_some_and(|query| query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")))
}

/// Decides about each request, once in each phase.
pub type Rule = Arc<dyn Fn(Phase, &Parts) -> Step + Send + Sync>;

/// A running proxy.
pub struct Proxy {
    /// A kubeconfig that leads to it.
    pub kubeconfig: String,
    stop: CancellationToken,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Starts a proxy before `kube`.
pub async fn start(kube: &Kube, rule: Rule) -> Proxy {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (client, stop) = (kube.client.clone(), CancellationToken::new());
    let ended = stop.clone();
    tokio::spawn(async move {
        while let Some(Ok((stream, _))) = ended.run_until_cancelled(listener.accept()).await {
            let (client, rule, ended) = (client.clone(), rule.clone(), ended.clone());
            let service = service_fn(move |request| {
                let (client, rule) = (client.clone(), rule.clone());
                async move { Ok::<_, Infallible>(forward(request, client, rule).await) }
            });
            tokio::spawn(async move {
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                drop(ended.run_until_cancelled(connection).await);
            });
        }
    });
    Proxy { kubeconfig: kfp_local_api::kubeconfig(&url, &kube.namespace), stop }
}

async fn forward(request: Request<Incoming>, client: kube::Client, rule: Rule) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    let refused = |code: u16| {
        let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code,
            "message": "refused by the test", "reason": "Test"});
        let mut response = Response::new(Body::from(status.to_string().into_bytes()));
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        response
    };
    let expired = || {
        let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410,
            "message": "too old resource version", "reason": "Expired"});
        let event = serde_json::json!({"type": "ERROR", "object": status});
        let mut response = Response::new(Body::from(format!("{event}\n").into_bytes()));
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        response
    };
    let Ok(body) = body.collect().await else { return refused(400) };
    match rule(Phase::Before, &parts) {
        Step::Pass => {}
        Step::Refuse(code) => return refused(code),
        Step::Hang => std::future::pending().await,
        Step::Expire => return expired(),
    }
    parts.headers.remove(http::header::HOST);
    parts.headers.remove(http::header::AUTHORIZATION);
    let path = parts.uri.path_and_query().unwrap().as_str().to_owned();
    let mut forwarded = Request::builder().method(&parts.method).uri(path);
    *forwarded.headers_mut().unwrap() = parts.headers.clone();
    let response = match client.send(forwarded.body(Body::from(body.to_bytes())).unwrap()).await {
        Ok(response) => response,
        Err(error) => panic!("the proxied API does not answer: {error}"),
    };
    match rule(Phase::After, &parts) {
        Step::Pass => response,
        Step::Refuse(code) => refused(code),
        Step::Hang => std::future::pending().await,
        Step::Expire => expired(),
    }
}
