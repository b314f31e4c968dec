//! The `kfp-launcher` ConfigMap: default pipeline root and how each provider's buckets are reached.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::session::Session;
use super::uri::{Uri, UriError};

/// Name of the ConfigMap, looked up in the pod's namespace.
pub const CONFIG_MAP: &str = "kfp-launcher";
/// Pipeline root when neither the run nor the ConfigMap names one.
pub const DEFAULT_PIPELINE_ROOT: &str = "minio://mlpipeline/v2/artifacts";

/// Why no session could be derived.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// The pipeline root is not an address.
    #[error(transparent)]
    Uri(#[from] UriError),
    /// The pipeline root's scheme has no provider.
    #[error("Encountered unsupported provider in provider config {0}")]
    Unsupported(String),
    /// The `providers` text is not the YAML it should be.
    #[error("failed to unmarshall kfp bucket providers, ensure that providers config is well formed: {0}")]
    Malformed(String),
    /// The settings are incomplete.
    #[error("invalid provider config: {0}")]
    Invalid(&'static str),
}

/// Contents of the ConfigMap; the default means that there is none.
#[derive(Clone, Debug, Default)]
pub struct LauncherConfig {
    data: BTreeMap<String, String>,
}

impl LauncherConfig {
    /// Reads the `data` of a ConfigMap object; `None` (no such ConfigMap) gives the defaults.
    #[must_use]
    pub fn from_config_map(object: Option<&Value>) -> Self {
        let data = object.and_then(|o| o["data"].as_object()).into_iter().flatten();
        Self { data: data.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect() }
    }

    /// The configured default pipeline root, else [`DEFAULT_PIPELINE_ROOT`].
    #[must_use]
    pub fn default_pipeline_root(&self) -> &str {
        let configured = self.data.get("defaultPipelineRoot").map(String::as_str);
        configured.filter(|root| !root.is_empty()).unwrap_or(DEFAULT_PIPELINE_ROOT)
    }

    /// The session for a pipeline root (or an artifact below one).
    ///
    /// # Errors
    /// [`ProviderError`], with upstream's texts.
    pub fn session(&self, root: &str) -> Result<Session, ProviderError> {
        let uri = Uri::parse(root)?;
        let providers: Value = match self.data.get("providers").map(|text| text.trim()).filter(|t| !t.is_empty()) {
            Some(text) => serde_norway::from_str(text).map_err(|e| ProviderError::Malformed(e.to_string()))?,
            None => Value::Null,
        };
        // Go matches JSON names regardless of case.
        let providers = lower_case_keys(providers);
        let block = &providers[uri.scheme.as_str()];
        match uri.scheme.as_str() {
            "minio" | "s3" => s3(&uri, decode(block)?),
            "gs" => gcs(&uri, decode(block)?),
            // Upstream knows no such provider, so there are no settings to follow.
            "azblob" => Ok(Session::from_env("azblob")),
            other => Err(ProviderError::Unsupported(other.to_owned())),
        }
    }
}

fn lower_case_keys(value: Value) -> Value {
    match value {
        Value::Object(map) => map.into_iter().map(|(k, v)| (k.to_lowercase(), lower_case_keys(v))).collect(),
        Value::Array(list) => list.into_iter().map(lower_case_keys).collect(),
        other => other,
    }
}

fn decode<T: DeserializeOwned + Default>(block: &Value) -> Result<T, ProviderError> {
    if block.is_null() {
        return Ok(T::default());
    }
    serde_json::from_value(block.clone()).map_err(|e| ProviderError::Malformed(e.to_string()))
}

#[derive(Deserialize)]
struct Provider<S> {
    default: Option<S>,
    overrides: Option<Vec<S>>,
}

impl<S> Default for Provider<S> {
    fn default() -> Self {
        Self { default: None, overrides: None }
    }
}

/// Settings of S3 and MinIO buckets. Names are lower case because the keys were folded.
#[derive(Deserialize)]
struct S3Settings {
    bucketname: Option<String>,
    keyprefix: Option<String>,
    endpoint: Option<String>,
    region: Option<String>,
    disablessl: Option<bool>,
    forcepathstyle: Option<bool>,
    maxretries: Option<i64>,
    credentials: Option<Credentials>,
}

#[derive(Deserialize)]
struct GcsSettings {
    bucketname: Option<String>,
    keyprefix: Option<String>,
    credentials: Option<Credentials>,
}

#[derive(Deserialize)]
struct Credentials {
    fromenv: Option<bool>,
    secretref: Option<SecretRef>,
}

#[derive(Deserialize)]
struct SecretRef {
    secretname: Option<String>,
    accesskeykey: Option<String>,
    secretkeykey: Option<String>,
    tokenkey: Option<String>,
}

/// Upstream compares the root's prefix, which ends in `/`, as plain text.
fn matches(uri: &Uri, bucket: Option<&String>, prefix: Option<&String>) -> bool {
    let root = if uri.key.is_empty() || uri.key.ends_with('/') { uri.key.clone() } else { format!("{}/", uri.key) };
    bucket.is_some_and(|b| *b == uri.bucket) && root.starts_with(prefix.map_or("", String::as_str))
}

/// Puts `fromEnv` and the names of the secret's keys into the parameters.
fn credentials(
    session: &mut Session,
    credentials: &Credentials,
    names: &[&'static str],
    missing: &'static str,
) -> Result<(), ProviderError> {
    let from_env = credentials.fromenv.unwrap_or(false);
    session.params.insert("fromEnv".into(), from_env.to_string());
    for name in names {
        session.params.remove(*name);
    }
    if from_env {
        return Ok(());
    }
    let secret = credentials.secretref.as_ref().ok_or(ProviderError::Invalid(missing))?;
    for name in names {
        let value = match *name {
            "secretName" => &secret.secretname,
            "accessKeyKey" => &secret.accesskeykey,
            "secretKeyKey" => &secret.secretkeykey,
            _ => &secret.tokenkey,
        };
        session.params.insert((*name).to_owned(), value.clone().unwrap_or_default());
    }
    Ok(())
}

const S3_SECRET: [&str; 3] = ["secretName", "accessKeyKey", "secretKeyKey"];
const GCS_SECRET: [&str; 2] = ["secretName", "tokenKey"];

fn s3(uri: &Uri, provider: Provider<S3Settings>) -> Result<Session, ProviderError> {
    let unset = provider.default.is_none() && provider.overrides.is_none();
    if unset && uri.scheme == "minio" && uri.query.is_empty() {
        let params = [
            ("region", "minio"),
            ("endpoint", "seaweedfs.kubeflow:9000"),
            ("disableSSL", "true"),
            ("fromEnv", "false"),
            ("maxRetries", "5"),
            ("secretName", "mlpipeline-minio-artifact"),
            ("accessKeyKey", "accesskey"),
            ("secretKeyKey", "secretkey"),
        ];
        let params = params.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        return Ok(Session { provider: "minio".into(), params });
    }
    if unset || !uri.query.is_empty() {
        return Ok(Session::from_env(&uri.scheme));
    }
    let missing = ProviderError::Invalid("missing default credentials");
    let Some((default, given)) = provider.default.as_ref().and_then(|d| Some((d, d.credentials.as_ref()?))) else {
        return Err(missing);
    };
    let mut session = Session { provider: uri.scheme.clone(), params: BTreeMap::new() };
    let mut set = |name: &str, value: String| session.params.insert(name.to_owned(), value);
    set("endpoint", default.endpoint.clone().unwrap_or_default());
    set("region", default.region.clone().unwrap_or_default());
    set("disableSSL", default.disablessl.unwrap_or(false).to_string());
    set("forcePathStyle", default.forcepathstyle.unwrap_or(true).to_string());
    set("maxRetries", default.maxretries.unwrap_or(5).to_string());
    let found = provider.overrides.iter().flatten().find(|o| matches(uri, o.bucketname.as_ref(), o.keyprefix.as_ref()));
    let Some(found) = found else {
        credentials(&mut session, given, &S3_SECRET, "missing default secretref")?;
        return Ok(session);
    };
    let texts = [("endpoint", &found.endpoint), ("region", &found.region)];
    for (name, value) in texts {
        if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
            session.params.insert(name.to_owned(), value.clone());
        }
    }
    let others = [
        ("disableSSL", found.disablessl.map(|v| v.to_string())),
        ("forcePathStyle", found.forcepathstyle.map(|v| v.to_string())),
        ("maxRetries", found.maxretries.map(|v| v.to_string())),
    ];
    for (name, value) in others {
        if let Some(value) = value {
            session.params.insert(name.to_owned(), value);
        }
    }
    let own = found.credentials.as_ref().ok_or(ProviderError::Invalid("missing override credentials"))?;
    credentials(&mut session, own, &S3_SECRET, "missing override secretref")?;
    Ok(session)
}

fn gcs(uri: &Uri, provider: Provider<GcsSettings>) -> Result<Session, ProviderError> {
    if provider.default.is_none() && provider.overrides.is_none() {
        return Ok(Session::from_env("gs"));
    }
    let Some(given) = provider.default.as_ref().and_then(|d| d.credentials.as_ref()) else {
        return Err(ProviderError::Invalid("missing default credentials"));
    };
    let mut session = Session { provider: "gs".into(), params: BTreeMap::new() };
    let found = provider.overrides.iter().flatten().find(|o| matches(uri, o.bucketname.as_ref(), o.keyprefix.as_ref()));
    match found {
        None => credentials(&mut session, given, &GCS_SECRET, "missing default secretref")?,
        Some(found) => {
            let own = found.credentials.as_ref().ok_or(ProviderError::Invalid("missing override secretref"))?;
            credentials(&mut session, own, &GCS_SECRET, "missing override secretref")?;
        }
    }
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(providers: &str) -> LauncherConfig {
        LauncherConfig::from_config_map(Some(&json!({"data": {"providers": providers}})))
    }

    fn params(session: &Session) -> Vec<(&str, &str)> {
        session.params.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect()
    }

    const FULL: &str = "
s3:
  default: {endpoint: s3.amazonaws.com, Region: us-east-1, forcePathStyle: false, credentials: {fromEnv: false, secretRef: {secretName: s, accessKeyKey: a, secretKeyKey: k}}}
  overrides:
  - {bucketName: b, keyPrefix: x/y, maxRetries: 9, region: eu, credentials: {fromEnv: true}}
  - {bucketName: b, keyPrefix: x, credentials: {secretRef: {secretName: s2, accessKeyKey: a2, secretKeyKey: k2}}}
  - {bucketName: nocred}
gs:
  default: {credentials: {secretRef: {secretName: g, tokenKey: t}}}
  overrides: [{bucketName: gb, keyPrefix: p, credentials: {fromEnv: true}}]
unknown: {a: 1}
";

    #[test]
    fn defaults_without_config() {
        let none = LauncherConfig::from_config_map(None);
        assert_eq!(none.default_pipeline_root(), DEFAULT_PIPELINE_ROOT);
        let session = none.session("minio://mlpipeline/v2").unwrap();
        assert_eq!(session.provider, "minio");
        assert_eq!(session.param("endpoint"), Some("seaweedfs.kubeflow:9000"));
        assert_eq!(session.param("secretName"), Some("mlpipeline-minio-artifact"));
        for (root, provider) in [("s3://b/k", "s3"), ("minio://b/k?region=x", "minio"), ("gs://b", "gs")] {
            let session = none.session(root).unwrap();
            assert_eq!((session.provider.as_str(), params(&session)), (provider, vec![("fromEnv", "true")]), "{root}");
        }
        assert_eq!(
            none.session("mem://b/k").unwrap_err().to_string(),
            "Encountered unsupported provider in provider config mem"
        );
    }

    #[test]
    fn configured_root_wins_unless_empty() {
        let named = LauncherConfig::from_config_map(Some(&json!({"data": {"defaultPipelineRoot": "s3://r/p"}})));
        assert_eq!(named.default_pipeline_root(), "s3://r/p");
        let empty = LauncherConfig::from_config_map(Some(&json!({"data": {"defaultPipelineRoot": ""}})));
        assert_eq!(empty.default_pipeline_root(), DEFAULT_PIPELINE_ROOT);
    }

    #[test]
    fn default_block_with_secret() {
        let session = config(FULL).session("s3://other/x/y").unwrap();
        let want = [
            ("accessKeyKey", "a"),
            ("disableSSL", "false"),
            ("endpoint", "s3.amazonaws.com"),
            ("forcePathStyle", "false"),
            ("fromEnv", "false"),
            ("maxRetries", "5"),
            ("region", "us-east-1"),
            ("secretKeyKey", "k"),
            ("secretName", "s"),
        ];
        assert_eq!(params(&session), want);
    }

    #[test]
    fn first_matching_override_wins() {
        let session = config(FULL).session("s3://b/x/y/z").unwrap();
        assert_eq!(session.param("fromEnv"), Some("true"));
        assert_eq!(session.param("secretName"), None);
        assert_eq!((session.param("maxRetries"), session.param("region")), (Some("9"), Some("eu")));
        assert_eq!(config(FULL).session("s3://b/x/q").unwrap().param("secretName"), Some("s2"));
        assert_eq!(config(FULL).session("gs://gb/p").unwrap().param("fromEnv"), Some("true"));
        assert_eq!(config(FULL).session("gs://gb/q").unwrap().param("tokenKey"), Some("t"));
    }

    #[test]
    fn incomplete_settings_are_named() {
        for (providers, root, text) in [
            ("minio: {overrides: []}", "minio://b", "missing default credentials"),
            ("minio: {default: {endpoint: x}}", "minio://b", "missing default credentials"),
            ("s3: {default: {credentials: {}}}", "s3://b", "missing default secretref"),
            (FULL, "s3://nocred/k", "missing override credentials"),
        ] {
            let error = config(providers).session(root).unwrap_err().to_string();
            assert_eq!(error, format!("invalid provider config: {text}"), "{providers}");
        }
        assert!(config("minio: {}").session("minio://b").unwrap().param("endpoint").is_some());
        assert!(matches!(config("a: [").session("minio://b"), Err(ProviderError::Malformed(_))));
    }
}
