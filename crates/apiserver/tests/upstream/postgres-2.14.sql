-- What releases 2.5 to 2.14 create on PostgreSQL, whose index and key names they do not quote.
CREATE TABLE db_statuses (
  "HaveSamplesLoaded" boolean NOT NULL,
  PRIMARY KEY ("HaveSamplesLoaded")
);
CREATE TABLE default_experiments (
  "DefaultExperimentId" varchar(255) NOT NULL,
  PRIMARY KEY ("DefaultExperimentId")
);
CREATE TABLE experiments (
  "UUID" varchar(255) NOT NULL,
  "Name" varchar(255) NOT NULL,
  "Description" varchar(255) NOT NULL,
  "CreatedAtInSec" bigint NOT NULL,
  "LastRunCreatedAtInSec" bigint NOT NULL,
  "Namespace" varchar(255) NOT NULL,
  "StorageState" varchar(255) NOT NULL,
  PRIMARY KEY ("UUID")
);
CREATE TABLE pipelines (
  "UUID" varchar(255) NOT NULL,
  "CreatedAtInSec" bigint NOT NULL,
  "Name" varchar(255) NOT NULL,
  "DisplayName" varchar(255) NOT NULL,
  "Description" text,
  "Parameters" varchar(65532),
  "Status" varchar(255) NOT NULL,
  "DefaultVersionId" varchar(255),
  "Namespace" varchar(63),
  PRIMARY KEY ("UUID")
);
CREATE TABLE pipeline_versions (
  "UUID" varchar(255) NOT NULL,
  "CreatedAtInSec" bigint NOT NULL,
  "Name" varchar(255) NOT NULL,
  "DisplayName" varchar(255) NOT NULL,
  "Parameters" varchar(65532) NOT NULL,
  "PipelineId" varchar(255) NOT NULL,
  "Status" varchar(255) NOT NULL,
  "CodeSourceUrl" varchar(255),
  "Description" varchar(65532),
  "PipelineSpec" varchar(65532) NOT NULL,
  "PipelineSpecURI" varchar(65532) NOT NULL,
  PRIMARY KEY ("UUID")
);
CREATE TABLE jobs (
  "UUID" varchar(255) NOT NULL,
  "DisplayName" varchar(255) NOT NULL,
  "Name" varchar(255) NOT NULL,
  "Namespace" varchar(255) NOT NULL,
  "ServiceAccount" varchar(255) NOT NULL,
  "Description" varchar(255) NOT NULL,
  "MaxConcurrency" bigint NOT NULL,
  "NoCatchup" boolean NOT NULL,
  "CreatedAtInSec" bigint NOT NULL,
  "UpdatedAtInSec" bigint DEFAULT 0,
  "Enabled" boolean NOT NULL,
  "ExperimentUUID" varchar(255) NOT NULL,
  "CronScheduleStartTimeInSec" bigint,
  "CronScheduleEndTimeInSec" bigint,
  "Schedule" varchar(255),
  "PeriodicScheduleStartTimeInSec" bigint,
  "PeriodicScheduleEndTimeInSec" bigint,
  "IntervalSecond" bigint,
  "PipelineId" varchar(255) NOT NULL,
  "PipelineVersionId" varchar(255) DEFAULT NULL,
  "PipelineName" varchar(255) NOT NULL,
  "PipelineSpecManifest" varchar(65532),
  "WorkflowSpecManifest" varchar(65532),
  "Parameters" varchar(65532),
  "RuntimeParameters" varchar(65532),
  "PipelineRoot" varchar(65532),
  "Conditions" varchar(255) NOT NULL,
  PRIMARY KEY ("UUID")
);
CREATE TABLE run_details (
  "UUID" varchar(255) NOT NULL,
  "DisplayName" varchar(255) NOT NULL,
  "Name" varchar(255) NOT NULL,
  "Description" varchar(255) NOT NULL,
  "Namespace" varchar(255) NOT NULL,
  "ExperimentUUID" varchar(255) NOT NULL,
  "JobUUID" varchar(255) DEFAULT NULL,
  "StorageState" varchar(255) NOT NULL,
  "ServiceAccount" varchar(255) NOT NULL,
  "PipelineId" varchar(255) NOT NULL,
  "PipelineVersionId" varchar(255) DEFAULT NULL,
  "PipelineName" varchar(255) NOT NULL,
  "PipelineSpecManifest" varchar(65532),
  "WorkflowSpecManifest" varchar(65532),
  "Parameters" varchar(65532),
  "RuntimeParameters" varchar(65532),
  "PipelineRoot" varchar(65532),
  "CreatedAtInSec" bigint NOT NULL,
  "ScheduledAtInSec" bigint DEFAULT 0,
  "FinishedAtInSec" bigint DEFAULT 0,
  "Conditions" varchar(255) NOT NULL,
  "State" varchar(255) DEFAULT NULL,
  "StateHistory" varchar(65532) DEFAULT NULL,
  "PipelineRuntimeManifest" varchar(65532) NOT NULL,
  "WorkflowRuntimeManifest" varchar(65532) NOT NULL,
  "PipelineContextId" bigint DEFAULT 0,
  "PipelineRunContextId" bigint DEFAULT 0,
  PRIMARY KEY ("UUID")
);
CREATE TABLE run_metrics (
  "RunUUID" varchar(255) NOT NULL,
  "NodeID" varchar(255) NOT NULL,
  "Name" varchar(255) NOT NULL,
  "NumberValue" double precision,
  "Format" varchar(255),
  "Payload" varchar(65532) NOT NULL,
  PRIMARY KEY ("RunUUID", "NodeID", "Name")
);
CREATE TABLE tasks (
  "UUID" varchar(255) NOT NULL,
  "Namespace" varchar(255) NOT NULL,
  "PipelineName" varchar(255) NOT NULL,
  "RunUUID" varchar(255) NOT NULL,
  "PodName" varchar(255) NOT NULL,
  "MLMDExecutionID" varchar(255) NOT NULL,
  "CreatedTimestamp" bigint NOT NULL,
  "StartedTimestamp" bigint DEFAULT 0,
  "FinishedTimestamp" bigint DEFAULT 0,
  "Fingerprint" varchar(255) NOT NULL,
  "Name" varchar(255) DEFAULT NULL,
  "ParentTaskUUID" varchar(255) DEFAULT NULL,
  "State" varchar(255) DEFAULT NULL,
  "StateHistory" varchar(65532) DEFAULT NULL,
  "MLMDInputs" varchar(65532) DEFAULT NULL,
  "MLMDOutputs" varchar(65532) DEFAULT NULL,
  "ChildrenPods" varchar(65532) DEFAULT NULL,
  "Payload" varchar(65532) DEFAULT NULL,
  PRIMARY KEY ("UUID")
);
CREATE TABLE resource_references (
  "ResourceUUID" varchar(255) NOT NULL,
  "ResourceType" varchar(255) NOT NULL,
  "ReferenceUUID" varchar(255) NOT NULL,
  "ReferenceName" varchar(255) NOT NULL,
  "ReferenceType" varchar(255) NOT NULL,
  "Relationship" varchar(255) NOT NULL,
  "Payload" text NOT NULL,
  PRIMARY KEY ("ResourceUUID", "ResourceType", "ReferenceType")
);
CREATE INDEX experimentuuid_conditions_finishedatinsec ON run_details ("ExperimentUUID", "Conditions", "FinishedAtInSec");
CREATE INDEX experimentuuid_createatinsec ON run_details ("ExperimentUUID", "CreatedAtInSec");
CREATE UNIQUE INDEX idx_name_namespace ON experiments ("Name", "Namespace");
CREATE INDEX idx_pipeline_versions_createdatinsec ON pipeline_versions ("CreatedAtInSec");
CREATE INDEX idx_pipeline_versions_pipelineid ON pipeline_versions ("PipelineId");
CREATE UNIQUE INDEX idx_pipelineid_name ON pipeline_versions ("Name", "PipelineId");
CREATE UNIQUE INDEX name_namespace_index ON pipelines ("Name", "Namespace");
CREATE INDEX namespace_conditions_finishedatinsec ON run_details ("Namespace", "Conditions", "FinishedAtInSec");
CREATE INDEX namespace_createatinsec ON run_details ("Namespace", "CreatedAtInSec");
CREATE UNIQUE INDEX namespace_name ON pipelines ("Name", "Namespace");
CREATE INDEX referencefilter ON resource_references ("ResourceType", "ReferenceUUID", "ReferenceType");
ALTER TABLE pipeline_versions ADD CONSTRAINT pipeline_versions_pipelineid_pipelines_uuid_foreign FOREIGN KEY ("PipelineId") REFERENCES pipelines("UUID") ON UPDATE CASCADE ON DELETE CASCADE;
ALTER TABLE run_metrics ADD CONSTRAINT run_metrics_runuuid_run_details_uuid_foreign FOREIGN KEY ("RunUUID") REFERENCES run_details("UUID") ON UPDATE CASCADE ON DELETE CASCADE;
ALTER TABLE tasks ADD CONSTRAINT tasks_runuuid_run_details_uuid_foreign FOREIGN KEY ("RunUUID") REFERENCES run_details("UUID") ON UPDATE CASCADE ON DELETE CASCADE;
