#!/usr/bin/env python3
"""Compares kfp-metadata with the ml-metadata package (the reference implementation).

Usage: mlmd_oracle.py PATH-TO-kfp-metadata [mysql PORT | postgres PORT]

Needs `pip install ml-metadata`, Python 3.9 to 3.11. PORT is that of a database server on 127.0.0.1 whose user root has no
password; `cargo run -p kfp-testdb --example serve mariadb` starts one.

The same calls go to our server over gRPC and to the package's own library; answers and error classes must be equal.
Then the library opens the database that our server wrote, and our server one that the library wrote.
"""
import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time

from google.protobuf import field_mask_pb2, timestamp_pb2
from ml_metadata import ListOptions, OrderByField, errors
from ml_metadata.metadata_store import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlpb
from ml_metadata.proto import metadata_store_service_pb2 as service

passed, failed = 0, 0


def check(name, ours, reference):
    global passed, failed
    if ours == reference:
        passed += 1
    else:
        failed += 1
        print(f"FAIL {name}\n  ours:      {ours}\n  reference: {reference}")


class Sqlite:
    """Databases are files."""

    integer = -(2**62)

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()

    def path(self, name):
        return os.path.join(self.folder.name, name)

    def flags(self, name):
        return [f"--sqlite_path={self.path(name)}"]

    def library(self, name):
        config = mlpb.ConnectionConfig()
        config.sqlite.filename_uri = self.path(name)
        config.sqlite.connection_mode = mlpb.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
        return metadata_store.MetadataStore(config)


class Mysql:
    """Databases of a server. The library keeps properties that are integers in 32 bits."""

    integer = -(2**30)

    def __init__(self, port):
        self.port = int(port)

    def flags(self, name):
        return ["--mysql_config_host=127.0.0.1", f"--mysql_config_port={self.port}", "--mysql_config_user=root",
                f"--mysql_config_database=oracle_{name}_{os.getpid()}"]

    def library(self, name):
        config = mlpb.ConnectionConfig()
        config.mysql.host, config.mysql.port, config.mysql.user = "127.0.0.1", self.port, "root"
        config.mysql.database = f"oracle_{name}_{os.getpid()}"
        return metadata_store.MetadataStore(config)


class Postgres:
    """As Mysql."""

    integer = -(2**30)

    def __init__(self, port):
        self.port = port

    def flags(self, name):
        return ["--metadata_source_config_type=postgresql", "--postgres_config_host=127.0.0.1",
                f"--postgres_config_port={self.port}", "--postgres_config_user=root",
                f"--postgres_config_dbname=oracle_{name}_{os.getpid()}"]

    def library(self, name):
        config = mlpb.ConnectionConfig()
        config.postgresql.host, config.postgresql.port, config.postgresql.user = "127.0.0.1", self.port, "root"
        config.postgresql.dbname = f"oracle_{name}_{os.getpid()}"
        return metadata_store.MetadataStore(config)


class Server:
    def __init__(self, binary, flags):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.process = subprocess.Popen(
            [binary, "--host=127.0.0.1", f"--grpc_port={self.port}", *flags, "--log_level=warn"],
            stdin=subprocess.DEVNULL,
        )
        atexit.register(self.process.kill)
        config = mlpb.MetadataStoreClientConfig(host="127.0.0.1", port=self.port, client_timeout_sec=20)
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("the server did not start")
                time.sleep(0.02)
        self.store = metadata_store.MetadataStore(config)

    def stop(self):
        self.process.terminate()
        code = self.process.wait(timeout=30)
        check("exit code", code, 0)


