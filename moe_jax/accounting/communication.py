"""Communication of a compiled program: its collectives and their bytes, read from its HLO (`compiled.as_text()`).

Conventions: bytes are those that one device sends with the usual ring or pairwise algorithm; data that a device keeps
are not sent. A collective in the body of a loop is listed once, however often the loop runs; one in a computation that
is called twice is listed twice. XLA may send another type than the program's: on CPUs it widens bfloat16.

P devices that exchange with each other.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

# kind -> bytes sent by each of P devices, for each byte of operand.
SENT: dict[str, Callable[[int], float]] = {
    "all-to-all": lambda p: (p - 1) / p,
    "ragged-all-to-all": lambda p: (p - 1) / p,
    "all-gather": lambda p: p - 1.0,
    "all-reduce": lambda p: 2 * (p - 1) / p,
    "reduce-scatter": lambda p: (p - 1) / p,
    "collective-permute": lambda p: min(p - 1.0, 1.0),
}


class ArrayType(NamedTuple):
    """The type of an array in HLO: `bf16[8,16]` is ("bf16", (8, 16))."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Size in bytes, without padding."""
        return math.ceil(math.prod(self.shape) * _bits(self.dtype) / 8)


@dataclass(frozen=True)
class Collective:
    """One exchange between devices.

    Attributes:
      kind: a name in SENT, also for the asynchronous form.
      operands: arrays that each device gives. A ragged-all-to-all has its rows only, counted as if all were sent and
        evenly, because their number is unknown before the program runs.
      results: arrays that each device gets.
      group_size: P; 2 for a collective-permute, or 1 if no device sends to another.
      branches: numbers of the branches of nested conditionals that it is in; () if it always runs. `jax.lax.cond` takes
        branch 0 if its predicate is false.
    """

    kind: str
    operands: tuple[ArrayType, ...]
    results: tuple[ArrayType, ...]
    group_size: int
    branches: tuple[int, ...] = ()

    @property
    def bytes_sent(self) -> float:
        """Bytes that one device sends to others; 0 if a group is one device."""
        return sum(operand.num_bytes for operand in self.operands) * SENT[self.kind](self.group_size)


def collectives(hlo: str) -> list[Collective]:
    """Lists the collectives of a module in the order of its text, from the entry on.

    Args:
      hlo: text of one HLO module.

    Raises:
      ValueError: the text has no entry computation, or a collective has an array of an unknown type.
    """
    module = _read(hlo)
    return list(_walk(module, module.entry, ()))


def least_bytes_per_token(k: int, model_dim: int, bytes_per_number: int, devices: int) -> float:
    """Computes the bytes per token of rows sent one by one to its k experts and back, and nothing else.

    If experts are equally often on any of P = `devices` devices, 1 / P of the rows stay on their device. A device gets
    a row once for each of the token's experts that it has. A strategy that sends a row once to each device, like
    `gather`, sends less if k > P.
    """
    return 2 * k * model_dim * bytes_per_number * (1 - 1 / devices)


class _Instruction(NamedTuple):
    opcode: str
    arrays: tuple[ArrayType, ...]
    operands: tuple[str, ...]
    attributes: str


class _Module(NamedTuple):
    computations: Mapping[str, Mapping[str, _Instruction]]
    entry: str
    devices: int


_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"([a-z]\w*)\[([^\]]*)\]")
_COLLECTIVE = re.compile(rf"({'|'.join(SENT)})(-start)?")
_CALLED = re.compile(r"(?:to_apply|calls|body|condition)=%?([\w.\-]+)")
_NAME = re.compile(r"[\w.\-]+")


def _read(hlo: str) -> _Module:
    computations: dict[str, dict[str, _Instruction]] = {}
    entry, inside = None, {}
    for line in re.sub(r"/\*.*?\*/", "", hlo).splitlines():
        if header := _COMPUTATION.match(line):
            inside = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            name, arrays, opcode, rest = instruction.groups()
            operands, _, attributes = rest.partition(")," if ")," in rest else ")")
            names = tuple(operand.split()[-1].lstrip("%") for operand in operands.split(", ") if operand.strip())
            inside[name] = _Instruction(opcode, _arrays(arrays), names, attributes)
    if entry is None:
        raise ValueError("hlo has no entry computation; accepted: the text of a compiled module")
    counts = re.findall(r"(?:num_partitions|replica_count)=(\d+)", hlo.partition("\n")[0])
    return _Module(computations, entry, math.prod(map(int, counts)))


def _arrays(text: str) -> tuple[ArrayType, ...]:
    """Lists the arrays of a type, which may be a tuple of tuples; a dimension `<=8` counts as 8."""
    return tuple(
        ArrayType(dtype, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))
        for dtype, sizes in _ARRAY.findall(text)
    )


def _walk(module: _Module, computation: str, branches: tuple[int, ...]) -> Iterator[Collective]:
    instructions = module.computations[computation]
    for instruction in instructions.values():
        if found := _COLLECTIVE.fullmatch(instruction.opcode):
            yield _collective(found[1], bool(found[2]), instruction, instructions, module.devices, branches)
        for called in _CALLED.findall(instruction.attributes):
            yield from _walk(module, called, branches)
        for number, called in _branches(instruction.attributes):
            yield from _walk(module, called, (*branches, number))


def _branches(attributes: str) -> list[tuple[int, str]]:
    """Lists the number and the computation of each branch of a conditional."""
    if listed := re.search(r"branch_computations=\{([^}]*)\}", attributes):
        return list(enumerate(_NAME.findall(listed[1])))
    named = re.findall(r"(true|false)_computation=%?([\w.\-]+)", attributes)
    return sorted((int(value == "true"), name) for value, name in named)


def _collective(
    kind: str,
    starts: bool,
    instruction: _Instruction,
    instructions: Mapping[str, _Instruction],
    devices: int,
    branches: tuple[int, ...],
) -> Collective:
    operands = tuple(array for name in instruction.operands for array in instructions[name].arrays)
    results = instruction.arrays
    if starts and len(results) > len(operands):
        # An asynchronous start may return its operands, its results and a context.
        results = results[len(operands) :]
    if kind == "ragged-all-to-all":
        operands = operands[:1]
    results = results[: len(operands)]
    return Collective(kind, operands, results, _group_size(kind, instruction.attributes, devices), branches)


def _group_size(kind: str, attributes: str, devices: int) -> int:
    """Returns P of the largest group; without written groups, all devices are one group."""
    if kind == "collective-permute":
        pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
        return 2 if pairs and any(a != b for a, b in re.findall(r"(\d+),(\d+)", pairs[1])) else 1
    if listed := re.search(r"replica_groups=\{((?:\{[\d,]*\},?)+)\}", attributes):
        return max(len(group.split(",")) for group in re.findall(r"\{([^}]*)\}", listed[1]))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(counted[1])
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'?([\w.\-]+)'?=(\d+)", named[1]))
        # A part of an axis is 'axis':(size of what is before it)its own size.
        axes = re.findall(r"'?([\w.\-]+)'?(?::\(\d+\)(\d+))?", named[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _bits(dtype: str) -> int:
    if dtype == "pred":
        return 8
    width = re.match(r"(?:bf|[sufc])(\d+)", dtype)
    if width is None:
        raise ValueError(f"dtype is {dtype!r}; accepted: pred, or a number with its width in bits, as bf16 or s32")
    return int(width[1])
