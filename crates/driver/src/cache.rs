//! Reuse of earlier results: what identifies an execution, and the API server's memory of it.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use kfp_core::mlmd::{self, Output, names};
use kfp_core::{grpc, hex, ir};
use kfp_proto::api;
use kfp_proto::api::task_service_client::TaskServiceClient;
use kfp_proto::ml_metadata::{Artifact, artifact::State as ArtifactState};
use kfp_proto::ml_pipelines::{
    ArtifactNameList, CacheKey, ContainerSpec, ExecutorInput, RuntimeArtifact, executor_input,
};
use prost_types::Value;
use serde_json::json;
use sha2::{Digest, Sha256};
use tonic::Code;
use tonic::transport::Channel;

use crate::Error;
use crate::request::{Container, Request, Task};

/// Largest answer, as upstream sets it.
const MAX_MESSAGE_BYTES: usize = 100 * 1024 * 1024;

/// The fingerprint of a key: SHA-256 of its JSON in Go's canonical form.
#[must_use]
pub(crate) fn hash(key: &CacheKey) -> String {
    hex::text(&Sha256::digest(ir::encode_text(key).as_bytes()))
}

/// What identifies an execution of `container` with `input`. A key that the user chose replaces everything else.
#[must_use]
pub(crate) fn fingerprint(
    request: &Request,
    container: &Container,
    input: &ExecutorInput,
    volumes: &[String],
) -> String {
    match custom(&container.task) {
        Some(fingerprint) => fingerprint,
        None => hash(&key(request, container, input, volumes)),
    }
}

fn custom(task: &Task) -> Option<String> {
    let key =
        task.spec.caching_options.as_ref().map(|options| options.cache_key.as_str()).filter(|key| !key.is_empty())?;
    let mut hash = Sha256::new();
    if let Some(component) = task.spec.component_ref.as_ref().filter(|component| !component.name.is_empty()) {
        hash.update(component.name.as_bytes());
        hash.update([0]);
    }
    hash.update(key.as_bytes());
    Some(hex::text(&hash.finalize()))
}

fn key(request: &Request, container: &Container, input: &ExecutorInput, volumes: &[String]) -> CacheKey {
    let inputs = input.inputs.clone().unwrap_or_default();
    let outputs = input.outputs.clone().unwrap_or_default();
    let names = |list: &kfp_proto::ml_pipelines::ArtifactList| ArtifactNameList {
        artifact_names: list.artifacts.iter().map(|artifact| artifact.name.clone()).collect(),
    };
    let without_uri = |artifact: &RuntimeArtifact| RuntimeArtifact {
        name: artifact.name.clone(),
        r#type: artifact.r#type.clone(),
        metadata: artifact.metadata.clone(),
        ..Default::default()
    };
    let types = request.component.output_definitions.as_ref().map(|d| &d.parameters).into_iter().flatten();
    let mut pvc_names = volumes.to_vec();
    pvc_names.sort();
    pvc_names.dedup();
    CacheKey {
        input_artifact_names: inputs.artifacts.iter().map(|(name, list)| (name.clone(), names(list))).collect(),
        input_parameter_values: inputs.parameter_values,
        output_artifacts_spec: outputs
            .artifacts
            .iter()
            .filter_map(|(name, list)| Some((name.clone(), without_uri(list.artifacts.first()?))))
            .collect(),
        output_parameters_spec: types
            .filter(|(name, _)| outputs.parameters.contains_key(*name))
            .map(|(name, spec)| (name.clone(), spec.parameter_type().as_str_name().to_owned()))
            .collect(),
        container_spec: Some(ContainerSpec {
            image: container.spec.image.clone(),
            cmd_args: [container.spec.command.clone(), container.spec.args.clone()].concat(),
            pvc_names,
        }),
        ..Default::default()
    }
}

/// The API server's record of executions that may be reused.
#[derive(Clone, Debug)]
pub struct Cache {
    client: TaskServiceClient<Channel>,
}

