//! Forms in which objects are shown: whole, metadata only, or as the rows kubectl prints.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderMap, StatusCode, header};
use serde_json::{Value, json};

use super::query::Query;
use super::response::{Response, with};
use crate::registry::Column;
use crate::store::{Json, Stored};
use crate::{ApiError, Resource, object, resources};

/// What a client accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Whole objects.
    Plain,
    /// `meta.k8s.io` Table.
    Table(Include),
    /// `meta.k8s.io` PartialObjectMetadata.
    Metadata,
}

/// What rows of a table carry beside their cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Include {
    Metadata,
    Object,
    None,
}

/// Metadata of a list.
pub(super) struct Meta {
    pub version: u64,
    pub next: Option<String>,
    pub remaining: Option<usize>,
}

impl Form {
    /// The first form in `Accept` that can be served.
    ///
    /// # Errors
    /// 406 when there is none, 400 for an unknown `includeObject`.
    pub(super) fn accepted(headers: &HeaderMap, query: &Query) -> Result<Self, ApiError> {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
        for media in accept.split(',') {
            let mut parts = media.split(';').map(str::trim);
            if !matches!(parts.next(), Some("application/json" | "*/*" | "application/*" | "")) {
                continue;
            }
            match parts.find_map(|part| part.strip_prefix("as=")) {
                None => return Ok(Self::Plain),
                Some("Table") => {
                    return Ok(Self::Table(match query.text("includeObject") {
                        None | Some("Metadata") => Include::Metadata,
                        Some("Object") => Include::Object,
                        Some("None") => Include::None,
                        Some(other) => {
                            return Err(ApiError::bad_request(format!("includeObject: unknown value \"{other}\"")));
                        }
                    }));
                }
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => return Ok(Self::Metadata),
                Some(_) => {}
            }
        }
        Err(ApiError::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: application/json (asked for {accept})"),
        ))
    }

    /// One object.
    pub(super) fn single<'a>(self, r: &Resource, columns: &[Column], object: &'a Value) -> Cow<'a, Value> {
        match self {
            Self::Plain => versioned(r, object),
            Self::Metadata => Cow::Owned(partial_of(&object["metadata"])),
            Self::Table(include) => {
                let version = json!({"resourceVersion": object::meta(object, "resourceVersion")});
                Cow::Owned(json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": version,
                    "columnDefinitions": definitions(r, columns),
                    "rows": [row(r, columns, object, include, Utc::now())],
                }))
            }
        }
    }

    /// The JSON of an object that is shown just as it is kept, without copying it.
    ///
    /// # Errors
    /// 500 when it cannot be read.
    pub(super) fn verbatim(self, r: &Resource, stored: &Stored) -> Result<Option<Bytes>, ApiError> {
        struct Text(Json);
        impl AsRef<[u8]> for Text {
            fn as_ref(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }
        let shown = self == Self::Plain && stored.head().api_version() == r.api_version();
        shown.then(|| stored.json().map(|json| Bytes::from_owner(Text(json)))).transpose()
    }

    /// A list. A long one is sent in pieces, and its objects are read when their piece is.
    ///
    /// # Errors
    /// 500 when an object of a short list cannot be read; a long one breaks off.
    pub(super) fn list(
        self,
        r: &Resource,
        columns: Vec<Column>,
        items: Vec<Arc<Stored>>,
        meta: Meta,
    ) -> Result<Response, ApiError> {
        let mut metadata = json!({ "resourceVersion": meta.version.to_string() });
        if let Some(next) = meta.next {
            metadata["continue"] = next.into();
        }
        if let Some(remaining) = meta.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        let (kind, version, rest) = match self {
            Self::Plain => (format!("{}List", r.kind), r.api_version(), "\"items\":[".to_string()),
            Self::Metadata => ("PartialObjectMetadataList".into(), "meta.k8s.io/v1".into(), "\"items\":[".to_string()),
            Self::Table(_) => {
                let definitions = Value::from(definitions(r, &columns));
                ("Table".into(), "meta.k8s.io/v1".into(), format!("\"columnDefinitions\":{definitions},\"rows\":["))
            }
        };
        let start = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{version}\",\"metadata\":{metadata},{rest}");
        let short = items.iter().map(|stored| stored.size()).sum::<usize>() <= SHORT;
        let mut list =
            List { form: self, r: *r, columns, now: Utc::now(), items: items.into_iter(), next: Some(start) };
        let body = if short {
            Body::from(list.piece(usize::MAX)?.unwrap_or_default())
        } else {
            Body::from_stream(futures::stream::iter(std::iter::from_fn(move || list.piece(PIECE).transpose())))
        };
        Ok(with(StatusCode::OK, "application/json", body))
    }
}

