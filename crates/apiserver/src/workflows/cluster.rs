//! The Kubernetes objects that the API server touches, as plain JSON so that no field gets lost on the way.

use std::collections::HashSet;
use std::time::Duration;

use http::{Method, Request};
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// Limit of one exchange with the Kubernetes API.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Limit of a question about a caller's name or rights, which holds a request up.
const REVIEW_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts of a patch that must not be lost, and the first pause between them (it grows up to [`MAX_PAUSE`]).
const ATTEMPTS: u32 = 10;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const MAX_PAUSE: Duration = Duration::from_secs(5);

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Argo Workflow.
    Workflow,
    /// Schedule of Workflows.
    ScheduledWorkflow,
    /// Pod.
    Pod,
    /// Pipeline that is kept in the cluster.
    Pipeline,
    /// Version of it.
    PipelineVersion,
}

impl Kind {
    fn path(self) -> (&'static str, &'static str) {
        match self {
            Kind::Workflow => ("/apis/argoproj.io/v1alpha1", "workflows"),
            Kind::ScheduledWorkflow => ("/apis/kubeflow.org/v1beta1", "scheduledworkflows"),
            Kind::Pod => ("/api/v1", "pods"),
            Kind::Pipeline => ("/apis/pipelines.kubeflow.org/v2beta1", "pipelines"),
            Kind::PipelineVersion => ("/apis/pipelines.kubeflow.org/v2beta1", "pipelineversions"),
        }
    }
}

/// Why Kubernetes did not do it.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No such object.
    #[error("{0}")]
    NotFound(String),
    /// The object changed meanwhile, or exists already.
    #[error("{0}")]
    Conflict(String),
    /// The object is refused.
    #[error("{0}")]
    Refused(String),
    /// No answer in time, or none at all.
    #[error("{0}")]
    Unavailable(String),
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) => {
                let text = if status.message.is_empty() { status.reason.clone() } else { status.message.clone() };
                match status.code {
                    404 | 410 => Failure::NotFound(text),
                    // Kubernetes answers a failed JSON-patch test with 422; for the callers here both mean "changed".
                    409 => Failure::Conflict(text),
                    429 | 500.. => Failure::Unavailable(text),
                    _ => Failure::Refused(text),
                }
            }
            _ => Failure::Unavailable(error.to_string()),
        }
    }
}

/// Asks for metadata only.
const METADATA: http::HeaderValue =
    http::HeaderValue::from_static("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1");

/// Asks for a list of metadata only.
const METADATA_LIST: http::HeaderValue =
    http::HeaderValue::from_static("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
/// Objects of one answer while a list is read.
const PAGE: u32 = 500;

/// How an object is deleted.
#[derive(Clone, Copy, Debug, Default)]
pub enum Propagation {
    /// As the server likes.
    #[default]
    Default,
    /// Dependents first.
    Foreground,
    /// Dependents later.
    Background,
    /// Dependents stay.
    Orphan,
}

/// The Kubernetes API.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cluster")
    }
}

fn url(kind: Kind, namespace: &str, name: &str) -> String {
    let (root, plural) = kind.path();
    let mut url = format!("{root}/namespaces/{namespace}/{plural}");
    if !name.is_empty() {
        url.push('/');
        url.push_str(name);
    }
    url
}

fn request(method: Method, url: &str, content: &str, body: Vec<u8>) -> Result<Request<Vec<u8>>, Failure> {
    let builder = Request::builder().method(method).uri(url);
    let builder = if content.is_empty() { builder } else { builder.header(http::header::CONTENT_TYPE, content) };
    builder.body(body).map_err(|error| Failure::Refused(format!("bad object name: {error}")))
}

impl Cluster {
    /// On an existing client.
    #[must_use]
    pub fn new(client: kube::Client) -> Self {
        Cluster { client }
    }

