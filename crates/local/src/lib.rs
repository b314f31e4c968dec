//! kfp-local.