/// Up to this many bytes of objects make a list that is sent whole.
const SHORT: usize = 256 << 10;
/// Bytes after which a piece of a longer list is sent.
const PIECE: usize = 64 << 10;

/// A list on its way to the client.
struct List {
    form: Form,
    r: Resource,
    columns: Vec<Column>,
    now: DateTime<Utc>,
    items: std::vec::IntoIter<Arc<Stored>>,
    /// What comes before the next object; nothing after the end.
    next: Option<String>,
}

impl List {
    /// The next piece, of that many bytes or little more; `None` at the end.
    fn piece(&mut self, size: usize) -> Result<Option<String>, ApiError> {
        let Some(mut out) = self.next.take() else { return Ok(None) };
        while let Some(stored) = self.items.next() {
            match self.form {
                Form::Plain if stored.head().api_version() == self.r.api_version() => out.push_str(&stored.json()?),
                Form::Plain => out.push_str(&versioned(&self.r, &*stored.object()?).to_string()),
                Form::Metadata => out.push_str(&partial(&stored)?.to_string()),
                Form::Table(include) => {
                    let row = row(&self.r, &self.columns, &*stored.object()?, include, self.now);
                    out.push_str(&row.to_string());
                }
            }
            let last = self.items.as_slice().is_empty();
            if !last {
                out.push(',');
                if out.len() >= size {
                    self.next = Some(String::new());
                    return Ok(Some(out));
                }
            }
        }
        out.push_str("]}");
        Ok(Some(out))
    }
}

/// The object under the version asked for: all versions of a type share their content.
fn versioned<'a>(r: &Resource, object: &'a Value) -> Cow<'a, Value> {
    let wanted = r.api_version();
    if object["apiVersion"] == wanted {
        return Cow::Borrowed(object);
    }
    let mut copy = object.clone();
    copy["apiVersion"] = wanted.into();
    Cow::Owned(copy)
}

/// Metadata only, read without parsing the rest.
///
/// # Errors
/// 500 when it cannot be read.
pub(super) fn partial(stored: &Stored) -> Result<Value, ApiError> {
    Ok(partial_of(&stored.metadata()?))
}

