//! `filter_query`: a boolean expression in SQL's words over a node, its properties and its neighbours.
//!
//! As upstream, a mentioned property or neighbour must exist: it is joined, also under OR and IS NULL.

mod lexer;
mod parser;

use std::collections::BTreeMap;

use kfp_proto::ml_metadata as pb;

use crate::database::Param;
use crate::failure::{Failure, Outcome};
use crate::model::Kind;

/// A filter as parts of a query over a node table with the alias `N`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// ` JOIN ... ON ...` clauses.
    pub joins: String,
    /// Parameters of the joins, which come first in the query's text.
    pub join_params: Vec<Param>,
    /// The condition.
    pub condition: String,
    /// Parameters of the condition.
    pub condition_params: Vec<Param>,
}

/// The type of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Int,
    Real,
    Text,
    Bool,
    Null,
    Enum(Names),
}

/// The enumerations whose values a filter writes by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    ArtifactState,
    ExecutionState,
    EventType,
}

impl Names {
    fn number(self, name: &str) -> Option<i32> {
        match self {
            Self::ArtifactState => pb::artifact::State::from_str_name(name).map(|state| state as i32),
            Self::ExecutionState => pb::execution::State::from_str_name(name).map(|state| state as i32),
            Self::EventType => pb::event::Type::from_str_name(name).map(|kind| kind as i32),
        }
    }
}

/// Compiles the expression for nodes of a kind.
///
/// # Errors
/// INVALID_ARGUMENT with the reason and the column, in upstream's form.
pub fn compile(kind: Kind, query: &str) -> Outcome<Filter> {
    let tokens = lexer::tokens(query).map_err(|problem| problem.failure())?;
    parser::parse(&tokens, Scope::new(kind)).map_err(|problem| problem.failure())
}

/// What is wrong, and at which byte of the query.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Problem {
    message: String,
    at: usize,
}

impl Problem {
    fn new(at: usize, message: impl Into<String>) -> Self {
        Self { message: message.into(), at }
    }

    fn failure(&self) -> Failure {
        Failure::invalid(format!("Invalid `filter_query`: {} [at 1:{}]", self.message, self.at + 1))
    }
}

/// The names that an expression over nodes of a kind can use, and the joins that it has used.
struct Scope {
    kind: Kind,
    joins: String,
    params: Vec<Param>,
    aliases: BTreeMap<String, String>,
}

impl Scope {
    fn new(kind: Kind) -> Self {
        Self { kind, joins: String::new(), params: Vec::new(), aliases: BTreeMap::new() }
    }

    /// The alias of a joined thing; `join` writes the clause for a new one.
    fn alias(&mut self, thing: &str, join: impl FnOnce(&str) -> (String, Vec<Param>)) -> String {
        if let Some(alias) = self.aliases.get(thing) {
            return alias.clone();
        }
        let alias = format!("j{}", self.aliases.len());
        let (clause, params) = join(&alias);
        self.joins.push_str(&clause);
        self.params.extend(params);
        self.aliases.insert(thing.to_owned(), alias.clone());
        alias
    }

    /// SQL and type of a dotted name.
    fn resolve(&mut self, path: &[String], at: usize) -> Result<(String, Class), Problem> {
        let unknown = || Problem::new(at, format!("Unrecognized name: {}", path.join(".")));
        match path {
            [name] => self.attribute(name).ok_or_else(unknown),
            [family, name, value] if family == "properties" || family == "custom_properties" => {
                let class = match value.as_str() {
                    "int_value" => Class::Int,
                    "double_value" => Class::Real,
                    "string_value" => Class::Text,
                    "bool_value" => Class::Bool,
                    _ => return Err(Problem::new(at, format!("Field name {value} does not exist in a property"))),
                };
                let custom = family == "custom_properties";
                let (table, column) = (self.kind.table(), self.kind.id_column());
                let alias = self.alias(&format!("{family}.{name}"), |alias| {
                    let clause = format!(
                        " JOIN `{table}Property` {alias} ON {alias}.`{column}` = N.`id` \
                         AND {alias}.`is_custom_property` = ? AND {alias}.`name` = ?"
                    );
                    (clause, vec![custom.into(), name.as_str().into()])
                });
                Ok((format!("{alias}.`{value}`"), class))
            }
            [neighbour, field] => self.neighbour(neighbour, field, at)?.ok_or_else(unknown),
            _ => Err(unknown()),
        }
    }

    fn attribute(&mut self, name: &str) -> Option<(String, Class)> {
        let class = match name {
            "id" | "type_id" | "create_time_since_epoch" | "last_update_time_since_epoch" => Class::Int,
            "name" | "external_id" => Class::Text,
            "uri" if self.kind == Kind::Artifact => Class::Text,
            "state" if self.kind == Kind::Artifact => Class::Enum(Names::ArtifactState),
            "last_known_state" if self.kind == Kind::Execution => Class::Enum(Names::ExecutionState),
            "type" => {
                let alias =
                    self.alias("type", |alias| (format!(" JOIN `Type` {alias} ON {alias}.`id` = N.`type_id`"), vec![]));
                return Some((format!("{alias}.`name`"), Class::Text));
            }
            _ => return None,
        };
        Some((format!("N.`{name}`"), class))
    }

