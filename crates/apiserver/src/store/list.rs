//! List queries: sorting, filters and keyset pages over one table.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::db::{Row, Tx};
use super::filter::{Filter, Generation, Operation, Predicate, storable};
use super::sql::{Dialect, Sql, Value};
use super::totals::Counted;
use crate::error::{Error, Result};

/// Rows of a page when the request does not say.
const DEFAULT_PAGE: i32 = 20;
/// Most rows of a page; larger requests are cut to it.
const MAX_PAGE: i32 = 200;
/// Up to this many rows that a search finds are sorted to make a page.
const FEW: i64 = 1_000;
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
    /// As a floating-point number.
    Float,
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
    /// Whether old rows have NULL there, which counts as the empty text or 0.
    pub nullable: bool,
}

impl Field {
    /// The same field of a column that may be NULL.
    #[must_use]
    pub const fn nullable(self) -> Self {
        Field { nullable: true, ..self }
    }
}

/// Shorthand for a text [`Field`].
pub const fn text(name: &'static str, column: &'static str) -> Field {
    Field { name, column, kind: Kind::Text, nullable: false }
}

/// Shorthand for a time [`Field`].
pub const fn time(name: &'static str, column: &'static str) -> Field {
    Field { name, column, kind: Kind::Time, nullable: false }
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
    /// The tag table and its id column, when `tags.KEY` may be filtered by.
    pub tags: Option<(&'static str, &'static str)>,
    /// A column, and the table in which SQLite finds the rows that have a text as a part of it.
    pub parts: Option<(&'static str, &'static str)>,
    /// The table of metrics and its id column, when `metric:NAME` may be sorted by.
    pub metrics: Option<(&'static str, &'static str)>,
}

/// Shorter texts, in characters, are in no index of parts.
const TRIGRAM: usize = 3;
/// Primary key of every listable table.
const ID: &str = "UUID";
/// What a run without the metric counts as, so that it comes before all others.
const NO_METRIC: f64 = f64::MIN;
/// How requests name a metric to sort by.
const METRIC: &str = "metric:";

impl Listable {
    /// The field that a filter names; names are case-sensitive there.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    fn of_column(&self, column: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.column == column)
    }

    /// The order that a page token names.
    fn order(&self, key: &str) -> Option<Order> {
        match key.strip_prefix(METRIC) {
            Some(name) => self.metrics.map(|_| Order::Metric(name.to_owned())),
            None if key == self.created => Some(Order::Field(time("created_at", self.created))),
            None => self.of_column(key).map(|field| Order::Field(*field)),
        }
    }
}

/// What a list is ordered by before the id.
#[derive(Clone, Debug)]
pub(super) enum Order {
    Field(Field),
    Metric(String),
}

impl Order {
    /// Its name in page tokens.
    fn key(&self) -> String {
        match self {
            Order::Field(field) => field.column.to_owned(),
            Order::Metric(name) => format!("{METRIC}{name}"),
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Order::Field(field) => field.kind,
            Order::Metric(_) => Kind::Float,
        }
    }

