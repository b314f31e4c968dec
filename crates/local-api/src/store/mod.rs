//! Objects: in memory for readers, in SQLite for the next start.
//!
//! One writer task owns the database and is the only one to change the memory, so every decision
//! sees the state left by the one before it. Writes that wait at the same time share a transaction
//! (group commit); readers and watchers see a change when it is on disk, never before.

mod disk;
mod history;
mod lock;
mod state;
mod stored;
mod txn;
mod writer;

pub(crate) use disk::Disk;
pub(crate) use history::{Change, Event};
pub(crate) use lock::DirLock;
pub(crate) use state::{Key, State, TableKey};
pub(crate) use stored::Stored;
pub(crate) use txn::Txn;
pub(crate) use writer::{Shared, Writer};
