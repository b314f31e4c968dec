//! Lists of what is not in a table: filtered, sorted and paged in memory.

use std::cmp::Ordering;

use super::filter::{Operation, Predicate};
use super::list::{Listable, Options, Order, Page};
use super::pipelines::Pipeline;
use super::sql::Value;
use super::tagged::Tags;
use super::versions::Version;
use crate::error::{Error, Result};

/// Something with columns.
pub trait Row {
    /// Primary key.
    fn id(&self) -> &str;
    /// The value of a column; NULL when there is no such column.
    fn column(&self, name: &str) -> Value;
    /// Its tags.
    fn tags(&self) -> &Tags;
}

impl Row for Pipeline {
    fn id(&self) -> &str {
        &self.id
    }

    fn column(&self, name: &str) -> Value {
        match name {
            "UUID" => (&self.id).into(),
            "Name" => (&self.name).into(),
            "DisplayName" => (&self.display_name).into(),
            "CreatedAtInSec" => self.created_at.into(),
            "Description" => (&self.description).into(),
            "Namespace" => (&self.namespace).into(),
            _ => Value::Null,
        }
    }

    fn tags(&self) -> &Tags {
        &self.tags
    }
}

impl Row for Version {
    fn id(&self) -> &str {
        &self.id
    }

    fn column(&self, name: &str) -> Value {
        match name {
            "UUID" => (&self.id).into(),
            "Name" => (&self.name).into(),
            "DisplayName" => (&self.display_name).into(),
            "CreatedAtInSec" => self.created_at.into(),
            "Status" => super::pipelines::READY.into(),
            "Description" => (&self.description).into(),
            "PipelineSpec" => (&self.spec).into(),
            _ => Value::Null,
        }
    }

    fn tags(&self) -> &Tags {
        &self.tags
    }
}

/// As compared: without case.
fn folded(value: &Value) -> Value {
    match value {
        Value::Text(text) => Value::Text(text.to_lowercase()),
        other => other.clone(),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Text(text) => text.to_lowercase(),
        Value::Int(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        Value::Null => String::new(),
    }
}

type Test = fn(&str, &[String]) -> bool;

/// How values are tested; only what upstream can do with objects.
fn test(operation: Operation) -> Result<Test> {
    let name = match operation {
        Operation::Eq | Operation::In => return Ok(|value, wanted| wanted.iter().any(|wanted| wanted == value)),
        Operation::Ne => return Ok(|value, wanted| wanted.iter().all(|wanted| wanted != value)),
        Operation::Substring => return Ok(|value, wanted| wanted.iter().all(|wanted| value.contains(wanted))),
        Operation::Gt => "gt",
        Operation::Ge => "gte",
        Operation::Lt => "lt",
        Operation::Le => "lte",
    };
    Err(Error::invalid(format!(
        "Filter {name} is not implemented for Kubernetes pipeline store. Supported filters are eq, neq, in, and substring."
    )))
}

fn compare(one: &Value, other: &Value) -> Ordering {
    match (one, other) {
        (Value::Int(one), Value::Int(other)) => one.cmp(other),
        (one, other) => shown(one).cmp(&shown(other)),
    }
}

/// One page of rows.
///
/// # Errors
/// Code 3 for filters that compare in another way than by equality, membership or substring.
pub fn page<T: Row>(rows: Vec<T>, options: &Options, listable: &Listable) -> Result<Page<T>> {
    let column = match &options.order {
        Order::Field(field) => field.column,
        Order::Metric(_) => listable.created,
    };
    let ready = |predicate: &Predicate| {
        let wanted: Vec<String> = predicate.values.iter().map(shown).collect();
        Ok((predicate.column.clone(), test(predicate.operation)?, wanted))
    };
    let filter: Vec<(String, Test, Vec<String>)> = options.filter.iter().map(ready).collect::<Result<_>>()?;
    let fits = |row: &T| {
        options.tags.iter().all(|(key, value)| row.tags().get(key) == Some(value))
            && filter.iter().all(|(column, test, wanted)| test(&shown(&row.column(column)), wanted))
    };
    let kept = rows.into_iter().filter(fits);
    let mut kept: Vec<(Value, T)> = kept.map(|row| (folded(&row.column(column)), row)).collect();
    let order = |one: &(Value, T), value: &Value, id: &str| {
        let order = compare(&one.0, value).then_with(|| one.1.id().cmp(id));
        if options.descending { order.reverse() } else { order }
    };
    kept.sort_by(|one, other| order(one, &other.0, other.1.id()));
    let total = i32::try_from(kept.len()).unwrap_or(i32::MAX);
    if let Some((value, id)) = &options.from {
        kept.retain(|row| order(row, value, id) != Ordering::Less);
    }
    let size = usize::try_from(options.size).unwrap_or_default();
    let next = match kept.get(size) {
        Some((value, row)) => options.token(listable, value.clone(), row.id().to_owned())?,
        None => String::new(),
    };
    kept.truncate(size);
    Ok(Page { items: kept.into_iter().map(|(_, row)| row).collect(), total, next })
}
