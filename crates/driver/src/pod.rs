//! The patch that turns the compiled template's pod into this task's pod: launcher, image, environment, resources.

use std::collections::BTreeMap;

use kfp_core::mlmd::is_truthy_workspace;
use kfp_core::{ir, objects};
use kfp_proto::ml_pipelines::ExecutorInput;
use kfp_proto::ml_pipelines::pipeline_deployment_config::pipeline_container_spec::ResourceSpec;
use kfp_proto::ml_pipelines::task_config_passthrough_type::TaskConfigPassthroughTypeEnum as Field;
use prost_types::value::Kind;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::placeholders::Known;
use crate::request::{Container, Request};
use crate::resolve::{WORKSPACE_PATH, WORKSPACE_PLACEHOLDER};

/// Where the init container of the template puts the launcher.
const LAUNCHER: &str = "/kfp-launcher/launch";
/// Volume and claim suffix of a run's workspace.
const WORKSPACE_VOLUME: &str = "kfp-workspace";

/// A pod under construction. Lists are Kubernetes JSON.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pod {
    pub(crate) image: String,
    pub(crate) command: Vec<String>,
    pub(crate) args: Vec<String>,
    pub(crate) main: Scope,
    pub(crate) security: Map<String, Value>,
    pub(crate) image_pull_policy: Option<String>,
    pub(crate) sidecars: Vec<Value>,
    pub(crate) init_containers: Vec<Value>,
    pub(crate) image_pull_secrets: Vec<Value>,
    pub(crate) active_deadline_seconds: Option<i64>,
    pub(crate) host_users: Option<bool>,
    pub(crate) share_process_namespace: bool,
    /// What `dsl.TaskConfig` inputs receive.
    pub(crate) task_config: Scope,
    routes: Routes,
}

/// Settings that may go to the pod, to a `dsl.TaskConfig` input, or both.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Scope {
    pub(crate) env: Vec<Value>,
    pub(crate) volumes: Vec<Value>,
    pub(crate) volume_mounts: Vec<Value>,
    pub(crate) resources: Map<String, Value>,
    pub(crate) affinity: Map<String, Value>,
    pub(crate) tolerations: Option<Vec<Value>>,
    pub(crate) node_selector: Option<Value>,
}

/// For each class of settings: does it go to the task config, does it go to the pod.
#[derive(Clone, Debug, Default)]
struct Routes(BTreeMap<i32, (bool, bool)>);

impl Routes {
    fn of(request: &Request) -> Self {
        let listed = request.component.task_config_passthroughs.iter();
        Self(listed.map(|entry| (entry.field, (true, entry.apply_to_task))).collect())
    }

    fn of_field(&self, field: Field) -> (bool, bool) {
        self.0.get(&(field as i32)).copied().unwrap_or((false, true))
    }
}

impl Pod {
    /// Applies `change` to the places where settings of class `field` belong.
    pub(crate) fn route(&mut self, field: Field, change: impl Fn(&mut Scope)) {
        let (config, pod) = self.routes.of_field(field);
        if config {
            change(&mut self.task_config);
        }
        if pod {
            change(&mut self.main);
        }
    }

    /// Adds a volume and its mount; the same volume is added once however often it is mounted.
    pub(crate) fn add_volume(&mut self, field: Option<Field>, volume: &Value, mount: &Value) {
        let add = |scope: &mut Scope| {
            if !scope.volumes.contains(volume) {
                scope.volumes.push(volume.clone());
            }
            scope.volume_mounts.push(mount.clone());
        };
        match field {
            Some(field) => self.route(field, add),
            None => add(&mut self.main),
        }
    }

