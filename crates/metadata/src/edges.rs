//! Events, associations, attributions and parent contexts.

use std::collections::{BTreeMap, BTreeSet};

use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_metadata::event::path::{Step, step};

use crate::database::{Param, Row, Tx, id_lists};
use crate::failure::{Failure, Outcome};
use crate::model::{Kind, Node};
use crate::nodes;

/// Inserts an event whose ends are known.
///
/// # Errors
/// INVALID_ARGUMENT without ids or type, ALREADY_EXISTS for the same artifact, execution and type.
pub async fn insert_event(tx: &mut Tx, event: &pb::Event) -> Outcome<()> {
    let artifact = event.artifact_id.ok_or_else(|| Failure::invalid("No artifact id is specified."))?;
    let execution = event.execution_id.ok_or_else(|| Failure::invalid("No execution id is specified."))?;
    let kind = event.r#type.filter(|kind| *kind != 0).ok_or_else(|| Failure::invalid("No event type is specified."))?;
    let time = event.milliseconds_since_epoch.unwrap_or_else(nodes::now);
    let columns = ["artifact_id", "execution_id", "type", "milliseconds_since_epoch"];
    let params = vec![artifact.into(), execution.into(), kind.into(), time.into()];
    let inserted = tx.insert("Event", &columns, params).await;
    let id = inserted.map_err(|failure| {
        failure.naming(|| {
            format!(
                "Given event already exists: artifact_id: {artifact} execution_id: {execution} type: {}",
                pb::event::Type::try_from(kind).map_or("?", |kind| kind.as_str_name())
            )
        })
    })?;
    let mut rows = Vec::new();
    for step in event.path.iter().flat_map(|path| &path.steps) {
        rows.push(match &step.value {
            Some(step::Value::Index(index)) => vec![id.into(), true.into(), (*index).into(), Param::Null],
            Some(step::Value::Key(key)) => vec![id.into(), false.into(), Param::Null, key.as_str().into()],
            None => return Err(Failure::invalid("a step of the event's path has neither index nor key")),
        });
    }
    tx.insert_rows("INTO `EventPath`(`event_id`, `is_index_step`, `step_index`, `step_key`)", rows).await
}

/// The first of `ids` that no node has.
async fn missing(tx: &mut Tx, kind: Kind, ids: &[i64]) -> Outcome<Option<i64>> {
    let mut known = BTreeSet::new();
    for (list, params) in id_lists(ids) {
        let sql = format!("SELECT `id` FROM `{}` WHERE `id` IN {list}", kind.table());
        for row in tx.query(sql, params).await? {
            known.insert(row.int(0)?);
        }
    }
    Ok(ids.iter().copied().find(|id| !known.contains(id)))
}

/// Inserts events after checking that their ends exist.
///
/// # Errors
/// As [`insert_event`], and INVALID_ARGUMENT for an unknown artifact or execution.
pub async fn put_events(tx: &mut Tx, events: &[pb::Event]) -> Outcome<()> {
    let artifacts: Vec<i64> = events.iter().filter_map(|event| event.artifact_id).collect();
    if let Some(id) = missing(tx, Kind::Artifact, &artifacts).await? {
        return Err(Failure::invalid(format!("No artifact with the given id {id}")));
    }
    let executions: Vec<i64> = events.iter().filter_map(|event| event.execution_id).collect();
    if let Some(id) = missing(tx, Kind::Execution, &executions).await? {
        return Err(Failure::invalid(format!("No execution with the given id {id}")));
    }
    for event in events {
        insert_event(tx, event).await?;
    }
    Ok(())
}

/// Events of artifacts or executions, in order of insertion.
///
/// # Errors
/// The database's.
pub async fn events(tx: &mut Tx, of: Kind, ids: &[i64]) -> Outcome<Vec<pb::Event>> {
    let column = of.id_column();
    let mut found = BTreeMap::new();
    for (list, params) in id_lists(ids) {
        let sql = format!(
            "SELECT `id`, `artifact_id`, `execution_id`, `type`, `milliseconds_since_epoch` FROM `Event` \
             WHERE `{column}` IN {list}"
        );
        for row in tx.query(sql, params.clone()).await? {
            found.insert(row.int(0)?, read_event(&row)?);
        }
        let sql = format!(
            "SELECT P.`event_id`, P.`is_index_step`, P.`step_index`, P.`step_key` FROM `EventPath` P \
             WHERE P.`event_id` IN (SELECT `id` FROM `Event` WHERE `{column}` IN {list})"
        );
        for row in tx.query(sql, params).await? {
            let Some(event) = found.get_mut(&row.int(0)?) else { continue };
            let value = if row.int(1)? == 0 {
                step::Value::Key(row.text_or_null(3)?.unwrap_or_default())
            } else {
                step::Value::Index(row.int_or_null(2)?.unwrap_or_default())
            };
            event.path.get_or_insert_default().steps.push(Step { value: Some(value) });
        }
    }
    Ok(found.into_values().collect())
}

fn read_event(row: &Row) -> Outcome<pb::Event> {
    Ok(pb::Event {
        artifact_id: Some(row.int(1)?),
        execution_id: Some(row.int(2)?),
        r#type: i32::try_from(row.int(3)?).ok(),
        milliseconds_since_epoch: row.int_or_null(4)?,
        path: None,
        system_metadata: None,
    })
}

