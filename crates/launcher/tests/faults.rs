//! Faults that pass must not turn a finished task into a failed one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../../core/tests/s3_server/mod.rs"]
mod s3_server;
mod support;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kfp_core::mlmd::State;
use serde_json::json;
use support::{World, component, input};
use tokio::sync::Notify;
use tonic::body::Body;
use tonic::client::GrpcService as _;

/// What becomes of one PutExecution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Arrives,
    /// The server says that it is away.
    Refused,
    /// The server says that it never will.
    Forbidden,
    /// It arrives, but the server says something else.
    Unanswered,
    /// The connection breaks before it arrives.
    Lost,
    /// The connection breaks after it arrived.
    Cut,
}

type Fates = Arc<Mutex<VecDeque<Fate>>>;

/// A way to the metadata server on which these things happen; afterwards all is well. Returns its port.
async fn faulty_way(server: u16, fates: &Fates) -> u16 {
    let channel = kfp_core::grpc::channel("127.0.0.1", server, None).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, fates) = (listener.local_addr().unwrap().port(), fates.clone());
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let (channel, fates) = (channel.clone(), fates.clone());
            let broken = Arc::new(Notify::new());
            let breaks = broken.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let (mut channel, fates, breaks) = (channel.clone(), fates.clone(), breaks.clone());
                async move {
                    let put = request.uri().path().ends_with("/PutExecution");
                    let fate = if put { fates.lock().unwrap().pop_front() } else { None };
                    if fate == Some(Fate::Refused) {
                        return Ok::<_, Infallible>(failure("14", "away"));
                    }
                    if fate == Some(Fate::Forbidden) {
                        return Ok(failure("7", "not you"));
                    }
                    if fate == Some(Fate::Lost) {
                        breaks.notify_one();
                        return std::future::pending().await;
                    }
                    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
                    let answer = channel.call(request.map(Body::new)).await.unwrap();
                    match fate {
                        Some(Fate::Unanswered) => Ok(failure("14", "away")),
                        Some(Fate::Cut) => {
                            breaks.notify_one();
                            std::future::pending().await
                        }
                        _ => Ok(answer),
                    }
                }
            });
            let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            let connection = connection.serve_connection(TokioIo::new(socket), service);
            tokio::spawn(async move {
                tokio::select! {
                    _ = connection => {}
                    () = broken.notified() => {}
                }
            });
        }
    });
    port
}

fn failure(code: &str, message: &str) -> Response<Body> {
    let answer = Response::builder().header("content-type", "application/grpc").header("grpc-status", code);
    answer.header("grpc-message", message).body(Body::empty()).unwrap()
}

const SCRIPT: &str = "echo ran; echo 1 > {{$.outputs.parameters['number'].output_file}}; \
                      echo m > {{$.outputs.artifacts['model'].path}}";

#[tokio::test]
async fn a_metadata_store_that_is_away_loses_and_doubles_nothing() {
    use Fate::{Arrives, Cut, Lost, Refused, Unanswered};
    let mut world = World::new(1).await;
    let task = world.task("t").await;
    // Of the start, of the end, of the DAG's state.
    let starts = [Refused, Unanswered, Lost, Arrives];
    let fates = [&starts[..], &[Refused, Lost, Cut], &[Refused, Lost, Unanswered, Arrives]].concat();
    let fates: Fates = Arc::new(Mutex::new(fates.into()));
    world.metadata_port = faulty_way(world.metadata_port, &fates).await;
    world.sh(task, &input(), &component(), SCRIPT).await.unwrap();
    assert_eq!(*fates.lock().unwrap(), []);
    assert_eq!((world.state(task).await, world.state(world.dag).await), (State::Complete, State::Complete));
    let artifacts = world.metadata.output_artifacts(task).await.unwrap();
    let mut ids: Vec<i64> = artifacts.values().map(kfp_proto::ml_metadata::Artifact::id).collect();
    ids.sort_unstable();
    assert_eq!(ids, [1, 2], "each artifact once");
}

