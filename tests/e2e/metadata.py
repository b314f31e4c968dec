"""What the metadata store of a platform on this machine says of a run, read from its database (ml-metadata's schema)."""
import base64
import contextlib
import sqlite3

from google.protobuf import json_format, struct_pb2

STATES = ["UNKNOWN", "NEW", "RUNNING", "COMPLETE", "FAILED", "CACHED", "CANCELED"]
OUTPUT = 4


def struct(text):
    message = struct_pb2.Struct()
    message.ParseFromString(base64.b64decode(text.removeprefix("mlmd-struct::")))
    return json_format.MessageToDict(message)


class Execution:
    def __init__(self, key, kind, state, properties):
        self.id, self.kind, self.state, self.properties = key, kind, STATES[state], properties
        self.task = properties.get("task_name", "")
        self.outputs = struct(properties["outputs"]) if "outputs" in properties else {}
        # Output name to (id, URI).
        self.artifacts = {}


class Run:
    """All executions of a run, with their output artifacts."""

    def __init__(self, home, run_id):
        self.home = home
        with contextlib.closing(sqlite3.connect(f"file:{home / 'metadata.db'}?mode=ro", uri=True)) as database:
            rows = database.execute(
                """SELECT e.id, t.name, e.last_known_state FROM Context c JOIN Association a ON a.context_id = c.id
                   JOIN Execution e ON e.id = a.execution_id JOIN Type t ON t.id = e.type_id
                   WHERE c.name = ? ORDER BY e.id""", (run_id,)).fetchall()
            self.executions = [Execution(*row, self.properties(database, row[0])) for row in rows]
            for execution in self.executions:
                events = database.execute(
                    """SELECT p.step_key, a.id, a.uri FROM Event e JOIN EventPath p ON p.event_id = e.id
                       JOIN Artifact a ON a.id = e.artifact_id WHERE e.execution_id = ? AND e.type = ?""",
                    (execution.id, OUTPUT))
                execution.artifacts = {name: (key, uri) for name, key, uri in events}

    @staticmethod
    def properties(database, key):
        rows = database.execute("SELECT name, coalesce(string_value, int_value) FROM ExecutionProperty WHERE execution_id = ?", (key,))
        return dict(rows.fetchall())

    def tasks(self, name=None):
        """The executions that are no DAGs; those of one task."""
        leaves = (e for e in self.executions if e.kind != "system.DAGExecution")
        return [e for e in leaves if name is None or e.task == name]

    def states(self, name):
        return sorted(e.state for e in self.executions if e.task == name)

    def values(self, name, output="Output"):
        """The values of an output in all executions of a task."""
        return [e.outputs[output] for e in self.tasks(name) if output in e.outputs]

    def file(self, uri):
        return self.home / "objects" / uri.split("://", 1)[1]

    def texts(self, name, artifact):
        """The contents of an output artifact in all executions of a task."""
        return [self.file(e.artifacts[artifact][1]).read_text() for e in self.tasks(name) if artifact in e.artifacts]

    def logs(self, name):
        return self.texts(name, "executor-logs")
