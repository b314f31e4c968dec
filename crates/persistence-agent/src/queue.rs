//! What to report next: a pure queue of the latest state of each object.
//!
//! Reports of one object never overlap and never go backwards: while one is under way, newer states replace older ones.
//! After each the object rests for a multiple of what the report took, unless something urgent comes: a Workflow that
//! changes all the time and takes long to store shall not take a server for itself.
//! Once a report succeeds that had failed before, the others that wait after a failure come soon: what kept them may be
//! over, and they might wait for minutes otherwise.
//! Memory is bounded: the owner puts no new states while the queue is [full](Queue::is_full), and the states of failed
//! reports are kept only while there is room; else the key stays, and the state is to be read again when its turn comes.

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

/// How a report ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Stored.
    Stored,
    /// Refused for good: nothing to do until the object changes.
    Refused,
    /// Try the latest state again later.
    Retry,
}

/// Something that takes memory.
pub trait Weight {
    /// Bytes.
    fn weight(&self) -> usize;

    /// Whether somebody waits for this state: it is reported without a rest.
    fn is_urgent(&self) -> bool;
}

/// Short, because the commonest failure is a report that overtakes the creation of its run.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Upstream's cap of the back-off.
const LONGEST_PAUSE: Duration = Duration::from_secs(360);

/// What waits after a failure comes within this time once another report succeeds again.
const SOON: Duration = Duration::from_secs(1);

/// An object rests this many times as long as its last report took.
const REST: u32 = 4;
/// It never rests longer.
const LONGEST_REST: Duration = Duration::from_secs(1);

struct Slot<T> {
    latest: Option<T>,
    /// When the oldest change came that is not stored.
    since: Instant,
    running: Option<Running>,
    queued: bool,
    failures: u32,
    /// Everything is stored; the slot stays for the rest of its object.
    idle: bool,
}

struct Running {
    /// When the change came that is being stored.
    since: Instant,
    began: Instant,
}

/// A report to make.
#[derive(Debug, PartialEq, Eq)]
pub struct Job<K, T> {
    /// The object.
    pub key: K,
    /// Its state; `None` when it is to be read first.
    pub state: Option<T>,
}

/// What is known after a report.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    /// Failures in a row.
    pub failures: u32,
    /// Time from the change to the end of its report.
    pub lag: Duration,
}

/// See the module.
pub struct Queue<K, T> {
    slots: HashMap<K, Slot<T>>,
    ready: VecDeque<K>,
    later: BinaryHeap<Reverse<(Instant, K)>>,
    held: usize,
    most: usize,
    /// Slots that only rest.
    idle: usize,
    /// Whether a report failed since those that wait were last told to come soon.
    failing: bool,
}

