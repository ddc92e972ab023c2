"""What the plan says that a run needs."""

import dataclasses
import re
import runpy
from pathlib import Path

import pytest

from reangle_jax import checkpoints, chosen_models, config, plan
from reangle_jax.backbones.cogvideox import needs as needs_of
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.text.t5 import T5Config, T5Encoder
from reangle_jax.needs import Shares
from reangle_jax.nn.choices import Choice
from reangle_jax.run import Ledger, Stage, Unit
from reangle_jax.stages import finetune, generate

ROOT = Path(__file__).parent.parent


def test_plan_estimates_grow_with_the_work():
    full = TransformerConfig.cogvideox_5b_i2v()
    # Two bytes each for the published file's parameters; rank 2 on four square maps of 3072 in 42 blocks.
    adapted = dataclasses.replace(full, lora_rank=2, lora_alpha=2.0)
    assert needs_of.transformer_bytes(adapted) == (2 * 5_625_087_552, 42 * 4 * 2 * 2 * 3072 * 4)
    assert checkpoints.bytes_of(T5Encoder, T5Config.t5_v1_1_xxl()) == 2 * 4_762_310_656
    # The roofline of the published model: 332.2 TFLOP forward, 149 encoding, 315 decoding.
    assert needs_of.transformer_flops(full, 17776) == pytest.approx(332.2e12, rel=0.001)
    encode, decode = needs_of.vae_flops(VAEConfig(), 49 * 480 * 720)
    assert encode == pytest.approx(149e12, rel=0.01)
    assert decode == pytest.approx(315e12, rel=0.17)
    values = config.get_default().to_dict() | {"video": "x"}
    needs = plan.estimate(config.parse(values))
    values["sample"]["steps"] = 80
    more = plan.estimate(config.parse(values))
    assert more["generate"].flops > 1.9 * needs["generate"].flops
    assert more["finetune"] == needs["finetune"]


def test_plan_counts_guidance_as_sampling_does():
    """A scale of 1 or less is no guidance: one video a step, not two."""
    values = config.get_default().to_dict() | {"video": "x"}
    flops = {}
    for scale in (0.0, 0.5, 1.0, 1.5):
        values["sample"]["guidance_scale"] = scale
        flops[scale] = plan.estimate(config.parse(values))["generate"].flops
    assert flops[0.0] == flops[0.5] == flops[1.0] < 0.6 * flops[1.5]


def test_plan_counts_the_mirror_images_depth():
    values = config.get_default().to_dict() | {"video": "x"}
    once, twice = (plan.estimate(config.parse(values | {"depth_mirrored": x}))["depth"] for x in (False, True))
    assert (twice.flops, twice.phases) == (2 * once.flops, once.phases)


def test_plan_adds_what_is_in_memory_at_once(monkeypatch):
    """At full size on a GPU, whose attention keeps no logits; GiB."""
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    values = config.get_default().to_dict() | {"video": "x", "weights": "none"}
    needs = plan.estimate(config.parse(values))
    found = {stage: {name: round(b / 2**30, 1) for name, b in needs[stage].phases.items()} for stage in needs}
    assert found["generate"] == {"text": 8.9, "condition": 1.4, "sample": 13.0, "decode": 13.4}
    assert found["finetune"] == {"text": 8.9, "encode": 9.5, "train": 23.4}
    assert round(needs["generate"].peak_bytes / 2**30, 1) == 13.4
    # The untuned model has adapters of its own.
    values["evaluate"]["untuned"] = True
    assert plan.estimate(config.parse(values))["generate"].phases["sample"] > needs["generate"].phases["sample"]


