//! The driver: runs before every DAG and container of a pipeline.

use std::process::ExitCode;

use kfp_core::termination::{MESSAGE_FILE, leave_message};
use kfp_driver::{Environment, Options, Refused};

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    kfp_core::logging::init(kfp_driver::log_level(&words));
    let options = match Options::from_args(words, &Environment::detect(), &|path| path.into()) {
        Ok(options) => options,
        Err(Refused::Usage(stop)) => stop.exit(),
        Err(Refused::Invalid(error)) => return failed(&error),
    };
    match kfp_core::shutdown::on_signal() {
        Ok(shutdown) => {
            kfp_driver::run(options, shutdown).await.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
        }
        Err(error) => failed(&error),
    }
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    // Failures of the drive itself carry upstream's prefix already.
    let text = error.to_string();
    leave_message(MESSAGE_FILE.as_ref(), &text);
    tracing::error!("KFP driver: {}", text.trim_start_matches("KFP driver: "));
    ExitCode::FAILURE
}
