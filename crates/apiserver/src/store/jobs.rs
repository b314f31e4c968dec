//! Recurring runs, which the tables call jobs.

use std::collections::BTreeMap;

use super::db::{Row, Tx};
use super::list::{Listable, Options, Page, page, text, time};
use super::specs::Specs;
use super::sql::{Sql, Value};
use crate::error::{Error, Result};

/// When a recurring run fires; times are Unix seconds, `None` when not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trigger {
    /// Start of the cron schedule.
    pub cron_start: Option<i64>,
    /// End of the cron schedule.
    pub cron_end: Option<i64>,
    /// The cron text; empty when there is none.
    pub cron: String,
    /// Start of the periodic schedule.
    pub periodic_start: Option<i64>,
    /// End of the periodic schedule.
    pub periodic_end: Option<i64>,
    /// Seconds between runs; 0 when there is no periodic schedule.
    pub interval: i64,
}

/// A row of `jobs` without its manifests.
#[derive(Clone, Debug, Default)]
pub struct Job {
    /// Primary key: the uid of the ScheduledWorkflow.
    pub id: String,
    /// Chosen by the user.
    pub display_name: String,
    /// Name of the ScheduledWorkflow.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Service account of the runs.
    pub service_account: String,
    /// Free text.
    pub description: String,
    /// Runs that may be under way at the same time.
    pub max_concurrency: i64,
    /// Do not make up for missed times.
    pub no_catchup: bool,
    /// Unix seconds.
    pub created_at: i64,
    /// Unix seconds.
    pub updated_at: i64,
    /// Whether it fires.
    pub enabled: bool,
    /// Experiment of the runs.
    pub experiment_id: String,
    /// When it fires.
    pub trigger: Trigger,
    /// Pipeline, or empty.
    pub pipeline_id: String,
    /// Version, or empty.
    pub version_id: String,
    /// Name of the version.
    pub pipeline_name: String,
    /// v1 parameters.
    pub parameters: String,
    /// v2 parameters: JSON object of values; empty when none.
    pub runtime_parameters: String,
    /// Where artifacts go, or empty.
    pub pipeline_root: String,
    /// Status word.
    pub conditions: String,
    /// JSON object, echoed.
    pub plugins_input: String,
}

const TABLE: &str = "jobs";
const COLUMNS: &[&str] = &[
    "UUID",
    "DisplayName",
    "Name",
    "Namespace",
    "ServiceAccount",
    "Description",
    "MaxConcurrency",
    "NoCatchup",
    "CreatedAtInSec",
    "UpdatedAtInSec",
    "Enabled",
    "ExperimentUUID",
    "CronScheduleStartTimeInSec",
    "CronScheduleEndTimeInSec",
    "Schedule",
    "PeriodicScheduleStartTimeInSec",
    "PeriodicScheduleEndTimeInSec",
    "IntervalSecond",
    "PipelineId",
    "PipelineVersionId",
    "PipelineName",
    "Parameters",
    "RuntimeParameters",
    "PipelineRoot",
    "Conditions",
    "PluginsInput",
];

/// How recurring runs are listed.
pub static LISTABLE: Listable = Listable {
    kind: "Job",
    table: TABLE,
    created: "CreatedAtInSec",
    fields: &[
        text("id", "UUID"),
        text("recurring_run_id", "UUID"),
        text("name", "DisplayName"),
        text("display_name", "DisplayName"),
        time("created_at", "CreatedAtInSec"),
        time("updated_at", "UpdatedAtInSec").nullable(),
        text("description", "Description"),
    ],
    tags: None,
    parts: None,
    metrics: None,
};

fn read(row: &Row) -> Result<Job> {
    let mut cursor = row.cursor();
    let set = |seconds: i64| (seconds != 0).then_some(seconds);
    Ok(Job {
        id: cursor.text()?,
        display_name: cursor.text()?,
        name: cursor.text()?,
        namespace: cursor.text()?,
        service_account: cursor.text()?,
        description: cursor.text()?,
        max_concurrency: cursor.int()?,
        no_catchup: cursor.bool()?,
        created_at: cursor.int()?,
        updated_at: cursor.int()?,
        enabled: cursor.bool()?,
        experiment_id: cursor.text()?,
        trigger: Trigger {
            cron_start: set(cursor.int()?),
            cron_end: set(cursor.int()?),
            cron: cursor.text()?,
            periodic_start: set(cursor.int()?),
            periodic_end: set(cursor.int()?),
            interval: cursor.int()?,
        },
        pipeline_id: cursor.text()?,
        version_id: cursor.text()?,
        pipeline_name: cursor.text()?,
        parameters: cursor.text()?,
        runtime_parameters: cursor.text()?,
        pipeline_root: cursor.text()?,
        conditions: cursor.text()?,
        plugins_input: cursor.text()?,
    })
}

