//! When to look at objects again: a time for each key.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::Hash;

/// Times in any unit that can be compared.
pub struct Timers<K, T> {
    at: HashMap<K, T>,
    heap: BinaryHeap<Reverse<(T, K)>>,
}

impl<K: Ord, T: Ord> Default for Timers<K, T> {
    fn default() -> Self {
        Self { at: HashMap::new(), heap: BinaryHeap::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord, T: Copy + Ord> Timers<K, T> {
    /// Sets the time of a key; replaces an earlier one.
    pub fn set(&mut self, key: K, at: T) {
        if self.at.insert(key.clone(), at) != Some(at) {
            self.heap.push(Reverse((at, key)));
        }
    }

    /// Whether the key has a time.
    pub fn has(&self, key: &K) -> bool {
        self.at.contains_key(key)
    }

    /// Forgets a key.
    pub fn drop(&mut self, key: &K) {
        self.at.remove(key);
    }

    /// Takes a key whose time has come.
    pub fn due(&mut self, now: T) -> Option<K> {
        while let Some(Reverse((at, _))) = self.heap.peek()
            && *at <= now
        {
            let Reverse((at, key)) = self.heap.pop()?;
            if self.at.get(&key) == Some(&at) {
                self.at.remove(&key);
                return Some(key);
            }
        }
        None
    }

    /// The earliest time, possibly one that does not count any more.
    pub fn first(&self) -> Option<T> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_time_of_a_key_counts() {
        let mut timers = Timers::default();
        timers.set("a", 5);
        timers.set("b", 6);
        timers.set("c", 7);
        timers.set("a", 8);
        timers.drop(&"c");
        assert_eq!((timers.first(), timers.has(&"a"), timers.has(&"c")), (Some(5), true, false));
        let due: Vec<_> = (0..10).filter_map(|now| Some((now, timers.due(now)?))).collect();
        assert_eq!(due, [(6, "b"), (8, "a")]);
    }
}
