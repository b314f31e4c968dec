//! mlmd.
