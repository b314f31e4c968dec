//! Settings that change what is compiled, and where upstream's API server takes them from.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::{Error, labels};

/// Everything outside the pipeline that shows in the compiled Workflow. [`Options::default`] is upstream's default;
/// [`Options::from_env`] honours the environment variables of upstream's API server.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Image of the init container `kfp-launcher` and of importers (`V2_LAUNCHER_IMAGE`).
    pub launcher_image: String,
    /// Its command (`V2_LAUNCHER_COMMAND`).
    pub launcher_command: Vec<String>,
    /// Image of both drivers (`V2_DRIVER_IMAGE`).
    pub driver_image: String,
    /// Their command (`V2_DRIVER_COMMAND`).
    pub driver_command: Vec<String>,
    /// `spec.securityContext.runAsUser` (`PIPELINE_RUN_AS_USER`).
    pub run_as_user: Option<i64>,
    /// Value of `--log_level` (`PIPELINE_LOG_LEVEL`).
    pub log_level: String,
    /// Value of `--publish_logs` (`PUBLISH_LOGS`).
    pub publish_logs: String,
    /// Service account of runs that name none (`DEFAULTPIPELINERUNNERSERVICEACCOUNT`).
    pub service_account: String,
    /// Namespace of the services below (`POD_NAMESPACE`).
    pub namespace: String,
    /// Service of the API server (`ML_PIPELINE_SERVICE_NAME`).
    pub ml_pipeline_service: String,
    /// Service of the metadata store (`METADATA_SERVICE_NAME`).
    pub metadata_service: String,
    /// DNS domain of the cluster (`CLUSTER_DOMAIN`).
    pub cluster_domain: String,
    /// Host of the API server, instead of the service's DNS name; for installations without DNS.
    pub ml_pipeline_address: Option<String>,
    /// Port of the API server's gRPC.
    pub ml_pipeline_port: u16,
    /// Host of the metadata store, instead of the service's DNS name.
    pub mlmd_address: Option<String>,
    /// Port of the metadata store.
    pub mlmd_port: u16,
    /// Proxies for drivers.
    pub proxy: Proxy,
    /// Whether the metadata store serves TLS (`METADATA_TLS_ENABLED`).
    pub metadata_tls: bool,
    /// Whether the API server serves TLS.
    pub ml_pipeline_tls: bool,
    /// Whether caching is off for every task (`CACHEENABLED` is the opposite).
    pub cache_disabled: bool,
    /// Where custom certificates come from.
    pub ca_bundle: Option<CaBundle>,
    /// `DEFAULT_SECURITY_CONTEXT_*`.
    pub security: SecurityDefaults,
    /// Labels of driver pods (`DRIVER_POD_LABELS`).
    pub driver_labels: BTreeMap<String, String>,
    /// Annotations of driver pods (`DRIVER_POD_ANNOTATIONS`).
    pub driver_annotations: BTreeMap<String, String>,
    /// Strategic merge patch of `spec`, a JSON object (`COMPILED_PIPELINE_SPEC_PATCH`).
    pub spec_patch: String,
    /// Default claim spec of workspaces (config key `workspace.volumeclaimtemplatespec`).
    pub workspace: Option<Value>,
    /// Overrides the runtime config's pipeline root when not empty.
    pub pipeline_root: String,
    /// Whether importers wait for the tasks their inputs come from. Upstream's do not, which lets an importer start
    /// before its input exists; off by default for identical output.
    pub importers_wait: bool,
}

/// `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Proxy {
    /// `HTTP_PROXY`.
    pub http: String,
    /// `HTTPS_PROXY`.
    pub https: String,
    /// `NO_PROXY`; when a proxy is set and this is not, the services of the installation.
    pub no: String,
}

/// A secret or config map with certificates.
#[derive(Debug, Clone, PartialEq)]
pub struct CaBundle {
    /// `CABUNDLE_SECRET_NAME` wins over `CABUNDLE_CONFIGMAP_NAME`.
    pub source: CaSource,
    /// `CABUNDLE_KEY_NAME`.
    pub key: String,
}

/// See [`CaBundle`].
#[derive(Debug, Clone, PartialEq)]
pub enum CaSource {
    /// A secret of this name.
    Secret(String),
    /// A config map of this name.
    ConfigMap(String),
}

