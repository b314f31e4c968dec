//! Reading and writing objects.

use std::sync::Arc;

use axum::body::Body;
use base64::Engine as _;
use futures::StreamExt as _;
use http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};

use super::protobuf;
use super::query::Query;
use super::request::Target;
use super::response::{Response, status_json, with};
use super::server::Context;
use super::table::{Form, Meta, partial};
use super::watching;
use crate::ops::{Deleted, Scope, WriteOptions};
use crate::resource::resources;
use crate::store::Stored;
use crate::{ApiError, Patch, Resource, Selectors, object};

/// Largest body. Kubernetes takes 3 MiB requests and stores 1.5 MiB objects; here both are 3 MiB.
const MAX_BODY: usize = 3 << 20;

/// Deletions of one collection request that wait for the disk together.
const PARALLEL_DELETES: usize = 64;

/// Answers everything below a resource type.
pub(super) async fn handle(
    context: &Context,
    target: Target,
    method: &Method,
    headers: &HeaderMap,
    query: Query,
    body: Body,
) -> Result<Response, ApiError> {
    let scope = match target.subresource.as_deref() {
        None => Scope::Main,
        Some("status") if target.resource.status => Scope::Status,
        Some(_) => return Err(ApiError::no_such_resource()),
    };
    let request = Request { context, r: target.resource, namespace: target.namespace, scope, headers, query };
    match (method.as_str(), target.name) {
        ("GET" | "HEAD", Some(name)) => request.get(&name),
        ("GET" | "HEAD", None) if request.query.flag("watch")? => request.watch(request.selectors()?),
        ("GET" | "HEAD", None) => request.list(),
        ("POST", None) => request.create(read_body(headers, body).await?).await,
        ("PUT", Some(name)) => request.replace(&name, read_body(headers, body).await?).await,
        ("PATCH", Some(name)) => request.patch(&name, body).await,
        ("DELETE", Some(name)) if scope == Scope::Main => request.delete(&name, read_body(headers, body).await?).await,
        ("DELETE", None) => request.delete_all(read_body(headers, body).await?).await,
        _ => Err(ApiError::method_not_allowed()),
    }
}

struct Request<'a> {
    context: &'a Context,
    r: Resource,
    namespace: Option<String>,
    scope: Scope,
    headers: &'a HeaderMap,
    query: Query,
}

