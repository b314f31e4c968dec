//! What only database servers can show: upstream's schema and its earlier states, waiting, lost connections, deadlocks.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use kfp_apiserver::config::Config;
use kfp_apiserver::options::Database;
use kfp_apiserver::store::filter::Generation;
use kfp_apiserver::store::list::{Options, Request};
use kfp_apiserver::store::sql::{Sql, Value};
use kfp_apiserver::store::{Db, Tx, experiments, jobs, pipelines, runs, tasks, versions};
use kfp_testdb::Engine;
use serde_json::json;
use support::{Kube, start_on};

/// What upstream's release 2.17 with the run collector creates.
fn upstream(engine: Engine) -> &'static str {
    match engine {
        Engine::MariaDb => include_str!("upstream/mysql.sql"),
        Engine::Postgres => include_str!("upstream/postgres.sql"),
    }
}

/// Rows as upstream writes them, with NULL where rows of old releases have it.
const ROWS: &str = include_str!("upstream/rows.sql");

fn database_as(engine: Engine, port: u16, name: &str, user: &str, password: &str, patience: &str) -> Database {
    let (driver, section) = match engine {
        Engine::MariaDb => ("mysql", "MySQLConfig"),
        Engine::Postgres => ("pgx", "PostgreSQLConfig"),
    };
    let file = json!({"DBDriverName": driver, "InitConnectionTimeout": patience, "DBConfig": {section: {
        "Host": "localhost", "Port": port, "User": user, "Password": password, "DBName": name,
    }}});
    Database::from_config(&Config::new(file, BTreeMap::new())).unwrap()
}

fn database(engine: Engine, port: u16, name: &str) -> Database {
    database_as(engine, port, name, "root", "", "20s")
}

fn query(engine: Engine, mysql: &str, postgres: &str) -> String {
    match engine {
        Engine::MariaDb => mysql.to_owned(),
        Engine::Postgres => postgres.to_owned(),
    }
}

/// Columns, indexes and foreign keys, one per line. `ours` names the indexes that upstream does not have.
fn describe(server: &kfp_testdb::Server, name: &str) -> (Vec<String>, Vec<String>) {
    let engine = server.engine();
    let lines = |sql: String| server.execute(name, &sql).lines().map(str::to_owned).collect::<Vec<_>>();
    let mut all = lines(query(
        engine,
        "SELECT table_name, column_name, column_type, is_nullable, COALESCE(column_default, 'NULL') \
         FROM information_schema.columns WHERE table_schema = DATABASE()",
        "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, column_default \
         FROM information_schema.columns WHERE table_schema = current_schema()",
    ));
    all.extend(lines(query(
        engine,
        "SELECT r.constraint_name, r.table_name, k.column_name, r.referenced_table_name, k.referenced_column_name, \
         r.delete_rule, r.update_rule FROM information_schema.referential_constraints r \
         JOIN information_schema.key_column_usage k ON k.constraint_name = r.constraint_name \
         AND k.table_name = r.table_name AND k.table_schema = r.constraint_schema \
         WHERE r.constraint_schema = DATABASE()",
        "SELECT conname, conrelid::regclass, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype IN ('f', 'p')",
    )));
    let indexes = lines(query(
        engine,
        "SELECT index_name, table_name, non_unique, GROUP_CONCAT(column_name ORDER BY seq_in_index) \
         FROM information_schema.statistics WHERE table_schema = DATABASE() GROUP BY 1, 2, 3",
        "SELECT indexname, replace(indexdef, current_schema() || '.', '') FROM pg_indexes \
         WHERE schemaname = current_schema()",
    ));
    let ours = |line: &String| ["list_", "runs_of_job\t", "tasks_by_"].iter().any(|prefix| line.starts_with(prefix));
    let (mut ours, theirs): (Vec<String>, Vec<String>) = indexes.into_iter().partition(ours);
    all.extend(theirs);
    all.sort();
    ours.sort();
    (all, ours)
}

/// How many indexes upstream does not have; PostgreSQL has one for parts of names.
fn ours_of(engine: Engine) -> usize {
    12 + usize::from(engine == Engine::Postgres)
}

/// Lines that only one of the two has.
fn difference(got: &[String], want: &[String]) -> Vec<String> {
    let missing = want.iter().filter(|line| !got.contains(line)).map(|line| format!("missing: {line}"));
    missing.chain(got.iter().filter(|line| !want.contains(line)).map(|line| format!("too much: {line}"))).collect()
}

