//! The controller against the embedded Kubernetes API and a RunService that behaves as the API server's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use kfp_core::shutdown::CancellationToken;
use kfp_local_api::{Cluster, EventKind, Resource, Selectors, kubeconfig, resources, serve};
use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use kfp_scheduledworkflow::{Options, names, run};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use v2::run_service_server::{RunService, RunServiceServer};

/// Longest wait for something that should happen soon; only a failing test waits so long.
const PATIENCE: Duration = Duration::from_secs(60);
const NS: &str = "kubeflow";
const SWF: &Resource = &resources::SCHEDULED_WORKFLOWS;
const WF: &Resource = &resources::WORKFLOWS;
const LABEL: &str = "scheduledworkflows.kubeflow.org/";

/// Creates runs once for each recurring run and name, with a Workflow each.
struct Server {
    cluster: Cluster,
    runs: tokio::sync::Mutex<HashMap<(String, String), v2::Run>>,
    requests: Mutex<Vec<(tonic::metadata::MetadataMap, v2::Run)>>,
    /// Calls to refuse before the first success.
    refuse: AtomicUsize,
}

#[tonic::async_trait]
impl RunService for Server {
    async fn create_run(
        &self,
        request: tonic::Request<v2::CreateRunRequest>,
    ) -> Result<tonic::Response<v2::Run>, tonic::Status> {
        let metadata = request.metadata().clone();
        let mut run = request.into_inner().run.unwrap();
        self.requests.lock().unwrap().push((metadata, run.clone()));
        if self.refuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(tonic::Status::unavailable("not now"));
        }
        let key = (run.recurring_run_id.clone(), run.display_name.clone());
        let mut runs = self.runs.lock().await;
        if let Some(known) = runs.get(&key) {
            return Ok(tonic::Response::new(known.clone()));
        }
        run.run_id = format!("run-{}", runs.len());
        let (schedule, rest) = run.display_name.split_once('-').unwrap();
        let index = rest.split_once('-').unwrap().0;
        let workflow = json!({
            "metadata": {
                "generateName": "made-by-server-",
                "labels": {
                    format!("{LABEL}scheduledWorkflowName"): schedule,
                    format!("{LABEL}workflowEpoch"): now().to_string(),
                    format!("{LABEL}workflowIndex"): index,
                    "pipeline/runid": run.run_id,
                    "slot": run.scheduled_at.unwrap().seconds.to_string(),
                },
                "ownerReferences": [{"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
                    "name": schedule, "uid": run.recurring_run_id, "controller": true}],
            },
            "spec": {"entrypoint": "main"},
        });
        self.cluster.create(WF, NS, workflow).await.map_err(|e| tonic::Status::internal(e.to_string()))?;
        runs.insert(key, run.clone());
        Ok(tonic::Response::new(run))
    }
}

struct World {
    cluster: Cluster,
    server: Arc<Server>,
    options: Options,
    stop: CancellationToken,
    dir: tempfile::TempDir,
}

struct Shared(Arc<Server>);

#[tonic::async_trait]
impl RunService for Shared {
    async fn create_run(
        &self,
        request: tonic::Request<v2::CreateRunRequest>,
    ) -> Result<tonic::Response<v2::Run>, tonic::Status> {
        // A caller that goes away does not stop the work half-way.
        let server = self.0.clone();
        tokio::spawn(async move { server.create_run(request).await }).await.unwrap()
    }
}

async fn world() -> World {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::open(dir.path()).await.unwrap();
    let stop = CancellationToken::new();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(cluster.clone(), listener, stop.clone()));
    let config = kube::config::Kubeconfig::from_yaml(&kubeconfig(&url, NS)).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();

    let server = Arc::new(Server {
        cluster: cluster.clone(),
        runs: tokio::sync::Mutex::default(),
        requests: Mutex::default(),
        refuse: AtomicUsize::new(0),
    });
    let grpc = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = grpc.local_addr().unwrap().port();
    let service = RunServiceServer::new(Shared(server.clone()));
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(grpc);
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned()),
    );
    let words = format!("--namespace={NS} --mlPipelineAPIServerName=127.0.0.1 --mlPipelineServiceGRPCPort={port}");
    let Ok(mut options) = Options::parse(words.split(' ').map(str::to_owned)) else { panic!("options") };
    options.client = Some(client);
    options.time_zone = "UTC".to_owned();
    World { cluster, server, options, stop, dir }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn now() -> i64 {
    chrono::Utc::now().timestamp()
}

