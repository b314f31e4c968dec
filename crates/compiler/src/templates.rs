//! The templates every pipeline shares: drivers, executors and importers.

use kfp_proto::kfp_kubernetes::PodMetadata;
use serde_json::{Value, json};

use crate::{Options, options::CaSource};

/// Name of the claim and volume of a pipeline's workspace.
pub const WORKSPACE: &str = "kfp-workspace";
const CA_PATH: &str = "/kfp/certs/ca.crt";
const PLACEHOLDER_IMAGE: &str = "gcr.io/ml-pipeline/should-be-overridden-during-runtime";

/// `{{inputs.parameters.NAME}}`.
pub fn input(name: &str) -> String {
    format!("{{{{inputs.parameters.{name}}}}}")
}

/// `{{tasks.TASK.outputs.parameters.NAME}}`.
pub fn task_output(task: &str, name: &str) -> String {
    format!("{{{{tasks.{task}.outputs.parameters.{name}}}}}")
}

/// An object of values that are moved, where `json!` would copy them.
pub fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let mut out = serde_json::Map::new();
    for (key, value) in fields {
        out.insert(key.to_owned(), value);
    }
    Value::Object(out)
}

/// `{"parameters": ..}`.
pub fn parameters(list: Vec<Value>) -> Value {
    object([("parameters", Value::Array(list))])
}

/// A parameter without value.
pub fn declared(name: &str) -> Value {
    object([("name", name.into())])
}

/// A parameter with a default.
pub fn defaulted(name: &str, default: &str) -> Value {
    object([("name", name.into()), ("default", default.into())])
}

/// A parameter with a value.
pub fn given(name: &str, value: impl Into<String>) -> Value {
    object([("name", name.into()), ("value", Value::String(value.into()))])
}

/// What the shared templates need besides the options.
pub struct Shared<'a> {
    /// The options.
    pub options: &'a Options,
    /// Full name of the pipeline.
    pub pipeline: &'a str,
    /// Display name of the run, possibly empty.
    pub display_name: &'a str,
}

fn output_path(name: &str) -> String {
    format!("{{{{outputs.parameters.{name}.path}}}}")
}

fn output(name: &str, default: Option<&str>) -> Value {
    let mut from = json!({"path": format!("/tmp/outputs/{name}")});
    if let Some(default) = default {
        from["default"] = default.into();
    }
    json!({"name": name, "valueFrom": from})
}

fn system_context() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": true,
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

fn system_pod_context() -> Value {
    json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}})
}

fn driver_resources() -> Value {
    json!({"limits": {"cpu": "500m", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}})
}

fn pod_env() -> Vec<Value> {
    [("KFP_POD_NAME", "metadata.name"), ("KFP_POD_UID", "metadata.uid")]
        .map(|(name, path)| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}))
        .into()
}

fn metadata_env_from() -> Value {
    json!([{"configMapRef": {"name": "metadata-grpc-configmap", "optional": true}}])
}

fn strings(texts: &[&str]) -> Vec<Value> {
    texts.iter().map(|text| Value::from(*text)).collect()
}

fn push(list: &mut Value, item: Value) {
    match list {
        Value::Array(items) => items.push(item),
        _ => *list = json!([item]),
    }
}

