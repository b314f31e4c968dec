//! Input that is broken, hostile or too much: the right answer, nothing half-written, and the server goes on.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::io::Write as _;

use serde_json::{Value, json};
use support::{ADD, Kube, Server, launch, quote, start};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.rest.trim_start_matches("http://")).await.unwrap()
}

fn form(file: &[u8]) -> Vec<u8> {
    let mut body = b"--XX\r\nContent-Disposition: form-data; name=\"uploadfile\"; filename=\"p.yaml\"\r\n\r\n".to_vec();
    body.extend_from_slice(file);
    body.extend_from_slice(b"\r\n--XX--\r\n");
    body
}

/// The start of a request whose body is said to be `length` bytes long.
fn head(path: &str, content: &str, length: usize) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {content}\r\nContent-Length: {length}\r\n\r\n")
        .into_bytes()
}

const UPLOAD: &str = "/apis/v2beta1/pipelines/upload?name=x";
const FORM: &str = "multipart/form-data; boundary=XX";

async fn nothing_is_stored(server: &Server) {
    for path in ["/apis/v2beta1/pipelines", "/apis/v2beta1/runs", "/apis/v2beta1/recurringruns"] {
        assert_eq!(server.get(path).await.ok(), json!({}), "{path}");
    }
    assert_eq!(server.get("/apis/v2beta1/experiments").await.ok()["total_size"], 1);
    for plural in ["workflows", "scheduledworkflows"] {
        assert!(server.kube.names(plural).is_empty());
    }
}

#[tokio::test]
async fn truncated_bodies_store_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let upload = form(ADD.as_bytes());
    let pipeline = json!({"name": "x"}).to_string().into_bytes();
    // The file of an upload ends where the last boundary begins.
    let end = upload.len() - "\r\n--XX--\r\n".len();
    for (path, content, body, last) in
        [(UPLOAD, FORM, &upload, end), ("/apis/v2beta1/pipelines", "application/json", &pipeline, pipeline.len() - 1)]
    {
        for cut in [0, 1, body.len() / 2, last] {
            let mut stream = connect(&server).await;
            stream.write_all(&head(path, content, body.len())).await.unwrap();
            stream.write_all(&body[..cut]).await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            // The end of the connection is an answer, too.
            drop(stream.read_to_string(&mut answer).await);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{path} cut at {cut}: {answer}");
        }
    }
    nothing_is_stored(&server).await;
    server.upload(UPLOAD, "p.yaml", ADD.as_bytes()).await.ok();
    server.stop().await;
}

#[tokio::test]
async fn slow_clients_hold_nobody_up() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let upload = form(ADD.as_bytes());
    let mut slow = vec![];
    for number in 0..200 {
        let mut stream = connect(&server).await;
        let start = head(UPLOAD, FORM, upload.len());
        // Half of them stop within the head of their request, half within its body.
        let part = if number % 2 == 0 { &start[..start.len() / 2] } else { &start[..] };
        stream.write_all(part).await.unwrap();
        slow.push(stream);
    }
    server.upload("/apis/v2beta1/pipelines/upload?name=quick", "p.yaml", ADD.as_bytes()).await.ok();
    server.run("quick", json!({"a": 1})).await.ok();
    // One that goes on in small pieces comes to its end.
    let mut stream = slow.pop().unwrap();
    for piece in upload.chunks(64) {
        stream.write_all(piece).await.unwrap();
    }
    let mut answer = [0; 15];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    assert_eq!(server.get("/apis/v2beta1/pipelines").await.ok()["total_size"], 2);
    // The others do not keep the server from ending.
    server.stop().await;
}

/// What is said on a connection until the server closes it.
async fn until_closed(address: &str, said: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address.trim_start_matches("http://")).await.unwrap();
    stream.write_all(said).await.unwrap();
    let mut answer = vec![];
    drop(stream.read_to_end(&mut answer).await);
    answer
}

#[tokio::test]
async fn heads_that_stop_are_given_up() {
    let dir = tempfile::tempdir().unwrap();
    let short = |options: &mut kfp_apiserver::Options| options.patience = std::time::Duration::from_millis(500);
    let server = launch(dir.path(), Kube::default(), short).await;
    let start = head(UPLOAD, FORM, 10);
    let slow = async {
        tokio::join!(
            until_closed(&server.rest, b""),
            until_closed(&server.rest, &start[..start.len() - 2]),
            until_closed(&server.grpc, b""),
            until_closed(&server.grpc, b"PRI * HTTP/2.0\r\n"),
        )
    };
    let (closed, _) = tokio::join!(slow, server.run("quick", json!({"a": 1})));
    assert_eq!((closed.0, closed.1), (vec![], vec![]), "they said nothing to be answered");
    assert_eq!(server.get("/apis/v2beta1/runs").await.ok()["total_size"], 1);
    server.stop().await;
}

