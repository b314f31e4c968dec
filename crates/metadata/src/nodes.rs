//! Reading, creating and updating artifacts, executions and contexts.

use std::collections::BTreeMap;

use crate::database::{Param, Row, Tx, id_lists, text_lists};
use crate::failure::{Failure, Outcome};
use crate::model::{Kind, Node, Properties};
use crate::types::{self, Type};
use crate::values;

/// Now, in Unix milliseconds.
#[must_use]
pub fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

fn read_row(row: &Row) -> Outcome<Node> {
    Ok(Node {
        id: Some(row.int(0)?),
        type_id: Some(row.int(1)?),
        name: row.text_or_null(2)?,
        external_id: row.text_or_null(3)?,
        created: row.int_or_null(4)?,
        updated: row.int_or_null(5)?,
        type_name: row.text_or_null(6)?,
        uri: row.text_or_null(7)?,
        state: row.int_or_null(8)?.and_then(|state| i32::try_from(state).ok()),
        properties: Properties::new(),
        custom: Properties::new(),
    })
}

/// Nodes whose id is in `set` (a parenthesised list or subquery), ascending by id: two queries, however many there are.
///
/// # Errors
/// The database's.
pub async fn select(tx: &mut Tx, kind: Kind, set: &str, params: Vec<Param>) -> Outcome<Vec<Node>> {
    let (table, id_column) = (kind.table(), kind.id_column());
    let uri = if kind == Kind::Artifact { "N.`uri`" } else { "NULL" };
    let state = kind.state_column().map_or("NULL".to_owned(), |column| format!("N.`{column}`"));
    let sql = format!(
        "SELECT N.`id`, N.`type_id`, N.`name`, N.`external_id`, N.`create_time_since_epoch`, \
         N.`last_update_time_since_epoch`, T.`name`, {uri}, {state} FROM `{table}` N \
         LEFT JOIN `Type` T ON T.`id` = N.`type_id` WHERE N.`id` IN {set} ORDER BY N.`id`"
    );
    let rows = tx.query(sql, params.clone()).await?;
    let mut nodes = rows.iter().map(read_row).collect::<Outcome<Vec<_>>>()?;
    if nodes.is_empty() {
        return Ok(nodes);
    }
    let positions: BTreeMap<Option<i64>, usize> = nodes.iter().enumerate().map(|(at, node)| (node.id, at)).collect();
    let sql = format!(
        "SELECT `{id_column}`, `name`, `is_custom_property`, {} FROM `{table}Property` WHERE `{id_column}` IN {set}",
        values::COLUMNS
    );
    for row in tx.query(sql, params).await? {
        let Some(node) = positions.get(&Some(row.int(0)?)).and_then(|at| nodes.get_mut(*at)) else { continue };
        let name = row.text(1)?;
        let value = values::read(&name, &row, 3)?;
        if row.int(2)? == 0 {
            node.properties.insert(name, value)
        } else {
            node.custom.insert(name, value)
        };
    }
    Ok(nodes)
}

/// The nodes with these ids that exist, ascending and distinct.
///
/// # Errors
/// The database's.
pub async fn by_id(tx: &mut Tx, kind: Kind, ids: &[i64]) -> Outcome<Vec<Node>> {
    let mut found = Vec::new();
    for (list, params) in id_lists(ids) {
        found.extend(select(tx, kind, &list, params).await?);
    }
    Ok(found)
}

/// The nodes with these external ids.
///
/// # Errors
/// INVALID_ARGUMENT for an empty external id, NOT_FOUND when there is none.
pub async fn by_external_id(tx: &mut Tx, kind: Kind, ids: &[String]) -> Outcome<Vec<Node>> {
    if ids.iter().any(String::is_empty) {
        return Err(Failure::invalid("Invalid argument because at least one empty external_id exists."));
    }
    let table = kind.table();
    let mut found = Vec::new();
    for (list, params) in text_lists(ids) {
        let set = format!("(SELECT `id` FROM `{table}` WHERE `external_id` IN {list})");
        found.extend(select(tx, kind, &set, params).await?);
    }
    if found.is_empty() {
        return Err(Failure::not_found(format!("No {}s found for external_ids.", table.to_ascii_lowercase())));
    }
    Ok(found)
}

/// The id of the node of a type with a name.
///
/// # Errors
/// The database's.
pub async fn find_id(tx: &mut Tx, kind: Kind, type_id: i64, name: &str) -> Outcome<Option<i64>> {
    let sql = format!("SELECT `id` FROM `{}` WHERE `type_id` = ? AND `name` = ?", kind.table());
    let rows = tx.query(sql, vec![type_id.into(), name.into()]).await?;
    rows.first().map(|row| row.int(0)).transpose()
}

