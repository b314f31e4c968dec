-- Rows as upstream writes them; run-1 stands for one of a release that had no State, JobUUID and plugins.
INSERT INTO db_statuses ("HaveSamplesLoaded") VALUES (true);
INSERT INTO default_experiments ("DefaultExperimentId") VALUES ('exp-1');
INSERT INTO experiments ("UUID", "Name", "Description", "CreatedAtInSec", "LastRunCreatedAtInSec", "Namespace", "StorageState")
VALUES ('exp-1', 'Default', 'All runs created without specifying an experiment will be grouped here.', 1600000000, 0, '', 'AVAILABLE');
INSERT INTO pipelines ("UUID", "CreatedAtInSec", "Name", "DisplayName", "Description", "Parameters", "Status", "DefaultVersionId", "Namespace")
VALUES ('pipe-1', 1600000000, 'p', 'Pipeline é', '', '', 'READY', '', '');
INSERT INTO pipeline_versions ("UUID", "CreatedAtInSec", "Name", "DisplayName", "Parameters", "PipelineId", "Status", "PipelineSpec", "PipelineSpecURI")
VALUES ('ver-1', 1600000000, 'v1', 'v1', '[]', 'pipe-1', 'READY', 'pipelineInfo: {name: p}', '');
INSERT INTO jobs ("UUID", "DisplayName", "Name", "Namespace", "ServiceAccount", "Description", "MaxConcurrency", "NoCatchup", "CreatedAtInSec", "UpdatedAtInSec", "Enabled", "ExperimentUUID", "Schedule", "IntervalSecond", "PipelineId", "PipelineVersionId", "PipelineName", "PipelineSpecManifest", "WorkflowSpecManifest", "Parameters", "RuntimeParameters", "PipelineRoot", "Conditions")
VALUES ('job-1', 'Daily', 'daily-abc', 'kubeflow', 'pipeline-runner', '', 1, true, 1600000000, 1600000000, true, 'exp-1', '0 0 * * * *', 0, 'pipe-1', 'ver-1', 'v1', '', '', '', '{}', '', 'ENABLED');
INSERT INTO run_details ("UUID", "DisplayName", "Name", "Description", "Namespace", "ExperimentUUID", "StorageState", "ServiceAccount", "PipelineId", "PipelineName", "PipelineSpecManifest", "WorkflowSpecManifest", "Parameters", "CreatedAtInSec", "ScheduledAtInSec", "FinishedAtInSec", "Conditions", "PipelineRuntimeManifest", "WorkflowRuntimeManifest", "PipelineContextId", "PipelineRunContextId")
VALUES ('run-1', 'old', 'old-abc', '', '', 'exp-1', 'AVAILABLE', 'pipeline-runner', '', '', '', '{}', '[]', 1600000000, 1600000000, 1600000100, 'Succeeded', '', '{}', 0, 0);
INSERT INTO run_details ("UUID", "DisplayName", "Name", "Description", "Namespace", "ExperimentUUID", "JobUUID", "StorageState", "ServiceAccount", "PipelineId", "PipelineVersionId", "PipelineName", "PipelineSpecManifest", "WorkflowSpecManifest", "Parameters", "RuntimeParameters", "PipelineRoot", "CreatedAtInSec", "ScheduledAtInSec", "FinishedAtInSec", "Conditions", "State", "StateHistory", "PipelineRuntimeManifest", "WorkflowRuntimeManifest", "PipelineContextId", "PipelineRunContextId")
VALUES ('run-2', 'new', 'p-xyz', '', '', 'exp-1', '', 'AVAILABLE', 'pipeline-runner', '', '', '', 'pipelineInfo: {name: p}
', '', '', '{"a":1}', '', 1600000200, 1600000200, 0, 'Running', 'RUNNING', '[{"UpdateTimeInSec":1600000200,"State":"RUNNING"}]', '{}', '{}', 0, 0);
INSERT INTO tasks ("UUID", "Namespace", "PipelineName", "RunUUID", "PodName", "MLMDExecutionID", "CreatedTimestamp", "StartedTimestamp", "FinishedTimestamp", "Fingerprint", "Name", "State")
VALUES ('task-1', 'kubeflow', '', 'run-2', 'p-xyz-1', '', 1600000200, 1600000200, -62135596800, '', 'train', 'RUNNING');
INSERT INTO resource_references ("ResourceUUID", "ResourceType", "ReferenceUUID", "ReferenceName", "ReferenceType", "Relationship", "Payload")
VALUES ('run-1', 'Run', 'exp-1', 'Default', 'Experiment', 'Owner', '{}'), ('run-2', 'Run', 'exp-1', 'Default', 'Experiment', 'Owner', '{}');