#[tokio::test]
async fn packages_cannot_swell_or_lead_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let zip = |entries: &[(&str, &[u8])]| {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
        for (name, content) in entries {
            writer.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap();
            writer.write_all(content).unwrap();
        }
        writer.finish().unwrap().into_inner()
    };
    let bomb = zip(&[("pipeline.yaml", &vec![b'#'; 64 << 20])]);
    server.upload(UPLOAD, "p.zip", &bomb).await.fails(400, "File size too large");
    for hostile in ["../../pipeline.txt", "/etc/pipeline.txt"] {
        server.upload(UPLOAD, "p.zip", &zip(&[(hostile, b"x")])).await.fails(400, "decompress");
    }
    let laughs = (1..12).fold("a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, level| {
        let list = vec![format!("*a{}", level - 1); 9].join(", ");
        format!("{text}a{level}: &a{level} [{list}]\n")
    });
    server.upload(UPLOAD, "p.yaml", laughs.as_bytes()).await.fails(400, "more than");
    server.upload(UPLOAD, "p.yaml", "[".repeat(100_000).as_bytes()).await.fails(400, "recursion limit");
    nothing_is_stored(&server).await;
    // A name of a file that leads elsewhere is only a name.
    let made = server.upload("/apis/v2beta1/pipelines/upload", "../../evil.yaml", ADD.as_bytes()).await.ok();
    assert_eq!(made["name"], "evil.yaml");
    for id in ["..%2F..%2Fetc%2Fpasswd", "%2e%2e", "a%00b", "%F0%9F%92%A9"] {
        for path in [
            format!("/apis/v2beta1/pipelines/{id}"),
            format!("/apis/v2beta1/runs/{id}"),
            format!("/apis/v2beta1/runs/{id}/nodes/{id}/log"),
            format!("/apis/v2beta1/runs/{id}/nodes/{id}/artifacts/{id}:read"),
            format!("/apis/v1beta1/runs/{id}/nodes/{id}/artifacts/{id}:read"),
        ] {
            let status = server.get(&path).await.status;
            assert!(matches!(status, 301 | 400 | 404), "{path}: {status}");
        }
    }
    server.stop().await;
}

/// Status of a request whose bytes need not be text.
async fn raw(server: &Server, path: &str, body: &[u8]) -> u16 {
    server.send("POST", path, "application/json", body.to_vec()).await.status
}

