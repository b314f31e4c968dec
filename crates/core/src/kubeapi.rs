//! A minimal Kubernetes REST client for the driver and the launcher, which are too small for kube-rs.
//!
//! Objects are plain JSON. The connection comes from the pod's service account or from a kubeconfig.

mod config;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::Value;

use crate::https;
pub use config::{Config, ConfigError};

/// A whole request, answer included, must not take longer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Answers are single objects; etcd itself limits them to 1.5 MiB.
const MAX_ANSWER: usize = 16 << 20;
/// Tries in all for reads that meet an overloaded or restarting API server.
const TRIES: u32 = 5;

/// A kind of object: where it lives in the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// Lower-case plural, as in the URL.
    pub plural: &'static str,
}

impl Resource {
    const fn core(plural: &'static str) -> Self {
        Self { group: "", version: "v1", plural }
    }
}

/// `v1 ConfigMap`.
pub const CONFIG_MAPS: Resource = Resource::core("configmaps");
/// `v1 Secret`.
pub const SECRETS: Resource = Resource::core("secrets");
/// `v1 Pod`.
pub const PODS: Resource = Resource::core("pods");
/// `v1 PersistentVolumeClaim`.
pub const PERSISTENT_VOLUME_CLAIMS: Resource = Resource::core("persistentvolumeclaims");
/// `v1 Event`.
pub const EVENTS: Resource = Resource::core("events");
/// `argoproj.io/v1alpha1 Workflow`.
pub const WORKFLOWS: Resource = Resource { group: "argoproj.io", version: "v1alpha1", plural: "workflows" };

/// Why a call to the Kubernetes API failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no usable configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The server could not be reached or did not answer.
    #[error("kubernetes API, {what}: {source}")]
    Transport {
        /// Verb and object.
        what: String,
        /// The cause.
        source: https::Error,
    },
    /// The server refused the request.
    #[error("kubernetes API, {what}: {message} (HTTP {code}, {reason})")]
    Api {
        /// Verb and object.
        what: String,
        /// HTTP status code.
        code: u16,
        /// Machine-readable reason of the `Status` object, for example `NotFound`.
        reason: String,
        /// Text of the `Status` object.
        message: String,
    },
    /// The answer was not what a Kubernetes API sends.
    #[error("kubernetes API, {what}: unreadable answer: {reason}")]
    Answer {
        /// Verb and object.
        what: String,
        /// The cause.
        reason: String,
    },
}

