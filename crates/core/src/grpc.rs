//! Connections to gRPC services: trust, channels with timeouts, bounded retries.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::{Service, StdError, http};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Response, Status};
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;

/// Longest time one attempt may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest time to wait for a TCP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts per call, the first one included.
const ATTEMPTS: u32 = 10;
/// Pause after the first failed attempt; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause between attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Why a connection cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address is not one that a connection can be made to.
    #[error("server address {address:?} is invalid: {reason}")]
    Address {
        /// `host:port` as given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A certificate file cannot be read.
    #[error("cannot read CA certificate {path:?}: {source}")]
    Certificate {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// How to trust a server: system roots and, if given, one more authority.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    roots: Vec<u8>,
}

/// Where Linux distributions keep the bundle of trusted authorities.
const SYSTEM_BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

impl Tls {
    /// System roots (`SSL_CERT_FILE`, else the distribution's bundle) plus the PEM file at `ca_cert_path` unless that
    /// is empty.
    ///
    /// # Errors
    /// When `ca_cert_path` cannot be read. Missing system roots are not an error: a private authority may suffice.
    pub fn load(ca_cert_path: &str) -> Result<Self, Error> {
        let from_env = std::env::var("SSL_CERT_FILE").ok();
        let mut roots = from_env
            .iter()
            .map(String::as_str)
            .chain(SYSTEM_BUNDLES)
            .find_map(|path| std::fs::read(path).ok())
            .unwrap_or_default();
        if !ca_cert_path.is_empty() {
            let own = std::fs::read(ca_cert_path)
                .map_err(|source| Error::Certificate { path: ca_cert_path.to_owned(), source })?;
            roots.push(b'\n');
            roots.extend(own);
        }
        Ok(Self { roots })
    }

    /// The same trust as configuration for a tonic channel.
    #[must_use]
    pub fn config(&self) -> ClientTlsConfig {
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.roots))
    }
}

type Call = http::Request<Body>;
type Answer = http::Response<Body>;

/// Where calls go: over the network, or to a service of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Transport(BoxCloneSyncService<Call, Answer, StdError>);

impl Transport {
    /// Calls a service in the caller's task, without a connection. Each call has the timeout of a channel's.
    pub fn in_process<S>(service: S) -> Self
    where
        S: Service<Call, Response = Answer, Error = std::convert::Infallible> + Clone + Send + Sync + 'static,
        S::Future: Send,
    {
        let call = move |request| {
            let mut service = service.clone();
            async move {
                match tokio::time::timeout(CALL_TIMEOUT, service.call(request)).await {
                    Ok(Ok(answer)) => Ok(answer),
                    Err(_) => Err(Status::deadline_exceeded("no answer in time").into()),
                }
            }
        };
        Self(BoxCloneSyncService::new(tower::service_fn(call)))
    }
}

impl From<Channel> for Transport {
    fn from(channel: Channel) -> Self {
        Self(BoxCloneSyncService::new(channel.map_err(StdError::from)))
    }
}

impl Service<Call> for Transport {
    type Response = Answer;
    type Error = StdError;
    type Future = <BoxCloneSyncService<Call, Answer, StdError> as Service<Call>>::Future;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), StdError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Call) -> Self::Future {
        self.0.call(request)
    }
}

/// A lazily connected channel with timeouts on connecting and on every call. Must be called inside a tokio runtime.
///
/// # Errors
/// [`Error::Address`] when host and port do not form an address.
pub fn channel(address: &str, port: u16, tls: Option<&Tls>) -> Result<Channel, Error> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let bad = |reason: String| Error::Address { address: format!("{address}:{port}"), reason };
    // A bare IPv6 address needs brackets in a URI.
    let host = if address.contains(':') && !address.starts_with('[') { format!("[{address}]") } else { address.into() };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{host}:{port}"))
        .map_err(|e| bad(e.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(CALL_TIMEOUT)
        .tcp_nodelay(true);
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls.config()).map_err(|e| bad(e.to_string()))?;
    }
    Ok(endpoint.connect_lazy())
}

/// Waits up to `timeout` until the server takes connections; true when it does, or when `shutdown` comes first.
pub async fn opened(address: &str, port: u16, timeout: Duration, shutdown: &CancellationToken) -> bool {
    let open = async {
        let mut pause = Duration::from_millis(50);
        while tokio::net::TcpStream::connect((address, port)).await.is_err() {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    };
    tokio::select! {
        () = shutdown.cancelled() => true,
        opened = tokio::time::timeout(timeout, open) => opened.is_ok(),
    }
}

/// Whether the same call may succeed later: the server says so (`UNAVAILABLE`, and `ABORTED`, which stands for a
/// database deadlock), or the connection broke before its answer was there.
#[must_use]
pub fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::Aborted => true,
        // What a server answers has no cause on this side.
        Code::Unknown | Code::Internal | Code::Cancelled => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

/// Runs one RPC with bounded retries when trying again may help (see [`is_transient`]); `call` is repeated with a fresh
/// request each time. The pause doubles from 100 ms to 10 s, a quarter of it random.
///
/// # Errors
/// The last status when all attempts failed or the code is not transient.
pub async fn with_retries<T, F>(mut call: impl FnMut() -> F) -> Result<T, Status>
where
    F: Future<Output = Result<Response<T>, Status>>,
{
    let mut pause = FIRST_PAUSE;
    let mut attempt = 1;
    loop {
        match call().await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) if attempt < ATTEMPTS && is_transient(&status) => {
                tracing::debug!(attempt, code = ?status.code(), "retrying: {}", status.message());
                tokio::time::sleep(jittered(pause)).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                attempt += 1;
            }
            Err(status) => return Err(status),
        }
    }
}

/// Between 75 % and 125 % of `pause`, so that many tasks that failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = f64::from(uuid::Uuid::new_v4().as_bytes()[0]) / 255.0;
    pause.mul_f64(0.75 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn jitter_stays_within_a_quarter() {
        for _ in 0..1000 {
            let pause = jittered(Duration::from_millis(1000));
            assert!((Duration::from_millis(750)..=Duration::from_millis(1250)).contains(&pause), "{pause:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn transient_codes_are_retried_a_bounded_number_of_times() {
        for (code, attempts) in [(Code::Unavailable, 10), (Code::Aborted, 10), (Code::NotFound, 1), (Code::Internal, 1)]
        {
            let count = Cell::new(0);
            let result: Result<(), _> = with_retries(|| {
                count.set(count.get() + 1);
                async move { Err(Status::new(code, "no")) }
            })
            .await;
            assert_eq!((result.unwrap_err().code(), count.get()), (code, attempts));
        }
    }

    #[tokio::test]
    async fn bad_addresses_and_certificates_are_named() {
        let error = channel("not a host", 8080, None).unwrap_err();
        assert!(error.to_string().contains("not a host:8080"), "{error}");
        assert!(channel("::1", 8080, None).is_ok());
        let error = Tls::load("/no/such/ca.pem").unwrap_err();
        assert!(error.to_string().starts_with("cannot read CA certificate \"/no/such/ca.pem\""), "{error}");
    }
}
