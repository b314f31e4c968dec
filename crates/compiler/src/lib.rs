//! kfp-compiler.
