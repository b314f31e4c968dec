//! Recurring runs through the public API: API server, controller and agent on the embedded Kubernetes API or a real one.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod world;

use kfp_proto::kubeflow::pipelines::backend::api::v2beta1 as v2;
use kfp_test_cluster::{Kube, schedules, workflows};
use serde_json::{Value, json};
use tonic::Code;
use v2::recurring_run::{Mode, PipelineSource, Status};
use world::{World, every, pipeline, say, spec, world};

async fn create(world: &World, trigger: Option<v2::Trigger>, source: PipelineSource) -> v2::RecurringRun {
    let recurring_run = v2::RecurringRun {
        display_name: "Every Second".into(),
        max_concurrency: 10,
        mode: Mode::Enable as i32,
        trigger,
        pipeline_source: Some(source),
        runtime_config: say("hello"),
        ..v2::RecurringRun::default()
    };
    let request = v2::CreateRecurringRunRequest { recurring_run: Some(recurring_run) };
    world.schedules.clone().create_recurring_run(request).await.unwrap().into_inner()
}

async fn get(world: &World, id: &str) -> Result<v2::RecurringRun, tonic::Status> {
    let request = v2::GetRecurringRunRequest { recurring_run_id: id.to_owned() };
    Ok(world.schedules.clone().get_recurring_run(request).await?.into_inner())
}

async fn update(world: &World, change: v2::RecurringRun, paths: &[&str]) -> v2::RecurringRun {
    let update_mask = Some(prost_types::FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() });
    let request = v2::UpdateRecurringRunRequest { recurring_run: Some(change), update_mask };
    world.schedules.clone().update_recurring_run(request).await.unwrap().into_inner()
}

/// Name of the object of a recurring run.
async fn object(kube: &Kube, id: &str) -> String {
    let all = kube.list(&schedules()).await;
    let own = all.iter().find(|object| object["metadata"]["uid"] == id).unwrap();
    own["metadata"]["name"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn recurring_run_lives_through_the_api() {
    let world = world().await;
    let made = create(&world, every(1), PipelineSource::PipelineSpec(spec())).await;
    let id = made.recurring_run_id.clone();
    // Controller, Kubernetes and agent have done their part when the first run is there.
    let run = world.eventually("a run", async |world| world.runs_of(&id).await.into_iter().next()).await;
    assert!(run.scheduled_at.unwrap().seconds >= made.created_at.unwrap().seconds);

    let name = object(&world.kube, &id).await;
    let request = v2::DisableRecurringRunRequest { recurring_run_id: id.clone() };
    world.schedules.clone().disable_recurring_run(request).await.unwrap();
    world.kube.until(&schedules(), &name, |o| o.pointer("/status/conditions/0/type") == Some(&json!("Disabled"))).await;
    let seen = get(&world, &id).await.unwrap();
    assert_eq!((seen.status(), seen.mode(), seen.next_fire_times), (Status::Disabled, Mode::Disable, vec![]));

    let before = world.kube.get(&schedules(), &name).await;
    let change = v2::RecurringRun {
        recurring_run_id: id.clone(),
        trigger: every(3600),
        mode: Mode::Enable as i32,
        max_concurrency: 3,
        runtime_config: say("good bye"),
        description: "slower".into(),
        ..v2::RecurringRun::default()
    };
    let paths = ["trigger", "mode", "max_concurrency", "runtime_config", "description"];
    let changed = update(&world, change, &paths).await;
    assert_eq!((changed.mode(), changed.trigger, changed.max_concurrency), (Mode::Enable, every(3600), 3));
    assert_eq!(changed.next_fire_times.len(), 5);
    let after = world.kube.get(&schedules(), &name).await;
    assert_eq!(after["spec"]["trigger"], json!({"periodicSchedule": {"intervalSecond": 3600}}));
    assert_eq!(after["spec"]["maxConcurrency"], 3);
    assert!(after["spec"]["workflow"]["spec"].as_str().unwrap().contains("good bye"));
    assert_eq!(after["status"]["trigger"]["lastWorkflowIndex"], before["status"]["trigger"]["lastWorkflowIndex"]);
    // What the controller will do is what was announced.
    let next = chrono::DateTime::from_timestamp(changed.next_fire_times[0].seconds, 0).unwrap();
    let next = json!(next.to_rfc3339_opts(chrono::SecondsFormat::Secs, true));
    world.kube.until(&schedules(), &name, |o| o["status"]["trigger"]["nextTriggeredTime"] == next).await;
    // The agent's reports lead to the same row.
    world
        .eventually("the report", async |world| {
            let seen = get(world, &id).await.unwrap();
            (seen.trigger == every(3600) && seen.status() == Status::Enabled).then_some(())
        })
        .await;
    assert_eq!(get(&world, &id).await.unwrap().description, "slower");

    let listed = world.schedules.clone().list_recurring_runs(v2::ListRecurringRunsRequest::default()).await.unwrap();
    assert_eq!(listed.into_inner().recurring_runs.len(), 1);
    let request =
        v2::DeleteRecurringRunRequest { recurring_run_id: id.clone(), ..v2::DeleteRecurringRunRequest::default() };
    world.schedules.clone().delete_recurring_run(request).await.unwrap();
    assert_eq!(get(&world, &id).await.unwrap_err().code(), Code::NotFound);
    assert!(world.kube.list(&schedules()).await.is_empty());
    assert!(!world.runs_of(&id).await.is_empty(), "its runs stay");
}

/// Without a version every run takes the newest one, through the API server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unpinned_recurring_run_asks_the_api_server() {
    let world = world().await;
    let pipeline_id = world.upload("say", &pipeline()).await;
    let source = v2::PipelineVersionReference { pipeline_id, ..v2::PipelineVersionReference::default() };
    let made = create(&world, every(1), PipelineSource::PipelineVersionReference(source)).await;
    let id = &made.recurring_run_id;
    let run = world.eventually("two runs", async |world| world.runs_of(id).await.into_iter().nth(1)).await;
    let name = object(&world.kube, id).await;
    assert!(run.display_name.starts_with(&format!("{name}-")), "{}", run.display_name);
    let of_run = |workflow: &Value| workflow["metadata"]["labels"]["pipeline/runid"] == run.run_id;
    let workflow = world.kube.list(&workflows()).await.into_iter().find(of_run).unwrap();
    assert_eq!(workflow["metadata"]["ownerReferences"][0]["uid"], *id);
}

/// A Workflow that somebody deletes ends its run in the database.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleted_workflow_ends_its_run() {
    let world = world().await;
    let (run, workflow) = world.start_run().await;
    let name = workflow["metadata"]["name"].as_str().unwrap();
    world.kube.merge(&workflows(), name, json!({"status": {"phase": "Running"}})).await;
    let state = async |world: &World, wanted: v2::RuntimeState| {
        let request = v2::GetRunRequest { run_id: run.run_id.clone(), ..v2::GetRunRequest::default() };
        let seen = world.runs.clone().get_run(request).await.unwrap().into_inner();
        (seen.state() == wanted).then_some(())
    };
    world.eventually("the run's start", async |world| state(world, v2::RuntimeState::Running).await).await;
    world.kube.delete(&workflows(), name).await;
    world.eventually("the run's end", async |world| state(world, v2::RuntimeState::Failed).await).await;
}
