//! kfp-metadata.
use kfp_metadata::Options;

fn main() -> anyhow::Result<()> {
    let values = Options::flags().parse_or_exit();
    kfp_core::logging::init(values.text("log_level"));
    let options = Options::from_values(&values)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let shutdown = kfp_core::shutdown::on_signal()?;
        Ok(kfp_metadata::run(options, shutdown).await?)
    })
}
