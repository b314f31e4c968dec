//! `kfp-compile PIPELINE`: prints the Argo Workflow of a pipeline.
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use kfp_compiler::{Options, cli::Command};

fn main() -> ExitCode {
    let command = match Command::parse("kfp-compile", std::env::args().skip(1).collect()) {
        Ok(command) => command,
        Err(stop) => stop.exit(),
    };
    match run(&command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kfp-compile: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> anyhow::Result<()> {
    let bytes = std::fs::read(&command.file).with_context(|| command.file.clone())?;
    let text = command.run(&bytes, Options::from_env()?).with_context(|| command.file.clone())?;
    std::io::stdout().write_all(text.as_bytes()).context("standard output")
}
