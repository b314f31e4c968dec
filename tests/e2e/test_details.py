"""What a run tells about its tasks: what each waited for, its pod, messages, the cache's decision, and its log."""
import json
import time
import urllib.error
import urllib.request

import pipelines as p
import pytest
import yaml
from conftest import wait
from kfp import dsl
from metadata import Run


def two():
    made = p.produce(text="hello")
    p.check(text=made.outputs["out"], want="hello")


def detail(run, name):
    return next(task for task in run.run_details.task_details if task.display_name == name)


def said(task):
    """The messages of a task's states, in their order."""
    return [status.error.message for status in task.state_history if status.error]


def run(client, package, caching):
    return wait(client, client.create_run_from_pipeline_package(package, enable_caching=caching).run_id)


def test_details_say_what_happened_to_each_task(server, client, tmp_path):
    package = p.write(tmp_path / "two.yaml", "details", two)
    first, second = run(client, package, True), run(client, package, True)
    uncached = run(client, package, False)
    assert [r.state for r in (first, second, uncached)] == ["SUCCEEDED"] * 3
    for task in first.run_details.task_details:
        if task.display_name:
            assert task.start_time and task.end_time and task.state_history, task
            assert said(task)[0].startswith("waited for "), task
    check = detail(first, "check")
    assert "waited for check-driver" in said(check)[0]
    assert said(detail(first, "check-driver"))[0].startswith("waited for produce")
    assert detail(first, "check").parent_task_id == detail(first, "root").task_id
    for done, words in [
        (first, "not cached: no earlier execution could be reused"),
        (second, "cached: the outputs of an earlier execution were reused"),
        (uncached, "not cached: caching is off for this task"),
    ]:
        for name in ("produce", "check"):
            assert any(words in text for text in said(detail(done, name))), (name, said(detail(done, name)))
    assert check.pod_name and not detail(second, "check").pod_name


def decision(server, run_id, task):
    """Id and cache decision of a task's execution."""
    [execution] = Run(server.home, run_id).tasks(task)
    return execution.id, execution.properties["cache_decision"]


def test_the_cache_decision_is_kept_with_the_execution(server, client, tmp_path):
    package = p.write(tmp_path / "kept.yaml", "kept-decision", two)
    runs = [run(client, package, True), run(client, package, True), run(client, package, False)]
    decisions = [decision(server, done.run_id, "produce") for done in runs]
    assert decisions[0][1] == "not reused: no earlier execution has the same key"
    assert decisions[1][1] == f"reused the outputs of execution {decisions[0][0]}"
    assert decisions[2][1] == "not reused: caching is off for this task"


def test_a_failed_and_a_skipped_task_say_why(client, tmp_path):
    def branches():
        made = p.produce(text="no")
        with dsl.If(made.outputs["out"] == "yes"):
            p.shell(script="true")
        p.no_command()

    done = run(client, p.write(tmp_path / "b.yaml", "branches", branches), False)
    assert done.state == "FAILED"
    skipped = detail(done, "condition-1")
    assert skipped.state == "SKIPPED" and "evaluated false" in " ".join(said(skipped)), skipped
    executor = next(t for t in done.run_details.task_details if t.display_name == "executor" and t.state == "FAILED")
    assert "/no/such/program" in executor.error.message
    assert executor.error.message in executor.state_history[-1].error.message


def read_log(server, run_id, pod):
    with urllib.request.urlopen(f"{server.host}/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log") as answer:
        return answer.read().decode()


def cluster(server):
    return yaml.safe_load(server.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]


@pytest.mark.parametrize("gone", ["pod", "workflow"])
def test_logs_outlive_the_pod_and_its_workflow(server, client, tmp_path, gone):
    def says():
        p.shell(script="echo said by the task")

    done = run(client, p.write(tmp_path / "says.yaml", "says-it", says), False)
    pod = detail(done, "shell").pod_name
    assert "said by the task\n" in read_log(server, done.run_id, pod)
    live = f"{cluster(server)}/api/v1/namespaces/kubeflow/pods/{pod}"
    with urllib.request.urlopen(f"{live}/log?container=main") as answer:
        assert b"said by the task\n" in answer.read()
    # What users may do, and what a ttlStrategy and the persistence agent do in the end.
    workflow = json.load(urllib.request.urlopen(live))["metadata"]["labels"]["workflows.argoproj.io/workflow"]
    url = f"{cluster(server)}/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows/{workflow}"
    deleted = {"pod": live, "workflow": url}[gone]
    urllib.request.urlopen(urllib.request.Request(deleted, method="DELETE")).close()
    archived = server.home / "objects" / "mlpipeline" / "logs" / workflow / pod / "main.log"
    deadline = time.monotonic() + 30
    while not archived.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(live)
    assert "said by the task\n" in read_log(server, done.run_id, pod)
    assert client.get_run(done.run_id).state == "SUCCEEDED"
