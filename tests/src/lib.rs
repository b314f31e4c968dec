//! Cross-component tests.
