//! Lists through REST: order, pages, filters, totals, and what hostile requests can do.
#![allow(missing_docs, clippy::unwrap_used)]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kfp_apiserver::store::filter::Generation;
use kfp_apiserver::store::list::{Options, Request};
use kfp_apiserver::store::{Db, metrics, runs, tasks};
use serde_json::{Value, json};
use support::{Server, database, quote, start};

const RUNS: &str = "/apis/v2beta1/runs";

/// Names that sort and compare differently by case, that hold what LIKE treats specially, and one twice.
const NAMES: [&str; 7] = ["beta", "Alpha", "100%", "a_b", "alpha two", "beta", "zeta"];

/// Runs of [`NAMES`] with their ids; the runs 0 to 3 have the metric `acc`, the run 2 from two nodes.
async fn filled(directory: &Path) -> (Server, Vec<String>) {
    let server = start(directory).await;
    let mut ids = Vec::new();
    for name in NAMES {
        let run = server.run(name, json!({"a": 1})).await.ok();
        ids.push(run["run_id"].as_str().unwrap().to_owned());
    }
    let db = Db::open(&database(directory)).await.unwrap();
    let mut tx = db.write().await.unwrap();
    for (run, node, value) in [(0, "a", 0.5), (1, "a", -3.0), (2, "a", 7.25), (2, "b", 1e-9), (3, "a", 0.25)] {
        let metric = metrics::Metric {
            run_id: ids[run].clone(),
            node_id: node.to_owned(),
            name: "acc".to_owned(),
            value,
            format: "RAW".to_owned(),
        };
        assert!(metrics::insert(&mut tx, &metric).await.unwrap());
        assert!(!metrics::insert(&mut tx, &metric).await.unwrap(), "the same metric twice");
    }
    tx.commit().await.unwrap();
    db.close().await;
    (server, ids)
}

/// Field `item` of all rows of all pages; each page has at most two and names the same total.
async fn pages(server: &Server, sort: &str, item: &str) -> Vec<String> {
    let (mut found, mut token) = (Vec::new(), String::new());
    loop {
        let url = format!("{RUNS}?page_size=2&sort_by={}&page_token={}", quote(sort), quote(&token));
        let page = server.get(&url).await.ok();
        assert_eq!(page["total_size"], NAMES.len(), "{sort}");
        let rows = page["runs"].as_array().unwrap();
        assert!(rows.len() <= 2);
        found.extend(rows.iter().map(|run| run[item].as_str().unwrap().to_owned()));
        match page.get("next_page_token") {
            Some(next) => next.as_str().unwrap().clone_into(&mut token),
            None => return found,
        }
    }
}

#[tokio::test]
async fn every_sort_key_pages_through_all_runs_in_both_directions() {
    let dir = tempfile::tempdir().unwrap();
    let (server, ids) = filled(dir.path()).await;
    let all: BTreeSet<String> = ids.iter().cloned().collect();
    let keys = runs::LISTABLE.fields.iter().map(|field| field.name).filter(|name| *name != "runtime_details");
    for key in keys.chain(["metric:acc", "metric:none", ""]) {
        let up = pages(&server, key, "run_id").await;
        assert_eq!(up.len(), all.len(), "{key}");
        assert_eq!(up.iter().cloned().collect::<BTreeSet<_>>(), all, "{key}");
        if !key.is_empty() {
            let mut down = pages(&server, &format!("{key} desc"), "run_id").await;
            down.reverse();
            assert_eq!(up, down, "{key}");
        }
    }
    let by_metric = pages(&server, "metric:acc", "run_id").await;
    assert_eq!(by_metric[3..], [&ids[1], &ids[3], &ids[0], &ids[2]].map(Clone::clone));
    let mut by_id = ids.clone();
    by_id.sort();
    assert_eq!(pages(&server, "run_id", "run_id").await, by_id);
    let names: Vec<String> = pages(&server, "name", "display_name").await;
    assert_eq!(names.iter().filter(|name| *name == "beta").count(), 2);
    assert_eq!(names.last().unwrap(), "zeta");
    server.stop().await;
}

