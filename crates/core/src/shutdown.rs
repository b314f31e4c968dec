//! One way to stop: a token that every task of a process watches.

use tokio::signal::unix::{Signal, SignalKind, signal};
pub use tokio_util::sync::CancellationToken;
pub use tokio_util::task::TaskTracker;

/// A token that is cancelled by the first SIGTERM or SIGINT. Must be called inside a tokio runtime.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn on_signal() -> std::io::Result<CancellationToken> {
    let (token, mut signals) = (CancellationToken::new(), Signals::new()?);
    let cancel = token.clone();
    tokio::spawn(async move {
        signals.next().await;
        cancel.cancel();
    });
    Ok(token)
}

/// As [`on_signal`]; a second signal ends the process at once with code 1, as upstream's controllers do.
///
/// # Errors
/// When the signal handlers cannot be installed.
pub fn on_signal_or_exit() -> std::io::Result<CancellationToken> {
    let (token, mut signals) = (CancellationToken::new(), Signals::new()?);
    let cancel = token.clone();
    tokio::spawn(async move {
        signals.next().await;
        cancel.cancel();
        signals.next().await;
        std::process::exit(1);
    });
    Ok(token)
}

struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.int.recv() => {}
        }
    }
}
