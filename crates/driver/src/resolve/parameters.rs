//! One input parameter: from the parent DAG, a task's output, a constant or a task's final status.

use kfp_core::ir;
use kfp_proto::ml_pipelines::task_inputs_spec::InputParameterSpec;
use kfp_proto::ml_pipelines::task_inputs_spec::input_parameter_spec::Kind;
use kfp_proto::ml_pipelines::value_or_runtime_parameter::Value as RuntimeValue;
use prost_types::Value;
use prost_types::value::Kind as ValueKind;
use serde_json::json;

use super::Resolver;
use crate::Error;
use crate::request::{RunInfo, Task};

/// Where a run's workspace is mounted.
pub(crate) const WORKSPACE_PATH: &str = "/kfp-workspace";
/// Placeholder of [`WORKSPACE_PATH`].
pub(crate) const WORKSPACE_PLACEHOLDER: &str = "{{$.workspace_path}}";
const CREATE_TIME: &str = "{{$.pipeline_job_create_time_utc}}";
const SCHEDULE_TIME: &str = "{{$.pipeline_job_schedule_time_utc}}";

/// When the run was created and for when it was scheduled, RFC 3339; filled in only where a task asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) create: String,
    pub(crate) schedule: String,
}

/// Which times the constants of a task mention: creation, schedule.
pub(crate) fn mentioned_times(task: &Task) -> (bool, bool) {
    let mentions = |placeholder: &str| {
        task.spec.inputs.iter().flat_map(|inputs| inputs.parameters.values()).any(|spec| match &spec.kind {
            Some(Kind::RuntimeValue(value)) => match &value.value {
                Some(RuntimeValue::Constant(Value { kind: Some(ValueKind::StringValue(text)) })) => {
                    text.contains(placeholder)
                }
                _ => false,
            },
            _ => false,
        })
    };
    (mentions(CREATE_TIME), mentions(SCHEDULE_TIME))
}

/// A resolved parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Resolved {
    /// It has a value.
    Value(Value),
    /// The named input of the parent DAG is null: allowed for optional inputs only.
    Null(String),
}

/// The constant with the run's facts in place of placeholders, wherever in the text they stand.
pub(super) fn constant(value: &Value, run: &RunInfo, root: &str, task: &Task, times: &Times) -> Value {
    let Some(ValueKind::StringValue(text)) = &value.kind else { return value.clone() };
    if !text.contains("{{$.") {
        return value.clone();
    }
    let dag = task.dag_execution_id.to_string();
    let known = [
        (WORKSPACE_PLACEHOLDER, WORKSPACE_PATH),
        ("{{$.pipeline_job_name}}", &run.display_name),
        ("{{$.pipeline_job_resource_name}}", &run.name),
        ("{{$.pipeline_job_uuid}}", &run.id),
        ("{{$.pipeline_task_name}}", &task.name),
        ("{{$.pipeline_task_uuid}}", &dag),
        ("{{$.pipeline_root}}", root),
        (CREATE_TIME, &times.create),
        (SCHEDULE_TIME, &times.schedule),
    ];
    // One pass from left to right, so that what was filled in is not searched again.
    let (mut out, mut rest) = (String::new(), text.as_str());
    while let Some(at) = rest.find("{{$.") {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        match known.iter().find(|(placeholder, _)| tail.starts_with(placeholder)) {
            Some((placeholder, value)) => {
                out.push_str(value);
                rest = &tail[placeholder.len()..];
            }
            None => {
                out.push_str("{{$.");
                rest = &tail["{{$.".len()..];
            }
        }
    }
    out.push_str(rest);
    Value { kind: Some(ValueKind::StringValue(out)) }
}

