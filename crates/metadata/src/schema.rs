//! The tables of ML Metadata, schema version 10.

use crate::database::{Param, Tx};
use crate::failure::{Failure, Outcome};
use crate::model::Kind;

/// The version that this program reads and writes.
pub const VERSION: i64 = 10;

/// Types that every store holds and lists do not show; their order gives them the ids 1 to 9.
pub const SIMPLE_TYPES: [(&str, Kind); 9] = [
    ("mlmd.Dataset", Kind::Artifact),
    ("mlmd.Model", Kind::Artifact),
    ("mlmd.Metrics", Kind::Artifact),
    ("mlmd.Statistics", Kind::Artifact),
    ("mlmd.Train", Kind::Execution),
    ("mlmd.Transform", Kind::Execution),
    ("mlmd.Process", Kind::Execution),
    ("mlmd.Evaluate", Kind::Execution),
    ("mlmd.Deploy", Kind::Execution),
];

const KEY: &str = "`id` INTEGER PRIMARY KEY AUTOINCREMENT";
const TIMES: &str =
    "`create_time_since_epoch` INT NOT NULL DEFAULT 0, `last_update_time_since_epoch` INT NOT NULL DEFAULT 0";
const VALUES: &str = "`name` VARCHAR(255) NOT NULL, `is_custom_property` TINYINT(1) NOT NULL, `int_value` INT, \
     `double_value` DOUBLE, `string_value` TEXT, `byte_value` BLOB, `proto_value` BLOB, `bool_value` BOOLEAN";

fn tables() -> Vec<String> {
    let mut sql = vec![
        format!(
            "CREATE TABLE `Type` ({KEY}, `name` VARCHAR(255) NOT NULL, `version` VARCHAR(255), \
             `type_kind` TINYINT(1) NOT NULL, `description` TEXT, `input_type` TEXT, `output_type` TEXT, \
             `external_id` VARCHAR(255) UNIQUE)"
        ),
        "CREATE TABLE `TypeProperty` (`type_id` INT NOT NULL, `name` VARCHAR(255) NOT NULL, `data_type` INT NULL, \
         PRIMARY KEY (`type_id`, `name`))"
            .to_owned(),
        "CREATE TABLE `ParentType` (`type_id` INT NOT NULL, `parent_type_id` INT NOT NULL, \
         PRIMARY KEY (`type_id`, `parent_type_id`))"
            .to_owned(),
        "CREATE TABLE `ParentContext` (`context_id` INT NOT NULL, `parent_context_id` INT NOT NULL, \
         PRIMARY KEY (`context_id`, `parent_context_id`))"
            .to_owned(),
        format!(
            "CREATE TABLE `Event` ({KEY}, `artifact_id` INT NOT NULL, `execution_id` INT NOT NULL, \
             `type` INT NOT NULL, `milliseconds_since_epoch` INT, UNIQUE(`artifact_id`, `execution_id`, `type`))"
        ),
        "CREATE TABLE `EventPath` (`event_id` INT NOT NULL, `is_index_step` TINYINT(1) NOT NULL, `step_index` INT, \
         `step_key` TEXT)"
            .to_owned(),
        "CREATE TABLE `MLMDEnv` (`schema_version` INTEGER PRIMARY KEY)".to_owned(),
    ];
    for (table, own, name) in [
        ("Artifact", "`uri` TEXT, `state` INT, ", "`name` VARCHAR(255)"),
        ("Execution", "`last_known_state` INT, ", "`name` VARCHAR(255)"),
        ("Context", "", "`name` VARCHAR(255) NOT NULL"),
    ] {
        let lower = table.to_ascii_lowercase();
        sql.push(format!(
            "CREATE TABLE `{table}` ({KEY}, `type_id` INT NOT NULL, {own}{name}, `external_id` VARCHAR(255) UNIQUE, \
             {TIMES}, UNIQUE(`type_id`, `name`))"
        ));
        sql.push(format!(
            "CREATE TABLE `{table}Property` (`{lower}_id` INT NOT NULL, {VALUES}, \
             PRIMARY KEY (`{lower}_id`, `name`, `is_custom_property`))"
        ));
        for column in ["create_time_since_epoch", "last_update_time_since_epoch", "external_id"] {
            sql.push(format!("CREATE INDEX `idx_{lower}_{column}` ON `{table}`(`{column}`)"));
        }
        for value in ["int", "double", "string"] {
            sql.push(format!(
                "CREATE INDEX `idx_{lower}_property_{value}` ON \
                 `{table}Property`(`name`, `is_custom_property`, `{value}_value`) WHERE `{value}_value` IS NOT NULL"
            ));
        }
    }
    for (table, column) in [("Association", "execution_id"), ("Attribution", "artifact_id")] {
        sql.push(format!(
            "CREATE TABLE `{table}` ({KEY}, `context_id` INT NOT NULL, `{column}` INT NOT NULL, \
             UNIQUE(`context_id`, `{column}`))"
        ));
        // Upstream scans the whole table for "contexts of this node"; additional indexes do not disturb its library.
        let lower = table.to_ascii_lowercase();
        sql.push(format!("CREATE INDEX `idx_{lower}_{column}` ON `{table}`(`{column}`)"));
    }
    for (name, place) in [
        ("idx_artifact_uri", "`Artifact`(`uri`)"),
        ("idx_event_execution_id", "`Event`(`execution_id`)"),
        ("idx_eventpath_event_id", "`EventPath`(`event_id`)"),
        ("idx_parentcontext_parent_context_id", "`ParentContext`(`parent_context_id`)"),
        ("idx_type_name", "`Type`(`name`)"),
        ("idx_type_external_id", "`Type`(`external_id`)"),
    ] {
        sql.push(format!("CREATE INDEX `{name}` ON {place}"));
    }
    sql
}

/// Creates everything in an empty database and checks the version of one that is in use.
///
/// # Errors
/// FAILED_PRECONDITION when the database has another schema version or tables that are not ML Metadata's.
pub async fn prepare(tx: &mut Tx) -> Outcome<()> {
    let present = tx.query("SELECT `name` FROM `sqlite_master` WHERE `type` = 'table'", vec![]).await?;
    let names = present.iter().map(|row| row.text(0)).collect::<Outcome<Vec<_>>>()?;
    if names.iter().any(|name| name == "MLMDEnv") {
        let rows = tx.query("SELECT `schema_version` FROM `MLMDEnv`", vec![]).await?;
        let version = rows.first().map(|row| row.int(0)).transpose()?;
        return match version {
            Some(VERSION) => Ok(()),
            Some(other) => Err(Failure::precondition(format!(
                "the metadata database has schema version {other}, this program needs {VERSION}; \
                 migrate it with upstream's metadata_store_server --enable_database_upgrade first"
            ))),
            None => Err(Failure::precondition("the metadata database has no schema version in table MLMDEnv")),
        };
    }
    if names.iter().any(|name| name == "Type") {
        return Err(Failure::precondition("the database has a table Type but no MLMDEnv; it is not a metadata store"));
    }
    for sql in tables() {
        tx.execute(sql, vec![]).await?;
    }
    tx.execute("INSERT INTO `MLMDEnv`(`schema_version`) VALUES (?)", vec![Param::Int(VERSION)]).await?;
    let simple = SIMPLE_TYPES.iter().map(|(name, kind)| vec![(*name).into(), kind.number().into()]).collect();
    tx.insert_rows("INTO `Type`(`name`, `type_kind`)", simple).await
}
