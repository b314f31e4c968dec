//! Workflows: packages, compilation, submission to Kubernetes, reports.

pub mod cluster;
pub mod fetch;
pub mod template;
