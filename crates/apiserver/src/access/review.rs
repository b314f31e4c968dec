//! Asking Kubernetes.

use http::HeaderMap;
use serde_json::{Value, json};

use super::identity;
use super::rules::{PIPELINES, Right};
use super::target::{Attributes, Target, questions};
use crate::error::{Error, Result, Wrap as _};
use crate::services::Handle;
use crate::workflows::cluster::Failure;

const ACCESS_REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
const VERSION: &str = "v1beta1";

/// Whoever sends a request; asked for the name only when something depends on it.
#[derive(Debug)]
pub(super) struct Caller<'a> {
    app: &'a Handle,
    headers: &'a HeaderMap,
    name: Option<String>,
}

impl<'a> Caller<'a> {
    pub fn new(app: &'a Handle, headers: &'a HeaderMap) -> Self {
        Caller { app, headers, name: None }
    }

    /// The caller's name.
    ///
    /// # Errors
    /// Code 16 when there is none.
    pub async fn known(&mut self) -> Result<&str> {
        if self.name.is_none() {
            self.name = Some(identity::user(&self.app.access, &self.app.cluster, self.headers).await?);
        }
        Ok(self.name.as_deref().unwrap_or_default())
    }

    /// Whether the caller may do this.
    ///
    /// # Errors
    /// Code 7 when not, 16 when the caller is unknown, 14 and 13 when Kubernetes does not answer; those of [`questions`].
    pub async fn may(&mut self, right: Right, target: Target) -> Result<()> {
        if target == Target::AnyUser {
            self.known().await?;
        }
        for attributes in questions(self.app, right, target).await? {
            if self.app.access.shared_read && attributes.right.is_read() {
                continue;
            }
            let app = self.app;
            let user = self.known().await?;
            ask(app, user, &attributes).await.wrap(|| {
                format!(
                    "Failed to {} {} {}. Check if you have access to namespace {}",
                    attributes.right.verb, attributes.right.resource, attributes.name, attributes.namespace
                )
            })?;
        }
        Ok(())
    }
}

async fn ask(app: &Handle, user: &str, attributes: &Attributes) -> Result<()> {
    let Attributes { right, namespace, name } = attributes;
    let mut wanted = json!({
        "group": right.group, "version": VERSION, "resource": right.resource, "verb": right.verb,
    });
    for (key, value) in [("namespace", namespace), ("name", name)] {
        if !value.is_empty() {
            wanted[key] = json!(value);
        }
    }
    let shown = format!(
        "ResourceAttributes{{Namespace:{namespace},Verb:{},Group:{},Version:{VERSION},Resource:{},Subresource:,Name:{name}}}",
        right.verb, right.group, right.resource
    );
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": wanted},
    });
    let failed = format!("Failed to create SubjectAccessReview for user '{user}' (request: {shown})");
    let status = match app.cluster.review(ACCESS_REVIEWS, &review).await {
        Ok(mut answer) => answer["status"].take(),
        Err(failure @ Failure::Unavailable(_)) => {
            return Err(Error::unavailable(format!("{failed} - try again later"), failure));
        }
        Err(failure) => return Err(Error::internal(failed, failure)),
    };
    if status["allowed"] == Value::Bool(true) {
        return Ok(());
    }
    let reason = status["reason"].as_str().unwrap_or_default();
    Err(Error::permission_denied(
        format!("User '{user}' is not authorized with reason: {reason} (request: {shown})"),
        "Unauthorized access",
    ))
}

/// Whether whoever sent a request with these headers may do this; for what is served outside gRPC.
///
/// # Errors
/// See [`Caller::may`]. In single-user mode never.
pub async fn check(app: &Handle, headers: &HeaderMap, right: Right, target: Target) -> Result<()> {
    if !app.access.multi_user {
        return Ok(());
    }
    let mut caller = Caller::new(app, headers);
    let open = right.is_read() && (app.access.shared_read || right.resource == PIPELINES);
    if !open {
        caller.known().await?;
    }
    caller.may(right, target).await
}
