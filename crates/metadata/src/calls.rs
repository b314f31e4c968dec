//! The calls that concern one kind of node or type, one function per RPC.

use kfp_proto::ml_metadata as pb;

use crate::database::Tx;
use crate::edges;
use crate::failure::{Failure, Outcome};
use crate::list::{self, Scope};
use crate::model::{Kind, Node, convert};
use crate::nodes::{self, Mask, PutOptions};
use crate::types::{self, Evolution, Type};

const MUST_MATCH: &str = "Must match all fields.";

/// The node of a type with a name; an unknown type or name gives none, not an error.
async fn by_type_and_name(
    tx: &mut Tx,
    kind: Kind,
    of: &str,
    version: Option<&str>,
    name: &str,
) -> Outcome<Option<Node>> {
    let Some(of) = types::find(tx, kind, of, version).await? else { return Ok(None) };
    match nodes::find_id(tx, kind, of.id, name).await? {
        Some(id) => Ok(nodes::by_id(tx, kind, &[id]).await?.pop()),
        None => Ok(None),
    }
}

async fn put_type(tx: &mut Tx, kind: Kind, given: Option<Type>, evolution: Evolution, all_match: bool) -> Outcome<i64> {
    if !all_match {
        return Err(Failure::unimplemented(MUST_MATCH));
    }
    types::put(tx, kind, given.unwrap_or_default(), evolution).await
}

async fn types_in_order(tx: &mut Tx, kind: Kind, ids: &[i64]) -> Outcome<Vec<Type>> {
    let found = types::by_id(tx, kind, ids).await?;
    Ok(ids.iter().filter_map(|id| found.get(id).cloned()).collect())
}

/// PutArtifactType.
#[allow(deprecated)] // all_fields_match still refuses.
pub async fn put_artifact_type(
    tx: &mut Tx,
    request: pb::PutArtifactTypeRequest,
) -> Outcome<pb::PutArtifactTypeResponse> {
    let evolution = Evolution { can_add: request.can_add_fields(), can_omit: request.can_omit_fields() };
    let all = request.all_fields_match();
    let id = put_type(tx, Kind::Artifact, request.artifact_type.map(Type::from), evolution, all).await?;
    Ok(pb::PutArtifactTypeResponse { type_id: Some(id) })
}

/// GetArtifactType.
pub async fn get_artifact_type(
    tx: &mut Tx,
    request: pb::GetArtifactTypeRequest,
) -> Outcome<pb::GetArtifactTypeResponse> {
    let found = types::get(tx, Kind::Artifact, request.type_name(), request.type_version.as_deref()).await?;
    Ok(pb::GetArtifactTypeResponse { artifact_type: Some(found.into()) })
}

/// GetArtifactTypesByID.
pub async fn get_artifact_types_by_id(
    tx: &mut Tx,
    request: pb::GetArtifactTypesByIdRequest,
) -> Outcome<pb::GetArtifactTypesByIdResponse> {
    let found = types_in_order(tx, Kind::Artifact, &request.type_ids).await?;
    Ok(pb::GetArtifactTypesByIdResponse { artifact_types: convert(found) })
}

/// GetArtifactTypes.
pub async fn get_artifact_types(tx: &mut Tx, _: pb::GetArtifactTypesRequest) -> Outcome<pb::GetArtifactTypesResponse> {
    Ok(pb::GetArtifactTypesResponse { artifact_types: convert(types::all(tx, Kind::Artifact).await?) })
}

/// GetArtifactTypesByExternalIds.
pub async fn get_artifact_types_by_external_ids(
    tx: &mut Tx,
    request: pb::GetArtifactTypesByExternalIdsRequest,
) -> Outcome<pb::GetArtifactTypesByExternalIdsResponse> {
    let found = types::by_external_id(tx, Kind::Artifact, &request.external_ids).await?;
    Ok(pb::GetArtifactTypesByExternalIdsResponse { artifact_types: convert(found) })
}

/// PutArtifacts.
pub async fn put_artifacts(tx: &mut Tx, request: pb::PutArtifactsRequest) -> Outcome<pb::PutArtifactsResponse> {
    let options = PutOptions {
        mask: Mask::new(request.update_mask),
        abort_if_changed: request.options.unwrap_or_default().abort_if_latest_updated_time_changed(),
        ..PutOptions::default()
    };
    let artifact_ids = nodes::put(tx, Kind::Artifact, &convert::<_, Node>(request.artifacts), &options).await?;
    Ok(pb::PutArtifactsResponse { artifact_ids })
}