fn partial_of(metadata: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

/// What the cells of a table's rows mean.
fn definitions(r: &Resource, columns: &[Column]) -> Vec<Value> {
    let definition = |name: &str, kind: &str, format: &str, priority: i64| json!({"name": name, "type": kind, "format": format, "description": "", "priority": priority});
    let mut definitions = vec![definition("Name", "string", "name", 0)];
    if *r == resources::PODS {
        for (name, kind, priority) in [
            ("Ready", "string", 0),
            ("Status", "string", 0),
            ("Restarts", "integer", 0),
            ("Age", "string", 0),
            ("IP", "string", 1),
            ("Node", "string", 1),
        ] {
            definitions.push(definition(name, kind, "", priority));
        }
    } else if columns.is_empty() {
        definitions.push(definition("Age", "date", "", 0));
    } else {
        definitions.extend(columns.iter().map(|c| definition(&c.name, &c.kind, "", c.priority)));
    }
    definitions
}

/// An object as a row of a table.
fn row(r: &Resource, columns: &[Column], object: &Value, include: Include, now: DateTime<Utc>) -> Value {
    let mut cells = vec![object["metadata"]["name"].clone()];
    if *r == resources::PODS {
        cells.extend(pod_cells(object, now));
    } else if columns.is_empty() {
        cells.push(age(&object["metadata"]["creationTimestamp"], now));
    } else {
        cells.extend(columns.iter().map(|column| cell(column, object, now)));
    }
    let mut row = json!({ "cells": cells });
    match include {
        Include::Metadata => row["object"] = partial_of(&object["metadata"]),
        Include::Object => row["object"] = object.clone(),
        Include::None => {}
    }
    row
}

fn cell(column: &Column, object: &Value, now: DateTime<Utc>) -> Value {
    let Some(value) = json_path(object, &column.path) else { return Value::Null };
    match column.kind.as_str() {
        "date" => age(value, now),
        "string" => match value {
            Value::String(_) | Value::Null => value.clone(),
            other => other.to_string().into(),
        },
        _ => value.clone(),
    }
}

/// Evaluates the JSONPath of a printer column: fields, `['fields']` and `[indexes]`; filters are not
/// supported and give nothing.
fn json_path<'a>(object: &'a Value, path: &str) -> Option<&'a Value> {
    let mut value = object;
    let mut rest = path.trim_start_matches('{').trim_end_matches('}').trim_start_matches('$');
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (key, after) = inner.split_once(']')?;
            let quoted = key.trim_matches(['\'', '"']);
            value = match key.parse::<usize>() {
                Ok(index) => value.get(index)?,
                Err(_) => value.get(quoted)?,
            };
            rest = after;
            continue;
        }
        rest = rest.strip_prefix('.').unwrap_or(rest);
        // A backslash keeps a dot inside a key, as in `.metadata.annotations.a\.b`.
        let mut key = String::new();
        let mut characters = rest.char_indices();
        let mut end = rest.len();
        while let Some((at, c)) = characters.next() {
            match c {
                '\\' => key.extend(characters.next().map(|(_, c)| c)),
                '.' | '[' => {
                    end = at;
                    break;
                }
                _ => key.push(c),
            }
        }
        if key.is_empty() {
            return None;
        }
        value = value.get(&key)?;
        rest = &rest[end..];
    }
    Some(value)
}

fn pod_cells(pod: &Value, now: DateTime<Utc>) -> Vec<Value> {
    let statuses = || pod["status"]["containerStatuses"].as_array().into_iter().flatten();
    let ready = statuses().filter(|status| status["ready"] == true).count();
    let total = pod["spec"]["containers"].as_array().map_or(0, Vec::len);
    let restarts: i64 = statuses().filter_map(|status| status["restartCount"].as_i64()).sum();
    let or_none = |value: &Value| value.as_str().unwrap_or("<none>").to_string();
    vec![
        format!("{ready}/{total}").into(),
        pod_status(pod).into(),
        restarts.into(),
        age(&pod["metadata"]["creationTimestamp"], now),
        or_none(&pod["status"]["podIP"]).into(),
        or_none(&pod["spec"]["nodeName"]).into(),
    ]
}

/// The word kubectl shows for a pod: the most telling state of its containers, else its phase.
fn pod_status(pod: &Value) -> String {
    let status = &pod["status"];
    if object::is_deleting(pod) {
        return "Terminating".into();
    }
    if let Some(reason) = status["reason"].as_str().filter(|reason| !reason.is_empty()) {
        return reason.into();
    }
    let init = status["initContainerStatuses"].as_array();
    let total = pod["spec"]["initContainers"].as_array().map_or(0, Vec::len);
    for (index, container) in init.into_iter().flatten().enumerate() {
        let (terminated, waiting) = (&container["state"]["terminated"], &container["state"]["waiting"]);
        match terminated["exitCode"].as_i64() {
            Some(0) => {}
            Some(code) => {
                let reason = terminated["reason"].as_str().filter(|r| !r.is_empty());
                return reason.map_or_else(|| format!("Init:ExitCode:{code}"), |reason| format!("Init:{reason}"));
            }
            None => {
                return match waiting["reason"].as_str() {
                    Some(reason) if !matches!(reason, "" | "PodInitializing") => format!("Init:{reason}"),
                    _ => format!("Init:{index}/{total}"),
                };
            }
        }
    }
    for container in status["containerStatuses"].as_array().into_iter().flatten().rev() {
        let state = &container["state"];
        let reason = |key: &str| state[key]["reason"].as_str().filter(|reason| !reason.is_empty());
        if let Some(reason) = reason("waiting").or(reason("terminated")) {
            return reason.into();
        }
        if let Some(code) = state["terminated"]["exitCode"].as_i64() {
            return format!("ExitCode:{code}");
        }
    }
    status["phase"].as_str().unwrap_or("Unknown").into()
}