def plain(value):
    """A message (or a list of them) as something comparable: without times, which differ between two stores."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if hasattr(value, "DESCRIPTOR"):
        copy = type(value)()
        copy.CopyFrom(value)
        for field in ("create_time_since_epoch", "last_update_time_since_epoch"):
            if field in copy.DESCRIPTOR.fields_by_name and copy.HasField(field):
                setattr(copy, field, 1)
        # Text form with sorted maps.
        from google.protobuf import text_format

        return text_format.MessageToString(copy, as_one_line=True)
    return value


def attempt(call, store):
    try:
        return plain(call(store))
    except errors.StatusError as error:
        return f"error {type(error).__name__}"


# Calls that fail after one of the two, but not the other, has inserted a row. On a server the row's number is lost with
# it, and the numbers of the two stores would differ from there on.
COSTS_A_NUMBER = {"type: unknown property kind", "subgraph: bad index"}


class Both:
    """Runs a call on both stores and compares what they answer."""

    def __init__(self, ours, reference, database):
        self.ours, self.reference, self.database = ours, reference, database

    def __call__(self, name, call):
        if name in COSTS_A_NUMBER and not isinstance(self.database, Sqlite):
            return
        ours, reference = attempt(call, self.ours), attempt(call, self.reference)
        if isinstance(self.database, Postgres) and isinstance(ours, list) and isinstance(reference, list):
            # There the library answers in the order of the pages that rows happen to be on.
            ours, reference = sorted(ours, key=str), sorted(reference, key=str)
        check(name, ours, reference)


def value(kind, content):
    result = mlpb.Value()
    if kind == "struct":
        result.struct_value.update(content)
    elif kind == "proto":
        result.proto_value.Pack(content)
    else:
        setattr(result, f"{kind}_value", content)
    return result


ALL_KINDS = {
    "i": ("int", None),
    "d": ("double", 2.0),
    "s": ("string", "grüße end"),
    "e": ("string", ""),
    "st": ("struct", {"n": None, "l": [1, "a", True], "o": {"x": 0.5}}),
    "p": ("proto", timestamp_pb2.Timestamp(seconds=5, nanos=99)),
    "b": ("bool", False),
}
KINDS = {"i": mlpb.INT, "d": mlpb.DOUBLE, "s": mlpb.STRING, "e": mlpb.STRING, "st": mlpb.STRUCT, "p": mlpb.PROTO,
         "b": mlpb.BOOLEAN}


def filled(node, custom=True):
    for name, (kind, content) in ALL_KINDS.items():
        target = node.custom_properties if custom else node.properties
        target[name].CopyFrom(value(kind, content))
    return node


def types(both):
    full = mlpb.ArtifactType(name="Full", description="d", version="v1", external_id="x1", properties=KINDS)
    full.base_type = mlpb.ArtifactType.MODEL
    both("type: put", lambda s: s.put_artifact_type(full))
    both("type: put again", lambda s: s.put_artifact_type(full))
    # Over MySQL the library leaves out the external id.
    both("type: get", lambda s: without("external_id", [s.get_artifact_type("Full", "v1")]))
    both("type: other version", lambda s: s.get_artifact_type("Full"))
    both("type: unknown", lambda s: s.get_execution_type("Full"))
    more = mlpb.ArtifactType(name="Full", version="v1", properties={**KINDS, "new": mlpb.INT})
    both("type: more fields refused", lambda s: s.put_artifact_type(more))
    both("type: more fields", lambda s: s.put_artifact_type(more, can_add_fields=True))
    both("type: fewer fields refused", lambda s: s.put_artifact_type(full))
    both("type: fewer fields", lambda s: s.put_artifact_type(full, can_omit_fields=True))
    other = mlpb.ArtifactType(name="Full", version="v1", properties={**KINDS, "new": mlpb.STRING})
    both("type: other kind", lambda s: s.put_artifact_type(other, can_add_fields=True, can_omit_fields=True))
    both("type: no name", lambda s: s.put_artifact_type(mlpb.ArtifactType()))
    both("type: unknown property kind",
         lambda s: s.put_artifact_type(mlpb.ArtifactType(name="U", properties={"a": mlpb.UNKNOWN})))
    execution = mlpb.ExecutionType(name="Run", base_type=mlpb.ExecutionType.TRAIN, properties={"n": mlpb.INT})
    execution.input_type.dict.properties["a"].simple.name = "Full"
    execution.output_type.none.SetInParent()
    both("type: execution", lambda s: s.put_execution_type(execution))
    both("type: execution get", lambda s: s.get_execution_type("Run"))
    for name in ("Plain", "Other"):
        both(f"type: {name}", lambda s: s.put_artifact_type(mlpb.ArtifactType(name=name)))
        both(f"type: e{name}", lambda s: s.put_execution_type(mlpb.ExecutionType(name=name)))
        both(f"type: c{name}", lambda s: s.put_context_type(mlpb.ContextType(name=name)))
    both("type: context properties",
         lambda s: s.put_context_type(mlpb.ContextType(name="Ctx", properties={"p": mlpb.STRING})))
    # The library leaves external ids out of lists and base types out of lookups by external id; we keep them.
    both("types: artifacts", lambda s: without("external_id", s.get_artifact_types()))
    both("types: executions", lambda s: s.get_execution_types())
    both("types: contexts", lambda s: s.get_context_types())
    both("types: by id", lambda s: s.get_artifact_types_by_id([10, 3, 999, 11, 10]))
    both("types: contexts by id", lambda s: s.get_context_types_by_id([10, 14]))
    both("types: by external id", lambda s: without("base_type", s.get_artifact_types_by_external_ids(["x1"])))
    both("types: by external id, none", lambda s: s.get_artifact_types_by_external_ids(["zz"]))
    both("types: simple by name", lambda s: s.get_artifact_type("mlmd.Model"))
    both("types: remove base type",
         lambda s: s.put_artifact_type(mlpb.ArtifactType(name="Full", version="v1", base_type=0), can_omit_fields=True))


def without(field, messages):
    for message in messages:
        message.ClearField(field)
    return messages


def ids(store):
    return {
        **{f"a{t.name}": t.id for t in store.get_artifact_types()},
        **{f"e{t.name}": t.id for t in store.get_execution_types()},
        **{f"c{t.name}": t.id for t in store.get_context_types()},
    }


def artifacts(both, t):
    full = filled(mlpb.Artifact(type_id=t["aFull"], uri="u://1", name="one", state=mlpb.Artifact.LIVE), custom=False)
    filled(full)
    both("artifact: put", lambda s: s.put_artifacts([full]))
    both("artifact: get", lambda s: s.get_artifacts_by_id([1]))
    both("artifact: same name", lambda s: s.put_artifacts([full]))
    bare = mlpb.Artifact(type_id=t["aPlain"])
    both("artifact: bare", lambda s: s.put_artifacts([bare, bare]))
    both("artifact: bare get", lambda s: s.get_artifacts_by_id([3, 2, 3, 77]))
    both("artifact: empty name twice", lambda s: s.put_artifacts([mlpb.Artifact(type_id=t["aPlain"], name="")] * 2))
    both("artifact: no type", lambda s: s.put_artifacts([mlpb.Artifact()]))
    both("artifact: unknown type", lambda s: s.put_artifacts([mlpb.Artifact(type_id=9999)]))
    both("artifact: type of another kind", lambda s: s.put_artifacts([mlpb.Artifact(type_id=t["ePlain"])]))
    undeclared = mlpb.Artifact(type_id=t["aPlain"], properties={"x": value("int", 1)})
    both("artifact: undeclared property", lambda s: s.put_artifacts([undeclared]))
    mistyped = mlpb.Artifact(type_id=t["aFull"], properties={"i": value("string", "1")})
    both("artifact: mistyped property", lambda s: s.put_artifacts([mistyped]))
    both("artifact: all or nothing", lambda s: s.put_artifacts([bare, mlpb.Artifact()]))
    both("artifact: nothing was written", lambda s: s.get_artifacts())
    both("artifact: unknown id", lambda s: s.put_artifacts([mlpb.Artifact(id=500, type_id=t["aPlain"])]))
    both("artifact: other type id", lambda s: s.put_artifacts([mlpb.Artifact(id=1, type_id=t["aPlain"])]))
    both("artifact: update clears", lambda s: s.put_artifacts([mlpb.Artifact(id=1, type_id=t["aFull"], uri="u://2")]))
    both("artifact: updated", lambda s: s.get_artifacts_by_id([1]))
    both("artifact: update without type", lambda s: s.put_artifacts([mlpb.Artifact(id=1, name="ignored",
                                                                                custom_properties={"k": value("int", 1)})]))
    both("artifact: updated again", lambda s: s.get_artifacts_by_id([1]))
    both("artifact: property changes kind",
         lambda s: s.put_artifacts([mlpb.Artifact(id=1, custom_properties={"k": value("string", "v")})]))
    both("artifact: property changed", lambda s: s.get_artifacts_by_id([1]))
    masked = mlpb.Artifact(id=1, uri="masked", custom_properties={"k": value("int", 5), "z": value("int", 6)})
    both("artifact: masked", lambda s: s.put_artifacts([masked], field_mask_paths=["uri", "custom_properties.k"]))
    both("artifact: masked get", lambda s: s.get_artifacts_by_id([1]))
    both("artifact: masked properties", lambda s: s.put_artifacts([masked], field_mask_paths=["custom_properties"]))
    both("artifact: masked properties get", lambda s: s.get_artifacts_by_id([1]))
    both("artifact: external id", lambda s: s.put_artifacts([mlpb.Artifact(type_id=t["aPlain"], external_id="ext")]))
    both("artifact: external id taken",
         lambda s: s.put_artifacts([mlpb.Artifact(type_id=t["aPlain"], external_id="ext")]))
    both("artifact: by external id", lambda s: s.get_artifacts_by_external_ids(["ext"]))
    both("artifact: by unknown external id", lambda s: s.get_artifacts_by_external_ids(["none"]))
    both("artifact: by uri", lambda s: s.get_artifacts_by_uri("masked"))
    both("artifact: by unknown uri", lambda s: s.get_artifacts_by_uri("nope"))
    both("artifact: by type", lambda s: s.get_artifacts_by_type("Plain"))
    both("artifact: by unknown type", lambda s: s.get_artifacts_by_type("Nope"))
    both("artifact: by type and name", lambda s: s.get_artifact_by_type_and_name("Full", "one", type_version="v1"))
    both("artifact: by type and unknown name", lambda s: s.get_artifact_by_type_and_name("Plain", "one"))

    def stale(store):
        node = store.get_artifacts_by_id([1])[0]
        node.last_update_time_since_epoch -= 1
        request = service.PutArtifactsRequest(artifacts=[node])
        request.options.abort_if_latest_updated_time_changed = True
        store._call("PutArtifacts", request, service.PutArtifactsResponse())

    both("artifact: stale update time", stale)

    def times(store):
        first = store.get_artifacts_by_id([1])[0]
        time.sleep(0.005)
        store.put_artifacts([first])
        same = store.get_artifacts_by_id([1])[0]
        first.custom_properties["t"].int_value = 1
        store.put_artifacts([first])
        changed = store.get_artifacts_by_id([1])[0]
        return [same.last_update_time_since_epoch == first.last_update_time_since_epoch,
                changed.last_update_time_since_epoch > first.last_update_time_since_epoch,
                changed.create_time_since_epoch == first.create_time_since_epoch]

    both("artifact: times", times)


def relatives(store, which, of):
    call = f"Get{which}ContextsByContexts"
    response = getattr(service, f"{call}Response")()
    store._call(call, getattr(service, f"{call}Request")(context_ids=of), response)
    field = f"{which.lower()}_contexts"
    return {key: sorted(c.id for c in getattr(found, field)) for key, found in response.contexts.items()}


def contexts(both, t):
    both("context: put", lambda s: s.put_contexts([filled(mlpb.Context(type_id=t["cPlain"], name="c1")),
                                                   mlpb.Context(type_id=t["cPlain"], name="c2"),
                                                   mlpb.Context(type_id=t["cOther"], name="c1")]))
    both("context: get", lambda s: s.get_contexts())
    both("context: by type and name", lambda s: s.get_context_by_type_and_name("Plain", "c1"))
    both("context: by unknown name", lambda s: s.get_context_by_type_and_name("Plain", "zz"))
    both("context: by unknown type", lambda s: s.get_context_by_type_and_name("Zz", "c1"))
    both("context: taken name", lambda s: s.put_contexts([mlpb.Context(type_id=t["cPlain"], name="c1")]))
    both("context: no name", lambda s: s.put_contexts([mlpb.Context(type_id=t["cPlain"])]))
    both("context: empty name", lambda s: s.put_contexts([mlpb.Context(type_id=t["cPlain"], name="")]))
    both("context: rename", lambda s: s.put_contexts([mlpb.Context(id=2, type_id=t["cPlain"], name="c2new")]))
    both("context: renamed", lambda s: s.get_contexts_by_id([2, 1]))
    both("context: update without name",
         lambda s: s.put_contexts([mlpb.Context(id=2, custom_properties={"q": value("int", 1)})]))
    both("context: by type", lambda s: s.get_contexts_by_type("Plain"))
    link = mlpb.ParentContext(child_id=1, parent_id=2)
    both("context: parent", lambda s: s.put_parent_contexts([link]))
    both("context: parent again", lambda s: s.put_parent_contexts([link]))
    both("context: cycle", lambda s: s.put_parent_contexts([mlpb.ParentContext(child_id=2, parent_id=1)]))
    both("context: own parent", lambda s: s.put_parent_contexts([mlpb.ParentContext(child_id=2, parent_id=2)]))
    both("context: unknown parent", lambda s: s.put_parent_contexts([mlpb.ParentContext(child_id=2, parent_id=99)]))
    both("context: missing parent", lambda s: s.put_parent_contexts([mlpb.ParentContext(child_id=2)]))
    both("context: second parent", lambda s: s.put_parent_contexts([mlpb.ParentContext(child_id=1, parent_id=3)]))
    both("context: parents", lambda s: s.get_parent_contexts_by_context(1))
    both("context: no parents", lambda s: s.get_parent_contexts_by_context(3))
    both("context: children", lambda s: s.get_children_contexts_by_context(2))
    # The package's own library lacks these two.
    check("context: parents of many", relatives(both.ours, "Parent", [1, 2]), {1: [2, 3]})
    check("context: children of many", relatives(both.ours, "Children", [2, 3]), {2: [1], 3: [1]})


def path(*steps):
    result = mlpb.Event.Path()
    for step in steps:
        result.steps.add(**({"index": step} if isinstance(step, int) else {"key": step}))
    return result


def executions(both, t):
    event = mlpb.Event(type=mlpb.Event.OUTPUT, path=path("out", 3, "x"), milliseconds_since_epoch=77)
    execution = filled(mlpb.Execution(type_id=t["ePlain"], name="e1", last_known_state=mlpb.Execution.RUNNING))
    context = mlpb.Context(type_id=t["cPlain"], name="c1")
    new = mlpb.Artifact(type_id=t["aPlain"], uri="made", name="made")
    put = lambda s, *args, **kwargs: list(s.put_execution(*args, **kwargs))
    both("execution: taken context", lambda s: put(s, execution, [(new, event)], [context]))
    both("execution: nothing was written", lambda s: s.get_executions())
    both("execution: put", lambda s: put(s, execution, [(new, event)], [context], reuse_context_if_already_exist=True))
    both("execution: get", lambda s: s.get_executions())
    both("execution: the reused context is unchanged", lambda s: s.get_contexts_by_id([1]))
    both("execution: events", lambda s: s.get_events_by_execution_ids([1, 2]))
    both("execution: contexts", lambda s: s.get_contexts_by_execution(1))
    both("execution: no contexts", lambda s: s.get_contexts_by_execution(55))
    both("execution: artifacts of context", lambda s: s.get_artifacts_by_context(1))
    both("execution: of context", lambda s: s.get_executions_by_context(1))
    both("execution: of unknown context", lambda s: s.get_executions_by_context(999))
    both("execution: by name", lambda s: s.get_execution_by_type_and_name("Plain", "e1"))
    both("execution: by unknown name", lambda s: s.get_execution_by_type_and_name("Plain", "e9"))
    both("execution: same name", lambda s: put(s, execution, [], []))
    done = mlpb.Execution(id=1, type_id=t["ePlain"], last_known_state=mlpb.Execution.COMPLETE)
    known = mlpb.Event(artifact_id=2, type=mlpb.Event.INPUT, path=path("in"))
    both("execution: update", lambda s: put(s, done, [(None, known)], [mlpb.Context(id=1, type_id=t["cPlain"], name="c1")]))
    both("execution: updated", lambda s: s.get_executions_by_id([1]))
    both("execution: the given context was written", lambda s: s.get_contexts_by_id([1]))
    both("execution: attributed", lambda s: s.get_artifacts_by_context(1))

    def sizes(store):
        return [(e.artifact_id, e.execution_id, e.type, plain(e.path)) for e in store.get_events_by_artifact_ids([2, 9, 10])]

    both("execution: events of artifacts", sizes)
    both("execution: same event", lambda s: put(s, done, [(None, known)], []))
    both("execution: event without type", lambda s: put(s, done, [(None, mlpb.Event(artifact_id=2))], []))
    both("execution: event without artifact", lambda s: put(s, done, [(None, mlpb.Event(type=mlpb.Event.INPUT))], []))
    both("execution: event of another execution",
         lambda s: put(s, done, [(None, mlpb.Event(artifact_id=2, execution_id=9, type=mlpb.Event.INPUT))], []))
    both("execution: event of another artifact",
         lambda s: put(s, done, [(mlpb.Artifact(id=2), mlpb.Event(artifact_id=3, type=mlpb.Event.INPUT))], []))
    both("execution: artifact without event", lambda s: put(s, done, [(mlpb.Artifact(id=2), None)], []))
    both("execution: context without type", lambda s: put(s, done, [], [mlpb.Context(name="c1")]))
    both("execution: context without name", lambda s: put(s, done, [], [mlpb.Context(type_id=t["cPlain"])]))
    both("execution: event of an unknown artifact",
         lambda s: put(s, done, [(None, mlpb.Event(artifact_id=4000, type=mlpb.Event.INPUT))], []))
    both("execution: reuse by external id",
         lambda s: put(s, mlpb.Execution(type_id=t["ePlain"]),
                       [(mlpb.Artifact(type_id=t["aPlain"], external_id="ext"), mlpb.Event(type=mlpb.Event.OUTPUT))], [],
                       reuse_artifact_if_already_exist_by_external_id=True))
    both("execution: several contexts",
         lambda s: put(s, mlpb.Execution(type_id=t["ePlain"]), [],
                       [mlpb.Context(type_id=t["cPlain"], name="n1"), mlpb.Context(type_id=t["cPlain"], name="n1")],
                       reuse_context_if_already_exist=True))
    both("execution: put_executions", lambda s: s.put_executions([mlpb.Execution(type_id=t["eRun"], properties={"n": value("int", 3)})]))
    both("execution: by type", lambda s: s.get_executions_by_type("Run"))
    both("events: put", lambda s: s.put_events([mlpb.Event(artifact_id=3, execution_id=2, type=mlpb.Event.DECLARED_INPUT)]))
    both("events: unknown artifact", lambda s: s.put_events([mlpb.Event(artifact_id=333, execution_id=2, type=3)]))
    both("events: unknown execution", lambda s: s.put_events([mlpb.Event(artifact_id=3, execution_id=222, type=3)]))
    links = [mlpb.Attribution(artifact_id=3, context_id=2)], [mlpb.Association(execution_id=2, context_id=2)]
    both("links: put", lambda s: s.put_attributions_and_associations(*links))
    both("links: put again", lambda s: s.put_attributions_and_associations(*links))
    both("links: unknown", lambda s: s.put_attributions_and_associations([mlpb.Attribution(artifact_id=3, context_id=99)], []))
    both("links: missing", lambda s: s.put_attributions_and_associations([], [mlpb.Association(execution_id=3)]))
    both("links: of artifact", lambda s: s.get_contexts_by_artifact(3))
    both("links: of unlinked artifact", lambda s: s.get_contexts_by_artifact(1))

    def subgraph(store):
        edges = [(0, 0, mlpb.Event(type=mlpb.Event.OUTPUT)), (None, 0, mlpb.Event(execution_id=1, type=mlpb.Event.INPUT))]
        return list(store.put_lineage_subgraph([mlpb.Execution(type_id=t["ePlain"])], [new_artifact], [context], edges,
                                               reuse_context_if_already_exist=True))

    new_artifact = mlpb.Artifact(type_id=t["aPlain"], uri="sub")
    both("subgraph: put", subgraph)
    both("subgraph: bad index",
         lambda s: s.put_lineage_subgraph([], [new_artifact], [], [(4, 0, mlpb.Event(type=mlpb.Event.OUTPUT))]))
    both("subgraph: events", lambda s: [(e.artifact_id, e.execution_id, e.type) for e in s.get_events_by_execution_ids([1])])


QUERIES = [
    "", " ", "id = 1", "id IN (1, 3, 99)", "id NOT IN (1)", "id != 1", "id <> 1", "id + 1 = 3", "id BETWEEN 2 AND 3", "NOT id = 1",
    "id >= 2 AND id < 4 OR id = 1", "name = 'one'", 'name = "one"', "name LIKE 'o%'", "name IS NULL", "name IS NOT NULL",
    "type = 'Plain'", "type_id > 10", "uri = 'masked'", "state = LIVE", "state != LIVE", "state IN (LIVE, PENDING)",
    "state NOT IN (LIVE, PENDING)", "state IS NULL", "external_id = 'ext'", "create_time_since_epoch > 0",
    "last_update_time_since_epoch < 5", "custom_properties.k.int_value = 5", "custom_properties.`k`.int_value < 9",
    "custom_properties.k.int_value = 5 OR id = 2", "custom_properties.nope.int_value IS NULL",
    "properties.s.string_value = 'x'", "contexts_a.name = 'c1'",
    "contexts_a.name = 'c1' AND contexts_b.name = 'c2new'", "contexts_a.type = 'Plain'", "contexts_a.id = 1",
    "events_0.type = OUTPUT", "events_0.execution_id = 1 AND events_0.type = INPUT", "custom_properties.b.bool_value = false",
    "TRUE", "1 = 1", "id = 1 = true", "uri = 'abc", "nope = 1", "state = 2", "state = NOPE", "properties.i.int_value > 'x'",
    "contexts_a.zork = 1", "id", "id = ", "(id = 1", "id IN ()", "id = 1 AND", "custom_properties.k = 1", "id = 1;",
]
EXECUTION_QUERIES = ["last_known_state = COMPLETE", "last_known_state != COMPLETE", "last_known_state IN (RUNNING, COMPLETE)",
                     "events_x.artifact_id = 2", "contexts_c.name = 'c1'", "properties.n.int_value = 3", "state = LIVE"]
CONTEXT_QUERIES = ["parent_contexts_p.name = 'c2new'", "child_contexts_p.name = 'c1'", "parent_contexts_p.type = 'Other'",
                   "artifacts_a.id = 2", "executions_e.last_known_state = COMPLETE", "name = 'c1' AND type = 'Other'"]


def filters(both):
    for query in QUERIES:
        both(f"filter: {query}", lambda s: [a.id for a in s.get_artifacts(ListOptions(filter_query=query))])
    for query in EXECUTION_QUERIES:
        both(f"filter execution: {query}", lambda s: [a.id for a in s.get_executions(ListOptions(filter_query=query))])
    for query in CONTEXT_QUERIES:
        both(f"filter context: {query}", lambda s: [a.id for a in s.get_contexts(ListOptions(filter_query=query))])


def listing(both, t):
    both("list: many", lambda s: len(s.put_artifacts([mlpb.Artifact(type_id=t["aOther"], uri=str(i)) for i in range(130)])))

    def pages(size, order, ascending, call="GetArtifacts", **fields):
        def run(store):
            found, token, sizes = [], "", []
            while True:
                request = getattr(service, f"{call}Request")(**fields)
                request.options.max_result_size = size
                request.options.order_by_field.field = order
                request.options.order_by_field.is_asc = ascending
                if token:
                    request.options.next_page_token = token
                response = getattr(service, f"{call}Response")()
                store._call(call, request, response)
                sizes.append(len(response.artifacts))
                found += [a.id for a in response.artifacts]
                token = response.next_page_token
                if not token:
                    return [sizes, found]
        return run

    field = mlpb.ListOperationOptions.OrderByField
    for order in (field.ID, field.CREATE_TIME):
        for ascending in (True, False):
            # Within one millisecond both stores order by id.
            both(f"list: pages by {order} {ascending}", pages(40, order, ascending))
    both("list: pages of a type", pages(50, field.ID, True, "GetArtifactsByType", type_name="Other"))
    both("list: pages of a context", pages(1, field.ID, True, "GetArtifactsByContext", context_id=1))
    both("list: size 0", pages(0, field.ID, True))
    both("list: size -1", pages(-1, field.ID, True))
    both("list: unspecified order", pages(10, field.FIELD_UNSPECIFIED, True))

    def token(text, **options):
        def run(store):
            request = service.GetArtifactsRequest()
            request.options.next_page_token = text
            response = service.GetArtifactsResponse()
            store._call("GetArtifacts", request, response)
            return len(response.artifacts)
        return run

    both("list: garbage token", token("%%%"))
    both("list: default page", lambda s: call_default(s))


def call_default(store):
    request = service.GetArtifactsRequest()
    request.options.SetInParent()
    response = service.GetArtifactsResponse()
    store._call("GetArtifacts", request, response)
    return [[a.id for a in response.artifacts], bool(response.next_page_token)]


def lineage(both):
    def run(**options):
        def call(store):
            request = service.GetLineageSubgraphRequest()
            query = request.lineage_subgraph_query_options
            query.starting_artifacts.filter_query = options.get("start", "uri = 'made'")
            if "hops" in options:
                query.max_num_hops = options["hops"]
            query.direction = options.get("direction", 0)
            if "ending" in options:
                query.ending_executions.filter_query = options["ending"]
                query.ending_executions.include_ending_nodes = options.get("include", False)
            response = service.GetLineageSubgraphResponse()
            store._call("GetLineageSubgraph", request, response)
            graph = response.lineage_subgraph
            return [sorted(a.id for a in graph.artifacts), sorted(e.id for e in graph.executions),
                    sorted(c.id for c in graph.contexts),
                    sorted((e.artifact_id, e.execution_id, e.type) for e in graph.events),
                    sorted((e.artifact_id, e.context_id) for e in graph.attributions),
                    sorted((e.execution_id, e.context_id) for e in graph.associations)]
        return call

    both("lineage: all", run())
    for direction in (1, 2, 3):
        for hops in (0, 1, 2, 3):
            both(f"lineage: {direction} {hops}", run(direction=direction, hops=hops))
    both("lineage: ending", run(direction=3, ending="id = 1"))
    both("lineage: ending included", run(direction=3, ending="id = 1", include=True))
    both("lineage: nothing", run(start="id = 9999"))
    both("lineage: negative", run(hops=-1))
    both("lineage: no start", run(start=""))


def dump(store):
    result = {
        "artifact types": sorted(plain(without("external_id", store.get_artifact_types()))),
        "execution types": sorted(plain(store.get_execution_types())),
        "context types": sorted(plain(store.get_context_types())),
    }
    for name in ("artifacts", "executions", "contexts"):
        # Times included: both programs read the same file.
        nodes = getattr(store, f"get_{name}")()
        result[name] = sorted(str(sorted(str(n).splitlines())) for n in nodes)
    executions_found = [e.id for e in store.get_executions()]
    result["events"] = sorted(str(e) for e in store.get_events_by_execution_ids(executions_found))
    for context in store.get_contexts():
        result[f"executions of {context.id}"] = sorted(e.id for e in store.get_executions_by_context(context.id))
        result[f"artifacts of {context.id}"] = sorted(e.id for e in store.get_artifacts_by_context(context.id))
        result[f"parents of {context.id}"] = sorted(e.id for e in store.get_parent_contexts_by_context(context.id))
    return result


def main():
    binary = sys.argv[1]
    database = {"sqlite": Sqlite, "mysql": Mysql, "postgres": Postgres}[(sys.argv[2:] or ["sqlite"])[0]](*sys.argv[3:])
    ALL_KINDS["i"] = ("int", database.integer)
    QUERIES.append(f"properties.i.int_value = {database.integer}")
    server = Server(binary, database.flags("ours"))
    reference = database.library("reference")
    both = Both(server.store, reference, database)
    both("empty: artifacts", lambda s: s.get_artifacts())
    both("empty: executions paged", lambda s: s.get_executions(ListOptions(limit=3)))
    both("empty: context types", lambda s: s.get_context_types())
    types(both)
    t = ids(reference)
    check("type ids", ids(server.store), t)
    artifacts(both, t)
    contexts(both, t)
    executions(both, t)
    filters(both)
    lineage(both)
    listing(both, t)
    before = dump(server.store)
    server.stop()
    for name, content in dump(database.library("ours")).items():
        check(f"the library reads our database: {name}", before.get(name), content)
    wanted = dump(reference)
    del both, reference
    server = Server(binary, database.flags("reference"))
    got = dump(server.store)
    for name, content in wanted.items():
        check(f"we read the library's database: {name}", got.get(name), content)
    check("we write into the library's database",
          len(server.store.put_artifacts([mlpb.Artifact(type_id=t["aPlain"])])), 1)
    server.stop()
    check("the library reads what we added", len(database.library("reference").get_artifacts()),
          len(wanted["artifacts"]) + 1)
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
