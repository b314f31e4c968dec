//! Limits of names and tags.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Characters that upstream's columns for short texts take.
pub const SHORT: usize = 255;

/// Checks a short text before anything is done with it: its length in characters, which its column counts (upstream counts
/// bytes), and that it has no NUL, which no column takes.
///
/// # Errors
/// Code 3 `FIELD length cannot exceed N` or `FIELD must not contain a NUL character`.
pub fn length(field: &str, value: &str, limit: usize) -> Result<()> {
    if value.chars().nth(limit).is_some() {
        return Err(Error::invalid(format!("{field} length cannot exceed {limit}")));
    }
    if value.contains('\0') {
        return Err(Error::invalid(format!("{field} must not contain a NUL character")));
    }
    Ok(())
}

/// Name and display name of a pipeline or version; each defaults to the other.
///
/// # Errors
/// Code 3 when both are empty.
pub fn pair(name: &str, display_name: &str) -> Result<(String, String)> {
    match (name, display_name) {
        ("", "") => Err(Error::invalid("name is required")),
        ("", only) | (only, "") => Ok((only.to_owned(), only.to_owned())),
        (name, display_name) => Ok((name.to_owned(), display_name.to_owned())),
    }
}

const MAX_TAGS: usize = 20;
const MAX_TAG_LENGTH: usize = 63;

/// Checks the tags of one pipeline or version.
///
/// # Errors
/// Code 3: too many tags, empty or dotted keys, keys or values over 63 characters.
pub fn tags(tags: &BTreeMap<String, String>) -> Result<()> {
    if tags.len() > MAX_TAGS {
        return Err(Error::invalid(format!(
            "number of tags ({}) exceeds maximum of {MAX_TAGS} per entity",
            tags.len()
        )));
    }
    for (key, value) in tags {
        if key.is_empty() {
            return Err(Error::invalid("tag key cannot be empty"));
        }
        if key.contains('.') {
            return Err(Error::invalid(format!("tag key \"{key}\" must not contain '.' character")));
        }
        if key.chars().count() > MAX_TAG_LENGTH {
            return Err(Error::invalid(format!(
                "tag key \"{key}\" exceeds maximum length of {MAX_TAG_LENGTH} characters"
            )));
        }
        if value.chars().count() > MAX_TAG_LENGTH {
            return Err(Error::invalid(format!(
                "tag value \"{value}\" for key \"{key}\" exceeds maximum length of {MAX_TAG_LENGTH} characters"
            )));
        }
    }
    Ok(())
}

/// Checks `pipelineInfo.name` of a pipeline spec.
///
/// # Errors
/// Code 3 with upstream's texts.
pub fn spec_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::invalid("pipeline's name cannot be empty"));
    }
    if name.len() > 128 {
        return Err(Error::invalid("pipeline's name must contain no more than 128 characters"));
    }
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !name.bytes().next().is_some_and(fits) || !name.bytes().all(|byte| fits(byte) || byte == b'-') {
        return Err(Error::invalid(
            "pipeline's name must contain only lowercase alphanumeric characters or '-' and must start with \
             alphanumeric characters",
        ));
    }
    Ok(())
}

/// Whether a text is a DNS-1123 label, as names of namespaces are.
#[must_use]
pub fn is_label(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|byte| plain(*byte) || *byte == b'-')
        && bytes.first().is_some_and(|byte| plain(*byte))
        && bytes.last().is_some_and(|byte| plain(*byte))
}

/// Whether a text is a DNS-1123 subdomain, as names of most objects are.
#[must_use]
pub fn is_subdomain(text: &str) -> bool {
    let plain = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let fits = |part: &str| {
        let bytes = part.as_bytes();
        plain(bytes.first()) && plain(bytes.last()) && bytes.iter().all(|byte| plain(Some(byte)) || *byte == b'-')
    };
    text.len() <= 253 && text.split('.').all(fits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_what_can_stand_in_an_address() {
        for good in ["a", "team-1", &"a".repeat(63)] {
            assert!(is_label(good), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "a:1", "a#", &"a".repeat(64)] {
            assert!(!is_label(bad), "{bad}");
        }
        for good in ["a.b", "v1.2.3", "a-b.c", &"a".repeat(253)] {
            assert!(is_subdomain(good), "{good}");
        }
        for bad in ["", ".a", "a.", "a..b", "a.-b", "a/b", "A", &"a".repeat(254)] {
            assert!(!is_subdomain(bad), "{bad}");
        }
    }

    #[test]
    fn spec_names_follow_upstreams_pattern() {
        for good in ["a", "hello-world", "1x", &"a".repeat(128)] {
            assert!(spec_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a.b", "a_b", "a/b", &"a".repeat(129)] {
            assert!(spec_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_name_defaults_to_the_other() {
        assert_eq!(pair("", "Shown").unwrap(), ("Shown".into(), "Shown".into()));
        assert_eq!(pair("n", "").unwrap(), ("n".into(), "n".into()));
        assert!(pair("", "").is_err());
    }

    #[test]
    fn tags_have_limits() {
        let one = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        assert!(tags(&one("team", "x")).is_ok());
        assert!(tags(&one("a.b", "x")).is_err());
        assert!(tags(&one("", "x")).is_err());
        assert!(tags(&one("k", &"v".repeat(64))).is_err());
        let many = (0..21).map(|n| (format!("k{n}"), String::new())).collect();
        assert!(tags(&many).unwrap_err().to_string().contains("number of tags (21)"));
    }
}
