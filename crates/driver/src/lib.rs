//! kfp-driver.
