//! `pod-init`: the process between the server and a container's command.
//!
//! The server cannot change namespaces itself (it has threads) and may not run code between fork
//! and exec. So every container starts as this program again, under another personality, while it
//! still has a single thread:
//!
//! 1. **outer** reads a [`Spec`] from standard input, makes the namespaces and the mount tree,
//!    enters it and starts
//! 2. **inner**, process 1 of the new PID namespace, which starts the command in a process group
//!    of its own, passes signals on, reaps whatever is left to it, and ends with the command's
//!    exit code. With it the kernel ends every process of the container.
//!
//! Without namespaces the outer process does both jobs as a child subreaper; the kernel's Landlock, where there is
//! one, keeps the container from writing outside its places.
//!
//! Standard output is the container's log. Standard error of outer and inner is a channel to the
//! server: what is written there explains why a container could not start; the command itself gets
//! standard output as its standard error.

mod confine;
mod mounts;
mod reap;
pub(crate) mod result;

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::process::{CommandExt as _, parent_id};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use serde::{Deserialize, Serialize};

pub(crate) use mounts::remount_writable;
pub(crate) use reap::KILL;

/// First argument of the outer process.
pub(crate) const OUTER: &str = "__kfp-pod-init";
/// First argument of the inner process.
const INNER: &str = "__kfp-pod-init-inner";
/// Exit code when the container could not be set up; the reason is on the report channel.
pub(crate) const SETUP_FAILED: i32 = 128;
/// Exit code when the command was not found.
pub(crate) const NOT_FOUND: i32 = 127;
/// Exit code when the command exists and cannot be executed.
const NOT_EXECUTABLE: i32 = 126;

/// What the outer process is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Make namespaces and a mount tree; otherwise only supervise.
    pub(crate) namespaces: bool,
    /// Process id of the server: when it is no longer the parent, everything ends.
    pub(crate) server: u32,
    /// The pod's private root directory on the host.
    pub(crate) root: PathBuf,
    /// Mounts below the private root, in order; without namespaces the places that may be written.
    pub(crate) binds: Vec<Bind>,
    /// Name of the machine inside.
    pub(crate) hostname: String,
    /// Program and arguments.
    pub(crate) argv: Vec<String>,
    /// The whole environment.
    pub(crate) env: Vec<(String, String)>,
    /// Working directory, made when missing.
    pub(crate) cwd: String,
    /// File, as the container sees it, for the end of the command's standard output.
    pub(crate) result: Option<PathBuf>,
}

/// One bind mount.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub(crate) struct Bind {
    /// File or directory on the host.
    pub(crate) source: PathBuf,
    /// Where it appears in the container.
    pub(crate) target: PathBuf,
    /// Not to be written through.
    pub(crate) read_only: bool,
}

/// Runs the personality named by the arguments, if they name one.
pub(crate) fn main(args: &[OsString]) -> Option<i32> {
    let first = args.get(1)?;
    if first == OUTER {
        Some(outer())
    } else if first == INNER {
        Some(inner(args.get(2..).unwrap_or_default()))
    } else {
        None
    }
}

fn report(message: &str) {
    // Nobody is left to tell when this fails.
    let _ = writeln!(std::io::stderr(), "{message}");
}

fn outer() -> i32 {
    match outer_steps() {
        Ok(code) => code,
        Err((code, message)) => {
            report(&message);
            code
        }
    }
}

type Step<T> = Result<T, (i32, String)>;

fn failed<E: std::fmt::Display>(what: &'static str) -> impl FnOnce(E) -> (i32, String) {
    move |e| (SETUP_FAILED, format!("{what}: {e}"))
}

fn outer_steps() -> Step<i32> {
    let mut text = Vec::new();
    std::io::stdin().read_to_end(&mut text).map_err(failed("read the container specification"))?;
    let spec: Spec = serde_json::from_slice(&text).map_err(failed("understand the container specification"))?;
    drop(text);
    if spec.namespaces { outer_namespaces(&spec) } else { outer_plain(&spec) }
}

fn die_with_server(spec: &Spec, signal: Signal) -> Step<()> {
    prctl::set_pdeathsig(signal).map_err(failed("watch the server"))?;
    if parent_id() == spec.server { Ok(()) } else { Err((SETUP_FAILED, "the server ended".into())) }
}

fn outer_namespaces(spec: &Spec) -> Step<i32> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUTS;
    if !uid.is_root() {
        flags |= CloneFlags::CLONE_NEWUSER;
    }
    unshare(flags).map_err(failed("make namespaces"))?;
    if !uid.is_root() {
        // The kernel wants group changes switched off before an ordinary user may map groups.
        std::fs::write("/proc/self/setgroups", "deny").map_err(failed("switch off setgroups"))?;
        std::fs::write("/proc/self/uid_map", format!("0 {uid} 1")).map_err(failed("map the user"))?;
        std::fs::write("/proc/self/gid_map", format!("0 {gid} 1")).map_err(failed("map the group"))?;
    }
    // After the change of credentials: that clears the setting.
    die_with_server(spec, Signal::SIGKILL)?;
    let _ = nix::unistd::sethostname(&spec.hostname);
    mounts::enter(spec).map_err(|m| (SETUP_FAILED, m))?;
    enter_directory(spec)?;
    let mask = reap::block().map_err(failed("block signals"))?;
    let inner = Command::new("/proc/self/exe")
        .arg0("kfp-pod-init")
        .arg(INNER)
        .arg(spec.result.as_deref().unwrap_or(Path::new("")))
        .args(&spec.argv)
        .env_clear()
        .envs(spec.env.iter().map(|(k, v)| (k, v)))
        .stdin(Stdio::null())
        .spawn()
        .map_err(|e| (SETUP_FAILED, format!("start {}: {e}", name_of(&spec.argv))))?;
    reap::supervise(&mask, inner.id(), false, || false).map_err(failed("wait for the container"))
}

