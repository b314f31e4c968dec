"""An exit handler around a sub-pipeline, retries in all their forms, the final status, one-of.

Compile with the kfp 2.17 SDK:  python exit_and_retry.py  (writes exit_and_retry.yaml beside this file).
"""
from pathlib import Path

from kfp import compiler, dsl
from kfp.dsl import Artifact, Dataset, Input, Output, PipelineTaskFinalStatus

IMAGE = "python:3.11"


@dsl.component(base_image=IMAGE)
def report(note: str, status: PipelineTaskFinalStatus):
    print(note, status.state)


@dsl.component(base_image=IMAGE)
def flip() -> str:
    return "heads"


@dsl.component(base_image=IMAGE)
def make(out: Output[Dataset], text: str = "x"):
    with open(out.path, "w") as file:
        file.write(text)


@dsl.container_component
def show(data: Input[Artifact]):
    return dsl.ContainerSpec(image="alpine:3.20", command=["sh", "-c", 'cat "$0" && echo "<done>"'], args=[data.path])


@dsl.pipeline
def inner(text: str) -> Dataset:
    coin = flip()
    with dsl.If(coin.output == "heads"):
        first = make(text=text)
        first.set_retry(num_retries=3)
    with dsl.Else():
        second = make(text="tails")
    return dsl.OneOf(first.outputs["out"], second.outputs["out"])


@dsl.pipeline(name="exit-and-retry", display_name="Exit & retry")
def exit_and_retry(text: str, note: str = "done"):
    last = report(note=note)
    with dsl.ExitHandler(last, name="guarded"):
        made = inner(text=text)
        made.set_retry(num_retries=2, backoff_duration="30s", backoff_factor=1.5, backoff_max_duration="1h")
        shown = show(data=made.output)
        shown.set_retry(num_retries=1, backoff_duration="10s")
        flip().after(shown).ignore_upstream_failure()


if __name__ == "__main__":
    compiler.Compiler().compile(exit_and_retry, str(Path(__file__).with_suffix(".yaml")))
