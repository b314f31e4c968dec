//! Kubernetes' rules for label and annotation keys and label values.

/// Whether `text` is a qualified name: an optional DNS prefix and a name of at most 63 characters.
pub fn is_key(text: &str) -> bool {
    let name = match text.split_once('/') {
        None => text,
        Some((prefix, name)) => {
            let label = |part: &str| {
                !part.is_empty()
                    && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                    && !part.starts_with('-')
                    && !part.ends_with('-')
            };
            if prefix.len() > 253 || !prefix.split('.').all(label) {
                return false;
            }
            name
        }
    };
    !name.is_empty() && is_value(name)
}

/// Whether `text` is empty or a name of at most 63 characters that begins and ends with a letter or digit.
pub fn is_value(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_none_or(|b| b.is_ascii_alphanumeric());
    text.len() <= 63
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && edge(text.bytes().next())
        && edge(text.bytes().next_back())
}
