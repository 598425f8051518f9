"""What a compiled program costs one device: FLOPs, bytes, collectives, and its largest arrays.

XLA's own analysis counts the body of a loop once. Here every operation counts as often as it runs:

    loop            body and condition, times the number of its rounds
    branch          the dearest one
    fusion          the products inside, and the arrays that go in and come out
    dot, conv       2 FLOPs for each product of two numbers that are there (not padding)
    slice, update   the bytes of the slice, not of the array that it is cut from or written into

All else that is computed counts in bytes only: outside of products the memory is what limits.
Bytes are those of the device's memory; what stays in a core's own memory is free. The time is a
lower bound (Williams et al. 2009, "Roofline"):

    sum over operations of max(FLOPs / peak, bytes / bandwidth)

Collectives are counted in bytes, but not in this time.
"""

import dataclasses
import functools
import re
from collections import Counter

import numpy as np

from videomar_jax.accelerators.chips import Chip
from videomar_jax.accelerators.hlo import Buffer, Computation, Instruction, Program

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "ragged-all-to-all",
    "reduce-scatter",
)
_ALIASES = ("bitcast", "copy", "convert", "reshape")
_NO_BYTES = (
    "after-all",
    "bitcast",
    "call",
    "conditional",
    "constant",
    "get-tuple-element",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
    "while",
)
_SLICES = ("dynamic-slice", "slice", "gather")


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of all rounds together, on one device."""

    flops: int = 0
    """Of products."""
    read_written: int = 0
    """Bytes of the device's memory."""
    seconds: float = 0.0
    """The lower bound, without collectives."""
    collectives: Counter[str] = dataclasses.field(default_factory=Counter)
    """Kind → how often."""
    moved: Counter[str] = dataclasses.field(default_factory=Counter)
    """Kind of collective → bytes, of what goes in or of what comes out: the larger."""
    not_counted: Counter[str] = dataclasses.field(default_factory=Counter)
    """Kernels whose FLOPs the text does not say → how often."""
    endless: int = 0
    """Loops whose number of rounds is not known, counted as one round."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            *(getattr(self, f.name) + getattr(other, f.name) for f in dataclasses.fields(Cost))
        )

    def times(self, rounds: int) -> "Cost":
        """The cost of so many rounds; a loop that is not known stays one."""
        scaled = {}
        for field in dataclasses.fields(Cost):
            value = getattr(self, field.name)
            if isinstance(value, Counter):
                scaled[field.name] = Counter({key: rounds * n for key, n in value.items()})
            else:
                scaled[field.name] = value * rounds
        return Cost(**scaled | {"endless": self.endless})


@dataclasses.dataclass(frozen=True)
class Temporary:
    """Arrays of one shape that one line of the source makes."""

    size: int
    """Bytes of one of them."""
    shape: str
    source: str
    """The line; where the program does not say it, the name of the operation."""
    count: int
    """Operations that make one; not all of them need to be alive together."""


def cost_of(program: Program, chip: Chip) -> Cost:
    """The cost of one run of the program on one device."""

    @functools.cache
    def total(name: str) -> Cost:
        cost = Cost()
        for instruction in program.computations[name].instructions.values():
            cost += of_instruction(program.computations[name], instruction)
        return cost

    def of_instruction(computation: Computation, instruction: Instruction) -> Cost:
        called = instruction.called
        if instruction.opcode == "while":
            rounds = trip_count(program, computation, instruction)
            (body,), (condition,) = called["body"], called["condition"]
            cost = (total(body) + total(condition)).times(1 if rounds is None else rounds)
            return cost + Cost(endless=int(rounds is None))
        if instruction.opcode == "conditional":
            branches = [total(name) for role in called for name in called[role]]
            return max(branches, key=lambda cost: (cost.seconds, cost.flops))
        if instruction.opcode in ("call", "async-start"):
            names = called.get("to_apply", ()) + called.get("calls", ())
            return sum((total(name) for name in names), Cost())
        flops = _flops(program, computation, instruction)
        bytes_ = _bytes(program, computation, instruction)
        seconds = max(flops / chip.flops, bytes_ / chip.bandwidth)
        cost = Cost(flops=flops, read_written=bytes_, seconds=seconds)
        return cost + _collectives(program, computation, instruction)

    return total(program.entry)


# Loops


def trip_count(program: Program, computation: Computation, loop: Instruction) -> int | None:
    """The rounds of a loop: as XLA says, or by its condition `counter < bound`; None: not known."""
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known is not None:
        return int(known)
    condition = program.computations[loop.called["condition"][0]]
    body = program.computations[loop.called["body"][0]]
    test = condition.instructions[condition.root]
    if test.opcode != "compare" or "direction=LT" not in test.attributes:
        return None
    place = _carried(condition, test.operands[0])
    update = body.instructions[body.root]
    if place is None or update.opcode != "tuple":
        return None
    following = body.instructions[update.operands[place]]
    if following.opcode != "add" or _carried(body, following.operands[0]) != place:
        return None
    start = _initial(program, computation, loop, place)
    step = _constant(program, body, following.operands[1])
    bound = _constant(program, condition, test.operands[1])
    if start is None or step is None or bound is None or step < 1:
        return None
    return max(-(-(bound - start) // step), 0)


def _carried(computation: Computation, name: str) -> int | None:
    """Which element of a loop's state a value is; None: it is another."""
    instruction = computation.instructions[name]
    if instruction.opcode in ("bitcast", "copy"):
        return _carried(computation, instruction.operands[0])
    if instruction.opcode != "get-tuple-element":
        return None
    if computation.instructions[instruction.operands[0]].opcode != "parameter":
        return None
    return int(instruction.attribute(r"index=(\d+)") or 0)


