"""The stock SDK against a running platform: what a data scientist does on the first day."""
import time
import urllib.request
import json

import pipelines as p
import pytest
from conftest import task_states, wait
from kfp import dsl


def hello(message: str = "hello world"):
    out = p.produce(text=message)
    p.check(text=out.outputs["out"], want=message)


def test_healthz_answers_on_both_versions(server):
    for version, store in (("v1beta1", None), ("v2beta1", "database")):
        with urllib.request.urlopen(f"{server.host}/apis/{version}/healthz") as answer:
            assert json.load(answer).get("pipeline_store") == store


def test_upload_list_get_and_delete_a_pipeline(client, tmp_path):
    package = p.write(tmp_path / "hello.yaml", "hello", hello)
    made = client.upload_pipeline(package, pipeline_name="first", description="d")
    assert client.get_pipeline(made.pipeline_id).display_name == "first"
    assert client.get_pipeline_id("first") == made.pipeline_id
    version = client.upload_pipeline_version(package, "v2", pipeline_id=made.pipeline_id)
    versions = client.list_pipeline_versions(made.pipeline_id).pipeline_versions
    assert {v.display_name for v in versions} == {"first", "v2"}
    spec = client.get_pipeline_version(made.pipeline_id, version.pipeline_version_id).pipeline_spec
    spec = spec.get("pipeline_spec", spec)
    assert spec["pipelineInfo"]["name"] == "hello"
    assert made.pipeline_id in {x.pipeline_id for x in client.list_pipelines(page_size=50).pipelines}
    client.delete_pipeline_version(made.pipeline_id, version.pipeline_version_id)
    for v in client.list_pipeline_versions(made.pipeline_id).pipeline_versions:
        client.delete_pipeline_version(made.pipeline_id, v.pipeline_version_id)
    client.delete_pipeline(made.pipeline_id)
    assert client.get_pipeline_id("first") is None


def test_experiment_and_run_to_success(client, tmp_path):
    experiment = client.create_experiment("day one")
    package = p.write(tmp_path / "hello.yaml", "hello", hello)
    run = client.create_run_from_pipeline_package(package, arguments={"message": 'a "b" {c} é'}, experiment_name="day one")
    assert wait(client, run.run_id).state == "SUCCEEDED"
    done = client.wait_for_run_completion(run.run_id, timeout=60)
    assert done.experiment_id == experiment.experiment_id
    assert done.finished_at >= done.created_at
    states = task_states(client.get_run(run.run_id))
    assert states["produce"] == "SUCCEEDED" and states["check"] == "SUCCEEDED"
    listed = client.list_runs(experiment_id=experiment.experiment_id, page_size=10).runs
    assert [r.run_id for r in listed] == [run.run_id]


def test_run_of_an_uploaded_version(client, tmp_path):
    package = p.write(tmp_path / "hello.yaml", "hello", hello)
    made = client.upload_pipeline(package, pipeline_name="by-id")
    version = client.list_pipeline_versions(made.pipeline_id).pipeline_versions[0]
    experiment = client.create_experiment("ids")
    run = client.run_pipeline(experiment.experiment_id, "by id", pipeline_id=made.pipeline_id,
                              version_id=version.pipeline_version_id, params={"message": "m"})
    assert wait(client, run.run_id).state == "SUCCEEDED"


def test_second_run_uses_the_cache(client, tmp_path):
    def cached():
        p.check(text=p.produce(text="cache me").outputs["out"], want="cache me")

    package = p.write(tmp_path / "cached.yaml", "cached", cached)
    first = client.create_run_from_pipeline_package(package, enable_caching=True)
    assert wait(client, first.run_id).state == "SUCCEEDED"
    second = wait(client, client.create_run_from_pipeline_package(package, enable_caching=True).run_id)
    assert second.state == "SUCCEEDED"
    executors = [t.state for t in second.run_details.task_details if t.display_name == "executor"]
    assert sorted(executors) == ["SKIPPED", "SKIPPED"], "both tasks come from the cache"


def test_failed_run_says_which_task_and_why(client, tmp_path):
    def fails():
        p.shell(script="echo about to fail; exit 3")

    run = client.create_run_from_pipeline_package(p.write(tmp_path / "f.yaml", "fails", fails), enable_caching=False)
    done = wait(client, run.run_id)
    assert done.state == "FAILED"
    assert task_states(done)["shell"] == "FAILED"


def test_terminate_stops_the_processes(client, tmp_path):
    marker = tmp_path / "late"

    def sleeps():
        p.shell(script="sleep 300")

    run = client.create_run_from_pipeline_package(p.write(tmp_path / "s.yaml", "sleeps", sleeps), enable_caching=False)
    deadline = time.monotonic() + 30
    while task_states(client.get_run(run.run_id)).get("shell") != "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.1)
    began = time.monotonic()
    client.terminate_run(run.run_id)
    done = wait(client, run.run_id, 60)
    assert done.state in ("CANCELED", "FAILED"), done.state
    assert time.monotonic() - began < 45
    assert not marker.exists()


def test_archive_unarchive_and_delete(client, tmp_path):
    package = p.write(tmp_path / "hello.yaml", "hello", hello)
    run = client.create_run_from_pipeline_package(package, experiment_name="archive")
    wait(client, run.run_id)
    client.archive_run(run.run_id)
    assert client.get_run(run.run_id).storage_state == "ARCHIVED"
    client.unarchive_run(run.run_id)
    assert client.get_run(run.run_id).storage_state == "AVAILABLE"
    client.delete_run(run.run_id)
    with pytest.raises(Exception, match="(?i)not found"):
        client.get_run(run.run_id)


def test_parallel_tasks_do_not_see_each_others_files(client, tmp_path):
    def alone():
        with dsl.ParallelFor([1, 2, 3, 4]) as item:
            p.shell(script="test ! -e /tmp/mine; echo x >/tmp/mine; sleep 0.5; test -e /tmp/mine")

    run = client.create_run_from_pipeline_package(p.write(tmp_path / "a.yaml", "alone", alone), enable_caching=False)
    assert wait(client, run.run_id).state == "SUCCEEDED"
