//! Runs that the API server creates: the request, and how the controller identifies itself.

use std::path::PathBuf;

use kfp_core::ir;
use kfp_core::token::Token;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use kube::core::DynamicObject;
use serde_json::Value;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};
use v2::run_service_client::RunServiceClient;

use crate::macros::{Facts, expand};
use crate::model::text;
use crate::names;
use crate::workflow::Instance;

/// The request for one run of `schedule`. Its name is deterministic, so that the API server recognises a repetition.
///
/// Unlike upstream it carries the slot, and macros about slot and index are replaced here, where they are known; those
/// about the run's id are left to the API server.
///
/// # Errors
/// When a parameter is not JSON or the input of a plugin is not an object.
#[allow(deprecated)] // Upstream fills both experiment ids.
pub fn request(schedule: &DynamicObject, run: &Instance<'_>) -> Result<v2::CreateRunRequest, String> {
    let meta = &schedule.metadata;
    let spec = schedule.data.get("spec").unwrap_or(&Value::Null);
    let own = |key: &str| spec.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (pipeline_id, pipeline_version_id) = (own("pipelineId"), own("pipelineVersionId"));
    let source = (!pipeline_id.is_empty() || !pipeline_version_id.is_empty()).then_some(
        v2::run::PipelineSource::PipelineVersionReference(v2::PipelineVersionReference {
            pipeline_id,
            pipeline_version_id,
        }),
    );
    let mut plugins_input = std::collections::BTreeMap::new();
    for (name, input) in spec.get("pluginsInput").and_then(Value::as_object).into_iter().flatten() {
        let fields = input.as_object().ok_or_else(|| format!("spec.pluginsInput.{name} is no object"))?;
        plugins_input.insert(name.clone(), ir::struct_from_json(fields));
    }
    let run = v2::Run {
        experiment_id: own("experimentId"),
        display_name: names::run_name(meta.name.as_deref().unwrap_or_default(), run.index),
        recurring_run_id: meta.uid.clone().unwrap_or_default(),
        pipeline_source: source,
        service_account: own("serviceAccount"),
        scheduled_at: Some(prost_types::Timestamp { seconds: run.slot, nanos: 0 }),
        runtime_config: runtime_config(spec, run)?,
        plugins_input,
        ..v2::Run::default()
    };
    Ok(v2::CreateRunRequest { experiment_id: run.experiment_id.clone(), run: Some(run) })
}

fn runtime_config(spec: &Value, run: &Instance<'_>) -> Result<Option<v2::RuntimeConfig>, String> {
    let Some(workflow) = spec.get("workflow").filter(|workflow| !workflow.is_null()) else { return Ok(None) };
    let facts = Facts { run_id: None, scheduled: Some(run.slot), now: Some(run.now), index: Some(run.index) };
    let mut parameters = std::collections::BTreeMap::new();
    for parameter in workflow.get("parameters").and_then(Value::as_array).into_iter().flatten() {
        let name = text(parameter, "/name");
        let value: Value = serde_json::from_str(text(parameter, "/value"))
            .map_err(|error| format!("the value of parameter {name:?} is not JSON: {error}"))?;
        let value = match value {
            Value::String(text) => Value::String(expand(&text, &facts)),
            other => other,
        };
        parameters.insert(name.to_owned(), ir::from_json(&value));
    }
    Ok(Some(v2::RuntimeConfig { parameters, pipeline_root: text(workflow, "/pipelineRoot").to_owned() }))
}

/// A header that names the user for whom the controller acts.
pub type Identity = (MetadataKey<Ascii>, MetadataValue<Ascii>);

/// The identity header of the two flags; both must be given.
///
/// # Errors
/// When the name or the value cannot be sent.
pub fn identity(header: &str, value: &str) -> Result<Option<Identity>, String> {
    if header.is_empty() || value.is_empty() {
        return Ok(None);
    }
    let key = header.to_lowercase();
    let plain = key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
    if !plain || key.starts_with("grpc-") {
        return Err(format!(
            "invalid userIdentityHeader {header:?}: only letters, digits and \"._-\" are allowed, and not the prefix grpc-"
        ));
    }
    let key = MetadataKey::from_bytes(key.as_bytes())
        .map_err(|error| format!("invalid userIdentityHeader {header:?}: {error}"))?;
    let value = value.parse().map_err(|error| format!("invalid userIdentityValue {value:?}: {error}"))?;
    Ok(Some((key, value)))
}

