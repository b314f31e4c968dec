//! A limit on the rate of calls: a token bucket for each API group, as Go's clients have one each.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::Request;
use tower::Service;

/// The defaults of Go's client.
const QPS: f64 = 5.0;
const BURST: f64 = 10.0;

/// Tokens that come back with time. Callers queue up: each takes its token now, even one that is not there yet, and waits
/// until it is.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// How long the caller has to wait.
    fn take(&mut self, now: Instant, qps: f64, burst: f64) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * qps).min(burst) - 1.0;
        self.at = now.max(self.at);
        Duration::try_from_secs_f64((-self.tokens / qps).max(0.0)).unwrap_or(Duration::MAX)
    }
}

/// Wraps a client's service in the limit.
#[derive(Clone)]
pub struct Layer {
    qps: f64,
    burst: f64,
    buckets: Arc<Mutex<HashMap<String, Bucket>>>,
}

impl Layer {
    /// A limit of `qps` calls a second and `burst` at once; `None` when there is no limit.
    #[must_use]
    pub fn new(qps: f64, burst: i64) -> Option<Self> {
        let qps = if qps == 0.0 { QPS } else { qps };
        let burst = match u32::try_from(burst) {
            Ok(0) | Err(_) => BURST,
            Ok(burst) => f64::from(burst),
        };
        (qps > 0.0).then(|| Self { qps, burst, buckets: Arc::default() })
    }

    fn wait(&self, path: &str, now: Instant) -> Duration {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Bucket { tokens: self.burst, at: now };
        buckets.entry(group(path).to_owned()).or_insert(fresh).take(now, self.qps, self.burst)
    }
}

/// The API group of a path: `/apis/{group}/...`; the core group is empty.
fn group(path: &str) -> &str {
    path.split_once("/apis/").map_or("", |(_, rest)| rest.split('/').next().unwrap_or_default())
}

impl<S> tower::Layer<S> for Layer {
    type Service = Throttled<S>;

    fn layer(&self, inner: S) -> Throttled<S> {
        Throttled { inner, limit: self.clone() }
    }
}

/// See [`Layer`].
pub struct Throttled<S> {
    inner: S,
    limit: Layer,
}

impl<S, B> Service<Request<B>> for Throttled<S>
where
    S: Service<Request<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let wait = self.limit.wait(request.uri().path(), Instant::now());
        // The call begins when its future is first polled, so it waits with it.
        let call = self.inner.call(request);
        Box::pin(async move {
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
            call.await
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_is_free_and_then_the_rate_holds() {
        let layer = Layer::new(5.0, 10).unwrap();
        let now = Instant::now();
        let waits: Vec<u128> = (0..14).map(|_| layer.wait("/apis/kubeflow.org/v1beta1/x", now).as_millis()).collect();
        assert_eq!(waits[..10], [0; 10]);
        assert_eq!(waits[10..], [200, 400, 600, 800]);
        assert_eq!(layer.wait("/api/v1/events", now), Duration::ZERO, "another group");
        let later = now + Duration::from_secs(10);
        let waits: Vec<u128> = (0..11).map(|_| layer.wait("/apis/kubeflow.org/y", later).as_millis()).collect();
        assert_eq!((waits[9], waits[10]), (0, 200), "never more than the burst");
    }

    #[test]
    fn numbers_as_in_go() {
        assert!(Layer::new(-1.0, 10).is_none());
        let layer = Layer::new(0.0, 0).unwrap();
        assert_eq!((layer.qps, layer.burst), (5.0, 10.0));
    }

    #[tokio::test(start_paused = true)]
    async fn calls_wait_their_turn() {
        use tower::{Layer as _, ServiceExt as _};
        let layer = Layer::new(1.0, 1).unwrap();
        let mut service = layer.layer(tower::service_fn(|_: Request<()>| async { Ok::<_, std::io::Error>(()) }));
        let start = tokio::time::Instant::now();
        for _ in 0..3 {
            let request = Request::builder().uri("/api/v1/pods").body(()).unwrap();
            service.ready().await.unwrap().call(request).await.unwrap();
        }
        assert!(start.elapsed() >= Duration::from_millis(1900), "{:?}", start.elapsed());
    }
}
