//! What may go wrong around the controller: it is killed anywhere, the APIs fail, another replica works, the clock jumps.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Phase, World, condition, embedded, index, leases, missed, now, rfc3339, schedules, world};
use futures::StreamExt as _;
use kfp_core::cluster::lease::Timing;
use kfp_core::shutdown::CancellationToken;
use kfp_scheduledworkflow::{Clock, Error, LEASE, run};
use kfp_test_cluster::proxy::{self, Rule, Step};
use serde_json::{Value, json};

/// The controller as a process of its own.
fn process(world: &World, kubeconfig: &std::path::Path, more: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_controller"))
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(["--namespace", &world.kube.namespace, "--mlPipelineAPIServerName=127.0.0.1", "--metricsPort="])
        .args(["--clientQPS=-1", "--logtostderr=true", &format!("--mlPipelineServiceGRPCPort={}", world.grpc_port)])
        .args(more)
        .env("CRON_SCHEDULE_TIMEZONE", "UTC")
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Where the next process is killed: at this call of those that change something, before or after it is carried out.
#[derive(Clone, Copy)]
struct Point {
    call: usize,
    phase: Phase,
}

#[derive(Default)]
struct Killer {
    child: Mutex<Option<Child>>,
    point: Mutex<Option<Point>>,
    calls: AtomicUsize,
    killed: tokio::sync::Notify,
}

impl Killer {
    /// Whether the caller was killed here.
    fn strike(&self, phase: Phase) -> bool {
        if phase == Phase::Before {
            self.calls.fetch_add(1, Ordering::SeqCst);
        }
        let mut point = self.point.lock().unwrap();
        if !point.is_some_and(|p| p.phase == phase && p.call < self.calls.load(Ordering::SeqCst)) {
            return false;
        }
        *point = None;
        self.kill();
        self.killed.notify_one();
        true
    }

    fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap().take() {
            // SIGKILL; the process is gone when this returns.
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// Killed with SIGKILL before and after every kind of call that changes something, and started again: every slot runs
/// once, whichever way runs are created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn process_killed_at_every_call_neither_loses_nor_repeats_slots() {
    const SLOTS: i64 = 12;
    for (name, workflow) in [("a", embedded()), ("b", Value::Null)] {
        let world = world().await;
        let killer = Arc::new(Killer::default());
        let rule: Rule = {
            let killer = killer.clone();
            Arc::new(move |phase, parts| {
                let changes = parts.method != http::Method::GET;
                if changes && killer.strike(phase) { Step::Hang } else { Step::Pass }
            })
        };
        let proxy = proxy::start(&world.kube, rule).await;
        let kubeconfig = world.dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, &proxy.kubeconfig).unwrap();
        {
            let killer = killer.clone();
            *world.server.hook.lock().unwrap() = Some(Box::new(move |phase| killer.strike(phase)));
        }
        let (spec, slots) = missed(SLOTS, json!({"maxConcurrency": 10, "workflow": workflow}));
        world.schedule(name, spec).await;
        world.completing();
        let mut rounds = 0;
        loop {
            let phase = if rounds % 2 == 0 { Phase::Before } else { Phase::After };
            *killer.point.lock().unwrap() = Some(Point { call: rounds / 2 % 7, phase });
            killer.calls.store(0, Ordering::SeqCst);
            *killer.child.lock().unwrap() = Some(process(&world, &kubeconfig, &[]));
            rounds += 1;
            let done = world.until(name, |o| index(o) == SLOTS);
            tokio::select! {
                () = killer.killed.notified() => {}
                _ = done => break,
            }
        }
        killer.kill();
        assert!(rounds > 8, "killed only {rounds} times");
        assert_eq!(world.slots().await, slots, "{name}");
        assert_eq!(world.get(name).await["status"]["trigger"]["lastTriggeredTime"], rfc3339(*slots.last().unwrap()));
    }
}

/// A controller that comes back after a long time starts all that it missed, in order and once each, even when it is
/// stopped on the way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousand_missed_slots_are_caught_up_with() {
    const SLOTS: i64 = 1000;
    let world = world().await;
    let (spec, slots) = missed(SLOTS, json!({"maxConcurrency": 10, "workflow": embedded()}));
    world.schedule("s", spec).await;
    world.completing();
    for stop in [SLOTS / 3, SLOTS / 2, SLOTS] {
        let controller = world.controller();
        world.until("s", |o| index(o) >= stop).await;
        controller.abort();
        assert!(controller.await.is_err());
    }
    assert_eq!(world.slots().await, slots);
    let object = world.get("s").await;
    assert_eq!(object["status"]["trigger"]["lastTriggeredTime"], rfc3339(*slots.last().unwrap()));
    let completed = object["status"]["workflowHistory"]["completed"].as_array().map_or(0, Vec::len);
    assert!(completed <= 10, "{completed} entries of history");
}