#[tokio::test]
async fn a_program_that_the_metadata_store_does_not_want_is_stopped() {
    let mut world = World::new(1).await;
    let task = world.task("t").await;
    let fates: Fates = Arc::new(Mutex::new([Fate::Forbidden].into()));
    world.metadata_port = faulty_way(world.metadata_port, &fates).await;
    let error = world.sh(task, &input(), &component(), "sleep 100000").await.unwrap_err().to_string();
    assert!(error.starts_with("failed to pre-publish") && error.contains("not you"), "{error}");
}

#[tokio::test]
async fn a_metadata_store_that_restarts_while_a_task_ends_is_awaited() {
    let mut world = World::new(1).await;
    let task = world.task("t").await;
    let (ready, go) = (world.dir.path().join("ready"), world.dir.path().join("go"));
    let script = format!("touch {}; while test ! -e {}; do sleep 0.05; done; {SCRIPT}", ready.display(), go.display());
    let options = world.options(world.flags(task, &input(), &component()), &["sh", "-ec", &script]);
    let restart = async {
        while !ready.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        world.stop_metadata().await;
        let nobody = tokio::net::TcpListener::bind(("127.0.0.1", world.metadata_port)).await.unwrap();
        std::fs::write(go, "").unwrap();
        // The launcher comes with its results and is sent away.
        drop(nobody.accept().await.unwrap());
        drop(nobody);
        world.start_metadata();
    };
    let launcher = kfp_launcher::run(options, kfp_core::shutdown::CancellationToken::new());
    let (ended, ()) = tokio::join!(launcher, restart);
    ended.unwrap();
    assert_eq!((world.state(task).await, world.state(world.dag).await), (State::Complete, State::Complete));
    assert_eq!(world.metadata.output_artifacts(task).await.unwrap().len(), 2);
}

async fn with_s3() -> (World, Arc<Mutex<s3_server::State>>) {
    let (state, address) = s3_server::listen().await;
    let options = format!("endpoint={address}&disable_https=true&use_path_style=true&region=x&anonymous=true");
    (World::with_root(1, &format!("minio://bucket/root?{options}")).await, state)
}

async fn run(world: &World, task: i64) -> Result<(), String> {
    let mut input = input();
    input["inputs"]["artifacts"] = json!({});
    let mut options = world.options(world.flags(task, &input, &component()), &["sh", "-ec", SCRIPT]);
    options.object_store_dir = None;
    let run = kfp_launcher::run(options, kfp_core::shutdown::CancellationToken::new());
    run.await.map(drop).map_err(|error| error.to_string())
}

#[tokio::test]
async fn an_object_store_that_is_away_costs_time_only() {
    let (world, state) = with_s3().await;
    let task = world.task("t").await;
    // More than the quick tries of one request.
    state.lock().unwrap().failures = 7;
    run(&world, task).await.unwrap();
    assert_eq!(world.state(task).await, State::Complete);
    let state = state.lock().unwrap();
    assert_eq!((state.failures, &state.objects["bucket/root/t/u/model"][..]), (0, &b"m\n"[..]));
    assert_eq!(&state.objects["bucket/root/t/u/executor-logs-0"][..], b"ran\n");
}

#[tokio::test]
async fn a_store_that_refuses_fails_the_task_at_once_and_says_why() {
    let (world, state) = with_s3().await;
    let task = world.task("t").await;
    state.lock().unwrap().answer = Some((403, "<Error><Code>AccessDenied</Code><Message>no</Message></Error>"));
    let error = run(&world, task).await.unwrap_err();
    assert!(error.contains("to minio://bucket/root/t/u/"), "{error}");
    assert!(error.ends_with("the store refuses the credentials (AccessDenied: no)"), "{error}");
    assert_eq!(world.state(task).await, State::Failed);
}