/// What an administrator imposes on user containers.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SecurityDefaults {
    /// `DEFAULT_SECURITY_CONTEXT_RUN_AS_USER`.
    pub run_as_user: Option<i64>,
    /// `DEFAULT_SECURITY_CONTEXT_RUN_AS_GROUP`.
    pub run_as_group: Option<i64>,
    /// `DEFAULT_SECURITY_CONTEXT_RUN_AS_NON_ROOT`.
    pub run_as_non_root: Option<bool>,
    /// `DEFAULT_SECURITY_CONTEXT_HOST_USERS`; only a flag of the driver.
    pub host_users: Option<bool>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            launcher_image: "ghcr.io/kubeflow/kfp-launcher:latest".into(),
            launcher_command: vec!["launcher-v2".into()],
            driver_image: "ghcr.io/kubeflow/kfp-driver:latest".into(),
            driver_command: vec!["driver".into()],
            run_as_user: None,
            log_level: "1".into(),
            publish_logs: "true".into(),
            service_account: "pipeline-runner".into(),
            namespace: "kubeflow".into(),
            ml_pipeline_service: "ml-pipeline".into(),
            metadata_service: "metadata-grpc-service".into(),
            cluster_domain: "cluster.local".into(),
            ml_pipeline_address: None,
            ml_pipeline_port: 8887,
            mlmd_address: None,
            mlmd_port: 8080,
            proxy: Proxy::default(),
            metadata_tls: false,
            ml_pipeline_tls: false,
            cache_disabled: false,
            ca_bundle: None,
            security: SecurityDefaults::default(),
            driver_labels: BTreeMap::new(),
            driver_annotations: BTreeMap::new(),
            spec_patch: String::new(),
            workspace: None,
            pipeline_root: String::new(),
            importers_wait: false,
        }
    }
}

impl Options {
    /// From the process environment, without a config file.
    ///
    /// # Errors
    /// [`Error::Setting`] names the variable.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_settings(&|name| std::env::var(name).ok(), &Value::Null)
    }

    /// From an environment and the API server's config file, as JSON. Where upstream lets the file supply a setting,
    /// the environment variable wins; a variable that is set but empty counts, except for booleans.
    ///
    /// # Errors
    /// [`Error::Setting`] names the setting.
    pub fn from_settings(env: &dyn Fn(&str) -> Option<String>, config: &Value) -> Result<Self, Error> {
        let source = Source { env, config };
        let default = Self::default();
        let filled = |name: &str, default: &str| env(name).filter(|v| !v.is_empty()).unwrap_or_else(|| default.into());
        let words = |text: String| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let text = |key: &str, default: &str| source.text(key).unwrap_or_else(|| default.into());
        let cluster_domain = text("CLUSTER_DOMAIN", &default.cluster_domain);
        Ok(Self {
            launcher_image: filled("V2_LAUNCHER_IMAGE", &default.launcher_image),
            launcher_command: words(filled("V2_LAUNCHER_COMMAND", "launcher-v2")),
            driver_image: filled("V2_DRIVER_IMAGE", &default.driver_image),
            driver_command: words(filled("V2_DRIVER_COMMAND", "driver")),
            run_as_user: env("PIPELINE_RUN_AS_USER").and_then(|v| v.parse().ok()),
            log_level: env("PIPELINE_LOG_LEVEL").unwrap_or(default.log_level),
            publish_logs: env("PUBLISH_LOGS").unwrap_or(default.publish_logs),
            service_account: text("DEFAULTPIPELINERUNNERSERVICEACCOUNT", &default.service_account),
            namespace: text("POD_NAMESPACE", &default.namespace),
            ml_pipeline_service: text("ML_PIPELINE_SERVICE_NAME", &default.ml_pipeline_service),
            metadata_service: text("METADATA_SERVICE_NAME", &default.metadata_service),
            proxy: proxy(env, &cluster_domain),
            cluster_domain,
            metadata_tls: source.flag("METADATA_TLS_ENABLED")?.unwrap_or(false),
            cache_disabled: !source.flag("CacheEnabled")?.unwrap_or(true),
            ca_bundle: ca_bundle(&source),
            security: SecurityDefaults {
                run_as_user: source.id("DEFAULT_SECURITY_CONTEXT_RUN_AS_USER"),
                run_as_group: source.id("DEFAULT_SECURITY_CONTEXT_RUN_AS_GROUP"),
                run_as_non_root: source.lenient_flag("DEFAULT_SECURITY_CONTEXT_RUN_AS_NON_ROOT"),
                host_users: source.lenient_flag("DEFAULT_SECURITY_CONTEXT_HOST_USERS"),
            },
            driver_labels: source.strings("DRIVER_POD_LABELS", true)?,
            driver_annotations: source.strings("DRIVER_POD_ANNOTATIONS", false)?,
            spec_patch: source.text("COMPILED_PIPELINE_SPEC_PATCH").unwrap_or_default(),
            workspace: workspace(&source)?,
            ..Self::default()
        })
    }

    /// Host of the API server as pods reach it.
    pub fn ml_pipeline_host(&self) -> String {
        self.ml_pipeline_address.clone().unwrap_or_else(|| self.service(&self.ml_pipeline_service))
    }

    /// Host of the metadata store as pods reach it.
    pub fn mlmd_host(&self) -> String {
        self.mlmd_address.clone().unwrap_or_else(|| self.service(&self.metadata_service))
    }

    fn service(&self, name: &str) -> String {
        format!("{name}.{}.svc.{}", self.namespace, self.cluster_domain)
    }
}