/// What an update touches.
#[derive(Clone, Debug, Default)]
pub struct Mask(Vec<String>);

impl Mask {
    /// From a request; no mask and an empty one mean everything.
    #[must_use]
    pub fn new(mask: Option<prost_types::FieldMask>) -> Self {
        Self(mask.map(|mask| mask.paths).unwrap_or_default())
    }

    fn is_all(&self) -> bool {
        self.0.is_empty()
    }

    fn names(&self, field: &str) -> bool {
        self.is_all() || self.0.iter().any(|path| path == field)
    }

    /// The properties that result from writing `given` over `stored`; `field.name` paths touch one property each.
    fn merge(&self, field: &str, given: &Properties, stored: &Properties) -> Properties {
        if self.names(field) {
            return given.clone();
        }
        let mut merged = stored.clone();
        let names = self.0.iter().filter_map(|path| path.strip_prefix(field)?.strip_prefix('.'));
        for name in names {
            match given.get(name) {
                Some(value) => merged.insert(name.to_owned(), value.clone()),
                None => merged.remove(name),
            };
        }
        merged
    }
}

/// How a put behaves beyond its content.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    /// What updates touch.
    pub mask: Mask,
    /// Updates set the update time even when nothing changed.
    pub force_update_time: bool,
    /// Updates fail unless the given update time is the stored one.
    pub abort_if_changed: bool,
}

