//! List queries: sorting, filters and keyset pages over one table.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::db::{Row, Tx};
use super::filter::{Filter, Generation, Predicate};
use super::sql::{Sql, Value};
use crate::error::{Error, Result};

/// Rows of a page when the request does not say.
const DEFAULT_PAGE: i32 = 20;
/// Most rows of a page; larger requests are cut to it.
const MAX_PAGE: i32 = 200;
const MISMATCH: &str = "page token does not match the supplied sort by and/or filtering criteria. Either specify the \
                        same criteria or leave the latter empty if page token is specified";

/// How a column's values compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As text.
    Text,
    /// As a number.
    Int,
    /// As Unix seconds.
    Time,
}

/// A field that requests may sort and filter by.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name in requests.
    pub name: &'static str,
    /// Column.
    pub column: &'static str,
    /// How it compares.
    pub kind: Kind,
}

/// Shorthand for a text [`Field`].
pub const fn text(name: &'static str, column: &'static str) -> Field {
    Field { name, column, kind: Kind::Text }
}

/// Shorthand for a time [`Field`].
pub const fn time(name: &'static str, column: &'static str) -> Field {
    Field { name, column, kind: Kind::Time }
}

/// A table that can be listed.
#[derive(Debug)]
pub struct Listable {
    /// Name of the resource in messages and tokens.
    pub kind: &'static str,
    /// Table.
    pub table: &'static str,
    /// Column of the creation time, the default order.
    pub created: &'static str,
    /// What requests may name.
    pub fields: &'static [Field],
    /// True when `tags.KEY` may be filtered by.
    pub tags: bool,
}

/// Primary key of every listable table.
const ID: &str = "UUID";

impl Listable {
    /// The field that a filter names; names are case-sensitive there.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
struct Token {
    kind: String,
    column: String,
    descending: bool,
    filter: Vec<Predicate>,
    value: Value,
    id: String,
}

/// A list request, understood.
#[derive(Clone, Debug)]
pub struct Options {
    size: i32,
    sort: Field,
    descending: bool,
    filter: Vec<Predicate>,
    tags: Vec<(String, String)>,
    from: Option<(Value, String)>,
}

/// The paging fields of a list request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// `page_token`.
    pub token: &'a str,
    /// `page_size`.
    pub size: i32,
    /// `sort_by`.
    pub sort_by: &'a str,
    /// `filter`.
    pub filter: &'a str,
    /// Which spelling the filter has.
    pub generation: Generation,
}

/// One page.
#[derive(Debug)]
pub struct Page<T> {
    /// Its rows.
    pub items: Vec<T>,
    /// Rows of all pages.
    pub total: i32,
    /// Token of the next page; empty on the last one.
    pub next: String,
}

fn sort(sort_by: &str, listable: &Listable) -> Result<(Field, bool)> {
    let lower = sort_by.to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    let (name, descending) = match words.as_slice() {
        [] => {
            let column = listable.created;
            return Ok((Field { name: "created_at", column, kind: Kind::Time }, false));
        }
        [name] | [name, "asc"] => (*name, false),
        [name, "desc"] => (*name, true),
        _ => {
            return Err(Error::invalid(format!(
                "Received invalid sort by format \"{sort_by}\". Supported format: \"field_name\", \"field_name desc\", or \
                 \"field_name asc\""
            )));
        }
    };
    let field = listable.fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        Error::invalid(format!("Invalid sorting field: \"{name}\" on listable type {}", listable.kind))
    })?;
    Ok((*field, descending))
}