fn proxy(env: &dyn Fn(&str) -> Option<String>, domain: &str) -> Proxy {
    let (http, https, no) = (env("HTTP_PROXY"), env("HTTPS_PROXY"), env("NO_PROXY"));
    let no = match no {
        Some(no) => no,
        None if http.is_some() || https.is_some() => format!(
            "localhost,127.0.0.1,.svc.{domain},kubernetes.default.svc,minio-service.kubeflow,metadata-grpc-service,\
             metadata-grpc-service.kubeflow,ml-pipeline.kubeflow"
        ),
        None => String::new(),
    };
    Proxy { http: http.unwrap_or_default(), https: https.unwrap_or_default(), no }
}

fn ca_bundle(source: &Source) -> Option<CaBundle> {
    let name = |key| source.text(key).filter(|name| !name.is_empty());
    let found = match name("CABUNDLE_SECRET_NAME") {
        Some(secret) => CaSource::Secret(secret),
        None => CaSource::ConfigMap(name("CABUNDLE_CONFIGMAP_NAME")?),
    };
    Some(CaBundle { source: found, key: name("CABUNDLE_KEY_NAME").unwrap_or_else(|| "ca.crt".into()) })
}

fn workspace(source: &Source) -> Result<Option<Value>, Error> {
    let Some(spec) = source.file("workspace.volumeclaimtemplatespec").filter(|spec| !spec.is_null()) else {
        return Ok(None);
    };
    let modes = lower_get(spec, "accessModes").and_then(Value::as_array).is_some_and(|modes| !modes.is_empty());
    let class = lower_get(spec, "storageClassName").and_then(Value::as_str).is_some_and(|class| !class.is_empty());
    if !modes || !class {
        return Err(Error::Setting(
            "invalid workspace.volumeclaimtemplatespec: must specify accessModes and storageClassName".into(),
        ));
    }
    // Config files lose the case of keys; the claim spec needs its own.
    let mut out = Map::new();
    for key in ["accessModes", "storageClassName"] {
        if let Some(value) = lower_get(spec, key) {
            out.insert(key.into(), value.clone());
        }
    }
    Ok(Some(Value::Object(out)))
}

fn lower_get<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.as_object()?.iter().find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value)
}

struct Source<'a> {
    env: &'a dyn Fn(&str) -> Option<String>,
    config: &'a Value,
}

impl Source<'_> {
    fn file(&self, key: &str) -> Option<&Value> {
        lower_get(self.config, key).or_else(|| key.split('.').try_fold(self.config, lower_get))
    }

    fn text(&self, key: &str) -> Option<String> {
        (self.env)(&key.to_uppercase().replace('.', "_")).or_else(|| match self.file(key)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        })
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Error> {
        match self.text(key).filter(|text| !text.is_empty()) {
            None => Ok(None),
            Some(text) => go_bool(&text)
                .map(Some)
                .ok_or_else(|| Error::Setting(format!("Failed converting string to bool: {key}={text:?}"))),
        }
    }

    fn lenient_flag(&self, key: &str) -> Option<bool> {
        go_bool(self.text(key)?.trim())
    }

    fn id(&self, key: &str) -> Option<i64> {
        self.text(key)?.trim().parse().ok().filter(|id| *id >= 0)
    }

    fn strings(&self, name: &str, labels: bool) -> Result<BTreeMap<String, String>, Error> {
        let Some(text) = self.text(name).filter(|text| !text.trim().is_empty()) else { return Ok(BTreeMap::new()) };
        let wrong = |what: String| Error::Setting(format!("{name} {what}"));
        let object: Option<Map<String, Value>> =
            serde_json::from_str(&text).map_err(|e| wrong(format!("could not be parsed as a JSON object: {e}")))?;
        let mut out = BTreeMap::new();
        for (key, value) in object.unwrap_or_default() {
            let Value::String(value) = value else {
                return Err(wrong(format!(
                    "has a value that is not a JSON string for key {key:?}; all values must be strings"
                )));
            };
            if key.starts_with("pipelines.kubeflow.org/") {
                // Upstream drops these with a warning: they are its own.
                continue;
            }
            if !labels::is_key(&key) {
                return Err(wrong(format!(
                    "has an invalid {} key {key:?}",
                    if labels { "label" } else { "annotation" }
                )));
            }
            if labels && !labels::is_value(&value) {
                return Err(wrong(format!("has an invalid label value {value:?} for key {key:?}")));
            }
            out.insert(key, value);
        }
        Ok(out)
    }
}

