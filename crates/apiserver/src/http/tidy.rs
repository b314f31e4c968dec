//! Paths with empty, `.` or `..` segments are answered with where they lead to.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::{HeaderValue, StatusCode, header};

/// The path without such segments; `None` when it has none. A slash at the end stays.
fn tidy(path: &str) -> Option<String> {
    let untidy = |segment: &str| matches!(segment, "" | "." | "..");
    let segments = path.strip_prefix('/').unwrap_or(path);
    let (inner, last) = segments.rsplit_once('/').map_or((None, segments), |(inner, last)| (Some(inner), last));
    let inner = inner.map(|inner| inner.split('/')).into_iter().flatten();
    if !inner.clone().any(untidy) && !matches!(last, "." | "..") {
        return None;
    }
    let mut kept = Vec::new();
    for segment in inner.chain([last]) {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let end = if path.ends_with('/') && !kept.is_empty() { "/" } else { "" };
    Some(format!("/{}{end}", kept.join("/")))
}

/// Redirects requests for untidy paths.
pub async fn redirect(request: Request, next: Next) -> Response {
    let Some(path) = tidy(request.uri().path()) else { return next.run(request).await };
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    match HeaderValue::from_str(&format!("{path}{query}")) {
        Ok(location) => (StatusCode::MOVED_PERMANENTLY, [(header::LOCATION, location)]).into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_untidy_paths_lead_elsewhere() {
        for (path, want) in [
            ("//apis//v2beta1/runs", "/apis/v2beta1/runs"),
            ("/apis/./v2beta1/x/../runs", "/apis/v2beta1/runs"),
            ("/apis/v2beta1//runs/", "/apis/v2beta1/runs/"),
            ("/../../etc", "/etc"),
            ("/a/..", "/"),
            ("/a/.", "/a"),
            // Never to another host.
            ("//evil.example/x", "/evil.example/x"),
            ("//", "/"),
        ] {
            assert_eq!(tidy(path).as_deref(), Some(want), "{path}");
            assert_eq!(tidy(want), None, "{want}");
        }
        for tidied in ["/", "/apis/v2beta1/runs/", "/a.b/..c/d..", "/runs/x:archive", "*"] {
            assert_eq!(tidy(tidied), None, "{tidied}");
        }
    }
}