    /// The patch as JSON of a `PodSpec`.
    pub(crate) fn to_json(&self) -> Value {
        let mut main = Map::new();
        let mut set = |key: &str, value: Value| {
            let empty = match &value {
                Value::Null => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty() && key != "resources",
                Value::String(text) => text.is_empty(),
                _ => false,
            };
            if !empty {
                main.insert(key.to_owned(), value);
            }
        };
        set("name", json!("main"));
        set("image", json!(self.image));
        set("command", json!(self.command));
        set("args", json!(self.args));
        set("env", json!(self.main.env));
        set("resources", json!(self.main.resources));
        set("volumeMounts", json!(self.main.volume_mounts));
        set("imagePullPolicy", json!(self.image_pull_policy));
        set("securityContext", json!(self.security));
        let mut containers = vec![Value::Object(main)];
        containers.extend(self.sidecars.iter().cloned());
        let mut spec = Map::new();
        spec.insert("containers".to_owned(), Value::Array(containers));
        let optional = [
            ("initContainers", json!(self.init_containers)),
            ("volumes", json!(self.main.volumes)),
            ("nodeSelector", json!(self.main.node_selector)),
            ("tolerations", json!(self.main.tolerations)),
            ("affinity", json!(self.main.affinity)),
            ("imagePullSecrets", json!(self.image_pull_secrets)),
            ("activeDeadlineSeconds", json!(self.active_deadline_seconds)),
            ("hostUsers", json!(self.host_users)),
            ("shareProcessNamespace", if self.share_process_namespace { json!(true) } else { Value::Null }),
        ];
        for (key, value) in optional {
            let empty = value.is_null()
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty);
            if !empty {
                spec.insert(key.to_owned(), value);
            }
        }
        Value::Object(spec)
    }

    /// The value of `dsl.TaskConfig` inputs: all keys present, null where nothing is set.
    pub(crate) fn task_config_json(&self) -> Value {
        let config = &self.task_config;
        let list = |items: &[Value]| if items.is_empty() { Value::Null } else { json!(items) };
        json!({
            "affinity": if config.affinity.is_empty() { Value::Null } else { json!(config.affinity) },
            "tolerations": list(config.tolerations.as_deref().unwrap_or_default()),
            "nodeSelector": config.node_selector,
            "env": list(&config.env),
            "volumes": list(&config.volumes),
            "volumeMounts": list(&config.volume_mounts),
            "resources": config.resources,
        })
    }
}

/// The launcher's command line; the user's follows as arguments.
pub(crate) fn launcher(request: &Request, container: &Container, execution: i64, input: &ExecutorInput) -> Vec<String> {
    let to = &container.launcher;
    let input = ir::encode_text(input);
    let component = ir::encode_text(&request.component);
    let execution = execution.to_string();
    let mut line: Vec<String> = [
        LAUNCHER,
        "--executor_type",
        "container",
        "--pipeline_name",
        &request.run.pipeline_name,
        "--run_id",
        &request.run.id,
        "--execution_id",
        &execution,
        "--executor_input",
        &input,
        "--component_spec",
        &component,
        "--pod_name",
        "$(KFP_POD_NAME)",
        "--pod_uid",
        "$(KFP_POD_UID)",
        "--ml_pipeline_server_address",
        &to.ml_pipeline_server_address,
        "--ml_pipeline_server_port",
        &to.ml_pipeline_server_port,
        "--mlmd_server_address",
        &to.mlmd_server_address,
        "--mlmd_server_port",
        &to.mlmd_server_port,
        "--publish_logs",
        &to.publish_logs,
    ]
    .map(str::to_owned)
    .to_vec();
    line.push(format!("--ml_pipeline_tls_enabled={}", to.ml_pipeline_tls_enabled));
    line.push(format!("--metadata_tls_enabled={}", to.metadata_tls_enabled));
    line.extend(["--ca_cert_path".to_owned(), to.ca_cert_path.clone()]);
    line.push(format!("--cache_disabled={}", container.cache_disabled));
    line.extend(["--log_level".to_owned(), to.log_level.clone(), "--".to_owned()]);
    line
}

