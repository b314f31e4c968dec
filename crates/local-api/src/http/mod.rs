//! The HTTP face of the cluster.

mod discovery;
mod logs;
mod objects;
mod openapi;
mod protobuf;
mod query;
mod request;
mod response;
mod review;
mod server;
mod table;
mod watching;

pub use server::serve;
