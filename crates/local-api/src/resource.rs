//! Resource types: what Kubernetes calls group, version, resource and kind.

/// One resource type. Built-in ones are the constants of [`resources`]; those of
/// CustomResourceDefinitions are made when the definition is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Version, e.g. `v1`.
    pub version: &'static str,
    /// Plural lower-case name as used in paths.
    pub plural: &'static str,
    /// Singular lower-case name.
    pub singular: &'static str,
    /// Kind as used in manifests.
    pub kind: &'static str,
    /// Short names for kubectl.
    pub short: &'static [&'static str],
    /// Categories for kubectl, e.g. `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether `/status` exists: then the main path ignores status and `/status` ignores the rest.
    pub status: bool,
    /// Whether the type is one of Kubernetes' own, so that strategic merge patches apply.
    pub native: bool,
}

impl Resource {
    /// `plural` or `plural.group`, as error messages name it.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.into() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// `apiVersion` of objects of this type.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.into() } else { format!("{}/{}", self.group, self.version) }
    }

    const fn new(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        singular: &'static str,
        kind: &'static str,
    ) -> Self {
        Self {
            group,
            version,
            plural,
            singular,
            kind,
            short: &[],
            categories: &[],
            namespaced: true,
            status: false,
            native: true,
        }
    }

    const fn short(mut self, short: &'static [&'static str]) -> Self {
        self.short = short;
        self
    }

    const fn categories(mut self, categories: &'static [&'static str]) -> Self {
        self.categories = categories;
        self
    }

    const fn cluster(mut self) -> Self {
        self.namespaced = false;
        self
    }

    const fn with_status(mut self) -> Self {
        self.status = true;
        self
    }

    const fn custom(mut self) -> Self {
        self.native = false;
        self
    }
}

/// The types known from the start.
pub mod resources {
    use super::Resource;

