//! Uploads: the package is the part `uploadfile` of a multipart body, everything else comes in the query.

use std::collections::{BTreeMap, HashMap};

use axum::extract::{Query, Request, State as Extract};
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use http::{StatusCode, header};
use kfp_compiler::package::MAX_BYTES;
use tonic::Code;

use super::{State, failure, failure_with};
use crate::access::{self, Target, rules};
use crate::error::{Error, Result};
use crate::metrics::{UPLOAD, UPLOAD_VERSION};
use crate::services::pipelines::{Draft, Service, shown, shown_version};
use crate::services::v1;
use crate::store::{pipelines, versions};
use crate::workflows::template::Template;

type Parameters = Query<HashMap<String, String>>;

const PART: &str = "uploadfile";
/// How much of a file that is too large is read before the connection is given up.
const DRAIN_BYTES: usize = 8 * MAX_BYTES;
const CREATE_BOTH: &str = "Failed to create a pipeline and a pipeline version";
const CREATE_VERSION: &str = "Failed to create a pipeline version";

/// Whether the caller may store what the request is about. The rest of a refused request is read: clients that still write
/// would not see the answer.
async fn allowed(
    state: &State,
    target: Target,
    request: Request,
    terse: &str,
) -> std::result::Result<Request, Response> {
    match access::check(&state.app, request.headers(), rules::UPLOAD, target).await {
        Ok(()) => Ok(request),
        Err(error) => {
            let mut body = request.into_body().into_data_stream();
            let mut size = 0;
            while let Some(Ok(chunk)) = body.next().await
                && size <= DRAIN_BYTES
            {
                size += chunk.len();
            }
            Err(failure_with(StatusCode::BAD_REQUEST, &error, terse))
        }
    }
}

/// The package and its file name.
async fn file(request: Request) -> Result<(Vec<u8>, String)> {
    let no_part = |cause: String| Error::invalid_because(format!("no form file {PART:?} in the request"), cause);
    let content = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(content).map_err(|error| no_part(error.to_string()))?;
    let mut form = multer::Multipart::new(request.into_body().into_data_stream(), boundary);
    loop {
        let field = form.next_field().await.map_err(|error| no_part(error.to_string()))?;
        let Some(mut field) = field else { return Err(no_part("the form has no such part".to_owned())) };
        if field.name() != Some(PART) {
            continue;
        }
        let name = field.file_name().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
        let (mut bytes, mut size) = (Vec::new(), 0);
        while let Some(chunk) = field.chunk().await.map_err(|error| no_part(error.to_string()))? {
            size += chunk.len();
            // The rest of a file that is too large is read and dropped: clients that still write would not see an answer.
            if size <= MAX_BYTES {
                bytes.extend_from_slice(&chunk);
            } else if size > DRAIN_BYTES {
                break;
            }
        }
        if size > MAX_BYTES {
            return Err(Error::invalid(format!(
                "File size too large ({size} bytes). Maximum supported size: {MAX_BYTES}. Consider moving large embedded \
                 artifacts or notebooks or Python code into a container image or object store."
            )));
        }
        return Ok((bytes, name));
    }
}

fn tags(query: &HashMap<String, String>) -> Result<BTreeMap<String, String>> {
    let Some(text) = query.get("tags").filter(|text| !text.is_empty()) else { return Ok(BTreeMap::new()) };
    serde_json::from_str(text).map_err(|error| {
        Error::invalid_because(
            "Failed to parse tags query parameter. Expected JSON object with string keys and values",
            error,
        )
    })
}

fn draft(query: &HashMap<String, String>, file_name: &str) -> Draft {
    let get = |key: &str| query.get(key).cloned().unwrap_or_default();
    let (mut name, mut display_name) = (get("name"), get("display_name"));
    if name.is_empty() {
        name = if display_name.is_empty() { file_name.to_owned() } else { display_name.clone() };
    }
    if display_name.is_empty() {
        display_name.clone_from(&name);
    }
    Draft {
        name,
        display_name,
        description: get("description"),
        namespace: get("namespace"),
        code_source_url: get("code_source_url"),
        ..Draft::default()
    }
}