fn rfc3339(seconds: i64) -> String {
    chrono::DateTime::from_timestamp(seconds, 0).unwrap().to_rfc3339_opts(chrono::SecondsFormat::Secs, true)
}

impl World {
    fn controller(&self) -> JoinHandle<()> {
        let (options, stop) = (self.options.clone(), self.stop.clone());
        tokio::spawn(async move { run(options, stop).await.unwrap() })
    }

    async fn schedule(&self, name: &str, spec: Value) {
        let object = json!({"apiVersion": "kubeflow.org/v1beta1", "kind": "ScheduledWorkflow",
            "metadata": {"name": name}, "spec": spec, "status": {}});
        self.cluster.create(SWF, NS, object).await.unwrap();
    }

    async fn get(&self, name: &str) -> Value {
        (*self.cluster.get(SWF, NS, name).await.unwrap()).clone()
    }

    async fn workflows(&self) -> Vec<Value> {
        let list = self.cluster.list(WF, Some(NS), &Selectors::default()).await.unwrap();
        list.items.iter().map(|item| (**item).clone()).collect()
    }

    /// Waits until the schedule is as `check` wants.
    async fn until(&self, name: &str, check: impl Fn(&Value) -> bool) -> Value {
        let mut watch = self.cluster.watch(SWF, Some(NS), None, Selectors::name(name));
        let waiting = async {
            loop {
                let object = self.get(name).await;
                if check(&object) {
                    return object;
                }
                watch.next().await.unwrap().unwrap();
            }
        };
        match tokio::time::timeout(PATIENCE, waiting).await {
            Ok(object) => object,
            Err(_) => panic!("the schedule stays {:#}", self.get(name).await),
        }
    }

    async fn complete(&self, name: &str) {
        let done = |object: &mut Value| {
            object["metadata"]["labels"]["workflows.argoproj.io/completed"] = json!("true");
            object["status"] = json!({"phase": "Succeeded", "startedAt": rfc3339(1), "finishedAt": rfc3339(2)});
            Ok(())
        };
        self.cluster.modify(WF, NS, name, done).await.unwrap();
    }

    /// Completes every Workflow as soon as it is there.
    fn completing(&self) -> JoinHandle<()> {
        let cluster = self.cluster.clone();
        tokio::spawn(async move {
            let mut watch = cluster.watch(WF, Some(NS), None, Selectors::default());
            while let Some(Ok(event)) = watch.next().await {
                if event.kind == EventKind::Added {
                    let name = event.object["metadata"]["name"].as_str().unwrap().to_owned();
                    let done = |object: &mut Value| {
                        object["metadata"]["labels"]["workflows.argoproj.io/completed"] = json!("true");
                        object["status"] = json!({"phase": "Succeeded"});
                        Ok(())
                    };
                    cluster.modify(WF, NS, &name, done).await.unwrap();
                }
            }
        })
    }
}

fn index(object: &Value) -> i64 {
    object.pointer("/status/trigger/lastWorkflowIndex").and_then(Value::as_i64).unwrap_or(0)
}

fn condition(object: &Value) -> &str {
    object.pointer("/status/conditions/0/type").and_then(Value::as_str).unwrap_or_default()
}

fn label<'a>(workflow: &'a Value, key: &str) -> &'a str {
    workflow["metadata"]["labels"][key].as_str().unwrap_or_default()
}