    /// Appends the ordered value of a row; never NULL, which the databases put in different places.
    fn push(&self, sql: &mut Sql, listable: &Listable) {
        match (self, listable.metrics) {
            (Order::Field(field), _) if !field.nullable => drop(sql.ident(field.column)),
            (Order::Field(field), _) => {
                let instead = if field.kind == Kind::Text { ", '')" } else { ", 0)" };
                sql.push("COALESCE(").ident(field.column).push(instead);
            }
            (Order::Metric(name), Some((table, column))) => {
                // Several nodes may report a metric of the same name.
                sql.push("COALESCE((SELECT ");
                let number = if sql.dialect() == Dialect::Postgres { "CAST(MAX(" } else { "(MAX(" };
                sql.push(number).ident("NumberValue");
                sql.push(if sql.dialect() == Dialect::Postgres { ") AS double precision)" } else { "))" });
                sql.push(" FROM ").ident(table).push(" WHERE ").ident(table).push(".").ident(column).push(" = ");
                sql.ident(listable.table).push(".").ident(ID).push(" AND ").ident(table).push(".").ident("Name");
                sql.push(" = ").bind(name).push("), ").bind(NO_METRIC).push(")");
            }
            (Order::Metric(_), None) => drop(sql.ident(ID)),
        }
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
    pub(super) size: i32,
    pub(super) order: Order,
    pub(super) descending: bool,
    pub(super) filter: Vec<Predicate>,
    pub(super) tags: Vec<(String, String)>,
    pub(super) from: Option<(Value, String)>,
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

fn sort(sort_by: &str, listable: &Listable) -> Result<(Order, bool)> {
    let lower = sort_by.to_lowercase();
    let words: Vec<&str> = lower.split_whitespace().collect();
    let (name, descending) = match words.as_slice() {
        [] => return Ok((Order::Field(time("created_at", listable.created)), false)),
        [name] | [name, "asc"] => (*name, false),
        [name, "desc"] => (*name, true),
        _ => {
            return Err(Error::invalid(format!(
                "Received invalid sort by format \"{sort_by}\". Supported format: \"field_name\", \"field_name desc\", or \
                 \"field_name asc\""
            )));
        }
    };
    if listable.metrics.is_some()
        && name.starts_with(METRIC)
        // Metrics are told apart by case where the database does so.
        && let Some(metric) = sort_by.split_whitespace().next().and_then(|word| word.get(METRIC.len()..))
        && !metric.contains('\0')
    {
        return Ok((Order::Metric(metric.to_owned()), descending));
    }
    let field = listable.fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
        Error::invalid(format!("Invalid sorting field: \"{name}\" on listable type {}", listable.kind))
    })?;
    Ok((Order::Field(*field), descending))
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
        let (order, descending) = sort(request.sort_by, listable)?;
        let filter = Filter::parse(request.filter, request.generation, listable)?;
        let mut options = Options { size, order, descending, filter: filter.predicates, tags: filter.tags, from: None };
        if request.token.is_empty() {
            return Ok(options);
        }
        let bad = |cause: String| Error::invalid_because("Invalid page token", cause);
        let bytes = STANDARD.decode(request.token).map_err(|error| bad(error.to_string()))?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        // Tokens come back from the client: only what this list could have written is let through.
        let order = Some(&token).filter(|token| token.kind == listable.kind);
        let order = order.and_then(|token| listable.order(&token.column));
        let order = order.ok_or_else(|| bad("the token belongs to another list".to_owned()))?;
        for predicate in &token.filter {
            let field = listable.of_column(&predicate.column);
            if !field.is_some_and(|field| predicate.fits(field)) {
                return Err(bad("the token has a filter that this list does not have".to_owned()));
            }
        }
        let fits = matches!(
            (order.kind(), &token.value),
            (Kind::Text, Value::Text(_)) | (Kind::Int | Kind::Time, Value::Int(_)) | (Kind::Float, Value::Float(_))
        );
        let nul = [&token.column, &token.id].into_iter().any(|text| text.contains('\0'));
        if !fits || nul || !storable(&token.value) {
            return Err(bad("the token names a row that this list cannot have".to_owned()));
        }
        let tags_only = options.filter.is_empty() && !options.tags.is_empty();
        let given = !request.sort_by.is_empty() || (!request.filter.is_empty() && !tags_only);
        let same = token.column == options.order.key()
            && token.descending == options.descending
            && token.filter == options.filter;
        if given && !same {
            return Err(Error::invalid(MISMATCH));
        }
        options.order = order;
        options.descending = token.descending;
        options.filter = token.filter;
        options.from = Some((token.value, token.id));
        Ok(options)
    }

    pub(super) fn token(&self, listable: &Listable, value: Value, id: String) -> Result<String> {
        let token = Token {
            kind: listable.kind.to_owned(),
            column: self.order.key(),
            descending: self.descending,
            filter: self.filter.clone(),
            value,
            id,
        };
        let json = serde_json::to_vec(&token).map_err(|error| Error::internal("cannot write a page token", error))?;
        Ok(STANDARD.encode(json))
    }

    /// Appends the conditions that decide which rows the list has.
    fn conditions(&self, sql: &mut Sql, listable: &Listable, scope: &[(&str, Value)]) {
        for (column, value) in scope {
            sql.and(column, "=", value.clone());
        }
        for predicate in &self.filter {
            predicate.apply(sql, listable.of_column(&predicate.column).map_or(Kind::Text, |field| field.kind));
        }
        if let Some((table, column)) = listable.tags {
            for (key, value) in &self.tags {
                sql.glue().ident(ID).push(" IN (SELECT ").ident(column).push(" FROM ").ident(table).push(" WHERE ");
                sql.ident("TagKey").push(" = ").bind(key).push(" AND ").ident("TagValue").push(" = ").bind(value);
                sql.push(")");
            }
        }
    }

    /// Appends the condition that leaves out the pages before.
    fn start(&self, sql: &mut Sql, listable: &Listable) {
        let Some((value, id)) = &self.from else { return };
        let (beyond, from) = if self.descending { (" < ", " <= ") } else { (" > ", " >= ") };
        sql.glue();
        if sql.dialect() == Dialect::MySql {
            // Its optimizer finds the place in the index only through a plain comparison.
            self.order.push(sql, listable);
            sql.push(from).bind(value.clone()).push(" AND (");
            self.order.push(sql, listable);
            sql.push(beyond).bind(value.clone()).push(" OR ").ident(ID).push(from).bind(id).push(")");
        } else {
            sql.push("(");
            self.order.push(sql, listable);
            sql.push(", ").ident(ID).push(")").push(from).push("(").bind(value.clone()).push(", ").bind(id).push(")");
        }
    }

    /// The index that finds a part of a text, and the phrase to ask it for.
    fn part(&self, dialect: Dialect, listable: &Listable) -> Option<(&'static str, String)> {
        let (column, index) = listable.parts.filter(|_| dialect == Dialect::Sqlite)?;
        let texts =
            self.filter.iter().filter_map(|predicate| match (predicate.operation, predicate.values.as_slice()) {
                (Operation::Substring, [Value::Text(text)]) if predicate.column == column => Some(text),
                _ => None,
            });
        let text = texts.max_by_key(|text| text.len()).filter(|text| text.chars().count() >= TRIGRAM)?;
        Some((index, format!("\"{}\"", text.replace('"', "\"\""))))
    }

    /// Appends a query of the ids of all rows that the list has.
    fn ids(&self, sql: &mut Sql, listable: &Listable, scope: &[(&str, Value)]) {
        sql.push("SELECT ").ident(ID).push(" FROM ");
        let Some((index, phrase)) = self.part(sql.dialect(), listable) else {
            sql.ident(listable.table);
            self.conditions(sql, listable, scope);
            return;
        };
        // What the index finds is read row by row: if that is much, reading all texts in their order is faster. The
        // number comes first in a join, so that only one of the two queries does anything.
        for (few, word) in [(true, " <= "), (false, " > ")] {
            sql.nested(|sql| {
                sql.push("SELECT ").ident(ID).push(" FROM ");
                sql.nested(|sql| {
                    sql.push("SELECT COUNT(*) AS candidates FROM ").nested(|sql| {
                        sql.push("SELECT 1 FROM ").ident(index).glue().ident(index).push(" MATCH ").bind(&phrase);
                        sql.push(" LIMIT ").push(&(FEW + 1).to_string());
                    });
                });
                sql.push(" CROSS JOIN ").ident(listable.table).glue();
                sql.push("candidates").push(word).push(&FEW.to_string());
                self.conditions(sql, listable, scope);
                if few {
                    sql.glue().ident(ID).push(" IN ").nested(|sql| {
                        sql.push("SELECT ").ident(ID).push(" FROM ").ident(index).glue().ident(index);
                        sql.push(" MATCH ").bind(&phrase);
                    });
                }
            });
            if few {
                sql.push(" UNION ALL SELECT ").ident(ID).push(" FROM ");
            }
        }
    }

    async fn total(&self, tx: &mut Tx, listable: &Listable, scope: &[(&str, Value)]) -> Result<i64> {
        let mut count = Sql::new(tx.dialect());
        count.push("SELECT COUNT(*) FROM ");
        if self.part(tx.dialect(), listable).is_some() {
            count.nested(|sql| self.ids(sql, listable, scope));
        } else {
            count.ident(listable.table);
            self.conditions(&mut count, listable, scope);
        }
        if !self.tags.is_empty() {
            return tx.number(count).await;
        }
        let scope = scope.iter().map(|(column, value)| Predicate {
            column: (*column).to_owned(),
            operation: Operation::Eq,
            values: vec![value.clone()],
        });
        let conditions = scope.chain(self.filter.iter().cloned()).collect();
        tx.total(Counted { table: listable.table, conditions }, count).await
    }
}

