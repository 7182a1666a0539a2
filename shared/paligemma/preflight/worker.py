"""A process that compiles one program for a target, from shapes alone: the very step that `finetune` runs, or decoding.

Reads a job as JSON from standard input, and writes what the compiler made of it as JSON, on a line that begins with RESULT. A
separate process, because the compilers need their environment before JAX is imported, and may crash the process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, cast

RESULT = "RESULT "

_CUDA_FLAGS = {
    "step": "--xla_gpu_enable_triton_gemm=false",  # its tiles need a card to be chosen on
    "decoding": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=true",
}


def prepare_environment(job: dict) -> None:
    """Sets the environment; call before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = {
        "cpu": f"--xla_force_host_platform_device_count={job['devices']}",
        "cuda": _CUDA_FLAGS[job["program"]],
        "tpu": "",
    }
    os.environ["XLA_FLAGS"] = flags[job["platform"]]
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def compile_job(job: dict) -> dict:
    """The compiler's sizes in bytes per device, and accounts; or `out_of_memory` with its message.

    Accounts are those of `summaries`. If the compiler printed a program of an unknown form, there are none, and `unread` says
    why: whether the job fits is known all the same.
    """
    import jax
    from jax.experimental import topologies

    from paligemma.models.config import PaliGemmaConfig
    from paligemma.models.parameter_shapes import parameter_shapes
    from paligemma.preflight.abstract import abstract_step, lower_decoding, trained_shapes
    from paligemma.preflight.summary import summaries
    from paligemma.preflight.targets import TARGETS
    from paligemma.training.recipe import Recipe

    target = TARGETS[job["target"]]
    options = None if job["full_effort"] or target.platform != "tpu" else {"exec_time_optimization_effort": -1.0}
    if target.platform == "cpu":
        devices = jax.devices()[: target.devices]
    else:
        devices = list(topologies.get_topology_desc(**target.topology).devices)
    config = PaliGemmaConfig.model_validate(job["config"])
    started = time.monotonic()
    weights = parameter_shapes(config)
    if job["program"] == "step":
        recipe = Recipe.model_validate(job["recipe"])
        step, arguments = abstract_step(config, recipe, devices, target.compute, job["text_tokens"])
        lowered = cast(Any, step).lower(*arguments)  # as `jax.jit` made it
        trained = trained_shapes(config, recipe.trainable, recipe.lora)  # their updates are no copies
        weights = {name: shape for name, shape in weights.items() if name not in trained}
    else:
        asked = job["rows"], job["text_tokens"], job["dtype"], job.get("images", 1)
        lowered = lower_decoding(config, devices, target.compute, *asked)
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"out_of_memory": str(error).split("\n")[0][:300], "compile_seconds": round(time.monotonic() - started, 1)}
    seconds = round(time.monotonic() - started, 1)
    try:
        told = {"accounts": summaries(job["program"], compiled.as_text(), target, weights.values(), job["full_effort"])}
    except Exception as error:  # another compiler's text may be of any form, and break the reading of it anywhere
        told = {"unread": f"{type(error).__name__}: {error}"[:300]}
    memory = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "compile_seconds": seconds,
        "peak": memory.peak_memory_in_bytes,
        **told,
    }


def main() -> None:
    """Reads from standard input and writes to standard output. An error in the job is an answer too."""
    job = json.load(sys.stdin)
    prepare_environment(job)
    from paligemma.errors import InputError

    try:
        found = compile_job(job)
    except InputError as error:
        found = {"wrong_input": str(error)}
    print(RESULT + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
