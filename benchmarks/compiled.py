"""What the TPU compiler says of a program that it compiled: memory, what goes over the wires, and its schedule.

The time is static: the compiler's own estimate of each operation in cycles, as often as its loop runs, and for
attention, whose kernel the compiler does not look into, its products at a share of the chip's peak that such kernels'
schedules reach. Stalls for memory and for other chips are not in it: it is a lower bound.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

GIB = 2.0**30
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
_CHANNEL = re.compile(rf" (?:{'|'.join(COLLECTIVES)})\(.* channel_id=(\d+)")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
# Cycles a second; peak in bfloat16; share of it that attention with heads of 64 channels reaches, forward and backward:
# the matrix unit is 128 wide (v6e: 256), so that half (a quarter) of it is the most. Docs: scale.
_CHIPS = {
    "v5 lite": (1.5e9, 197e12, 0.45, 0.5),
    "v5": (1.75e9, 459e12, 0.45, 0.5),
    "v6 lite": (1.75e9, 918e12, 0.19, 0.23),
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One that the program executes.

    Attributes:
        kind: one of ``COLLECTIVES``.
        shape: what a device holds after it: the largest of its arrays.
        size: bytes of all its arrays.
        times: how often a step executes it.
    """

    kind: str
    shape: tuple[int, ...]
    size: int
    times: int


@dataclasses.dataclass(frozen=True)
class Report:
    """Of one device's program.

    Attributes:
        peak: bytes at once.
        arguments: of them, arguments.
        temporaries: bytes that are neither arguments nor results.
        operations_s: seconds of all operations but attention's kernels and what goes over the wires.
        attention_s: seconds of attention's kernels.
        collectives: all.
    """

    peak: int
    arguments: int
    temporaries: int
    operations_s: float
    attention_s: float
    collectives: tuple[Collective, ...]

    def as_json(self) -> dict[str, Any]:
        """As the last line of the command has it."""
        table: dict[str, dict[str, float]] = {}
        for each in self.collectives:
            row = table.setdefault(each.kind, {"count": 0, "gib": 0.0})
            row["count"] += each.times
            row["gib"] += each.times * each.size / GIB
        return {
            "peak_gib": round(self.peak / GIB, 2),
            "arguments_gib": round(self.arguments / GIB, 2),
            "temporaries_gib": round(self.temporaries / GIB, 2),
            "step_s": round(self.operations_s + self.attention_s, 3),
            "operations_s": round(self.operations_s, 3),
            "attention_s": round(self.attention_s, 3),
            "collectives": {kind: {**row, "gib": round(row["gib"], 3)} for kind, row in table.items()},
        }


def read(compiled: Any, device_kind: str) -> Report:
    """The report of a compiled program.

    Args:
        compiled: of jax.
        device_kind: of its devices, such as ``TPU v5 lite``.
    """
    memory, text = compiled.memory_analysis(), compiled.as_text()
    clock, peak, forward, backward = next(chip for name, chip in _CHIPS.items() if name in device_kind)
    cycles, attention = 0, 0.0
    for line, times in executed(text):
        if _collective(line, times):
            continue
        if 'custom_call_target="tpu_custom_call"' in line:
            attention += times * _attention_seconds(line, peak, backward if _is_backward(line) else forward)
        else:
            estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
            cycles += times * int(estimate[1]) if estimate else 0
    return Report(
        memory.peak_memory_in_bytes,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        cycles / clock,
        attention,
        collectives(text),
    )


def collectives(text: str) -> tuple[Collective, ...]:
    """What a compiled program as text sends, for any platform."""
    return tuple(found for line, times in executed(text) if (found := _collective(line, times)))


def _collective(line: str, times: int) -> Collective | None:
    kind = next((kind for kind in COLLECTIVES if re.search(rf" {kind}(-start)?\(", line)), None)
    if kind is None:
        return None
    arrays = _arrays(line.partition(f" {kind}")[0])
    largest = max(arrays, key=lambda array: array[1])
    # One that is begun here names what it takes, too.
    size = largest[1] if f"{kind}-start" in line else sum(size for _, size in arrays)
    return Collective(kind, largest[0], size, times)