/// Reads one page and the total count: at most two queries, whatever the page holds.
///
/// `scope` are fixed conditions of the request (parent, namespace, status).
///
/// # Errors
/// When the database fails or `read` does.
pub async fn page<T>(
    tx: &mut Tx,
    listable: &Listable,
    columns: &[&str],
    scope: &[(&str, Value)],
    options: &Options,
    read: impl Fn(&Row) -> Result<T>,
) -> Result<Page<T>> {
    // A part of a text can only be searched for in all rows. The database does so in the smallest index that has the
    // text, unless it is asked for an order, in which it then reads row after row until the page is full: good only if
    // many rows fit.
    let searches = options.filter.iter().any(|predicate| predicate.operation == Operation::Substring);
    let found = if searches { Some(options.total(tx, listable, scope).await?) } else { None };
    let mut sql = Sql::new(tx.dialect());
    sql.push("SELECT ").columns(columns).push(", ").ident(ID).push(", ");
    options.order.push(&mut sql, listable);
    sql.push(" FROM ").ident(listable.table);
    if found.is_some_and(|found| found <= FEW) {
        sql.glue().ident(ID).push(" IN (SELECT ").ident(ID).push(" FROM ");
        sql.nested(|sql| {
            options.ids(sql, listable, scope);
            // Far from reached, but it keeps this query apart from the rest.
            sql.push(" LIMIT ").push(&(FEW * 100).to_string());
        });
        sql.push(" AS found)");
    } else {
        options.conditions(&mut sql, listable, scope);
    }
    options.start(&mut sql, listable);
    let direction = if options.descending { " DESC" } else { " ASC" };
    sql.push(" ORDER BY ");
    options.order.push(&mut sql, listable);
    sql.push(direction).push(", ").ident(ID).push(direction).push(" LIMIT ").push(&(options.size + 1).to_string());
    let mut rows = tx.rows(sql).await?;
    let size = usize::try_from(options.size).unwrap_or_default();
    let mut next = String::new();
    if rows.len() > size {
        if let Some(row) = rows.last() {
            let value = match options.order.kind() {
                Kind::Text => Value::Text(row.text(columns.len() + 1)?),
                Kind::Int | Kind::Time => Value::Int(row.int(columns.len() + 1)?),
                Kind::Float => Value::Float(row.float(columns.len() + 1)?.unwrap_or(NO_METRIC)),
            };
            next = options.token(listable, value, row.text(columns.len())?)?;
        }
        rows.truncate(size);
    }
    let total = match found {
        _ if options.from.is_none() && next.is_empty() => i64::try_from(rows.len()).unwrap_or(i64::MAX),
        Some(found) => found,
        None => options.total(tx, listable, scope).await?,
    };
    let total = i32::try_from(total).unwrap_or(i32::MAX);
    let items = rows.iter().map(read).collect::<Result<Vec<T>>>()?;
    Ok(Page { items, total, next })
}
