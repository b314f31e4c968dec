//! The S3 client against a small S3 server: signed requests, parts, retries, listings, and bounded memory.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod s3_server;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use kfp_core::objects::{Patience, Session, Store, Transfer};
use s3_server::{State, listen, sum};

/// A server, and a store that reaches it through options in the address.
async fn serve() -> (Arc<Mutex<State>>, Store) {
    let (state, address) = listen().await;
    let uri = format!("s3://bucket/root?endpoint={address}&disable_https=true&use_path_style=true&region=here");
    let session = Session::from_json(r#"{"Provider":"s3","Params":{"fromEnv":"true","maxRetries":"5"}}"#).unwrap();
    (state, Store::open(&uri, session.as_ref(), None).await.unwrap())
}

/// A store with only one try per request, which waits for servers that are away.
async fn serve_patiently() -> (Arc<Mutex<State>>, Store) {
    let (state, address) = listen().await;
    let uri = format!("s3://bucket/root?endpoint={address}&disable_https=true&use_path_style=true&region=here");
    let session = Session::from_json(r#"{"Provider":"s3","Params":{"fromEnv":"true","maxRetries":"1"}}"#).unwrap();
    let patience = Patience { total: Duration::from_secs(30), first_pause: Duration::from_millis(1) };
    (state, Store::open(&uri, session.as_ref(), None).await.unwrap().with_patience(patience))
}

/// Runs the test `name` again in a process of its own whose environment holds the keys; true in that process. (A
/// process cannot change its own environment safely.)
fn with_keys(name: &str) -> bool {
    if std::env::var_os("KFP_TEST_CHILD").is_some() {
        return true;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("KFP_TEST_CHILD", "1")
        .env("KUBECONFIG", dir.path().join("config"))
        .env("AWS_ACCESS_KEY_ID", "AK")
        .env("AWS_SECRET_ACCESS_KEY", "SK")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let ran = output.status.success() && text.contains("1 passed");
    assert!(ran, "{text}{}", String::from_utf8_lossy(&output.stderr));
    false
}

fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn objects_and_directories_survive_the_way_and_requests_are_signed() {
    if !with_keys("objects_and_directories_survive_the_way_and_requests_are_signed") {
        return;
    }
    block_on(async {
        let (state, store) = serve().await;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("up/sub")).unwrap();
        std::fs::write(dir.path().join("up/a b"), "one").unwrap();
        std::fs::write(dir.path().join("up/sub/c"), "").unwrap();
        store.upload(&dir.path().join("up"), "s3://bucket/base/tree").await.unwrap();
        assert!(state.lock().unwrap().objects.contains_key("bucket/base/tree/a b"));
        store.download("s3://bucket/base/tree", &dir.path().join("down")).await.unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("down/a b")).unwrap(), "one");
        assert_eq!(std::fs::read_to_string(dir.path().join("down/sub/c")).unwrap(), "");
        assert!(store.exists("s3://bucket/base/tree").await.unwrap());
        assert!(!store.exists("s3://bucket/base/tr").await.unwrap());
        assert!(store.get_bytes("s3://bucket/base/none").await.unwrap_err().is_missing());
        assert_eq!(state.lock().unwrap().access_key, "AK");
    });
}

