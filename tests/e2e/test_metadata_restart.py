"""A metadata store that is killed and comes back while a task runs: driver and launcher as programs of their own."""
import json
import os
import signal
import subprocess
import time

import pytest
from conftest import BIN, free_port
from metadata import Run

RUN = "11111111-2222-3333-4444-555555555555"
COMPONENT = {"executorLabel": "exec", "outputDefinitions": {"parameters": {"out": {"parameterType": "STRING"}}}}
SCRIPT = 'touch "$1"; while ! test -e "$2"; do sleep 0.05; done; printf done >{{$.outputs.parameters[\'out\'].output_file}}'


class Store:
    """kfp-metadata on a port and a database that stay."""

    def __init__(self, home):
        self.port, self.database = free_port(), home / "metadata.db"
        self.log = open(home / "metadata.log", "ab")

    def start(self):
        self.process = subprocess.Popen([BIN / "kfp-metadata", "--host=127.0.0.1", f"--grpc_port={self.port}", "--sqlite_path", self.database],
                                        stdout=self.log, stderr=self.log)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    store.start()
    yield store
    store.kill()
    store.log.close()


def test_the_run_survives(server, store, tmp_path):
    env = {**os.environ, "KUBECONFIG": str(server.kubeconfig), "POD_NAMESPACE": "kubeflow",
           "KFP_POD_ROOT": str(tmp_path / "pod"), "KFP_OBJECT_STORE_DIR": str(tmp_path / "objects")}
    common = ["--pipeline_name=p", f"--run_id={RUN}", "--mlmd_server_address=127.0.0.1", f"--mlmd_server_port={store.port}",
              "--cache_disabled=true"]

    def drive(*flags):
        outputs = [f"--{name}_path={tmp_path}/{name}" for name in ("execution_id", "iteration_count", "condition", "cached_decision", "pod_spec_patch")]
        done = subprocess.run([BIN / "driver", "--run_name=w", *common, *flags, *outputs], env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr

    drive("--type=ROOT_DAG", f"--component={json.dumps({'dag': {'tasks': {'t': {}}}})}", "--runtime_config={}")
    root = (tmp_path / "execution_id").read_text()
    container = {"image": "i", "command": ["sh", "-ec", SCRIPT, "sh", str(tmp_path / "begun"), str(tmp_path / "go")]}
    drive("--type=CONTAINER", f"--component={json.dumps(COMPONENT)}", '--task={"taskInfo":{"name":"t"}}', "--task_name=t",
          f"--dag_execution_id={root}", f"--container={json.dumps(container)}")
    main = json.loads((tmp_path / "pod_spec_patch").read_text())["containers"][0]
    line = [*main["command"][1:], *main["args"]]
    launcher = subprocess.Popen([BIN / "launcher-v2", *line], env={**env, "KFP_POD_NAME": "pod", "KFP_POD_UID": "uid"},
                                stdout=open(tmp_path / "launcher.log", "ab"), stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline and launcher.poll() is None, (tmp_path / "launcher.log").read_text()
        time.sleep(0.05)
    store.kill()
    (tmp_path / "go").touch()
    # The launcher finds nobody before the store is back.
    while "trying again" not in (tmp_path / "launcher.log").read_text():
        assert time.monotonic() < deadline and launcher.poll() is None, (tmp_path / "launcher.log").read_text()
        time.sleep(0.05)
    store.start()
    assert launcher.wait(120) == 0, (tmp_path / "launcher.log").read_text()
    [task] = Run(tmp_path, RUN).tasks("t")
    assert (task.state, task.outputs) == ("COMPLETE", {"out": "done"})
