//! Upstream's tables: the names, columns and keys that its release 2.17 and the run collector after it use, and the
//! indexes that we add.

use super::super::sql::{Dialect, Sql};

/// Types that differ between the databases.
#[derive(Clone, Copy)]
pub(super) enum Type {
    /// `varchar(n)`.
    Key(u16),
    /// `varchar(255)` or `text`.
    Short,
    /// `longtext` or `text`.
    Long,
    Int,
    Bool,
    Float,
}
use Type::{Bool, Float, Int, Key, Long, Short};

impl Type {
    /// How many characters it takes, if that is limited.
    pub fn limit(self, dialect: Dialect) -> Option<usize> {
        match (dialect, self) {
            (_, Key(length)) => Some(usize::from(length)),
            (Dialect::MySql, Short) => Some(255),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Null {
    Not,
    Yes,
    /// NULL allowed, 0 when not given.
    Zero,
}
use Null::{Not, Yes, Zero};

/// Name and columns.
pub(super) type Index = (&'static str, &'static [&'static str]);

pub(super) struct Table {
    pub name: &'static str,
    pub columns: &'static [(&'static str, Type, Null)],
    pub primary: &'static [&'static str],
    pub unique: &'static [Index],
    pub index: &'static [Index],
    /// (constraint, column, table); the target is always `UUID`, cascading both ways.
    pub foreign: &'static [(&'static str, &'static str, &'static str)],
    /// Ours: lists read them in order and count in them, so they end with what lists are filtered by. Upstream leaves
    /// indexes that it does not know alone.
    pub ours: &'static [Index],
}

