"""The cost of compiled programs whose cost is known by hand.

tpu.txt and gpu.txt are the value and gradient, with respect to w, of

    y = tanh(c @ w) seven times, from x         x [512, 512] over 4 devices, w [512, 512]
    sum(y) + sum(exp(einsum("bqd,bkd->bqk", q, q)))            q [24, 128, 64] over 4 devices

in bfloat16, as libtpu 0.0.42 compiled it for a TPU v5e and XLA of jaxlib 0.10.2 for an H100,
without the compilers' notes to themselves.
"""

from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from videomar_jax.accelerators.chips import CHIPS, Chip, chip_of
from videomar_jax.accelerators.cost import Cost, cost_of, largest_temporaries, trip_count
from videomar_jax.accelerators.hlo import Program, parse

HERE = Path(__file__).parent
CHIP = Chip("test", flops=1e3, memory=1e9, bandwidth=1e2)
RECORDED = 2 * 3 * 7 * 128 * 512 * 512 + 2 * 6 * 128 * 128 * 64


def compiled(function, *args) -> Program:
    return parse(jax.jit(function).lower(*args).compile().as_text())


def recorded(name: str) -> Program:
    return parse((HERE / name).read_text())


def ones(*shape) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


# Products


@pytest.mark.parametrize("pattern", ["bqd,bkd->bqk", "qbd,kbd->bqk", "bqd,bqk->bdk", "bqd,kd->bqk"])
def test_products_count_two_for_each_pair(pattern):
    sizes = dict(b=3, q=5, k=7, d=11)
    left, right = (ones(*(sizes[c] for c in each)) for each in pattern.split("->")[0].split(","))
    program = compiled(lambda x, y: jnp.einsum(pattern, x, y), left, right)
    pairs = np.prod([sizes[letter] for letter in set(pattern) - set(",->")])
    assert cost_of(program, CHIP).flops == 2 * pairs


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [
        ((1, 1), ((0, 0), (0, 0)), ((1, 1), (1, 1)), 1),
        ((2, 1), ((1, 1), (0, 2)), ((1, 2), (2, 1)), 2),
        ((1, 3), ((3, 0), (1, 1)), ((2, 1), (1, 2)), 1),
    ],
)
def test_convolutions_count_no_padding(stride, padding, dilation, groups):
    image, kernel = (2, 9, 8, 4), (3, 2, 4 // groups, 6)

    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            stride,
            padding,
            lhs_dilation=dilation[0],
            rhs_dilation=dilation[1],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    program = compiled(convolve, ones(*image), ones(*kernel))
    # An image and weights of ones sum up the pairs that are there.
    pairs = float(jnp.sum(convolve(jnp.ones(image), jnp.ones(kernel))))
    assert cost_of(program, CHIP).flops == 2 * pairs


# Loops and branches


def test_loops_count_as_often_as_they_run():
    def nested(x, w):
        def inner(c, _):
            return jnp.tanh(c @ w), None

        def outer(c, _):
            return jax.lax.scan(inner, c, length=3)[0], None

        return jax.lax.scan(outer, x, length=5)[0]

    program = compiled(nested, ones(8, 16), ones(16, 16))
    cost = cost_of(program, CHIP)
    assert cost.flops == 15 * 2 * 8 * 16 * 16 and cost.endless == 0


def test_a_loop_of_unknown_length_is_one_round_and_said_to_be():
    def halve(x, w):
        return jax.lax.while_loop(lambda c: jnp.sum(c) > 1, lambda c: c @ w, x)

    cost = cost_of(compiled(halve, ones(8, 16), ones(16, 16)), CHIP)
    assert cost.flops == 2 * 8 * 16 * 16 and cost.endless == 1


def test_the_dearest_branch_counts():
    def choose(flag, x):
        return jax.lax.cond(flag, lambda x: x @ x @ x, lambda x: jnp.sin(x @ x), x)

    cost = cost_of(compiled(choose, jax.ShapeDtypeStruct((), bool), ones(16, 16)), CHIP)
    assert cost.flops == 2 * 2 * 16**3


def rounds(text: str) -> list[int | None]:
    program = parse(text)
    return [
        trip_count(program, computation, instruction)
        for computation in program.computations.values()
        for instruction in computation.instructions.values()
        if instruction.opcode == "while"
    ]


LOOP = """
%body (s: (s32[], s32[])) -> (s32[], s32[]) {
  %s = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] get-tuple-element(%s), index=1
  %step = s32[] constant(2)
  %next = s32[] add(%i, %step)
  ROOT %t = (s32[], s32[]) tuple(%next, %n)
}

%condition (c: (s32[], s32[])) -> pred[] {
  %c = (s32[], s32[]) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  %m = s32[] get-tuple-element(%c), index=1
  ROOT %less = pred[] compare(%j, %m), direction=LT
}

ENTRY %main (a: s32[]) -> (s32[], s32[]) {
  %a = s32[] parameter(0)
  %zero = s32[] constant(1)
  %many = s32[] constant(8)
  %copied = s32[] copy(%zero)
  %start = (s32[], s32[]) tuple(%copied, %many)
  ROOT %loop = (s32[], s32[]) while(%start), condition=%condition, body=%body
}
"""


def test_the_rounds_of_a_loop_follow_from_its_counter():
    assert rounds(LOOP) == [4]  # 1, 3, 5, 7
    assert rounds(LOOP.replace("constant(8)", "constant(1)")) == [0]
    assert rounds((HERE / "tpu.txt").read_text()) == [7, 7], "TPU programs do not say it"


@pytest.mark.parametrize(
    "change",
    [
        ("tuple(%copied", "tuple(%a"),
        ("direction=LT", "direction=NE"),
        ("tuple(%next, %n)", "tuple(%next, %next)"),
        ("constant(2)", "constant(0)"),
        ("add(%i, %step)", "multiply(%i, %step)"),
    ],
)
def test_what_does_not_count_upwards_is_not_guessed(change):
    assert change[0] in LOOP
    assert rounds(LOOP.replace(*change)) == [None]


# Recorded programs


@pytest.mark.parametrize("name", ["tpu.txt", "gpu.txt"])
def test_recorded_programs_cost_what_they_compute(name):
    cost = cost_of(recorded(name), CHIP)
    assert cost.flops == RECORDED and cost.endless == 0
    # The gradient of w, and the loss.
    assert cost.collectives == Counter({"all-reduce": 2})
    assert 512 * 512 * 2 < cost.moved["all-reduce"] <= 512 * 512 * 2 + 8


def test_what_stays_in_a_core_moves_no_bytes():
    """On the TPU the loops run in the core's own memory: w comes in for each round, and its
    gradient goes out once. The GPU writes every activation."""
    tpu, gpu = (cost_of(recorded(name), CHIP).read_written for name in ("tpu.txt", "gpu.txt"))
    assert 14 * 512 * 512 * 2 < tpu < 17 * 512 * 512 * 2 < gpu


def test_the_largest_arrays_have_the_line_that_makes_them():
    first, second, *_ = largest_temporaries(recorded("gpu.txt"), "videomar_jax")
    # Partial sums of c @ w, and what the backward pass needs of the seven rounds.
    assert (first.shape, first.source) == ("f32[8,128,512]", "videomar_jax/models/example.py:9")
    assert first.size == 8 * 128 * 512 * 4 and first.count == 2
    assert (second.shape, second.source) == (
        "bf16[7,128,512]",
        "videomar_jax/models/example.py:10",
    )
    assert len(largest_temporaries(recorded("gpu.txt"), "videomar_jax", count=3)) == 3


# Bytes and time


PROGRAM = """
%fused (big: f32[100,8], i: s32[], new: f32[1,8]) -> f32[100,8] {
  %big = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %new = f32[1,8]{1,0} parameter(2)
  %k = s32[] constant(0)
  ROOT %put = f32[100,8]{1,0} dynamic-update-slice(%big, %new, %i, %k)
}

%taken (big.1: f32[100,8], i.1: s32[]) -> f32[8] {
  %big.1 = f32[100,8]{1,0} parameter(0)
  %i.1 = s32[] parameter(1)
  %k.1 = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%big.1, %i.1, %k.1), dynamic_slice_sizes={1,8}
  ROOT %flat = f32[8]{0} bitcast(%row)
}

ENTRY %main (x: f32[100,8], j: s32[], y: f32[1,8]) -> f32[8] {
  %x = f32[100,8]{1,0} parameter(0)
  %j = s32[] parameter(1)
  %y = f32[1,8]{1,0} parameter(2)
  %written = f32[100,8]{1,0} fusion(%x, %j, %y), kind=kLoop, calls=%fused
  ROOT %read = f32[8]{0} fusion(%written, %j), kind=kLoop, calls=%taken
}
"""


def test_slices_count_not_the_arrays_they_are_cut_from():
    row, index = 32, 4
    update, look = 2 * row + index, 2 * row + index
    assert cost_of(parse(PROGRAM), CHIP).read_written == update + look
    in_core = PROGRAM.replace("f32[100,8]{1,0} fusion", "f32[100,8]{1,0:S(1)} fusion")
    assert cost_of(parse(in_core), CHIP).read_written == row + index + row + index


def test_time_is_the_slower_of_products_and_memory_for_each_operation():
    text = """ENTRY %main (a: f32[4,50], b: f32[50,6]) -> f32[4,6] {
  %a = f32[4,50]{1,0} parameter(0)
  %b = f32[50,6]{1,0} parameter(1)
  %c = f32[4,6]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %d = f32[4,6]{1,0} negate(%c)
}
"""
    moved = 4 * (200 + 300 + 24)
    cost = cost_of(parse(text), CHIP)
    assert cost.read_written == moved + 2 * 96
    np.testing.assert_allclose(cost.seconds, moved / 1e2 + 2 * 96 / 1e2)
    fast_memory = Chip("test", flops=1e3, memory=1e9, bandwidth=1e4)
    seconds = cost_of(parse(text), fast_memory).seconds
    np.testing.assert_allclose(seconds, 2 * 4 * 50 * 6 / 1e3 + 2 * 96 / 1e4)


def test_collectives_and_kernels_count_once_a_round_also_in_fusions():
    text = """%inside (p: f32[4]) -> f32[16] {
  %p = f32[4]{0} parameter(0)
  ROOT %g = f32[16]{0} all-gather(%p), dimensions={0}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %f = f32[16]{0} fusion(%a), kind=kCustom, calls=%inside
  %s = (f32[4]{0}, f32[16]{0}) all-gather-start(%a), dimensions={0}
  %e = f32[16]{0} all-gather-done(%s)
  %k = f32[16]{0} custom-call(%e), custom_call_target="tpu_custom_call"
  %n = f32[16]{0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %r = f32[4]{0} reduce-scatter(%f), dimensions={0}, to_apply=%inside
}
"""
    cost = cost_of(parse(text), CHIP)
    assert cost.collectives == Counter({"all-gather": 2, "reduce-scatter": 1})
    assert cost.moved == Counter({"all-gather": 128, "reduce-scatter": 64})
    assert cost.not_counted == Counter({"tpu_custom_call": 1})


def test_rounds_multiply_all_but_the_loops_that_are_not_known():
    cost = Cost(flops=2, seconds=0.5, collectives=Counter({"all-reduce": 3}), endless=1).times(4)
    assert (cost.flops, cost.seconds, cost.endless) == (8, 2.0, 1)
    assert cost.collectives == Counter({"all-reduce": 12})


# Chips


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks_of_known_devices(kind, peak):
    chip = chip_of(kind)
    assert (chip and chip.flops) == peak


def test_every_chip_is_found_by_its_own_name():
    for chip in CHIPS:
        assert chip_of(chip.kind) == chip
