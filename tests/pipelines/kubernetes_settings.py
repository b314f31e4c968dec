"""Pods with platform settings: claims, secrets, labels, node placement, security; time to live and a deadline.

Compile with the kfp 2.17 SDK and kfp-kubernetes:  python kubernetes_settings.py  (writes kubernetes_settings.yaml
beside this file).
"""
from pathlib import Path

from kfp import compiler, dsl, kubernetes

IMAGE = "python:3.11"


@dsl.component(base_image=IMAGE)
def work(text: str) -> str:
    return text


@dsl.component(base_image=IMAGE)
def rest():
    pass


@dsl.pipeline(
    name="kubernetes-settings",
    pipeline_config=dsl.PipelineConfig(
        ttl_seconds_after_finished=3600, ttl_seconds_after_failure=86400, active_deadline_seconds=7200
    ),
)
def kubernetes_settings(secret: str = "credentials", text: str = "hello"):
    claim = kubernetes.CreatePVC(
        pvc_name_suffix="-data", access_modes=["ReadWriteOnce"], size="1Gi", storage_class_name="standard"
    )
    busy = work(text=text).after(claim)
    kubernetes.mount_pvc(busy, claim.outputs["name"], "/data", sub_path="sub")
    kubernetes.use_secret_as_env(busy, secret, {"password": "PASSWORD"})
    kubernetes.use_secret_as_volume(busy, "other", "/secret", optional=True)
    kubernetes.use_config_map_as_env(busy, "settings", {"mode": "MODE"})
    kubernetes.use_config_map_as_volume(busy, "settings", "/settings")
    kubernetes.use_field_path_as_env(busy, "NODE", "spec.nodeName")
    kubernetes.add_node_selector(busy, "pool", "gpu")
    kubernetes.add_toleration(busy, key="gpu", operator="Exists", effect="NoSchedule", toleration_seconds=10)
    kubernetes.add_node_affinity(busy, match_expressions=[{"key": "zone", "operator": "In", "values": ["a", "b"]}])
    kubernetes.add_pod_label(busy, "team", "ml")
    kubernetes.add_pod_label(busy, "cost", "42")
    kubernetes.add_pod_annotation(busy, "example.com/note", "a <b> & c")
    kubernetes.set_image_pull_policy(busy, "Always")
    kubernetes.set_image_pull_secrets(busy, ["registry"])
    kubernetes.set_timeout(busy, 60)
    kubernetes.set_security_context(busy, run_as_user=1000, run_as_group=100, run_as_non_root=True)
    kubernetes.empty_dir_mount(busy, "scratch", "/scratch", medium="Memory", size_limit="1Gi")
    kubernetes.add_ephemeral_volume(busy, "cache", "/cache", ["ReadWriteOnce"], "2Gi", labels={"a": "b"})
    busy.set_retry(num_retries=1)
    busy.set_accelerator_type("nvidia.com/gpu").set_accelerator_limit(1).set_memory_request("1G")
    quiet = rest().after(busy)
    kubernetes.add_pod_annotation(quiet, "example.com/one", "1")
    kubernetes.DeletePVC(pvc_name=claim.outputs["name"]).after(quiet)


if __name__ == "__main__":
    compiler.Compiler().compile(kubernetes_settings, str(Path(__file__).with_suffix(".yaml")))