impl Request<'_> {
    fn form(&self) -> Result<Form, ApiError> {
        Form::accepted(self.headers, &self.query)
    }

    /// The namespace of a single object; a namespaced type needs one in the path.
    fn place(&self) -> Result<&str, ApiError> {
        match &self.namespace {
            Some(namespace) => Ok(namespace),
            None if self.r.namespaced => Err(ApiError::method_not_allowed()),
            None => Ok(""),
        }
    }

    fn options(&self) -> Result<WriteOptions, ApiError> {
        Ok(WriteOptions { scope: self.scope, dry_run: self.query.dry_run()? })
    }

    fn single(&self, status: StatusCode, object: &Value) -> Result<Response, ApiError> {
        let columns = self.context.cluster.shared().read().registry.columns(&self.r).to_vec();
        Ok(status_json(status, &self.form()?.single(&self.r, &columns, object)))
    }

    fn get(&self, name: &str) -> Result<Response, ApiError> {
        let stored = self.context.cluster.stored(&self.r, self.place()?, name)?;
        match self.form()?.verbatim(&self.r, &stored)? {
            Some(json) => Ok(with(StatusCode::OK, "application/json", Body::from(json))),
            None if self.form()? == Form::Metadata => Ok(status_json(StatusCode::OK, &partial(&stored)?)),
            None => self.single(StatusCode::OK, &*stored.object()?),
        }
    }

    fn list(&self) -> Result<Response, ApiError> {
        let selectors = self.selectors()?;
        // Negative limits count as none, as in Kubernetes.
        let negative = self.query.text("limit").is_some_and(|text| text.parse::<i64>().is_ok_and(|limit| limit < 0));
        let limit = if negative { None } else { self.query.number("limit")?.filter(|limit| *limit > 0) };
        let limit = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX));
        let token = self.query.text("continue").map(Token::decode).transpose()?;
        self.check_version()?;
        let page = self.context.cluster.page(
            &self.r,
            self.namespace.as_deref(),
            &selectors,
            token.as_ref().map(|token| &token.after),
            limit,
        );
        // All pages carry the version of the first: watching from there repeats what changed since.
        let version = token.map_or(page.resource_version, |token| token.version);
        let (next, remaining) = match page.next {
            Some((after, remaining)) => (Some(Token { version, after }.encode()), remaining),
            None => (None, None),
        };
        let meta = Meta { version, next, remaining };
        let columns = self.context.cluster.shared().read().registry.columns(&self.r).to_vec();
        self.form()?.list(&self.r, columns, page.items, meta)
    }

    /// Refuses versions that cannot be served: there is only the current state.
    fn check_version(&self) -> Result<(), ApiError> {
        if self.query.text("resourceVersionMatch").is_some() && self.query.text("resourceVersion").is_none() {
            let why =
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided";
            return Err(ApiError::new(422, "Invalid", format!("ListOptions.meta.k8s.io \"\" is invalid: {why}")));
        }
        let Some(asked) = self.query.number("resourceVersion")? else { return Ok(()) };
        let current = self.context.cluster.shared().read().revision;
        if asked > current {
            // Kubernetes answers 504, on which clients repeat the request as the version may still
            // arrive. Here it can only be from another data directory: the client has to start over.
            return Err(ApiError::new(410, "Expired", format!("too large resource version: {asked} ({current})")));
        }
        if self.query.text("resourceVersionMatch") == Some("Exact") && asked != current {
            return Err(ApiError::gone(asked, current));
        }
        Ok(())
    }

    /// The selectors; custom objects are selected by name and namespace only.
    fn selectors(&self) -> Result<Selectors, ApiError> {
        let fields = self.query.text("fieldSelector").unwrap_or_default().split(',').filter(|part| !part.is_empty());
        for path in fields.filter_map(|part| part.split(['=', '!']).next()) {
            if !self.r.native && !matches!(path, "metadata.name" | "metadata.namespace") {
                return Err(ApiError::bad_request(format!("field label not supported: {path}")));
            }
        }
        self.query.selectors()
    }

    /// Refuses custom objects that do not say what they are; Kubernetes fills that in for its own types only.
    fn check_type(&self, body: &Value) -> Result<(), ApiError> {
        let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default();
        let (kind, version, expected) = (text("kind"), text("apiVersion"), self.r.api_version());
        if self.r.native || !body.is_object() {
            return Ok(());
        }
        if kind.is_empty() {
            return Err(ApiError::bad_request(format!(
                "the object provided is unrecognized (must be of type {}): Object 'Kind' is missing",
                self.r.kind
            )));
        }
        if version != expected {
            return Err(ApiError::bad_request(format!(
                "the API version in the data ({version}) does not match the expected API version ({expected})"
            )));
        }
        if kind != self.r.kind {
            let name = object::meta(body, "name").unwrap_or_default();
            let why = format!("Invalid value: \"{kind}\": must be {}", self.r.kind);
            return Err(ApiError::invalid(&self.r, name, "kind", &why));
        }
        Ok(())
    }

    fn watch(&self, selectors: Selectors) -> Result<Response, ApiError> {
        watching::stream(self.context, &self.r, self.namespace.as_deref(), selectors, &self.query, self.form()?)
    }

    async fn create(&self, body: Value) -> Result<Response, ApiError> {
        self.check_type(&body)?;
        if object::meta(&body, "resourceVersion").is_some_and(|version| !version.is_empty()) {
            return Err(ApiError::internal("resourceVersion should not be set on objects to be created"));
        }
        let created = self.context.cluster.create_with(&self.r, self.place()?, body, self.options()?).await?;
        self.single(StatusCode::CREATED, &created)
    }

    async fn replace(&self, name: &str, body: Value) -> Result<Response, ApiError> {
        self.check_type(&body)?;
        let conditional = !self.r.native || self.r == resources::LEASES;
        if conditional && object::meta(&body, "resourceVersion").is_none_or(str::is_empty) {
            let why = "Invalid value: 0: must be specified for an update";
            // This one names the resource and not the kind.
            let named = Resource { kind: self.r.plural, ..self.r };
            return Err(ApiError::invalid(&named, name, "metadata.resourceVersion", why));
        }
        let updated = self.context.cluster.update_with(&self.r, self.place()?, name, body, self.options()?).await?;
        self.single(StatusCode::OK, &updated)
    }

    async fn patch(&self, name: &str, body: Body) -> Result<Response, ApiError> {
        let media_type = media_type(self.headers);
        let bytes = read_bytes(body).await?;
        let patch = match media_type {
            "application/json-patch+json" => Patch::Json(parse_json(&bytes)?),
            "application/merge-patch+json" => Patch::Merge(parse_json(&bytes)?),
            "application/strategic-merge-patch+json" => Patch::Strategic(parse_json(&bytes)?),
            "application/apply-patch+yaml" => Patch::Apply(parse_yaml(&bytes)?),
            other => {
                return Err(ApiError::unsupported_media_type(format!(
                    "the body of the request was in an unknown format ({other}) - accepted media types include: \
                     application/json-patch+json, application/merge-patch+json, \
                     application/strategic-merge-patch+json, application/apply-patch+yaml"
                )));
            }
        };
        let place = self.place()?;
        let existed = self.context.cluster.stored(&self.r, place, name).is_ok();
        let patched = self.context.cluster.patch_with(&self.r, place, name, patch, self.options()?).await?;
        self.single(if existed { StatusCode::OK } else { StatusCode::CREATED }, &patched)
    }

    async fn delete(&self, name: &str, body: Value) -> Result<Response, ApiError> {
        let mut options = self.query.delete_options(&body)?;
        options.dry_run |= self.query.dry_run()?;
        let Deleted { object, gone } = self.context.cluster.delete_with(&self.r, self.place()?, name, options).await?;
        if !gone {
            return self.single(StatusCode::OK, &object);
        }
        let mut details = json!({"name": name, "kind": self.r.plural, "uid": object::uid(&object)});
        if !self.r.group.is_empty() {
            details["group"] = self.r.group.into();
        }
        Ok(status_json(
            StatusCode::OK,
            &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
        ))
    }

    async fn delete_all(&self, body: Value) -> Result<Response, ApiError> {
        let options = self.query.delete_options(&body)?;
        let cluster = &self.context.cluster;
        let page = cluster.page(&self.r, self.namespace.as_deref(), &self.selectors()?, None, None);
        let version = page.resource_version;
        let results: Vec<Result<Deleted, ApiError>> = futures::stream::iter(page.items)
            .map(|object| {
                let options = options.clone();
                async move {
                    let head = object.head();
                    cluster.delete_with(&self.r, head.namespace(), head.name(), options).await
                }
            })
            .buffered(PARALLEL_DELETES)
            .collect()
            .await;
        let mut items = Vec::new();
        for result in results {
            match result {
                Ok(deleted) => items.push(Arc::new(Stored::new(&deleted.object))),
                // Gone with its owner in the meantime.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        Form::Plain.list(&self.r, Vec::new(), items, Meta { version, next: None, remaining: None })
    }
}

/// Where a list goes on.
struct Token {
    version: u64,
    after: (String, String),
}

impl Token {
    fn encode(&self) -> String {
        let text = json!([self.version, self.after.0, self.after.1]).to_string();
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text)
    }

    fn decode(text: &str) -> Result<Self, ApiError> {
        let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).ok();
        let parsed: Option<(u64, String, String)> = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let (version, namespace, name) =
            parsed.ok_or_else(|| ApiError::bad_request("continue key is not valid: not made by this server"))?;
        Ok(Self { version, after: (namespace, name) })
    }
}

fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

/// The body from JSON, YAML or (for a few kinds) protobuf; null when empty.
pub(super) async fn read_body(headers: &HeaderMap, body: Body) -> Result<Value, ApiError> {
    let media_type = media_type(headers);
    let refuse = |what: &str| {
        Err(ApiError::unsupported_media_type(format!(
            "the body of the request was in an unknown format ({what}) - accepted media types include: \
             application/json, application/yaml"
        )))
    };
    if media_type.contains("cbor") {
        return refuse(media_type);
    }
    let bytes = read_bytes(body).await?;
    if bytes.is_empty() {
        Ok(Value::Null)
    } else if media_type.contains("protobuf") {
        match protobuf::decode(&bytes) {
            Ok(value) => Ok(value),
            Err(protobuf::Refusal::Unknown(kind)) => refuse(&format!("{media_type} for kind {kind}")),
            Err(protobuf::Refusal::Malformed) => Err(ApiError::bad_request("the body is not valid protobuf")),
        }
    } else if media_type.ends_with("yaml") {
        parse_yaml(&bytes)
    } else {
        parse_json(&bytes)
    }
}

async fn read_bytes(body: Body) -> Result<bytes::Bytes, ApiError> {
    axum::body::to_bytes(body, MAX_BODY).await.map_err(|error| {
        // The limit's own error type is private to a crate below axum; its text is the only sign.
        let text = error.to_string();
        if text.contains("length limit") {
            ApiError::new(413, "RequestEntityTooLarge", format!("the request is larger than {MAX_BODY} bytes"))
        } else {
            ApiError::bad_request(format!("cannot read the request: {text}"))
        }
    })
}

fn parse_json(bytes: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| ApiError::bad_request(format!("the body is not valid JSON: {error}")))
}

fn parse_yaml(bytes: &[u8]) -> Result<Value, ApiError> {
    serde_norway::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(format!("the body is not valid YAML: {error}")))
}
