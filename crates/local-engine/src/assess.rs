//! Reads off a pod what its node's phase, message and outputs are.

use crate::frames::Collected;
use kfp_core::argo::{Artifact, NodePhase, Outputs, Parameter, Template, Timestamp, names};
use serde::Deserialize;
use serde_json::Value;

/// What a pod says about its node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Assessment {
    /// Phase of the node.
    pub phase: NodePhase,
    /// Why.
    pub message: String,
    /// Outputs, once the main container has ended.
    pub outputs: Option<Outputs>,
    /// When the last container ended.
    pub finished_at: Option<Timestamp>,
    /// Machine.
    pub host: String,
    /// Address.
    pub ip: String,
}

/// What the pod runner reports in the outputs annotation.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Reported {
    parameters: Vec<Parameter>,
    artifacts: Vec<Artifact>,
    result: Option<String>,
    exit_code: Option<Value>,
    message: Option<String>,
}

/// Assesses a pod. `template` serves when the pod carries no contract of its own.
pub fn assess(pod: &Value, template: Option<&Template>) -> Assessment {
    let status = &pod["status"];
    let mut assessment =
        Assessment { host: text(&pod["spec"]["nodeName"]), ip: text(&status["podIP"]), ..Assessment::default() };
    match status["phase"].as_str().unwrap_or_default() {
        "Running" => assessment.phase = NodePhase::Running,
        "Succeeded" => {
            let reported = reported(pod);
            let collected = collect(pod, &reported, template);
            assessment.finished_at = finished(status);
            assessment.outputs = Some(collected.outputs);
            match collected.missing {
                None => assessment.phase = NodePhase::Succeeded,
                Some(path) => {
                    assessment.phase = NodePhase::Error;
                    assessment.message = reported.message.unwrap_or_else(|| {
                        format!("wait: Error (exit code 64): open {path}: no such file or directory")
                    });
                }
            }
        }
        "Failed" => {
            let reported = reported(pod);
            (assessment.phase, assessment.message) = match &reported.message {
                // The platform failed, not the container.
                Some(message) if main_exit(status).is_none_or(|code| code == 0) => (NodePhase::Error, message.clone()),
                _ => failure(status),
            };
            assessment.finished_at = finished(status);
            if main_exit(status).is_some() {
                assessment.outputs = Some(collect(pod, &reported, template).outputs);
            }
        }
        _ => {
            assessment.phase = NodePhase::Pending;
            assessment.message = pending_reason(status);
        }
    }
    assessment
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn containers<'a>(status: &'a Value, list: &str) -> &'a [Value] {
    status[list].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn main_exit(status: &Value) -> Option<i64> {
    containers(status, "containerStatuses")
        .iter()
        .find(|container| container["name"] == names::MAIN_CONTAINER)?["state"]["terminated"]["exitCode"]
        .as_i64()
}

fn finished(status: &Value) -> Option<Timestamp> {
    ["initContainerStatuses", "containerStatuses"]
        .into_iter()
        .flat_map(|list| containers(status, list))
        .filter_map(|container| container["state"]["terminated"]["finishedAt"].as_str()?.parse().ok())
        .max()
}

fn reported(pod: &Value) -> Reported {
    pod["metadata"]["annotations"][names::ANNOTATION_OUTPUTS]
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default()
}

fn collect(pod: &Value, reported: &Reported, template: Option<&Template>) -> Collected {
    let declared: Option<Outputs> = pod["metadata"]["annotations"][names::ANNOTATION_TEMPLATE]
        .as_str()
        .and_then(|text| serde_json::from_str::<Template>(text).ok())
        .map(|contract| contract.outputs)
        .or_else(|| template.map(|template| template.outputs.clone()));
    let exit_code = match &reported.exit_code {
        Some(Value::String(code)) => Some(code.clone()),
        Some(Value::Number(code)) => Some(code.to_string()),
        _ => main_exit(&pod["status"]).map(|code| code.to_string()),
    };
    let mut collected = Collected {
        outputs: Outputs {
            artifacts: reported.artifacts.clone(),
            result: reported.result.clone(),
            exit_code,
            ..Outputs::default()
        },
        missing: None,
    };
    for parameter in declared.unwrap_or_default().parameters {
        let written = reported.parameters.iter().find(|other| other.name == parameter.name);
        let value = written
            .and_then(|written| written.value.clone())
            .or_else(|| parameter.value_from.as_ref().and_then(|from| from.default.clone()))
            .or_else(|| parameter.value.clone());
        match (value, parameter.value_from.as_ref().and_then(|from| from.path.clone())) {
            (Some(value), _) => collected.outputs.parameters.push(Parameter {
                name: parameter.name,
                value: Some(value),
                value_from: parameter.value_from,
                global_name: parameter.global_name,
                ..Parameter::default()
            }),
            (None, Some(path)) => collected.missing = collected.missing.or(Some(path)),
            (None, None) => {}
        }
    }
    collected
}