/// Links nodes to contexts; existing links stay. `kind` is artifacts or executions.
///
/// # Errors
/// The database's.
pub async fn link(tx: &mut Tx, kind: Kind, contexts: &[i64], ids: &[i64]) -> Outcome<()> {
    let Some(table) = kind.context_link() else { return Err(Failure::internal("contexts have no such link")) };
    let pairs = contexts.iter().flat_map(|context| ids.iter().map(|id| (*context, *id)));
    let pairs: BTreeSet<(i64, i64)> = pairs.collect();
    let rows = pairs.into_iter().map(|(context, id)| vec![context.into(), id.into()]).collect();
    tx.insert_missing(&format!("INTO `{table}`(`context_id`, `{}`)", kind.id_column()), rows).await
}

/// Links nodes to contexts one by one after checking that both exist.
///
/// # Errors
/// INVALID_ARGUMENT for a missing or unknown id.
pub async fn put_links(tx: &mut Tx, kind: Kind, pairs: &[(Option<i64>, Option<i64>)]) -> Outcome<()> {
    let lower = kind.table().to_ascii_lowercase();
    let (mut contexts, mut ids) = (Vec::new(), Vec::new());
    for (context, id) in pairs {
        contexts.push(context.ok_or_else(|| Failure::invalid("No context id is specified."))?);
        ids.push(id.ok_or_else(|| Failure::invalid(format!("No {lower} id is specified")))?);
    }
    if let Some(id) = missing(tx, Kind::Context, &contexts).await? {
        return Err(Failure::invalid(format!("Context id not found: {id}")));
    }
    if let Some(id) = missing(tx, kind, &ids).await? {
        return Err(Failure::invalid(format!("{} id not found: {id}", kind.table())));
    }
    for (context, id) in contexts.into_iter().zip(ids) {
        link(tx, kind, &[context], &[id]).await?;
    }
    Ok(())
}

/// Makes one context the parent of another.
///
/// # Errors
/// INVALID_ARGUMENT for missing or unknown ids and for a cycle, ALREADY_EXISTS for a known pair.
pub async fn put_parent(tx: &mut Tx, link: &pb::ParentContext) -> Outcome<()> {
    let label = format!("child_id: {:?} parent_id: {:?}", link.child_id, link.parent_id);
    let (Some(child), Some(parent)) = (link.child_id, link.parent_id) else {
        return Err(Failure::invalid(format!("Missing parent / child id in the parent_context: {label}")));
    };
    if child == parent || missing(tx, Kind::Context, &[child, parent]).await?.is_some() {
        return Err(Failure::invalid(format!(
            "Given parent / child id in the parent_context cannot be found: {label}"
        )));
    }
    // Two others, each of which is no cycle by itself, might be one together.
    tx.lock_rules().await?;
    let (mut seen, mut ahead) = (BTreeSet::new(), vec![parent]);
    while !ahead.is_empty() {
        let mut next = Vec::new();
        for (list, params) in id_lists(&ahead) {
            let sql = format!("SELECT `parent_context_id` FROM `ParentContext` WHERE `context_id` IN {list}");
            for row in tx.query(sql, params).await? {
                let ancestor = row.int(0)?;
                if ancestor == child {
                    return Err(Failure::invalid("There is a cycle detected of the given relationship."));
                }
                if seen.insert(ancestor) {
                    next.push(ancestor);
                }
            }
        }
        ahead = next;
    }
    let sql = "INSERT INTO `ParentContext`(`context_id`, `parent_context_id`) VALUES (?,?)";
    let inserted = tx.execute(sql, vec![child.into(), parent.into()]).await;
    inserted.map_err(|failure| failure.naming(|| format!("Given parent_context already exists: {label}")))
}

/// Parents (or children) of many contexts at once.
///
/// # Errors
/// The database's.
pub async fn relatives(tx: &mut Tx, ids: &[i64], parents: bool) -> Outcome<BTreeMap<i64, Vec<Node>>> {
    let (key, wanted) = if parents { ("context_id", "parent_context_id") } else { ("parent_context_id", "context_id") };
    let mut pairs = BTreeSet::new();
    for (list, params) in id_lists(ids) {
        let sql = format!("SELECT `{key}`, `{wanted}` FROM `ParentContext` WHERE `{key}` IN {list}");
        for row in tx.query(sql, params).await? {
            pairs.insert((row.int(0)?, row.int(1)?));
        }
    }
    let wanted: Vec<i64> = pairs.iter().map(|(_, wanted)| *wanted).collect();
    let found = nodes::by_id(tx, Kind::Context, &wanted).await?;
    let found: BTreeMap<Option<i64>, Node> = found.into_iter().map(|node| (node.id, node)).collect();
    let mut answer: BTreeMap<i64, Vec<Node>> = BTreeMap::new();
    for (key, wanted) in pairs {
        if let Some(node) = found.get(&Some(wanted)) {
            answer.entry(key).or_default().push(node.clone());
        }
    }
    Ok(answer)
}

/// Pairs (context, node) of the links of nodes, ordered.
///
/// # Errors
/// The database's.
pub async fn links(tx: &mut Tx, kind: Kind, ids: &[i64]) -> Outcome<BTreeSet<(i64, i64)>> {
    let Some(table) = kind.context_link() else { return Ok(BTreeSet::new()) };
    let column = kind.id_column();
    let mut pairs = BTreeSet::new();
    for (list, params) in id_lists(ids) {
        let sql = format!("SELECT `context_id`, `{column}` FROM `{table}` WHERE `{column}` IN {list}");
        for row in tx.query(sql, params).await? {
            pairs.insert((row.int(0)?, row.int(1)?));
        }
    }
    Ok(pairs)
}