impl Cache {
    /// The cache behind an API server's gRPC port.
    #[must_use]
    pub fn new(channel: Channel) -> Self {
        Self { client: TaskServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES) }
    }

    /// The newest execution with this fingerprint, or in words why there is none to be had. A server that stays away
    /// costs the reuse, not the task; upstream fails the task.
    pub(crate) async fn find(&self, request: &Request, fingerprint: &str) -> Result<Result<i64, String>, Error> {
        let equals = |key: &str, value: &str| json!({"op": "EQUALS", "key": key, "stringValue": value});
        let pipeline = format!("pipeline/{}", request.run.pipeline_name);
        let filter = json!({"predicates": [
            equals("fingerprint", fingerprint),
            equals("pipelineName", &pipeline),
            equals("namespace", &request.run.namespace),
        ]});
        let query = api::ListTasksRequest {
            filter: filter.to_string(),
            sort_by: "created_at desc".to_owned(),
            page_size: 1,
            ..Default::default()
        };
        let answer = grpc::with_retries(|| {
            let (mut client, query) = (self.client.clone(), query.clone());
            async move { client.list_tasks_v1(query).await }
        })
        .await;
        let tasks = match answer {
            Ok(answer) => answer.tasks,
            Err(status) if status.code() == Code::Unimplemented => {
                return Ok(Err("the API server has no cache".to_owned()));
            }
            Err(status) if grpc::is_transient(&status) => {
                return Ok(Err(format!("the API server could not be asked: {}", status.message())));
            }
            Err(status) => return Err(Error::Cache(format!("failed to list tasks: {}", status.message()))),
        };
        let Some(task) = tasks.first().filter(|task| !task.mlmd_execution_id.is_empty()) else {
            return Ok(Err("no earlier execution has the same key".to_owned()));
        };
        let id = &task.mlmd_execution_id;
        id.parse().map(Ok).map_err(|_| Error::Cache(format!("cached execution id {id:?} is not a number")))
    }

    /// Remembers an execution under a fingerprint.
    pub(crate) async fn store(
        &self,
        request: &Request,
        execution: i64,
        fingerprint: &str,
        started: SystemTime,
    ) -> Result<(), Error> {
        let seconds = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
            Some(prost_types::Timestamp { seconds: since.as_secs().try_into().unwrap_or(i64::MAX), nanos: 0 })
        };
        let task = api::Task {
            pipeline_name: format!("pipeline/{}", request.run.pipeline_name),
            namespace: request.run.namespace.clone(),
            run_id: request.run.id.clone(),
            mlmd_execution_id: execution.to_string(),
            created_at: seconds(started),
            finished_at: seconds(SystemTime::now()),
            fingerprint: fingerprint.to_owned(),
            ..Default::default()
        };
        let create = api::CreateTaskRequest { task: Some(task) };
        grpc::with_retries(|| {
            let (mut client, create) = (self.client.clone(), create.clone());
            async move { client.create_task_v1(create).await }
        })
        .await
        .map(drop)
        .map_err(|status| Error::Cache(format!("failed to create task: {}", status.message())))
    }
}

/// Results of an earlier execution.
#[derive(Clone, Debug)]
pub(crate) struct Reusable {
    pub(crate) execution: i64,
    pub(crate) parameters: BTreeMap<String, Value>,
    pub(crate) artifacts: Vec<Output>,
}

/// Whether nobody may count on what is stored for the artifact.
fn is_given_up(artifact: &Artifact) -> bool {
    matches!(artifact.state(), ArtifactState::MarkedForDeletion | ArtifactState::Deleted | ArtifactState::Abandoned)
}

