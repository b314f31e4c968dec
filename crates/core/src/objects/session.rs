//! Session information: how a task reaches the bucket of its run. It is stored as JSON in ML Metadata, where the UI
//! server reads it too, so keys and spelling are fixed by upstream.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Provider and parameters; all values are texts, as upstream stores them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// `minio`, `s3` or `gs`.
    #[serde(rename = "Provider", default)]
    pub provider: String,
    /// `fromEnv`, `secretName`, `accessKeyKey`, `secretKeyKey`, `tokenKey`, `region`, `endpoint`, `disableSSL`,
    /// `forcePathStyle`, `maxRetries`. Sessions that are not stored anywhere may hold the keys themselves: `accessKey`,
    /// `secretKey`.
    #[serde(rename = "Params", default, deserialize_with = "null_is_empty")]
    pub params: BTreeMap<String, String>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(input: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::deserialize(input)?.unwrap_or_default())
}

impl Session {
    /// A session whose only parameter is `fromEnv=true`.
    #[must_use]
    pub fn from_env(provider: &str) -> Self {
        Self { provider: provider.to_owned(), params: [("fromEnv".to_owned(), "true".to_owned())].into() }
    }

    /// Reads the JSON text; an empty text and `null` mean that there is none.
    ///
    /// # Errors
    /// When the text is not such an object.
    pub fn from_json(text: &str) -> Result<Option<Self>, serde_json::Error> {
        if text.trim().is_empty() { Ok(None) } else { serde_json::from_str(text) }
    }

    /// The JSON text as Go writes it: `{"Provider":"...","Params":{...}}`.
    #[must_use]
    pub fn to_json(&self) -> String {
        let params = serde_json::json!(self.params);
        format!(
            "{{\"Provider\":{},\"Params\":{}}}",
            crate::gojson::to_string(&serde_json::json!(self.provider)),
            crate::gojson::to_string(&params)
        )
    }

    /// A parameter, `None` when absent or empty.
    #[must_use]
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether this says where the store is or with which keys it is opened, other than the store that every deployment
    /// brings along (MinIO before 2.16, SeaweedFS since).
    #[must_use]
    pub fn names_a_store(&self) -> bool {
        const OWN: [&str; 2] = ["seaweedfs.kubeflow:9000", "minio-service.kubeflow:9000"];
        if self.param("endpoint").is_some_and(|endpoint| OWN.contains(&endpoint)) {
            return false;
        }
        ["endpoint", "region", "secretName"].iter().any(|name| self.param(name).is_some())
    }

    /// A boolean parameter in Go's spelling; `None` when absent or unreadable.
    #[must_use]
    pub fn flag(&self, name: &str) -> Option<bool> {
        match self.param(name)? {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deployments_own_store_is_not_named() {
        for (json, named) in [
            (r#"{"Provider":"s3","Params":{"fromEnv":"true"}}"#, false),
            (r#"{"Provider":"s3","Params":{"fromEnv":"true","endpoint":"","region":"eu"}}"#, true),
            (r#"{"Provider":"gs","Params":{"fromEnv":"false","secretName":"s","tokenKey":"t"}}"#, true),
            (
                r#"{"Provider":"minio","Params":{"endpoint":"seaweedfs.kubeflow:9000","region":"minio","secretName":"x"}}"#,
                false,
            ),
            (r#"{"Provider":"minio","Params":{"endpoint":"127.0.0.1:9000"}}"#, true),
        ] {
            assert_eq!(Session::from_json(json).unwrap().unwrap().names_a_store(), named, "{json}");
        }
    }

    #[test]
    fn json_is_upstreams() {
        let session = Session::from_env("minio");
        assert_eq!(session.to_json(), r#"{"Provider":"minio","Params":{"fromEnv":"true"}}"#);
        assert_eq!(Session::from_json(&session.to_json()).unwrap(), Some(session));
    }

    #[test]
    fn null_and_empty_mean_none() {
        assert_eq!(Session::from_json("").unwrap(), None);
        assert_eq!(Session::from_json("null").unwrap(), None);
        let bare = Session::from_json(r#"{"Provider":"s3","Params":null}"#).unwrap().unwrap();
        assert!(bare.params.is_empty());
        assert!(Session::from_json("{").is_err());
    }
}