fn trigger_row(trigger: &Trigger) -> Vec<(&'static str, Value)> {
    vec![
        ("CronScheduleStartTimeInSec", trigger.cron_start.into()),
        ("CronScheduleEndTimeInSec", trigger.cron_end.into()),
        ("Schedule", (&trigger.cron).into()),
        ("PeriodicScheduleStartTimeInSec", trigger.periodic_start.into()),
        ("PeriodicScheduleEndTimeInSec", trigger.periodic_end.into()),
        ("IntervalSecond", trigger.interval.into()),
    ]
}

/// Stores a new recurring run with its references and the specs that it pins (empty when it follows a pipeline).
///
/// # Errors
/// When the database fails.
pub async fn insert(tx: &mut Tx, job: &Job, specs: &Specs) -> Result<()> {
    let mut row = vec![
        ("UUID", (&job.id).into()),
        ("DisplayName", (&job.display_name).into()),
        ("Name", (&job.name).into()),
        ("Namespace", (&job.namespace).into()),
        ("ServiceAccount", (&job.service_account).into()),
        ("Description", (&job.description).into()),
        ("MaxConcurrency", job.max_concurrency.into()),
        ("NoCatchup", job.no_catchup.into()),
        ("CreatedAtInSec", job.created_at.into()),
        ("UpdatedAtInSec", job.updated_at.into()),
        ("Enabled", job.enabled.into()),
        ("ExperimentUUID", (&job.experiment_id).into()),
        ("PipelineId", (&job.pipeline_id).into()),
        ("PipelineVersionId", (&job.version_id).into()),
        ("PipelineName", (&job.pipeline_name).into()),
        ("PipelineSpecManifest", (&specs.pipeline).into()),
        ("WorkflowSpecManifest", (&specs.workflow).into()),
        ("Parameters", (&job.parameters).into()),
        ("RuntimeParameters", (&job.runtime_parameters).into()),
        ("PipelineRoot", (&job.pipeline_root).into()),
        ("Conditions", (&job.conditions).into()),
        ("PluginsInput", (&job.plugins_input).into()),
    ];
    row.extend(trigger_row(&job.trigger));
    tx.execute(Sql::insert(tx.dialect(), TABLE, row)).await?;
    refer(tx, job).await
}

async fn refer(tx: &mut Tx, job: &Job) -> Result<()> {
    for (kind, id, relationship) in [
        ("Namespace", &job.namespace, "Owner"),
        ("Experiment", &job.experiment_id, "Owner"),
        // Lower case is upstream's word here.
        ("pipeline", &job.pipeline_id, "Creator"),
        ("PipelineVersion", &job.version_id, "Creator"),
    ] {
        if !id.is_empty() {
            super::runs::refer(tx, ("Job", &job.id), (kind, id, ""), relationship).await?;
        }
    }
    Ok(())
}

/// The recurring run with this id.
///
/// # Errors
/// Code 5 when there is none.
pub async fn get(tx: &mut Tx, id: &str) -> Result<Job> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("UUID", "=", id);
    let row = tx.row(sql).await?;
    row.as_ref().map_or_else(|| Err(Error::not_found("Job", id)), read)
}

/// The pinned specs of a recurring run; empty when it follows a pipeline.
///
/// # Errors
/// Code 5 when there is no such recurring run.
pub async fn specs(tx: &mut Tx, id: &str) -> Result<Specs> {
    let found = super::specs::of(tx, TABLE, &[id.to_owned()]).await?.remove(id);
    found.ok_or_else(|| Error::not_found("Job", id))
}

/// The pinned specs of several recurring runs by id: one query.
///
/// # Errors
/// When the database fails.
pub async fn specs_of(tx: &mut Tx, ids: &[String]) -> Result<BTreeMap<String, Specs>> {
    super::specs::of(tx, TABLE, ids).await
}

/// Recurring runs with a pinned spec, in the order of their ids, after `after`.
///
/// # Errors
/// When the database fails.
pub async fn pinned(tx: &mut Tx, after: &str, limit: u32) -> Result<Vec<Job>> {
    let mut sql = Sql::select(tx.dialect(), TABLE, COLUMNS);
    sql.and("UUID", ">", after).push(" AND (").ident("PipelineSpecManifest").push(" <> '' OR ");
    sql.ident("WorkflowSpecManifest").push(" <> '') ORDER BY ").ident("UUID").push(" LIMIT ").push(&limit.to_string());
    tx.rows(sql).await?.iter().map(read).collect()
}

/// One page of recurring runs: two queries.
///
/// # Errors
/// When the database fails.
pub async fn list(tx: &mut Tx, scope: &[(&str, Value)], options: &Options) -> Result<Page<Job>> {
    page(tx, &LISTABLE, COLUMNS, scope, options, read).await
}

/// Ids of an experiment's enabled recurring runs with name and namespace of their ScheduledWorkflows.
///
/// # Errors
/// When the database fails.
pub async fn of_experiment(tx: &mut Tx, experiment_id: &str) -> Result<Vec<(String, String)>> {
    let mut sql = Sql::select(tx.dialect(), TABLE, &["Namespace", "Name"]);
    sql.and("ExperimentUUID", "=", experiment_id).and("Enabled", "=", true);
    tx.rows(sql).await?.iter().map(|row| Ok((row.text(0)?, row.text(1)?))).collect()
}