async fn a_new_schema_is_upstreams(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let (theirs, ours) = (server.fresh_name(), server.fresh_name());
    server.execute(&theirs, upstream(engine));
    let db = Db::open(&database(engine, server.port(), &ours)).await.unwrap();
    db.close().await;
    let (want, none) = describe(server, &theirs);
    assert!(want.len() > 100 && none.is_empty());
    let (got, extra) = describe(server, &ours);
    assert_eq!(difference(&got, &want), Vec::<String>::new());
    assert_eq!(extra.len(), ours_of(engine), "{extra:?}");
    // Two replicas that start together do not disturb each other, and change nothing.
    let again = database(engine, server.port(), &ours);
    let (one, two) = tokio::join!(Db::open(&again), Db::open(&again));
    one.unwrap().close().await;
    two.unwrap().close().await;
    assert_eq!(describe(server, &ours), (got, extra));
}

/// What the releases since 2.15 lack: the statements that turn the newest schema back into theirs.
const EARLIER: [(&str, &[&str]); 3] = [
    ("2.17 with the run collector", &[]),
    (
        "2.17",
        &[
            "DROP INDEX idx_run_gc_lifecycle",
            "DROP INDEX idx_run_gc_archived",
            "DROP COLUMN run_details.RetryGeneration",
            "DROP COLUMN run_details.RetryClaimedAtInSec",
            "DROP COLUMN run_details.ArchivedAtInSec",
        ],
    ),
    (
        "2.15",
        &[
            "DROP TABLE pipeline_tags",
            "DROP TABLE pipeline_version_tags",
            "DROP COLUMN jobs.PluginsInput",
            "DROP COLUMN run_details.PluginsInput",
            "DROP COLUMN run_details.PluginsOutput",
        ],
    ),
];

fn quoted(engine: Engine, name: &str) -> String {
    if engine == Engine::Postgres { format!("\"{name}\"") } else { format!("`{name}`") }
}

fn statement(engine: Engine, text: &str) -> String {
    let (verb, name) = text.rsplit_once(' ').unwrap();
    match (verb, name.split_once('.')) {
        ("DROP INDEX", _) if engine == Engine::MariaDb => format!("DROP INDEX {} ON run_details", quoted(engine, name)),
        (_, None) => format!("{verb} {}", quoted(engine, name)),
        (_, Some((table, column))) => format!("ALTER TABLE {table} {verb} {}", quoted(engine, column)),
    }
}

fn everything() -> Options {
    let request = Request { token: "", size: 200, sort_by: "", filter: "", generation: Generation::V2 };
    Options::parse(request, &runs::LISTABLE).unwrap()
}

async fn read_all(tx: &mut Tx, display_name: &str) {
    let all = everything();
    let found = runs::list(tx, &[], &all).await.unwrap();
    let names: Vec<&str> = found.items.iter().map(|run| run.display_name.as_str()).collect();
    assert_eq!(names, ["old", "new"]);
    assert_eq!(found.items[0].state.word(), "SUCCEEDED", "from Conditions, as State is NULL");
    assert_eq!((found.items[0].finished_at, found.items[0].retry_generation), (1_600_000_100, 0));
    let ids: Vec<String> = found.items.iter().map(|run| run.id.clone()).collect();
    let details = tasks::of_runs(tx, &ids).await.unwrap();
    assert_eq!(details["run-2"][0].name, "train");
    assert_eq!(runs::manifests(tx, "run-2").await.unwrap().pipeline_spec, "pipelineInfo: {name: p}\n");
    assert_eq!(experiments::list(tx, "", &all).await.unwrap().items[0].name, "Default");
    assert_eq!(experiments::default_id(tx).await.unwrap(), "exp-1");
    assert_eq!(pipelines::list(tx, "", &all).await.unwrap().items[0].display_name, display_name);
    assert_eq!(versions::latest(tx, "pipe-1").await.unwrap().name, "v1");
    assert_eq!(jobs::list(tx, &[], &all).await.unwrap().items[0].trigger.cron, "0 0 * * * *");
}

