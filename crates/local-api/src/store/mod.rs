//! Objects: their heads in memory, their JSON in SQLite.
//!
//! In memory is what lists, selections and owner references need of each object, and the JSON of the latest; other
//! JSON is read when it is asked for, so that finished work costs little memory.
//!
//! One writer task owns the database and is the only one to change the memory, so every decision
//! sees the state left by the one before it. Writes that wait at the same time share a transaction
//! (group commit); readers and watchers see a change when it is on disk, never before.

mod bodies;
mod disk;
mod head;
mod history;
mod lock;
mod state;
mod stored;
mod txn;
mod writer;

pub(crate) use bodies::Bodies;
pub(crate) use disk::Disk;
pub(crate) use head::Head;
pub(crate) use history::{Change, Event};
pub(crate) use lock::DirLock;
pub(crate) use state::{Key, State, TableKey};
pub use stored::Json;
pub(crate) use stored::Stored;
pub(crate) use txn::Txn;
pub(crate) use writer::{Shared, Writer};
