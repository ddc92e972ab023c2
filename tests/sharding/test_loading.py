"""Weights written from one mesh and read for others: equal numbers, each device its own share."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
from flax import nnx

from reangle_jax import checkpoints
from reangle_jax import mesh as meshes
from reangle_jax.errors import InputError
from reangle_jax.models.cogvideox.transformer import Transformer
from reangle_jax.models.cogvideox.transformer_config import TransformerConfig
from tests.networks import TRANSFORMER_SMALL, fill_randomly, save_sharded, write_forms

pytestmark = pytest.mark.sharding
CONFIG = dataclasses.replace(TRANSFORMER_SMALL, num_attention_heads=4)
MESHES = ["data:1", "r:2,u:2", "data:4,u:2", "r:2,u:4"]


def abstract(config=CONFIG):
    return checkpoints.abstract(lambda: Transformer(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model():
    model = abstract()
    fill_randomly(model)
    return model


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory):
    return write_forms(tmp_path_factory.mktemp("forms"), model, CONFIG)


@jax.jit
def _apply(split, latents, text, times):
    return nnx.merge(*split)(latents, text, times)


def outputs(model):
    keys = jax.random.split(jax.random.key(0), 2)
    latents, text = jax.random.normal(keys[0], (4, 2, 16, 16, 8)), jax.random.normal(keys[1], (4, 16, 16))
    times = jnp.array([0.0, 10.0, 500.0, 999.0])
    return np.asarray(_apply(nnx.split(model), *meshes.split_batch((latents, text, times))))


@pytest.mark.parametrize("form", ["orbax", "safetensors"])
@pytest.mark.parametrize("text", MESHES)
def test_any_mesh(model, folders, form, text):
    mesh = meshes.make_mesh(text)
    loaded = checkpoints.load_into(
        abstract(checkpoints.load_config(folders / form, TransformerConfig)), folders / form, mesh=mesh
    )
    for path, variable in checkpoints.parameter_paths(loaded).items():
        assert variable[...].sharding == meshes.sharding_for(variable, mesh), path
        np.testing.assert_array_equal(variable[...], checkpoints.parameter_paths(model)[path][...])
    kernel = loaded.blocks.layers.attn.to_q.kernel[...]
    ways = mesh.shape["r"] * mesh.shape["u"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 64, 64 // ways)}
    with meshes.use(mesh):
        # 1e-5: sums in another order.
        np.testing.assert_allclose(outputs(loaded), outputs(model), atol=1e-5)


def test_saved_from_a_mesh_loaded_without_one(model, folders, tmp_path):
    with meshes.use(meshes.make_mesh("u:2")):
        spread = checkpoints.load_into(abstract(), folders / "orbax")
        save_sharded(tmp_path / "again", spread, CONFIG)
    again = checkpoints.load_into(abstract(), tmp_path / "again")
    for path, variable in checkpoints.parameter_paths(again).items():
        assert len(variable[...].sharding.device_set) == 1
        np.testing.assert_array_equal(variable[...], checkpoints.parameter_paths(model)[path][...])


@pytest.mark.parametrize("form", ["orbax", "safetensors"])
def test_loaded_in_the_dtype_of_the_config(model, folders, form):
    config = dataclasses.replace(CONFIG, param_dtype="bfloat16")
    loaded = checkpoints.load_into(abstract(config), folders / form, mesh=meshes.make_mesh("u:2"))
    for path, variable in checkpoints.parameter_paths(loaded).items():
        expected = checkpoints.parameter_paths(model)[path][...]
        np.testing.assert_array_equal(variable[...], expected.astype(variable.dtype))
    assert loaded.blocks.layers.ff.up.kernel.dtype == jnp.bfloat16


def bytes_read():
    """What TensorStore has read from files in this process."""
    metrics = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
    return sum(value["value"] for metric in metrics for value in metric["values"])


def test_shares_are_read_once(tmp_path):
    """A device holds an eighth; what all hold is read once and not eight times, and no share brings the whole along."""
    config = dataclasses.replace(CONFIG, num_attention_heads=16, text_embed_dim=16)  # large beside the metadata
    model = abstract(config)
    fill_randomly(model)
    save_sharded(tmp_path / "part", model, config)
    stored = sum(file.stat().st_size for file in (tmp_path / "part" / "params").rglob("*") if file.is_file())
    for text, held in (("data:8", 1.0), ("r:2,u:4", 0.2)):
        before = bytes_read()
        loaded = checkpoints.load_into(abstract(config), tmp_path / "part", mesh=meshes.make_mesh(text))
        assert 0.5 * stored < bytes_read() - before < 2.5 * stored
        arrays = [variable[...] for variable in checkpoints.parameter_paths(loaded).values()]
        on_one = sum(array.addressable_shards[0].data.nbytes for array in arrays)
        assert on_one <= held * sum(array.nbytes for array in arrays)


class TestDamage:
    @pytest.fixture
    def folder(self, model, tmp_path):
        save_sharded(tmp_path / "part", model, CONFIG)
        return tmp_path / "part"

    def assert_refused(self, folder, words, config=CONFIG):
        with pytest.raises(InputError, match=words) as caught:
            checkpoints.load_into(abstract(config), folder)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 700

    def largest(self, folder):
        return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)

    def test_truncated(self, folder):
        largest = self.largest(folder)
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
        self.assert_refused(folder, r"^/.*/part is damaged \(.*\): convert the weights again")

    @pytest.mark.parametrize("name", ["_METADATA", "head.proj_out.kernel/.zarray"])
    def test_lost_or_rewritten_file(self, folder, name):
        (folder / "params" / name).write_bytes(b"{")
        self.assert_refused(folder, "is damaged .*: convert the weights again")
        (folder / "params" / name).unlink()
        self.assert_refused(folder, "is damaged .*: convert the weights again")

    def test_another_model(self, folder):
        self.assert_refused(folder, r"does not fit the model: .*shape .*give the weights of this model",
                     dataclasses.replace(CONFIG, num_attention_heads=2))  # fmt: skip
        self.assert_refused(folder, "pos_embedding: unknown; give", dataclasses.replace(CONFIG, use_learned=False))
