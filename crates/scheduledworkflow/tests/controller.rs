//! The controller against a Kubernetes API and a RunService that behaves as the API server's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{
    Change, LABEL, PATIENCE, condition, embedded, events, index, label, missed, now, rfc3339, schedules, workflows,
    world,
};
use futures::StreamExt as _;
use kfp_core::shutdown::CancellationToken;
use kfp_scheduledworkflow::{Options, names, run};
use serde_json::{Value, json};

#[tokio::test]
async fn missed_slots_are_caught_up_with_once_each() {
    let world = world().await;
    let (spec, slots) = missed(10, json!({"maxConcurrency": 10, "workflow": embedded()}));
    world.schedule("s", spec).await;
    let controller = world.controller();
    let object = world.until("s", |o| index(o) == 10 && o["status"]["trigger"]["nextTriggeredTime"].is_null()).await;
    let workflows = world.workflows().await;
    assert_eq!(world.slots().await, slots);
    for workflow in &workflows {
        let n: i64 = label(workflow, &format!("{LABEL}workflowIndex")).parse().unwrap();
        assert_eq!(workflow["metadata"]["name"], names::run_name("s", n));
        assert_eq!(workflow["spec"]["arguments"]["parameters"][0]["value"], n.to_string());
        assert_eq!(workflow["metadata"]["ownerReferences"][0]["uid"], object["metadata"]["uid"]);
    }
    assert_eq!(object["status"]["trigger"]["lastTriggeredTime"], rfc3339(slots[9]));
    assert_eq!(condition(&object), "Enabled");
    assert_eq!(object["metadata"]["labels"][format!("{LABEL}enabled")], "true");
    world.stop.cancel();
    tokio::time::timeout(PATIENCE, controller).await.unwrap().unwrap();
}

#[tokio::test]
async fn without_catchup_only_the_latest_slot_runs() {
    let world = world().await;
    let trigger = json!({"cronSchedule": {"cron": "0 * * * * *", "startTime": rfc3339(now() - 36_000),
        "endTime": rfc3339(now() - 600)}});
    world.schedule("s", json!({"enabled": true, "noCatchup": true, "trigger": trigger, "workflow": embedded()})).await;
    world.controller();
    world.until("s", |o| index(o) == 1 && o["status"]["trigger"]["nextTriggeredTime"].is_null()).await;
    let slot = world.slots().await;
    assert_eq!(slot.len(), 1);
    assert!(slot[0] % 60 == 0 && (now() - slot[0]) <= 720, "{slot:?}");
}

#[tokio::test]
async fn runs_at_the_same_time_are_limited() {
    let world = world().await;
    for (name, workflow) in [("a", embedded()), ("b", Value::Null)] {
        let (spec, _) = missed(6, json!({"maxConcurrency": 2, "workflow": workflow}));
        let mut changes = world.kube.changes(&workflows());
        world.schedule(name, spec).await;
        let controller = world.controller();
        let (mut active, mut most, mut done) = (Vec::<String>::new(), 0, 0);
        while done < 6 {
            let change = tokio::time::timeout(PATIENCE, changes.next()).await.unwrap().unwrap();
            if let Change::Added(workflow) = change
                && label(&workflow, &format!("{LABEL}scheduledWorkflowName")) == name
            {
                active.push(common::name(&workflow).to_owned());
                most = most.max(active.len());
                assert!(active.len() <= 2, "{active:?}");
                if active.len() == 2 {
                    // Full, and the controller has noted both: nothing more may start until one ends.
                    let noted = i64::try_from(done + 2).unwrap();
                    world.until(name, |o| index(o) == noted).await;
                }
            }
            if active.len() == 2 || (done + active.len() == 6 && !active.is_empty()) {
                world.complete(&active.remove(0)).await;
                done += 1;
            }
        }
        assert_eq!(most, 2);
        let object = world.until(name, |o| {
            o.pointer("/status/workflowHistory/completed").and_then(Value::as_array).is_some_and(|l| l.len() == 6)
        });
        assert_eq!(index(&object.await), 6);
        controller.abort();
    }
}

#[tokio::test]
async fn disabled_schedule_runs_when_it_is_enabled() {
    let world = world().await;
    let (mut spec, slots) = missed(1, json!({"workflow": embedded()}));
    spec["enabled"] = json!(false);
    world.schedule("s", spec).await;
    world.controller();
    let object = world.until("s", |o| condition(o) == "Disabled").await;
    assert_eq!(object["status"]["trigger"]["nextTriggeredTime"], rfc3339(slots[0]));
    assert_eq!(object["metadata"]["labels"][format!("{LABEL}status")], "Disabled");
    assert!(world.workflows().await.is_empty());
    world.kube.merge(&schedules(), "s", json!({"spec": {"enabled": true}})).await;
    world.until("s", |o| index(o) == 1).await;
    assert_eq!(world.slots().await, slots);
}