async fn adopts_what_upstream_made(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let newest = server.fresh_name();
    server.execute(&newest, upstream(engine));
    let (want, _) = describe(server, &newest);
    for last in 0..EARLIER.len() {
        let name = server.fresh_name();
        server.execute(&name, upstream(engine));
        let rows =
            query(engine, "SET NAMES utf8mb4; SET SESSION sql_mode = CONCAT(@@sql_mode, ',ANSI_QUOTES'); ", "") + ROWS;
        server.execute(&name, &rows);
        for text in EARLIER[..=last].iter().flat_map(|(_, changes)| *changes) {
            server.execute(&name, &statement(engine, text));
        }
        let db = Db::open(&database(engine, server.port(), &name)).await.unwrap();
        let mut tx = db.read().await.unwrap();
        read_all(&mut tx, "Pipeline \u{e9}").await;
        drop(tx);
        db.close().await;

        // A whole server works on it: what was there stays, what is new can be read by upstream.
        let running = start_on(database(engine, server.port(), &name), Kube::default()).await;
        let run = running.run("ours", json!({"a": 1})).await.ok();
        assert_eq!(run["experiment_id"], "exp-1");
        let list = running.get("/apis/v2beta1/runs").await.ok();
        assert_eq!(list["total_size"], 3);
        running.post("/apis/v2beta1/runs/run-1:archive", json!({})).await.ok();
        running.stop().await;
        let (got, extra) = describe(server, &name);
        assert_eq!((difference(&got, &want), extra.len()), (vec![], ours_of(engine)), "{}", EARLIER[last].0);
        // What upstream scans into plain texts and numbers.
        let ours = format!("{} = 'ours'", quoted(engine, "DisplayName"));
        for column in [
            "ExperimentUUID",
            "Name",
            "StorageState",
            "Namespace",
            "ServiceAccount",
            "Description",
            "Conditions",
            "PipelineId",
            "PipelineName",
            "PipelineSpecManifest",
            "WorkflowSpecManifest",
            "Parameters",
            "PipelineRuntimeManifest",
            "WorkflowRuntimeManifest",
            "FinishedAtInSec",
            "RetryGeneration",
            "RetryClaimedAtInSec",
            "ArchivedAtInSec",
        ] {
            let column = quoted(engine, column);
            let count = format!("SELECT COUNT(*) FROM run_details WHERE {ours} AND {column} IS NOT NULL");
            assert_eq!(server.execute(&name, &count).trim(), "1", "{column}");
        }
    }
}

/// What releases before 2.15 create; the columns that 2.0 lacks are in [`BEFORE_2_5`].
fn upstream_before_2_15(engine: Engine) -> &'static str {
    match engine {
        Engine::MariaDb => include_str!("upstream/mysql-2.14.sql"),
        Engine::Postgres => include_str!("upstream/postgres-2.14.sql"),
    }
}

const BEFORE_2_5: [&str; 3] = [
    "DROP COLUMN experiments.LastRunCreatedAtInSec",
    "DROP COLUMN pipelines.DisplayName",
    "DROP COLUMN pipeline_versions.DisplayName",
];

/// A database of a release before 2.15 with rows, one of which names its experiment as 1.x did.
fn before_2_15(server: &kfp_testdb::Server, lacks: &[&str]) -> String {
    let engine = server.engine();
    let name = server.fresh_name();
    server.execute(&name, upstream_before_2_15(engine));
    let quotes = query(engine, "SET NAMES utf8mb4; SET SESSION sql_mode = CONCAT(@@sql_mode, ',ANSI_QUOTES'); ", "");
    server.execute(&name, &(quotes.clone() + ROWS));
    let older = "UPDATE run_details SET \"ExperimentUUID\" = '' WHERE \"UUID\" = 'run-1'";
    server.execute(&name, &(quotes + older));
    for text in lacks {
        server.execute(&name, &statement(engine, text));
    }
    name
}

async fn upgrades_the_schema_before_2_15(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let newest = server.fresh_name();
    server.execute(&newest, upstream(engine));
    let (want, _) = describe(server, &newest);
    for (lacks, display_name) in [(&[][..], "Pipeline \u{e9}"), (&BEFORE_2_5[..], "p")] {
        let name = before_2_15(server, lacks);
        // Two replicas start at once, as in a rolling update.
        let settings = database(engine, server.port(), &name);
        let (one, two) = tokio::join!(Db::open(&settings), Db::open(&settings));
        one.unwrap().close().await;
        let db = two.unwrap();
        let mut tx = db.read().await.unwrap();
        read_all(&mut tx, display_name).await;
        let run = runs::get(&mut tx, "run-1").await.unwrap();
        assert_eq!(run.experiment_id, "exp-1", "from its reference");
        drop(tx);
        db.close().await;
        let (got, extra) = describe(server, &name);
        assert_eq!((difference(&got, &want), extra.len()), (vec![], ours_of(engine)));
        let running = start_on(settings, Kube::default()).await;
        running.run("ours", json!({"a": 1})).await.ok();
        running.stop().await;
    }
}