fn check_declared(node: &Node, properties: &Properties, of: &Type) -> Outcome<()> {
    for (name, value) in properties {
        match of.properties.get(name) {
            None => {
                return Err(Failure::invalid(format!(
                    "Cannot validate properties of {}: found unknown property: {name}",
                    node.label()
                )));
            }
            Some(number) if !values::matches(*number, value) => {
                return Err(Failure::invalid(format!(
                    "Cannot validate properties of {}: found unmatched property type: {name}",
                    node.label()
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

fn property_row(id: i64, name: &str, custom: bool, value: &kfp_proto::ml_metadata::Value) -> Outcome<Vec<Param>> {
    let mut row = vec![id.into(), name.into(), custom.into()];
    row.extend(values::columns(name, value)?);
    Ok(row)
}

async fn insert_properties(tx: &mut Tx, kind: Kind, rows: Vec<Vec<Param>>) -> Outcome<()> {
    let (table, id_column) = (kind.table(), kind.id_column());
    let head = format!("INTO `{table}Property`(`{id_column}`, `name`, `is_custom_property`, {})", values::COLUMNS);
    tx.insert_rows(&head, rows).await
}

fn exists(node: &Node) -> impl FnOnce() -> String {
    let label = node.label();
    move || format!("Given node already exists: {label}")
}

fn named_if_context(kind: Kind, node: &Node) -> Outcome<()> {
    if kind == Kind::Context && node.name.as_deref().is_none_or(str::is_empty) {
        return Err(Failure::invalid("Context name should not be empty"));
    }
    Ok(())
}

async fn create(tx: &mut Tx, kind: Kind, node: &Node, types: &BTreeMap<i64, Type>) -> Outcome<i64> {
    let type_id = node.type_id.ok_or_else(|| Failure::invalid("Type id is missing."))?;
    let of = types.get(&type_id).ok_or_else(|| {
        Failure::not_found(format!(
            "Cannot find type for {}: No type found for query, type_id: {type_id}",
            node.label()
        ))
    })?;
    check_declared(node, &node.properties, of)?;
    named_if_context(kind, node)?;
    let now = now();
    let mut columns = vec!["type_id", "name", "external_id", "create_time_since_epoch", "last_update_time_since_epoch"];
    let mut params =
        vec![type_id.into(), node.name.clone().into(), node.external_id.clone().into(), now.into(), now.into()];
    if kind == Kind::Artifact {
        columns.push("uri");
        params.push(node.uri.clone().unwrap_or_default().into());
    }
    if let Some(column) = kind.state_column() {
        columns.push(column);
        params.push(node.state.into());
    }
    let id = tx.insert(kind.table(), &columns, params).await.map_err(|failure| failure.naming(exists(node)))?;
    let declared = node.properties.iter().map(|(name, value)| property_row(id, name, false, value));
    let custom = node.custom.iter().map(|(name, value)| property_row(id, name, true, value));
    insert_properties(tx, kind, declared.chain(custom).collect::<Outcome<_>>()?).await?;
    Ok(id)
}

async fn update_properties(
    tx: &mut Tx,
    kind: Kind,
    id: i64,
    custom: bool,
    old: &Properties,
    new: &Properties,
) -> Outcome<()> {
    let gone = old.iter().filter(|(name, value)| new.get(*name) != Some(*value)).map(|(name, _)| name.clone());
    let gone: Vec<String> = gone.collect();
    for (list, names) in text_lists(&gone) {
        let sql = format!(
            "DELETE FROM `{}Property` WHERE `{}` = ? AND `is_custom_property` = ? AND `name` IN {list}",
            kind.table(),
            kind.id_column()
        );
        let mut params = vec![id.into(), custom.into()];
        params.extend(names);
        tx.execute(sql, params).await?;
    }
    let changed = new.iter().filter(|(name, value)| old.get(*name) != Some(*value));
    let rows = changed.map(|(name, value)| property_row(id, name, custom, value)).collect::<Outcome<_>>()?;
    insert_properties(tx, kind, rows).await
}

/// What the node will be when `given` is written over `stored`.
fn updated(kind: Kind, given: &Node, stored: &Node, options: &PutOptions) -> Node {
    let mask = &options.mask;
    let state = kind.state_column().unwrap_or("state");
    let mut node = stored.clone();
    if kind == Kind::Artifact && mask.names("uri") {
        // Upstream stores an empty string, never NULL.
        node.uri = Some(given.uri.clone().unwrap_or_default());
    }
    if kind != Kind::Context && mask.names(state) {
        node.state = given.state;
    }
    if kind == Kind::Context && mask.names("name") {
        node.name.clone_from(&given.name);
    }
    if mask.names("external_id") {
        node.external_id.clone_from(&given.external_id);
    }
    node.properties = mask.merge("properties", &given.properties, &stored.properties);
    node.custom = mask.merge("custom_properties", &given.custom, &stored.custom);
    node
}

async fn update(
    tx: &mut Tx,
    kind: Kind,
    given: &Node,
    stored: &mut Node,
    of: Option<&Type>,
    options: &PutOptions,
) -> Outcome<()> {
    let Some(id) = stored.id else { return Err(Failure::internal("a stored node has no id")) };
    if let Some(type_id) = given.type_id.filter(|type_id| Some(*type_id) != stored.type_id) {
        let known = stored.type_id.unwrap_or_default();
        return Err(Failure::invalid(format!(
            "Given type_id {type_id} is different from the one known before: {known}"
        )));
    }
    if options.abort_if_changed && given.updated.unwrap_or_default() != stored.updated.unwrap_or_default() {
        return Err(Failure::precondition(format!(
            "`abort_if_latest_updated_time_changed` is set, and the stored {} with id = {id} has a different \
             last_update_time_since_epoch: {} from the one in the given one: {}",
            kind.table().to_ascii_lowercase(),
            stored.updated.unwrap_or_default(),
            given.updated.unwrap_or_default()
        )));
    }
    let mut node = updated(kind, given, stored, options);
    if !node.properties.is_empty() {
        let of = of.ok_or_else(|| Failure::internal(format!("the type of {} does not exist", stored.label())))?;
        check_declared(given, &node.properties, of)?;
    }
    if node == *stored && !options.force_update_time {
        return Ok(());
    }
    named_if_context(kind, &node)?;
    // Strictly later than the stored time, so that a reader can tell the two states apart.
    let time = now().max(stored.updated.unwrap_or_default() + 1);
    node.updated = Some(time);
    let mut sets = vec!["`external_id` = ?".to_owned(), "`last_update_time_since_epoch` = ?".to_owned()];
    let mut params = vec![node.external_id.clone().into(), time.into()];
    if kind == Kind::Artifact {
        sets.push("`uri` = ?".to_owned());
        params.push(node.uri.clone().into());
    }
    if let Some(column) = kind.state_column() {
        sets.push(format!("`{column}` = ?"));
        params.push(node.state.into());
    } else {
        sets.push("`name` = ?".to_owned());
        params.push(node.name.clone().into());
    }
    params.push(id.into());
    let sql = format!("UPDATE `{}` SET {} WHERE `id` = ?", kind.table(), sets.join(", "));
    tx.execute(sql, params).await.map_err(|failure| failure.naming(exists(given)))?;
    update_properties(tx, kind, id, false, &stored.properties, &node.properties).await?;
    update_properties(tx, kind, id, true, &stored.custom, &node.custom).await?;
    *stored = node;
    Ok(())
}

/// The stored state of the nodes with an id. Those that will change are locked; what tasks send with every publication,
/// their unchanged pipeline and run, is not, so that tasks do not wait for each other.
async fn stored(tx: &mut Tx, kind: Kind, nodes: &[Node], options: &PutOptions) -> Outcome<BTreeMap<Option<i64>, Node>> {
    let ids: Vec<i64> = nodes.iter().filter_map(|node| node.id).collect();
    let by_own_id = |nodes: Vec<Node>| nodes.into_iter().map(|node| (node.id, node)).collect::<BTreeMap<_, _>>();
    let found = by_own_id(by_id(tx, kind, &ids).await?);
    if tx.dialect().writes_alone() {
        return Ok(found);
    }
    let changes = |node: &&Node| {
        let stored = found.get(&node.id);
        stored.is_some_and(|stored| options.force_update_time || updated(kind, node, stored, options) != *stored)
    };
    let changing: Vec<i64> = nodes.iter().filter(changes).filter_map(|node| node.id).collect();
    if changing.is_empty() {
        return Ok(found);
    }
    tx.lock(kind.table(), &changing).await?;
    Ok(by_own_id(by_id(tx, kind, &ids).await?))
}

/// Creates the nodes without id and updates the others; returns their ids in the order given.
///
/// # Errors
/// INVALID_ARGUMENT for an unknown id, another type, undeclared properties or an unnamed context; NOT_FOUND for an
/// unknown type; ALREADY_EXISTS for a taken name or external id; FAILED_PRECONDITION when asked to check update times.
pub async fn put(tx: &mut Tx, kind: Kind, nodes: &[Node], options: &PutOptions) -> Outcome<Vec<i64>> {
    let mut stored = stored(tx, kind, nodes, options).await?;
    // Types are needed to create nodes and to check declared properties; most updates have none.
    let creating = nodes.iter().filter(|node| node.id.is_none() || !node.properties.is_empty());
    let declares = nodes.iter().any(|node| !node.properties.is_empty());
    let declaring = stored.values().filter(|node| declares || !node.properties.is_empty());
    let type_ids: Vec<i64> = creating.chain(declaring).filter_map(|node| node.type_id).collect();
    let types = types::by_id(tx, kind, &type_ids).await?;
    let mut ids = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some(id) = node.id else {
            ids.push(create(tx, kind, node, &types).await?);
            continue;
        };
        let Some(known) = stored.get_mut(&Some(id)) else {
            return Err(Failure::invalid(format!("Cannot find the given id {id}")));
        };
        let of = known.type_id.and_then(|type_id| types.get(&type_id));
        update(tx, kind, node, known, of, options).await?;
        ids.push(id);
    }
    Ok(ids)
}

/// Nodes that a context holds, or that hold a context: ids in the column `wanted` of a link table.
///
/// # Errors
/// The database's.
pub async fn linked(tx: &mut Tx, kind: Kind, table: &str, wanted: &str, key: &str, id: i64) -> Outcome<Vec<Node>> {
    let set = format!("(SELECT `{wanted}` FROM `{table}` WHERE `{key}` = ?)");
    select(tx, kind, &set, vec![id.into()]).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfp_proto::ml_metadata::{Value, value};

    fn int(number: i64) -> Value {
        Value { value: Some(value::Value::IntValue(number)) }
    }

    #[test]
    fn a_mask_limits_what_an_update_touches() {
        let stored = Node {
            uri: Some("old".to_owned()),
            state: Some(1),
            custom: [("a".to_owned(), int(1)), ("b".to_owned(), int(2)), ("c".to_owned(), int(3))].into(),
            ..Node::default()
        };
        let given = Node {
            uri: Some("new".to_owned()),
            custom: [("a".to_owned(), int(9)), ("c".to_owned(), int(8))].into(),
            ..Node::default()
        };
        let with = |paths: &[&str]| PutOptions {
            mask: Mask(paths.iter().map(|path| (*path).to_owned()).collect()),
            ..PutOptions::default()
        };
        let all = updated(Kind::Artifact, &given, &stored, &with(&[]));
        assert_eq!((all.uri.as_deref(), all.state, &all.custom), (Some("new"), None, &given.custom));
        let some =
            updated(Kind::Artifact, &given, &stored, &with(&["uri", "custom_properties.a", "custom_properties.b"]));
        assert_eq!((some.uri.as_deref(), some.state), (Some("new"), Some(1)));
        assert_eq!(some.custom, [("a".to_owned(), int(9)), ("c".to_owned(), int(3))].into());
    }
}
