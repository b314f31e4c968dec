//! Remembered totals of lists. Counting is the one part of a page that takes longer the more rows there are.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::filter::{Operation, Predicate};
use super::sql::{Change, Sql, Value};

/// Totals kept; with more different lists than that at a time they are counted anew.
const MOST: usize = 512;
/// Counting is slow from here on: requests need not wait for it a second time.
const SLOW: Duration = Duration::from_millis(10);
/// How long an old total that is slow to count is answered while it is counted again beside the request.
const OLD: Duration = Duration::from_secs(600);
/// A total is counted again after this many times as long as counting took: it takes at most one part in so many of the
/// time of a processor.
const REST: u32 = 20;

/// The rows that are counted: a table and what they fulfil.
#[derive(Clone, Debug)]
pub(super) struct Counted {
    pub table: &'static str,
    pub conditions: Vec<Predicate>,
}

impl Counted {
    /// Follows a change; false when only the database can tell the number after it.
    fn follow(&self, number: &mut i64, change: &Change, committed: bool) -> bool {
        match change {
            Change::None => true,
            Change::Insert(table, _) | Change::Delete(table) | Change::Update(table, _) if *table != self.table => true,
            Change::Insert(_, row) if committed => match fulfils(&self.conditions, row) {
                Some(fulfils) => {
                    *number += i64::from(fulfils);
                    true
                }
                None => false,
            },
            Change::Update(_, columns) => {
                !self.conditions.iter().any(|condition| columns.contains(&condition.column.as_str()))
            }
            Change::Insert(..) | Change::Delete(_) => false,
        }
    }
}

#[derive(Debug)]
struct Total {
    counted: Counted,
    total: i64,
    since: Instant,
    took: Duration,
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
    /// Counts under way by number, with what changed since their snapshots.
    counts: HashMap<u64, (Counted, i64)>,
    last_count: u64,
    /// Totals that are counted beside requests.
    renewed: HashSet<String>,
}

/// Totals by the text and values of the statement that counts.
#[derive(Debug)]
pub(super) struct Totals {
    state: Mutex<State>,
    believed: Duration,
}

/// What is known of a total.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// True unless somebody else changed the database just now.
    Fresh(i64),
    /// To be counted again, for which nobody need wait.
    Old(i64),
    /// To be counted.
    Nothing,
}

/// The name of a total.
pub(super) fn key(sql: &Sql) -> String {
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
    pub fn get(&self, key: &str) -> Known {
        let state = self.state();
        let Some(total) = state.totals.get(key) else { return Known::Nothing };
        let age = total.since.elapsed();
        if age < self.believed || (total.took >= SLOW && age < total.took * REST) {
            Known::Fresh(total.total)
        } else if total.took >= SLOW && age < OLD {
            Known::Old(total.total)
        } else {
            Known::Nothing
        }
    }

    /// To be called once the snapshot on which is counted is taken, which was after `version`: what changes from now on
    /// is added to the count. `None` when it cannot be known what the snapshot has, as a commit was under way.
    pub fn count(&self, counted: Counted, version: u64) -> Option<Count<'_>> {
        let mut state = self.state();
        let newer = |column: &str| state.changed.get(&(counted.table, column)).is_some_and(|at| *at > version);
        if state.pending.contains_key(counted.table)
            || newer("")
            || counted.conditions.iter().any(|condition| newer(condition.column.as_str()))
        {
            return None;
        }
        state.last_count += 1;
        let number = state.last_count;
        state.counts.insert(number, (counted, 0));
        Some(Count { totals: self, number, since: Instant::now() })
    }

    /// Claims the renewal of a total; `None` when somebody is at it.
    pub fn renew(&self, key: String) -> Option<Renewal<'_>> {
        let claimed = self.state().renewed.insert(key.clone());
        // Made only then: it gives the claim back when it is dropped.
        claimed.then(|| Renewal { totals: self, key })
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
        let State { version, changed, pending, totals, counts, .. } = &mut *state;
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
            totals.retain(|_, total| total.counted.follow(&mut total.total, change, committed));
            counts.retain(|_, (counted, more)| counted.follow(more, change, committed));
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

/// A count under way on a snapshot.
#[derive(Debug)]
pub(super) struct Count<'a> {
    totals: &'a Totals,
    number: u64,
    since: Instant,
}

impl Count<'_> {
    /// Remembers what was counted in the snapshot, unless changes since then cannot be followed.
    pub fn finish(self, key: String, found: i64, took: Duration) {
        let mut state = self.totals.state();
        let Some((counted, more)) = state.counts.remove(&self.number) else { return };
        if state.totals.len() >= MOST {
            state.totals.clear();
        }
        state.totals.insert(key, Total { counted, total: found + more, since: self.since, took });
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.totals.state().counts.remove(&self.number);
    }
}

/// The right to count a total anew beside requests.
#[derive(Debug)]
pub(super) struct Renewal<'a> {
    totals: &'a Totals,
    key: String,
}

impl Drop for Renewal<'_> {
    fn drop(&mut self) {
        self.totals.state().renewed.remove(&self.key);
    }
}

