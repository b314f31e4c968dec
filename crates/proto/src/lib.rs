//! Messages, clients and servers generated from `proto/`, and the descriptors they come from.
#![allow(missing_docs, clippy::all, clippy::pedantic)]

use std::sync::LazyLock;

mod generated {
    include!(concat!(env!("OUT_DIR"), "/all.rs"));
}
pub use generated::*;

/// Encoded `FileDescriptorSet` of everything under `proto/` with imports; keeps the `google.api.http` options.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// [`DESCRIPTORS`] as a pool for reflection-driven code.
pub static POOL: LazyLock<prost_reflect::DescriptorPool> =
    LazyLock::new(|| match prost_reflect::DescriptorPool::decode(DESCRIPTORS) {
        Ok(pool) => pool,
        Err(error) => unreachable!("descriptors are compiled into the program: {error}"),
    });
