"""A process that compiles one training step for a target, from shapes alone: the very step that `finetune` runs.

Reads a job as JSON from standard input, and writes the compiler's figures as JSON, on a line that begins with RESULT. A
separate process, because the compilers need their environment before JAX is imported, and may crash the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, cast

RESULT = "RESULT "


def prepare_environment(platform: str, devices: int) -> None:
    """Sets the environment; call before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = {
        "cpu": f"--xla_force_host_platform_device_count={devices}",
        "cuda": "--xla_gpu_enable_triton_gemm=false",
        "tpu": "",
    }
    os.environ["XLA_FLAGS"] = flags[platform]
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def compile_step(job: dict) -> dict:
    """The compiler's sizes in bytes per device; or `out_of_memory` with its message."""
    import jax
    from jax.experimental import topologies

    from paligemma.models.config import PaliGemmaConfig
    from paligemma.preflight.abstract import abstract_step
    from paligemma.preflight.account import account
    from paligemma.preflight.hlo_text import read_program
    from paligemma.preflight.targets import TARGETS
    from paligemma.training.recipe import Recipe

    target = TARGETS[job["target"]]
    options = {"exec_time_optimization_effort": -1.0} if target.platform == "tpu" else None
    if target.platform == "cpu":
        devices = jax.devices()[: target.devices]
    else:
        devices = list(topologies.get_topology_desc(**target.topology).devices)
    config, recipe = PaliGemmaConfig.model_validate(job["config"]), Recipe.model_validate(job["recipe"])
    step, arguments = abstract_step(config, recipe, devices, target.compute, job["text_tokens"])
    started = time.monotonic()
    lowered = cast(Any, step).lower(*arguments)  # as `jax.jit` made it
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"out_of_memory": str(error).split("\n")[0][:300], "compile_seconds": round(time.monotonic() - started, 1)}
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "compile_seconds": round(time.monotonic() - started, 1),
        "peak": memory.peak_memory_in_bytes,
        "collectives": {
            kind: {"count": one.count, "bytes": one.bytes}
            for kind, one in account(read_program(compiled.as_text())).collectives.items()
        },
    }


def main() -> None:
    """Reads from standard input and writes to standard output. An error in the job is an answer too."""
    job = json.load(sys.stdin)
    prepare_environment(job["platform"], job["devices"])
    from paligemma.errors import InputError

    try:
        found = compile_step(job)
    except InputError as error:
        found = {"wrong_input": str(error)}
    print(RESULT + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
