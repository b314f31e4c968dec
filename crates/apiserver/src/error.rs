//! The one error of the API server: a gRPC code, an internal chain for logs and callers, a short external message.

use prost::Message as _;
use tonic::Code;

/// Result of everything that can end a request.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed request. `chain` is what upstream puts into the gRPC status message (outermost text first, joined by
/// `": "`), `external` what it puts into the `google.rpc.Status` detail.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{chain}")]
pub struct Error {
    code: Code,
    chain: String,
    external: String,
    /// Part of how things go, so nothing for the log.
    expected: bool,
}

impl Error {
    fn new(code: Code, chain: String, external: impl Into<String>) -> Self {
        Error { code, chain, external: external.into(), expected: false }
    }

    /// The request is wrong; code 3.
    pub fn invalid(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::new(Code::InvalidArgument, format!("Invalid input error: {message}"), message)
    }

    /// The request is wrong because of `cause`; code 3.
    pub fn invalid_because(message: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        let message = message.into();
        Self::new(Code::InvalidArgument, format!("InvalidInputError: {message}: {cause}"), message)
    }

    /// The named resource does not exist; code 5.
    pub fn not_found(kind: &str, name: &str) -> Self {
        let message = format!("{kind} {name} not found");
        Self::new(Code::NotFound, format!("ResourceNotFoundError: {message}"), message)
    }

    /// Something the request depends on does not exist; code 5.
    pub fn not_found_because(message: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        let message = message.into();
        Self::new(Code::NotFound, format!("NotFoundError: {message}: {cause}"), message)
    }

    /// The name is taken; code 6.
    pub fn already_exists(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::new(Code::AlreadyExists, format!("Already exist error: {message}"), message)
    }

    /// The state of another object forbids it; code 9.
    pub fn failed_precondition(message: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        let message = message.into();
        Self::new(Code::FailedPrecondition, format!("FailedPreconditionError: {message}: {cause}"), message)
    }

    /// Upstream's `BadRequest`, which is ABORTED (HTTP 409); only where clients rely on it.
    pub fn bad_request(message: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        let message = message.into();
        Self::new(Code::Aborted, format!("BadRequestError: {message}: {cause}"), message)
    }

    /// The caller may not do this; code 7.
    pub fn permission_denied(message: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        let message = message.into();
        Self::new(Code::PermissionDenied, format!("PermissionDenied: {message}: {cause}"), message)
    }

    /// Nobody knows who calls; code 16.
    pub fn unauthenticated(message: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        let message = message.into();
        Self::new(Code::Unauthenticated, format!("Unauthenticated: {message}: {cause}"), message)
    }

    /// The server failed; code 13. Clients see only `Internal Server Error` as the external text.
    pub fn internal(message: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::new(Code::Internal, format!("InternalServerError: {}: {cause}", message.into()), "Internal Server Error")
    }

    /// Try again later; code 14.
    pub fn unavailable(message: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Self::new(Code::Unavailable, format!("ServiceUnavailable: {}: {cause}", message.into()), "Service unavailable")
    }

    /// Try again later, as is to be expected at times; code 14, but nothing that an operator has to read.
    pub fn not_yet(message: impl Into<String>, cause: impl std::fmt::Display) -> Self {
        Error { expected: true, ..Self::unavailable(message, cause) }
    }

    /// Not built yet; code 12.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::new(Code::Unimplemented, message.clone(), message)
    }

    /// Puts `outer` before the chain; code and external message stay those of the cause.
    #[must_use]
    pub fn wrap(mut self, outer: impl std::fmt::Display) -> Self {
        self.chain = format!("{outer}: {}", self.chain);
        self
    }

    /// The gRPC code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The short text for end users.
    #[must_use]
    pub fn external(&self) -> &str {
        &self.external
    }

    /// True for code 5.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.code == Code::NotFound
    }

    /// `google.rpc.Status` for embedding in a returned resource.
    #[must_use]
    pub fn to_rpc(&self) -> kfp_proto::google::rpc::Status {
        kfp_proto::google::rpc::Status {
            code: self.code as i32,
            message: self.chain.clone(),
            details: vec![self.detail()],
        }
    }

    fn detail(&self) -> prost_types::Any {
        let inner = kfp_proto::google::rpc::Status {
            code: self.code as i32,
            message: self.external.clone(),
            details: Vec::new(),
        };
        prost_types::Any { type_url: "type.googleapis.com/google.rpc.Status".to_owned(), value: inner.encode_to_vec() }
    }
}

/// Adds an outer text to an error on its way up.
pub trait Wrap<T> {
    /// Puts the text before the chain of the error.
    ///
    /// # Errors
    /// The same error with the longer chain.
    fn wrap(self, outer: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Wrap<T> for Result<T> {
    fn wrap(self, outer: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| error.wrap(outer()))
    }
}

impl From<Error> for tonic::Status {
    fn from(error: Error) -> Self {
        match error.code {
            _ if error.expected => tracing::debug!(error = %error.chain, "request to be repeated"),
            Code::Internal => tracing::error!(error = %error.chain, "request failed"),
            Code::Unavailable => tracing::warn!(error = %error.chain, "request failed"),
            _ => tracing::debug!(error = %error.chain, "request refused"),
        }
        let details = error.to_rpc().encode_to_vec();
        tonic::Status::with_details(error.code, error.chain, details.into())
    }
}

/// HTTP status of a gRPC code, as the gateway maps it.
#[must_use]
pub fn http_status(code: Code) -> http::StatusCode {
    use http::StatusCode as S;
    match code {
        Code::Ok => S::OK,
        Code::Cancelled => S::from_u16(499).unwrap_or(S::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => S::BAD_REQUEST,
        Code::DeadlineExceeded => S::GATEWAY_TIMEOUT,
        Code::NotFound => S::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => S::CONFLICT,
        Code::PermissionDenied => S::FORBIDDEN,
        Code::ResourceExhausted => S::TOO_MANY_REQUESTS,
        Code::Unimplemented => S::NOT_IMPLEMENTED,
        Code::Unavailable => S::SERVICE_UNAVAILABLE,
        Code::Unauthenticated => S::UNAUTHORIZED,
        Code::Unknown | Code::Internal | Code::DataLoss => S::INTERNAL_SERVER_ERROR,
    }
}
