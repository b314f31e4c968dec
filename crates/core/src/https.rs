//! A small HTTP/1.1 client on hyper and rustls (with *ring*), shared by the Kubernetes client and the object stores.
//!
//! reqwest is not used here because its TLS needs either a second crypto library or a process-wide provider, and the
//! launcher has to stay small: its binary is copied into every pod.

mod proxy;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::time::Sleep;

use proxy::Proxies;

/// How long a connection may take to be made, TLS handshake aside.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle connections are kept this long; servers commonly close theirs after a minute.
const POOL_IDLE: Duration = Duration::from_secs(30);

/// Why a request got no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The TLS settings are unusable (bad certificate, bad key).
    #[error("cannot set up TLS: {0}")]
    Tls(String),
    /// No connection could be made.
    #[error("cannot connect to {host}: {reason}")]
    Connect {
        /// Host and port.
        host: String,
        /// The cause, innermost text included.
        reason: String,
    },
    /// The connection broke during the exchange.
    #[error("connection to {host} broke: {reason}")]
    Broken {
        /// Host and port.
        host: String,
        /// The cause, innermost text included.
        reason: String,
    },
    /// No answer, or no further byte of it, arrived in time.
    #[error("no answer from {host} within {} s", .after.as_secs())]
    Timeout {
        /// Host and port.
        host: String,
        /// The limit that was exceeded.
        after: Duration,
    },
}

/// TLS settings of a [`Client`]; the default trusts the system's certificate authorities.
#[derive(Clone, Debug, Default)]
pub struct Tls {
    /// Certificate authorities in PEM that are trusted besides the system's.
    pub extra_authorities: Vec<u8>,
    /// Trust only `extra_authorities`.
    pub only_extra: bool,
    /// Client certificate chain and key, both in PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Accept every certificate (`insecure-skip-tls-verify`).
    pub insecure: bool,
}

/// A client that keeps connections and is cheap to clone.
#[derive(Clone)]
pub struct Client<B> {
    inner: legacy::Client<HttpsConnector<proxy::Connector>, B>,
    timeout: Duration,
    proxies: Proxies,
}

impl<B> std::fmt::Debug for Client<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

impl<B> Client<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    /// A client for servers reached with `https` or `http`; no connection is made yet. `timeout` bounds the time from
    /// the start of a request to the head of its answer, and then every pause in the answer's body. Proxies are those of
    /// the environment (`HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`); the own machine needs none.
    ///
    /// # Errors
    /// [`Error::Tls`] when a certificate or key cannot be read.
    pub fn new(tls: &Tls, timeout: Duration) -> Result<Self, Error> {
        Self::with_proxies(tls, timeout, Proxies::from_env())
    }

    /// A client for plain `http` only, which does not read the system's certificates (some milliseconds).
    ///
    /// # Errors
    /// [`Error::Tls`] when the TLS library cannot be set up.
    pub fn plain(timeout: Duration) -> Result<Self, Error> {
        Self::new(&Tls { only_extra: true, ..Tls::default() }, timeout)
    }

    fn with_proxies(tls: &Tls, timeout: Duration, proxies: Proxies) -> Result<Self, Error> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config(tls)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(proxy::Connector::new(tcp, proxies.clone()));
        let inner = legacy::Client::builder(TokioExecutor::new())
            .pool_idle_timeout(POOL_IDLE)
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(4)
            .build(connector);
        Ok(Self { inner, timeout, proxies })
    }

    /// Sends one request; status codes are the caller's business.
    ///
    /// # Errors
    /// [`Error::Connect`], [`Error::Broken`] or [`Error::Timeout`].
    pub async fn send(&self, mut request: Request<B>) -> Result<Response<IdleLimited<Incoming>>, Error> {
        let host = host(request.uri());
        if let Some(authorization) = self.proxies.authorization(request.uri()) {
            request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, authorization);
        }
        match tokio::time::timeout(self.timeout, self.inner.request(request)).await {
            Err(_) => Err(Error::Timeout { host, after: self.timeout }),
            Ok(Ok(response)) => {
                Ok(response.map(|body| IdleLimited { body, host, limit: self.timeout, deadline: None }))
            }
            Ok(Err(error)) => {
                let reason = chain(&error);
                Err(if error.is_connect() { Error::Connect { host, reason } } else { Error::Broken { host, reason } })
            }
        }
    }
}

/// Reads a whole body of at most `limit` bytes.
///
/// # Errors
/// A text that says that the body is too large or why the connection broke.
pub async fn collect<B>(body: B, limit: usize) -> Result<Bytes, String>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    Limited::new(body, limit).collect().await.map(|all| all.to_bytes()).map_err(|error| chain(error.as_ref()))
}

fn host(uri: &Uri) -> String {
    uri.authority().map_or_else(|| uri.to_string(), ToString::to_string)
}

/// An error with its causes in one line, each said once.
#[must_use]
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// A body whose pauses are limited, so that a silent server cannot hold a transfer for ever.
#[derive(Debug)]
pub struct IdleLimited<B> {
    body: B,
    host: String,
    limit: Duration,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<B> Body for IdleLimited<B>
where
    B: Body<Data = Bytes, Error = hyper::Error> + Unpin,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.deadline = None;
                let broken = |e: hyper::Error| Error::Broken { host: this.host.clone(), reason: chain(&e) };
                Poll::Ready(frame.map(|result| result.map_err(broken)))
            }
            Poll::Pending => {
                let limit = this.limit;
                let deadline = this.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                match deadline.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Some(Err(Error::Timeout { host: this.host.clone(), after: limit }))),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn config(tls: &Tls) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Tls(e.to_string()))?;
    let builder = if tls.insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAll(provider)))
    } else {
        builder.with_root_certificates(roots(tls)?)
    };
    match &tls.identity {
        None => Ok(builder.with_no_client_auth()),
        Some((certificates, key)) => {
            let chain: Vec<_> = CertificateDer::pem_slice_iter(certificates)
                .collect::<Result<_, _>>()
                .map_err(|e| Error::Tls(format!("client certificate: {e}")))?;
            let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| Error::Tls(format!("client key: {e}")))?;
            builder.with_client_auth_cert(chain, key).map_err(|e| Error::Tls(format!("client certificate: {e}")))
        }
    }
}

fn roots(tls: &Tls) -> Result<RootCertStore, Error> {
    let mut roots = RootCertStore::empty();
    if !tls.only_extra {
        // An image without certificates is normal for plain-HTTP stores: a missing authority shows at the handshake.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    for certificate in CertificateDer::pem_slice_iter(&tls.extra_authorities) {
        let certificate = certificate.map_err(|e| Error::Tls(format!("certificate authority: {e}")))?;
        roots.add(certificate).map_err(|e| Error::Tls(format!("certificate authority: {e}")))?;
    }
    Ok(roots)
}

/// Accepts every server certificate; only for kubeconfigs that ask for it.
#[derive(Debug)]
struct TrustAll(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
