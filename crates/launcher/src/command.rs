//! The user's program: started with the launcher's own environment and streams, stopped when the launcher is.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use kfp_core::shutdown::CancellationToken;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::last_words;
use crate::log::{LIMITS, Limits, Log};

/// How long the program may take to end after it was asked to. Kubernetes gives a pod 30 s in all; the rest is for
/// uploading the log and reporting.
const GRACE: Duration = Duration::from_secs(20);
/// How long output of processes that the program left behind is still collected.
const LINGER: Duration = Duration::from_secs(2);
/// How long writing the rest of the output may take.
const FINISH: Duration = Duration::from_secs(60);

/// Why the program did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("cannot start the command {program:?}: {reason}")]
    Start {
        /// First word of the command.
        program: String,
        /// The cause, in words.
        reason: String,
    },
    /// It ended with an exit code other than 0.
    #[error("the command {program:?} failed: exit status {code}{}", explained(said.as_deref()))]
    Exit {
        /// First word of the command.
        program: String,
        /// Its exit code.
        code: i32,
        /// What it said last, if its output was kept; empty when it said nothing.
        said: Option<String>,
    },
    /// A signal ended it.
    #[error("the command {program:?} was killed by signal {signal}{hint}")]
    Signal {
        /// First word of the command.
        program: String,
        /// Name or number.
        signal: String,
        /// The usual cause.
        hint: &'static str,
    },
    /// It was stopped because the pod is.
    #[error("the task was stopped: the pod was asked to terminate while the command {program:?} was running")]
    Stopped {
        /// First word of the command.
        program: String,
    },
    /// Its state could not be observed.
    #[error("cannot run the command {program:?}: {source}")]
    Watch {
        /// First word of the command.
        program: String,
        /// The cause.
        source: std::io::Error,
    },
}

fn explained(said: Option<&str>) -> String {
    match said {
        Some("") => "; it printed nothing".to_owned(),
        Some(said) => format!(": {said}"),
        None => "; its output above says why".to_owned(),
    }
}

/// Runs `words` to the end. With `log`, standard output and standard error share one pipe, whose content goes to the
/// own standard output and to that file.
///
/// # Errors
/// [`Error`] unless the program ends with exit code 0.
pub async fn run(
    words: &[String],
    environment: &[(&str, OsString)],
    log: Option<&Path>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    run_on(tokio::io::stdout(), words, environment, log, stop).await
}

/// [`run`] with another screen than standard output.
async fn run_on(
    screen: impl AsyncWrite + Unpin + Send + 'static,
    words: &[String],
    environment: &[(&str, OsString)],
    log: Option<&Path>,
    stop: &CancellationToken,
) -> Result<(), Error> {
    let (name, arguments) = words
        .split_first()
        .ok_or_else(|| Error::Start { program: String::new(), reason: "the command is empty".into() })?;
    let program = || name.clone();
    let mut command = Command::new(name);
    command.args(arguments).envs(environment.iter().map(|(k, v)| (k, v))).kill_on_drop(true);
    let output = match log {
        None => None,
        Some(path) => open(path, LIMITS).await.and_then(|log| Some((log, share(&mut command)?))),
    };
    let mut child =
        command.spawn().map_err(|e| Error::Start { program: program(), reason: start_failure(name, &e) })?;
    // The child has its own copies of the pipe's writing end; with ours open, the end would never come.
    drop(command);
    let reaper = tokio::spawn(reap_orphans(child.id()));
    let enough = CancellationToken::new();
    let copy = output.map(|(log, pipe)| tokio::spawn(tee(pipe, screen, log, enough.clone())));
    let waited = wait(&mut child, stop).await;
    let kept = match copy {
        None => false,
        Some(mut copy) => match tokio::time::timeout(LINGER, &mut copy).await {
            Ok(kept) => kept.unwrap_or(false),
            Err(_) => {
                tracing::warn!(
                    "a process that the command left behind holds its output open; further output is not kept"
                );
                enough.cancel();
                let kept = tokio::time::timeout(FINISH, &mut copy).await;
                copy.abort();
                kept.is_ok_and(|kept| kept.unwrap_or(false))
            }
        },
    };
    reaper.abort();
    let (status, stopped) = waited.map_err(|source| Error::Watch { program: program(), source })?;
    if stopped && !status.success() {
        return Err(Error::Stopped { program: program() });
    }
    let mut ended = judge(program(), status);
    if let (Err(Error::Exit { code, said, .. }), Some(log), true) = (&mut ended, log, kept) {
        *said = last_words::of(log, *code).await;
    }
    ended
}

