"""What XLA says of a program that it compiled: memory, what goes over the wires, and on TPUs its schedule.

The time is static: the TPU compiler's own estimate of each operation in cycles, as often as its loop runs, and for
attention, whose kernel the compiler does not look into, its products at a share of the chip's peak that such kernels'
schedules reach. Stalls for memory and for other chips are not in it: it is a lower bound.
For GPUs the compiler estimates none.
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

GIB = 2.0**30
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "reduce-scatter", "collective-permute")
_CHANNEL = re.compile(rf" (?:{'|'.join(COLLECTIVES)})\(.* channel_id=(\d+)")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4}
_BYTES |= {"f64": 8, "s64": 8, "u64": 8}
# Pallas' splash on TPUs, cuDNN's on GPUs.
_ATTENTION = re.compile(r'custom_call_target="(tpu_custom_call|__cudnn\$fmha\w+)"')
NO_TIME = "no time, of which this compiler estimates none"


class Chip(NamedTuple):
    """A TPU: cycles a second, FLOP/s in bfloat16, and the share of them that attention reaches, forward and backward.

    With heads of 64 channels, by the kernels' schedules (`benchmarks/splash_schedule.py`): the matrix unit is 128 wide
    (v6e: 256), so that half (a quarter) of it is the most, whatever a schedule says.
    """

    clock: float
    peak: float
    forward: float
    backward: float


_CHIPS = {
    "v5 lite": Chip(1.5e9, 197e12, 0.475, 0.5),
    "v5": Chip(1.75e9, 459e12, 0.47, 0.5),
    "v6 lite": Chip(1.75e9, 918e12, 0.175, 0.238),
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One that the program executes.

    Attributes:
        kind: one of ``COLLECTIVES``.
        shapes: what a device holds after it.
        size: bytes of all that.
        times: how often a step executes it.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    size: int
    times: int


@dataclasses.dataclass(frozen=True)
class Report:
    """Of one device's program.

    Attributes:
        peak: bytes at once.
        arguments: of them, arguments.
        temporaries: bytes that are neither arguments nor results.
        operations_s: seconds of all operations but attention's kernels and what goes over the wires; None where the
            compiler estimates none.
        attention_s: seconds of attention's kernels; None alike.
        attention_calls: how often a step executes these.
        collectives: all.
    """

    peak: int
    arguments: int
    temporaries: int
    operations_s: float | None
    attention_s: float | None
    attention_calls: int
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
            **self._times(),
            "attention_calls": self.attention_calls,
            "collectives": {kind: {**row, "gib": round(row["gib"], 3)} for kind, row in table.items()},
        }

    def _times(self) -> dict[str, Any]:
        if self.operations_s is None or self.attention_s is None:
            return {"step_s": None, "operations_s": None, "attention_s": None, "no_time": NO_TIME}
        times = {"operations_s": self.operations_s, "attention_s": self.attention_s}
        return {"step_s": round(sum(times.values()), 3)} | {name: round(time, 3) for name, time in times.items()}


def read(compiled: Any, device_kind: str) -> Report:
    """The report of a compiled program.

    Args:
        compiled: of jax.
        device_kind: of its devices, such as ``TPU v5 lite``.
    """
    memory, text = compiled.memory_analysis(), compiled.as_text()
    chip = next((chip for name, chip in _CHIPS.items() if name in device_kind), None)
    cycles, attention, calls = 0, 0.0, 0
    for line, times in executed(text):
        if _collective(line, times):
            continue
        if _ATTENTION.search(line):
            calls += times
            attention += times * _attention_seconds(line, chip) if chip else 0
        else:
            estimate = re.search(r'"estimated_cycles":"(\d+)"', line)
            cycles += times * int(estimate[1]) if estimate else 0
    return Report(
        memory.peak_memory_in_bytes,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        cycles / chip.clock if chip else None,
        attention if chip else None,
        calls,
        collectives(text),
    )


def collectives(text: str) -> tuple[Collective, ...]:
    """What a compiled program as text sends, for any platform."""
    return tuple(found for line, times in executed(text) if (found := _collective(line, times)))


def _collective(line: str, times: int) -> Collective | None:
    kind = next((kind for kind in COLLECTIVES if re.search(rf" {kind}(-start)?\(", line)), None)
    if kind is None:
        return None
    arrays = _given(line.partition(f" {kind}")[0], begun=f" {kind}-start(" in line and kind != "all-reduce")
    return Collective(kind, tuple(shape for shape, _ in arrays), sum(size for _, size in arrays), times)


def _given(result: str, begun: bool) -> list[tuple[tuple[int, ...], int]]:
    """Arrays that a collective gives, from its result; one that is begun names before them what it takes."""
    if not begun:
        return _arrays(result)
    taken, *given = re.sub(r"\{.*?\}", "", result).split("), ")  # several of each: two tuples
    return _arrays(given[0]) if given else _arrays(taken)[1:2]


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


def _attention_seconds(line: str, chip: Chip) -> float:
    """Of a splash kernel: two products forward, five backward, of its heads and its longest operand's tokens."""
    shapes = [shape for shape, _ in _arrays(line) if len(shape) >= 3 and shape[-1] in (64, 128)]
    if not shapes:
        return 0.0
    tokens = max(shape[-2] for shape in shapes)
    # Backward, the queries' gradient comes in one partial sum for each block of keys, which are no further heads.
    heads = min(math.prod(shape[:-2]) for shape in shapes if shape[-2] == tokens)
    channels = min(shape[-1] for shape in shapes)  # queries and keys may be wider, to mask their padding
    products, share = (5, chip.backward) if "dkv" in line else (2, chip.forward)
    flops = products * 2.0 * heads * tokens**2 * channels
    return flops / chip.peak / min(0.85, share * channels / 64)


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
        if each.kind != "all-gather":
            continue
        for shape in each.shapes:
            elements = math.prod(shape)
            words = f"{each.kind} of {'x'.join(map(str, shape))}, {each.size / GIB:.2f} GiB"
            if layers > 1 and layers in shape and elements >= layers * width * width:
                faults.append(f"a whole base in one gather: {words}")
            elif shape[:-2] in ((), (1,)) and {*shape[-2:]} <= _sides(width) - {tokens}:
                continue  # one block's kernel, gathered where it is used: it may be as large as a short video
            elif elements >= tokens * width and not whole_keys:
                faults.append(f"a gathered activation: {words}")
    return list(collections.Counter(faults))
