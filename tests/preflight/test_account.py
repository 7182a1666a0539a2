"""The account of what the compilers of TPUs and GPUs make of small programs equals what is computed by hand."""

from __future__ import annotations

import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from paligemma.preflight.account import Collective, account, open_loops
from paligemma.preflight.hlo_text import Program, read_program
from paligemma.preflight.targets import find_target

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}

BOTH = pytest.mark.parametrize("target", ["v5e-1", "a100-40"])
ON_EIGHT = pytest.mark.parametrize("target", ["v5e-8", "a100-40-8"])
SPLIT = PartitionSpec("d")


def compiled(
    target: str, function: Callable, *shapes: tuple[int, ...], dtypes: tuple = (), specs: tuple = (), result=None
) -> Program:
    """A function of arrays (bfloat16, on every device, unless told) as a target's compiler makes it."""
    place = find_target(target)
    mesh = Mesh(np.array(topologies.get_topology_desc(**place.topology).devices), ("d",))
    kinds, placed = dtypes or (jnp.bfloat16,) * len(shapes), specs or (PartitionSpec(),) * len(shapes)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in zip(shapes, kinds, placed, strict=True)
    ]
    out = {} if result is None else {"out_shardings": NamedSharding(mesh, result)}
    options = {"xla_gpu_enable_triton_gemm": False} if place.platform == "cuda" else None
    return read_program(jax.jit(function, **out).lower(*arguments).compile(compiler_options=options).as_text())


def layers(x, weights):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


@BOTH
@pytest.mark.parametrize(("dtype", "name"), [(jnp.bfloat16, "bf16"), (jnp.float16, "f16"), (jnp.float32, "f32")])
def test_a_product(target: str, dtype: jnp.dtype, name: str) -> None:
    found = account(compiled(target, jnp.matmul, (512, 1024), (1024, 2048), dtypes=(dtype, dtype)))
    assert found.flops == {name: 2 * 512 * 1024 * 2048}
    assert found.bytes == jnp.dtype(dtype).itemsize * (512 * 1024 + 1024 * 2048 + 512 * 2048)


@BOTH
def test_a_batched_product(target: str) -> None:
    found = account(compiled(target, lambda x, w: jnp.einsum("bij,bjk->bik", x, w), (4, 512, 128), (4, 128, 256)))
    assert found.flops == {"bf16": 2 * 4 * 512 * 128 * 256}
    assert found.bytes == 2 * 4 * (512 * 128 + 128 * 256 + 512 * 256)


@BOTH
def test_a_convolution_of_patches(target: str) -> None:
    def embed(x, w):
        return lax.conv_general_dilated(x, w, (14, 14), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    found = account(compiled(target, embed, (8, 224, 224, 3), (14, 14, 3, 1152)))
    assert sum(found.flops.values()) == 2 * 8 * 256 * (14 * 14 * 3) * 1152


@BOTH
def test_loops_multiply_and_read_a_layers_weights_at_a_time(target: str) -> None:
    once, layer = 2 * 256 * 1024 * 1024, 2 * 1024 * 1024
    found = account(compiled(target, layers, (256, 1024), (6, 1024, 1024)))
    assert found.flops == {"bf16": 6 * once}
    copied = 2 * layer if target == "a100-40" else 0  # NVIDIA's library reads no slice in place
    assert 6 * (layer + copied) < found.bytes < 6 * (layer + copied + 5 * 2 * 256 * 1024)
    sizes = {1024 * 1024}
    assert sum(cost.times for cost in found.weight_copies(sizes)) == (6 if copied else 0)

    def thrice(x, weights):
        return lax.scan(lambda x, _: (layers(x, weights), None), x, None, length=3)[0]

    assert account(compiled(target, thrice, (256, 1024), (6, 1024, 1024))).flops == {"bf16": 3 * 6 * once}


@BOTH
def test_a_loop_that_ends_by_its_data(target: str) -> None:
    def decode(x, weights):
        def running(carry):
            return (carry[0] < 32) & (carry[1].sum() > 0)

        return lax.while_loop(running, lambda carry: (carry[0] + 1, layers(carry[1], weights)), (0, x))

    program = compiled(target, decode, (8, 1024), (6, 1024, 1024))
    (body,) = open_loops(program)
    assert account(program, start=body).flops == {"bf16": 6 * 2 * 8 * 1024 * 1024}
    assert account(program, open_loops=0).flops == {}


@BOTH
def test_a_gather_reads_its_rows(target: str) -> None:
    """The table is too large for a TPU's chip."""
    table, rows = (262144, 1024), 2 * 128 * 1024
    found = account(compiled(target, lambda table, at: table[at], table, (128,), dtypes=(jnp.bfloat16, jnp.int32)))
    assert 2 * rows <= found.bytes <= 2 * rows + 10_000


@BOTH
def test_a_weight_that_is_converted(target: str) -> None:
    """A TPU's compiler converts it on the way to the product. NVIDIA's library takes operands of one dtype."""
    found = account(
        compiled(target, lambda x, w: x @ w.astype(jnp.bfloat16), (512, 1024), (1024, 2048), dtypes=(jnp.bfloat16, jnp.float16))
    )
    assert set(found.flops) == {"bf16"}
    copies = found.weight_copies({1024 * 2048})
    assert [copy.bytes for copy in copies] == ([2 * 2 * 1024 * 2048] if target == "a100-40" else [])


@ON_EIGHT
@pytest.mark.parametrize(
    ("specs", "result", "kind", "received"),
    [
        ((SPLIT, SPLIT), SPLIT, "all-gather", 2 * 1024 * 2048),
        ((PartitionSpec(None, "d"), SPLIT), SPLIT, "reduce-scatter", 2 * 512 * 2048),
        ((PartitionSpec(None, "d"), SPLIT), PartitionSpec(), "all-reduce", 2 * 2 * 512 * 2048),
    ],
)
def test_messages(target: str, specs: tuple, result: PartitionSpec, kind: str, received: int) -> None:
    found = account(compiled(target, jnp.matmul, (512, 1024), (1024, 2048), specs=specs, result=result))
    assert found.flops == {"bf16": 2 * 512 * 1024 * 2048 // 8}
    assert found.collectives == {kind: Collective(kind, 1, received)}


@pytest.mark.parametrize("target", ["v4-1", "v5e-1", "v5p-1", "v6e-1"])
def test_a_large_product_takes_the_cycles_that_its_arithmetic_takes(target: str) -> None:
    place, size = find_target(target), 8192
    found = account(compiled(target, jnp.matmul, (size, size), (size, size)))
    least = 2 * size**3 / (place.tflops * 1e3 / place.clock)
    assert least < found.cycles < 1.5 * least
