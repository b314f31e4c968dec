//! GetLineageSubgraph: a breadth-first walk along events.

use std::collections::BTreeSet;

use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_metadata::lineage_subgraph_query_options::{Direction, EndingNodes, StartingNodes};
use pb::lineage_subgraph_query_options::StartingNodesOneOf as Start;

use crate::database::{Tx, id_lists};
use crate::edges;
use crate::failure::{Failure, Outcome};
use crate::filter;
use crate::model::{Kind, convert};
use crate::types;

/// The farthest that a walk goes.
const MOST_HOPS: i64 = 100;
/// Parts of a graph that a read mask can ask for.
const PARTS: [&str; 10] = [
    "artifact_types",
    "execution_types",
    "context_types",
    "artifacts",
    "executions",
    "contexts",
    "events",
    "attributions",
    "associations",
    "parent_contexts",
];

fn other(kind: Kind) -> Kind {
    if kind == Kind::Artifact { Kind::Execution } else { Kind::Artifact }
}

/// The ids that satisfy a filter, among `ids` if given.
async fn matching(tx: &mut Tx, kind: Kind, query: &str, ids: Option<&BTreeSet<i64>>) -> Outcome<BTreeSet<i64>> {
    let filter = filter::compile(kind, query)?;
    let sql = format!("SELECT DISTINCT N.`id` FROM `{}` N{} WHERE ({})", kind.table(), filter.joins, filter.condition);
    let params: Vec<_> = filter.join_params.into_iter().chain(filter.condition_params).collect();
    let mut found = BTreeSet::new();
    let Some(ids) = ids else {
        for row in tx.query(sql, params).await? {
            found.insert(row.int(0)?);
        }
        return Ok(found);
    };
    let ids: Vec<i64> = ids.iter().copied().collect();
    for (list, more) in id_lists(&ids) {
        let params = params.iter().cloned().chain(more).collect();
        for row in tx.query(format!("{sql} AND N.`id` IN {list}"), params).await? {
            found.insert(row.int(0)?);
        }
    }
    Ok(found)
}

/// Whether a walk from `from` in a direction follows an event of this type.
fn follows(from: Kind, direction: Direction, kind: i32) -> bool {
    use pb::event::Type;
    let output = [Type::Output, Type::DeclaredOutput, Type::InternalOutput, Type::PendingOutput];
    let is_output = output.iter().any(|output| *output as i32 == kind);
    let input = [Type::Input, Type::DeclaredInput, Type::InternalInput];
    let is_input = input.iter().any(|input| *input as i32 == kind);
    match direction {
        Direction::Upstream => {
            if from == Kind::Artifact {
                is_output
            } else {
                is_input
            }
        }
        Direction::Downstream => {
            if from == Kind::Artifact {
                is_input
            } else {
                is_output
            }
        }
        Direction::Bidirectional | Direction::Unspecified => is_input || is_output,
    }
}

/// The visited and the ending nodes of one kind.
#[derive(Default)]
struct Side {
    visited: BTreeSet<i64>,
    ended: BTreeSet<i64>,
    ending: EndingNodes,
}

impl Side {
    /// Takes nodes in; those that satisfy the ending filter go no further.
    async fn take(&mut self, tx: &mut Tx, kind: Kind, mut new: BTreeSet<i64>) -> Outcome<Vec<i64>> {
        if let Some(query) = &self.ending.filter_query {
            let ends = matching(tx, kind, query, Some(&new)).await?;
            new.retain(|id| !ends.contains(id));
            self.ended.extend(ends);
        }
        self.visited.extend(&new);
        Ok(new.into_iter().collect())
    }

    fn shown(&self) -> Vec<i64> {
        let ended = if self.ending.include_ending_nodes() { Some(&self.ended) } else { None };
        self.visited.iter().chain(ended.into_iter().flatten()).copied().collect()
    }
}

