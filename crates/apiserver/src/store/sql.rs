//! SQL text for three dialects: quoting, placeholders and the statements that every table uses.

use super::schema::limit;

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
    /// Numbers of metrics.
    Float(f64),
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
impl From<i32> for Value {
    fn from(number: i32) -> Self {
        Value::Int(i64::from(number))
    }
}
impl From<f64> for Value {
    fn from(number: f64) -> Self {
        Value::Float(number)
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
        let mark = match self {
            Dialect::MySql => '`',
            Dialect::Sqlite | Dialect::Postgres => '"',
        };
        let mut quoted = String::with_capacity(name.len() + 2);
        quoted.push(mark);
        for letter in name.chars() {
            if letter == mark {
                quoted.push(mark);
            }
            quoted.push(letter);
        }
        quoted.push(mark);
        quoted
    }
}

/// Longest text, in bytes, that is kept of an added row.
const SHORT: usize = 255;

/// What a statement does to which table.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Only reads, or changes the schema.
    None,
    /// Adds a row; its long values are left out.
    Insert(&'static str, Vec<(&'static str, Value)>),
    /// Sets columns of rows.
    Update(&'static str, Vec<&'static str>),
    /// Removes rows.
    Delete(&'static str),
}

/// A statement under construction. Identifiers come only from constants in this crate; values only through `bind`.
#[derive(Clone, Debug)]
pub struct Sql {
    dialect: Dialect,
    change: Change,
    text: String,
    values: Vec<Value>,
    conditions: bool,
    misfit: Option<String>,
}

/// PostgreSQL has no such texts, so that nothing is equal to them there.
fn has_nul(value: &Value) -> bool {
    matches!(value, Value::Text(text) if text.contains('\0'))
}

/// Says which value its column does not take. The rule is one for all databases: upstream's lengths on MySQL, although
/// others have no limit and a lenient MySQL would cut the rest off, and no NUL.
fn misfit(table: &str, row: &[(&str, Value)]) -> Option<String> {
    row.iter().find_map(|(column, value)| {
        let Value::Text(text) = value else { return None };
        if has_nul(value) {
            return Some(format!("{table}.{column} must not contain a NUL character"));
        }
        // Bytes first, which are there without counting.
        let limit = limit(table, column).filter(|limit| text.len() > *limit)?;
        (text.chars().count() > limit).then(|| format!("{table}.{column} length cannot exceed {limit}"))
    })
}

impl Sql {
    /// An empty statement.
    #[must_use]
    pub fn new(dialect: Dialect) -> Self {
        Sql { dialect, change: Change::None, text: String::new(), values: Vec::new(), conditions: false, misfit: None }
    }

    /// `SELECT columns FROM table`.
    #[must_use]
    pub fn select(dialect: Dialect, table: &str, columns: &[&str]) -> Self {
        let mut sql = Sql::new(dialect);
        sql.push("SELECT ").columns(columns).push(" FROM ").ident(table);
        sql
    }