def _constant(program: Program, computation: Computation, name: str) -> int | None:
    """The value of a number that does not change; None where it is not known."""
    instruction = computation.instructions[name]
    if instruction.opcode == "constant":
        return int(instruction.literal) if re.fullmatch(r"-?\d+", instruction.literal) else None
    if instruction.opcode in _ALIASES:
        return _constant(program, computation, instruction.operands[0])
    place = _carried(computation, name)
    if place is None:
        return None
    # What a loop carries along unchanged is what it started with.
    for caller in program.computations.values():
        for loop in caller.instructions.values():
            if loop.opcode != "while" or computation.name not in (
                *loop.called["body"],
                *loop.called["condition"],
            ):
                continue
            body = program.computations[loop.called["body"][0]]
            update = body.instructions[body.root]
            if update.opcode == "tuple" and _carried(body, update.operands[place]) == place:
                return _initial(program, caller, loop, place)
    return None


def _initial(
    program: Program, computation: Computation, loop: Instruction, place: int
) -> int | None:
    """What an element of a loop's state starts with."""
    state = computation.instructions[loop.operands[0]]
    if state.opcode != "tuple":
        return None
    return _constant(program, computation, state.operands[place])


# FLOPs


def _flops(program: Program, computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode == "fusion":
        inner = program.computations[instruction.called["calls"][0]]
        return sum(_flops(program, inner, each) for each in inner.instructions.values())
    operands = [computation.instructions[name] for name in instruction.operands]
    if instruction.opcode == "dot":
        sizes = operands[0].outputs[0].dims
        summed = [sizes[axis] for axis in instruction.dimensions("lhs_contracting_dims")]
        return 2 * _numbers(instruction.outputs[0].dims) * _numbers(summed)
    if instruction.opcode == "convolution":
        return _convolution_flops(
            instruction, operands[0].outputs[0].dims, operands[1].outputs[0].dims
        )
    return 0


def _convolution_flops(
    instruction: Instruction, image: tuple[int, ...], kernel: tuple[int, ...]
) -> int:
    """2 for each pair of an input and a weight; XLA for TPU writes matrix products this way, too,
    those of a batch as a convolution along the batch whose padding and dilation leave one pair of
    many."""
    labels = instruction.attribute(r"dim_labels=([\w?]+_[\w?]+->[\w?]+)")
    assert labels is not None, instruction
    image_labels, kernel_labels, output_labels = re.split(r"_|->", labels)
    groups = int(instruction.attribute(r"feature_group_count=(\d+)") or 1)
    batch_groups = int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    pairs = image[image_labels.index("b")] // batch_groups
    pairs *= image[image_labels.index("f")] // groups
    pairs *= kernel[kernel_labels.index("o")]
    window = instruction.attribute(r"window=\{([^}]*)\}") or ""
    fields = dict(field.split("=") for field in window.split())
    output = instruction.outputs[0].dims
    for axis in sorted(set(image_labels) - set("bf")):
        number = int(axis)

        def setting(name: str, default: str, number: int = number) -> str:
            return fields[name].split("x")[number] if name in fields else default

        pairs *= _window_pairs(
            image[image_labels.index(axis)],
            kernel[kernel_labels.index(axis)],
            output[output_labels.index(axis)],
            stride=int(setting("stride", "1")),
            before=int(setting("pad", "0_0").split("_")[0]),
            dilation=(int(setting("lhs_dilate", "1")), int(setting("rhs_dilate", "1"))),
        )
    return 2 * pairs


def _window_pairs(
    size: int, kernel: int, output: int, *, stride: int, before: int, dilation: tuple[int, int]
) -> int:
    """Along one axis, (output, tap) pairs whose input is there, not padding."""
    of_image, of_kernel = dilation
    taps = np.arange(kernel) * of_kernel - before
    places = np.arange(output)[:, None] * stride + taps
    there = (places >= 0) & (places < (size - 1) * of_image + 1) & (places % of_image == 0)
    return int(there.sum())


def _numbers(dims) -> int:
    return int(np.prod(dims, dtype=np.int64))


# Bytes


def _bytes(program: Program, computation: Computation, instruction: Instruction) -> int:
    opcode = instruction.opcode
    if (
        opcode in _NO_BYTES
        or opcode.endswith("-done")
        or "AllocateBuffer" in instruction.attributes
    ):
        return 0
    operands = [computation.instructions[name].outputs for name in instruction.operands]
    if opcode == "fusion":
        inner = program.computations[instruction.called["calls"][0]]
        read = 0
        for number, outputs in enumerate(operands):
            parameter = inner.parameter(number)
            if parameter is not None:
                read += min(_read(program, inner, parameter), _in_memory(outputs))
        return read + _written(program, inner, inner.root, instruction.outputs)
    if opcode in _SLICES:
        return _in_memory(instruction.outputs) + min(
            instruction.size, _in_memory(operands[0]) if operands else 0
        )
    if opcode == "dynamic-update-slice":
        return 2 * min(_in_memory(operands[0]), sum(each.size for each in operands[1]))
    read = sum(_in_memory(outputs) for outputs in operands)
    written = _in_memory(instruction.outputs)
    if opcode.endswith("-start"):
        # The result of a start names its operands once more.
        written = max(written - read, 0)
    return read + written


def _in_memory(outputs: tuple[Buffer, ...]) -> int:
    """Bytes in the device's memory."""
    return sum(buffer.size for buffer in outputs if buffer.space == 0)


def _read(program: Program, computation: Computation, source: Instruction) -> int:
    """Bytes of an array that the inside of a fusion looks at."""
    total = 0
    for user in computation.users[source.name]:
        first = user.operands[0] == source.name
        if user.opcode in _SLICES and first:
            total += user.size
        elif user.opcode == "dynamic-update-slice" and first:
            continue  # written in place
        elif user.opcode in ("bitcast", "reshape"):
            total += _read(program, computation, user)
        elif user.opcode == "fusion":
            inner = program.computations[user.called["calls"][0]]
            for number, name in enumerate(user.operands):
                parameter = inner.parameter(number) if name == source.name else None
                if parameter is not None:
                    total += _read(program, inner, parameter)
        else:
            return source.size
    return total


def _written(
    program: Program, computation: Computation, name: str, outputs: tuple[Buffer, ...]
) -> int:
    """Bytes of a fusion's result that are new."""
    root = computation.instructions[name]
    if root.opcode == "tuple":
        each = zip(root.operands, outputs, strict=True)
        return sum(_written(program, computation, part, (buffer,)) for part, buffer in each)
    if root.opcode == "dynamic-update-slice":
        update = computation.instructions[root.operands[1]]
        return min(update.size, _in_memory(outputs))
    if root.opcode in ("bitcast", "reshape"):
        return _written(program, computation, root.operands[0], outputs)
    if root.opcode == "fusion":
        inner = program.computations[root.called["calls"][0]]
        return _written(program, inner, inner.root, outputs)
    return _in_memory(outputs)


# Collectives and kernels


def _collectives(program: Program, computation: Computation, instruction: Instruction) -> Cost:
    """The collectives and the kernels that are not counted, also those inside of a fusion."""
    if instruction.opcode == "fusion":
        inner = program.computations[instruction.called["calls"][0]]
        parts = [_collectives(program, inner, each) for each in inner.instructions.values()]
        return sum(parts, Cost())
    kind = instruction.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        taken = sum(computation.instructions[name].size for name in instruction.operands)
        given = instruction.size
        if instruction.opcode.endswith("-start") and given > taken:
            given -= taken
        return Cost(collectives=Counter({kind: 1}), moved=Counter({kind: max(taken, given)}))
    target = instruction.attribute(r'custom_call_target="([^"]*)"')
    if instruction.opcode == "custom-call" and target and not _is_plain(target):
        return Cost(not_counted=Counter({target: 1}))
    return Cost()


def _is_plain(target: str) -> bool:
    """A call that computes nothing."""
    plain = ("AllocateBuffer", "Sharding", "SPMD", "MoveTo", "annotate", "GatherScatterIndices")
    return target.startswith(plain)


# Arrays


def largest_temporaries(program: Program, package: str, count: int = 5) -> list[Temporary]:
    """The largest arrays in the device's memory that the program makes beside its results.

    Args:
        package: a folder's name, whose lines are preferred as sources (`Program.source`).
    """
    found: Counter[tuple[int, str, str]] = Counter()
    known = set()
    for computation in _executed(program):
        root = computation.instructions[computation.root]
        results = (root.name, *root.operands) if computation.name == program.entry else ()
        for instruction in computation.instructions.values():
            if instruction.opcode in _NO_BYTES or instruction.opcode.endswith("-done"):
                continue
            if instruction.name in results:
                continue
            source = _source(program, instruction, package)
            for buffer in _made(instruction):
                if buffer.space == 0:
                    found[buffer.size, str(buffer), source] += 1
                    known.update([str(buffer)] if ":" in source else [])
    temporaries = []
    for (size, shape, source), times in found.items():
        # An empty array that a loop fills has no source; what fills it has.
        if ":" in source or shape not in known:
            temporaries.append(Temporary(size, shape, source, times))
    return sorted(temporaries, key=lambda each: -each.size)[:count]


def _made(instruction: Instruction) -> tuple[Buffer, ...]:
    """The arrays of a result that are new: that of a start names its operands once more."""
    # It moves an array between memories, mostly a result.
    if instruction.opcode == "copy-start":
        return ()
    if instruction.opcode.endswith("-start"):
        return (max(instruction.outputs, key=lambda buffer: buffer.size),)
    return instruction.outputs


def _source(program: Program, instruction: Instruction, package: str) -> str:
    source = program.source(instruction, package)
    if source is None and instruction.opcode == "fusion":
        inner = program.computations[instruction.called["calls"][0]]
        return _source(program, inner.instructions[inner.root], package)
    return source or instruction.attribute(r'op_name="([^"]*)"') or instruction.opcode


def _executed(program: Program) -> list[Computation]:
    """The computations whose instructions have memory of their own: not those of fusions."""
    names = [program.entry]
    for name in names:
        for instruction in program.computations[name].instructions.values():
            if instruction.opcode in ("while", "conditional", "call", "async-start"):
                for called in instruction.called.values():
                    names.extend(each for each in called if each not in names)
    return [program.computations[name] for name in names]
