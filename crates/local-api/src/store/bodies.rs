//! Objects' JSON: the latest in memory, all others read from the database when they are asked for.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use super::disk::FILE;
use super::state::TableKey;
use super::stored::Json;
use crate::Error;

/// Most bytes of JSON held in memory. Objects that are changed again soon, and those that watches are about to
/// deliver, are among the latest.
const MAX_JSON: usize = 4 << 20;
/// Most JSON bytes of objects held parsed.
const MAX_PARSED: usize = 512 << 10;
/// Larger objects are not held parsed: one of them would displace all others.
const MAX_PARSED_OBJECT: usize = 128 << 10;

const SELECT: &str = "SELECT body FROM objects WHERE api_group = ? AND plural = ? AND namespace = ? AND name = ?";

/// Reads bodies, and holds the latest. The connection is its own, beside the writer's; a read takes about as long
/// as parsing what was read.
#[derive(Debug)]
pub(crate) struct Bodies {
    reader: Mutex<Connection>,
    json: Mutex<Recent<Json>>,
    parsed: Mutex<Recent<Arc<Value>>>,
}

impl Bodies {
    /// Opens the database, which must exist, for reading.
    pub(crate) fn open(dir: &Path) -> Result<Arc<Self>, Error> {
        let open = || -> rusqlite::Result<Connection> {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let reader = Connection::open_with_flags(dir.join(FILE), flags)?;
            // The writer holds the file only for moments, like when it folds the log in.
            reader.busy_timeout(Duration::from_secs(5))?;
            // In KiB; the operating system has the file in memory.
            reader.pragma_update(None, "cache_size", -256)?;
            Ok(reader)
        };
        let reader = Mutex::new(open().map_err(|source| Error::Reader { dir: dir.to_path_buf(), source })?);
        let (json, parsed) = (Mutex::new(Recent::new(MAX_JSON)), Mutex::new(Recent::new(MAX_PARSED)));
        Ok(Arc::new(Self { reader, json, parsed }))
    }

    /// The committed JSON of an object.
    pub(super) fn read(&self, table: TableKey, namespace: &str, name: &str) -> rusqlite::Result<Json> {
        let reader = lock(&self.reader);
        let mut statement = reader.prepare_cached(SELECT)?;
        statement.query_row([table.0, table.1, namespace, name], |row| Ok(Arc::new(row.get_ref(0)?.as_str()?.into())))
    }

    pub(super) fn hold_json(&self, json: Json) {
        let size = json.len();
        lock(&self.json).hold(json, size);
    }

    /// Holds the parsed form of an object that was just written, of that many bytes of JSON: who changes an object
    /// usually changes it again.
    pub(super) fn hold_parsed(&self, object: Arc<Value>, size: usize) {
        if size <= MAX_PARSED_OBJECT {
            lock(&self.parsed).hold(object, size);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The latest of something, bounded by bytes.
#[derive(Debug)]
struct Recent<T> {
    items: VecDeque<(T, usize)>,
    bytes: usize,
    limit: usize,
}

impl<T> Recent<T> {
    fn new(limit: usize) -> Self {
        Self { items: VecDeque::new(), bytes: 0, limit }
    }

    /// Holds one more and lets go of the oldest; the last one is held whatever its size.
    fn hold(&mut self, item: T, size: usize) {
        self.bytes += size;
        self.items.push_back((item, size));
        while self.bytes > self.limit && self.items.len() > 1 {
            let Some((_, size)) = self.items.pop_front() else { break };
            self.bytes -= size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_are_held_as_far_as_their_bytes_go() {
        let mut recent = Recent::new(100);
        for round in 0..50 {
            recent.hold(round, 30);
        }
        assert_eq!(recent.items, [(47, 30), (48, 30), (49, 30)]);
        recent.hold(50, 1000);
        assert_eq!((recent.items.len(), recent.bytes), (1, 1000));
        recent.hold(51, 1);
        assert_eq!((recent.items.len(), recent.bytes), (1, 1));
    }
}
