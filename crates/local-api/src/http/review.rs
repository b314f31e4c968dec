//! Reviews: everybody may do everything, and is the same user.

use http::StatusCode;
use serde_json::{Value, json};

use super::response::{Response, status_json};
use crate::ApiError;

/// The user every request counts as.
const USER: &str = "kfp-local";

fn find(segments: &[&str]) -> Option<(&'static str, &'static str)> {
    match segments {
        ["apis", "authorization.k8s.io", "v1", "subjectaccessreviews"] => {
            Some(("authorization.k8s.io/v1", "SubjectAccessReview"))
        }
        ["apis", "authorization.k8s.io", "v1", "selfsubjectaccessreviews"] => {
            Some(("authorization.k8s.io/v1", "SelfSubjectAccessReview"))
        }
        ["apis", "authorization.k8s.io", "v1", "namespaces", _, "localsubjectaccessreviews"] => {
            Some(("authorization.k8s.io/v1", "LocalSubjectAccessReview"))
        }
        ["apis", "authorization.k8s.io", "v1", "selfsubjectrulesreviews"] => {
            Some(("authorization.k8s.io/v1", "SelfSubjectRulesReview"))
        }
        ["apis", "authentication.k8s.io", "v1", "tokenreviews"] => Some(("authentication.k8s.io/v1", "TokenReview")),
        ["apis", "authentication.k8s.io", "v1", "selfsubjectreviews"] => {
            Some(("authentication.k8s.io/v1", "SelfSubjectReview"))
        }
        _ => None,
    }
}

/// Whether a path takes reviews.
pub(super) fn is_review(segments: &[&str]) -> bool {
    find(segments).is_some()
}

/// Answers a review.
pub(super) fn answer(segments: &[&str], body: Value) -> Result<Response, ApiError> {
    let (api_version, kind) = find(segments).ok_or_else(ApiError::no_such_resource)?;
    let Value::Object(mut review) = body else {
        return Err(ApiError::bad_request(format!("the body must be a {kind}")));
    };
    let user = json!({"username": USER, "uid": USER, "groups": ["system:masters", "system:authenticated"]});
    let status = match kind {
        "TokenReview" => json!({
            "authenticated": true, "user": user,
            "audiences": review.get("spec").and_then(|spec| spec.get("audiences")).cloned().unwrap_or_else(|| json!([])),
        }),
        "SelfSubjectReview" => json!({ "userInfo": user }),
        "SelfSubjectRulesReview" => json!({
            "incomplete": false,
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }),
        _ => json!({"allowed": true, "reason": "kfp-local allows everything"}),
    };
    review.insert("apiVersion".into(), api_version.into());
    review.insert("kind".into(), kind.into());
    review.entry("metadata").or_insert_with(|| json!({}));
    review.insert("status".into(), status);
    Ok(status_json(StatusCode::CREATED, &review))
}