fn outer_plain(spec: &Spec) -> Step<i32> {
    die_with_server(spec, Signal::SIGTERM)?;
    prctl::set_child_subreaper(true).map_err(failed("become the reaper"))?;
    enter_directory(spec)?;
    let writable = spec.binds.iter().filter(|bind| !bind.read_only).map(|bind| &bind.source);
    confine::writes(writable).map_err(|message| (SETUP_FAILED, message))?;
    let mask = reap::block().map_err(failed("block signals"))?;
    let (child, copying) =
        start(&mask, &spec.argv, Some(&spec.env), spec.result.is_some()).map_err(|e| start_error(&spec.argv, &e))?;
    let server = spec.server;
    let code = reap::supervise(&mask, child, true, || parent_id() != server);
    reap::kill_descendants();
    keep(copying, spec.result.as_deref());
    code.map_err(failed("wait for the container"))
}

fn enter_directory(spec: &Spec) -> Step<()> {
    let enter = std::fs::create_dir_all(&spec.cwd).and_then(|()| std::env::set_current_dir(&spec.cwd));
    enter.map_err(|e| (SETUP_FAILED, format!("working directory {}: {e}", spec.cwd)))
}

fn inner(argv: &[OsString]) -> i32 {
    // The outer process may die first; the server then kills its group, of which this is a member.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    mounts::fresh_proc();
    let (result, argv) = argv.split_first().map_or((None, argv), |(result, argv)| (Some(Path::new(result)), argv));
    let result = result.filter(|path| !path.as_os_str().is_empty());
    let argv: Vec<String> = argv.iter().map(|a| a.to_string_lossy().into_owned()).collect();
    let started = reap::block().map_err(failed("block signals")).and_then(|mask| {
        let started = start(&mask, &argv, None, result.is_some()).map_err(|e| start_error(&argv, &e));
        started.map(|(child, copying)| (mask, child, copying))
    });
    let result = started.and_then(|(mask, child, copying)| {
        let code = reap::supervise(&mask, child, true, || false).map_err(failed("wait for the container"));
        if copying.is_some() {
            // As process 1 this reaches all of the container and nobody else; they hold the pipe.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(-1), Signal::SIGKILL);
        }
        keep(copying, result);
        code
    });
    result.unwrap_or_else(|(code, message)| {
        report(&message);
        code
    })
}

/// A child inherits the mask, so the signals are let through while it starts. One that arrives just
/// then is lost on process 1 and ends another supervisor; the server follows with SIGKILL.
fn start(
    mask: &SigSet,
    argv: &[String],
    env: Option<&[(String, String)]>,
    copied: bool,
) -> std::io::Result<(u32, Option<result::Copying>)> {
    let program = argv.first().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
    let log = std::io::stdout().as_fd().try_clone_to_owned()?;
    let mut command = Command::new(program);
    command.args(argv.get(1..).unwrap_or_default()).stdin(Stdio::null()).stderr(Stdio::from(log)).process_group(0);
    if let Some(env) = env {
        command.env_clear().envs(env.iter().map(|(k, v)| (k, v)));
    }
    // Its thread starts while the signals are blocked, so that they stay with the supervisor.
    let copying = if copied {
        let (stdout, copying) = result::begin()?;
        command.stdout(stdout);
        Some(copying)
    } else {
        None
    };
    mask.thread_unblock()?;
    let child = command.spawn();
    mask.thread_block()?;
    // With the command goes this process's end of its pipe.
    drop(command);
    Ok((child?.id(), copying))
}

fn keep(copying: Option<result::Copying>, to: Option<&Path>) {
    if let (Some(copying), Some(to)) = (copying, to)
        && let Err(error) = copying.finish(to)
    {
        report(&format!("keep the output: {error}"));
    }
}

fn name_of(argv: &[String]) -> &str {
    argv.first().map_or("nothing", String::as_str)
}

fn start_error(argv: &[String], error: &std::io::Error) -> (i32, String) {
    let name = name_of(argv);
    match error.kind() {
        std::io::ErrorKind::NotFound if name.contains('/') => {
            (NOT_FOUND, format!("exec: \"{name}\": no such file or directory"))
        }
        std::io::ErrorKind::NotFound => (NOT_FOUND, format!("exec: \"{name}\": executable file not found in $PATH")),
        std::io::ErrorKind::PermissionDenied => (NOT_EXECUTABLE, format!("exec: \"{name}\": permission denied")),
        std::io::ErrorKind::ArgumentListTooLong => (
            SETUP_FAILED,
            format!(
                "exec: \"{name}\": one argument or environment variable is longer than the kernel's limit (128 KiB), or all together are too long"
            ),
        ),
        _ => (SETUP_FAILED, format!("exec: \"{name}\": {error}")),
    }
}
