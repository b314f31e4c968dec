//! Forms in which objects are shown: whole, metadata only, or as the rows kubectl prints.

use std::borrow::Cow;
use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};

use super::query::Query;
use super::response::{Response, status_json, with};
use crate::registry::Column;
use crate::store::Stored;
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
                Cow::Owned(table(r, columns, std::iter::once(object), include, version))
            }
        }
    }

    /// The JSON of an object that is shown just as it is kept, without copying it.
    pub(super) fn verbatim(self, r: &Resource, stored: &Arc<Stored>) -> Option<Bytes> {
        struct Json(Arc<Stored>);
        impl AsRef<[u8]> for Json {
            fn as_ref(&self) -> &[u8] {
                self.0.json().as_bytes()
            }
        }
        let shown = self == Self::Plain && stored.api_version() == r.api_version();
        shown.then(|| Bytes::from_owner(Json(stored.clone())))
    }

    /// A list.
    pub(super) fn list(
        self,
        r: &Resource,
        columns: &[Column],
        items: &[Arc<Stored>],
        meta: Meta,
    ) -> Result<Response, ApiError> {
        let mut metadata = json!({ "resourceVersion": meta.version.to_string() });
        if let Some(next) = meta.next {
            metadata["continue"] = next.into();
        }
        if let Some(remaining) = meta.remaining {
            metadata["remainingItemCount"] = remaining.into();
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct List {
            kind: String,
            api_version: String,
            metadata: Value,
            items: Vec<Value>,
        }
        Ok(match self {
            Self::Plain => {
                let wanted = r.api_version();
                let mut body = format!(
                    "{{\"kind\":\"{}List\",\"apiVersion\":\"{wanted}\",\"metadata\":{metadata},\"items\":[",
                    r.kind
                );
                for (at, stored) in items.iter().enumerate() {
                    if at > 0 {
                        body.push(',');
                    }
                    if stored.api_version() == wanted {
                        body.push_str(stored.json());
                    } else {
                        body.push_str(&versioned(r, &stored.object()).to_string());
                    }
                }
                body.push_str("]}");
                with(StatusCode::OK, "application/json", Body::from(body))
            }
            Self::Metadata => {
                let items = items.iter().map(|stored| partial(stored)).collect();
                let (kind, api_version) = ("PartialObjectMetadataList".into(), "meta.k8s.io/v1".into());
                status_json(StatusCode::OK, &List { kind, api_version, metadata, items })
            }
            Self::Table(include) => {
                let objects: Vec<Arc<Value>> = items.iter().map(|stored| stored.object()).collect();
                let items = objects.iter().map(Arc::as_ref);
                status_json(StatusCode::OK, &table(r, columns, items, include, metadata))
            }
        })
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
pub(super) fn partial(stored: &Stored) -> Value {
    partial_of(&stored.metadata())
}

fn partial_of(metadata: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
}

fn table<'a>(
    r: &Resource,
    columns: &[Column],
    items: impl Iterator<Item = &'a Value>,
    include: Include,
    metadata: Value,
) -> Value {
    let now = Utc::now();
    let pods = *r == resources::PODS;
    let definition = |name: &str, kind: &str, format: &str, priority: i64| json!({"name": name, "type": kind, "format": format, "description": "", "priority": priority});
    let mut definitions = vec![definition("Name", "string", "name", 0)];
    if pods {
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
    let rows: Vec<Value> = items
        .map(|object| {
            let mut cells = vec![object["metadata"]["name"].clone()];
            if pods {
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
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": definitions,
        "rows": rows,
    })
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
