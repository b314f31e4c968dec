"""The reference pipelines reach the outputs that upstream states, and a second run takes all of them from the cache."""
import json
import os
import re
import time
from pathlib import Path

import pytest
from conftest import Server, wait
from metadata import Run

FOLDER = Path(os.environ.get("KFP_CONFORMANCE_DIR", Path(__file__).parents[3] / "shared" / "conformance")) / "pipelines" / "valid"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no reference pipelines in {FOLDER}; set KFP_CONFORMANCE_DIR")


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("kfp-reference")).start()
    yield server
    assert server.stop() == 0


def plain(value):
    """One text for one value: the store keeps all numbers as floating-point ones."""
    return re.sub(r"(\d)\.0\b", r"\1", json.dumps(value, sort_keys=True))


def out(task, *values, output="Output"):
    return lambda run: (sorted(map(plain, run.values(task, output))), sorted(map(plain, values)))


def text(task, artifact, *texts):
    return lambda run: (sorted(run.texts(task, artifact)), sorted(texts))


def logged(task, *words):
    """Each word is in the log of some execution of the task."""
    return lambda run: ([word for word in words if not any(word in log for log in run.logs(task))], [])


def states(task, *wanted):
    return lambda run: (run.states(task), sorted(wanted))


def count(task, number):
    return lambda run: (len(run.tasks(task)), number)


CASES = {
    "hello_world": [{}, logged("echo", "hello world")],
    "critical/add_numbers": [{"a": 5, "b": 5}, out("add-numbers", 10)],
    "essential/concat_message": [{"message1": "Hello ", "message2": "World!"}, out("concat-message", "Hello World!")],
    "identity": [{"value": "test_value"}, out("identity", "test_value")],
    "nested_return": [{}, out("nested-return", [{"A_a": "1", "B_b": "2"}, {"A_a": "10", "B_b": "20"}])],
    "essential/dict_input": [{"struct": {"A": "1.5", "B": "2"}}, logged("dict-input", "1.5")],
    "critical/producer_consumer_param_pipeline": [{}, logged("consumer", "Hello world, this is an output parameter")],
    "critical/two_step_pipeline_containerized": [{}, text("component1", "output_gcs", "Hello KFP Containerized!\n")],
    "essential/pipeline_with_after": [{}, count(None, 3)],
    "essential/pipeline_with_reused_component": [{"a": 2, "b": 5}, out("add-numbers-3", 17)],
    "critical/component_with_optional_inputs": [{}, logged("component-op", "None")],
    "essential/placeholder_with_if_placeholder_none_input_value": [{}, states("component-with-optional-inputs", "COMPLETE")],
    "pipeline_with_concat_placeholder": [{}, states("component-with-concat-placeholder", "COMPLETE")],
    "critical/pipeline_with_placeholders": [{}, logged("print-all-placeholders", "pipeline-with-placeholders-")],
    "critical/pipeline_with_env": [{}, states("print-env-op", "COMPLETE")],
    "essential/component_with_env_variable": [{}, out("read-env-var", "env_var_value")],
    "critical/if_else_with_oneof_artifacts": [{}, logged("print-artifact", "heads"), states("condition-3", "CANCELED")],
    "local_execution/local_execution_pipeline_with_oneof": [{"pick_a": True}, out("tag-selected", "selected:A")],
    "nested_with_parameters": [{}, out("add", 72), out("add-two-nums", 4, 6, 8, 6, 8, 10, 8, 10, 12)],
    "parameters_complex": [{}, out("add-two-numbers", 306)],
    "pipeline_producer_consumer": [{}, out("add", 36), logged("join-and-print", "math")],
    "critical/collected_parameters": [{}, out("prepend-id", "model_id_s1", "model_id_s2", "model_id_s3"), out("consume-ids", "completed", "completed")],
    "local_execution/pipeline_with_collected_artifacts": [{}, out("read-and-join", "0,1,2")],
    "pythonic_artifacts_with_list_of_artifacts": [{}, text("join-datasets", "Output", "Hello, world!")],
    "cross_loop_after_topology": [{}, count(None, 19)],
    "parallel_and_nested/pipeline_with_loops": [{}, count("print-text", 2), states("for-loop-4", *["COMPLETE"] * 3)],
    "pipeline_with_parallelfor_parallelism": [{"loop_parameter": ["a", "b", "c"]}, count("print-text", 3)],
    "parallel_and_nested/pipeline_in_pipeline_complex": [{}, states("inner-pipeline", "COMPLETE", "COMPLETE")],
    "critical/artifact_cache": [{}, text("core-comp", "dataset", "foo"), logged("crust-comp", "input:  foo")],
    "critical/pipeline_with_workspace": [{}, out("read-from-workspace", "Hello from workspace!")],
    "critical/pipeline_with_importer_workspace": [{}, out("read-dir", "part-000.txt,part-001.txt"), out("train", "123", output="scalar")],
    "critical/pipeline_with_input_status_state": [{}, logged("echo-state", "COMPLETE"), states("exit-handler-1", "COMPLETE")],
    "essential/pipeline_with_metrics_outputs": [{}, count("output-metrics-2", 2)],
}
# Random branches: whichever is taken, one of the two ran and the other did not.
BRANCHES = {
    "critical/flip_coin": ("condition-1", "condition-4"),
    "essential/pipeline_with_nested_conditions_yaml": ("condition-1", "condition-4"),
    "critical/parameter_oneof": ("condition-2", "condition-3"),
}
FAILING = {
    "failing/fail_v2": [{}, states("fail", "FAILED")],
    "failing/pipeline_with_exit_handler": [{}, states("exit-handler-1", "FAILED"), states("print-op", "COMPLETE")],
    "failing/pipeline_with_multiple_exit_handlers": [
        {}, states("exit-handler-1", "FAILED"), states("exit-handler-2", "COMPLETE"), states("exit-handler-3", "COMPLETE"),
        *[states(f"print-op{n}", "COMPLETE") for n in ("", "-3", "-5")]],
}
# Their inputs name the run or its workspace, so that nothing earlier can be the same.
ALWAYS_NEW = {"critical/pipeline_with_placeholders", "critical/pipeline_with_input_status_state", "critical/pipeline_with_workspace",
              "critical/pipeline_with_importer_workspace"}


