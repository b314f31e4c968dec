//! Remembered totals of lists. Counting is the one part of a page that takes longer the more rows there are.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::sql::{Change, Sql, Value};

/// How long a total is believed although nothing changed through this server: others may share the database.
const BELIEVED: Duration = Duration::from_secs(1);
/// Totals kept; with more different lists than that at a time they are counted anew.
const MOST: usize = 512;

#[derive(Debug)]
struct Total {
    table: &'static str,
    columns: Vec<String>,
    total: i64,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// Number of transactions that changed something.
    version: u64,
    /// Version in which rows of a table came or went, or a column of it changed (with its name).
    changed: HashMap<(&'static str, &'static str), u64>,
    totals: HashMap<String, Total>,
}

/// Totals by the text and values of the statement that counts.
#[derive(Debug, Default)]
pub(super) struct Totals(Mutex<State>);

fn key(sql: &Sql) -> String {
    let mut key = sql.text().to_owned();
    for value in sql.values() {
        // Length first, so that no two lists of values look the same.
        let text = match value {
            Value::Text(text) => format!("\0t{}:{text}", text.len()),
            other => format!("\0{other:?}"),
        };
        key.push_str(&text);
    }
    key
}

impl Totals {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can be left half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be taken before the snapshot on which is counted.
    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// A total that is known.
    pub fn get(&self, sql: &Sql) -> Option<i64> {
        let state = self.state();
        let total = state.totals.get(&key(sql))?;
        (total.since.elapsed() < BELIEVED).then_some(total.total)
    }

    /// Remembers a total that was counted on a snapshot taken after `version`.
    pub fn put(&self, sql: Sql, table: &'static str, columns: &[&str], total: i64, version: u64) {
        let mut state = self.state();
        let rows = [""].iter().chain(columns);
        if rows.into_iter().any(|column| state.changed.get(&(table, *column)).is_some_and(|at| *at > version)) {
            return;
        }
        if state.totals.len() >= MOST {
            state.totals.clear();
        }
        let columns = columns.iter().map(|column| (*column).to_owned()).collect();
        state.totals.insert(key(&sql), Total { table, columns, total, since: Instant::now() });
    }

    /// Forgets what a committed transaction may have changed.
    pub fn changed(&self, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let mut state = self.state();
        state.version += 1;
        let version = state.version;
        for change in changes {
            let (table, columns): (_, &[&'static str]) = match change {
                Change::None => continue,
                Change::Insert(table) | Change::Delete(table) => (*table, &[""]),
                Change::Update(table, columns) => (*table, columns),
            };
            for column in columns {
                state.changed.insert((table, column), version);
                state.totals.retain(|_, total| {
                    total.table != table || !(column.is_empty() || total.columns.iter().any(|name| name == column))
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sql::Dialect;
    use super::*;

    fn count(experiment: &str) -> Sql {
        let mut sql = Sql::new(Dialect::Sqlite);
        sql.push("SELECT COUNT(*) FROM ").ident("run_details").and("ExperimentUUID", "=", experiment);
        sql
    }

    fn filled() -> Totals {
        let totals = Totals::default();
        totals.put(count("a"), "run_details", &["ExperimentUUID", "StorageState"], 7, totals.version());
        totals
    }

    #[test]
    fn a_total_is_known_by_its_values() {
        let totals = filled();
        assert_eq!((totals.get(&count("a")), totals.get(&count("b"))), (Some(7), None));
    }

    #[test]
    fn only_changes_that_matter_are_counted_again() {
        let totals = filled();
        totals.changed(&[Change::Insert("jobs"), Change::Update("run_details", vec!["State", "Conditions"])]);
        assert_eq!(totals.get(&count("a")), Some(7));
        for change in [
            Change::Insert("run_details"),
            Change::Delete("run_details"),
            Change::Update("run_details", vec!["ArchivedAtInSec", "StorageState"]),
        ] {
            let totals = filled();
            totals.changed(&[change]);
            assert_eq!(totals.get(&count("a")), None);
        }
    }

    #[test]
    fn a_count_older_than_a_change_is_not_kept() {
        let totals = Totals::default();
        let version = totals.version();
        totals.changed(&[Change::Insert("run_details")]);
        totals.put(count("a"), "run_details", &["ExperimentUUID"], 7, version);
        assert_eq!(totals.get(&count("a")), None);
        totals.put(count("a"), "run_details", &["ExperimentUUID"], 8, totals.version());
        assert_eq!(totals.get(&count("a")), Some(8));
    }
}
