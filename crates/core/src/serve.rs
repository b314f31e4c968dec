//! Accepting connections and serving HTTP on them, with bounds on how long a client may say nothing.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tower_service::Service;

/// How long a client may take for the head of a request, which is also how long an idle connection is kept. Longer than
/// the minute after which common load balancers give theirs up, so that the server is not the one to cut a connection
/// on which a request is just being sent.
pub const PATIENCE: Duration = Duration::from_secs(75);
/// How long a client may take for its part of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What every HTTP/2 connection starts with.
#[cfg(feature = "grpc")]
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long the answer to an HTTP/2 ping may take.
#[cfg(feature = "grpc")]
const PONG: Duration = Duration::from_secs(20);

/// A connection of a client, its TLS handshake done.
#[derive(Debug)]
pub struct Connection {
    io: Either<TcpStream, Box<TlsStream<TcpStream>>>,
    opening: Option<Opening>,
}

/// Bytes that have to arrive by a time.
#[derive(Debug)]
struct Opening {
    missing: usize,
    deadline: Pin<Box<Sleep>>,
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let done = Pin::new(&mut self.io).poll_read(cx, buffer);
        let Some(opening) = &mut self.opening else { return done };
        opening.missing = opening.missing.saturating_sub(buffer.filled().len() - before);
        if opening.missing == 0 {
            self.opening = None;
        } else if done.is_pending() && opening.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client sends no request")));
        }
        done
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(feature = "grpc")]
impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

/// Connections as they come. Handshakes go on beside each other, so that a client that says nothing holds nobody up.
#[derive(Debug)]
pub struct Incoming {
    listener: TcpListener,
    handshakes: JoinSet<Option<Connection>>,
    tls: Option<Tls>,
}

#[derive(Clone)]
struct Tls(TlsAcceptor);

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tls")
    }
}

impl Tls {
    async fn shake_hands(self, stream: TcpStream, address: SocketAddr) -> Option<Connection> {
        match tokio::time::timeout(HANDSHAKE, self.0.accept(stream)).await {
            Ok(Ok(stream)) => return Some(Connection { io: Either::Right(Box::new(stream)), opening: None }),
            Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
            Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
        }
        None
    }
}

impl Incoming {
    /// Accepts with TLS if there is an acceptor.
    #[must_use]
    pub fn new(listener: TcpListener, tls: Option<TlsAcceptor>) -> Self {
        Incoming { listener, handshakes: JoinSet::new(), tls: tls.map(Tls) }
    }

    /// The next one. May be dropped while it waits and asked again.
    pub async fn next(&mut self) -> Connection {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        // Answers are written whole, so waiting for more to send would only delay them.
                        drop(stream.set_nodelay(true));
                        match self.tls.clone() {
                            None => return Connection { io: Either::Left(stream), opening: None },
                            Some(tls) => drop(self.handshakes.spawn(tls.shake_hands(stream, address))),
                        }
                    }
                    Err(error) => {
                        // Out of files, say: the next attempt fails as fast, so it waits.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                },
                Some(done) = self.handshakes.join_next() => {
                    if let Ok(Some(connection)) = done {
                        return connection;
                    }
                }
            }
        }
    }

    /// Endless, for [`grpc`]: connections that do not begin with a request within `patience` are closed.
    #[cfg(feature = "grpc")]
    pub fn into_stream(self, patience: Duration) -> impl futures::Stream<Item = io::Result<Connection>> {
        futures::stream::unfold(self, move |mut incoming| async move {
            let mut connection = incoming.next().await;
            let deadline = Box::pin(tokio::time::sleep(patience));
            connection.opening = Some(Opening { missing: PREFACE.len(), deadline });
            Some((Ok(connection), incoming))
        })
    }
}

/// A gRPC server that closes connections whose clients are gone or stop in the middle of a frame, which keeps them from
/// answering a ping; `patience` is the time between pings. Serve it on [`Incoming::into_stream`].
#[cfg(feature = "grpc")]
#[must_use]
pub fn grpc(patience: Duration) -> tonic::transport::Server {
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(patience))
        .http2_keepalive_timeout(Some(patience.min(PONG)))
}

