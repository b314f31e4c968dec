//! Who calls: the proxy in front says so in a header, or a service account proves it with a token.

use http::{HeaderMap, HeaderName, header};
use serde_json::json;

use super::Settings;
use crate::error::{Error, Result};
use crate::workflows::cluster::Cluster;

const BEARER: &str = "Bearer ";
const TOKEN_REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// The rest of the one value of a header after its prefix.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName, prefix: &str) -> Result<&'a str, String> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or("Request header error: there is no user identity header.")?;
    // Two names are no name: one of them may be the caller's own.
    let more = values.count();
    if more > 0 {
        return Err(format!("Request header error: unexpected number of '{name}' headers. Expect 1 got {}", more + 1));
    }
    let text = std::str::from_utf8(value.as_bytes()).ok().and_then(|text| text.strip_prefix(prefix));
    let text = text.ok_or_else(|| format!("Header '{name}' is incorrectly formatted. Expected prefix '{prefix}'"))?;
    if text.is_empty() { Err(format!("Header '{name}' names no user")) } else { Ok(text) }
}

/// The user that a token belongs to.
async fn of_token(settings: &Settings, cluster: &Cluster, headers: &HeaderMap) -> Result<String, String> {
    let token = single(headers, &header::AUTHORIZATION, BEARER)?;
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": [settings.audience]},
    });
    let failed = |cause: String| {
        format!("Authentication failure: Request header error: Failed to review the token provided: {cause}")
    };
    let answer = cluster.review(TOKEN_REVIEWS, &review).await.map_err(|failure| failed(failure.to_string()))?;
    let status = &answer["status"];
    if status["authenticated"] != true {
        // The persistence agent looks for the text in it.
        let reason = status["error"].as_str().unwrap_or_default();
        return Err(format!("Authentication failure: Review.Status.Authenticated is false. Error {reason}"));
    }
    let audiences = status["audiences"].as_array().into_iter().flatten();
    if !audiences.into_iter().any(|audience| audience.as_str() == Some(&settings.audience)) {
        return Err(format!(
            "Authentication failure: Failed to find all of '[{}]' in audience: {}",
            settings.audience, status["audiences"]
        ));
    }
    match status["user"]["username"].as_str() {
        Some(user) if !user.is_empty() => Ok(user.to_owned()),
        _ => Err(failed("the answer names no user".to_owned())),
    }
}

/// The user who calls.
///
/// # Errors
/// Code 16, with what is wrong about each way to say it.
pub async fn user(settings: &Settings, cluster: &Cluster, headers: &HeaderMap) -> Result<String> {
    let by_header = match single(headers, &settings.user_header, &settings.user_prefix) {
        Ok(user) => return Ok(user.to_owned()),
        Err(cause) => cause,
    };
    let by_token = match of_token(settings, cluster, headers).await {
        Ok(user) => return Ok(user),
        Err(cause) => cause,
    };
    Err(Error::unauthenticated(
        "Failed to check authorization. User identity is empty in the request header",
        format!("[{by_header}, {by_token}]"),
    ))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_header_counts_only_once_and_with_its_prefix() {
        let name = HeaderName::from_static("kubeflow-userid");
        let headers = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(&name, HeaderValue::from_static(value));
            }
            headers
        };
        assert_eq!(single(&headers(&["accounts:a@b"]), &name, "accounts:"), Ok("a@b"));
        assert_eq!(single(&headers(&["a@b"]), &name, ""), Ok("a@b"));
        for (values, prefix) in [(&[][..], ""), (&["a", "a"], ""), (&["a"], "b"), (&[""], ""), (&["b"], "b")] {
            assert!(single(&headers(values), &name, prefix).is_err(), "{values:?} {prefix:?}");
        }
    }
}
