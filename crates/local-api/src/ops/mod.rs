//! The rules of reading and changing objects, as functions on a [`crate::store::Txn`]: no clock but
//! time stamps, no I/O, no waiting.

mod delete;
mod kinds;
mod patch;
mod strategic;
mod write;

pub(crate) use delete::{Deleted, delete};
pub(crate) use write::{Scope, WriteOptions, create, modify, patch, seed, update};
