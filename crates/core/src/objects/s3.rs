//! S3 and compatible stores: settings from the session, the address and the environment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

use super::error::Error;
use super::service::{Connector, retries, secret};
use super::session::Session;
use super::store::Store;
use super::uri::Uri;

/// What the session or the address says about a bucket's service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Settings {
    region: Option<String>,
    /// With scheme.
    endpoint: Option<String>,
    path_style: bool,
    anonymous: bool,
    profile: Option<String>,
}

/// Opens a bucket as upstream does: a session with a secret uses its keys; otherwise the default chain of the
/// environment (static keys, web identity, ECS, EKS, shared profile, instance metadata).
pub(super) async fn open(uri: &Uri, session: Option<&Session>, authorities: &[u8]) -> Result<Store, Error> {
    let session = session.filter(|s| matches!(s.provider.as_str(), "s3" | "minio"));
    let settings = settings(uri, session)?;
    let mut builder = from_env();
    let own_keys = session.filter(|s| uri.query.is_empty() && s.flag("fromEnv") == Some(false));
    let given = session.and_then(|s| Some((s.param("accessKey")?, s.param("secretKey")?)));
    if let Some((access, private)) = given {
        builder = AmazonS3Builder::new().with_access_key_id(access).with_secret_access_key(private);
    } else if let Some(session) = own_keys {
        let keys = secret(session, &["accessKeyKey", "secretKeyKey"]).await?;
        builder = AmazonS3Builder::new();
        if let [access, private] = keys.as_slice() {
            builder = builder.with_access_key_id(access).with_secret_access_key(private);
        }
    } else if let Some(keys) = shared_profile(settings.profile.as_deref()) {
        builder = keys.apply(builder);
    }
    let endpoint = settings.endpoint.clone().or_else(|| builder.get_config_value(&AmazonS3ConfigKey::Endpoint));
    let plain = endpoint.as_deref().is_some_and(|e| e.starts_with("http://"));
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(address(&endpoint, &uri.bucket, settings.path_style)).with_allow_http(plain);
    }
    let bucket = uri.bucket_url();
    let service = builder
        .with_bucket_name(&uri.bucket)
        .with_virtual_hosted_style_request(!settings.path_style)
        .with_skip_signature(settings.anonymous)
        .with_retry(retries(session))
        .with_http_connector(Connector::new(&bucket, authorities, plain)?)
        .build()
        .map_err(|e| Error::Settings { bucket: bucket.clone(), reason: e.to_string() })?;
    Ok(Store::with_service(&bucket, Arc::new(service)))
}

/// The environment's settings. Only what the AWS SDKs know is taken: object_store reads more names (`AWS_BUCKET`, …).
fn from_env() -> AmazonS3Builder {
    const KNOWN: [&str; 12] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_ROLE_SESSION_NAME",
    ];
    let mut builder = AmazonS3Builder::new();
    let set = |builder: AmazonS3Builder, name: &str, key: &str| match (std::env::var(name), key.parse()) {
        (Ok(value), Ok(key)) if !value.is_empty() => builder.with_config(key, value),
        _ => builder,
    };
    for name in KNOWN {
        builder = set(builder, name, &name.to_ascii_lowercase());
    }
    set(builder, "AWS_ENDPOINT_URL_S3", "aws_endpoint_url")
}

/// For virtual-hosted addressing, object_store expects the bucket in the endpoint's host name.
fn address(endpoint: &str, bucket: &str, path_style: bool) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) if !path_style => format!("{scheme}://{bucket}.{}", host.trim_end_matches('/')),
        _ => endpoint.trim_end_matches('/').to_owned(),
    }
}

fn settings(uri: &Uri, session: Option<&Session>) -> Result<Settings, Error> {
    if !uri.query.is_empty() {
        return from_query(uri);
    }
    let Some(session) = session else { return Ok(Settings::default()) };
    let named = ["region", "endpoint", "disableSSL", "forcePathStyle", "maxRetries"];
    if session.flag("fromEnv") == Some(true) && !named.iter().any(|name| session.params.contains_key(*name)) {
        return Ok(Settings::default());
    }
    let plain = session.flag("disableSSL").unwrap_or(false);
    Ok(Settings {
        region: session.param("region").map(str::to_owned),
        endpoint: session.param("endpoint").and_then(|e| endpoint(e, plain)),
        path_style: session.flag("forcePathStyle").unwrap_or(true),
        ..Settings::default()
    })
}

