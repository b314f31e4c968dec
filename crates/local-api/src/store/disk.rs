//! The SQLite file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

use super::bodies::Bodies;
use super::state::{Key, State};
use super::stored::{Json, Stored};
use super::txn::Overlay;
use crate::Error;
use crate::registry::{Registry, intern};
use crate::resource::resources;

/// Name of the database file inside the data directory.
pub(super) const FILE: &str = "kubernetes.db";

const SCHEMA: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS objects (
        api_group TEXT NOT NULL, plural TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
        body TEXT NOT NULL, PRIMARY KEY (api_group, plural, namespace, name))",
    "CREATE TABLE IF NOT EXISTS revision (id INTEGER PRIMARY KEY CHECK (id = 1), value INTEGER NOT NULL)",
];

/// Rows per statement. Fixed sizes, so that SQLite prepares each statement once.
const CHUNKS: [usize; 3] = [64, 8, 1];

/// The connection that writes; what is read after the start goes through [`Bodies`].
pub(crate) struct Disk {
    connection: SqliteConnection,
    dir: PathBuf,
}

impl Disk {
    pub(crate) async fn open(dir: &Path) -> Result<Self, Error> {
        let database = |source| Error::Database { dir: dir.to_path_buf(), source };
        let options = SqliteConnectOptions::new()
            .filename(dir.join(FILE))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // A killed process loses nothing; a power cut may lose the last moments, never consistency.
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(Duration::from_secs(5))
            // Pages are written once; who reads has a connection of its own. In KiB.
            .pragma("cache_size", "-256")
            .disable_statement_logging();
        let mut connection = options.connect().await.map_err(database)?;
        for statement in SCHEMA {
            sqlx::query(*statement).execute(&mut connection).await.map_err(database)?;
        }
        Ok(Self { connection, dir: dir.to_path_buf() })
    }

    /// Reads the heads of all objects. Types of stored CustomResourceDefinitions are registered. An object that cannot be
    /// read is left out, so that the others can be used.
    pub(crate) async fn load(&mut self, bodies: &Arc<Bodies>) -> Result<State, Error> {
        use futures::TryStreamExt as _;
        let dir = self.dir.clone();
        let database = |source| Error::Database { dir: dir.clone(), source };
        let revision: Option<i64> = sqlx::query_scalar("SELECT value FROM revision")
            .fetch_optional(&mut self.connection)
            .await
            .map_err(database)?;
        let mut state = State::new(revision.map_or(0, |r| u64::try_from(r).unwrap_or(0)), Registry::built_in());
        let mut rows =
            sqlx::query("SELECT api_group, plural, namespace, name, body FROM objects").fetch(&mut self.connection);
        while let Some(row) = rows.try_next().await.map_err(database)? {
            let text = |column: usize| row.try_get::<&str, _>(column).map_err(database);
            let (group, plural, namespace, name) = (text(0)?, text(1)?, text(2)?, text(3)?);
            let key = Key { table: (intern(group), intern(plural)), namespace: namespace.into(), name: name.into() };
            let read = row.try_get::<&str, _>(4).map_err(|error| error.to_string());
            match read.and_then(|body| Self::read(&key, body, &mut state.registry).map_err(|error| error.to_string())) {
                Ok(object) => {
                    drop(object.release(key.table, bodies));
                    state.load(key, object);
                }
                Err(error) => {
                    tracing::error!(
                        group,
                        plural,
                        namespace,
                        name,
                        error,
                        "a stored object cannot be read and is left out"
                    );
                    state.leave_out(key, &error);
                }
            }
        }
        drop(rows);
        Ok(state)
    }

    fn read(key: &Key, body: &str, registry: &mut Registry) -> Result<Stored, serde_json::Error> {
        let object = Stored::parse(body)?;
        let crd = resources::CUSTOM_RESOURCE_DEFINITIONS;
        if key.table == (crd.group, crd.plural) {
            registry.define(&serde_json::from_str(body)?);
        }
        Ok(object)
    }

    /// Writes the last state of every changed object in one transaction.
    pub(crate) async fn commit(&mut self, overlay: &Overlay, revision: u64) -> Result<(), sqlx::Error> {
        let result = self.write(overlay, revision).await;
        if result.is_err() {
            // SQLite may have rolled back by itself (disk full), then this fails and that is fine.
            let _ = sqlx::query("ROLLBACK").execute(&mut self.connection).await;
        }
        result
    }

    async fn write(&mut self, overlay: &Overlay, revision: u64) -> Result<(), sqlx::Error> {
        sqlx::query("BEGIN IMMEDIATE").execute(&mut self.connection).await?;
        let mut upserts: Vec<(&Key, Json)> = Vec::new();
        let mut deletes: Vec<&Key> = Vec::new();
        for (key, object) in overlay.latest() {
            match object {
                Some(object) => upserts.push((key, object.json().map_err(|error| sqlx::Error::Encode(error.into()))?)),
                None => deletes.push(key),
            }
        }
        for chunk in chunks(&upserts) {
            let values = vec!["(?,?,?,?,?)"; chunk.len()].join(",");
            let sql = format!(
                "INSERT INTO objects (api_group, plural, namespace, name, body) VALUES {values}
                 ON CONFLICT DO UPDATE SET body = excluded.body"
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (key, body) in chunk {
                query = query
                    .bind(key.table.0)
                    .bind(key.table.1)
                    .bind(key.namespace.to_string())
                    .bind(key.name.to_string())
                    .bind(body.to_string());
            }
            query.execute(&mut self.connection).await?;
        }
        for chunk in chunks(&deletes) {
            let values = vec!["(?,?,?,?)"; chunk.len()].join(",");
            let sql = format!("DELETE FROM objects WHERE (api_group, plural, namespace, name) IN (VALUES {values})");
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for key in chunk {
                query = query
                    .bind(key.table.0)
                    .bind(key.table.1)
                    .bind(key.namespace.to_string())
                    .bind(key.name.to_string());
            }
            query.execute(&mut self.connection).await?;
        }
        sqlx::query("INSERT INTO revision (id, value) VALUES (1, ?) ON CONFLICT DO UPDATE SET value = excluded.value")
            .bind(i64::try_from(revision).unwrap_or(i64::MAX))
            .execute(&mut self.connection)
            .await?;
        sqlx::query("COMMIT").execute(&mut self.connection).await?;
        Ok(())
    }

    /// Closes the file, folding the write-ahead log into it: who still reads would otherwise keep that from happening.
    pub(crate) async fn close(mut self) {
        if let Err(error) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut self.connection).await {
            tracing::warn!(%error, "folding the log into the object database");
        }
        if let Err(error) = self.connection.close().await {
            tracing::warn!(%error, "closing the object database");
        }
    }
}

/// Cuts a slice into pieces of the sizes in [`CHUNKS`].
fn chunks<T>(mut rest: &[T]) -> Vec<&[T]> {
    let mut pieces = Vec::new();
    for size in CHUNKS {
        while rest.len() >= size {
            let (piece, tail) = rest.split_at(size);
            pieces.push(piece);
            rest = tail;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_everything_once() {
        for length in [0, 1, 7, 8, 9, 63, 64, 65, 200] {
            let items: Vec<usize> = (0..length).collect();
            let flat: Vec<usize> = chunks(&items).concat();
            assert_eq!(flat, items);
        }
    }
}
