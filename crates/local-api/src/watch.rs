//! A stream of changes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;
use futures::stream::BoxStream;
use serde_json::Value;

use crate::ApiError;

/// What happened to an object, seen through the watch's selectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It exists now (or matches the selectors now).
    Added,
    /// It changed.
    Modified,
    /// It is gone (or no longer matches); the object carries its last state.
    Deleted,
    /// Nothing: `metadata.resourceVersion` of the object says how far the watch has come.
    Bookmark,
}

/// One change.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// What happened.
    pub kind: EventKind,
    /// The object after the change.
    pub object: Arc<Value>,
}

/// Changes in order, without gaps, until dropped. A watch that fell behind the kept history, or
/// asked for a version before it, yields one error with code 410 and ends: list again.
pub struct Watch {
    pub(crate) inner: BoxStream<'static, Result<WatchEvent, ApiError>>,
}

impl Stream for Watch {
    type Item = Result<WatchEvent, ApiError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(cx)
    }
}
