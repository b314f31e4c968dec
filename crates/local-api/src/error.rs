//! What can go wrong: opening the store, and single API requests.

use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::Resource;

/// Why a cluster directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process holds the directory.
    #[error("data directory {dir} is in use by process {pid}; stop it first or choose another directory")]
    Locked {
        /// The directory that was asked for.
        dir: PathBuf,
        /// Process id as written by the holder, or `?` when it could not be read.
        pid: String,
    },
    /// The directory or its lock file could not be created or read.
    #[error("cannot use {path}: {source}")]
    Io {
        /// The file or directory concerned.
        path: PathBuf,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// The database could not be opened, migrated or read.
    #[error("cannot open the object database in {dir}: {source}")]
    Database {
        /// The data directory.
        dir: PathBuf,
        /// SQLite's answer.
        source: sqlx::Error,
    },
    /// The database could not be opened for reading.
    #[error("cannot read the object database in {dir}: {source}")]
    Reader {
        /// The data directory.
        dir: PathBuf,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// The objects every cluster has could not be written.
    #[error("cannot prepare the object database in {dir}: {source}")]
    Seed {
        /// The data directory.
        dir: PathBuf,
        /// What the store answered.
        source: ApiError,
    },
}

/// A refused request: the contents of a Kubernetes `metav1.Status` with `status: Failure`.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status code.
    pub code: u16,
    /// Kubernetes reason word, e.g. `NotFound`, `Conflict`, `Expired`.
    pub reason: &'static str,
    /// Sentence for people, in the form Kubernetes uses.
    pub message: String,
    /// `details` of the Status (name, group, kind, causes); empty when there are none.
    pub details: Map<String, Value>,
}

impl ApiError {
    /// An error without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Map::new() }
    }

    fn on(code: u16, reason: &'static str, r: &Resource, name: &str, message: String) -> Self {
        let mut details = Map::new();
        details.insert("name".into(), name.into());
        if !r.group.is_empty() {
            details.insert("group".into(), r.group.into());
        }
        details.insert("kind".into(), r.plural.into());
        Self { code, reason, message, details }
    }

    /// 404: no such object.
    pub fn not_found(r: &Resource, name: &str) -> Self {
        Self::on(404, "NotFound", r, name, format!("{} \"{name}\" not found", r.qualified()))
    }

    /// 404: no such path or resource type.
    pub fn no_such_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
    }

    /// 409: an object of that name exists.
    pub fn already_exists(r: &Resource, name: &str) -> Self {
        Self::on(409, "AlreadyExists", r, name, format!("{} \"{name}\" already exists", r.qualified()))
    }

    /// 409: the object changed since it was read, or a precondition failed.
    pub fn conflict(r: &Resource, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {why}", r.qualified());
        Self::on(409, "Conflict", r, name, message)
    }

    /// 422: the object breaks a rule; `field` names the place.
    pub fn invalid(r: &Resource, name: &str, field: &str, why: &str) -> Self {
        let kind = if r.group.is_empty() { r.kind.to_string() } else { format!("{}.{}", r.kind, r.group) };
        let mut error = Self::on(422, "Invalid", r, name, format!("{kind} \"{name}\" is invalid: {field}: {why}"));
        error.details.insert("kind".into(), r.kind.into());
        if name.is_empty() {
            error.details.remove("name");
        }
        let reason = if why.starts_with("Required value") { "FieldValueRequired" } else { "FieldValueInvalid" };
        error.details.insert("causes".into(), json!([{ "reason": reason, "message": why, "field": field }]));
        error
    }

    /// 400: the request cannot be understood.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 403: the request is understood and refused.
    pub fn forbidden(r: &Resource, name: &str, why: &str) -> Self {
        Self::on(403, "Forbidden", r, name, format!("{} \"{name}\" is forbidden: {why}", r.qualified()))
    }

    /// 410: the asked-for history is gone; list again and watch from there.
    pub fn gone(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// 405: the resource exists and does not support the verb.
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    /// 415: the patch or body format is not supported for this resource.
    pub fn unsupported_media_type(message: impl Into<String>) -> Self {
        Self::new(415, "UnsupportedMediaType", message)
    }

    /// 500: the server failed, e.g. the disk is full.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(500, "InternalError", message)
    }

    /// 501: known and not built.
    pub fn not_implemented(what: &str) -> Self {
        Self::new(501, "NotImplemented", format!("{what} is not implemented"))
    }

    /// Whether the object (or resource type) does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code == 404
    }

    /// Whether a concurrent change was the cause; read again and retry.
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    /// Whether an object of the name existed already.
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    /// Whether a watch must start over with a fresh list.
    pub fn is_gone(&self) -> bool {
        self.code == 410
    }

    /// The `metav1.Status` object.
    pub fn to_status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {},
            "status": "Failure", "message": self.message, "reason": self.reason, "code": self.code,
        });
        if !self.details.is_empty() {
            status["details"] = Value::Object(self.details.clone());
        }
        status
    }
}