fn judge(program: String, status: ExitStatus) -> Result<(), Error> {
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        (Some(code), _) => Err(Error::Exit { program, code, said: None }),
        (None, number) => {
            let known = number.and_then(|n| Signal::try_from(n).ok());
            let signal = known.map_or_else(|| format!("{number:?}"), |s| format!("{} ({})", s as i32, s.as_str()));
            let hint = match known {
                Some(Signal::SIGKILL) => "; the usual cause is that the task needed more memory than it may use",
                Some(Signal::SIGSEGV | Signal::SIGBUS | Signal::SIGILL) => "; a native library crashed",
                _ => "",
            };
            Err(Error::Signal { program, signal, hint })
        }
    }
}

/// Says what is wrong rather than `No such file or directory (os error 2)`.
fn start_failure(name: &str, error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound if name.contains('/') => {
            "no such file (or the interpreter in its first line does not exist) in the task's image".into()
        }
        std::io::ErrorKind::NotFound => {
            let path = std::env::var("PATH").unwrap_or_default();
            format!("no such program in the task's image, PATH is {path:?}")
        }
        std::io::ErrorKind::PermissionDenied => "the file is not executable".into(),
        _ if error.raw_os_error() == Some(nix::libc::E2BIG) => {
            "the arguments are too long; pass large values as artifacts".into()
        }
        _ => error.to_string(),
    }
}

/// A fresh log. Without one the output still goes to the own streams.
async fn open(path: &Path, limits: Limits) -> Option<Log> {
    let log = Log::create(path, limits).await;
    log.inspect_err(|error| tracing::warn!(path = %path.display(), %error, "cannot write the log, output is not kept"))
        .ok()
}

/// One pipe for both output streams keeps their relative order.
fn share(command: &mut Command) -> Option<pipe::Receiver> {
    let set = || -> std::io::Result<(pipe::Receiver, Stdio, Stdio)> {
        let (reader, writer) = std::io::pipe()?;
        let second = writer.try_clone()?;
        Ok((pipe::Receiver::from_owned_fd(reader.into())?, writer.into(), second.into()))
    };
    match set() {
        Ok((reader, out, err)) => {
            command.stdout(out).stderr(err);
            Some(reader)
        }
        Err(error) => {
            tracing::warn!(%error, "cannot make a pipe, output is not kept");
            None
        }
    }
}

/// Copies to standard output and to the log until all is read or `enough`. A failing side does not disturb the other, nor
/// the program. Returns whether the log is as it should be.
async fn tee(mut input: pipe::Receiver, screen: impl AsyncWrite + Unpin, log: Log, enough: CancellationToken) -> bool {
    let mut buffer = vec![0; 64 << 10];
    let (mut screen, mut log) = (Some(screen), Some(log));
    loop {
        let n = tokio::select! {
            biased;
            read = input.read(&mut buffer) => match read {
                Ok(0) | Err(_) => break,
                Ok(n) => n,
            },
            () = enough.cancelled() => break,
        };
        if let Some(out) = &mut screen {
            let written = match out.write_all(&buffer[..n]).await {
                Ok(()) => out.flush().await,
                Err(e) => Err(e),
            };
            if written.is_err() {
                screen = None;
            }
        }
        if let Some(out) = &mut log
            && let Err(error) = out.write(&buffer[..n]).await
        {
            tracing::warn!(%error, "cannot write the log, the rest is not kept");
            log = None;
        }
    }
    let Some(log) = log else { return false };
    let end = log.finish().await;
    end.inspect_err(|error| tracing::warn!(%error, "cannot write the end of the log")).is_ok()
}

/// Waits for the program. When the launcher is told to stop, so is the program: SIGTERM, and SIGKILL after [`GRACE`].
async fn wait(child: &mut Child, stop: &CancellationToken) -> std::io::Result<(ExitStatus, bool)> {
    tokio::select! {
        status = child.wait() => return Ok((status?, false)),
        () = stop.cancelled() => {}
    }
    if let Some(id) = child.id().and_then(|id| i32::try_from(id).ok())
        && let Err(error) = kill(Pid::from_raw(id), Signal::SIGTERM)
    {
        tracing::warn!(%error, "cannot stop the command");
    }
    if let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await {
        return Ok((status?, true));
    }
    tracing::warn!("the command did not stop within {} s and is killed", GRACE.as_secs());
    child.start_kill()?;
    Ok((child.wait().await?, true))
}

/// As process 1 of a container the launcher inherits orphans; unreaped they would fill the process table.
async fn reap_orphans(main: Option<u32>) {
    use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
    if std::process::id() != 1 {
        return;
    }
    let Ok(mut ended) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::child()) else { return };
    while ended.recv().await.is_some() {
        let peek = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(WaitStatus::Exited(id, _) | WaitStatus::Signaled(id, ..)) = waitid(Id::All, peek) {
            if u32::try_from(id.as_raw()).ok() == main {
                // Its end is awaited elsewhere, and is the end of everything.
                return;
            }
            if waitpid(id, Some(WaitPidFlag::WNOHANG)).is_err() {
                break;
            }
        }
    }
}

