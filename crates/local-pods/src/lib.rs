//! kfp-local-pods.
