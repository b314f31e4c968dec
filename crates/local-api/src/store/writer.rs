//! The task through which every change goes.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::{mpsc, oneshot, watch};

use super::history::{Change, Event};
use super::state::TableKey;
use super::txn::{Overlay, Pending, Txn};
use super::{Bodies, DirLock, Disk, State, Stored};
use crate::ApiError;
use crate::resource::resources;

/// Most writes in one transaction: bounds how long the first of them waits for the last.
const BATCH: usize = 256;
/// Writes that may wait; more wait in their callers.
const QUEUE: usize = 1024;

/// What readers, watches and the writer share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: RwLock<State>,
    bodies: Arc<Bodies>,
    /// The committed revision; wakes watches.
    pub revision: watch::Sender<u64>,
}

impl Shared {
    /// The state for reading. Hold it only while computing, never across an await.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Told after the transaction whether it is on disk.
type Acknowledge = Box<dyn FnOnce(Result<(), ApiError>) + Send>;
type Decide = Box<dyn FnOnce(&mut Txn<'_>) -> Acknowledge + Send>;

enum Job {
    Write(Decide),
    Close(oneshot::Sender<()>),
}

/// Sends writes to the task.
#[derive(Debug, Clone)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
}

impl Writer {
    /// Starts the task, which lives until [`Writer::close`] or until the last handle is dropped.
    pub(crate) fn start(state: State, disk: Disk, bodies: Arc<Bodies>, lock: DirLock) -> (Self, Arc<Shared>) {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let revision = watch::Sender::new(state.revision);
        let shared = Arc::new(Shared { state: RwLock::new(state), bodies, revision });
        tokio::spawn(run(shared.clone(), disk, lock, queue));
        (Self { jobs }, shared)
    }

    /// Runs `decide` on the current state and waits until what it changed is on disk. Nothing is
    /// changed when it returns an error or when the disk refuses.
    pub(crate) async fn write<T, F>(&self, decide: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Txn<'_>) -> Result<T, ApiError> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job: Decide = Box::new(move |txn| {
            let savepoint = txn.savepoint();
            // A panic in a caller's closure must not take the store down with it.
            let decided = std::panic::catch_unwind(AssertUnwindSafe(|| decide(txn)))
                .unwrap_or_else(|_| Err(ApiError::internal("the change could not be computed (internal error)")));
            // What was decided without an object that could not be read is no decision.
            let decided = txn.take_failure().map_or(decided, Err);
            if decided.is_err() {
                txn.rollback(savepoint);
            }
            Box::new(move |committed| {
                // The caller may have gone away; the write stands nevertheless.
                let _ = sender.send(decided.and_then(|value| committed.map(|()| value)));
            })
        });
        self.jobs.send(Job::Write(job)).await.map_err(|_| closed())?;
        receiver.await.map_err(|_| closed())?
    }

    /// Waits for all writes before it, closes the file and releases the directory.
    pub(crate) async fn close(&self) {
        let (sender, receiver) = oneshot::channel();
        if self.jobs.send(Job::Close(sender)).await.is_ok() {
            let _ = receiver.await;
        }
    }
}

fn closed() -> ApiError {
    ApiError::new(503, "ServiceUnavailable", "the object store is closed")
}

async fn run(shared: Arc<Shared>, mut disk: Disk, lock: DirLock, mut queue: mpsc::Receiver<Job>) {
    let mut closing = Vec::new();
    while let Some(first) = queue.recv().await {
        let mut writes = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next {
            match job {
                Job::Write(decide) => writes.push(decide),
                Job::Close(done) => {
                    closing.push(done);
                    break;
                }
            }
            next = if writes.len() < BATCH { queue.try_recv().ok() } else { None };
        }
        batch(&shared, &mut disk, writes).await;
        if !closing.is_empty() {
            break;
        }
    }
    queue.close();
    // Late writes get no answer from here and see the channel closed.
    while queue.try_recv().is_ok() {}
    disk.close().await;
    drop(lock);
    for done in closing {
        let _ = done.send(());
    }
}

async fn batch(shared: &Shared, disk: &mut Disk, writes: Vec<Decide>) {
    let mut overlay = Overlay::default();
    let acknowledgements: Vec<Acknowledge> = {
        let state = shared.read();
        let mut txn = Txn::new(&state, &mut overlay);
        writes.into_iter().map(|decide| decide(&mut txn)).collect()
    };
    let result = match overlay.pending.last().map(|pending| pending.revision) {
        None => Ok(()),
        Some(revision) => commit(shared, disk, overlay, revision).await,
    };
    for acknowledge in acknowledgements {
        acknowledge(result.clone());
    }
}

async fn commit(shared: &Shared, disk: &mut Disk, overlay: Overlay, revision: u64) -> Result<(), ApiError> {
    let replaced: Vec<(TableKey, Arc<Stored>)> = {
        let state = shared.read();
        overlay.latest().filter_map(|(key, _)| Some((key.table, state.get(key)?.clone()))).collect()
    };
    let pinned = replaced.iter().try_for_each(|(_, object)| object.pin());
    let committed = match pinned {
        Ok(()) => disk.commit(&overlay, revision).await.map_err(|error| {
            tracing::error!(%error, "storing objects");
            ApiError::internal(format!("cannot store the change: {error}"))
        }),
        Err(error) => Err(error),
    };
    match &committed {
        Ok(()) => publish(shared, overlay),
        Err(_) => replaced.iter().for_each(|(table, object)| drop(object.release(*table, &shared.bodies))),
    }
    committed
}

/// Makes a committed transaction visible.
fn publish(shared: &Shared, mut overlay: Overlay) {
    let revision = {
        let mut state = shared.write();
        for Pending { key, revision, change, object, parsed } in std::mem::take(&mut overlay.pending) {
            let crd = resources::CUSTOM_RESOURCE_DEFINITIONS;
            if key.table == (crd.group, crd.plural) {
                match (change, object.object()) {
                    (_, Err(error)) => tracing::error!(%error, "a definition has no effect before the next start"),
                    (Change::Deleted, Ok(crd)) => state.registry.undefine(&crd),
                    (Change::Added | Change::Modified, Ok(crd)) => state.registry.define(&crd),
                }
            }
            if let Some(parsed) = parsed {
                shared.bodies.hold_parsed(parsed, object.size());
            }
            if overlay.is_latest(&key, &object)
                && let Some(json) = object.release(key.table, &shared.bodies)
            {
                shared.bodies.hold_json(json);
            }
            let previous = state.get(&key).map(|previous| previous.head().clone());
            state.apply(&key, Event { revision, change, object, previous });
        }
        state.revision
    };
    shared.revision.send_replace(revision);
}
