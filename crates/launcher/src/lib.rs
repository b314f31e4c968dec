//! kfp-launcher.
