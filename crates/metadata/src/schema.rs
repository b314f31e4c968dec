//! The tables of ML Metadata, schema version 10.
//!
//! They are upstream's, so that its library works on them, with these differences in what is created anew: integers of
//! properties have 64 bits and MySQL's texts compare byte by byte, as the protocol has it and SQLite does; PostgreSQL
//! indexes the beginning of long texts, as MySQL does, because it refuses to store what it cannot index.

use crate::database::{Dialect, Param, Tx};
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

/// How many characters of a long text are indexed where not all of them can be.
const PREFIX: u32 = 255;

/// A secondary index: its name, its table, its columns, and whether the last of them is a long text.
struct Index {
    name: String,
    table: &'static str,
    columns: Vec<&'static str>,
    long: bool,
    /// Upstream indexes every row; where the database can leave out NULL in the last column, it does.
    sparse: bool,
}

impl Index {
    fn new(name: impl Into<String>, table: &'static str, columns: Vec<&'static str>) -> Self {
        Self { name: name.into(), table, columns, long: false, sparse: false }
    }

    fn long(self) -> Self {
        Self { long: true, ..self }
    }

    fn sparse(self) -> Self {
        Self { sparse: true, ..self }
    }

    /// The columns as an index definition lists them.
    fn columns(&self, dialect: Dialect) -> String {
        let last = self.columns.len() - 1;
        let column = |(at, column): (usize, &&str)| match dialect {
            Dialect::MySql if self.long && at == last => format!("`{column}`({PREFIX})"),
            Dialect::Postgres if self.long && at == last => format!("left(`{column}`, {PREFIX})"),
            _ => format!("`{column}`"),
        };
        self.columns.iter().enumerate().map(column).collect::<Vec<_>>().join(", ")
    }

    fn create(&self, dialect: Dialect) -> String {
        let Self { name, table, .. } = self;
        let filter = match self.columns.last() {
            Some(column) if self.sparse && dialect != Dialect::MySql => format!(" WHERE `{column}` IS NOT NULL"),
            _ => String::new(),
        };
        format!("CREATE INDEX `{name}` ON `{table}`({}){filter}", self.columns(dialect))
    }
}

fn indexes() -> Vec<Index> {
    let mut indexes = vec![
        Index::new("idx_artifact_uri", "Artifact", vec!["uri"]).long(),
        Index::new("idx_event_execution_id", "Event", vec!["execution_id"]),
        Index::new("idx_eventpath_event_id", "EventPath", vec!["event_id"]),
        Index::new("idx_parentcontext_parent_context_id", "ParentContext", vec!["parent_context_id"]),
        Index::new("idx_type_name", "Type", vec!["name"]),
        Index::new("idx_type_external_id", "Type", vec!["external_id"]),
        // Upstream scans the whole table for "contexts of this node"; more indexes do not disturb its library.
        Index::new("idx_association_execution_id", "Association", vec!["execution_id"]),
        Index::new("idx_attribution_artifact_id", "Attribution", vec!["artifact_id"]),
    ];
    for (table, properties) in
        [("Artifact", "ArtifactProperty"), ("Execution", "ExecutionProperty"), ("Context", "ContextProperty")]
    {
        let lower = table.to_ascii_lowercase();
        for column in ["create_time_since_epoch", "last_update_time_since_epoch", "external_id"] {
            indexes.push(Index::new(format!("idx_{lower}_{column}"), table, vec![column]));
        }
        for (kind, column) in [("int", "int_value"), ("double", "double_value"), ("string", "string_value")] {
            let columns = vec!["name", "is_custom_property", column];
            let index = Index::new(format!("idx_{lower}_property_{kind}"), properties, columns).sparse();
            indexes.push(if kind == "string" { index.long() } else { index });
        }
    }
    indexes
}

/// Types of columns in a database's words.
struct Words {
    key: &'static str,
    small: &'static str,
    flag: &'static str,
    integer: &'static str,
    double: &'static str,
    text: &'static str,
    bytes: &'static str,
    end: &'static str,
}

fn words(dialect: Dialect) -> Words {
    match dialect {
        Dialect::Sqlite => Words {
            key: "`id` INTEGER PRIMARY KEY AUTOINCREMENT",
            small: "TINYINT(1)",
            flag: "TINYINT(1)",
            integer: "INT",
            double: "DOUBLE",
            text: "TEXT",
            bytes: "BLOB",
            end: "",
        },
        Dialect::MySql => Words {
            key: "`id` INT PRIMARY KEY AUTO_INCREMENT",
            small: "TINYINT(1)",
            flag: "TINYINT(1)",
            integer: "BIGINT",
            double: "DOUBLE",
            text: "MEDIUMTEXT",
            bytes: "MEDIUMBLOB",
            end: " ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
        },
        Dialect::Postgres => Words {
            key: "`id` SERIAL PRIMARY KEY",
            small: "SMALLINT",
            flag: "BOOLEAN",
            integer: "BIGINT",
            double: "DOUBLE PRECISION",
            text: "TEXT",
            bytes: "BYTEA",
            end: "",
        },
    }
}

