//! SQLite: threads with a connection each that run the transactions of all callers.
//!
//! A transaction is a dozen short statements; handing each of them to a thread and waiting for its answer costs more
//! than running it. Here a transaction is handed over whole, and those that wait together are committed together.

use std::panic::AssertUnwindSafe;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;

use base64::Engine as _;
use futures::FutureExt as _;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, ffi};
use tokio::sync::oneshot;

use super::Call;
use super::tx::Tx;
use super::value::{BASE64, Param, Row};
use crate::failure::{Failure, Outcome};

/// Most transactions that are committed as one: bounds how much a full disk takes with it and how long the first waits.
const GROUP: usize = 64;

/// Answers the caller, given the outcome of the commit.
type Settle = Box<dyn FnOnce(Outcome<()>) + Send>;
/// Runs a call, or tells the caller why there is no transaction; `None` if nobody waits for the call.
type Run = Box<dyn FnOnce(Outcome<&mut Tx>) -> Option<Done> + Send>;

/// A call that ran and is not committed yet.
struct Done {
    failure: Option<Failure>,
    settle: Settle,
}

enum Job {
    Run(Run),
    Stop,
}

/// A queue of transactions and the threads that run them.
#[derive(Clone, Debug)]
pub struct Worker {
    queue: Sender<Job>,
    threads: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Worker {
    /// One thread whose transactions may write; those that wait are committed in groups.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn writer(connection: Connection) -> Outcome<Self> {
        Self::start(vec![connection], "BEGIN IMMEDIATE", GROUP)
    }

    /// One thread for each connection; every transaction sees the newest state.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn readers(connections: Vec<Connection>) -> Outcome<Self> {
        Self::start(connections, "BEGIN", 1)
    }

    fn start(connections: Vec<Connection>, begin: &'static str, group: usize) -> Outcome<Self> {
        let (queue, jobs) = mpsc::channel();
        let jobs = Arc::new(Mutex::new(jobs));
        let spawn = |connection| {
            let (jobs, tx) = (Arc::clone(&jobs), Tx::sqlite(connection));
            std::thread::Builder::new().name("metadata-sqlite".to_owned()).spawn(move || serve(tx, &jobs, begin, group))
        };
        let threads = connections.into_iter().map(spawn).collect::<std::io::Result<Vec<_>>>();
        let threads = threads.map_err(|error| Failure::internal(format!("cannot start a thread: {error}")))?;
        Ok(Self { queue, threads: Arc::new(Mutex::new(threads)) })
    }

    /// Runs a call in a transaction of its own and answers once it is committed, or undone because it failed.
    ///
    /// # Errors
    /// The call's own, or the database's.
    pub async fn run<T: Send + 'static>(&self, call: Call<T>) -> Outcome<T> {
        let (reply, answer) = oneshot::channel();
        let job = move |tx: Outcome<&mut Tx>| {
            if reply.is_closed() {
                return None;
            }
            let outcome = match tx {
                Ok(tx) => outcome(&call, tx),
                Err(failure) => {
                    let _ = reply.send(Err(failure));
                    return None;
                }
            };
            let failure = outcome.as_ref().err().cloned();
            let settle = Box::new(move |committed: Outcome<()>| {
                // A caller that left does not care.
                let _ = reply.send(committed.and(outcome));
            });
            Some(Done { failure, settle })
        };
        let closed = || Failure::unavailable("the metadata store is shutting down");
        self.queue.send(Job::Run(Box::new(job))).map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// Lets the threads finish what they are at and close their connections.
    pub async fn close(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for _ in &threads {
            // They are gone already if nobody listens.
            let _ = self.queue.send(Job::Stop);
        }
        let join = move || threads.into_iter().for_each(|thread| drop(thread.join()));
        // A panic of a thread has been reported by it.
        let _ = tokio::task::spawn_blocking(join).await;
    }
}

