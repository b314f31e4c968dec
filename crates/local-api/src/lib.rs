//! kfp-local-api.
