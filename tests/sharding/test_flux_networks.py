"""FLUX's networks on a mesh give what one device gives: transformer and ControlNet, autoencoder, CLIP's tower."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from reangle_jax import checkpoints
from reangle_jax import mesh as meshes
from reangle_jax.models.flux.autoencoder import Autoencoder
from reangle_jax.models.flux.autoencoder_config import AutoencoderConfig
from reangle_jax.models.flux.controlnet import FluxControlNet
from reangle_jax.models.flux.transformer import FluxTransformer
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.models.text.clip import CLIPConfig, CLIPTextEncoder
from tests import jaxprs
from tests.networks import fill_randomly

pytestmark = pytest.mark.sharding
# What is computed has nothing to add over devices but the sums over features, whose order is another.
TOLERANCE = 1e-5


def filled(network, config):
    model = checkpoints.abstract(lambda: network(config, rngs=nnx.Rngs(0)))
    fill_randomly(model)
    return nnx.split(model)


def compare(run, state, *inputs, text):
    """Runs on one device and on a mesh; gives the results of the latter and the parameters as they lie there."""
    expected = jax.jit(run)(state, *inputs)
    mesh = meshes.make_mesh(text)
    with meshes.use(mesh):
        state = jax.device_put(state, meshes.shardings(state, mesh))
        got = jax.jit(run)(state, *meshes.split_batch(inputs))
    for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(other, one, atol=TOLERANCE * float(jnp.abs(one).max()))
    return got, state


@pytest.mark.parametrize(("text", "share"), [("data:4", 1), ("data:2,u:2", 2)])
def test_pictures_are_divided_over_the_devices(rng, text, share):
    graphdef, state = filled(Autoencoder, AutoencoderConfig((4, 8), 1, norm_num_groups=2, latent_channels=4))

    def both(state, pictures):
        model = nnx.merge(graphdef, state)
        mean, logvar = model.encode(pictures)
        return mean, logvar, model.decode(mean)

    pictures = jnp.asarray(rng.uniform(-1, 1, (4, 8, 12, 3)), jnp.float32)
    (_, _, back), _ = compare(both, state, pictures, text=text)
    assert back.addressable_shards[0].data.shape[0] == share


def test_clips_heads_are_divided_over_the_devices(rng):
    config = CLIPConfig(vocab_size=64, max_length=8, width=16, mlp_width=32, num_layers=2, num_heads=4)
    graphdef, state = filled(CLIPTextEncoder, config)
    ids = jnp.asarray(rng.integers(0, 64, (2, 8)), jnp.int32)
    _, placed = compare(lambda state, ids: nnx.merge(graphdef, state)(ids), state, ids, text="data:2,r:2,u:2")
    kernel = placed["blocks"]["layers"]["attn"]["q"]["kernel"][...]
    assert kernel.addressable_shards[0].data.shape == (2, 16, 4)


def test_the_transformer_and_its_controlnet_are_divided_over_the_devices(rng):
    sizes = {
        "num_attention_heads": 4,
        "attention_head_dim": 8,
        "axes_dims_rope": (2, 2, 4),
        "text_embed_dim": 8,
        "pooled_embed_dim": 8,
        "in_channels": 16,
        "out_channels": 16,
    }
    base = FluxConfig(num_layers=2, num_single_layers=2, **sizes)
    beside = ControlNetConfig(num_layers=1, num_single_layers=0, condition_channels=20, base_layers=2, **sizes)
    (graphdef, state), (control, control_state) = filled(FluxTransformer, base), filled(FluxControlNet, beside)
    grid = (2, 3)

    def predict(states, tokens, condition, text, pooled, times, guidance):
        shared = (text, pooled, times, guidance, grid)
        residuals = nnx.merge(control, states[1])(tokens, condition, *shared, 0.9)
        return nnx.merge(graphdef, states[0])(tokens, *shared, residuals), residuals[:, :, :6]  # what fills up is left

    shapes = ((4, 6, 16), (4, 6, 20), (4, 5, 8), (4, 8), (4,), (4,))
    inputs = [jnp.asarray(rng.uniform(0, 1, shape), jnp.float32) for shape in shapes]
    _, placed = compare(predict, (state, control_state), *inputs, text="data:2,r:2,u:2")
    with meshes.use(meshes.make_mesh("data:2,r:2,u:2")):
        jaxpr = jax.make_jaxpr(predict)(placed, *inputs).jaxpr
    stated = [e for e in jaxprs.equations(jaxpr) if e.primitive.name == "sharding_constraint"]
    tokens = [e.params["sharding"].spec for e in stated if e.outvars[0].aval.shape in {(4, 8, 32), (4, 16, 32)}]
    # Into and out of a joint block, of the ControlNet and of the transformer, two streams; of a single one, both in
    # one; the ControlNet's residuals besides.
    assert tokens == [P("data", ("r", "u"))] * (2 * 4 + 2 + 2)
    # In each of the three: queries, keys, values and what attention gave, of two streams; keys and values are gathered.
    counts = jaxprs.names(jaxpr)
    assert (counts["all_to_all"], counts["all_gather"]) == (3 * 8, 3 * 4)
    for block in (placed[0]["joint"]["layers"]["picture"], placed[0]["single"]["layers"]):
        kernel = block["heads"]["to_q"]["kernel"][...]
        assert kernel.addressable_shards[0].data.shape == (2, 32, 8)
