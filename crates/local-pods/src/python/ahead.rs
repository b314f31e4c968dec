//! Work that is done ahead of its use, and ended with the server.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// A group of processes that may be ended before it is done.
#[derive(Debug, Default)]
pub(crate) struct Ahead(Mutex<State>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Running(Pid),
    Over,
}

impl Ahead {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The processes of this group do the work.
    pub(super) fn begin(&self, group: u32) {
        let Ok(group) = i32::try_from(group) else { return };
        let mut state = self.state();
        match *state {
            State::Over => end(Pid::from_raw(group)),
            _ => *state = State::Running(Pid::from_raw(group)),
        }
    }

    /// Nobody works any more.
    pub(super) fn done(&self) {
        let mut state = self.state();
        if matches!(*state, State::Running(_)) {
            *state = State::Idle;
        }
    }

    /// Ends the work, now and whenever it would begin.
    pub(crate) fn stop(&self) {
        if let State::Running(group) = std::mem::replace(&mut *self.state(), State::Over) {
            end(group);
        }
    }
}

fn end(group: Pid) {
    // It may have ended by itself.
    let _ = killpg(group, Signal::SIGKILL);
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    use std::process::{Child, Command};

    use super::*;

    fn long() -> Child {
        Command::new("sh").args(["-c", "sleep 1000 & wait"]).process_group(0).spawn().unwrap()
    }

    #[test]
    fn work_ends_with_the_server_and_does_not_begin_after_it() {
        let ahead = Ahead::default();
        let (mut early, mut late) = (long(), long());
        ahead.begin(early.id());
        ahead.stop();
        ahead.begin(late.id());
        for child in [&mut early, &mut late] {
            assert_eq!(child.wait().unwrap().signal(), Some(9));
        }
        ahead.done();
    }
}
