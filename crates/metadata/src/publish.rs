//! The calls that write executions with their artifacts, events and contexts at once.

use kfp_proto::ml_metadata as pb;

use crate::database::Tx;
use crate::edges;
use crate::failure::{Failure, Outcome};
use crate::model::{Kind, Node, convert};
use crate::nodes::{self, PutOptions};

/// What to do with contexts that exist.
#[derive(Clone, Copy, Debug, Default)]
struct Reuse {
    /// A context without id may exist under its name and is then left as it is.
    by_name: bool,
    /// A context with id is left as it is.
    by_id: bool,
}

/// Puts artifacts; where asked for, those without id are the stored ones with the same external id.
async fn put_artifacts(tx: &mut Tx, artifacts: &mut [Node], reuse_by_external_id: bool) -> Outcome<Vec<i64>> {
    if !reuse_by_external_id {
        return nodes::put(tx, Kind::Artifact, artifacts, &PutOptions::default()).await;
    }
    for node in artifacts.iter_mut().filter(|node| node.id.is_none()) {
        let Some(external) = node.external_id.clone().filter(|id| !id.is_empty()) else { continue };
        let rows = tx.query("SELECT `id` FROM `Artifact` WHERE `external_id` = ?", vec![external.into()]).await?;
        node.id = rows.first().map(|row| row.int(0)).transpose()?;
    }
    let put = nodes::put(tx, Kind::Artifact, artifacts, &PutOptions::default()).await;
    put.map_err(Failure::looking_again)
}

async fn put_contexts(tx: &mut Tx, contexts: &[Node], reuse: Reuse) -> Outcome<Vec<i64>> {
    let complete = |node: &Node| node.id.is_some() && node.type_id.is_some() && node.name.is_some();
    if !reuse.by_id && contexts.iter().all(complete) {
        // What drivers and launchers send: one batch.
        return nodes::put(tx, Kind::Context, contexts, &PutOptions::default()).await;
    }
    let mut ids = Vec::with_capacity(contexts.len());
    for node in contexts {
        if let (Some(id), true) = (node.id, reuse.by_id) {
            if nodes::by_id(tx, Kind::Context, &[id]).await?.is_empty() {
                return Err(Failure::not_found(format!("Context with ID {id} was not found in MLMD")));
            }
            ids.push(id);
            continue;
        }
        let type_id =
            node.type_id.ok_or_else(|| Failure::invalid(format!("Context is missing a type_id: {}", node.label())))?;
        let name = node
            .name
            .as_deref()
            .ok_or_else(|| Failure::invalid(format!("Context is missing a name: {}", node.label())))?;
        let known = match (node.id, reuse.by_name) {
            (None, true) => nodes::find_id(tx, Kind::Context, type_id, name).await?,
            _ => None,
        };
        match known {
            Some(id) => ids.push(id),
            None => {
                let put = nodes::put(tx, Kind::Context, std::slice::from_ref(node), &PutOptions::default()).await;
                ids.extend(if reuse.by_name { put.map_err(Failure::looking_again)? } else { put? });
            }
        }
    }
    Ok(ids)
}

/// PutExecution.
///
/// # Errors
/// Those of the nodes, events and contexts; INVALID_ARGUMENT when the parts name different ids.
pub async fn put_execution(tx: &mut Tx, request: pb::PutExecutionRequest) -> Outcome<pb::PutExecutionResponse> {
    let Some(execution) = request.execution else { return Err(Failure::invalid("No execution is found")) };
    let options = request.options.unwrap_or_default();
    let (mut artifacts, mut places, mut events) = (Vec::new(), Vec::new(), Vec::new());
    for pair in request.artifact_event_pairs {
        places.push(pair.artifact.is_some());
        artifacts.extend(pair.artifact.map(Node::from));
        events.push(pair.event);
    }
    let put = put_artifacts(tx, &mut artifacts, options.reuse_artifact_if_already_exist_by_external_id()).await?;
    let put_options = PutOptions { force_update_time: options.force_update_time(), ..PutOptions::default() };
    let execution = [Node::from(execution)];
    let ids = nodes::put(tx, Kind::Execution, &execution, &put_options).await?;
    let Some(execution_id) = ids.first().copied() else { return Err(Failure::internal("no execution was written")) };
    let mut put = put.into_iter();
    let mut artifact_ids = Vec::with_capacity(places.len());
    for (has_artifact, event) in places.into_iter().zip(events) {
        let own = if has_artifact { put.next() } else { None };
        let Some(mut event) = event else {
            artifact_ids.push(own.unwrap_or(-1));
            continue;
        };
        if event.execution_id.is_some_and(|id| id != execution_id) {
            return Err(Failure::invalid(format!(
                "Request's event.execution_id does not match with the given execution {execution_id}"
            )));
        }
        event.execution_id = Some(execution_id);
        match (own, event.artifact_id) {
            (Some(own), Some(named)) if own != named => {
                return Err(Failure::invalid(format!(
                    "Given event.artifact_id {named} is not aligned with the artifact {own}"
                )));
            }
            (Some(own), _) => event.artifact_id = Some(own),
            (None, Some(_)) => {}
            (None, None) => {
                return Err(Failure::invalid("If no artifact is present, given event must have an artifact_id"));
            }
        }
        edges::insert_event(tx, &event).await?;
        artifact_ids.push(event.artifact_id());
    }
    let reuse = Reuse { by_name: options.reuse_context_if_already_exist(), by_id: options.force_reuse_context() };
    let context_ids = put_contexts(tx, &convert::<_, Node>(request.contexts), reuse).await?;
    edges::link(tx, Kind::Execution, &context_ids, &[execution_id]).await?;
    edges::link(tx, Kind::Artifact, &context_ids, &artifact_ids).await?;
    Ok(pb::PutExecutionResponse { execution_id: Some(execution_id), artifact_ids, context_ids })
}

