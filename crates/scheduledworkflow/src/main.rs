//! The ScheduledWorkflow controller as a program of its own.

use anyhow::Context as _;
use kfp_scheduledworkflow::{Options, run};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::from_command_line();
    kfp_core::logging::init(&options.log_level);
    run(options, kfp_core::shutdown::on_signal_or_exit()?).await.context("Error running controller")?;
    Ok(())
}
