//! argo.
