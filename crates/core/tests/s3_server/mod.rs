//! A small S3 server that can be told to misbehave, for tests and measurements of clients.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

type Body = BoxBody<Bytes, Infallible>;

/// Objects by `bucket/key`; large ones are kept as length and checksum only, so that the server does not hold them.
#[derive(Default)]
pub struct State {
    pub objects: BTreeMap<String, Bytes>,
    /// Keep no objects, nor sums of parts.
    pub forget: bool,
    /// Size of the object at every key that ends in `/huge`, which nobody holds.
    pub huge: usize,
    pub parts: BTreeMap<u32, (usize, u64)>,
    pub completed: Option<(usize, u64)>,
    pub largest_part: usize,
    /// Answers that fail before the next one succeeds.
    pub failures: u32,
    /// Access key of the last signed request.
    pub access_key: String,
    /// Ranges asked for.
    pub ranges: Vec<(usize, usize)>,
    /// Answers that break off half way.
    pub breaks: u32,
    /// The answer to everything.
    pub answer: Option<(u16, &'static str)>,
}

pub fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().map(|b| u64::from(*b)).sum()
}

async fn handle(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let query = head.uri.query().unwrap_or_default().to_owned();
    let key = percent(head.uri.path().trim_start_matches('/'));
    let mut state = state.lock().unwrap();
    let signature = head.headers.get("authorization").and_then(|v| v.to_str().unwrap().split_once("Credential="));
    if let Some((_, credential)) = signature {
        state.access_key = credential.split('/').next().unwrap().to_owned();
    }
    let answer = |status: StatusCode, body: String| {
        Response::builder().status(status).header("etag", "\"e\"").body(Full::from(body).boxed()).unwrap()
    };
    if let Some((status, body)) = state.answer {
        return answer(StatusCode::from_u16(status).unwrap(), body.to_owned());
    }
    if state.failures > 0 {
        state.failures -= 1;
        return answer(StatusCode::SERVICE_UNAVAILABLE, String::new());
    }
    let option = |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).map(percent);
    match (head.method.clone(), option("partNumber"), query.as_str()) {
        (Method::POST, _, "uploads" | "uploads=") => {
            let xml = "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>";
            answer(StatusCode::OK, xml.into())
        }
        (Method::POST, ..) => {
            let total = state.parts.values().fold((0, 0), |(n, s), (m, t)| (n + m, s + t));
            state.completed = Some(total);
            let xml = "<CompleteMultipartUploadResult><ETag>\"e\"</ETag></CompleteMultipartUploadResult>";
            answer(StatusCode::OK, xml.into())
        }
        (Method::PUT, Some(number), _) => {
            state.largest_part = state.largest_part.max(body.len());
            let sum = if state.forget { 0 } else { sum(&body) };
            state.parts.insert(number.parse().unwrap(), (body.len(), sum));
            answer(StatusCode::OK, String::new())
        }
        (Method::PUT, None, _) => {
            if !state.forget {
                state.objects.insert(key, body);
            }
            answer(StatusCode::OK, String::new())
        }
        (Method::GET, _, query) if query.contains("list-type=2") => {
            let bucket = key.trim_end_matches('/').to_owned();
            let prefix = format!("{bucket}/{}", option("prefix").unwrap_or_default());
            let found = state.objects.iter().filter(|(name, _)| name.starts_with(&prefix)).map(|(name, bytes)| {
                let name = name.strip_prefix(&format!("{bucket}/")).unwrap();
                let time = "2024-01-01T00:00:00.000Z";
                let size = bytes.len();
                format!("<Contents><Key>{name}</Key><LastModified>{time}</LastModified><ETag>\"e\"</ETag><Size>{size}</Size></Contents>")
            });
            let xml = format!(
                "<ListBucketResult><IsTruncated>false</IsTruncated>{}</ListBucketResult>",
                found.collect::<String>()
            );
            answer(StatusCode::OK, xml)
        }
        (Method::GET, ..) if key.ends_with("/huge") => huge(state.huge, range(&head)),
        (Method::GET | Method::HEAD, ..) => match state.objects.get(&key) {
            Some(bytes) => {
                let range = range(&head);
                let (start, end) = range.unwrap_or((0, bytes.len()));
                let mut answer = Response::builder()
                    .header("etag", "\"e\"")
                    .header("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT")
                    .header("content-length", end - start);
                if range.is_some() {
                    let content = format!("bytes {start}-{}/{}", end - 1, bytes.len());
                    answer = answer.status(StatusCode::PARTIAL_CONTENT).header("content-range", content);
                }
                let content = bytes.slice(start..end);
                state.ranges.extend(range);
                let cut = if std::mem::take(&mut state.breaks) > 0 { content.len() / 2 } else { content.len() };
                answer.body(Full::from(content.slice(..cut)).boxed()).unwrap()
            }
            None => answer(StatusCode::NOT_FOUND, "<Error><Code>NoSuchKey</Code></Error>".into()),
        },
        _ => answer(StatusCode::METHOD_NOT_ALLOWED, String::new()),
    }
}

fn percent(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8().unwrap().into_owned()
}

/// A server on a free port.
pub async fn listen() -> (Arc<Mutex<State>>, std::net::SocketAddr) {
    listen_on("127.0.0.1:0").await
}

pub async fn listen_on(address: &str) -> (Arc<Mutex<State>>, std::net::SocketAddr) {
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let state = Arc::new(Mutex::new(State::default()));
    let shared = state.clone();
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let state = shared.clone();
            let service = service_fn(move |request| {
                let state = state.clone();
                async move { Ok::<_, Infallible>(handle(state, request).await) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service));
        }
    });
    (state, address)
}

/// First byte asked for, and the one behind the last.
fn range(head: &http::request::Parts) -> Option<(usize, usize)> {
    let value = head.headers.get("range")?.to_str().unwrap();
    let (first, last) = value.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    Some((first.parse().unwrap(), last.parse::<usize>().unwrap() + 1))
}

/// Zeros, made while they are sent.
fn huge(size: usize, range: Option<(usize, usize)>) -> Response<Body> {
    const PIECE: Bytes = Bytes::from_static(&[0; 256 << 10]);
    let (start, end) = range.unwrap_or((0, size));
    let pieces = (start..end).step_by(PIECE.len()).map(move |at| PIECE.slice(..PIECE.len().min(end - at)));
    let body = StreamBody::new(futures::stream::iter(pieces.map(|piece| Ok(Frame::data(piece))))).boxed();
    let answer = Response::builder()
        .header("etag", "\"e\"")
        .header("last-modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        .header("content-length", end - start);
    let answer = match range {
        Some(_) => answer
            .status(StatusCode::PARTIAL_CONTENT)
            .header("content-range", format!("bytes {start}-{}/{size}", end - 1)),
        None => answer,
    };
    answer.body(body).unwrap()
}