async fn found(server: &Server, predicates: Value) -> Vec<String> {
    let filter = json!({"predicates": predicates}).to_string();
    let page = server.get(&format!("{RUNS}?filter={}", quote(&filter))).await.ok();
    let runs = page["runs"].as_array().cloned().unwrap_or_default();
    assert_eq!(page["total_size"].as_u64().unwrap_or_default(), runs.len() as u64);
    let mut names: Vec<String> = runs.iter().map(|run| run["display_name"].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn filters_mean_the_same_on_every_database() {
    let dir = tempfile::tempdir().unwrap();
    let (server, ids) = filled(dir.path()).await;
    let one = |operation: &str, key: &str, kind: &str, value: Value| json!([{"operation": operation, "key": key, kind: value}]);
    for (predicates, want) in [
        (one("EQUALS", "name", "string_value", json!("beta")), vec!["beta", "beta"]),
        (one("NOT_EQUALS", "name", "string_value", json!("beta")), vec!["100%", "Alpha", "a_b", "alpha two", "zeta"]),
        (one("IS_SUBSTRING", "name", "string_value", json!("ALPHA")), vec!["Alpha", "alpha two"]),
        (one("IS_SUBSTRING", "name", "string_value", json!("%")), vec!["100%"]),
        (one("IS_SUBSTRING", "name", "string_value", json!("_")), vec!["a_b"]),
        (one("IS_SUBSTRING", "name", "string_value", json!("!")), vec![]),
        (one("IS_SUBSTRING", "name", "string_value", json!("\\")), vec![]),
        (one("IS_SUBSTRING", "created_at", "string_value", json!("x")), vec![]),
        (one("IN", "name", "string_values", json!({"values": ["zeta", "100%", "none"]})), vec!["100%", "zeta"]),
        (one("IN", "name", "string_values", json!({"values": []})), vec![]),
        (one("EQUALS", "run_id", "string_value", json!(ids[1])), vec!["Alpha"]),
        (one("GREATER_THAN", "name", "string_value", json!("y")), vec!["zeta"]),
        (one("LESS_THAN_EQUALS", "finished_at", "int_value", json!(0)), {
            vec!["100%", "Alpha", "a_b", "alpha two", "beta", "beta", "zeta"]
        }),
        (one("GREATER_THAN", "created_at", "string_value", json!("2100-01-01T00:00:00Z")), vec![]),
        (one("LESS_THAN", "created_at", "timestamp_value", json!("2001-01-01T00:00:00Z")), vec![]),
        (one("EQUALS", "created_at", "string_value", json!("not a time")), vec![]),
        (one("EQUALS", "name", "long_value", json!("7")), vec![]),
        (one("EQUALS", "state", "string_value", json!("SUCCEEDED")), vec![]),
        (one("NOT_EQUALS", "storage_state", "string_value", json!("AVAILABLE")), vec![]),
        (
            json!([
                {"operation": "EQUALS", "key": "name", "string_value": "beta"},
                {"operation": "NOT_EQUALS", "key": "run_id", "string_value": ids[0]},
            ]),
            vec!["beta"],
        ),
    ] {
        assert_eq!(found(&server, predicates.clone()).await, want, "{predicates}");
    }
    server.stop().await;
}

/// Texts that would do harm if they reached the database as anything but values.
const HOSTILE: [&str; 12] = [
    "' OR 1=1 --",
    "\" OR 1=1 --",
    "` OR 1=1 #",
    "\\' OR 1=1 -- ",
    "'; DROP TABLE run_details; --",
    "UUID\" = '' OR \"UUID\" <> '",
    "CreatedAtInSec`, (SELECT SLEEP(9)), `UUID",
    "1) UNION SELECT * FROM jobs --",
    "$1",
    "?",
    "\u{0}",
    "\u{1f600}\u{ffff}",
];

/// Never a failure of the server, never rows that were not asked for.
async fn harmless(server: &Server, query: &str) {
    let reply = server.get(&format!("{RUNS}?{query}")).await;
    assert!(matches!(reply.status, 200 | 400), "{query}: {} {}", reply.status, reply.body);
    if reply.status == 200 {
        let page = reply.json();
        assert_eq!(page["runs"], Value::Null, "{query}");
    }
}

#[tokio::test]
async fn hostile_filters_and_sort_keys_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = filled(dir.path()).await;
    for text in HOSTILE {
        for operation in ["EQUALS", "IS_SUBSTRING"] {
            let filter = json!({"predicates": [{"operation": operation, "key": "name", "string_value": text}]});
            harmless(&server, &format!("filter={}", quote(&filter.to_string()))).await;
        }
        let filter = json!({"predicates": [{"operation": "IN", "key": "state", "string_values": {"values": [text]}}]});
        harmless(&server, &format!("filter={}", quote(&filter.to_string()))).await;
        let filter = json!({"predicates": [{"operation": "EQUALS", "key": text, "string_value": "x"}]});
        server.get(&format!("{RUNS}?filter={}", quote(&filter.to_string()))).await.fails(400, "");
        server.get(&format!("{RUNS}?sort_by={}", quote(&format!("name {text}")))).await.fails(400, "");
        server.get(&format!("{RUNS}?experiment_id={}", quote(text))).await.fails(404, "");
        // A metric may be called anything; none is called this.
        let metric = format!("metric:{}", text.replace(' ', "\u{a0}"));
        let reply = server.get(&format!("{RUNS}?page_size=2&sort_by={}", quote(&metric))).await;
        assert!(matches!(reply.status, 200 | 400), "{metric}: {}", reply.body);
    }
    let many: Vec<String> = (0..10_001).map(|number| number.to_string()).collect();
    let filter = json!({"predicates": [{"operation": "IN", "key": "name", "string_values": {"values": many}}]});
    let body = runs::LISTABLE.kind;
    let request = Request { token: "", size: 0, sort_by: "", filter: &filter.to_string(), generation: Generation::V2 };
    let error = Options::parse(request, &runs::LISTABLE).unwrap_err();
    assert!(error.to_string().contains("at most 10000 values"), "{body}: {error}");
    assert_eq!(pages(&server, "", "run_id").await.len(), NAMES.len());
    server.stop().await;
}

#[tokio::test]
async fn page_tokens_are_believed_only_as_far_as_this_list_could_have_written_them() {
    let dir = tempfile::tempdir().unwrap();
    let (server, ids) = filled(dir.path()).await;
    let filter = json!({"predicates": [{"operation": "IN", "key": "name", "string_values": {"values": NAMES}}]});
    let query = format!("page_size=1&filter={}", quote(&filter.to_string()));
    let page = server.get(&format!("{RUNS}?{query}")).await.ok();
    let token = page["next_page_token"].as_str().unwrap();
    let token: Value = serde_json::from_slice(&STANDARD.decode(token).unwrap()).unwrap();
    let sent = |token: &Value| quote(&STANDARD.encode(token.to_string()));
    // The token alone, and with what it was made from, continues.
    for query in ["page_size=9".to_owned(), query.replace("page_size=1", "page_size=9")] {
        let rest = server.get(&format!("{RUNS}?{query}&page_token={}", sent(&token))).await.ok();
        assert_eq!((rest["runs"].as_array().unwrap().len(), &rest["total_size"]), (6, &json!(7)));
    }
    let refused = |path: &'static str, value: Value| {
        let mut token = token.clone();
        *token.pointer_mut(path).unwrap() = value;
        sent(&token)
    };
    let mut bad = vec![
        refused("/kind", json!("Job")),
        refused("/kind", json!(7)),
        refused("/column", json!("metric")),
        refused("/column", json!("WorkflowRuntimeManifest")),
        refused("/descending", json!("yes")),
        refused("/value", json!("5")),
        refused("/value", json!(null)),
        refused("/value", json!(true)),
        refused("/value", json!(1.5)),
        refused("/value", json!([1])),
        refused("/id", json!(null)),
        refused("/id", json!("a\0")),
        refused("/filter/0/column", json!("WorkflowSpecManifest")),
        refused("/filter/0/column", json!("CreatedAtInSec")),
        refused("/filter/0/operation", json!("Or")),
        refused("/filter/0/operation", json!("Eq")),
        refused("/filter/0/values", json!([1])),
        refused("/filter/0/values", json!([null])),
        refused("/filter/0/values", json!(["a\0"])),
        "bm90IGpzb24=".to_owned(),
        "e30=".to_owned(),
    ];
    for text in HOSTILE {
        bad.extend([refused("/column", json!(text)), refused("/filter/0/column", json!(text))]);
        let mut changed = token.clone();
        changed["id"] = json!(text);
        changed["filter"][0]["values"] = json!([text]);
        harmless(&server, &format!("page_token={}", sent(&changed))).await;
        changed["column"] = json!("DisplayName");
        changed["value"] = json!(text);
        harmless(&server, &format!("page_token={}", sent(&changed))).await;
        changed["column"] = json!(format!("metric:{text}"));
        changed["value"] = json!(0.5);
        harmless(&server, &format!("page_token={}", sent(&changed))).await;
    }
    for token in bad {
        server.get(&format!("{RUNS}?page_token={token}")).await.fails(400, "Invalid page token");
    }
    assert_eq!(pages(&server, "", "run_id").await.len(), ids.len());
    server.stop().await;
}

