//! Serves an empty cluster for trying clients by hand: `serve DIRECTORY PORT`.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use kfp_local_api::{ApiError, Cluster, LogOptions, LogSource, LogStream, async_trait, kubeconfig, serve};

struct Fake;

#[async_trait]
impl LogSource for Fake {
    async fn logs(&self, ns: &str, pod: &str, container: &str, _: LogOptions) -> Result<LogStream, ApiError> {
        let line = format!("log of {ns}/{pod}/{container}\n");
        Ok(futures::stream::iter([Ok(Bytes::from(line))]).boxed())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut words = std::env::args().skip(1);
    let (Some(dir), Some(port)) = (words.next(), words.next()) else {
        return Err("usage: serve DIRECTORY PORT".into());
    };
    let dir = PathBuf::from(dir);
    let cluster = Cluster::open(&dir).await?;
    cluster.set_log_source(Arc::new(Fake));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port.parse()?)).await?;
    let url = format!("http://{}", listener.local_addr()?);
    std::fs::write(dir.join("kubeconfig"), kubeconfig(&url, "kubeflow"))?;
    println!("{url}");
    serve(cluster.clone(), listener, kfp_core::shutdown::on_signal()?).await?;
    cluster.close().await;
    Ok(())
}