/// GetArtifacts.
pub async fn get_artifacts(tx: &mut Tx, request: pb::GetArtifactsRequest) -> Outcome<pb::GetArtifactsResponse> {
    let page = list::list(tx, Kind::Artifact, Scope::All, request.options.as_ref()).await?;
    Ok(pb::GetArtifactsResponse { next_page_token: page.token(), artifacts: convert(page.nodes) })
}

/// GetArtifactsByType.
pub async fn get_artifacts_by_type(
    tx: &mut Tx,
    request: pb::GetArtifactsByTypeRequest,
) -> Outcome<pb::GetArtifactsByTypeResponse> {
    let found = types::find(tx, Kind::Artifact, request.type_name(), request.type_version.as_deref()).await?;
    let Some(found) = found else { return Ok(pb::GetArtifactsByTypeResponse::default()) };
    let page = list::list(tx, Kind::Artifact, Scope::OfType(found.id), request.options.as_ref()).await?;
    Ok(pb::GetArtifactsByTypeResponse { next_page_token: page.token(), artifacts: convert(page.nodes) })
}

/// GetArtifactByTypeAndName.
pub async fn get_artifact_by_type_and_name(
    tx: &mut Tx,
    request: pb::GetArtifactByTypeAndNameRequest,
) -> Outcome<pb::GetArtifactByTypeAndNameResponse> {
    let (of, version) = (request.type_name(), request.type_version.as_deref());
    let found = by_type_and_name(tx, Kind::Artifact, of, version, request.artifact_name()).await?;
    Ok(pb::GetArtifactByTypeAndNameResponse { artifact: found.map(Into::into) })
}

/// GetArtifactsByExternalIds.
pub async fn get_artifacts_by_external_ids(
    tx: &mut Tx,
    request: pb::GetArtifactsByExternalIdsRequest,
) -> Outcome<pb::GetArtifactsByExternalIdsResponse> {
    let found = nodes::by_external_id(tx, Kind::Artifact, &request.external_ids).await?;
    Ok(pb::GetArtifactsByExternalIdsResponse { artifacts: convert(found) })
}

/// GetArtifactsByID.
pub async fn get_artifacts_by_id(
    tx: &mut Tx,
    request: pb::GetArtifactsByIdRequest,
) -> Outcome<pb::GetArtifactsByIdResponse> {
    let found = nodes::by_id(tx, Kind::Artifact, &request.artifact_ids).await?;
    let mut response = pb::GetArtifactsByIdResponse::default();
    if request.populate_artifact_types() {
        let ids: Vec<i64> = found.iter().filter_map(|node| node.type_id).collect();
        let found = types::by_id(tx, Kind::Artifact, &ids).await?;
        response.artifact_types = convert(found.into_values().collect());
    }
    response.artifacts = convert(found);
    Ok(response)
}

/// GetArtifactsByURI.
pub async fn get_artifacts_by_uri(
    tx: &mut Tx,
    request: pb::GetArtifactsByUriRequest,
) -> Outcome<pb::GetArtifactsByUriResponse> {
    let mut found = Vec::new();
    for (list, params) in crate::database::text_lists(&request.uris) {
        let set = format!("(SELECT `id` FROM `Artifact` WHERE `uri` IN {list})");
        found.extend(nodes::select(tx, Kind::Artifact, &set, params).await?);
    }
    Ok(pb::GetArtifactsByUriResponse { artifacts: convert(found) })
}

/// GetContextsByArtifact. Unlike other calls it answers NOT_FOUND when there are none; clients rely on it.
pub async fn get_contexts_by_artifact(
    tx: &mut Tx,
    request: pb::GetContextsByArtifactRequest,
) -> Outcome<pb::GetContextsByArtifactResponse> {
    let id = request.artifact_id();
    let found = nodes::linked(tx, Kind::Context, "Attribution", "context_id", "artifact_id", id).await?;
    if found.is_empty() {
        return Err(Failure::not_found(format!("No contexts found for artifact_id: {id}")));
    }
    Ok(pb::GetContextsByArtifactResponse { contexts: convert(found) })
}

