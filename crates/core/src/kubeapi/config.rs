//! Where the Kubernetes API is and how to prove who we are.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use crate::https;

const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why no usable configuration was found.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither a service account nor a kubeconfig.
    #[error(
        "no Kubernetes configuration: not in a cluster (KUBERNETES_SERVICE_HOST is unset) and no kubeconfig at {0}; set KUBECONFIG"
    )]
    Missing(PathBuf),
    /// A file of the configuration cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The kubeconfig is not valid.
    #[error("kubeconfig {path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Certificates or keys are unusable.
    #[error("kubernetes API {server}: {source}")]
    Tls {
        /// Address of the server.
        server: String,
        /// The cause.
        source: https::Error,
    },
}

#[derive(Clone)]
enum Credentials {
    None,
    Bearer(String),
    /// Service account tokens rotate, so the file is read for every request.
    File(PathBuf),
    Basic(String),
}

/// Address, credentials and namespace.
#[derive(Clone)]
pub struct Config {
    pub(super) server: String,
    pub(super) tls: https::Tls,
    pub(super) namespace: String,
    credentials: Credentials,
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("server", &self.server)
            .field("namespace", &self.namespace)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// An unauthenticated server, as kfp-local's own.
    #[must_use]
    pub fn plain(server: &str, namespace: &str) -> Self {
        Self {
            server: server.to_owned(),
            tls: https::Tls::default(),
            namespace: namespace.to_owned(),
            credentials: Credentials::None,
        }
    }

    /// The same server with a bearer token.
    #[must_use]
    pub fn with_token(mut self, token: &str) -> Self {
        self.credentials = Credentials::Bearer(token.to_owned());
        self
    }

    /// The pod's service account when there is one, else the kubeconfig in `KUBECONFIG` (its first file) or
    /// `~/.kube/config`. The namespace is the service account's, else `POD_NAMESPACE` or `NAMESPACE`, else that of the
    /// kubeconfig's current context, else `default`.
    ///
    /// # Errors
    /// When there is neither, or a file cannot be read or understood.
    pub fn load() -> Result<Self, ConfigError> {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let named = env("POD_NAMESPACE").or_else(|| env("NAMESPACE"));
        let kubeconfig = env("KUBECONFIG");
        // A kubeconfig that is named expressly wins, so that a process pod can point at kfp-local from inside a cluster.
        if kubeconfig.is_none()
            && let (Some(host), Some(port)) = (env("KUBERNETES_SERVICE_HOST"), env("KUBERNETES_SERVICE_PORT"))
        {
            return Self::in_cluster(&host, &port, Path::new(SERVICE_ACCOUNT), named);
        }
        let path = match kubeconfig {
            Some(list) => PathBuf::from(list.split(':').find(|p| !p.is_empty()).unwrap_or_default()),
            None => PathBuf::from(env("HOME").unwrap_or_else(|| "/".into())).join(".kube/config"),
        };
        if !path.exists() {
            return Err(ConfigError::Missing(path));
        }
        let mut config = Self::from_kubeconfig(&path)?;
        if let Some(namespace) = named {
            config.namespace = namespace;
        }
        Ok(config)
    }

    /// The namespace of this process as far as it is known without a kubeconfig: the service account's, else
    /// `POD_NAMESPACE` or `NAMESPACE`.
    #[must_use]
    pub fn own_namespace() -> Option<String> {
        let file = std::fs::read_to_string(Path::new(SERVICE_ACCOUNT).join("namespace")).ok();
        [file, std::env::var("POD_NAMESPACE").ok(), std::env::var("NAMESPACE").ok()]
            .into_iter()
            .flatten()
            .map(|text| text.trim().to_owned())
            .find(|text| !text.is_empty())
    }

