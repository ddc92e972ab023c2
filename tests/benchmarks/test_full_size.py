"""The report on full-size programs: what is read of the compiler's text and, where libtpu is, short ones compiled."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import compiled

ROOT = Path(__file__).parents[2]
TEXT = """\
HloModule jit_step, is_scheduled=true

%fused (p.1: bf16[8,16]) -> bf16[8,16] {
  %p.1 = bf16[8,16]{1,0} parameter(0)
  ROOT %add.1 = bf16[8,16]{1,0} add(%p.1, %p.1), backend_config={"estimated_cycles":"7"}
}

%body (p.2: (s32[], bf16[1,16])) -> (s32[], bf16[1,16]) {
  %fusion.1 = bf16[8,16]{1,0:T(8,128)(2,1)} fusion(%x), calls=%fused, backend_config={"estimated_cycles":"1000"}
  %all-gather-start.1 = (bf16[1,16]{1,0}, bf16[8,16]{1,0}) all-gather-start(%x), dimensions={0}
  %all-gather-done.1 = bf16[8,16]{1,0} all-gather-done(%all-gather-start.1)
  %kernel.1 = (bf16[6,512,64], f32[6,512]) custom-call(bf16[6,512,128] %q), custom_call_target="tpu_custom_call"
}

%cond (p.3: (s32[], bf16[1,16])) -> pred[] {
  %constant.1 = s32[]{:T(128)} constant(42)
  ROOT %compare.1 = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

ENTRY %main (p.4: bf16[1,16]) -> bf16[1,16] {
  %fusion.2 = bf16[8,16]{1,0} fusion(%p.4), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"500"}
  %while.1 = (s32[]) while(%t), condition=%cond, body=%body
  %all-reduce.1 = f32[42,3072,128]{2,1,0} all-reduce(%g), to_apply=%sum
}
"""


def report(text=TEXT):
    memory = SimpleNamespace(peak_memory_in_bytes=3 << 30, argument_size_in_bytes=1 << 30, temp_size_in_bytes=1 << 29)
    return compiled.read(SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: text), "TPU v5 lite")


@pytest.mark.parametrize("said", ["", ', backend_config={"known_trip_count":{"n":"42"}}'])
def test_loops_count_as_often_as_they_run(said):
    found = report(TEXT.replace("body=%body", f"body=%body{said}"))
    assert found.operations_s == pytest.approx((42 * 1000 + 500) / 1.5e9)
    # Two products of six heads' 512 x 512 logits, 64 channels each, at 47.5 % of the peak.
    assert found.attention_s == pytest.approx(42 * 2 * 2 * 6 * 512**2 * 64 / (0.475 * 197e12))
    assert {(each.kind, each.shapes, each.size, each.times) for each in found.collectives} == {
        ("all-gather", ((8, 16),), 256, 42),
        ("all-reduce", ((42, 3072, 128),), 42 * 3072 * 128 * 4, 1),
    }
    figures = found.as_json()
    assert (figures["peak_gib"], figures["arguments_gib"], figures["temporaries_gib"]) == (3.0, 1.0, 0.5)
    assert figures["collectives"]["all-gather"]["count"] == 42


def test_partial_sums_of_a_backward_kernel_are_no_heads():
    gradients = "(f32[5,6,512,64], bf16[6,512,64], bf16[6,512,64])"
    text = TEXT.replace("kernel.1 = (bf16[6,512,64], f32[6,512])", f"splash_dkv.1 = {gradients}")
    assert report(text).attention_s == pytest.approx(42 * 5 * 2 * 6 * 512**2 * 64 / (0.5 * 197e12))


def test_arrays_that_are_summed_together_all_count():
    text = TEXT.replace("= f32[42,3072,128]{2,1,0} all-reduce(%g)", "= (f32[8,16], f32[16,8]) all-reduce(%g, %h)")
    assert compiled.Collective("all-reduce", ((8, 16), (16, 8)), 1024, 1) in report(text).collectives


def test_a_gather_beside_computation_counts_once():
    """It begins in one fusion and ends in another; both name it."""
    gather = "  %gather = bf16[8,48]{1,0} all-gather(%p), channel_id=7, dimensions={0}\n"
    start, done = (
        f"%async.{name} (p: bf16[1,48]) -> bf16[8,48] {{\n{gather}  ROOT %c = bf16[8,48] custom-call(%gather), "
        f'custom_call_target="AsyncCollective{name}"\n}}\n\n'
        for name in ("Start", "Done")
    )
    calls = "".join(
        f"  %async.{n} = bf16[8,48]{{1,0}} fusion(%x), kind=kCustom, calls=%async.{name}\n"
        for n, name in enumerate(("Start", "Done"))
    )
    text = TEXT.replace("%body (p.2", f"{start}{done}%body (p.2").replace("  %kernel.1", f"{calls}  %kernel.1")
    plain, found = report().collectives, report(text).collectives
    assert set(found) - set(plain) == {compiled.Collective("all-gather", ((8, 48),), 768, 42)}
    assert len(found) == len(plain) + 1


@pytest.mark.parametrize(
    ("shape", "whole_keys", "fault"),
    [
        ("8,16", False, None),
        ("42,3072,3072", False, "a whole base in one gather"),
        ("3072,3072", False, None),  # one layer's kernel
        ("1,17920,3072", False, "a gathered activation"),
        ("1,17920,48,64", False, "a gathered activation"),
        ("1,17920,48,64", True, None),  # keys, where nothing divides the heads
        ("1,17920,6,64", False, None),  # keys of some heads
    ],
)
def test_gathers_that_no_layout_should_have(shape, whole_keys, fault):
    found = report(TEXT.replace("bf16[8,16]{1,0}) all-gather-start", f"bf16[{shape}]{{1,0}}) all-gather-start"))
    faults = compiled.unexpected(found, layers=42, width=3072, tokens=17776, whole_keys=whole_keys)
    assert [words.partition(":")[0] for words in faults] == ([fault] if fault else [])


@pytest.mark.parametrize(
    ("shape", "fault"), [("1,512,18432", 0), ("1,3072,3072", 0), ("1,2026,3072", 1), ("2032,3072", 1)]
)
def test_a_blocks_kernel_is_no_activation_of_a_short_video(shape, fault):
    found = report(TEXT.replace("bf16[8,16]{1,0}) all-gather-start", f"bf16[{shape}]{{1,0}}) all-gather-start"))
    assert len(compiled.unexpected(found, layers=2, width=3072, tokens=2026, whole_keys=False)) == fault


def test_stacks_of_kernels_as_floats_are_found():
    kept = "s8[42,3072,12288] bf16[3072,12288] f32[42,3072,128] bf16[42,2222,3072] bf16[42,18432]"
    sizes = {"layers": 42, "width": 3072, "ways": 8}
    assert compiled.float_stacks(kept, **sizes) == []
    assert [
        words.split()[-1] for words in compiled.float_stacks(f"{kept} bf16[42,384,3072] f32[42,3072,12288]", **sizes)
    ] == [
        "bf16[42,384,3072]",
        "f32[42,3072,12288]",
    ]


TARGETS = ["v5e:2x2", "v5e:2x4"] if importlib.util.find_spec("libtpu") else []
TARGETS += ["h100:1", "h100:8"] if importlib.util.find_spec("jax_cuda12_plugin") else []
if TARGETS:

    @pytest.mark.slow
    @pytest.mark.parametrize("target", TARGETS)
    def test_short_programs_compile_for_real(target):
        """Two blocks and 2,026 tokens, with an int8 base: minutes on a busy core."""
        command = [sys.executable, "benchmarks/full_size.py", "--target", target, "--short", "--base", "int8", "--json"]
        done = subprocess.run(
            [*command, "--limit", "2"], cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, capture_output=True, text=True
        )
        figures = json.loads(done.stdout.splitlines()[-1])
        assert figures["faults"] == []
        assert done.returncode == 0, done.stderr
        assert 0 < figures["arguments_gib"] < figures["peak_gib"] < 2
        assert figures["attention_calls"] == 4
        assert figures["step_s"] is None if "h100" in target else figures["step_s"] > 0