/// The call's outcome. Over SQLite nothing in a call waits, so its future is ready at once.
fn outcome<T>(call: &Call<T>, tx: &mut Tx) -> Outcome<T> {
    // A defect that one request brings to light must not end the thread that serves all.
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| call(tx).now_or_never()));
    match ran {
        Ok(Some(outcome)) => outcome,
        Ok(None) => Err(Failure::internal("the call waits for something inside of its transaction")),
        Err(_) => Err(Failure::internal("the call failed unexpectedly; the log has the details")),
    }
}

fn next(jobs: &Mutex<Receiver<Job>>) -> Job {
    jobs.lock().unwrap_or_else(PoisonError::into_inner).recv().unwrap_or(Job::Stop)
}

fn serve(mut tx: Tx, jobs: &Mutex<Receiver<Job>>, begin: &'static str, group: usize) {
    while let Job::Run(first) = next(jobs) {
        if let Err(failure) = tx.control(begin) {
            first(Err(failure));
            continue;
        }
        let mut kept = Vec::new();
        let (ran, stop) = together(&mut tx, first, jobs, group, &mut kept);
        let committed = ran.and_then(|()| tx.control("COMMIT"));
        if committed.is_err() {
            // Fails if SQLite has rolled back already, as it does when the disk is full.
            let _ = tx.control("ROLLBACK");
        }
        for settle in kept {
            settle(committed.clone());
        }
        if stop {
            return;
        }
    }
}

/// Runs the call and those that wait behind it; answers also whether the thread is to stop.
fn together(
    tx: &mut Tx,
    first: Run,
    jobs: &Mutex<Receiver<Job>>,
    group: usize,
    kept: &mut Vec<Settle>,
) -> (Outcome<()>, bool) {
    let mut run = first;
    for _ in 1..group {
        if let Err(failure) = one(tx, run, true, kept) {
            return (Err(failure), false);
        }
        match jobs.lock().unwrap_or_else(PoisonError::into_inner).try_recv() {
            Ok(Job::Run(next)) => run = next,
            Ok(Job::Stop) => return (Ok(()), true),
            Err(_) => return (Ok(()), false),
        }
    }
    (one(tx, run, group > 1, kept), false)
}

/// Runs one call; in company its failure undoes only what it did itself. Fails when the transaction is lost.
fn one(tx: &mut Tx, run: Run, in_company: bool, kept: &mut Vec<Settle>) -> Outcome<()> {
    let control = |tx: &mut Tx, sql| if in_company { tx.control(sql) } else { Ok(()) };
    if let Err(failure) = control(tx, "SAVEPOINT call") {
        run(Err(failure.clone()));
        return Err(failure);
    }
    let Some(done) = run(Ok(tx)) else { return control(tx, "RELEASE call") };
    let Some(failure) = done.failure else {
        kept.push(done.settle);
        return control(tx, "RELEASE call");
    };
    (done.settle)(Ok(()));
    if tx.is_over() {
        return Err(failure);
    }
    control(tx, "ROLLBACK TO call")?;
    control(tx, "RELEASE call")
}

impl ToSql for Param {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(match self {
            Self::Null => ToSqlOutput::Borrowed(ValueRef::Null),
            Self::Bool(value) => i64::from(*value).into(),
            Self::Int(value) => (*value).into(),
            Self::Real(value) => (*value).into(),
            Self::Text(value) => ToSqlOutput::Borrowed(ValueRef::Text(value.as_bytes())),
            Self::Bytes(value) => BASE64.encode(value).into(),
        })
    }
}

fn cell(value: ValueRef<'_>) -> Outcome<Param> {
    Ok(match value {
        ValueRef::Null => Param::Null,
        ValueRef::Integer(value) => Param::Int(value),
        ValueRef::Real(value) => Param::Real(value),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            let text = std::str::from_utf8(bytes);
            Param::Text(text.map_err(|error| Failure::internal(format!("cannot read a column: {error}")))?.to_owned())
        }
    })
}

/// Runs a statement and collects the rows that it answers.
pub fn run(connection: &Connection, sql: &str, params: &[Param]) -> Outcome<Vec<Row>> {
    let mut statement = connection.prepare_cached(sql)?;
    let width = statement.column_count();
    let mut rows = statement.query(rusqlite::params_from_iter(params))?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        let cells = (0..width).map(|column| cell(row.get_ref(column)?));
        found.push(Row(cells.collect::<Outcome<_>>()?));
    }
    Ok(found)
}

