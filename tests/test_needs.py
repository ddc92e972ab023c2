"""What a device needs of work that many divide: beside the compilers' own figures (docs/scale.md)."""

import pytest

from reangle_jax import chosen_models, config
from reangle_jax import mesh as meshes
from reangle_jax.backbones.cogvideox import needs as needs_of
from reangle_jax.backbones.registry import Clip
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.needs import ALONE, Shares, coded_pixels
from reangle_jax.nn.choices import Choice

GIB = 2.0**30
ONE, EIGHT = ALONE, Shares(rows=8)


def full_size(**changes):
    values = config.get_default().to_dict() | {"video": "x", "weights": "none"} | changes
    return config.parse(values)


@pytest.mark.parametrize(
    ("shares", "part"),
    [
        (ONE, 1),
        (Shares(rows=8), (480 / 8 + 2) / 480),  # two rows of neighbours
        (Shares(rows=4, columns=2), (480 / 4 + 2) / 480 * (720 / 2 + 2) / 720),
        (Shares(rows=16), 4 / 16),  # 16 do not divide the 120 rows of the third resolution, four times as wide
        (Shares(rows=7), 1),
        (Shares(videos=8), 1),
    ],
)
def test_rows_are_divided_at_each_resolution_that_has_a_multiple(shares, part):
    levels = [(1.0, 0), (2.0, 1), (4.0, 2), (4.0, 3)]  # FLUX's: 128, 256, 512, 512 channels
    assert coded_pixels(levels, 480, 720, shares) == pytest.approx(part * 480 * 720)


@pytest.mark.parametrize(
    ("platform", "decodes", "shares", "compiled"),
    [
        ("tpu", True, ONE, 20.28),
        ("tpu", True, EIGHT, 3.05 - 0.23),
        ("gpu", True, ONE, 12.88 - 0.23),
        ("gpu", True, EIGHT, 4.30 - 0.23),
        ("gpu", False, ONE, 9.10 - 0.22),
        ("gpu", False, EIGHT, 2.25 - 0.22),
    ],
)
def test_coding_takes_what_compilers_say(platform, decodes, shares, compiled, monkeypatch):
    """Of 49 frames of 480x720, nine at once, beside the parameters: v5e 2x4 and H100s, GiB."""
    monkeypatch.setattr("jax.default_backend", lambda: platform)
    vae, clip = VAEConfig(), Clip(49, 480, 720, "off")
    found = needs_of.coding_bytes(vae, clip, 9, shares, decodes=decodes) / GIB
    assert found == pytest.approx(compiled, rel=0.05)
    assert needs_of.coding_bytes(vae, clip._replace(tiles="on"), 9, shares, decodes=decodes) / GIB < 0.3 * found


@pytest.mark.parametrize(
    ("platform", "phase", "remat", "base", "shares", "compiled"),
    [
        ("gpu", "train", "matmuls", "auto", ONE, 53.25),
        ("gpu", "train", "attention", "auto", ONE, 23.00),
        ("gpu", "train", "full", "auto", ONE, 19.29),
        ("gpu", "train", "attention", "int8", ONE, 17.81),
        ("gpu", "train", "full", "int8", ONE, 14.06),
        ("gpu", "train", "matmuls", "auto", EIGHT, 8.09),
        ("gpu", "train", "attention", "auto", EIGHT, 4.36),
        ("gpu", "train", "attention", "auto", Shares(rows=4), 8.16),
        ("gpu", "train", "matmuls", "auto", EIGHT._replace(base_whole=True), 16.17),
        ("gpu", "train", "attention", "auto", EIGHT._replace(base_whole=True), 12.45),
        ("gpu", "sample", "full", "auto", ONE, 12.42),
        ("gpu", "sample", "full", "auto", EIGHT, 2.68),
        ("gpu", "sample", "full", "auto", EIGHT._replace(base_whole=True), 10.88),
        ("tpu", "train", "attention", "auto", ONE, 29.52),  # v6e
        ("tpu", "train", "matmuls", "auto", EIGHT, 7.82),  # v5e
        ("tpu", "train", "attention", "auto", EIGHT, 4.12),
        ("tpu", "train", "matmuls", "auto", Shares(rows=4), 15.27),  # v5p
        ("tpu", "train", "attention", "auto", Shares(rows=4), 7.88),
        ("tpu", "train", "attention", "int8", Shares(rows=4), 6.64),
        ("tpu", "train", "attention", "auto", Shares(rows=16), 2.21),
        ("tpu", "sample", "full", "int8", ONE, 9.56),
        ("tpu", "sample", "full", "auto", EIGHT, 1.80),
        ("tpu", "sample", "full", "auto", EIGHT._replace(base_whole=True), 10.78),
    ],
)
def test_a_devices_share_is_what_compilers_say(platform, phase, remat, base, shares, compiled, monkeypatch):
    """At most 3 % below the compiled peak, GiB, and at most 5 % and 0.25 GiB above."""
    monkeypatch.setattr("jax.default_backend", lambda: platform)
    settings = full_size(base_dtype=base, execution={**vars(Choice()), "remat": remat})
    demand = chosen_models.demand(settings)._replace(training=shares, sampling=shares)
    stage = "finetune" if phase == "train" else "generate"
    found = chosen_models.backbone(settings).needs(demand)[stage].phases[phase] / GIB
    assert 0.97 * compiled < found < 1.05 * compiled + 0.25


@pytest.mark.parametrize(
    ("count", "shares", "own"),
    [(4, Shares(videos=4), 1), (4, Shares(videos=2), 2), (1, Shares(videos=8), 1), (3, Shares(videos=2), 3)],
)
def test_a_batch_that_devices_do_not_divide_is_on_each_whole(count, shares, own):
    assert shares.of_batch(count) == own


def test_a_mesh_says_what_it_divides():
    assert meshes.shares(meshes.make_mesh("data:2,r:1,u:4"), "divided") == Shares(2, 4, 1)
    assert meshes.shares(meshes.make_mesh("r:2,u:4"), "replicated") == Shares(1, 4, 2, base_whole=True)
    settings = full_size(mesh="data:2,u:4", finetune=config.get_default().finetune.to_dict() | {"batch_size": 2})
    assert chosen_models.demand(settings).training == Shares(2, 4, 1)
    assert chosen_models.demand(full_size(mesh="u:64")).training == ALONE  # a check says that there are not so many


def test_blocks_keep_more_where_devices_divide_a_video(monkeypatch):
    """Eight chips of 15.75 GiB keep the products of matrices, of which one could keep nothing."""
    monkeypatch.setattr("jax.default_backend", lambda: "tpu")
    monkeypatch.setattr("reangle_jax.measure.device_limit_bytes", lambda: int(15.75 * GIB))
    assert chosen_models.remat(full_size(mesh="u:1"))[0] == "full"
    name, why = chosen_models.remat(full_size(mesh="u:8"))
    assert name == "matmuls"
    assert why.startswith("fine-tuning needs 8.1 GiB of 15.0 GiB")