impl Error {
    /// The object (or its namespace or kind) does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Api { code: 404, .. })
    }

    /// An object of that name exists already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        matches!(self, Error::Api { code: 409, reason, .. } if reason == "AlreadyExists")
    }

    /// The caller's service account lacks the permission.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Error::Api { code: 403, .. })
    }

    fn is_transient(&self) -> bool {
        match self {
            Error::Transport { .. } => true,
            Error::Api { code, .. } => matches!(code, 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

/// How [`Client::patch`] reads its document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch {
    /// RFC 6902 list of operations.
    Json,
    /// RFC 7386 merge patch.
    Merge,
    /// Kubernetes strategic merge patch.
    Strategic,
}

impl Patch {
    fn content_type(self) -> &'static str {
        match self {
            Patch::Json => "application/json-patch+json",
            Patch::Merge => "application/merge-patch+json",
            Patch::Strategic => "application/strategic-merge-patch+json",
        }
    }
}

/// A client for one API server. Cheap to clone; connects at the first call.
#[derive(Clone, Debug)]
pub struct Client {
    http: https::Client<Full<Bytes>>,
    config: Config,
}

impl Client {
    /// A client for the server that [`Config::load`] finds. Reads files, makes no connection.
    ///
    /// # Errors
    /// [`Error::Config`] when there is neither a service account nor a readable kubeconfig.
    pub fn from_env() -> Result<Self, Error> {
        Self::new(Config::load()?)
    }

    /// A client for the given configuration.
    ///
    /// # Errors
    /// [`Error::Config`] when certificates or keys are unreadable.
    pub fn new(config: Config) -> Result<Self, Error> {
        let client = if config.server.starts_with("http://") {
            https::Client::plain(TIMEOUT)
        } else {
            https::Client::new(&config.tls, TIMEOUT)
        };
        let http = client.map_err(|source| ConfigError::Tls { server: config.server.clone(), source })?;
        Ok(Self { http, config })
    }

    /// The namespace that this process belongs to.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.config.namespace
    }

    /// Reads one object; transient failures are retried with back-off.
    ///
    /// # Errors
    /// [`Error::Api`] with code 404 when it does not exist; see [`Error::is_not_found`].
    pub async fn get(&self, resource: Resource, namespace: &str, name: &str) -> Result<Value, Error> {
        let what = format!("get {} {namespace}/{name}", resource.plural);
        let path = path(resource, namespace, Some(name));
        let mut tries = 1;
        loop {
            match self.call(&what, Method::GET, &path, None).await {
                Err(error) if error.is_transient() && tries < TRIES => {
                    tracing::debug!(%error, tries, "retrying");
                    tokio::time::sleep(Duration::from_millis(200) * 2_u32.pow(tries - 1)).await;
                    tries += 1;
                }
                result => return result,
            }
        }
    }

    /// Reads one object, `None` when it does not exist.
    ///
    /// # Errors
    /// As [`Client::get`], 404 aside.
    pub async fn find(&self, resource: Resource, namespace: &str, name: &str) -> Result<Option<Value>, Error> {
        match self.get(resource, namespace, name).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates an object and returns it as the server completed it (generated name, uid). Not retried: a second try
    /// with `generateName` could create a second object.
    ///
    /// # Errors
    /// [`Error::Api`] with code 409 when the name is taken; see [`Error::is_already_exists`].
    pub async fn create(&self, resource: Resource, namespace: &str, object: &Value) -> Result<Value, Error> {
        let meta = &object["metadata"];
        let name = meta["name"].as_str().or(meta["generateName"].as_str()).unwrap_or_default();
        let what = format!("create {} {namespace}/{name}", resource.plural);
        let body = ("application/json", object);
        self.call(&what, Method::POST, &path(resource, namespace, None), Some(body)).await
    }

    /// Changes an object and returns the result.
    ///
    /// # Errors
    /// [`Error::Api`] when it does not exist or the patch does not fit.
    pub async fn patch(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        kind: Patch,
        patch: &Value,
    ) -> Result<Value, Error> {
        let what = format!("patch {} {namespace}/{name}", resource.plural);
        let body = (kind.content_type(), patch);
        self.call(&what, Method::PATCH, &path(resource, namespace, Some(name)), Some(body)).await
    }

    /// Deletes an object; one that does not exist is no error.
    ///
    /// # Errors
    /// [`Error::Api`] for any refusal but 404.
    pub async fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<(), Error> {
        let what = format!("delete {} {namespace}/{name}", resource.plural);
        match self.call(&what, Method::DELETE, &path(resource, namespace, Some(name)), None).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn call(&self, what: &str, method: Method, path: &str, body: Option<(&str, &Value)>) -> Result<Value, Error> {
        let unreadable = |reason: String| Error::Answer { what: what.to_owned(), reason };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.config.server.trim_end_matches('/')))
            .header("accept", "application/json");
        if let Some(authorization) = self.config.authorization().await? {
            request = request.header("authorization", authorization);
        }
        let bytes = match body {
            None => Bytes::new(),
            Some((content_type, value)) => {
                request = request.header("content-type", content_type);
                Bytes::from(value.to_string())
            }
        };
        let request = request.body(Full::new(bytes)).map_err(|e| unreadable(e.to_string()))?;
        let transport = |source| Error::Transport { what: what.to_owned(), source };
        let response = self.http.send(request).await.map_err(transport)?;
        let status = response.status();
        let bytes = https::collect(response.into_body(), MAX_ANSWER).await.map_err(unreadable)?;
        if status.is_success() {
            return serde_json::from_slice(&bytes).map_err(|e| unreadable(e.to_string()));
        }
        Err(refusal(what, status, &bytes))
    }
}