def test_what_the_24_gb_config_needs_is_less_than_such_a_card_gives(monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")  # whose attention is fused
    c = runpy.run_path(str(ROOT / "configs/card_24gb.py"))["get_config"]()
    c.video = "clip.mp4"
    assert max(needs.peak_bytes for needs in plan.estimate(config.parse(c)).values()) < 0.85 * 24e9


def test_a_meshs_devices_share_the_time_and_all_devices_are_paid(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")  # devices of a CPU are one processor
    stages = [Stage("finetune", 1, lambda settings: (Unit(outputs=("lora",)),), run=lambda *_: None)]
    values = config.get_default().to_dict() | {"video": "x", "weights": "none"}
    values["execution"]["remat"] = "full"  # auto: what this machine's memory allows
    hours = {}
    for mesh in ("auto", "u:4"):
        settings = config.parse(values | {"mesh": mesh})
        line = plan.table(Ledger(tmp_path, settings), stages).splitlines()[-1]
        hours[mesh] = float(re.search(r", ([\d.,]+) device-hours", line)[1].replace(",", ""))
    seconds = plan.estimate(settings)["finetune"].flops / plan.rate()
    assert hours["auto"] == pytest.approx(8 * seconds / 3600, rel=0.05)  # eight devices, one of which works
    assert hours["auto"] == pytest.approx(4 * hours["u:4"], rel=0.1)


def lines_of(tmp_path, monkeypatch, *, backend="gpu", gib=40, **changes):
    """The plan of fine-tuning and of generation at full size, on eight devices."""
    monkeypatch.setattr("jax.default_backend", lambda: backend)
    monkeypatch.setattr("reangle_jax.measure.device_limit_bytes", lambda: gib << 30)
    settings = full_size(**changes)
    made = [
        Stage(stage.name, 1, lambda _, name=stage.name: (Unit(outputs=(name,)),), lambda *_: None, stage.smaller)
        for stage in (finetune.STAGE, generate.STAGE)
    ]
    return plan.table(Ledger(tmp_path, settings), made).splitlines()


def test_it_says_which_devices_each_stage_takes_and_how(tmp_path, monkeypatch):
    lines = lines_of(tmp_path, monkeypatch, mesh="data:2,u:2")
    assert "on 8 x cpu with 40.0 GiB each" in lines[0]
    sizes = "takes 4 of 8 devices (data:2,r:1,u:2, the base divided)"
    words = f"devices, by config.mesh=data:2,u:2: finetune {sizes}; generate {sizes}; the other stages take one"
    assert lines[2] == words
    assert lines[3].startswith("note: data:2 does not divide fine-tuning's batch of 1")
    assert "set config.finetune.batch_size to a multiple of 2, or data:1" in lines[3]
    lines = lines_of(tmp_path, monkeypatch, mesh="r:2,u:4", base_layout="replicated")
    assert "finetune takes 8 of 8 devices (data:1,r:2,u:4, the base whole on each)" in lines[2]
    assert lines[3] == ""


def test_a_mesh_that_is_not_possible_is_counted_for_one(tmp_path, monkeypatch):
    lines = lines_of(tmp_path, monkeypatch, mesh="u:9")
    assert lines[2] == "devices: config.mesh=u:9 is not possible here; everything is counted for one"


def test_what_does_not_fit_is_told_with_what_helps(tmp_path, monkeypatch):
    lines = lines_of(tmp_path, monkeypatch, mesh="u:1", gib=11, base_dtype="int8")
    found = [line for line in lines if line.startswith("does not fit: ")]
    assert [line.split(";")[0] for line in found] == ["does not fit: finetune", "does not fit: generate"]
    assert "config.mesh=u:1 (divide the model over more devices, r:N)" in found[0]
    assert "config.vae_tiles=auto (on)" in found[1]
    assert "base_dtype" not in found[0]  # it is int8 already


def test_devices_of_one_cpu_share_its_memory_and_its_time(tmp_path, monkeypatch):
    one, four, idle = (
        lines_of(tmp_path, monkeypatch, backend="cpu", gib=400, mesh=mesh) for mesh in ("auto", "u:4", "data:2,u:2")
    )
    assert "on 8 x cpu with 400.0 GiB for all of a process" in one[0]
    alone, shared = (
        re.search(r"~ ([\d.]+) GiB", next(line for line in found if line.startswith("finetune ")))[1]
        for found in (one, four)
    )
    assert float(alone) < float(shared)  # what is divided nowhere is there four times
    hours = [float(re.search(r"([\d.,]+) device-hours", found[-1])[1].replace(",", "")) for found in (one, four, idle)]
    assert hours[1] == pytest.approx(hours[0], rel=0.01)
    assert hours[2] > 1.3 * hours[0]  # data's two do the same


@pytest.mark.parametrize(
    ("shares", "count", "at_once", "passes", "expected"),
    [
        (Shares(), 6, 1, 2, 1),
        (Shares(videos=8), 6, 4, 2, 6),  # two rounds of four, where one device takes twelve turns
        (Shares(videos=2, rows=2, columns=2), 1, 1, 1, 4),  # the second of data does the first one's work
        (Shares(videos=2, rows=4), 4, 4, 1, 8),
    ],
)
def test_how_much_faster_devices_are(shares, count, at_once, passes, expected):
    assert shares.faster(count, at_once, passes) == expected


def full_size(**changes):
    values = config.get_default().to_dict() | {"video": "x", "weights": "none"} | changes
    return config.parse(values)


def test_an_int8_base_takes_half_the_memory(monkeypatch):
    """The kernels of 42 blocks, 5.55e9 parameters, in a byte each in place of two."""
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    wide, narrow = (plan.estimate(full_size(base_dtype=name)) for name in ("auto", "int8"))
    for stage, phase in (("finetune", "train"), ("generate", "sample")):
        saved = wide[stage].phases[phase] - narrow[stage].phases[phase]
        assert saved == pytest.approx(42 * (2 * 512 * 6 * 3072 + 12 * 3072**2), rel=0.002)
    assert narrow["generate"].phases["sample"] < 12 * 2**30
    least = plan.estimate(full_size(base_dtype="int8", execution={**vars(Choice()), "remat": "full"}))
    assert least["finetune"].phases["train"] < 16 * 2**30


@pytest.mark.parametrize(("base", "peak"), [("bfloat16", 32.2), ("int8", 19.2)])
def test_static_mode_with_25_candidates_fits_80_gb(monkeypatch, base, peak):
    """The pair and the autoencoder with the score beside them, GiB; no stage needs more."""
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    settings = full_size(mode="static", base_dtype=base)
    needs, painter = plan.estimate(settings), chosen_models.painter(settings)
    alone = painter.needs(chosen_models.painting(settings), chosen_models.editing(settings))["first_frames"]
    assert settings.first_frames.candidates == 25
    assert needs["first_frames"].peak_bytes / 2**30 == pytest.approx(peak, abs=0.1)
    assert 2 < (needs["first_frames"].phases["paint"] - alone.phases["paint"]) / 2**30 < 4  # the score
    assert needs["first_frames"].peak_bytes == max(each.peak_bytes for each in needs.values()) < 0.5 * 80e9


@pytest.mark.parametrize(
    ("gib", "remat", "words"),
    [
        (80, "matmuls", "fine-tuning needs 54.1 GiB of 80.0 GiB; none would need"),
        (59.4, "matmuls", "fine-tuning needs 54.1 GiB of 59.0 GiB; none would need"),  # JAX's share of an 80 GB card
        (40, "attention", "fine-tuning needs 23.4 GiB of 40.0 GiB; matmuls would need 54.1 GiB"),
        (24, "full", "fine-tuning needs 19.1 GiB of 24.0 GiB; attention would need 23.4 GiB"),
        (None, "attention", "this device does not say how much memory it has"),
    ],
)
def test_what_blocks_keep_follows_the_devices_memory(monkeypatch, gib, remat, words):
    monkeypatch.setattr("jax.default_backend", lambda: "gpu")
    monkeypatch.setattr("reangle_jax.measure.device_limit_bytes", lambda: gib and int(gib * 2**30))
    name, why = chosen_models.remat(full_size())
    assert name == remat
    assert why.startswith(words)
    assert chosen_models.backbone(full_size()).choice.remat == remat


def test_a_cpu_keeps_what_pays_there(monkeypatch):
    """Everything takes longer to read back than to compute again, however much memory there is."""
    monkeypatch.setattr("reangle_jax.measure.device_limit_bytes", lambda: 2**40)
    name, why = chosen_models.remat(full_size())
    assert name == "matmuls"
    assert "none" not in why


def test_devices_of_one_cpu_keep_what_all_of_them_have_room_for(monkeypatch):
    found = {}
    for mesh in ("u:1", "data:8"):  # whose eight hold all of a batch of one each
        monkeypatch.setattr("reangle_jax.measure.device_limit_bytes", lambda: 200 << 30)
        found[mesh] = chosen_models.remat(full_size(mesh=mesh))[0]
    assert found == {"u:1": "matmuls", "data:8": "full"}