/// The pod of a task, before Kubernetes settings.
///
/// # Errors
/// When a placeholder in image or resources has no value, a quantity is malformed, or a workspace is needed by a run
/// without a name.
pub(crate) fn build(
    request: &Request,
    container: &Container,
    execution: i64,
    input: &ExecutorInput,
) -> Result<Pod, Error> {
    let known = Known::new(input);
    let spec = &container.spec;
    let mut pod = Pod {
        image: known.setting(&spec.image).map_err(Error::Pod)?,
        command: launcher(request, container, execution, input),
        args: known.command_line(&[spec.command.clone(), spec.args.clone()].concat()).map_err(Error::Pod)?,
        routes: Routes::of(request),
        ..Default::default()
    };
    let env: Vec<_> = spec.env.iter().map(|var| env_var(&var.name, &var.value)).chain(proxies(container)).collect();
    pod.route(Field::Env, |scope| scope.env.extend(env.iter().cloned()));
    let resources = resources(spec.resources.as_ref(), known)?;
    pod.route(Field::Resources, |scope| scope.resources = resources.clone());
    add_model_images(&mut pod, input);
    if needs_workspace(input) {
        let claim = workspace_claim(request)?;
        let volume = json!({"name": WORKSPACE_VOLUME, "persistentVolumeClaim": {"claimName": claim}});
        let mount = json!({"name": WORKSPACE_VOLUME, "mountPath": WORKSPACE_PATH});
        pod.add_volume(Some(Field::KubernetesVolumes), &volume, &mount);
    }
    Ok(pod)
}

/// Fails when a mount of the user lies in the workspace or is called like it.
pub(crate) fn check_workspace_conflicts(pod: &Pod, input: &ExecutorInput) -> Result<(), Error> {
    if !needs_workspace(input) {
        return Ok(());
    }
    for mount in &pod.main.volume_mounts {
        let (name, path) =
            (mount["name"].as_str().unwrap_or_default(), mount["mountPath"].as_str().unwrap_or_default());
        let within =
            path == WORKSPACE_PATH || path.strip_prefix(WORKSPACE_PATH).is_some_and(|rest| rest.starts_with('/'));
        let ours = name == WORKSPACE_VOLUME && path == WORKSPACE_PATH;
        if !ours && (within || name == WORKSPACE_VOLUME) {
            return Err(Error::Pod(format!(
                "failed to validate volume mounts: user volume mount {name} at {path} conflicts with workspace mount at {WORKSPACE_PATH}"
            )));
        }
    }
    Ok(())
}

pub(crate) fn env_var(name: &str, value: &str) -> Value {
    if value.is_empty() { json!({"name": name}) } else { json!({"name": name, "value": value}) }
}

fn proxies(container: &Container) -> Vec<Value> {
    let proxies = &container.proxies;
    [("http_proxy", &proxies.http), ("https_proxy", &proxies.https), ("no_proxy", &proxies.none)]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .flat_map(|(name, value)| [env_var(name, value), env_var(&name.to_uppercase(), value)])
        .collect()
}

/// Limits and requests. Newer text fields win over older numbers.
#[allow(deprecated)]
fn resources(spec: Option<&ResourceSpec>, known: Known<'_>) -> Result<Map<String, Value>, Error> {
    let Some(spec) = spec else { return Ok(Map::new()) };
    let quantity = |text: &str, number: f64, unit: &str| -> Result<Option<String>, Error> {
        let resolved = if !text.is_empty() {
            known.setting(text).map_err(Error::Pod)?
        } else if number != 0.0 {
            format!("{number}{unit}")
        } else {
            return Ok(None);
        };
        check_quantity(&resolved).map_err(Error::Pod)?;
        Ok(Some(resolved))
    };
    let (mut limits, mut requests) = (Map::new(), Map::new());
    let wanted = [
        (&mut limits, "memory", quantity(&spec.resource_memory_limit, spec.memory_limit, "G")?),
        (&mut requests, "memory", quantity(&spec.resource_memory_request, spec.memory_request, "G")?),
    ];
    for (target, name, value) in wanted {
        target.extend(value.map(|value| (name.to_owned(), json!(value))));
    }
    limits.extend(quantity(&spec.resource_cpu_limit, spec.cpu_limit, "")?.map(|v| ("cpu".to_owned(), json!(v))));
    requests.extend(quantity(&spec.resource_cpu_request, spec.cpu_request, "")?.map(|v| ("cpu".to_owned(), json!(v))));
    if let Some(accelerator) = &spec.accelerator {
        let kind = match accelerator.resource_type.as_str() {
            "" => accelerator.r#type.clone(),
            text => known.setting(text).map_err(Error::Pod)?,
        };
        let count = match accelerator.resource_count.as_str() {
            "" if accelerator.count > 0 => accelerator.count.to_string(),
            "" => String::new(),
            text => known.setting(text).map_err(Error::Pod)?,
        };
        if !kind.is_empty() && !count.is_empty() {
            check_quantity(&count).map_err(Error::Pod)?;
            limits.insert(kind, json!(count));
        }
    }
    let mut resources = Map::new();
    for (name, list) in [("limits", limits), ("requests", requests)] {
        if !list.is_empty() {
            resources.insert(name.to_owned(), Value::Object(list));
        }
    }
    Ok(resources)
}