impl Shared<'_> {
    fn ca_path(&self) -> &'static str {
        if self.options.ca_bundle.is_some() { CA_PATH } else { "" }
    }

    /// Appends the volume with custom certificates and its mount in the main container.
    fn mount_ca(&self, template: &mut Value) {
        let Some(bundle) = &self.options.ca_bundle else { return };
        let items = json!([{"key": bundle.key, "path": "ca.crt"}]);
        let volume = match &bundle.source {
            CaSource::Secret(name) => json!({"name": "custom-ca", "secret": {"secretName": name, "items": items}}),
            CaSource::ConfigMap(name) => json!({"name": "custom-ca", "configMap": {"name": name, "items": items}}),
        };
        push(&mut template["volumes"], volume);
        push(&mut template["container"]["volumeMounts"], json!({"name": "custom-ca", "mountPath": "/kfp/certs"}));
    }

    fn run_flags(&self, kind: &str) -> Vec<Value> {
        strings(&[
            "--type",
            kind,
            "--pipeline_name",
            self.pipeline,
            "--run_id",
            "{{workflow.uid}}",
            "--run_name",
            "{{workflow.name}}",
            "--run_display_name",
            self.display_name,
            "--pipeline_job_create_time_utc",
            "{{workflow.creationTimestamp}}",
            "--dag_execution_id",
            &input("parent-dag-id"),
            "--component",
            &input("component"),
            "--task",
            &input("task"),
            "--task_name",
            &input("task-name"),
        ])
    }

    fn service_flags(&self) -> Vec<Value> {
        let o = self.options;
        strings(&[
            "--http_proxy",
            &o.proxy.http,
            "--https_proxy",
            &o.proxy.https,
            "--no_proxy",
            &o.proxy.no,
            "--ml_pipeline_server_address",
            &o.ml_pipeline_host(),
            "--ml_pipeline_server_port",
            &o.ml_pipeline_port.to_string(),
            "--mlmd_server_address",
            &o.mlmd_host(),
            "--mlmd_server_port",
            &o.mlmd_port.to_string(),
            &format!("--cache_disabled={}", o.cache_disabled),
            "--log_level",
            &o.log_level,
            "--publish_logs",
            &o.publish_logs,
            &format!("--ml_pipeline_tls_enabled={}", o.ml_pipeline_tls),
            &format!("--metadata_tls_enabled={}", o.metadata_tls),
            "--ca_cert_path",
            self.ca_path(),
        ])
    }

    fn security_flags(&self) -> Vec<Value> {
        let s = &self.options.security;
        [
            ("--default_run_as_user", s.run_as_user.map(|id| id.to_string())),
            ("--default_run_as_group", s.run_as_group.map(|id| id.to_string())),
            ("--default_run_as_non_root", s.run_as_non_root.map(|flag| flag.to_string())),
            ("--default_host_users", s.host_users.map(|flag| flag.to_string())),
        ]
        .into_iter()
        .filter_map(|(flag, value)| value.map(|value| [Value::from(flag), Value::from(value)]))
        .flatten()
        .collect()
    }

    fn proxy_env(&self) -> Vec<Value> {
        let proxy = &self.options.proxy;
        [("http_proxy", &proxy.http), ("https_proxy", &proxy.https), ("no_proxy", &proxy.no)]
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .flat_map(|(name, value)| [given(name, value), given(&name.to_uppercase(), value)])
            .collect()
    }

    fn driver(&self, name: &str, inputs: Value, outputs: Value, args: Vec<Value>, env: Vec<Value>) -> Value {
        let o = self.options;
        let mut annotations = json!({"pipelines.kubeflow.org/runtime-role": "driver"});
        for (key, value) in &o.driver_annotations {
            if annotations.get(key).is_none() {
                annotations[key] = value.as_str().into();
            }
        }
        let mut template = json!({
            "name": name,
            "inputs": {"parameters": inputs},
            "outputs": {"parameters": outputs},
            "metadata": {"annotations": annotations},
            "securityContext": system_pod_context(),
            "container": {
                "name": "",
                "image": o.driver_image,
                "command": o.driver_command,
                "args": args,
                "resources": driver_resources(),
                "securityContext": system_context(),
            },
        });
        if !env.is_empty() {
            template["container"]["env"] = env.into();
        }
        if !o.driver_labels.is_empty() {
            template["metadata"]["labels"] = json!(o.driver_labels);
        }
        self.mount_ca(&mut template);
        template
    }

    /// `system-container-driver`: decides about a container task (cached, skipped, its pod's patch).
    pub fn container_driver(&self, name: &str) -> Value {
        let inputs = json!([
            declared("component"),
            declared("task"),
            declared("container"),
            declared("task-name"),
            declared("parent-dag-id"),
            defaulted("iteration-index", "-1"),
            defaulted("kubernetes-config", ""),
        ]);
        let mut cached = output("cached-decision", Some("false"));
        cached["default"] = "false".into();
        let outputs = json!([output("pod-spec-patch", Some("")), cached, output("condition", Some("true"))]);
        let mut args = self.run_flags("CONTAINER");
        args.extend(strings(&[
            "--container",
            &input("container"),
            "--iteration_index",
            &input("iteration-index"),
            "--cached_decision_path",
            &output_path("cached-decision"),
            "--pod_spec_patch_path",
            &output_path("pod-spec-patch"),
            "--condition_path",
            &output_path("condition"),
            "--kubernetes_config",
            &input("kubernetes-config"),
        ]));
        args.extend(self.service_flags());
        args.extend(self.security_flags());
        let mut env = self.proxy_env();
        env.extend(pod_env());
        self.driver(name, inputs, outputs, args, env)
    }

    /// `system-dag-driver`: opens a DAG's execution, counts iterations, evaluates its condition.
    pub fn dag_driver(&self, name: &str) -> Value {
        let inputs = json!([
            declared("component"),
            defaulted("runtime-config", ""),
            defaulted("task", ""),
            defaulted("task-name", ""),
            defaulted("parent-dag-id", "0"),
            defaulted("iteration-index", "-1"),
            defaulted("driver-type", "DAG"),
        ]);
        let outputs = json!([
            output("execution-id", None),
            output("iteration-count", Some("0")),
            output("condition", Some("true"))
        ]);
        let mut args = self.run_flags(&input("driver-type"));
        args.extend(strings(&[
            "--runtime_config",
            &input("runtime-config"),
            "--iteration_index",
            &input("iteration-index"),
            "--execution_id_path",
            &output_path("execution-id"),
            "--iteration_count_path",
            &output_path("iteration-count"),
            "--condition_path",
            &output_path("condition"),
        ]));
        args.extend(self.service_flags());
        self.driver(name, inputs, outputs, args, self.proxy_env())
    }

    /// `system-importer`, with the workspace mounted if `workspace`.
    pub fn importer(&self, name: &str, workspace: bool) -> Value {
        let o = self.options;
        let args = strings(&[
            "--executor_type",
            "importer",
            "--task_spec",
            &input("task"),
            "--component_spec",
            &input("component"),
            "--importer_spec",
            &input("importer"),
            "--pipeline_name",
            self.pipeline,
            "--run_id",
            "{{workflow.uid}}",
            "--parent_dag_id",
            &input("parent-dag-id"),
            "--pod_name",
            "$(KFP_POD_NAME)",
            "--pod_uid",
            "$(KFP_POD_UID)",
            "--mlmd_server_address",
            &o.mlmd_host(),
            "--mlmd_server_port",
            &o.mlmd_port.to_string(),
            &format!("--cache_disabled={}", o.cache_disabled),
            &format!("--ml_pipeline_tls_enabled={}", o.ml_pipeline_tls),
            &format!("--metadata_tls_enabled={}", o.metadata_tls),
            "--ca_cert_path",
            self.ca_path(),
            "--log_level",
            &o.log_level,
            "--publish_logs",
            &o.publish_logs,
        ]);
        let mut template = json!({
            "name": name,
            "inputs": {"parameters": [declared("task"), declared("component"), declared("importer"), declared("parent-dag-id")]},
            "outputs": {},
            "metadata": {"annotations": {"pipelines.kubeflow.org/runtime-role": "launcher"}},
            "securityContext": system_pod_context(),
            "container": {
                "name": "",
                "image": o.launcher_image,
                "command": o.launcher_command,
                "args": args,
                "envFrom": metadata_env_from(),
                "env": pod_env(),
                "resources": driver_resources(),
                "securityContext": system_context(),
            },
        });
        if workspace {
            let claim = format!("{{{{workflow.name}}}}-{WORKSPACE}");
            template["volumes"] = json!([{"name": WORKSPACE, "persistentVolumeClaim": {"claimName": claim}}]);
            template["container"]["volumeMounts"] = json!([{"name": WORKSPACE, "mountPath": format!("/{WORKSPACE}")}]);
        }
        self.mount_ca(&mut template);
        template
    }

    /// The DAG around an executor that skips it when the driver found a cached result.
    pub fn executor(&self, shape: &Shape) -> Value {
        let mut inputs = vec![declared("pod-spec-patch"), defaulted("cached-decision", "false")];
        let mut arguments = vec![given("pod-spec-patch", input("pod-spec-patch"))];
        for name in shape.metadata_parameters() {
            inputs.push(declared(&name));
            arguments.push(given(&name, input(&name)));
        }
        if shape.retry {
            for name in RETRY_PARAMETERS {
                inputs.push(defaulted(name, "0"));
                arguments.push(given(name, input(name)));
            }
        }
        json!({
            "name": shape.executor(),
            "inputs": {"parameters": inputs},
            "outputs": {},
            "metadata": {},
            "dag": {"tasks": [{
                "name": "executor",
                "template": shape.implementation(),
                "arguments": {"parameters": arguments},
                "when": format!("{} != true", input("cached-decision")),
            }]},
        })
    }

    /// The pod of a container task; the driver's patch brings the user's image and command.
    pub fn implementation(&self, shape: &Shape) -> Value {
        let o = self.options;
        let scratch = [
            ("kfp-launcher", "/kfp-launcher"),
            ("gcs-scratch", "/gcs"),
            ("s3-scratch", "/s3"),
            ("minio-scratch", "/minio"),
            ("dot-local-scratch", "/.local"),
            ("dot-cache-scratch", "/.cache"),
            ("dot-config-scratch", "/.config"),
        ];
        let mut inputs = vec![declared("pod-spec-patch")];
        inputs.extend(shape.metadata_parameters().iter().map(|name| declared(name)));
        let mut env = pod_env();
        if shape.retry {
            inputs.extend(RETRY_PARAMETERS.map(declared));
            env.push(given("KFP_RETRY_INDEX", "{{retries}}"));
        }
        let mut user_context = system_context();
        if let Some(context) = user_context.as_object_mut() {
            context.remove("runAsNonRoot");
            let s = &o.security;
            context.extend(s.run_as_user.map(|id| ("runAsUser".to_owned(), id.into())));
            context.extend(s.run_as_group.map(|id| ("runAsGroup".to_owned(), id.into())));
            context.extend(s.run_as_non_root.map(|flag| ("runAsNonRoot".to_owned(), flag.into())));
        }
        let mut template = json!({
            "name": shape.implementation(),
            "inputs": {"parameters": inputs},
            "outputs": {},
            "metadata": shape.metadata(),
            "podSpecPatch": input("pod-spec-patch"),
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": scratch.map(|(name, _)| json!({"name": name, "emptyDir": {}})),
            "initContainers": [{
                "name": "kfp-launcher",
                "image": o.launcher_image,
                "command": o.launcher_command,
                "args": ["--copy", "/kfp-launcher/launch"],
                "resources": {"limits": {"cpu": "500m", "memory": "256Mi"}, "requests": {"cpu": "100m"}},
                "securityContext": system_context(),
                "volumeMounts": [{"name": "kfp-launcher", "mountPath": "/kfp-launcher"}],
            }],
            "container": {
                "name": "",
                "image": PLACEHOLDER_IMAGE,
                "command": ["should-be-overridden-during-runtime"],
                "envFrom": metadata_env_from(),
                "env": env,
                "resources": {},
                "securityContext": user_context,
                "volumeMounts": scratch.map(|(name, path)| json!({"name": name, "mountPath": path})),
            },
        });
        if shape.retry {
            template["retryStrategy"] = json!({
                "limit": input(RETRY_PARAMETERS[0]),
                "backoff": {
                    "duration": input(RETRY_PARAMETERS[1]),
                    "factor": input(RETRY_PARAMETERS[2]),
                    "maxDuration": input(RETRY_PARAMETERS[3]),
                },
            });
        }
        self.mount_ca(&mut template);
        template
    }
}

