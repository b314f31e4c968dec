//! Runs a pipeline through the public API and shows its course and its results on standard output.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kfp_core::grpc;
use kfp_core::shutdown::CancellationToken;
use serde_json::{Value, json};

use crate::client::{self, Client};
use crate::results::{self, Results};

/// A pipeline to upload and run.
pub struct Job {
    /// Pipeline name on the server.
    pub name: String,
    /// File name, whose ending tells its format.
    pub file_name: String,
    /// Content of the file.
    pub content: Vec<u8>,
    /// Values of its parameters.
    pub parameters: Vec<(String, String)>,
}

/// Why a run could not be shown to its end.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A call of the API failed.
    #[error(transparent)]
    Api(#[from] client::Error),
    /// The metadata store could not be read.
    #[error("cannot read the results from the metadata store: {0}")]
    Metadata(String),
    /// An answer lacks what it must have.
    #[error("the API server's answer has no {0}")]
    Answer(&'static str),
    /// Interrupted by the user.
    #[error("interrupted")]
    Interrupted,
}

/// Between two looks at the run. Only this display looks; state itself travels by watches.
const LOOK: Duration = Duration::from_millis(250);

/// Uploads, runs, follows and prints; the answer is whether the run succeeded.
///
/// # Errors
/// See [`Error`].
pub async fn run(rest: &str, metadata: (&str, u16), job: Job, shutdown: &CancellationToken) -> Result<bool, Error> {
    let client = Client::new(rest)?;
    let (pipeline, version) = upload(&client, &job).await?;
    println!("uploaded   {} (pipeline {pipeline})", job.name);
    let parameters: serde_json::Map<String, Value> = job
        .parameters
        .iter()
        .map(|(name, text)| (name.clone(), serde_json::from_str(text).unwrap_or_else(|_| text.clone().into())))
        .collect();
    let began = Instant::now();
    let run = client
        .post(
            "/apis/v2beta1/runs",
            &json!({
                "display_name": format!("{} {}", job.name, chrono::Local::now().format("%Y-%m-%d %H:%M:%S")),
                "pipeline_version_reference": {"pipeline_id": pipeline, "pipeline_version_id": version},
                "runtime_config": {"parameters": parameters},
            }),
        )
        .await?;
    let id = text(&run, "run_id")?;
    println!("running    {rest}/apis/v2beta1/runs/{id}\n");
    let last = follow(&client, &id, metadata, began, shutdown).await?;
    let state = last.get("state").and_then(Value::as_str).unwrap_or("unknown").to_owned();
    let results = read(metadata, &id, true).await?;
    print(&results);
    if let Some(message) = last.pointer("/error/message").and_then(Value::as_str) {
        println!("\n{message}");
    }
    println!("\nrun {id} {state} in {:.1} s", began.elapsed().as_secs_f64());
    Ok(state == "SUCCEEDED")
}

fn text(json: &Value, name: &'static str) -> Result<String, Error> {
    json.get(name).and_then(Value::as_str).map(str::to_owned).ok_or(Error::Answer(name))
}

/// Uploads the file as a new pipeline or, where its name is taken, as a new version of it.
async fn upload(client: &Client, job: &Job) -> Result<(String, String), Error> {
    let name = escape(&job.name);
    let existing = match client.get(&format!("/apis/v2beta1/pipelines/names/{name}")).await {
        Ok(pipeline) => Some(text(&pipeline, "pipeline_id")?),
        Err(client::Error::Refused { status, .. }) if status.as_u16() == 404 => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(pipeline) = existing {
        let version = escape(&format!("{} {}", job.name, chrono::Local::now().format("%Y-%m-%d %H:%M:%S%.3f")));
        let path = format!("/apis/v2beta1/pipelines/upload_version?pipelineid={pipeline}&name={version}");
        let answer = client.upload(&path, &job.file_name, &job.content).await?;
        return Ok((pipeline, text(&answer, "pipeline_version_id")?));
    }
    let path = format!("/apis/v2beta1/pipelines/upload?name={name}");
    let pipeline = text(&client.upload(&path, &job.file_name, &job.content).await?, "pipeline_id")?;
    let path = format!("/apis/v2beta1/pipelines/{pipeline}/versions?page_size=1&sort_by=created_at%20desc");
    let versions = client.get(&path).await?;
    let version = versions.pointer("/pipeline_versions/0").ok_or(Error::Answer("pipeline version"))?;
    Ok((pipeline, text(version, "pipeline_version_id")?))
}

fn escape(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

/// Prints a line for each task that changes its state, until the run is final.
async fn follow(
    client: &Client,
    id: &str,
    metadata: (&str, u16),
    began: Instant,
    shutdown: &CancellationToken,
) -> Result<Value, Error> {
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let run = client.get(&format!("/apis/v2beta1/runs/{id}?view=BASIC")).await?;
        let state = run.get("state").and_then(Value::as_str).unwrap_or("");
        let ended = matches!(state, "SUCCEEDED" | "FAILED" | "CANCELED" | "SKIPPED");
        for task in read(metadata, id, false).await?.tasks {
            let before = shown.insert(task.name.clone(), task.state.clone());
            if before.as_deref() != Some(task.state.as_str()) {
                println!("{:7.1} s  {:<9} {}", began.elapsed().as_secs_f64(), word(&task.state), task.name);
            }
        }
        if ended {
            return Ok(run);
        }
        tokio::select! {
            () = shutdown.cancelled() => return Err(Error::Interrupted),
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// A state in the words of the user interface.
fn word(state: &str) -> &str {
    match state {
        "COMPLETE" => "succeeded",
        "CACHED" => "cached",
        "FAILED" => "failed",
        "CANCELED" => "skipped",
        "RUNNING" => "running",
        "NEW" => "pending",
        other => other,
    }
}

async fn read((host, port): (&str, u16), id: &str, artifacts: bool) -> Result<Results, Error> {
    let channel = grpc::channel(host, port, None).map_err(|e| Error::Metadata(e.to_string()))?;
    results::of_run(channel, id, artifacts).await.map_err(|e| Error::Metadata(e.message().to_owned()))
}

fn print(results: &Results) {
    let width = results.tasks.iter().map(|t| t.name.chars().count()).max().unwrap_or(0).max(4);
    println!("\n{:<width$}  {:<9}  {:>9}", "TASK", "STATE", "DURATION");
    for task in &results.tasks {
        let seconds = f64::from(i32::try_from(task.milliseconds).unwrap_or(i32::MAX)) / 1000.0;
        println!("{:<width$}  {:<9}  {seconds:>7.2} s", task.name, word(&task.state));
    }
    let metrics: Vec<_> = results.artifacts.iter().filter(|a| a.kind == "system.Metrics").collect();
    if !metrics.is_empty() {
        println!("\n{:<width$}  METRIC", "TASK");
        for artifact in metrics {
            for (name, value) in &artifact.properties {
                println!("{:<width$}  {name} = {value}", artifact.task);
            }
        }
    }
    let files: Vec<_> = results.artifacts.iter().filter(|a| a.name != "executor-logs").collect();
    if !files.is_empty() {
        println!("\n{:<width$}  {:<8}  LOCATION", "TASK", "ARTIFACT");
        for artifact in files {
            println!("{:<width$}  {:<8}  {}", artifact.task, artifact.name, artifact.uri);
        }
    }
}
