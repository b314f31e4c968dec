//! Encrypted connections to database servers that take no others.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use std::collections::BTreeMap;

use kfp_apiserver::config::Config;
use kfp_apiserver::options::Database;
use kfp_apiserver::store::Db;
use kfp_testdb::Engine;
use serde_json::{Value, json};
use support::{Kube, start_on};

/// Settings for a server on `localhost`, with `mode` by the name that the engine's users know.
fn database(engine: Engine, port: u16, mode: &str, authorities: &str) -> Database {
    let server = json!({
        "Host": "localhost", "Port": port, "User": "root", "Password": "", "DBName": "tls", "SSLRootCert": authorities,
    });
    let (driver, section, extra) = match engine {
        Engine::MariaDb => ("mysql", "MySQLConfig", json!({"ExtraParams": {"tls": mode}})),
        Engine::Postgres => ("pgx", "PostgreSQLConfig", json!({"SSLMode": mode})),
    };
    let mut config = json!({"DBDriverName": driver, "InitConnectionTimeout": "0s", "DBConfig": {section: server}});
    let Value::Object(extra) = extra else { panic!() };
    config["DBConfig"][section].as_object_mut().unwrap().extend(extra);
    Database::from_config(&Config::new(config, BTreeMap::new())).unwrap()
}

fn signed_for(name: &str) -> (String, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

async fn connects_with(engine: Engine, modes: [&str; 4]) {
    let [off, preferred, unverified, verified] = modes;
    let (certificate, key) = signed_for("localhost");
    let Some(server) = engine.start_with_tls(&certificate, &key) else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (ours, other) = (file("ours", &certificate), file("other", &signed_for("localhost").0));
    for (mode, authorities, works) in [
        (off, "", false),
        (preferred, "", true),
        (unverified, "", true),
        (verified, "", false),
        (verified, &other, false),
        (verified, &ours, true),
    ] {
        let opened = Db::open(&database(engine, server.port(), mode, authorities)).await;
        assert_eq!(opened.is_ok(), works, "{mode} with {authorities:?}: {:?}", opened.err());
        if let Ok(db) = opened {
            db.close().await;
        }
    }
    let running = start_on(database(engine, server.port(), verified, &ours), Kube::default()).await;
    running.run("encrypted", json!({"a": 1})).await.ok();
    assert_eq!(running.get("/apis/v2beta1/runs").await.ok()["total_size"], 1);
    running.stop().await;
}

#[tokio::test]
async fn mariadb() {
    connects_with(Engine::MariaDb, ["false", "preferred", "skip-verify", "true"]).await;
}

#[tokio::test]
async fn postgres() {
    connects_with(Engine::Postgres, ["disable", "prefer", "require", "verify-full"]).await;
}

async fn refuses_another_name(engine: Engine, full: &str) {
    let (certificate, key) = signed_for("elsewhere.test");
    let Some(server) = engine.start_with_tls(&certificate, &key) else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &certificate).unwrap();
    let path = file.path().display().to_string();
    for (mode, works) in [("verify-ca", true), (full, false)] {
        let opened = Db::open(&database(engine, server.port(), mode, &path)).await;
        assert_eq!(opened.is_ok(), works, "{mode}: {:?}", opened.err());
    }
}

#[tokio::test]
async fn mariadb_by_another_name() {
    refuses_another_name(Engine::MariaDb, "true").await;
}

#[tokio::test]
async fn postgres_by_another_name() {
    refuses_another_name(Engine::Postgres, "verify-full").await;
}
