"""Full-size programs for GPUs: what is read of the compiler's text, and what the command says without the compiler."""

import sys
from types import SimpleNamespace

import jax
import pytest

from benchmarks import compiled, full_size, full_size_run, targets
from benchmarks.full_size_programs import Case
from reangle_jax import commands
from reangle_jax import mesh as meshes

# Cut out of the short fine-tuning step, compiled for eight GPUs on u:8; here its loop runs 42 times.
TEXT = """\
HloModule jit_step, is_scheduled=true, entry_computation_layout={(f32[2,16,3072]{2,1,0})->f32[]}

%region_206.216_spmd.clone (param.1: (s32[], bf16[1,254,3072])) -> (s32[], bf16[1,254,3072]) {
  %all-gather-start.11 = ((bf16[2304,512]{1,0}, bf16[2304]{0}), (bf16[18432,512]{1,0}, bf16[18432]{0})) all-gather-start(%bitcast.4678, %bitcast.2.0), channel_id=25, replica_groups=mesh['axis_0'=1,'axis_1'=1,'axis_2'=8] {'axis_2'}, dimensions={0}
  %all-to-all-start = ((bf16[1,254,48,64]{3,1,0,2}), bf16[1,254,48,64]{3,1,0,2}) all-to-all-start(%bitcast.3457.0), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={2}
  %all-gather-done.11 = (bf16[18432,512]{1,0}, bf16[18432]{0}) all-gather-done(%all-gather-start.11)
  %dot_product_attention_fwd.14 = (bf16[1,6,2032,64]{3,1,2,0}, f32[1,6,2032]{2,1,0}, u8[0]{0}) custom-call(%bitcast.144.0, %loop_slice_fusion.1, %loop_slice_fusion), custom_call_target="__cudnn$fmhaSoftmax"
  %dot_product_attention_bwd.20 = (bf16[1,6,2032,64]{3,1,2,0}, bf16[1,6,2026,64]{3,1,2,0}, bf16[1,6,2026,64]{3,1,2,0}, u8[0]{0}) custom-call(%bitcast.66.0, %loop_slice_fusion.3), custom_call_target="__cudnn$fmhaSoftmaxBackward"
  %reduce-scatter-start = ((bf16[128,3072]{1,0}, bf16[128,3072]{1,0}), (bf16[16,3072]{1,0}, bf16[16,3072]{1,0})) reduce-scatter-start(%a, %b), channel_id=5, dimensions={0}, to_apply=%region_21.22.clone
}

%region_215.217_spmd.clone (param.2: (s32[], bf16[1,254,3072])) -> pred[] {
  %get-tuple-element.2 = s32[] get-tuple-element(%param.2), index=0
}

ENTRY %main.1_spmd (param: f32[2,16,3072]) -> f32[] {
  %collective-permute-start.1 = (bf16[1,1,480,3]{3,2,1,0}, bf16[1,1,480,3]{3,2,1,0}) collective-permute-start(%x), channel_id=56, source_target_pairs={{1,0},{2,1}}
  %while.45 = (s32[], bf16[1,254,3072]{2,1,0}) while(%tuple.5), condition=%region_215.217_spmd.clone, body=%region_206.216_spmd.clone, backend_config={"known_trip_count":{"n":"42"},"known_init_step":{"init":"0","step":"1"}}
  %all-reduce-start.5 = (f32[1,128]{1,0}, f32[64]{0}) all-reduce-start(%y, %z), channel_id=66, to_apply=%region_21.22.clone
  %convolution.1 = (bf16[1,9,480,720,128]{4,3,2,1,0}, u8[0]{0}) custom-call(%c, %d), custom_call_target="__cudnn$convForward"
}
"""  # noqa: E501  lines of the compiler


def report(text=TEXT):
    memory = SimpleNamespace(peak_memory_in_bytes=30 << 30, argument_size_in_bytes=1 << 30, temp_size_in_bytes=1 << 29)
    program = SimpleNamespace(memory_analysis=lambda: memory, as_text=lambda: text)
    return compiled.read(program, "NVIDIA H100 80GB HBM3")


def test_what_is_begun_counts_what_it_gives():
    """And not what it takes, which its result names first; as often as its loop runs."""
    kernel, heads = (18432 * 512 + 18432) * 2, 254 * 48 * 64 * 2
    assert {each.kind: (each.shapes, each.size, each.times) for each in report().collectives} == {
        "all-gather": (((18432, 512), (18432,)), kernel, 42),
        "all-to-all": (((1, 254, 48, 64),), heads, 42),
        "reduce-scatter": (((16, 3072), (16, 3072)), 2 * 16 * 3072 * 2, 42),
        "collective-permute": (((1, 1, 480, 3),), 480 * 3 * 2, 1),
        "all-reduce": (((1, 128), (64,)), (128 + 64) * 4, 1),
    }


def test_no_time_is_made_up():
    figures = report().as_json()
    assert [figures[name] for name in ("step_s", "operations_s", "attention_s")] == [None] * 3
    assert "estimates none" in figures["no_time"]
    rest = {"program": "finetune", "slices": 1, "target": "h100:8", "mesh": "u:8", "compile_s": 7}
    assert "peak 30.0 GiB; no time, of which this compiler estimates none; compiled" in full_size.in_words(
        figures | rest
    )


