//! The hash that names a container's stored arguments.
//!
//! Upstream hashes Go's JSON of the generated struct: original field names in the order of declaration, empty
//! fields left out.

use kfp_core::{gojson, hex};
use kfp_proto::ml_pipelines::pipeline_deployment_config::PipelineContainerSpec;
use kfp_proto::ml_pipelines::pipeline_deployment_config::pipeline_container_spec::{Lifecycle, ResourceSpec};
use sha2::{Digest, Sha256};

/// Lower-case hexadecimal SHA-256 of [`hash_json`].
pub fn container_hash(container: &PipelineContainerSpec) -> String {
    hex::text(&Sha256::digest(hash_json(container)))
}

/// The text that is hashed.
pub fn hash_json(container: &PipelineContainerSpec) -> String {
    let text: usize = container.command.iter().chain(&container.args).map(|part| part.len() + 3).sum();
    let mut object = Object(String::with_capacity(text + text / 8 + 64));
    object.0.push('{');
    object.text("image", &container.image);
    object.texts("command", &container.command);
    object.texts("args", &container.args);
    if let Some(lifecycle) = &container.lifecycle {
        object.raw("lifecycle", &lifecycle_json(lifecycle));
    }
    if let Some(resources) = &container.resources {
        object.raw("resources", &resources_json(resources));
    }
    let env: Vec<String> = container
        .env
        .iter()
        .map(|variable| {
            let mut item = Object::new();
            item.text("name", &variable.name);
            item.text("value", &variable.value);
            item.end()
        })
        .collect();
    if !env.is_empty() {
        object.raw("env", &format!("[{}]", env.join(",")));
    }
    object.end()
}

fn lifecycle_json(lifecycle: &Lifecycle) -> String {
    let mut object = Object::new();
    if let Some(exec) = &lifecycle.pre_cache_check {
        let mut inner = Object::new();
        inner.texts("command", &exec.command);
        inner.texts("args", &exec.args);
        object.raw("pre_cache_check", &inner.end());
    }
    object.end()
}

fn resources_json(resources: &ResourceSpec) -> String {
    let mut object = Object::new();
    object.double("cpu_limit", resources.cpu_limit);
    object.double("memory_limit", resources.memory_limit);
    object.double("cpu_request", resources.cpu_request);
    object.double("memory_request", resources.memory_request);
    object.text("resource_cpu_limit", &resources.resource_cpu_limit);
    object.text("resource_memory_limit", &resources.resource_memory_limit);
    object.text("resource_cpu_request", &resources.resource_cpu_request);
    object.text("resource_memory_request", &resources.resource_memory_request);
    if let Some(accelerator) = &resources.accelerator {
        let mut inner = Object::new();
        inner.text("type", &accelerator.r#type);
        if accelerator.count != 0 {
            inner.raw("count", &accelerator.count.to_string());
        }
        inner.text("resource_type", &accelerator.resource_type);
        inner.text("resource_count", &accelerator.resource_count);
        object.raw("accelerator", &inner.end());
    }
    object.end()
}

struct Object(String);

impl Object {
    fn new() -> Self {
        Self(String::from("{"))
    }

    fn key(&mut self, key: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        gojson::write_string(&mut self.0, key);
        self.0.push(':');
    }

    fn raw(&mut self, key: &str, json: &str) {
        self.key(key);
        self.0.push_str(json);
    }

    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.key(key);
            gojson::write_string(&mut self.0, value);
        }
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        if !values.is_empty() {
            self.key(key);
            self.0.push('[');
            for (i, value) in values.iter().enumerate() {
                if i > 0 {
                    self.0.push(',');
                }
                gojson::write_string(&mut self.0, value);
            }
            self.0.push(']');
        }
    }

    fn double(&mut self, key: &str, value: f64) {
        if value != 0.0 {
            self.key(key);
            gojson::write_f64(&mut self.0, value);
        }
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}
