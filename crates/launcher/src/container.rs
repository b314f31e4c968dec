//! A container task from start to end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use kfp_core::mlmd::{self, Execution, Output, Run, State, names, text};
use kfp_core::objects::{self, Session};
use kfp_core::shutdown::CancellationToken;
use kfp_core::{grpc, ir, kubeapi};
use kfp_proto::api::task_service_client::TaskServiceClient;
use kfp_proto::api::{CreateTaskRequest, Task as CacheEntry};
use prost_types::{Timestamp, Value};

use crate::error::Error;
use crate::options::Options;
use crate::output::{self, ExecutorOutput};
use crate::paths::Paths;
use crate::placeholders::Placeholders;
use crate::spec::{Artifact, Component, ExecutorInput};
use crate::stores::Stores;
use crate::{command, metadata_client, opener};

/// Artifacts on their way at the same time.
const TRANSFERS: usize = 4;
/// How often to look whether a model image is mounted.
const MODEL_POLL: Duration = Duration::from_millis(500);
/// The result is recorded already when the cache is told: do not hold the pod for long.
const CACHE_TIMEOUT: Duration = Duration::from_secs(20);

struct Task<'a> {
    options: &'a Options,
    paths: Paths,
    input: ExecutorInput,
    component: Component,
    metadata: mlmd::Client,
    execution: Execution,
    run: Run,
    stores: Stores,
}

/// What a task produced.
struct Results {
    parameters: BTreeMap<String, Value>,
    artifacts: Vec<Output>,
}

/// Runs the task and records its end. Returns the execution's id.
pub(crate) async fn run(options: &Options, stop: &CancellationToken) -> Result<i64, Error> {
    let started = chrono::Utc::now();
    let flag = |flag| move |source| Error::Flag { flag, source };
    let input = ExecutorInput::parse(&options.executor_input).map_err(flag("executor_input"))?;
    let component = Component::parse(&options.component_spec).map_err(flag("component_spec"))?;
    let metadata = metadata_client(options).map_err(Error::PrePublish)?;
    let (execution, run) = tokio::try_join!(
        metadata.execution(options.execution_id),
        metadata.run(&options.pipeline_name, &options.run_id),
    )
    .map_err(Error::PrePublish)?;
    let mut task = Task {
        options,
        paths: Paths::new(options.root.clone()),
        input,
        component,
        metadata,
        execution,
        // Filled by `work`, so that a failure to do so is recorded as the task's.
        stores: Stores::new(objects::Opener::default(), "", None),
        run,
    };
    let announcement = task.announcement();
    let stop = stop.child_token();
    let announced = async {
        // A program that nobody can be told of has no use.
        announcement.make().await.inspect_err(|_| stop.cancel())
    };
    let (worked, announced) = tokio::join!(task.work(&stop), announced);
    task.release_models().await;
    let parent = announced.map_err(Error::PrePublish)?;
    task.finish(worked, started, parent).await
}

/// What the metadata store is told and asked while the user's program starts.
struct Announcement {
    metadata: mlmd::Client,
    execution: Execution,
    types: Vec<String>,
}

impl Announcement {
    /// Marks the execution as running in this pod. What will be needed when the program has ended is fetched beside that:
    /// the types of its artifacts, and the DAG of the task, which is returned.
    async fn make(self) -> Result<Option<Execution>, mlmd::Error> {
        let parent = async {
            match self.execution.parent_dag_id() {
                // It is asked for again, should this fail.
                Some(parent) => self.metadata.execution(parent).await.ok(),
                None => None,
            }
        };
        let types = stream::iter(&self.types).for_each_concurrent(TRANSFERS, async |title| {
            // The same holds here; the client remembers what it finds.
            let _ = self.metadata.artifact_type(title).await;
        });
        let (told, parent, ()) = tokio::join!(self.metadata.update_execution(&self.execution), parent, types);
        told.map(|()| parent)
    }
}

