"""A private kfp-local for the tests, and what they share."""
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

BIN = Path(os.environ.get("BIN", Path(__file__).parents[2] / "target" / "release"))
PIPELINES = Path(__file__).parents[1] / "pipelines"
FINAL = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}


class Server:
    """kfp-local on free ports with a data directory of its own."""

    def __init__(self, data: Path, *flags: str, env=None):
        self.data, self.flags, self.process = data, flags, None
        self.env = env
        self.home = data / "home"

    def start(self, *more: str):
        data = self.data
        data.mkdir(parents=True, exist_ok=True)
        self.ready = data / "ready"
        self.ready.unlink(missing_ok=True)
        self.log = open(data / "server.log", "ab")
        self.process = subprocess.Popen(
            [BIN / "kfp-local", "up", "--data-dir", self.home, "--rest-port=0", "--grpc-port=0", "--metadata-port=0",
             "--kubernetes-port=0", "--ready-file", self.ready, *self.flags, *more],
            stdout=self.log, stderr=self.log, env={**os.environ, **(self.env or {})})
        deadline = time.monotonic() + 60
        while not (self.ready.exists() and self.ready.read_text().strip()):
            assert self.process.poll() is None, (data / "server.log").read_text()[-4000:]
            assert time.monotonic() < deadline, "not ready: " + (data / "server.log").read_text()[-4000:]
            time.sleep(0.02)
        self.host = self.ready.read_text().strip()
        return self

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self, timeout=30):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(timeout)
        self.log.close()
        return self.process.returncode

    def client(self):
        from kfp.client import Client
        return Client(host=self.host)

    @property
    def kubeconfig(self):
        return self.home / "kubeconfig"


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("kfp")).start()
    yield server
    assert server.stop() == 0, "SIGTERM must end the server with exit code 0"


@pytest.fixture
def make_server(tmp_path):
    """Servers of one test; those that it leaves running are killed, so that a failed test leaves nothing behind."""
    made = []

    def make(*flags, **more):
        made.append(Server(tmp_path / f"server-{len(made)}", *flags, **more))
        return made[-1]

    yield make
    for server in made:
        if server.process and server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="session")
def client(server):
    return server.client()


def wait(client, run_id, timeout=120):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        run = client.get_run(run_id)
        if run.state in FINAL:
            return run
        time.sleep(0.1)
    raise TimeoutError(f"run {run_id} is {run.state} after {timeout} s")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def task_states(run):
    details = run.run_details and run.run_details.task_details
    return {t.display_name: t.state for t in details or [] if t.display_name}
