"""The mesh's setting and the rules from logical axes to its axes."""

import functools
import itertools
import types
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from reangle_jax import checkpoints
from reangle_jax import mesh as meshes
from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from reangle_jax.models.text.t5 import T5Config, T5Encoder

SIZES = {"data": 1, "r": 2, "u": 4}


def test_setting():
    assert meshes.parse("auto") is None
    assert meshes.parse("data:2,u:4") == {"data": 2, "r": 1, "u": 4}
    assert meshes.parse(" u : 8 ") == {"data": 1, "r": 1, "u": 8}


@pytest.mark.parametrize("text", ["", "u", "u:0", "u:-1", "u:x", "v:2", "u:2,u:2", "data=1", "8"])
def test_impossible_setting(text):
    with pytest.raises(
        InputError, match=r"config\.mesh=.* is not possible: it must be auto, or the sizes of data, r, u"
    ):
        meshes.parse(text)


def test_make_mesh():
    assert meshes.make_mesh("auto").shape == {"data": 1, "r": 1, "u": 1}  # one CPU device, though there are eight
    assert meshes.make_mesh("data:2,r:2,u:2").size == 8
    assert meshes.make_mesh("u:4").shape == {"data": 1, "r": 1, "u": 4}
    with pytest.raises(InputError, match=r"config\.mesh='u:16' needs 16 devices and there are 8"):
        meshes.make_mesh("u:16")


@pytest.mark.usefixtures("unchecked")  # a stand-in for the mesh
def test_auto_gives_every_device_an_equal_share_of_the_batch_and_divides_its_videos():
    class Device:
        platform, process_index = "gpu", 0

    devices = [Device() for _ in range(8)]
    for batch, share in ((1, 1), (2, 2), (3, 1), (12, 4), (16, 8)):
        assert meshes.parse("auto") is None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(meshes, "Mesh", lambda grid, axes, axis_types: grid)
            assert meshes.make_mesh(batch_size=batch, devices=devices).shape == (share, 1, 8 // share)
            assert meshes.make_mesh(batch_size=batch, devices=devices * 2).shape == (
                (16, 1, 1) if batch == 16 else (share, 16 // share // min(8, 16 // share), min(8, 16 // share))
            )


@pytest.mark.usefixtures("unchecked")  # stand-ins for the devices
@pytest.mark.parametrize("slices", [1, 2])
def test_devices_stand_as_neighbours_and_slices_apart(monkeypatch, slices):
    class Chip:
        platform, device_kind, core_on_chip = "tpu", "TPU v5 lite", 0

        def __init__(self, number, column, row, part):
            self.id, self.coords, self.slice_index, self.process_index = number, (column, row, 0), part, 0

    chips = [Chip(8 * part + 4 * row + column, column, row, part)
             for part in range(slices) for row in range(2) for column in range(4)]  # fmt: skip
    monkeypatch.setattr(meshes, "Mesh", lambda grid, axes, axis_types: grid)
    grid: Any = meshes.make_mesh(f"data:{slices},r:2,u:4", devices=chips)
    assert sorted(chip.id for chip in grid.flat) == list(range(8 * slices))
    for part in range(slices):
        assert {chip.slice_index for chip in grid[part].flat} == {part}
        for others in grid[part]:  # each next one on u is a neighbour
            steps = [np.abs(np.subtract(a.coords, b.coords)).sum() for a, b in itertools.pairwise(others)]
            assert steps == [1, 1, 1]


@pytest.mark.usefixtures("unchecked")  # a stand-in for the mesh
def test_a_base_is_replicated_where_memory_allows():
    class Device:
        platform = "tpu"

    made: Any = types.SimpleNamespace(devices=np.array([Device()]))
    choose = functools.partial(meshes.base_layout, mesh=made, base_bytes=lambda: 11 << 30)
    assert choose("auto", device_bytes=31 << 30) == "replicated"
    assert choose("auto", device_bytes=16 << 30) == "divided"
    assert choose("auto", device_bytes=None) == "divided"
    assert choose("replicated", device_bytes=16 << 30) == "replicated"
    assert meshes.base_layout("auto", meshes.make_mesh("u:2"), lambda: 1, 1 << 40) == "divided"  # CPUs share one memory


@pytest.mark.parametrize(
    ("build", "spread"),
    [
        (lambda: Transformer(TransformerConfig.cogvideox_5b_i2v(), rngs=nnx.Rngs(0)), 0.98),
        (lambda: T5Encoder(T5Config.t5_v1_1_xxl(), rngs=nnx.Rngs(0)), 0.98),
    ],
    ids=["transformer", "text_encoder"],
)
def test_the_large_networks_are_spread_over_the_devices(build, spread):
    """At full size, abstractly: every parameter has a layout, and nearly all bytes are divided by eight."""
    mesh = meshes.make_mesh("r:2,u:4")
    model = checkpoints.abstract(build)
    whole = divided = 0
    for variable in checkpoints.parameter_paths(model).values():
        shard = meshes.sharding_for(variable, mesh).shard_shape(tuple(variable.shape))
        size, part = jax.numpy.zeros((), variable.dtype).itemsize, 1
        for length, local in zip(variable.shape, shard, strict=True):
            size, part = size * length, part * (length // local)
        whole += size
        divided += size if part == 8 else 0
    assert divided / whole > spread


def test_adapters_are_spread_by_rank():
    mesh = meshes.make_mesh("u:4")
    a = nnx.LoRAParam(jax.ShapeDtypeStruct((2, 64, 8), "float32"), axes=("heads", "lora"))
    b = nnx.LoRAParam(jax.ShapeDtypeStruct((2, 8, 64), "float32"), axes=("lora", "heads"))
    assert meshes.sharding_for(a, mesh).spec == P(None, None, ("r", "u"))
    assert meshes.sharding_for(b, mesh).spec == P(None, ("r", "u"))