/// The tables with their columns and keys.
fn tables(dialect: Dialect) -> Vec<(&'static str, String)> {
    let Words { key, small, flag, integer, double, text, bytes, .. } = words(dialect);
    let times = format!(
        "`create_time_since_epoch` {integer} NOT NULL DEFAULT 0, \
         `last_update_time_since_epoch` {integer} NOT NULL DEFAULT 0"
    );
    let values = format!(
        "`name` VARCHAR(255) NOT NULL, `is_custom_property` {flag} NOT NULL, `int_value` {integer}, \
         `double_value` {double}, `string_value` {text}, `byte_value` {bytes}, `proto_value` {bytes}, \
         `bool_value` BOOLEAN"
    );
    let mut tables = vec![
        ("MLMDEnv", "`schema_version` INTEGER PRIMARY KEY".to_owned()),
        (
            "Type",
            format!(
                "{key}, `name` VARCHAR(255) NOT NULL, `version` VARCHAR(255), `type_kind` {small} NOT NULL, \
                 `description` TEXT, `input_type` TEXT, `output_type` TEXT, `external_id` VARCHAR(255) UNIQUE"
            ),
        ),
        (
            "TypeProperty",
            "`type_id` INT NOT NULL, `name` VARCHAR(255) NOT NULL, `data_type` INT NULL, \
             PRIMARY KEY (`type_id`, `name`)"
                .to_owned(),
        ),
        (
            "ParentType",
            "`type_id` INT NOT NULL, `parent_type_id` INT NOT NULL, PRIMARY KEY (`type_id`, `parent_type_id`)"
                .to_owned(),
        ),
        (
            "ParentContext",
            "`context_id` INT NOT NULL, `parent_context_id` INT NOT NULL, \
             PRIMARY KEY (`context_id`, `parent_context_id`)"
                .to_owned(),
        ),
        (
            "Event",
            format!(
                "{key}, `artifact_id` INT NOT NULL, `execution_id` INT NOT NULL, `type` INT NOT NULL, \
                 `milliseconds_since_epoch` {integer}, \
                 CONSTRAINT `UniqueEvent` UNIQUE(`artifact_id`, `execution_id`, `type`)"
            ),
        ),
        (
            "EventPath",
            format!(
                "`event_id` INT NOT NULL, `is_index_step` {flag} NOT NULL, `step_index` {integer}, `step_key` TEXT"
            ),
        ),
    ];
    for (table, properties, id, own, name, unique) in [
        (
            "Artifact",
            "ArtifactProperty",
            "artifact_id",
            "`uri` TEXT, `state` INT, ",
            "`name` VARCHAR(255)",
            "CONSTRAINT `UniqueArtifactTypeName` ",
        ),
        (
            "Execution",
            "ExecutionProperty",
            "execution_id",
            "`last_known_state` INT, ",
            "`name` VARCHAR(255)",
            "CONSTRAINT `UniqueExecutionTypeName` ",
        ),
        ("Context", "ContextProperty", "context_id", "", "`name` VARCHAR(255) NOT NULL", ""),
    ] {
        tables.push((
            table,
            format!(
                "{key}, `type_id` INT NOT NULL, {own}{name}, `external_id` VARCHAR(255) UNIQUE, {times}, \
                 {unique}UNIQUE(`type_id`, `name`)"
            ),
        ));
        tables.push((
            properties,
            format!("`{id}` INT NOT NULL, {values}, PRIMARY KEY (`{id}`, `name`, `is_custom_property`)"),
        ));
    }
    for (table, column) in [("Association", "execution_id"), ("Attribution", "artifact_id")] {
        tables.push((
            table,
            format!("{key}, `context_id` INT NOT NULL, `{column}` INT NOT NULL, UNIQUE(`context_id`, `{column}`)"),
        ));
    }
    tables
}

/// Statements that create the tables that are not `present`, with their indexes.
fn creation(dialect: Dialect, present: &[String]) -> Vec<String> {
    let indexes = indexes();
    let mut sql = Vec::new();
    for (table, columns) in tables(dialect) {
        if present.iter().any(|name| name.eq_ignore_ascii_case(table)) {
            continue;
        }
        let own = indexes.iter().filter(|index| index.table == table);
        let end = words(dialect).end;
        if dialect == Dialect::MySql {
            // Every statement commits on its own; a table with all of its indexes is there or is not.
            let own: String =
                own.map(|index| format!(", INDEX `{}`({})", index.name, index.columns(dialect))).collect();
            sql.push(format!("CREATE TABLE `{table}` ({columns}{own}){end}"));
        } else {
            sql.push(format!("CREATE TABLE `{table}` ({columns}){end}"));
            sql.extend(own.map(|index| index.create(dialect)));
        }
    }
    sql
}

