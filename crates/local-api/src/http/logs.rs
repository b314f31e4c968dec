//! `pods/NAME/log`.

use axum::body::Body;
use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt as _;
use http::{Method, StatusCode};
use serde_json::Value;

use super::query::Query;
use super::request::Target;
use super::response::{Response, with};
use super::server::Context;
use crate::{ApiError, LogOptions, resources};

/// Streams a container's log.
pub(super) async fn read(
    context: &Context,
    target: &Target,
    method: &Method,
    query: &Query,
) -> Result<Response, ApiError> {
    if *method != Method::GET {
        return Err(ApiError::method_not_allowed());
    }
    let namespace = target.namespace.as_deref().unwrap_or_default();
    let name = target.name.as_deref().unwrap_or_default();
    let pod = context.cluster.get(&resources::PODS, namespace, name).await?;
    let container = container(&pod, name, query.text("container"))?;
    let mut options = options(query)?;
    options.ended = has_ended(&pod, &container);
    let source = context
        .cluster
        .log_source()
        .ok_or_else(|| ApiError::not_implemented("reading logs (no pod runner is attached)"))?;
    let stream = source.logs(namespace, name, &container, options).await?;
    let ended = context.shutdown.clone().cancelled_owned();
    let body = Body::from_stream(stream.take_until(ended));
    Ok(with(StatusCode::OK, "text/plain", body))
}

/// The container asked for, or the only one.
fn container(pod: &Value, name: &str, asked: Option<&str>) -> Result<String, ApiError> {
    let names = |field: &str| -> Vec<&str> {
        pod["spec"][field].as_array().into_iter().flatten().filter_map(|c| c["name"].as_str()).collect()
    };
    let (main, init) = (names("containers"), names("initContainers"));
    match asked {
        Some(asked) if main.contains(&asked) || init.contains(&asked) => Ok(asked.to_string()),
        Some(asked) => Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}"))),
        None => match main.as_slice() {
            [only] => Ok((*only).to_string()),
            _ => Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                [init, main].concat().join(" ")
            ))),
        },
    }
}

fn has_ended(pod: &Value, container: &str) -> bool {
    let statuses = |field: &str| pod["status"][field].as_array().into_iter().flatten();
    let mut all = statuses("containerStatuses").chain(statuses("initContainerStatuses"));
    all.any(|status| status["name"] == container && status["state"]["terminated"].is_object())
}

fn options(query: &Query) -> Result<LogOptions, ApiError> {
    let since = match (query.text("sinceTime"), query.number("sinceSeconds")?) {
        (Some(_), Some(_)) => {
            return Err(ApiError::bad_request("at most one of sinceTime or sinceSeconds may be given"));
        }
        (Some(time), None) => Some(
            DateTime::parse_from_rfc3339(time)
                .map_err(|error| ApiError::bad_request(format!("sinceTime: \"{time}\": {error}")))?
                .with_timezone(&Utc),
        ),
        (None, Some(seconds)) => {
            let span = i64::try_from(seconds).ok().and_then(TimeDelta::try_seconds);
            span.and_then(|span| Utc::now().checked_sub_signed(span))
        }
        (None, None) => None,
    };
    Ok(LogOptions {
        follow: query.flag("follow")?,
        tail_lines: query.number("tailLines")?,
        since,
        timestamps: query.flag("timestamps")?,
        limit_bytes: query.number("limitBytes")?,
        previous: query.flag("previous")?,
        ended: false,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_only_container_is_the_default() {
        let one = json!({"spec": {"containers": [{"name": "main"}], "initContainers": [{"name": "init"}]}});
        assert_eq!(container(&one, "p", None).unwrap(), "main");
        assert_eq!(container(&one, "p", Some("init")).unwrap(), "init");
        assert_eq!(container(&one, "p", Some("x")).unwrap_err().code, 400);
        let two = json!({"spec": {"containers": [{"name": "main"}, {"name": "wait"}]}});
        assert!(container(&two, "p", None).unwrap_err().message.contains("[main wait]"));
    }

    #[test]
    fn a_container_has_ended_when_its_status_says_so() {
        let status = |state: Value| json!({"status": {"containerStatuses": [{"name": "main", "state": state}]}});
        assert!(has_ended(&status(json!({"terminated": {"exitCode": 0}})), "main"));
        assert!(!has_ended(&status(json!({"terminated": {"exitCode": 0}})), "wait"));
        assert!(!has_ended(&status(json!({"running": {}})), "main"));
        assert!(!has_ended(&json!({}), "main"));
    }

    #[test]
    fn options_are_parsed() {
        let query = Query::parse("follow=true&tailLines=3&sinceTime=2026-01-01T00:00:00Z&limitBytes=9&timestamps=1");
        let parsed = options(&query.unwrap()).unwrap();
        assert!(parsed.follow && parsed.timestamps && !parsed.previous);
        assert_eq!((parsed.tail_lines, parsed.limit_bytes), (Some(3), Some(9)));
        assert_eq!(parsed.since.unwrap().timestamp(), 1_767_225_600);
        for bad in ["sinceTime=x", "sinceTime=2026-01-01T00:00:00Z&sinceSeconds=1", "tailLines=-1"] {
            assert_eq!(options(&Query::parse(bad).unwrap()).unwrap_err().code, 400, "{bad}");
        }
    }
}
