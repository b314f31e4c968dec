"""Small pipelines of container components: they run without installing anything."""
from kfp import compiler, dsl


@dsl.container_component
def shell(script: str):
    return dsl.ContainerSpec(image="alpine", command=["sh", "-ec"], args=[script])


@dsl.container_component
def produce(text: str, out: dsl.OutputPath(str)):
    return dsl.ContainerSpec(image="alpine", command=["sh", "-ec", 'mkdir -p "$(dirname "$1")"; printf %s "$0" >"$1"'], args=[text, out])


@dsl.container_component
def check(text: str, want: str):
    return dsl.ContainerSpec(image="alpine", command=["sh", "-ec", 'test "$0" = "$1"'], args=[text, want])


@dsl.container_component
def no_output(out: dsl.OutputPath(str)):
    return dsl.ContainerSpec(image="alpine", command=["true"], args=[out])


@dsl.container_component
def no_command():
    return dsl.ContainerSpec(image="alpine", command=["/no/such/program", "--flag"])


def pipeline(name, body):
    """Compiles `body` as a pipeline called `name`; returns the IR as text."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "p.yaml"
        compiler.Compiler().compile(dsl.pipeline(name=name)(body), str(file))
        return file.read_text()


def write(path, name, body):
    path.write_text(pipeline(name, body))
    return str(path)
