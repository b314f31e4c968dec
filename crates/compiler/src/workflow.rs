//! The compilation: settings, skeleton, and the traversal of components that fills arguments and templates.
//!
//! Components are visited depth first from `root`, tasks in order of their names. Every component is stored once as
//! workflow argument `components-KEY` (containers and importers also as `implementations-KEY`), and tasks refer to
//! it by placeholder. A container's key is the hash of its spec, so equal containers share one argument and the
//! first one visited wins; every other component's key is its name.

use std::collections::{BTreeMap, HashMap, HashSet};

use kfp_core::{gojson, ir, ir::Unknown};
use kfp_proto::kfp_kubernetes::{KubernetesExecutorConfig, PodMetadata};
use kfp_proto::ml_pipelines::component_spec::Implementation;
use kfp_proto::ml_pipelines::pipeline_deployment_config::{ExecutorSpec, executor_spec::Spec};
use kfp_proto::ml_pipelines::pipeline_task_spec::RetryPolicy;
use kfp_proto::ml_pipelines::{ComponentSpec, DagSpec, PipelineDeploymentConfig, PipelineSpec, SinglePlatformSpec};
use serde_json::{Map, Value, json};

use crate::error::At;
use crate::templates::{Shape, Shared, given, parameters};
use crate::{Error, Job, Options, Package, check, hash, patch, pipeline_config};

/// Deepest nesting of DAG components accepted.
pub const MAX_DEPTH: usize = 200;
/// Most tasks accepted, over all DAG components. The Workflow of a tenth of them is more than Kubernetes stores.
pub const MAX_TASKS: usize = 20_000;
pub(crate) const ROOT: &str = "root";

/// State of one compilation.
pub(crate) struct Compiler<'a> {
    pub(crate) shared: Shared<'a>,
    spec: &'a PipelineSpec,
    executors: BTreeMap<String, ExecutorSpec>,
    kubernetes: Option<&'a SinglePlatformSpec>,
    pub(crate) runtime_config: String,
    arguments: Vec<Value>,
    argument_names: HashSet<String>,
    templates: Vec<Value>,
    template_names: HashSet<String>,
    shared_names: HashSet<String>,
    visited: HashSet<String>,
    tasks: usize,
    path: Vec<String>,
    keys: HashMap<String, String>,
    pub(crate) pod_metadata: HashMap<String, PodMetadata>,
}

/// Compiles `job` of `package`.
pub(crate) fn compile(package: &Package, job: &Job, options: &Options) -> Result<Value, Error> {
    let spec = package.spec();
    if package.name().is_empty() {
        return Err(Error::spec("pipelineInfo.name is empty"));
    }
    let deployment: PipelineDeploymentConfig = match &spec.deployment_spec {
        None => PipelineDeploymentConfig::default(),
        Some(config) => {
            ir::decode_struct(config, Unknown::Ignore).map_err(|e| Error::spec(format!("deploymentSpec: {e}")))?
        }
    };
    let kubernetes = package.platform().and_then(|platform| platform.platforms.get("kubernetes"));
    let mut compiler = Compiler {
        shared: Shared { options, pipeline: package.name(), display_name: &job.display_name },
        runtime_config: gojson::to_string(&runtime_config(spec, job, options)),
        executors: deployment.executors,
        kubernetes,
        spec,
        arguments: Vec::new(),
        argument_names: HashSet::new(),
        templates: Vec::new(),
        template_names: HashSet::new(),
        shared_names: HashSet::new(),
        visited: HashSet::new(),
        tasks: 0,
        path: Vec::new(),
        keys: HashMap::new(),
        pod_metadata: HashMap::new(),
    };
    let mut spec = skeleton(options);
    if let Some(config) = kubernetes.and_then(|platform| platform.pipeline_config.as_ref()) {
        if let Some(workspace) = &config.workspace
            && let Some(claim) = pipeline_config::workspace_claim(workspace, options.workspace.as_ref())?
        {
            spec["volumeClaimTemplates"] = json!([claim]);
        }
        if let Some(ttl) = pipeline_config::ttl(config) {
            spec["ttlStrategy"] = ttl;
        }
        if config.active_deadline_seconds > 0 {
            spec["activeDeadlineSeconds"] = config.active_deadline_seconds.into();
        }
    }
    compiler.visit(ROOT, None)?;
    spec["arguments"] = parameters(compiler.arguments);
    spec["templates"] = Value::Array(compiler.templates);
    patch::apply(&mut spec, &options.spec_patch)?;
    let short = package.name().rsplit('/').next().unwrap_or_default();
    let mut workflow = json!({
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Workflow",
        "metadata": {"generateName": format!("{short}-")},
    });
    workflow["spec"] = spec;
    check::workflow(&workflow).map_err(|problems| Error::spec(listed(&problems)))?;
    Ok(workflow)
}

