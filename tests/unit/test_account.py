"""The account of a compiled program equals what is computed by hand: programs of this machine's compiler, and others' texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from paligemma.preflight.account import Account, Collective, account, open_loops
from paligemma.preflight.hlo_text import ArrayShape, Program, read_program


def compiled(function: Callable, *shapes: tuple[int, ...], dtypes: tuple = ()) -> Program:
    """A function of arrays (float32 unless told) as this machine's compiler makes it."""
    kinds = dtypes or (jnp.float32,) * len(shapes)
    arguments = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in zip(shapes, kinds, strict=True)]
    return read_program(jax.jit(function).lower(*arguments).compile().as_text())


def of_text(*lines: str, above: str = "") -> Account:
    """The account of an entry computation with these lines."""
    return account(read_program("\n".join([above, "ENTRY %main () -> f32[] {", *(f"  {line}" for line in lines), "}", ""])))


def layers(x, weights):
    return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]


def test_a_product_reads_its_operands_and_writes_its_result() -> None:
    found = account(compiled(jnp.matmul, (64, 32), (32, 16)))
    assert found.flops == {"f32": 2 * 64 * 32 * 16}
    assert found.bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert (found.cycles, found.collectives) == (0, {})


def test_a_batched_product() -> None:
    found = account(compiled(lambda x, w: jnp.einsum("bij,bjk->bik", x, w), (5, 64, 32), (5, 32, 16)))
    assert found.flops == {"f32": 2 * 5 * 64 * 32 * 16}


