//! Which schedule to look at next: a pure queue of keys with timers and back-off.
//!
//! A key is handed out to one worker at a time; a key that is put while it is out comes back afterwards. Failures come
//! back after a growing pause, which events do not cut short. Times of schedules are Unix seconds of the wall clock, so
//! that a changed clock is noticed; pauses are measured by the monotonic clock.

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// Upstream's cap of the back-off.
const LONGEST_PAUSE: Duration = Duration::from_secs(360);

#[derive(Default)]
struct Slot {
    out: bool,
    queued: bool,
    /// Put while it was out.
    again: bool,
    failures: u32,
    paused: Option<Instant>,
    wake: Option<i64>,
}

/// See the module.
pub struct Agenda<K> {
    slots: HashMap<K, Slot>,
    ready: VecDeque<K>,
    paused: BinaryHeap<Reverse<(Instant, K)>>,
    timers: BinaryHeap<Reverse<(i64, K)>>,
}

impl<K> Default for Agenda<K>
where
    K: Ord,
{
    fn default() -> Self {
        Self { slots: HashMap::new(), ready: VecDeque::new(), paused: BinaryHeap::new(), timers: BinaryHeap::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Agenda<K> {
    /// Something about this key changed.
    pub fn put(&mut self, key: &K) {
        let slot = self.slots.entry(key.clone()).or_default();
        if slot.out {
            slot.again = true;
        } else if slot.paused.is_none() && !slot.queued {
            slot.queued = true;
            self.ready.push_back(key.clone());
        }
    }

    /// Something new: look at it at `at`, unless it is known already.
    pub fn put_later(&mut self, key: &K, at: Instant) {
        let slot = self.slots.entry(key.clone()).or_default();
        if slot.out || slot.queued || slot.paused.is_some() {
            return self.put(key);
        }
        slot.paused = Some(at);
        self.paused.push(Reverse((at, key.clone())));
    }

    /// Somebody changed the object, so what failed before may succeed now: the pause is over.
    pub fn put_fresh(&mut self, key: &K) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.paused = None;
            slot.failures = 0;
        }
        self.put(key);
    }

    /// Looks at the key again at `at`; replaces an earlier timer.
    pub fn wake_at(&mut self, key: &K, at: Option<i64>) {
        let slot = self.slots.entry(key.clone()).or_default();
        if slot.wake != at {
            slot.wake = at;
            if let Some(at) = at {
                self.timers.push(Reverse((at, key.clone())));
            }
        }
    }

    /// The next key to look at. It is out until [`Agenda::done`] or [`Agenda::failed`].
    pub fn next(&mut self, now: Instant, wall: i64) -> Option<K> {
        while self.paused.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            let Some(Reverse((at, key))) = self.paused.pop() else { break };
            if let Some(slot) = self.slots.get_mut(&key)
                && slot.paused == Some(at)
            {
                slot.paused = None;
                self.put(&key);
            }
        }
        while self.timers.peek().is_some_and(|Reverse((at, _))| *at <= wall) {
            let Some(Reverse((at, key))) = self.timers.pop() else { break };
            if let Some(slot) = self.slots.get_mut(&key)
                && slot.wake == Some(at)
            {
                slot.wake = None;
                self.put(&key);
            }
        }
        while let Some(key) = self.ready.pop_front() {
            if let Some(slot) = self.slots.get_mut(&key)
                && slot.queued
            {
                slot.queued = false;
                slot.out = true;
                return Some(key);
            }
        }
        None
    }

    /// The key was dealt with.
    pub fn done(&mut self, key: &K) {
        if let Some(slot) = self.slots.get_mut(key) {
            slot.out = false;
            slot.failures = 0;
            if std::mem::take(&mut slot.again) {
                self.put(key);
            }
        }
    }

    /// Dealing with the key failed; it comes back after the returned pause. Half of the pause depends on the key, so that
    /// keys that fail together do not come back together.
    pub fn failed(&mut self, key: &K, now: Instant) -> Duration {
        let slot = self.slots.entry(key.clone()).or_default();
        slot.out = false;
        slot.again = false;
        let full = FIRST_PAUSE.saturating_mul(1 << slot.failures.min(16)).min(LONGEST_PAUSE);
        let mut hasher = DefaultHasher::new();
        (key, slot.failures).hash(&mut hasher);
        let share = f64::from(u32::try_from(hasher.finish() % 1000).unwrap_or_default()) / 1000.0;
        let pause = full.mul_f64(0.5 + share / 2.0);
        slot.failures += 1;
        slot.paused = Some(now + pause);
        self.paused.push(Reverse((now + pause, key.clone())));
        pause
    }

    /// Forgets a key that does not exist any more and is not out.
    pub fn forget(&mut self, key: &K) {
        self.slots.remove(key);
    }

    /// Keys that wait for nothing but a worker.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.ready.len()
    }

    /// When [`Agenda::next`] may have something again: end of a pause, and a timer.
    #[must_use]
    pub fn wake(&self) -> (Option<Instant>, Option<i64>) {
        (self.paused.peek().map(|Reverse((at, _))| *at), self.timers.peek().map(|Reverse((at, _))| *at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_worker_for_a_key() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        agenda.put(&"a");
        agenda.put(&"a");
        assert_eq!(agenda.next(now, 0), Some("a"));
        assert_eq!(agenda.next(now, 0), None);
        agenda.put(&"a");
        assert_eq!(agenda.next(now, 0), None);
        agenda.done(&"a");
        assert_eq!(agenda.next(now, 0), Some("a"));
        agenda.done(&"a");
        assert_eq!(agenda.next(now, 0), None);
    }

    #[test]
    fn timer_fires_once_and_can_be_moved() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        agenda.wake_at(&"a", Some(10));
        agenda.wake_at(&"a", Some(20));
        assert_eq!(agenda.next(now, 15), None);
        assert_eq!(agenda.next(now, 20), Some("a"));
        agenda.done(&"a");
        assert_eq!(agenda.next(now, 30), None);
        agenda.wake_at(&"a", Some(40));
        agenda.wake_at(&"a", None);
        assert_eq!(agenda.next(now, 50), None);
    }

    #[test]
    fn pauses_grow_and_events_wait_for_their_end() {
        let (mut agenda, mut now) = (Agenda::default(), Instant::now());
        agenda.put(&"a");
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert_eq!(agenda.next(now, 0), Some("a"));
            let pause = agenda.failed(&"a", now);
            agenda.put(&"a");
            assert_eq!(agenda.next(now, 0), None);
            now += pause;
            pauses.push(pause);
        }
        assert!(pauses[0] <= FIRST_PAUSE && pauses[0] >= FIRST_PAUSE / 2, "{pauses:?}");
        assert!(pauses[11] <= LONGEST_PAUSE && pauses[11] >= LONGEST_PAUSE / 2, "{pauses:?}");
        assert_eq!(agenda.next(now, 0), Some("a"));
        let pause = agenda.failed(&"a", now);
        assert!(pause > FIRST_PAUSE);
        agenda.put_fresh(&"a");
        assert_eq!(agenda.next(now, 0), Some("a"));
        agenda.done(&"a");
        assert_eq!(agenda.next(now + LONGEST_PAUSE, 0), None, "the old pause does not count any more");
    }

    #[test]
    fn new_key_waits_unless_it_changes() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        let later = now + Duration::from_secs(1);
        agenda.put_later(&"a", later);
        agenda.put_later(&"b", later);
        agenda.put(&"a");
        agenda.put_fresh(&"b");
        assert_eq!(agenda.next(now, 0), Some("b"));
        assert_eq!(agenda.next(now, 0), None);
        assert_eq!(agenda.wake().0, Some(later));
        assert_eq!(agenda.next(later, 0), Some("a"));
        agenda.put_later(&"a", later);
        agenda.done(&"a");
        assert_eq!(agenda.next(later, 0), Some("a"), "what comes meanwhile is not put off");
    }

    /// An API that is away for five minutes is asked a few times for each key, at moments that differ, and every key comes
    /// back afterwards.
    #[test]
    fn outage_of_five_minutes() {
        const KEYS: usize = 200;
        let (mut agenda, start) = (Agenda::default(), Instant::now());
        (0..KEYS).for_each(|key| agenda.put(&key));
        let (mut attempts, mut moments) = (vec![0; KEYS], std::collections::HashSet::new());
        for ms in (0..300_000).step_by(50) {
            let now = start + Duration::from_millis(ms);
            while let Some(key) = agenda.next(now, 0) {
                attempts[key] += 1;
                moments.insert(ms);
                agenda.failed(&key, now);
                // The resync puts all keys again and again; that does not count while they wait.
                agenda.put(&key);
            }
        }
        assert!(attempts.iter().all(|count| (5..=12).contains(count)), "{attempts:?}");
        assert!(moments.len() > KEYS, "they knock together, at {} moments", moments.len());
        let back: std::collections::HashSet<_> =
            std::iter::from_fn(|| agenda.next(start + Duration::from_secs(300) + LONGEST_PAUSE, 0)).collect();
        assert_eq!(back.len(), KEYS);
    }

    #[test]
    fn forgotten_key_stays_away() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        agenda.put(&"a");
        agenda.wake_at(&"a", Some(1));
        agenda.forget(&"a");
        assert_eq!(agenda.next(now, 5), None);
    }
}