/// Phase and message of a failed pod: the pod's own message, else the first container that failed, in order of
/// init containers, main, the others. Sidecars that were ended by a signal do not count.
fn failure(status: &Value) -> (NodePhase, String) {
    let own = text(&status["message"]);
    if !own.is_empty() {
        return (NodePhase::Failed, own);
    }
    let own_reason = text(&status["reason"]);
    if own_reason == "DeadlineExceeded" {
        return (NodePhase::Failed, "Pod was active on the node longer than the specified deadline".to_owned());
    }
    let mut rest = Vec::new();
    for container in containers(status, "initContainerStatuses").iter().chain(containers(status, "containerStatuses")) {
        let terminated = &container["state"]["terminated"];
        let Some(code) = terminated["exitCode"].as_i64().filter(|code| *code != 0) else { continue };
        let name = text(&container["name"]);
        let reason = Some(text(&terminated["reason"])).filter(|reason| !reason.is_empty());
        let reason = reason.unwrap_or_else(|| "Error".to_owned());
        let mut message = format!("{name}: {reason} (exit code {code})");
        let detail = text(&terminated["message"]);
        if !detail.is_empty() {
            message = format!("{message}: {detail}");
        }
        let init = containers(status, "initContainerStatuses").contains(container);
        match name.as_str() {
            _ if init && name != "init" => return (NodePhase::Failed, message),
            "init" | "wait" => rest.push((NodePhase::Error, message)),
            names::MAIN_CONTAINER => return (NodePhase::Failed, message),
            _ if matches!(code, 137 | 143) => {}
            _ => rest.push((NodePhase::Failed, message)),
        }
    }
    rest.into_iter().next().unwrap_or_else(|| {
        let message = if own_reason.is_empty() { "pod failed without a reason".to_owned() } else { own_reason };
        (NodePhase::Failed, message)
    })
}

/// Why a pod has not started: `<reason>: <message>` of its waiting container or of the scheduler.
fn pending_reason(status: &Value) -> String {
    let join = |reason: &Value, message: &Value| match (text(reason), text(message)) {
        (reason, message) if message.is_empty() => reason,
        (reason, message) => format!("{reason}: {message}"),
    };
    for condition in containers(status, "conditions") {
        if condition["reason"] == "Unschedulable" {
            return join(&condition["reason"], &condition["message"]);
        }
    }
    for container in containers(status, "initContainerStatuses").iter().chain(containers(status, "containerStatuses")) {
        let waiting = &container["state"]["waiting"];
        if !matches!(waiting["reason"].as_str(), None | Some("ContainerCreating" | "PodInitializing")) {
            return join(&waiting["reason"], &waiting["message"]);
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(status: Value, outputs: Value) -> Value {
        let contract = json!({"outputs": {"parameters": [
            {"name": "a", "valueFrom": {"path": "/tmp/a"}},
            {"name": "b", "valueFrom": {"path": "/tmp/b", "default": "fallback"}},
        ]}});
        json!({
            "metadata": {"annotations": {
                names::ANNOTATION_TEMPLATE: contract.to_string(), names::ANNOTATION_OUTPUTS: outputs.to_string(),
            }},
            "status": status,
        })
    }

    fn terminated(name: &str, code: i64) -> Value {
        json!({"name": name, "state": {"terminated": {"exitCode": code, "reason": "Error",
            "finishedAt": "2026-01-02T03:04:05Z"}}})
    }

    #[test]
    fn success_collects_outputs_and_defaults() {
        let status = json!({"phase": "Succeeded", "containerStatuses": [terminated("main", 0)]});
        let got = assess(&pod(status.clone(), json!({"parameters": [{"name": "a", "value": "1"}]})), None);
        assert_eq!(got.phase, NodePhase::Succeeded);
        let outputs = got.outputs.unwrap();
        assert_eq!((outputs.parameter("a"), outputs.parameter("b")), (Some("1"), Some("fallback")));
        assert_eq!(outputs.exit_code.as_deref(), Some("0"));
        assert_eq!(got.finished_at.unwrap().to_string(), "2026-01-02T03:04:05Z");

        let missing = assess(&pod(status, json!({})), None);
        assert_eq!(missing.phase, NodePhase::Error);
        assert!(missing.message.contains("/tmp/a"), "{}", missing.message);
    }

    #[test]
    fn failure_names_the_container() {
        for (status, message) in [
            (json!({"containerStatuses": [terminated("main", 3)]}), "main: Error (exit code 3)"),
            (json!({"initContainerStatuses": [terminated("get", 2)]}), "get: Error (exit code 2)"),
            (
                json!({"containerStatuses": [terminated("side", 137), terminated("main", 1)]}),
                "main: Error (exit code 1)",
            ),
            (json!({"message": "gone", "containerStatuses": [terminated("main", 1)]}), "gone"),
            (json!({"reason": "Evicted"}), "Evicted"),
        ] {
            let mut status = status;
            status["phase"] = json!("Failed");
            let got = assess(&pod(status, json!({})), None);
            assert_eq!((got.phase, got.message.as_str()), (NodePhase::Failed, message));
        }
    }

    #[test]
    fn pending_pods_tell_why() {
        let waiting = json!({"phase": "Pending", "containerStatuses": [
            {"name": "main", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no image"}}}]});
        assert_eq!(assess(&pod(waiting, json!({})), None).message, "ImagePullBackOff: no image");
        let creating =
            json!({"containerStatuses": [{"name": "main", "state": {"waiting": {"reason": "ContainerCreating"}}}]});
        let got = assess(&pod(creating, json!({})), None);
        assert_eq!((got.phase, got.message.as_str()), (NodePhase::Pending, ""));
    }
}
