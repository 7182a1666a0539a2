"""A process that compiles one training step for a target, from shapes alone: the very step that `finetune` runs.

Reads a job as JSON from standard input, and writes what the compiler says as JSON, on a line that begins with RESULT.
A process of its own, because the compilers want their environment set before JAX is imported, and may end the process.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter

RESULT = "RESULT "
_SIZES = {
    "pred": 1,
    "s8": 1,
    "u8": 1,
    "s16": 2,
    "u16": 2,
    "f16": 2,
    "bf16": 2,
    "s32": 4,
    "u32": 4,
    "f32": 4,
    "s64": 8,
    "f64": 8,
}
_COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_ARRAY = re.compile(r"\b(\w+)\[([\d,]*)\]")


def prepare_environment(platform: str, devices: int) -> None:
    """Before JAX is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    flags = {
        "cpu": f"--xla_force_host_platform_device_count={devices}",
        "cuda": "--xla_gpu_enable_triton_gemm=false",
        "tpu": "",
    }
    os.environ["XLA_FLAGS"] = flags[platform]
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def compile_step(job: dict) -> dict:
    """Sizes in bytes of one device, as the compiler says them; or `out_of_memory`, in its own words."""
    import jax
    from jax.experimental import topologies

    from paligemma.models.config import PaliGemmaConfig
    from paligemma.preflight.abstract import abstract_step
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
    lowered = step.lower(*arguments)
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return {"out_of_memory": str(error).split("\n")[0][:300], "compile_seconds": round(time.monotonic() - started, 1)}
    memory = compiled.memory_analysis()
    kinds: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for shapes, kind in _COLLECTIVE.findall(compiled.as_text()):
        kinds[kind] += 1
        sizes[kind] += sum(_bytes(dtype, lengths) for dtype, lengths in _ARRAY.findall(shapes))
    return {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "outputs": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "compile_seconds": round(time.monotonic() - started, 1),
        "collectives": {kind: {"count": kinds[kind], "bytes": sizes[kind]} for kind in sorted(kinds)},
    }


def _bytes(dtype: str, lengths: str) -> int:
    size = _SIZES.get(dtype, 0)
    for length in lengths.split(","):
        size *= int(length or 1)
    return size


def main() -> None:
    """Standard input to standard output."""
    job = json.load(sys.stdin)
    prepare_environment(job["platform"], job["devices"])
    print(RESULT + json.dumps(compile_step(job)), flush=True)


if __name__ == "__main__":
    main()
