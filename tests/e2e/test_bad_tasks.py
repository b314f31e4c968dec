"""What users' programs do wrong: each ends with a message that says so, and the platform goes on."""
import json
import os
import time

import pipelines as p
import pytest
from conftest import Server, task_states, wait
from kfp import dsl


@pytest.fixture(scope="module")
def platform(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("kfp-bad")).start()
    yield server
    assert server.stop() == 0


def run(server, tmp_path, body, timeout=120):
    client = server.client()
    name = body.__name__.replace("_", "-")
    package = p.write(tmp_path / f"{name}.yaml", name, body)
    return wait(client, client.create_run_from_pipeline_package(package, enable_caching=False).run_id, timeout)


def story(done):
    return json.dumps([t.to_dict() for t in done.run_details.task_details or []], default=str)


def log(server, done, task="shell"):
    """The log artifact of a task, as it is in the store (not the whole home: pods are removed there meanwhile)."""
    found = sorted((server.home / "objects").rglob(f"{done.run_id}/{task}/*/executor-logs-0"))
    assert found, "no log"
    return found[-1]


@dsl.container_component
def with_outputs(script: str, text: dsl.OutputPath(str), number: dsl.OutputPath(int), data: dsl.Output[dsl.Dataset]):
    return dsl.ContainerSpec(image="alpine", command=["sh", "-ec"], args=[script, text, number, data.path])


@dsl.container_component
def needs(data: dsl.Input[dsl.Dataset]):
    return dsl.ContainerSpec(image="alpine", command=["sh", "-ec", 'cat "$0"'], args=[data.path])


GOOD = 'mkdir -p "$(dirname "$0")"; printf x >"$0"; printf 1 >"$1"; printf d >"$2"'


def outputs(script):
    def with_broken_outputs():
        with_outputs(script=script)
    return with_broken_outputs


@pytest.mark.parametrize("script,words", [
    ('printf x >"$0"; printf d >"$2"', ['name=\\"number\\"', "neither returned it nor wrote the file"]),
    ('printf x >"$0"; printf d >"$2"; printf 1.5 >"$1"', ['name=\\"number\\"', "NUMBER_INTEGER", "is not an integer"]),
    ('printf "\\377" >"$0"; printf d >"$2"; printf 1 >"$1"', ['name=\\"text\\"', "not UTF-8"]),
    ('rm -rf "$0"; mkdir -p "$0"; printf 1 >"$1"; printf d >"$2"', ['name=\\"text\\"']),
    ('head -c 100M /dev/zero | tr "\\0" x >"$0"; printf d >"$2"; printf 1 >"$1"',
     ['output parameter \\"text\\" has 104857600 bytes', "large values belong into an output artifact"]),
])
def test_outputs_that_are_missing_wrong_or_huge(platform, tmp_path, script, words):
    done = run(platform, tmp_path, outputs(script))
    text = story(done)
    assert done.state == "FAILED" and all(word in text for word in words), text


def test_the_message_of_a_failed_task_ends_with_its_exception(platform, tmp_path):
    def raises():
        # What is printed to a pipe comes after the traceback.
        p.shell(script="""python3 -c 'print("loaded"); raise ValueError("bad input")'""")

    done = run(platform, tmp_path, raises)
    executor = next(t for t in done.run_details.task_details if t.display_name == "executor")
    assert executor.error.message.endswith("failed: exit status 1: ValueError: bad input"), story(done)


def test_an_artifact_that_was_never_written_is_missed_by_its_reader(platform, tmp_path):
    def reads_nothing():
        made = with_outputs(script='printf x >"$0"; printf 1 >"$1"')
        needs(data=made.outputs["data"])

    done = run(platform, tmp_path, reads_nothing)
    assert done.state == "FAILED" and task_states(done)["with-outputs"] == "SUCCEEDED", story(done)
    text = log(platform, done, "needs").read_text()
    assert "No such file" in text, text


def test_an_artifact_that_vanished(platform, tmp_path):
    def vanishes():
        made = with_outputs(script=GOOD)
        gone = p.shell(script=f"rm -f {platform.home}/objects/*/v2/artifacts/vanishes/*/with-outputs/*/data").after(made)
        needs(data=made.outputs["data"]).after(gone)

    done = run(platform, tmp_path, vanishes)
    assert done.state == "FAILED", story(done)
    assert "No such file" in log(platform, done, "needs").read_text()


def test_a_program_that_leaves_children_behind(platform, tmp_path):
    def forks():
        p.shell(script="sleep 3600 & echo parent is done")

    begun = time.monotonic()
    done = run(platform, tmp_path, forks)
    assert done.state == "SUCCEEDED", story(done)
    assert time.monotonic() - begun < 60
    assert log(platform, done).read_text().startswith("parent is done\n")


def test_a_program_that_prints_a_gigabyte(platform, tmp_path):
    def prints():
        p.shell(script="echo first line; head -c 1G /dev/zero | tr '\\0' y; echo; echo last line")

    done = run(platform, tmp_path, prints, timeout=400)
    assert done.state == "SUCCEEDED", story(done)
    file = log(platform, done)
    size = file.stat().st_size
    assert 128 << 20 <= size <= 200 << 20, size
    with file.open("rb") as kept:
        assert kept.read(12) == b"first line\ny"
        kept.seek(-11, os.SEEK_END)
        assert kept.read() == b"\nlast line\n"
    assert run(platform, tmp_path, hello).state == "SUCCEEDED"


def hello():
    p.shell(script="echo hello")


def test_a_program_that_ignores_sigterm_is_killed(platform, tmp_path):
    def stubborn():
        p.shell(script="trap '' TERM; echo is running; while :; do sleep 1; done")

    def running():
        logs = (platform.home / "logs").rglob("main.log")
        return any("is running" in path.read_text(errors="replace") for path in logs if "stubborn" in str(path))

    client = platform.client()
    package = p.write(tmp_path / "stubborn.yaml", "stubborn", stubborn)
    run_id = client.create_run_from_pipeline_package(package, enable_caching=False).run_id
    deadline = time.monotonic() + 60
    while not running():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    client.terminate_run(run_id)
    done = wait(client, run_id, 120)
    assert done.state in ("CANCELED", "FAILED"), story(done)
    assert run(platform, tmp_path, hello).state == "SUCCEEDED"


def test_a_parameter_that_fits_no_command_line(platform, tmp_path):
    def too_long():
        made = p.produce(text="x")
        made = with_outputs(script='head -c 3M /dev/zero | tr "\\0" x >"$0"; printf d >"$2"; printf 1 >"$1"').after(made)
        p.check(text=made.outputs["text"], want="x")

    done = run(platform, tmp_path, too_long)
    text = story(done)
    assert done.state == "FAILED" and "too long" in text and "artifact" in text, text
