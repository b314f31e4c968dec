//! kfp-metadata.
