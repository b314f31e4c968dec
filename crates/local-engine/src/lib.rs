//! kfp-local-engine.
