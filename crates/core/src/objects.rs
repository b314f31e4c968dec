//! Object stores: artifact URIs, the session information that travels through ML Metadata, local paths in a task's
//! container, and transfers of files and directories with bounded memory.

#[cfg(feature = "azure")]
mod azure;
mod download;
mod error;
#[cfg(feature = "gcs")]
mod gcs;
mod local;
mod open;
mod paths;
mod patience;
mod providers;
mod remote;
#[cfg(feature = "s3")]
mod s3;
#[cfg(any(feature = "s3", feature = "gcs", feature = "azure"))]
mod service;
mod session;
mod store;
mod upload;
mod uri;

pub use error::Error;
pub use open::Opener;
pub use paths::{WORKSPACE, local_path, workspace_path};
pub use patience::Patience;
pub use providers::{CONFIG_MAP, DEFAULT_PIPELINE_ROOT, LauncherConfig, ProviderError};
pub use remote::Service;
pub use session::Session;
pub use store::{Entry, Store, Transfer};
pub use uri::{Uri, UriError};
