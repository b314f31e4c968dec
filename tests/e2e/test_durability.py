"""Stop, kill and start again; two servers on one directory; busy ports; kubectl."""
import fcntl
import shutil
import subprocess
import time

import pipelines as p
import pytest
from conftest import BIN, task_states, wait


def sleeper(seconds):
    def body():
        p.shell(script=f"sleep {seconds}")
    return body


def test_everything_is_there_after_a_restart(make_server, tmp_path):
    server = make_server().start()
    client = server.client()
    package = p.write(tmp_path / "ok.yaml", "ok", sleeper(0))
    pipeline = client.upload_pipeline(package, pipeline_name="kept")
    done = wait(client, client.create_run_from_pipeline_package(package).run_id)
    assert done.state == "SUCCEEDED"
    assert server.stop() == 0
    client = server.start().client()
    assert client.get_pipeline(pipeline.pipeline_id).display_name == "kept"
    again = client.get_run(done.run_id)
    assert (again.state, task_states(again)) == (done.state, task_states(done))
    assert wait(client, client.create_run_from_pipeline_package(package).run_id).state == "SUCCEEDED"
    server.stop()


def test_run_in_flight_survives_sigkill_or_fails_with_a_message(make_server, tmp_path):
    server = make_server().start()
    client = server.client()
    run = client.create_run_from_pipeline_package(p.write(tmp_path / "z.yaml", "zzz", sleeper(3)), enable_caching=False).run_id
    deadline = time.monotonic() + 30
    while task_states(client.get_run(run)).get("shell") != "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.kill()
    client = server.start().client()
    done = wait(client, run, 60)
    assert done.state in ("SUCCEEDED", "FAILED")
    if done.state == "FAILED":
        assert "restart" in str([t.to_dict() for t in done.run_details.task_details])
    server.stop()


def test_a_stop_does_not_wait_for_an_environment_that_somebody_else_builds(make_server):
    server = make_server().start()
    envs = server.home / "python" / "envs"
    deadline = time.monotonic() + 30
    while not list(envs.glob("*.lock")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.stop() == 0
    for built in envs.iterdir():
        if built.is_dir():
            shutil.rmtree(built)
    with open(next(envs.glob("*.lock"))) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        server.start()
        assert server.stop() == 0


def test_second_process_on_the_directory_is_refused(server):
    other = subprocess.run([BIN / "kfp-local", "up", "--data-dir", server.data / "home", "--rest-port=0", "--grpc-port=0",
                            "--metadata-port=0", "--kubernetes-port=0"], capture_output=True, text=True, timeout=30)
    assert other.returncode == 1
    assert str(server.data / "home") in other.stderr and "another" in other.stderr, other.stderr


def test_busy_port_is_named_with_its_remedy(server, tmp_path):
    port = server.host.rsplit(":", 1)[1]
    other = subprocess.run([BIN / "kfp-local", "up", "--data-dir", tmp_path / "d", f"--rest-port={port}", "--grpc-port=0",
                            "--metadata-port=0", "--kubernetes-port=0"], capture_output=True, text=True, timeout=30)
    assert other.returncode == 1
    assert port in other.stderr and "--rest-port" in other.stderr, other.stderr


def test_unwritable_directory_is_named(tmp_path):
    (tmp_path / "file").write_text("x")
    other = subprocess.run([BIN / "kfp-local", "up", "--data-dir", tmp_path / "file" / "d", "--rest-port=0", "--grpc-port=0",
                            "--metadata-port=0", "--kubernetes-port=0"], capture_output=True, text=True, timeout=30)
    assert other.returncode == 1 and str(tmp_path / "file") in other.stderr, other.stderr


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kubectl_reads_workflows_pods_and_logs(server, client, tmp_path):
    def says():
        p.shell(script="echo hello from the task")

    run = client.create_run_from_pipeline_package(p.write(tmp_path / "l.yaml", "says", says), enable_caching=False).run_id
    assert wait(client, run).state == "SUCCEEDED"

    def kubectl(*words):
        done = subprocess.run(["kubectl", "--kubeconfig", server.kubeconfig, "-n", "kubeflow", *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    name = kubectl("get", "workflows", "-l", f"pipeline/runid={run}", "-o", "jsonpath={.items[0].metadata.name}")
    assert "phase: Succeeded" in kubectl("get", "workflow", name, "-o", "yaml")
    pods = kubectl("get", "pods", "-l", f"workflows.argoproj.io/workflow={name}", "-o", "jsonpath={.items[*].metadata.name}").split()
    assert pods and name in kubectl("get", "workflows,pods")
    assert any("hello from the task" in kubectl("logs", pod, "-c", "main") for pod in pods)


def small_disk(folder, megabytes):
    """A file system of its own; only root can make one."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small file system: " + mounted.stderr.decode().strip())


def test_full_disk_fails_the_task_and_the_server_goes_on(make_server, tmp_path):
    folder = tmp_path / "small"
    small_disk(folder, 200)
    try:
        server = make_server("--log-level=warn")
        server.home = folder / "home"
        client = server.start().client()

        def fills():
            p.shell(script="head -c 400000000 /dev/zero >/tmp/big")

        run = client.create_run_from_pipeline_package(p.write(tmp_path / "f.yaml", "fills", fills), enable_caching=False)
        done = wait(client, run.run_id, 90)
        assert done.state == "FAILED"
        executor = next(t for t in done.run_details.task_details if t.display_name == "executor")
        assert executor.state == "FAILED" and "no space is left" in executor.error.message.lower()
        ok = p.write(tmp_path / "ok.yaml", "ok", sleeper(0))
        assert wait(client, client.create_run_from_pipeline_package(ok, enable_caching=False).run_id, 60).state == "SUCCEEDED"
        server.stop()
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
