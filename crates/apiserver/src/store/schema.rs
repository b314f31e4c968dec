//! Upstream's tables: the names, columns and keys that its release 2.17 and the run collector after it use.

use super::db::Db;
use super::sql::{Dialect, Sql};
use crate::error::{Error, Result};

/// Types that differ between the databases.
#[derive(Clone, Copy)]
enum Type {
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

#[derive(Clone, Copy)]
enum Null {
    Not,
    Yes,
    /// NULL allowed, 0 when not given.
    Zero,
}
use Null::{Not, Yes, Zero};

struct Table {
    name: &'static str,
    columns: &'static [(&'static str, Type, Null)],
    primary: &'static [&'static str],
    unique: &'static [(&'static str, &'static [&'static str])],
    index: &'static [(&'static str, &'static [&'static str])],
    /// (constraint, column, table); the target is always `UUID`, cascading both ways.
    foreign: &'static [(&'static str, &'static str, &'static str)],
}

const TABLES: &[Table] = &[
    Table {
        name: "db_statuses",
        columns: &[("HaveSamplesLoaded", Bool, Not)],
        primary: &["HaveSamplesLoaded"],
        unique: &[],
        index: &[],
        foreign: &[],
    },
    Table {
        name: "default_experiments",
        columns: &[("DefaultExperimentId", Key(191), Not)],
        primary: &["DefaultExperimentId"],
        unique: &[],
        index: &[],
        foreign: &[],
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
    },
    Table {
        name: "pipeline_tags",
        columns: &[("PipelineId", Key(64), Not), ("TagKey", Key(63), Not), ("TagValue", Key(63), Not)],
        primary: &["PipelineId", "TagKey"],
        unique: &[],
        index: &[("idx_pipeline_tags_key_value_id", &["TagKey", "TagValue", "PipelineId"])],
        foreign: &[("pipeline_tags_PipelineId_pipelines_UUID_foreign", "PipelineId", "pipelines")],
    },
    Table {
        name: "pipeline_version_tags",
        columns: &[("PipelineVersionId", Key(191), Not), ("TagKey", Key(63), Not), ("TagValue", Key(63), Not)],
        primary: &["PipelineVersionId", "TagKey"],
        unique: &[],
        index: &[("idx_pv_tags_key_value_id", &["TagKey", "TagValue", "PipelineVersionId"])],
        foreign: &[("pv_tags_PipelineVersionId_pv_UUID_fk", "PipelineVersionId", "pipeline_versions")],
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
    },
];

fn type_name(dialect: Dialect, kind: Type) -> String {
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

fn statements(dialect: Dialect, table: &Table) -> Vec<Sql> {
    let mut create = Sql::new(dialect);
    create.push("CREATE TABLE IF NOT EXISTS ").ident(table.name).push(" (");
    for (name, kind, null) in table.columns {
        create.ident(name).push(" ").push(&type_name(dialect, *kind)).push(match null {
            Not => " NOT NULL, ",
            Yes => " NULL, ",
            Zero => " NULL DEFAULT 0, ",
        });
    }
    create.push("PRIMARY KEY (").columns(table.primary).push(")");
    for (name, column, target) in table.foreign {
        create.push(", CONSTRAINT ").ident(name).push(" FOREIGN KEY (").ident(column).push(") REFERENCES ");
        create.ident(target).push(" (").ident("UUID").push(") ON DELETE CASCADE ON UPDATE CASCADE");
    }
    create.push(")");
    let mut all = vec![create];
    for (unique, (name, columns)) in
        table.unique.iter().map(|key| (true, key)).chain(table.index.iter().map(|key| (false, key)))
    {
        let mut index = Sql::new(dialect);
        index.push(if unique { "CREATE UNIQUE INDEX IF NOT EXISTS " } else { "CREATE INDEX IF NOT EXISTS " });
        index.ident(name).push(" ON ").ident(table.name).push(" (").columns(columns).push(")");
        all.push(index);
    }
    all
}

/// Creates what is missing and seeds the two one-row tables.
///
/// # Errors
/// When the database refuses a statement.
pub async fn create(db: &Db) -> Result<()> {
    let mut tx = db.write().await?;
    let dialect = tx.dialect();
    let failed = |error| Error::from(error).wrap("cannot create the database schema");
    for table in TABLES {
        for statement in statements(dialect, table) {
            tx.execute(statement).await.map_err(failed)?;
        }
    }
    for (table, column, seed) in
        [("db_statuses", "HaveSamplesLoaded", false.into()), ("default_experiments", "DefaultExperimentId", "".into())]
    {
        let mut count = Sql::new(dialect);
        count.push("SELECT COUNT(*) FROM ").ident(table);
        if tx.number(count).await? == 0 {
            tx.execute(Sql::insert(dialect, table, vec![(column, seed)])).await.map_err(failed)?;
        }
    }
    tx.commit().await
}