def test_a_convolution_counts_where_its_window_lies_on_data() -> None:
    """Of 8 elements, with a kernel of 3 and a stride of 2: 3, 3, 3, and 2 at the padded end."""

    def convolve(x, w):
        return lax.conv_general_dilated(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    assert account(compiled(convolve, (2, 8, 8, 6), (3, 3, 6, 10))).flops == {"f32": 2 * 2 * 6 * 10 * 11**2}


@given(
    length=st.integers(1, 9), kernel=st.integers(1, 4), stride=st.integers(1, 3), low=st.integers(0, 3), high=st.integers(0, 3),
    dilate=st.integers(1, 3), dilate_kernel=st.integers(1, 3), batch=st.integers(1, 3),
)  # fmt: skip
def test_a_convolution_of_any_window(
    length: int, kernel: int, stride: int, low: int, high: int, dilate: int, dilate_kernel: int, batch: int
) -> None:
    """Against a convolution of ones with ones, whose results count the elements that the window met."""
    left, right = np.ones((batch, 1, length), np.float32), np.ones((1, 1, kernel), np.float32)
    padded = (length - 1) * dilate + 1 + low + high
    if padded < (kernel - 1) * dilate_kernel + 1:
        return
    met = lax.conv_general_dilated(left, right, (stride,), [(low, high)], (dilate,), (dilate_kernel,))
    window = f"size={kernel} stride={stride} pad={low}_{high} lhs_dilate={dilate} rhs_dilate={dilate_kernel}"
    found = of_text(
        f"%a = f32[{batch},4,{length}]{{2,1,0}} parameter(0)",
        f"%b = f32[8,4,{kernel}]{{2,1,0}} parameter(1)",
        f"ROOT %c = f32[{batch},8,{met.shape[2]}]{{2,1,0}} convolution(%a, %b), window={{{window}}}, dim_labels=bf0_oi0->bf0",
    )
    assert sum(found.flops.values()) == 2 * 4 * 8 * int(met.sum())


def test_loops_multiply() -> None:
    once = 2 * 8 * 64 * 64
    assert account(compiled(layers, (8, 64), (6, 64, 64))).flops == {"f32": 6 * once}

    def thrice(x, weights):
        return lax.scan(lambda x, _: (layers(x, weights), None), x, None, length=3)[0]

    assert account(compiled(thrice, (8, 64), (6, 64, 64))).flops == {"f32": 3 * 6 * once}


def test_a_loop_reads_one_layers_part_of_a_stacked_weight_at_a_time() -> None:
    def scale(x, weights):
        return lax.scan(lambda x, w: (x * w, None), x, weights)[0]

    found, size = account(compiled(scale, (256, 256), (6, 256, 256))), 4 * 256**2
    # Each time x and a part are read, and x is written; before, x is copied, as the caller's is not to change.
    assert found.bytes == pytest.approx(6 * 3 * size + 2 * size, rel=1e-3)


def test_a_gather_reads_the_rows_that_it_takes() -> None:
    found = account(compiled(lambda table, at: table[at], (5000, 64), (10,), dtypes=(jnp.float32, jnp.int32)))
    rows = 10 * 64 * 4
    assert 2 * rows <= found.bytes <= 2 * rows + 1000


def test_an_update_in_a_loop_writes_its_slice() -> None:
    def fill(cache, row):
        return lax.fori_loop(0, 50, lambda at, cache: lax.dynamic_update_slice(cache, row * at, (at, 0)), cache)

    found, row, cache = account(compiled(fill, (50, 1024), (1, 1024))), 4 * 1024, 4 * 50 * 1024
    assert 50 * 2 * row <= found.bytes <= 2 * cache + 50 * 5 * row


def test_the_largest_branch_counts() -> None:
    def branch(choice, x, w):
        return lax.cond(choice > 0, lambda: x @ w, lambda: x * 2)

    program = compiled(branch, (), (256, 256), (256, 256), dtypes=(jnp.int32, jnp.float32, jnp.float32))
    assert account(program).flops == {"f32": 2 * 256**3}


def test_a_loop_that_ends_by_its_data_runs_as_often_as_told() -> None:
    def decode(x, weights):
        def running(carry):
            return (carry[0] < 32) & (carry[1].sum() > 0)

        return lax.while_loop(running, lambda carry: (carry[0] + 1, layers(carry[1], weights)), (0, jnp.tanh(x @ weights[0])))

    program, once = compiled(decode, (8, 64), (6, 64, 64)), 2 * 8 * 64 * 64
    (body,) = open_loops(program)
    assert account(program, start=body).flops == {"f32": 6 * once}
    for runs in (0, 1, 5):
        assert account(program, open_loops=runs).flops == {"f32": once + runs * 6 * once}
    whole, before, one = (account(program, *how).bytes for how in ((None, 5), (None, 0), (body,)))
    assert whole == before + 5 * one


@pytest.mark.parametrize(
    ("send", "kind", "received"),
    [
        (lambda x: lax.all_gather(x, "d", tiled=True), "all-gather", 4 * 64 * 16),
        (lambda x: lax.psum_scatter(x, "d", tiled=True), "reduce-scatter", 4 * 8 * 16),
        (lambda x: lax.psum(x, "d"), "all-reduce", 2 * 4 * 8 * 16),
        (lambda x: lax.all_to_all(x, "d", 0, 0, tiled=True), "all-to-all", 4 * 8 * 16),
        (lambda x: lax.ppermute(x, "d", [(n, (n + 1) % 8) for n in range(8)]), "collective-permute", 4 * 8 * 16),
    ],
)
def test_messages_of_eight_devices(send: Callable, kind: str, received: int) -> None:
    mesh, spec = Mesh(np.array(jax.devices()[:8]), ("d",)), PartitionSpec("d")

    def thrice(x):  # in a loop, and the result is used, so that nothing is left out
        return lax.fori_loop(0, 3, lambda _, x: x + send(x).sum(), x)

    found = account(compiled(jax.shard_map(thrice, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False), (64, 16)))
    assert found.collectives == {kind: Collective(kind, 3, 3 * received)}
    assert found.received == 3 * received


@pytest.mark.parametrize(
    ("left", "right", "named"),
    [("bf16", "bf16", "bf16"), ("f16", "f16", "f16"), ("f32", "f32", "f32"), ("bf16", "f32", "f32"), ("f32", "f16", "f32")],
)
def test_a_products_dtype_is_that_of_its_wider_operand(left: str, right: str, named: str) -> None:
    found = of_text(
        f"%a = {left}[4,8]{{1,0}} parameter(0)",
        f"%b = {right}[8,2]{{1,0}} parameter(1)",
        "ROOT %c = f32[4,2]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
    )
    assert found.flops == {named: 2 * 4 * 8 * 2}


@pytest.fixture
def named_operations() -> Iterator[None]:
    """Operations say which function they are of, which tests do without elsewhere (`conftest.py`)."""
    before = jax.config.jax_include_full_tracebacks_in_locations
    jax.config.update("jax_include_full_tracebacks_in_locations", True)
    yield
    jax.config.update("jax_include_full_tracebacks_in_locations", before)


@pytest.mark.usefixtures("named_operations")
def test_a_weight_that_is_written_again_is_found() -> None:
    def apply(x, w):
        return x @ (w.astype(jnp.float32) * 2)

    found = account(compiled(apply, (8, 512), (512, 256), dtypes=(jnp.float32, jnp.float16)))
    (copy,) = found.weight_copies({512 * 256})
    assert [array.bytes for array in copy.written] == [4 * 512 * 256]
    assert copy.bytes == (2 + 4) * 512 * 256
    assert "jit(apply)" in copy.source
    assert found.weight_copies({512 * 255}) == []
    assert account(compiled(lambda x, w: x @ w, (8, 512), (512, 256))).weight_copies({512 * 256}) == []


SLICED = """\
%slice (p: bf16[6,64,64], at: s32[]) -> bf16[64,64] {
  %p = bf16[6,64,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  %at = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %cut = bf16[1,64,64]{2,1,0} dynamic-slice(%p, %at, %zero, %zero), dynamic_slice_sizes={1,64,64}
  ROOT %flat = bf16[64,64]{1,0} bitcast(%cut)
}

%layer (x: bf16[8,64], w: bf16[6,64,64], at: s32[]) -> bf16[8,64] {
  %x = bf16[8,64]{1,0} parameter(0)
  %w = bf16[6,64,64]{2,1,0} parameter(1)
  %at = s32[]{:S(6)} parameter(2)
  %part = bf16[64,64]{1,0} fusion(%w, %at), kind=kLoop, calls=%slice
  ROOT %y = bf16[8,64]{1,0:S(1)} convolution(%x, %part), dim_labels=bf_io->bf
}
"""


def test_a_tpus_fusion_reads_a_slice_and_its_cycles_are_told() -> None:
    found = of_text(
        "%x = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} parameter(0)",
        "%w = bf16[6,64,64]{2,1,0:T(8,128)(2,1)} parameter(1)",
        "%at = s32[]{:T(128)S(6)} parameter(2)",
        "%copy = bf16[8,64]{1,0} copy(%x)",
        "ROOT %y = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} fusion(%copy, %w, %at), kind=kOutput, calls=%layer, "
        'metadata={op_name="jit(f)/dot"}, backend_config={"window_config":{"estimated_cycles":"10531"}}',
        above=SLICED,
    )
    assert found.flops == {"bf16": 2 * 8 * 64 * 64}
    assert found.bytes == 2 * 8 * 64 + 2 * (8 * 64 + 64 * 64)  # the copy is written and read; x and y are on the chip
    assert found.cycles == 10531
    assert found.costs[-1].source == "jit(f)/dot"


LAID_OUT_ANEW = """\
%laid_out (p: s8[6,64,64]) -> s8[6,64,64] {
  %p = s8[6,64,64]{2,1,0:T(32,128)(4,1)} parameter(0)
  ROOT %copy = s8[6,64,64]{2,1,0:T(8,128)(4,1)} copy(%p)
}

%slice (p: s8[6,64,64], at: s32[]) -> s8[64,64] {
  %p = s8[6,64,64]{2,1,0:T(32,128)(4,1)} parameter(0)
  %all = s8[6,64,64]{2,1,0:T(8,128)(4,1)} fusion(%p), kind=kLoop, calls=%laid_out
  %at = s32[]{:T(128)S(6)} parameter(1)
  %zero = s32[]{:T(128)} constant(0)
  %cut = s8[1,64,64]{2,1,0} dynamic-slice(%all, %at, %zero, %zero), dynamic_slice_sizes={1,64,64}
  ROOT %flat = s8[64,64]{1,0} bitcast(%cut)
}
"""


def test_a_stack_that_a_tpu_lays_out_anew_where_it_slices_it_is_read_where_it_is_sliced() -> None:
    found = of_text(
        "%w = s8[6,64,64]{2,1,0:T(32,128)(4,1)} parameter(0)",
        "%at = s32[]{:T(128)S(6)} parameter(1)",
        "ROOT %y = s8[64,64]{1,0:T(8,128)(4,1)S(1)} fusion(%w, %at), kind=kLoop, calls=%slice",
        above=LAID_OUT_ANEW,
    )
    assert found.bytes == 64 * 64


def test_a_batched_product_that_a_tpu_writes_as_a_dilated_convolution() -> None:
    found = of_text(
        "%a = bf16[4,512,128]{2,1,0} parameter(0)",
        "%b = bf16[4,128,256]{2,1,0} parameter(1)",
        "ROOT %c = bf16[4,512,256]{2,1,0} convolution(%a, %b), window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
    )
    assert found.flops == {"bf16": 2 * 4 * 512 * 128 * 256}


def test_a_windows_axes_are_named_and_not_in_order() -> None:
    """A gradient as the TPU's compiler writes it: of axis 0, one of two places of a padded kernel meets the input each time."""
    found = of_text(
        "%a = bf16[2,8,383,256,1]{2,3,1,0,4} parameter(0)",
        "%b = bf16[8,383,2,256,1]{3,1,0,4,2} parameter(1)",
        "ROOT %c = bf16[2,256,2,256,1]{3,1,4,0,2} convolution(%a, %b), "
        "window={size=2x1x8 pad=1_1x0_0x0_0 rhs_reversal=1x0x0}, dim_labels=12fb0_2i0o1->1b0f2",
    )
    assert found.flops == {"bf16": 2 * (2 * 2) * 256 * 256 * (8 * 383)}


def test_what_is_started_and_waited_for_counts_once() -> None:
    found = of_text(
        "%w = bf16[1024]{0} parameter(0)",
        "%start = (bf16[1024]{0:S(1)}, bf16[1024]{0}, u32[]{:S(2)}) copy-start(%w), cross_program_prefetch_index=0",
        "%slice-start = ((bf16[1024]{0}), bf16[100]{0:S(1)}, u32[]{:S(2)}) slice-start(%w), slice={[0:100]}",
        "%slice-done = bf16[100]{0:S(1)} slice-done(%slice-start)",
        "%gathered-start = (bf16[1024]{0}, bf16[8192]{0}) all-gather-start(%w), dimensions={0}, "
        "replica_groups=mesh['a'=8,'b'=1] {'a'}",
        "%gathered = bf16[8192]{0} all-gather-done(%gathered-start)",
        "ROOT %done = bf16[1024]{0:S(1)} copy-done(%start)",
    )
    assert [cost.bytes for cost in found.costs] == [2 * 1024, 2 * 100, 2 * (1024 + 8192)]
    assert found.collectives == {"all-gather": Collective("all-gather", 1, 2 * 8192)}


def test_a_tpus_fused_sum_and_slice_is_a_reduce_scatter() -> None:
    fused = """\
%all-reduce-scatter.1 (p: bf16[512]) -> bf16[64] {
  %p = bf16[512]{0} parameter(0)
  %sum = bf16[512]{0} all-reduce(%p), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %at = u32[] partition-id()
  ROOT %part = bf16[64]{0} dynamic-slice(%sum, %at), dynamic_slice_sizes={64}
}
"""
    found = of_text(
        "%p = bf16[512]{0} parameter(0)",
        "ROOT %f = bf16[64]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1",
        above=fused,
    )
    assert found.collectives == {"reduce-scatter": Collective("reduce-scatter", 1, 2 * 512)}
    assert found.bytes == 2 * (512 + 64)


def test_a_call_of_nvidias_library_is_a_product_and_its_workspace_is_nothing() -> None:
    found = of_text(
        "%x = bf16[4,512,128]{2,1,0} parameter(0)",
        "%w = bf16[4,128,256]{2,1,0} parameter(1)",
        "%y = (bf16[4,512,256]{2,1,0}, /*index=1*/s8[4194304]{0}) custom-call(%x, %w), "
        'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
        '{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"]}}}',
        "ROOT %result = bf16[4,512,256]{2,1,0} get-tuple-element(%y), index=0",
    )
    assert found.flops == {"bf16": 2 * 4 * 512 * 128 * 256}
    assert found.bytes == 2 * 4 * (512 * 128 + 128 * 256 + 512 * 256)


def test_an_update_that_is_converted_afterwards_writes_everything() -> None:
    update = """\
%update (p: f32[100,8], row: f32[1,8], at: s32[]) -> {result}[100,8] {{
  %p = f32[100,8]{{1,0}} parameter(0)
  %row = f32[1,8]{{1,0}} parameter(1)
  %at = s32[] parameter(2)
  {inside}
}}
"""
    new = "f32[100,8]{1,0} dynamic-update-slice(%p, %row, %at, %at)"
    lines = ["%p = f32[100,8]{1,0} parameter(0)", "%row = f32[1,8]{1,0} parameter(1)", "%at = s32[] parameter(2)"]
    call = "fusion(%p, %row, %at), kind=kLoop, calls=%update"
    in_place = of_text(
        *lines, f"ROOT %f = f32[100,8]{{1,0}} {call}", above=update.format(result="f32", inside=f"ROOT %n = {new}")
    )
    assert in_place.bytes == 4 * (8 + 1 + 8)
    converted = f"%n = {new}\n  ROOT %c = bf16[100,8]{{1,0}} convert(%n)"
    whole = of_text(*lines, f"ROOT %f = bf16[100,8]{{1,0}} {call}", above=update.format(result="bf16", inside=converted))
    assert whole.bytes == 4 * (800 + 8 + 1) + 2 * 800


def test_a_fusion_of_a_fusion_that_gives_several_arrays_writes_each() -> None:
    above = """%inner (a: f32[8]) -> (f32[8], f32[4]) {
  %a = f32[8]{0} parameter(0)
  %half = f32[4]{0} slice(%a), slice={[0:4]}
  ROOT %both = (f32[8]{0}, f32[4]{0}) tuple(%a, %half)
}
%outer (b: f32[8]) -> (f32[8], f32[4]) {
  %b = f32[8]{0} parameter(0)
  ROOT %two = (f32[8]{0}, f32[4]{0}) fusion(%b), kind=kLoop, calls=%inner
}
"""
    found = of_text(
        "%x = f32[8]{0} parameter(0)",
        "%given = (f32[8]{0}, f32[4]{0}) fusion(%x), kind=kOutput, calls=%outer",
        "ROOT %first = f32[8]{0} get-tuple-element(%given), index=0",
        above=above,
    )
    assert [(cost.read, [array.bytes for array in cost.written]) for cost in found.costs] == [(32, [32, 16])]


def test_seconds_are_the_longer_of_products_and_bytes_one_instruction_after_another() -> None:
    found = of_text(
        "%a = f32[100,100]{1,0} parameter(0)",
        "%b = f32[100,100]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
        "ROOT %c = f32[100,100]{1,0} copy(%b)",
    )
    products, moved = 2e6, 4e4

    def seconds(speed: float, bandwidth: float, links: float = 0) -> float:
        return found.seconds(lambda dtype: {"f32": speed}[dtype], bandwidth, links)

    assert seconds(1e6, 1e9) == pytest.approx(products / 1e6 + 2 * moved / 1e9)
    assert seconds(1e12, 1e6) == pytest.approx((3 + 2) * moved / 1e6)
    started = of_text("%w = f32[1000]{0} parameter(0)", "ROOT %s = (f32[1000]{0:S(1)}, f32[1000]{0}, u32[]) copy-start(%w)")
    assert started.seconds(lambda _: 1.0, 1e3, 0.0) == 4
    sent = of_text("%w = f32[1000]{0} parameter(0)", "ROOT %s = f32[1000]{0} all-to-all(%w)")
    assert sent.seconds(lambda _: 1.0, 1e9, 1e3) == 4


def test_sizes_of_arrays() -> None:
    sizes = {"pred": 4, "s4": 2, "u8": 4, "f8e4m3fn": 4, "bf16": 8, "f32": 16, "c64": 32, "token": 0, "opaque": 0}
    assert {dtype: ArrayShape(dtype, (2, 2)).bytes for dtype in sizes} == sizes
    assert ArrayShape("f32", ()).bytes == 4


@pytest.mark.parametrize("text", ["", "no program", "ENTRY %main () -> f32[] {\n  %a = what(\n}\n"])
def test_what_is_no_program_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no HLO"):
        read_program(text)