impl<K: Clone + Eq + Hash + Ord, T: Weight> Queue<K, T> {
    /// A queue that is full with states of `most` bytes.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            slots: HashMap::new(),
            ready: VecDeque::new(),
            later: BinaryHeap::new(),
            held: 0,
            most,
            idle: 0,
            failing: false,
        }
    }

    /// Takes the newest state of an object.
    pub fn put(&mut self, key: K, state: T, now: Instant) {
        let fresh = || Slot { latest: None, since: now, running: None, queued: false, failures: 0, idle: false };
        let slot = self.slots.entry(key.clone()).or_insert_with(fresh);
        if slot.failures > 0 && slot.running.is_none() && slot.latest.is_none() {
            // Waits after a failure without its state, which is read when its turn comes.
            return;
        }
        if slot.latest.is_none() && (slot.running.is_some() || slot.idle) {
            slot.since = now;
        }
        if std::mem::take(&mut slot.idle) {
            self.idle -= 1;
        }
        // What rests is queued for later; a second place in the queue does no harm.
        let urgent = state.is_urgent() && slot.failures == 0;
        self.held += state.weight();
        self.held -= slot.latest.replace(state).map_or(0, |old| old.weight());
        if slot.running.is_none() && (!slot.queued || urgent) {
            slot.queued = true;
            self.ready.push_back(key);
        }
    }

    /// The next report to make; its object counts as running until [`Queue::done`].
    pub fn next(&mut self, now: Instant) -> Option<Job<K, T>> {
        while self.later.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            if let Some(Reverse((_, key))) = self.later.pop() {
                self.ready.push_back(key);
            }
        }
        while let Some(key) = self.ready.pop_front() {
            if let Some(slot) = self.slots.get_mut(&key) {
                slot.queued = false;
                if slot.idle {
                    self.slots.remove(&key);
                    self.idle -= 1;
                } else if slot.running.is_none() {
                    slot.running = Some(Running { since: slot.since, began: now });
                    let state = slot.latest.take();
                    self.held -= state.as_ref().map_or(0, Weight::weight);
                    return Some(Job { key, state });
                }
            }
        }
        None
    }

    /// Notes how the report ended. After a failure `state` comes back after a pause unless a newer one is there.
    pub fn done(&mut self, key: &K, state: Option<T>, outcome: Outcome, now: Instant) -> Done {
        let Some(slot) = self.slots.get_mut(key) else { return Done { failures: 0, lag: Duration::ZERO } };
        let Running { since, began } = slot.running.take().unwrap_or(Running { since: now, began: now });
        let lag = now.saturating_duration_since(since);
        if outcome == Outcome::Retry {
            slot.since = since;
            if slot.latest.is_none()
                && let Some(state) = state
            {
                self.held += state.weight();
                slot.latest = Some(state);
            }
            if self.held > self.most / 2
                && let Some(state) = slot.latest.take()
            {
                self.held -= state.weight();
            }
            let pause = pause(key, slot.failures);
            slot.failures += 1;
            slot.queued = true;
            self.later.push(Reverse((now + pause, key.clone())));
            self.failing = true;
            return Done { failures: slot.failures, lag };
        }
        let recovered = std::mem::take(&mut slot.failures) > 0;
        slot.queued = true;
        if slot.latest.as_ref().is_some_and(Weight::is_urgent) {
            self.ready.push_back(key.clone());
        } else {
            slot.idle = slot.latest.is_none();
            self.idle += usize::from(slot.idle);
            let rest = now.saturating_duration_since(began).saturating_mul(REST).min(LONGEST_REST);
            self.later.push(Reverse((now + rest, key.clone())));
        }
        if recovered && std::mem::take(&mut self.failing) {
            self.hasten(now);
        }
        Done { failures: 0, lag }
    }

    /// Lets what waits after a failure come soon.
    fn hasten(&mut self, now: Instant) {
        let waiting = std::mem::take(&mut self.later).into_iter().map(|Reverse((at, key))| {
            let failures = self.slots.get(&key).map_or(0, |slot| slot.failures);
            let at = if failures == 0 { at } else { at.min(now + SOON.mul_f64(share(&key, failures))) };
            Reverse((at, key))
        });
        self.later = waiting.collect();
    }

    /// When [`Queue::next`] may have something again without a new [`Queue::put`].
    #[must_use]
    pub fn wake(&self) -> Option<Instant> {
        self.later.peek().map(|Reverse((at, _))| *at)
    }

    /// Whether no more states should be put for now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.held >= self.most
    }

    /// Whether the object has a state that is not stored yet.
    #[must_use]
    pub fn has(&self, key: &K) -> bool {
        self.slots.get(key).is_some_and(|slot| !slot.idle)
    }

    /// Objects with a state that is not stored yet.
    #[must_use]
    pub fn len(&self) -> usize {
        self.slots.len() - self.idle
    }

    /// Whether everything is stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Doubles with each failure. A quarter of it depends on the object, so that those which failed together do not come back
/// together.
fn pause<K: Hash>(key: &K, failures: u32) -> Duration {
    let full = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LONGEST_PAUSE);
    full.mul_f64(0.75 + share(key, failures) / 4.0)
}

