//! What programs that watch a cluster share: the client, its rate limit, the lease of the one that works, and objects that
//! are read in part.

pub mod lease;
pub mod part;
pub mod throttle;

use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// No usable Kubernetes configuration.
#[derive(Debug, thiserror::Error)]
#[error("cannot configure the Kubernetes client: {0}")]
pub struct Error(String);

/// Where the Kubernetes API is and how fast it may be asked, as the command lines of upstream's controllers say it.
#[derive(Clone, Debug)]
pub struct Connection {
    /// Kubeconfig file; empty means the usual places or, in a pod, its service account.
    pub kubeconfig: String,
    /// Address that replaces the configured one unless it is empty.
    pub master: String,
    /// Calls a second for each API group; 0 means 5 and a negative number no limit, as in Go's client.
    pub qps: f64,
    /// Calls that may be made at once after a pause; 0 means 10.
    pub burst: i64,
}

impl Connection {
    /// A client for this connection. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// When there is no configuration or it cannot be used.
    pub async fn client(&self) -> Result<kube::Client, Error> {
        let wrong = |error: &dyn std::fmt::Display| Error(error.to_string());
        let mut config = if self.kubeconfig.is_empty() {
            kube::Config::infer().await.map_err(|e| wrong(&e))?
        } else {
            let file = Kubeconfig::read_from(&self.kubeconfig).map_err(|e| wrong(&e))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(|e| wrong(&e))?
        };
        if !self.master.is_empty() {
            config.cluster_url =
                self.master.parse().map_err(|e| Error(format!("--master {:?} is no address: {e}", self.master)))?;
        }
        let builder = ClientBuilder::try_from(config).map_err(|e| wrong(&e))?;
        Ok(match throttle::Layer::new(self.qps, self.burst) {
            Some(layer) => builder.with_layer(&layer).build(),
            None => builder.build(),
        })
    }
}