/// GetArtifactsByContext.
pub async fn get_artifacts_by_context(
    tx: &mut Tx,
    request: pb::GetArtifactsByContextRequest,
) -> Outcome<pb::GetArtifactsByContextResponse> {
    let scope = Scope::InContext(request.context_id());
    let page = list::list(tx, Kind::Artifact, scope, request.options.as_ref()).await?;
    Ok(pb::GetArtifactsByContextResponse { next_page_token: page.token(), artifacts: convert(page.nodes) })
}

/// GetEventsByArtifactIDs.
pub async fn get_events_by_artifact_ids(
    tx: &mut Tx,
    request: pb::GetEventsByArtifactIDsRequest,
) -> Outcome<pb::GetEventsByArtifactIDsResponse> {
    Ok(pb::GetEventsByArtifactIDsResponse { events: edges::events(tx, Kind::Artifact, &request.artifact_ids).await? })
}

/// PutExecutionType.
#[allow(deprecated)] // all_fields_match still refuses.
pub async fn put_execution_type(
    tx: &mut Tx,
    request: pb::PutExecutionTypeRequest,
) -> Outcome<pb::PutExecutionTypeResponse> {
    let evolution = Evolution { can_add: request.can_add_fields(), can_omit: request.can_omit_fields() };
    let all = request.all_fields_match();
    let id = put_type(tx, Kind::Execution, request.execution_type.map(Type::from), evolution, all).await?;
    Ok(pb::PutExecutionTypeResponse { type_id: Some(id) })
}

/// GetExecutionType.
pub async fn get_execution_type(
    tx: &mut Tx,
    request: pb::GetExecutionTypeRequest,
) -> Outcome<pb::GetExecutionTypeResponse> {
    let found = types::get(tx, Kind::Execution, request.type_name(), request.type_version.as_deref()).await?;
    Ok(pb::GetExecutionTypeResponse { execution_type: Some(found.into()) })
}

/// GetExecutionTypesByID.
pub async fn get_execution_types_by_id(
    tx: &mut Tx,
    request: pb::GetExecutionTypesByIdRequest,
) -> Outcome<pb::GetExecutionTypesByIdResponse> {
    let found = types_in_order(tx, Kind::Execution, &request.type_ids).await?;
    Ok(pb::GetExecutionTypesByIdResponse { execution_types: convert(found) })
}

/// GetExecutionTypes.
pub async fn get_execution_types(
    tx: &mut Tx,
    _: pb::GetExecutionTypesRequest,
) -> Outcome<pb::GetExecutionTypesResponse> {
    Ok(pb::GetExecutionTypesResponse { execution_types: convert(types::all(tx, Kind::Execution).await?) })
}

/// GetExecutionTypesByExternalIds.
pub async fn get_execution_types_by_external_ids(
    tx: &mut Tx,
    request: pb::GetExecutionTypesByExternalIdsRequest,
) -> Outcome<pb::GetExecutionTypesByExternalIdsResponse> {
    let found = types::by_external_id(tx, Kind::Execution, &request.external_ids).await?;
    Ok(pb::GetExecutionTypesByExternalIdsResponse { execution_types: convert(found) })
}

/// PutExecutions.
pub async fn put_executions(tx: &mut Tx, request: pb::PutExecutionsRequest) -> Outcome<pb::PutExecutionsResponse> {
    let options = PutOptions { mask: Mask::new(request.update_mask), ..PutOptions::default() };
    let execution_ids = nodes::put(tx, Kind::Execution, &convert::<_, Node>(request.executions), &options).await?;
    Ok(pb::PutExecutionsResponse { execution_ids })
}

/// GetExecutions.
pub async fn get_executions(tx: &mut Tx, request: pb::GetExecutionsRequest) -> Outcome<pb::GetExecutionsResponse> {
    let page = list::list(tx, Kind::Execution, Scope::All, request.options.as_ref()).await?;
    Ok(pb::GetExecutionsResponse { next_page_token: page.token(), executions: convert(page.nodes) })
}

