//! Kubernetes events that tell users of `kubectl describe` what the controller did.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use kube::core::DynamicObject;

const COMPONENT: &str = "scheduled-workflow-controller";
const TIMEOUT: Duration = Duration::from_secs(10);

/// What an event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A run was started.
    Synced,
    /// Something went wrong.
    Failed,
}

/// Writes an event about `object`. Events are a courtesy: a failure is only logged.
pub async fn publish(client: &Client, object: &DynamicObject, kind: Kind, message: String) {
    let meta = &object.metadata;
    let namespace = meta.namespace.clone().unwrap_or_default();
    let (reason, type_) = match kind {
        Kind::Synced => ("Synced", "Normal"),
        Kind::Failed => ("Failed", "Warning"),
    };
    let now = Time(Timestamp::now());
    let event = Event {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}.", meta.name.as_deref().unwrap_or_default())),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("kubeflow.org/v1beta1".to_owned()),
            kind: Some("ScheduledWorkflow".to_owned()),
            name: meta.name.clone(),
            namespace: meta.namespace.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            ..ObjectReference::default()
        },
        reason: Some(reason.to_owned()),
        type_: Some(type_.to_owned()),
        message: Some(message),
        source: Some(EventSource { component: Some(COMPONENT.to_owned()), ..EventSource::default() }),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        count: Some(1),
        ..Event::default()
    };
    let api = Api::<Event>::namespaced(client.clone(), &namespace);
    match tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &event)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!("cannot write an event: {error}"),
        Err(_) => tracing::debug!("cannot write an event: no answer"),
    }
}
