//! Measures the API over generated databases: `bench_api [sqlite] [postgres] [mariadb] [--runs 200000] [--seconds 5]`.
//!
//! The server runs as a process of its own against a Kubernetes API that accepts every Workflow; requests go through REST
//! on the loopback. Database servers are private ones without durability.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::Request as HttpRequest;
use axum::response::IntoResponse as _;
use base64::Engine as _;
use http::{Method, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kfp_apiserver::Options;
use kfp_apiserver::config::Config;
use kfp_apiserver::domain::state::{History, State, Storage};
use kfp_apiserver::options::Database;
use kfp_apiserver::store::sql::{Dialect, Sql};
use kfp_apiserver::store::{Db, experiments, list, pipelines, runs, tasks, versions};
use kfp_testdb::Engine;
use serde_json::{Value, json};

const EXPERIMENTS: u64 = 100;
const PIPELINES: u64 = 10_000;
/// Versions of the first pipeline.
const VERSIONS: u64 = 1_000;
/// Rows of one transaction while the database is filled.
const BATCH: u64 = 2_000;
/// Creation time of the first run; one follows each second.
const EPOCH: i64 = 1_700_000_000;
/// Runs that are stored one by one; the database copies them until there are enough.
const STORED: u64 = 100_000;
/// Odd, so that different numbers stay different.
const SCATTER: [u64; 2] = [2_654_435_761, 1_234_567_891_011];
const CLIENTS: u64 = 8;
const FILTER: &str = r#"{"predicates":[{"operation":"NOT_EQUALS","key":"storage_state","string_value":"ARCHIVED"}]}"#;

type Http = Client<HttpConnector, axum::body::Body>;

/// Scattered like random ids, but known, and as easily made by the database ([`copy`]).
fn id(kind: u64, number: u64) -> String {
    format!("{:08x}-0000-4000-8{kind:03x}-{:012x}", number * SCATTER[0] % (1 << 32), number * SCATTER[1] % (1 << 48))
}

/// `config.json` of the server under test.
fn config(engine: Option<&kfp_testdb::Server>, name: &str, directory: &Path) -> Value {
    let server = |driver: &str, section: &str, port: u16| {
        json!({"DBDriverName": driver, "DBConfig": {section: {
            "Host": "127.0.0.1", "Port": port, "User": "root", "Password": "", "DBName": name,
        }}})
    };
    match engine {
        None => {
            json!({"DBDriverName": "sqlite", "DBConfig": {"SQLiteConfig": {"Path": directory.join("bench.sqlite")}}})
        }
        Some(engine) if engine.engine() == Engine::Postgres => server("pgx", "PostgreSQLConfig", engine.port()),
        Some(engine) => server("mysql", "MySQLConfig", engine.port()),
    }
}

async fn fill(db: &Db, count: u64) {
    let mut tx = db.write().await.unwrap();
    for number in 0..EXPERIMENTS {
        let experiment = experiments::Experiment {
            id: id(0, number),
            name: format!("experiment {number}"),
            description: String::new(),
            created_at: EPOCH,
            last_run_created_at: 0,
            namespace: String::new(),
            storage: Storage::Available,
        };
        experiments::insert(&mut tx, &experiment).await.unwrap();
    }
    tx.commit().await.unwrap();
    let version = |pipeline: u64, number: u64| versions::Version {
        id: id(2, pipeline * VERSIONS + number),
        created_at: EPOCH + number as i64,
        name: format!("v{number}"),
        display_name: format!("v{number}"),
        pipeline_id: id(1, pipeline),
        code_source_url: String::new(),
        description: String::new(),
        spec_uri: String::new(),
        parameters: "[]".to_owned(),
        spec: "x".repeat(2_000),
        tags: BTreeMap::new(),
    };
    for start in (0..PIPELINES).step_by(BATCH as usize) {
        let mut tx = db.write().await.unwrap();
        for number in start..(start + BATCH).min(PIPELINES) {
            let pipeline = pipelines::Pipeline {
                id: id(1, number),
                created_at: EPOCH + number as i64,
                name: format!("pipeline-{number}"),
                display_name: format!("Pipeline {number}"),
                description: String::new(),
                namespace: String::new(),
                tags: BTreeMap::from([("team".to_owned(), format!("t{}", number % 10))]),
            };
            pipelines::insert(&mut tx, &pipeline, "exists").await.unwrap();
            for number_of_version in 0..if number == 0 { VERSIONS } else { 1 } {
                versions::insert(&mut tx, &version(number, number_of_version)).await.unwrap();
            }
        }
        tx.commit().await.unwrap();
    }
    let manifests = runs::Manifests {
        pipeline_spec: "s".repeat(1_500),
        workflow_runtime: "w".repeat(2_000),
        ..runs::Manifests::default()
    };
    for start in (0..count).step_by(BATCH as usize) {
        let mut tx = db.write().await.unwrap();
        for number in start..(start + BATCH).min(count) {
            let created_at = EPOCH + number as i64;
            let state = if number % 7 == 0 { State::Failed } else { State::Succeeded };
            let mut history = History::default();
            history.note(state, created_at);
            let run = runs::Run {
                id: id(3, number),
                display_name: format!("{} of {}", ["train", "test", "deploy"][number as usize % 3], id(4, number)),
                workflow: format!("train-{number}"),
                experiment_id: id(0, number % EXPERIMENTS),
                storage: if number % 10 == 0 { Storage::Archived } else { Storage::Available },
                service_account: "pipeline-runner".to_owned(),
                runtime_parameters: r#"{"epochs":10,"rate":0.01}"#.to_owned(),
                created_at,
                scheduled_at: created_at,
                finished_at: created_at + 100,
                state,
                history,
                ..runs::Run::default()
            };
            assert!(runs::insert(&mut tx, &run, &manifests).await.unwrap());
            let task = tasks::Task {
                id: id(5, number),
                run_id: run.id.clone(),
                pod_name: format!("train-{number}-1"),
                name: "train".to_owned(),
                state,
                created_at,
                ..tasks::Task::default()
            };
            tasks::insert(&mut tx, &task).await.unwrap();
        }
        tx.commit().await.unwrap();
    }
}

/// Copies the stored runs and their tasks until there are `count`, as later ones.
async fn copy(db: &Db, count: u64) {
    let dialect = db.dialect();
    let hex = |text: &str, width: u32| match dialect {
        Dialect::Sqlite => format!("printf('%0{width}x', {text})"),
        Dialect::MySql => format!("LPAD(LOWER(HEX({text})), {width}, '0')"),
        Dialect::Postgres => format!("LPAD(TO_HEX({text}), {width}, '0')"),
    };
    let join = |parts: &[String]| match dialect {
        Dialect::MySql => format!("CONCAT({})", parts.join(", ")),
        _ => parts.join(" || "),
    };
    let name = |column: &str| if dialect == Dialect::MySql { format!("`{column}`") } else { format!("\"{column}\"") };
    for shift in (STORED..count).step_by(STORED as usize) {
        let shifted = |column: &str| format!("{} + {shift}", name(column));
        for (table, created) in [("run_details", "CreatedAtInSec"), ("tasks", "CreatedTimestamp")] {
            let number = format!("({} - {EPOCH} + {shift})", name(created));
            let id = |kind: u64| {
                let part =
                    |scatter: u64, width: u32| hex(&format!("({number} * {scatter}) % {}", 1u64 << (4 * width)), width);
                join(&[part(SCATTER[0], 8), format!("'-0000-4000-8{kind:03x}-'"), part(SCATTER[1], 12)])
            };
            let mut columns = Sql::new(dialect);
            columns.push(match dialect {
                Dialect::Sqlite => "SELECT name FROM pragma_table_info(",
                Dialect::MySql => {
                    "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = DATABASE() AND (TABLE_NAME = "
                }
                Dialect::Postgres => {
                    "SELECT CAST(column_name AS text) FROM information_schema.columns \
                     WHERE table_schema = current_schema() AND (table_name = "
                }
            });
            columns.bind(table).push(")");
            let mut tx = db.write().await.unwrap();
            let columns: Vec<String> = tx.rows(columns).await.unwrap().iter().map(|row| row.text(0).unwrap()).collect();
            let values: Vec<String> = columns
                .iter()
                .map(|column| match (table, column.as_str()) {
                    ("run_details", "UUID") | ("tasks", "RunUUID") => id(3),
                    ("tasks", "UUID") => id(5),
                    ("run_details", "DisplayName") => {
                        // All but the id at its end.
                        let length = format!("LENGTH({}) - 36", name(column));
                        join(&[format!("SUBSTR({}, 1, {length})", name(column)), id(4)])
                    }
                    (_, "CreatedAtInSec" | "ScheduledAtInSec" | "FinishedAtInSec" | "CreatedTimestamp") => {
                        shifted(column)
                    }
                    _ => name(column),
                })
                .collect();
            let columns: Vec<String> = columns.iter().map(|column| name(column)).collect();
            let mut sql = Sql::new(dialect);
            sql.push(&format!("INSERT INTO {table} ({}) SELECT {}", columns.join(", "), values.join(", ")));
            sql.push(&format!(" FROM {table} WHERE {} < {}", name(created), EPOCH as u64 + STORED));
            tx.execute(sql).await.unwrap();
            tx.commit().await.unwrap();
        }
    }
}

/// A Kubernetes API that takes every object and has none.
async fn kubernetes() -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(1);
    let router = axum::Router::new().fallback(|request: HttpRequest| async {
        if request.method() != Method::POST {
            let body = json!({"kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404});
            return (StatusCode::NOT_FOUND, axum::Json(body)).into_response();
        }
        let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
        let mut object: Value = serde_json::from_slice(&body).unwrap();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        object["metadata"]["name"] = json!(format!("bench-{number}"));
        object["metadata"]["uid"] = json!(format!("00000000-0000-0000-0000-{number:012}"));
        object["metadata"]["resourceVersion"] = json!("1");
        object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
        (StatusCode::CREATED, axum::Json(object)).into_response()
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    url
}

/// The server under test: `serve CONFIG KUBERNETES PORT`.
async fn serve(arguments: &[String]) {
    let [file, kubernetes, port] = arguments else { panic!("serve CONFIG KUBERNETES PORT") };
    let config = Config::new(serde_json::from_str(file).unwrap(), BTreeMap::new());
    let mut options = Options::from_config(&config).unwrap();
    options.http_address = format!("127.0.0.1:{port}").parse().unwrap();
    options.grpc_address = "127.0.0.1:0".parse().unwrap();
    options.kube = Some(kube::Client::try_from(kube::Config::new(kubernetes.parse().unwrap())).unwrap());
    let shutdown = kfp_core::shutdown::on_signal().unwrap();
    kfp_apiserver::run(options, shutdown).await.unwrap();
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    /// Resident memory in MiB.
    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
    }
}

async fn call(http: &Http, method: Method, url: &str, body: String) -> (u16, Vec<u8>) {
    let request = HttpRequest::builder().method(method).uri(url).header("content-type", "application/json");
    let Ok(answer) = http.request(request.body(axum::body::Body::from(body)).unwrap()).await else {
        return (0, Vec::new());
    };
    let status = answer.status().as_u16();
    (status, axum::body::to_bytes(axum::body::Body::new(answer.into_body()), usize::MAX).await.unwrap().to_vec())
}

fn quote(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// A token as the server writes it, for a page in the middle.
fn deep(column: &str, descending: bool, value: &Value, filter: &Value) -> String {
    let token =
        json!({"kind": "Run", "column": column, "descending": descending, "filter": filter, "value": value, "id": ""});
    quote(&base64::engine::general_purpose::STANDARD.encode(token.to_string()))
}

/// Name, sort order, filter, scope and token of the measured pages.
fn pages(count: u64) -> Vec<(&'static str, String)> {
    let visible = json!([{"column": "StorageState", "operation": "Ne", "values": ["ARCHIVED"]}]);
    let middle = json!(EPOCH + count as i64 / 2);
    let newest = format!("sort_by={}", quote("created_at desc"));
    let filter = format!("filter={}", quote(FILTER));
    let experiment = format!("experiment_id={}", id(0, 7));
    let equals = json!({"predicates": [{"operation": "EQUALS", "key": "name", "string_value": format!("test of {}", id(4, 1))}]});
    let part = json!({"predicates": [{"operation": "IS_SUBSTRING", "key": "name", "string_value": id(4, 1)[..8]}]});
    let failed = json!({"predicates": [{"operation": "EQUALS", "key": "state", "string_value": "FAILED"}]});
    let filtered = |filter: &Value| format!("{newest}&filter={}", quote(&filter.to_string()));
    vec![
        ("first page", newest.clone()),
        ("deep page", format!("{newest}&page_token={}", deep("CreatedAtInSec", true, &middle, &json!([])))),
        ("not archived, first", format!("{newest}&{filter}")),
        (
            "not archived, deep",
            format!("{newest}&{filter}&page_token={}", deep("CreatedAtInSec", true, &middle, &visible)),
        ),
        ("of experiment, first", format!("{newest}&{filter}&{experiment}")),
        (
            "of experiment, deep",
            format!("{newest}&{filter}&{experiment}&page_token={}", deep("CreatedAtInSec", true, &middle, &visible)),
        ),
        ("by name, first", format!("sort_by=name&{filter}")),
        (
            "by name, deep",
            format!("sort_by=name&{filter}&page_token={}", deep("DisplayName", false, &json!("test"), &visible)),
        ),
        ("by name, of experiment", format!("sort_by=name&{filter}&{experiment}")),
        ("name equals", filtered(&equals)),
        ("state failed", filtered(&failed)),
        ("name contains (rare)", filtered(&part)),
    ]
}

/// Statements that a page costs, counted in the store itself.
async fn statements(db: &Db, query: &str) -> u64 {
    let fields: BTreeMap<&str, String> = query
        .split('&')
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap();
            let bytes = value.as_bytes();
            let text = if value.starts_with('%') {
                bytes
                    .chunks(3)
                    .map(|hex| u8::from_str_radix(std::str::from_utf8(&hex[1..]).unwrap(), 16).unwrap() as char)
                    .collect()
            } else {
                value.to_owned()
            };
            (name, text)
        })
        .collect();
    let field = |name: &str| fields.get(name).map_or("", String::as_str);
    let request = list::Request {
        token: field("page_token"),
        size: 20,
        sort_by: field("sort_by"),
        filter: field("filter"),
        generation: kfp_apiserver::store::filter::Generation::V2,
    };
    let options = list::Options::parse(request, &runs::LISTABLE).unwrap();
    let scope: Vec<_> = fields.get("experiment_id").map(|id| ("ExperimentUUID", id.into())).into_iter().collect();
    let before = db.statements();
    let mut tx = db.read().await.unwrap();
    let page = runs::list(&mut tx, &scope, &options).await.unwrap();
    let ids: Vec<String> = page.items.iter().map(|run| run.id.clone()).collect();
    tasks::of_runs(&mut tx, &ids).await.unwrap();
    db.statements() - before
}

fn show(name: &str, mut times: Vec<Duration>, note: &str) {
    times.sort();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    println!("  {name:<28} p50 {:>8.2} ms   p99 {:>8.2} ms   n {:>6}   {note}", at(0.5), at(0.99), times.len());
}

/// Calls one after the other for a while.
async fn measure(seconds: f64, mut work: impl AsyncFnMut(u64)) -> Vec<Duration> {
    for number in 0..3 {
        work(number).await;
    }
    let (start, mut times) = (Instant::now(), Vec::new());
    while start.elapsed().as_secs_f64() < seconds || times.len() < 20 {
        let begin = Instant::now();
        work(times.len() as u64).await;
        times.push(begin.elapsed());
    }
    times
}

async fn create(http: &Http, base: &str, name: &str) {
    let body = json!({"display_name": name, "experiment_id": id(0, 3), "runtime_config": {}, "pipeline_spec": {
        "pipelineInfo": {"name": "bench"}, "schemaVersion": "2.1.0", "sdkVersion": "kfp-2.17.0",
        "components": {"comp-a": {"executorLabel": "exec-a"}},
        "deploymentSpec": {"executors": {"exec-a": {"container": {"image": "alpine", "command": ["true"]}}}},
        "root": {"dag": {"tasks": {"a": {"componentRef": {"name": "comp-a"}, "taskInfo": {"name": "a"}}}}},
    }});
    let (status, answer) = call(http, Method::POST, &format!("{base}/runs"), body.to_string()).await;
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
}

async fn read(http: &Http, url: &str) {
    let (status, answer) = call(http, Method::GET, url, String::new()).await;
    assert_eq!(status, 200, "{url}: {}", String::from_utf8_lossy(&answer));
}

async fn bench(engine: Option<Engine>, count: u64, seconds: f64) {
    let title = engine.map_or("SQLite".to_owned(), |engine| format!("{engine:?}"));
    let started = match engine.map(Engine::start) {
        Some(None) => return,
        Some(started) => started,
        None => None,
    };
    let server = started.as_ref();
    let directory = tempfile::tempdir().unwrap();
    let name = server.map(kfp_testdb::Server::fresh_name).unwrap_or_default();
    let file = config(server, &name, directory.path());
    let database = Database::from_config(&Config::new(file.clone(), BTreeMap::new())).unwrap();
    let db = Db::open(&database).await.unwrap();
    let start = Instant::now();
    fill(&db, count.min(STORED)).await;
    copy(&db, count).await;
    // What the server does by itself in time.
    match engine {
        Some(Engine::Postgres) => drop(server.unwrap().execute(&name, "VACUUM ANALYZE")),
        Some(Engine::MariaDb) => {
            drop(server.unwrap().execute(&name, "ANALYZE TABLE run_details, tasks, pipelines, pipeline_versions"))
        }
        None => {}
    }
    println!("{title}, {count} runs, {PIPELINES} pipelines (filled in {:.0} s)", start.elapsed().as_secs_f64());

    let kubernetes = kubernetes().await;
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let begin = Instant::now();
    let arguments = ["serve".to_owned(), file.to_string(), kubernetes, port.to_string()];
    let child = Command::new(std::env::current_exe().unwrap()).args(arguments).stdin(Stdio::null()).spawn().unwrap();
    let running = Running(child);
    let http: Http = Client::builder(TokioExecutor::new()).build_http();
    let base = format!("http://127.0.0.1:{port}/apis/v2beta1");
    while call(&http, Method::GET, &format!("{base}/experiments?page_size=1"), String::new()).await.0 != 200 {
        assert!(begin.elapsed() < Duration::from_secs(60), "the server does not answer");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    println!("  ready after {} ms, {} MiB idle", begin.elapsed().as_millis(), running.memory());

    for (name, query) in pages(count) {
        let url = format!("{base}/runs?page_size=20&{query}");
        let cost = statements(&db, &query).await;
        show(name, measure(seconds, async |_| read(&http, &url).await).await, &format!("{cost} statements"));
    }
    // Totals of lists are not believed for long where other servers may share the database.
    let (url, mut times) = (format!("{base}/runs?page_size=20&{}", pages(count)[2].1), Vec::new());
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        let begin = Instant::now();
        read(&http, &url).await;
        times.push(begin.elapsed());
    }
    show("not archived, once a second", times, "");
    let run = |number: u64| format!("{base}/runs/{}", id(3, number * 7_919 % count));
    show("GetRun", measure(seconds, async |number| read(&http, &run(number)).await).await, "");
    let versions = format!("{base}/pipelines/{}/versions?page_size=20&sort_by={}", id(1, 0), quote("created_at desc"));
    show("ListPipelineVersions", measure(seconds, async |_| read(&http, &versions).await).await, "");
    let listed = format!("{base}/pipelines?page_size=20&sort_by={}", quote("created_at desc"));
    show("ListPipelines", measure(seconds, async |_| read(&http, &listed).await).await, "");
    show("CreateRun", measure(seconds, async |number| create(&http, &base, &format!("new {number}")).await).await, "");

    let pages = pages(count);
    let clients = (0..CLIENTS).map(|client| {
        let (http, base, pages) = (http.clone(), base.clone(), &pages);
        async move {
            let (start, mut lists, mut gets, mut creates) = (Instant::now(), vec![], vec![], vec![]);
            for number in client * 1_000_003.. {
                if start.elapsed().as_secs_f64() > seconds * 3.0 {
                    break;
                }
                let begin = Instant::now();
                match number % 10 {
                    0 => {
                        create(&http, &base, &format!("mixed {number}")).await;
                        creates.push(begin.elapsed());
                    }
                    1..=3 => {
                        read(&http, &format!("{base}/runs/{}", id(3, number * 7_919 % count))).await;
                        gets.push(begin.elapsed());
                    }
                    _ => {
                        // The pages that the UI shows; all but the last two, which look at many rows.
                        let (_, query) = &pages[number as usize % (pages.len() - 2)];
                        read(&http, &format!("{base}/runs?page_size=20&{query}")).await;
                        lists.push(begin.elapsed());
                    }
                }
            }
            (lists, gets, creates)
        }
    });
    let done = futures::future::join_all(clients).await;
    let total: usize = done.iter().map(|(a, b, c)| a.len() + b.len() + c.len()).sum();
    let note = format!("{CLIENTS} clients, {:.0} calls/s in all", total as f64 / (seconds * 3.0));
    show("mix: ListRuns", done.iter().flat_map(|times| times.0.clone()).collect(), &note);
    show("mix: GetRun", done.iter().flat_map(|times| times.1.clone()).collect(), "");
    show("mix: CreateRun", done.iter().flat_map(|times| times.2.clone()).collect(), "");
    println!("  {} MiB under the mix", running.memory());
    db.close().await;
}

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "serve") {
        return serve(&arguments[1..]).await;
    }
    let number = |name: &str, default: &str| {
        let at = arguments.iter().position(|argument| argument == name);
        at.and_then(|at| arguments.get(at + 1)).map_or(default, String::as_str).parse::<f64>().expect(name)
    };
    let (count, seconds) = (number("--runs", "200000") as u64, number("--seconds", "3"));
    let named: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let wanted = |name: &str| {
        named.contains(&name) || !["sqlite", "postgres", "mariadb"].iter().any(|engine| named.contains(engine))
    };
    for (name, engine) in [("sqlite", None), ("postgres", Some(Engine::Postgres)), ("mariadb", Some(Engine::MariaDb))] {
        if wanted(name) {
            bench(engine, count, seconds).await;
        }
    }
}