/// The error in a `Status` object, or in whatever a proxy in between has sent.
fn refusal(what: &str, status: StatusCode, body: &[u8]) -> Error {
    let answer: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let message = answer["message"].as_str().map_or_else(
        || {
            let text: String = String::from_utf8_lossy(body).trim().chars().take(300).collect();
            if text.is_empty() { status.canonical_reason().unwrap_or("refused").to_owned() } else { text }
        },
        str::to_owned,
    );
    let reason = answer["reason"].as_str().unwrap_or("no reason given").to_owned();
    Error::Api { what: what.to_owned(), code: status.as_u16(), reason, message }
}

fn path(resource: Resource, namespace: &str, name: Option<&str>) -> String {
    let Resource { group, version, plural } = resource;
    let root = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
    let collection = format!("{root}/namespaces/{namespace}/{plural}");
    name.map_or_else(|| collection.clone(), |name| format!("{collection}/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn paths_follow_the_group() {
        assert_eq!(path(CONFIG_MAPS, "ns", Some("c")), "/api/v1/namespaces/ns/configmaps/c");
        assert_eq!(path(WORKFLOWS, "ns", None), "/apis/argoproj.io/v1alpha1/namespaces/ns/workflows");
    }

    #[test]
    fn refusal_prefers_the_status_object() {
        let body = json!({"kind": "Status", "message": "pods \"x\" not found", "reason": "NotFound"}).to_string();
        let error = refusal("get pods ns/x", StatusCode::NOT_FOUND, body.as_bytes());
        assert!(error.is_not_found());
        assert_eq!(error.to_string(), "kubernetes API, get pods ns/x: pods \"x\" not found (HTTP 404, NotFound)");
        let error = refusal("get pods ns/x", StatusCode::BAD_GATEWAY, b"<html>oops");
        assert!(error.is_transient());
        assert!(error.to_string().contains("<html>oops"));
    }

    /// Answers each connection with the next of `answers` and hands back what was asked.
    async fn server(answers: Vec<&'static str>) -> (String, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let task = tokio::spawn(async move {
            let mut seen = Vec::new();
            for answer in answers {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 65536];
                let n = socket.read(&mut buffer).await.unwrap();
                seen.push(String::from_utf8_lossy(&buffer[..n]).into_owned());
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
            seen
        });
        (address, task)
    }

    #[tokio::test]
    async fn get_is_retried_and_sends_the_token() {
        let (address, task) = server(vec![
            "HTTP/1.1 503 x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 13\r\nconnection: close\r\n\r\n{\"kind\":\"ok\"}",
        ])
        .await;
        let client = Client::new(Config::plain(&address, "ns").with_token("secret")).unwrap();
        let object = client.get(CONFIG_MAPS, "ns", "a").await.unwrap();
        assert_eq!(object["kind"], "ok");
        let seen = task.await.unwrap();
        assert!(seen[1].starts_with("GET /api/v1/namespaces/ns/configmaps/a HTTP/1.1"), "{}", seen[1]);
        assert!(seen[1].contains("authorization: Bearer secret"), "{}", seen[1]);
    }

    #[tokio::test]
    async fn find_turns_not_found_into_none_and_create_reports_conflicts() {
        let (address, task) = server(vec![
            "HTTP/1.1 404 x\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}",
            "HTTP/1.1 409 x\r\ncontent-length: 26\r\nconnection: close\r\n\r\n{\"reason\":\"AlreadyExists\"}",
        ])
        .await;
        let client = Client::new(Config::plain(&address, "ns")).unwrap();
        assert!(client.find(SECRETS, "ns", "a").await.unwrap().is_none());
        let object = json!({"metadata": {"name": "p"}});
        let error = client.create(PERSISTENT_VOLUME_CLAIMS, "ns", &object).await.unwrap_err();
        assert!(error.is_already_exists(), "{error}");
        let seen = task.await.unwrap();
        assert!(seen[1].starts_with("POST /api/v1/namespaces/ns/persistentvolumeclaims "), "{}", seen[1]);
        assert!(seen[1].ends_with(&object.to_string()), "{}", seen[1]);
    }
}