/// Serves HTTP/1 until `stop`, then lets the requests under way end. Dropping it closes all connections. A client that
/// takes longer than `patience` for the head of a request is cut off; bodies are the service's to bound.
pub async fn http1<S, B>(mut incoming: Incoming, service: S, patience: Duration, stop: CancellationToken)
where
    S: Service<Request<hyper::body::Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            connection = incoming.next() => {
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(patience)
                    .serve_connection(TokioIo::new(connection), TowerToHyperService::new(service.clone()));
                let stop = stop.clone();
                connections.spawn(async move {
                    let mut served = pin!(served);
                    let done = tokio::select! {
                        done = served.as_mut() => done,
                        () = stop.cancelled() => {
                            served.as_mut().graceful_shutdown();
                            served.await
                        }
                    };
                    if let Err(error) = done {
                        tracing::debug!(%error, "a connection failed");
                    }
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
    // New clients are refused while the old ones end.
    drop(incoming);
    while connections.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// Long enough for a whole request, short enough to wait for.
    const SHORT: Duration = Duration::from_millis(500);

    async fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// What the server says before it closes the connection.
    async fn answer(address: SocketAddr, request: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = vec![];
        // An end with an error is one, too.
        drop(stream.read_to_end(&mut answer).await);
        answer
    }

    #[tokio::test]
    async fn half_a_head_is_not_waited_for_and_hinders_nobody() {
        let (listener, address) = listener().await;
        let stop = CancellationToken::new();
        let service = tower::service_fn(async |_| {
            Ok::<_, Infallible>(Response::new(http_body_util::Full::new(bytes::Bytes::from_static(b"hello"))))
        });
        let server = tokio::spawn(http1(Incoming::new(listener, None), service, SHORT, stop.clone()));
        let slow = tokio::spawn(answer(address, b"GET / HTTP/1.1\r\nHost: x\r\n"));
        let whole = answer(address, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
        assert!(whole.starts_with(b"HTTP/1.1 200 OK") && whole.ends_with(b"hello"));
        assert_eq!(slow.await.unwrap(), b"");
        // An idle connection is closed after its answer.
        assert!(answer(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.ends_with(b"hello"));
        stop.cancel();
        server.await.unwrap();
    }

    #[cfg(feature = "grpc")]
    #[tokio::test]
    async fn half_a_preface_and_half_a_frame_are_not_waited_for() {
        let (listener, address) = listener().await;
        let stop = CancellationToken::new();
        let incoming = Incoming::new(listener, None).into_stream(SHORT);
        let server = grpc(SHORT).add_routes(tonic::service::Routes::default());
        let server = tokio::spawn(server.serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()));
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        // Says that 100 bytes of headers follow.
        let headers = [0, 0, 100, 1, 5, 0, 0, 0, 1, 0x82];
        let (preface, whole) = (&PREFACE[..PREFACE.len() / 2], [PREFACE, &settings].concat());
        let (frame, cut) = ([&whole[..], &headers].concat(), &whole[..PREFACE.len() + 3]);
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
        let quick = async {
            let mut channel = channel.connect().await.unwrap();
            let request = Request::post("/a.B/C").body(tonic::body::Body::empty()).unwrap();
            std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
            assert_eq!(channel.call(request).await.unwrap().headers()["grpc-status"], "12");
        };
        let all = async {
            let slow = [b"", preface, cut, &frame].map(|bytes| answer(address, bytes));
            tokio::join!(futures::future::join_all(slow), quick).0
        };
        let ends = tokio::time::timeout(Duration::from_secs(60), all).await.unwrap();
        // That it takes them for HTTP/2 shows in its settings.
        assert!(ends.iter().all(|end| end.starts_with(&[0, 0]) && end[3] == 4), "{ends:?}");
        stop.cancel();
        server.await.unwrap().unwrap();
    }
}