impl Options {
    /// Understands the paging fields of a list request.
    ///
    /// # Errors
    /// Code 3 with upstream's texts: negative page size, unknown sort or filter fields, foreign or mismatched tokens.
    pub fn parse(request: Request<'_>, listable: &Listable) -> Result<Self> {
        let size = match request.size {
            size if size < 0 => {
                return Err(Error::invalid(format!("The page size should be greater than 0. Got {size}")));
            }
            0 => DEFAULT_PAGE,
            size => size.min(MAX_PAGE),
        };
        let (sort_field, descending) = sort(request.sort_by, listable)?;
        let filter = Filter::parse(request.filter, request.generation, listable)?;
        let mut options =
            Options { size, sort: sort_field, descending, filter: filter.predicates, tags: filter.tags, from: None };
        if request.token.is_empty() {
            return Ok(options);
        }
        let bad = |cause: String| Error::invalid_because("Invalid page token", cause);
        let bytes = STANDARD.decode(request.token).map_err(|error| bad(error.to_string()))?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        let known = |column: &str| listable.fields.iter().find(|field| field.column == column);
        // Columns come back from the client: only those of this table are let through.
        let column = if token.column == listable.created {
            Some(Field { name: "created_at", column: listable.created, kind: Kind::Time })
        } else {
            known(&token.column).copied()
        };
        let column = column.filter(|_| token.kind == listable.kind);
        let column = column.ok_or_else(|| bad("the token belongs to another list".to_owned()))?;
        if token.filter.iter().any(|predicate| known(&predicate.column).is_none()) {
            return Err(bad("the token names an unknown column".to_owned()));
        }
        let tags_only = options.filter.is_empty() && !options.tags.is_empty();
        let given = !request.sort_by.is_empty() || (!request.filter.is_empty() && !tags_only);
        let same = token.column == options.sort.column
            && token.descending == options.descending
            && token.filter == options.filter;
        if given && !same {
            return Err(Error::invalid(MISMATCH));
        }
        options.sort = column;
        options.descending = token.descending;
        options.filter = token.filter;
        options.from = Some((token.value, token.id));
        Ok(options)
    }

    fn token(&self, listable: &Listable, value: Value, id: String) -> Result<String> {
        let token = Token {
            kind: listable.kind.to_owned(),
            column: self.sort.column.to_owned(),
            descending: self.descending,
            filter: self.filter.clone(),
            value,
            id,
        };
        let json = serde_json::to_vec(&token).map_err(|error| Error::internal("cannot write a page token", error))?;
        Ok(STANDARD.encode(json))
    }
}

fn conditions(sql: &mut Sql, scope: &[(&str, Value)], options: &Options, tags: Option<(&str, &str)>) {
    for (column, value) in scope {
        sql.and(column, "=", value.clone());
    }
    for predicate in &options.filter {
        predicate.apply(sql);
    }
    if let Some((table, column)) = tags {
        for (key, value) in &options.tags {
            sql.glue().ident(ID).push(" IN (SELECT ").ident(column).push(" FROM ").ident(table).push(" WHERE ");
            sql.ident("TagKey").push(" = ").bind(key).push(" AND ").ident("TagValue").push(" = ").bind(value).push(")");
        }
    }
}

/// Reads one page and the total count: two queries, whatever the page holds.
///
/// `scope` are fixed conditions of the request (parent, namespace, status); `tags` is the tag table and its id column.
///
/// # Errors
/// When the database fails or `read` does.
pub async fn page<T>(
    tx: &mut Tx,
    listable: &Listable,
    columns: &[&str],
    scope: &[(&str, Value)],
    tags: Option<(&str, &str)>,
    options: &Options,
    read: impl Fn(&Row) -> Result<T>,
) -> Result<Page<T>> {
    let dialect = tx.dialect();
    let mut count = Sql::new(dialect);
    count.push("SELECT COUNT(*) FROM ").ident(listable.table);
    conditions(&mut count, scope, options, tags);
    let total = tx.number(count).await?;

    let mut names = columns.to_vec();
    names.extend([options.sort.column, ID]);
    let mut sql = Sql::select(dialect, listable.table, &names);
    conditions(&mut sql, scope, options, tags);
    let (order, beyond, from) = if options.descending { ("DESC", "<", "<=") } else { ("ASC", ">", ">=") };
    if let Some((value, id)) = &options.from {
        let column = options.sort.column;
        sql.glue().push("(").ident(column).push(" ").push(beyond).push(" ").bind(value.clone());
        sql.push(" OR (").ident(column).push(" = ").bind(value.clone()).push(" AND ");
        sql.ident(ID).push(" ").push(from).push(" ").bind(id).push("))");
    }
    sql.push(" ORDER BY ").ident(options.sort.column).push(" ").push(order).push(", ").ident(ID).push(" ");
    sql.push(order).push(" LIMIT ").push(&(options.size + 1).to_string());
    let mut rows = tx.rows(sql).await?;
    let size = usize::try_from(options.size).unwrap_or_default();
    let mut next = String::new();
    if rows.len() > size {
        if let Some(row) = rows.last() {
            let value = match options.sort.kind {
                Kind::Text => Value::Text(row.text(columns.len())?),
                Kind::Int | Kind::Time => Value::Int(row.int(columns.len())?),
            };
            next = options.token(listable, value, row.text(columns.len() + 1)?)?;
        }
        rows.truncate(size);
    }
    let items = rows.iter().map(read).collect::<Result<Vec<T>>>()?;
    Ok(Page { items, total: i32::try_from(total).unwrap_or(i32::MAX), next })
}