def run(platform, name, arguments, caching):
    client = platform.client()
    made = client.create_run_from_pipeline_package(str(FOLDER / f"{name}.yaml"), arguments=arguments, enable_caching=caching,
                                                   run_name=f"{Path(name).name}-{time.time_ns()}")
    return wait(client, made.run_id, 300)


def check(done, home, checks):
    seen = Run(home, done.run_id)
    for one in checks:
        got, wanted = one(seen)
        assert got == wanted, [(e.task, e.state, e.outputs, e.properties.get("error_message")) for e in seen.executions]
    return seen


@pytest.mark.parametrize("name", CASES)
def test_stated_outputs(platform, name):
    arguments, *checks = CASES[name]
    done = run(platform, name, arguments, True)
    assert done.state == "SUCCEEDED", done.run_details
    first = check(done, platform.home, checks)
    assert all(e.state in ("COMPLETE", "CACHED", "CANCELED") or not e.properties.get("parent_dag_id") for e in first.executions), [
        (e.task, e.state) for e in first.executions]
    if name in ALWAYS_NEW:
        return
    done = run(platform, name, arguments, True)
    assert done.state == "SUCCEEDED", done.run_details
    # Logs and outputs are those of the first run.
    second = check(done, platform.home, [c for c in checks if "COMPLETE" not in repr(c(first)[1])])
    # Some pipelines switch the cache off for tasks of their own.
    off = "not reused: caching is off for this task"
    containers = [e for e in second.tasks() if e.kind == "system.ContainerExecution" and e.properties.get("cache_decision") != off]
    assert all(e.state in ("CACHED", "CANCELED") for e in containers), [(e.task, e.state) for e in containers]
    made, reused = ({what for e in executions for what in e.artifacts.values()} for executions in (first.tasks(), containers))
    # Equal tasks of the first run may all come from one of them.
    assert reused and reused <= made, (made, reused)


@pytest.mark.parametrize("name", BRANCHES)
def test_one_branch_runs(platform, name):
    done = run(platform, name, {}, False)
    assert done.state == "SUCCEEDED", done.run_details
    seen = Run(platform.home, done.run_id)
    one, other = BRANCHES[name]
    assert sorted(seen.states(one) + seen.states(other)) == ["CANCELED", "COMPLETE"]


@pytest.mark.parametrize("name", FAILING)
def test_failures_are_told(platform, name):
    arguments, *checks = FAILING[name]
    done = run(platform, name, arguments, False)
    assert done.state == "FAILED"
    check(done, platform.home, checks)


def test_a_task_whose_upstream_failed_may_run(platform):
    name = "local_execution/local_execution_pipeline_with_ignore_upstream_failure"
    done = run(platform, name, {"marker_path": "/tmp/marker"}, False)
    assert done.state == "FAILED"
    check(done, platform.home, [states("fail-always", "FAILED"), states("write-marker", "COMPLETE")])


def test_the_second_attempt_succeeds(platform):
    name = "local_execution/local_execution_pipeline_with_retry"
    done = run(platform, name, {"counter_path": "/tmp/counter"}, False)
    assert done.state == "SUCCEEDED", done.run_details
    check(done, platform.home, [out("flaky", "attempt=2")])
