//! The launcher: wraps user code in a task's pod, imports artifacts, copies itself into user images.

use kfp_core::{logging, shutdown};
use kfp_launcher::{Options, run};

fn main() -> std::process::ExitCode {
    let options = Options::from_args(std::env::args().skip(1)).unwrap_or_else(|stop| stop.exit());
    logging::init(&options.log_level);
    let result =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(anyhow::Error::from).and_then(
            |runtime| {
                let done = runtime.block_on(async { anyhow::Ok(run(options, shutdown::on_signal()?).await?) });
                // Do not wait for reads of standard input or the like.
                runtime.shutdown_background();
                done
            },
        );
    match result {
        Ok(_) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("launcher: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
