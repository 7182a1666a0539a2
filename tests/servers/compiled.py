"""Compiled pipelines against the messages that servers parse them into, with no field unknown at any depth.

PipelineSpec and PlatformSpec have Structs in them, which take anything: what runs a container is a message of its own, which
KFP's driver parses when the step begins (backend/src/v2/driver/k8s.go).
"""

from __future__ import annotations

from google.protobuf import json_format
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineDeploymentConfig, PipelineSpec, PlatformSpec


def check_compiled(pipeline: dict, platform: dict | None = None) -> None:
    """Raises `json_format.ParseError` for what a server would not know."""
    json_format.ParseDict(pipeline, PipelineSpec())
    json_format.ParseDict(pipeline["deploymentSpec"], PipelineDeploymentConfig())
    if platform is None:
        return
    json_format.ParseDict(platform, PlatformSpec())
    for name, settings in platform["platforms"].items():
        if name != "kubernetes":
            raise json_format.ParseError(f"there is no platform {name}")
        executors = pipeline["deploymentSpec"]["executors"]
        for executor, config in settings["deploymentSpec"]["executors"].items():
            if executor not in executors:
                raise json_format.ParseError(f"the pipeline has no executor {executor}")
            json_format.ParseDict(config, KubernetesExecutorConfig())
