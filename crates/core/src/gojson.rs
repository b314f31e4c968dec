//! gojson.
