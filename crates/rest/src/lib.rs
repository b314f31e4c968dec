//! kfp-rest.