async fn goes_on_with_an_interrupted_upgrade(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let name = before_2_15(server, &BEFORE_2_5);
    let settings = database(engine, server.port(), &name);
    Db::open(&settings).await.unwrap().close().await;
    let done = describe(server, &name);
    // As it is when all but the last table, which tells old schemas, was changed.
    let foreign = quoted(engine, "pipeline_versions_PipelineId_pipelines_UUID_foreign");
    let column = quoted(engine, "UUID");
    let (drop_key, widen) = match engine {
        Engine::MariaDb => ("FOREIGN KEY", format!("MODIFY {column} varchar(255)")),
        Engine::Postgres => ("CONSTRAINT", format!("ALTER {column} TYPE varchar(255)")),
    };
    let key = format!("ALTER TABLE pipeline_versions DROP {drop_key} {foreign}");
    let widen = format!("ALTER TABLE pipelines {widen}");
    for undo in ["DROP TABLE pipeline_version_tags", "DROP TABLE pipeline_tags", &key, &widen] {
        server.execute(&name, undo);
    }
    server.execute(&name, &statement(engine, "DROP COLUMN pipelines.DisplayName"));
    Db::open(&settings).await.unwrap().close().await;
    assert_eq!(describe(server, &name), done);
}

async fn names_values_that_the_newer_schema_cannot_hold(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let name = before_2_15(server, &[]);
    let before = describe(server, &name);
    let long = format!("UPDATE pipeline_versions SET {} = '{}'", quoted(engine, "Name"), "v".repeat(128));
    server.execute(&name, &long);
    let settings = database(engine, server.port(), &name);
    let error = Db::open(&settings).await.unwrap_err().to_string();
    assert!(error.contains("pipeline_versions.Name has values of more than 127 characters"), "{error}");
    assert!(error.contains("shorten them first: vvv"), "{error}");
    assert_eq!(describe(server, &name), before, "nothing was changed");
    server.execute(&name, &long.replace(&"v".repeat(128), &"v".repeat(127)));
    Db::open(&settings).await.unwrap().close().await;
}

async fn refuses_the_schema_before_2_0(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let name = server.fresh_name();
    let id = quoted(engine, "UUID");
    server.execute(&name, &format!("CREATE TABLE pipelines ({id} varchar(255) NOT NULL, PRIMARY KEY ({id}))"));
    let error = Db::open(&database(engine, server.port(), &name)).await.unwrap_err().to_string();
    assert!(error.contains("no table pipeline_versions") && error.contains("start a 2.x release"), "{error}");
    assert!(!describe(server, &name).0.iter().any(|line| line.contains("run_details")), "nothing was created");
}

/// A user who may neither create databases nor tables works on a database that is up to date.
async fn needs_no_rights_beyond_its_rows(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let name = server.fresh_name();
    let whole = database(engine, server.port(), &name);
    Db::open(&whole).await.unwrap().close().await;
    let user = format!("u{name}");
    match engine {
        Engine::MariaDb => server.execute(
            &name,
            &format!(
                "CREATE USER {user}@'%' IDENTIFIED BY 'pw''d'; CREATE USER {user}@localhost IDENTIFIED BY 'pw''d'; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON {name}.* TO {user}@'%', {user}@localhost"
            ),
        ),
        Engine::Postgres => server.execute(
            &name,
            &format!(
                "CREATE USER {user} PASSWORD 'pw''d'; \
                 GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {user}"
            ),
        ),
    };
    let limited = database_as(engine, server.port(), &name, &user, "pw'd", "20s");
    let running = start_on(limited, Kube::default()).await;
    running.run("limited", json!({"a": 1})).await.ok();
    running.stop().await;
}

async fn says_what_is_wrong_and_never_the_password(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let wrong = database_as(engine, server.port(), "none", "nobody", "s3cret", "0s");
    let error = Db::open(&wrong).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    let text = format!("{error} {error:?}");
    assert!(text.contains("nobody@localhost:") && !text.contains("s3cret"), "{text}");
}