/// The Kubernetes API and the API server fail for a while, each in several ways: afterwards everything is done, once, and
/// meanwhile nobody knocks without pause.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failing_apis_are_waited_for() {
    for (code, workflow) in [(500, embedded()), (429, Value::Null), (503, embedded())] {
        let mut world = world().await;
        // Every schedule's first calls fail, the watches too, and later answers are lost.
        let calls = Arc::new(AtomicUsize::new(0));
        let rule: Rule = {
            let calls = calls.clone();
            Arc::new(move |phase, parts| {
                if phase == Phase::Before {
                    let call = calls.fetch_add(1, Ordering::SeqCst);
                    return if call < 6 { Step::Refuse(code) } else { Step::Pass };
                }
                // The change was made, but the caller is told that it was not.
                let lost = parts.method != http::Method::GET && calls.load(Ordering::SeqCst).is_multiple_of(5);
                if lost { Step::Refuse(code) } else { Step::Pass }
            })
        };
        let proxy = proxy::start(&world.kube, rule).await;
        let config = kube::config::Kubeconfig::from_yaml(&proxy.kubeconfig).unwrap();
        world.options.client = Some(kfp_test_cluster::client(config).await);
        world.server.refuse.store(2, Ordering::SeqCst);
        let (spec, slots) = missed(4, json!({"maxConcurrency": 10, "workflow": workflow}));
        world.schedule("s", spec).await;
        world.completing();
        world.controller();
        world.until("s", |o| index(o) == 4).await;
        assert_eq!(world.slots().await, slots, "{code}");
        let made = calls.load(Ordering::SeqCst);
        assert!(made < 150, "{made} calls for four runs");
    }
}

/// Watches that have expired begin anew and miss nothing, and not again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_watches_begin_anew() {
    let mut world = world().await;
    let (watches, lists) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let rule: Rule = {
        let (watches, lists) = (watches.clone(), lists.clone());
        Arc::new(move |phase, parts| {
            if phase == Phase::Before && proxy::is_watch(parts) && watches.fetch_add(1, Ordering::SeqCst) < 6 {
                return Step::Expire;
            }
            let list = phase == Phase::Before && parts.uri.path().ends_with("workflows");
            if list && parts.method == http::Method::GET && !proxy::is_watch(parts) {
                lists.fetch_add(1, Ordering::SeqCst);
            }
            Step::Pass
        })
    };
    let proxy = proxy::start(&world.kube, rule).await;
    let config = kube::config::Kubeconfig::from_yaml(&proxy.kubeconfig).unwrap();
    world.options.client = Some(kfp_test_cluster::client(config).await);
    world.completing();
    world.controller();
    let (spec, slots) = missed(5, json!({"maxConcurrency": 1, "workflow": embedded()}));
    world.schedule("s", spec).await;
    world.until("s", |o| index(o) == 5).await;
    assert_eq!(world.slots().await, slots);
    let lists = lists.load(Ordering::SeqCst);
    assert!(lists < 20, "{lists} lists");
}

fn quick() -> Timing {
    let ms = Duration::from_millis;
    Timing { duration: ms(1500), renew_deadline: ms(1000), retry: ms(100) }
}

fn holder(lease: &Value) -> &str {
    lease.pointer("/spec/holderIdentity").and_then(Value::as_str).unwrap_or_default()
}

/// Of two replicas one works; the other takes over when it stops, and when it dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_takes_over_with_the_lease() {
    let mut world = world().await;
    world.options.leader_elect = true;
    world.options.leader_elect_namespace = world.kube.namespace.clone();
    world.options.lease_timing = quick();
    let stop = CancellationToken::new();
    let first = tokio::spawn(run(world.options.clone(), stop.clone()));
    let mut changes = world.kube.changes(&leases());
    changes.next().await.unwrap();
    let held_by = holder(&world.kube.get(&leases(), LEASE).await).to_owned();
    let second = tokio::spawn(run(world.options.clone(), world.stop.clone()));
    let (spec, slots) = missed(5, json!({"maxConcurrency": 10, "workflow": embedded()}));
    world.schedule("s", spec).await;
    world.completing();
    world.until("s", |o| index(o) == 5).await;
    assert_eq!(holder(&world.kube.get(&leases(), LEASE).await), held_by, "the lease stays with its holder");
    // An orderly end gives the lease up.
    stop.cancel();
    first.await.unwrap().unwrap();
    let lease = world.kube.until(&leases(), LEASE, |l| !holder(l).is_empty() && holder(l) != held_by).await;
    assert!(lease["spec"]["leaseTransitions"].as_i64().unwrap() >= 2, "{lease}");
    world.schedule("t", missed(3, json!({"maxConcurrency": 10, "workflow": embedded()})).0).await;
    world.until("t", |o| index(o) == 3).await;
    assert_eq!(world.slots().await.len(), slots.len() + 3);
    // A holder that vanishes loses it after its time.
    second.abort();
    drop(second.await);
    let held_by = holder(&lease).to_owned();
    world.controller();
    world.kube.until(&leases(), LEASE, |l| !holder(l).is_empty() && holder(l) != held_by).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replica_that_loses_the_lease_stops() {
    let mut world = world().await;
    world.options.leader_elect = true;
    world.options.leader_elect_namespace = world.kube.namespace.clone();
    world.options.lease_timing = quick();
    let working = tokio::spawn(run(world.options.clone(), world.stop.clone()));
    let mut changes = world.kube.changes(&leases());
    changes.next().await.unwrap();
    let steal = |lease: &mut Value| lease["spec"]["holderIdentity"] = json!("somebody else");
    world.kube.change(&leases(), LEASE, steal).await.unwrap();
    let ended = tokio::time::timeout(common::PATIENCE, working).await.unwrap().unwrap();
    assert!(matches!(ended, Err(Error::LeaseLost)), "{ended:?}");
}