#[tokio::test]
async fn one_off_schedule_ends() {
    let world = world().await;
    world.schedule("s", json!({"enabled": true, "trigger": {}, "workflow": embedded()})).await;
    world.controller();
    let object = world.until("s", |o| index(o) == 1).await;
    assert_eq!(condition(&object), "Running");
    let workflow = &world.workflows().await[0];
    assert_eq!(rfc3339(world.slots().await[0]), object["metadata"]["creationTimestamp"]);
    world.complete(common::name(workflow)).await;
    let object = world.until("s", |o| condition(o) == "Succeeded").await;
    assert_eq!(object["status"]["workflowHistory"]["completed"][0]["phase"], "Succeeded");
}

#[tokio::test]
async fn cron_fires_every_second_on_time() {
    let world = world().await;
    let trigger = json!({"cronSchedule": {"cron": "* * * * * *"}});
    world
        .schedule("s", json!({"enabled": true, "maxConcurrency": 10, "trigger": trigger, "workflow": embedded()}))
        .await;
    let mut changes = world.kube.changes(&workflows());
    world.controller();
    world.completing();
    let mut slots = Vec::new();
    while slots.len() < 4 {
        let change = tokio::time::timeout(PATIENCE, changes.next()).await.unwrap().unwrap();
        if let Change::Added(workflow) = change {
            let slot: i64 = label(&workflow, &format!("{LABEL}workflowEpoch")).parse().unwrap();
            assert!(slot <= now(), "never early");
            slots.push(slot);
        }
    }
    assert!(slots.windows(2).all(|pair| pair[1] == pair[0] + 1), "{slots:?}");
}

#[tokio::test]
async fn api_server_is_asked_with_everything_it_needs() {
    let mut world = world().await;
    world.options.token_path = world.dir.path().join("token");
    std::fs::write(&world.options.token_path, "secret\n").unwrap();
    world.options.user_identity_header = "Kubeflow-UserID".to_owned();
    world.options.user_identity_value = "system:serviceaccount:kubeflow:swf".to_owned();
    let workflow = json!({"pipelineRoot": "s3://root", "parameters": [
        {"name": "text", "value": "\"[[Index]] [[ScheduledTime]]\""}, {"name": "n", "value": "5"}]});
    let (spec, slots) = missed(1, json!({"experimentId": "e", "pipelineId": "p", "workflow": workflow}));
    world.schedule("s", spec).await;
    // Two failures: the third attempt succeeds.
    world.server.refuse.store(2, Ordering::SeqCst);
    world.controller();
    let object = world.until("s", |o| index(o) == 1).await;
    let requests = std::mem::take(&mut *world.server.requests.lock().unwrap());
    assert_eq!(requests.len(), 3);
    let (metadata, run) = &requests[2];
    assert_eq!(metadata.get("authorization").unwrap(), "Bearer secret");
    assert_eq!(metadata.get("kubeflow-userid").unwrap(), "system:serviceaccount:kubeflow:swf");
    assert_eq!(run.display_name, names::run_name("s", 1));
    assert_eq!(run.recurring_run_id, object["metadata"]["uid"].as_str().unwrap());
    assert_eq!((run.experiment_id.as_str(), run.scheduled_at.unwrap().seconds), ("e", slots[0]));
    let parameters = &run.runtime_config.as_ref().unwrap().parameters;
    let time = chrono::DateTime::from_timestamp(slots[0], 0).unwrap().format("1 %Y%m%d%H%M%S").to_string();
    assert_eq!(kfp_core::ir::to_json(&parameters["text"]), json!(time));
    assert_eq!(world.workflows().await.len(), 1);
    let events = world.kube.list(&events()).await;
    assert!(events.iter().any(|e| e["reason"] == "Failed" && e["message"].as_str().unwrap().contains("not now")));
}

