"""Bad input gets a precise answer and leaves the server serving."""
import json
import urllib.error
import urllib.request

import pipelines as p
import pytest
from conftest import task_states, wait


def call(server, path, body=None, method=None, kind="application/json"):
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    request = urllib.request.Request(server.host + path, data=data, method=method, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else {"message": text}


def upload(server, text, name="bad.yaml"):
    body = (f'--b\r\nContent-Disposition: form-data; name="uploadfile"; filename="{name}"\r\n\r\n').encode() + text + b"\r\n--b--\r\n"
    return call(server, "/apis/v2beta1/pipelines/upload?name=" + name.replace(".", "-"), body, "POST", "multipart/form-data; boundary=b")


NO_NAME = b"schemaVersion: 2.1.0\ndeploymentSpec: {executors: {}}\ncomponents: {}\nroot: {dag: {tasks: {}}}\n"


@pytest.mark.parametrize("text", [b"a: [unclosed", b"\xff\xfe\x00", b"", b"just words", NO_NAME, b"{}"])
def test_broken_pipeline_is_refused(server, text):
    status, answer = upload(server, text)
    assert status == 400, answer
    assert call(server, "/apis/v2beta1/healthz")[0] == 200


def run_body(spec, parameters=None):
    import yaml
    return {"display_name": "r", "pipeline_spec": yaml.safe_load(spec), "runtime_config": {"parameters": parameters or {}}}


def needs_number():
    def body(n: int, s: str = "x"):
        p.check(text=s, want="x")
    return p.pipeline("needs-number", body)


@pytest.mark.parametrize("parameters,words", [
    ({}, ["n"]),
    ({"n": 1, "zzz": 2}, ["zzz"]),
    ({"n": "text"}, ["n"]),
])
def test_wrong_parameters_are_named(server, parameters, words):
    status, answer = call(server, "/apis/v2beta1/runs", run_body(needs_number(), parameters))
    assert status == 400 and answer["code"] == 3, answer
    assert all(word in answer["message"] for word in words), answer


def test_missing_things_are_not_found(server):
    for path in ("/apis/v2beta1/runs/no-such-run", "/apis/v2beta1/pipelines/00000000-0000-0000-0000-000000000000",
                 "/apis/v2beta1/experiments/none"):
        status, answer = call(server, path)
        assert status == 404 and answer["code"] == 5, (path, answer)


def test_what_is_not_there_answers_by_name(server):
    assert call(server, "/apis/v2beta1/nothing") == (404, {"code": 5, "message": "Not Found"})
    status, answer = call(server, "/apis/v2beta1/runs", {"displayname": "typo"})
    assert status == 400 and 'unknown field "displayname"' in answer["message"]


@pytest.mark.parametrize("body,words", [
    (p.no_command, ["/no/such/program"]),
    (p.no_output, ["out"]),
])
def test_failing_task_has_a_message(server, client, tmp_path, body, words):
    run = client.create_run_from_pipeline_package(p.write(tmp_path / "x.yaml", "bad-task", lambda: body() and None), enable_caching=False)
    done = wait(client, run.run_id)
    assert done.state == "FAILED"
    text = json.dumps([t.to_dict() for t in done.run_details.task_details], default=str)
    assert all(word in text for word in words), text


def test_killed_task_process_fails_its_task_only(server, client, tmp_path):
    def body():
        p.shell(script="kill -KILL $$")

    done = wait(client, client.create_run_from_pipeline_package(p.write(tmp_path / "k.yaml", "killed", body), enable_caching=False).run_id)
    assert done.state == "FAILED" and task_states(done)["shell"] == "FAILED"
    assert call(server, "/apis/v2beta1/healthz")[0] == 200