    fn in_cluster(host: &str, port: &str, dir: &Path, named: Option<String>) -> Result<Self, ConfigError> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let namespace = std::fs::read_to_string(dir.join("namespace")).ok().map(|text| text.trim().to_owned());
        Ok(Self {
            server: format!("https://{host}:{port}"),
            tls: https::Tls {
                extra_authorities: read(&dir.join("ca.crt"))?,
                only_extra: true,
                ..https::Tls::default()
            },
            namespace: namespace.filter(|n| !n.is_empty()).or(named).unwrap_or_else(|| "default".into()),
            credentials: Credentials::File(dir.join("token")),
        })
    }

    /// The current context of a kubeconfig file. Understood: server, authority, `insecure-skip-tls-verify`, token,
    /// token file, client certificate, user and password.
    ///
    /// # Errors
    /// When the file is unreadable, incomplete, or needs a credential plugin (`exec`, `auth-provider`).
    pub fn from_kubeconfig(path: &Path) -> Result<Self, ConfigError> {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        let invalid = |reason: String| ConfigError::Invalid { path: path.to_owned(), reason };
        let file: File = serde_norway::from_str(&text).map_err(|e| invalid(e.to_string()))?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        let context = file
            .contexts
            .into_iter()
            .find(|c| c.name == file.current_context)
            .ok_or_else(|| invalid(format!("no context {:?} (current-context)", file.current_context)))?
            .context;
        let cluster = file
            .clusters
            .into_iter()
            .find(|c| c.name == context.cluster)
            .ok_or_else(|| invalid(format!("no cluster {:?}", context.cluster)))?
            .cluster;
        let user = file.users.into_iter().find(|u| u.name == context.user).map(|u| u.user).unwrap_or_default();
        if user.exec.is_some() || user.auth_provider.is_some() {
            return Err(invalid(format!("user {:?} needs a credential plugin, which is not supported", context.user)));
        }
        let bytes = |data: Option<String>, file: Option<PathBuf>| -> Result<Option<Vec<u8>>, ConfigError> {
            match (data, file) {
                (Some(data), _) => base64::engine::general_purpose::STANDARD
                    .decode(data.trim())
                    .map(Some)
                    .map_err(|e| invalid(format!("bad base64: {e}"))),
                (None, Some(file)) => read(&dir.join(file)).map(Some),
                (None, None) => Ok(None),
            }
        };
        let authority = bytes(cluster.certificate_authority_data, cluster.certificate_authority)?;
        let certificate = bytes(user.client_certificate_data, user.client_certificate)?;
        let key = bytes(user.client_key_data, user.client_key)?;
        let credentials = match (user.token, user.token_file, user.username) {
            (Some(token), ..) if !token.is_empty() => Credentials::Bearer(token),
            (_, Some(file), _) => Credentials::File(dir.join(file)),
            (_, _, Some(name)) => {
                let pair = format!("{name}:{}", user.password.unwrap_or_default());
                Credentials::Basic(base64::engine::general_purpose::STANDARD.encode(pair))
            }
            _ => Credentials::None,
        };
        Ok(Self {
            server: cluster.server,
            tls: https::Tls {
                only_extra: authority.is_some(),
                extra_authorities: authority.unwrap_or_default(),
                identity: certificate.zip(key),
                insecure: cluster.insecure_skip_tls_verify,
            },
            namespace: context.namespace.filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into()),
            credentials,
        })
    }

    /// The value of the `Authorization` header.
    pub(super) async fn authorization(&self) -> Result<Option<String>, ConfigError> {
        Ok(match &self.credentials {
            Credentials::None => None,
            Credentials::Bearer(token) => Some(format!("Bearer {token}")),
            Credentials::Basic(pair) => Some(format!("Basic {pair}")),
            Credentials::File(path) => {
                let token = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
                Some(format!("Bearer {}", token.trim()))
            }
        })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", default)]
#[derive(Default)]
struct File {
    current_context: String,
    contexts: Vec<NamedContext>,
    clusters: Vec<NamedCluster>,
    users: Vec<NamedUser>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    token: Option<String>,
    #[serde(rename = "tokenFile")]
    token_file: Option<PathBuf>,
    username: Option<String>,
    password: Option<String>,
    client_certificate: Option<PathBuf>,
    client_certificate_data: Option<String>,
    client_key: Option<PathBuf>,
    client_key_data: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kubeconfig(user: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: b\n\
             contexts:\n- {{name: a, context: {{cluster: x, user: u}}}}\n- {{name: b, context: {{cluster: y, user: u, namespace: kubeflow}}}}\n\
             clusters:\n- {{name: y, cluster: {{server: 'http://127.0.0.1:6443'}}}}\nusers:\n- name: u\n  user: {user}\n"
        );
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[tokio::test]
    async fn current_context_decides() {
        let (_dir, path) = kubeconfig("{token: abc}");
        let config = Config::from_kubeconfig(&path).unwrap();
        assert_eq!((config.server.as_str(), config.namespace.as_str()), ("http://127.0.0.1:6443", "kubeflow"));
        assert_eq!(config.authorization().await.unwrap().as_deref(), Some("Bearer abc"));
    }

    #[tokio::test]
    async fn token_file_is_relative_to_the_kubeconfig_and_read_each_time() {
        let (dir, path) = kubeconfig("{tokenFile: tok}");
        std::fs::write(dir.path().join("tok"), "one\n").unwrap();
        let config = Config::from_kubeconfig(&path).unwrap();
        assert_eq!(config.authorization().await.unwrap().as_deref(), Some("Bearer one"));
        std::fs::write(dir.path().join("tok"), "two\n").unwrap();
        assert_eq!(config.authorization().await.unwrap().as_deref(), Some("Bearer two"));
    }

    #[test]
    fn plugins_and_missing_contexts_are_named() {
        let (_dir, path) = kubeconfig("{exec: {command: aws}}");
        assert!(Config::from_kubeconfig(&path).unwrap_err().to_string().contains("credential plugin"));
        let text = std::fs::read_to_string(&path).unwrap().replace("current-context: b", "current-context: q");
        std::fs::write(&path, text).unwrap();
        assert!(Config::from_kubeconfig(&path).unwrap_err().to_string().contains("no context \"q\""));
    }

    #[test]
    fn service_account_directory_is_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), "").unwrap();
        std::fs::write(dir.path().join("namespace"), "team\n").unwrap();
        let config = Config::in_cluster("fd00::1", "443", dir.path(), Some("other".into())).unwrap();
        assert_eq!((config.server.as_str(), config.namespace.as_str()), ("https://[fd00::1]:443", "team"));
    }
}