/// GetExecutionsByType.
pub async fn get_executions_by_type(
    tx: &mut Tx,
    request: pb::GetExecutionsByTypeRequest,
) -> Outcome<pb::GetExecutionsByTypeResponse> {
    let found = types::find(tx, Kind::Execution, request.type_name(), request.type_version.as_deref()).await?;
    let Some(found) = found else { return Ok(pb::GetExecutionsByTypeResponse::default()) };
    let page = list::list(tx, Kind::Execution, Scope::OfType(found.id), request.options.as_ref()).await?;
    Ok(pb::GetExecutionsByTypeResponse { next_page_token: page.token(), executions: convert(page.nodes) })
}

/// GetExecutionByTypeAndName.
pub async fn get_execution_by_type_and_name(
    tx: &mut Tx,
    request: pb::GetExecutionByTypeAndNameRequest,
) -> Outcome<pb::GetExecutionByTypeAndNameResponse> {
    let (of, version) = (request.type_name(), request.type_version.as_deref());
    let found = by_type_and_name(tx, Kind::Execution, of, version, request.execution_name()).await?;
    Ok(pb::GetExecutionByTypeAndNameResponse { execution: found.map(Into::into) })
}

/// GetExecutionsByExternalIds.
pub async fn get_executions_by_external_ids(
    tx: &mut Tx,
    request: pb::GetExecutionsByExternalIdsRequest,
) -> Outcome<pb::GetExecutionsByExternalIdsResponse> {
    let found = nodes::by_external_id(tx, Kind::Execution, &request.external_ids).await?;
    Ok(pb::GetExecutionsByExternalIdsResponse { executions: convert(found) })
}

/// GetExecutionsByID.
pub async fn get_executions_by_id(
    tx: &mut Tx,
    request: pb::GetExecutionsByIdRequest,
) -> Outcome<pb::GetExecutionsByIdResponse> {
    let found = nodes::by_id(tx, Kind::Execution, &request.execution_ids).await?;
    Ok(pb::GetExecutionsByIdResponse { executions: convert(found) })
}

/// GetContextsByExecution. Unlike other calls it answers NOT_FOUND when there are none; clients rely on it.
pub async fn get_contexts_by_execution(
    tx: &mut Tx,
    request: pb::GetContextsByExecutionRequest,
) -> Outcome<pb::GetContextsByExecutionResponse> {
    let id = request.execution_id();
    let found = nodes::linked(tx, Kind::Context, "Association", "context_id", "execution_id", id).await?;
    if found.is_empty() {
        return Err(Failure::not_found(format!("No contexts found for execution_id: {id}")));
    }
    Ok(pb::GetContextsByExecutionResponse { contexts: convert(found) })
}

/// GetExecutionsByContext.
pub async fn get_executions_by_context(
    tx: &mut Tx,
    request: pb::GetExecutionsByContextRequest,
) -> Outcome<pb::GetExecutionsByContextResponse> {
    let scope = Scope::InContext(request.context_id());
    let page = list::list(tx, Kind::Execution, scope, request.options.as_ref()).await?;
    Ok(pb::GetExecutionsByContextResponse {
        next_page_token: page.token(),
        executions: convert(page.nodes),
        transaction_options: None,
    })
}

/// GetEventsByExecutionIDs.
pub async fn get_events_by_execution_ids(
    tx: &mut Tx,
    request: pb::GetEventsByExecutionIDsRequest,
) -> Outcome<pb::GetEventsByExecutionIDsResponse> {
    Ok(pb::GetEventsByExecutionIDsResponse {
        events: edges::events(tx, Kind::Execution, &request.execution_ids).await?,
    })
}

/// PutContextType.
#[allow(deprecated)] // all_fields_match still refuses.
pub async fn put_context_type(tx: &mut Tx, request: pb::PutContextTypeRequest) -> Outcome<pb::PutContextTypeResponse> {
    let evolution = Evolution { can_add: request.can_add_fields(), can_omit: request.can_omit_fields() };
    let all = request.all_fields_match();
    let id = put_type(tx, Kind::Context, request.context_type.map(Type::from), evolution, all).await?;
    Ok(pb::PutContextTypeResponse { type_id: Some(id) })
}

/// GetContextType.
pub async fn get_context_type(tx: &mut Tx, request: pb::GetContextTypeRequest) -> Outcome<pb::GetContextTypeResponse> {
    let found = types::get(tx, Kind::Context, request.type_name(), request.type_version.as_deref()).await?;
    Ok(pb::GetContextTypeResponse { context_type: Some(found.into()) })
}

