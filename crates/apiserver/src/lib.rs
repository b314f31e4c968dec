//! kfp-apiserver.
