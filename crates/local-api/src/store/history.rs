//! The last changes of one resource type, from which watches read.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::Value;

/// Most changes kept per resource type.
const MAX_EVENTS: usize = 4096;
/// Most bytes (as JSON) of changed objects kept per resource type. In memory a parsed object takes
/// several times its JSON, so this bounds the whole to a few tens of megabytes.
const MAX_BYTES: usize = 8 << 20;
/// Changes kept whatever their size, so that a watcher of large objects is not thrown back to
/// listing by a short burst.
const MIN_EVENTS: usize = 32;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Added,
    Modified,
    Deleted,
}

/// One change of one object.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub revision: u64,
    pub change: Change,
    /// After the change; for a deletion the last state, with the deletion's resourceVersion.
    pub object: Arc<Value>,
    /// Before the change: decides whether the object leaves or enters a selection.
    pub previous: Option<Arc<Value>>,
    /// JSON size of `object`.
    pub size: usize,
}

/// A bounded queue of changes in order of revision.
#[derive(Debug)]
pub(crate) struct History {
    events: VecDeque<Event>,
    bytes: usize,
    /// Changes up to and including this revision are forgotten.
    floor: u64,
}

impl History {
    pub(crate) fn new(floor: u64) -> Self {
        Self { events: VecDeque::new(), bytes: 0, floor }
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.bytes += event.size;
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || (self.bytes > MAX_BYTES && self.events.len() > MIN_EVENTS) {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.size;
            self.floor = oldest.revision;
        }
    }

    /// Oldest revision one can watch from.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// Changes after `revision`, or `None` when some of them are forgotten.
    pub(crate) fn after(&self, revision: u64) -> Option<impl Iterator<Item = &Event>> {
        if revision < self.floor {
            return None;
        }
        let start = self.events.partition_point(|event| event.revision <= revision);
        Some(self.events.range(start..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: u64, size: usize) -> Event {
        Event { revision, change: Change::Added, object: Arc::new(Value::Null), previous: None, size }
    }

    #[test]
    fn forgets_the_oldest_by_count_and_says_so() {
        let mut history = History::new(0);
        for revision in 1..=(MAX_EVENTS as u64 + 10) {
            history.push(event(revision, 1));
        }
        assert_eq!(history.floor(), 10);
        assert!(history.after(9).is_none());
        assert_eq!(history.after(10).unwrap().next().unwrap().revision, 11);
        assert_eq!(history.after(MAX_EVENTS as u64 + 10).unwrap().count(), 0);
    }

    #[test]
    fn forgets_by_size_but_keeps_a_few() {
        let mut history = History::new(5);
        assert!(history.after(4).is_none());
        for revision in 6..=105 {
            history.push(event(revision, MAX_BYTES));
        }
        assert_eq!(history.after(history.floor()).unwrap().count(), MIN_EVENTS);
        assert_eq!(history.floor(), 105 - MIN_EVENTS as u64);
    }
}
