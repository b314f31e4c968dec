//! Waiting for a command, passing signals on and leaving nothing behind.

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

const FORWARDED: [Signal; 6] =
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];

/// Asks the supervisor to kill the command. SIGKILL itself would end only the supervisor.
pub(crate) const KILL: Signal = Signal::SIGALRM;

/// Keeps the signals of interest pending for [`supervise`].
pub(super) fn block() -> nix::Result<SigSet> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set.add(KILL);
    for signal in FORWARDED {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(set)
}

/// Waits for `child`, reaping every other child on the way. Forwarded signals go to the child, or
/// to its process group. `abandoned` is asked at each signal: when it says true the group is killed.
///
/// Returns the exit code, 128 plus the number for a signal.
pub(super) fn supervise(set: &SigSet, child: u32, group: bool, abandoned: impl Fn() -> bool) -> nix::Result<i32> {
    let child = Pid::from_raw(i32::try_from(child).map_err(|_| Errno::ESRCH)?);
    loop {
        if let Some(code) = reap(child)? {
            return Ok(code);
        }
        let mut signal = set.wait()?;
        if signal == Signal::SIGCHLD {
            continue;
        }
        if signal == KILL || abandoned() {
            signal = Signal::SIGKILL;
        }
        // The child may be gone already; its status is collected in the next round.
        let _ = if group { killpg(child, signal) } else { kill(child, signal) };
    }
}

fn reap(main: Pid) -> nix::Result<Option<i32>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) if pid == main => return Ok(Some(code)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == main => return Ok(Some(128 + signal as i32)),
            Ok(WaitStatus::StillAlive) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// Kills what the command left behind. As child subreaper this process inherits orphans, so it
/// repeats until it has no child.
pub(super) fn kill_descendants() {
    loop {
        for pid in children() {
            let _ = kill(pid, Signal::SIGKILL);
        }
        match waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn children() -> Vec<Pid> {
    let me = std::process::id();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| parent_of(*pid) == Some(me))
        .map(Pid::from_raw)
        .collect()
}

fn parent_of(pid: i32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name is in parentheses and may itself contain any character.
    stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()
}
