//! A stream of changes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::store::{Change, Event, Head, Json, Shared, Stored};
use crate::{ApiError, Resource, Selectors};

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

impl EventKind {
    /// The word in a watch stream.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
        }
    }
}

/// One change.
#[derive(Debug, Clone)]
pub struct WatchEvent {
    /// What happened.
    pub kind: EventKind,
    /// The object after the change.
    pub object: Arc<Value>,
}

/// One change of an object that is not parsed.
#[derive(Debug, Clone)]
pub struct RawEvent {
    /// What happened.
    pub kind: EventKind,
    /// The object after the change.
    pub object: RawObject,
}

/// An object as it is kept: of one version, whatever becomes of it meanwhile.
#[derive(Debug, Clone)]
pub struct RawObject(pub(crate) Arc<Stored>);

impl RawObject {
    /// Its namespace; empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.0.head().namespace()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.0.head().name()
    }

    /// Its uid.
    pub fn uid(&self) -> Option<&str> {
        self.0.head().uid()
    }

    /// Its resourceVersion: that of its last change.
    pub fn version(&self) -> u64 {
        self.0.head().revision()
    }

    /// A label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.0.head().label(key)
    }

    /// Whether its owner references name this uid.
    pub fn is_owned_by(&self, uid: &str) -> bool {
        self.0.head().owners().any(|owner| owner == uid)
    }

    /// A field by which objects of the type can be selected, such as `status.phase`; empty when there is none.
    pub fn field(&self, path: &str) -> &str {
        self.0.head().field(path)
    }

    /// The JSON of the object, which may have to be read from the disk.
    ///
    /// # Errors
    /// 500 when it cannot be read.
    pub fn json(&self) -> Result<Json, ApiError> {
        self.0.json()
    }

    /// The parsed object, shared by all who use it at the same time.
    ///
    /// # Errors
    /// 500 when it cannot be read.
    pub fn parse(&self) -> Result<Arc<Value>, ApiError> {
        self.0.object()
    }
}

/// Changes in order, without gaps, until dropped. A watch that fell behind the kept history, or
/// asked for a version before it, yields one error with code 410 and ends: list again. It ends in the
/// same way when an object cannot be read (500), and when the cluster is gone.
pub struct Watch {
    inner: BoxStream<'static, Result<WatchEvent, ApiError>>,
}

impl Stream for Watch {
    type Item = Result<WatchEvent, ApiError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.inner.as_mut().poll_next(cx)
    }
}

/// How to watch.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub namespace: Option<String>,
    /// Changes after this revision; without it, first all objects as added.
    pub from: Option<u64>,
    pub selectors: Selectors,
    /// How often to say how far the watch has come, when nothing else does.
    pub bookmarks: Option<Duration>,
    /// Mark the end of the initial objects with a bookmark.
    pub mark_initial: bool,
}

/// Most changes taken from the history at once: bounds the lock's hold and the buffer.
const BATCH: usize = 128;
/// Bytes of objects after which no more changes are taken: what waits in a watch is not bounded by the history.
const BATCH_BYTES: usize = 1 << 20;

/// One change with the object as it is kept.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub kind: EventKind,
    pub object: Arc<Stored>,
}

impl Watch {
    pub(crate) fn open(shared: Arc<Shared>, r: Resource, request: Request) -> Self {
        let parsed = |seen: Seen| Ok(WatchEvent { kind: seen.kind, object: seen.object.object()? });
        Self { inner: until_error(changes(shared, r, request).map(move |seen| seen.and_then(parsed))).boxed() }
    }
}

/// Ends a stream after its first error: what comes then would have a gap before it.
pub(crate) fn until_error<T>(
    stream: impl Stream<Item = Result<T, ApiError>>,
) -> impl Stream<Item = Result<T, ApiError>> {
    stream.scan(false, |failed, item| {
        let over = std::mem::replace(failed, item.is_err());
        futures::future::ready((!over).then_some(item))
    })
}

