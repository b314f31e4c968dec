//! Which right each RPC needs, and what it is about.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use api::{Relationship, ResourceKey, ResourceType};
use kfp_proto::api;
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use prost::{Message, Name};

use super::Settings;
use super::target::Target;
use crate::error::{Error, Result};
use crate::services::sources::Origin;
use crate::services::v1::{origin, referenced};
use crate::services::{recurring_runs, runs, tasks};

/// Pipelines and their versions.
pub const PIPELINES: &str = "pipelines";
/// Experiments.
pub const EXPERIMENTS: &str = "experiments";
/// Runs.
pub const RUNS: &str = "runs";
/// Recurring runs.
pub const JOBS: &str = "jobs";

/// Something to be done to a kind of object, as Kubernetes names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Right {
    /// API group of the resource.
    pub group: &'static str,
    /// Kind of object.
    pub resource: &'static str,
    /// What is done to it.
    pub verb: &'static str,
}

impl Right {
    /// A right on one of this program's own resources.
    #[must_use]
    pub const fn new(resource: &'static str, verb: &'static str) -> Self {
        Right { group: "pipelines.kubeflow.org", resource, verb }
    }

    /// Whether it changes nothing.
    #[must_use]
    pub fn is_read(&self) -> bool {
        matches!(self.verb, "get" | "list")
    }
}

/// Uploads of pipelines and versions.
pub const UPLOAD: Right = Right::new(PIPELINES, "create");
/// Artifacts of runs.
pub const READ_ARTIFACT: Right = Right::new(RUNS, "readArtifact");
/// Logs of runs.
pub const READ_LOG: Right = Right::new(RUNS, "get");

type Find = Box<dyn Fn(&[u8]) -> Result<Target> + Send + Sync>;

/// What one RPC needs.
pub struct Rule {
    /// The right.
    pub right: Right,
    /// Full name of the request message.
    pub request: String,
    find: Find,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rule").field("right", &self.right).field("request", &self.request).finish_non_exhaustive()
    }
}

impl Rule {
    /// What a request is about.
    ///
    /// # Errors
    /// Code 3 when the bytes are not the message.
    pub fn target(&self, message: &[u8]) -> Result<Target> {
        (self.find)(message)
    }

    /// Whether some requests need no known caller: those that read what everybody may see, and those of programs in
    /// pods that have nothing to identify themselves with.
    #[must_use]
    pub fn is_open_to_strangers(&self, settings: &Settings) -> bool {
        let shared = self.right.is_read() && (settings.shared_read || self.right.resource == PIPELINES);
        shared || self.right.resource == TASKS
    }
}

/// Cache entries, which drivers and launchers look up and write without saying who they are.
const TASKS: &str = "tasks";

/// The rule of an RPC by its path; `None` denies it.
#[must_use]
pub fn of(path: &str) -> Option<&'static Rule> {
    RULES.get(path)
}

/// Paths of the RPCs that have a rule.
pub fn paths() -> impl Iterator<Item = (&'static str, &'static Rule)> {
    RULES.iter().map(|(path, rule)| (path.as_str(), rule))
}

static RULES: LazyLock<BTreeMap<String, Rule>> = LazyLock::new(table);

struct Table {
    service: &'static str,
    rules: BTreeMap<String, Rule>,
}

impl Table {
    /// What follows is about this service.
    fn service(&mut self, name: &'static str) -> &mut Self {
        self.service = name;
        self
    }

    fn by<M: Message + Name + Default + 'static>(
        &mut self,
        method: &str,
        right: (&'static str, &'static str),
        find: impl Fn(M) -> Result<Target> + Send + Sync + 'static,
    ) -> &mut Self {
        let decode = move |bytes: &[u8]| {
            find(M::decode(bytes).map_err(|error| Error::invalid_because("cannot decode the request", error))?)
        };
        let rule = Rule { right: Right::new(right.0, right.1), request: M::full_name(), find: Box::new(decode) };
        self.rules.insert(format!("/{}/{method}", self.service), rule);
        self
    }

    /// [`Table::by`] for requests that always say what they are about.
    fn on<M: Message + Name + Default + 'static>(
        &mut self,
        method: &str,
        right: (&'static str, &'static str),
        find: impl Fn(M) -> Target + Send + Sync + 'static,
    ) -> &mut Self {
        self.by(method, right, move |message: M| Ok(find(message)))
    }
}

