//! Glue between object_store and the HTTP client of this crate, and what S3 and GCS have in common.

use std::time::Duration;

use async_trait::async_trait;
use http_body_util::BodyExt;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::error::Error;
use super::session::Session;
use crate::{https, kubeapi};

/// Longest wait for the head of an answer, the sending of a part included, and for every further piece of a body.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Hands out the one HTTP client.
#[derive(Clone, Debug)]
pub(super) struct Connector(https::Client<HttpRequestBody>);

impl Connector {
    /// A client that trusts the system's authorities and `authorities` (PEM).
    pub fn new(bucket: &str, authorities: &[u8], plain: bool) -> Result<Self, Error> {
        let tls = https::Tls { extra_authorities: authorities.to_vec(), only_extra: plain, ..https::Tls::default() };
        let client = https::Client::new(&tls, TIMEOUT);
        client.map(Self).map_err(|e| Error::Settings { bucket: bucket.to_owned(), reason: e.to_string() })
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait]
impl HttpService for Connector {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let response = self.0.send(request).await.map_err(translate)?;
        Ok(response.map(|body| HttpResponseBody::new(body.map_err(translate))))
    }
}

fn translate(error: https::Error) -> HttpError {
    let kind = match &error {
        https::Error::Connect { .. } => HttpErrorKind::Connect,
        https::Error::Broken { .. } => HttpErrorKind::Interrupted,
        https::Error::Timeout { .. } => HttpErrorKind::Timeout,
        https::Error::Tls(_) => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error)
}

/// `maxRetries` counts attempts, as upstream's SDK does.
pub(super) fn retries(session: Option<&Session>) -> RetryConfig {
    let attempts = session.and_then(|s| s.param("maxRetries")?.parse::<usize>().ok()).filter(|n| *n > 0);
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(10),
            base: 2.0,
        },
        max_retries: attempts.unwrap_or(5).saturating_sub(1).min(20),
        retry_timeout: Duration::from_secs(180),
    }
}

/// Values of a Secret in the pod's namespace, decoded.
pub(super) async fn secret(session: &Session, keys: &[&str]) -> Result<Vec<String>, Error> {
    let credentials = |text: String| Error::Credentials(text);
    let name = session.param("secretName").ok_or_else(|| credentials("the session names no secret".into()))?;
    let client = kubeapi::Client::from_env().map_err(|e| credentials(format!("cannot read secret {name:?}: {e}")))?;
    let object = client
        .get(kubeapi::SECRETS, client.namespace(), name)
        .await
        .map_err(|e| credentials(format!("cannot read secret {name:?}: {e}")))?;
    decode(&object, session, keys)
}

fn decode(object: &serde_json::Value, session: &Session, keys: &[&str]) -> Result<Vec<String>, Error> {
    use base64::Engine as _;
    let mut values = Vec::new();
    let mut missing = Vec::new();
    for key in keys {
        let encoded = session.param(key).and_then(|name| object["data"][name].as_str()).unwrap_or_default();
        let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).unwrap_or_default();
        let value = String::from_utf8_lossy(&decoded).trim().to_owned();
        if value.is_empty() {
            missing.push(match *key {
                "accessKeyKey" => "access key",
                "secretKeyKey" => "secret key",
                other => other,
            });
        }
        values.push(value);
    }
    if missing.is_empty() {
        return Ok(values);
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Err(Error::Credentials(format!(
        "bucket credential secret has no value for: {} (secret {name:?})",
        missing.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_are_decoded_and_gaps_named() {
        let mut session = Session::default();
        for (k, v) in [("secretName", "s"), ("accessKeyKey", "a"), ("secretKeyKey", "b")] {
            session.params.insert(k.into(), v.into());
        }
        let object = json!({"metadata": {"name": "s"}, "data": {"a": "bWluaW8K", "b": "bWluaW8xMjM="}});
        let keys = ["accessKeyKey", "secretKeyKey"];
        assert_eq!(decode(&object, &session, &keys).unwrap(), ["minio", "minio123"]);
        let error = decode(&json!({"data": {"a": "eA=="}}), &session, &keys).unwrap_err().to_string();
        assert!(error.contains("has no value for: secret key"), "{error}");
        let error = decode(&json!({}), &session, &keys).unwrap_err().to_string();
        assert!(error.contains("has no value for: access key, secret key"), "{error}");
    }

    #[test]
    fn attempts_become_retries() {
        let mut session = Session::default();
        assert_eq!(retries(Some(&session)).max_retries, 4);
        session.params.insert("maxRetries".into(), "2".into());
        assert_eq!(retries(Some(&session)).max_retries, 1);
    }
}
