//! Messages as JSON text: numbers as Go prints them, proto field names, unset fields omitted.

use std::io;

use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::ser::{CompactFormatter, Formatter};

/// Prints floating-point numbers as Go's `encoding/json` does (`3`, not `3.0`; exponents from 1e21 and below 1e-6).
struct GoNumbers(CompactFormatter);

impl Formatter for GoNumbers {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        let mut text = String::new();
        kfp_core::gojson::write_f64(&mut text, value);
        writer.write_all(text.as_bytes())
    }

    fn write_f32<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f32) -> io::Result<()> {
        self.0.write_f32(writer, value)
    }
}

/// The message as JSON text.
///
/// # Errors
/// When the message holds something that JSON cannot express, such as an `Any` of an unknown type.
pub fn to_vec(message: &DynamicMessage) -> Result<Vec<u8>, serde_json::Error> {
    let options =
        SerializeOptions::new().use_proto_field_name(true).skip_default_fields(true).stringify_64_bit_integers(true);
    let mut out = Vec::with_capacity(256);
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, GoNumbers(CompactFormatter));
    message.serialize_with_options(&mut serializer, &options)?;
    Ok(out)
}