impl Resolver<'_> {
    /// Resolves one parameter in the scope of the parent DAG.
    pub(crate) async fn parameter(&mut self, spec: &InputParameterSpec) -> Result<Resolved, Error> {
        let failed = |reason: String| {
            Error::Inputs(format!("resolving input parameter with spec {}: {reason}", ir::encode(spec)))
        };
        let value = match &spec.kind {
            Some(Kind::ComponentInputParameter(name)) if name.is_empty() => {
                return Err(failed("empty component input".to_owned()));
            }
            Some(Kind::ComponentInputParameter(name)) => match &self.dag_parameter(name).await? {
                None => return Err(failed(format!("parent DAG does not have input parameter {name}"))),
                Some(Value { kind: None | Some(ValueKind::NullValue(_)) }) => return Ok(Resolved::Null(name.clone())),
                Some(value) => value.clone(),
            },
            Some(Kind::TaskOutputParameter(output)) => self
                .output_parameter(&output.producer_task, &output.output_parameter_key)
                .await
                .map_err(|error| match error {
                    Error::Inputs(reason) => failed(reason),
                    other => other,
                })?,
            Some(Kind::RuntimeValue(value)) => match &value.value {
                Some(RuntimeValue::Constant(value)) => {
                    constant(value, &self.request.run, &self.pipeline_root, self.task, &self.times)
                }
                Some(RuntimeValue::ConstantValue(value)) => legacy(value),
                Some(RuntimeValue::RuntimeParameter(_)) => {
                    return Err(failed("param runtime value spec of type runtimeParameter not implemented".to_owned()));
                }
                None => return Err(failed("param runtime value spec is empty".to_owned())),
            },
            Some(Kind::TaskFinalStatus(_)) => self.final_status().await?,
            None => return Err(failed("parameter spec without a kind not implemented yet".to_owned())),
        };
        Ok(Resolved::Value(value))
    }

    /// As [`Self::parameter`], for names of Kubernetes objects; `None` when null.
    pub(crate) async fn non_empty_text(&mut self, spec: &InputParameterSpec) -> Result<Option<String>, Error> {
        let wrong =
            |what: &str| Error::Inputs(format!("resolving input parameter with spec {}. {what}", ir::encode(spec)));
        match self.parameter(spec).await? {
            Resolved::Null(_) => Ok(None),
            Resolved::Value(Value { kind: Some(ValueKind::StringValue(text)) }) if text.is_empty() => {
                Err(wrong("Expected a non-empty string"))
            }
            Resolved::Value(Value { kind: Some(ValueKind::StringValue(text)) }) => Ok(Some(text)),
            Resolved::Value(other) => {
                Err(wrong(&format!("Expected a string but got: {}", super::types::name_of(&other))))
            }
        }
    }

    async fn final_status(&mut self) -> Result<Value, Error> {
        let Some(producer) = self.task.spec.dependent_tasks.first() else {
            return Err(Error::Inputs(format!("task {} has no dependent tasks", self.task.display_name())));
        };
        let producer = self.producer(producer).await?;
        let state = self.tree.outcome(&producer).await?;
        Ok(ir::from_json(&json!({
            "state": state.as_str_name(),
            "error": {},
            "pipelineJobResourceName": self.request.run.name,
            "pipelineTaskName": producer.task_name(),
        })))
    }
}

/// Values of the first schema version, still accepted.
#[allow(clippy::cast_precision_loss)]
fn legacy(value: &kfp_proto::ml_pipelines::Value) -> Value {
    use kfp_proto::ml_pipelines::value::Value as Legacy;
    let kind = match &value.value {
        None => ValueKind::NullValue(0),
        Some(Legacy::IntValue(value)) => ValueKind::NumberValue(*value as f64),
        Some(Legacy::DoubleValue(value)) => ValueKind::NumberValue(*value),
        Some(Legacy::StringValue(value)) => ValueKind::StringValue(value.clone()),
    };
    Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_in_constants() {
        let run = RunInfo {
            id: "id-1".into(),
            name: "wf-1".into(),
            display_name: "my {{$.pipeline_job_uuid}}".into(),
            ..Default::default()
        };
        let task = Task { name: "t".into(), dag_execution_id: 9, ..Default::default() };
        let times = Times { create: "2026-01-01T00:00:00Z".into(), schedule: "2026-01-02T00:00:00Z".into() };
        for (given, wanted) in [
            ("plain", "plain"),
            ("{{$.pipeline_job_uuid}}", "id-1"),
            ("{{$.pipeline_job_resource_name}}", "wf-1"),
            ("{{$.pipeline_task_name}}", "t"),
            ("{{$.pipeline_task_uuid}}", "9"),
            ("{{$.workspace_path}}/data", "/kfp-workspace/data"),
            ("a {{$.pipeline_job_uuid}} b {{$.pipeline_job_uuid}}", "a id-1 b id-1"),
            ("{{$.pipeline_job_name}}", "my {{$.pipeline_job_uuid}}"),
            ("{{$.pipeline_root}}/tmp", "minio://b/p/tmp"),
            ("{{$.pipeline_job_create_time_utc}}", "2026-01-01T00:00:00Z"),
            ("{{$.pipeline_job_schedule_time_utc}}", "2026-01-02T00:00:00Z"),
            ("{{$.unknown}} {{$.", "{{$.unknown}} {{$."),
        ] {
            let value = Value { kind: Some(ValueKind::StringValue(given.into())) };
            let result = constant(&value, &run, "minio://b/p", &task, &times);
            assert_eq!(result.kind, Some(ValueKind::StringValue(wanted.into())), "{given}");
        }
        let number = Value { kind: Some(ValueKind::NumberValue(3.0)) };
        assert_eq!(constant(&number, &run, "", &task, &times), number);
    }
}