/// Slots of embedded Workflows, sorted.
fn epochs(workflows: &[Value]) -> Vec<i64> {
    let mut all: Vec<i64> =
        workflows.iter().map(|w| label(w, &format!("{LABEL}workflowEpoch")).parse().unwrap()).collect();
    all.sort_unstable();
    all
}

/// A schedule with `slots` missed slots and none to come; returns the slots as well.
fn missed(slots: i64, more: Value) -> (Value, Vec<i64>) {
    let start = now() - 100_000;
    let times = json!({"startTime": rfc3339(start), "endTime": rfc3339(start + slots * 100), "intervalSecond": 100});
    let mut spec = json!({"enabled": true, "trigger": {"periodicSchedule": times}});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    (spec, (1..=slots).map(|n| start + n * 100).collect())
}

fn embedded() -> Value {
    json!({"spec": {"entrypoint": "main", "arguments": {"parameters": [{"name": "at", "value": "x"}]}},
        "parameters": [{"name": "at", "value": "[[Index]]"}]})
}

#[tokio::test]
async fn missed_slots_are_caught_up_with_once_each() {
    let world = world().await;
    let (spec, slots) = missed(10, json!({"maxConcurrency": 10, "workflow": embedded()}));
    world.schedule("s", spec).await;
    let controller = world.controller();
    let object = world.until("s", |o| index(o) == 10 && o["status"]["trigger"]["nextTriggeredTime"].is_null()).await;
    let workflows = world.workflows().await;
    assert_eq!(epochs(&workflows), slots);
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
    let slot = epochs(&world.workflows().await);
    assert_eq!(slot.len(), 1);
    assert!(slot[0] % 60 == 0 && (now() - slot[0]) <= 720, "{slot:?}");
}