#[tokio::test]
async fn bytes_that_are_no_text_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    assert_eq!(raw(&server, "/apis/v2beta1/pipelines", b"{\"name\": \"\xff\xfe\"}").await, 400);
    assert_eq!(raw(&server, "/apis/v2beta1/pipelines", b"\xff").await, 400);
    // A half of a surrogate pair.
    assert_eq!(raw(&server, "/apis/v2beta1/pipelines", br#"{"name": "\ud800"}"#).await, 400);
    for path in ["/apis/v2beta1/pipelines/%ff", "/apis/v2beta1/runs/%ff:archive"] {
        assert!(matches!(server.get(path).await.status, 400 | 404 | 501), "{path}");
    }
    server.get("/apis/v2beta1/pipelines?filter=%ff").await.fails(400, "");
    let mut broken = ADD.as_bytes().to_vec();
    broken.extend_from_slice(b"# \xff\n");
    server.upload(UPLOAD, "p.yaml", &broken).await.fails(400, "");
    nothing_is_stored(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn unknown_words_and_wrong_types_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let spec: Value = serde_norway::from_str(ADD).unwrap();
    let run = |field: &str, value: Value| {
        let mut body = json!({"display_name": "r", "pipeline_spec": spec, "runtime_config": {"parameters": {"a": 1}}});
        body[field] = value;
        body
    };
    for (path, body) in [
        ("/apis/v2beta1/experiments", json!({"display_name": "e", "storage_state": "GONE"})),
        ("/apis/v2beta1/experiments", json!({"display_name": ["e"]})),
        ("/apis/v2beta1/experiments", json!({"display_name": "e", "created_at": "yesterday"})),
        ("/apis/v2beta1/runs", run("state", json!("WALKING"))),
        ("/apis/v2beta1/runs", run("runtime_config", json!("none"))),
        ("/apis/v2beta1/runs", run("pipeline_spec", json!([]))),
        ("/apis/v2beta1/recurringruns", run("mode", json!("SOMETIMES"))),
        ("/apis/v2beta1/recurringruns", run("max_concurrency", json!("many"))),
        ("/apis/v2beta1/recurringruns", run("max_concurrency", json!(1e30))),
        ("/apis/v2beta1/recurringruns", run("no_catchup", json!("perhaps"))),
        ("/apis/v2beta1/recurringruns", run("trigger", json!({"cron_schedule": {"start_time": "9999999-01-01"}}))),
        ("/apis/v1beta1/runs", json!({"name": "r", "storage_state": "GONE"})),
        ("/apis/v1beta1/jobs", json!({"name": "j", "resource_references": [{"key": {"type": "PLANET", "id": "x"}}]})),
    ] {
        let refused = server.post(path, body.clone()).await.fails(400, "");
        assert_eq!(refused["code"], 3, "{path} {body}");
    }
    for query in ["page_size=x", "page_size=99999999999", "page_size=-1", "sort_by=shape", "page_token=%3F"] {
        server.get(&format!("/apis/v2beta1/runs?{query}")).await.fails(400, "");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(raw(&server, "/apis/v2beta1/pipelines", deep.as_bytes()).await, 400);
    let nested = format!("{{\"runtime_config\":{{\"parameters\":{{\"a\":{deep}");
    assert_eq!(raw(&server, "/apis/v2beta1/runs", nested.as_bytes()).await, 400);
    server.get(&format!("/apis/v2beta1/runs?filter={}", quote(&"[".repeat(5_000)))).await.fails(400, "");
    nothing_is_stored(&server).await;
    server.stop().await;
}

#[tokio::test]
async fn limits_count_characters() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let spec: Value = serde_norway::from_str(ADD).unwrap();
    let text = |count: usize| "\u{e9}".repeat(count);
    let body = |name: &str, description: &str| {
        json!({
            "display_name": name, "description": description, "pipeline_spec": spec, "mode": "ENABLE",
            "max_concurrency": "1", "trigger": {"periodic_schedule": {"interval_second": "3600"}},
            "runtime_config": {"parameters": {"a": 1}},
        })
    };
    let run = |name: &str, description: &str| {
        let mut whole = body(name, description);
        for field in ["mode", "max_concurrency", "trigger"] {
            whole.as_object_mut().unwrap().remove(field);
        }
        whole
    };
    for (name, description) in [(256, 0), (1, 256)] {
        let (name, description) = (text(name), text(description));
        server.post("/apis/v2beta1/runs", run(&name, &description)).await.fails(400, "length cannot exceed 255");
        let refused = server.post("/apis/v2beta1/recurringruns", body(&name, &description)).await;
        refused.fails(400, "length cannot exceed 255");
    }
    let experiment = |name: &str, description: &str| json!({"display_name": name, "description": description});
    let experiments = "/apis/v2beta1/experiments";
    server.post(experiments, experiment(&text(129), "")).await.fails(400, "length cannot exceed 128");
    server.post(experiments, experiment("e", &text(256))).await.fails(400, "length cannot exceed 255");
    let pipeline = |name: &str, shown: &str| json!({"name": name, "display_name": shown});
    server.post("/apis/v2beta1/pipelines", pipeline(&text(129), "")).await.fails(400, "length cannot exceed 128");
    server.post("/apis/v2beta1/pipelines", pipeline("p", &text(256))).await.fails(400, "length cannot exceed 255");
    nothing_is_stored(&server).await;

    server.post("/apis/v2beta1/runs", run(&text(255), &text(255))).await.ok();
    server.post("/apis/v2beta1/recurringruns", body(&text(255), &text(255))).await.ok();
    server.post(experiments, experiment(&text(128), &text(255))).await.ok();
    server.post("/apis/v2beta1/pipelines", pipeline(&text(128), &text(255))).await.ok();
    server.stop().await;
}

/// Requests that put `text` into one field each; `run` exists.
fn requests(text: &str, run: &str) -> Vec<(&'static str, Value)> {
    let spec: Value = serde_norway::from_str(ADD).unwrap();
    let launch = json!({"display_name": "r", "pipeline_spec": spec, "runtime_config": {"parameters": {"a": 1}}});
    let mut schedule = launch.clone();
    schedule["trigger"] = json!({"periodic_schedule": {"interval_second": "3600"}});
    (schedule["mode"], schedule["max_concurrency"]) = (json!("ENABLE"), json!("1"));
    let task = json!({
        "pipelineName": "pipeline/p", "runId": run, "mlmdExecutionID": "1", "fingerprint": "f",
        "createdAt": "2024-01-01T00:00:00Z",
    });
    let with = |mut body: Value, field: &str, value: Value| {
        body[field] = value;
        body
    };
    let mut all = vec![
        ("/apis/v1beta1/experiments", json!({"name": text})),
        ("/apis/v2beta1/pipelines", json!({"name": "p", "tags": {"key": text}})),
        ("/apis/v2beta1/pipelines", json!({"name": "p", "tags": {text: "value"}})),
        ("/apis/v2beta1/recurringruns", with(schedule.clone(), "trigger", json!({"cron_schedule": {"cron": text}}))),
    ];
    let texts = ["display_name", "description", "service_account", "experiment_id"];
    for (path, body, fields) in [
        ("/apis/v2beta1/experiments", json!({"display_name": "e"}), &texts[..2]),
        ("/apis/v2beta1/pipelines", json!({"display_name": "p"}), &["name", "display_name"]),
        ("/apis/v2beta1/runs", launch.clone(), &texts),
        ("/apis/v2beta1/runs", launch, &["run_id"]),
        ("/apis/v2beta1/recurringruns", schedule, &texts),
        ("/apis/v1alpha1/tasks", task, &["runId", "mlmdExecutionID", "fingerprint", "pipelineName"]),
    ] {
        all.extend(fields.iter().map(|field| (path, with(body.clone(), field, json!(text)))));
    }
    all
}

/// How much there is of everything.
async fn stored(server: &Server) -> Vec<Value> {
    let mut sizes = vec![json!(server.kube.objects.lock().unwrap().len())];
    for name in ["experiments", "pipelines", "runs", "recurringruns"] {
        sizes.push(server.get(&format!("/apis/v2beta1/{name}")).await.ok()["total_size"].clone());
    }
    sizes.push(server.get("/apis/v1alpha1/tasks").await.ok()["total_size"].clone());
    sizes
}

#[tokio::test]
async fn what_no_column_takes_is_refused_by_every_database() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    let run = server.run("there", json!({"a": 1})).await.ok()["run_id"].as_str().unwrap().to_owned();
    let before = stored(&server).await;
    for text in ["a\0b", &"\u{1f600}".repeat(256)] {
        for (path, body) in requests(text, &run) {
            let field = body.to_string();
            let reply = server.post(path, body).await;
            let absent = matches!(reply.status, 404) && (field.contains("experiment_id") || field.contains("runId"));
            assert!(reply.status == 400 || absent, "{path} {field}: {} {}", reply.status, reply.body);
        }
        let query = quote(text);
        server
            .upload(&format!("/apis/v2beta1/pipelines/upload?name={query}"), "p.yaml", ADD.as_bytes())
            .await
            .fails(400, "");
        for path in [
            format!("/apis/v2beta1/pipelines/names/{query}"),
            format!("/apis/v2beta1/runs/{query}"),
            format!("/apis/v1beta1/jobs/{query}"),
            format!("/apis/v2beta1/runs?experiment_id={query}"),
        ] {
            server.get(&path).await.fails(404, "");
        }
    }
    assert_eq!(stored(&server).await, before);
    server.stop().await;
}

#[tokio::test]
async fn names_are_kept_as_given_or_taken() {
    let dir = tempfile::tempdir().unwrap();
    let server = start(dir.path()).await;
    // What collations of MySQL may take for the same.
    let folds = env!("CARGO_CRATE_NAME") == "mariadb";
    let names =
        ["Team", "team", "Team ", "Te\u{e1}m", "\u{1f4a9}", "\u{1f680}", " Team", "Tea\u{301}m", "%", "_", "'\"\\"];
    for (path, id) in [("/apis/v2beta1/experiments", "experiment_id"), ("/apis/v2beta1/pipelines", "pipeline_id")] {
        for name in names {
            let before = server.get(path).await.ok()["total_size"].clone();
            let reply = server.post(path, json!({"display_name": name})).await;
            if folds && reply.status == 409 {
                assert!(reply.fails(409, "already exist")["message"].as_str().unwrap().contains(name), "{name}");
                assert_eq!(server.get(path).await.ok()["total_size"], before);
                continue;
            }
            let made = reply.ok();
            let again = server.get(&format!("{path}/{}", made[id].as_str().unwrap())).await.ok();
            assert_eq!(again["display_name"], name);
            let equal = json!({"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]});
            let found = server.get(&format!("{path}?filter={}", quote(&equal.to_string()))).await.ok();
            assert_eq!(found["total_size"], 1, "{name}");
            server.post(path, json!({"display_name": name})).await.fails(409, "already exist");
        }
        let first = server.post(path, json!({"display_name": "TEAM"})).await.status;
        assert_eq!(first, if folds { 409 } else { 200 }, "as upstream has it on MySQL");
    }
    server.stop().await;
}