#[tokio::test]
async fn totals_follow_every_change_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (server, ids) = filled(dir.path()).await;
    let filter = json!({"predicates": [{"operation": "EQUALS", "key": "storage_state", "string_value": "AVAILABLE"}]});
    let url = format!("{RUNS}?page_size=1&filter={}", quote(&filter.to_string()));
    let total = async || server.get(&url).await.ok()["total_size"].as_u64().unwrap();
    assert_eq!(total().await, 7);
    server.post(&format!("{RUNS}/{}:archive", ids[0]), json!({})).await.ok();
    assert_eq!(total().await, 6);
    server.delete(&format!("{RUNS}/{}", ids[1])).await.ok();
    assert_eq!(total().await, 5);
    server.run("new", json!({"a": 1})).await.ok();
    assert_eq!(total().await, 6);
    server.post(&format!("{RUNS}/{}:unarchive", ids[0]), json!({})).await.ok();
    assert_eq!(total().await, 7);
    server.stop().await;
}

#[tokio::test]
async fn a_page_costs_at_most_three_queries_whatever_it_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (server, _) = filled(dir.path()).await;
    server.stop().await;
    let db = Db::open(&database(dir.path())).await.unwrap();
    let mut seen = BTreeMap::new();
    for size in [1, 3, 200] {
        let request = Request { token: "", size, sort_by: "metric:acc desc", filter: "", generation: Generation::V2 };
        let options = Options::parse(request, &runs::LISTABLE).unwrap();
        let before = db.statements();
        let mut tx = db.read().await.unwrap();
        let page = runs::list(&mut tx, &[], &options).await.unwrap();
        let ids: Vec<String> = page.items.iter().map(|run| run.id.clone()).collect();
        tasks::of_runs(&mut tx, &ids).await.unwrap();
        seen.insert(size, (db.statements() - before, page.total));
    }
    // A list that ends on its first page needs no count.
    assert_eq!(seen, BTreeMap::from([(1, (3, 7)), (3, (2, 7)), (200, (2, 7))]));
    db.close().await;
}

