//! The persistence agent as a program of its own.

use kfp_persistence_agent::{Options, run};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::from_command_line();
    kfp_core::logging::init(&options.log_level);
    run(options, kfp_core::shutdown::on_signal_or_exit()?).await?;
    Ok(())
}
