//! Watches over HTTP: one JSON object a line.

use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use http::StatusCode;

use super::query::Query;
use super::response::{Response, with};
use super::server::Context;
use super::table::{Form, partial};
use crate::registry::Column;
use crate::watch::{Request, Seen, until_error};
use crate::{ApiError, EventKind, Resource, Selectors};

/// How long a watch without `timeoutSeconds` lasts, as in Kubernetes (30 to 60 minutes).
const DEFAULT_TIMEOUT: u64 = 45 * 60;
/// Silence after which a bookmark says how far the watch has come.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(30);
/// Events sent in one write when many are waiting.
const CHUNK: usize = 64;
/// Bytes of events after which no more are added to a write.
const CHUNK_BYTES: usize = 256 << 10;
/// From how many bytes on an object is sent as a piece of its own.
const LARGE: usize = 16 << 10;

/// Streams changes until the timeout, the client or shutdown ends it.
pub(super) fn stream(
    context: &Context,
    r: &Resource,
    namespace: Option<&str>,
    selectors: Selectors,
    query: &Query,
    form: Form,
) -> Result<Response, ApiError> {
    let bookmarks = query.flag("allowWatchBookmarks")?;
    let version = query.number("resourceVersion")?.filter(|version| *version > 0);
    let initial = match query.text("sendInitialEvents") {
        None => None,
        Some(_) => Some(query.flag("sendInitialEvents")?),
    };
    if initial.is_some() && query.text("resourceVersionMatch") != Some("NotOlderThan") {
        return Err(ApiError::new(
            422,
            "Invalid",
            "resourceVersionMatch: Required value: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ));
    }
    let from = match (initial, version) {
        (Some(true), _) | (None, None) => None,
        (Some(false), None) => Some(context.cluster.shared().read().revision),
        (_, version) => version,
    };
    let request = Request {
        namespace: namespace.map(str::to_string),
        from,
        selectors,
        bookmarks: bookmarks.then_some(BOOKMARK_PERIOD),
        mark_initial: bookmarks && initial == Some(true),
    };
    let columns = context.cluster.shared().read().registry.columns(r).to_vec();
    let r = *r;
    let timeout = query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_TIMEOUT);
    let ended = context.shutdown.clone().cancelled_owned();
    let events = context.cluster.watch_with(&r, request);
    let lines = until_error(events.map(move |event| Line::of(&event?, &r, &columns, form)))
        .map(|line| line.unwrap_or_else(|error| Line::error(&error)));
    let lines = chunks(lines)
        .flat_map(|lines| futures::stream::iter(join(lines)))
        .map(Ok::<Bytes, std::convert::Infallible>)
        .take_until(tokio::time::sleep(Duration::from_secs(timeout)))
        .take_until(ended);
    Ok(with(StatusCode::OK, "application/json", Body::from_stream(lines)))
}

/// Lines that are ready at the same time, as far as they go into one write.
fn chunks(lines: impl Stream<Item = Line> + Send + 'static) -> impl Stream<Item = Vec<Line>> + Send {
    let mut lines = lines.fuse().boxed();
    futures::stream::poll_fn(move |context| {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while chunk.len() < CHUNK && bytes < CHUNK_BYTES {
            match lines.poll_next_unpin(context) {
                Poll::Ready(Some(line)) => {
                    bytes += line.object.len();
                    chunk.push(line);
                }
                Poll::Ready(None) if chunk.is_empty() => return Poll::Ready(None),
                Poll::Pending if chunk.is_empty() => return Poll::Pending,
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        Poll::Ready(Some(chunk))
    })
}

/// One line of the stream; the object's JSON is shared with the store where it is shown as kept.
struct Line {
    kind: &'static str,
    object: Bytes,
}

impl Line {
    fn of(seen: &Seen, r: &Resource, columns: &[Column], form: Form) -> Result<Self, ApiError> {
        Ok(Self { kind: seen.kind.as_str(), object: show(seen, r, columns, form)? })
    }

    fn error(error: &ApiError) -> Self {
        Self { kind: "ERROR", object: error.to_status().to_string().into() }
    }
}

/// The object of an event as JSON. Bookmarks are sent as they are in every form.
fn show(seen: &Seen, r: &Resource, columns: &[Column], form: Form) -> Result<Bytes, ApiError> {
    let plain = if seen.kind == EventKind::Bookmark { Form::Plain } else { form };
    if let Some(json) = plain.verbatim(r, &seen.object)? {
        return Ok(json);
    }
    if seen.kind != EventKind::Bookmark && form == Form::Metadata {
        return Ok(partial(&seen.object)?.to_string().into());
    }
    let json = serde_json::to_vec(&form.single(r, columns, &*seen.object.object()?));
    json.map(Bytes::from).map_err(|error| ApiError::internal(format!("cannot encode an event: {error}")))
}

/// Puts lines into as few pieces as possible without copying large objects.
fn join(lines: Vec<Line>) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut piece = BytesMut::new();
    for line in lines {
        piece.put_slice(b"{\"type\":\"");
        piece.put_slice(line.kind.as_bytes());
        piece.put_slice(b"\",\"object\":");
        if line.object.len() > LARGE {
            pieces.push(piece.split().freeze());
            pieces.push(line.object);
        } else {
            piece.put_slice(&line.object);
        }
        piece.put_slice(b"}\n");
    }
    pieces.push(piece.freeze());
    pieces
}