/// Adds the scheme; Amazon's own global endpoint is left to the region's default.
fn endpoint(text: &str, plain: bool) -> Option<String> {
    let lower = text.to_ascii_lowercase();
    if lower.strip_prefix("https://").unwrap_or(&lower).starts_with("s3.amazonaws.com") {
        return None;
    }
    let scheme = if plain { "http" } else { "https" };
    Some(if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") })
}

/// Options that upstream's blob library takes from the address.
fn from_query(uri: &Uri) -> Result<Settings, Error> {
    let mut settings = Settings::default();
    let mut plain = false;
    let mut raw_endpoint = None;
    for (name, value) in uri.options() {
        let flag = || match value.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(Error::Settings {
                bucket: uri.bucket_url(),
                reason: format!("invalid value for query parameter {name:?}: {value:?}"),
            }),
        };
        match name.as_str() {
            "region" => settings.region = Some(value),
            "endpoint" => raw_endpoint = Some(value),
            "profile" => settings.profile = Some(value),
            "disableSSL" | "disable_https" => plain = flag()?,
            "s3ForcePathStyle" | "use_path_style" | "hostname_immutable" => settings.path_style |= flag()?,
            "anonymous" => settings.anonymous = flag()?,
            // No effect here: SDK version, acceleration and checksum switches.
            "awssdk"
            | "accelerate"
            | "dualstack"
            | "fips"
            | "rate_limiter_capacity"
            | "request_checksum_calculation"
            | "response_checksum_validation"
            | "ssetype"
            | "kmskeyid"
            | "nodeleteobject" => {
                tracing::debug!(option = name, "store option without effect");
            }
            _ => {
                return Err(Error::Settings {
                    bucket: uri.bucket_url(),
                    reason: format!("unknown query parameter {name:?}"),
                });
            }
        }
    }
    settings.endpoint = raw_endpoint.and_then(|text| endpoint(&text, plain));
    Ok(settings)
}

/// Keys of a profile in the shared credentials file.
#[derive(Debug, Default, PartialEq, Eq)]
struct Profile {
    access: String,
    private: String,
    token: Option<String>,
    region: Option<String>,
}

impl Profile {
    fn apply(self, mut builder: AmazonS3Builder) -> AmazonS3Builder {
        builder = builder.with_access_key_id(self.access).with_secret_access_key(self.private);
        if let Some(token) = self.token {
            builder = builder.with_token(token);
        }
        if builder.get_config_value(&AmazonS3ConfigKey::Region).is_none()
            && let Some(region) = self.region
        {
            builder = builder.with_region(region);
        }
        builder
    }
}

/// The profile to use when the environment itself holds no credentials, or when one is named.
fn shared_profile(named: Option<&str>) -> Option<Profile> {
    let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let others = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE"];
    if named.is_none() && others.iter().any(|name| env(name).is_some()) {
        return None;
    }
    let home = PathBuf::from(env("HOME")?).join(".aws");
    let file = env("AWS_SHARED_CREDENTIALS_FILE").map_or_else(|| home.join("credentials"), PathBuf::from);
    let profile = named.map(str::to_owned).or_else(|| env("AWS_PROFILE")).unwrap_or_else(|| "default".into());
    parse_profile(&std::fs::read_to_string(file).ok()?, &profile)
}

fn parse_profile(text: &str, profile: &str) -> Option<Profile> {
    let mut values = BTreeMap::new();
    let mut inside = false;
    for line in text.lines().map(str::trim).filter(|l| !l.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if let (true, Some((key, value))) = (inside, line.split_once('=')) {
            values.insert(key.trim(), value.trim().to_owned());
        }
    }
    Some(Profile {
        access: values.remove("aws_access_key_id")?,
        private: values.remove("aws_secret_access_key")?,
        token: values.remove("aws_session_token"),
        region: values.remove("region"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(params: &[(&str, &str)]) -> Session {
        let params = params.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Session { provider: "minio".into(), params }
    }

    #[test]
    fn session_settings() {
        let uri = Uri::parse("minio://b/k").unwrap();
        let minio = session(&[("endpoint", "store:9000"), ("disableSSL", "true"), ("region", "minio")]);
        let got = settings(&uri, Some(&minio)).unwrap();
        assert_eq!(got.endpoint.as_deref(), Some("http://store:9000"));
        assert!(got.path_style);
        let bare = settings(&uri, Some(&session(&[("fromEnv", "true")]))).unwrap();
        assert_eq!(bare, Settings::default());
        for amazon in ["s3.amazonaws.com", "HTTPS://S3.amazonaws.com/"] {
            assert_eq!(endpoint(amazon, false), None, "{amazon}");
        }
        assert_eq!(endpoint("https://s3.eu.example", true).as_deref(), Some("https://s3.eu.example"));
    }

    #[test]
    fn query_settings() {
        let uri = Uri::parse("s3://b?endpoint=m:9000&disable_https=true&s3ForcePathStyle=true&region=x").unwrap();
        let got = settings(&uri, Some(&session(&[("endpoint", "ignored")]))).unwrap();
        assert_eq!((got.endpoint.as_deref(), got.path_style), (Some("http://m:9000"), true));
        let wrong = Uri::parse("s3://b?nope=1").unwrap();
        assert!(settings(&wrong, None).unwrap_err().to_string().contains("unknown query parameter \"nope\""));
    }

    #[test]
    fn virtual_hosts_carry_the_bucket() {
        assert_eq!(address("http://m:9000/", "b", true), "http://m:9000");
        assert_eq!(address("https://s3.example", "b", false), "https://b.s3.example");
    }

    #[test]
    fn profiles_are_read() {
        let text = "[default]\naws_access_key_id = A\naws_secret_access_key=B\n# c\n[x]\naws_access_key_id=C\naws_secret_access_key=D\naws_session_token=E\n";
        assert_eq!(parse_profile(text, "default").unwrap().private, "B");
        assert_eq!(parse_profile(text, "x").unwrap().token.as_deref(), Some("E"));
        assert_eq!(parse_profile(text, "y"), None);
    }
}
