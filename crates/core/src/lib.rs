//! What several components share: flags, logging, shutdown, JSON as Go prints it, the pipeline-spec model,
//! Argo Workflow types, gRPC connections, the metadata client, object stores and a small Kubernetes client.

pub mod argo;
pub mod flags;
pub mod gojson;
#[cfg(feature = "grpc")]
pub mod grpc;
#[cfg(feature = "https")]
pub mod https;
#[cfg(feature = "ir")]
pub mod ir;
#[cfg(feature = "kubeapi")]
pub mod kubeapi;
pub mod logging;
#[cfg(feature = "mlmd")]
pub mod mlmd;
#[cfg(feature = "objects")]
pub mod objects;
pub mod shutdown;
pub mod termination;
