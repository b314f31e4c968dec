#!/usr/bin/env python3
"""Overhead per task and peak memory of kfp-local, with kfp.local's SubprocessRunner beside it.

    bench_local.py [wide] [runs] [python] [memory]

BIN names the folder of the programs. Prints one table; judges nothing. Without words: a chain and a loop. The words add
or, with KFP_LOCAL_BENCH=only, choose: a loop of 1,000 with 32 at a time; 10 runs of 20 tasks at once; the time from the
start of a pod to the first line of a Python component; memory after thousands of finished tasks.
"""
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "e2e"))
from conftest import FINAL, Server  # noqa: E402
from kfp import compiler, dsl, local  # noqa: E402


@dsl.container_component
def nothing():
    return dsl.ContainerSpec(image="alpine", command=["true"])


@dsl.container_component
def interpreter():
    return dsl.ContainerSpec(image="python:3.11", command=["python3", "-c", "pass"])


@dsl.pipeline(name="warm-up")
def warm_up():
    # A new data directory makes its Python environment in the background; what is timed comes after it.
    nothing().after(interpreter())


def chain(length, step=nothing):
    @dsl.pipeline(name=f"chain-{length}")
    def body():
        last = None
        for _ in range(length):
            task = step().set_caching_options(False)
            if last:
                task.after(last)
            last = task
    return body


def fan(width, parallelism=None):
    @dsl.pipeline(name=f"fan-{width}")
    def body():
        with dsl.ParallelFor(list(range(width)), parallelism=parallelism):
            nothing().set_caching_options(False)
    return body


def memory(pid, name="VmHWM"):
    """A figure of a process in MiB: its peak, or what it has now (VmRSS)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1024
    return 0


def states(client, runs):
    """The states of these runs once all have ended.

    Asked of a list of those that have ended: a run that goes on would come with the details of all its tasks, and to ask
    for them many times a second would be most of what is measured.
    """
    ended = json.dumps({"predicates": [
        {"operation": "IN", "key": "id", "string_values": {"values": runs}},
        {"operation": "IN", "key": "state", "string_values": {"values": sorted(FINAL)}},
    ]})
    deadline = time.monotonic() + 1800
    while time.monotonic() < deadline:
        found = client.list_runs(page_size=len(runs), filter=ended).runs or []
        if len(found) == len(runs):
            return [run.state for run in found]
        time.sleep(0.05)
    raise TimeoutError("the runs do not end")


def timed(client, pipeline, rounds, at_once=1):
    """Seconds until all of the runs that start together have ended, the median of some rounds."""
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "p.yaml")
        compiler.Compiler().compile(pipeline, file)
        times = []
        for _ in range(rounds):
            began = time.monotonic()
            runs = [client.create_run_from_pipeline_package(file, enable_caching=False).run_id for _ in range(at_once)]
            assert set(states(client, runs)) == {"SUCCEEDED"}
            times.append(time.monotonic() - began)
        return statistics.median(times)


@dsl.component
def says_when():
    import time
    print("user code at", time.time_ns())


def to_user_code(server, client, tasks=10):
    """Milliseconds from the start of a pod's first container to the user's code, the median of a chain's tasks."""
    timed(client, chain(tasks, says_when), 2)
    found = []
    for owner in (server.home / "logs").rglob(".workflow"):
        text = (owner.parent / "main.log").read_text() if (owner.parent / "main.log").exists() else ""
        for line in text.splitlines():
            if "user code at " in line:
                found.append((owner.stat().st_mtime_ns, int(line.split()[-1])))
    # The environment is made by the first tasks.
    warm = sorted(found)[-tasks:]
    return statistics.median((said - began) / 1e6 for began, said in warm)


@dsl.component
def python_nothing():
    pass


def subprocess_runner(tasks=3):
    @dsl.pipeline(name="local-chain")
    def body():
        last = None
        for _ in range(tasks):
            task = python_nothing()
            if last:
                task.after(last)
            last = task
    with tempfile.TemporaryDirectory() as folder:
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=folder)
        began = time.monotonic()
        body()
        return (time.monotonic() - began) / tasks


def flat(server, client, rows, rounds=10, width=200):
    """Memory in use after every thousandth finished task, and after the first round."""
    for number in range(1, rounds + 1):
        ms = timed(client, fan(width), 1) / width * 1000
        if number == 1 or number * width % 1000 == 0:
            name = f"in use after {number * width} more tasks"
            rows.append((name, ms, memory(server.process.pid, "VmRSS")))


def beside(rows):
    devnull = os.open(os.devnull, os.O_WRONLY)
    saved = os.dup(1), os.dup(2)
    os.dup2(devnull, 1), os.dup2(devnull, 2)
    try:
        seconds = subprocess_runner()
    finally:
        os.dup2(saved[0], 1), os.dup2(saved[1], 2)
    rows.append(("kfp.local SubprocessRunner(use_venv=False), 3-task chain", seconds * 1000, None))


def main():
    words, rows = sys.argv[1:], []
    usual = os.environ.get("KFP_LOCAL_BENCH") != "only"
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), "--log-level=error").start()
        client, pid = server.client(), server.process.pid
        timed(client, warm_up, 1)
        idle = memory(pid)
        if usual:
            rows.append(("30-task chain of `true`", timed(client, chain(30), 3) / 30 * 1000, memory(pid)))
            rows.append(("200-way ParallelFor of `true`", timed(client, fan(200), 1) / 200 * 1000, memory(pid)))
        if "wide" in words:
            rows.append(("1000-way ParallelFor, 32 at a time", timed(client, fan(1000, 32), 1) / 1000 * 1000, memory(pid)))
        if "runs" in words:
            rows.append(("10 runs of 20 tasks at once", timed(client, chain(20), 1, at_once=10) / 200 * 1000, memory(pid)))
        if "python" in words:
            rows.append(("from a Python task's start to its code", to_user_code(server, client), memory(pid)))
        if "memory" in words:
            flat(server, client, rows)
        server.stop()
    if usual and os.environ.get("KFP_LOCAL_COMPARE", "1") == "1":
        beside(rows)
    print(f"{'case':58} {'ms per task':>12} {'peak MiB':>9}")
    for name, ms, mib in rows:
        print(f"{name:58} {ms:12.1f} {'' if mib is None else f'{mib:9.0f}'}")
    print(f"{'after warm-up':58} {'':12} {idle:9.0f}")


if __name__ == "__main__":
    main()