/// Asks the API server for runs.
#[derive(Clone)]
pub struct Runs {
    client: RunServiceClient<Channel>,
    token: Option<Token>,
    identity: Option<Identity>,
}

impl Runs {
    /// Calls over `channel`.
    #[must_use]
    pub fn new(channel: Channel, token: PathBuf, identity: Option<Identity>) -> Self {
        // As upstream: a file that is absent at the start is never looked for again.
        let token = token.exists().then(|| Token::new(token));
        Self { client: RunServiceClient::new(channel), token, identity }
    }

    /// Creates a run, or finds the one that an earlier call created. A rejected token is read again once.
    ///
    /// # Errors
    /// As the API server answers.
    pub async fn create(&self, request: v2::CreateRunRequest) -> Result<v2::Run, Status> {
        match (self.send(request.clone()).await, &self.token) {
            (Err(status), Some(token)) if status.code() == Code::Unauthenticated => {
                token.refresh();
                self.send(request).await
            }
            (result, _) => result,
        }
    }

    async fn send(&self, message: v2::CreateRunRequest) -> Result<v2::Run, Status> {
        let mut request = tonic::Request::new(message);
        if let Some(token) = self.token.as_ref().and_then(Token::get) {
            request.metadata_mut().insert("authorization", token);
        }
        if let Some((key, value)) = &self.identity {
            request.metadata_mut().insert(key.clone(), value.clone());
        }
        Ok(self.client.clone().create_run(request).await?.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RUN: Instance<'_> = Instance { run_id: "", slot: 60, now: 65, index: 3 };

    fn schedule(spec: Value) -> DynamicObject {
        let object = json!({
            "apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
            "metadata": {"name": "s", "namespace": "n", "uid": "u"}, "spec": spec,
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn request_carries_everything() {
        let schedule = schedule(json!({
            "experimentId": "e", "pipelineId": "p", "pipelineVersionId": "v", "serviceAccount": "sa",
            "pluginsInput": {"mlflow": {"run": 1}},
            "workflow": {"pipelineRoot": "s3://r", "parameters": [
                {"name": "text", "value": "\"[[Index]] [[RunUUID]]\""}, {"name": "number", "value": "3"},
                {"name": "object", "value": "{\"a\": [true]}"}]},
        }));
        let run = request(&schedule, &RUN).unwrap().run.unwrap();
        assert_eq!(
            (run.experiment_id.as_str(), run.recurring_run_id.as_str(), run.service_account.as_str()),
            ("e", "u", "sa")
        );
        assert_eq!(run.display_name, names::run_name("s", 3));
        assert_eq!(run.scheduled_at.unwrap().seconds, 60);
        let source = v2::PipelineVersionReference { pipeline_id: "p".into(), pipeline_version_id: "v".into() };
        assert_eq!(run.pipeline_source, Some(v2::run::PipelineSource::PipelineVersionReference(source)));
        let config = run.runtime_config.unwrap();
        assert_eq!(config.pipeline_root, "s3://r");
        let value = |name: &str| ir::to_json(&config.parameters[name]);
        assert_eq!(value("text"), json!("3 [[RunUUID]]"));
        assert_eq!((value("number"), value("object")), (json!(3), json!({"a": [true]})));
        assert_eq!(ir::struct_to_json(&run.plugins_input["mlflow"]), json!({"run": 1}));
    }

    #[test]
    fn wrong_input_is_named() {
        for (spec, why) in [
            (json!({"workflow": {"parameters": [{"name": "p", "value": "abc"}]}}), "parameter \"p\" is not JSON"),
            (json!({"pluginsInput": {"x": 5}}), "spec.pluginsInput.x is no object"),
        ] {
            let error = request(&schedule(spec), &RUN).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn identity_header_is_checked() {
        assert_eq!(identity("", "x"), Ok(None));
        assert_eq!(identity("x", ""), Ok(None));
        let (key, value) = identity("Kubeflow-UserID", "system:serviceaccount:n:s").unwrap().unwrap();
        assert_eq!((key.as_str(), value.to_str().unwrap()), ("kubeflow-userid", "system:serviceaccount:n:s"));
        for header in ["grpc-user", "a b", "\u{e9}", "a:b"] {
            let error = identity(header, "x").unwrap_err();
            assert!(error.starts_with(&format!("invalid userIdentityHeader {header:?}: ")), "{error}");
        }
    }
}
