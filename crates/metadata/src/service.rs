//! The gRPC service: every RPC is one transaction.

use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_metadata::metadata_store_service_server::MetadataStoreService;
use tonic::{Request, Response, Status};

use crate::database::{Call, Database};
use crate::failure::Outcome;
use crate::{calls, lineage, publish};

/// The service over a database.
#[derive(Clone, Debug)]
pub struct Service {
    database: Database,
}

impl Service {
    /// A service; the database must be prepared.
    #[must_use]
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    async fn write<T: Send + 'static>(&self, name: &'static str, call: Call<T>) -> Result<Response<T>, Status> {
        finish(name, self.database.write(call).await)
    }

    async fn read<T: Send + 'static>(&self, name: &'static str, call: Call<T>) -> Result<Response<T>, Status> {
        finish(name, self.database.read(call).await)
    }
}

fn finish<T>(name: &'static str, outcome: Outcome<T>) -> Result<Response<T>, Status> {
    match outcome {
        Ok(answer) => Ok(Response::new(answer)),
        Err(failure) => {
            if matches!(failure.code, tonic::Code::Internal | tonic::Code::Unavailable) {
                tracing::error!(call = name, code = ?failure.code, "{failure}");
            } else {
                tracing::debug!(call = name, code = ?failure.code, "{failure}");
            }
            Err(failure.into())
        }
    }
}

macro_rules! calls {
    ($($mode:ident $name:ident($request:ident) -> $response:ident = $call:path;)*) => {
        #[tonic::async_trait]
        impl MetadataStoreService for Service {
            $(
                async fn $name(&self, request: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                    let request = request.into_inner();
                    self.$mode(stringify!($name), Box::new(move |tx| Box::pin($call(tx, request.clone())))).await
                }
            )*

            async fn get_lineage_graph(
                &self,
                _: Request<pb::GetLineageGraphRequest>,
            ) -> Result<Response<pb::GetLineageGraphResponse>, Status> {
                // Upstream's server answers the same.
                Err(Status::unimplemented("GetLineageGraph is not implemented."))
            }
        }
    };
}

