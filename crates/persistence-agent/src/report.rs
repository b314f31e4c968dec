//! One report: an object as JSON to the API server, and what its answer means.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kfp_proto::api::report_service_client::ReportServiceClient;
use kfp_proto::api::{ReportScheduledWorkflowRequest, ReportWorkflowRequest};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::Object;
use crate::queue::Outcome;

/// The kinds of objects that are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Argo's Workflow.
    Workflow,
    /// The ScheduledWorkflow of recurring runs.
    ScheduledWorkflow,
}

/// The projected token that identifies the agent; read again from time to time because the kubelet renews it.
#[derive(Clone)]
pub struct Token {
    path: PathBuf,
    value: Arc<Mutex<Option<MetadataValue<Ascii>>>>,
}

impl Token {
    /// A token at `path`; a missing file means that none is sent.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        let token = Self { path, value: Arc::default() };
        token.refresh();
        token
    }

    /// Reads the file again.
    pub fn refresh(&self) {
        let text = match std::fs::read_to_string(&self.path) {
            Ok(text) => text,
            Err(error) => {
                tracing::debug!(path = %self.path.display(), "no service account token: {error}");
                return;
            }
        };
        if let Ok(value) = format!("Bearer {}", text.trim()).parse() {
            *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        }
    }

    fn get(&self) -> Option<MetadataValue<Ascii>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Sends reports.
#[derive(Clone)]
pub struct Reporter {
    client: ReportServiceClient<Channel>,
    token: Token,
}

impl Reporter {
    /// Reports over `channel`, identified by `token`.
    #[must_use]
    pub fn new(channel: Channel, token: Token) -> Self {
        let client = ReportServiceClient::new(channel).max_encoding_message_size(usize::MAX);
        Self { client, token }
    }

    /// Reads the token file again.
    pub fn refresh_token(&self) {
        self.token.refresh();
    }

    /// Reports one object. A rejected token is read again and the report repeated once.
    pub async fn report(&self, kind: Kind, object: &Object) -> Outcome {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let mut result = self.send(kind, object.json().to_owned()).await;
        if result.as_ref().is_err_and(|status| status.code() == Code::Unauthenticated) {
            self.token.refresh();
            result = self.send(kind, object.json().to_owned()).await;
        }
        match result {
            Ok(()) => {
                tracing::debug!(?kind, name, "reported");
                Outcome::Settled
            }
            Err(status) if permanent(status.code()) => {
                tracing::debug!(?kind, name, code = ?status.code(), "not reported: {}", status.message());
                Outcome::Settled
            }
            Err(status) => {
                tracing::debug!(?kind, name, code = ?status.code(), "will report again: {}", status.message());
                Outcome::Retry
            }
        }
    }

    async fn send(&self, kind: Kind, text: String) -> Result<(), Status> {
        let mut client = self.client.clone();
        match kind {
            Kind::Workflow => {
                client.report_workflow_v1(self.request(ReportWorkflowRequest { workflow: text })).await?;
            }
            Kind::ScheduledWorkflow => {
                let message = ReportScheduledWorkflowRequest { scheduled_workflow: text };
                client.report_scheduled_workflow_v1(self.request(message)).await?;
            }
        }
        Ok(())
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = self.token.get() {
            request.metadata_mut().insert("authorization", token);
        }
        request
    }
}

/// Whether repeating the report cannot help. Upstream retries NotFound of ScheduledWorkflows for ever; an object that the
/// database does not know is reported again with its next change instead.
fn permanent(code: Code) -> bool {
    matches!(code, Code::InvalidArgument | Code::NotFound)
}