#[test]
fn keys_come_from_the_secret_that_the_session_names() {
    if !with_keys("keys_come_from_the_secret_that_the_session_names") {
        return;
    }
    block_on(async {
        let (state, address) = listen().await;
        let kubeconfig = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, namespace: team}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'http://{address}'}}}}]\n"
        );
        std::fs::write(std::env::var("KUBECONFIG").unwrap(), kubeconfig).unwrap();
        let secret = br#"{"metadata":{"name":"keys"},"data":{"a":"RlJPTVNFQ1JFVA==","s":"cw=="}}"#;
        let place = "api/v1/namespaces/team/secrets/keys".to_owned();
        state.lock().unwrap().objects.insert(place, Bytes::from_static(secret));
        let params = format!(
            r#"{{"fromEnv":"false","secretName":"keys","accessKeyKey":"a","secretKeyKey":"s","endpoint":"{address}","disableSSL":"true","region":"x"}}"#
        );
        let session = Session::from_json(&format!(r#"{{"Provider":"minio","Params":{params}}}"#)).unwrap();
        let store = Store::open("minio://bucket/root", session.as_ref(), None).await.unwrap();
        store.put_bytes("minio://bucket/k", Bytes::from_static(b"v")).await.unwrap();
        assert_eq!(state.lock().unwrap().access_key, "FROMSECRET");
        assert!(state.lock().unwrap().objects.contains_key("bucket/k"));

        let absent = params.replace("\"keys\"", "\"none\"");
        let session = Session::from_json(&format!(r#"{{"Provider":"minio","Params":{absent}}}"#)).unwrap();
        let error = Store::open("minio://bucket/root", session.as_ref(), None).await.unwrap_err().to_string();
        assert!(error.contains("cannot read secret \"none\""), "{error}");
    });
}

#[test]
fn overload_is_retried() {
    if !with_keys("overload_is_retried") {
        return;
    }
    block_on(async {
        let (state, store) = serve().await;
        state.lock().unwrap().failures = 2;
        store.put_bytes("s3://bucket/k", Bytes::from_static(b"v")).await.unwrap();
        state.lock().unwrap().failures = 2;
        assert_eq!(store.get_bytes("s3://bucket/k").await.unwrap(), "v");
        state.lock().unwrap().failures = 100;
        let error = store.get_bytes("s3://bucket/k").await.unwrap_err().to_string();
        assert!(error.starts_with("cannot read s3://bucket/k: "), "{error}");
    });
}

#[test]
fn large_files_stream_with_bounded_memory() {
    if !with_keys("large_files_stream_with_bounded_memory") {
        return;
    }
    block_on(async {
        let (state, store) = serve().await;
        let dir = tempfile::tempdir().unwrap();
        let (file, size) = (dir.path().join("large"), 96 << 20);
        let mut writer = std::io::BufWriter::new(std::fs::File::create(&file).unwrap());
        let block: Vec<u8> = (0..65536_u32).map(|i| (i % 253) as u8).collect();
        for _ in 0..size / block.len() {
            std::io::Write::write_all(&mut writer, &block).unwrap();
        }
        drop(writer);
        let before = peak_kib();
        store.upload(&file, "s3://bucket/large").await.unwrap();
        let grown = peak_kib() - before;
        let state = state.lock().unwrap();
        assert_eq!(state.completed, Some((size, sum(&block) * (size / block.len()) as u64)));
        assert_eq!(state.largest_part, 5 << 20);
        // Client: at most 16 MiB. Server, in the same process: the parts that it receives, twice while they are joined.
        assert!(grown < 64 << 10, "{grown} KiB");
    });
}

#[test]
fn a_store_that_is_away_for_a_while_loses_nothing() {
    if !with_keys("a_store_that_is_away_for_a_while_loses_nothing") {
        return;
    }
    block_on(async {
        let (state, store) = serve_patiently().await;
        let dir = tempfile::tempdir().unwrap();
        let (file, back) = (dir.path().join("f"), dir.path().join("back"));
        let content: Vec<u8> = (0..(11 << 20) + 77_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&file, &content).unwrap();
        state.lock().unwrap().failures = 7;
        let sent = store.upload(&file, "s3://bucket/f").await.unwrap();
        assert_eq!(sent, Transfer { files: 1, bytes: content.len() as u64 });
        assert_eq!(state.lock().unwrap().completed, Some((content.len(), sum(&content))));
        let key = "bucket/f".to_owned();
        state.lock().unwrap().objects.insert(key, content.clone().into());
        state.lock().unwrap().failures = 3;
        state.lock().unwrap().breaks = 1;
        store.download("s3://bucket/f", &back).await.unwrap();
        assert!(std::fs::read(&back).unwrap() == content);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    });
}

#[test]
fn large_objects_arrive_in_ranges() {
    if !with_keys("large_objects_arrive_in_ranges") {
        return;
    }
    block_on(async {
        let (state, store) = serve_patiently().await;
        let dir = tempfile::tempdir().unwrap();
        let content: Bytes = (0..(50 << 20) + 13_u32).map(|i| (i % 239) as u8).collect::<Vec<u8>>().into();
        state.lock().unwrap().objects.insert("bucket/large".into(), content.clone());
        let before = peak_kib();
        let back = dir.path().join("back");
        let got = store.download("s3://bucket/large", &back).await.unwrap();
        assert!(peak_kib() - before < 24 << 10, "{} KiB", peak_kib() - before);
        assert_eq!(got, Transfer { files: 1, bytes: content.len() as u64 });
        assert!(std::fs::read(&back).unwrap() == content);
        let (step, mut ranges) = (16 << 20, std::mem::take(&mut state.lock().unwrap().ranges));
        ranges.sort_unstable();
        assert_eq!(ranges, [(step, 2 * step), (2 * step, 3 * step), (3 * step, content.len())]);
    });
}

#[test]
fn a_bucket_that_is_missing_and_keys_that_are_refused_are_told_apart() {
    if !with_keys("a_bucket_that_is_missing_and_keys_that_are_refused_are_told_apart") {
        return;
    }
    block_on(async {
        let (state, store) = serve_patiently().await;
        let dir = tempfile::tempdir().unwrap();
        for (status, body, text) in [
            (
                404,
                "<Error><Code>NoSuchBucket</Code><Message>gone</Message></Error>",
                "the bucket does not exist (NoSuchBucket: gone)",
            ),
            (
                403,
                "<Error><Code>InvalidAccessKeyId</Code></Error>",
                "the store refuses the credentials (InvalidAccessKeyId)",
            ),
            (403, "", "the store refuses the credentials: "),
        ] {
            state.lock().unwrap().answer = Some((status, body));
            let up = store.put_bytes("s3://bucket/k", Bytes::from_static(b"v")).await.unwrap_err();
            let down = store.download("s3://bucket/k", &dir.path().join("x")).await.unwrap_err();
            for error in [up, down] {
                assert!(!error.is_transient() && error.to_string().contains(text), "{error}");
            }
        }
    });
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
