//! What several components share: flags, logging, shutdown, JSON as Go prints it, the pipeline-spec model,
//! Argo Workflow types, schedules, gRPC connections, the metadata client, object stores and a small Kubernetes client.

pub mod argo;
#[cfg(feature = "cluster")]
pub mod cluster;
#[cfg(feature = "cron")]
pub mod cron;
pub mod duration;
pub mod flags;
pub mod gojson;
#[cfg(feature = "grpc")]
pub mod grpc;
pub mod hex;
#[cfg(feature = "https")]
pub mod https;
#[cfg(feature = "ir")]
pub mod ir;
#[cfg(feature = "kubeapi")]
pub mod kubeapi;
pub mod logging;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "mlmd")]
pub mod mlmd;
#[cfg(feature = "objects")]
pub mod objects;
#[cfg(feature = "cron")]
pub mod schedule;
#[cfg(feature = "serve")]
pub mod serve;
pub mod shutdown;
pub mod termination;
#[cfg(feature = "grpc")]
pub mod token;