/// Where distributions keep the system's certificate authorities.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Writes the system's authorities together with the one at `own` to a file in `dir`, and names it in the variables
/// that Python, the AWS SDKs and OpenSSL read.
///
/// # Errors
/// When `own` cannot be read or the file cannot be written.
pub async fn authorities(own: &Path, dir: &Path) -> std::io::Result<Vec<(&'static str, OsString)>> {
    let custom = tokio::fs::read(own).await?;
    let configured = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from).filter(|path| path != own);
    let mut bundle = Vec::new();
    for path in configured.into_iter().chain(BUNDLES.map(PathBuf::from)) {
        if let Ok(found) = tokio::fs::read(&path).await {
            bundle = found;
            bundle.push(b'\n');
            break;
        }
    }
    bundle.extend(custom);
    let path = dir.join(format!("ca-bundle-{}.crt", std::process::id()));
    tokio::fs::create_dir_all(dir).await?;
    tokio::fs::write(&path, bundle).await?;
    tokio::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o444)).await?;
    Ok(["REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "SSL_CERT_FILE"].map(|name| (name, path.clone().into())).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).to_vec()
    }

    /// Result, log and screen.
    async fn run_logged(script: &str) -> (Result<(), Error>, String, String) {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("deep/log");
        let (near, mut far) = tokio::io::duplex(1 << 20);
        let (words, stop) = (sh(script), CancellationToken::new());
        let result = run_on(near, &words, &[], Some(&log), &stop).await;
        let mut screen = String::new();
        far.read_to_string(&mut screen).await.unwrap();
        (result, std::fs::read_to_string(log).unwrap(), screen)
    }

    #[tokio::test]
    async fn both_streams_keep_their_order_in_the_log() {
        let (result, log, screen) = run_logged("echo a; echo b >&2; echo c; printf d >&2").await;
        result.unwrap();
        assert_eq!((log.as_str(), screen.as_str()), ("a\nb\nc\nd", "a\nb\nc\nd"));
    }

    #[tokio::test]
    async fn large_output_is_complete() {
        let (result, log, screen) = run_logged("head -c 300000 /dev/zero | tr '\\0' x; exit 3").await;
        assert!(matches!(result, Err(Error::Exit { code: 3, .. })), "{result:?}");
        assert_eq!((log.len(), screen.len()), (300_000, 300_000));
    }

    #[tokio::test]
    async fn failures_are_told_in_words() {
        let stop = CancellationToken::new();
        for (words, text) in [
            (sh("exit 7"), "exit status 7"),
            (sh("kill -9 $$"), "killed by signal 9 (SIGKILL); the usual cause is that the task needed more memory"),
            (vec!["no-such-program-here".to_owned()], "no such program in the task's image, PATH is"),
            (vec!["/etc/passwd".to_owned()], "not executable"),
            (vec!["/no/such/file".to_owned()], "no such file"),
            (Vec::new(), "the command is empty"),
        ] {
            let error = run(&words, &[], None, &stop).await.unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[tokio::test]
    async fn environment_reaches_the_program() {
        let stop = CancellationToken::new();
        run(&sh("test \"$X_Y\" = 1 && test -n \"$PATH\""), &[("X_Y", "1".into())], None, &stop).await.unwrap();
    }

    #[tokio::test]
    async fn stopping_forwards_sigterm_and_keeps_what_was_printed() {
        let dir = tempfile::tempdir().unwrap();
        let (log, ready) = (dir.path().join("log"), dir.path().join("ready"));
        let stop = CancellationToken::new();
        let script = format!("trap 'echo cleaned; kill $!; exit 9' TERM; sleep 1000 & touch {}; wait", ready.display());
        let words = sh(&script);
        let running = run_on(tokio::io::sink(), &words, &[], Some(&log), &stop);
        let canceller = async {
            while !ready.exists() {
                tokio::task::yield_now().await;
            }
            stop.cancel();
        };
        let (result, ()) = tokio::join!(running, canceller);
        assert!(matches!(result, Err(Error::Stopped { .. })), "{result:?}");
        assert_eq!(std::fs::read_to_string(log).unwrap(), "cleaned\n");
    }

    #[tokio::test]
    async fn a_process_left_behind_does_not_hold_the_task() {
        let started = std::time::Instant::now();
        let (result, log, _) = run_logged("sleep 60 & echo done").await;
        result.unwrap();
        assert_eq!(log, "done\n");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[tokio::test]
    async fn authorities_are_bundled() {
        let dir = tempfile::tempdir().unwrap();
        let own = dir.path().join("own.pem");
        std::fs::write(&own, "OWN").unwrap();
        let variables = authorities(&own, dir.path()).await.unwrap();
        let names: Vec<_> = variables.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "SSL_CERT_FILE"]);
        assert!(std::fs::read_to_string(&variables[0].1).unwrap().ends_with("OWN"));
        assert!(authorities(Path::new("/no/such"), dir.path()).await.is_err());
    }
}
