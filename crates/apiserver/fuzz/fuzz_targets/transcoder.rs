//! Any method, path, query and body through the transcoder, in front of services that answer with an empty message: no
//! request may panic or be answered with a 500.
#![no_main]

use std::sync::LazyLock;

use axum::body::Body;
use http::{HeaderValue, Method, Request, Response};
use kfp_rest::Transcoder;
use libfuzzer_sys::fuzz_target;
use tokio::runtime::Runtime;

const PACKAGES: [&str; 2] = ["kubeflow.pipelines.backend.api.v2beta1", "api"];

async fn empty() -> Response<Body> {
    let mut response = Response::new(Body::from(vec![0; 5]));
    response.headers_mut().insert("grpc-status", HeaderValue::from_static("0"));
    response
}

static SERVED: LazyLock<(Runtime, Transcoder)> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let services = axum::Router::new().fallback(empty);
    (runtime, Transcoder::new(&kfp_proto::POOL, &PACKAGES, services).expect("annotations"))
});

fuzz_target!(|data: &[u8]| {
    // The first byte chooses route and method, so that bodies reach their messages; a line end separates path from body.
    let Some((choice, rest)) = data.split_first() else { return };
    let (path, body) = rest.split_at(rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()));
    let (runtime, transcoder) = &*SERVED;
    let Ok(path) = std::str::from_utf8(path) else { return };
    let routes = transcoder.routes();
    let (method, path) = match routes.get(usize::from(*choice)) {
        // Variables take what the input says, and the query follows.
        Some(route) => {
            let (value, query) = path.split_once('?').unwrap_or((path, ""));
            let parts = route.template.split('/').map(|part| match (part.starts_with('{'), part.rsplit_once(':')) {
                (true, Some((_, verb))) => format!("{value}:{verb}"),
                (true, None) => value.to_owned(),
                (false, _) => part.to_owned(),
            });
            (route.method.clone(), format!("{}?{query}", parts.collect::<Vec<_>>().join("/")))
        }
        None => (Method::POST, path.to_owned()),
    };
    let Ok(request) = Request::builder().method(method).uri(path).body(Body::from(body.to_vec())) else { return };
    let status = runtime.block_on(transcoder.handle(request)).status();
    assert_ne!(status.as_u16(), 500);
});