pub(super) const TABLES: &[Table] = &[
    Table {
        name: "db_statuses",
        columns: &[("HaveSamplesLoaded", Bool, Not)],
        primary: &["HaveSamplesLoaded"],
        unique: &[],
        index: &[],
        foreign: &[],
        ours: &[],
    },
    Table {
        name: "default_experiments",
        columns: &[("DefaultExperimentId", Key(191), Not)],
        primary: &["DefaultExperimentId"],
        unique: &[],
        index: &[],
        foreign: &[],
        ours: &[],
    },
    Table {
        name: "experiments",
        columns: &[
            ("UUID", Key(191), Not),
            ("Name", Key(128), Not),
            ("Description", Short, Not),
            ("CreatedAtInSec", Int, Not),
            ("LastRunCreatedAtInSec", Int, Not),
            ("Namespace", Key(63), Not),
            ("StorageState", Short, Not),
        ],
        primary: &["UUID"],
        unique: &[("idx_name_namespace", &["Name", "Namespace"])],
        index: &[],
        foreign: &[],
        ours: &[("list_experiments", &["Namespace", "CreatedAtInSec", "UUID", "StorageState"])],
    },
    Table {
        name: "pipelines",
        columns: &[
            ("UUID", Key(64), Not),
            ("CreatedAtInSec", Int, Not),
            ("Name", Key(128), Not),
            ("DisplayName", Short, Not),
            ("Description", Long, Not),
            ("Parameters", Long, Yes),
            ("Status", Short, Not),
            ("DefaultVersionId", Short, Yes),
            ("Namespace", Key(63), Yes),
        ],
        primary: &["UUID"],
        unique: &[("namespace_name", &["Name", "Namespace"])],
        index: &[],
        foreign: &[],
        ours: &[("list_pipelines", &["Namespace", "CreatedAtInSec", "UUID", "Status"])],
    },
    Table {
        name: "pipeline_versions",
        columns: &[
            ("UUID", Key(191), Not),
            ("CreatedAtInSec", Int, Not),
            ("Name", Key(127), Not),
            ("DisplayName", Short, Not),
            ("Parameters", Long, Not),
            ("PipelineId", Key(64), Not),
            ("Status", Short, Not),
            ("CodeSourceUrl", Short, Yes),
            ("Description", Long, Yes),
            ("PipelineSpec", Long, Not),
            ("PipelineSpecURI", Long, Not),
        ],
        primary: &["UUID"],
        unique: &[("idx_pipelineid_name", &["Name", "PipelineId"])],
        index: &[
            ("idx_pipeline_versions_CreatedAtInSec", &["CreatedAtInSec"]),
            ("idx_pipeline_versions_PipelineId", &["PipelineId"]),
        ],
        foreign: &[("pipeline_versions_PipelineId_pipelines_UUID_foreign", "PipelineId", "pipelines")],
        ours: &[("list_pipeline_versions", &["PipelineId", "CreatedAtInSec", "UUID", "Status"])],
    },
    Table {
        name: "pipeline_tags",
        columns: &[("PipelineId", Key(64), Not), ("TagKey", Key(63), Not), ("TagValue", Key(63), Not)],
        primary: &["PipelineId", "TagKey"],
        unique: &[],
        index: &[("idx_pipeline_tags_key_value_id", &["TagKey", "TagValue", "PipelineId"])],
        foreign: &[("pipeline_tags_PipelineId_pipelines_UUID_foreign", "PipelineId", "pipelines")],
        ours: &[],
    },
    Table {
        name: "pipeline_version_tags",
        columns: &[("PipelineVersionId", Key(191), Not), ("TagKey", Key(63), Not), ("TagValue", Key(63), Not)],
        primary: &["PipelineVersionId", "TagKey"],
        unique: &[],
        index: &[("idx_pv_tags_key_value_id", &["TagKey", "TagValue", "PipelineVersionId"])],
        foreign: &[("pv_tags_PipelineVersionId_pv_UUID_fk", "PipelineVersionId", "pipeline_versions")],
        ours: &[],
    },
    Table {
        name: "jobs",
        columns: &[
            ("UUID", Key(191), Not),
            ("DisplayName", Short, Not),
            ("Name", Short, Not),
            ("Namespace", Short, Not),
            ("ServiceAccount", Short, Not),
            ("Description", Short, Not),
            ("MaxConcurrency", Int, Not),
            ("NoCatchup", Bool, Not),
            ("CreatedAtInSec", Int, Not),
            ("UpdatedAtInSec", Int, Zero),
            ("Enabled", Bool, Not),
            ("ExperimentUUID", Short, Not),
            ("CronScheduleStartTimeInSec", Int, Yes),
            ("CronScheduleEndTimeInSec", Int, Yes),
            ("Schedule", Short, Yes),
            ("PeriodicScheduleStartTimeInSec", Int, Yes),
            ("PeriodicScheduleEndTimeInSec", Int, Yes),
            ("IntervalSecond", Int, Yes),
            ("PipelineId", Short, Not),
            ("PipelineVersionId", Short, Yes),
            ("PipelineName", Short, Not),
            ("PipelineSpecManifest", Long, Yes),
            ("WorkflowSpecManifest", Long, Yes),
            ("Parameters", Long, Yes),
            ("RuntimeParameters", Long, Yes),
            ("PipelineRoot", Long, Yes),
            ("Conditions", Short, Not),
            ("PluginsInput", Long, Yes),
        ],
        primary: &["UUID"],
        unique: &[],
        index: &[],
        foreign: &[],
        ours: &[
            ("list_jobs", &["CreatedAtInSec", "UUID"]),
            ("list_jobs_of_experiment", &["ExperimentUUID", "CreatedAtInSec", "UUID"]),
        ],
    },
    Table {
        name: "run_details",
        columns: &[
            ("UUID", Key(191), Not),
            ("DisplayName", Short, Not),
            ("Name", Short, Not),
            ("Description", Short, Not),
            ("Namespace", Key(63), Not),
            ("ExperimentUUID", Key(64), Not),
            ("JobUUID", Short, Yes),
            ("StorageState", Short, Not),
            ("ServiceAccount", Short, Not),
            ("PipelineId", Short, Not),
            ("PipelineVersionId", Short, Yes),
            ("PipelineName", Short, Not),
            ("PipelineSpecManifest", Long, Yes),
            ("WorkflowSpecManifest", Long, Yes),
            ("Parameters", Long, Yes),
            ("RuntimeParameters", Long, Yes),
            ("PipelineRoot", Long, Yes),
            ("CreatedAtInSec", Int, Not),
            ("ScheduledAtInSec", Int, Zero),
            ("FinishedAtInSec", Int, Zero),
            ("Conditions", Key(125), Not),
            ("State", Short, Yes),
            ("StateHistory", Long, Yes),
            ("PluginsInput", Long, Yes),
            ("PluginsOutput", Long, Yes),
            ("PipelineRuntimeManifest", Long, Not),
            ("WorkflowRuntimeManifest", Long, Not),
            ("PipelineContextId", Int, Zero),
            ("PipelineRunContextId", Int, Zero),
            ("RetryGeneration", Int, Zero),
            ("RetryClaimedAtInSec", Int, Zero),
            ("ArchivedAtInSec", Int, Zero),
        ],
        primary: &["UUID"],
        unique: &[],
        index: &[
            ("namespace_createatinsec", &["Namespace", "CreatedAtInSec"]),
            ("namespace_conditions_finishedatinsec", &["Namespace", "Conditions", "FinishedAtInSec"]),
            ("experimentuuid_createatinsec", &["ExperimentUUID", "CreatedAtInSec"]),
            ("experimentuuid_conditions_finishedatinsec", &["ExperimentUUID", "Conditions", "FinishedAtInSec"]),
            ("idx_run_gc_lifecycle", &["StorageState", "FinishedAtInSec"]),
            ("idx_run_gc_archived", &["StorageState", "ArchivedAtInSec"]),
        ],
        foreign: &[],
        ours: &[
            ("list_runs", &["CreatedAtInSec", "UUID", "StorageState", "State"]),
            ("list_runs_of_experiment", &["ExperimentUUID", "CreatedAtInSec", "UUID", "StorageState", "State"]),
            ("list_runs_of_namespace", &["Namespace", "CreatedAtInSec", "UUID", "StorageState", "State"]),
            ("list_runs_by_name", &["DisplayName", "UUID", "StorageState"]),
            ("list_runs_of_experiment_by_name", &["ExperimentUUID", "DisplayName", "UUID", "StorageState"]),
            ("runs_of_job", &["JobUUID", "DisplayName"]),
        ],
    },
    Table {
        name: "run_metrics",
        columns: &[
            ("RunUUID", Key(191), Not),
            ("NodeID", Key(191), Not),
            ("Name", Key(191), Not),
            ("NumberValue", Float, Yes),
            ("Format", Short, Yes),
            ("Payload", Long, Not),
        ],
        primary: &["RunUUID", "NodeID", "Name"],
        unique: &[],
        index: &[],
        foreign: &[("run_metrics_RunUUID_run_details_UUID_foreign", "RunUUID", "run_details")],
        ours: &[],
    },
    Table {
        name: "tasks",
        columns: &[
            ("UUID", Key(191), Not),
            ("Namespace", Short, Not),
            ("PipelineName", Short, Not),
            ("RunUUID", Key(191), Not),
            ("PodName", Short, Not),
            ("MLMDExecutionID", Short, Not),
            ("CreatedTimestamp", Int, Not),
            ("StartedTimestamp", Int, Zero),
            ("FinishedTimestamp", Int, Zero),
            ("Fingerprint", Short, Not),
            ("Name", Short, Yes),
            ("ParentTaskUUID", Short, Yes),
            ("State", Short, Yes),
            ("StateHistory", Long, Yes),
            ("MLMDInputs", Long, Yes),
            ("MLMDOutputs", Long, Yes),
            ("ChildrenPods", Long, Yes),
            ("Payload", Long, Yes),
        ],
        primary: &["UUID"],
        unique: &[],
        index: &[("tasks_RunUUID_run_details_UUID_foreign", &["RunUUID"])],
        foreign: &[("tasks_RunUUID_run_details_UUID_foreign", "RunUUID", "run_details")],
        ours: &[("tasks_by_fingerprint", &["Fingerprint", "CreatedTimestamp"])],
    },
    Table {
        name: "resource_references",
        columns: &[
            ("ResourceUUID", Key(191), Not),
            ("ResourceType", Short, Not),
            ("ReferenceUUID", Key(191), Not),
            ("ReferenceName", Short, Not),
            ("ReferenceType", Short, Not),
            ("Relationship", Short, Not),
            ("Payload", Long, Not),
        ],
        primary: &["ResourceUUID", "ResourceType", "ReferenceType"],
        unique: &[],
        index: &[("referencefilter", &["ResourceType", "ReferenceUUID", "ReferenceType"])],
        foreign: &[],
        ours: &[],
    },
];