impl From<rusqlite::Error> for Failure {
    /// Unique keys become ALREADY_EXISTS, a database that others keep locked UNAVAILABLE, everything else INTERNAL.
    fn from(error: rusqlite::Error) -> Self {
        let message = format!("database: {error}");
        let Some(code) = error.sqlite_error() else { return Self::internal(message) };
        match code.code {
            ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked => Self::unavailable(message),
            ErrorCode::ConstraintViolation
                if matches!(code.extended_code, ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_PRIMARYKEY) =>
            {
                Self::exists(message)
            }
            _ => Self::internal(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(number: i64, fails: bool) -> Call<i64> {
        Box::new(move |tx| {
            Box::pin(async move {
                tx.execute("INSERT INTO `a`(`b`) VALUES (?)", vec![number.into()]).await?;
                assert!(number != 7, "a defect");
                if fails { Err(Failure::invalid("no")) } else { Ok(number) }
            })
        })
    }

    async fn count(worker: &Worker) -> i64 {
        let call: Call<i64> =
            Box::new(|tx| Box::pin(async { tx.query("SELECT COUNT(*) FROM `a`", vec![]).await?[0].int(0) }));
        worker.run(call).await.unwrap()
    }

    #[tokio::test]
    async fn a_failure_or_panic_in_a_group_undoes_only_itself() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE a (b INT UNIQUE)").unwrap();
        let worker = Worker::writer(connection).unwrap();
        let calls = (0..20).map(|number| worker.run(add(number, number % 3 == 0)));
        let outcomes = futures::future::join_all(calls).await;
        for (number, outcome) in (0..).zip(outcomes) {
            match outcome {
                Ok(answer) => assert_eq!(answer, number),
                Err(failure) if number == 7 => assert_eq!(failure.code, tonic::Code::Internal),
                Err(failure) => assert_eq!((failure.code, number % 3), (tonic::Code::InvalidArgument, 0)),
            }
        }
        assert_eq!(count(&worker).await, 12);
        let taken = worker.run(add(1, false)).await.unwrap_err();
        assert_eq!(taken.code, tonic::Code::AlreadyExists);
        worker.close().await;
        assert_eq!(worker.run(add(30, false)).await.unwrap_err().code, tonic::Code::Unavailable);
    }

    #[tokio::test]
    async fn calls_that_nobody_waits_for_do_not_run() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE a (b INT UNIQUE)").unwrap();
        let worker = Worker::writer(connection).unwrap();
        // Holds the thread until the next call is queued and abandoned.
        let (go, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let hold: Call<()> = Box::new(move |_| {
            let _ = wait.lock().unwrap().recv();
            Box::pin(async { Ok(()) })
        });
        let held = tokio::spawn({
            let worker = worker.clone();
            async move { worker.run(hold).await }
        });
        let abandoned = worker.run(add(1, false));
        assert!(futures::poll!(std::pin::pin!(abandoned)).is_pending());
        drop(go);
        held.await.unwrap().unwrap();
        assert_eq!(count(&worker).await, 0);
    }

    #[tokio::test]
    async fn a_full_disk_fails_the_group_and_spares_the_next() {
        let connection = Connection::open_in_memory().unwrap();
        connection.execute_batch("CREATE TABLE a (b INT UNIQUE, c TEXT)").unwrap();
        connection.pragma_update(None, "max_page_count", 40).unwrap();
        let worker = Worker::writer(connection).unwrap();
        let fill: Call<()> = Box::new(|tx| {
            Box::pin(async {
                tx.execute("INSERT INTO `a`(`c`) VALUES (?)", vec!["x".repeat(1 << 20).into()]).await?;
                Ok(())
            })
        });
        let failure = worker.run(fill).await.unwrap_err();
        assert!(failure.message.contains("full"), "{failure}");
        assert_eq!(worker.run(add(2, false)).await, Ok(2));
        assert_eq!(count(&worker).await, 1);
    }
}
