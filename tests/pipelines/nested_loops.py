"""Loops in loops with limits, conditions and a collected output.

Compile with the kfp 2.17 SDK:  python nested_loops.py  (writes nested_loops.yaml beside this file).
"""
from pathlib import Path
from typing import List

from kfp import compiler, dsl

IMAGE = "python:3.11"


@dsl.component(base_image=IMAGE)
def sizes(count: int) -> List[int]:
    """The numbers below `count`."""
    return list(range(count))


@dsl.component(base_image=IMAGE)
def multiply(a: int, b: float) -> float:
    """One product; text such as <a & b> must survive as it is."""
    return a * b


@dsl.component(base_image=IMAGE)
def total(values: List[float]) -> float:
    """The sum of what all iterations returned."""
    return sum(values)


@dsl.pipeline(name="nested-loops", description="Loops in loops, with limits <2> & \"quotes\"")
def nested_loops(count: int = 3, verbose: bool = False, label: str = "a<b"):
    numbers = sizes(count=count)
    with dsl.ParallelFor(items=numbers.output, parallelism=2) as number:
        with dsl.ParallelFor(items=[0.5, 1.5, 1e-7], parallelism=1) as factor:
            multiply(a=number, b=factor).set_caching_options(False)
        with dsl.If(number > 1):
            once = multiply(a=number, b=2.0)
            once.set_cpu_limit("500m").set_memory_limit("256Mi").set_env_variable("LABEL", "x=y")
    with dsl.ParallelFor(items=[1, 2]) as plain:
        product = multiply(a=plain, b=3.0)
    total(values=dsl.Collected(product.output))
    with dsl.If(verbose == True, name="verbose"):
        sizes(count=1)
    with dsl.Elif(label == "é"):
        sizes(count=2)
    with dsl.Else():
        sizes(count=3)


if __name__ == "__main__":
    compiler.Compiler().compile(nested_loops, str(Path(__file__).with_suffix(".yaml")))
