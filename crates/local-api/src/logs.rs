//! Where container logs come from.

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;

use crate::ApiError;

/// What a reader of logs asked for (`PodLogOptions`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Keep the stream open until the container ends.
    pub follow: bool,
    /// Only the last so many lines.
    pub tail_lines: Option<u64>,
    /// Only lines written at or after this moment (`sinceTime`, or now minus `sinceSeconds`).
    pub since: Option<DateTime<Utc>>,
    /// Put an RFC 3339 time stamp and a space before each line.
    pub timestamps: bool,
    /// Stop after so many bytes.
    pub limit_bytes: Option<u64>,
    /// Logs of the previous instance of the container.
    pub previous: bool,
    /// The container has ended: where there is no log, it said nothing.
    pub ended: bool,
}

/// Log bytes as they come; an error ends the stream.
pub type LogStream = BoxStream<'static, Result<Bytes, std::io::Error>>;

/// The side that keeps container logs (in Kubernetes the kubelet). The pod is known to exist and to
/// have the container when it is called; see [`crate::Cluster::set_log_source`].
#[async_trait::async_trait]
pub trait LogSource: Send + Sync {
    /// Opens the log of one container.
    ///
    /// # Errors
    /// 400 when the container has not started yet, 404 when nothing is known about it.
    async fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        options: LogOptions,
    ) -> Result<LogStream, ApiError>;
}