calls! {
    write put_artifact_type(PutArtifactTypeRequest) -> PutArtifactTypeResponse = calls::put_artifact_type;
    write put_execution_type(PutExecutionTypeRequest) -> PutExecutionTypeResponse = calls::put_execution_type;
    write put_context_type(PutContextTypeRequest) -> PutContextTypeResponse = calls::put_context_type;
    write put_types(PutTypesRequest) -> PutTypesResponse = calls::put_types;
    write put_artifacts(PutArtifactsRequest) -> PutArtifactsResponse = calls::put_artifacts;
    write put_executions(PutExecutionsRequest) -> PutExecutionsResponse = calls::put_executions;
    write put_events(PutEventsRequest) -> PutEventsResponse = calls::put_events;
    write put_execution(PutExecutionRequest) -> PutExecutionResponse = publish::put_execution;
    write put_lineage_subgraph(PutLineageSubgraphRequest) -> PutLineageSubgraphResponse = publish::put_subgraph;
    write put_contexts(PutContextsRequest) -> PutContextsResponse = calls::put_contexts;
    write put_attributions_and_associations(PutAttributionsAndAssociationsRequest) -> PutAttributionsAndAssociationsResponse = calls::put_attributions_and_associations;
    write put_parent_contexts(PutParentContextsRequest) -> PutParentContextsResponse = calls::put_parent_contexts;
    read get_artifact_type(GetArtifactTypeRequest) -> GetArtifactTypeResponse = calls::get_artifact_type;
    read get_artifact_types_by_id(GetArtifactTypesByIdRequest) -> GetArtifactTypesByIdResponse = calls::get_artifact_types_by_id;
    read get_artifact_types(GetArtifactTypesRequest) -> GetArtifactTypesResponse = calls::get_artifact_types;
    read get_execution_type(GetExecutionTypeRequest) -> GetExecutionTypeResponse = calls::get_execution_type;
    read get_execution_types_by_id(GetExecutionTypesByIdRequest) -> GetExecutionTypesByIdResponse = calls::get_execution_types_by_id;
    read get_execution_types(GetExecutionTypesRequest) -> GetExecutionTypesResponse = calls::get_execution_types;
    read get_context_type(GetContextTypeRequest) -> GetContextTypeResponse = calls::get_context_type;
    read get_context_types_by_id(GetContextTypesByIdRequest) -> GetContextTypesByIdResponse = calls::get_context_types_by_id;
    read get_context_types(GetContextTypesRequest) -> GetContextTypesResponse = calls::get_context_types;
    read get_artifacts(GetArtifactsRequest) -> GetArtifactsResponse = calls::get_artifacts;
    read get_executions(GetExecutionsRequest) -> GetExecutionsResponse = calls::get_executions;
    read get_contexts(GetContextsRequest) -> GetContextsResponse = calls::get_contexts;
    read get_artifacts_by_id(GetArtifactsByIdRequest) -> GetArtifactsByIdResponse = calls::get_artifacts_by_id;
    read get_executions_by_id(GetExecutionsByIdRequest) -> GetExecutionsByIdResponse = calls::get_executions_by_id;
    read get_contexts_by_id(GetContextsByIdRequest) -> GetContextsByIdResponse = calls::get_contexts_by_id;
    read get_artifacts_by_type(GetArtifactsByTypeRequest) -> GetArtifactsByTypeResponse = calls::get_artifacts_by_type;
    read get_executions_by_type(GetExecutionsByTypeRequest) -> GetExecutionsByTypeResponse = calls::get_executions_by_type;
    read get_contexts_by_type(GetContextsByTypeRequest) -> GetContextsByTypeResponse = calls::get_contexts_by_type;
    read get_artifact_by_type_and_name(GetArtifactByTypeAndNameRequest) -> GetArtifactByTypeAndNameResponse = calls::get_artifact_by_type_and_name;
    read get_execution_by_type_and_name(GetExecutionByTypeAndNameRequest) -> GetExecutionByTypeAndNameResponse = calls::get_execution_by_type_and_name;
    read get_context_by_type_and_name(GetContextByTypeAndNameRequest) -> GetContextByTypeAndNameResponse = calls::get_context_by_type_and_name;
    read get_artifacts_by_uri(GetArtifactsByUriRequest) -> GetArtifactsByUriResponse = calls::get_artifacts_by_uri;
    read get_events_by_execution_i_ds(GetEventsByExecutionIDsRequest) -> GetEventsByExecutionIDsResponse = calls::get_events_by_execution_ids;
    read get_events_by_artifact_i_ds(GetEventsByArtifactIDsRequest) -> GetEventsByArtifactIDsResponse = calls::get_events_by_artifact_ids;
    read get_artifacts_by_external_ids(GetArtifactsByExternalIdsRequest) -> GetArtifactsByExternalIdsResponse = calls::get_artifacts_by_external_ids;
    read get_executions_by_external_ids(GetExecutionsByExternalIdsRequest) -> GetExecutionsByExternalIdsResponse = calls::get_executions_by_external_ids;
    read get_contexts_by_external_ids(GetContextsByExternalIdsRequest) -> GetContextsByExternalIdsResponse = calls::get_contexts_by_external_ids;
    read get_artifact_types_by_external_ids(GetArtifactTypesByExternalIdsRequest) -> GetArtifactTypesByExternalIdsResponse = calls::get_artifact_types_by_external_ids;
    read get_execution_types_by_external_ids(GetExecutionTypesByExternalIdsRequest) -> GetExecutionTypesByExternalIdsResponse = calls::get_execution_types_by_external_ids;
    read get_context_types_by_external_ids(GetContextTypesByExternalIdsRequest) -> GetContextTypesByExternalIdsResponse = calls::get_context_types_by_external_ids;
    read get_contexts_by_artifact(GetContextsByArtifactRequest) -> GetContextsByArtifactResponse = calls::get_contexts_by_artifact;
    read get_contexts_by_execution(GetContextsByExecutionRequest) -> GetContextsByExecutionResponse = calls::get_contexts_by_execution;
    read get_parent_contexts_by_context(GetParentContextsByContextRequest) -> GetParentContextsByContextResponse = calls::get_parent_contexts_by_context;
    read get_children_contexts_by_context(GetChildrenContextsByContextRequest) -> GetChildrenContextsByContextResponse = calls::get_children_contexts_by_context;
    read get_parent_contexts_by_contexts(GetParentContextsByContextsRequest) -> GetParentContextsByContextsResponse = calls::get_parent_contexts_by_contexts;
    read get_children_contexts_by_contexts(GetChildrenContextsByContextsRequest) -> GetChildrenContextsByContextsResponse = calls::get_children_contexts_by_contexts;
    read get_artifacts_by_context(GetArtifactsByContextRequest) -> GetArtifactsByContextResponse = calls::get_artifacts_by_context;
    read get_executions_by_context(GetExecutionsByContextRequest) -> GetExecutionsByContextResponse = calls::get_executions_by_context;
    read get_lineage_subgraph(GetLineageSubgraphRequest) -> GetLineageSubgraphResponse = lineage::subgraph;
}