/// Names of the tables in the database; some databases know them in lower case only.
async fn present(tx: &mut Tx) -> Outcome<Vec<String>> {
    let sql = match tx.dialect() {
        Dialect::Sqlite => "SELECT `name` FROM `sqlite_master` WHERE `type` = 'table'",
        Dialect::MySql => "SELECT `table_name` FROM `information_schema`.`tables` WHERE `table_schema` = DATABASE()",
        Dialect::Postgres => {
            "SELECT table_name::text FROM information_schema.tables WHERE table_schema = current_schema()"
        }
    };
    let rows = tx.query(sql, vec![]).await?;
    rows.iter().map(|row| row.text(0)).collect()
}

async fn version(tx: &mut Tx) -> Outcome<Option<i64>> {
    let rows = tx.query("SELECT `schema_version` FROM `MLMDEnv`", vec![]).await?;
    rows.first().map(|row| row.int(0)).transpose()
}

/// Replaces indexes of long texts that were made without a prefix: PostgreSQL refuses rows that do not fit an index
/// page, which a parameter of three kilobytes does not.
///
/// # Errors
/// The database's, for instance when the tables belong to somebody else.
pub async fn shorten_indexes(tx: &mut Tx) -> Outcome<()> {
    if tx.dialect() != Dialect::Postgres {
        return Ok(());
    }
    tx.lock_schema().await?;
    let sql = "SELECT indexname::text, indexdef FROM pg_indexes WHERE schemaname = current_schema()";
    let rows = tx.query(sql, vec![]).await?;
    for index in indexes().into_iter().filter(|index| index.long) {
        for row in &rows {
            let (name, definition) = (row.text(0)?, row.text(1)?);
            if name == index.name && !definition.contains("left(") && !definition.contains("\"left\"(") {
                tracing::info!(index = index.name, "indexing only the beginning of long texts from now on");
                tx.execute(format!("DROP INDEX `{}`", index.name), vec![]).await?;
                tx.execute(index.create(Dialect::Postgres), vec![]).await?;
            }
        }
    }
    Ok(())
}

/// Creates everything in an empty database and checks the version of one that is in use. Answers whether all is done;
/// if not, it is to be called again in a transaction of its own, as MySQL's ends with each table created.
///
/// # Errors
/// FAILED_PRECONDITION when the database has another schema version or tables that are not ML Metadata's.
pub async fn prepare(tx: &mut Tx) -> Outcome<bool> {
    tx.lock_schema().await?;
    let done = prepare_alone(tx).await?;
    tx.unlock_schema().await?;
    Ok(done)
}

async fn prepare_alone(tx: &mut Tx) -> Outcome<bool> {
    let names = present(tx).await?;
    let has = |table: &str| names.iter().any(|name| name.eq_ignore_ascii_case(table));
    if has("MLMDEnv")
        && let Some(version) = version(tx).await?
    {
        if version != VERSION {
            return Err(Failure::precondition(format!(
                "the metadata database has schema version {version}, this program needs {VERSION}; \
                 migrate it with upstream's metadata_store_server --enable_database_upgrade first"
            )));
        }
        return Ok(true);
    }
    // Empty tables may be what a creation left that was cut short.
    if has("Type") && !tx.query("SELECT `id` FROM `Type` LIMIT 1", vec![]).await?.is_empty() {
        return Err(Failure::precondition(
            "the database has a table Type but no schema version in a table MLMDEnv; \
             it is older than ML Metadata 0.14 or not a metadata store",
        ));
    }
    let missing = creation(tx.dialect(), &names);
    let commits_each = tx.dialect() == Dialect::MySql && !missing.is_empty();
    for sql in missing {
        tx.execute(sql, vec![]).await?;
    }
    if commits_each {
        return Ok(false);
    }
    let simple = SIMPLE_TYPES.iter().map(|(name, kind)| vec![(*name).into(), kind.number().into()]).collect();
    tx.insert_rows("INTO `Type`(`name`, `type_kind`)", simple).await?;
    let inserted = tx.execute("INSERT INTO `MLMDEnv`(`schema_version`) VALUES (?)", vec![Param::Int(VERSION)]).await;
    // MySQL's lock is given back before the commit.
    inserted.map_err(Failure::looking_again)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_belongs_to_a_table_and_none_is_lost() {
        for dialect in [Dialect::Sqlite, Dialect::MySql, Dialect::Postgres] {
            let sql = creation(dialect, &[]).join(";\n");
            for index in indexes() {
                assert_eq!(sql.matches(&format!("`{}`", index.name)).count(), 1, "{}", index.name);
            }
            assert_eq!(sql.matches("CREATE TABLE").count(), 15);
            let present = tables(dialect).into_iter().map(|(table, _)| table.to_lowercase()).collect::<Vec<_>>();
            assert!(creation(dialect, &present).is_empty());
        }
    }
}