/// Whether the text is a Kubernetes quantity: a decimal number with an optional SI, binary or exponent suffix.
pub(crate) fn check_quantity(text: &str) -> Result<(), String> {
    let wrong = || format!("{text:?} is not a quantity such as 500m, 2 or 1.5Gi");
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let digits = unsigned.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(digits);
    let number_fits = number.matches('.').count() <= 1 && number.contains(|c: char| c.is_ascii_digit());
    let exponent = |text: &str| {
        let text = text.strip_prefix(['+', '-']).unwrap_or(text);
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
    };
    let suffix_fits = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"]
        .contains(&suffix)
        || suffix.strip_prefix(['e', 'E']).is_some_and(exponent);
    if number_fits && suffix_fits { Ok(()) } else { Err(wrong()) }
}

/// Whether the task uses the run's workspace: an input mentions its path, or an artifact lies in it.
pub(crate) fn needs_workspace(input: &ExecutorInput) -> bool {
    let Some(inputs) = &input.inputs else { return false };
    let mentions = |text: &String| text.contains(WORKSPACE_PATH) || text.contains(WORKSPACE_PLACEHOLDER);
    inputs.parameter_values.values().any(|v| matches!(&v.kind, Some(Kind::StringValue(text)) if mentions(text)))
        || inputs.artifacts.values().flat_map(|l| &l.artifacts).any(|a| is_truthy_workspace(a.metadata.as_ref()))
}

/// Name of the workspace's claim.
pub(crate) fn workspace_claim(request: &Request) -> Result<String, Error> {
    if request.run.name.is_empty() {
        return Err(Error::Pod("run name is required when workspace is used".to_owned()));
    }
    Ok(format!("{}-{WORKSPACE_VOLUME}", request.run.name))
}

