"""Pipelines whose artifacts are on an S3 server, opened with keys from a Secret."""
import json
import threading
import time

import pipelines as p
import pytest
import s3
from conftest import wait
from kfp import dsl


@dsl.container_component
def tree(count: int, out: dsl.Output[dsl.Dataset]):
    script = 'mkdir -p "$1/deep"; for i in $(seq "$0"); do echo "$i" >"$1/deep/file $i"; done'
    return dsl.ContainerSpec(image="alpine", command=["sh", "-ec", script], args=[count, out.path])


@dsl.container_component
def total(data: dsl.Input[dsl.Dataset], want: int):
    script = 'test "$(cat "$0"/deep/* | wc -l)" = "$1"'
    return dsl.ContainerSpec(image="alpine", command=["sh", "-ec", script], args=[data.path, want])


@dsl.container_component
def blob(mib: int, out: dsl.Output[dsl.Model]):
    script = 'head -c "${0}M" /dev/urandom >"$1"; sha256sum <"$1" >"$1.sum"; cat "$1.sum"; rm "$1.sum"'
    return dsl.ContainerSpec(image="alpine", command=["sh", "-ec", script], args=[mib, out.path])


@dsl.container_component
def digest(model: dsl.Input[dsl.Model], mib: int):
    script = 'test "$(wc -c <"$0")" = "$(($1 << 20))"; sha256sum <"$0"'
    return dsl.ContainerSpec(image="alpine", command=["sh", "-ec", script], args=[model.path, mib])


def artifacts():
    data = tree(count=25)
    total(data=data.outputs["out"], want=25)
    model = blob(mib=40)
    digest(model=model.outputs["out"], mib=40)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    pytest.importorskip("moto")
    store = s3.Store(tmp_path_factory.mktemp("s3") / "moto.log").start()
    store.account("artifacts", "elsewhere")
    yield store
    store.stop()


@pytest.fixture(scope="module")
def platform(store, tmp_path_factory):
    from conftest import Server
    server = Server(tmp_path_factory.mktemp("kfp-s3")).start()
    s3.secret(server, "store-keys", store.keys)
    s3.provider(server, store, "store-keys", root="s3://artifacts/runs")
    yield server
    assert server.stop() == 0


def run(server, tmp_path, body, timeout=120, **more):
    client = server.client()
    name = body.__name__.replace("_", "-")
    package = p.write(tmp_path / f"{name}.yaml", name, body)
    run = client.create_run_from_pipeline_package(package, enable_caching=False, **more)
    return wait(client, run.run_id, timeout)


def story(run):
    return json.dumps([t.to_dict() for t in run.run_details.task_details or []], default=str)


def test_files_directories_and_logs_live_on_the_store(platform, store, tmp_path):
    done = run(platform, tmp_path, artifacts)
    assert done.state == "SUCCEEDED", story(done)
    names = store.names("artifacts", f"runs/artifacts/{done.run_id}/")
    assert sum(name.endswith(tuple(f"/out/deep/file {i}" for i in range(1, 26))) for name in names) == 25, names
    model = [name for name in names if "/blob/" in name and name.endswith("/out")]
    assert len(model) == 1
    head = store.client().head_object(Bucket="artifacts", Key=model[0])
    assert head["ContentLength"] == 40 << 20 and "-" in head["ETag"], "sent in parts"
    logs = {name.split("/")[3]: name for name in names if name.endswith("/executor-logs-0")}
    assert set(logs) == {"tree", "total", "blob", "digest"}
    text = [store.client().get_object(Bucket="artifacts", Key=logs[task])["Body"].read() for task in ("blob", "digest")]
    assert text[0] == text[1] and len(text[0]) > 60
    assert not (platform.home / "objects" / "artifacts").exists()


def test_a_run_may_have_its_own_root(platform, store, tmp_path):
    done = run(platform, tmp_path, artifacts, pipeline_root="s3://elsewhere/a/b")
    assert done.state == "SUCCEEDED", story(done)
    assert len(store.names("elsewhere", f"a/b/artifacts/{done.run_id}/")) == 25 + 1 + 4


def test_cached_tasks_reuse_what_is_stored(platform, store, tmp_path):
    client = platform.client()
    package = p.write(tmp_path / "cached.yaml", "cached", artifacts)
    stored = []
    for _ in range(2):
        done = wait(client, client.create_run_from_pipeline_package(package, enable_caching=True).run_id)
        assert done.state == "SUCCEEDED", story(done)
        stored.append(len(store.names("artifacts", f"runs/cached/{done.run_id}/")))
    assert stored == [25 + 1 + 4, 0]


@pytest.fixture
def settings(platform, store):
    """Settings that a test breaks are whole again afterwards."""
    yield
    s3.secret(platform, "store-keys", store.keys)
    s3.provider(platform, store, "store-keys", root="s3://artifacts/runs")


def one_file():
    blob(mib=1)


def test_keys_that_the_store_refuses(platform, store, tmp_path, settings):
    s3.secret(platform, "wrong-keys", ("AKIAWRONG", "wrong"))
    s3.provider(platform, store, "wrong-keys", root="s3://artifacts/runs")
    done = run(platform, tmp_path, one_file)
    text = story(done)
    assert done.state == "FAILED" and "the store refuses the credentials (InvalidAccessKeyId" in text, text
    assert "s3://artifacts/runs/one-file/" in text, text


@pytest.mark.parametrize("name,data,words", [
    ("no-such-secret", None, "cannot read secret \\\"no-such-secret\\\""),
    ("half-a-secret", ("key", ""), "bucket credential secret has no value for: secret key"),
])
def test_secrets_that_are_missing_or_incomplete(platform, store, tmp_path, settings, name, data, words):
    if data:
        s3.secret(platform, name, data)
    s3.provider(platform, store, name, root="s3://artifacts/runs")
    done = run(platform, tmp_path, one_file)
    assert done.state == "FAILED" and words in story(done), story(done)


def test_a_bucket_that_does_not_exist(platform, tmp_path):
    done = run(platform, tmp_path, one_file, pipeline_root="s3://no-such-bucket/x")
    assert done.state == "FAILED" and "the bucket does not exist (NoSuchBucket" in story(done), story(done)


def test_a_store_that_is_down_for_a_while(platform, tmp_path, settings):
    """Its port answers nothing until the task has begun to wait; the run does not notice more than the time."""
    late = s3.Store(tmp_path / "late.log")
    s3.secret(platform, "late-keys", ("setup", "setup"))
    s3.provider(platform, late, "late-keys", root="s3://late/runs")

    def waits():
        logs = (platform.home / "logs").rglob("main.log")
        return any("the object store is away, trying again" in path.read_text(errors="replace") for path in logs)

    def comes_up():
        deadline = time.monotonic() + 60
        while not waits() and time.monotonic() < deadline:
            time.sleep(0.1)
        late.start()
        s3.boto(late.endpoint).create_bucket(Bucket="late", CreateBucketConfiguration={"LocationConstraint": s3.REGION})

    starter = threading.Thread(target=comes_up)
    starter.start()
    try:
        done = run(platform, tmp_path, artifacts, timeout=300)
        assert done.state == "SUCCEEDED", story(done)
    finally:
        starter.join()
        late.stop()