/// The first problems, and how many more there are.
fn listed(problems: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text = problems.iter().take(SHOWN).cloned().collect::<Vec<_>>().join("; ");
    if problems.len() > SHOWN {
        text.push_str(&format!("; and {} more", problems.len() - SHOWN));
    }
    text
}

/// Refuses names too long for templates and tasks before others are made from them.
fn check_name(kind: &str, name: &str) -> Result<(), Error> {
    if name.len() <= check::MAX_NAME {
        return Ok(());
    }
    let start: String = name.chars().take(40).collect();
    Err(Error::spec(format!(
        "{kind} name {start:?}... has {} bytes; at most {} make a template or task name",
        name.len(),
        check::MAX_NAME
    )))
}

fn skeleton(options: &Options) -> Value {
    let mut security = json!({"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}});
    if let Some(user) = options.run_as_user {
        security["runAsUser"] = user.into();
    }
    let component = json!({"pipelines.kubeflow.org/v2_component": "true"});
    let mut spec = json!({
        "entrypoint": "entrypoint",
        "podMetadata": {"annotations": component, "labels": component},
        "securityContext": security,
    });
    if !options.service_account.is_empty() {
        spec["serviceAccountName"] = options.service_account.as_str().into();
    }
    spec
}

/// The run's parameters with the defaults of the root component, and its pipeline root.
fn runtime_config(spec: &PipelineSpec, job: &Job, options: &Options) -> Value {
    let mut parameters: Map<String, Value> =
        job.parameters.iter().map(|(name, value)| (name.clone(), ir::to_json(&ir::from_json(value)))).collect();
    let inputs = spec.root.as_ref().and_then(|root| root.input_definitions.as_ref());
    for (name, parameter) in inputs.map(|inputs| &inputs.parameters).into_iter().flatten() {
        if parameters.contains_key(name) {
            continue;
        }
        if let Some(default) = &parameter.default_value {
            parameters.insert(name.clone(), ir::to_json(default));
        } else if parameter.is_optional {
            parameters.insert(name.clone(), Value::Null);
        }
    }
    let root = if options.pipeline_root.is_empty() { &job.pipeline_root } else { &options.pipeline_root };
    let mut config = Map::new();
    if !root.is_empty() {
        config.insert("gcsOutputDirectory".into(), root.as_str().into());
    }
    if !parameters.is_empty() {
        config.insert("parameterValues".into(), Value::Object(parameters));
    }
    Value::Object(config)
}

/// What a component is, as far as the task that uses it is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ComponentKind {
    /// A DAG.
    Dag,
    /// A container.
    Container,
    /// A container whose work the driver does (creating or deleting a claim).
    DriverOnly,
    /// An importer, which may want the workspace.
    Importer {
        /// Whether the artifact is downloaded there.
        workspace: bool,
    },
}

impl<'a> Compiler<'a> {
    fn component(&self, name: &str) -> Option<&'a ComponentSpec> {
        let spec = self.spec;
        if name == ROOT { spec.root.as_ref() } else { spec.components.get(name) }
    }

    /// Visits a component and what it uses; `inherited` is the retry policy of the task that led here.
    fn visit(&mut self, name: &str, inherited: Option<RetryPolicy>) -> Result<(), Error> {
        let context = || format!("error processing component name={name:?}");
        if self.path.iter().any(|ancestor| ancestor == name) {
            let cycle = format!("{} -> {name}", self.path.join(" -> "));
            return Err(Error::spec(format!("component uses itself: {cycle}"))).at(context);
        }
        if !self.visited.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(component) = self.component(name) else {
            return Err(Error::spec(format!("component spec for {name:?} not found"))).at(context);
        };
        match &component.implementation {
            Some(Implementation::ExecutorLabel(label)) if !label.is_empty() => {
                if name == ROOT {
                    return Err(Error::spec("the root component is an executor; only a DAG can be run")).at(context);
                }
                self.visit_executor(name, label).at(context)
            }
            Some(Implementation::Dag(dag)) => {
                let mut dag = dag.clone();
                check_name("DAG component", name)?;
                if self.path.len() >= MAX_DEPTH {
                    return Err(Error::spec(format!("DAG components are nested more than {MAX_DEPTH} deep")))
                        .at(context);
                }
                self.tasks = self.tasks.saturating_add(dag.tasks.len());
                if self.tasks > MAX_TASKS {
                    return Err(Error::spec(format!("the pipeline has more than {MAX_TASKS} tasks"))).at(context);
                }
                self.path.push(name.to_owned());
                for (key, task) in &mut dag.tasks {
                    check_name("task", key).at(context)?;
                    let reference = self.reference(key, task).at(context)?;
                    if task.retry_policy.is_none() {
                        task.retry_policy = inherited;
                    }
                    self.visit(&reference, task.retry_policy)?;
                }
                self.path.pop();
                self.dag(name, dag).at(|| format!("compiling DAG {name:?}"))
            }
            _ => {
                let text = ir::encode_text(component);
                Err(Error::spec(format!("unknown component implementation: {text}"))).at(context)
            }
        }
    }

    fn reference(&self, key: &str, task: &kfp_proto::ml_pipelines::PipelineTaskSpec) -> Result<String, Error> {
        let name = task.component_ref.as_ref().map_or("", |reference| &reference.name);
        if name.is_empty() {
            let shown = task.task_info.as_ref().map_or(key, |info| &info.name);
            return Err(Error::spec(format!("component ref name is empty for task name={shown:?}")));
        }
        if name == ROOT {
            return Err(Error::spec(format!("task {key:?}: the component name \"root\" is reserved")));
        }
        if !self.spec.components.contains_key(name) {
            return Err(Error::spec(format!("cannot find component ref name={name:?}"))).at(|| format!("task {key:?}"));
        }
        Ok(name.to_owned())
    }

    fn visit_executor(&mut self, name: &str, label: &str) -> Result<(), Error> {
        let Some(executor) = self.executors.get(label) else {
            return Err(Error::spec(format!("executor(label={label:?}) not found in deployment config")));
        };
        let text = match &executor.spec {
            Some(Spec::Container(container)) => {
                let hash = hash::container_hash(container);
                let stored = self.argument_names.contains(&implementation_argument(&hash));
                self.keys.insert(name.to_owned(), hash);
                (!stored).then(|| ir::encode_text(container))
            }
            Some(Spec::Importer(importer)) => Some(ir::encode_text(importer)),
            _ => {
                return Err(Error::spec(format!(
                    "executor(label={label:?}): non-container and non-importer executor not implemented"
                )));
            }
        };
        let kubernetes = self.kubernetes.and_then(|platform| platform.deployment_spec.as_ref());
        if let Some(config) = kubernetes.and_then(|deployment| deployment.executors.get(label)) {
            let config = ir::struct_to_json(config);
            self.take_kubernetes(name, &config).at(|| format!("failed to add Kubernetes spec for {name}"))?;
        }
        self.save_component(name)?;
        if let Some(text) = text {
            self.save(implementation_argument(self.key(name)), || text);
        }
        Ok(())
    }

    /// Keeps what the compiler itself needs of a component's Kubernetes config and stores the rest for the driver.
    fn take_kubernetes(&mut self, name: &str, config: &Value) -> Result<(), Error> {
        let typed: KubernetesExecutorConfig = ir::decode(config, Unknown::Reject)
            .map_err(|e| Error::spec(format!("failed to unmarshal kubernetes spec for component {name:?}: {e}")))?;
        let admin = &self.shared.options.security;
        if let Some(security) = &typed.security_context
            && admin.run_as_user.is_none()
            && admin.run_as_non_root.or(security.run_as_non_root).unwrap_or(false)
            && security.run_as_user == Some(0)
        {
            return Err(Error::spec(format!(
                "runAsUser=0 (root) is not allowed for component {name:?}: runAsNonRoot is true; use a non-root UID instead"
            )));
        }
        if let Some(metadata) = typed.pod_metadata {
            self.pod_metadata.insert(name.to_owned(), metadata);
        }
        self.save(kubernetes_argument(name), || gojson::to_string(config));
        Ok(())
    }

    /// Stores a component that is no DAG.
    fn save_component(&mut self, name: &str) -> Result<(), Error> {
        let Some(component) = self.component(name) else {
            return Err(Error::spec(format!("component spec for {name:?} not found")));
        };
        let argument = format!("components-{}", self.key(name));
        if !self.argument_names.contains(&argument) {
            let text = ir::encode_text(component);
            self.save(argument, || text);
        }
        Ok(())
    }

    /// Stores a component with the DAG as it is compiled; hands the DAG back.
    pub(crate) fn save_dag(&mut self, name: &str, dag: DagSpec) -> Result<DagSpec, Error> {
        let missing = || Error::spec(format!("component spec for {name:?} not found"));
        let given = self.component(name).ok_or_else(missing)?;
        let component = ComponentSpec {
            input_definitions: given.input_definitions.clone(),
            output_definitions: given.output_definitions.clone(),
            single_platform_specs: given.single_platform_specs.clone(),
            task_config_passthroughs: given.task_config_passthroughs.clone(),
            implementation: Some(Implementation::Dag(dag)),
        };
        self.save(format!("components-{}", self.key(name)), || ir::encode_text(&component));
        match component.implementation {
            Some(Implementation::Dag(dag)) => Ok(dag),
            _ => Err(missing()),
        }
    }

    fn key<'b>(&'b self, name: &'b str) -> &'b str {
        self.keys.get(name).map_or(name, String::as_str)
    }

    fn save(&mut self, name: String, value: impl FnOnce() -> String) {
        if !self.argument_names.contains(&name) {
            self.arguments.push(given(&name, value()));
            self.argument_names.insert(name);
        }
    }

    /// Placeholder of a stored component.
    pub(crate) fn component_placeholder(&self, name: &str) -> String {
        placeholder(&format!("components-{}", self.key(name)))
    }

    /// Placeholder of a stored container or importer.
    pub(crate) fn implementation_placeholder(&self, name: &str) -> String {
        placeholder(&implementation_argument(self.key(name)))
    }

    /// Placeholder of a component's Kubernetes config, if it has one.
    pub(crate) fn kubernetes_placeholder(&self, name: &str) -> Option<String> {
        let argument = kubernetes_argument(name);
        self.argument_names.contains(&argument).then(|| placeholder(&argument))
    }

    /// What kind of component a task uses.
    pub(crate) fn kind(&self, name: &str) -> Result<ComponentKind, Error> {
        match self.component(name).and_then(|component| component.implementation.as_ref()) {
            Some(Implementation::Dag(_)) => Ok(ComponentKind::Dag),
            Some(Implementation::ExecutorLabel(label)) => {
                match self.executors.get(label).and_then(|executor| executor.spec.as_ref()) {
                    Some(Spec::Container(container)) => Ok(match container.image.as_str() {
                        "argostub/createpvc" | "argostub/deletepvc" => ComponentKind::DriverOnly,
                        _ => ComponentKind::Container,
                    }),
                    Some(Spec::Importer(importer)) => {
                        Ok(ComponentKind::Importer { workspace: importer.download_to_workspace })
                    }
                    Some(Spec::Resolver(_)) => Err(Error::spec("resolver executors not implemented")),
                    Some(Spec::CustomJob(_)) => {
                        Err(Error::spec("custom job executors is Google Cloud only, it's not supported"))
                    }
                    None => Err(Error::spec(format!("executor with label {label:?} not found"))),
                }
            }
            None => Err(Error::spec(format!("component spec for {name:?} not found"))),
        }
    }

    /// Whether a template of this name exists.
    pub(crate) fn has_template(&self, name: &str) -> bool {
        self.template_names.contains(name)
    }

    /// Adds a template of the pipeline's own.
    pub(crate) fn add_template(&mut self, name: &str, template: Value) -> Result<(), Error> {
        if !self.template_names.insert(name.to_owned()) {
            return Err(Error::spec(format!("template name={name:?}: template already exists")));
        }
        self.templates.push(template);
        Ok(())
    }

    /// Adds a template that tasks share, at its first use.
    pub(crate) fn share(&mut self, name: &str, make: impl FnOnce(&Shared) -> Value) -> Result<(), Error> {
        if self.shared_names.contains(name) {
            return Ok(());
        }
        let template = make(&self.shared);
        self.add_template(name, template)?;
        self.shared_names.insert(name.to_owned());
        Ok(())
    }

    /// Adds the pair of templates for container tasks of this shape.
    pub(crate) fn share_executor(&mut self, shape: Shape) -> Result<String, Error> {
        let name = shape.executor();
        self.share(&name, |shared| shared.executor(&shape))?;
        self.share(&shape.implementation(), |shared| shared.implementation(&shape))?;
        Ok(name)
    }
}

fn implementation_argument(key: &str) -> String {
    format!("implementations-{key}")
}

fn kubernetes_argument(component: &str) -> String {
    format!("kubernetes-{component}")
}

fn placeholder(argument: &str) -> String {
    format!("{{{{workflow.parameters.{argument}}}}}")
}
