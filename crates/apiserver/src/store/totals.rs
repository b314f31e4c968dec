//! Remembered totals of lists. Counting is the one part of a page that takes longer the more rows there are.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::filter::{Operation, Predicate};
use super::sql::{Change, Sql, Value};

/// Totals kept; with more different lists than that at a time they are counted anew.
const MOST: usize = 512;

#[derive(Debug)]
struct Total {
    table: &'static str,
    conditions: Vec<Predicate>,
    total: i64,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    /// Number of transactions that changed something.
    version: u64,
    /// Version in which rows of a table came or went, or a column of it changed (with its name).
    changed: HashMap<(&'static str, &'static str), u64>,
    /// Commits under way that add rows to a table.
    pending: HashMap<&'static str, u32>,
    totals: HashMap<String, Total>,
}

/// Totals by the text and values of the statement that counts.
#[derive(Debug)]
pub(super) struct Totals {
    state: Mutex<State>,
    believed: Duration,
}

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
    /// A total is counted again after `believed` although nothing changed through this server: others may share the
    /// database.
    pub fn new(believed: Duration) -> Self {
        Totals { state: Mutex::default(), believed }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here can be left half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be taken before the snapshot on which is counted.
    pub fn version(&self) -> u64 {
        self.state().version
    }

    /// A total that is known.
    pub fn get(&self, sql: &Sql) -> Option<i64> {
        let state = self.state();
        let total = state.totals.get(&key(sql))?;
        (total.since.elapsed() < self.believed).then_some(total.total)
    }

    /// Remembers a total that was counted on a snapshot taken after `version`.
    pub fn put(&self, sql: &Sql, table: &'static str, conditions: Vec<Predicate>, total: i64, version: u64) {
        let mut state = self.state();
        let newer = |column: &str| state.changed.get(&(table, column)).is_some_and(|at| *at > version);
        // Whether the snapshot has rows of a commit under way cannot be known.
        if state.pending.contains_key(table)
            || newer("")
            || conditions.iter().any(|condition| newer(condition.column.as_str()))
        {
            return;
        }
        if state.totals.len() >= MOST {
            state.totals.clear();
        }
        state.totals.insert(key(sql), Total { table, conditions, total, since: Instant::now() });
    }

    /// To be called before a transaction commits; the answer is told how that went.
    pub fn committing(&self, changes: Vec<Change>) -> Commit<'_> {
        let mut state = self.state();
        for change in &changes {
            if let Change::Insert(table, _) = change {
                *state.pending.entry(table).or_default() += 1;
            }
        }
        drop(state);
        Commit { totals: self, changes, committed: false }
    }

    fn changed(&self, changes: &[Change], committed: bool) {
        let mut state = self.state();
        let State { version, changed, pending, totals } = &mut *state;
        *version += 1;
        for change in changes {
            let (table, columns): (_, &[&'static str]) = match change {
                Change::None => continue,
                Change::Insert(table, _) | Change::Delete(table) => (*table, &[""]),
                Change::Update(table, columns) => (*table, columns),
            };
            for column in columns {
                changed.insert((table, column), *version);
            }
            totals.retain(|_, total| {
                if total.table != table {
                    return true;
                }
                match change {
                    Change::Insert(_, row) if committed => match counts(&total.conditions, row) {
                        Some(counts) => {
                            total.total += i64::from(counts);
                            true
                        }
                        None => false,
                    },
                    Change::Update(_, columns) => {
                        !total.conditions.iter().any(|condition| columns.contains(&condition.column.as_str()))
                    }
                    _ => false,
                }
            });
            if let Change::Insert(table, _) = change
                && let Some(count) = pending.get_mut(table)
            {
                *count -= 1;
                if *count == 0 {
                    pending.remove(table);
                }
            }
        }
    }
}

/// A commit under way. Dropped without [`Commit::finish`], nobody knows how it went.
#[derive(Debug)]
pub(super) struct Commit<'a> {
    totals: &'a Totals,
    changes: Vec<Change>,
    committed: bool,
}

impl Commit<'_> {
    /// The transaction is committed.
    pub fn finish(mut self) {
        self.committed = true;
    }
}

impl Drop for Commit<'_> {
    fn drop(&mut self) {
        if !self.changes.is_empty() {
            self.totals.changed(&self.changes, self.committed);
        }
    }
}

