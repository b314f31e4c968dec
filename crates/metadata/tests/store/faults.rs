//! Databases that go away, come back, or were made by others.

use kfp_core::shutdown::CancellationToken;
use kfp_metadata::{Options, Storage};
use kfp_proto::ml_metadata as pb;
use kfp_testdb::Engine;

use crate::place::{Place, storage};
use crate::proxy::{Cut, Proxy};
use crate::suite;

async fn survives_a_crash_of_the_database(engine: Engine) {
    let Some(mut database) = engine.start() else { return };
    let name = database.fresh_name();
    let mut server = Place::at(storage(&database, &name)).serve().await;
    let of_execution = suite::execution_type(&mut server.client, "e").await;
    let put = move |number: i64| pb::PutExecutionsRequest {
        executions: vec![pb::Execution {
            type_id: Some(of_execution),
            name: Some(format!("task-{number}")),
            ..Default::default()
        }],
        ..Default::default()
    };
    // Fills the pool with connections that will be dead.
    let calls = (0..8).map(|number| {
        let mut client = server.client.clone();
        async move { client.put_executions(put(number)).await }
    });
    for answer in futures::future::join_all(calls).await {
        answer.unwrap();
    }
    database.stop();
    // Asked while the database is away, answered when it is back; each exists once.
    let calls: Vec<_> = (8..24)
        .map(|number| {
            let mut client = server.client.clone();
            tokio::spawn(async move { client.put_executions(put(number)).await })
        })
        .collect();
    let reads = {
        let mut client = server.client.clone();
        tokio::spawn(async move { client.get_executions(pb::GetExecutionsRequest::default()).await })
    };
    let database = tokio::task::spawn_blocking(move || {
        database.resume();
        database
    });
    let database = database.await.unwrap();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert!(reads.await.unwrap().unwrap().into_inner().executions.len() >= 8);
    let all = server.client.get_executions(pb::GetExecutionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(all.executions.len(), 24);
    server.stop().await;
    drop(database);
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_may_crash() {
    survives_a_crash_of_the_database(Engine::MariaDb).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_may_crash() {
    survives_a_crash_of_the_database(Engine::Postgres).await;
}

/// What the server says when it does not start.
async fn refusal(storage: Storage) -> String {
    let options = Options::new("127.0.0.1", 0, storage);
    kfp_metadata::run(options, CancellationToken::new()).await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_databases_are_created_unless_forbidden() {
    for engine in [Engine::MariaDb, Engine::Postgres] {
        let Some(database) = engine.shared() else { continue };
        let (Storage::MySql(mut remote) | Storage::Postgres(mut remote)) = storage(database, "odd-`\"name") else {
            continue;
        };
        let of = |remote: &kfp_metadata::Remote| match engine {
            Engine::MariaDb => Storage::MySql(remote.clone()),
            Engine::Postgres => Storage::Postgres(remote.clone()),
        };
        remote.skip_creation = true;
        let error = refusal(of(&remote)).await;
        assert!(error.contains("odd-") && error.contains("127.0.0.1"), "{error}");
        remote.skip_creation = false;
        let mut server = Place::at(of(&remote)).serve().await;
        assert_eq!(suite::context_type(&mut server.client, "c").await, 10);
        server.stop().await;
        remote.port = 1;
        let error = refusal(of(&remote)).await;
        assert!(error.contains("127.0.0.1:1/") && error.contains("refused"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_schema_versions_are_refused() {
    for engine in [Engine::MariaDb, Engine::Postgres] {
        let Some(database) = engine.shared() else { continue };
        let name = database.fresh_name();
        database.execute(&name, "CREATE TABLE MLMDEnv (schema_version INT PRIMARY KEY)");
        database.execute(&name, "INSERT INTO MLMDEnv VALUES (7)");
        let error = refusal(storage(database, &name)).await;
        assert!(error.contains("schema version 7, this program needs 10"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_creation_that_was_cut_short_is_finished() {
    let Some(database) = Engine::MariaDb.shared() else { return };
    let name = database.fresh_name();
    let place = Place::at(storage(database, &name));
    place.serve().await.stop().await;
    database.execute(&name, "DELETE FROM MLMDEnv; DELETE FROM Type; DROP TABLE Event, Artifact");
    let mut server = place.serve().await;
    suite::artifact_type(&mut server.client, "a").await;
    server.stop().await;
    let types = database.execute(&name, "SELECT COUNT(*) FROM Type");
    assert_eq!(types, "10\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_refuses_long_parameters_is_replaced() {
    let Some(database) = Engine::Postgres.shared() else { return };
    let name = database.fresh_name();
    let place = Place::at(storage(database, &name));
    place.serve().await.stop().await;
    // As upstream makes it.
    for statement in [
        "DROP INDEX idx_execution_property_string",
        "CREATE INDEX idx_execution_property_string ON ExecutionProperty (name, is_custom_property, string_value)",
    ] {
        database.execute(&name, statement);
    }
    let mut server = place.serve().await;
    let of_execution = suite::execution_type(&mut server.client, "e").await;
    // Random enough not to be compressed below the limit.
    let long: String = (0_u64..4000).map(|at| format!("{:x}", at.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    let execution = pb::Execution {
        type_id: Some(of_execution),
        custom_properties: [("inputs".to_owned(), suite::text(&long))].into(),
        ..Default::default()
    };
    let put = pb::PutExecutionsRequest { executions: vec![execution], ..Default::default() };
    server.client.put_executions(put).await.unwrap();
    server.stop().await;
    let indexes = "SELECT COUNT(*) FROM pg_indexes WHERE indexname LIKE 'idx%property_string'";
    assert_eq!(database.execute(&name, indexes), "3\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_somebody_else_are_used_as_they_are() {
    let Some(database) = Engine::Postgres.shared() else { return };
    let name = database.fresh_name();
    Place::at(storage(database, &name)).serve().await.stop().await;
    for statement in [
        "DROP INDEX idx_artifact_uri",
        "CREATE INDEX idx_artifact_uri ON Artifact (uri)",
        "CREATE USER guest",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO guest",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO guest",
    ] {
        database.execute(&name, statement);
    }
    let Storage::Postgres(mut remote) = storage(database, &name) else { return };
    remote.user = "guest".to_owned();
    let mut server = Place::at(Storage::Postgres(remote)).serve().await;
    assert_eq!(suite::artifact_type(&mut server.client, "a").await, 10);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn text_is_stored_as_upstreams_client_does() {
    let Some(database) = Engine::MariaDb.shared() else { return };
    let name = database.fresh_name();
    let mut server = Place::at(storage(database, &name)).serve().await;
    let of_context = suite::context_type(&mut server.client, "c").await;
    // A client that announces Latin-1 and sends UTF-8.
    let insert = format!("INSERT INTO Context (type_id, name) VALUES ({of_context}, 'größe 🦀')");
    database.execute(&name, &format!("SET NAMES latin1; {insert}"));
    let wanted = pb::GetContextByTypeAndNameRequest {
        type_name: Some("c".into()),
        context_name: Some("größe 🦀".into()),
        ..Default::default()
    };
    let found = server.client.get_context_by_type_and_name(wanted).await.unwrap().into_inner().context.unwrap();
    assert_eq!(found.name(), "größe 🦀");
    let put =
        pb::PutContextsRequest { contexts: vec![suite::context(of_context, "größe 🦀!")], ..Default::default() };
    server.client.put_contexts(put).await.unwrap();
    let read = "SET NAMES latin1; SELECT COUNT(*) FROM Context WHERE name = 'größe 🦀!'";
    assert_eq!(database.execute(&name, read), "1\n");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_lost_at_commit_neither_loses_nor_repeats_the_changes() {
    for engine in [Engine::MariaDb, Engine::Postgres] {
        let Some(database) = engine.shared() else { continue };
        let proxy = Proxy::start(database.port()).await;
        let (Storage::MySql(mut remote) | Storage::Postgres(mut remote)) = storage(database, &database.fresh_name())
        else {
            continue;
        };
        remote.port = proxy.port;
        let through = match engine {
            Engine::MariaDb => Storage::MySql(remote),
            Engine::Postgres => Storage::Postgres(remote),
        };
        let mut server = Place::at(through).serve().await;
        let of_execution = suite::execution_type(&mut server.client, "e").await;
        for (number, cut) in [(1, Cut::BeforeCommit), (2, Cut::AfterCommit), (3, Cut::BeforeCommit)] {
            proxy.cut(cut);
            // Without a name: nothing but the store's own care keeps it from being there twice.
            let execution = pb::Execution { type_id: Some(of_execution), ..Default::default() };
            let put = pb::PutExecutionsRequest { executions: vec![execution], ..Default::default() };
            let ids = server.client.put_executions(put).await.unwrap().into_inner().execution_ids;
            assert!(proxy.has_cut(), "{engine:?} {cut:?}");
            let all = server.client.get_executions(pb::GetExecutionsRequest::default()).await.unwrap().into_inner();
            assert_eq!(all.executions.len(), number, "{engine:?} {cut:?}");
            assert_eq!(all.executions.last().unwrap().id(), ids[0]);
        }
        server.stop().await;
    }
}