/// A number from 0 to 1 that differs from object to object.
fn share<K: Hash>(key: &K, failures: u32) -> f64 {
    let mut hasher = DefaultHasher::new();
    (key, failures).hash(&mut hasher);
    f64::from(u32::try_from(hasher.finish() % 1000).unwrap_or_default()) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Weight for u32 {
        fn weight(&self) -> usize {
            1
        }

        fn is_urgent(&self) -> bool {
            self % 10 == 9
        }
    }

    const ROOM: usize = 1000;

    fn job<K, T>(key: K, state: T) -> Option<Job<K, T>> {
        Some(Job { key, state: Some(state) })
    }

    #[test]
    fn newer_state_replaces_the_waiting_one() {
        let now = Instant::now();
        let mut q = Queue::new(ROOM);
        q.put("a", 1, now);
        q.put("a", 2, now);
        assert_eq!(q.next(now), job("a", 2));
        let later = now + Duration::from_secs(2);
        q.put("a", 3, later);
        assert_eq!(q.next(later), None, "one report at a time");
        let end = now + Duration::from_secs(5);
        assert_eq!(q.done(&"a", Some(2), Outcome::Stored, end), Done { failures: 0, lag: end - now });
        assert_eq!(q.next(end), None, "it rests");
        let rested = q.wake().unwrap();
        assert_eq!(rested, end + LONGEST_REST);
        assert_eq!(q.next(rested), job("a", 3));
        assert_eq!(q.done(&"a", Some(3), Outcome::Stored, rested).lag, rested - later);
        assert!(q.is_empty());
        assert_eq!(q.held, 0);
    }

    #[test]
    fn objects_rest_after_a_report_but_not_for_what_is_urgent() {
        let (mut q, start, ms) = (Queue::new(ROOM), Instant::now(), Duration::from_millis(1));
        let mut now = start;
        q.put("a", 1, now);
        let first = q.next(now).unwrap();
        now += 10 * ms;
        q.done(&first.key, first.state, Outcome::Stored, now);
        assert!(q.is_empty() && !q.has(&"a"));
        q.put("a", 2, now);
        assert_eq!((q.next(now), q.len()), (None, 1));
        assert_eq!(q.wake(), Some(now + 40 * ms), "four times as long as the report took");
        // Others do not wait for it.
        q.put("b", 1, now);
        assert_eq!(q.next(now), job("b", 1));
        q.put("a", 9, now);
        assert_eq!(q.next(now), job("a", 9));
        now += 5 * ms;
        assert_eq!(q.done(&"a", Some(9), Outcome::Stored, now).lag, 5 * ms);
        q.done(&"b", Some(1), Outcome::Stored, now);
        assert_eq!(q.next(now + LONGEST_REST), None);
        assert!(q.is_empty() && q.slots.is_empty(), "what has rested is forgotten");
    }

    #[test]
    fn failed_report_waits_longer_each_time() {
        let start = Instant::now();
        let mut now = start;
        let mut q = Queue::new(ROOM);
        q.put("a", 1, now);
        let mut pauses = Vec::new();
        for n in 1..=16 {
            let Job { key, state } = q.next(now).unwrap();
            assert_eq!(q.done(&key, state, Outcome::Retry, now), Done { failures: n, lag: now - start });
            assert_eq!(q.next(now), None);
            let wake = q.wake().unwrap();
            pauses.push(wake - now);
            now = wake;
        }
        assert!(pauses[0] <= FIRST_PAUSE && pauses[0] >= FIRST_PAUSE * 3 / 4, "{pauses:?}");
        assert!(pauses[15] <= LONGEST_PAUSE && pauses[15] >= LONGEST_PAUSE * 3 / 4, "{pauses:?}");
    }

    #[test]
    fn what_keeps_failing_is_hurried_once_for_each_recovery() {
        let (mut q, mut now) = (Queue::new(ROOM), Instant::now());
        let report = |q: &mut Queue<u32, u32>, key, outcome, now| {
            let job = q.next(now).unwrap();
            assert_eq!(job.key, key);
            q.done(&key, job.state, outcome, now);
        };
        q.put(0, 0, now);
        for _ in 0..10 {
            report(&mut q, 0, Outcome::Retry, now);
            now = q.wake().unwrap();
        }
        let turn = now;
        now -= Duration::from_secs(15);
        q.put(1, 1, now);
        report(&mut q, 1, Outcome::Retry, now);
        now = q.wake().unwrap();
        report(&mut q, 1, Outcome::Stored, now);
        assert!(turn > now + SOON);
        now += SOON;
        report(&mut q, 0, Outcome::Retry, now);
        let pause = Duration::from_secs(20);
        for n in 2..10 {
            q.put(1, n, now);
            now += LONGEST_REST;
            report(&mut q, 1, Outcome::Stored, now);
        }
        let early: Vec<_> = std::iter::from_fn(|| q.next(now + pause - 8 * LONGEST_REST)).collect();
        assert_eq!(early, [], "others that merely succeed change nothing");
    }

    #[test]
    fn states_of_failed_reports_go_when_room_is_short() {
        let mut now = Instant::now();
        let mut q = Queue::new(4);
        for key in 0..4u32 {
            assert!(!q.is_full());
            q.put(key, key, now);
        }
        assert!(q.is_full());
        let jobs: Vec<_> = std::iter::from_fn(|| q.next(now)).collect();
        assert!(!q.is_full());
        for Job { key, state } in jobs {
            q.done(&key, state, Outcome::Retry, now);
        }
        assert_eq!((q.held, q.len()), (2, 4));
        // A newer state of an object that waits is not kept either.
        q.put(3, 33, now);
        assert_eq!(q.held, 2);
        now += LONGEST_PAUSE;
        let mut jobs: Vec<_> = std::iter::from_fn(|| q.next(now)).collect();
        jobs.sort_by_key(|job| job.key);
        let states: Vec<_> = jobs.iter().map(|job| job.state).collect();
        assert_eq!(states, [Some(0), Some(1), None, None]);
    }

    /// A server that is away for five minutes is asked a few times for each object, at moments that differ, and afterwards
    /// hears of every object's latest state.
    #[test]
    fn outage_of_five_minutes() {
        const OBJECTS: u32 = 200;
        let (mut q, start) = (Queue::new(ROOM), Instant::now());
        (0..OBJECTS).for_each(|key| q.put(key, key, start));
        let (mut attempts, mut moments) = (vec![0; OBJECTS as usize], std::collections::HashSet::new());
        for ms in (0..300_000).step_by(50) {
            let now = start + Duration::from_millis(ms);
            while let Some(Job { key, state }) = q.next(now) {
                attempts[key as usize] += 1;
                moments.insert(ms);
                q.done(&key, state, Outcome::Retry, now);
            }
        }
        assert!(attempts.iter().all(|count| (8..=16).contains(count)), "{attempts:?}");
        assert!(moments.len() > OBJECTS as usize, "they knock together, at {} moments", moments.len());
        // The first that gets through brings the others, whatever their pauses, but not in the same moment.
        let back = q.wake().unwrap();
        let first = q.next(back).unwrap();
        let mut told = vec![(first.key, first.state)];
        q.done(&first.key, first.state, Outcome::Stored, back);
        let together = std::iter::from_fn(|| q.next(back)).map(|job| (job.key, job.state));
        told.extend(together);
        assert!(told.len() < OBJECTS as usize / 10, "{} at once", told.len());
        told.extend(std::iter::from_fn(|| q.next(back + SOON)).map(|job| (job.key, job.state)));
        told.sort_unstable();
        assert_eq!(told, (0..OBJECTS).map(|key| (key, Some(key))).collect::<Vec<_>>());
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_goes_backwards(
            steps in proptest::collection::vec((0u8..3, 0u8..4), 1..200), room in 1usize..6,
        ) {
            let mut now = Instant::now();
            let mut q = Queue::new(room);
            let (mut put, mut settled, mut running) = ([0u32; 4], [0u32; 4], Vec::new());
            let mut finish = |q: &mut Queue<u8, u32>, (key, state): (u8, u32), ok: bool, now| {
                if ok {
                    assert!(state >= settled[key as usize]);
                    settled[key as usize] = state;
                }
                q.done(&key, Some(state), if ok { Outcome::Stored } else { Outcome::Retry }, now);
            };
            // A job without a state reads the present one, as the agent does.
            let read = |job: Job<u8, u32>, put: &[u32; 4]| (job.key, job.state.unwrap_or(put[job.key as usize]));
            for (step, key) in steps {
                now += Duration::from_millis(100);
                match step {
                    0 => { put[key as usize] += 1; q.put(key, put[key as usize], now); }
                    1 => if let Some(job) = q.next(now) {
                        assert!(running.iter().all(|(k, _)| *k != job.key));
                        running.push(read(job, &put));
                    },
                    _ => if let Some(item) = running.pop() { finish(&mut q, item, key % 2 == 0, now); },
                }
                prop_assert_eq!(q.held, q.slots.values().filter(|slot| slot.latest.is_some()).count());
            }
            for _ in 0..1000 {
                now += LONGEST_PAUSE;
                match running.pop().or_else(|| q.next(now).map(|job| read(job, &put))) {
                    Some(item) => finish(&mut q, item, true, now),
                    None => break,
                }
            }
            prop_assert!(q.is_empty());
            prop_assert_eq!(put, settled);
        }
    }
}
