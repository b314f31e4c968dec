//! Query parameters.

use crate::{ApiError, DeleteOptions, Propagation, Selectors};

/// The parameters of a request, checked where they are read.
#[derive(Debug, Default)]
pub(super) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub(super) fn parse(text: &str) -> Result<Self, ApiError> {
        let mut pairs = Vec::new();
        for part in text.split('&').filter(|part| !part.is_empty()) {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            pairs.push((decode(key)?, decode(value)?));
        }
        Ok(Self { pairs })
    }

    /// The first value, unless empty.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    pub(super) fn flag(&self, key: &str) -> Result<bool, ApiError> {
        match self.pairs.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()) {
            None | Some("false" | "0" | "False" | "f" | "F" | "FALSE") => Ok(false),
            Some("true" | "1" | "True" | "t" | "T" | "TRUE" | "") => Ok(true),
            Some(other) => {
                Err(ApiError::bad_request(format!("query parameter {key}: \"{other}\" is not true or false")))
            }
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let number = text.parse().map_err(|_| {
            ApiError::bad_request(format!("query parameter {key}: \"{text}\" is not a non-negative integer"))
        })?;
        Ok(Some(number))
    }

    pub(super) fn selectors(&self) -> Result<Selectors, ApiError> {
        Selectors::parse(self.text("labelSelector").unwrap_or_default(), self.text("fieldSelector").unwrap_or_default())
    }

    pub(super) fn dry_run(&self) -> Result<bool, ApiError> {
        match self.text("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(ApiError::new(
                422,
                "Invalid",
                format!("dryRun: Unsupported value: \"{other}\": supported values: \"All\""),
            )),
        }
    }

    /// Delete options from the query and, which wins, the body.
    pub(super) fn delete_options(&self, body: &serde_json::Value) -> Result<DeleteOptions, ApiError> {
        let policy = body["propagationPolicy"].as_str().or(self.text("propagationPolicy"));
        let orphan = body["orphanDependents"].as_bool();
        let propagation = match (policy, orphan) {
            (Some("Background"), _) | (None, None | Some(false)) => Propagation::Background,
            (Some("Foreground"), _) => Propagation::Foreground,
            (Some("Orphan"), _) | (None, Some(true)) => Propagation::Orphan,
            (Some(other), _) => {
                return Err(ApiError::new(
                    422,
                    "Invalid",
                    format!(
                        "propagationPolicy: Unsupported value: \"{other}\": supported values: Background, Foreground, Orphan"
                    ),
                ));
            }
        };
        let precondition = |key: &str| body["preconditions"][key].as_str().map(str::to_string);
        let dry_run = self.dry_run()? || body["dryRun"].as_array().is_some_and(|list| list.iter().any(|v| v == "All"));
        Ok(DeleteOptions {
            propagation,
            uid: precondition("uid"),
            resource_version: precondition("resourceVersion"),
            dry_run,
        })
    }
}

fn decode(text: &str) -> Result<String, ApiError> {
    let spaced = text.replace('+', " ");
    let decoded = percent_encoding::percent_decode_str(&spaced).decode_utf8();
    decoded.map(|text| text.into_owned()).map_err(|_| ApiError::bad_request("the query is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parameters_are_decoded_and_checked() {
        let query = Query::parse("labelSelector=a%3Db%2Cc&watch=true&limit=5&x=a+b&empty=").unwrap();
        assert_eq!(query.text("labelSelector"), Some("a=b,c"));
        assert_eq!(query.text("x"), Some("a b"));
        assert_eq!(query.text("empty"), None);
        assert!(query.flag("watch").unwrap() && !query.flag("follow").unwrap());
        assert_eq!(query.number("limit").unwrap(), Some(5));
        assert_eq!(Query::parse("limit=-1").unwrap().number("limit").unwrap_err().code, 400);
        assert_eq!(Query::parse("watch=maybe").unwrap().flag("watch").unwrap_err().code, 400);
        assert!(Query::parse("a=%ff").is_err());
        assert!(Query::parse("dryRun=Some").unwrap().dry_run().is_err());
    }

    #[test]
    fn delete_options_come_from_body_or_query() {
        let query = Query::parse("propagationPolicy=Foreground").unwrap();
        assert_eq!(query.delete_options(&json!(null)).unwrap().propagation, Propagation::Foreground);
        let body = json!({"propagationPolicy": "Orphan", "preconditions": {"uid": "u"}, "dryRun": ["All"]});
        let options = query.delete_options(&body).unwrap();
        assert_eq!(
            (options.propagation, options.uid.as_deref(), options.dry_run),
            (Propagation::Orphan, Some("u"), true)
        );
        assert!(query.delete_options(&json!({"propagationPolicy": "No"})).is_err());
    }
}
