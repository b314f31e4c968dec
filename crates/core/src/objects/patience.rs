//! Waiting for a store that is away for a moment.

use std::time::Duration;

use tokio::time::Instant;

use super::error::Error;

/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// For how long an operation is repeated when the store cannot be reached or is overloaded. The default does not wait
/// beyond the few quick tries that every request gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patience {
    /// Time from the first failure after which the next one is final.
    pub total: Duration,
    /// Pause after the first failure; doubles up to 10 s.
    pub first_pause: Duration,
}

impl Patience {
    /// For a task whose work would be lost: long enough for a store that restarts.
    #[must_use]
    pub fn of_a_task() -> Self {
        Self { total: Duration::from_mins(4), first_pause: Duration::from_secs(1) }
    }

    /// Repeats `operation` while its failure is transient and the time is not up.
    ///
    /// # Errors
    /// The last failure.
    pub(super) async fn with<T, F>(self, mut operation: impl FnMut() -> F) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut pause = self.first_pause;
        let mut end = None;
        loop {
            let error = match operation().await {
                Err(error) if error.is_transient() => error,
                done => return done,
            };
            if Instant::now() >= *end.get_or_insert_with(|| Instant::now() + self.total) {
                return Err(error);
            }
            tracing::warn!(%error, "the object store is away, trying again in {pause:?}");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    fn failure(transient: bool) -> Error {
        Error::Store { what: "read", uri: "s3://b/k".into(), reason: "x".into(), transient }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_comes_back_is_awaited_and_one_that_does_not_is_given_up() {
        let started = Instant::now();
        let back_after = |time: Duration| {
            Patience::of_a_task()
                .with(move || async move { if started.elapsed() < time { Err(failure(true)) } else { Ok(7) } })
        };
        assert_eq!(back_after(Duration::from_mins(1)).await.unwrap(), 7);
        assert!(started.elapsed() < Duration::from_secs(75), "{:?}", started.elapsed());
        assert!(back_after(Duration::from_hours(1)).await.unwrap_err().is_transient());
    }

    #[tokio::test(start_paused = true)]
    async fn other_failures_and_the_impatient_do_not_wait() {
        for (patience, transient) in [(Patience::of_a_task(), false), (Patience::default(), true)] {
            let tries = Cell::new(0);
            let result: Result<(), _> = patience
                .with(|| {
                    tries.set(tries.get() + 1);
                    async move { Err(failure(transient)) }
                })
                .await;
            assert!(result.is_err());
            assert_eq!(tries.get(), 1);
        }
    }
}