/// GetContextTypesByID.
pub async fn get_context_types_by_id(
    tx: &mut Tx,
    request: pb::GetContextTypesByIdRequest,
) -> Outcome<pb::GetContextTypesByIdResponse> {
    let found = types_in_order(tx, Kind::Context, &request.type_ids).await?;
    Ok(pb::GetContextTypesByIdResponse { context_types: convert(found) })
}

/// GetContextTypes.
pub async fn get_context_types(tx: &mut Tx, _: pb::GetContextTypesRequest) -> Outcome<pb::GetContextTypesResponse> {
    Ok(pb::GetContextTypesResponse { context_types: convert(types::all(tx, Kind::Context).await?) })
}

/// GetContextTypesByExternalIds.
pub async fn get_context_types_by_external_ids(
    tx: &mut Tx,
    request: pb::GetContextTypesByExternalIdsRequest,
) -> Outcome<pb::GetContextTypesByExternalIdsResponse> {
    let found = types::by_external_id(tx, Kind::Context, &request.external_ids).await?;
    Ok(pb::GetContextTypesByExternalIdsResponse { context_types: convert(found) })
}

/// PutContexts.
pub async fn put_contexts(tx: &mut Tx, request: pb::PutContextsRequest) -> Outcome<pb::PutContextsResponse> {
    let options = PutOptions { mask: Mask::new(request.update_mask), ..PutOptions::default() };
    let context_ids = nodes::put(tx, Kind::Context, &convert::<_, Node>(request.contexts), &options).await?;
    Ok(pb::PutContextsResponse { context_ids })
}

/// GetContexts.
pub async fn get_contexts(tx: &mut Tx, request: pb::GetContextsRequest) -> Outcome<pb::GetContextsResponse> {
    let page = list::list(tx, Kind::Context, Scope::All, request.options.as_ref()).await?;
    Ok(pb::GetContextsResponse { next_page_token: page.token(), contexts: convert(page.nodes) })
}

/// GetContextsByType.
pub async fn get_contexts_by_type(
    tx: &mut Tx,
    request: pb::GetContextsByTypeRequest,
) -> Outcome<pb::GetContextsByTypeResponse> {
    let found = types::find(tx, Kind::Context, request.type_name(), request.type_version.as_deref()).await?;
    let Some(found) = found else { return Ok(pb::GetContextsByTypeResponse::default()) };
    let page = list::list(tx, Kind::Context, Scope::OfType(found.id), request.options.as_ref()).await?;
    Ok(pb::GetContextsByTypeResponse { next_page_token: page.token(), contexts: convert(page.nodes) })
}

/// GetContextByTypeAndName.
pub async fn get_context_by_type_and_name(
    tx: &mut Tx,
    request: pb::GetContextByTypeAndNameRequest,
) -> Outcome<pb::GetContextByTypeAndNameResponse> {
    let (of, version) = (request.type_name(), request.type_version.as_deref());
    let found = by_type_and_name(tx, Kind::Context, of, version, request.context_name()).await?;
    Ok(pb::GetContextByTypeAndNameResponse { context: found.map(Into::into) })
}

/// GetContextsByExternalIds.
pub async fn get_contexts_by_external_ids(
    tx: &mut Tx,
    request: pb::GetContextsByExternalIdsRequest,
) -> Outcome<pb::GetContextsByExternalIdsResponse> {
    let found = nodes::by_external_id(tx, Kind::Context, &request.external_ids).await?;
    Ok(pb::GetContextsByExternalIdsResponse { contexts: convert(found) })
}

/// GetContextsByID.
pub async fn get_contexts_by_id(
    tx: &mut Tx,
    request: pb::GetContextsByIdRequest,
) -> Outcome<pb::GetContextsByIdResponse> {
    let found = nodes::by_id(tx, Kind::Context, &request.context_ids).await?;
    Ok(pb::GetContextsByIdResponse { contexts: convert(found) })
}