async fn waits_for_the_server_and_survives_its_restart(engine: Engine) {
    let Some(mut server) = engine.start() else { return };
    let name = server.fresh_name();
    server.stop();
    let running = start_on(database_as(engine, server.port(), &name, "root", "", "120s"), Kube::default()).await;
    let health = running.get("/apis/v2beta1/healthz").await.ok();
    assert_eq!(health["pipeline_store"], "database");
    server.resume();
    let run = running.patiently(|| running.get("/apis/v2beta1/runs")).await;
    assert_eq!(run.ok(), json!({}));
    let run = running.run("before", json!({"a": 1})).await.ok();
    let path = format!("/apis/v2beta1/runs/{}", run["run_id"].as_str().unwrap());
    // More reads at once than are tried again, so that many idle connections are lost.
    futures::future::join_all((0..8).map(|_| running.get(&path))).await;
    server.stop();
    server.resume();
    let answers = futures::future::join_all((0..8).map(|_| running.get(&path))).await;
    assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
    running.run("after", json!({"a": 1})).await.ok();
    running.stop().await;
}

async fn set(tx: &mut Tx, id: &str, to: &str) {
    let mut sql = Sql::update(tx.dialect(), "experiments", vec![("Description", to.into())]);
    sql.and("UUID", "=", id);
    assert_eq!(tx.execute(sql).await.unwrap(), 1);
}

async fn two_experiments(engine: Engine, server: &kfp_testdb::Server) -> (Db, String) {
    let name = server.fresh_name();
    let db = Db::open(&database(engine, server.port(), &name)).await.unwrap();
    let mut tx = db.write().await.unwrap();
    for id in ["a", "b"] {
        let experiment = experiments::Experiment {
            id: id.to_owned(),
            name: id.to_owned(),
            description: String::new(),
            created_at: 1,
            last_run_created_at: 0,
            namespace: String::new(),
            storage: kfp_apiserver::domain::state::Storage::Available,
        };
        experiments::insert(&mut tx, &experiment).await.unwrap();
        let error = experiments::insert(&mut tx, &experiment).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::AlreadyExists);
    }
    // The duplicates did not end the transaction.
    tx.commit().await.unwrap();
    (db, name)
}

async fn a_deadlock_is_resolved_without_anyone_noticing(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let (db, _) = two_experiments(engine, server).await;
    let (mut one, mut two) = (db.write().await.unwrap(), db.write().await.unwrap());
    set(&mut one, "a", "one").await;
    set(&mut two, "b", "two").await;
    let first = async {
        set(&mut one, "b", "one").await;
        one.commit().await.unwrap();
    };
    let second = async {
        set(&mut two, "a", "two").await;
        two.commit().await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(first, second) }).await.unwrap();
    let mut tx = db.read().await.unwrap();
    let seen = [experiments::get(&mut tx, "a").await.unwrap(), experiments::get(&mut tx, "b").await.unwrap()];
    assert_eq!(seen[0].description, seen[1].description, "one after the other, not half of each");
    drop(tx);
    db.close().await;
}

/// Ends all connections of a database but the one that does it.
fn cut(server: &kfp_testdb::Server, name: &str) {
    match server.engine() {
        Engine::MariaDb => {
            let ids = server.execute("", &format!("SELECT id FROM information_schema.processlist WHERE db = '{name}'"));
            let kills: Vec<String> = ids.lines().map(|id| format!("KILL {id}")).collect();
            server.execute("", &kills.join("; "));
        }
        Engine::Postgres => {
            let text = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
            server.execute("", &text);
        }
    }
}

async fn a_lost_connection_is_replaced_in_the_middle_of_a_transaction(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let (db, name) = two_experiments(engine, server).await;
    let mut tx = db.write().await.unwrap();
    assert_eq!(experiments::get(&mut tx, "a").await.unwrap().description, "");
    set(&mut tx, "a", "changed").await;
    cut(server, &name);
    set(&mut tx, "b", "changed").await;
    tx.commit().await.unwrap();
    let mut tx = db.read().await.unwrap();
    for id in ["a", "b"] {
        assert_eq!(experiments::get(&mut tx, id).await.unwrap().description, "changed");
    }
    // What was read must not change under a decision that was made of it.
    cut(server, &name);
    server.execute(&name, &format!("UPDATE experiments SET {} = 'other'", quoted(engine, "Description")));
    let error = experiments::get(&mut tx, "a").await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(error.to_string().contains("another request changed the same data"), "{error}");
    drop(tx);
    db.close().await;
}