#[tokio::test]
async fn parts_of_names_are_found_among_many_and_among_few() {
    let dir = tempfile::tempdir().unwrap();
    let db = Db::open(&database(dir.path())).await.unwrap();
    let few = ["say \"hi\" now", "rare OR train", "Ünïcode naïve", "ab", "a* NOT b", "100%_done", "rare again"];
    // More trains than are looked up one by one.
    let names: Vec<String> = (0..1_050).map(|number| format!("train {number}")).chain(few.map(str::to_owned)).collect();
    let run = |number: usize, name: &str| runs::Run {
        id: format!("run-{number:04}"),
        display_name: name.to_owned(),
        experiment_id: format!("experiment-{}", number % 2),
        created_at: 1_700_000_000 + number as i64,
        ..runs::Run::default()
    };
    let mut tx = db.write().await.unwrap();
    for (number, name) in names.iter().enumerate() {
        assert!(runs::insert(&mut tx, &run(number, name), &runs::Manifests::default()).await.unwrap());
    }
    // One that was found is gone, together with its entry.
    runs::delete(&mut tx, &run(names.len() - 1, "").id).await.unwrap();
    tx.commit().await.unwrap();
    let names = &names[..names.len() - 1];
    for part in [
        "train",
        "TRAIN 10",
        "rare",
        "rare again",
        "\"hi\"",
        "y \"h",
        "a* NOT",
        "ab",
        "a",
        "%_d",
        "0%",
        "naïve",
        "xyz",
        "",
    ] {
        let filter = json!({"predicates": [{"operation": "IS_SUBSTRING", "key": "name", "string_value": part}]});
        let filter = filter.to_string();
        for scope in [vec![], vec![("ExperimentUUID", "experiment-1".into())]] {
            let fits = |number: usize| scope.is_empty() || number % 2 == 1;
            let contains = |name: &str| name.to_lowercase().contains(&part.to_lowercase());
            let want: Vec<String> = (0..names.len())
                .rev()
                .filter(|number| fits(*number) && contains(&names[*number]))
                .map(|number| run(number, "").id)
                .collect();
            let (mut got, mut token) = (Vec::new(), String::new());
            loop {
                let request = Request {
                    token: &token,
                    size: 200,
                    sort_by: "created_at desc",
                    filter: &filter,
                    generation: Generation::V2,
                };
                let options = Options::parse(request, &runs::LISTABLE).unwrap();
                let mut tx = db.read().await.unwrap();
                let page = runs::list(&mut tx, &scope, &options).await.unwrap();
                assert_eq!(page.total as usize, want.len(), "{part}");
                got.extend(page.items.into_iter().map(|run| run.id));
                if page.next.is_empty() {
                    break;
                }
                token = page.next;
            }
            assert_eq!(got, want, "{part:?} {}", scope.len());
        }
    }
    db.close().await;
}