/// PutTypes.
#[allow(deprecated)] // all_fields_match still refuses.
pub async fn put_types(tx: &mut Tx, request: pb::PutTypesRequest) -> Outcome<pb::PutTypesResponse> {
    if !request.all_fields_match() {
        return Err(Failure::unimplemented(MUST_MATCH));
    }
    let evolution = Evolution { can_add: request.can_add_fields(), can_omit: request.can_omit_fields() };
    let mut response = pb::PutTypesResponse::default();
    for given in request.artifact_types {
        response.artifact_type_ids.push(types::put(tx, Kind::Artifact, given.into(), evolution).await?);
    }
    for given in request.execution_types {
        response.execution_type_ids.push(types::put(tx, Kind::Execution, given.into(), evolution).await?);
    }
    for given in request.context_types {
        response.context_type_ids.push(types::put(tx, Kind::Context, given.into(), evolution).await?);
    }
    Ok(response)
}

/// PutEvents.
pub async fn put_events(tx: &mut Tx, request: pb::PutEventsRequest) -> Outcome<pb::PutEventsResponse> {
    edges::put_events(tx, &request.events).await?;
    Ok(pb::PutEventsResponse {})
}

/// PutAttributionsAndAssociations.
pub async fn put_attributions_and_associations(
    tx: &mut Tx,
    request: pb::PutAttributionsAndAssociationsRequest,
) -> Outcome<pb::PutAttributionsAndAssociationsResponse> {
    let attributions = request.attributions.iter().map(|link| (link.context_id, link.artifact_id));
    edges::put_links(tx, Kind::Artifact, &attributions.collect::<Vec<_>>()).await?;
    let associations = request.associations.iter().map(|link| (link.context_id, link.execution_id));
    edges::put_links(tx, Kind::Execution, &associations.collect::<Vec<_>>()).await?;
    Ok(pb::PutAttributionsAndAssociationsResponse {})
}

/// PutParentContexts.
pub async fn put_parent_contexts(
    tx: &mut Tx,
    request: pb::PutParentContextsRequest,
) -> Outcome<pb::PutParentContextsResponse> {
    for link in &request.parent_contexts {
        edges::put_parent(tx, link).await?;
    }
    Ok(pb::PutParentContextsResponse {})
}

/// GetParentContextsByContext.
pub async fn get_parent_contexts_by_context(
    tx: &mut Tx,
    request: pb::GetParentContextsByContextRequest,
) -> Outcome<pb::GetParentContextsByContextResponse> {
    let mut found = edges::relatives(tx, &[request.context_id()], true).await?;
    let contexts = convert(found.remove(&request.context_id()).unwrap_or_default());
    Ok(pb::GetParentContextsByContextResponse { contexts })
}

/// GetChildrenContextsByContext.
pub async fn get_children_contexts_by_context(
    tx: &mut Tx,
    request: pb::GetChildrenContextsByContextRequest,
) -> Outcome<pb::GetChildrenContextsByContextResponse> {
    let mut found = edges::relatives(tx, &[request.context_id()], false).await?;
    let contexts = convert(found.remove(&request.context_id()).unwrap_or_default());
    Ok(pb::GetChildrenContextsByContextResponse { contexts })
}

const NO_CONTEXTS: &str = "Given context_ids is empty.";

/// GetParentContextsByContexts.
pub async fn get_parent_contexts_by_contexts(
    tx: &mut Tx,
    request: pb::GetParentContextsByContextsRequest,
) -> Outcome<pb::GetParentContextsByContextsResponse> {
    use pb::get_parent_contexts_by_contexts_response::ParentContextsPerChild;
    if request.context_ids.is_empty() {
        return Err(Failure::invalid(NO_CONTEXTS));
    }
    let found = edges::relatives(tx, &request.context_ids, true).await?;
    let entry = |(id, found)| (id, ParentContextsPerChild { parent_contexts: convert(found) });
    Ok(pb::GetParentContextsByContextsResponse { contexts: found.into_iter().map(entry).collect() })
}

/// GetChildrenContextsByContexts.
pub async fn get_children_contexts_by_contexts(
    tx: &mut Tx,
    request: pb::GetChildrenContextsByContextsRequest,
) -> Outcome<pb::GetChildrenContextsByContextsResponse> {
    use pb::get_children_contexts_by_contexts_response::ChildrenContextsPerParent;
    if request.context_ids.is_empty() {
        return Err(Failure::invalid(NO_CONTEXTS));
    }
    let found = edges::relatives(tx, &request.context_ids, false).await?;
    let entry = |(id, found)| (id, ChildrenContextsPerParent { children_contexts: convert(found) });
    Ok(pb::GetChildrenContextsByContextsResponse { contexts: found.into_iter().map(entry).collect() })
}
