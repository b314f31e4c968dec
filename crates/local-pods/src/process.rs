//! Starting and ending the processes of containers.

use std::path::Path;
use std::process::Stdio;

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe::Receiver;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Duration, timeout};

use crate::init::result::Tail;
use crate::logs::LogWriter;

/// A log pipe that stays open after the end of the container is held by a process that escaped.
const DRAIN: Duration = Duration::from_secs(2);
/// Explanations are sentences.
const MAX_REPORT: u64 = 16 << 10;

struct Job {
    command: Command,
    reply: oneshot::Sender<std::io::Result<Child>>,
}

/// Starts processes on one thread that lives as long as this handle: a process asks the kernel to
/// end it when the thread that started it ends, and worker threads may end at any time.
#[derive(Debug)]
pub(crate) struct Spawner {
    jobs: std::sync::mpsc::Sender<Job>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.command.fmt(f)
    }
}

impl Spawner {
    /// Must be called within a runtime.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (jobs, queue) = std::sync::mpsc::channel::<Job>();
        let runtime = tokio::runtime::Handle::current();
        std::thread::Builder::new().name("pod-spawner".into()).spawn(move || {
            let _entered = runtime.enter();
            for mut job in queue {
                // Nobody waits any more: dropping the child kills it.
                let _ = job.reply.send(job.command.spawn());
            }
        })?;
        Ok(Self { jobs })
    }

    async fn spawn(&self, command: Command) -> std::io::Result<Child> {
        let (reply, answer) = oneshot::channel();
        let gone = || std::io::Error::other("the thread that starts processes has ended");
        self.jobs.send(Job { command, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// An order to a running container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// SIGTERM.
    Terminate,
    /// SIGKILL, for everything in it.
    Kill,
}

/// What stands between the server and a container's command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Supervision {
    /// A process that takes its namespace with it.
    Namespace,
    /// A process that must be asked to end the others.
    Supervisor,
    /// Client of a container engine: what it prints is the container's, and the container outlives it.
    Engine {
        /// The client.
        program: &'static str,
        /// The container.
        name: String,
    },
}

/// How a container's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exit {
    /// 128 plus the number for a signal.
    pub(crate) code: i32,
    /// What the supervisor had to say; empty when the command ran.
    pub(crate) report: String,
    /// The supervisor itself was killed from outside.
    pub(crate) torn: bool,
    /// What the container left to say about its end.
    pub(crate) message: String,
    /// Output parameters that were not written to files.
    pub(crate) parameters: Vec<Value>,
}

impl Exit {
    /// The end of a container that ran.
    pub(crate) fn with_code(code: i32) -> Self {
        Self { code, report: String::new(), torn: false, message: String::new(), parameters: Vec::new() }
    }

    /// A container that could not be started.
    pub(crate) fn failed(code: i32, report: impl Into<String>) -> Self {
        Self { report: report.into(), ..Self::with_code(code) }
    }
}

/// Runs a command to its end: `input` goes to its standard input, its output to the log, its
/// standard error is the report. With an engine the output is both, in order, and the report stays empty; `result` is a
/// file for the end of the standard output alone.
///
/// # Errors
/// When the process cannot be started.
pub(crate) async fn run(
    spawner: &Spawner,
    mut command: Command,
    input: Vec<u8>,
    log: &LogWriter,
    supervision: &Supervision,
    orders: &mut mpsc::Receiver<Order>,
    result: Option<&Path>,
) -> std::io::Result<Exit> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut merged = None;
    if matches!(supervision, Supervision::Engine { .. }) {
        let (reader, writer) = std::io::pipe()?;
        if result.is_none() {
            command.stdout(writer.try_clone()?);
        }
        command.stderr(writer);
        merged = Some(Receiver::from_owned_fd(reader.into())?);
    }
    // The command, and with it this process's end of the pipe, is dropped by the spawner.
    let mut child = spawner.spawn(command).await?;
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let (own, mut tail) = (child.stdout.take(), Tail::default());
    let separate = merged.is_some() && own.is_some();
    let pump = async |source: &mut (dyn AsyncRead + Send + Unpin), tail: Option<&mut Tail>| {
        let (mut block, mut tail) = (vec![0; 32 << 10], tail);
        while let Ok(n @ 1..) = source.read(&mut block).await {
            let bytes = block.get(..n).unwrap_or_default();
            log.append(bytes);
            if let Some(tail) = &mut tail {
                tail.push(bytes);
            }
        }
    };
    let feed = async move {
        if let Some(mut stdin) = stdin {
            // A process that ended before reading says why in its report.
            let _ = stdin.write_all(&input).await;
            let _ = stdin.shutdown().await;
        }
    };
    let copy = async {
        let first = async {
            if let Some(mut merged) = merged {
                pump(&mut merged, None).await;
            }
        };
        let second = async {
            if let Some(mut own) = own {
                pump(&mut own, separate.then_some(&mut tail)).await;
            }
        };
        tokio::join!(first, second);
    };
    let explain = async {
        let mut text = Vec::new();
        if let Some(stderr) = stderr {
            let _ = stderr.take(MAX_REPORT).read_to_end(&mut text).await;
        }
        String::from_utf8_lossy(&text).trim().to_string()
    };
    let pumps = async { tokio::join!(feed, copy, explain).2 };
    let mut pumps = Box::pin(pumps);
    let mut report = None;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            text = &mut pumps, if report.is_none() => report = Some(text),
            Some(order) = orders.recv() => signal(&child, order, supervision),
        }
    };
    let report = match report {
        Some(report) => report,
        None => timeout(DRAIN, &mut pumps).await.unwrap_or_default(),
    };
    drop(pumps);
    if let (true, Some(result)) = (separate, result) {
        tokio::fs::write(result, tail.text()).await?;
    }
    use std::os::unix::process::ExitStatusExt as _;
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    Ok(Exit { torn: status.signal().is_some(), ..Exit::failed(code, report) })
}

/// The child is not reaped yet, so its number cannot belong to anybody else.
fn signal(child: &Child, order: Order, supervision: &Supervision) {
    if let (Order::Kill, Supervision::Engine { program, name }) = (order, supervision) {
        crate::engine::remove(program, name);
        return;
    }
    let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw) else { return };
    let result = match order {
        Order::Terminate => kill(pid, Signal::SIGTERM),
        Order::Kill if *supervision == Supervision::Namespace => killpg(pid, Signal::SIGKILL),
        Order::Kill => kill(pid, crate::init::KILL),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a signal could not be sent");
    }
}
