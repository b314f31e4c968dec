//! An embedded Kubernetes API: objects in SQLite, their heads in memory, watches, and an HTTP face that
//! kubectl and kube-rs accept.
//!
//! Components in the same process use [`Cluster`]; everything else uses [`serve`].

mod cluster;
mod error;
mod http;
mod kubeconfig;
mod logs;
mod object;
mod ops;
mod options;
mod registry;
mod resource;
mod selector;
mod store;
mod watch;

pub use async_trait::async_trait;

pub use cluster::{Cluster, List, NODE_NAME};
pub use error::{ApiError, Error};
pub use http::serve;
pub use kubeconfig::kubeconfig;
pub use logs::{LogOptions, LogSource, LogStream};
pub use ops::Edits;
pub use options::{DeleteOptions, Patch, Propagation};
pub use resource::{Resource, resources};
pub use selector::Selectors;
pub use store::Json;
pub use watch::{EventKind, RawEvent, RawObject, Watch, WatchEvent};

/// The Kubernetes version whose behaviour is followed, as `/version` reports it.
pub const VERSION: &str = "v1.33.0-kfp-local";