/// Whether requests should not wait for a count that took so long.
pub(super) fn slow(took: Duration) -> bool {
    took >= SLOW
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
fn fulfils(conditions: &[Predicate], row: &[(&'static str, Value)]) -> Option<bool> {
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
            (Operation::Substring, [Value::Text(part)]) => match value {
                Some(Value::Text(text)) if text.is_ascii() && part.is_ascii() => {
                    Some(text.to_ascii_lowercase().contains(&part.to_ascii_lowercase()))
                }
                _ => None,
            },
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

    fn count_of(experiment: &str) -> Sql {
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

    fn counted() -> Counted {
        Counted { table: "run_details", conditions: conditions() }
    }

    /// Counts on a snapshot after `version`; whether that was of use.
    fn put(totals: &Totals, found: i64, version: u64) -> bool {
        let count = totals.count(counted(), version);
        count.map(|count| count.finish(key(&count_of("a")), found, Duration::ZERO)).is_some()
    }

    fn filled() -> Totals {
        let totals = Totals::new(Duration::from_secs(60));
        assert!(put(&totals, 7, totals.version()));
        totals
    }

    fn get(totals: &Totals, experiment: &str) -> Option<i64> {
        match totals.get(&key(&count_of(experiment))) {
            Known::Fresh(total) => Some(total),
            Known::Old(_) => panic!("nothing here is slow"),
            Known::Nothing => None,
        }
    }

    fn run(experiment: &str, storage: &str) -> Change {
        Change::Insert("run_details", vec![("ExperimentUUID", experiment.into()), ("StorageState", storage.into())])
    }

    #[test]
    fn a_total_is_known_by_its_values() {
        let totals = filled();
        assert_eq!((get(&totals, "a"), get(&totals, "b")), (Some(7), None));
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
            let count = totals.count(counted(), totals.version()).unwrap();
            totals.committing(vec![change.clone()]).finish();
            assert_eq!(get(&totals, "a"), want, "{change:?}");
            // The same for a count that was under way on a snapshot before the change.
            count.finish(key(&count_of("a")), 7, Duration::ZERO);
            assert_eq!(get(&totals, "a"), want, "{change:?}");
        }
    }

    #[test]
    fn a_new_row_counts_where_its_text_has_the_part() {
        let part = |text: &str| Counted {
            table: "run_details",
            conditions: vec![Predicate {
                column: "DisplayName".to_owned(),
                operation: Operation::Substring,
                values: vec![text.into()],
            }],
        };
        for (wanted, name, want) in [
            ("RAIN", "train", Some(true)),
            ("rain_", "train", Some(false)),
            ("", "train", Some(true)),
            // Only the database knows what it takes for the same.
            ("rain", "tra\u{ef}n", None),
            ("ra\u{ef}n", "train", None),
        ] {
            assert_eq!(fulfils(&part(wanted).conditions, &[("DisplayName", name.into())]), want, "{wanted} {name}");
        }
        assert_eq!(fulfils(&part("x").conditions, &[]), None);
    }

    #[test]
    fn a_commit_of_unknown_outcome_is_counted_again() {
        let totals = filled();
        drop(totals.committing(vec![run("a", "AVAILABLE")]));
        assert_eq!(get(&totals, "a"), None);
        assert!(put(&totals, 8, totals.version()));
        assert_eq!(get(&totals, "a"), Some(8), "the commit is over");
    }

    #[test]
    fn a_snapshot_beside_a_commit_is_not_counted_on() {
        let totals = Totals::new(Duration::from_secs(60));
        let before = totals.version();
        let commit = totals.committing(vec![run("a", "AVAILABLE")]);
        let during = totals.version();
        assert!(!put(&totals, 7, during));
        commit.finish();
        for version in [before, during] {
            assert!(!put(&totals, 7, version));
        }
        assert_eq!(get(&totals, "a"), None);
        assert!(put(&totals, 8, totals.version()));
        assert_eq!(get(&totals, "a"), Some(8));
    }

    #[test]
    fn what_takes_long_to_count_is_answered_while_it_is_counted_again() {
        let totals = Totals::new(Duration::from_secs(1));
        let name = key(&count_of("a"));
        let took = Duration::from_millis(100);
        for (took, seconds, want) in [
            (took, 0, Known::Fresh(7)),
            (took, 2, Known::Old(7)),
            (took, 599, Known::Old(7)),
            (took, 601, Known::Nothing),
            (took * 10, 19, Known::Fresh(7)),
            (took * 10, 21, Known::Old(7)),
            (Duration::from_millis(1), 0, Known::Fresh(7)),
            (Duration::from_millis(1), 2, Known::Nothing),
        ] {
            totals.count(counted(), totals.version()).unwrap().finish(name.clone(), 7, took);
            // Later is the same as earlier counted.
            totals.state().totals.get_mut(&name).unwrap().since -= Duration::from_secs(seconds);
            assert_eq!(totals.get(&name), want, "{took:?} {seconds}");
        }
    }

    #[test]
    fn one_renews_a_total_at_a_time() {
        let totals = Totals::new(Duration::from_secs(1));
        let renewal = totals.renew("a".to_owned());
        assert!(renewal.is_some() && totals.renew("a".to_owned()).is_none() && totals.renew("b".to_owned()).is_some());
        drop(renewal);
        assert!(totals.renew("a".to_owned()).is_some());
    }
}
