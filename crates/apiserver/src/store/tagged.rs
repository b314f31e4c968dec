//! What pipelines and their versions have in common: a display name and tags that can be changed, lists with tags.

use std::collections::BTreeMap;

use super::db::{Row, Tx};
use super::list::{Listable, Options, Page, page};
use super::sql::{Sql, Value};
use crate::error::{Error, Result};

/// Tags of an entity.
pub type Tags = BTreeMap<String, String>;

/// How an entity with tags is stored.
pub(super) struct Kind {
    /// Table.
    pub table: &'static str,
    /// Tag table and its id column.
    pub tags: (&'static str, &'static str),
    /// Name of the entity in messages.
    pub name: &'static str,
}

/// An entity with tags.
pub(super) trait Tagged: Sized {
    /// How it is stored.
    const KIND: Kind;
    /// Primary key.
    fn id(&self) -> &str;
    /// Shown to users.
    fn display_name(&mut self) -> &mut String;
    /// Its tags.
    fn tags(&mut self) -> &mut Tags;
}

/// One page with tags: at most three queries.
pub(super) async fn list<T: Tagged>(
    tx: &mut Tx,
    listable: &Listable,
    columns: &[&str],
    scope: &[(&str, Value)],
    options: &Options,
    read: impl Fn(&Row) -> Result<T>,
) -> Result<Page<T>> {
    let mut found = page(tx, listable, columns, scope, options, read).await?;
    let ids: Vec<String> = found.items.iter().map(|entity| entity.id().to_owned()).collect();
    let mut tags = tags_of::<T>(tx, &ids).await?;
    for entity in &mut found.items {
        *entity.tags() = tags.remove(entity.id()).unwrap_or_default();
    }
    Ok(found)
}

/// The first row of a query with its tags.
pub(super) async fn one<T: Tagged>(tx: &mut Tx, sql: Sql, read: impl Fn(&Row) -> Result<T>) -> Result<Option<T>> {
    let Some(row) = tx.row(sql).await? else { return Ok(None) };
    let mut entity = read(&row)?;
    let ids = [entity.id().to_owned()];
    *entity.tags() = tags_of::<T>(tx, &ids).await?.remove(&ids[0]).unwrap_or_default();
    Ok(Some(entity))
}

/// Changes display name and tags; an empty display name and absent tags leave them as they are.
pub(super) async fn update<T: Tagged>(
    tx: &mut Tx,
    mut entity: T,
    display_name: &str,
    tags: Option<&Tags>,
) -> Result<T> {
    let id = entity.id().to_owned();
    if !display_name.is_empty() {
        let mut sql = Sql::update(tx.dialect(), T::KIND.table, vec![("DisplayName", display_name.into())]);
        sql.and("UUID", "=", &id);
        tx.execute(sql).await?;
        display_name.clone_into(entity.display_name());
    }
    if let Some(tags) = tags {
        let mut sql = Sql::delete(tx.dialect(), T::KIND.tags.0);
        sql.and(T::KIND.tags.1, "=", &id);
        tx.execute(sql).await?;
        put_tags::<T>(tx, &id, tags).await?;
        entity.tags().clone_from(tags);
    }
    Ok(entity)
}

/// Removes the entity; its tags, and the versions of a pipeline, go with it.
///
/// # Errors
/// Code 5 when there is no such entity.
pub(super) async fn delete<T: Tagged>(tx: &mut Tx, id: &str) -> Result<()> {
    let mut sql = Sql::delete(tx.dialect(), T::KIND.table);
    sql.and("UUID", "=", id);
    if tx.execute(sql).await? == 0 { Err(Error::not_found(T::KIND.name, id)) } else { Ok(()) }
}

/// Tags of several entities in one query.
async fn tags_of<T: Tagged>(tx: &mut Tx, ids: &[String]) -> Result<BTreeMap<String, Tags>> {
    let mut found: BTreeMap<String, Tags> = BTreeMap::new();
    if ids.is_empty() {
        return Ok(found);
    }
    let (table, column) = T::KIND.tags;
    let mut sql = Sql::select(tx.dialect(), table, &[column, "TagKey", "TagValue"]);
    sql.and_in(column, ids.iter().map(Value::from).collect());
    for row in tx.rows(sql).await? {
        found.entry(row.text(0)?).or_default().insert(row.text(1)?, row.text(2)?);
    }
    Ok(found)
}

/// Stores the tags of a new entity.
pub(super) async fn put_tags<T: Tagged>(tx: &mut Tx, id: &str, tags: &Tags) -> Result<()> {
    let (table, column) = T::KIND.tags;
    for (key, value) in tags {
        let row = vec![(column, id.into()), ("TagKey", key.into()), ("TagValue", value.into())];
        tx.execute(Sql::insert(tx.dialect(), table, row)).await?;
    }
    Ok(())
}
