"""The text of a compiled XLA program as instructions: `compiled.as_text()`, read.

A program is a set of computations, each a list of instructions:

    ENTRY %main (p: f32[8,4]) -> f32[8,4] {
      %w = f32[8,4]{1,0} while(%t), condition=%c, body=%b, backend_config={"known_trip_count":…}
      ROOT %f = f32[8,4]{1,0} fusion(%w), kind=kLoop, calls=%fused, metadata={stack_frame_id=3}
    }

Layouts may name a memory space, as S(1) in {1,0:T(8,128)S(1)}: the vector memory of a TPU core. No
number is the memory of the device. Tables in front of the computations say which line of which file
made an instruction. XLA promises no stability of this text; it was read as jaxlib 0.10 prints it
for CPU, CUDA and TPU.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

from videomar_jax.checks import UserError

_SHAPE = re.compile(r"([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%([\w.\-]+) = (.*)")
_COMPUTATION = re.compile(r"(ENTRY )?%([\w.\-]+) \(.*\{$")
_CALLED = re.compile(
    r"(condition|body|calls|to_apply|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    space: int = 0
    """The memory it lies in; 0: that of the device."""

    @property
    def size(self) -> int:
        """Bytes, without the padding of a layout's tiles."""
        return math.prod(self.dims) * _bits(self.dtype) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dims))}]"


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    outputs: tuple[Buffer, ...]
    """The result; of a tuple all its arrays."""
    operands: tuple[str, ...]
    """Names of instructions of the same computation."""
    literal: str
    """What stands between the parentheses: the value of a constant, the number of a parameter."""
    attributes: str
    """What stands behind them."""

    @functools.cached_property
    def called(self) -> dict[str, tuple[str, ...]]:
        """Role ("body", "calls", …) → names of computations."""
        found = {}
        for role, names in _CALLED.findall(self.attributes):
            found[role] = tuple(_NAME.findall(names))
        return found

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression in the attributes."""
        match = re.search(pattern, self.attributes)
        return match[1] if match else None

    def dimensions(self, name: str) -> tuple[int, ...]:
        """An attribute like lhs_contracting_dims={1,2}."""
        text = self.attribute(rf"\b{name}=\{{([\d,]*)\}}")
        return tuple(int(number) for number in text.split(",")) if text else ()

    @property
    def size(self) -> int:
        """Bytes of the result."""
        return sum(buffer.size for buffer in self.outputs)


@dataclasses.dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order in which they run."""

    name: str
    instructions: dict[str, Instruction]
    root: str

    def parameter(self, number: int) -> Instruction | None:
        """The instruction that stands for argument `number`."""
        for instruction in self.instructions.values():
            if instruction.opcode == "parameter" and instruction.literal == str(number):
                return instruction
        return None

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Instruction → those that take its result."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users[operand].append(instruction)
        return users


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str
    frames: dict[int, tuple[str, int, int]]
    """Stack frame → (file, line, the frame that called it or 0)."""

    def source(self, instruction: Instruction, package: str) -> str | None:
        """The line that made an instruction, "FILE:LINE"; None where the program does not say.

        Args:
            package: a folder's name; the innermost line in such a folder is preferred, and its file
                named from that folder on.
        """
        lines = list(self._stack(instruction))
        for file, line in lines:
            _, inside, rest = file.rpartition(f"/{package}/")
            if inside:
                return f"{package}/{rest}:{line}"
        return f"{lines[0][0]}:{lines[0][1]}" if lines else None

    def _stack(self, instruction: Instruction) -> Iterator[tuple[str, int]]:
        """(file, line), innermost first."""
        file = instruction.attribute(r'source_file="([^"]*)"')
        if file is not None:
            yield file, int(instruction.attribute(r"source_line=(\d+)") or 0)
            return
        number = int(instruction.attribute(r"stack_frame_id=(\d+)") or 0)
        while number in self.frames:
            file, line, parent = self.frames[number]
            yield file, line
            number = parent


def parse(text: str) -> Program:
    """Reads a compiled program.

    Raises:
        UserError: the text is not one, or is cut off.
    """
    computations: dict[str, Computation] = {}
    entry, name, root = None, None, ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        header = None if line.startswith(" ") else _COMPUTATION.match(line)
        if header:
            name, root, instructions = header[2], "", {}
            entry = name if header[1] else entry
        elif line == "}" and name is not None:
            computations[name] = Computation(
                name, instructions, root or next(reversed(instructions))
            )
            name = None
        elif name is not None and (match := _INSTRUCTION.match(line)):
            instructions[match[2]] = _instruction(match[2], match[3])
            root = match[2] if match[1] else root
    if entry is None or name is not None:
        raise UserError("This is not the whole text of a compiled XLA program.")
    return Program(computations, entry, _frames(text))


def _instruction(name: str, text: str) -> Instruction:
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    outputs, text = text[:end], text[end:].lstrip()
    opcode, _, _ = text.partition("(")
    end = _closing(text, len(opcode))
    inside, attributes = text[len(opcode) + 1 : end - 1], text[end:]
    operands = () if opcode in ("constant", "parameter") else tuple(_NAME.findall(inside))
    return Instruction(name, opcode, _buffers(outputs), operands, inside, attributes)


def _closing(text: str, start: int) -> int:
    """The place behind the parenthesis that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    raise UserError(f"This line of a compiled program is cut off: {text[:200]}")


def _buffers(text: str) -> tuple[Buffer, ...]:
    buffers = []
    for dtype, dims, layout in _SHAPE.findall(text):
        sizes = tuple(int(size.removeprefix("<=")) for size in dims.split(",") if size)
        space = re.search(r"S\((\d+)\)", layout)
        buffers.append(Buffer(dtype, sizes, int(space[1]) if space else 0))
    return tuple(buffers)


def _bits(dtype: str) -> int:
    if dtype in ("token", "opaque"):
        return 0
    if dtype == "pred":
        return 8
    # "bf16", "s32", "f8e4m3fn": the first number is the width.
    width = re.search(r"\d+", dtype)
    assert width is not None, dtype
    return int(width[0])


def _frames(text: str) -> dict[int, tuple[str, int, int]]:
    """The tables FileNames, FileLocations and StackFrames, joined."""
    files = dict(re.findall(r'^(\d+) "(.*)"$', _table(text, "FileNames"), re.MULTILINE))
    places = {}
    for number, file, line in re.findall(
        r"^(\d+) \{file_name_id=(\d+).*? line=(\d+)", _table(text, "FileLocations"), re.MULTILINE
    ):
        places[number] = files[file], int(line)
    frames = {}
    for number, place, parent in re.findall(
        r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?",
        _table(text, "StackFrames"),
        re.MULTILINE,
    ):
        # Frames are numbered from 1, and parents from 1 more: 1 is no parent.
        frames[int(number)] = (*places[place], int(parent or 0) - 1)
    return frames


def _table(text: str, name: str) -> str:
    """The lines of a table in front of the computations."""
    _, found, rest = text.partition(f"\n{name}\n")
    return rest.partition("\n\n")[0] if found else ""