#[tokio::test]
async fn runs_at_the_same_time_are_limited() {
    let world = world().await;
    for (name, workflow) in [("a", embedded()), ("b", Value::Null)] {
        let (spec, _) = missed(6, json!({"maxConcurrency": 2, "workflow": workflow}));
        let mut watch = world.cluster.watch(WF, Some(NS), None, Selectors::default());
        world.schedule(name, spec).await;
        let controller = world.controller();
        let (mut active, mut most, mut done) = (Vec::<String>::new(), 0, 0);
        while done < 6 {
            let event = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
            let workflow = &event.object;
            if event.kind == EventKind::Added && label(workflow, &format!("{LABEL}scheduledWorkflowName")) == name {
                active.push(workflow["metadata"]["name"].as_str().unwrap().to_owned());
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
    let enable = |object: &mut Value| {
        object["spec"]["enabled"] = json!(true);
        Ok(())
    };
    world.cluster.modify(SWF, NS, "s", enable).await.unwrap();
    world.until("s", |o| index(o) == 1).await;
    assert_eq!(epochs(&world.workflows().await), slots);
}

#[tokio::test]
async fn one_off_schedule_ends() {
    let world = world().await;
    world.schedule("s", json!({"enabled": true, "trigger": {}, "workflow": embedded()})).await;
    world.controller();
    let object = world.until("s", |o| index(o) == 1).await;
    assert_eq!(condition(&object), "Running");
    let workflow = &world.workflows().await[0];
    assert_eq!(rfc3339(epochs(std::slice::from_ref(workflow))[0]), object["metadata"]["creationTimestamp"]);
    world.complete(workflow["metadata"]["name"].as_str().unwrap()).await;
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
    let mut watch = world.cluster.watch(WF, Some(NS), None, Selectors::default());
    world.controller();
    world.completing();
    let mut slots = Vec::new();
    while slots.len() < 4 {
        let event = tokio::time::timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        if event.kind == EventKind::Added {
            let slot = epochs(std::slice::from_ref(&*event.object))[0];
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
    let events = world.cluster.list(&resources::EVENTS, Some(NS), &Selectors::default()).await.unwrap();
    assert!(events.items.iter().any(|e| e["reason"] == "Failed" && e["message"].as_str().unwrap().contains("not now")));
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
        let mut changes = futures::stream::select(
            world.cluster.watch(SWF, Some(NS), None, Selectors::default()),
            world.cluster.watch(WF, Some(NS), None, Selectors::default()),
        );
        let all = async {
            let mut round = 0usize;
            while index(&world.get(name).await) < SLOTS {
                let controller = world.controller();
                // Killed after 1, 2, 3 ... changes, and at once as they happen.
                for _ in 0..=round % 9 {
                    if index(&world.get(name).await) < SLOTS {
                        changes.next().await.unwrap().unwrap();
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
        let workflows = world.workflows().await;
        let found = if name == "a" {
            epochs(&workflows)
        } else {
            let mut slots: Vec<i64> = workflows.iter().map(|w| label(w, "slot").parse().unwrap()).collect();
            slots.sort_unstable();
            slots
        };
        assert_eq!(found, slots, "{name}");
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
    let cluster = world.cluster.clone();
    let user = tokio::spawn(async move {
        for n in 0.. {
            let touch = move |object: &mut Value| {
                object["metadata"]["annotations"] = json!({"n": format!("{n}")});
                Ok(())
            };
            cluster.modify(SWF, NS, "s", touch).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    world.until("s", |o| index(o) == 15).await;
    user.abort();
    assert_eq!(epochs(&world.workflows().await), slots);
    one.abort();
    two.abort();
}

#[tokio::test]
async fn broken_schedule_says_why_and_works_once_mended() {
    let world = world().await;
    let trigger = json!({"cronSchedule": {"cron": "0 0 0 * * 7"}});
    world.schedule("s", json!({"enabled": true, "trigger": trigger, "workflow": embedded()})).await;
    let mut events = world.cluster.watch(&resources::EVENTS, Some(NS), Some(0), Selectors::default());
    world.controller();
    let event = tokio::time::timeout(PATIENCE, events.next()).await.unwrap().unwrap().unwrap();
    let message = event.object["message"].as_str().unwrap();
    assert!(message.ends_with("cronSchedule.cron \"0 0 0 * * 7\": End of range (7) above maximum (6): 7"), "{message}");
    assert_eq!(event.object["involvedObject"]["name"], "s");
    let object = world.until("s", |o| condition(o) == "Enabled").await;
    assert_eq!(object["status"]["trigger"], json!({}));
    let mend = |object: &mut Value| {
        object["spec"]["trigger"] = json!({"periodicSchedule": {"startTime": rfc3339(now() - 10), "intervalSecond": 5,
            "endTime": rfc3339(now() - 3)}});
        Ok(())
    };
    world.cluster.modify(SWF, NS, "s", mend).await.unwrap();
    world.until("s", |o| index(o) == 1).await;
}

/// Schedules of the same name in other namespaces have runs of their own.
#[tokio::test]
async fn namespaces_do_not_mix() {
    let mut world = world().await;
    world.options.namespace = String::new();
    let mut want = BTreeMap::new();
    let other = json!({"metadata": {"name": "other"}});
    world.cluster.create(&resources::NAMESPACES, "", other).await.unwrap();
    for namespace in [NS, "other"] {
        let (spec, _) = missed(3, json!({"maxConcurrency": 2, "workflow": embedded()}));
        let object = json!({"metadata": {"name": "s"}, "spec": spec, "status": {}});
        world.cluster.create(SWF, namespace, object).await.unwrap();
        want.insert(namespace, 2);
    }
    world.controller();
    for namespace in [NS, "other"] {
        let mut watch = world.cluster.watch(SWF, Some(namespace), None, Selectors::default());
        let waiting = async {
            while index(&world.cluster.get(SWF, namespace, "s").await.unwrap()) < 2 {
                watch.next().await.unwrap().unwrap();
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    }
    let list = world.cluster.list(WF, None, &Selectors::default()).await.unwrap();
    let mut found = BTreeMap::new();
    for workflow in &list.items {
        *found.entry(workflow["metadata"]["namespace"].as_str().unwrap()).or_insert(0) += 1;
    }
    assert_eq!(found, want);
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
