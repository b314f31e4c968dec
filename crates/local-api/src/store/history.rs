//! The last changes of one resource type, from which watches read.

use std::collections::VecDeque;
use std::sync::Arc;

use super::head::Head;
use super::stored::Stored;

/// Most changes kept per resource type.
const MAX_EVENTS: usize = 4096;
/// Most bytes of changed objects kept per resource type. What has changed again is in memory as JSON, so this is
/// what it takes there.
const MAX_BYTES: usize = 4 << 20;
/// Changes kept whatever their size, so that watchers of an object as large as the bound are not
/// thrown back to listing by its next change.
const MIN_EVENTS: usize = 2;

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
    pub object: Arc<Stored>,
    /// Before the change: decides whether the object leaves or enters a selection.
    pub previous: Option<Arc<Head>>,
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
        self.bytes += event.object.size();
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || (self.bytes > MAX_BYTES && self.events.len() > MIN_EVENTS) {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.object.size();
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
        let object = Arc::new(Stored::new(&Arc::new("x".repeat(size).into())));
        Event { revision, change: Change::Added, object, previous: None }
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
    fn keeps_at_most_its_bytes_but_always_a_few_changes() {
        let mut history = History::new(5);
        assert!(history.after(4).is_none());
        for revision in 6..=55 {
            history.push(event(revision, MAX_BYTES / 8));
            let kept: usize = history.after(history.floor()).unwrap().map(|event| event.object.size()).sum();
            assert!(kept <= MAX_BYTES && kept == history.bytes, "{kept}");
        }
        for revision in 56..=60 {
            history.push(event(revision, 2 * MAX_BYTES));
        }
        assert_eq!(history.after(history.floor()).unwrap().count(), MIN_EVENTS);
        assert_eq!(history.floor(), 60 - MIN_EVENTS as u64);
    }
}
