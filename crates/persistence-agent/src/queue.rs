//! What to report next: a pure queue of the latest state of each object.
//!
//! Reports of one object never overlap and never go backwards: while one is under way or waits after a failure, newer
//! states replace older ones, so memory is bounded by one state for each object that is not reported yet.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// How a report ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Stored, or refused for good: nothing to do until the object changes.
    Settled,
    /// Try the latest state again later.
    Retry,
}

/// Short, because the commonest failure is a report that overtakes the creation of its run.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Upstream's cap of the back-off.
const LONGEST_PAUSE: Duration = Duration::from_secs(360);

struct Slot<T> {
    latest: Option<T>,
    running: bool,
    queued: bool,
    failures: u32,
}

/// See the module.
pub struct Queue<K, T> {
    slots: HashMap<K, Slot<T>>,
    ready: VecDeque<K>,
    later: BinaryHeap<Reverse<(Instant, K)>>,
}

impl<K: Clone + Eq + Hash + Ord, T> Default for Queue<K, T> {
    fn default() -> Self {
        Self { slots: HashMap::new(), ready: VecDeque::new(), later: BinaryHeap::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord, T> Queue<K, T> {
    /// Takes the newest state of an object.
    pub fn put(&mut self, key: K, state: T) {
        let slot =
            self.slots.entry(key.clone()).or_insert(Slot { latest: None, running: false, queued: false, failures: 0 });
        slot.latest = Some(state);
        if !slot.running && !slot.queued {
            slot.queued = true;
            self.ready.push_back(key);
        }
    }

    /// The next state to report; its object counts as running until [`Queue::done`].
    pub fn next(&mut self, now: Instant) -> Option<(K, T)> {
        while self.later.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            if let Some(Reverse((_, key))) = self.later.pop() {
                self.ready.push_back(key);
            }
        }
        while let Some(key) = self.ready.pop_front() {
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.queued = false;
                if let (false, Some(state)) = (slot.running, slot.latest.take()) {
                    slot.running = true;
                    return Some((key, state));
                }
            }
        }
        None
    }

    /// Notes how the report of `state` ended; a failed one comes back after a pause unless a newer state is there. The
    /// answer is the number of failures in a row.
    pub fn done(&mut self, key: &K, state: T, outcome: Outcome, now: Instant) -> u32 {
        let Some(slot) = self.slots.get_mut(key) else { return 0 };
        slot.running = false;
        match outcome {
            Outcome::Settled => {
                slot.failures = 0;
                if slot.latest.is_none() {
                    self.slots.remove(key);
                } else if !slot.queued {
                    slot.queued = true;
                    self.ready.push_back(key.clone());
                }
                0
            }
            Outcome::Retry => {
                slot.latest.get_or_insert(state);
                let pause = FIRST_PAUSE.saturating_mul(1 << slot.failures.min(16)).min(LONGEST_PAUSE);
                slot.failures += 1;
                slot.queued = true;
                self.later.push(Reverse((now + pause, key.clone())));
                slot.failures
            }
        }
    }

    /// When [`Queue::next`] may have something again without a new [`Queue::put`].
    #[must_use]
    pub fn wake(&self) -> Option<Instant> {
        self.later.peek().map(|Reverse((at, _))| *at)
    }

    /// Objects with a state that is not reported yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether everything is reported.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn newer_state_replaces_the_waiting_one() {
        let now = Instant::now();
        let mut q = Queue::default();
        q.put("a", 1);
        q.put("a", 2);
        assert_eq!(q.next(now), Some(("a", 2)));
        q.put("a", 3);
        assert_eq!(q.next(now), None, "one report at a time");
        q.done(&"a", 2, Outcome::Settled, now);
        assert_eq!(q.next(now), Some(("a", 3)));
        q.done(&"a", 3, Outcome::Settled, now);
        assert!(q.is_empty());
    }

    #[test]
    fn failed_report_waits_longer_each_time() {
        let mut now = Instant::now();
        let mut q = Queue::default();
        q.put("a", 1);
        let mut pauses = Vec::new();
        for _ in 0..16 {
            let (key, state) = q.next(now).unwrap();
            q.done(&key, state, Outcome::Retry, now);
            assert_eq!(q.next(now), None);
            let wake = q.wake().unwrap();
            pauses.push(wake - now);
            now = wake;
        }
        assert!(pauses.is_sorted());
        assert_eq!((pauses[0], pauses[15]), (FIRST_PAUSE, LONGEST_PAUSE));
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_goes_backwards(steps in proptest::collection::vec((0u8..3, 0u8..4), 1..200)) {
            let mut now = Instant::now();
            let mut q = Queue::default();
            let (mut put, mut settled, mut running) = ([0u32; 4], [0u32; 4], Vec::new());
            let mut finish = |q: &mut Queue<u8, u32>, (key, state): (u8, u32), ok: bool, now| {
                if ok {
                    assert!(state > settled[key as usize]);
                    settled[key as usize] = state;
                }
                q.done(&key, state, if ok { Outcome::Settled } else { Outcome::Retry }, now);
            };
            for (step, key) in steps {
                now += Duration::from_millis(100);
                match step {
                    0 => { put[key as usize] += 1; q.put(key, put[key as usize]); }
                    1 => if let Some(item) = q.next(now) {
                        assert!(running.iter().all(|(k, _)| *k != item.0));
                        running.push(item);
                    },
                    _ => if let Some(item) = running.pop() { finish(&mut q, item, key % 2 == 0, now); },
                }
            }
            for _ in 0..1000 {
                now += LONGEST_PAUSE;
                match running.pop().or_else(|| q.next(now)) {
                    Some(item) => finish(&mut q, item, true, now),
                    None => break,
                }
            }
            prop_assert!(q.is_empty());
            prop_assert_eq!(put, settled);
        }
    }
}
