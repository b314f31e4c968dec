"""SIGKILL at any moment: what was complete stays, and nothing that was complete runs again."""
import json
import random
import time
import urllib.request

import pipelines as p
import yaml
from conftest import FINAL, wait

TASKS = 8
KILLS = 6


def ledger(folder):
    """Three chains that meet; each task leaves a file of its own whenever it runs."""
    def body():
        tasks = []
        for number in range(TASKS):
            # In front of the task's end, so that a task that counts as complete has left its file.
            task = p.shell(script=f"sleep 0.2; mktemp {folder}/{number}.XXXXXX")
            task.set_display_name(f"number {number}")
            if number >= 3:
                task.after(tasks[number - 3])
            tasks.append(task)
        p.shell(script="true").after(*tasks[-3:])
    return body


def entries(folder):
    names = [path.name.split(".")[0] for path in folder.iterdir()]
    return {number: names.count(number) for number in set(names)}


def complete(server):
    """Numbers of the tasks whose pods the engine counts as succeeded."""
    base = yaml.safe_load(server.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    with urllib.request.urlopen(f"{base}/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows") as answer:
        [workflow] = json.load(answer)["items"]
    nodes = workflow.get("status", {}).get("nodes", {}).values()
    tasks = {"shell" if number == 0 else f"shell-{number + 1}": str(number) for number in range(TASKS)}
    done = [n["name"] for n in nodes if n["phase"] == "Succeeded" and n["displayName"] == "executor"]
    return {tasks[name.split(".")[-2]] for name in done if name.split(".")[-2] in tasks}


def test_kills_lose_and_repeat_nothing_that_was_complete(make_server, tmp_path):
    dice = random.Random(5)
    # Each start takes new ports, although the Workflow says where the servers were when it was compiled.
    server = make_server("--log-level=warn").start()
    folder = server.home / "objects" / "ledger"
    folder.mkdir(parents=True)
    package = p.write(tmp_path / "ledger.yaml", "ledger", ledger(folder))
    run_id = server.client().create_run_from_pipeline_package(package, enable_caching=False).run_id
    seen = []
    for _ in range(KILLS):
        # Any moment will do: the point of the test is that none matters.
        time.sleep(dice.uniform(0, 1.2))
        seen.append((complete(server), entries(folder)))
        server.kill()
        client = server.start().client()
        if client.get_run(run_id).state in FINAL - {"SUCCEEDED"}:
            retry(server, run_id)
    deadline = time.monotonic() + 120
    while wait(client, run_id).state != "SUCCEEDED":
        assert time.monotonic() < deadline
        retry(server, run_id)
    end = entries(folder)
    assert set(end) == {str(number) for number in range(TASKS)}
    for done, before in seen:
        assert all(end[number] == before[number] for number in done), (done, before, end)
    assert complete(server) == set(end)
    assert server.stop() == 0


def retry(server, run_id):
    urllib.request.urlopen(urllib.request.Request(f"{server.host}/apis/v2beta1/runs/{run_id}:retry", data=b"{}", method="POST")).close()