#[tokio::test]
async fn names_of_runs_from_before_the_index_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let database = database(dir.path());
    let kfp_apiserver::options::Database::Sqlite(file) = &database else { return };
    let server = start(dir.path()).await;
    server.run("older than the index", json!({"a": 1})).await.ok();
    server.stop().await;
    let old = rusqlite::Connection::open(file).unwrap();
    // As releases before left it.
    old.execute_batch(
        "DROP TRIGGER list_run_by_name_part; DROP TRIGGER unlist_run_by_name_part; \
         DROP TRIGGER relist_run_by_name_part; DROP TABLE list_runs_by_name_part;",
    )
    .unwrap();
    old.execute("UPDATE run_details SET DisplayName = 'younger than the rest'", []).unwrap();
    drop(old);
    let server = start(dir.path()).await;
    let part = |text: &str| json!([{"operation": "IS_SUBSTRING", "key": "name", "string_value": text}]);
    assert_eq!(found(&server, part("UNGER")).await, ["younger than the rest"]);
    // Renamed by hand.
    let hand = rusqlite::Connection::open(file).unwrap();
    hand.execute("UPDATE run_details SET DisplayName = 'renamed'", []).unwrap();
    assert_eq!(found(&server, part("unger")).await, Vec::<String>::new());
    assert_eq!(found(&server, part("named")).await, ["renamed"]);
    server.stop().await;
}
