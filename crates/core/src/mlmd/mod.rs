//! Client of the ML-Metadata service: what driver and launcher need, in their words.
//!
//! Every call has a timeout and is repeated for some minutes when trying again may help: the server may be restarting,
//! and the work of a task must not be lost for that.

mod artifact;
mod convert;
mod execution;
pub mod names;
mod producers;
mod run;
mod tree;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kfp_proto::ml_metadata as pb;
use kfp_proto::ml_metadata::metadata_store_service_client::MetadataStoreServiceClient;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

use crate::grpc::{self, Tls, Transport};

pub use artifact::{artifact_from_metadata, runtime_artifact};
pub use convert::{double, int, is_truthy_workspace, struct_value, text};
pub use execution::{Execution, NewExecution, Output};
pub use kfp_proto::ml_metadata::execution::State;
pub use run::{Run, RunProperties};
pub use tree::Tree;

/// Largest message in either direction, as upstream sets it.
const MAX_MESSAGE_BYTES: usize = 100 * 1024 * 1024;
/// For how long a store that is away is tried again.
const PATIENCE: Duration = Duration::from_mins(3);

/// Why an operation on pipeline metadata failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server answered with an error, or could not be reached within the attempts allowed.
    #[error("metadata store: {call} failed: {} ({:?})", status.message(), status.code())]
    Call {
        /// Name of the RPC.
        call: &'static str,
        /// The server's answer.
        status: Box<Status>,
    },
    /// No connection can be made.
    #[error("metadata store: {0}")]
    Connection(#[from] grpc::Error),
    /// Something that must exist does not.
    #[error("metadata store: {0} not found")]
    NotFound(String),
    /// A task's output cannot be found among the executions of its run.
    #[error("{0}")]
    Output(String),
    /// Stored or given data cannot be understood.
    #[error("metadata store: {0}")]
    Invalid(String),
}

impl Error {
    /// The gRPC code of the server's answer, if there was one.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Call { status, .. } => Some(status.code()),
            _ => None,
        }
    }

    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Error::Call { status, .. } if grpc::is_transient(status))
    }

    /// Whether the object to create exists already: gRPC code 6, or the texts with which a store on MySQL reports it.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        match self {
            Error::Call { status, .. } => {
                status.code() == Code::AlreadyExists
                    || status.message().contains("AlreadyExists")
                    || status.message().contains("Duplicate entry")
            }
            _ => false,
        }
    }
}

/// A cheap-to-clone client. Connects on first use.
#[derive(Clone, Debug)]
pub struct Client {
    inner: MetadataStoreServiceClient<Transport>,
    /// Ids of types by name; they never change.
    types: Arc<Mutex<HashMap<String, i64>>>,
}

impl Client {
    /// A client for the service at `address:port`. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Connection`] when host and port do not form an address.
    pub fn connect_lazy(address: &str, port: u16, tls: Option<&Tls>) -> Result<Self, Error> {
        Ok(Self::new(grpc::channel(address, port, tls)?))
    }

    /// A client on an existing channel or a service in this process.
    #[must_use]
    pub fn new(transport: impl Into<Transport>) -> Self {
        let inner = MetadataStoreServiceClient::new(transport.into())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Self { inner, types: Arc::default() }
    }

    /// The same client with another limit on the size of messages, in both directions.
    #[must_use]
    pub fn with_max_message_bytes(mut self, bytes: usize) -> Self {
        self.inner = self.inner.max_decoding_message_size(bytes).max_encoding_message_size(bytes);
        self
    }

    fn known_type(&self, name: &str) -> Option<i64> {
        self.types.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    fn learn_type(&self, name: &str, id: i64) {
        self.types.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), id);
    }

    async fn call<Q: Clone, A, F>(
        &self,
        name: &'static str,
        request: Q,
        rpc: impl Fn(MetadataStoreServiceClient<Transport>, Request<Q>) -> F,
    ) -> Result<A, Error>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let end = Instant::now() + PATIENCE;
        loop {
            let answer = grpc::with_retries(|| rpc(self.inner.clone(), Request::new(request.clone()))).await;
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(status) => Error::Call { call: name, status: Box::new(status) },
            };
            if !error.is_transient() || Instant::now() >= end {
                return Err(error);
            }
            tracing::warn!(%error, "trying again");
        }
    }

    /// Stores an execution together with new artifacts, once: when an answer is lost, the execution's state says
    /// whether the request arrived. Done twice, it would make every artifact twice.
    async fn put_once(&self, request: pb::PutExecutionRequest) -> Result<(), Error> {
        let execution = request.execution.clone().unwrap_or_default();
        let (id, state) = (execution.id(), execution.last_known_state());
        let end = Instant::now() + PATIENCE;
        let mut pause = Duration::from_millis(100);
        loop {
            let answer = self.inner.clone().put_execution(request.clone()).await;
            let error = match answer {
                Ok(_) => return Ok(()),
                Err(status) => Error::Call { call: "put_execution", status: Box::new(status) },
            };
            if !error.is_transient() || Instant::now() >= end {
                return Err(error);
            }
            tracing::warn!(%error, "trying again");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(10));
            if self.execution(id).await?.state() == state {
                return Ok(());
            }
        }
    }
}

/// `self.call("Name", request, |mut client, request| async move { client.name(request).await })`, shortened.
macro_rules! rpc {
    ($client:expr, $method:ident, $request:expr) => {
        $client.call(stringify!($method), $request, |mut client, request| async move { client.$method(request).await })
    };
}
pub(crate) use rpc;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn already_exists_is_recognised_by_code_and_by_text() {
        let error = |code, text: &str| Error::Call { call: "x", status: Box::new(Status::new(code, text)) };
        assert!(error(Code::AlreadyExists, "").is_already_exists());
        assert!(error(Code::Internal, "errno 1062: Duplicate entry 'a'").is_already_exists());
        assert!(!error(Code::Internal, "disk full").is_already_exists());
    }

    #[tokio::test]
    async fn bad_addresses_are_named() {
        let error = Client::connect_lazy("not a host", 8080, None).unwrap_err();
        assert!(error.to_string().contains("not a host:8080"), "{error}");
        assert!(Client::connect_lazy("::1", 8080, None).is_ok());
    }
}