    fn neighbour(&mut self, name: &str, field: &str, at: usize) -> Result<Option<(String, Class)>, Problem> {
        let is = |prefix: &str| name.strip_prefix(prefix).is_some_and(|rest| !rest.is_empty());
        let missing = || Problem::new(at, format!("Field name {field} does not exist in {name}"));
        if is("events_") && self.kind != Kind::Context {
            let class = match field {
                "type" => Class::Enum(Names::EventType),
                "milliseconds_since_epoch" | "artifact_id" | "execution_id" => Class::Int,
                _ => return Err(missing()),
            };
            let column = self.kind.id_column();
            let alias =
                self.alias(name, |alias| (format!(" JOIN `Event` {alias} ON {alias}.`{column}` = N.`id`"), vec![]));
            return Ok(Some((format!("{alias}.`{field}`"), class)));
        }
        let (own, table, link, key, wanted) = match self.kind {
            Kind::Context if is("parent_contexts_") => {
                (Kind::Context, "Context", "ParentContext", "context_id", "parent_context_id")
            }
            Kind::Context if is("child_contexts_") => {
                (Kind::Context, "Context", "ParentContext", "parent_context_id", "context_id")
            }
            Kind::Context if is("artifacts_") => {
                (Kind::Artifact, "Artifact", "Attribution", "context_id", "artifact_id")
            }
            Kind::Context if is("executions_") => {
                (Kind::Execution, "Execution", "Association", "context_id", "execution_id")
            }
            Kind::Artifact if is("contexts_") => (Kind::Context, "Context", "Attribution", "artifact_id", "context_id"),
            Kind::Execution if is("contexts_") => {
                (Kind::Context, "Context", "Association", "execution_id", "context_id")
            }
            _ => return Ok(None),
        };
        let class = match field {
            "id" | "create_time_since_epoch" | "last_update_time_since_epoch" => Class::Int,
            "name" | "external_id" | "type" => Class::Text,
            "uri" if own == Kind::Artifact => Class::Text,
            "state" if own == Kind::Artifact => Class::Enum(Names::ArtifactState),
            "last_known_state" if own == Kind::Execution => Class::Enum(Names::ExecutionState),
            _ => return Err(missing()),
        };
        let alias = self.alias(name, |alias| {
            let clause = format!(
                " JOIN `{link}` {alias}l ON {alias}l.`{key}` = N.`id` \
                 JOIN `{table}` {alias} ON {alias}.`id` = {alias}l.`{wanted}` \
                 JOIN `Type` {alias}t ON {alias}t.`id` = {alias}.`type_id`"
            );
            (clause, vec![])
        });
        Ok(Some((if field == "type" { format!("{alias}t.`name`") } else { format!("{alias}.`{field}`") }, class)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_of_the_driver_joins_one_property() {
        let filter = compile(Kind::Execution, "custom_properties.parent_dag_id.int_value = 5").unwrap();
        assert_eq!(
            filter.joins,
            " JOIN `ExecutionProperty` j0 ON j0.`execution_id` = N.`id` AND j0.`is_custom_property` = ? \
             AND j0.`name` = ?"
        );
        assert_eq!(filter.join_params, [Param::Bool(true), "parent_dag_id".into()]);
        assert_eq!(filter.condition, "(j0.`int_value` = ?)");
        assert_eq!(filter.condition_params, [Param::Int(5)]);
    }

    #[test]
    fn values_are_bound_and_never_become_sql() {
        let filter = compile(Kind::Artifact, r#"uri = 'x\' OR 1=1 --' AND properties.`a"b`.string_value = "y""#);
        let filter = filter.unwrap();
        assert_eq!(filter.condition, "((N.`uri` = ?) AND (j0.`string_value` = ?))");
        assert_eq!(filter.condition_params, ["x' OR 1=1 --".into(), "y".into()]);
        assert_eq!(filter.join_params, [Param::Bool(false), "a\"b".into()]);
    }

    #[test]
    fn wrong_filters_are_refused() {
        for query in [
            "uri = 'abc",
            "nope = 1",
            "id > 'x'",
            "id = 1 = true",
            "state = 2",
            "state = NOPE",
            "contexts_a.zork = 1",
            "last_known_state = NEW",
            "id",
            "id = 1 AND",
            "(id = 1",
            "id IN ()",
            "lower(uri) = ''",
            "id = 1; DROP TABLE Artifact",
            "properties.a.b.int_value = 1",
            &"(".repeat(10_000),
            &"NOT ".repeat(10_000),
        ] {
            let code = compile(Kind::Artifact, query).map_err(|failure| failure.code);
            assert_eq!(code, Err(tonic::Code::InvalidArgument), "{}", &query[..query.len().min(40)]);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_filter_makes_it_panic(query in "[a-z_.`'\"()=<>!,0-9 \\\\-]{0,40}") {
            let _ = compile(Kind::Execution, &query);
        }
    }
}