/// Whether a new row fulfils all conditions; `None` when only the database can tell.
fn counts(conditions: &[Predicate], row: &[(&'static str, Value)]) -> Option<bool> {
    let mut all = Some(true);
    for condition in conditions {
        let value = row.iter().find(|(column, _)| *column == condition.column).map(|(_, value)| value);
        let equal = |wanted: &Value| match (value?, wanted) {
            (Value::Int(value), Value::Int(wanted)) => Some(value == wanted),
            (Value::Text(value), Value::Text(wanted)) if value == wanted => Some(true),
            // Collations may ignore case, accents and blanks at the end.
            (Value::Text(value), Value::Text(wanted)) if value.is_ascii() && wanted.is_ascii() => {
                let same = value.trim_end().eq_ignore_ascii_case(wanted.trim_end());
                if same { None } else { Some(false) }
            }
            _ => None,
        };
        let found = match (condition.operation, condition.values.as_slice()) {
            (Operation::Eq, [wanted]) => equal(wanted),
            (Operation::Ne, [wanted]) => equal(wanted).map(|equal| !equal),
            _ => None,
        };
        match found {
            Some(false) => return Some(false),
            Some(true) => {}
            None => all = None,
        }
    }
    all
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

    fn conditions() -> Vec<Predicate> {
        let one = |column: &str, operation, value: &str| Predicate {
            column: column.to_owned(),
            operation,
            values: vec![value.into()],
        };
        vec![one("ExperimentUUID", Operation::Eq, "a"), one("StorageState", Operation::Ne, "ARCHIVED")]
    }

    fn filled() -> Totals {
        let totals = Totals::new(Duration::from_secs(60));
        totals.put(&count("a"), "run_details", conditions(), 7, totals.version());
        totals
    }

    fn run(experiment: &str, storage: &str) -> Change {
        Change::Insert("run_details", vec![("ExperimentUUID", experiment.into()), ("StorageState", storage.into())])
    }

    #[test]
    fn a_total_is_known_by_its_values() {
        let totals = filled();
        assert_eq!((totals.get(&count("a")), totals.get(&count("b"))), (Some(7), None));
    }

    #[test]
    fn changes_are_followed_or_counted_again() {
        for (change, want) in [
            (Change::Insert("jobs", vec![]), Some(7)),
            (Change::Update("run_details", vec!["State", "Conditions"]), Some(7)),
            (Change::Update("run_details", vec!["ArchivedAtInSec", "StorageState"]), None),
            (Change::Delete("run_details"), None),
            (run("a", "AVAILABLE"), Some(8)),
            (run("a", "ARCHIVED"), Some(7)),
            (run("b", "AVAILABLE"), Some(7)),
            // MySQL may take these for the same.
            (run("A ", "AVAILABLE"), None),
            (run("\u{e1}", "AVAILABLE"), None),
            (Change::Insert("run_details", vec![]), None),
        ] {
            let totals = filled();
            totals.committing(vec![change.clone()]).finish();
            assert_eq!(totals.get(&count("a")), want, "{change:?}");
        }
    }

    #[test]
    fn a_commit_of_unknown_outcome_is_counted_again() {
        let totals = filled();
        drop(totals.committing(vec![run("a", "AVAILABLE")]));
        assert_eq!(totals.get(&count("a")), None);
        totals.put(&count("a"), "run_details", conditions(), 8, totals.version());
        assert_eq!(totals.get(&count("a")), Some(8), "the commit is over");
    }

    #[test]
    fn a_count_beside_a_commit_is_not_kept() {
        let totals = Totals::new(Duration::from_secs(60));
        let before = totals.version();
        let commit = totals.committing(vec![run("a", "AVAILABLE")]);
        let during = totals.version();
        totals.put(&count("a"), "run_details", conditions(), 7, during);
        assert_eq!(totals.get(&count("a")), None);
        commit.finish();
        for version in [before, during] {
            totals.put(&count("a"), "run_details", conditions(), 7, version);
            assert_eq!(totals.get(&count("a")), None);
        }
        totals.put(&count("a"), "run_details", conditions(), 8, totals.version());
        assert_eq!(totals.get(&count("a")), Some(8));
    }
}