    /// Namespaces (cluster-scoped).
    pub const NAMESPACES: Resource =
        Resource::new("", "v1", "namespaces", "namespace", "Namespace").short(&["ns"]).cluster().with_status();
    /// Nodes: exactly one.
    pub const NODES: Resource = Resource::new("", "v1", "nodes", "node", "Node").short(&["no"]).cluster().with_status();
    /// Pods.
    pub const PODS: Resource =
        Resource::new("", "v1", "pods", "pod", "Pod").short(&["po"]).categories(&["all"]).with_status();
    /// Core events.
    pub const EVENTS: Resource = Resource::new("", "v1", "events", "event", "Event").short(&["ev"]);
    /// ConfigMaps.
    pub const CONFIG_MAPS: Resource = Resource::new("", "v1", "configmaps", "configmap", "ConfigMap").short(&["cm"]);
    /// Secrets.
    pub const SECRETS: Resource = Resource::new("", "v1", "secrets", "secret", "Secret");
    /// Services.
    pub const SERVICES: Resource =
        Resource::new("", "v1", "services", "service", "Service").short(&["svc"]).categories(&["all"]).with_status();
    /// Endpoints.
    pub const ENDPOINTS: Resource = Resource::new("", "v1", "endpoints", "endpoints", "Endpoints").short(&["ep"]);
    /// ServiceAccounts.
    pub const SERVICE_ACCOUNTS: Resource =
        Resource::new("", "v1", "serviceaccounts", "serviceaccount", "ServiceAccount").short(&["sa"]);
    /// PersistentVolumeClaims.
    pub const PERSISTENT_VOLUME_CLAIMS: Resource =
        Resource::new("", "v1", "persistentvolumeclaims", "persistentvolumeclaim", "PersistentVolumeClaim")
            .short(&["pvc"])
            .with_status();
    /// PersistentVolumes.
    pub const PERSISTENT_VOLUMES: Resource =
        Resource::new("", "v1", "persistentvolumes", "persistentvolume", "PersistentVolume")
            .short(&["pv"])
            .cluster()
            .with_status();
    /// Deployments: stored only, nothing acts on them.
    pub const DEPLOYMENTS: Resource = Resource::new("apps", "v1", "deployments", "deployment", "Deployment")
        .short(&["deploy"])
        .categories(&["all"])
        .with_status();
    /// StatefulSets: stored only.
    pub const STATEFUL_SETS: Resource = Resource::new("apps", "v1", "statefulsets", "statefulset", "StatefulSet")
        .short(&["sts"])
        .categories(&["all"])
        .with_status();
    /// ReplicaSets: stored only.
    pub const REPLICA_SETS: Resource = Resource::new("apps", "v1", "replicasets", "replicaset", "ReplicaSet")
        .short(&["rs"])
        .categories(&["all"])
        .with_status();
    /// Jobs: stored only.
    pub const JOBS: Resource = Resource::new("batch", "v1", "jobs", "job", "Job").categories(&["all"]).with_status();
    /// CronJobs: stored only.
    pub const CRON_JOBS: Resource = Resource::new("batch", "v1", "cronjobs", "cronjob", "CronJob")
        .short(&["cj"])
        .categories(&["all"])
        .with_status();
    /// Leases.
    pub const LEASES: Resource = Resource::new("coordination.k8s.io", "v1", "leases", "lease", "Lease");
    /// Events of the newer group.
    pub const EVENTS_V1: Resource = Resource::new("events.k8s.io", "v1", "events", "event", "Event").short(&["ev"]);
    /// Roles: stored, everything is allowed.
    pub const ROLES: Resource = Resource::new("rbac.authorization.k8s.io", "v1", "roles", "role", "Role");
    /// RoleBindings: stored, everything is allowed.
    pub const ROLE_BINDINGS: Resource =
        Resource::new("rbac.authorization.k8s.io", "v1", "rolebindings", "rolebinding", "RoleBinding");
    /// ClusterRoles: stored, everything is allowed.
    pub const CLUSTER_ROLES: Resource =
        Resource::new("rbac.authorization.k8s.io", "v1", "clusterroles", "clusterrole", "ClusterRole").cluster();
    /// ClusterRoleBindings: stored, everything is allowed.
    pub const CLUSTER_ROLE_BINDINGS: Resource = Resource::new(
        "rbac.authorization.k8s.io",
        "v1",
        "clusterrolebindings",
        "clusterrolebinding",
        "ClusterRoleBinding",
    )
    .cluster();
    /// StorageClasses.
    pub const STORAGE_CLASSES: Resource =
        Resource::new("storage.k8s.io", "v1", "storageclasses", "storageclass", "StorageClass")
            .short(&["sc"])
            .cluster();
    /// CustomResourceDefinitions; creating one serves its resource.
    pub const CUSTOM_RESOURCE_DEFINITIONS: Resource = Resource::new(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "customresourcedefinition",
        "CustomResourceDefinition",
    )
    .short(&["crd", "crds"])
    .cluster()
    .with_status();

