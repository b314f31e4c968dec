//! Proxies that the environment names: `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`, in either case.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::uri::Scheme;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Which server is reached through which proxy.
#[derive(Clone)]
pub(super) struct Proxies(Arc<Matcher>);

impl Proxies {
    pub fn from_env() -> Self {
        Self(Arc::new(Matcher::from_env()))
    }

    #[cfg(test)]
    pub fn of(matcher: Matcher) -> Self {
        Self(Arc::new(matcher))
    }

    /// The own machine is always reached directly, as Go's programs do.
    fn of_server(&self, server: &Uri) -> Option<Intercept> {
        let host = server.host()?.trim_matches(['[', ']']);
        let own = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        if own { None } else { self.0.intercept(server) }
    }

    /// What a request that goes to a proxy as it is has to say to that proxy.
    pub fn authorization(&self, server: &Uri) -> Option<HeaderValue> {
        let plain = server.scheme() == Some(&Scheme::HTTP);
        self.of_server(server).filter(|_| plain)?.basic_auth().cloned()
    }
}

/// Connects to servers directly or by way of their proxy.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    proxies: Proxies,
}

impl Connector {
    pub fn new(tcp: HttpConnector, proxies: Proxies) -> Self {
        Self { tcp, proxies }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        let (mut tcp, proxy) = (self.tcp.clone(), self.proxies.of_server(&server));
        Box::pin(async move {
            let Some(proxy) = proxy else {
                return Ok(Stream { io: tcp.call(server).await?, relayed: false });
            };
            let address = proxy.uri().clone();
            if address.scheme() != Some(&Scheme::HTTP) {
                return Err(format!("the proxy {address} is not one for http://").into());
            }
            if server.scheme() == Some(&Scheme::HTTP) {
                return Ok(Stream { io: tcp.call(address).await?, relayed: true });
            }
            let mut tunnel = Tunnel::new(address, tcp);
            if let Some(authorization) = proxy.basic_auth() {
                tunnel = tunnel.with_auth(authorization.clone());
            }
            Ok(Stream { io: tunnel.call(server).await?, relayed: false })
        })
    }
}

/// A connection to a server, or to a proxy that passes requests on.
#[derive(Debug)]
pub(super) struct Stream {
    io: TokioIo<TcpStream>,
    /// The proxy has to be told the whole address.
    relayed: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.relayed)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Client, Tls};
    use super::*;
    use std::time::Duration;

    use bytes::Bytes;
    use http::Request;
    use http_body_util::Empty;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Sends a request by way of a proxy that answers 404 to everything; returns what the proxy read first.
    async fn proxied(address: &str) -> (Result<u16, super::super::Error>, String) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = format!("http://user:word@{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            socket.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            String::from_utf8(head).unwrap()
        });
        let matcher = Matcher::builder().all(proxy).no(".inside.example").build();
        let tls = Tls { only_extra: true, ..Tls::default() };
        let client = Client::with_proxies(&tls, Duration::from_secs(5), Proxies::of(matcher)).unwrap();
        let answer = client.send(Request::get(address).body(Empty::<Bytes>::new()).unwrap()).await;
        (answer.map(|answer| answer.status().as_u16()), served.await.unwrap())
    }

    #[tokio::test]
    async fn plain_requests_are_relayed_and_others_tunnelled() {
        let (answer, head) = proxied("http://store.example/bucket/key?x=1").await;
        assert_eq!(answer.unwrap(), 404);
        assert!(head.starts_with("GET http://store.example/bucket/key?x=1 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("proxy-authorization: Basic dXNlcjp3b3Jk\r\n"), "{head}");

        let (answer, head) = proxied("https://store.example/bucket/key").await;
        let error = answer.unwrap_err().to_string();
        assert!(error.starts_with("cannot connect to store.example: "), "{error}");
        assert!(head.starts_with("CONNECT store.example:443 HTTP/1.1\r\n"), "{head}");
        assert!(head.to_lowercase().contains("proxy-authorization: basic dxnlcjp3b3jk\r\n"), "{head}");
    }

    #[test]
    fn some_servers_are_reached_directly() {
        let proxies = Proxies::of(Matcher::builder().all("http://p:1").no(".inside.example,10.0.0.0/8").build());
        for (server, direct) in [
            ("http://localhost:9000", true),
            ("https://127.0.0.1/x", true),
            ("http://[::1]:80/", true),
            ("http://a.inside.example/", true),
            ("http://10.1.2.3/", true),
            ("http://11.1.2.3/", false),
            ("https://outside.example/", false),
        ] {
            assert_eq!(proxies.of_server(&server.parse().unwrap()).is_none(), direct, "{server}");
        }
    }
}