pub(super) fn type_name(dialect: Dialect, kind: Type) -> String {
    match (dialect, kind) {
        (_, Key(length)) => format!("varchar({length})"),
        (Dialect::MySql, Short) => "varchar(255)".to_owned(),
        (Dialect::MySql, Long) => "longtext".to_owned(),
        (_, Short | Long) => "text".to_owned(),
        (_, Int) => "bigint".to_owned(),
        (_, Bool) => "boolean".to_owned(),
        (Dialect::Postgres, Float) => "decimal".to_owned(),
        (_, Float) => "double".to_owned(),
    }
}

/// Which columns come last in a SQLite file: its rows are chains of pages, and what stands behind a long value is read
/// only after it. Elsewhere long values live apart.
fn weight(dialect: Dialect, (name, kind, _): &(&str, Type, Null)) -> u8 {
    match kind {
        Long if dialect != Dialect::Sqlite => 0,
        Long if name.ends_with("Manifest") || *name == "PipelineSpec" => 2,
        Long => 1,
        _ => 0,
    }
}

impl Table {
    /// Appends name, type and default of a column.
    pub fn define(sql: &mut Sql, (name, kind, null): &(&str, Type, Null)) {
        let kind = type_name(sql.dialect(), *kind);
        sql.ident(name).push(" ").push(&kind).push(match null {
            Not => " NOT NULL",
            Yes => " NULL",
            Zero => " NULL DEFAULT 0",
        });
    }

