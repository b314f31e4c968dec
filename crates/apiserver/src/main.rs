//! Entry point of the API server.

use anyhow::Context as _;
use kfp_apiserver::options;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let values = options::flags().parse_or_exit();
    kfp_core::logging::init(values.text("logLevel"));
    let options = options::Options::from_values(&values)?;
    let shutdown = kfp_core::shutdown::on_signal().context("cannot listen for signals")?;
    kfp_apiserver::run(options, shutdown).await?;
    Ok(())
}
