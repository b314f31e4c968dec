//! Kubeflow Pipelines on one machine: the components of the platform in one process, hosted on an embedded Kubernetes API
//! and an Argo-compatible engine that runs pods as local processes.

pub mod client;
mod listen;
pub mod options;
mod platform;
pub mod results;
mod show;

use std::io::Write as _;

use anyhow::Context as _;
use futures::future::BoxFuture;
use kfp_core::shutdown::CancellationToken;

pub use options::{Command, parse};
pub use platform::{Error, Platform};
pub use show::Job;

/// The pipeline of `kfp-local demo`, compiled by the SDK from `tests/pipelines/breast_cancer.py`.
const DEMO: &[u8] = include_bytes!("../../../tests/pipelines/breast_cancer.yaml");

/// Carries out a command; the answer is the process's exit code.
///
/// # Errors
/// When the platform cannot start or a component fails; a run that ends in failure is exit code 1, not an error.
pub fn run(command: Command, shutdown: CancellationToken) -> BoxFuture<'static, anyhow::Result<i32>> {
    // Boxed, so that all of it is compiled in this crate, once, and not in each that awaits it.
    Box::pin(run_unboxed(command, shutdown))
}

async fn run_unboxed(command: Command, shutdown: CancellationToken) -> anyhow::Result<i32> {
    match command {
        Command::Compile(words) => {
            let command = match kfp_compiler::cli::Command::parse("kfp-local compile", words) {
                Ok(command) => command,
                Err(stop) => stop.exit(),
            };
            let bytes = std::fs::read(&command.file).with_context(|| command.file.clone())?;
            let text = command.run(&bytes, kfp_compiler::Options::from_env()?).with_context(|| command.file.clone())?;
            std::io::stdout().write_all(text.as_bytes())?;
            Ok(0)
        }
        Command::Up(options) => {
            let mut platform = Platform::start(&options).await?;
            announce(&platform);
            let served = platform.serve(&shutdown).await;
            tracing::info!("stopping");
            platform.stop().await?;
            served?;
            Ok(0)
        }
        Command::Demo(options) => {
            let job = Job {
                name: "breast-cancer".to_owned(),
                file_name: "breast_cancer.yaml".to_owned(),
                content: DEMO.to_vec(),
                parameters: Vec::new(),
            };
            one(&options, job, &shutdown).await
        }
        Command::Run(options, submission) => {
            let content = std::fs::read(&submission.file)
                .map_err(|e| anyhow::anyhow!("cannot read {}: {e}", submission.file.display()))?;
            let file = |part: Option<&std::ffi::OsStr>| part.map(|p| p.to_string_lossy().into_owned());
            let job = Job {
                name: file(submission.file.file_stem()).unwrap_or_else(|| "pipeline".to_owned()),
                file_name: file(submission.file.file_name()).unwrap_or_else(|| "pipeline.yaml".to_owned()),
                content,
                parameters: submission.parameters,
            };
            one(&options, job, &shutdown).await
        }
    }
}

fn announce(platform: &Platform) {
    println!("REST API      {}", platform.rest);
    println!("gRPC API      {}:{}", platform.host, platform.grpc_port);
    println!("metadata      {}:{}", platform.host, platform.metadata_port);
    println!("Kubernetes    {} (kubeconfig {})", platform.kubernetes, platform.kubeconfig.display());
}

/// Starts the platform for one run.
async fn one(options: &options::Platform, job: Job, shutdown: &CancellationToken) -> anyhow::Result<i32> {
    let mut platform = Platform::start(options).await?;
    announce(&platform);
    println!();
    let (rest, host, port) = (platform.rest.clone(), platform.host.clone(), platform.metadata_port);
    let shown = tokio::select! {
        shown = show::run(&rest, (&host, port), job, shutdown) => shown.map_err(anyhow::Error::from),
        failed = platform.serve(shutdown) => Err(match failed {
            Ok(()) => anyhow::anyhow!("interrupted"),
            Err(error) => error.into(),
        }),
    };
    platform.stop().await?;
    let succeeded = shown?;
    println!(
        "everything is kept in {}; `kfp-local up` serves it at http://{}:{}",
        options.data_dir.display(),
        options.host,
        options.rest_port
    );
    Ok(i32::from(!succeeded))
}