fn go_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn with(pairs: &[(&str, &str)], config: Value) -> Result<Options, Error> {
        let map: BTreeMap<String, String> = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Options::from_settings(&|name| map.get(name).cloned(), &config)
    }

    #[test]
    fn empty_environment_is_the_default() {
        assert_eq!(with(&[], Value::Null).unwrap(), Options::default());
    }

    #[test]
    fn environment_wins_over_the_file_and_empty_counts() {
        let file = json!({"cacheenabled": "false", "POD_NAMESPACE": "filed", "ml_pipeline_service_name": "api"});
        let options = with(
            &[
                ("POD_NAMESPACE", ""),
                ("V2_DRIVER_COMMAND", "a  b"),
                ("V2_DRIVER_IMAGE", ""),
                ("PIPELINE_LOG_LEVEL", ""),
            ],
            file,
        )
        .unwrap();
        assert_eq!(options.namespace, "");
        assert_eq!(options.ml_pipeline_service, "api");
        assert!(options.cache_disabled);
        assert_eq!(options.driver_command, ["a", "", "b"]);
        assert_eq!(options.driver_image, Options::default().driver_image);
        assert_eq!(options.log_level, "");
    }

    #[test]
    fn booleans_are_gos() {
        assert!(with(&[("CACHEENABLED", "F")], Value::Null).unwrap().cache_disabled);
        assert!(!with(&[("CACHEENABLED", "")], Value::Null).unwrap().cache_disabled);
        assert!(
            with(&[("CACHEENABLED", "no")], Value::Null)
                .unwrap_err()
                .to_string()
                .contains("Failed converting string to bool")
        );
        assert_eq!(
            with(&[("DEFAULT_SECURITY_CONTEXT_HOST_USERS", " no ")], Value::Null).unwrap().security.host_users,
            None
        );
        let security = with(
            &[("DEFAULT_SECURITY_CONTEXT_RUN_AS_USER", " 7 "), ("DEFAULT_SECURITY_CONTEXT_RUN_AS_GROUP", "-1")],
            Value::Null,
        )
        .unwrap()
        .security;
        assert_eq!((security.run_as_user, security.run_as_group), (Some(7), None));
    }

    #[test]
    fn no_proxy_defaults_only_beside_a_proxy() {
        assert!(
            with(&[("HTTP_PROXY", "")], Value::Null)
                .unwrap()
                .proxy
                .no
                .starts_with("localhost,127.0.0.1,.svc.cluster.local,")
        );
        assert_eq!(with(&[("HTTPS_PROXY", "x"), ("NO_PROXY", "")], Value::Null).unwrap().proxy.no, "");
    }

    #[test]
    fn driver_pod_metadata_is_checked() {
        let labels = with(&[("DRIVER_POD_LABELS", r#"{"a.b/c":"d","pipelines.kubeflow.org/x":"y"}"#)], Value::Null)
            .unwrap()
            .driver_labels;
        assert_eq!(labels, BTreeMap::from([("a.b/c".to_string(), "d".to_string())]));
        for (value, want) in [
            ("[]", "could not be parsed as a JSON object"),
            (r#"{"a":1}"#, "not a JSON string for key \"a\""),
            (r#"{"-a":"x"}"#, "invalid label key"),
            (r#"{"a":"x y"}"#, "invalid label value"),
        ] {
            let error = with(&[("DRIVER_POD_LABELS", value)], Value::Null).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn workspace_default_needs_modes_and_class() {
        let good = json!({"workspace": {"volumeclaimtemplatespec": {"accessmodes": ["ReadWriteOnce"], "storageclassname": "s"}}});
        assert_eq!(
            with(&[], good).unwrap().workspace,
            Some(json!({"accessModes": ["ReadWriteOnce"], "storageClassName": "s"}))
        );
        assert!(with(&[], json!({"workspace": {"volumeclaimtemplatespec": {"accessmodes": []}}})).is_err());
    }
}
