//! The ports, bound before anything else starts, so that a busy one is reported at once.

use std::net::{IpAddr, SocketAddr, TcpListener};

use crate::options::Platform;

/// A port that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "port {port} for {purpose} cannot be used ({reason}); stop what uses it or choose another with --{flag} (0 picks a free one)"
)]
pub struct Error {
    port: u16,
    purpose: &'static str,
    flag: &'static str,
    reason: String,
}

/// All ports of the platform.
pub struct Listeners {
    /// REST.
    pub rest: TcpListener,
    /// gRPC.
    pub grpc: TcpListener,
    /// Metadata.
    pub metadata: TcpListener,
    /// Kubernetes API.
    pub kubernetes: TcpListener,
}

impl Listeners {
    /// Binds them.
    ///
    /// # Errors
    /// Names the port and the flag that changes it.
    pub fn bind(options: &Platform) -> Result<Self, Error> {
        let host = options.host;
        Ok(Self {
            rest: bind(host, options.rest_port, "the REST API", "rest-port")?,
            grpc: bind(host, options.grpc_port, "the gRPC API", "grpc-port")?,
            metadata: bind(host, options.metadata_port, "the metadata store", "metadata-port")?,
            kubernetes: bind(host, options.kubernetes_port, "the Kubernetes API", "kubernetes-port")?,
        })
    }
}

fn bind(host: IpAddr, port: u16, purpose: &'static str, flag: &'static str) -> Result<TcpListener, Error> {
    let failed = |error: std::io::Error| {
        let reason = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another program uses it".to_owned(),
            _ => error.to_string(),
        };
        Error { port, purpose, flag, reason }
    };
    let listener = TcpListener::bind(SocketAddr::new(host, port)).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// The port that a listener got.
///
/// # Errors
/// When the system does not say.
pub fn port(listener: &TcpListener) -> std::io::Result<u16> {
    Ok(listener.local_addr()?.port())
}