async fn writers_of_one_row_come_one_after_the_other(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let (db, _) = two_experiments(engine, server).await;
    let add = async || {
        let mut tx = db.write().await.unwrap();
        let seen = experiments::get(&mut tx, "a").await.unwrap().description;
        set(&mut tx, "a", &format!("{seen}x")).await;
        tx.commit().await.unwrap();
    };
    futures::future::join_all((0..20).map(|_| add())).await;
    let mut tx = db.read().await.unwrap();
    assert_eq!(experiments::get(&mut tx, "a").await.unwrap().description, "x".repeat(20));
    drop(tx);
    db.close().await;
}

async fn values_that_do_not_fit_are_the_callers_fault(engine: Engine) {
    let Some(server) = engine.shared() else { return };
    let (db, _) = two_experiments(engine, server).await;
    let mut tx = db.write().await.unwrap();
    let long = Value::Text("x".repeat(200));
    let mut sql = Sql::update(tx.dialect(), "experiments", vec![("Name", long)]);
    sql.and("UUID", "=", "a");
    let error = kfp_apiserver::error::Error::from(tx.execute(sql).await.unwrap_err());
    assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
    drop(tx);
    db.close().await;
}

#[tokio::test]
async fn the_servers_collation_holds_unless_it_cannot_hold_every_text() {
    let Some(server) = Engine::MariaDb.start() else { return };
    for (global, name, made) in
        [("utf8mb4_unicode_520_ci", "kept", "utf8mb4_unicode_520_ci"), ("latin1_swedish_ci", "overruled", "utf8mb4_")]
    {
        server.execute("", &format!("SET GLOBAL collation_server = '{global}'"));
        Db::open(&database(Engine::MariaDb, server.port(), name)).await.unwrap().close().await;
        let sql =
            format!("SELECT DISTINCT table_collation FROM information_schema.tables WHERE table_schema = '{name}'");
        let collations = server.execute("", &sql);
        assert!(collations.lines().count() == 1 && collations.starts_with(made), "{name}: {collations}");
    }
}

#[tokio::test]
async fn names_are_searched_without_the_extension_too() {
    let Some(server) = Engine::Postgres.shared() else { return };
    let name = server.fresh_name();
    // May make tables, but not install extensions.
    server.execute(&name, "CREATE ROLE no_extensions LOGIN; GRANT ALL ON SCHEMA public TO no_extensions");
    let database = database_as(Engine::Postgres, server.port(), &name, "no_extensions", "", "20s");
    let running = start_on(database, Kube::default()).await;
    running.run("train of 2026", json!({"a": 1})).await.ok();
    running.run("test of 2026", json!({"a": 1})).await.ok();
    let filter = json!({"predicates": [{"operation": "IS_SUBSTRING", "key": "name", "string_value": "RAIN"}]});
    let found = running.get(&format!("/apis/v2beta1/runs?filter={}", support::quote(&filter.to_string()))).await;
    assert_eq!(found.ok()["runs"][0]["display_name"], "train of 2026");
    assert_eq!(describe(server, &name).1.len(), 12);
    running.stop().await;
}

macro_rules! over_servers {
    ($($name:ident),* $(,)?) => {
        mod mariadb {
            $(#[tokio::test] async fn $name() { super::$name(super::Engine::MariaDb).await; })*
        }
        mod postgres {
            $(#[tokio::test] async fn $name() { super::$name(super::Engine::Postgres).await; })*
        }
    };
}

over_servers!(
    a_new_schema_is_upstreams,
    adopts_what_upstream_made,
    upgrades_the_schema_before_2_15,
    goes_on_with_an_interrupted_upgrade,
    names_values_that_the_newer_schema_cannot_hold,
    refuses_the_schema_before_2_0,
    needs_no_rights_beyond_its_rows,
    says_what_is_wrong_and_never_the_password,
    waits_for_the_server_and_survives_its_restart,
    a_deadlock_is_resolved_without_anyone_noticing,
    a_lost_connection_is_replaced_in_the_middle_of_a_transaction,
    writers_of_one_row_come_one_after_the_other,
    values_that_do_not_fit_are_the_callers_fault,
);
