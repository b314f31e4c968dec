//! A small client of the public REST API, as any user's would be.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;
use kfp_core::https;
use serde_json::Value;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer.
    #[error("cannot reach the API server: {0}")]
    Connection(String),
    /// The server refused.
    #[error("{method} {path}: {status}: {message}")]
    Refused {
        /// HTTP method.
        method: Method,
        /// Path.
        path: String,
        /// HTTP status.
        status: http::StatusCode,
        /// The server's reason.
        message: String,
    },
}

/// See the module.
pub struct Client {
    base: String,
    http: https::Client<Full<Bytes>>,
}

const TIMEOUT: Duration = Duration::from_secs(60);
const LARGEST_ANSWER: usize = 256 << 20;

impl Client {
    /// A client of the server at `base`, such as `http://127.0.0.1:8888`.
    ///
    /// # Errors
    /// When the HTTP library cannot be set up.
    pub fn new(base: &str) -> Result<Self, Error> {
        let http = https::Client::plain(TIMEOUT).map_err(|e| Error::Connection(e.to_string()))?;
        Ok(Self { base: base.to_owned(), http })
    }

    async fn send(&self, method: Method, path: &str, kind: &str, body: Vec<u8>) -> Result<Value, Error> {
        let lost = |e: &dyn std::fmt::Display| Error::Connection(e.to_string());
        let request = Request::builder()
            .method(&method)
            .uri(format!("{}{path}", self.base))
            .header(header::CONTENT_TYPE, kind)
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| lost(&e))?;
        let response = self.http.send(request).await.map_err(|e| lost(&e))?;
        let status = response.status();
        let bytes = https::collect(response.into_body(), LARGEST_ANSWER).await.map_err(|e| lost(&e))?;
        let json: Value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        if status.is_success() {
            return Ok(json);
        }
        // Uploads answer with a terse message and the reason beside it, RPCs with one message.
        let parts: Vec<&str> = ["message", "error_message", "error_details"]
            .iter()
            .filter_map(|name| json.get(*name).and_then(Value::as_str))
            .filter(|text| !text.is_empty())
            .collect();
        let message = if parts.is_empty() { String::from_utf8_lossy(&bytes).into_owned() } else { parts.join(": ") };
        Err(Error::Refused { method, path: path.to_owned(), status, message })
    }

    /// GET.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, path: &str) -> Result<Value, Error> {
        self.send(Method::GET, path, "application/json", Vec::new()).await
    }

    /// POST of a JSON body.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value, Error> {
        self.send(Method::POST, path, "application/json", body.to_string().into_bytes()).await
    }

    /// Uploads a pipeline file as a form.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn upload(&self, path: &str, file_name: &str, content: &[u8]) -> Result<Value, Error> {
        let boundary = format!("kfp-local-{}", uuid::Uuid::new_v4().simple());
        let mut body = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"uploadfile\"; filename=\"{}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n",
            file_name.replace(['"', '\r', '\n'], "_")
        )
        .into_bytes();
        body.extend_from_slice(content);
        body.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());
        self.send(Method::POST, path, &format!("multipart/form-data; boundary={boundary}"), body).await
    }
}