    const ARGO: &str = "argoproj.io";
    /// Argo Workflows. No status subresource, as in Argo's own definition.
    pub const WORKFLOWS: Resource =
        Resource::new(ARGO, "v1alpha1", "workflows", "workflow", "Workflow").short(&["wf"]).custom();
    /// Argo WorkflowTemplates.
    pub const WORKFLOW_TEMPLATES: Resource =
        Resource::new(ARGO, "v1alpha1", "workflowtemplates", "workflowtemplate", "WorkflowTemplate")
            .short(&["wftmpl"])
            .custom();
    /// Argo ClusterWorkflowTemplates.
    pub const CLUSTER_WORKFLOW_TEMPLATES: Resource = Resource::new(
        ARGO,
        "v1alpha1",
        "clusterworkflowtemplates",
        "clusterworkflowtemplate",
        "ClusterWorkflowTemplate",
    )
    .short(&["clusterwftmpl", "cwft"])
    .cluster()
    .custom();
    /// Argo CronWorkflows.
    pub const CRON_WORKFLOWS: Resource =
        Resource::new(ARGO, "v1alpha1", "cronworkflows", "cronworkflow", "CronWorkflow")
            .short(&["cwf", "cronwf"])
            .custom();
    /// Argo WorkflowEventBindings.
    pub const WORKFLOW_EVENT_BINDINGS: Resource =
        Resource::new(ARGO, "v1alpha1", "workfloweventbindings", "workfloweventbinding", "WorkflowEventBinding")
            .short(&["wfeb"])
            .custom();
    /// Argo WorkflowTaskSets.
    pub const WORKFLOW_TASK_SETS: Resource =
        Resource::new(ARGO, "v1alpha1", "workflowtasksets", "workflowtaskset", "WorkflowTaskSet")
            .short(&["wfts"])
            .with_status()
            .custom();
    /// Argo WorkflowTaskResults.
    pub const WORKFLOW_TASK_RESULTS: Resource =
        Resource::new(ARGO, "v1alpha1", "workflowtaskresults", "workflowtaskresult", "WorkflowTaskResult").custom();
    /// Argo WorkflowArtifactGCTasks.
    pub const WORKFLOW_ARTIFACT_GC_TASKS: Resource =
        Resource::new(ARGO, "v1alpha1", "workflowartifactgctasks", "workflowartifactgctask", "WorkflowArtifactGCTask")
            .short(&["wfat"])
            .with_status()
            .custom();

    /// KFP ScheduledWorkflows. No status subresource.
    pub const SCHEDULED_WORKFLOWS: Resource =
        Resource::new("kubeflow.org", "v1beta1", "scheduledworkflows", "scheduledworkflow", "ScheduledWorkflow")
            .short(&["swf"])
            .custom();
    /// KFP Viewers.
    pub const VIEWERS: Resource =
        Resource::new("kubeflow.org", "v1beta1", "viewers", "viewer", "Viewer").short(&["vi"]).custom();
    /// KFP Pipelines.
    pub const PIPELINES: Resource =
        Resource::new("pipelines.kubeflow.org", "v2beta1", "pipelines", "pipeline", "Pipeline").custom();
    /// KFP PipelineVersions.
    pub const PIPELINE_VERSIONS: Resource =
        Resource::new("pipelines.kubeflow.org", "v2beta1", "pipelineversions", "pipelineversion", "PipelineVersion")
            .with_status()
            .custom();

    /// Every constant of this module.
    pub const ALL: &[Resource] = &[
        NAMESPACES,
        NODES,
        PODS,
        EVENTS,
        CONFIG_MAPS,
        SECRETS,
        SERVICES,
        ENDPOINTS,
        SERVICE_ACCOUNTS,
        PERSISTENT_VOLUME_CLAIMS,
        PERSISTENT_VOLUMES,
        DEPLOYMENTS,
        STATEFUL_SETS,
        REPLICA_SETS,
        JOBS,
        CRON_JOBS,
        LEASES,
        EVENTS_V1,
        ROLES,
        ROLE_BINDINGS,
        CLUSTER_ROLES,
        CLUSTER_ROLE_BINDINGS,
        STORAGE_CLASSES,
        CUSTOM_RESOURCE_DEFINITIONS,
        WORKFLOWS,
        WORKFLOW_TEMPLATES,
        CLUSTER_WORKFLOW_TEMPLATES,
        CRON_WORKFLOWS,
        WORKFLOW_EVENT_BINDINGS,
        WORKFLOW_TASK_SETS,
        WORKFLOW_TASK_RESULTS,
        WORKFLOW_ARTIFACT_GC_TASKS,
        SCHEDULED_WORKFLOWS,
        VIEWERS,
        PIPELINES,
        PIPELINE_VERSIONS,
    ];
}
