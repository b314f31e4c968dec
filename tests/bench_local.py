#!/usr/bin/env python3
"""Overhead per task and peak memory of kfp-local, with kfp.local's SubprocessRunner beside it.

BIN names the folder of the programs. Prints one table; judges nothing.
"""
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "e2e"))
from conftest import Server, wait  # noqa: E402
from kfp import compiler, dsl, local  # noqa: E402


@dsl.container_component
def nothing():
    return dsl.ContainerSpec(image="alpine", command=["true"])


def chain(length):
    @dsl.pipeline(name=f"chain-{length}")
    def body():
        last = None
        for _ in range(length):
            task = nothing().set_caching_options(False)
            if last:
                task.after(last)
            last = task
    return body


def fan(width):
    @dsl.pipeline(name=f"fan-{width}")
    def body():
        with dsl.ParallelFor(list(range(width))):
            nothing().set_caching_options(False)
    return body


def peak(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    return 0


def timed(client, pipeline, rounds):
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "p.yaml")
        compiler.Compiler().compile(pipeline, file)
        times = []
        for _ in range(rounds):
            began = time.monotonic()
            run = client.create_run_from_pipeline_package(file, enable_caching=False).run_id
            state = wait(client, run, 900).state
            assert state == "SUCCEEDED", state
            times.append(time.monotonic() - began)
        return statistics.median(times)


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


def main():
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder), "--log-level=error").start()
        client = server.client()
        timed(client, chain(2), 1)
        idle = peak(server.process.pid)
        rows.append(("30-task chain of `true`", timed(client, chain(30), 3) / 30 * 1000, peak(server.process.pid)))
        rows.append(("200-way ParallelFor of `true`", timed(client, fan(200), 1) / 200 * 1000, peak(server.process.pid)))
        server.stop()
    if os.environ.get("KFP_LOCAL_COMPARE", "1") == "1":
        devnull = os.open(os.devnull, os.O_WRONLY)
        saved = os.dup(1), os.dup(2)
        os.dup2(devnull, 1), os.dup2(devnull, 2)
        try:
            seconds = subprocess_runner()
        finally:
            os.dup2(saved[0], 1), os.dup2(saved[1], 2)
        rows.append(("kfp.local SubprocessRunner(use_venv=False), 3-task chain", seconds * 1000, None))
    print(f"{'case':58} {'ms per task':>12} {'peak MiB':>9}")
    for name, ms, mib in rows:
        print(f"{name:58} {ms:12.1f} {'' if mib is None else f'{mib:9.0f}'}")
    print(f"{'after warm-up':58} {'':12} {idle:9.0f}")


if __name__ == "__main__":
    main()