/// Enables or disables.
///
/// # Errors
/// When the database fails.
pub async fn set_enabled(tx: &mut Tx, id: &str, enabled: bool, now: i64) -> Result<()> {
    let set = vec![("Enabled", enabled.into()), ("UpdatedAtInSec", now.into())];
    let mut sql = Sql::update(tx.dialect(), TABLE, set);
    sql.and("UUID", "=", id).and("Enabled", "=", !enabled);
    tx.execute(sql).await?;
    Ok(())
}

/// Stores what a user changed: all but id, object, experiment and creation. `specs` are stored when the pipeline changed.
///
/// # Errors
/// When the database fails.
pub async fn update(tx: &mut Tx, job: &Job, specs: Option<&Specs>) -> Result<()> {
    let mut set = vec![
        ("DisplayName", (&job.display_name).into()),
        ("Description", (&job.description).into()),
        ("ServiceAccount", (&job.service_account).into()),
        ("MaxConcurrency", job.max_concurrency.into()),
        ("NoCatchup", job.no_catchup.into()),
        ("UpdatedAtInSec", job.updated_at.into()),
        ("Enabled", job.enabled.into()),
        ("Parameters", (&job.parameters).into()),
        ("RuntimeParameters", (&job.runtime_parameters).into()),
        ("PipelineRoot", (&job.pipeline_root).into()),
        ("PluginsInput", (&job.plugins_input).into()),
    ];
    set.extend(trigger_row(&job.trigger));
    if let Some(specs) = specs {
        set.extend([
            ("PipelineId", (&job.pipeline_id).into()),
            ("PipelineVersionId", (&job.version_id).into()),
            ("PipelineName", (&job.pipeline_name).into()),
            ("PipelineSpecManifest", (&specs.pipeline).into()),
            ("WorkflowSpecManifest", (&specs.workflow).into()),
        ]);
        forget(tx, &job.id).await?;
        refer(tx, job).await?;
    }
    let mut sql = Sql::update(tx.dialect(), TABLE, set);
    sql.and("UUID", "=", &job.id);
    tx.execute(sql).await?;
    Ok(())
}

/// What a report of a ScheduledWorkflow tells.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Name of the object.
    pub name: String,
    /// `spec.enabled`.
    pub enabled: bool,
    /// Status word.
    pub conditions: String,
    /// `spec.maxConcurrency`.
    pub max_concurrency: i64,
    /// `spec.noCatchup`.
    pub no_catchup: bool,
    /// `spec.trigger`.
    pub trigger: Trigger,
    /// v2 parameters; `None` leaves them as they are.
    pub runtime_parameters: Option<String>,
    /// v1 parameters; `None` leaves them as they are.
    pub parameters: Option<String>,
}

impl Report {
    /// Whether it tells of another schedule than the stored one.
    #[must_use]
    pub fn revises(&self, job: &Job) -> bool {
        let reported = (self.enabled, self.max_concurrency, self.no_catchup, &self.trigger);
        reported != (job.enabled, job.max_concurrency, job.no_catchup, &job.trigger)
    }
}

/// Stores a report. False when there is no such recurring run.
///
/// # Errors
/// When the database fails.
pub async fn report(tx: &mut Tx, id: &str, report: &Report, now: i64) -> Result<bool> {
    let mut set = vec![
        ("Name", (&report.name).into()),
        ("Enabled", report.enabled.into()),
        ("Conditions", (&report.conditions).into()),
        ("MaxConcurrency", report.max_concurrency.into()),
        ("NoCatchup", report.no_catchup.into()),
        ("UpdatedAtInSec", now.into()),
    ];
    set.extend(trigger_row(&report.trigger));
    if let Some(parameters) = &report.runtime_parameters {
        set.push(("RuntimeParameters", parameters.into()));
    }
    if let Some(parameters) = &report.parameters {
        set.push(("Parameters", parameters.into()));
    }
    let mut sql = Sql::update(tx.dialect(), TABLE, set);
    sql.and("UUID", "=", id);
    Ok(tx.execute(sql).await? > 0)
}

/// Removes the references of a recurring run.
async fn forget(tx: &mut Tx, id: &str) -> Result<()> {
    let mut references = Sql::delete(tx.dialect(), "resource_references");
    references.and("ResourceUUID", "=", id).and("ResourceType", "=", "Job");
    tx.execute(references).await?;
    Ok(())
}

/// Removes the recurring run and its references; its runs stay.
///
/// # Errors
/// Code 5 when there is no such recurring run.
pub async fn delete(tx: &mut Tx, id: &str) -> Result<()> {
    forget(tx, id).await?;
    let mut sql = Sql::delete(tx.dialect(), TABLE);
    sql.and("UUID", "=", id);
    if tx.execute(sql).await? == 0 { Err(Error::not_found("Job", id)) } else { Ok(()) }
}