/// User mistakes show their reason; conflicts and failures upstream's terse text.
fn refuse(error: &Error, terse: &str) -> Response {
    match error.code() {
        Code::InvalidArgument => {
            let external = error.external();
            let message = if external.is_empty() { terse } else { external };
            failure_with(StatusCode::BAD_REQUEST, error, message)
        }
        _ => failure(error, terse),
    }
}

/// An answer as REST gives it.
fn shown_json<T: prost::Message + prost::Name>(message: &T) -> Response {
    let text = || {
        let descriptor = kfp_proto::POOL.get_message_by_name(&T::full_name()).ok_or_else(|| T::full_name())?;
        let mut dynamic = prost_reflect::DynamicMessage::new(descriptor);
        dynamic.transcode_from(message).map_err(|error| error.to_string())?;
        kfp_rest::to_vec(&dynamic).map_err(|error| error.to_string())
    };
    match text() {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(cause) => {
            let error = Error::internal("Failed to marshal the answer", cause);
            failure(&error, "Failed to marshal the answer")
        }
    }
}

/// Stores a new pipeline with its first version; v2beta1.
pub async fn pipeline(Extract(state): Extract<State>, Query(query): Parameters, request: Request) -> Response {
    match new_pipeline(state, &query, request).await {
        Ok((pipeline, _)) => shown_json(&shown(pipeline)),
        Err(refused) => refused,
    }
}

/// Stores a new pipeline with its first version; v1beta1.
pub async fn pipeline_v1(Extract(state): Extract<State>, Query(query): Parameters, request: Request) -> Response {
    match new_pipeline(state, &query, request).await {
        Ok((pipeline, version)) => shown_json(&v1::pipelines::shown(pipeline, version)),
        Err(refused) => refused,
    }
}

/// Stores another version of a pipeline; v2beta1.
pub async fn version(Extract(state): Extract<State>, Query(query): Parameters, request: Request) -> Response {
    match new_version(state, &query, request).await {
        Ok(version) => shown_json(&shown_version(version)),
        Err(refused) => refused,
    }
}

/// Stores another version of a pipeline; v1beta1.
pub async fn version_v1(Extract(state): Extract<State>, Query(query): Parameters, request: Request) -> Response {
    match new_version(state, &query, request).await {
        Ok(version) => shown_json(&v1::pipelines::shown_version(version)),
        Err(refused) => refused,
    }
}

async fn new_pipeline(
    state: State,
    query: &HashMap<String, String>,
    request: Request,
) -> std::result::Result<(pipelines::Pipeline, versions::Version), Response> {
    let metrics = state.app.metrics.clone();
    metrics.count(UPLOAD);
    let given = |key: &str| query.get(key).cloned().unwrap_or_default();
    let target = Target::Namespace { namespace: given("namespace"), name: given("name") };
    let request = allowed(&state, target, request, "Failed to create a pipeline").await?;
    let (bytes, name) = file(request).await.map_err(|error| failure(&error, "Failed to read pipeline from file"))?;
    let result = async {
        let package = Template::from_file(&bytes, &name)?;
        let draft = Draft { tags: tags(query)?, ..draft(query, &name) };
        Service(state.app).create_both(&draft, BTreeMap::new(), &package).await
    };
    let stored = result.await.map_err(|error| refuse(&error, CREATE_BOTH))?;
    metrics.uploaded(true);
    Ok(stored)
}

async fn new_version(
    state: State,
    query: &HashMap<String, String>,
    request: Request,
) -> std::result::Result<versions::Version, Response> {
    let metrics = state.app.metrics.clone();
    metrics.count(UPLOAD_VERSION);
    let parent = Target::Pipeline(query.get("pipelineid").cloned().unwrap_or_default());
    let request = allowed(&state, parent, request, CREATE_VERSION).await?;
    let (bytes, name) = file(request).await.map_err(|error| failure(&error, CREATE_VERSION))?;
    let result = async {
        let parent = query.get("pipelineid").filter(|id| !id.is_empty());
        let parent = parent.ok_or_else(|| Error::invalid("Please specify a pipeline id when creating versions."))?;
        let package = Template::from_file(&bytes, &name)?;
        let draft = Draft { tags: tags(query)?, ..draft(query, &name) };
        Service(state.app).create_version(parent, &draft, &package).await
    };
    let stored = result.await.map_err(|error| refuse(&error, CREATE_VERSION))?;
    metrics.uploaded(false);
    Ok(stored)
}