impl Task<'_> {
    /// Notes that the execution is running in this pod, which the announcement will tell.
    fn announcement(&mut self) -> Announcement {
        let namespace = kubeapi::Config::own_namespace().unwrap_or_else(|| self.run.namespace().to_owned());
        self.execution.set(names::POD_NAME, text(&self.options.pod_name));
        self.execution.set(names::POD_UID, text(&self.options.pod_uid));
        self.execution.set(names::NAMESPACE, text(namespace));
        self.execution.set_state(State::Running);
        let outputs = self.input.output_artifacts.iter().filter_map(|(name, list)| Some((name, list.first()?)));
        let types: BTreeSet<String> = outputs.filter_map(|(name, artifact)| self.title(name, artifact).ok()).collect();
        Announcement {
            metadata: self.metadata.clone(),
            execution: self.execution.clone(),
            types: types.into_iter().collect(),
        }
    }

    async fn work(&mut self, stop: &CancellationToken) -> Result<Results, Error> {
        let session = Session::from_json(self.run.store_session_info()).map_err(Error::Session)?;
        let authority = |source| Error::Opener(Box::new(source));
        let opener = opener(self.options).map_err(authority)?;
        self.stores = Stores::new(opener, self.run.pipeline_root(), session);
        self.number_logs().await;
        self.make_directories().await?;
        let input = self.input.clone().with_defaults(&self.component);
        let words = Placeholders::new(&input, &self.paths).words(&self.options.command);
        let environment = self.environment().await?;
        tokio::select! {
            fetched = self.download() => fetched?,
            () = stop.cancelled() => return Err(Error::Stopped),
        }
        let log = self.log().filter(|_| self.options.publish_logs).map(|(_, path)| path);
        let ran = command::run(&words, &environment, log.as_deref(), stop);
        // Room for the outputs is made while the program runs.
        let outputs = self.input.output_artifacts.values().filter_map(|list| list.first());
        let prepared = stream::iter(outputs).for_each(async |artifact| self.stores.prepare(&artifact.uri).await);
        let (ran, ()) = tokio::join!(ran, prepared);
        ran?;
        let output = ExecutorOutput::read(&self.paths.place(self.input.output_file())).await?;
        let parameters = output::parameters(&self.input, &self.component, &output, &self.paths).await?;
        let parameters = parameters.iter().map(|(name, value)| (name.clone(), ir::from_json(value))).collect();
        let artifacts = self.upload(&output).await?;
        Ok(Results { parameters, artifacts })
    }

    /// The log artifact and its local path.
    fn log(&self) -> Option<(&Artifact, PathBuf)> {
        let artifact = self.input.output_artifacts.get(names::EXECUTOR_LOGS)?.first()?;
        Some((artifact, self.paths.artifact(artifact)?))
    }

    /// Gives every try of the task a log of its own.
    async fn number_logs(&mut self) {
        if !self.options.publish_logs || !self.input.output_artifacts.contains_key(names::EXECUTOR_LOGS) {
            return;
        }
        let index = match &self.options.retry_index {
            Some(index) => index.clone(),
            None => retry_index(&self.options.pod_name).await,
        };
        let Some(artifact) = self.input.output_artifacts.get_mut(names::EXECUTOR_LOGS).and_then(|l| l.first_mut())
        else {
            return;
        };
        let suffix = format!("-{index}");
        artifact.uri.push_str(&suffix);
        if !artifact.custom_path.is_empty() {
            artifact.custom_path.push_str(&suffix);
        }
        let json = self.input.json.pointer_mut("/outputs/artifacts/executor-logs/artifacts/0/uri");
        if let Some(json) = json {
            *json = artifact.uri.clone().into();
        }
    }

    /// Directories in which the user's program will write.
    async fn make_directories(&self) -> Result<(), Error> {
        let mut files: Vec<PathBuf> = self.input.output_parameters().map(|(_, path)| self.paths.place(path)).collect();
        if !self.input.output_file().is_empty() {
            files.push(self.paths.place(self.input.output_file()));
        }
        for artifact in self.input.output_artifacts.values().filter_map(|list| list.first()) {
            let path = self.paths.artifact(artifact).ok_or_else(|| Error::NoLocalPath(artifact.uri.clone()))?;
            files.push(path);
        }
        for dir in files.iter().filter_map(|file| file.parent()) {
            tokio::fs::create_dir_all(dir).await.map_err(|source| Error::File { path: dir.to_owned(), source })?;
        }
        Ok(())
    }

    async fn environment(&self) -> Result<Vec<(&'static str, std::ffi::OsString)>, Error> {
        if self.options.ca_cert_path.is_empty() {
            return Ok(Vec::new());
        }
        let own = Path::new(&self.options.ca_cert_path);
        let dir = self.paths.place("/tmp/kfp");
        let made = command::authorities(own, &dir).await;
        made.map_err(|source| Error::Authority { path: own.to_owned(), source })
    }

    /// Fetches every input artifact that has a local path.
    async fn download(&self) -> Result<(), Error> {
        let inputs = self.input.input_artifacts.iter();
        let all = inputs.flat_map(|(name, list)| list.iter().map(move |artifact| (name, artifact)));
        stream::iter(all)
            .map(|(name, artifact)| self.fetch(name, artifact))
            .buffer_unordered(TRANSFERS)
            .try_collect::<Vec<()>>()
            .await
            .map(drop)
    }

    async fn fetch(&self, name: &str, artifact: &Artifact) -> Result<(), Error> {
        if artifact.in_workspace() {
            self.link(name, artifact).await;
            return Ok(());
        }
        if artifact.uri.is_empty() {
            return Ok(());
        }
        let Some(path) = self.paths.artifact(artifact) else {
            tracing::warn!(input = name, uri = artifact.uri, "no local form of this address, not downloaded");
            return Ok(());
        };
        if artifact.uri.starts_with("oci://") {
            while !tokio::fs::try_exists(&path).await.map_err(|source| Error::File { path: path.clone(), source })? {
                tokio::time::sleep(MODEL_POLL).await;
            }
            return Ok(());
        }
        let fetched = self.stores.download(&artifact.uri, &path).await;
        let fetched = fetched.map_err(|source| Error::Download {
            name: name.to_owned(),
            uri: artifact.uri.clone(),
            source: Box::new(source),
        })?;
        if fetched.files == 0 {
            tracing::warn!(input = name, uri = artifact.uri, "nothing is stored there, the input will be missing");
        }
        Ok(())
    }

    /// Shows an artifact of the workspace where it would lie if it had been downloaded, too: older SDKs (2.14 for one)
    /// look only there.
    async fn link(&self, name: &str, artifact: &Artifact) {
        let (Some(real), Some(usual)) = (self.paths.artifact(artifact), objects::local_path(&artifact.uri)) else {
            return;
        };
        let usual = self.paths.place(usual);
        let made = async {
            if let Some(parent) = usual.parent() {
                tokio::fs::create_dir_all(parent).await?;
            }
            match tokio::fs::symlink(&real, &usual).await {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        };
        if let Err(error) = made.await {
            tracing::warn!(input = name, path = %usual.display(), %error, "the workspace's artifact is not linked there");
        }
    }

    /// Stores all output artifacts and describes them for the metadata store.
    async fn upload(&self, output: &ExecutorOutput) -> Result<Vec<Output>, Error> {
        let declared = self.input.output_artifacts.iter().filter_map(|(name, list)| Some((name, list.first()?)));
        let all = declared.map(|(name, artifact)| match name.as_str() {
            names::EXECUTOR_LOGS => (name, artifact.clone()),
            _ => (name, output.merge(name, artifact, &self.paths)),
        });
        let done: Vec<Option<Output>> = stream::iter(all)
            .map(|(name, artifact)| async move { self.store(name, &artifact).await })
            .buffered(TRANSFERS)
            .try_collect()
            .await?;
        Ok(done.into_iter().flatten().collect())
    }

    /// Stores one output artifact. `None` for a log that does not exist.
    async fn store(&self, name: &str, artifact: &Artifact) -> Result<Option<Output>, Error> {
        match self.paths.artifact(artifact).filter(|_| !artifact.uri.starts_with("oci://")) {
            None => tracing::debug!(output = name, uri = artifact.uri, "no local form of this address, not uploaded"),
            Some(path) => match self.stores.upload(&path, &artifact.uri).await {
                Ok(_) => {}
                Err(objects::Error::MissingFile(_)) if name == names::EXECUTOR_LOGS => return Ok(None),
                Err(objects::Error::MissingFile(path)) => {
                    tracing::warn!(output = name, path = %path.display(), "the program wrote nothing there; the artifact is registered without content");
                }
                Err(source) => {
                    let (name, uri) = (name.to_owned(), artifact.uri.clone());
                    return Err(Error::Upload { name, path, uri, source: Box::new(source) });
                }
            },
        }
        let title = self.title(name, artifact)?;
        let session = match self.run.store_session_info() {
            "" => "null",
            session => session,
        };
        let metadata = ir::struct_from_json(&artifact.metadata);
        let mut described = mlmd::artifact_from_metadata(&artifact.uri, Some(&metadata), Some(name), Some(session));
        described.type_id = Some(self.metadata.artifact_type(&title).await?);
        Ok(Some(Output { name: name.to_owned(), artifact: described }))
    }

    /// The type of an output artifact.
    fn title(&self, name: &str, artifact: &Artifact) -> Result<String, Error> {
        let mut kind = artifact.kind.title();
        if let (Err(_), Some(declared)) = (&kind, self.component.output_artifacts.get(name)) {
            kind = declared.title();
        }
        if name == names::EXECUTOR_LOGS {
            kind = kind.or_else(|_| Ok("system.Artifact".to_owned()));
        }
        kind.map_err(|reason| Error::ArtifactType { name: name.to_owned(), reason })
    }

    /// The log of a failed task; failing to store it must not hide why the task failed.
    async fn failed_logs(&self, failure: &Error) -> Vec<Output> {
        let Some((artifact, path)) = self.log() else { return Vec::new() };
        if !matches!(failure, Error::Command(command::Error::Exit { .. })) {
            append(&path, &format!("launcher: {failure}\n")).await;
        }
        let stored = self.store(names::EXECUTOR_LOGS, artifact);
        let stored = match failure.time_for_log() {
            Some(limit) => tokio::time::timeout(limit, stored).await,
            None => Ok(stored.await),
        };
        match stored {
            Ok(Ok(output)) => return output.into_iter().collect(),
            Ok(Err(error)) => tracing::warn!(%error, "the log of the failed task could not be kept"),
            Err(_) => tracing::warn!("the log of the failed task could not be kept in the time that is left"),
        }
        Vec::new()
    }

    /// Records the end of the task, offers it to the cache, and brings the parent DAGs up to date.
    async fn finish(
        &mut self,
        worked: Result<Results, Error>,
        started: chrono::DateTime<chrono::Utc>,
        parent: Option<Execution>,
    ) -> Result<i64, Error> {
        let (state, parameters, artifacts, failure) = match worked {
            Ok(results) => (State::Complete, Some(results.parameters), results.artifacts, None),
            Err(failure) => {
                self.execution.set(names::ERROR_MESSAGE, text(failure.to_string()));
                (State::Failed, None, self.failed_logs(&failure).await, Some(failure))
            }
        };
        let published = self.metadata.publish(&self.run, &self.execution, state, parameters, artifacts).await;
        if let Err(publish) = published {
            return Err(match failure {
                Some(failure) => Error::PublishFailure { publish, failure: Box::new(failure) },
                None => Error::Metadata(publish),
            });
        }
        let remembered = async {
            if failure.is_none() {
                self.remember(started).await;
            }
        };
        let ((), told) = tokio::join!(remembered, self.tell(parent));
        if let Err(error) = told {
            tracing::warn!(%error, "the state of the parent DAG could not be brought up to date");
        }
        failure.map_or_else(|| Ok(self.execution.id()), Err)
    }

    /// Brings the parent DAGs up to date.
    async fn tell(&self, parent: Option<Execution>) -> Result<(), mlmd::Error> {
        match (parent, self.execution.parent_dag_id()) {
            (Some(parent), _) => self.metadata.propagate_dag_state_from(&self.run, parent).await,
            (None, Some(parent)) => self.metadata.propagate_dag_state(&self.run, parent).await,
            (None, None) => Ok(()),
        }
    }

    /// Offers the result to later runs. The task is recorded as COMPLETE by now, so failing here fails nothing.
    async fn remember(&self, started: chrono::DateTime<chrono::Utc>) {
        let fingerprint = self.execution.text(names::CACHE_FINGERPRINT);
        if self.options.cache_disabled || fingerprint.is_empty() {
            return;
        }
        let seconds = |time: chrono::DateTime<chrono::Utc>| Some(Timestamp { seconds: time.timestamp(), nanos: 0 });
        let entry = CacheEntry {
            pipeline_name: format!("pipeline/{}", self.options.pipeline_name),
            namespace: self.execution.text(names::NAMESPACE).to_owned(),
            run_id: self.options.run_id.clone(),
            mlmd_execution_id: self.execution.id().to_string(),
            created_at: seconds(started),
            finished_at: seconds(chrono::Utc::now()),
            fingerprint: fingerprint.to_owned(),
            ..CacheEntry::default()
        };
        match tokio::time::timeout(CACHE_TIMEOUT, self.create_entry(entry)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error, "the result could not be offered to the cache"),
            Err(_) => tracing::warn!("the API server did not answer in time, the result is not in the cache"),
        }
    }

    async fn create_entry(&self, entry: CacheEntry) -> Result<(), String> {
        let server = &self.options.api;
        let tls = match server.tls {
            true => Some(grpc::Tls::load(&self.options.ca_cert_path).map_err(|e| e.to_string())?),
            false => None,
        };
        let channel = grpc::channel(&server.address, server.port, tls.as_ref()).map_err(|e| e.to_string())?;
        let request = CreateTaskRequest { task: Some(entry) };
        let call = || {
            let (mut client, request) = (TaskServiceClient::new(channel.clone()), request.clone());
            async move { client.create_task_v1(request).await }
        };
        grpc::with_retries(call).await.map(drop).map_err(|status| format!("{}: {}", status.code(), status.message()))
    }

    /// Tells the containers that hold model images that they may end; also after a failure.
    async fn release_models(&self) {
        for artifact in self.input.input_artifacts.values().flatten().filter(|a| a.uri.starts_with("oci://")) {
            if let Some(dir) = self.paths.artifact(artifact).as_deref().and_then(Path::parent) {
                let mark = dir.join("launcher-complete");
                if let Err(error) = tokio::fs::write(&mark, b"").await {
                    tracing::warn!(path = %mark.display(), %error, "cannot release the model's container");
                }
            }
        }
    }
}

