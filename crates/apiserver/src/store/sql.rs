//! SQL text for three dialects: quoting, placeholders and the statements that every table uses.

/// A bound or read value.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Value {
    /// SQL NULL.
    Null,
    /// Integers and times (Unix seconds).
    Int(i64),
    /// Truth values.
    Bool(bool),
    /// Everything else.
    Text(String),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}
impl From<&String> for Value {
    fn from(text: &String) -> Self {
        Value::Text(text.clone())
    }
}
impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::Text(text)
    }
}
impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Value::Int(number)
    }
}
impl From<bool> for Value {
    fn from(truth: bool) -> Self {
        Value::Bool(truth)
    }
}
impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Value::Null, Into::into)
    }
}

/// Which database speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// One file, one writer.
    Sqlite,
    /// Backtick quoting, `?` placeholders.
    MySql,
    /// Double quotes (the schema is mixed case), `$n` placeholders.
    Postgres,
}

impl Dialect {
    /// `name` quoted as an identifier.
    #[must_use]
    pub fn quote(self, name: &str) -> String {
        match self {
            Dialect::MySql => format!("`{name}`"),
            Dialect::Sqlite | Dialect::Postgres => format!("\"{name}\""),
        }
    }
}

/// A statement under construction. Identifiers come only from constants in this crate; values only through `bind`.
#[derive(Clone, Debug)]
pub struct Sql {
    dialect: Dialect,
    text: String,
    values: Vec<Value>,
}

impl Sql {
    /// An empty statement.
    #[must_use]
    pub fn new(dialect: Dialect) -> Self {
        Sql { dialect, text: String::new(), values: Vec::new() }
    }

    /// `SELECT columns FROM table`.
    #[must_use]
    pub fn select(dialect: Dialect, table: &str, columns: &[&str]) -> Self {
        let mut sql = Sql::new(dialect);
        sql.push("SELECT ").columns(columns).push(" FROM ").ident(table);
        sql
    }

    /// `INSERT INTO table (...) VALUES (...)`.
    #[must_use]
    pub fn insert(dialect: Dialect, table: &str, row: Vec<(&str, Value)>) -> Self {
        let mut sql = Sql::new(dialect);
        let (names, values): (Vec<&str>, Vec<Value>) = row.into_iter().unzip();
        sql.push("INSERT INTO ").ident(table).push(" (").columns(&names).push(") VALUES (").binds(values).push(")");
        sql
    }

    /// `UPDATE table SET ...`; the caller appends the condition.
    #[must_use]
    pub fn update(dialect: Dialect, table: &str, set: Vec<(&str, Value)>) -> Self {
        let mut sql = Sql::new(dialect);
        sql.push("UPDATE ").ident(table).push(" SET ");
        for (index, (name, value)) in set.into_iter().enumerate() {
            sql.push(if index == 0 { "" } else { ", " }).ident(name).push(" = ").bind(value);
        }
        sql
    }

    /// `DELETE FROM table`; the caller appends the condition.
    #[must_use]
    pub fn delete(dialect: Dialect, table: &str) -> Self {
        let mut sql = Sql::new(dialect);
        sql.push("DELETE FROM ").ident(table);
        sql
    }

    /// Appends fixed text.
    pub fn push(&mut self, text: &str) -> &mut Self {
        self.text.push_str(text);
        self
    }

    /// Appends a quoted identifier.
    pub fn ident(&mut self, name: &str) -> &mut Self {
        self.text.push_str(&self.dialect.quote(name));
        self
    }

    /// Appends quoted identifiers, separated by commas.
    pub fn columns(&mut self, names: &[&str]) -> &mut Self {
        for (index, name) in names.iter().enumerate() {
            self.push(if index == 0 { "" } else { ", " }).ident(name);
        }
        self
    }

    /// Appends a placeholder for `value`.
    pub fn bind(&mut self, value: impl Into<Value>) -> &mut Self {
        self.values.push(value.into());
        match self.dialect {
            Dialect::Postgres => self.text.push_str(&format!("${}", self.values.len())),
            Dialect::Sqlite | Dialect::MySql => self.text.push('?'),
        }
        self
    }

    /// Appends placeholders, separated by commas.
    pub fn binds(&mut self, values: impl IntoIterator<Item = Value>) -> &mut Self {
        for (index, value) in values.into_iter().enumerate() {
            self.push(if index == 0 { "" } else { ", " }).bind(value);
        }
        self
    }

    /// Appends `WHERE` or `AND`, then `column op ?`.
    pub fn and(&mut self, column: &str, op: &str, value: impl Into<Value>) -> &mut Self {
        self.glue().ident(column).push(" ").push(op).push(" ").bind(value)
    }

    /// Appends `WHERE` or `AND`, then `column IN (...)`; nothing matches an empty list.
    pub fn and_in(&mut self, column: &str, values: Vec<Value>) -> &mut Self {
        if values.is_empty() {
            return self.glue().push("1 = 0");
        }
        self.glue().ident(column).push(" IN (").binds(values).push(")")
    }

    /// Appends `WHERE` before the first condition and `AND` before the others.
    pub fn glue(&mut self) -> &mut Self {
        let word = if self.text.contains(" WHERE ") { " AND " } else { " WHERE " };
        self.push(word)
    }

    /// The dialect it is written for.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Text and values for the driver.
    #[must_use]
    pub fn finish(self) -> (String, Vec<Value>) {
        (self.text, self.values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_quotes_and_numbers_its_own_way() {
        let build = |dialect| {
            let mut sql = Sql::select(dialect, "runs", &["UUID", "Name"]);
            sql.and("UUID", "=", "a").and_in("Name", vec!["x".into(), "y".into()]);
            sql.finish().0
        };
        assert_eq!(build(Dialect::MySql), "SELECT `UUID`, `Name` FROM `runs` WHERE `UUID` = ? AND `Name` IN (?, ?)");
        assert_eq!(
            build(Dialect::Postgres),
            "SELECT \"UUID\", \"Name\" FROM \"runs\" WHERE \"UUID\" = $1 AND \"Name\" IN ($2, $3)"
        );
    }

    #[test]
    fn an_empty_list_matches_nothing() {
        let mut sql = Sql::delete(Dialect::Sqlite, "runs");
        sql.and_in("UUID", vec![]);
        assert_eq!(sql.finish().0, "DELETE FROM \"runs\" WHERE 1 = 0");
    }
}
