"""Importers: a fixed address, one from a parameter with metadata from a task, one into the workspace.

Compile with the kfp 2.17 SDK:  python importers.py  (writes importers.yaml beside this file).
"""
from pathlib import Path

from kfp import compiler, dsl
from kfp.dsl import Dataset, Input, Model

IMAGE = "python:3.11"


@dsl.component(base_image=IMAGE)
def owner() -> str:
    return "someone"


@dsl.component(base_image=IMAGE)
def use(data: Input[Dataset], model: Input[Model], place: str):
    print(data.uri, model.uri, place)


@dsl.pipeline(
    name="importers",
    pipeline_config=dsl.PipelineConfig(
        workspace=dsl.WorkspaceConfig(
            size="1536Mi",
            kubernetes=dsl.KubernetesWorkspaceConfig(
                pvcSpecPatch={"accessModes": ["ReadWriteOnce"], "storageClassName": "standard"}
            ),
        )
    ),
)
def importers(uri: str = "s3://bucket/data?x=1&y=<2>"):
    name = owner()
    data = dsl.importer(
        artifact_uri=uri,
        artifact_class=Dataset,
        reimport=True,
        metadata={"owner": name.output, "rows": 3, "share": 0.1, "tags": {"a": ["b", "c"]}, uri: "key"},
    )
    model = dsl.importer(
        artifact_uri="gs://bucket/model",
        artifact_class=Model,
        metadata={"framework": "<none>"},
        download_to_workspace=True,
    )
    use(data=data.output, model=model.output, place=dsl.WORKSPACE_PATH_PLACEHOLDER)


if __name__ == "__main__":
    compiler.Compiler().compile(importers, str(Path(__file__).with_suffix(".yaml")))