/// Adds a line to a log that may not exist yet.
async fn append(path: &Path, line: &str) {
    use tokio::io::AsyncWriteExt as _;
    let Ok(mut file) = tokio::fs::OpenOptions::new().create(true).append(true).open(path).await else { return };
    // Best effort: the same text goes to standard error.
    let _ = file.write_all(line.as_bytes()).await;
    let _ = file.flush().await;
}

/// Which try this is, in workflows compiled before that was handed over in the environment: the number in the last
/// parentheses of the node's name.
async fn retry_index(pod: &str) -> String {
    let first = || "0".to_owned();
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_none() {
        return first();
    }
    let Ok(client) = kubeapi::Client::from_env() else { return first() };
    match client.get(kubeapi::PODS, client.namespace(), pod).await {
        Ok(object) => {
            let node = object["metadata"]["annotations"]["workflows.argoproj.io/node-name"].as_str();
            node.and_then(last_number).unwrap_or_else(first)
        }
        Err(error) => {
            tracing::warn!(%error, "cannot read the own pod, taking this for the first try");
            first()
        }
    }
}

fn last_number(node: &str) -> Option<String> {
    let (inside, _) = node.rsplit_once('(')?.1.split_once(')')?;
    inside.parse::<u32>().ok().map(|n| n.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_numbered_by_the_nodes_name() {
        for (name, want) in [
            ("w.root.task.executor(3)", Some("3")),
            ("w.root(0:a).executor(12)", Some("12")),
            ("w.root(0:a).executor", None),
            ("w", None),
        ] {
            assert_eq!(last_number(name).as_deref(), want, "{name}");
        }
    }
}
