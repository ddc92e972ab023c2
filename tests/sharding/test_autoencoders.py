"""Autoencoders whose pictures' rows and columns lie divided over a mesh: the numbers of one device, and what moves."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from benchmarks import full_size_programs
from reangle_jax import checkpoints
from reangle_jax import mesh as meshes
from reangle_jax.models.cogvideox.vae import VAE
from reangle_jax.models.cogvideox.vae_config import VAEConfig
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from tests.networks import fill_randomly

pytestmark = pytest.mark.sharding
TOLERANCE = 1e-5  # of the largest value: sums of norms in another order
# Two chunks of frames. Eight devices divide the 24 rows of pixels and not the 12 of latents.
VIDEO = VAEConfig(
    block_out_channels=(4, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4, temporal_compression_ratio=2
)
PICTURE = AutoencoderConfig(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
KINDS = {
    "video": (VAE, VIDEO, lambda model, x: model.decode(model.encode(x)[0]), (2, 17, 24, 16, 3)),
    "picture": (Autoencoder, PICTURE, lambda model, x: model.decode(model.encode(x)[0]), (2, 24, 16, 3)),
}
# Over what the videos, rows and columns of what is decoded are divided.
MESHES = {"u:8": (None, "u", None), "data:2,r:2,u:2": ("data", "u", "r")}


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    """A network, its state, what is done with it, of what, and what one device makes of it."""
    network, config, run, shape = KINDS[request.param]
    model = checkpoints.abstract(lambda: network(config, rngs=nnx.Rngs(0)))
    fill_randomly(model)
    graphdef, state = nnx.split(model)
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)

    def whole(state, x):
        return run(nnx.merge(graphdef, state), x)

    return whole, state, x, jax.jit(whole)(state, x)


@pytest.mark.parametrize("text", MESHES)
def test_pixels_are_divided_and_the_numbers_are_one_devices(kind, text):
    run, state, x, expected = kind
    axes = MESHES[text]
    mesh = meshes.make_mesh(text)
    with meshes.use(mesh):
        arguments = jax.device_put(state, meshes.shardings(state, mesh)), meshes.split_batch(x)
        compiled = jax.jit(run).lower(*arguments).compile()
        got = compiled(*arguments)
    assert float(jnp.abs(expected).max()) > 0.1
    np.testing.assert_allclose(got, expected, atol=TOLERANCE * float(jnp.abs(expected).max()))
    batch, *between, rows, columns = axes[0], *[None] * (x.ndim - 4), *axes[1:]
    assert got.sharding.is_equivalent_to(jax.NamedSharding(mesh, P(batch, *between, rows, columns)), x.ndim)
    text = compiled.as_text()
    assert "collective-permute" in text  # neighbours' rows
    rows_and_columns = ",".join(map(str, x.shape[-3:-1]))
    for line in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather", text):
        assert rows_and_columns not in line, line  # no pixels of a whole frame


@pytest.mark.parametrize("name", KINDS)
def test_there_and_back_lowers_at_full_size_with_rows_and_columns_divided(name):
    """Both networks of each family, as published; traced alone."""
    network, small, run, shape = KINDS[name]
    model = checkpoints.abstract(lambda: network(type(small)(), rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    mesh = meshes.make_mesh("r:2,u:4")
    with meshes.use(mesh):
        x = jax.ShapeDtypeStruct((1, *shape[1:-3], 480, 720, 3), jnp.float32)
        traced = jax.jit(lambda state, x: run(nnx.merge(graphdef, state), x)).trace(state, x)
    for platform in ("tpu", "cuda"):
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        stated = re.findall(r"sharding_constraint .*\[(.*)\]> : tensor<1x(?:\d+x)?480x720x\d+x\w+>", lowered)
        assert len(stated) > 8
        assert all(each.endswith('{"u"}, {"r"}, {}') for each in stated), set(stated)


def test_decoding_at_full_size_lowers_and_keeps_its_rows_divided():
    """480 rows, though the 60 of the latents do not divide."""
    mesh = meshes.make_mesh("u:8")
    with meshes.use(mesh):
        traced = full_size_programs.decoding(full_size_programs.Case(), mesh).trace()
    for platform in ("tpu", "cuda"):
        lowered = traced.lower(lowering_platforms=(platform,)).as_text()
        stated = re.findall(r"sharding_constraint .*\[(.*)\]> : tensor<1x8x480x720x128xbf16>", lowered)
        assert len(stated) > 8
        assert set(stated) == {'{"data"}, {}, {"u"}, {"r"}, {}'}