/// GetLineageSubgraph. As upstream, artifacts, executions and contexts carry only their ids.
///
/// # Errors
/// INVALID_ARGUMENT without a starting filter, NOT_FOUND when nothing matches it.
pub async fn subgraph(tx: &mut Tx, request: pb::GetLineageSubgraphRequest) -> Outcome<pb::GetLineageSubgraphResponse> {
    let options = request.lineage_subgraph_query_options.unwrap_or_default();
    let direction = options.direction();
    let (start, query) = match options.starting_nodes {
        Some(Start::StartingArtifacts(StartingNodes { filter_query })) => (Kind::Artifact, filter_query),
        Some(Start::StartingExecutions(StartingNodes { filter_query })) => (Kind::Execution, filter_query),
        None => return Err(Failure::invalid("Missing arguments for listing starting nodes.")),
    };
    let query = query
        .filter(|query| !query.trim().is_empty())
        .ok_or_else(|| Failure::invalid("Cannot list starting nodes if `filter_query` is unspecified."))?;
    let hops = options.max_num_hops.unwrap_or(MOST_HOPS);
    if hops < 0 {
        return Err(Failure::invalid(format!("max_num_hops cannot be negative: max_num_hops = {hops}")));
    }
    let first = matching(tx, start, &query, None).await?;
    if first.is_empty() {
        return Err(Failure::not_found("Cannot find qualified nodes to start the traversal."));
    }
    let mut artifacts = Side { ending: options.ending_artifacts.unwrap_or_default(), ..Side::default() };
    let mut executions = Side { ending: options.ending_executions.unwrap_or_default(), ..Side::default() };
    let mut from = start;
    let side = if from == Kind::Artifact { &mut artifacts } else { &mut executions };
    let mut frontier = side.take(tx, from, first).await?;
    let mut events = Vec::new();
    for _ in 0..hops.min(MOST_HOPS) {
        let mut found = edges::events(tx, from, &frontier).await?;
        found.retain(|event| follows(from, direction, event.r#type.unwrap_or_default()));
        let to = other(from);
        let end = |event: &pb::Event| if to == Kind::Artifact { event.artifact_id() } else { event.execution_id() };
        let side = if to == Kind::Artifact { &mut artifacts } else { &mut executions };
        let new = found.iter().map(end).filter(|id| !side.visited.contains(id) && !side.ended.contains(id));
        let new: BTreeSet<i64> = new.collect();
        let seen_before = side.visited.clone();
        frontier = side.take(tx, to, new).await?;
        let directed = matches!(direction, Direction::Upstream | Direction::Downstream);
        found.retain(|event| {
            let id = end(event);
            if side.ended.contains(&id) {
                side.ending.include_ending_nodes()
            } else {
                // Walking both ways, the event towards a visited node was met from its other end already.
                directed || !seen_before.contains(&id)
            }
        });
        events.extend(found);
        if frontier.is_empty() {
            break;
        }
        from = to;
    }
    let mask = request.read_mask.map(|mask| mask.paths).unwrap_or_default();
    let mask = if mask.is_empty() { PARTS.map(str::to_owned).to_vec() } else { mask };
    let graph = collect(tx, &mask, &artifacts.shown(), &executions.shown(), events).await?;
    Ok(pb::GetLineageSubgraphResponse { lineage_subgraph: Some(graph) })
}

async fn collect(
    tx: &mut Tx,
    mask: &[String],
    artifacts: &[i64],
    executions: &[i64],
    events: Vec<pb::Event>,
) -> Outcome<pb::LineageGraph> {
    let wants = |part: &str| mask.iter().any(|path| path == part);
    let mut graph = pb::LineageGraph::default();
    let attributions = edges::links(tx, Kind::Artifact, artifacts).await?;
    let associations = edges::links(tx, Kind::Execution, executions).await?;
    if wants("artifacts") {
        let ids = artifacts.iter().map(|id| pb::Artifact { id: Some(*id), ..Default::default() });
        graph.artifacts = ids.collect();
    }
    if wants("executions") {
        let ids = executions.iter().map(|id| pb::Execution { id: Some(*id), ..Default::default() });
        graph.executions = ids.collect();
    }
    if wants("contexts") {
        let ids: BTreeSet<i64> = attributions.iter().chain(&associations).map(|(context, _)| *context).collect();
        graph.contexts = ids.into_iter().map(|id| pb::Context { id: Some(id), ..Default::default() }).collect();
    }
    if wants("events") {
        graph.events = events;
    }
    if wants("attributions") {
        let link =
            |(context, id)| pb::Attribution { artifact_id: Some(id), context_id: Some(context), system_metadata: None };
        graph.attributions = attributions.into_iter().map(link).collect();
    }
    if wants("associations") {
        let link = |(context, id)| pb::Association {
            execution_id: Some(id),
            context_id: Some(context),
            system_metadata: None,
        };
        graph.associations = associations.into_iter().map(link).collect();
    }
    if wants("artifact_types") {
        graph.artifact_types = convert(types::all(tx, Kind::Artifact).await?);
    }
    if wants("execution_types") {
        graph.execution_types = convert(types::all(tx, Kind::Execution).await?);
    }
    if wants("context_types") {
        graph.context_types = convert(types::all(tx, Kind::Context).await?);
    }
    Ok(graph)
}