/// Two replicas without a lease, both as processes: slots are still started once each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_do_not_repeat_slots() {
    for workflow in [embedded(), Value::Null] {
        let world = world().await;
        let proxy = proxy::start(&world.kube, Arc::new(|_, _| Step::Pass)).await;
        let kubeconfig = world.dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, &proxy.kubeconfig).unwrap();
        let (spec, slots) = missed(20, json!({"maxConcurrency": 10, "workflow": workflow}));
        world.schedule("s", spec).await;
        world.completing();
        let mut replicas = [(); 2].map(|()| process(&world, &kubeconfig, &[]));
        world.until("s", |o| index(o) == 20).await;
        for replica in &mut replicas {
            replica.kill().unwrap();
            replica.wait().unwrap();
        }
        assert_eq!(world.slots().await, slots);
    }
}

/// The wall clock jumps hours ahead and back: slots that came due run once, those that come again do not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_clock_neither_loses_nor_repeats_slots() {
    const HOUR: i64 = 3600;
    let mut world = world().await;
    let shift = Arc::new(AtomicI64::new(0));
    world.options.clock = Clock::new({
        let shift = shift.clone();
        move || now() + shift.load(Ordering::SeqCst)
    });
    let start = now() - 2 * HOUR;
    let times = json!({"startTime": rfc3339(start), "intervalSecond": HOUR});
    let spec = json!({"enabled": true, "maxConcurrency": 10, "workflow": embedded(),
        "trigger": {"periodicSchedule": times}});
    world.schedule("s", spec).await;
    world.completing();
    world.controller();
    world.until("s", |o| index(o) == 2).await;
    shift.store(3 * HOUR, Ordering::SeqCst);
    world.until("s", |o| index(o) == 5).await;
    shift.store(-3 * HOUR, Ordering::SeqCst);
    // Something that the controller does with the clock set back: by then it has looked at the schedule again.
    world.kube.merge(&schedules(), "s", json!({"spec": {"enabled": false}})).await;
    world.until("s", |o| condition(o) == "Disabled").await;
    world.kube.merge(&schedules(), "s", json!({"spec": {"enabled": true}})).await;
    world.until("s", |o| condition(o) == "Enabled").await;
    shift.store(4 * HOUR, Ordering::SeqCst);
    world.until("s", |o| index(o) == 6).await;
    assert_eq!(world.slots().await, (1..=6).map(|n| start + n * HOUR).collect::<Vec<_>>());
}

/// The first SIGTERM ends the controller in order, a second one at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signals_end_the_process() {
    let signal = |child: &Child| {
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    };
    for second in [false, true] {
        let world = world().await;
        // The status is never written, so an orderly end waits for it.
        let (waiting, hang) = (Arc::new(tokio::sync::Notify::new()), second);
        let rule: Rule = {
            let waiting = waiting.clone();
            Arc::new(move |phase, parts| {
                if phase == Phase::Before || parts.method != http::Method::PUT {
                    return Step::Pass;
                }
                waiting.notify_one();
                if hang { Step::Hang } else { Step::Pass }
            })
        };
        let proxy = proxy::start(&world.kube, rule).await;
        let kubeconfig = world.dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, &proxy.kubeconfig).unwrap();
        world.schedule("s", missed(1, json!({"workflow": embedded()})).0).await;
        let mut child = process(&world, &kubeconfig, &[]);
        waiting.notified().await;
        signal(&child);
        if second {
            // The signal is taken in by a task of its own; another one is sent until the process has ended.
            while child.try_wait().unwrap().is_none() {
                signal(&child);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let status = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(i32::from(second)));
    }
}
