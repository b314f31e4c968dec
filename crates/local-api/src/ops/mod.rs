//! The rules of reading and changing objects, as functions on a [`crate::store::Txn`]: no clock but
//! time stamps, no I/O, no waiting.

mod delete;
mod edit;
mod kinds;
mod patch;
mod strategic;
mod write;

pub(crate) use delete::{Deleted, delete};
pub use edit::Edits;
pub(crate) use edit::edit;
pub(crate) use write::{Scope, WriteOptions, create, modify, patch, seed, update};