/// The changes of [`Watch`], not parsed.
pub(crate) fn changes(
    shared: Arc<Shared>,
    r: Resource,
    request: Request,
) -> impl Stream<Item = Result<Seen, ApiError>> + Send + use<> {
    let seen = shared.revision.subscribe();
    let mut cursor = Cursor { shared, seen, r, request, position: 0, buffer: VecDeque::new(), ended: false };
    match cursor.request.from {
        Some(from) => cursor.position = from,
        None => cursor.initial(),
    }
    futures::stream::unfold(cursor, Cursor::step)
}

struct Cursor {
    shared: Arc<Shared>,
    seen: watch::Receiver<u64>,
    r: Resource,
    request: Request,
    /// Everything up to here was delivered or does not concern this watch.
    position: u64,
    buffer: VecDeque<Result<Seen, ApiError>>,
    ended: bool,
}

impl Cursor {
    async fn step(mut self) -> Option<(Result<Seen, ApiError>, Self)> {
        loop {
            if let Some(event) = self.buffer.pop_front() {
                self.ended |= event.is_err();
                return Some((event, self));
            }
            if self.ended {
                return None;
            }
            self.seen.mark_unchanged();
            if self.fill() {
                continue;
            }
            let changed = self.seen.changed();
            match self.request.bookmarks {
                None => changed.await.ok()?,
                Some(period) => match tokio::time::timeout(period, changed).await {
                    Ok(changed) => changed.ok()?,
                    Err(_) => self.buffer.push_back(Ok(bookmark(&self.r, self.position, false))),
                },
            }
        }
    }

    /// The objects that exist, at one revision.
    fn initial(&mut self) {
        let shared = self.shared.clone();
        let state = shared.read();
        self.position = state.revision;
        let table = state.table((self.r.group, self.r.plural));
        for (_, object) in table.into_iter().flat_map(|t| t.range(self.request.namespace.as_deref(), None)) {
            if object.matches(&self.request.selectors) {
                self.buffer.push_back(Ok(Seen { kind: EventKind::Added, object: object.clone() }));
            }
        }
        if self.request.mark_initial {
            self.buffer.push_back(Ok(bookmark(&self.r, self.position, true)));
        }
    }

    /// Moves on in the history; true when there is something to deliver or more to read.
    fn fill(&mut self) -> bool {
        let shared = self.shared.clone();
        let state = shared.read();
        let key = (self.r.group, self.r.plural);
        let floor = state.watch_floor(key);
        if self.position < floor || self.position > state.revision {
            self.buffer.push_back(Err(ApiError::gone(self.position, floor)));
            return true;
        }
        let Some(table) = state.table(key) else {
            self.position = state.revision;
            return false;
        };
        let Some(events) = table.history.after(self.position) else {
            self.buffer.push_back(Err(ApiError::gone(self.position, floor)));
            return true;
        };
        let (mut scanned, mut bytes) = (0, 0);
        for event in events {
            if scanned == BATCH || bytes >= BATCH_BYTES {
                return true;
            }
            scanned += 1;
            self.position = event.revision;
            if let Some(seen) = self.seen_as(event) {
                bytes += seen.object.size();
                self.buffer.push_back(Ok(seen));
            }
        }
        self.position = state.revision;
        !self.buffer.is_empty()
    }

    /// The change as it looks through the selectors.
    fn seen_as(&self, event: &Event) -> Option<Seen> {
        if let Some(namespace) = &self.request.namespace
            && event.object.head().namespace() != namespace
        {
            return None;
        }
        let selected = |head: &Arc<Head>| head.matches(&self.request.selectors);
        let before = event.previous.as_ref().is_some_and(selected);
        let now = event.change != Change::Deleted && selected(event.object.head());
        let kind = match (before, now) {
            (false, false) => return None,
            (false, true) => EventKind::Added,
            (true, true) => EventKind::Modified,
            (true, false) => EventKind::Deleted,
        };
        Some(Seen { kind, object: event.object.clone() })
    }
}

fn bookmark(r: &Resource, revision: u64, end_of_initial: bool) -> Seen {
    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    if end_of_initial {
        metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
    }
    let object = json!({ "apiVersion": r.api_version(), "kind": r.kind, "metadata": metadata });
    Seen { kind: EventKind::Bookmark, object: Arc::new(Stored::new(&Arc::new(object))) }
}
