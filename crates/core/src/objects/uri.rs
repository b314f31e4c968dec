//! Addresses of objects: `scheme://bucket/key?options`.

use std::fmt;

/// Why a text is not the address of an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Not of the form `scheme://bucket/key`.
    #[error("unrecognized pipeline root format: {0:?}, expected scheme://bucket/key")]
    Format(String),
    /// A scheme that is not an object store.
    #[error(
        "parse bucket config failed: unsupported Cloud bucket: {0:?} (supported: gs://, s3://, minio://, mem://, file://)"
    )]
    Scheme(String),
}

/// An address taken apart. `file` addresses have an empty bucket and the absolute path without its `/` as key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uri {
    /// `minio`, `s3`, `gs`, `mem` or `file`.
    pub scheme: String,
    /// Bucket.
    pub bucket: String,
    /// Key without a leading `/`; a prefix when the address is a pipeline root.
    pub key: String,
    /// Text after `?`, without it.
    pub query: String,
}

impl Uri {
    /// Takes an address apart; the store options after `?` are kept in `query`.
    ///
    /// # Errors
    /// [`UriError`], with upstream's texts.
    pub fn parse(text: &str) -> Result<Self, UriError> {
        let format = || UriError::Format(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(format)?;
        let mut letters = scheme.bytes();
        let leads = letters.next().is_some_and(|b| b.is_ascii_lowercase());
        if !leads || !letters.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            return Err(format());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (bucket, key) = match scheme {
            "file" => ("", rest.strip_prefix('/').ok_or_else(format)?),
            "gs" | "s3" | "minio" | "mem" | "azblob" => {
                // Upstream accepts a third slash before the bucket.
                let rest = rest.strip_prefix('/').unwrap_or(rest);
                rest.split_once('/').unwrap_or((rest, ""))
            }
            _ => return Err(UriError::Scheme(text.to_owned())),
        };
        if bucket.is_empty() && scheme != "file" || key.is_empty() && scheme == "file" {
            return Err(format());
        }
        Ok(Self {
            scheme: scheme.to_owned(),
            bucket: bucket.to_owned(),
            key: key.trim_start_matches('/').to_owned(),
            query: query.to_owned(),
        })
    }

    /// Scheme and bucket, for example `minio://mlpipeline`.
    #[must_use]
    pub fn bucket_url(&self) -> String {
        format!("{}://{}", self.scheme, self.bucket)
    }

    /// Values of the store options, in order. Percent escapes are resolved, `+` is a space.
    pub fn options(&self) -> impl Iterator<Item = (String, String)> + '_ {
        let decode =
            |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        self.query.split('&').filter(|pair| !pair.is_empty()).map(move |pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        })
    }
}

impl fmt::Display for Uri {
    /// The address without the store options.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}/{}", self.scheme, self.bucket, self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        for (text, scheme, bucket, key, query) in [
            ("minio://mlpipeline/v2/artifacts", "minio", "mlpipeline", "v2/artifacts", ""),
            ("s3://b?region=eu-west-1&endpoint=x:9000", "s3", "b", "", "region=eu-west-1&endpoint=x:9000"),
            ("gs:///b/k/", "gs", "b", "k/", ""),
            ("file:///var/data/x", "file", "", "var/data/x", ""),
            ("mem://b/a//c?d=e?f", "mem", "b", "a//c", "d=e?f"),
        ] {
            let uri = Uri::parse(text).unwrap();
            let parts = (&*uri.scheme, &*uri.bucket, &*uri.key, &*uri.query);
            assert_eq!(parts, (scheme, bucket, key, query), "{text}");
        }
    }

    #[test]
    fn wrong_addresses_are_told_apart() {
        for text in ["", "bucket/key", "minio:/b", "minio://", "S3://b/k", "file://", "://b", "1s://b"] {
            assert!(matches!(Uri::parse(text), Err(UriError::Format(_))), "{text}");
        }
        let error = Uri::parse("https://example.com/x").unwrap_err();
        assert!(error.to_string().starts_with("parse bucket config failed: unsupported Cloud bucket: \"https://"));
    }

    #[test]
    fn options_are_decoded() {
        let uri = Uri::parse("s3://b/k?endpoint=http%3A%2F%2Fm:9000&use_path_style=true&flag").unwrap();
        let options: Vec<_> = uri.options().collect();
        let want = [("endpoint", "http://m:9000"), ("use_path_style", "true"), ("flag", "")];
        assert_eq!(options, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }
}