fn namespace(namespace: String, name: String) -> Target {
    Target::Namespace { namespace, name }
}

fn list(namespace: String) -> Target {
    self::namespace(namespace, String::new())
}

/// The name of a new pipeline, as far as the request says it.
fn either(name: String, display_name: String) -> String {
    if name.is_empty() { display_name } else { name }
}

fn start(experiment: String, name: String, origin: Origin, job: String) -> Target {
    Target::Start { experiment, name, pipeline: origin.pipeline_id, version: origin.version_id, job }
}

/// Namespace or experiment that a v1beta1 list is limited to.
fn within(key: Option<ResourceKey>) -> Target {
    let (mut experiment, mut namespace) = (String::new(), String::new());
    match key {
        Some(key) if key.r#type() == ResourceType::Experiment => experiment = key.id,
        Some(key) if key.r#type() == ResourceType::Namespace => namespace = key.id,
        _ => {}
    }
    Target::Within { experiment, namespace }
}

fn in_key(key: Option<ResourceKey>) -> Target {
    list(key.filter(|key| key.r#type() == ResourceType::Namespace).map(|key| key.id).unwrap_or_default())
}

fn question(namespace: String, verb: &'static str, is_viewers: bool) -> Result<Target> {
    if namespace.is_empty() {
        return Err(Error::invalid("Namespace is empty. Please specify a valid namespace"));
    }
    if !is_viewers {
        return Err(Error::invalid("Resources not specified. Please specify a valid resources"));
    }
    if verb.is_empty() {
        return Err(Error::invalid("Verb not specified. Please specify a valid verb"));
    }
    let right = Right { group: "kubeflow.org", resource: "viewers", verb };
    Ok(Target::Question { right, namespace: namespace.to_lowercase() })
}

fn table() -> BTreeMap<String, Rule> {
    let mut table = Table { service: "", rules: BTreeMap::new() };
    experiment_rules(&mut table);
    pipeline_rules(&mut table);
    pipeline_rules_v1(&mut table);
    run_rules(&mut table);
    job_rules(&mut table);
    other_rules(&mut table);
    table.rules
}

fn experiment_rules(table: &mut Table) {
    use Target::Experiment as Id;
    let e = EXPERIMENTS;
    table
        .service("kubeflow.pipelines.backend.api.v2beta1.ExperimentService")
        .on("CreateExperiment", (e, "create"), |r: v2::CreateExperimentRequest| {
            let new = r.experiment.unwrap_or_default();
            namespace(new.namespace, new.display_name)
        })
        .on("GetExperiment", (e, "get"), |r: v2::GetExperimentRequest| Id(r.experiment_id))
        .on("ListExperiments", (e, "list"), |r: v2::ListExperimentsRequest| list(r.namespace))
        .on("DeleteExperiment", (e, "delete"), |r: v2::DeleteExperimentRequest| Id(r.experiment_id))
        .on("ArchiveExperiment", (e, "archive"), |r: v2::ArchiveExperimentRequest| Id(r.experiment_id))
        .on("UnarchiveExperiment", (e, "unarchive"), |r: v2::UnarchiveExperimentRequest| Id(r.experiment_id));
    table
        .service("api.ExperimentService")
        .on("CreateExperimentV1", (e, "create"), |r: api::CreateExperimentRequest| {
            let new = r.experiment.unwrap_or_default();
            namespace(referenced(&new.resource_references, ResourceType::Namespace, None), new.name)
        })
        .on("GetExperimentV1", (e, "get"), |r: api::GetExperimentRequest| Id(r.id))
        .on("ListExperimentsV1", (e, "list"), |r: api::ListExperimentsRequest| in_key(r.resource_reference_key))
        .on("DeleteExperimentV1", (e, "delete"), |r: api::DeleteExperimentRequest| Id(r.id))
        .on("ArchiveExperimentV1", (e, "archive"), |r: api::ArchiveExperimentRequest| Id(r.id))
        .on("UnarchiveExperimentV1", (e, "unarchive"), |r: api::UnarchiveExperimentRequest| Id(r.id));
}

fn pipeline_rules(table: &mut Table) {
    use Target::{Pipeline as Id, Version};
    let p = PIPELINES;
    table
        .service("kubeflow.pipelines.backend.api.v2beta1.PipelineService")
        .on("CreatePipeline", (p, "create"), |r: v2::CreatePipelineRequest| {
            let new = r.pipeline.unwrap_or_default();
            namespace(new.namespace, either(new.name, new.display_name))
        })
        .on("CreatePipelineAndVersion", (p, "create"), |r: v2::CreatePipelineAndVersionRequest| {
            let new = r.pipeline.unwrap_or_default();
            namespace(new.namespace, either(new.name, new.display_name))
        })
        .on("GetPipeline", (p, "get"), |r: v2::GetPipelineRequest| Id(r.pipeline_id))
        .on("GetPipelineByName", (p, "get"), |r: v2::GetPipelineByNameRequest| namespace(r.namespace, r.name))
        .on("ListPipelines", (p, "list"), |r: v2::ListPipelinesRequest| list(r.namespace))
        .on("UpdatePipeline", (p, "update"), |r: v2::UpdatePipelineRequest| {
            Id(r.pipeline.unwrap_or_default().pipeline_id)
        })
        .on("DeletePipeline", (p, "delete"), |r: v2::DeletePipelineRequest| Id(r.pipeline_id))
        .on("CreatePipelineVersion", (p, "create"), |r: v2::CreatePipelineVersionRequest| Id(r.pipeline_id))
        .on("GetPipelineVersion", (p, "get"), |r: v2::GetPipelineVersionRequest| Version(r.pipeline_version_id))
        .on("ListPipelineVersions", (p, "list"), |r: v2::ListPipelineVersionsRequest| Id(r.pipeline_id))
        .on("UpdatePipelineVersion", (p, "update"), |r: v2::UpdatePipelineVersionRequest| {
            Version(r.pipeline_version.unwrap_or_default().pipeline_version_id)
        })
        .on("DeletePipelineVersion", (p, "delete"), |r: v2::DeletePipelineVersionRequest| {
            Version(r.pipeline_version_id)
        });
}

fn pipeline_rules_v1(table: &mut Table) {
    use Target::{Pipeline as Id, Version};
    let p = PIPELINES;
    table
        .service("api.PipelineService")
        .on("CreatePipelineV1", (p, "create"), |r: api::CreatePipelineRequest| {
            let new = r.pipeline.unwrap_or_default();
            namespace(referenced(&new.resource_references, ResourceType::Namespace, None), new.name)
        })
        .on("GetPipelineV1", (p, "get"), |r: api::GetPipelineRequest| Id(r.id))
        .on("GetPipelineByNameV1", (p, "get"), |r: api::GetPipelineByNameRequest| namespace(r.namespace, r.name))
        .on("ListPipelinesV1", (p, "list"), |r: api::ListPipelinesRequest| in_key(r.resource_reference_key))
        .on("DeletePipelineV1", (p, "delete"), |r: api::DeletePipelineRequest| Id(r.id))
        .on("GetTemplate", (p, "get"), |r: api::GetTemplateRequest| Id(r.id))
        .on("CreatePipelineVersionV1", (p, "create"), |r: api::CreatePipelineVersionRequest| {
            let new = r.version.unwrap_or_default();
            Id(referenced(&new.resource_references, ResourceType::Pipeline, Some(Relationship::Owner)))
        })
        .on("GetPipelineVersionV1", (p, "get"), |r: api::GetPipelineVersionRequest| Version(r.version_id))
        .on("ListPipelineVersionsV1", (p, "list"), |r: api::ListPipelineVersionsRequest| {
            Id(r.resource_key.unwrap_or_default().id)
        })
        .on("DeletePipelineVersionV1", (p, "delete"), |r: api::DeletePipelineVersionRequest| Version(r.version_id))
        .on("GetPipelineVersionTemplate", (p, "get"), |r: api::GetPipelineVersionTemplateRequest| Version(r.version_id))
        .on("UpdatePipelineDefaultVersionV1", (p, "update"), |r: api::UpdatePipelineDefaultVersionRequest| {
            Id(r.pipeline_id)
        });
}

fn run_rules(table: &mut Table) {
    use Target::Run as Id;
    let r = RUNS;
    table
        .service("kubeflow.pipelines.backend.api.v2beta1.RunService")
        .on("CreateRun", (r, "create"), |r: v2::CreateRunRequest| {
            let new = r.run.unwrap_or_default();
            start(new.experiment_id, String::new(), runs::origin(new.pipeline_source), new.recurring_run_id)
        })
        .on("GetRun", (r, "get"), |r: v2::GetRunRequest| Id(r.run_id))
        .on("ListRuns", (r, "list"), |r: v2::ListRunsRequest| Target::Within {
            experiment: r.experiment_id,
            namespace: r.namespace,
        })
        .on("ArchiveRun", (r, "archive"), |r: v2::ArchiveRunRequest| Id(r.run_id))
        .on("UnarchiveRun", (r, "unarchive"), |r: v2::UnarchiveRunRequest| Id(r.run_id))
        .on("DeleteRun", (r, "delete"), |r: v2::DeleteRunRequest| Id(r.run_id))
        .on("TerminateRun", (r, "terminate"), |r: v2::TerminateRunRequest| Id(r.run_id))
        .on("RetryRun", (r, "retry"), |r: v2::RetryRunRequest| Id(r.run_id));
    table
        .service("api.RunService")
        .on("CreateRunV1", (r, "create"), |r: api::CreateRunRequest| {
            let new = r.run.unwrap_or_default();
            let by = |kind| referenced(&new.resource_references, kind, None);
            let origin = origin(new.pipeline_spec.as_ref(), &new.resource_references);
            start(by(ResourceType::Experiment), String::new(), origin, by(ResourceType::Job))
        })
        .on("GetRunV1", (r, "get"), |r: api::GetRunRequest| Id(r.run_id))
        .on("ListRunsV1", (r, "list"), |r: api::ListRunsRequest| within(r.resource_reference_key))
        .on("ArchiveRunV1", (r, "archive"), |r: api::ArchiveRunRequest| Id(r.id))
        .on("UnarchiveRunV1", (r, "unarchive"), |r: api::UnarchiveRunRequest| Id(r.id))
        .on("DeleteRunV1", (r, "delete"), |r: api::DeleteRunRequest| Id(r.id))
        .on("TerminateRunV1", (r, "terminate"), |r: api::TerminateRunRequest| Id(r.run_id))
        .on("RetryRunV1", (r, "retry"), |r: api::RetryRunRequest| Id(r.run_id))
        .on("ReportRunMetricsV1", (r, "reportMetrics"), |r: api::ReportRunMetricsRequest| Id(r.run_id));
}

fn job_rules(table: &mut Table) {
    use Target::Job as Id;
    let j = JOBS;
    table
        .service("kubeflow.pipelines.backend.api.v2beta1.RecurringRunService")
        .on("CreateRecurringRun", (j, "create"), |r: v2::CreateRecurringRunRequest| {
            let new = r.recurring_run.unwrap_or_default();
            let origin = recurring_runs::origin(new.pipeline_source);
            start(new.experiment_id, new.display_name, origin, String::new())
        })
        .on("GetRecurringRun", (j, "get"), |r: v2::GetRecurringRunRequest| Id(r.recurring_run_id))
        .on("ListRecurringRuns", (j, "list"), |r: v2::ListRecurringRunsRequest| Target::Within {
            experiment: r.experiment_id,
            namespace: r.namespace,
        })
        .on("UpdateRecurringRun", (j, "update"), |r: v2::UpdateRecurringRunRequest| {
            let new = r.recurring_run.unwrap_or_default();
            let origin = recurring_runs::origin(new.pipeline_source);
            Target::Revise { job: new.recurring_run_id, pipeline: origin.pipeline_id, version: origin.version_id }
        })
        .on("EnableRecurringRun", (j, "enable"), |r: v2::EnableRecurringRunRequest| Id(r.recurring_run_id))
        .on("DisableRecurringRun", (j, "disable"), |r: v2::DisableRecurringRunRequest| Id(r.recurring_run_id))
        .on("DeleteRecurringRun", (j, "delete"), |r: v2::DeleteRecurringRunRequest| Id(r.recurring_run_id));
    table
        .service("api.JobService")
        .on("CreateJob", (j, "create"), |r: api::CreateJobRequest| {
            let new = r.job.unwrap_or_default();
            let experiment = referenced(&new.resource_references, ResourceType::Experiment, None);
            let origin = origin(new.pipeline_spec.as_ref(), &new.resource_references);
            start(experiment, new.name, origin, String::new())
        })
        .on("GetJob", (j, "get"), |r: api::GetJobRequest| Id(r.id))
        .on("ListJobs", (j, "list"), |r: api::ListJobsRequest| within(r.resource_reference_key))
        .on("EnableJob", (j, "enable"), |r: api::EnableJobRequest| Id(r.id))
        .on("DisableJob", (j, "disable"), |r: api::DisableJobRequest| Id(r.id))
        .on("DeleteJob", (j, "delete"), |r: api::DeleteJobRequest| Id(r.id));
}

fn other_rules(table: &mut Table) {
    let (workflows, schedules) = (("workflows", "report"), ("scheduledworkflows", "report"));
    table
        .service("kubeflow.pipelines.backend.api.v2beta1.ReportService")
        .on("ReportWorkflow", workflows, |_: v2::ReportWorkflowRequest| Target::Cluster)
        .on("ReportScheduledWorkflow", schedules, |_: v2::ReportScheduledWorkflowRequest| Target::Cluster);
    table
        .service("api.ReportService")
        .on("ReportWorkflowV1", workflows, |_: api::ReportWorkflowRequest| Target::Cluster)
        .on("ReportScheduledWorkflowV1", schedules, |_: api::ReportScheduledWorkflowRequest| Target::Cluster);
    // The right is the one that is asked about.
    let viewers = ("viewers", "");
    table.service("kubeflow.pipelines.backend.api.v2beta1.AuthService").by(
        "Authorize",
        viewers,
        |r: v2::AuthorizeRequest| {
            use v2::authorize_request::{Resources, Verb};
            let verb = match r.verb() {
                Verb::UnassignedVerb => "",
                Verb::Create => "create",
                Verb::Get => "get",
                Verb::Delete => "delete",
            };
            let is_viewers = r.resources() == Resources::Viewers;
            question(r.namespace, verb, is_viewers)
        },
    );
    table.service("api.AuthService").by("AuthorizeV1", viewers, |r: api::AuthorizeRequest| {
        use api::authorize_request::{Resources, Verb};
        let verb = match r.verb() {
            Verb::UnassignedVerb => "",
            Verb::Create => "create",
            Verb::Get => "get",
            Verb::Delete => "delete",
        };
        let is_viewers = r.resources() == Resources::Viewers;
        question(r.namespace, verb, is_viewers)
    });
    table.service("api.VisualizationService").on(
        "CreateVisualizationV1",
        ("visualizations", "create"),
        |r: api::CreateVisualizationRequest| match r.namespace.as_str() {
            // What is drawn then belongs to nobody.
            "" => Target::AnyUser,
            _ => list(r.namespace),
        },
    );
    table
        .service("api.TaskService")
        // The run has to exist, and its id cannot be guessed.
        .on("CreateTaskV1", (TASKS, "create"), |_: api::CreateTaskRequest| Target::Nobody)
        .by("ListTasksV1", (TASKS, "list"), |r: api::ListTasksRequest| {
            // A fingerprint is made from all inputs of a task: whoever knows it knows the task.
            if tasks::is_by_fingerprint(&r.filter)? {
                return Ok(Target::Nobody);
            }
            Err(Error::permission_denied(
                "Tasks can be listed only by fingerprint in multi-user mode",
                "the filter names no fingerprint",
            ))
        });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_belongs_to_an_rpc_and_reads_its_request() {
        for (path, rule) in paths() {
            let (service, method) = path.trim_start_matches('/').split_once('/').unwrap();
            let service = kfp_proto::POOL.get_service_by_name(service).unwrap_or_else(|| panic!("{path}"));
            let method = service.methods().find(|found| found.name() == method).unwrap_or_else(|| panic!("{path}"));
            assert_eq!(method.input().full_name(), rule.request, "{path}");
        }
    }

    #[test]
    fn lists_of_v1beta1_are_limited_as_their_key_says() {
        let key = |kind: ResourceType| Some(ResourceKey { r#type: kind as i32, id: "x".into() });
        let target = |experiment: &str, namespace: &str| Target::Within {
            experiment: experiment.into(),
            namespace: namespace.into(),
        };
        assert_eq!(within(key(ResourceType::Experiment)), target("x", ""));
        assert_eq!(within(key(ResourceType::Namespace)), target("", "x"));
        assert_eq!(within(key(ResourceType::Pipeline)), target("", ""));
        assert_eq!(within(None), target("", ""));
    }
}
