//! Watches over HTTP: one JSON object a line.

use std::time::Duration;

use axum::body::Body;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use http::StatusCode;
use serde_json::json;

use super::query::Query;
use super::response::{Response, with};
use super::server::Context;
use super::table::Form;
use crate::watch::Request;
use crate::{ApiError, EventKind, Resource, Selectors, WatchEvent};

/// How long a watch without `timeoutSeconds` lasts, as in Kubernetes (30 to 60 minutes).
const DEFAULT_TIMEOUT: u64 = 45 * 60;
/// Silence after which a bookmark says how far the watch has come.
const BOOKMARK_PERIOD: Duration = Duration::from_secs(30);
/// Events sent in one write when many are waiting.
const CHUNK: usize = 64;

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
    let lines = context
        .cluster
        .watch_with(&r, request)
        .map(move |event| line(event, |event| form.event(&r, &columns, event)))
        .ready_chunks(CHUNK)
        .map(|lines| {
            let mut chunk = BytesMut::with_capacity(lines.iter().map(Vec::len).sum());
            lines.iter().for_each(|line| chunk.put_slice(line));
            Ok::<Bytes, std::convert::Infallible>(chunk.freeze())
        })
        .take_until(tokio::time::sleep(Duration::from_secs(timeout)))
        .take_until(ended);
    Ok(with(StatusCode::OK, "application/json", Body::from_stream(lines)))
}

fn line(
    event: Result<WatchEvent, ApiError>,
    encode: impl Fn(&WatchEvent) -> Result<Vec<u8>, serde_json::Error>,
) -> Vec<u8> {
    let encoded = match &event {
        Ok(event) => encode(event).map_err(|error| ApiError::internal(format!("cannot encode an event: {error}"))),
        Err(error) => Err(error.clone()),
    };
    let mut line =
        encoded.unwrap_or_else(|error| json!({"type": "ERROR", "object": error.to_status()}).to_string().into_bytes());
    line.push(b'\n');
    line
}

impl Form {
    /// One event as JSON. Bookmarks are sent as they are in every form.
    fn event(
        self,
        r: &Resource,
        columns: &[crate::registry::Column],
        event: &WatchEvent,
    ) -> Result<Vec<u8>, serde_json::Error> {
        #[derive(serde::Serialize)]
        struct Line<'a> {
            r#type: &'static str,
            object: &'a serde_json::Value,
        }
        let kind = event.kind.as_str();
        if event.kind == EventKind::Bookmark {
            return serde_json::to_vec(&Line { r#type: kind, object: &event.object });
        }
        let shown = self.single(r, columns, &event.object);
        serde_json::to_vec(&Line { r#type: kind, object: &shown })
    }
}