def executed(text: str) -> Iterator[tuple[str, int]]:
    """Instructions of a compiled program as text, and how often each is executed.

    Of a fusion's inside, only what goes over the wires: a collective that overlaps with computation begins in one
    fusion, goes on in others and ends in a last one, all of which name it by the same channel.
    """
    bodies = dict(_computations(text))
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    assert entry is not None, "a compiled program has an entry"
    waiting = [(entry[1], 1)]
    while waiting:
        name, times = waiting.pop()
        begun = set()
        for line in bodies[name]:
            yield line, times
            fused = re.search(r" fusion\(.* calls=%?([\w.\-]+)", line)
            if fused:
                channels = {match[1]: inner for inner in bodies[fused[1]] if (match := _CHANNEL.search(inner))}
                yield from ((inner, times) for channel, inner in channels.items() if channel not in begun)
                begun |= channels.keys()
            elif re.search(r" while\(", line):
                condition, body = re.findall(r"(?:condition|body)=%?([\w.\-]+)", line)
                waiting.append((body, times * _count(line, bodies[condition])))
            elif re.search(r" (call|conditional|async-start)\(", line):
                called = re.findall(r"(?:to_apply|calls|(?:true|false)_computation)=%?([\w.\-]+)", line)
                called += re.findall(r"%?([\w.\-]+)", "".join(re.findall(r"branch_computations=\{(.*?)\}", line)))
                waiting += [(inner, times) for inner in called]


def _count(loop: str, condition: list[str]) -> int:
    """How often a loop runs: what the compiler says of it, or the number that its counter is compared with."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop)
    limits = [int(n) for n in re.findall(r" s32\[\]\S* constant\((\d+)\)", "\n".join(condition))]
    return int(known[1]) if known else max(limits, default=1)


def _computations(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in text.splitlines():
        start = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if start:
            name, lines = start[1], []
        elif line.startswith("}"):
            yield name, lines
        elif " = " in line:
            lines.append(line)


def _arrays(text: str) -> list[tuple[tuple[int, ...], int]]:
    """Shape and bytes of every array that a line's result type names."""
    found = []
    for kind, shape in re.findall(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]", text):
        sizes = tuple(map(int, shape.split(","))) if shape else ()
        found.append((sizes, math.prod(sizes) * _BYTES[kind]))
    return found


def _is_backward(line: str) -> bool:
    return "dkv" in line


def _attention_seconds(line: str, peak: float, share: float) -> float:
    """Of a splash kernel: two products forward, five backward, of its heads and its longest operand's tokens."""
    shapes = [shape for shape, _ in _arrays(line) if len(shape) >= 3 and shape[-1] in (64, 128)]
    if not shapes:
        return 0.0
    tokens = max(shape[-2] for shape in shapes)
    # Backward, the queries' gradient comes in one partial sum for each block of keys, which are no further heads.
    heads = min(math.prod(shape[:-2]) for shape in shapes if shape[-2] == tokens)
    channels = min(shape[-1] for shape in shapes)  # queries and keys may be wider, to mask their padding
    flops = (5 if _is_backward(line) else 2) * 2.0 * heads * tokens**2 * channels
    return flops / peak / min(0.85, share * channels / 64)


def float_stacks(text: str, *, layers: int, width: int, ways: int) -> list[str]:
    """Stacks of the blocks' kernels as floats, which no program with an int8 base should ever hold; in words.

    Args:
        text: of the compiled program.
        layers: of the stack.
        width: of a token: kernels are 512, ``width``, 4 or 6 times as long and wide.
        ways: over how many devices they may be divided.
    """
    sides = {side // way for side in _sides(width) for way in (1, ways)}
    found = {
        match[0]
        for match in re.finditer(r"\b(?:bf16|f32)\[(\d+),(\d+),(\d+)\]", text)
        if int(match[1]) == layers
        and {int(match[2]), int(match[3])} <= sides
        and int(match[2]) * int(match[3]) * ways >= width * width
    }
    return [f"a stack of int8 kernels as floats: {array}" for array in sorted(found)]


def _sides(width: int) -> set[int]:
    """How long and wide a block's kernels are."""
    return {512, width, 4 * width, 6 * width}


def unexpected(report: Report, *, layers: int, width: int, tokens: int, whole_keys: bool) -> list[str]:
    """Gathers that no layout of ours should have: in words, empty if there are none.

    Args:
        report: the program's.
        layers: of the largest stack.
        width: of a token.
        tokens: of one video, with its text.
        whole_keys: whether a device needs the keys of all tokens and heads at once, as it does where only ``r``
            divides them.
    """
    faults = []
    for each in report.collectives:
        elements = math.prod(each.shape)
        words = f"{each.kind} of {'x'.join(map(str, each.shape))}, {each.size / GIB:.2f} GiB"
        if each.kind != "all-gather":
            continue
        if layers > 1 and each.shape[:1] == (layers,) and elements >= layers * width * width:
            faults.append(f"a whole base in one gather: {words}")
        elif each.shape[:-2] == (1,) and {*each.shape[-2:]} <= _sides(width) - {tokens}:
            continue  # one block's kernel, which is gathered where it is used: it may be as large as a short video
        elif elements >= tokens * width and any(size >= tokens for size in each.shape) and not whole_keys:
            faults.append(f"a gathered activation: {words}")
    return list(collections.Counter(faults))