/// Sidecars that make the content of `oci://` artifacts visible to the task.
fn add_model_images(pod: &mut Pod, input: &ExecutorInput) {
    let lists = input.inputs.iter().flat_map(|inputs| &inputs.artifacts);
    let mut images: Vec<(String, String)> = lists
        .flat_map(|(name, list)| {
            list.artifacts.iter().enumerate().map(move |(i, a)| (format!("{name}-{i}"), a.uri.clone()))
        })
        .filter(|(_, uri)| uri.starts_with("oci://"))
        .collect();
    images.sort();
    let env = pod.main.env.clone();
    for (i, (_, uri)) in images.iter().enumerate() {
        let Some(local) = objects::local_path(uri) else { continue };
        let image = uri.trim_start_matches("oci://");
        let local = local.to_string_lossy().into_owned();
        let mount_path = local.trim_end_matches("/models");
        let volume = format!("oci-{i}");
        let mount = json!({"name": volume, "mountPath": mount_path, "subPath": mount_path.trim_start_matches("/oci/")});
        let security = json!({
            "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        });
        // In a command, Kubernetes reads `$$` as one dollar sign.
        let check = format!(
            "[ -d /models ] && [ \"$$(ls -A /models)\" ] || {{ echo \"{image} has no /models directory, or an empty one\" >&2; exit 1; }}"
        );
        let serve = format!(
            "ln -s /proc/$$$$/root/models \"{local}\" && until [ -f \"{mount_path}/launcher-complete\" ]; do sleep 1; done"
        );
        pod.share_process_namespace = true;
        pod.init_containers.push(json!({
            "name": format!("oci-prepull-{i}"), "image": image, "command": ["sh", "-c", check], "env": env,
            "securityContext": security, "terminationMessagePolicy": "FallbackToLogsOnError", "resources": {},
        }));
        pod.main.volumes.push(json!({"name": volume, "emptyDir": {}}));
        pod.main.volume_mounts.push(mount.clone());
        pod.sidecars.push(json!({
            "name": volume, "image": image, "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", serve], "env": env,
            "volumeMounts": [mount], "securityContext": security, "resources": {},
            "terminationMessagePolicy": "FallbackToLogsOnError",
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Launcher, Proxies, RunInfo, Work};
    use kfp_core::ir::Unknown;
    use prost::{Message, Name};

    fn decode<T: Message + Name + Default>(json: Value) -> T {
        ir::decode(&json, Unknown::Reject).unwrap()
    }

    fn request(component: Value) -> Request {
        let run = RunInfo { pipeline_name: "p".into(), id: "r".into(), name: "wf".into(), ..Default::default() };
        Request { run, component: decode(component), work: Work::Container(Box::default()) }
    }

    fn container(spec: Value) -> Container {
        Container {
            spec: decode(spec),
            launcher: Launcher {
                ml_pipeline_server_address: "api".into(),
                ml_pipeline_server_port: "8887".into(),
                mlmd_server_address: "mlmd".into(),
                mlmd_server_port: "8080".into(),
                log_level: "1".into(),
                publish_logs: "true".into(),
                ..Default::default()
            },
            ..Default::default()
        }
    }

    #[test]
    fn quantities() {
        for good in ["1", "0.5", "500m", "1.5Gi", "2G", "1e3", "1E-3", "+1", ".5", "5.", "10E"] {
            assert_eq!(check_quantity(good), Ok(()), "{good}");
        }
        for bad in ["", "G", "1 G", "1GB", "one", "1..2", "1e", "--1", "1ki", "."] {
            assert!(check_quantity(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn patch_runs_the_users_command_under_the_launcher() {
        let input: ExecutorInput = decode(json!({"inputs": {"parameterValues": {"n": 5, "img": "app:2"}},
            "outputs": {"outputFile": "/minio/x"}}));
        let mut container = container(json!({
            "image": "{{$.inputs.parameters['img']}}",
            "command": ["python3", "{{$.inputs.parameters['n']}}"], "args": ["--executor_input", "{{$}}"],
            "env": [{"name": "A", "value": "1"}],
            "resources": {"resourceCpuLimit": "2", "cpuLimit": 9.0, "memoryRequest": 0.5,
                "accelerator": {"resourceType": "nvidia.com/gpu", "resourceCount": "1"}}}));
        container.proxies = Proxies { http: "http://proxy".into(), ..Default::default() };
        let patch = build(&request(json!({"executorLabel": "e"})), &container, 12, &input).unwrap().to_json();
        let main = &patch["containers"][0];
        assert_eq!(main["image"], "app:2");
        assert_eq!(main["args"], json!(["python3", "5", "--executor_input", "{{$}}"]));
        assert_eq!(
            main["env"],
            json!([{"name": "A", "value": "1"}, {"name": "http_proxy", "value": "http://proxy"},
            {"name": "HTTP_PROXY", "value": "http://proxy"}])
        );
        assert_eq!(
            main["resources"],
            json!({"limits": {"cpu": "2", "nvidia.com/gpu": "1"}, "requests": {"memory": "0.5G"}})
        );
        assert_eq!(
            main["command"],
            json!([
                "/kfp-launcher/launch",
                "--executor_type",
                "container",
                "--pipeline_name",
                "p",
                "--run_id",
                "r",
                "--execution_id",
                "12",
                "--executor_input",
                "{\"inputs\":{\"parameterValues\":{\"img\":\"app:2\",\"n\":5}},\"outputs\":{\"outputFile\":\"/minio/x\"}}",
                "--component_spec",
                "{\"executorLabel\":\"e\"}",
                "--pod_name",
                "$(KFP_POD_NAME)",
                "--pod_uid",
                "$(KFP_POD_UID)",
                "--ml_pipeline_server_address",
                "api",
                "--ml_pipeline_server_port",
                "8887",
                "--mlmd_server_address",
                "mlmd",
                "--mlmd_server_port",
                "8080",
                "--publish_logs",
                "true",
                "--ml_pipeline_tls_enabled=false",
                "--metadata_tls_enabled=false",
                "--ca_cert_path",
                "",
                "--cache_disabled=false",
                "--log_level",
                "1",
                "--"
            ])
        );
        assert_eq!(patch.as_object().unwrap().len(), 1);
    }

    #[test]
    fn a_bad_quantity_is_named() {
        let container = container(json!({"image": "i", "resources": {"resourceMemoryLimit": "lots"}}));
        let error = build(&request(json!({})), &container, 1, &ExecutorInput::default()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "failed to init podSpecPatch: \"lots\" is not a quantity such as 500m, 2 or 1.5Gi"
        );
    }

    #[test]
    fn passthrough_decides_where_settings_go() {
        let component = json!({"taskConfigPassthroughs": [
            {"field": "RESOURCES"}, {"field": "ENV", "applyToTask": true}]});
        let container = container(json!({"image": "i", "env": [{"name": "A", "value": "1"}],
            "resources": {"resourceCpuLimit": "1"}}));
        let pod = build(&request(component), &container, 1, &ExecutorInput::default()).unwrap();
        assert_eq!(pod.to_json()["containers"][0]["resources"], json!({}));
        assert_eq!(pod.to_json()["containers"][0]["env"], json!([{"name": "A", "value": "1"}]));
        assert_eq!(
            pod.task_config_json(),
            json!({
            "affinity": null, "tolerations": null, "nodeSelector": null, "env": [{"name": "A", "value": "1"}],
            "volumes": null, "volumeMounts": null, "resources": {"limits": {"cpu": "1"}}})
        );
    }

    #[test]
    fn workspace_is_mounted_where_it_is_used() {
        let input: ExecutorInput = decode(json!({"inputs": {"parameterValues": {"p": "/kfp-workspace/a"}}}));
        let mut pod = build(&request(json!({})), &container(json!({"image": "i"})), 1, &input).unwrap();
        let patch = pod.to_json();
        assert_eq!(
            patch["volumes"],
            json!([{"name": "kfp-workspace",
            "persistentVolumeClaim": {"claimName": "wf-kfp-workspace"}}])
        );
        check_workspace_conflicts(&pod, &input).unwrap();
        pod.main.volume_mounts.push(json!({"name": "other", "mountPath": "/kfp-workspace/x"}));
        assert!(check_workspace_conflicts(&pod, &input).unwrap_err().to_string().contains("conflicts with workspace"));
        let artifact: ExecutorInput = decode(json!({"inputs": {"artifacts": {"a": {"artifacts": [
            {"name": "1"}, {"name": "2", "metadata": {"_kfp_workspace": true}}]}}}}));
        assert!(needs_workspace(&artifact));
        assert!(!needs_workspace(&ExecutorInput::default()));
    }

    #[test]
    fn model_images_become_sidecars() {
        let input: ExecutorInput = decode(json!({"inputs": {"artifacts": {"model": {"artifacts": [
            {"name": "1", "uri": "oci://registry/model:1"}]}}}}));
        let patch = build(&request(json!({})), &container(json!({"image": "i"})), 1, &input).unwrap().to_json();
        assert_eq!(patch["shareProcessNamespace"], true);
        assert_eq!(patch["containers"][1]["image"], "registry/model:1");
        assert_eq!(
            patch["containers"][0]["volumeMounts"],
            json!([
            {"name": "oci-0", "mountPath": "/oci/registry_model:1", "subPath": "registry_model:1"}])
        );
        assert_eq!(patch["initContainers"][0]["name"], "oci-prepull-0");
    }
}