/// The id that an edge means: of the node at `index`, or the one that the event names; both must agree.
fn edge_end(what: &str, index: Option<i32>, named: Option<i64>, given: &[Option<i64>], put: &[i64]) -> Outcome<i64> {
    let Some(index) = index else {
        return named.ok_or_else(|| {
            Failure::invalid(format!(
                "Event_edge is missing an {what}. Could not find either an {what}_index or an event.{what}_id"
            ))
        });
    };
    let at = usize::try_from(index).ok().filter(|at| *at < put.len()).ok_or_else(|| {
        Failure::out_of_range(format!(
            "The event_edge has an {what}_index {index} that is outside the bounds of the request's {what}s list, \
             [0, {})",
            put.len()
        ))
    })?;
    if let Some(named) = named
        && given.get(at).copied().flatten() != Some(named)
    {
        return Err(Failure::invalid(format!(
            "{what} ID mismatch: the {what} at {what}_index {index} does not have the event's {what}_id {named}"
        )));
    }
    Ok(put[at])
}

/// PutLineageSubgraph.
///
/// # Errors
/// Those of the nodes, events and contexts; OUT_OF_RANGE for an edge's index outside its list.
pub async fn put_subgraph(
    tx: &mut Tx,
    request: pb::PutLineageSubgraphRequest,
) -> Outcome<pb::PutLineageSubgraphResponse> {
    let options = request.options.unwrap_or_default();
    let contexts: Vec<Node> = convert(request.contexts);
    let mut artifacts: Vec<Node> = convert(request.artifacts);
    let executions: Vec<Node> = convert(request.executions);
    if contexts.iter().chain(&artifacts).chain(&executions).any(|node| node.type_id.is_none()) {
        return Err(Failure::invalid("Type id is missing."));
    }
    let given_artifacts: Vec<Option<i64>> = artifacts.iter().map(|node| node.id).collect();
    let given_executions: Vec<Option<i64>> = executions.iter().map(|node| node.id).collect();
    let reuse = Reuse { by_name: options.reuse_context_if_already_exist(), by_id: false };
    let context_ids = put_contexts(tx, &contexts, reuse).await?;
    let reuse = options.reuse_artifact_if_already_exist_by_external_id();
    let artifact_ids = put_artifacts(tx, &mut artifacts, reuse).await?;
    let execution_ids = nodes::put(tx, Kind::Execution, &executions, &PutOptions::default()).await?;
    edges::link(tx, Kind::Execution, &context_ids, &execution_ids).await?;
    edges::link(tx, Kind::Artifact, &context_ids, &artifact_ids).await?;
    for edge in request.event_edges {
        let Some(mut event) = edge.event else { return Err(Failure::invalid("No event found for event_edge")) };
        let (execution, artifact) = (event.execution_id, event.artifact_id);
        let execution = edge_end("execution", edge.execution_index, execution, &given_executions, &execution_ids)?;
        let artifact = edge_end("artifact", edge.artifact_index, artifact, &given_artifacts, &artifact_ids)?;
        event.execution_id = Some(execution);
        event.artifact_id = Some(artifact);
        edges::insert_event(tx, &event).await?;
    }
    Ok(pb::PutLineageSubgraphResponse { execution_ids, artifact_ids, context_ids })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_names_its_end_by_index_or_id() {
        assert_eq!(edge_end("artifact", Some(1), None, &[None, None], &[10, 11]), Ok(11));
        assert_eq!(edge_end("artifact", None, Some(4), &[], &[]), Ok(4));
        assert_eq!(edge_end("artifact", Some(0), Some(10), &[Some(10)], &[10]), Ok(10));
        let code = |index, id| edge_end("artifact", index, id, &[Some(10)], &[10]).map_err(|failure| failure.code);
        assert_eq!(code(None, None), Err(tonic::Code::InvalidArgument));
        assert_eq!(code(Some(0), Some(3)), Err(tonic::Code::InvalidArgument));
        assert_eq!(code(Some(1), None), Err(tonic::Code::OutOfRange));
        assert_eq!(code(Some(-1), None), Err(tonic::Code::OutOfRange));
    }
}