@pytest.mark.parametrize(
    ("gathered", "words"),
    [
        ("bf16[2304,512], bf16[2304]), (bf16[18432,512], bf16[18432]", []),
        ("bf16[1536,3072], bf16[2304]), (bf16[12288,3072], bf16[18432]", []),
        ("bf16[2304,512], bf16[254,3072]), (bf16[18432,512], bf16[2032,3072]", ["a gathered activation"]),
        ("bf16[1,254,3072], s32[]), (bf16[8,254,3072], s32[8]", ["a gathered activation"]),  # devices first
        ("bf16[2,384,3072], s32[]), (bf16[8,2,384,3072], s32[8]", ["a whole base in one gather"]),
    ],
)
def test_every_array_of_a_gather_is_looked_at(gathered, words):
    text = TEXT.replace("bf16[2304,512]{1,0}, bf16[2304]{0}), (bf16[18432,512]{1,0}, bf16[18432]{0}", gathered)
    found = compiled.unexpected(report(text), layers=2, width=3072, tokens=2026, whole_keys=False)
    assert [fault.partition(":")[0] for fault in found] == words


def faults(found, *flags, memory=None):
    """Of a program of eight GPUs, by its kinds."""
    target = targets.Target([SimpleNamespace(device_kind="NVIDIA H100 80GB HBM3")] * 8, "gpu", memory)
    args = full_size.parser().parse_args(list(flags))
    return full_size.faults_of(args, Case(), meshes.make_mesh("u:8"), target, found, TEXT)


@pytest.mark.parametrize("program", ["finetune", "sample", "candidates"])
def test_attention_is_cudnns(program):
    assert report().attention_calls == 2 * 42
    assert faults(report(), f"--program={program}") == []
    other = report(TEXT.replace("__cudnn$fmha", "__cudnn$other"))
    assert faults(other, f"--program={program}") == ["attention is no fused kernel: its logits lie in memory"]
    assert faults(other, "--program=decode") == []


def test_memory_is_enforced_where_the_compiler_does_not():
    assert faults(report(), memory=30 << 30) == []
    assert faults(report(), memory=29 << 30) == [
        "does not fit: the peak is 30.00 GiB, and a program gets 29.00 of one NVIDIA H100 80GB HBM3"
    ]
    assert faults(report(), "--limit=29") == ["the peak is 30.00 GiB, above --limit=29.0"]


def test_a_gpu_gives_most_of_its_memory(monkeypatch):
    monkeypatch.setattr(targets, "_described", lambda gpu, count: [gpu.kind] * count)
    found = targets.find("h100:8")
    assert (found.devices, found.platform) == (["NVIDIA H100 80GB HBM3"] * 8, "gpu")
    assert 75 < found.memory / 2**30 < 76
    assert 22 < targets.find("rtx4090:1").memory / 2**30 < 23


def test_gpus_are_described_by_their_data_sheet():
    """Under the names of XLA's GpuTargetConfigProto, which the CUDA plugin reads where it is (test_full_size)."""
    text = targets._GPUS["rtx4090"].description()
    assert "core_count: 128 " in text
    assert f"shared_memory_per_block_optin: {99 * 1024} " in text
    assert 'device_description_str: "NVIDIA GeForce RTX 4090"' in text


@pytest.mark.parametrize("module", [full_size, full_size_run])
@pytest.mark.parametrize(("mesh", "words"), [("u:64", "needs 64 devices and there are 8"), ("x:2", "is not possible")])
def test_a_mesh_that_is_not_possible_is_told_by_its_flag(module, mesh, words, monkeypatch, capsys):
    monkeypatch.setattr(targets, "find", lambda name, slices: targets.Target(jax.devices(), "gpu", None))
    monkeypatch.setattr(sys, "argv", [module.__name__, f"--mesh={mesh}", "--short"])
    assert commands.answer(lambda stop: module.main()) == 2
    assert capsys.readouterr().err.startswith(f"error: --mesh='{mesh}' {words}")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target=h100:9"], "a host has 1 to 8 GPUs"),
        (["--target=h100:0"], "a host has 1 to 8 GPUs"),
        (["--target=h100:8", "--slices=2"], "--slices are of TPUs"),
        (["--target=h100:1"], 'pip install "jax[cuda12]==0.10.2"'),
        (["--target=v5e:2x4"], 'pip install "libtpu==0.0.42.*"'),
        (["--target=cuda:1"], "is none of v5e:1x1, v5e:2x2"),
        (["--program=paint"], "invalid choice: 'paint'"),
    ],
)
def test_mistakes_get_one_line(flags, words, monkeypatch, capsys):
    def described(platform, topology_name, **options):
        del options
        if topology_name == "cuda:1":
            raise RuntimeError("INVALID_ARGUMENT: Unknown TPU platform: cuda\nand more")
        raise NotImplementedError if platform == "cuda" else RuntimeError("JAX TPU support not installed; cannot")

    monkeypatch.setattr(targets.topologies, "get_topology_desc", described)
    monkeypatch.setattr(sys, "argv", ["full_size.py", *flags])
    assert commands.answer(lambda stop: full_size.main()) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert words in said