/// Killed at any moment and started again: no slot is lost, none runs twice, whichever way runs are created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_neither_lose_nor_repeat_slots() {
    const SLOTS: i64 = 25;
    for (name, workflow) in [("a", embedded()), ("b", Value::Null)] {
        let world = world().await;
        let (spec, slots) = missed(SLOTS, json!({"maxConcurrency": 3, "workflow": workflow}));
        world.schedule(name, spec).await;
        world.completing();
        let mut changes = futures::stream::select(world.kube.changes(&schedules()), world.kube.changes(&workflows()));
        let all = async {
            let mut round = 0usize;
            while index(&world.get(name).await) < SLOTS {
                let controller = world.controller();
                // Killed after 1, 2, 3 ... changes, and at once as they happen.
                for _ in 0..=round % 9 {
                    if index(&world.get(name).await) < SLOTS {
                        changes.next().await.unwrap();
                    }
                }
                controller.abort();
                let _ = controller.await;
                round += 1;
            }
            round
        };
        let rounds = tokio::time::timeout(PATIENCE, all).await.unwrap();
        assert!(rounds > 3, "killed only {rounds} times");
        assert_eq!(world.slots().await, slots, "{name}");
        assert_eq!(world.get(name).await["status"]["trigger"]["lastTriggeredTime"], rfc3339(slots[slots.len() - 1]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_controllers_and_a_busy_user_do_not_disturb() {
    let world = world().await;
    let (spec, slots) = missed(15, json!({"maxConcurrency": 10, "workflow": embedded()}));
    world.schedule("s", spec).await;
    world.completing();
    let (one, two) = (world.controller(), world.controller());
    let api = world.kube.api(&schedules());
    let user = tokio::spawn(async move {
        for n in 0.. {
            let touch = kube::api::Patch::Merge(json!({"metadata": {"annotations": {"n": format!("{n}")}}}));
            api.patch("s", &kube::api::PatchParams::default(), &touch).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    world.until("s", |o| index(o) == 15).await;
    user.abort();
    assert_eq!(world.slots().await, slots);
    one.abort();
    two.abort();
}

#[tokio::test]
async fn broken_schedule_says_why_and_works_once_mended() {
    let world = world().await;
    let trigger = json!({"cronSchedule": {"cron": "0 0 0 * * 7"}});
    world.schedule("s", json!({"enabled": true, "trigger": trigger, "workflow": embedded()})).await;
    let mut changes = world.kube.changes(&events());
    world.controller();
    let change = tokio::time::timeout(PATIENCE, changes.next()).await.unwrap().unwrap();
    let Change::Added(event) = change else { panic!("{change:?}") };
    let message = event["message"].as_str().unwrap();
    assert!(message.ends_with("cronSchedule.cron \"0 0 0 * * 7\": End of range (7) above maximum (6): 7"), "{message}");
    assert_eq!(event["involvedObject"]["name"], "s");
    let object = world.until("s", |o| condition(o) == "Enabled").await;
    assert_eq!(object["status"]["trigger"], json!({}));
    let times = json!({"startTime": rfc3339(now() - 10), "intervalSecond": 5, "endTime": rfc3339(now() - 3)});
    let mended = json!({"spec": {"trigger": {"cronSchedule": null, "periodicSchedule": times}}});
    world.kube.merge(&schedules(), "s", mended).await;
    world.until("s", |o| index(o) == 1).await;
}

/// A trigger that was changed does not make up for times before the change, catch-up or not.
#[tokio::test]
async fn changed_trigger_fires_from_its_change_on() {
    let world = world().await;
    let changed = now() - 3;
    let object = json!({
        "metadata": {"name": "s", "annotations": {kfp_core::schedule::CHANGED: rfc3339(changed)}},
        "spec": {"enabled": true, "maxConcurrency": 10, "workflow": embedded(),
            "trigger": {"cronSchedule": {"cron": "* * * * * *", "startTime": rfc3339(now() - 90_000)}}},
        "status": {"trigger": {"lastTriggeredTime": rfc3339(now() - 80_000), "lastWorkflowIndex": 4}},
    });
    world.kube.create(&schedules(), object).await;
    world.completing();
    world.controller();
    world.until("s", |o| index(o) >= 7).await;
    let slots = world.slots().await;
    assert_eq!(slots[0], changed + 1);
    assert!(slots.windows(2).all(|pair| pair[1] == pair[0] + 1), "{slots:?}");
}

/// Specs that say nothing sensible never fire, and an event says why.
#[tokio::test]
async fn senseless_triggers_never_fire() {
    let world = world().await;
    let (early, late) = (rfc3339(now() - 1000), rfc3339(now() - 10));
    for (name, trigger, why) in [
        ("negative", json!({"periodicSchedule": {"intervalSecond": -5}}), "intervalSecond is negative: -5"),
        (
            "backwards",
            json!({"cronSchedule": {"cron": "* * * * * *", "startTime": late, "endTime": early}}),
            "cronSchedule: the end time is before the start time",
        ),
        ("timeless", json!({"periodicSchedule": {"intervalSecond": 1, "startTime": "noon"}}), "not an RFC 3339 time"),
        ("typeless", json!({"cronSchedule": "daily"}), "the spec cannot be read"),
    ] {
        let mut changes = world.kube.changes(&events());
        let controller = world.controller();
        world.schedule(name, json!({"enabled": true, "trigger": trigger, "workflow": embedded()})).await;
        let object = world.until(name, |o| !condition(o).is_empty()).await;
        assert_eq!(object["status"]["trigger"], json!({}), "{name}");
        let told = async {
            loop {
                if let Some(Change::Added(event)) = changes.next().await
                    && event["involvedObject"]["name"] == name
                {
                    return event["message"].as_str().unwrap().to_owned();
                }
            }
        };
        let message = tokio::time::timeout(PATIENCE, told).await.unwrap();
        assert!(message.contains(why), "{message}");
        controller.abort();
    }
    assert!(world.workflows().await.is_empty());
}

/// A recurring run whose pipeline was deleted says so and waits; slots are not lost when it is back.
#[tokio::test]
async fn deleted_pipeline_is_told_and_waited_for() {
    let world = world().await;
    *world.server.deleted.lock().unwrap() = Some("p".to_owned());
    let (spec, slots) = missed(2, json!({"maxConcurrency": 10, "pipelineId": "p", "workflow": {"parameters": []}}));
    let mut changes = world.kube.changes(&events());
    world.schedule("s", spec).await;
    world.completing();
    world.controller();
    let Some(Change::Added(event)) = tokio::time::timeout(PATIENCE, changes.next()).await.unwrap() else {
        panic!("no event")
    };
    let message = event["message"].as_str().unwrap();
    assert!(message.contains("Transient failure: failed to create a run from the scheduled workflow"), "{message}");
    assert!(message.ends_with("Pipeline p not found"), "{message}");
    *world.server.deleted.lock().unwrap() = None;
    world.until("s", |o| index(o) == 2).await;
    assert_eq!(world.slots().await, slots);
    let asked = world.server.requests.lock().unwrap().len();
    assert!(asked < 12, "asked {asked} times for two runs");
}

/// A rejected token is read again at once; a file that is late is waited for.
#[tokio::test]
async fn token_follows_its_file() {
    let mut world = world().await;
    world.options.token_path = world.dir.path().join("token");
    std::fs::write(&world.options.token_path, "old").unwrap();
    *world.server.token.lock().unwrap() = Some("Bearer new".to_owned());
    let (spec, slots) = missed(1, json!({"pipelineId": "p", "workflow": {"parameters": []}}));
    let mut changes = world.kube.changes(&events());
    world.schedule("s", spec).await;
    world.controller();
    let Some(Change::Added(event)) = tokio::time::timeout(PATIENCE, changes.next()).await.unwrap() else {
        panic!("no event")
    };
    assert!(event["message"].as_str().unwrap().contains("token has expired"), "{event}");
    std::fs::write(world.dir.path().join("fresh"), "new\n").unwrap();
    std::fs::rename(world.dir.path().join("fresh"), &world.options.token_path).unwrap();
    world.until("s", |o| index(o) == 1).await;
    assert_eq!(world.slots().await, slots);
}

/// Schedules of the same name in other namespaces have runs of their own.
#[tokio::test]
async fn namespaces_do_not_mix() {
    let mut world = world().await;
    if !world.kube.is_private() {
        eprintln!("SKIPPED: this controller would also work on the schedules of others in this cluster");
        return;
    }
    world.options.namespace = String::new();
    let other = format!("{}-other", world.kube.namespace);
    world.kube.add_namespace(&other).await;
    for namespace in [&world.kube.namespace, &other] {
        let (spec, _) = missed(3, json!({"maxConcurrency": 2, "workflow": embedded()}));
        let object = json!({"metadata": {"name": "s"}, "spec": spec, "status": {}});
        world.kube.create_in(namespace, &schedules(), object).await;
    }
    world.controller();
    for namespace in [&world.kube.namespace, &other] {
        let two =
            |object: Option<&kube::core::DynamicObject>| object.is_some_and(|o| index(&kfp_test_cluster::json(o)) == 2);
        let waiting = kube::runtime::wait::await_condition(world.kube.api_in(namespace, &schedules()), "s", two);
        tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
        let list = world.kube.api_in(namespace, &workflows()).list(&kube::api::ListParams::default()).await.unwrap();
        assert_eq!(list.items.len(), 2);
    }
}

#[tokio::test]
async fn unusable_options_stop_the_start() {
    let world = world().await;
    let start = |change: fn(&mut Options)| {
        let mut options = world.options.clone();
        change(&mut options);
        run(options, CancellationToken::new())
    };
    for (change, text) in [
        ((|o| o.time_zone = "Mars/Base".to_owned()) as fn(&mut Options), "unknown time zone Mars/Base"),
        (|o| o.block_v1_pipelines = "maybe".to_owned(), "BLOCK_V1_PIPELINES"),
        (
            |o| {
                o.user_identity_header = "grpc-x".to_owned();
                o.user_identity_value = "y".to_owned();
            },
            "invalid userIdentityHeader",
        ),
        (
            |o| {
                o.api_grpc_port = 1;
                o.initialize_timeout = Duration::from_millis(200);
            },
            "Error connecting to the API server",
        ),
    ] {
        let error = start(change).await.unwrap_err().to_string();
        assert!(error.starts_with(text), "{error}");
    }
}