    /// `INSERT INTO table (...) VALUES (...)`. A row whose key is taken is not stored, see [`super::Tx::execute`].
    #[must_use]
    pub fn insert(dialect: Dialect, table: &'static str, row: Vec<(&'static str, Value)>) -> Self {
        let mut sql = Sql::new(dialect);
        sql.misfit = misfit(table, &row);
        let short = |value: &Value| !matches!(value, Value::Text(text) if text.len() > SHORT);
        sql.change = Change::Insert(table, row.iter().filter(|(_, value)| short(value)).cloned().collect());
        let (names, values): (Vec<&str>, Vec<Value>) = row.into_iter().unzip();
        sql.push("INSERT INTO ").ident(table).push(" (").columns(&names).push(") VALUES (").binds(values).push(")");
        if dialect == Dialect::Postgres {
            // A statement that fails would end the whole transaction there.
            sql.push(" ON CONFLICT DO NOTHING");
        }
        sql
    }

    /// `UPDATE table SET ...`; the caller appends the condition.
    #[must_use]
    pub fn update(dialect: Dialect, table: &'static str, set: Vec<(&'static str, Value)>) -> Self {
        let mut sql = Sql::new(dialect);
        sql.misfit = misfit(table, &set);
        sql.change = Change::Update(table, set.iter().map(|(column, _)| *column).collect());
        sql.push("UPDATE ").ident(table).push(" SET ");
        for (index, (name, value)) in set.into_iter().enumerate() {
            sql.push(if index == 0 { "" } else { ", " }).ident(name).push(" = ").bind(value);
        }
        sql
    }

    /// `DELETE FROM table`; the caller appends the condition.
    #[must_use]
    pub fn delete(dialect: Dialect, table: &'static str) -> Self {
        let mut sql = Sql::new(dialect);
        sql.change = Change::Delete(table);
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

    /// Appends a placeholder for `value`, or the word NULL, which has no type of its own.
    pub fn bind(&mut self, value: impl Into<Value>) -> &mut Self {
        let value = value.into();
        if value == Value::Null {
            return self.push("NULL");
        }
        self.values.push(value);
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
        let value = value.into();
        if op == "=" && self.dialect == Dialect::Postgres && has_nul(&value) {
            return self.glue().push("1 = 0");
        }
        self.glue().ident(column).push(" ").push(op).push(" ").bind(value)
    }

    /// Appends `WHERE` or `AND`, then `column IN (...)`; nothing matches an empty list.
    pub fn and_in(&mut self, column: &str, mut values: Vec<Value>) -> &mut Self {
        values.retain(|value| self.dialect != Dialect::Postgres || !has_nul(value));
        if values.is_empty() {
            return self.glue().push("1 = 0");
        }
        self.glue().ident(column).push(" IN (").binds(values).push(")")
    }

    /// Appends `WHERE` before the first condition and `AND` before the others.
    pub fn glue(&mut self) -> &mut Self {
        let word = if self.conditions { " AND " } else { " WHERE " };
        self.conditions = true;
        self.push(word)
    }

    /// Appends a query in parentheses, which has conditions of its own.
    pub fn nested(&mut self, write: impl FnOnce(&mut Self)) -> &mut Self {
        let outer = std::mem::take(&mut self.conditions);
        self.push("(");
        write(self);
        self.conditions = outer;
        self.push(")")
    }

    /// Makes a query of single rows lock what it finds until the transaction ends. SQLite has one writer anyway.
    pub fn lock(&mut self) -> &mut Self {
        if self.dialect != Dialect::Sqlite {
            self.push(" FOR UPDATE");
        }
        self
    }

    /// The dialect it is written for.
    #[must_use]
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// What it does.
    #[must_use]
    pub fn change(&self) -> &Change {
        &self.change
    }

    /// Why a value that is to be stored does not fit, if so.
    #[must_use]
    pub fn misfit(&self) -> Option<&str> {
        self.misfit.as_deref()
    }

    /// The text for the driver.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The values of its placeholders.
    #[must_use]
    pub fn values(&self) -> &[Value] {
        &self.values
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
            sql.text().to_owned()
        };
        assert_eq!(build(Dialect::MySql), "SELECT `UUID`, `Name` FROM `runs` WHERE `UUID` = ? AND `Name` IN (?, ?)");
        assert_eq!(
            build(Dialect::Postgres),
            "SELECT \"UUID\", \"Name\" FROM \"runs\" WHERE \"UUID\" = $1 AND \"Name\" IN ($2, $3)"
        );
    }

    #[test]
    fn names_cannot_leave_their_quotes() {
        assert_eq!(Dialect::MySql.quote("a`b\"c"), "`a``b\"c`");
        assert_eq!(Dialect::Postgres.quote("a`b\"c"), "\"a`b\"\"c\"");
    }

    #[test]
    fn an_empty_list_matches_nothing() {
        let mut sql = Sql::delete(Dialect::Sqlite, "runs");
        sql.and_in("UUID", vec![]);
        assert_eq!(sql.text(), "DELETE FROM \"runs\" WHERE 1 = 0");
    }

    #[test]
    fn what_a_column_does_not_take_is_told_for_every_database() {
        for dialect in [Dialect::Sqlite, Dialect::MySql, Dialect::Postgres] {
            let set = |value: String| Sql::update(dialect, "experiments", vec![("Name", value.into())]);
            assert_eq!(set("\u{1f600}".repeat(128)).misfit(), None);
            assert_eq!(set("x".repeat(129)).misfit(), Some("experiments.Name length cannot exceed 128"));
            assert_eq!(set("a\0".to_owned()).misfit(), Some("experiments.Name must not contain a NUL character"));
            let long = Sql::insert(dialect, "pipelines", vec![("Description", "x".repeat(100_000).into())]);
            assert_eq!(long.misfit(), None);
        }
    }

    #[test]
    fn nothing_equals_a_text_that_postgres_does_not_have() {
        let mut sql = Sql::select(Dialect::Postgres, "jobs", &["UUID"]);
        sql.and("UUID", "=", "a\0").and_in("Name", vec!["\0".into(), "b".into()]);
        assert_eq!(sql.text(), "SELECT \"UUID\" FROM \"jobs\" WHERE 1 = 0 AND \"Name\" IN ($1)");
    }

    #[test]
    fn null_is_written_out() {
        let sql = Sql::insert(Dialect::Postgres, "jobs", vec![("A", Value::Null), ("B", 1.into())]);
        assert_eq!(sql.text(), "INSERT INTO \"jobs\" (\"A\", \"B\") VALUES (NULL, $1) ON CONFLICT DO NOTHING");
        assert_eq!(sql.values(), [Value::Int(1)]);
    }
}
