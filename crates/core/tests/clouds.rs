//! The clients of Google Cloud Storage and Azure against a small server.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod s3_server;

use bytes::Bytes;
use kfp_core::objects::{Session, Store, Transfer};

/// Runs the test `name` again in a process of its own with these variables; true in that process. (A process cannot
/// change its own environment safely.)
fn with_environment(name: &str, variables: &[(&str, &str)]) -> bool {
    if std::env::var_os("KFP_TEST_CHILD").is_some() {
        return true;
    }
    let dir = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env("KFP_TEST_CHILD", "1")
        .env("KUBECONFIG", dir.path().join("config"))
        .envs(variables.iter().copied())
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
fn google_keys_come_from_the_secret_that_the_session_names() {
    use base64::Engine as _;
    if !with_environment("google_keys_come_from_the_secret_that_the_session_names", &[]) {
        return;
    }
    block_on(async {
        let (state, address) = s3_server::listen().await;
        let kubeconfig = format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, namespace: team}}}}]\n\
             clusters: [{{name: k, cluster: {{server: 'http://{address}'}}}}]\n"
        );
        std::fs::write(std::env::var("KUBECONFIG").unwrap(), kubeconfig).unwrap();
        let key = format!(
            r#"{{"private_key":"","private_key_id":"","client_email":"","disable_oauth":true,"gcs_base_url":"http://{address}"}}"#
        );
        let key = base64::engine::general_purpose::STANDARD.encode(key);
        let secret = format!(r#"{{"metadata":{{"name":"keys"}},"data":{{"t":"{key}"}}}}"#);
        let place = "api/v1/namespaces/team/secrets/keys".to_owned();
        state.lock().unwrap().objects.insert(place, secret.into());
        let session = r#"{"Provider":"gs","Params":{"fromEnv":"false","secretName":"keys","tokenKey":"t"}}"#;
        let session = Session::from_json(session).unwrap();
        let store = Store::open("gs://bucket/root", session.as_ref(), None).await.unwrap();

        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("up/sub")).unwrap();
        std::fs::write(dir.path().join("up/sub/f"), "one").unwrap();
        std::fs::write(dir.path().join("large"), vec![7; 11 << 20]).unwrap();
        store.upload(&dir.path().join("up"), "gs://bucket/root/tree").await.unwrap();
        assert!(state.lock().unwrap().objects.contains_key("bucket/root/tree/sub/f"));
        let down = store.download("gs://bucket/root/tree", &dir.path().join("down")).await.unwrap();
        assert_eq!(down, Transfer { files: 1, bytes: 3 });
        assert_eq!(std::fs::read_to_string(dir.path().join("down/sub/f")).unwrap(), "one");
        store.upload(&dir.path().join("large"), "gs://bucket/root/large").await.unwrap();
        assert_eq!(state.lock().unwrap().completed, Some((11 << 20, 7 * (11 << 20))));
    });
}

#[test]
fn azure_is_opened_with_the_environments_account() {
    let account = [("AZURE_STORAGE_ACCOUNT", "acc"), ("AZURE_STORAGE_KEY", "a2V5")];
    if !with_environment("azure_is_opened_with_the_environments_account", &account) {
        return;
    }
    block_on(async {
        // Without a server only the way to it can be seen.
        let store = Store::open("azblob://container/root", None, None).await.unwrap();
        assert_eq!(store.bucket(), "azblob://container");
        let error = store.put_bytes("gs://container/k", Bytes::new()).await.unwrap_err().to_string();
        assert!(error.contains("does not have expected bucket prefix"), "{error}");
    });
}

#[test]
fn azure_objects_go_and_come() {
    // The emulator's address is fixed unless it is named, so the port has to be known beforehand.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = std::env::var("AZURITE_BLOB_STORAGE_URL").unwrap_or(format!("http://127.0.0.1:{port}"));
    let variables = [("AZURE_STORAGE_USE_EMULATOR", "true"), ("AZURITE_BLOB_STORAGE_URL", &address)];
    if !with_environment("azure_objects_go_and_come", &variables) {
        return;
    }
    block_on(async {
        let (state, _) = s3_server::listen_on(address.strip_prefix("http://").unwrap()).await;
        let store = Store::open("azblob://container/root", None, None).await.unwrap();
        store.put_bytes("azblob://container/root/k", Bytes::from_static(b"value")).await.unwrap();
        assert!(state.lock().unwrap().objects.contains_key("devstoreaccount1/container/root/k"));
        let dir = tempfile::tempdir().unwrap();
        let back = dir.path().join("k");
        store.download("azblob://container/root/k", &back).await.unwrap();
        assert_eq!(std::fs::read_to_string(back).unwrap(), "value");
    });
}
