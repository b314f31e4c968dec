//! The v1beta1 services, named but not built yet: every call answers UNIMPLEMENTED. Reports are the exception, because
//! upstream's persistence agent speaks v1beta1, and authorization, which single-user mode always grants.

use kfp_proto::api;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;

use super::{Answer, answer, reports};
use api::{
    auth_service_server::AuthService, experiment_service_server::ExperimentService, job_service_server::JobService,
    pipeline_service_server::PipelineService, report_service_server::ReportService, run_service_server::RunService,
    visualization_service_server::VisualizationService,
};

/// Serves the names.
#[derive(Clone, Copy, Debug)]
pub struct Unbuilt;

impl ExperimentService for Unbuilt {}
impl JobService for Unbuilt {}
impl PipelineService for Unbuilt {}
impl RunService for Unbuilt {}
impl VisualizationService for Unbuilt {}

#[tonic::async_trait]
impl AuthService for Unbuilt {
    async fn authorize_v1(&self, _request: tonic::Request<api::AuthorizeRequest>) -> Answer<()> {
        Ok(tonic::Response::new(()))
    }
}

/// Upstream declares it and serves only the one of v1beta1.
#[tonic::async_trait]
impl v2::auth_service_server::AuthService for Unbuilt {
    async fn authorize(&self, _request: tonic::Request<v2::AuthorizeRequest>) -> Answer<()> {
        Ok(tonic::Response::new(()))
    }
}

#[tonic::async_trait]
impl ReportService for reports::Service {
    async fn report_workflow_v1(&self, request: tonic::Request<api::ReportWorkflowRequest>) -> Answer<()> {
        answer(self.workflow(&request.get_ref().workflow).await)
    }

    async fn report_scheduled_workflow_v1(
        &self,
        request: tonic::Request<api::ReportScheduledWorkflowRequest>,
    ) -> Answer<()> {
        answer(self.schedule(&request.get_ref().scheduled_workflow).await)
    }
}
