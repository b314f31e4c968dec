//! What databases disagree on. SQL is written once, with `?` and back-quotes.

use std::borrow::Cow;
use std::fmt::Write as _;

use super::value::Param;

/// The language of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// SQLite 3.35 or later.
    Sqlite,
    /// MySQL 8 or later, MariaDB 10.5 or later.
    MySql,
    /// PostgreSQL 12 or later.
    Postgres,
}

impl Dialect {
    /// Whether nobody else can write while a transaction that writes is under way.
    pub fn writes_alone(self) -> bool {
        self == Self::Sqlite
    }

    /// A statement in this language with the parameters that are to be bound.
    ///
    /// PostgreSQL's placeholders carry their types, because the server decides on the types of a statement once while
    /// the same text is used with values of several; NULL, which has none, is written out. Names lose their quotes:
    /// upstream's PostgreSQL tables have names in lower case.
    pub fn statement(self, sql: Cow<'static, str>, params: Vec<Param>) -> (Cow<'static, str>, Vec<Param>) {
        if self != Self::Postgres {
            return (sql, params);
        }
        let mut text = String::with_capacity(sql.len() + params.len() * 6);
        let mut bound = Vec::with_capacity(params.len());
        let mut params = params.into_iter();
        for c in sql.chars() {
            match c {
                '`' => {}
                '?' => {
                    let kind = match params.next() {
                        None | Some(Param::Null) => {
                            text.push_str("NULL");
                            continue;
                        }
                        Some(param) => {
                            let kind = match &param {
                                Param::Bool(_) => "bool",
                                Param::Real(_) => "float8",
                                Param::Text(_) => "text",
                                Param::Bytes(_) => "bytea",
                                Param::Int(_) | Param::Null => "int8",
                            };
                            bound.push(param);
                            kind
                        }
                    };
                    // Writing to a string does not fail.
                    let _ = write!(text, "${}::{kind}", bound.len());
                }
                c => text.push(c),
            }
        }
        (text.into(), bound)
    }

    /// What an INSERT begins with so that rows whose keys are taken are left out, and what it ends with.
    pub fn insert_missing(self) -> (&'static str, &'static str) {
        match self {
            Self::Sqlite | Self::Postgres => ("INSERT", " ON CONFLICT DO NOTHING"),
            Self::MySql => ("INSERT IGNORE", ""),
        }
    }

    /// An INSERT's end that makes the database answer the new row's id, where the driver does not tell it anyway.
    pub fn returning_id(self) -> &'static str {
        if self == Self::Postgres { " RETURNING `id`" } else { "" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postgres_gets_typed_numbered_placeholders() {
        let params = || vec![Param::Int(1), Param::Null, "x".into(), true.into(), 0.5.into(), vec![1].into()];
        let sql = "INSERT INTO `Event`(`a`) VALUES (?,?,?,?,?,?)";
        let (text, bound) = Dialect::Postgres.statement(sql.into(), params());
        assert_eq!(text, "INSERT INTO Event(a) VALUES ($1::int8,NULL,$2::text,$3::bool,$4::float8,$5::bytea)");
        assert_eq!(bound.len(), 5);
        assert_eq!(Dialect::MySql.statement(sql.into(), params()), (sql.into(), params()));
    }
}