fn age(since: &Value, now: DateTime<Utc>) -> Value {
    let Some(text) = since.as_str() else { return Value::Null };
    match DateTime::parse_from_rfc3339(text) {
        Ok(moment) => human(now.signed_duration_since(moment).num_seconds()).into(),
        Err(_) => "<invalid>".into(),
    }
}

/// A duration the way kubectl writes it: two units at most, coarser the longer it is.
fn human(seconds: i64) -> String {
    // Clocks that disagree by a second are no reason to complain.
    if seconds < -1 {
        return "<invalid>".into();
    }
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => two(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => two(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => two(days, "d", hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () if days < 8 * 365 => two(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_kubectl_does() {
        for (seconds, text) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (3599, "59m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 61, "3h1m"),
            (47 * 3600, "47h"),
            (2 * 86_400, "2d"),
            (2 * 86_400 + 3600, "2d1h"),
            (9 * 86_400, "9d"),
            (3 * 365 * 86_400, "3y"),
        ] {
            assert_eq!(human(seconds), text);
        }
    }

    #[test]
    fn paths_of_printer_columns() {
        let object = json!({"a": {"b": [{"c": 1}], "d.e": 2}});
        for (path, found) in [
            (".a.b[0].c", Some(json!(1))),
            ("{.a.b[0].c}", Some(json!(1))),
            (".a['d.e']", Some(json!(2))),
            (".a.d\\.e", Some(json!(2))),
            (".a.x", None),
            (".a.b[?(@.c==1)].c", None),
        ] {
            assert_eq!(json_path(&object, path).cloned(), found, "{path}");
        }
    }

    #[test]
    fn pods_show_their_most_telling_state() {
        for (status, expected) in [
            (json!({"phase": "Running"}), "Running"),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"reason": "Error", "exitCode": 1}}}]}),
                "Error",
            ),
            (
                json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}]}),
                "Completed",
            ),
            (
                json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
                "ExitCode:3",
            ),
            (json!({"phase": "Pending", "initContainerStatuses": [{"state": {"running": {}}}]}), "Init:0/1"),
            (
                json!({"phase": "Failed", "initContainerStatuses": [{"state": {"terminated": {"exitCode": 2}}}]}),
                "Init:ExitCode:2",
            ),
            (json!({"phase": "Failed", "reason": "Evicted"}), "Evicted"),
        ] {
            let pod = json!({"metadata": {}, "spec": {"initContainers": [{}], "containers": [{}]}, "status": status});
            assert_eq!(pod_status(&pod), expected, "{status}");
        }
    }

    #[test]
    fn accept_headers_choose_the_form() {
        let form = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, http::HeaderValue::from_static(accept));
            Form::accepted(&headers, &Query::default())
        };
        assert_eq!(form("application/json").unwrap(), Form::Plain);
        assert_eq!(form("*/*").unwrap(), Form::Plain);
        assert_eq!(
            form("application/json;as=Table;v=v1;g=meta.k8s.io,application/json").unwrap(),
            Form::Table(Include::Metadata)
        );
        assert_eq!(form("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1").unwrap(), Form::Metadata);
        assert_eq!(form("application/vnd.kubernetes.protobuf,application/json").unwrap(), Form::Plain);
        assert_eq!(form("application/vnd.kubernetes.protobuf").unwrap_err().code, 406);
    }
}