    /// From the pod's service account, else from the kubeconfig.
    ///
    /// # Errors
    /// When there is neither.
    pub async fn infer() -> Result<Self> {
        let failed = |error: String| {
            Error::unavailable(
                "cannot find the Kubernetes API; run in a pod with a service account or point KUBECONFIG to a kubeconfig",
                error,
            )
        };
        let mut config = kube::Config::infer().await.map_err(|error| failed(error.to_string()))?;
        // The calls below decide for themselves what is worth repeating.
        config.default_retry = false;
        Ok(Cluster { client: kube::Client::try_from(config).map_err(|error| failed(error.to_string()))? })
    }

    async fn send(&self, request: Request<Vec<u8>>) -> Result<Value, Failure> {
        self.send_within(TIMEOUT, request).await
    }

    async fn send_within(&self, limit: Duration, request: Request<Vec<u8>>) -> Result<Value, Failure> {
        match tokio::time::timeout(limit, self.client.request::<Value>(request)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(Failure::Unavailable(format!("no answer from Kubernetes in {} s", limit.as_secs()))),
        }
    }

    /// Has Kubernetes fill in the `status` of a review, which is kept nowhere.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn review(&self, path: &str, review: &Value) -> Result<Value, Failure> {
        let body = review.to_string().into_bytes();
        self.send_within(REVIEW_TIMEOUT, request(Method::POST, path, "application/json", body)?).await
    }

    /// Creates an object and returns it as stored.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn create(&self, kind: Kind, namespace: &str, object: &Value) -> Result<Value, Failure> {
        let body = object.to_string().into_bytes();
        self.send(request(Method::POST, &url(kind, namespace, ""), "application/json", body)?).await
    }

    /// Reads an object.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn get(&self, kind: Kind, namespace: &str, name: &str) -> Result<Value, Failure> {
        self.send(request(Method::GET, &url(kind, namespace, name), "", Vec::new())?).await
    }

    /// Reads an object's metadata: `apiVersion`, `kind` and `metadata`, the former two of the partial form.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn metadata(&self, kind: Kind, namespace: &str, name: &str) -> Result<Value, Failure> {
        let mut request = request(Method::GET, &url(kind, namespace, name), "", Vec::new())?;
        request.headers_mut().insert(http::header::ACCEPT, METADATA);
        self.send(request).await
    }

    /// The values that a label has in a namespace's objects of this kind; only their metadata is read, page by page.
    ///
    /// # Errors
    /// See [`Failure`]; a kind that Kubernetes does not know is [`Failure::NotFound`].
    pub async fn labelled(&self, kind: Kind, namespace: &str, label: &str) -> Result<HashSet<String>, Failure> {
        let mut found = HashSet::new();
        let take = |items: Vec<Value>| {
            found.extend(items.iter().filter_map(|item| item["metadata"]["labels"][label].as_str().map(str::to_owned)));
        };
        self.pages(kind, Some(namespace), label, true, take).await?;
        Ok(found)
    }

    /// Reads all objects of one namespace, or of all, with a label if one is given; only their metadata if asked so.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        label: &str,
        metadata: bool,
    ) -> Result<Vec<Value>, Failure> {
        let mut all = Vec::new();
        self.pages(kind, namespace, label, metadata, |items| all.extend(items)).await?;
        Ok(all)
    }

    /// Hands the objects of a list to `take` as their pages come.
    async fn pages(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        label: &str,
        metadata: bool,
        mut take: impl FnMut(Vec<Value>),
    ) -> Result<(), Failure> {
        let (root, plural) = kind.path();
        let base = match namespace {
            Some(namespace) => url(kind, namespace, ""),
            None => format!("{root}/{plural}"),
        };
        let escape =
            |text: &str| percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string();
        let base = format!("{base}?limit={PAGE}&labelSelector={}", escape(label));
        let mut from = String::new();
        loop {
            let url = if from.is_empty() { base.clone() } else { format!("{base}&continue={}", escape(&from)) };
            let mut request = request(Method::GET, &url, "", Vec::new())?;
            if metadata {
                request.headers_mut().insert(http::header::ACCEPT, METADATA_LIST);
            }
            let mut page = self.send(request).await?;
            if let Value::Array(items) = page["items"].take() {
                take(items);
            }
            match page["metadata"]["continue"].as_str() {
                Some(next) if !next.is_empty() => next.clone_into(&mut from),
                _ => return Ok(()),
            }
        }
    }

    /// Replaces the status of an object; its `resourceVersion` must be current.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn replace_status(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        object: &Value,
    ) -> Result<Value, Failure> {
        let url = format!("{}/status", url(kind, namespace, name));
        self.send(request(Method::PUT, &url, "application/json", object.to_string().into_bytes())?).await
    }

    /// Replaces an object; its `resourceVersion` must be current.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn replace(&self, kind: Kind, namespace: &str, name: &str, object: &Value) -> Result<Value, Failure> {
        let body = object.to_string().into_bytes();
        self.send(request(Method::PUT, &url(kind, namespace, name), "application/json", body)?).await
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn delete(&self, kind: Kind, namespace: &str, name: &str, how: Propagation) -> Result<(), Failure> {
        let policy = match how {
            Propagation::Default => None,
            Propagation::Foreground => Some("Foreground"),
            Propagation::Background => Some("Background"),
            Propagation::Orphan => Some("Orphan"),
        };
        let mut body = json!({"apiVersion": "v1", "kind": "DeleteOptions"});
        if let Some(policy) = policy {
            body["propagationPolicy"] = json!(policy);
        }
        let body = body.to_string().into_bytes();
        self.send(request(Method::DELETE, &url(kind, namespace, name), "application/json", body)?).await.map(drop)
    }

    /// Merges `patch` into an object.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn merge(&self, kind: Kind, namespace: &str, name: &str, patch: &Value) -> Result<Value, Failure> {
        let body = patch.to_string().into_bytes();
        let content = "application/merge-patch+json";
        self.send(request(Method::PATCH, &url(kind, namespace, name), content, body)?).await
    }

    /// [`Cluster::merge`], repeated with growing pauses while Kubernetes is unavailable or the object changes.
    ///
    /// # Errors
    /// The last failure.
    pub async fn merge_surely(&self, kind: Kind, namespace: &str, name: &str, patch: &Value) -> Result<(), Failure> {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            match self.merge(kind, namespace, name, patch).await {
                Err(Failure::Unavailable(_) | Failure::Conflict(_)) if attempt < ATTEMPTS => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_PAUSE);
                    attempt += 1;
                }
                other => return other.map(drop),
            }
        }
    }

    /// Applies a JSON patch whose tests may fail, which is a [`Failure::Conflict`]. Returns the metadata.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn patch(&self, kind: Kind, namespace: &str, name: &str, patch: &Value) -> Result<Value, Failure> {
        let body = patch.to_string().into_bytes();
        let content = "application/json-patch+json";
        let mut request = request(Method::PATCH, &url(kind, namespace, name), content, body)?;
        request.headers_mut().insert(http::header::ACCEPT, METADATA);
        match self.send(request).await {
            Err(Failure::Refused(text)) => Err(Failure::Conflict(text)),
            other => other,
        }
    }

    /// Log of a pod's container, as it comes.
    ///
    /// # Errors
    /// When the pod or its log is not there.
    pub async fn log(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        follow: bool,
    ) -> Result<impl futures::AsyncBufRead + Unpin + Send + use<>, Failure> {
        let url = format!("{}/log?container={container}&follow={follow}", url(Kind::Pod, namespace, pod));
        let request = request(Method::GET, &url, "", Vec::new())?;
        match tokio::time::timeout(TIMEOUT, self.client.request_stream(request)).await {
            Ok(answer) => Ok(Box::pin(answer?)),
            Err(_) => Err(Failure::Unavailable(format!("no answer from Kubernetes in {} s", TIMEOUT.as_secs()))),
        }
    }
}
