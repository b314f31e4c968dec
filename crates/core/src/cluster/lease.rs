//! The lease of the one replica that works, as Go's leader election keeps it: a Lease object that the holder renews.
//!
//! A replica takes the lease over when it has seen no renewal for the lease's duration by its own clock; the times in the
//! object are only for people, so clocks of replicas may differ.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease as Object, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// How long things take, with the defaults of Go's leader election.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a holder that is not heard of keeps the lease.
    pub duration: Duration,
    /// After this time without a successful renewal the holder stops.
    pub renew_deadline: Duration,
    /// Pause between two attempts.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { duration: seconds(15), renew_deadline: seconds(10), retry: seconds(2) }
    }
}

/// A lease to compete for.
#[derive(Clone)]
pub struct Lease {
    api: Api<Object>,
    name: String,
    identity: String,
    timing: Timing,
}

/// The lease while it is held.
pub struct Held {
    /// Cancelled when the lease is lost.
    pub lost: CancellationToken,
    release: CancellationToken,
    /// Ends with its owner: a lease that outlived it would keep the next replica waiting for ever.
    renewing: AbortOnDropHandle<()>,
}

/// What an attempt came to.
enum Attempt {
    Ours,
    /// Somebody else holds it; this is the state of the object.
    Theirs(String),
}

impl Lease {
    /// The lease `name` in `namespace`, to be held by `identity`, which no other replica may have.
    #[must_use]
    pub fn new(client: kube::Client, namespace: &str, name: &str, identity: String, timing: Timing) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned(), identity, timing }
    }

    /// Waits until the lease is held; `None` when `shutdown` comes first.
    pub async fn acquire(self, shutdown: &CancellationToken) -> Option<Held> {
        let mut seen: Option<(String, Instant)> = None;
        loop {
            let free = seen.as_ref().is_some_and(|(_, at)| at.elapsed() >= self.timing.duration);
            match self.attempt(free).await {
                Ok(Attempt::Ours) => break,
                Ok(Attempt::Theirs(state)) => {
                    if seen.as_ref().is_none_or(|(known, _)| *known != state) {
                        seen = Some((state, Instant::now()));
                    }
                }
                Err(error) => tracing::warn!(lease = self.name, "cannot take the lease: {error}"),
            }
            shutdown.run_until_cancelled(tokio::time::sleep(jittered(self.timing.retry))).await?;
        }
        tracing::info!(lease = self.name, identity = self.identity, "holding the lease");
        let (lost, release) = (CancellationToken::new(), CancellationToken::new());
        let renewing = AbortOnDropHandle::new(tokio::spawn(self.renew(lost.clone(), release.clone())));
        Some(Held { lost, release, renewing })
    }

    /// Takes or renews the lease when it is ours, nobody's or `free`.
    async fn attempt(&self, free: bool) -> Result<Attempt, String> {
        let call = async {
            let Some(mut object) = self.api.get_opt(&self.name).await? else {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let object = Object { metadata, spec: Some(self.spec(&LeaseSpec::default())) };
                self.api.create(&PostParams::default(), &object).await?;
                return Ok(Attempt::Ours);
            };
            let spec = object.spec.take().unwrap_or_default();
            let holder = spec.holder_identity.as_deref().unwrap_or_default();
            if !holder.is_empty() && holder != self.identity && !free {
                return Ok(Attempt::Theirs(object.metadata.resource_version.unwrap_or_default()));
            }
            object.spec = Some(self.spec(&spec));
            self.api.replace(&self.name, &PostParams::default(), &object).await?;
            Ok(Attempt::Ours)
        };
        match tokio::time::timeout(self.timing.renew_deadline, call).await {
            Ok(result) => result.map_err(|error: kube::Error| error.to_string()),
            Err(_) => Err("no answer".to_owned()),
        }
    }

    fn spec(&self, old: &LeaseSpec) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let ours = old.holder_identity.as_deref() == Some(self.identity.as_str());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.timing.duration.as_secs()).unwrap_or(i32::MAX).max(1)),
            acquire_time: if ours { old.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!ours)),
            ..old.clone()
        }
    }

    async fn renew(self, lost: CancellationToken, release: CancellationToken) {
        let mut renewed = Instant::now();
        while release.run_until_cancelled(tokio::time::sleep(self.timing.retry)).await.is_some() {
            match self.attempt(false).await {
                Ok(Attempt::Ours) => renewed = Instant::now(),
                Ok(Attempt::Theirs(_)) => {
                    tracing::error!(lease = self.name, "another replica holds the lease");
                    lost.cancel();
                    return;
                }
                Err(error) => tracing::warn!(lease = self.name, "cannot renew the lease: {error}"),
            }
            if renewed.elapsed() >= self.timing.renew_deadline {
                tracing::error!(lease = self.name, "the lease could not be renewed in time");
                lost.cancel();
                return;
            }
        }
        self.give_up().await;
    }

    /// Lets the next replica start at once.
    async fn give_up(&self) {
        let call = async {
            let mut object = self.api.get(&self.name).await?;
            let Some(spec) = object.spec.as_mut() else { return Ok(()) };
            if spec.holder_identity.as_deref() == Some(self.identity.as_str()) {
                spec.holder_identity = Some(String::new());
                self.api.replace(&self.name, &PostParams::default(), &object).await?;
            }
            Ok::<_, kube::Error>(())
        };
        if !matches!(tokio::time::timeout(self.timing.renew_deadline, call).await, Ok(Ok(()))) {
            tracing::warn!(lease = self.name, "the lease could not be given up; it ends by itself");
        }
    }
}

impl Held {
    /// Gives the lease up.
    pub async fn release(self) {
        self.release.cancel();
        if self.renewing.await.is_err() {
            tracing::warn!("the renewal of the lease had stopped");
        }
    }
}

/// Up to a fifth longer, so that replicas do not ask in step.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(1.0 + f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 1275.0)
}
