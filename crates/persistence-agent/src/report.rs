//! One report: an object as JSON to the API server, and what its answer means.

use kfp_core::token::Token;
use kfp_proto::api::report_service_client::ReportServiceClient;
use kfp_proto::api::{ReportScheduledWorkflowRequest, ReportWorkflowRequest};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::queue::Outcome;

/// The kinds of objects that are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Argo's Workflow.
    Workflow,
    /// The ScheduledWorkflow of recurring runs.
    ScheduledWorkflow,
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

    /// Reports the JSON of one object. A rejected token is read again and the report repeated once.
    pub async fn report(&self, kind: Kind, name: &str, json: String) -> Outcome {
        let mut result = self.send(kind, json.clone()).await;
        if result.as_ref().is_err_and(|status| status.code() == Code::Unauthenticated) {
            self.token.refresh();
            result = self.send(kind, json).await;
        }
        match result {
            Ok(()) => {
                tracing::debug!(?kind, name, "reported");
                Outcome::Stored
            }
            Err(status) if permanent(status.code()) => {
                tracing::debug!(?kind, name, code = ?status.code(), "not reported: {}", status.message());
                Outcome::Refused
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