/// Parameters of executors with retries.
pub const RETRY_PARAMETERS: [&str; 4] =
    ["retry-max-count", "retry-backoff-duration", "retry-backoff-factor", "retry-backoff-max-duration"];

/// What distinguishes one executor template from another. Argo cannot patch a pod's metadata, so labels and
/// annotations travel as parameters and their numbers are part of the shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// With retries.
    pub retry: bool,
    /// Numbers of annotations and labels, if the task sets pod metadata.
    pub metadata: Option<(usize, usize)>,
}

impl Shape {
    fn named(self, part: &str) -> String {
        let metadata =
            self.metadata.map(|(annotations, labels)| format!("metadata-{annotations}-{labels}-")).unwrap_or_default();
        format!("{metadata}{}system-container-{part}", if self.retry { "retry-" } else { "" })
    }

    /// Name of the executor template.
    pub fn executor(self) -> String {
        self.named("executor")
    }

    /// Name of the implementation template.
    pub fn implementation(self) -> String {
        self.named("impl")
    }

    fn keys(kind: &str, count: usize) -> Vec<(String, String)> {
        let name = |part: &str, suffix: &str| format!("pod-metadata-{kind}-{part}{suffix}");
        match count {
            1 => vec![(name("key", ""), name("val", ""))],
            _ => (1..=count).map(|i| format!("-{i}")).map(|s| (name("key", &s), name("val", &s))).collect(),
        }
    }

    fn metadata_parameters(self) -> Vec<String> {
        let (annotations, labels) = self.metadata.unwrap_or_default();
        let pairs = Self::keys("annotation", annotations).into_iter().chain(Self::keys("label", labels));
        pairs.flat_map(|(key, value)| [key, value]).collect()
    }

    fn metadata(self) -> Value {
        let (annotations, labels) = self.metadata.unwrap_or_default();
        let entries = |kind, count| -> serde_json::Map<String, Value> {
            Self::keys(kind, count).into_iter().map(|(key, value)| (input(&key), input(&value).into())).collect()
        };
        let mut metadata = json!({"annotations": entries("annotation", annotations)});
        metadata["annotations"]["pipelines.kubeflow.org/runtime-role"] = "launcher".into();
        if labels > 0 {
            metadata["labels"] = Value::Object(entries("label", labels));
        }
        metadata
    }

    /// The arguments that carry a task's pod metadata.
    pub fn metadata_arguments(self, metadata: &PodMetadata) -> Vec<Value> {
        let values = metadata.annotations.iter().chain(&metadata.labels).flat_map(|(key, value)| [key, value]);
        self.metadata_parameters().iter().zip(values).map(|(name, value)| given(name, value)).collect()
    }
}