/// Reads what an earlier execution left. When it or one of the wanted artifacts is gone, the task simply runs, and the
/// answer says in words what is missing. Logs are not insisted on.
pub(crate) async fn reusable(
    metadata: &mlmd::Client,
    execution: i64,
    wanted: &executor_input::Outputs,
) -> Result<Result<Reusable, String>, Error> {
    let earlier = match metadata.execution(execution).await {
        Ok(earlier) => earlier,
        Err(mlmd::Error::NotFound(_)) => {
            return Ok(Err(format!("execution {execution} has the same key, but is gone from the metadata store")));
        }
        Err(error) => return Err(error.into()),
    };
    let mut found = metadata.output_artifacts(execution).await?;
    let mut artifacts = Vec::new();
    for name in wanted.artifacts.keys() {
        match found.remove(name) {
            Some(artifact) if !is_given_up(&artifact) => artifacts.push(Output { name: name.clone(), artifact }),
            _ if name == names::EXECUTOR_LOGS => {}
            Some(_) => {
                return Ok(Err(format!(
                    "execution {execution} has the same key, but its artifact {name:?} is marked as deleted"
                )));
            }
            None => {
                return Ok(Err(format!("execution {execution} has the same key, but no artifact {name:?}")));
            }
        }
    }
    Ok(Ok(Reusable { execution, parameters: earlier.outputs(), artifacts }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{RunInfo, Work};
    use ir::Unknown;

    fn decode<T: prost::Message + prost::Name + Default>(json: serde_json::Value) -> T {
        ir::decode(&json, Unknown::Reject).unwrap()
    }

    #[test]
    fn golden_fingerprints() {
        let small = json!({"containerSpec": {"cmdArgs": ["sh", "ec", "run"], "image": "python:3.11"},
            "inputArtifactNames": {"dataset": {"artifactNames": ["10"]}},
            "outputParametersSpec": {"output_parameter": "DOUBLE"}});
        let schema = "title: kfp.Model\ntype: object\nproperties:\n  framework:\n    type: string\n  framework_version:\n    type: string\n";
        let large = json!({
            "inputArtifactNames": {"dataset_one": {"artifactNames": ["1"]}, "dataset_two": {"artifactNames": ["2"]}},
            "inputParameterValues": {"message": "Some string value", "num_steps": 5},
            "outputArtifactsSpec": {
                "model": {"name": "model", "type": {"instanceSchema": schema}, "metadata": {"name": "model"}},
                "metrics": {"name": "metrics", "type": {"schemaTitle": "kfp.Metrics"}, "metadata": {"name": "metrics"}}},
            "outputParametersSpec": {"output_parameter_one": "STRING", "output_parameter_two": "INT"},
            "containerSpec": {"cmdArgs": ["sh", "ec", "test"], "image": "python:3.11"}});
        for (key, wanted) in [
            (small, "3d9a2a778fa3174c6cfc6e639c507c265b5f21ef6e5b1dd70b236462cc6da464"),
            (large, "b498530c9016917298999ec0b01f364a180f8a3862bea0fa672a383ca3f22e4e"),
        ] {
            assert_eq!(hash(&decode(key)), wanted);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_stays_away_costs_the_reuse_and_not_the_task() {
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let cache = Cache::new(grpc::channel("127.0.0.1", nobody, None).unwrap());
        let work = Work::Container(Box::default());
        let request = Request { run: RunInfo::default(), component: decode(json!({})), work };
        let reason = cache.find(&request, "print").await.unwrap().unwrap_err();
        assert!(reason.starts_with("the API server could not be asked: "), "{reason}");
    }

    #[test]
    fn custom_keys_are_scoped_by_component() {
        for (component, wanted) in [
            ("my-component", "ad05e747b67b95e4fc4ce080cdb5850f89744360a85753b90a1a434d46dedd2e"),
            ("other-component", "3b3a067cac2d9161742542c6afa8a1291699e27c637dd0d5d66cd8b2bdc5ab76"),
        ] {
            let spec = decode(json!({"componentRef": {"name": component},
                "cachingOptions": {"enableCache": true, "cacheKey": "my-custom-cache-key"}}));
            assert_eq!(custom(&Task { spec, ..Default::default() }).as_deref(), Some(wanted));
        }
        assert_eq!(custom(&Task::default()), None);
    }

    #[test]
    fn key_holds_what_identifies_a_task_and_nothing_else() {
        let container = Container {
            spec: decode(
                json!({"image": "i", "command": ["a"], "args": ["{{$}}"], "env": [{"name": "E", "value": "1"}]}),
            ),
            ..Default::default()
        };
        let request = Request {
            run: RunInfo::default(),
            component: decode(json!({"outputDefinitions": {"parameters": {"p": {"parameterType": "NUMBER_INTEGER"}}}})),
            work: Work::Container(Box::default()),
        };
        let input = decode(json!({
            "inputs": {"parameterValues": {"n": null, "i": 2}, "artifacts": {
                "none": {}, "two": {"artifacts": [{"name": "7", "uri": "gs://x"}, {"name": "8"}]}}},
            "outputs": {"parameters": {"p": {"outputFile": "/x"}},
                "artifacts": {"m": {"artifacts": [{"name": "m", "uri": "gs://y"}]}}}}));
        let volumes = ["b", "a", "b"].map(str::to_owned);
        assert_eq!(
            ir::encode(&key(&request, &container, &input, &volumes)),
            json!({
                "inputArtifactNames": {"none": {}, "two": {"artifactNames": ["7", "8"]}},
                "inputParameterValues": {"n": null, "i": 2},
                "outputArtifactsSpec": {"m": {"name": "m"}},
                "outputParametersSpec": {"p": "NUMBER_INTEGER"},
                "containerSpec": {"image": "i", "cmdArgs": ["a", "{{$}}"], "pvcNames": ["a", "b"]}})
        );
    }
}