    /// Creates the table with its keys; see [`Table::indexes`] for the rest.
    pub fn create(&self, dialect: Dialect) -> Sql {
        let mut sql = Sql::new(dialect);
        sql.push("CREATE TABLE ").ident(self.name).push(" (");
        let mut columns: Vec<_> = self.columns.iter().collect();
        columns.sort_by_key(|column| weight(dialect, column));
        for column in columns {
            Self::define(&mut sql, column);
            sql.push(", ");
        }
        sql.push("PRIMARY KEY (").columns(self.primary).push(")");
        if dialect == Dialect::MySql {
            // In the same statement, or foreign keys would make indexes of their own.
            for (unique, (name, columns)) in self.indexes() {
                sql.push(if unique { ", UNIQUE INDEX " } else { ", INDEX " });
                sql.ident(name).push(" (").columns(columns).push(")");
            }
        }
        for foreign in self.foreign {
            sql.push(", ");
            Self::reference(&mut sql, foreign);
        }
        sql.push(")");
        sql
    }

    /// Appends a foreign key.
    pub fn reference(sql: &mut Sql, (name, column, target): &(&str, &str, &str)) {
        sql.push("CONSTRAINT ").ident(name).push(" FOREIGN KEY (").ident(column).push(") REFERENCES ");
        sql.ident(target).push(" (").ident("UUID").push(") ON DELETE CASCADE ON UPDATE CASCADE");
    }

    /// Upstream's indexes and ours, with whether they are unique.
    pub fn indexes(&self) -> impl Iterator<Item = (bool, &'static Index)> {
        let unique = self.unique.iter().map(|index| (true, index));
        unique.chain(self.index.iter().chain(self.ours).map(|index| (false, index)))
    }
}
