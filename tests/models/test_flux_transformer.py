"""FLUX's transformer and ControlNet: sizes, and what a fresh ControlNet does; parity has the numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from reangle_jax.checkpoints import abstract, parameter_paths
from reangle_jax.models.flux.controlnet import FluxControlNet
from reangle_jax.models.flux.tokens import pack
from reangle_jax.models.flux.transformer import FluxTransformer
from reangle_jax.models.flux.transformer_config import ControlNetConfig, FluxConfig
from reangle_jax.nn.execution import Execution
from tests import quick_compilation

GRID = (2, 3)
SMALL = dataclasses.replace(FluxConfig.tiny(), num_attention_heads=1, num_single_layers=1)
CONTROL = dataclasses.replace(ControlNetConfig.tiny(), num_attention_heads=1)


def inputs(rng, config):
    """Tokens, text, the text's vector, times and guidance."""
    shapes = (GRID[0] * GRID[1], config.in_channels), (4, config.text_embed_dim), (config.pooled_embed_dim,), ()
    arrays = [jnp.asarray(rng.normal(size=(2, *shape)), jnp.float32) for shape in shapes]
    return (*arrays[:3], jnp.array([0.9, 0.1]), jnp.array([3.5, 3.5]))


@pytest.mark.parametrize(
    ("network", "config", "count"),
    [
        (FluxTransformer, FluxConfig.dev(), 11_901_408_320),  # counted in the published files' headers
        (FluxTransformer, FluxConfig.fill_dev(), 11_902_391_360),
        (FluxControlNet, ControlNetConfig.inpainting_beta(), 2_140_889_088),
    ],
)
def test_full_sizes_are_the_published(network, config, count):
    model = abstract(lambda: network(config, execution=Execution(), rngs=nnx.Rngs(0)))
    assert sum(np.prod(v.shape, dtype=np.int64) for v in parameter_paths(model).values()) == count


def test_adapters_are_on_the_pictures_attention():
    config = dataclasses.replace(SMALL, lora_rank=2, lora_alpha=2.0)
    model = abstract(lambda: FluxTransformer(config, execution=Execution(), rngs=nnx.Rngs(0)))
    adapted = {path.rpartition(".")[0] for path in parameter_paths(nnx.state(model, nnx.LoRAParam))}
    heads = {f"{block}.heads.to_{x}" for block in ("joint.layers.picture", "single.layers") for x in "qkv"}
    assert adapted == {*heads, "joint.layers.picture.to_out"}


def test_the_published_controlnets_last_block_reaches_nothing():
    config = ControlNetConfig.inpainting_beta()
    assert (config.interval, config.used_layers) == (4, 5)


def test_a_fresh_controlnet_changes_nothing_and_a_trained_one_does(rng):
    model, control = FluxTransformer(SMALL, rngs=nnx.Rngs(0)), FluxControlNet(CONTROL, rngs=nnx.Rngs(1))
    args = inputs(rng, SMALL)
    condition = jnp.asarray(rng.normal(size=(2, GRID[0] * GRID[1], CONTROL.condition_channels)), jnp.float32)
    call = jax.jit(lambda model, *rest: model(*args, GRID, *rest), compiler_options=quick_compilation.USERS_LOOPS)
    residuals = control(args[0], condition, *args[1:], GRID)
    assert not np.asarray(residuals).any()
    plain = call(model)
    assert np.array_equal(plain, call(model, residuals))
    assert not np.allclose(plain, call(model, residuals + 1.0))


def test_rematerialising_and_attention_change_no_number(rng):
    args = inputs(rng, SMALL)

    def run(execution):
        graphdef, state = nnx.split(FluxTransformer(SMALL, execution=execution, rngs=nnx.Rngs(0)))
        loss = jax.jit(jax.value_and_grad(lambda state: jnp.mean(jnp.square(nnx.merge(graphdef, state)(*args, GRID)))))
        return loss(state)

    plain, other = run(Execution()), run(Execution(attention="mapped", remat="attention"))
    np.testing.assert_allclose(plain[0], other[0], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(plain[1]), jax.tree.leaves(other[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_sizes_that_do_not_fit_are_refused(rng):
    model = FluxTransformer(SMALL, rngs=nnx.Rngs(0))
    args = inputs(rng, SMALL)
    with pytest.raises(ValueError, match="are not"):
        model(*args, (3, 3))
    with pytest.raises(ValueError, match="guidance"):
        model(*args[:4], None, GRID)
    with pytest.raises(ValueError, match="whole tokens"):
        pack(jnp.zeros((1, 3, 4, 2)))
    with pytest.raises(ValueError, match="add up"):
        dataclasses.replace(SMALL, axes_dims_rope=(2, 2, 2))
    with pytest.raises(ValueError, match="num_single_layers"):
        dataclasses.replace(CONTROL, num_single_layers=1)
